"""Selection and the logits at the sites on a GPU (or the emulated driver) against float64."""

from __future__ import annotations

import numpy as np
import pytest
from rows_support import RULES, entropy, random_logits, softmax, upsample

from crispseg.errors import InputError
from crispseg.plugins.cuda_loader import F16, F32, I8, UPSAMPLE

TOLERANCE = 2e-5
BINS = 2048

# C, low-resolution size, frame size
SIZES = [
    (19, (16, 40), (64, 160)),  # factor 4
    (11, (9, 13), (18, 26)),  # factor 2, odd sizes
    (2, (7, 5), (56, 40)),  # factor 8
    (24, (6, 21), (18, 63)),  # factor 3
    (3, (4, 3), (100, 75)),  # factor 25
    (19, (13, 37), (29, 81)),  # no integer factor
    (150, (5, 9), (20, 36)),
    (256, (3, 5), (7, 11)),
    (256, (3, 70), (5, 77)),  # hardly any factor: one row a tile
    (200, (4, 300), (3, 310)),  # no room for a tile
    (19, (12, 20), (12, 20)),  # factor 1
    (4, (33, 70), (10, 17)),  # shrinking
    (4, (10, 10), (40, 5)),  # growing one way, shrinking the other
    (6, (1, 1), (9, 33)),
    (1, (3, 3), (6, 6)),
    (19, (5, 7), (1, 1)),
    (5, (2, 33), (8, 132)),
]


class Select:
    """csg_select_pixels with poisoned outputs and scratch."""

    def __init__(self, gpu, logits, size, rule, threshold, capacity=None, confidence=True, half=False):
        self.gpu, self.size, self.rule, self.threshold = gpu, size, rule, threshold
        self.capacity = size[0] * size[1] if capacity is None else capacity
        self.logits = gpu.put(logits, np.float16 if half else np.float32)
        self.labels = gpu.room(size, np.uint8)
        self.sure = gpu.room(size, np.uint8) if confidence else None
        self.coords = gpu.room((self.capacity, 2), np.int32)
        self.count, self.found = gpu.room(1, np.int32), gpu.room(1, np.int32)
        self.work = gpu.room(gpu.size("csg_select_workspace", *size), np.uint8, shift=16)
        self.outputs = [self.labels, self.coords, self.count, self.found] + ([self.sure] if confidence else [])

    def enqueue(self):
        kind = F16 if self.logits.dtype == np.float16 else F32
        head = (kind, self.logits, *self.logits.shape, *self.size, UPSAMPLE[self.rule], self.threshold, self.capacity)
        outputs = (self.labels, self.sure, self.coords, self.count, self.found)
        self.gpu.call("csg_select_pixels", *head, *outputs, self.work, self.work.nbytes)

    def check(self, logits):
        """Against float64 of these logits (already rounded to the type that was uploaded)."""
        full = upsample(logits, self.size, self.rule)
        classes = len(full)
        order = np.sort(full, axis=0)
        gap = order[-1] - order[-2] if classes > 1 else np.full(self.size, np.inf)
        clear = gap > 1e-4
        assert (self.labels.get() == full.argmax(0))[clear].all()
        if self.sure is not None:
            exact = 255 * softmax(full, 0).max(0)
            assert np.abs(self.sure.get() - exact).max() <= 0.5 + 1e-3
        e = entropy(full, 0)
        sure, maybe = e > self.threshold + TOLERANCE, e > self.threshold - TOLERANCE
        found, count = int(self.found.get()[0]), int(self.count.get()[0])
        assert sure.sum() <= found <= maybe.sum()
        assert count == min(found, self.capacity)
        coords = self.coords.get()[:count]
        assert self.coords.untouched(count)
        active = np.zeros(self.size, bool)
        active[coords[:, 0], coords[:, 1]] = True
        flat = coords[:, 0].astype(np.int64) * self.size[1] + coords[:, 1]
        assert (np.diff(flat) > 0).all(), "raster order without duplicates"
        assert not active[~maybe].any()
        if found <= self.capacity:
            assert active[sure].all()
        elif self.capacity:
            least = np.sort(e[maybe])[-self.capacity]
            width = np.log(classes) / BINS if classes > 1 else 0  # the exact order ends at the cut's bin
            assert active[e > least + width + 2 * TOLERANCE].all()
            assert not active[e < least - width - 2 * TOLERANCE].any()
        return active


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("classes", "low", "size"), SIZES)
def test_agrees_with_float64(gpu, half, rule, classes, low, size):
    logits = random_logits(classes, low, seed=classes)
    if half:
        logits = logits.astype(np.float16).astype(np.float32)
    for threshold, confidence in ((0.3, True), (0.02, False)):
        select = Select(gpu, logits, size, rule, threshold, confidence=confidence, half=half)
        select.enqueue()
        select.check(logits)


