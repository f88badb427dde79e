"""Vehicles, people and cyclists, built from simple solids and strokes."""

from __future__ import annotations

import math
import random
from typing import Callable, List, Sequence, Tuple

from crispseg.scenes.camera import NEAR, Point, View, World
from crispseg.scenes.canvas import BICYCLIST, CAR, IGNORE, PEDESTRIAN, Canvas, Color, shade
from crispseg.scenes.world import Street, Thing, between, pick

PAINTS = (
    (28, 30, 34),
    (46, 50, 56),
    (120, 124, 128),
    (172, 176, 180),
    (212, 214, 214),
    (224, 224, 220),
    (36, 48, 92),
    (124, 28, 30),
    (160, 34, 34),
    (34, 72, 56),
    (60, 88, 128),
    (142, 122, 92),
    (88, 92, 98),
)
# name: length, width, height, bonnet height, then the cabin as (rear low, rear high, front high, front low) of length 1
SHAPES = (
    (3.9, 1.68, 1.45, 0.85, (0.02, 0.12, 0.55, 0.75)),
    (4.5, 1.75, 1.42, 0.85, (0.14, 0.27, 0.58, 0.76)),
    (4.6, 1.76, 1.48, 0.88, (0.01, 0.06, 0.58, 0.76)),
    (4.6, 1.85, 1.75, 1.0, (0.01, 0.06, 0.62, 0.78)),
    (5.2, 1.95, 2.3, 1.1, (0.0, 0.01, 0.78, 0.92)),
    (10.5, 2.5, 3.1, 1.0, (0.0, 0.0, 0.99, 1.0)),
    (7.0, 2.3, 3.2, 1.1, (0.0, 0.0, 0.97, 1.0)),
    (10.5, 2.5, 4.3, 1.0, (0.0, 0.0, 0.99, 1.0)),
)


def hull(points: Sequence[Point]) -> List[Point]:
    """Convex hull, counter-clockwise."""
    pts = sorted(points)
    if len(pts) < 3:
        return list(pts)
    halves: List[List[Point]] = []
    for ordered in (pts, pts[::-1]):
        side: List[Point] = []
        for p in ordered:
            while len(side) > 1 and (side[-1][0] - side[-2][0]) * (p[1] - side[-2][1]) <= (
                side[-1][1] - side[-2][1]
            ) * (p[0] - side[-2][0]):
                side.pop()
            side.append(p)
        halves.append(side[:-1])
    return halves[0] + halves[1]


def car(c: Canvas, view: View, st: Street, o: Thing) -> None:
    """A car, van, lorry or bus; o.speed < 0 means that it comes towards the camera."""
    r = random.Random(o.seed)
    long, wide, tall, belt, cabin = (
        SHAPES[int(r.random() * 5)] if r.random() < 0.9 or abs(o.speed) < 0.5 else pick(r, SHAPES[5:])
    )
    paint = shade(pick(r, PAINTS), between(r, 0.85, 1.1))
    if tall > 3:
        paint = pick(r, ((172, 30, 34), (206, 204, 196), (40, 80, 130), (60, 110, 84), (190, 160, 60)))
    inward = 1.0 if o.speed > 0 or (o.speed == 0 and r.random() < 0.65) else -1.0
    s0, d = o.s, o.d
    x0, _, z0 = view.camera(d, 0, s0)
    x1, _, z1 = view.camera(d, 0, s0 + long)
    reach = 0.5 * view.width / view.focal
    if max(z0, z1) < NEAR or min(abs(x0) - z0 * reach, abs(x1) - z1 * reach) > 4.0 + long:
        return
    if z0 < 1.5 and abs(x0) < wide / 2 + 0.6:
        return

    def at(f: float) -> float:
        return s0 + long * (f if inward > 0 else 1.0 - f)

    half, low = wide / 2, 0.28

    def solid(profile: Sequence[Tuple[float, float, float]], color: Color) -> None:
        points = [p for f, y, w in profile for p in points_of(view, ((d - w, y, at(f)), (d + w, y, at(f))))]
        c.polygon(hull(points), color, CAR)

    nearest = 0.0 if inward > 0 else 1.0
    seen = -1 if view.camera(d, 0, s0 + 2)[0] > view.camera(d, 0, s0 + 2)[2] * -view.sin else 1
    sides = 1.0 + 0.12 * st.sunny * (1 if (math.cos(st.sun) > 0) == (seen > 0) else -1)
    r0, r1, f1, f0 = cabin
    wheel = 0.31 if tall < 2.6 else 0.48
    for f in (0.18, 0.82) if z0 < 30 else ():
        _wheel(c, view, d - seen * (half - 0.1), at(f), wheel)
    solid(
        [(0.0, low, half), (0.0, belt * 0.95, half * 0.96), (1.0, low, half), (1.0, belt * 0.8, half * 0.95)],
        shade(paint, sides),
    )
    if belt < tall:
        top = half * (0.82 if tall < 2 else 0.95)
        solid(
            [
                (r0, 0.75 * belt, half * 0.95),
                (r0, belt, half * 0.95),
                (r1, tall, top),
                (f1, tall, top),
                (f0, belt, half * 0.95),
                (f0, 0.75 * belt, half * 0.95),
            ],
            shade(paint, sides * 0.97),
        )
    for f in (0.18, 0.82) if z0 < 70 else ():
        _wheel(c, view, d + seen * (half + 0.005), at(f), wheel)
    _glass(c, view, d, half, seen, at, tall, belt, cabin, nearest)
    _face(c, view, d, half, at(nearest), belt, paint, inward > 0, r)


