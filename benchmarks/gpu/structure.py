"""The convolutions of a SparseRefine U-Net as data, and the kernel maps they run on, without ONNX or PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One convolution. ``level``: that of the output rows. ``kind``: submanifold, down, up or identity (1x1).

    ``outputs``: pre-activation outputs z of the fused epilogue; ``y``: whether the raw sum is written too.
    """

    name: str
    kind: str
    level: int
    cin: int
    cout: int
    residual: bool = False
    outputs: int = 0
    y: bool = True


def layers(planes: Sequence[int], repeats: int, inputs: int = 3, classes: int = 19) -> List[Layer]:
    """The convolutions in the order in which they run."""
    found = [Layer("stem", "submanifold", 0, inputs, planes[0], outputs=1)]

    def block(name: str, level: int, cin: int, cout: int) -> None:
        if cin != cout:
            found.append(Layer(name + ".shortcut", "identity", level, cin, cout))
        found.append(Layer(name + ".conv1", "submanifold", level, cin, cout, outputs=1, y=False))
        found.append(Layer(name + ".conv2", "submanifold", level, cout, cout, residual=True, outputs=1))

    def walk(level: int) -> None:
        here = planes[level]
        for index in range(repeats):
            block("enc%d.%d" % (level, index), level, here, here)
        if level + 1 == len(planes):
            return
        found.append(Layer("down%d" % (level + 1), "down", level + 1, here, planes[level + 1], outputs=1))
        walk(level + 1)
        found.append(Layer("up%d" % level, "up", level, planes[level + 1], here, outputs=1))
        for index in range(repeats):
            block("dec%d.%d" % (level, index), level, 2 * here if index == 0 else here, here)

    walk(0)
    found.append(Layer("classifier", "identity", 0, planes[0], classes))
    return found


@dataclass(frozen=True)
class Level:
    """Sites int32 [N, 2] and maps: same [N, 9], and to the next level down [M, 9], up [N, 9] (None on the last)."""

    height: int
    width: int
    coords: np.ndarray
    same: np.ndarray
    down: Optional[np.ndarray] = None
    up: Optional[np.ndarray] = None


def pyramid(native: Any, coords: np.ndarray, height: int, width: int, levels: int, extent: str) -> List[Level]:
    """Maps of every level by the CPU library (``crispseg.plugins.native_ops``)."""
    from crispseg.plugins import native_ops as ops

    found: List[Level] = []
    for index in range(levels):
        same = ops.submanifold_map(native, coords, height, width)
        if index + 1 == levels:
            found.append(Level(height, width, coords, same))
            break
        below, down, up = ops.down_map(native, coords, height, width, extent)
        found.append(Level(height, width, coords, same, down, up))
        coords, height, width = below, max(0, (height - 1) // 2), max(0, (width - 1) // 2)
    return found


def table(levels: Sequence[Level], layer: Layer) -> Optional[np.ndarray]:
    """Kernel map of a layer, None for a 1x1 convolution."""
    if layer.kind == "submanifold":
        return levels[layer.level].same
    if layer.kind == "down":
        return levels[layer.level - 1].down
    if layer.kind == "up":
        return levels[layer.level].up
    return None


def rows_in(levels: Sequence[Level], layer: Layer) -> int:
    """Rows of a layer's input."""
    step = {"down": -1, "up": 1}.get(layer.kind, 0)
    return len(levels[layer.level + step].coords)


def macs(levels: Sequence[Level], layer: Layer, every_tap: bool = False) -> float:
    """Multiply-adds of a layer: of the taps that exist, or of all nine of every row."""
    entries = table(levels, layer)
    rows = len(levels[layer.level].coords)
    taps = rows if entries is None else entries.size if every_tap else int((entries >= 0).sum())
    return float(taps) * layer.cin * layer.cout
