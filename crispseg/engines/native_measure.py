"""Times the direct kernel and Winograd on tiles of 2x2 and 4x4 on the layers of a refiner, to choose one for each.

The sites are bands along the contours of a smooth field, as uncertain pixels lie along object boundaries, on the grids
of the refiner itself; weights and features are random, which does not change the time. One thread, process CPU time,
the kernels in turns, best of a few passes.
"""

from __future__ import annotations

import time
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from crispseg.engines import native_winograd
from crispseg.engines.native_check import Graph
from crispseg.engines.native_winograd import DIRECT, TILES, candidates
from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import Native

DENSITY = 0.12
PASSES = 3
GAIN = 1.05  # each is to be this much faster than those before it: it takes 16/9 or 36/9 of the memory

Progress = Callable[[int, Optional[int], str], None]


@dataclass(frozen=True)
class Choice:
    """The algorithm of one submanifold layer; times in ms of one frame, None when they were not measured."""

    node: str
    level: int
    cin: int
    cout: int
    algorithm: str
    direct_ms: Optional[float] = None
    winograd2_ms: Optional[float] = None
    winograd4_ms: Optional[float] = None


def rule(graph: Graph) -> List[Choice]:
    """Choices without timing: Winograd from MIN_CHANNELS channels on, its tiles by ``native_winograd.rule``."""
    wide = candidates(graph)
    out = []
    for index in candidates(graph, 1):
        algorithm = native_winograd.rule(graph, index) if index in wide else DIRECT
        out.append(Choice(graph.nodes[index].name, *_shape(graph, index), algorithm))
    return out


def measured(native: Native, graph: Graph, progress: Optional[Progress] = None) -> List[Choice]:
    """Choices by time; layers of fewer than MIN_CHANNELS channels, where Winograd never won, are not measured.

    Args:
        native: context of one thread.
        graph: the refiner.
        progress: called with (shapes measured, shapes in all, what is being done).
    """
    wide = candidates(graph)
    shapes = sorted({_shape(graph, index) for index in wide})
    grids = _levels(native, graph)
    times: Dict[Tuple[int, int, int], Dict[str, float]] = {}
    for number, shape in enumerate(shapes):
        if progress:
            progress(number, len(shapes), "level %d, %d to %d channels" % shape)
        times[shape] = _time(native, grids[shape[0]], *shape[1:])
    out = []
    for index in candidates(graph, 1):
        shape = _shape(graph, index)
        if index not in wide:
            out.append(Choice(graph.nodes[index].name, *shape, DIRECT))
            continue
        ms, chosen = times[shape], DIRECT
        for algorithm in TILES:
            if algorithm in ms and ms[chosen] >= GAIN * ms[algorithm]:
                chosen = algorithm
        told: Any = {name + "_ms": round(value, 4) for name, value in ms.items()}
        out.append(Choice(graph.nodes[index].name, *shape, chosen, **told))
    return out


def bands(height: int, width: int, density: float = DENSITY) -> np.ndarray:
    """int32 [N, 2]: sites in bands some pixels wide, ``density`` of all; the same for the same size."""
    rng = np.random.default_rng(0)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    field = np.zeros((height, width), np.float32)
    for _ in range(12):
        angle, length, phase = rng.uniform(0, np.pi), rng.uniform(90, 420), rng.uniform(0, 2 * np.pi)
        turn = np.float32(2 * np.pi / length)
        field += np.float32(length) * np.cos((x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) * turn
                                             + np.float32(phase))  # fmt: skip
    slope = [np.diff(field, axis=axis, append=field.take([-1], axis)) for axis in (0, 1)]
    distance = np.abs(field) / (np.hypot(*slope) + np.float32(1e-3))
    active = distance <= np.quantile(distance[:: max(1, height // 256)], density)
    return np.argwhere(active).astype(np.int32, order="C")


def _shape(graph: Graph, index: int) -> Tuple[int, int, int]:
    node = graph.nodes[index]
    _, cin, cout = graph.raw.constants[node.inputs["weight"]].shape
    return graph.tensors[node.inputs["x"]].level, int(cin), int(cout)


@dataclass(frozen=True)
class _Level:
    table: np.ndarray
    order: np.ndarray
    tiles: Dict[str, ops.Tiles]


def _levels(native: Native, graph: Graph) -> List[_Level]:
    """Maps and plans of every level."""
    extents = [node.attributes["extent"] for node in graph.nodes if node.op == "DownMap"]
    coords, out = bands(graph.height, graph.width), []
    for level, grid in enumerate(graph.grids):
        table = ops.submanifold_map(native, coords, *grid)
        tiles = {name: ops.winograd_plan(native, coords, *grid, side) for name, side in TILES.items()}
        out.append(_Level(table, ops.plan_map(native, table), tiles))
        if level + 1 < len(graph.grids):
            coords = ops.down_map(native, coords, *grid, extents[level])[0]
    return out


def _time(native: Native, level: _Level, cin: int, cout: int) -> Dict[str, float]:
    """Best ms by algorithm."""
    rng = np.random.default_rng(0)
    n = len(level.table)
    x = ops.feature_matrix(n, cin, cin + (16 if cin >= 256 else 0))
    x[:] = rng.standard_normal(x.shape, dtype=np.float32)
    weight = rng.standard_normal((9, cin, cout), dtype=np.float32)
    packed = [ops.pack_weight(native, weight), *(ops.pack_winograd(native, weight, side) for side in TILES.values())]
    options: Any = {"n_out": n, "relu": True, "y": np.zeros((n, cout), np.float32)}
    direct = ops.conv_arguments(x, packed[0], level.table, order=level.order, **options)
    jobs: Dict[str, Callable[[], None]] = {DIRECT: lambda: native.call("cs_sparse_conv", byref(direct))}
    for name, transformed in zip(TILES, packed[1:]):
        arguments = ops.conv_arguments(x, transformed, **options)
        jobs[name] = lambda a=arguments, t=level.tiles[name]: ops.winograd_conv(native, a, t)  # type: ignore[misc]
    best = {name: float("inf") for name in jobs}
    for turn in range(PASSES + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:  # the first turn warms up
                best[name] = min(best[name], (time.process_time() - start) * 1e3)
    return best
