"""The two resizings and the pasting that SegRefiner needs, as PyTorch defines them, on numpy arrays."""

from __future__ import annotations

from typing import Tuple

import numpy as np

Box = Tuple[int, int, int, int]  # x0, y0, x1, y1; the ends are exclusive


def nearest_index(given: int, wanted: int) -> np.ndarray:
    """Int64 [wanted], the source of each cell among ``given``: floor(i * given / wanted), the ratio in float32."""
    ratio = np.float32(given) / np.float32(wanted)
    index = np.floor(np.arange(wanted, dtype=np.float32) * ratio).astype(np.int64)
    return np.minimum(index, given - 1)


def resize_nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, ...] -> [height, width, ...]."""
    return array[nearest_index(array.shape[0], height)[:, None], nearest_index(array.shape[1], width)[None]]


def _taps(given: int, wanted: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower index, upper index, weight of the upper one float32) of every cell; pixel centres, edges repeated."""
    ratio = np.float32(given) / np.float32(wanted)
    place = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    low = np.minimum(place.astype(np.int64), given - 1)
    return low, np.minimum(low + 1, given - 1), place - low.astype(np.float32)


def resize_bilinear(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float32 [H, W, C] -> [height, width, C] without anti-aliasing (align_corners=False)."""
    top, bottom, down = _taps(array.shape[0], height)
    left, right, along = _taps(array.shape[1], width)
    weight = along[None, :, None]

    def row(index: np.ndarray) -> np.ndarray:
        rows = array[index]
        return rows[:, left] * (np.float32(1) - weight) + rows[:, right] * weight

    weight_down = down[:, None, None]
    return row(top) * (np.float32(1) - weight_down) + row(bottom) * weight_down


def paste_bilinear(patch: np.ndarray, box: Box) -> np.ndarray:
    """Float32 [S, S] spread over a box, sampled at the pixel centres with zeros around the patch -> [h, w]."""
    x0, y0, x1, y1 = box

    def taps(given: int, wanted: int) -> Tuple[np.ndarray, np.ndarray]:
        place = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) / np.float32(wanted) * np.float32(given)
        place = place - np.float32(0.5)
        low = np.floor(place)
        return low.astype(np.int64) + 1, place - low  # +1: the border of zeros

    framed = np.pad(patch, 1)
    row, down = taps(patch.shape[0], y1 - y0)
    column, along = taps(patch.shape[1], x1 - x0)
    wide = framed[:, column] * (np.float32(1) - along) + framed[:, column + 1] * along
    down = down[:, None]
    return wide[row] * (np.float32(1) - down) + wide[row + 1] * down


def normalised(pixels: np.ndarray, mean: Tuple[float, ...], std: Tuple[float, ...]) -> np.ndarray:
    """uint8 [..., 3] -> float32 of the same shape."""
    return (pixels.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