def _wheel(c: Canvas, view: View, d: float, s: float, radius: float) -> None:
    rim = [(d, radius + radius * math.sin(a * 0.5236), s + radius * math.cos(a * 0.5236)) for a in range(12)]
    c.polygon(view.polygon(rim), (20, 20, 21), CAR)
    if s - view.s > 30:
        return
    hub = [
        (d, radius + 0.58 * radius * math.sin(a * 0.7854), s + 0.58 * radius * math.cos(a * 0.7854)) for a in range(8)
    ]
    c.polygon(view.polygon(hub), (112, 114, 116), None)


def _glass(
    c: Canvas,
    view: View,
    d: float,
    half: float,
    seen: int,
    at: Callable[[float], float],
    tall: float,
    belt: float,
    cabin: Tuple[float, float, float, float],
    nearest: float,
) -> None:
    """Side windows on the side that is seen and the front or rear screen."""
    r0, r1, f1, f0 = cabin
    dark = (34, 40, 46)
    hi = belt + (tall - belt) * 0.86
    lo = belt + (tall - belt) * 0.08
    if tall > 3.6:
        lo, hi = 1.2, 1.9
    elif tall > 2.6:
        hi = lo + 0.9
    cuts = (0.06, 0.46, 0.5, 0.94) if tall < 2.6 else (0.02, 0.3, 0.33, 0.64, 0.67, 0.98)
    for k in range(0, len(cuts), 2):
        quad = []
        for f, y in ((cuts[k], lo), (cuts[k], hi), (cuts[k + 1], hi), (cuts[k + 1], lo)):
            a, b = r0 + (r1 - r0) * (y - belt) / (tall - belt), f0 + (f1 - f0) * (y - belt) / (tall - belt)
            w = half * (0.955 - (0.13 if tall < 2 else 0.0) * (y - belt) / (tall - belt))
            quad.append((d + seen * (w + 0.01), y, at(a + (b - a) * f)))
        c.polygon(view.polygon(quad), dark, None)
        if tall > 3.6:
            c.polygon(view.polygon([(x, y + 1.6, s) for x, y, s in quad]), dark, None)
    low, high = (r0, r1) if nearest == 0.0 else (f0, f1)
    k0, k1 = 0.12, 0.88
    w0, w1 = half * 0.86, half * (0.74 if tall < 2 else 0.85)
    p, q = low + (high - low) * k0, low + (high - low) * k1
    y0, y1 = belt + (tall - belt) * k0, belt + (tall - belt) * k1
    if tall > 2.6:
        y0, y1 = 1.3, min(tall - 0.6, 2.6)
    quad = [(d - w0, y0, at(p)), (d - w1, y1, at(q)), (d + w1, y1, at(q)), (d + w0, y0, at(p))]
    flat = view.polygon(quad)
    c.polygon(flat, (52, 60, 66), None)
    if len(flat) == 4:
        c.polygon(
            [flat[1], flat[2], ((flat[2][0] + flat[3][0]) / 2, (flat[2][1] + flat[3][1]) / 2), flat[1]],
            (120, 132, 140),
            None,
            90,
        )


