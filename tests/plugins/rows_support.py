"""Float64 references of the front end and the row ops, and arrays that notice a write beyond their end."""

from __future__ import annotations

import contextlib

import numpy as np

from crispseg.plugins.loader import UPSAMPLE, Native

GUARD = 64
RULES = ("nearest", "bilinear", "bilinear_corners")


class Guarded:
    """An array of a given shape between two guards; float arrays start as NaN, integers as 0xA5."""

    def __init__(self, shape, dtype):
        self.dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * self.dtype.itemsize
        self.raw = np.full(size + 2 * GUARD, 0xA5, np.uint8)
        self.array = self.raw[GUARD : GUARD + size].view(self.dtype).reshape(shape)
        if self.dtype.kind == "f":
            self.array[...] = np.nan

    @property
    def pointer(self):
        return self.array.ctypes.data

    def check(self):
        assert (self.raw[:GUARD] == 0xA5).all(), "write before the array"
        assert (self.raw[len(self.raw) - GUARD :] == 0xA5).all(), "write beyond the array"


def taps(size_in, size_out, rule):
    """(left index, right index, weight of the right one) of every output sample."""
    i = np.arange(size_out)
    if rule == "nearest":
        at = i * size_in // size_out
        return at, at, np.zeros(size_out)
    if rule == "bilinear_corners":
        at = i * (size_in - 1) / max(size_out - 1, 1)
    else:
        at = np.maximum((i + 0.5) * size_in / size_out - 0.5, 0)
    left = np.minimum(at.astype(np.int64), size_in - 1)
    return left, np.minimum(left + 1, size_in - 1), at - left


def upsample(logits, size, rule):
    """float64 [C,H,W]."""
    full = np.asarray(logits, np.float64)
    for axis, out in ((1, size[0]), (2, size[1])):
        left, right, weight = taps(full.shape[axis], out, rule)
        weight = weight.reshape((-1, 1) if axis == 1 else (-1,))
        full = np.take(full, left, axis) * (1 - weight) + np.take(full, right, axis) * weight
    return full


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def entropy(x, axis):
    """-sum p ln(max(p, 1e-5)): only the logarithm is clamped."""
    p = softmax(np.asarray(x, np.float64), axis)
    return -(p * np.log(np.maximum(p, 1e-5))).sum(axis)


def random_logits(classes, low, seed, scale=3.0):
    """A mixture of smooth certain regions and noise, so that every shortcut of the kernel is taken somewhere."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (classes, *low))
    ys, xs = np.mgrid[: low[0], : low[1]]
    for c in range(classes):
        logits[c] += 12 * (((ys // 4) * 3 + xs // 9) % classes == c)
    return logits.astype(np.float32)


def gate_weights(classes, hidden, seed=0):
    """The eight arrays, in the order in which they lie in memory."""
    rng = np.random.default_rng(seed)
    weights = {}
    for i, shape in enumerate([(hidden, 2 * classes + 2), (2, hidden), (hidden, classes), (classes, hidden)], 1):
        weights[f"w{i}"] = rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        weights[f"b{i}"] = rng.normal(0, 0.2, shape[0]).astype(np.float32)
    return weights


def gated_reference(yi, yo, weights):
    """EnsembleLogits in float64."""
    p = {k: v.astype(np.float64) for k, v in weights.items()}
    yi, yo = yi.astype(np.float64), yo.astype(np.float64)
    v = np.concatenate([softmax(yi, 1), entropy(yi, 1)[:, None], softmax(yo, 1), entropy(yo, 1)[:, None]], 1)
    g = softmax(np.maximum(v @ p["w1"].T + p["b1"], 0) @ p["w2"].T + p["b2"], 1)
    m = g[:, :1] * yi + g[:, 1:] * yo
    return np.maximum(m @ p["w3"].T + p["b3"], 0) @ p["w4"].T + p["b4"]


class Selection:
    """Outputs of cs_select_pixels, checked for writes outside."""

    def __init__(self, logits, size, rule, threshold, capacity=None, confidence=True, isa="", threads=1, native=None):
        height, width = size
        capacity = height * width if capacity is None else capacity
        labels, coords = Guarded(size, np.uint8), Guarded((capacity, 2), np.int32)
        sure, numbers = Guarded(size, np.uint8), Guarded(2, np.int32)
        logits = np.ascontiguousarray(logits, np.float32)
        context = contextlib.nullcontext(native) if native else Native(threads, isa)
        with context as n:
            n.call(
                "cs_select_pixels",
                logits.ctypes.data,
                *logits.shape,
                height,
                width,
                UPSAMPLE[rule],
                threshold,
                capacity,
                labels.pointer,
                sure.pointer if confidence else None,
                coords.pointer,
                numbers.pointer,
                numbers.pointer + 4,
            )
        for guarded in (labels, coords, sure, numbers):
            guarded.check()
        self.count, self.found = (int(v) for v in numbers.array)
        self.labels, self.confidence = labels.array, sure.array if confidence else None
        self.coords = coords.array[: self.count]
        assert (coords.raw[GUARD + self.count * 8 :] == 0xA5).all(), "coords written beyond count"
        if not confidence:
            assert (sure.array == 0xA5).all()
