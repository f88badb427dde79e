"""Windows of full resolution around what the global steps of SegRefiner left undecided, and joining their results."""

from __future__ import annotations

from typing import NamedTuple, Tuple

import numpy as np


class Windows(NamedTuple):
    """``boxes`` int64 [N, 4] (x0, y0, x1, y1), most undecided first; ``candidates``: undecided cells."""

    boxes: np.ndarray
    candidates: int


def centres(cells: int, length: int) -> np.ndarray:
    """Int64 [cells], the pixel of every cell of a grid: trunc(i * length / cells) in float32."""
    return (np.arange(cells, dtype=np.float32) * np.float32(length / cells)).astype(np.int64)


def find_windows(
    fine: np.ndarray, height: int, width: int, size: int, fine_threshold: float, iou_threshold: float
) -> Windows:
    """Windows of ``size`` x ``size`` px that cover the undecided cells.

    Args:
        fine: float32 [S, S], chance of every cell to be decided.
        height: of the picture, at least ``size``.
        width: of the picture, at least ``size``.
        size: side of the windows, px.
        fine_threshold: cells below this share of the largest chance are undecided.
        iou_threshold: of two windows that overlap more than this, the more decided one is dropped. Equal scores:
            the first in raster order stays.
    """
    rows, columns = np.nonzero(fine < fine.max() * np.float32(fine_threshold))
    score = np.float32(1) - fine[rows, columns]
    order = np.argsort(-score, kind="stable")
    half = size // 2
    y = np.clip(centres(fine.shape[0], height)[rows] - half, 0, height - size)[order]
    x = np.clip(centres(fine.shape[1], width)[columns] - half, 0, width - size)[order]
    kept = _suppress(x, y, size, iou_threshold)
    x, y = x[kept], y[kept]
    return Windows(np.stack([x, y, x + size, y + size], 1), len(rows))


def _suppress(x: np.ndarray, y: np.ndarray, size: int, threshold: float) -> np.ndarray:
    """Greedy suppression of equal squares, best first; indices that stay."""
    left = np.arange(len(x))
    kept = []
    while left.size:
        best = left[0]
        kept.append(best)
        overlap = np.maximum(size - np.abs(x[left] - x[best]), 0) * np.maximum(size - np.abs(y[left] - y[best]), 0)
        share = overlap.astype(np.float32) / (2 * size * size - overlap).astype(np.float32)
        left = left[share <= np.float32(threshold)]
    return np.array(kept, np.int64)


def with_border(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The boxes [M, 4] in which bool [H, W] holds both foreground and background."""
    sums = np.array([mask[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in boxes])
    return boxes[(sums > 0) & (sums < 1)] if len(boxes) else boxes


class Canvas:
    """Sum of the overlapping patches of a picture."""

    def __init__(self, height: int, width: int) -> None:
        self._sum = np.zeros((height, width), np.float32)
        self._count = np.zeros((height, width), np.uint16)

    def add(self, patches: np.ndarray, boxes: np.ndarray) -> None:
        """Add float32 [N, S, S] at boxes [N, 4]."""
        for patch, (x0, y0, x1, y1) in zip(patches, boxes):
            self._sum[y0:y1, x0:x1] += patch
            self._count[y0:y1, x0:x1] += 1

    def mean(self) -> Tuple[np.ndarray, np.ndarray]:
        """(mean of the patches float32 [H, W], 0 where there is none; bool [H, W]: where there is one)."""
        return self._sum / np.maximum(self._count, 1), self._count > 0


def crops(array: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[H, W, ...] -> [N, S, S, ...]."""
    return np.stack([array[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
