"""Textures made from numbers: tileable noise, tree crowns, bare branches, facades, skies. All are deterministic."""

from __future__ import annotations

import functools
import math
import random
from typing import List, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

TILE = 256


@functools.lru_cache(maxsize=None)
def noise(kind: int = 0, octaves: int = 6, falloff: float = 0.6) -> np.ndarray:
    """Tileable fractal noise [256,256] float32 with mean 0 and standard deviation 1."""
    rng = np.random.RandomState(977 + kind)
    total = np.zeros((TILE, TILE), np.float32)
    weight = 1.0
    for octave in range(octaves):
        cells = 4 << octave
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        wide = np.pad(grid, 4, mode="wrap")
        step = TILE // cells
        image = Image.fromarray(wide).resize((wide.shape[1] * step, wide.shape[0] * step), Image.Resampling.BICUBIC)
        total += weight * np.asarray(image)[4 * step : 4 * step + TILE, 4 * step : 4 * step + TILE]
        weight *= falloff
    total -= total.mean()
    return (total / total.std()).astype(np.float32)


@functools.lru_cache(maxsize=None)
def _rough(kind: int) -> np.ndarray:
    """Wall noise repeated to [768,768]: blotches and grain together."""
    tile = 0.45 * noise(kind) + 0.9 * noise(4 + kind % 3, 6, 0.9)
    return np.ascontiguousarray(np.tile(tile, (3, 3)))


def noise_patch(kind: int, width: int, height: int, r: random.Random) -> np.ndarray:
    """A random window of wall noise, [height,width] float32; it repeats when the window is large."""
    tile = _rough(kind)
    y, x = int(r.random() * TILE), int(r.random() * TILE)
    if height <= 512 and width <= 512:
        return tile[y : y + height, x : x + width]
    ys, xs = (y + np.arange(height)) % TILE, (x + np.arange(width)) % TILE
    return tile[ys[:, None], xs[None, :]]


Pyramid = Tuple[Image.Image, ...]


def pyramid(image: Image.Image) -> Pyramid:
    """The image and its halvings, so that a small copy of it is cheap."""
    out = [image]
    while min(out[-1].size) > 12:
        out.append(out[-1].reduce(2))
    return tuple(out)


@functools.lru_cache(maxsize=None)
def crowns() -> Tuple[Tuple[Pyramid, Pyramid], ...]:
    """Leafy crowns, each a mask (L, coverage) and a light (L, 128 means as bright as the leaf colour)."""
    out = []
    yy, xx = np.mgrid[0:TILE, 0:TILE].astype(np.float32) / (TILE - 1) * 2 - 1
    for i in range(10):
        r = random.Random(4100 + i)
        coarse = np.roll(noise(i % 4, 3, 0.7), (int(r.random() * TILE), int(r.random() * TILE)), (0, 1))
        fine = np.roll(noise(4 + i % 3, 6, 0.85), (int(r.random() * TILE), int(r.random() * TILE)), (0, 1))
        tall = i % 5 == 4
        if tall:
            radius = np.abs(xx) / np.maximum(0.08, 0.48 * (yy + 1.02)) * 0.9 + 0.25 * np.maximum(0, yy) ** 6
        else:
            lobes = 1.0 + 0.12 * np.sin(np.arctan2(yy, xx) * (3 + i % 3) + i)
            radius = np.hypot(xx, yy * (1.0 + 0.15 * (i % 3))) / lobes
        field = 0.86 - radius + 0.09 * coarse + (0.075 + 0.03 * (i % 3)) * fine
        field -= 3.0 * np.maximum(0.0, np.maximum(np.abs(xx), np.abs(yy)) - 0.94)
        mask = np.clip(field * 12 + 0.5, 0, 1)
        light = 0.95 - 0.28 * yy - 0.14 * xx + 0.17 * fine + 0.1 * coarse
        out.append(
            (
                pyramid(Image.fromarray((mask * 255).astype(np.uint8))),
                pyramid(Image.fromarray((np.clip(light, 0.25, 1.9) * 128).astype(np.uint8))),
            )
        )
    return tuple(out)


Segment = Tuple[float, float, float, float, float]


