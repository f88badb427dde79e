"""cs_select_pixels against float64, on every instruction set that this machine has."""

from __future__ import annotations

import numpy as np
import pytest
from rows_support import RULES, Selection, entropy, random_logits, softmax, upsample

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.plugins.loader import Native, available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)

TOLERANCE = 2e-5

# C, low-resolution size, frame size
SIZES = [
    (19, (16, 40), (64, 160)),  # factor 4
    (11, (9, 13), (18, 26)),  # factor 2, odd sizes
    (2, (7, 5), (56, 40)),  # factor 8
    (5, (6, 21), (18, 63)),  # factor 3
    (3, (4, 3), (100, 75)),  # factor 25: beyond the path for integer factors
    (19, (13, 37), (29, 81)),  # no integer factor
    (150, (8, 18), (32, 72)),
    (256, (3, 5), (7, 11)),
    (19, (12, 20), (12, 20)),  # factor 1
    (4, (33, 70), (10, 17)),  # shrinking
    (4, (10, 10), (40, 5)),  # growing one way, shrinking the other
    (6, (1, 1), (9, 33)),
    (1, (3, 3), (6, 6)),
    (19, (5, 7), (1, 1)),
]


def check(result, logits, size, rule, threshold, capacity=None):
    full = upsample(logits, size, rule)
    order = np.sort(full, axis=0)
    gap = order[-1] - order[-2] if full.shape[0] > 1 else np.full(size, np.inf)
    clear = gap > 1e-4
    assert (result.labels == full.argmax(0))[clear].all()
    if result.confidence is not None:
        exact = 255 * softmax(full, 0).max(0)
        assert np.abs(result.confidence - exact).max() <= 0.5 + 1e-3
    e = entropy(full, 0)
    sure, maybe = e > threshold + TOLERANCE, e > threshold - TOLERANCE
    assert sure.sum() <= result.found <= maybe.sum()
    active = np.zeros(size, bool)
    active[result.coords[:, 0], result.coords[:, 1]] = True
    flat = result.coords[:, 0].astype(np.int64) * size[1] + result.coords[:, 1]
    assert (np.diff(flat) > 0).all(), "raster order without duplicates"
    if capacity is None or result.found <= capacity:
        assert result.count == result.found
        assert active[sure].all()
        assert not active[~maybe].any()
    else:
        assert result.count == capacity
        assert not active[~maybe].any()
        if capacity:
            least = np.sort(e[maybe])[-capacity]
            assert active[e > least + 2 * TOLERANCE].all()
            assert not active[e < least - 2 * TOLERANCE].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("classes", "low", "size"), SIZES)
def test_agrees_with_float64(isa, rule, classes, low, size):
    logits = random_logits(classes, low, seed=classes)
    with Native(1, isa) as native:
        for threshold in (0.3, 0.02):
            for confidence in (True, False):
                result = Selection(logits, size, rule, threshold, confidence=confidence, native=native)
                check(result, logits, size, rule, threshold)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0, 2000.0])
def test_entropy_near_the_threshold(isa, scale):
    """Peaky and flat logits: found lies within the float64 counts at threshold -+ 2e-5, over many thresholds."""
    logits = np.random.default_rng(1).normal(0, scale, (19, 24, 40)).astype(np.float32)
    e = np.sort(entropy(upsample(logits, (48, 80), "bilinear"), 0).ravel())
    tolerance = TOLERANCE + 4e-7 * scale  # the rounding of the interpolated logits themselves
    with Native(1, isa) as native:
        for threshold in np.quantile(e, np.linspace(0.02, 0.98, 25)).astype(np.float32):
            result = Selection(logits, (48, 80), "bilinear", float(threshold), confidence=False, native=native)
            assert (e > threshold + tolerance).sum() <= result.found <= (e > threshold - tolerance).sum()


@pytest.mark.parametrize("isa", ISAS)
def test_clamp_concerns_only_the_logarithm(isa):
    """Classes with p just below 1e-5 contribute p ln(1e5); dropping the clamp, or p, is visible with 256 of them."""
    for lead in (11.6, 12.0, 12.5, 13.0, 14.0, 16.0):
        logits = np.zeros((256, 4, 4), np.float32)
        logits[7] = lead
        exact = float(entropy(logits[:, 0, 0], 0))
        size = (8, 8)
        assert Selection(logits, size, "bilinear", exact - TOLERANCE, isa=isa).found == 64
        assert Selection(logits, size, "bilinear", exact + TOLERANCE, isa=isa).found == 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(24, 40), (31, 47)])
