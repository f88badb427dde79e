"""Row ops outside the U-Net against float64: colours, logits at the sites, softmax, labels."""

from __future__ import annotations

import numpy as np
import pytest
from rows_support import RULES, Guarded, softmax, upsample

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.plugins.loader import UPSAMPLE, Native, available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)

CLASSES = [2, 11, 16, 19, 150]
ROWS = [0, 1, 2, 15, 16, 17, 31, 33, 100]


def some_sites(size, n, seed=0):
    flat = np.sort(np.random.default_rng(seed).choice(size[0] * size[1], n, replace=False))
    return np.ascontiguousarray(np.stack([flat // size[1], flat % size[1]], 1), np.int32)


def padded_rows(values, extra):
    """The values as a slice of a wider matrix whose other columns are NaN: (matrix to keep alive, pointer, ld)."""
    n, columns = values.shape
    wide = np.full((max(n, 1), columns + extra), np.nan, np.float32)
    wide[:n, :columns] = values
    return wide, wide.ctypes.data, columns + extra


@pytest.mark.parametrize("bgr", [0, 1])
@pytest.mark.parametrize("n", [0, 1, 50, 391])
def test_colours(bgr, n):
    size = (17, 23)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mean, std = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)
    sites = some_sites(size, n)
    for ld in (3, 8):
        out = Guarded((n, ld), np.float32)
        with Native(1) as native:
            native.call(
                "cs_pixel_colours",
                image.ctypes.data,
                *size,
                sites.ctypes.data,
                n,
                mean.ctypes.data,
                std.ctypes.data,
                bgr,
                out.pointer,
                ld,
            )
        out.check()
        colours = image[sites[:, 0], sites[:, 1]][:, ::-1] if bgr else image[sites[:, 0], sites[:, 1]]
        assert np.allclose(out.array[:, :3], (colours.astype(np.float64) - mean) / std, atol=1e-6)
        assert np.isnan(out.array[:, 3:]).all()


def logits_at(logits, size, rule, sites, isa="", threads=1, ld=None):
    n, ld = len(sites), logits.shape[0] if ld is None else ld
    out = Guarded((n, ld), np.float32)
    with Native(threads, isa) as native:
        native.call(
            "cs_logits_at",
            logits.ctypes.data,
            *logits.shape,
            *size,
            UPSAMPLE[rule],
            sites.ctypes.data,
            n,
            out.pointer,
            ld,
        )
    out.check()
    return out.array


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", CLASSES)
def test_logits_at(isa, rule, classes):
    logits = np.random.default_rng(1).normal(0, 5, (classes, 9, 14)).astype(np.float32)
    for size, n in (((36, 56), 700), ((20, 33), 660), ((9, 14), 126), ((5, 40), 1), ((36, 56), 0)):
        sites = some_sites(size, n)
        out = logits_at(logits, size, rule, sites, isa, ld=classes + 3)
        exact = upsample(logits, size, rule)[:, sites[:, 0], sites[:, 1]].T
        assert np.abs(out[:, :classes] - exact).max(initial=0) < 1e-5
        assert np.isnan(out[:, classes:]).all()
        assert (logits_at(logits, size, rule, sites, isa, threads=3) == out[:, :classes]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", CLASSES)
def test_softmax_rows(isa, classes):
    with Native(2, isa) as native:
        for n in [*ROWS, 2500]:
            for scale in (1, 30, 1000):
                x = np.random.default_rng(n).normal(0, scale, (n, classes)).astype(np.float32)
                keep, pointer, ld = padded_rows(x, 5)
                out = Guarded((n, classes + 2), np.float32)
                native.call("cs_softmax_rows", pointer, ld, n, classes, out.pointer, classes + 2)
                out.check()
                assert np.abs(out.array[:, :classes] - softmax(x.astype(np.float64), 1)).max(initial=0) < 1e-6
                assert np.isnan(out.array[:, classes:]).all()
                del keep


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("confidence", [False, True])
def test_scatter_labels(isa, classes, confidence):
    size = (19, 27)
    with Native(2, isa) as native:
        for n in [*ROWS, 500]:
            x = np.random.default_rng(n).normal(0, 3, (n, classes)).astype(np.float32)
            if n > 2:
                x[1] = 0.5  # a tie of all classes
                x[2, classes // 2] = np.nan
            sites = some_sites(size, n, seed=n)
            labels, sure = Guarded(size, np.uint8), Guarded(size, np.uint8)
            keep, pointer, ld = padded_rows(x, 1)
            native.call(
                "cs_scatter_labels",
                labels.pointer,
                sure.pointer if confidence else None,
                *size,
                sites.ctypes.data,
                n,
                pointer,
                ld,
                classes,
            )
            labels.check()
            sure.check()
            del keep
            at = sites[:, 0], sites[:, 1]
            wanted = np.full(size, 0xA5, np.uint8)
            wanted[at] = np.where(np.isnan(x), -np.inf, x).argmax(1) if n else 0
            assert (labels.array == wanted).all()
            untouched = np.ones(size, bool)
            untouched[at] = not confidence
            assert (sure.array[untouched] == 0xA5).all()
            if confidence and n:
                exact = 255 * np.nan_to_num(softmax(x.astype(np.float64), 1).max(1))
                assert np.abs(sure.array[at] - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("site", [(-1, 0), (0, -1), (5, 0), (0, 7), (2**31 - 1, 0)])
def test_sites_outside_the_frame_are_refused(site):
    sites = np.array([[1, 1], site], np.int32)
    x = np.zeros((2, 4), np.float32)
    labels = np.zeros((5, 7), np.uint8)
    image = np.zeros((5, 7, 3), np.uint8)
    stats = np.ones(3, np.float32)
    with Native(1) as native:
        with pytest.raises(InputError, match="outside 5 x 7"):
            native.call("cs_scatter_labels", labels.ctypes.data, None, 5, 7, sites.ctypes.data, 2, x.ctypes.data, 4, 4)
        with pytest.raises(InputError, match="outside 5 x 7"):
            native.call("cs_logits_at", x.ctypes.data, 4, 1, 2, 5, 7, 0, sites.ctypes.data, 2, x.ctypes.data, 4)
        with pytest.raises(InputError, match="outside 5 x 7"):
            native.call(
                "cs_pixel_colours",
                image.ctypes.data,
                5,
                7,
                sites.ctypes.data,
                2,
                stats.ctypes.data,
                stats.ctypes.data,
                0,
                x.ctypes.data,
                4,
            )
