"""Upright things with a face: terraces, houses, far blocks, woods, walls, hedges and fences."""

from __future__ import annotations

import functools
import math
import random
from typing import Tuple

from PIL import Image

from crispseg.scenes import texture
from crispseg.scenes.camera import NEAR, View
from crispseg.scenes.canvas import BUILDING, FENCE, TREE, Canvas, Color, shade
from crispseg.scenes.world import Street, Thing, between, pick

WALLS = (
    ((118, 84, 66), "brick"),
    ((142, 104, 78), "brick"),
    ((96, 72, 62), "brick"),
    ((172, 150, 116), "brick"),
    ((150, 132, 104), "stone"),
    ((128, 122, 112), "stone"),
    ((198, 190, 174), "plaster"),
    ((176, 170, 160), "plaster"),
    ((214, 208, 196), "plaster"),
    ((112, 112, 116), "office"),
    ((146, 148, 150), "office"),
    ((88, 78, 72), "stone"),
)
ROOFS = ((74, 66, 64), (92, 70, 62), (60, 62, 66), (112, 78, 62))


@functools.lru_cache(maxsize=96)
def _front(seed: int, wide: int, tall: int, scale: int, color: Color, style: str, light: int) -> Image.Image:
    return texture.facade(seed, wide / 10.0, tall / 10.0, scale, color, style, light / 100.0)


def _light(st: Street, facing: int) -> float:
    """Brightness of a wall that faces right (+1), left (-1) or the camera (0)."""
    if st.sunny <= 0:
        return 0.92 + 0.05 * facing
    toward = (-math.cos(st.sun) * facing) if facing else math.sin(st.sun)
    return 0.78 + 0.42 * st.sunny * max(-0.35, toward)


def _face(
    c: Canvas,
    view: View,
    a: Tuple[float, float],
    b: Tuple[float, float],
    h: float,
    seed: int,
    color: Color,
    style: str,
    light: float,
    y: float = 0.0,
) -> None:
    """A wall from street point a = (d, s) to b, h metres high, left end first as the viewer sees it."""
    za, zb = view.camera(a[0], 0, a[1])[2], view.camera(b[0], 0, b[1])[2]
    near = NEAR + 0.4
    if max(za, zb) < near:
        return
    f0, f1 = 0.0, 1.0
    if za < near:
        f0 = (near - za) / (zb - za)
    if zb < near:
        f1 = (near - za) / (zb - za)
    p = (a[0] + (b[0] - a[0]) * f0, a[1] + (b[1] - a[1]) * f0)
    q = (a[0] + (b[0] - a[0]) * f1, a[1] + (b[1] - a[1]) * f1)
    corners = [
        view.point(p[0], y + h, p[1]),
        view.point(q[0], y + h, q[1]),
        view.point(q[0], y, q[1]),
        view.point(p[0], y, p[1]),
    ]
    if any(k is None for k in corners):
        return
    quad = [(k[0], k[1]) for k in corners if k is not None]
    us = [k[0] for k in quad]
    if max(us) < 0 or min(us) > view.width or max(us) - min(us) < 0.5:
        return
    length = ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5
    across = max(us) - min(us)
    if across < 5:
        c.polygon(quad, shade(color, 0.75 * light), BUILDING)
        return
    scale = 5 if across < 24 else 10 if across < 90 else 18 if across < 700 else 36
    flat = _front(seed, max(10, int(length * 10)), max(10, int(h * 10)), scale, color, style, int(light * 100))
    if f0 > 0 or f1 < 1:
        x0, x1 = int(f0 * flat.width), max(int(f0 * flat.width) + 1, int(f1 * flat.width))
        flat = flat.crop((x0, 0, x1, flat.height))
    c.warp(flat, quad, BUILDING)


