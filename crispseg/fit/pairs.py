"""Pairs of image and labels that are read when they are drawn, and kept as long as there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]

#: What a training run keeps decoded, in bytes: CamVid as a whole, of Cityscapes (18 GB) a ninth.
CACHE_BYTES = 2 << 30


class Cache:
    """Room for decoded pairs.

    What came first stays and nothing is thrown out: pairs are drawn evenly, or all in turn, and in neither case does
    the time of the last use tell which is needed next.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._lock = threading.Lock()  # the thread that makes batches and the one that validates

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False when they are not there."""
        with self._lock:
            if size > self._free:
                return False
            self._free -= size
            return True


class Entry:
    """One pair: how to get it, itself while there is room, and how often each label occurs in it."""

    def __init__(self, read: Callable[[], Pair]) -> None:
        self.read = read
        self.kept: Pair | None = None
        self.counts: np.ndarray | None = None  # int64 [256]

    def count(self, label: np.ndarray) -> np.ndarray:
        """Count each id of labels uint8 [H, W], and remember it."""
        self.counts = np.bincount(label.ravel(), minlength=256)
        return self.counts


class Pairs(Sequence[Pair]):
    """(image uint8 [H, W, 3], labels uint8 [H, W]) by index; the arrays may be kept ones and must not be written."""

    def __init__(self, entries: list[Entry], cache: Cache) -> None:
        self.entries = entries
        self.cache = cache

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # no slices: they would read them all
        entry = self.entries[index]
        if entry.kept is not None:
            return entry.kept
        pair = entry.read()
        if self.cache.take(pair[0].nbytes + pair[1].nbytes):
            entry.kept = pair
        return pair

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.entries + other.entries, self.cache)

    def label_counts(self) -> np.ndarray:
        """How often each id occurs in all labels, int64 [256]; reads the pairs that were not counted when opened."""
        total = np.zeros(256, np.int64)
        for index, entry in enumerate(self.entries):
            total += entry.count(self[index][1]) if entry.counts is None else entry.counts
        return total
