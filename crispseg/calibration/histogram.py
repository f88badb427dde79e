"""Ranges of tensors, collected frame by frame in a fixed amount of memory, and the rules that turn them into a scale.

Everything here is symmetric: ``threshold / 127`` is the scale, -127..127 the integers. A histogram of
magnitudes has bins whose width is a power of two; when a larger magnitude comes, neighbouring bins are joined. So the
result does not depend on the order of the frames, and no frame is ever read twice.
"""

from __future__ import annotations

import math

import numpy as np

from crispseg.errors import InputError

METHODS = ("minmax", "entropy", "percentile", "mse")
BINS = 4096
LEVELS = 127  # magnitudes above zero that int8 has
PERCENTILE = 99.999
MOST_SAMPLES = 1 << 17  # values of one tensor of one frame that go into the histogram; the extremes count them all


class Histogram:
    """Counts of the magnitudes of one tensor. ``largest``: the largest seen."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0  # of a bin; 0: only zeros so far
        self.zeros = 0
        self.largest = 0.0

    def add(self, values: np.ndarray, largest: float | None = None) -> None:
        """Count values.

        Args:
            values: one frame's, float32 of any shape.
            largest: their largest magnitude where it is known, or that of more values than these; else it is computed.

        Raises:
            InputError: a value is not finite.
        """
        flat = np.asarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        if largest is None:
            largest = max(-float(flat.min()), float(flat.max()))
        if not math.isfinite(largest):
            raise InputError("calibration: expected finite activations, found NaN or infinity; check the weights")
        self.largest = max(self.largest, largest)
        # An odd stride meets every column and channel in turn; the largest tensors have millions of values a frame.
        sample = np.abs(flat[:: (flat.size // MOST_SAMPLES) | 1] if flat.size > MOST_SAMPLES else flat)
        if largest > 0:
            self._widen(largest)
        if not self.width:
            self.zeros += sample.size
            return
        index = np.minimum((sample * np.float32(1 / self.width)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)

    def _widen(self, largest: float) -> None:
        width = 2.0 ** (math.floor(math.log2(largest)) + 1) / BINS  # largest < width * BINS
        if not self.width:
            self.counts[0] += self.zeros
            self.zeros = 0
            self.width = width
        while self.width < width:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([joined, np.zeros(BINS - joined.size, np.int64)])
            self.width *= 2

    def threshold(self, method: str, percentile: float = PERCENTILE) -> float:
        """Largest magnitude that int8 shall represent: it stands for 127. 0 when all values were zero.

        Args:
            method: "minmax": the largest seen; "percentile": so many percent of the values lie below; "entropy": least
                Kullback-Leibler divergence between the values and their int8 form (Migacz, GTC 2017); "mse": least mean
                squared error.
            percentile: of method "percentile".
        """
        if method not in METHODS:
            raise InputError(f"method {method!r}: expected one of {', '.join(METHODS)}")
        if method == "minmax" or self.largest == 0.0:
            return self.largest
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            found = (int(np.searchsorted(share, percentile / 100.0)) + 1) * self.width
        else:
            found = (self._entropy() if method == "entropy" else self._mse()) * self.width
        return float(min(self.largest, found))

    def _top(self) -> int:
        return int(np.flatnonzero(self.counts)[-1]) + 1

    def _mse(self) -> int:
        """Number of bins kept. The error of a value is that of its bin's centre."""
        top = self._top()
        counts, centres = self.counts[:top].astype(np.float64), np.arange(top) + 0.5
        best, least = top, math.inf
        for kept in _candidates(top):
            step = kept / LEVELS
            error = centres - step * np.minimum(np.rint(centres / step), LEVELS)
            loss = float((counts * error * error).sum())
            if loss < least:
                best, least = kept, loss
        return best

    def _entropy(self) -> int:
        """Number of bins kept. Bin 0 is left out of the comparison: after a ReLU it outweighs everything."""
        counts = self.counts[: self._top()].astype(np.float64)
        counts[0] = counts[1] if counts.size > 1 else 0
        best, least = counts.size, math.inf
        for kept in _candidates(counts.size):
            p = counts[:kept].copy()
            p[-1] += counts[kept:].sum()  # what lies beyond is clipped to the last level
            inside = counts[:kept]
            level = np.arange(kept) * LEVELS // kept
            filled = inside > 0
            total = np.bincount(level, inside, LEVELS)
            share = np.bincount(level, filled, LEVELS)
            q = np.where(filled, (total / np.maximum(share, 1))[level], 0.0)
            loss = _divergence(p, q)
            if loss < least:
                best, least = kept, loss
        return best


def _candidates(top: int) -> range:
    """Numbers of bins to try: from as many as int8 has levels up to all, about 256 of them."""
    start = min(LEVELS, top)
    step = max(1, (top - start) // 256)
    return range(top, start - 1, -step)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler divergence of two histograms; values that q lacks cost as much as if q had one of them."""
    p, q = p / max(p.sum(), 1.0), q / max(q.sum(), 1.0)
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())
