"""Smallest and largest inputs that CRM's networks see at run time: the profiles of engines that need to know."""

from __future__ import annotations

from typing import Dict, Tuple

from crispseg.bundle_masks import CrmInfo
from crispseg.runtime.crm_tiles import FUSION_CELLS, TILE_SIDE

Shape = Tuple[int, ...]
Triple = Tuple[Shape, Shape, Shape]
#: Cells of a fusion block beyond its share: the border of one on both sides, the shifted reads and rounding.
_MORE = 8


def crm_profiles(info: CrmInfo) -> Dict[str, Dict[str, Triple]]:
    """Network -> input with free sides -> (smallest, best, largest) shape.

    The windows are those of a ``CrmEngine`` with ``tile_side`` TILE_SIDE. Best are the largest ones: most of the time
    of a large picture goes there.
    """
    low = max(1, round((1 + 2 * info.border) * min(info.scales)))
    picture = ((1, 4, low, low), (1, 4, TILE_SIDE, TILE_SIDE), (1, 4, TILE_SIDE, TILE_SIDE))
    fusion: Dict[str, Triple] = {}
    rows, columns = (_cells(unit) for unit in info.block)
    fusion["first"] = _maps(64, (3, 3), (rows[0], columns[0]))
    for level, channels, name in ((1, 64, "second"), (2, 128, "third")):
        high = (rows[level], columns[level])
        fusion[name] = _maps(channels, (1, 1), high)
        fusion["rows%d" % (level + 1)] = ((3, 1), (rows[0], high[0]), (rows[0], high[0]))
        fusion["columns%d" % (level + 1)] = ((1, 3), (high[1], columns[0]), (high[1], columns[0]))
    return {"backbone": {"picture": picture}, "fusion": fusion, "decoder": {}}


def _cells(unit: int) -> Tuple[int, int, int]:
    """Most cells of a fusion block along one axis, of each of the three maps; ``unit``: queries of a decoder block."""
    first = max(FUSION_CELLS, unit // 2) + _MORE  # a cell is two pixels or more, at every scale
    return first, first // 2 + 3, first // 4 + 3


def _maps(channels: int, low: Tuple[int, int], high: Tuple[int, int]) -> Triple:
    return (1, channels, *low), (1, channels, *high), (1, channels, *high)