@functools.lru_cache(maxsize=None)
def bare_tree(index: int) -> Tuple[Segment, ...]:
    """Branches of a leafless tree one unit high: (x0, y0, x1, y1, width), thick ones first, y up from the ground."""
    r = random.Random(5200 + index)
    out: List[Segment] = []
    tips = [(0.0, 0.0, math.pi / 2, 0.25 + 0.1 * r.random(), 0.035)]
    for level in range(6):
        grown = []
        for x, y, angle, length, width in tips:
            x1, y1 = x + math.cos(angle) * length, y + math.sin(angle) * length
            out.append((x, y, x1, y1, width))
            if level == 5:
                continue
            for side in (-1, 0, 1) if level in (0, 2) else (-1, 1):
                turn = side * (0.25 + 0.4 * r.random()) + 0.25 * (r.random() - 0.5)
                up = 0.12 * math.cos(angle)
                grown.append((x1, y1, angle + turn + up, length * (0.62 + 0.2 * r.random()), width * 0.6))
        tips = grown
    top = max(seg[3] for seg in out)
    return tuple((a / top, b / top, c / top, d / top, w / top) for a, b, c, d, w in out)


@functools.lru_cache(maxsize=None)
def haze(index: int) -> Tuple[Pyramid, Pyramid]:
    """Coverage and light of the finest twigs of a bare tree; the picture spans x -0.6..0.6, y 1.05..0."""
    image = Image.new("L", (240, 210))
    draw = ImageDraw.Draw(image)
    for x0, y0, x1, y1, _ in bare_tree(index)[-200:]:
        for k in range(3):
            t = (k - 1) * 0.03
            draw.line(((x0 + 0.6) * 200, (1.05 - y0) * 200, (x1 + t + 0.6) * 200, (1.05 - y1 + abs(t)) * 200), fill=150)
    soft = image.filter(ImageFilter.BoxBlur(4)).point([min(150, int(i * 1.5)) for i in range(256)])
    return pyramid(soft), pyramid(Image.new("L", soft.size, 128))


def facade(
    seed: int, width: float, height: float, scale: float, color: Sequence[int], style: str, light: float
) -> Image.Image:
    """A flat house front of width x height metres at ``scale`` pixels a metre: bricks, windows, doors, shop."""
    r = random.Random(seed)
    w, h = max(8, int(width * scale)), max(8, int(height * scale))
    tone = 1.0 + np.float32(0.07 if style != "plaster" else 0.035) * noise_patch(seed % 4, w, h, r)
    if style == "brick":
        rows = (np.arange(h) * (1.0 / scale) / 0.15).astype(np.int64) % 2
        tone = tone * (0.97 + 0.06 * rows).astype(np.float32)[:, None]
    tone = tone * np.linspace(1.06, 0.88, h, dtype=np.float32)[:, None]
    wall = np.clip(np.asarray(color, np.float32) * (light * tone)[..., None], 0, 255).astype(np.uint8)
    image = Image.fromarray(wall)
    draw = ImageDraw.Draw(image)
    floor_h = 2.7 + 0.6 * r.random()
    floors = max(1, int(height / floor_h))
    bay = 1.6 + 1.8 * r.random()
    bays = max(1, int(width / bay))
    bay = width / bays
    ww, wh = bay * (0.35 + 0.3 * r.random()), floor_h * (0.45 + 0.2 * r.random())
    if style == "office":
        ww, wh = bay * 0.88, floor_h * 0.62
    frame = tuple(int(c * light) for c in ((225, 222, 215), (70, 66, 62), (150, 140, 125))[int(r.random() * 3)])
    shop = style == "shop" or (style != "house" and r.random() < 0.35)
    for f in range(floors):
        y0 = height - (f + 1) * floor_h + (floor_h - wh) * 0.55
        if f == 0 and shop:
            _shop(draw, r, width, height, scale, light)
            continue
        for b in range(bays):
            x0 = (b + 0.5) * bay - ww / 2
            if f == 0 and r.random() < 0.25:
                door = _paint(r, 0.8 * light, 0.6)
                draw.rectangle(_box(x0, height - 2.2, x0 + 1.0, height, scale), fill=door)
                continue
            glass = 35 + 70 * r.random() ** 2
            if r.random() < 0.12:
                glass = 150 + 60 * r.random()
            pane = tuple(int(light * g) for g in (glass * 0.92, glass, glass * 1.08))
            if scale >= 10:
                draw.rectangle(_box(x0 - 0.08, y0 - 0.08, x0 + ww + 0.08, y0 + wh + 0.1, scale), fill=frame)
            draw.rectangle(_box(x0, y0, x0 + ww, y0 + wh, scale), fill=pane)
            if r.random() < 0.8 and scale >= 10:
                mid = x0 + ww / 2
                draw.line(_box(mid, y0, mid, y0 + wh, scale), fill=frame)
                draw.line(_box(x0, y0 + wh / 2, x0 + ww, y0 + wh / 2, scale), fill=frame)
    if r.random() < 0.6:
        band = tuple(int(c * light * 1.15) for c in color)
        draw.rectangle(_box(0, 0, width, 0.3, scale), fill=tuple(min(255, c) for c in band))
    return image


