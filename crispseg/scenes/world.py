"""What stands where: a street and everything along it, decided by the seed alone.

The street is endless: it is made in chunks of ``CHUNK`` metres, each with its own random numbers, so that a moving
camera meets the same things at whatever frame it is asked for.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import List, Sequence, Tuple, TypeVar

CHUNK = 24.0
SLOT = 2.5

T = TypeVar("T")
Rgb = Tuple[int, int, int]


def pick(r: random.Random, options: Sequence[T]) -> T:
    """One of the options; only ``random()`` is used, which every Python version computes alike."""
    return options[int(r.random() * len(options))]


def between(r: random.Random, low: float, high: float) -> float:
    """A uniform number in low..high."""
    return low + (high - low) * r.random()


@dataclass(frozen=True)
class Street:
    """The fixed facts of a scene. Lengths in metres, angles in radians, colours 0..255."""

    seed: int
    half: float
    walk_left: float
    walk_right: float
    keep: int
    lane: float
    drift: float
    focal: float
    horizon: float
    eye: float
    bend: float
    yaw: float
    start: float
    speed: float
    sun: float
    sunny: float
    sky_top: Rgb
    sky_low: Rgb
    clouds: float
    asphalt: Rgb
    slabs: Rgb
    grass: Rgb
    leaf: Rgb
    leafy: float
    haze: float
    district: Tuple[float, ...]
    traffic: float
    parked: float
    parked_side: int
    people: float
    gain: float
    contrast: float
    balance: Rgb
    marks: int


@dataclass(frozen=True)
class Thing:
    """One object: its kind, its place (near end s, far end s1, lateral d) and the seed of its looks."""

    kind: str
    s: float
    d: float
    seed: int
    s1: float = 0.0
    size: float = 1.0
    speed: float = 0.0


LOTS = ("terrace", "house", "park", "yard", "side")


@functools.lru_cache(maxsize=8)
def street(seed: int) -> Street:
    """The street of a seed."""
    r = random.Random(seed * 7919 + 13)
    parked = between(r, 0.1, 1.0) if r.random() < 0.6 else 0.0
    lines = pick(r, (-1, 1, 1, 0, 0))
    half = between(r, 3.0, 4.6) if r.random() < 0.7 else between(r, 4.6, 8.0)
    keep = -1 if r.random() < 0.7 else 1
    if parked > 0:
        half = max(half + 0.8, 4.1)
    lane = keep * max(0.95, 0.5 * (half - (2.0 if parked > 0 else 0.3)))
    sunny = between(r, 0.4, 1.0) if r.random() < 0.55 else 0.0
    blue = r.random()
    if sunny > 0:
        top, low = (90 + int(90 * blue), 150 + int(60 * blue), 215 + int(35 * blue)), (225, 240, 252)
    else:
        g = int(between(r, 205, 255))
        top, low = (g - 12, g - 5, min(255, g + 2)), (min(255, g + 22), min(255, g + 25), min(255, g + 28))
    grey = between(r, 62, 125)
    warm = between(r, -6, 6)
    weights = [r.random() ** 2 + 0.05, r.random() ** 2 * 0.8, r.random() ** 2 * 0.8, r.random() ** 3 * 0.5, 0.08]
    total = sum(weights)
    dusk = r.random() < 0.12
    return Street(
        seed=seed,
        half=half,
        walk_left=between(r, 1.6, 5.2),
        walk_right=between(r, 1.6, 5.2),
        keep=keep,
        lane=lane,
        drift=between(r, -0.35, 0.25),
        focal=between(r, 1.0, 1.45),
        horizon=between(r, 0.44, 0.58),
        eye=between(r, 1.1, 1.7),
        bend=0.0 if r.random() < 0.4 else between(r, -0.006, 0.006),
        yaw=between(r, -0.06, 0.06) if r.random() < 0.75 else between(r, -0.42, 0.42),
        start=between(r, 0.0, 400.0),
        speed=between(r, 4.0, 11.0),
        sun=between(r, 0.0, 2 * math.pi),
        sunny=sunny,
        sky_top=top,
        sky_low=low,
        clouds=between(r, 0.2, 1.0) if r.random() < 0.7 else 0.0,
        asphalt=(int(grey + warm), int(grey + 1), int(grey + 4 - warm)),
        slabs=pick(r, ((128, 122, 112), (104, 104, 106), (140, 136, 128), (122, 104, 92))),
        grass=pick(r, ((78, 98, 48), (96, 108, 62), (62, 84, 40), (110, 112, 72))),
        leaf=pick(r, ((62, 82, 42), (48, 62, 34), (84, 96, 50), (96, 84, 44), (44, 70, 40), (112, 92, 60))),
        leafy=between(r, 0.1, 1.0),
        haze=between(r, 0.0, 0.9),
        district=tuple(w / total for w in weights),
        traffic=between(r, 0.1, 1.0),
        parked=parked,
        parked_side=lines,
        people=between(r, 0.2, 1.0),
        gain=between(r, 0.4, 0.7) if dusk else between(r, 0.75, 1.12),
        contrast=between(r, 0.9, 1.35),
        balance=(int(between(r, 92, 108)), 100, int(between(r, 92, 110))),
        marks=int(r.random() * 8),
    )


@functools.lru_cache(maxsize=64)
def chunk(seed: int, index: int) -> Tuple[Thing, ...]:
    """Everything standing in CHUNK*index .. CHUNK*(index+1) on both sides."""
    st = street(seed)
    out: List[Thing] = []
    for side in (-1, 1):
        r = random.Random(((seed * 1000003 + index) * 2 + (side > 0)) * 31 + 7)
        walk = st.walk_left if side < 0 else st.walk_right
        edge = st.half + walk
        s = index * CHUNK
        cuts = pick(r, ((24.0,), (12.0, 12.0), (8.0, 16.0), (15.0, 9.0), (8.0, 8.0, 8.0), (10.0, 7.0, 7.0)))
        for length in cuts:
            out += _lot(st, r, side, s, s + length, edge)
            s += length
        out += _furniture(st, r, side, index * CHUNK, walk)
    return tuple(out)


def _new(r: random.Random) -> int:
    return int(r.random() * 2**31)


def _lot(st: Street, r: random.Random, side: int, s0: float, s1: float, edge: float) -> List[Thing]:
    out: List[Thing] = []
    mark = r.random()
    kind = LOTS[-1]
    for name, weight in zip(LOTS, st.district):
        if mark < weight:
            kind = name
            break
        mark -= weight
    out.append(Thing("ground:" + kind, s0, side * edge, _new(r), s1))
    if kind == "terrace":
        back = edge + pick(r, (0.0, 0.0, 0.0, 0.8))
        out.append(Thing("terrace", s0, side * back, _new(r), s1, between(r, 5.5, 15.0)))
        return out
    if kind == "side":
        out.append(Thing("far", s0, side * (edge + 22), _new(r), s1, between(r, 6, 12)))
        return out
    border = pick(r, ("bars", "pickets", "hedge", "wall", "bars", "pickets", "rails", "mesh"))
    if border != "none":
        s = s0
        while s < s1 - 0.1:
            if not (kind == "house" and s - s0 < 2.0):
                out.append(Thing(border, s, side * edge, st.seed + int(s0), min(s + SLOT, s1)))
            s += SLOT
    if kind == "house":
        out.append(
            Thing(
                "house",
                s0 + between(r, 0.3, 1.5),
                side * (edge + between(r, 3, 7)),
                _new(r),
                s1 - between(r, 0.3, 2.0),
                between(r, 5.0, 7.5),
            )
        )
        for _ in range(int(r.random() * 3)):
            out.append(
                Thing("tree", between(r, s0, s1), side * (edge + between(r, 1, 3)), _new(r), 0, between(r, 2.5, 7))
            )
        for _ in range(int(r.random() * 4)):
            out.append(
                Thing("bush", between(r, s0, s1), side * (edge + between(r, 0.8, 2)), _new(r), 0, between(r, 0.8, 1.8))
            )
        return out
    if kind == "yard":
        out.append(Thing("far", s0, side * (edge + between(r, 9, 20)), _new(r), s1, between(r, 5, 14)))
        for _ in range(int(r.random() * 3)):
            out.append(Thing("car", between(r, s0, s1), side * (edge + between(r, 3, 8)), _new(r)))
        return out
    out.append(Thing("woods", s0, side * (edge + between(r, 14, 26)), _new(r), s1, between(r, 6, 12)))
    for _ in range(1 + int(r.random() * 5)):
        out.append(
            Thing("tree", between(r, s0, s1), side * (edge + between(r, 1.0, 14)), _new(r), 0, between(r, 4, 13))
        )
    return out


def _furniture(st: Street, r: random.Random, side: int, s0: float, walk: float) -> List[Thing]:
    """Poles, signs, trees, parked cars and people on one pavement of one chunk."""
    out: List[Thing] = []
    kerb = st.half + 0.45

    def at() -> float:
        return s0 + CHUNK * r.random()

    if r.random() < 0.75:
        out.append(
            Thing(
                "lamp",
                at(),
                side * (kerb if r.random() < 0.7 else st.half + walk - 0.2),
                _new(r),
                0,
                between(r, 5, 9.5),
            )
        )
    if r.random() < 0.35:
        out.append(Thing("mast", at(), side * (st.half + walk - 0.25), _new(r), 0, between(r, 6, 9)))
    for _ in range(int(r.random() * 3.4)):
        out.append(Thing("sign", at(), side * kerb, _new(r), 0, between(r, 2.0, 3.2)))
    if r.random() < 0.3:
        out.append(Thing("lights", at(), side * kerb, _new(r), 0, between(r, 2.9, 3.8)))
    if r.random() < 0.2:
        first = at()
        for i in range(2 + int(r.random() * 4)):
            out.append(Thing("bollard", first + 1.6 * i, side * (kerb - 0.1), st.seed, 0, 1.0))
    if r.random() < 0.18:
        first = at()
        for i in range(4):
            out.append(Thing("rails", first + SLOT * i, side * (st.half + 0.25), st.seed + 5, first + SLOT * (i + 1)))
    if walk > 1.8 and r.random() < 0.3 + 0.3 * st.leafy:
        out.append(Thing("tree", at(), side * (kerb + 0.4), _new(r), 0, between(r, 5, 11)))
    if r.random() < 0.05:
        out.append(Thing("shelter", at(), side * (kerb + 0.6), _new(r)))
    for i in range(4):
        if st.parked_side in (0, side) and r.random() < st.parked * 0.8:
            out.append(Thing("car", s0 + 6.0 * i + between(r, 0, 1.2), side * (st.half - 1.05), _new(r)))
    for _ in range(int(r.random() * 7.5 * st.people)):
        out.append(
            Thing(
                "person",
                at(),
                side * (st.half + between(r, 0.5, max(0.7, walk - 0.3))),
                _new(r),
                0,
                between(r, 1.5, 1.9),
                between(r, 0.5, 1.6) * pick(r, (-1, 1, 0)),
            )
        )
    if r.random() < 0.12 * st.people:
        out.append(Thing("person", at(), between(r, -st.half, st.half), _new(r), 0, between(r, 1.5, 1.9), 0.3))
    if r.random() < 0.28:
        out.append(Thing("cyclist", at(), side * (st.half - between(r, 0.4, 1.2)), _new(r), 0, 1.0, 0.0))
    if r.random() < 0.15:
        out.append(Thing("cyclist", at(), side * (st.half + 0.8), _new(r), 0, 1.0, 0.0))
    return out


def moving(st: Street, t: float, camera: float) -> List[Thing]:
    """Traffic at frame time t (seconds): oncoming vehicles, the ones ahead, and cyclists. s is wrapped ahead."""
    r = random.Random(st.seed * 65537 + 3)
    out: List[Thing] = []
    span = 190.0
    lane = st.lane
    edge = st.half - (2.0 if st.parked > 0 else 0.0)
    for _ in range(int(st.traffic * 6 * r.random() + 0.5)):
        first, speed = span * r.random(), -between(r, 5, 12)
        where = (first + speed * t - (camera - st.start)) % span
        out.append(Thing("car", camera - 12 + where, -lane, _new(r), 0, 1.0, -1.0))
    if r.random() < 0.55 * st.traffic + 0.1:
        gap = between(r, 7, 30) + 1.5 * math.sin(0.5 * t + 6 * r.random())
        out.append(Thing("car", camera + gap, lane, _new(r), 0, 1.0, 1.0))
        out.append(Thing("car", camera + gap + between(r, 8, 30), lane, _new(r), 0, 1.0, 1.0))
    for _ in range(int(r.random() * 2.6)):
        gap = between(r, 6, 40) + 1.0 * math.sin(0.4 * t + 6 * r.random())
        out.append(Thing("cyclist", camera + gap, st.keep * (edge - between(r, 0.3, 0.9)), _new(r), 0, 1.0, 4.0))
    return out


def visible(st: Street, t: float, camera: float, far: float) -> List[Thing]:
    """Everything between just behind the camera and ``far`` metres ahead, sorted far to near for painting."""
    things: List[Thing] = []
    for index in range(int(math.floor((camera - 26) / CHUNK)), int(math.floor((camera + far) / CHUNK)) + 1):
        things.extend(chunk(st.seed, index))
    things.extend(moving(st, t, camera))
    return sorted(things, key=lambda o: _order(o, t))


def _order(o: Thing, t: float) -> Tuple[float, float]:
    if o.kind in ("terrace", "house", "far", "woods"):
        return -math.floor(o.s1 / SLOT) - 1, -abs(o.d)
    s = o.s + o.speed * t if o.kind == "person" else o.s
    return -math.floor(s / SLOT), -abs(o.d)