@pytest.mark.parametrize("rule", ["bilinear", "nearest"])
def test_margin_shortcut_changes_nothing(gpu, rule):
    """Without a confidence most pixels leave before the softmax."""
    logits = random_logits(7, (20, 40), seed=9, scale=0.5)
    for threshold in (0.3, 0.005):
        runs = []
        for confidence in (True, False):
            select = Select(gpu, logits, (50, 101), rule, threshold, confidence=confidence)
            select.enqueue()
            runs.append([room.get() for room in select.outputs[:4]])
        for one, other in zip(*runs):
            np.testing.assert_array_equal(one, other)
        assert runs[0][3][0] < 0.9 * 50 * 101


def test_clamp_concerns_only_the_logarithm(gpu):
    """Classes with p just below 1e-5 contribute p ln(1e5); dropping the clamp, or p, is visible with 256 of them."""
    for lead in (11.6, 12.5, 14.0):
        logits = np.zeros((256, 4, 4), np.float32)
        logits[7] = lead
        exact = float(entropy(logits[:, 0, 0], 0))
        for threshold, found in ((exact - TOLERANCE, 64), (exact + TOLERANCE, 0)):
            select = Select(gpu, logits, (8, 8), "bilinear", threshold, confidence=False)
            select.enqueue()
            assert select.found.get()[0] == found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(24, 40), (31, 47)])
@pytest.mark.parametrize("capacity", [0, 1, 7, 100, 333])
def test_over_capacity(gpu, rule, size, capacity):
    logits = np.random.default_rng(3).normal(0, 2, (5, 6, 10)).astype(np.float32)
    select = Select(gpu, logits, size, rule, 0.02, capacity=capacity)
    select.enqueue()
    select.check(logits)
    assert select.found.get()[0] > 333


def test_over_capacity_in_many_chunks(gpu):
    """More words than one block compacts, and a cut inside."""
    logits = np.random.default_rng(4).normal(0, 1, (4, 40, 50)).astype(np.float32)
    for capacity in (5000, 19999):
        select = Select(gpu, logits, (160, 200), "bilinear", 0.1, capacity=capacity)
        select.enqueue()
        select.check(logits)
        assert select.found.get()[0] > capacity
        gpu.same_in_any_order(select.enqueue, select.outputs)


@pytest.mark.parametrize("rule", RULES)
def test_ties_go_to_the_first_in_raster_order(gpu, rule):
    """Two plateaus of equal entropy: the higher one is kept whole, of the lower one the first rows."""
    logits = np.zeros((3, 8, 16), np.float32)
    logits[0, :, :8] = 1.0
    select = Select(gpu, logits, (8, 16), rule, 0.1, capacity=64 + 11)
    select.enqueue()
    assert (select.found.get()[0], select.count.get()[0]) == (128, 75)
    coords = select.coords.get()
    kept = np.zeros((8, 16), bool)
    kept[coords[:, 0], coords[:, 1]] = True
    assert kept[:, 8:].all()
    assert (np.flatnonzero(kept[:, :8]) == np.arange(11)).all()
    flat = Select(gpu, np.zeros((4, 5, 7), np.float32), (10, 21), rule, 0.0, capacity=50)
    flat.enqueue()
    assert (flat.coords.get() @ [21, 1] == np.arange(50)).all()


@pytest.mark.parametrize("rule", RULES)
def test_lowest_class_wins_a_tie(gpu, rule):
    logits = np.full((6, 5, 9), -1.0, np.float32)
    logits[2] = logits[4] = 3.0
    for size in ((5, 9), (20, 36), (13, 20)):
        select = Select(gpu, logits, size, rule, float("inf"), confidence=False)
        select.enqueue()
        assert (select.labels.get() == 2).all()
        assert select.found.get()[0] == select.count.get()[0] == 0


@pytest.mark.parametrize("threshold", [float("inf"), -1.0, 0.0, 10.0])
def test_extreme_thresholds(gpu, threshold):
    logits = random_logits(4, (6, 9), seed=5)
    select = Select(gpu, logits, (24, 36), "bilinear", threshold)
    select.enqueue()
    select.check(logits)
    one = Select(gpu, np.ones((1, 2, 2), np.float32), (4, 4), "bilinear", threshold)
    one.enqueue()
    assert one.found.get()[0] == (16 if threshold < 0 else 0)
    assert (one.sure.get() == 255).all()


