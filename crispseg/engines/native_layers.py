"""What each layer of the native refiner did on the last frame: time, arithmetic, and the algorithm that ran."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Sequence

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One convolution of one frame.

    ``kind``: submanifold, down, up or pointwise. ``level``: of its output rows. ``algorithm``: direct, winograd2 (tiles
    of 2x2), winograd4 (4x4), int8.
    ``gflop``: all nine taps of a submanifold layer, missing neighbours included and whatever algorithm runs, so that
    rates of algorithms compare; of the other kinds only the taps that exist. ``shortcut``: input channels of the 1x1
    shortcut that the layer adds as one more tap, 0 = none.
    """

    name: str
    kind: str
    level: int
    rows: int
    cin: int
    cout: int
    algorithm: str
    ms: float
    gflop: float
    shortcut: int = 0

    @property
    def rate(self) -> float:
        """GFLOP/s."""
        return self.gflop / self.ms * 1e3 if self.ms else 0.0


def kind_of(maps: Dict[str, str], name: str) -> str:
    """Kind of a convolution with this map; ``maps``: name of a map -> op role that made it."""
    return {"map": "submanifold", "down": "down", "up": "up"}[maps[name]] if name else "pointwise"


def existing_taps(table: np.ndarray) -> int:
    """Entries of a kernel map int32 [n, K] that name a row."""
    return int(np.count_nonzero(table >= 0))


def medians(frames: Sequence[List[Layer]]) -> List[Layer]:
    """Layers with the median of their times and sizes over several frames (all of one engine)."""
    out = []
    for same in zip(*frames):
        middle = {name: float(np.median([getattr(item, name) for item in same])) for name in ("ms", "gflop", "rows")}
        algorithms = sorted({item.algorithm for item in same})
        values: Dict[str, Any] = {**asdict(same[0]), "ms": middle["ms"], "gflop": middle["gflop"]}
        out.append(Layer(**{**values, "rows": int(middle["rows"]), "algorithm": "/".join(algorithms)}))
    return out


def table(layers: Sequence[Layer]) -> List[Dict[str, Any]]:
    """JSON-able rows: the layer, its GFLOP/s and its share of all layers' time in percent."""
    total = sum(item.ms for item in layers) or 1.0
    return [
        {
            **asdict(item),
            "ms": round(item.ms, 4),
            "gflop": round(item.gflop, 4),
            "gflop_per_s": round(item.rate, 1),
            "share_percent": round(100 * item.ms / total, 2),
        }
        for item in layers
    ]