def _face(
    c: Canvas, view: View, d: float, half: float, s: float, belt: float, paint: Color, rear: bool, r: random.Random
) -> None:
    """The near end: bumper, lights, number plate, under-shadow."""
    s -= 0.02

    def box(x0: float, x1: float, y0: float, y1: float, color: Color) -> None:
        c.polygon(view.polygon([(d + x0, y0, s), (d + x1, y0, s), (d + x1, y1, s), (d + x0, y1, s)]), color, None)

    box(-half, half, 0.28, belt * 0.93, shade(paint, 0.9))
    box(-half, half, 0.28, 0.5, shade(paint, 0.68) if r.random() < 0.6 else (42, 43, 45))
    lamp = (176, 30, 30) if rear else (226, 228, 222)
    y = belt * 0.66
    for side in (-1, 1):
        a, b = sorted((side * half * 0.96, side * half * 0.66))
        box(a, b, y - 0.09, y + 0.11, lamp)
    plate = (206, 178, 66) if rear and r.random() < 0.5 else (224, 224, 220)
    box(-0.26, 0.26, 0.5, 0.62, plate)
    if not rear:
        box(-half * 0.55, half * 0.55, y - 0.12, y + 0.05, (36, 37, 39))
    box(-half * 0.9, half * 0.9, 0.14, 0.28, (14, 14, 15))


CLOTHES = (
    (32, 34, 40),
    (58, 60, 68),
    (44, 56, 86),
    (118, 42, 44),
    (150, 140, 122),
    (84, 90, 76),
    (196, 192, 186),
    (172, 120, 60),
    (30, 26, 26),
)
SKIN = ((206, 164, 138), (178, 130, 102), (122, 84, 62), (226, 186, 160))


def person(c: Canvas, view: View, st: Street, o: Thing, t: float) -> None:
    """A standing or walking figure with arms and legs."""
    r = random.Random(o.seed)
    foot = view.point(o.d, 0.06, o.s + o.speed * t)
    if foot is None or foot[2] * o.size < 5:
        return
    u, v, k = foot
    h = o.size * k
    if u < -h or u > view.width + h:
        return
    coat, legs, skin = shade(pick(r, CLOTHES), between(r, 0.7, 1.15)), shade(pick(r, CLOTHES[:5]), 0.8), pick(r, SKIN)
    phase = 6.28 * (r.random() + 0.9 * t * (0.0 if o.speed == 0 else 1.0))
    stride = 0.13 * h * math.sin(phase) if o.speed else 0.03 * h
    turn = between(r, 0.5, 1.0)
    hip, neck = v - 0.48 * h, v - 0.83 * h
    wide = h * between(r, 0.1, 0.14)
    skirt = r.random() < 0.15
    for side in (-1, 1):
        x = u + side * 0.045 * h
        step = side * stride * turn
        knee = (x + step * 0.6, v - 0.25 * h)
        ankle = (x + step * 0.9, v - (0.04 * h if side * stride < 0 else 0.0) - 0.01 * h)
        c.limb(((x, hip), knee, ankle), 0.085 * h, legs if not skirt else skin, PEDESTRIAN)
        c.line(
            ankle, (ankle[0] + 0.035 * h * (1 if o.speed >= 0 else -1), ankle[1]), 0.05 * h, (24, 22, 22), PEDESTRIAN
        )
    for side in (-1, 1):
        swing = -side * stride * turn * 0.8
        shoulder = (u + side * wide * 0.95, neck + 0.03 * h)
        elbow = (shoulder[0] + side * 0.02 * h + swing * 0.4, neck + 0.2 * h)
        hand = (elbow[0] + swing * 0.6, neck + 0.36 * h)
        c.limb((shoulder, elbow, hand), 0.06 * h, shade(coat, 0.88), PEDESTRIAN)
        c.ellipse(hand[0], hand[1], 0.026 * h, 0.03 * h, skin, PEDESTRIAN)
    flare = 1.25 if skirt else 0.95
    low = hip + (0.14 * h if skirt or r.random() < 0.3 else 0.02 * h)
    c.polygon([(u - wide, neck), (u + wide, neck), (u + wide * flare, low), (u - wide * flare, low)], coat, PEDESTRIAN)
    if r.random() < 0.35:
        bag = shade(pick(r, CLOTHES), 0.8)
        c.polygon(
            [
                (u + wide * 0.7, hip - 0.1 * h),
                (u + wide * 1.7, hip - 0.1 * h),
                (u + wide * 1.6, hip + 0.1 * h),
                (u + wide * 0.8, hip + 0.1 * h),
            ],
            bag,
            PEDESTRIAN,
        )
    c.line((u, neck), (u, v - 0.88 * h), 0.06 * h, skin, PEDESTRIAN)
    c.ellipse(
        u,
        v - 0.93 * h,
        0.06 * h,
        0.072 * h,
        pick(r, ((42, 32, 26), (92, 66, 42), (150, 130, 100), (30, 28, 28))),
        PEDESTRIAN,
    )
    if r.random() < 0.5:
        c.ellipse(u, v - 0.915 * h, 0.045 * h, 0.055 * h, skin, None)


