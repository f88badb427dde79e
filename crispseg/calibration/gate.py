"""What a calibration costs, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crispseg.errors import AccuracyGate

LIMIT = 0.5
LEVERS = (
    "another --method, more --count images like those of the product, --exclude LAYER for the layers that "
    "`crispseg calibrate --scan` names, a larger --gate, or --force to write it all the same"
)
LEVERS_HALF = "--exclude NODE and --keep-fp32 OPERATOR for what should stay float32, or a larger --gate"
PARTS = ("refined", "base")


def compare(before: Mapping[str, Any], after: Mapping[str, Any], limit: float = LIMIT) -> dict[str, Any]:
    """Accuracy before and after, in points, from two reports of kind "eval" on the same frames.

    The gate takes the final label map: the refined one where there is a refiner, else the base's. It fails when mIoU,
    boundary IoU or the IoU of the class that loses most drops by more than the limit; a single class may lose four
    times as much, because its own IoU varies that much more than the mean.

    Returns:
        ``passed``, ``limit``, ``kind`` "labels", ``part``, ``frames``, and for each measure before, after and drop.
    """
    part = next(name for name in PARTS if before.get(name) and after.get(name))
    old, new = before[part], after[part]
    drops = {
        name: (value, new["per_class"].get(name) or 0.0)
        for name, value in old["per_class"].items()
        if value is not None
    }
    worst = max(drops, key=lambda name: drops[name][0] - drops[name][1])
    rows = {
        "miou": _row(old["miou"], new["miou"], limit),
        "boundary_iou": _row(old["boundary_iou"], new["boundary_iou"], 2 * limit),
        "worst_class": {"class": worst, **_row(*drops[worst], 4 * limit)},
    }
    result: dict[str, Any] = {
        "kind": "labels",
        "limit": limit,
        "part": part,
        "frames": before["frames"],
        "passed": all(row["passed"] for row in rows.values()),
        **rows,
    }
    if part != "base" and before.get("base") and after.get("base"):
        result["base_miou"] = _row(before["base"]["miou"], after["base"]["miou"], limit)
    return result


def agreement(matches: Sequence[tuple[int, int]], limit: float = LIMIT) -> dict[str, Any]:
    """The gate without labels: pixels whose class is the float pipeline's.

    Args:
        matches: (pixels that agree, pixels) of each frame.
        limit: percent of the pixels that may differ.
    """
    counts = np.array(matches, np.int64).reshape(-1, 2)
    share = 100 * counts[:, 0].sum() / max(1, counts[:, 1].sum())
    lowest = 100 * float((counts[:, 0] / np.maximum(counts[:, 1], 1)).min()) if len(counts) else 0.0
    return {
        "kind": "agreement",
        "limit": limit,
        "frames": len(counts),
        "passed": bool(100 - share <= limit),
        "agreement": round(float(share), 4),
        "lowest_frame": round(lowest, 4),
    }


def require(result: Mapping[str, Any], what: str = "int8") -> None:
    """Raise AccuracyGate unless the gate was passed; the message names the levers."""
    if result["passed"]:
        return
    if result["kind"] == "agreement":
        found = f"{100 - result['agreement']:.2f} % of the pixels have another class than in float"
        expected = f"at most {result['limit']:g} %"
    else:
        failed = {name: result[name] for name in ("miou", "boundary_iou", "worst_class") if not result[name]["passed"]}
        found = ", ".join(
            f"{row.get('class', name)} {row['before']:.2f} to {row['after']:.2f} (-{row['drop']:.2f}, allowed "
            f"{row['allowed']:g})"
            for name, row in failed.items()
        )
        expected = f"drops within --gate {result['limit']:g}"
    levers = LEVERS if what == "int8" else LEVERS_HALF
    raise AccuracyGate(f"{what}: expected {expected}, found {found}; nothing was written; levers: {levers}")


def _row(before: float, after: float, allowed: float) -> dict[str, Any]:
    drop = round(before - after, 4)
    return {"before": before, "after": after, "drop": drop, "allowed": allowed, "passed": drop <= allowed}
