"""The flat things: sky line, road with its markings, kerbs, pavements, lots, and shadows on the ground."""

from __future__ import annotations

import math
import random
from typing import Optional, Sequence

from crispseg.scenes.camera import FAR, View
from crispseg.scenes.canvas import BUILDING, IGNORE, PAVEMENT, ROAD, TREE, Canvas, Color, shade
from crispseg.scenes.world import Street, Thing, between, pick

KERB = 0.11
DARK = (18, 20, 28)


def strip(
    c: Canvas,
    view: View,
    d0: float,
    d1: float,
    s0: float,
    s1: float,
    color: Color,
    label: Optional[int],
    y: float = 0.0,
    alpha: int = 255,
) -> None:
    """A band of ground between d0 and d1 from s0 to s1."""
    ss = view.along(s0, s1)
    if not ss:
        return
    points = [(d0, y, s) for s in ss] + [(d1, y, s) for s in reversed(ss)]
    c.polygon(view.polygon(points), color, label, alpha)


def horizon(c: Canvas, view: View, st: Street) -> None:
    """Trees, roofs and haze where the street ends; what is too far to name is left undecided."""
    r = random.Random(st.seed * 31 + 5)
    w, base = view.width, view.cy + 2
    c.polygon([(0, base - 3), (w, base - 3), (w, view.height), (0, view.height)], shade(st.grass, 0.9), TREE)
    unit = view.focal / 200.0
    shift = -math.tan(math.asin(view.sin)) * view.focal + view.cx
    for layer in range(2):
        u = -1.2 * view.focal
        while u < 1.2 * view.focal:
            tall = unit * between(r, 4, 14) * (1.0 - 0.3 * layer)
            wide = unit * between(r, 8, 30)
            k = between(r, 0.9, 1.25) * (1 - 0.25 * layer)
            if r.random() < 0.5:
                color = shade((110, 116, 120), k)
                x = u + shift
                c.polygon(
                    [
                        (x, base),
                        (x, base - tall),
                        (x + wide * 0.5, base - tall * between(r, 1, 1.3)),
                        (x + wide, base - tall),
                        (x + wide, base),
                    ],
                    color,
                    BUILDING,
                )
            else:
                color = shade([0.6 * a + 45 for a in st.leaf], k)
                for i in range(4):
                    c.ellipse(
                        u + shift + wide * (i + 0.5) / 4,
                        base - tall * 0.35,
                        wide * 0.3,
                        tall * between(r, 0.45, 0.8),
                        color,
                        TREE,
                    )
            u += wide * between(r, 0.6, 1.0)
    c.polygon([(0, base - 4), (w, base - 4), (w, base + 3), (0, base + 3)], shade(st.grass, 0.8), IGNORE)


def surface(c: Canvas, view: View, st: Street, things: Sequence[Thing]) -> None:
    """Lots, pavements, kerbs and the road with its markings."""
    near, far = view.s - 5.0, view.s + FAR
    left, right = st.half + st.walk_left, st.half + st.walk_right
    for side, edge in ((-1, left), (1, right)):
        strip(c, view, side * edge, side * 90, near, far, shade(st.slabs, 0.85), PAVEMENT)
    for o in things:
        if o.kind in ("ground:park", "ground:house"):
            side = 1 if o.d > 0 else -1
            strip(c, view, o.d, side * 60, o.s, o.s1, shade(st.grass, 0.9 + 0.2 * (o.seed % 7) / 7), TREE)
    for side, walk in ((-1, st.walk_left), (1, st.walk_right)):
        inner, outer = side * st.half, side * (st.half + walk)
        strip(c, view, inner, outer, near, far, st.slabs, PAVEMENT, KERB)
        _joints(c, view, st, inner, outer)
    for side in (-1, 1):
        ss = view.along(near, far)
        face = [(side * st.half, KERB, s) for s in ss] + [(side * st.half, 0.0, s) for s in reversed(ss)]
        strip(c, view, side * st.half, side * (st.half + 0.14), near, far, shade(st.slabs, 1.18), PAVEMENT, KERB)
        c.polygon(view.polygon(face), shade(st.slabs, 0.72), PAVEMENT)
    strip(c, view, -st.half, st.half, near, far, st.asphalt, ROAD)
    for o in things:
        if o.kind == "ground:side":
            side = 1 if o.d > 0 else -1
            strip(c, view, side * (st.half - 0.02), side * 60, o.s + 1, o.s1 - 1, st.asphalt, ROAD)
    _patches(c, view, st)
    _markings(c, view, st, things)


def _joints(c: Canvas, view: View, st: Street, inner: float, outer: float) -> None:
    """Slab joints of the nearer pavement."""
    dark = shade(st.slabs, 0.78)
    first = math.ceil(view.s)
    for i in range(0, 22):
        a, b = view.point(inner, KERB, first + i), view.point(outer, KERB, first + i)
        if a and b:
            c.line(a[:2], b[:2], min(2.0, 0.02 * a[2]), dark, None)
    for k in (0.35, 0.7):
        strip(
            c,
            view,
            inner + (outer - inner) * k - 0.01,
            inner + (outer - inner) * k + 0.01,
            view.s,
            view.s + 18,
            dark,
            None,
            KERB,
        )


