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