@pytest.mark.parametrize("rule", RULES)
def test_nan_is_never_active_nor_best(gpu, rule):
    logits = random_logits(5, (8, 12), seed=11, scale=0.1)
    logits[:, 3:5, 4:9] = np.nan
    logits[2, 0, 0] = np.nan
    select = Select(gpu, logits, (32, 48), rule, 0.01)
    select.enqueue()
    full = upsample(logits, (32, 48), rule)
    bad = np.isnan(full).any(0)
    coords = select.coords.get()[: select.count.get()[0]]
    assert not bad[coords[:, 0], coords[:, 1]].any()
    assert (select.sure.get()[bad] == 0).all()
    assert (select.labels.get() == np.where(np.isnan(full), -np.inf, full).argmax(0)).all()


@pytest.mark.parametrize("rule", ["nearest", "bilinear"])
def test_replay_with_other_logits(gpu, rule):
    """One graph, logits that change; the scratch holds what the last frame left."""
    first = random_logits(19, (12, 24), seed=1)
    select = Select(gpu, first, (48, 96), rule, 0.1, capacity=1500)
    graph = gpu.capture(select.enqueue)
    assert select.labels.untouched(0)
    for seed, scale in ((1, 3.0), (2, 0.1), (3, 30.0)):
        logits = random_logits(19, (12, 24), seed, scale)
        select.logits.put(logits)
        for room in select.outputs:
            room.reset()
        gpu.launch(graph)
        select.check(logits)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [1, 19, 32, 33, 70])
def test_logits_at(gpu, half, rule, classes):
    logits = np.random.default_rng(1).normal(0, 5, (classes, 9, 14)).astype(np.float32)
    if half:
        logits = logits.astype(np.float16).astype(np.float32)
    for size, n in (((36, 56), 300), ((20, 33), 129), ((9, 14), 126), ((5, 40), 1), ((36, 56), 0)):
        rng = np.random.default_rng(n)
        flat = np.sort(rng.choice(size[0] * size[1], n, replace=False))
        sites = np.stack([flat // size[1], flat % size[1]], 1).astype(np.int32)
        capacity = n + 5
        coords = gpu.put(np.concatenate([sites, np.full((5, 2), -9, np.int32)]))
        count, out = gpu.count(n), gpu.room((capacity, classes + 3), np.float32)
        low = gpu.put(logits, np.float16 if half else np.float32)

        def enqueue(low=low, size=size, coords=coords, count=count, capacity=capacity, out=out):
            head = (F16 if half else F32, low, *logits.shape, *size, UPSAMPLE[rule], coords, count, capacity)
            gpu.call("csg_logits_at", *head, out, classes + 3)

        enqueue()
        exact = upsample(logits, size, rule)[:, sites[:, 0], sites[:, 1]].T
        got = out.get()
        assert np.abs(got[:n, :classes] - exact).max(initial=0) < 1e-5
        assert np.isnan(got[:n, classes:]).all()
        assert out.untouched(n)
        if n == 129:
            gpu.same_in_any_order(enqueue, [out])


def test_sites_agree_with_the_labels(gpu):
    """The logits at the sites have the front end's argmax, where that is clear."""
    logits = random_logits(11, (13, 17), seed=6, scale=2)
    select = Select(gpu, logits, (41, 60), "bilinear", 0.2)
    select.enqueue()
    n = int(select.count.get()[0])
    rows = gpu.room((n, 11), np.float32)
    head = (F32, select.logits, *logits.shape, 41, 60, UPSAMPLE["bilinear"], select.coords, select.count, n)
    gpu.call("csg_logits_at", *head, rows, 11)
    coords, top = select.coords.get()[:n], np.sort(rows.get(), 1)
    clear = top[:, -1] - top[:, -2] > 1e-4
    assert (rows.get().argmax(1) == select.labels.get()[coords[:, 0], coords[:, 1]])[clear].all()
    assert n > 100


def test_bad_arguments(gpu):
    logits = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(InputError, match="NaN"):
        Select(gpu, logits, (8, 8), "nearest", float("nan")).enqueue()
    with pytest.raises(InputError, match="C = 257"):
        Select(gpu, np.zeros((257, 2, 2), np.float32), (4, 4), "nearest", 0.1).enqueue()
    select = Select(gpu, logits, (8, 8), "nearest", 0.1)
    select.capacity = -1
    with pytest.raises(InputError, match="capacity"):
        select.enqueue()
    head = (I8, select.logits, 3, 4, 4, 8, 8, 0, 0.1, 5)
    outputs = (select.labels, None, select.coords, select.count, select.found)
    with pytest.raises(InputError, match="fp32 or fp16"):
        gpu.call("csg_select_pixels", *head, *outputs, select.work, select.work.nbytes)
