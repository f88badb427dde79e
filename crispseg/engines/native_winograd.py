"""Which convolutions of a refiner run by Winograd's algorithm, and the tile plans that they share.

Which ones may is fixed when the engine is compiled or loaded. Whether those of a level do follows the frame: where
sites lie apart, the direct kernel is up to ten times as fast, so every weight is there in its form too.
"""

from __future__ import annotations

import ctypes
import os
from typing import Dict, List, Mapping, Optional, Tuple

import numpy as np

from crispseg.engines.native_check import Graph
from crispseg.engines.native_memory import Room
from crispseg.errors import InputError
from crispseg.plugins.loader import ConvArguments, Native

ENVIRONMENT = "CRISPSEG_WINOGRAD"
DIRECT = "direct"
TILES = {"winograd2": 2, "winograd4": 4}
"""Algorithm -> side of its tiles: F(2x2,3x3) and F(4x4,3x3)."""
MIN_CHANNELS = 32
"""Fewest input and output channels. On bands of 6..10 pixels Winograd is 1.2 to 1.6 times as fast as the direct kernel
from 32 to 1024 channels, with AVX-512, AVX2 and generic vectors (benchmarks/native_ops.py); a stem of 3 is not."""
LARGE_WEIGHT = 512 * 512
"""Input times output channels beyond which the rule stays with tiles of 2x2: those of 4x4 would take 360 MiB more for
the default refiner and make it 1.06 times as fast. A measured plan may have them."""
PAIRS_PER_PRODUCT = {2: 1.1, 4: 1.3}
"""Side of a tile -> pairs (site, neighbour) per product from which Winograd pays: the direct kernel multiplies pairs,
Winograd 16 or 36 products a tile. Measured break-even, 64 and 256 channels: 1.0 and 1.1 on noise, 1.2 and 1.4
on bands."""


def candidates(graph: Graph, least: int = 0) -> List[int]:
    """Index of every 3x3 submanifold convolution of at least so many channels (0 = MIN_CHANNELS), without int8 ones."""
    least = least or MIN_CHANNELS
    tables = {node.outputs["map"] for node in graph.nodes if node.op == "SubmanifoldMap"}
    found = []
    for index, node in enumerate(graph.nodes):
        if node.op == "SparseConv2d" and node.inputs["map"] in tables and not node.attributes["x_scale"]:
            _, cin, cout = graph.raw.constants[node.inputs["weight"]].shape
            if min(cin, cout) >= least:
                found.append(index)
    return found


def choose(graph: Graph, algorithms: Optional[Mapping[str, str]] = None) -> Dict[int, str]:
    """Node index -> algorithm (of ``TILES``) of the convolutions that run by Winograd's.

    ``algorithms``: node name -> algorithm, of a compiled engine, passed over where a shortcut was taken in (a second
    source is the direct kernel's alone); None: all ``candidates`` by ``rule``, or as $CRISPSEG_WINOGRAD says: "0" =
    none, "1" = every 3x3 submanifold convolution, on any frame, "2" = tiles of 2x2 only.

    Raises:
        InputError: another value of $CRISPSEG_WINOGRAD.
    """
    if algorithms is not None:
        single = [index for index in candidates(graph, 1) if not graph.nodes[index].inputs.get("x2")]
        named = {index: algorithms.get(graph.nodes[index].name, DIRECT) for index in single}
        return {index: algorithm for index, algorithm in named.items() if algorithm in TILES}
    mode = forced()
    if mode == "0":
        return {}
    wide = candidates(graph, 1 if mode == "1" else 0)
    return {index: "winograd2" if mode == "2" else rule(graph, index) for index in wide}


def rule(graph: Graph, index: int) -> str:
    """The algorithm of a candidate when nothing was timed: tiles of 4x4 for weights up to ``LARGE_WEIGHT``."""
    _, cin, cout = graph.raw.constants[graph.nodes[index].inputs["weight"]].shape
    return "winograd4" if cin * cout <= LARGE_WEIGHT else "winograd2"


def forced() -> str:
    """$CRISPSEG_WINOGRAD. Raises InputError for a value it does not have."""
    mode = os.environ.get(ENVIRONMENT, "")
    if mode not in ("", "0", "1", "2"):
        raise InputError("%s: expected 0, 1, 2 or nothing, found %r" % (ENVIRONMENT, mode))
    return mode


class Tiles:
    """The tile plan of one kernel map and one size of tiles, made once a frame.

    Args:
        algorithm: of ``TILES``.
        weights: node index -> address of the transformed weights.
    """

    def __init__(self, algorithm: str, weights: Dict[int, int]) -> None:
        self.algorithm = algorithm
        self.weights = weights
        self.used = False  # on this frame
        self._side = TILES[algorithm]
        self._always = forced() == "1"
        self._inputs, self._outputs = Room(np.int32), Room(np.int32)
        self._count = 0

    def plan(self, native: Native, coords: int, n: int, grid: Tuple[int, int]) -> None:
        """For ``n`` sites at ``coords`` (address of int32 [n, 2]) of a grid (rows, columns)."""
        side = self._side
        room = min(n, -(-grid[0] // side) * -(-grid[1] // side))
        count, pairs = np.zeros(1, np.int32), np.zeros(1, np.int64)
        inputs, outputs = self._inputs.ensure((side + 2) ** 2 * room), self._outputs.ensure(side**2 * room)
        native.call("cs_winograd_plan", coords, n, *grid, side, inputs, outputs, count.ctypes.data, pairs.ctypes.data)
        self._count = int(count[0])
        products = (side + 2) ** 2 * self._count
        self.used = self._always or int(pairs[0]) >= PAIRS_PER_PRODUCT[side] * products

    def run(self, native: Native, index: int, arguments: ConvArguments) -> bool:
        """Run a convolution of this map on the frame's plan; False (and nothing done) when the direct kernel should."""
        address = self.weights.get(index)
        if not address or (not self.used and arguments.weight):
            return False
        mine = ConvArguments.from_buffer_copy(arguments)
        mine.weight = address
        tiles = self._inputs.address, self._outputs.address, self._count
        native.call("cs_winograd_conv", ctypes.byref(mine), self._side, *tiles)
        return True

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._inputs.nbytes + self._outputs.nbytes
