"""Masks side by side on the photo: what is right, what is missing, what is too much."""

from __future__ import annotations

from typing import Dict, Mapping

import numpy as np

RIGHT, MISSING, EXTRA = (255, 255, 255), (255, 140, 0), (0, 120, 255)
TITLES = {"photo": "photo", "coarse": "coarse", "refined": "refined", "truth": "exact"}
PANEL = 900  # px, longest side of one picture
_DIM, _TINT = 0.45, 0.65


def tinted(photo: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The photo, dimmed, with right foreground white, missing orange, extra blue; uint8 [H,W,3]."""
    result = photo.astype(np.float32) * _DIM
    for where, colour in ((mask & truth, RIGHT), (~mask & truth, MISSING), (mask & ~truth, EXTRA)):
        result[where] = result[where] * (1 - _TINT) + np.asarray(colour, np.float32) * _TINT
    return result.astype(np.uint8)


def side_by_side(photo: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row of titled panels: the photo and each of ``coarse``, ``refined`` (if there) and ``truth``.

    Args:
        photo: uint8 [H,W,3].
        masks: bool [H,W] by name; ``truth`` is required.

    Returns:
        uint8 [h,w,3]; panels are shrunk to 900 px at most, never enlarged.
    """
    from PIL import Image, ImageDraw

    panels: Dict[str, np.ndarray] = {"photo": photo}
    for name in ("coarse", "refined", "truth"):
        if name in masks:
            panels[name] = tinted(photo, masks[name], masks["truth"])
    shrink = min(1.0, PANEL / max(photo.shape[:2]))
    height, width = (max(1, int(round(side * shrink))) for side in photo.shape[:2])
    bar, gap = 18, 4
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + bar))
    draw = ImageDraw.Draw(sheet)
    for index, (name, panel) in enumerate(panels.items()):
        x = index * (width + gap)
        sheet.paste(Image.fromarray(panel).resize((width, height), Image.Resampling.BOX), (x, bar))
        draw.text((x + 4, 3), TITLES[name], fill=(255, 255, 255))
    return np.asarray(sheet)