def _box(x0: float, y0: float, x1: float, y1: float, scale: float) -> Tuple[float, float, float, float]:
    return (x0 * scale, y0 * scale, max(x0, x1) * scale, max(y0, y1) * scale)


def _paint(r: random.Random, light: float, color: float) -> Tuple[int, int, int]:
    """A random colour: dark more often than bright; ``color`` 0..1 says how far from grey."""
    grey = 30 + 170 * r.random() ** 1.6
    red, green, blue = (light * (grey + color * (190 * r.random() - 95)) for _ in range(3))
    return int(max(8, min(255, red))), int(max(8, min(255, green))), int(max(8, min(255, blue)))


def _shop(draw: ImageDraw.ImageDraw, r: random.Random, width: float, height: float, scale: float, light: float) -> None:
    """Ground floor with display windows and a name board over them."""
    x = 0.0
    while x < width - 1.0:
        wide = min(width - x, 3.5 + 4.0 * r.random())
        board = _paint(r, light, 0.5)
        draw.rectangle(_box(x, height - 3.5, x + wide, height - 2.8, scale), fill=board)
        ink = (235, 230, 215) if sum(board) < 300 else (30, 30, 40)
        letter = x + wide * 0.25
        while letter < x + wide * 0.75:
            draw.rectangle(
                _box(letter, height - 3.32, letter + 0.12 + 0.12 * r.random(), height - 2.98, scale), fill=ink
            )
            letter += 0.34
        glass = 25 + 60 * r.random()
        draw.rectangle(_box(x + 0.15, height - 2.7, x + wide - 0.15, height - 0.5, scale), fill=(int(glass),) * 3)
        for _ in range(7):
            gx, gy = x + 0.3 + (wide - 0.9) * r.random(), height - 2.5 + 1.4 * r.random()
            tint = _paint(r, light, 0.45)
            draw.rectangle(_box(gx, gy, gx + 0.2 + 0.5 * r.random(), gy + 0.2 + 0.5 * r.random(), scale), fill=tint)
        draw.rectangle(_box(x, height - 2.8, x + 0.15, height, scale), fill=board)
        x += wide


def sky(
    width: int, height: int, top: Sequence[int], low: Sequence[int], clouds: float, shift: float, r: random.Random
) -> Image.Image:
    """Sky of width x height pixels, its last row at the horizon: a gradient with clouds that drift by ``shift``."""
    w, h = max(16, width // 8), max(16, height // 8)
    v = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    base = np.asarray(top, np.float32) * (1 - v) + np.asarray(low, np.float32) * v
    base = np.repeat(base, w, axis=1)
    if clouds > 0:
        tile = noise(int(r.random() * 4), 5, 0.55)
        ys = (r.random() * TILE + 60.0 / (1.25 - np.linspace(0, 1, h))).astype(np.int64) % TILE
        xs = (r.random() * TILE + shift + np.linspace(0, 110.0 * w / max(h, 1) / 1.5, w)).astype(np.int64) % TILE
        cover = np.clip(tile[ys[:, None], xs[None, :]] * 0.6 + clouds - 0.5, 0, 1)[..., None]
        grey = 255 - 45 * r.random() * np.clip(tile[(ys[:, None] + 9) % TILE, xs[None, :]], 0, 1)[..., None]
        base = base * (1 - cover) + grey * cover
    image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
    return image.resize((width, max(1, height)), Image.Resampling.BILINEAR)
