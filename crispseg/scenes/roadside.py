"""Thin upright things: lamp posts, masts with wires, signs, traffic lights, bollards, shelters, and trees."""

from __future__ import annotations

import random
from typing import Optional

from crispseg.scenes import texture
from crispseg.scenes.camera import View
from crispseg.scenes.canvas import BUILDING, POLE, SIGN, TREE, Canvas, Color, shade
from crispseg.scenes.world import Street, Thing, between, pick

STEEL = ((96, 100, 102), (52, 54, 56), (40, 58, 48), (136, 138, 136), (70, 66, 62))
HAZE_SOLID = 66


def _post(c: Canvas, view: View, o: Thing, height: float, wide: float, top: float, color: Color) -> Optional[tuple]:
    foot = view.point(o.d, 0.0, o.s)
    if foot is None:
        return None
    u, v, k = foot
    if u < -8 * k or u > view.width + 8 * k:
        return None
    c.taper((u, v), (u, v - height * k), wide * k, top * k, color, POLE)
    return foot


def lamp(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A tapered post with one or two arms and lamp heads, all of class pole."""
    r = random.Random(o.seed)
    color = shade(pick(r, STEEL), between(r, 0.8, 1.2))
    foot = _post(c, view, o, o.size, 0.16, 0.09, color)
    if foot is None:
        return
    u, v, k = foot
    c.taper((u, v), (u, v - 1.1 * k), 0.24 * k, 0.2 * k, color, POLE)
    style = r.random()
    reach = between(r, 0.8, 2.0)
    if style < 0.2:
        c.ellipse(u, v - (o.size + 0.2) * k, 0.28 * k, 0.3 * k, (205, 205, 195), POLE)
        return
    sides = (-1, 1) if style > 0.85 else ((-1,) if o.d > 0 else (1,))
    for side in sides:
        a = view.point(o.d, o.size, o.s)
        b = view.point(o.d + side * reach * 0.5, o.size + 0.32, o.s)
        e = view.point(o.d + side * reach, o.size + 0.4, o.s)
        f = view.point(o.d + side * (reach + 0.6), o.size + 0.42, o.s)
        if a and b and e and f:
            c.limb((a[:2], b[:2], e[:2]), 0.075 * k, color, POLE)
            c.taper(e[:2], f[:2], 0.14 * k, 0.2 * k, shade(color, 1.3), POLE)


def mast(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A wooden pole with a cross-arm; wires sag to the next one ahead and across the street."""
    r = random.Random(o.seed)
    color = (74, 62, 52)
    foot = _post(c, view, o, o.size, 0.22, 0.16, color)
    if foot is None:
        return
    k = foot[2]
    ends = []
    for off in (-0.7, 0.7):
        p = view.point(o.d + off, o.size - 0.35, o.s)
        if p:
            ends.append(p)
    if len(ends) == 2:
        c.line(ends[0][:2], ends[1][:2], 0.1 * k, color, POLE)
    goals = [
        (o.d - 0.7, o.size - 0.35, o.s + 30),
        (o.d + 0.7, o.size - 0.35, o.s + 30),
        (o.d - 0.7, o.size - 0.4, o.s - 28),
        (-o.d * 1.3, between(r, 5, 7), o.s + between(r, -3, 3)),
    ]
    for d1, y1, s1 in goals:
        _wire(c, view, (o.d, o.size - 0.3, o.s), (d1, y1, s1))


def _wire(c: Canvas, view: View, a: tuple, b: tuple) -> None:
    last = None
    for i in range(9):
        t = i / 8.0
        sag = 0.5 * 4 * t * (1 - t)
        p = view.point(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t - sag, a[2] + (b[2] - a[2]) * t)
        if p and last:
            c.line(last[:2], p[:2], 0.02 * 0.5 * (p[2] + last[2]), (34, 36, 38), POLE)
        last = p


def sign(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A post with a plate: round, triangular, square, or a tall board; sometimes a second plate below."""
    r = random.Random(o.seed)
    color = shade((128, 130, 130), between(r, 0.5, 1.2))
    foot = _post(c, view, o, o.size, 0.075, 0.075, color)
    if foot is None:
        return
    u, v, k = foot
    kind = pick(r, ("round", "round", "triangle", "square", "board", "arrow"))
    back = r.random() < 0.2
    squeeze = between(r, 0.75, 1.0)
    y = o.size - 0.3
    size = between(r, 0.28, 0.42)
    _plate(c, u, v - y * k, size * k * squeeze, size * k, kind, r, back)
    if r.random() < 0.35:
        low = v - (y - size - 0.3) * k
        w, h = 0.32 * k * squeeze, 0.16 * k
        c.polygon([(u - w, low - h), (u + w, low - h), (u + w, low + h), (u - w, low + h)], (225, 225, 218), SIGN)
        c.polygon(
            [
                (u - w * 0.8, low - h * 0.3),
                (u + w * 0.8, low - h * 0.3),
                (u + w * 0.8, low + h * 0.3),
                (u - w * 0.8, low + h * 0.3),
            ],
            (60, 60, 60),
            None,
        )


def _plate(c: Canvas, u: float, v: float, w: float, h: float, kind: str, r: random.Random, back: bool) -> None:
    red, blue, white, grey = (186, 32, 36), (34, 74, 158), (236, 236, 230), (122, 124, 126)
    if kind == "round":
        rim, face = pick(r, ((red, white), (blue, blue), (red, blue), (red, red)))
        c.ellipse(u, v, w, h, grey if back else rim, SIGN)
        if not back:
            c.ellipse(u, v, w * 0.76, h * 0.76, face, None)
            ink = (24, 24, 26) if face == white else white
            c.polygon(
                [
                    (u - w * 0.5, v - h * 0.12),
                    (u + w * 0.5, v - h * 0.12),
                    (u + w * 0.5, v + h * 0.12),
                    (u - w * 0.5, v + h * 0.12),
                ],
                ink,
                None,
            )
        return
    if kind == "triangle":
        flip = -1 if r.random() < 0.2 else 1
        c.polygon(
            [(u, v - flip * h * 1.1), (u + w * 1.1, v + flip * h * 0.8), (u - w * 1.1, v + flip * h * 0.8)],
            grey if back else red,
            SIGN,
        )
        if not back:
            m = v + flip * h * 0.12
            c.polygon(
                [(u, m - flip * h * 0.65), (u + w * 0.6, m + flip * h * 0.42), (u - w * 0.6, m + flip * h * 0.42)],
                white,
                None,
            )
            c.ellipse(u, m + flip * h * 0.05, w * 0.12, h * 0.3, (20, 20, 22), None)
        return
    face = grey if back else pick(r, (blue, white, (24, 104, 66), (214, 178, 52), (30, 32, 60), (190, 60, 40)))
    if kind == "board":
        w, h = w * between(r, 1.3, 2.2), h * between(r, 1.0, 1.7)
    elif kind == "arrow":
        w, h = w * 1.7, h * 0.5
    c.polygon([(u - w, v - h), (u + w, v - h), (u + w, v + h), (u - w, v + h)], face, SIGN)
    ink = (230, 230, 226) if sum(face) < 420 else (40, 40, 44)
    for i in range(2 + int(r.random() * 3)):
        y = v - h * 0.65 + h * 0.42 * i
        x1 = u - w * 0.75 + w * 1.5 * between(r, 0.4, 1.0)
        c.polygon([(u - w * 0.75, y), (x1, y), (x1, y + h * 0.2), (u - w * 0.75, y + h * 0.2)], ink, None)


def traffic_light(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A post with a black three-lamp head (class sign, as the CamVid labels have it)."""
    r = random.Random(o.seed)
    foot = _post(c, view, o, o.size - 0.2, 0.12, 0.11, (60, 62, 62))
    if foot is None:
        return
    u, v, k = foot
    lit = int(r.random() * 3)
    for top, shift in ((o.size, 0.0), (o.size - 0.1, 0.28 * (-1 if o.d > 0 else 1)))[: 1 + int(r.random() * 2)]:
        x = u + shift * k
        h = 1.0 * k
        y = v - top * k
        c.polygon(
            [(x - 0.17 * k, y), (x + 0.17 * k, y), (x + 0.17 * k, y + h), (x - 0.17 * k, y + h)], (22, 23, 24), SIGN
        )
        for i, glow in enumerate(((240, 50, 40), (245, 180, 50), (60, 230, 140))):
            tint = glow if i == lit and o.seed % 3 else shade(glow, 0.22)
            c.ellipse(x, y + h * (0.2 + 0.3 * i), 0.11 * k, 0.11 * k, tint, None)


def bollard(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A knee-high post."""
    r = random.Random(o.seed)
    color = pick(r, ((44, 44, 46), (150, 150, 146), (92, 84, 76)))
    foot = _post(c, view, o, between(r, 0.8, 1.1), 0.14, 0.13, color)
    if foot and r.random() < 0.5:
        u, v, k = foot
        c.line((u, v - 0.8 * k), (u, v - 0.7 * k), 0.14 * k, (222, 222, 214), None)


def shelter(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A bus shelter: roof and posts of class building, glass left see-through."""
    side = 1 if o.d > 0 else -1
    d, e, s0, s1, h = o.d, o.d + side * 1.2, o.s, o.s + 3.5, 2.3
    for x, s in ((e, s1), (d, s1), (e, s0), (d, s0)):
        p, q = view.point(x, 0, s), view.point(x, h, s)
        if p and q:
            c.line(p[:2], q[:2], 0.08 * p[2], (60, 64, 68), BUILDING)
    back = view.polygon([(e, 0.3, s0), (e, h, s0), (e, h, s1), (e, 0.3, s1)])
    c.polygon(back, (120, 136, 140), BUILDING, 150)
    c.polygon(
        view.polygon([(d - side * 0.2, h, s0), (e, h, s0), (e, h, s1), (d - side * 0.2, h, s1)]), (58, 62, 66), BUILDING
    )
    c.polygon(
        view.polygon([(d - side * 0.2, h, s0), (d - side * 0.2, h + 0.2, s0), (e, h + 0.2, s0), (e, h, s0)]),
        (84, 88, 92),
        BUILDING,
    )
    c.polygon(
        view.polygon(
            [
                (d - side * 0.2, h, s0),
                (d - side * 0.2, h + 0.2, s0),
                (d - side * 0.2, h + 0.2, s1),
                (d - side * 0.2, h, s1),
            ]
        ),
        (74, 80, 84),
        BUILDING,
    )


def bush(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A low shrub."""
    r = random.Random(o.seed)
    foot = view.point(o.d, 0.0, o.s)
    if foot is None:
        return
    u, v, k = foot
    index = int(r.random() * 4)
    h = o.size * k
    c.sprite(
        texture.crowns()[index],
        shade(st.leaf, between(r, 0.7, 1.2)),
        (u - 0.6 * h, v - h, u + 0.6 * h, v + 0.15 * h),
        TREE,
    )


def tree(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A leafy or a leafless tree. The finest twigs are a haze that nobody could outline: undecided."""
    r = random.Random(o.seed)
    foot = view.point(o.d, 0.0, o.s)
    if foot is None:
        return
    u, v, k = foot
    h = o.size * k
    if u + h < 0 or u - h > view.width or h < 2:
        return
    bark = shade(pick(r, ((64, 54, 46), (84, 76, 66), (52, 48, 46))), between(r, 0.7, 1.1))
    if r.random() < st.leafy:
        index = int(r.random() * 10)
        tall = index % 5 == 4
        wide = h * (between(r, 0.2, 0.28) if tall else between(r, 0.32, 0.5))
        bottom = 0.06 if tall else between(r, 0.15, 0.32)
        c.taper((u, v), (u + 0.02 * h, v - 0.5 * h), 0.045 * h, 0.025 * h, bark, TREE)
        if not tall and h > 60:
            for side in (-1, 1):
                c.taper(
                    (u, v - bottom * h),
                    (u + side * wide * 0.45, v - (bottom + 0.25) * h),
                    0.025 * h,
                    0.01 * h,
                    bark,
                    TREE,
                )
        c.sprite(
            texture.crowns()[index],
            shade(st.leaf, between(r, 0.75, 1.15)),
            (u - wide, v - h, u + wide, v - bottom * h),
            TREE,
        )
        return
    index = int(r.random() * 8)
    c.sprite(
        texture.haze(index),
        shade([0.5 * b + 55 for b in bark], 1.0),
        (u - 0.6 * h, v - 1.05 * h, u + 0.6 * h, v),
        TREE,
        HAZE_SOLID,
    )
    for x0, y0, x1, y1, width in texture.bare_tree(index):
        w = width * h
        if w < 0.45:
            break
        c.taper((u + x0 * h, v - y0 * h), (u + x1 * h, v - y1 * h), w, w * 0.75, bark, TREE)