def _patches(c: Canvas, view: View, st: Street) -> None:
    """Repairs, tyre tracks and drains."""
    first = int(math.floor(view.s / 9.0))
    for index in range(first - 1, first + 6):
        r = random.Random(st.seed * 917 + index)
        if r.random() < 0.6:
            d, s = between(r, -st.half, st.half - 1), index * 9.0 + between(r, 0, 6)
            strip(
                c,
                view,
                d,
                min(st.half, d + between(r, 0.4, 2.5)),
                s,
                s + between(r, 0.6, 8),
                shade(st.asphalt, between(r, 0.6, 1.25)),
                None,
                0.0,
                int(between(r, 40, 130)),
            )
        if r.random() < 0.3:
            side, s = pick(r, (-1, 1)), index * 9.0 + 3
            strip(c, view, side * (st.half - 0.5), side * (st.half - 0.1), s, s + 0.5, (35, 35, 36), None)
    lane = st.lane
    for d in (lane - 0.8, lane + 0.8, -lane - 0.8, -lane + 0.8):
        strip(c, view, d - 0.25, d + 0.25, view.s - 3, view.s + 60, shade(st.asphalt, 0.8), None, 0.0, 40)


def _markings(c: Canvas, view: View, st: Street, things: Sequence[Thing]) -> None:
    """Centre dashes, edge lines, zebra crossings, stop lines, arrows. They are road."""
    white = (205, 205, 200) if st.marks % 3 else (170, 168, 160)
    yellow = (190, 165, 75)
    dash, gap = ((2.0, 4.0), (4.0, 2.0), (3.0, 3.0), (1.0, 5.0))[st.marks % 4]
    period = dash + gap
    first = math.floor(view.s / period) - 1
    if st.half > 2.8:
        for i in range(int(100 / period)):
            s = (first + i) * period
            strip(c, view, -0.06, 0.06, s, s + dash, white, None, 0.0, 225)
            if st.half > 6:
                for d in (-st.half / 2, st.half / 2):
                    strip(c, view, d - 0.06, d + 0.06, s, s + dash, white, None, 0.0, 215)
    if st.marks & 1:
        color = yellow if st.marks & 2 else white
        for side in (-1, 1):
            for off in (0.25, 0.5) if st.marks & 4 else (0.3,):
                d = side * (st.half - off)
                strip(c, view, d - 0.05, d + 0.05, view.s - 3, view.s + 120, color, None, 0.0, 190)
    first = int(math.floor(view.s / 40.0))
    for index in range(first - 1, first + 3):
        r = random.Random(st.seed * 411 + index * 3 + 1)
        kind, s = r.random(), index * 40.0 + between(r, 0, 25)
        if kind < 0.22:
            d = -st.half + 0.3
            while d < st.half - 0.4:
                strip(c, view, d, d + 0.5, s, s + 2.8, white, None, 0.0, 220)
                d += 1.0
        elif kind < 0.45:
            side = st.keep
            strip(c, view, 0.0, side * st.half, s, s + 0.3, white, None, 0.0, 220)
        elif kind < 0.65:
            d = st.keep * st.half * 0.5
            strip(c, view, d - 0.08, d + 0.08, s, s + 2.4, white, None, 0.0, 215)
            c.polygon(view.polygon([(d - 0.45, 0, s + 2.2), (d, 0, s + 4.0), (d + 0.45, 0, s + 2.2)]), white, None, 215)
        elif kind < 0.75:
            for i in range(9):
                strip(
                    c,
                    view,
                    -st.half * 0.5 + i * 0.4,
                    -st.half * 0.5 + i * 0.4 + 0.12,
                    s,
                    s + 1.6,
                    white,
                    None,
                    0.0,
                    205,
                )


def shadows(c: Canvas, view: View, st: Street, things: Sequence[Thing]) -> None:
    """Sun shadows of houses and trees on the ground, and the soft dark under cars."""
    if st.sunny > 0.2:
        alpha = int(70 + 90 * st.sunny)
        reach = 0.75
        dx, ds = math.cos(st.sun) * reach, math.sin(st.sun) * reach
        for o in things:
            if o.s - view.s > 90:
                continue
            if o.kind in ("terrace", "house", "far"):
                h, d = o.size, o.d
                if (d > 0) == (dx > 0):
                    continue
                ss = view.along(o.s, o.s1)
                if ss:
                    points = [(d, 0.05, s) for s in ss] + [(d + dx * h, 0.05, s + ds * h) for s in reversed(ss)]
                    c.polygon(view.polygon(points), DARK, None, alpha)
            elif o.kind == "tree":
                h = o.size
                middle = (o.d + dx * h * 0.8, o.s + ds * h * 0.8)
                r = random.Random(o.seed)
                for _ in range(7):
                    a, q = r.random() * 6.28, 0.28 * h * r.random() ** 0.5
                    m = (middle[0] + q * math.cos(a), middle[1] + q * math.sin(a))
                    round_ = [(m[0] + 0.14 * h * math.cos(k), 0.05, m[1] + 0.14 * h * math.sin(k)) for k in range(0, 7)]
                    c.polygon(view.polygon(round_), DARK, None, alpha // 2)
            elif o.kind in ("lamp", "mast", "sign", "person"):
                h = o.size
                thin = [(o.d - 0.07, 0.05, o.s), (o.d + 0.07, 0.05, o.s), (o.d + dx * h, 0.05, o.s + ds * h)]
                c.polygon(view.polygon(thin), DARK, None, alpha)
    for o in things:
        if o.kind == "car" and o.s - view.s < 90:
            for grow, alpha in ((0.25, 70), (0.0, 120)):
                strip(
                    c,
                    view,
                    o.d - 0.85 - grow,
                    o.d + 0.85 + grow,
                    o.s - grow,
                    o.s + 4.0 + grow,
                    (12, 12, 14),
                    None,
                    0.02,
                    alpha,
                )