def building(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A house or a piece of terrace: street front, the end wall that shows, roof, chimneys."""
    r = random.Random(o.seed)
    color, style = pick(r, WALLS)
    if o.kind == "house":
        color, style = pick(r, WALLS[:9])
        style = "house" if style != "brick" else "brick"
    elif style == "stone" and r.random() < 0.4:
        style = "shop"
    color = shade(color, between(r, 0.75, 1.12))
    side = 1 if o.d > 0 else -1
    h, d = o.size, o.d
    deep = between(r, 7, 10)
    flat = r.random() < (0.1 if o.kind == "house" else 0.45)
    roof = pick(r, ROOFS)
    s0, s1 = o.s, o.s1
    rise = 0.0 if flat else between(r, 1.8, 3.4)
    back = d + side * deep
    mid = d + side * deep / 2
    lit = _light(st, 0)
    ends = ((d, s0), (back, s0)) if side > 0 else ((back, s0), (d, s0))
    if r.random() < 0.65:
        end = [(ends[0][0], 0.0, s0), (ends[0][0], h, s0), (ends[1][0], h, s0), (ends[1][0], 0.0, s0)]
        c.polygon(view.polygon(end), shade(color, 0.95 * lit), BUILDING)
    else:
        _face(c, view, ends[0], ends[1], h, o.seed + 1, color, style, lit)
    if rise:
        gable = view.polygon([(d, h, s0), (mid, h + rise, s0), (back, h, s0)])
        c.polygon(gable, shade(color, lit), BUILDING)
        slope = view.polygon(
            [
                (d - side * 0.3, h - 0.1, s0 - 0.2),
                (mid, h + rise, s0 - 0.2),
                (mid, h + rise, s1),
                (d - side * 0.3, h - 0.1, s1),
            ]
        )
        tint = shade(roof, 0.9 * _light(st, -side) + 0.15)
        c.polygon(slope, tint, BUILDING)
        edge = view.polygon(
            [
                (d - side * 0.3, h - 0.1, s0 - 0.2),
                (d - side * 0.3, h + 0.08, s0 - 0.2),
                (d - side * 0.3, h + 0.08, s1),
                (d - side * 0.3, h - 0.1, s1),
            ]
        )
    else:
        edge = view.polygon([(d, h, s0), (d, h + 0.35, s0), (d, h + 0.35, s1), (d, h, s1)])
    front = ((d, s1), (d, s0)) if side > 0 else ((d, s0), (d, s1))
    _face(c, view, front[0], front[1], h, o.seed, color, style, _light(st, -side))
    c.polygon(edge, shade((190, 186, 178) if r.random() < 0.5 else roof, 0.85), BUILDING)
    if rise and r.random() < 0.8:
        for s in (s0 + 0.6, s1 - 0.8)[: 1 + int(r.random() * 2)]:
            top = h + rise + between(r, 0.5, 1.2)
            brick = shade(color, 0.75)
            c.polygon(
                view.polygon(
                    [
                        (mid - 0.4, h + rise - 0.7, s),
                        (mid + 0.4, h + rise - 0.7, s),
                        (mid + 0.4, top, s),
                        (mid - 0.4, top, s),
                    ]
                ),
                brick,
                BUILDING,
            )
            for k in (-0.22, 0.18):
                c.polygon(
                    view.polygon(
                        [
                            (mid + k - 0.1, top, s),
                            (mid + k + 0.1, top, s),
                            (mid + k + 0.08, top + 0.35, s),
                            (mid + k - 0.08, top + 0.35, s),
                        ]
                    ),
                    shade((150, 92, 66), 0.8),
                    BUILDING,
                )
    if flat is False and o.kind == "terrace" and r.random() < 0.35:
        _dormer(c, view, d, mid, h, rise, (s0 + s1) / 2, roof)


def _dormer(c: Canvas, view: View, d: float, mid: float, h: float, rise: float, s: float, roof: Color) -> None:
    x = d + (mid - d) * 0.35
    y0, y1 = h + rise * 0.3, h + rise * 0.85
    c.polygon(
        view.polygon([(x, y0, s - 0.8), (x, y1, s - 0.8), (x, y1, s + 0.8), (x, y0, s + 0.8)]),
        shade(roof, 1.3),
        BUILDING,
    )
    c.polygon(
        view.polygon([(x, y0 + 0.1, s - 0.5), (x, y1 - 0.2, s - 0.5), (x, y1 - 0.2, s + 0.5), (x, y0 + 0.1, s + 0.5)]),
        (52, 58, 64),
        BUILDING,
    )


def far_block(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A building set far back, its face to the street."""
    r = random.Random(o.seed)
    color, style = pick(r, WALLS)
    side = 1 if o.d > 0 else -1
    front = ((o.d, o.s1), (o.d, o.s)) if side > 0 else ((o.d, o.s), (o.d, o.s1))
    _face(c, view, front[0], front[1], o.size, o.seed, color, style, _light(st, -side))


def woods(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A dense row of trees behind a park."""
    r = random.Random(o.seed)
    for i in range(4):
        s = o.s1 - (o.s1 - o.s) * (i + 0.5) / 4
        foot = view.point(o.d, 0, s)
        if foot is None:
            continue
        u, v, k = foot
        tall, wide = o.size * k * between(r, 0.7, 1.15), o.size * k * between(r, 0.4, 0.6)
        index = int(r.random() * 10)
        color = shade(st.leaf, between(r, 0.7, 1.05))
        c.sprite(texture.crowns()[index], color, (u - wide, v - tall, u + wide, v + 0.1 * tall), TREE)


def wall(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A low garden wall (class fence) or a hedge (class tree)."""
    r = random.Random(o.seed)
    h = between(r, 0.7, 1.9)
    if o.kind == "hedge":
        color, label = shade(st.leaf, between(r, 0.7, 1.0)), TREE
    else:
        color, label = shade(pick(r, WALLS)[0], 0.85), FENCE
    for y0, y1, k in ((0.0, h, 1.0), (h - 0.1, h, 1.25)):
        quad = [(o.d, y0, o.s), (o.d, y1, o.s), (o.d, y1, o.s1), (o.d, y0, o.s1)]
        c.polygon(view.polygon(quad), shade(color, k * _light(st, 1 if o.d < 0 else -1)), label)
    if o.kind == "hedge":
        for i in range(3):
            foot = view.point(o.d, h, o.s1 + (o.s - o.s1) * (i + 0.5) / 3)
            if foot and 24 < foot[2] < 1200:
                index = (o.seed + i) % 4
                u, v, k = foot
                c.sprite(texture.crowns()[index], color, (u - 0.7 * k, v - 0.28 * k, u + 0.7 * k, v + 0.7 * k), TREE)


def fence(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """Bars, pickets, rails or mesh. Where the gaps are smaller than a few samples, the whole panel is fence."""
    r = random.Random(o.seed)
    h = between(r, 0.95, 1.8)
    if o.kind == "rails":
        h = 1.05
    color = pick(r, ((40, 42, 44), (28, 50, 38), (150, 150, 148), (96, 72, 52), (190, 186, 176), (60, 60, 64)))
    step, bar = {"bars": (0.13, 0.022), "pickets": (0.16, 0.09), "rails": (0.22, 0.03), "mesh": (0.06, 0.006)}[o.kind]
    a, b = view.point(o.d, 0, o.s), view.point(o.d, 0, o.s1)
    if a is None or b is None:
        return
    if max(a[0], b[0]) < 0 or min(a[0], b[0]) > view.width:
        return
    n = max(1, int(round((o.s1 - o.s) / step)))
    gap = abs(a[0] - b[0]) / n
    low = 0.12
    if gap * (1 - bar / step) < 2.6 or o.kind == "mesh":
        panel = view.polygon([(o.d, low, o.s), (o.d, h, o.s), (o.d, h, o.s1), (o.d, low, o.s1)])
        c.polygon(panel, color, FENCE, 105 if o.kind == "mesh" else int(80 + 170 * bar / step))
    else:
        for i in range(n):
            s = o.s1 + (o.s - o.s1) * (i + 0.5) / n
            p, q = view.point(o.d, low, s), view.point(o.d, h, s)
            if p and q:
                c.line(
                    p[:2],
                    q[:2],
                    bar * p[2] * max(0.35, abs(a[0] - b[0]) / ((o.s1 - o.s) * p[2])) if bar > 0.05 else bar * p[2],
                    color,
                    FENCE,
                )
    rails = (h - 0.05, 0.5 * h, 0.15) if o.kind == "mesh" else (h - 0.12, 0.2)
    for y in rails:
        p, q = view.point(o.d, y, o.s), view.point(o.d, y, o.s1)
        if p and q:
            c.taper(p[:2], q[:2], 0.045 * p[2], 0.045 * q[2], color, FENCE)
    top = view.point(o.d, h + 0.08, o.s)
    if top:
        c.line(a[:2], top[:2], 0.07 * a[2], color, FENCE)