@pytest.mark.parametrize("capacity", [0, 1, 7, 100, 333])
def test_over_capacity(isa, rule, size, capacity):
    logits = np.random.default_rng(3).normal(0, 2, (5, 6, 10)).astype(np.float32)
    result = Selection(logits, size, rule, 0.02, capacity=capacity, isa=isa)
    assert result.found > 333
    check(result, logits, size, rule, 0.02, capacity)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_ties_go_to_the_first_in_raster_order(isa, rule):
    """Two plateaus of equal entropy: the higher one is kept whole, of the lower one the first rows."""
    logits = np.zeros((3, 8, 16), np.float32)
    logits[0, :, :8] = 1.0
    size = (8, 16)
    result = Selection(logits, size, rule, 0.1, capacity=64 + 11, isa=isa)
    assert result.found == 128
    assert result.count == 75
    kept = np.zeros(size, bool)
    kept[result.coords[:, 0], result.coords[:, 1]] = True
    assert kept[:, 8:].all()
    assert (np.flatnonzero(kept[:, :8]) == np.arange(11)).all()
    flat = Selection(np.zeros((4, 5, 7), np.float32), (10, 21), "bilinear", 0.0, capacity=50, isa=isa)
    assert (flat.coords[:, 0] * 21 + flat.coords[:, 1] == np.arange(50)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_lowest_class_wins_a_tie(isa, rule):
    logits = np.full((6, 5, 9), -1.0, np.float32)
    logits[2] = logits[4] = 3.0
    for size in ((5, 9), (20, 36), (13, 20)):
        result = Selection(logits, size, rule, float("inf"), confidence=False, isa=isa)
        assert (result.labels == 2).all()
        assert result.found == result.count == 0


@pytest.mark.parametrize("threshold", [float("inf"), -1.0, 0.0, 10.0])
@pytest.mark.parametrize("rule", RULES)
def test_extreme_thresholds(threshold, rule):
    logits = random_logits(4, (6, 9), seed=5)
    result = Selection(logits, (24, 36), rule, threshold)
    assert result.found == (24 * 36 if threshold < 0 else 0 if threshold > 2 else result.found)
    check(result, logits, (24, 36), rule, threshold)
    one = Selection(np.ones((1, 2, 2), np.float32), (4, 4), rule, threshold)
    assert one.found == (16 if threshold < 0 else 0)
    assert (one.confidence == 255).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_thread_count_changes_nothing(isa, rule):
    logits = random_logits(19, (17, 33), seed=8)
    for size in ((68, 132), (50, 91)):
        for capacity in (None, 500):
            one = Selection(logits, size, rule, 0.1, capacity, isa=isa)
            for threads in (2, 3, 5):
                other = Selection(logits, size, rule, 0.1, capacity, isa=isa, threads=threads)
                for name in ("labels", "confidence", "coords"):
                    assert (getattr(one, name) == getattr(other, name)).all()
                assert (one.count, one.found) == (other.count, other.found)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_skipping_certain_regions_changes_nothing(isa, rule):
    """Without a confidence the kernel leaves out what it can prove certain."""
    logits = random_logits(7, (40, 80), seed=9, scale=0.5)
    for size in ((160, 320), (100, 201)):
        for threshold in (0.3, 0.005):
            plain = Selection(logits, size, rule, threshold, confidence=True, isa=isa)
            quick = Selection(logits, size, rule, threshold, confidence=False, isa=isa)
            assert (plain.labels == quick.labels).all()
            assert (plain.coords == quick.coords).all()
            assert plain.found < 0.9 * size[0] * size[1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_nan_is_never_active_nor_best(isa, rule):
    logits = random_logits(5, (8, 12), seed=11, scale=0.1)
    logits[:, 3:5, 4:9] = np.nan
    logits[2, 0, 0] = np.nan
    result = Selection(logits, (32, 48), rule, 0.01, isa=isa)
    full = upsample(logits, (32, 48), rule)
    bad = np.isnan(full).any(0)
    assert bad.any()
    assert not bad[result.coords[:, 0], result.coords[:, 1]].any()
    assert (result.confidence[bad] == 0).all()
    assert (result.labels == np.where(np.isnan(full), -np.inf, full).argmax(0)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_any_size(isa):
    """Random shapes, rules and thresholds; the logits at the sites have the front end's argmax."""
    rng = np.random.default_rng(len(isa))
    with Native(2, isa) as native:
        for _ in range(60):
            classes, h, w, height, width = (int(n) for n in rng.integers(1, [24, 20, 40, 50, 90]))
            rule = RULES[rng.integers(3)]
            threshold = float(rng.uniform(0.001, 1.5))
            capacity = int(rng.integers(0, height * width + 1))
            logits = random_logits(classes, (h, w), seed=int(rng.integers(1000)), scale=rng.uniform(0.1, 6))
            keep = bool(rng.integers(2))
            result = Selection(logits, (height, width), rule, threshold, capacity, confidence=keep, native=native)
            check(result, logits, (height, width), rule, threshold, capacity)
            rows = np.zeros((result.count, classes), np.float32)
            sites = np.ascontiguousarray(result.coords)
            native.call(
                "cs_logits_at",
                logits.ctypes.data,
                *logits.shape,
                height,
                width,
                RULES.index(rule),
                sites.ctypes.data,
                result.count,
                rows.ctypes.data,
                classes,
            )
            top = np.sort(rows, 1)
            clear = top[:, -1] - top[:, -2] > 1e-4 if classes > 1 else np.ones(result.count, bool)
            assert (rows.argmax(1) == result.labels[sites[:, 0], sites[:, 1]])[clear].all()


def test_repeated_runs_do_not_allocate():
    logits = random_logits(19, (16, 32), seed=2)
    with Native(2) as native:
        Selection(logits, (64, 128), "bilinear", 0.1, native=native)
        held = native.scratch_bytes
        for size, rule in (((64, 128), "bilinear"), ((60, 100), "bilinear_corners"), ((64, 128), "nearest")) * 3:
            Selection(logits, size, rule, 0.1, capacity=100, native=native)
        assert native.scratch_bytes == held


def test_bad_arguments():
    logits = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(InputError, match="capacity"):
        Selection(logits, (8, 8), "nearest", 0.1, capacity=0, native=_Negative())
    with pytest.raises(InputError, match="NaN"):
        Selection(logits, (8, 8), "nearest", float("nan"))
    with pytest.raises(InputError, match="C = 257"):
        Selection(np.zeros((257, 2, 2), np.float32), (4, 4), "nearest", 0.1)


class _Negative:
    """Passes a capacity of -1."""

    def call(self, name, *arguments):
        with Native(1) as native:
            native.call(name, *arguments[:8], -1, *arguments[9:])
