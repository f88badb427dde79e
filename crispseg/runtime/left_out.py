"""Uncertain pixels that keep the base's label because a frame had more of them than the capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List


@dataclass
class LeftOut:
    """Tally over frames: ``frames`` in all, ``cut`` with any left out, ``pixels`` left out, ``most`` of one frame,
    ``found`` uncertain ones.
    """

    frames: int = 0
    cut: int = 0
    pixels: int = 0
    most: int = 0
    found: int = 0

    def add(self, count: int, found: int) -> None:
        """One frame: pixels that were refined, and uncertain ones."""
        left = max(0, int(found) - int(count))
        self.frames += 1
        self.cut += left > 0
        self.pixels += left
        self.most = max(self.most, left)
        self.found += int(found)

    def facts(self) -> Dict[str, Any]:
        """What a report says."""
        return {
            "overflow_frames": self.cut,
            "left_out_pixels": {"mean": round(self.pixels / max(1, self.frames), 2), "max": self.most},
        }

    def warnings(self) -> List[str]:
        """One line; none when nothing was left out."""
        if not self.cut:
            return []
        return [
            "%d of %d frames had more uncertain pixels than the capacity; only the most uncertain were refined, "
            "%.1f %% of the uncertain pixels kept the base's label: export with a larger --capacity or "
            "a higher --threshold" % (self.cut, self.frames, 100.0 * self.pixels / max(1, self.found))
        ]
