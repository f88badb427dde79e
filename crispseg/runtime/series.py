"""Numbers of a run that may last for weeks, in bounded memory."""

from __future__ import annotations

from typing import Dict, List, Optional

from crispseg.report import summarise

MOST_KEPT = 1 << 16


class Series:
    """Counts, adds up and compares every number; keeps at most ``most`` of them for percentiles.

    When they become more, every second one is dropped, and from then on only every second one is taken: those that are
    kept lie evenly over the whole run. Up to ``most`` numbers nothing is lost.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.count = 0
        self.least: Optional[float] = None
        self.most: Optional[float] = None
        self.kept: List[float] = []
        self._sum = 0.0
        self._limit = most
        self._step = 1

    def append(self, value: float) -> None:
        """One more number."""
        if self.count % self._step == 0:
            self.kept.append(value)
            if len(self.kept) > self._limit:
                self.kept = self.kept[::2]
                self._step *= 2
        self.count += 1
        self._sum += value
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)

    def __len__(self) -> int:
        return self.count

    @property
    def mean(self) -> Optional[float]:
        """Of all numbers; None of none."""
        return self._sum / self.count if self.count else None

    def summary(self) -> Dict[str, Optional[float]]:
        """As ``report.summarise``: percentiles of the kept numbers, max and mean of all."""
        found: Dict[str, Optional[float]] = summarise(self.kept)
        if self.count > len(self.kept):
            found["max"], found["mean"] = round(float(self.most or 0.0), 4), round(float(self.mean or 0.0), 4)
        return found
