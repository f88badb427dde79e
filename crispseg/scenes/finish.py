"""From the supersampled drawing to a photograph and its labels: texture, light, lens, sensor, JPEG."""

from __future__ import annotations

import io
import random
from typing import List

import numpy as np
from PIL import Image, ImageFilter

from crispseg.scenes import texture
from crispseg.scenes.camera import View
from crispseg.scenes.canvas import PAVEMENT, ROAD, SKY, SUPER, TREE
from crispseg.scenes.world import Street, between

# An even split of a pixel goes to the thinner thing, and to "undecided" before anything.
_RANK = np.zeros(256, np.uint8)
_RANK[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]] = (0, 1, 8, 2, 3, 4, 9, 7, 5, 11, 10, 12)
_CLASS = np.zeros(256, np.uint8)
_CLASS[_RANK[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]]] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255)


def reduce_labels(labels: np.ndarray) -> np.ndarray:
    """Majority of each 2x2 block: [2H,2W] uint8 to [H,W] uint8. Four different ids in a block give 255."""
    rank = _RANK[labels]
    a, b, c, d = rank[0::2, 0::2], rank[0::2, 1::2], rank[1::2, 0::2], rank[1::2, 1::2]
    # Sorted, the block is w <= x <= y <= z; two or more alike are neighbours then.
    lo1, hi1, lo2, hi2 = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    w, z = np.minimum(lo1, lo2), np.maximum(hi1, hi2)
    m1, m2 = np.maximum(lo1, lo2), np.minimum(hi1, hi2)
    x, y = np.minimum(m1, m2), np.maximum(m1, m2)
    out = np.full_like(w, 12)
    np.copyto(out, x, where=w == x)
    np.copyto(out, y, where=(y == z))
    np.copyto(out, x, where=x == y)
    return _CLASS[out]


def photograph(image: Image.Image, labels: np.ndarray, view: View, st: Street, t: float) -> np.ndarray:
    """The finished picture [H,W,3] uint8 from the supersampled drawing; ``labels`` [H,W] are the reduced ones."""
    r = random.Random(st.seed * 271 + 9)
    pixels = np.array(image.reduce(SUPER), np.float32)
    height, width = labels.shape
    softness = between(r, 0.0, 0.65) * (height / 480.0) ** 0.5
    factor = _texture(labels, view, st)
    frame = int(round(t * 1000)) & 0xFFFF
    offset = _sensor(height, width, between(r, 0.8, 5.0), st.seed * 17 + frame)
    glow = between(r, 0.0, 0.16)
    if glow > 0.02:
        veil = _veil(labels) * np.float32(glow)
        factor *= 1 - veil * np.float32(1 / 255)
        offset += veil
    pixels *= factor[..., None]
    pixels += offset[..., None]
    out = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)).point(_tone(st))
    if softness > 0.2:
        out = out.filter(ImageFilter.BoxBlur(softness))
    quality = int(between(r, 60, 97))
    if quality < 93:
        store = io.BytesIO()
        out.save(store, "JPEG", quality=quality)
        out = Image.open(store)
    return np.array(out.convert("RGB"))


def _texture(labels: np.ndarray, view: View, st: Street) -> np.ndarray:
    """Brightness factors [H,W]: grain fixed to the ground on road, pavement and grass, mild grain elsewhere."""
    height, width = labels.shape
    out = np.ones((height, width), np.float32)
    top = int(min(height, max(0, view.cy / SUPER + 2)))
    grain = texture.noise(5, 6, 0.9)
    soft = texture.noise(2, 4, 0.6)
    if top < height:
        rows = (np.arange(top, height, dtype=np.float32) + 0.5) * SUPER
        cols = (np.arange(width, dtype=np.float32) + 0.5) * SUPER
        d, s, z = view.ground(rows, cols)
        area = np.zeros(256, np.float32)
        area[ROAD], area[PAVEMENT], area[TREE] = 0.11, 0.10, 0.13
        depth = area[labels[top:]]
        fade = np.clip(view.focal / 40.0 / z, 0.0, 1.0)
        near = grain[(s * 36).astype(np.int32) & 255, (d * 36).astype(np.int32) & 255]
        if view.focal > 1500:
            fine = np.clip(view.focal / 130.0 / z, 0.0, 1.0)
            near = near + 0.8 * fine * grain[(s * 117).astype(np.int32) & 255, (d * 117).astype(np.int32) & 255]
        wide = soft[(s * 5).astype(np.int32) & 255, (d * 9).astype(np.int32) & 255]
        out[top:] += depth * (0.7 * fade * near + 0.16 * wide)
    drift = int(st.seed * 53) & 255
    ys = (np.arange(height) * 300 // max(1, height)) & 255
    xs = (np.arange(width) * 300 // max(1, height) + drift) & 255
    mild = texture.noise(1, 5, 0.7)[ys[:, None], xs[None, :]]
    out += np.where(labels == SKY, 0.0, 0.045).astype(np.float32) * mild
    return out


def _veil(labels: np.ndarray) -> np.ndarray:
    """How bright the surroundings of each pixel are because of the sky, [H,W] float32 0..255."""
    height, width = labels.shape
    bright = Image.fromarray((labels == SKY).astype(np.uint8) * 255).resize((48, 36), Image.Resampling.BOX)
    bright = bright.filter(ImageFilter.GaussianBlur(2.5)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(bright, np.float32)


def _tone(st: Street) -> List[int]:
    """Exposure, white balance and contrast as a table of 3 x 256 values."""
    x = np.arange(256, dtype=np.float64)[None, :] / 255.0
    gain = st.gain * np.asarray(st.balance, np.float64)[:, None] / 100.0
    y = np.clip(x * gain, 0, 1.2) ** st.contrast
    y = y * 255.0 * (1.0 + 0.12 * (st.contrast - 0.9))
    return [int(v) for v in np.clip(y + 0.5, 0, 255).ravel()]


def _sensor(height: int, width: int, sigma: float, seed: int) -> np.ndarray:
    """Sensor noise [H,W] float32: every row is a window of one long random run."""
    rng = np.random.RandomState(seed & 0x7FFFFFFF)
    run = rng.standard_normal(32768).astype(np.float32) * np.float32(sigma)
    run = np.concatenate([run] * (1 + -(-width // run.size)))
    starts = rng.randint(0, 32768, size=height)
    return np.stack([run[i : i + width] for i in starts])
