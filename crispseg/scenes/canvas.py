"""Two pictures drawn with the same strokes: colours and class ids, both at the supersampled size."""

from __future__ import annotations

import functools
import math
from typing import Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

from crispseg.scenes.camera import Point
from crispseg.scenes.texture import Pyramid

Color = Tuple[int, int, int]

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
IGNORE = 255
SUPER = 2


def shade(color: Sequence[float], k: float) -> Color:
    """The colour times k, clipped to 0..255."""
    return (
        int(min(255, max(0, color[0] * k))),
        int(min(255, max(0, color[1] * k))),
        int(min(255, max(0, color[2] * k))),
    )


class Canvas:
    """RGB image and label map of width x height supersampled pixels. A label of None leaves the label map alone."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), SKY)
        self._ink = ImageDraw.Draw(self.image)
        self._wash = ImageDraw.Draw(self.image, "RGBA")
        self._ids = ImageDraw.Draw(self.labels)

    def _outside(self, points: Sequence[Point]) -> bool:
        us, vs = zip(*points)
        return max(us) < 0 or min(us) > self.width or max(vs) < 0 or min(vs) > self.height

    def polygon(self, points: Sequence[Point], color: Color, label: Optional[int], alpha: int = 255) -> None:
        """Fill a polygon."""
        if len(points) < 3 or self._outside(points):
            return
        if alpha >= 255:
            self._ink.polygon(points, fill=color)
        else:
            self._wash.polygon(points, fill=(color[0], color[1], color[2], alpha))
        if label is not None:
            self._ids.polygon(points, fill=label)

    def ellipse(
        self, u: float, v: float, ru: float, rv: float, color: Color, label: Optional[int], alpha: int = 255
    ) -> None:
        """Fill an ellipse with its centre at (u, v)."""
        if u + ru < 0 or v + rv < 0 or u - ru > self.width or v - rv > self.height:
            return
        box = (u - ru, v - rv, u + ru, v + rv)
        if alpha >= 255:
            self._ink.ellipse(box, fill=color)
        else:
            self._wash.ellipse(box, fill=(color[0], color[1], color[2], alpha))
        if label is not None:
            self._ids.ellipse(box, fill=label)

    def ring(
        self, u: float, v: float, ru: float, rv: float, thick: float, color: Color, label: int, inside: int
    ) -> None:
        """An ellipse's outline; the class ``inside`` is written to the see-through disc."""
        if u + ru < 0 or v + rv < 0 or u - ru > self.width or v - rv > self.height:
            return
        box = (u - ru, v - rv, u + ru, v + rv)
        thick = max(1, int(thick + 0.5))
        self._ids.ellipse(box, fill=inside)
        self._ink.ellipse(box, outline=color, width=thick)
        self._ids.ellipse(box, outline=label, width=thick)

    def line(self, p: Point, q: Point, width: float, color: Color, label: Optional[int]) -> None:
        """A straight stroke. Thinner than one sample, it is blended in and its pixels are left undecided."""
        if width < 0.25 or (p[0] < 0 and q[0] < 0) or (p[0] > self.width and q[0] > self.width):
            return
        if (p[1] < 0 and q[1] < 0) or (p[1] > self.height and q[1] > self.height):
            return
        if width < 0.8:
            self._wash.line((p, q), fill=(color[0], color[1], color[2], int(255 * width)), width=1)
            if label is not None:
                self._ids.line((p, q), fill=IGNORE, width=1)
            return
        if width < 3.5:
            wide = max(1, int(width + 0.5))
            self._ink.line((p, q), fill=color, width=wide)
            if label is not None:
                self._ids.line((p, q), fill=label, width=wide)
            return
        self.taper(p, q, width, width, color, label)

    def taper(self, p: Point, q: Point, wp: float, wq: float, color: Color, label: Optional[int]) -> None:
        """A stroke whose width goes from wp at p to wq at q."""
        if max(wp, wq) < 3.5:
            self.line(p, q, 0.5 * (wp + wq), color, label)
            return
        du, dv = q[0] - p[0], q[1] - p[1]
        n = math.hypot(du, dv)
        if n < 1e-6:
            return
        nu, nv = -dv / n * 0.5, du / n * 0.5
        self.polygon(
            [
                (p[0] + nu * wp, p[1] + nv * wp),
                (q[0] + nu * wq, q[1] + nv * wq),
                (q[0] - nu * wq, q[1] - nv * wq),
                (p[0] - nu * wp, p[1] - nv * wp),
            ],
            color,
            label,
        )

    def limb(self, points: Sequence[Point], width: float, color: Color, label: Optional[int]) -> None:
        """A bent stroke with round joints: arms, legs, lamp arms."""
        for p, q in zip(points, points[1:]):
            self.line(p, q, width, color, label)
        if width >= 3.5:
            for u, v in points:
                self.ellipse(u, v, width / 2, width / 2, color, label)

    def sprite(
        self,
        stamp: Tuple[Pyramid, Pyramid],
        color: Color,
        box: Tuple[float, float, float, float],
        label: int,
        solid: int = 128,
    ) -> None:
        """Paste ``color`` times the stamp's light through its mask, stretched to box (u0, v0, u1, v1).

        The label is written where the stretched mask is at least ``solid``; where it is thinner, but more than a
        third of that, the pixels are left undecided when the mask is a haze (``solid`` below 128).
        """
        u0, v0, u1, v1 = box
        left, top = max(0, int(math.floor(u0))), max(0, int(math.floor(v0)))
        right, bottom = min(self.width, int(math.ceil(u1))), min(self.height, int(math.ceil(v1)))
        if right - left < 1 or bottom - top < 1 or u1 - u0 < 1 or v1 - v0 < 1:
            return
        level = 0
        while (
            level + 1 < len(stamp[0]) and stamp[0][level + 1].width >= u1 - u0 and stamp[0][level + 1].height >= v1 - v0
        ):
            level += 1
        mask, light = stamp[0][level], stamp[1][level]
        ku, kv = mask.width / (u1 - u0), mask.height / (v1 - v0)
        part = (
            max(0.0, (left - u0) * ku),
            max(0.0, (top - v0) * kv),
            min(float(mask.width), (right - u0) * ku),
            min(float(mask.height), (bottom - v0) * kv),
        )
        size = (right - left, bottom - top)
        if part[2] - part[0] < 1e-3 or part[3] - part[1] < 1e-3:
            return
        cover = mask.resize(size, Image.Resampling.BILINEAR, box=part)
        grey = np.asarray(light.resize(size, Image.Resampling.BILINEAR, box=part))
        self.image.paste(Image.fromarray(_tints(color)[grey]), (left, top), cover)
        amount = np.asarray(cover)
        if solid < 128:
            self.labels.paste(IGNORE, (left, top), Image.fromarray(amount >= solid // 3))
        self.labels.paste(label, (left, top), Image.fromarray(amount >= solid))

    def warp(self, texture: Image.Image, quad: Sequence[Point], label: Optional[int]) -> None:
        """Paste a flat texture into a perspective quad (top left, top right, bottom right, bottom left)."""
        if self._outside(quad):
            return
        us, vs = [p[0] for p in quad], [p[1] for p in quad]
        left, top = max(0, int(min(us))), max(0, int(min(vs)))
        right, bottom = min(self.width, int(max(us)) + 2), min(self.height, int(max(vs)) + 2)
        if right <= left or bottom <= top:
            return
        shrink = min(texture.width / max(1.0, max(us) - min(us)), texture.height / max(1.0, max(vs) - min(vs)))
        if shrink >= 2.0:
            texture = texture.reduce(min(int(shrink), max(1, min(texture.size) // 2)))
        w, h = texture.size
        moved = [(u - left, v - top) for u, v in quad]
        data = _homography(moved, ((0.0, 0.0), (w, 0.0), (w, h), (0.0, h)))
        size = (right - left, bottom - top)
        if data is None:
            return
        paint = texture.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.NEAREST)
        hole = Image.new("1", size)
        ImageDraw.Draw(hole).polygon(moved, fill=1)
        self.image.paste(paint, (left, top), hole)
        if label is not None:
            self._ids.polygon(list(quad), fill=label)


@functools.lru_cache(maxsize=512)
def _tints(color: Color) -> np.ndarray:
    """The colour under every light level, [256,3] uint8; level 128 is the colour itself."""
    levels = np.arange(256, dtype=np.int64)[:, None] * np.asarray(color, np.int64)[None, :] // 128
    return np.minimum(levels, 255).astype(np.uint8)


def _homography(source: Sequence[Point], target: Sequence[Point]) -> Optional[Tuple[float, ...]]:
    """Eight coefficients that take source pixels to target pixels, as Pillow's PERSPECTIVE wants them."""
    a = np.zeros((8, 8))
    b = np.zeros(8)
    for i, ((x, y), (u, v)) in enumerate(zip(source, target)):
        a[2 * i] = (x, y, 1, 0, 0, 0, -u * x, -u * y)
        a[2 * i + 1] = (0, 0, 0, x, y, 1, -v * x, -v * y)
        b[2 * i], b[2 * i + 1] = u, v
    try:
        return tuple(np.linalg.solve(a, b))
    except np.linalg.LinAlgError:
        return None
