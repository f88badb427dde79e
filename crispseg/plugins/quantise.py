"""The int8 arithmetic of the op contract, in numpy: what files hold and what every int8 kernel computes.

Symmetric everywhere: a number is ``scale * q`` with q in -127..127, so that zero is exact, -q exists for every q, and
two products of a byte 0..127 and a weight fit int16. Activations have one scale a tensor, weights one a column of the
output.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

LARGEST = 127


def quantise(x: np.ndarray, scale: float) -> np.ndarray:
    """int8 of the shape of float32 ``x``: clamp(round(x / scale), -127, 127), ties to even."""
    quotient = np.asarray(x, np.float32) / np.float32(scale)
    return np.clip(np.rint(quotient), -LARGEST, LARGEST).astype(np.int8)


def quantise_weight(weight: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Quantise the weight of a sparse convolution.

    Args:
        weight: float32 [K, Cin, Cout].

    Returns:
        int8 [K, Cin, Cout] and float32 [Cout], the scale of every column: its largest magnitude / 127, 1 where all are
        zero. The dequantised weight gives the same integers again.
    """
    weight = np.asarray(weight, np.float32)
    scale = (np.abs(weight).max(axis=(0, 1)) / np.float32(LARGEST)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1
    return quantise_by(weight, scale), scale


def quantise_by(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [K, Cin, Cout] of a float32 weight with the given scales [Cout]."""
    return np.clip(np.rint(np.asarray(weight, np.float32) / scale), -LARGEST, LARGEST).astype(np.int8)


def dequantise(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [K, Cin, Cout] from int8 and float32 [Cout]: what DequantizeLinear along axis 2 gives."""
    return q.astype(np.float32) * np.asarray(scale, np.float32)
