"""Logits of a base without a softmax: NaN or infinity, such as an fp16 engine gives whose sums leave its range.

Selection gives such a pixel the best of its other classes or class 0, confidence 0, and never refines it. Nothing of
that shows in a label map, so frames are counted and the user is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List

import numpy as np

_MASKED = np.float32(-1e30)  # as csg_check_logits has it


def check_logits(logits: np.ndarray) -> int:
    """Count the pixels that have no softmax, and make masked classes finite.

    A pixel has none with NaN or +inf in any class, or -inf in all. In the others a class of -inf (masked) gets -1e30 in
    place: probability 0 as before, but interpolation between two such pixels makes no NaN of it. Finite logits stay
    as they are, and cost one sum.

    Args:
        logits: float32 [1,C,h,w].

    Returns:
        Pixels of h x w.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(logits.sum()):
            return 0
    right = np.isfinite(logits.max(axis=1, keepdims=True))
    masked = np.isneginf(logits) & right
    if masked.any():
        logits[masked] = _MASKED
    return int(right.size - np.count_nonzero(right))


@dataclass
class NotFinite:
    """Tally over frames: ``seen`` in all, ``frames`` with any such pixel, ``first`` of these counted from 1 (0: none).

    ``pixels``: of the worst frame's low-resolution logits.
    """

    seen: int = 0
    frames: int = 0
    first: int = 0
    pixels: int = 0

    def add(self, pixels: int) -> bool:
        """One frame; True for the first that had any."""
        self.seen += 1
        if not pixels:
            return False
        self.frames += 1
        self.pixels = max(self.pixels, int(pixels))
        self.first = self.first or self.seen
        return self.frames == 1

    def facts(self) -> Dict[str, Any]:
        """What a report says."""
        return {"not_finite_frames": self.frames}

    def at_once(self, frame: str, precision: str, network: str = "base") -> str:
        """One line for the first such frame, by its name, as soon as it was seen."""
        text = "frame %d (%s): the %s gave NaN or infinity in %d pixels of its logits; %s"
        return text % (self.first, frame, network, self.pixels, _advice(precision))

    def warnings(self, precision: str, network: str = "base") -> List[str]:
        """One line; none when all was finite. ``precision``: of the network, which is named for the reader."""
        if not self.frames:
            return []
        text = "%d of %d frames (first: %d): the %s gave NaN or infinity, in up to %d pixels of its logits; %s"
        return [text % (self.frames, self.seen, self.first, network, self.pixels, _advice(precision))]


def _advice(precision: str) -> str:
    effect = "there labels mean nothing and are not refined, confidence is 0: "
    if precision in ("fp16", "int8"):
        return effect + "run with --precision fp32 (values beyond 65504 are infinite in fp16)"
    return effect + "check the weights; `crispseg verify BUNDLE --images FRAMES` compares them with PyTorch"
