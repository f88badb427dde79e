"""One frame of a scene: camera pose, painting order, photograph and labels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Tuple

import numpy as np

from crispseg.errors import InputError
from crispseg.scenes import ground, houses, roadside, texture, traffic
from crispseg.scenes.camera import FAR, View
from crispseg.scenes.canvas import SUPER, Canvas
from crispseg.scenes.finish import photograph, reduce_labels
from crispseg.scenes.world import Street, street, visible

FPS = 25.0
SMALLEST = 32
LARGEST = 8192
DETAIL = 105.0

_PAINTERS = {
    "terrace": houses.building,
    "house": houses.building,
    "far": houses.far_block,
    "woods": houses.woods,
    "wall": houses.wall,
    "hedge": houses.wall,
    "bars": houses.fence,
    "pickets": houses.fence,
    "rails": houses.fence,
    "mesh": houses.fence,
    "lamp": roadside.lamp,
    "mast": roadside.mast,
    "sign": roadside.sign,
    "lights": roadside.traffic_light,
    "bollard": roadside.bollard,
    "shelter": roadside.shelter,
    "bush": roadside.bush,
    "tree": roadside.tree,
    "car": traffic.car,
}
_SMALL = frozenset(
    ("wall", "hedge", "bars", "pickets", "rails", "mesh", "sign", "lights", "bollard", "bush", "person", "cyclist")
)


@dataclass(frozen=True)
class Scene:
    """A scene of a seed at a size; ``frame(t)`` draws it. ``t`` counts frames of a 25 fps camera and may be a float."""

    seed: int
    height: int
    width: int

    def frame(self, t: float = 0.0) -> Tuple[np.ndarray, np.ndarray]:
        """As :func:`render`."""
        return render(self.seed, t, self.height, self.width)


def check_size(height: int, width: int) -> None:
    """Raise InputError for a size that cannot be drawn."""
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise InputError(
            f"scene size: expected height and width in {SMALLEST}..{LARGEST}, found {height} x {width}; "
            "choose another size"
        )


def view_at(st: Street, t: float, height: int, width: int) -> View:
    """The camera of frame t over the supersampled canvas of an image of height x width pixels."""
    seconds = t / FPS
    r = random.Random(st.seed + 77)
    sway = 0.12 * math.sin(0.35 * seconds + 6.28 * r.random())
    nod = 0.004 * math.sin(1.7 * seconds + 6.28 * r.random())
    return View(
        width * SUPER,
        height * SUPER,
        st.focal * height * SUPER,
        (st.horizon + nod) * height * SUPER,
        st.lane + st.keep * st.drift + sway,
        st.eye,
        st.start + st.speed * seconds,
        st.bend,
        st.yaw + 0.01 * math.sin(0.23 * seconds + 6.28 * r.random()),
    )


def render(seed: int, t: float, height: int, width: int) -> Tuple[np.ndarray, np.ndarray]:
    """Draw frame ``t`` of the scene of ``seed``.

    Returns the image [height,width,3] uint8 RGB and the labels [height,width] uint8 (0..10, 255 = undecided).
    The same arguments give the same arrays. Raises InputError for a size outside 32..8192.
    """
    check_size(height, width)
    seed = int(seed) % (1 << 31)
    st = street(seed)
    view = view_at(st, float(t), height, width)
    seconds = float(t) / FPS
    c = Canvas(width * SUPER, height * SUPER)
    drift = 0.3 * seconds
    tall = max(8, int(view.cy) + 4)
    above = texture.sky(c.width, tall, st.sky_top, st.sky_low, st.clouds, drift, random.Random(seed + 5))
    c.image.paste(above, (0, 0))
    things = visible(st, seconds, view.s, FAR * 0.7)
    ground.horizon(c, view, st)
    ground.surface(c, view, st, things)
    ground.shadows(c, view, st, things)
    for o in things:
        if o.s - view.s > DETAIL and o.kind in _SMALL:
            continue
        paint = _PAINTERS.get(o.kind)
        if paint is not None:
            paint(c, view, st, o)
        elif o.kind == "person":
            traffic.person(c, view, st, o, seconds)
        elif o.kind == "cyclist":
            traffic.cyclist(c, view, st, o, seconds)
    labels = reduce_labels(np.asarray(c.labels))
    return photograph(c.image, labels, view, st, float(t)), labels
