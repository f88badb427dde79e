"""The moving pinhole camera: street coordinates to canvas pixels, with clipping at a near plane.

Street coordinates are metres: ``d`` to the right of the road's centre line, ``y`` up from the road, ``s`` along the
road. The road may bend: a point ``z`` metres ahead is shifted sideways by ``bend * z**2 / 2``.
"""

from __future__ import annotations

import math
from typing import List, Optional, Sequence, Tuple

import numpy as np

Point = Tuple[float, float]
World = Tuple[float, float, float]

NEAR = 0.6
FAR = 230.0


class View:
    """One camera pose over a canvas of ``width`` x ``height`` pixels."""

    __slots__ = ("width", "height", "focal", "cx", "cy", "d", "eye", "s", "bend", "sin", "cos")

    def __init__(
        self,
        width: int,
        height: int,
        focal: float,
        horizon: float,
        d: float,
        eye: float,
        s: float,
        bend: float,
        yaw: float,
    ) -> None:
        self.width = width
        self.height = height
        self.focal = focal
        self.cx = width / 2.0
        self.cy = horizon
        self.d = d
        self.eye = eye
        self.s = s
        self.bend = bend
        self.sin = math.sin(yaw)
        self.cos = math.cos(yaw)

    def camera(self, d: float, y: float, s: float) -> World:
        """Street coordinates to camera coordinates (right, up, ahead), metres."""
        ahead = s - self.s
        right = d - self.d + 0.5 * self.bend * ahead * ahead
        return right * self.cos - ahead * self.sin, y - self.eye, right * self.sin + ahead * self.cos

    def point(self, d: float, y: float, s: float) -> Optional[Tuple[float, float, float]]:
        """Pixel (u, v) and the scale there in pixels a metre; None behind the near plane."""
        x, up, z = self.camera(d, y, s)
        if z < NEAR:
            return None
        k = self.focal / z
        return self.cx + x * k, self.cy - up * k, k

    def polygon(self, points: Sequence[World]) -> List[Point]:
        """Project a planar polygon, cut at the near plane; fewer than three points mean: not visible."""
        cam = [self.camera(*p) for p in points]
        if any(c[2] < NEAR for c in cam):
            cam = _cut(cam)
        f, cx, cy = self.focal, self.cx, self.cy
        return [(cx + x * f / z, cy - y * f / z) for x, y, z in cam]

    def along(self, s0: float, s1: float) -> List[float]:
        """Positions between s0 and s1 close enough together for the bend to look smooth."""
        s0 = max(s0, self.s - 6.0)
        s1 = min(s1, self.s + FAR)
        if s1 <= s0:
            return []
        if abs(self.bend) < 1e-5:
            return [s0, s1]
        out = [s0]
        step = 2.5
        while out[-1] + step < s1:
            out.append(out[-1] + step)
            step *= 1.35
        out.append(s1)
        return out

    def ground(self, rows: np.ndarray, cols: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Street coordinates of the ground seen at pixel rows [R] (all below the horizon) and columns [C].

        Returns d [R,C], s [R,C] and the depth z [R,1], metres, float32.
        """
        z = (self.focal * self.eye / np.maximum(rows - self.cy, 0.5))[:, None].astype(np.float32)
        x = ((cols - self.cx) / self.focal)[None, :].astype(np.float32) * z
        ahead = z * np.float32(self.cos) - x * np.float32(self.sin)
        right = x * np.float32(self.cos) + z * np.float32(self.sin)
        right = right - np.float32(0.5 * self.bend) * ahead * ahead
        return right + np.float32(self.d), ahead + np.float32(self.s), z


def _cut(cam: Sequence[World]) -> List[World]:
    out = []
    last = cam[-1]
    for c in cam:
        if (c[2] >= NEAR) != (last[2] >= NEAR):
            w = (NEAR - last[2]) / (c[2] - last[2])
            out.append((last[0] + w * (c[0] - last[0]), last[1] + w * (c[1] - last[1]), NEAR))
        if c[2] >= NEAR:
            out.append(c)
        last = c
    return out