def cyclist(c: Canvas, view: View, st: Street, o: Thing, t: float) -> None:
    """A bicycle with its rider, seen from behind, ahead or aside. Between the spokes nobody could decide."""
    r = random.Random(o.seed)
    foot = view.point(o.d, 0.0, o.s)
    if foot is None or foot[2] < 4:
        return
    u, v, k = foot
    if u < -2 * k or u > view.width + 2 * k:
        return
    side = between(r, 0.12, 0.3) if o.speed else (between(r, 0.12, 0.4) if r.random() < 0.5 else between(r, 0.7, 1.0))
    side *= 1 if r.random() < 0.5 else -1
    rw, gap = 0.34 * k, 0.52 * k * side
    thin = max(0.05 * k, 0.9)
    frame = pick(r, ((30, 30, 34), (150, 34, 36), (40, 70, 140), (170, 172, 174), (40, 100, 60)))
    for w in (-1, 1):
        x = u + w * gap
        c.ring(x, v - rw, max(rw * abs(side), thin), rw, thin, (22, 22, 24), BICYCLIST, IGNORE)
        for a in range(0, 6):
            q = (x + math.cos(a * 1.05) * rw * abs(side) * 0.95, v - rw + math.sin(a * 1.05) * rw * 0.95)
            c.line((x, v - rw), q, 0.008 * k, (120, 120, 120), BICYCLIST)
    seat, bars, crank = (u - 0.22 * gap, v - 0.92 * k), (u + 0.75 * gap, v - 1.02 * k), (u - 0.05 * gap, v - 0.32 * k)
    for p, q in (
        ((u - gap, v - rw), crank),
        (crank, seat),
        (crank, (u + 0.7 * gap, v - 0.85 * k)),
        (seat, (u + 0.7 * gap, v - 0.85 * k)),
        ((u + gap, v - rw), bars),
        ((u - gap, v - rw), seat),
    ):
        c.line(p, q, 0.04 * k, frame, BICYCLIST)
    c.line((bars[0] - 0.2 * k, bars[1]), (bars[0] + 0.2 * k, bars[1]), 0.035 * k, (30, 30, 32), BICYCLIST)
    if abs(o.d) > st.half and r.random() < 0.5:
        return
    coat, legs = shade(pick(r, CLOTHES + ((214, 220, 60), (220, 110, 40))), 1.0), shade(pick(r, CLOTHES[:5]), 0.8)
    turn = 7.0 * t + 6.28 * r.random()
    for w in (-1, 1):
        pedal = (crank[0] + 0.17 * k * math.cos(turn) * side * w, crank[1] + 0.17 * k * math.sin(turn) * w)
        hip = (seat[0] + w * 0.1 * k * (1 - abs(side)), seat[1])
        knee = ((hip[0] + pedal[0]) / 2 + 0.22 * k * side + w * 0.05 * k, (hip[1] + pedal[1]) / 2 - 0.08 * k)
        pedal = (pedal[0] + w * 0.09 * k * (1 - abs(side)), pedal[1])
        c.limb((hip, knee, pedal), 0.13 * k, legs, BICYCLIST)
    neck = (seat[0] + 0.45 * k * side, seat[1] - 0.52 * k)
    w0 = 0.2 * k
    c.polygon(
        [
            (seat[0] - w0 * 0.8, seat[1] + 0.04 * k),
            (seat[0] + w0 * 0.8, seat[1] + 0.04 * k),
            (neck[0] + w0, neck[1]),
            (neck[0] - w0, neck[1]),
        ],
        coat,
        BICYCLIST,
    )
    for w in (-1, 1):
        c.limb(
            (
                (neck[0] + w * w0 * 0.9, neck[1] + 0.06 * k),
                (neck[0] + w * w0 * 1.2 + 0.1 * k * side, neck[1] + 0.25 * k),
                (bars[0] + w * 0.18 * k, bars[1]),
            ),
            0.09 * k,
            shade(coat, 0.88),
            BICYCLIST,
        )
    head = (neck[0] + 0.05 * k * side, neck[1] - 0.17 * k)
    c.line(neck, head, 0.1 * k, pick(r, SKIN), BICYCLIST)
    c.ellipse(
        head[0],
        head[1],
        0.11 * k,
        0.14 * k,
        pick(r, ((40, 32, 28), (200, 200, 196), (170, 40, 40), (92, 66, 42))),
        BICYCLIST,
    )


def points_of(view: View, points: Sequence[World]) -> List[Point]:
    """Projected points. Those behind the near plane are moved onto it, which is right for edges along the view."""
    out = []
    for p in points:
        x, up, z = view.camera(*p)
        k = view.focal / max(z, NEAR)
        out.append((view.cx + x * k, view.cy - up * k))
    return out
