"""Row ops on a GPU (or the emulated driver) against float64: features, ensemblers, labels, conversion."""

from __future__ import annotations

import numpy as np
import pytest
from rows_support import entropy, gate_weights, gated_reference, softmax

from crispseg.errors import InputError
from crispseg.plugins.cuda_loader import F16, F32, I8, Features

TYPE = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.int8): I8}
CLASSES = [1, 2, 12, 19, 21, 32, 33, 150]
ROWS = [0, 1, 127, 128, 129, 300]
EXTRA = 3


def some_sites(size, n, seed=0):
    """int32 [n, 2] in raster order."""
    flat = np.sort(np.random.default_rng(seed).choice(size[0] * size[1], n, replace=False))
    return np.stack([flat // size[1], flat % size[1]], 1).astype(np.int32)


def beyond(values, extra=EXTRA):
    """Rows of nonsense after the real ones."""
    return np.concatenate([values, np.full((extra, values.shape[1]), 99, values.dtype)])


def wide(values, columns, extra=EXTRA):
    """The values as a slice of a wider matrix whose other columns hold NaN (or 77), with rows beyond the count."""
    out = np.full((len(values) + extra, columns), 77 if values.dtype.kind == "i" else np.nan, values.dtype)
    out[: len(values), : values.shape[1]] = values
    return out


def features_of(kinds, values=(), bgr=0):
    """csg_features with the statistics of ImageNet."""
    out = Features(features=len(kinds), bgr=bgr)
    out.kinds[: len(kinds)] = kinds
    out.values[: len(values)] = values
    out.mean[:], out.std[:] = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    return out


def expected_features(image, sites, yi, kinds, values, bgr):
    mean = np.array([123.675, 116.28, 103.53], np.float32)
    std = np.array([58.395, 57.12, 57.375], np.float32)
    colours = image[sites[:, 0], sites[:, 1]]
    p = softmax(yi.astype(np.float64), 1)
    parts = []
    for kind, value in zip(kinds, values):
        if kind == 0:
            parts.append(((colours[:, ::-1] if bgr else colours).astype(np.float32) - mean) / std)
        elif kind == 1:
            parts.append(sites / np.array(image.shape[:2], np.float64))
        else:
            parts.append(p if kind == 2 else (p > np.float32(value)).astype(np.float64))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("kinds", "classes"), [([0], 1), ([0, 1], 5), ([0, 1, 2, 3], 19), ([2, 0, 3, 3], 33), ([1, 2], 150), ([3], 2)]
)
def test_pixel_features(gpu, dtype, kinds, classes):
    size = (17, 29)
    rng = np.random.default_rng(classes)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    values = [0.0, 0.0, 0.9, 0.3][: len(kinds)]
    probabilities = any(kind >= 2 for kind in kinds)
    width = sum({0: 3, 1: 2}.get(kind, classes) for kind in kinds)
    ld = (width + 15) // 16 * 16
    tolerance = 1e-6 if dtype == np.float32 else 1e-3
    for n in ROWS:
        sites = some_sites(size, n, n)
        yi = rng.normal(0, 3, (n, classes)).astype(np.float32)
        bgr = n & 1
        out, coords, count = gpu.room((n + EXTRA, ld), dtype), gpu.put(beyond(sites)), gpu.count(n)
        logits = gpu.put(wide(yi, classes + 2)) if probabilities else None
        listed, frame = features_of(kinds, values, bgr), gpu.put(image)

        def enqueue(coords=coords, count=count, n=n, logits=logits, listed=listed, out=out, frame=frame):
            head = (frame, *size, coords, count, n + EXTRA, logits, classes + 2, classes, listed)
            gpu.call("csg_pixel_features", *head, TYPE[out.dtype], out, ld)

        enqueue()
        got, want = out.get()[:n].astype(np.float64), expected_features(image, sites, yi, kinds, values, bgr)
        close = np.abs(got[:, :width] - want) <= tolerance * np.maximum(1, np.abs(want))
        p = softmax(yi.astype(np.float64), 1)
        border = (np.abs(p - 0.9) < 1e-6).any() or (np.abs(p - 0.3) < 1e-6).any()
        assert close.all() or border
        assert (got[:, width:] == 0).all()
        assert out.untouched(n)
        if n == 129:
            gpu.same_in_any_order(enqueue, [out])


def test_colours_are_exact(gpu):
    """Every value of every channel, to the bit: the statistics are those of the network."""
    image = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    sites = np.argwhere(np.ones((16, 16))).astype(np.int32, order="C")
    out = gpu.room((256, 3), np.float32)
    head = (gpu.put(image), 16, 16, gpu.put(sites), gpu.count(256), 256, None, 0, 0, features_of([0]))
    gpu.call("csg_pixel_features", *head, F32, out, 3)
    mean, std = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)
    assert (out.get() == (image.reshape(-1, 3).astype(np.float32) - mean) / std).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("classes", "hidden"),
    [(1, 8), (2, 64), (12, 13), (19, 64), (20, 5), (21, 64), (32, 33), (19, 128), (33, 64), (150, 64), (256, 128)],
)  # fmt: skip
def test_gated(gpu, dtype, classes, hidden):
    rng = np.random.default_rng(classes)
    weights = gate_weights(classes, hidden)
    gate = gpu.put(np.concatenate([v.ravel() for v in weights.values()]))
    ld = (classes + 15) // 16 * 16
    rows = ROWS if classes <= 20 else [0, 1, 9, 130] if classes < 100 else [5]
    for n in rows:
        yi = rng.normal(0, 4, (n, classes)).astype(np.float32)
        yo = rng.normal(0, 4, (n, classes)).astype(dtype)
        a, b, count = gpu.put(wide(yi, classes + 1)), gpu.put(wide(yo, ld)), gpu.count(n)
        out = gpu.room((n + EXTRA, classes + 2), np.float32)

        def enqueue(a=a, b=b, count=count, n=n, out=out):
            head = (a, classes + 1, TYPE[b.dtype], b, ld, count, n + EXTRA, classes, hidden, gate)
            gpu.call("csg_ensemble_gated", *head, out, classes + 2)

        enqueue()
        exact = gated_reference(yi, yo, weights) if n else np.zeros((0, classes))
        got = out.get()
        assert np.abs(got[:n, :classes] - exact).max(initial=0) <= 1e-5 * np.abs(exact).max(initial=1)
        assert np.isnan(got[:n, classes:]).all()
        assert out.untouched(n)
        if n in (129, 9):
            gpu.same_in_any_order(enqueue, [out])


