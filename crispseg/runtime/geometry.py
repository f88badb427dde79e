"""Bringing a frame of any size onto the bundle's canvas, and label maps back to the frame's own size."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from crispseg.errors import InputError

FITS = ("auto", "resize", "letterbox")
_SAME_ASPECT = 0.01
_BANDS = 4
_SAME_ORDER = 0.1  # logarithm of the ratio of both scales up to which every Pillow resizes along x first
_BANDED_BYTES = 1 << 20  # below, starting the bands costs as much as it saves


@dataclass(frozen=True)
class Placement:
    """Where a frame of ``frame`` (height, width) lies on a canvas of ``canvas`` (height, width): its rectangle."""

    frame: Tuple[int, int]
    canvas: Tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def identity(self) -> bool:
        """The frame has the canvas' size."""
        return self.frame == self.canvas


def placement(frame: Tuple[int, int], canvas: Tuple[int, int], fit: str = "auto") -> Placement:
    """Place a frame on the canvas.

    "resize" stretches to the whole canvas. "letterbox" keeps the aspect ratio and centres the frame between bars.
    "auto" resizes when the aspect ratios agree within 1 percent and letterboxes otherwise. Raises InputError.
    """
    if fit not in FITS:
        raise InputError("fit %r: expected %s" % (fit, " or ".join(FITS)))
    scale_y, scale_x = canvas[0] / frame[0], canvas[1] / frame[1]
    if fit == "resize" or (fit == "auto" and abs(math.log(scale_y / scale_x)) <= _SAME_ASPECT):
        return Placement(frame, canvas, 0, 0, canvas[0], canvas[1])
    scale = min(scale_y, scale_x)
    height = min(canvas[0], max(1, int(round(frame[0] * scale))))
    width = min(canvas[1], max(1, int(round(frame[1] * scale))))
    return Placement(frame, canvas, (canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width)


def resize_image(image: np.ndarray, height: int, width: int, pool: Optional[Executor] = None) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] with Pillow's bilinear filter, which antialiases when it shrinks.

    With a thread pool, large pictures are resized in bands; the result is the same to the bit.
    """
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    source = Image.fromarray(image)
    resample = getattr(Image, "Resampling", Image).BILINEAR
    # Only with a whole factor are a band's sample positions exactly those of the whole picture.
    same = abs(math.log(image.shape[0] * width / (height * image.shape[1]))) < _SAME_ORDER
    if pool is None or image.shape[0] % height or height % _BANDS or image.size < _BANDED_BYTES or not same:
        # Along x first, then along y: so do the CUDA kernels, and one call of Pillow up to version 12. From version 13
        # on one call starts along y when the height shrinks much more than the width (#9549).
        return np.asarray(source.resize((width, image.shape[0]), resample).resize((width, height), resample))
    rows, source_rows = height // _BANDS, image.shape[0] // _BANDS
    out = np.empty((height, width, 3), np.uint8)

    def band(index: int) -> None:
        box = (0, index * source_rows, image.shape[1], (index + 1) * source_rows)
        out[index * rows : (index + 1) * rows] = np.asarray(source.resize((width, rows), resample, box=box))

    list(pool.map(band, range(_BANDS)))
    return out


def to_canvas(image: np.ndarray, place: Placement, pad: Tuple[int, int, int]) -> np.ndarray:
    """uint8 [H0, W0, 3] -> uint8 canvas [H, W, 3]; bars get the colour ``pad``. May be ``image`` itself."""
    if place.identity:
        return image
    content = resize_image(image, place.height, place.width)
    if (place.height, place.width) == place.canvas:
        return content
    canvas = np.empty(place.canvas + (3,), np.uint8)
    canvas[:] = pad
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = content
    return canvas


def to_frame(values: np.ndarray, place: Placement) -> np.ndarray:
    """[H, W] on the canvas -> [H0, W0] at the frame's own size: nearest (pixel centres), bars cut off. A copy."""
    if place.identity:
        return values.copy()
    rows = place.top + _nearest(place.frame[0], place.height)
    columns = place.left + _nearest(place.frame[1], place.width)
    return np.ascontiguousarray(values[rows].take(columns, axis=1))


def _nearest(count: int, source: int) -> np.ndarray:
    return np.minimum(((2 * np.arange(count, dtype=np.int64) + 1) * source) // (2 * count), source - 1)
