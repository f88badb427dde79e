"""Low-resolution logits -> label map, without a refiner. Full-size logits are never stored.

:class:`NativeLabels` is the front end of the refiner with nothing selected. :class:`NumpyLabels` is the slow twin for
machines without the native library; it serves only where backend "onnxruntime" was named.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

_STRIP_ROWS = 32


class NativeLabels:
    """One pass of the native library over the logits. Buffers are reused: copy what must last."""

    def __init__(self, height: int, width: int, upsample: str, threads: int) -> None:
        from crispseg.plugins import loader

        self._native = loader.Native(threads)
        self._upsample = loader.UPSAMPLE[upsample]
        self._size = (height, width)
        self._labels = np.empty((height, width), np.uint8)
        self._confidence: Optional[np.ndarray] = None
        # Nothing exceeds an infinite threshold, so one row is room enough.
        self._coords = np.zeros((1, 2), np.int32)
        self._counts = np.zeros(2, np.int32)

    def run(self, logits: np.ndarray, confidence: bool = False) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """Logits f32 [1, C, h, w] -> labels u8 [H, W] and, on request, confidence u8 [H, W] = round(255 * max prob)."""
        logits = np.ascontiguousarray(logits, np.float32)
        if confidence and self._confidence is None:
            self._confidence = np.empty(self._size, np.uint8)
        _, channels, h, w = logits.shape
        certain = self._confidence if confidence else None
        self._native.call(
            "cs_select_pixels", logits.ctypes.data, channels, h, w, self._size[0], self._size[1], self._upsample,
            float("inf"), 1, self._labels.ctypes.data, None if certain is None else certain.ctypes.data,
            self._coords.ctypes.data, self._counts.ctypes.data, self._counts[1:].ctypes.data,
        )  # fmt: skip
        return self._labels, certain

    def describe(self) -> dict:
        """JSON-able facts."""
        return {"backend": "native", "isa": self._native.isa, "threads": self._native.threads}

    def close(self) -> None:
        """End the worker threads."""
        self._native.close()


class NumpyLabels:
    """The same in numpy, strip by strip."""

    def __init__(self, height: int, width: int, upsample: str, threads: int = 1) -> None:
        self._size = (height, width)
        self._upsample = upsample

    def run(self, logits: np.ndarray, confidence: bool = False) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """As :meth:`NativeLabels.run`."""
        height, width = self._size
        source = logits[0]
        y0, y1, fy = taps(height, source.shape[1], self._upsample)
        x0, x1, fx = taps(width, source.shape[2], self._upsample)
        labels = np.empty((height, width), np.uint8)
        certain = np.empty((height, width), np.uint8) if confidence else None
        with np.errstate(invalid="ignore"):  # the pipeline tells of logits that are not finite
            for top in range(0, height, _STRIP_ROWS):
                rows = slice(top, top + _STRIP_ROWS)
                strip = _mix(source[:, y0[rows]], source[:, y1[rows]], fy[rows, None])
                strip = _mix(strip[:, :, x0], strip[:, :, x1], fx)
                labels[rows] = strip.argmax(axis=0)
                if certain is not None:
                    best = 1.0 / np.exp(strip - strip.max(axis=0)).sum(axis=0)
                    certain[rows] = np.rint(255.0 * np.nan_to_num(best))
        return labels, certain

    def describe(self) -> dict:
        """JSON-able facts."""
        return {"backend": "numpy", "threads": 1}

    def close(self) -> None:
        """Nothing to free."""


def _mix(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return low + (high - low) * weight if weight.any() else low


def taps(size: int, source: int, upsample: str) -> Tuple[Any, Any, Any]:
    """For each of ``size`` output positions: lower and upper source index (int64) and weight of the upper (float32)."""
    i = np.arange(size, dtype=np.float64)
    if upsample == "nearest":
        low = np.arange(size, dtype=np.int64) * source // size
        return low, low, np.zeros(size, np.float32)
    if upsample == "bilinear_corners":
        position = i * ((source - 1) / (size - 1)) if size > 1 else i * 0
    else:
        position = np.clip((i + 0.5) * (source / size) - 0.5, 0, source - 1)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)