@pytest.mark.parametrize("classes", [19, 40])
def test_gated_in_place(gpu, classes):
    """ye may be yi or yo."""
    rng = np.random.default_rng(5)
    weights = gate_weights(classes, 16)
    gate = gpu.put(np.concatenate([v.ravel() for v in weights.values()]))
    yi, yo = (rng.normal(0, 3, (77, classes)).astype(np.float32) for _ in range(2))
    exact = gated_reference(yi, yo, weights)
    for which in (0, 1):
        rooms = [gpu.put(yi), gpu.put(yo)]
        head = (rooms[0], classes, F32, rooms[1], classes, gpu.count(77), 77, classes, 16, gate)
        gpu.call("csg_ensemble_gated", *head, rooms[which], classes)
        assert np.abs(rooms[which].get() - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("classes", CLASSES)
def test_entropy(gpu, dtype, classes):
    rng = np.random.default_rng(classes)
    ld = (classes + 15) // 16 * 16
    for n in ROWS:
        yi = rng.normal(0, 2, (n, classes)).astype(np.float32)
        yo = rng.normal(0, 2, (n, classes)).astype(dtype)
        if n > 7:
            yi[3] = yo[3]  # a tie goes to yo, here the same values
            yi[5, 0], yo[6, classes - 1] = np.nan, np.nan
        keep = entropy(yi, 1) < entropy(yo, 1)
        close = np.abs(entropy(yi, 1) - entropy(yo, 1)) < 1e-5
        a, b, out = gpu.put(wide(yi, classes)), gpu.put(wide(yo, ld)), gpu.room((n + EXTRA, classes + 1), np.float32)
        head = (a, classes, TYPE[b.dtype], b, ld, gpu.count(n), n + EXTRA, classes)
        gpu.call("csg_ensemble_entropy", *head, out, classes + 1)
        got, wanted = out.get()[:n], np.where(keep[:, None], yi, yo.astype(np.float32))
        assert np.isnan(got[:, classes]).all()
        assert np.array_equal(got[~close, :classes], wanted[~close], equal_nan=True)
        assert out.untouched(n)
        gpu.call("csg_ensemble_entropy", *head, a, classes)
        assert np.array_equal(a.get()[:n], got[:, :classes], equal_nan=True)


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
def test_scatter_labels(gpu, classes, confidence):
    size = (19, 27)
    for n in ROWS:
        x = np.random.default_rng(n).normal(0, 3, (n, classes)).astype(np.float32)
        if n > 2:
            x[1] = 0.5  # a tie of all classes
            x[2, classes // 2] = np.nan
        sites = some_sites(size, n, seed=n)
        labels, sure = gpu.room(size, np.uint8), gpu.room(size, np.uint8)
        head = (labels, sure if confidence else None, *size, gpu.put(beyond(sites)), gpu.count(n), n + EXTRA)
        gpu.call("csg_scatter_labels", *head, gpu.put(wide(x, classes + 1)), classes + 1, classes)
        at = sites[:, 0], sites[:, 1]
        wanted = np.full(size, 0xA5, np.uint8)
        wanted[at] = np.where(np.isnan(x), -np.inf, x).argmax(1) if n else 0
        assert (labels.get() == wanted).all()
        untouched = np.ones(size, bool)
        untouched[at] = not confidence
        assert (sure.get()[untouched] == 0xA5).all()
        if confidence and n:
            exact = 255 * np.nan_to_num(softmax(x.astype(np.float64), 1).max(1))
            assert np.abs(sure.get()[at] - exact).max() <= 0.5 + 1e-3


def test_sites_outside_are_not_written(gpu):
    sites = np.array([[1, 1], [-1, 0], [0, 7], [5, 0], [2**31 - 1, 0]], np.int32)
    labels = gpu.room((5, 7), np.uint8)
    head = (labels, None, 5, 7, gpu.put(sites), gpu.count(5), 5, gpu.put(np.zeros((5, 4), np.float32)), 4, 4)
    gpu.call("csg_scatter_labels", *head)
    wanted = np.full((5, 7), 0xA5, np.uint8)
    wanted[1, 1] = 0
    assert (labels.get() == wanted).all()


def converted(x, to, quant):
    """The same conversion in numpy."""
    if x.dtype == np.int8:
        return x if to == np.int8 else (x.astype(np.float32) * np.float32(quant)).astype(to)
    if to == np.int8:
        return np.clip(np.rint(x.astype(np.float32) / np.float32(quant)), -127, 127).astype(np.int8)
    return x.astype(to)


@pytest.mark.parametrize("to", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("source", [np.float32, np.float16, np.int8])
def test_convert_rows(gpu, source, to):
    rng = np.random.default_rng(3)
    for n, columns, ldx, ldy in ((0, 5, 16, 16), (1, 1, 16, 32), (9, 33, 48, 64), (130, 64, 64, 64)):
        x = rng.integers(-127, 128, (n, columns)) if source == np.int8 else rng.normal(0, 40, (n, columns))
        x = x.astype(source)
        out = gpu.room((n + EXTRA, ldy), to)
        head = (TYPE[np.dtype(source)], gpu.put(wide(x, ldx)), ldx, TYPE[np.dtype(to)], out, ldy)
        gpu.call("csg_convert_rows", *head, gpu.count(n), n + EXTRA, columns, 0.37)
        got = out.get()
        assert np.array_equal(got[:n, :columns], converted(x, np.dtype(to), 0.37))
        assert (got[:n, columns:] == 0).all()
        assert out.untouched(n)


def test_replay_of_the_back_end(gpu):
    """Ensemble and scatter in one graph, with rows and their number changing."""
    weights = gate_weights(19, 32)
    gate = gpu.put(np.concatenate([v.ravel() for v in weights.values()]))
    rng = np.random.default_rng(2)
    yi, yo = gpu.put(np.zeros((200, 19), np.float32)), gpu.put(np.zeros((200, 32), np.float16))
    ye, labels = gpu.room((200, 20), np.float32), gpu.put(np.zeros((15, 20), np.uint8))
    sure = gpu.room((15, 20), np.uint8)
    coords, count = gpu.put(np.zeros((200, 2), np.int32)), gpu.count(0)

    def enqueue():
        gpu.call("csg_ensemble_gated", yi, 19, F16, yo, 32, count, 200, 19, 32, gate, ye, 20)
        gpu.call("csg_scatter_labels", labels, sure, 15, 20, coords, count, 200, ye, 20, 19)

    graph = gpu.capture(enqueue)
    for n in (200, 0, 3, 131):
        a, b = rng.normal(0, 3, (200, 19)).astype(np.float32), rng.normal(0, 3, (200, 32)).astype(np.float16)
        sites = np.full((200, 2), -1, np.int32)
        sites[:n] = some_sites((15, 20), n, n)
        for room, values in ((yi, a), (yo, b), (coords, sites), (count, n), (labels, 250)):
            room.put(values)
        gpu.launch(graph)
        wanted = np.full((15, 20), 250, np.uint8)
        exact = gated_reference(a[:n], b[:n, :19], weights) if n else np.zeros((0, 19))
        order = np.sort(exact, 1)
        clear = order[:, -1] - order[:, -2] > 1e-4
        got = labels.get()
        at = sites[:n, 0], sites[:n, 1]
        assert (got[at] == exact.argmax(1))[clear].all()
        wanted[at] = got[at]
        assert (got == wanted).all()


def test_bad_arguments(gpu):
    x, count = gpu.put(np.zeros((3, 4), np.float32)), gpu.count(3)
    gate = gpu.put(np.zeros(1000, np.float32))
    with pytest.raises(InputError, match="stride"):
        gpu.call("csg_ensemble_gated", x, 3, F32, x, 4, count, 3, 4, 8, gate, x, 4)
    with pytest.raises(InputError, match="hidden = 129"):
        gpu.call("csg_ensemble_gated", x, 4, F32, x, 4, count, 3, 4, 129, gate, x, 4)
    with pytest.raises(InputError, match="weights are NULL"):
        gpu.call("csg_ensemble_gated", x, 4, F32, x, 4, count, 3, 4, 8, None, x, 4)
    with pytest.raises(InputError, match="aligned"):
        gpu.call("csg_ensemble_entropy", x, 4, F16, x, 4, count, 3, 4, x, 4)  # 8 bytes a row
    for message, classes, kinds in (("kind 4", 0, [4]), ("row stride below 5", 0, [0, 1]), ("base logits", 4, [2])):
        head = (x, 5, 7, x, count, 3, None, classes, classes, features_of(kinds))
        with pytest.raises(InputError, match=message):
            gpu.call("csg_pixel_features", *head, F32, x, 4)
    with pytest.raises(InputError, match="quant"):
        gpu.call("csg_convert_rows", F32, x, 4, I8, x, 16, count, 3, 4, 0.0)
