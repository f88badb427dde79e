"""Takes the 1x1 shortcuts of residual blocks into the convolutions that add them.

Where a residual block changes its channels, its shortcut is a 1x1 convolution whose only reader is the residual input
of the block's last convolution. Where that one runs by the direct kernel, it reads the shortcut's input as a second
source, one more tap of its sum, so that the shortcut's matrix is neither written nor read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Dict, List, Set

import numpy as np

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_winograd import choose

MAX_TAPS = 31  # of the convolution that takes a second source
MAX_COLUMNS = 256
"""Widest shortcut that is taken in. Measured on layers of a 1024x2048 frame, C columns from 2 C channels: convolution
and shortcut together gain 2 to 7 % up to 256 columns, nothing beyond. Winograd would multiply the second source for
every pixel of a tile, active or not: on tiles of 4x4 12 to 20 % slower than apart, so it takes none.
"""


def fuse_shortcuts(graph: Graph) -> Graph:
    """The graph without such shortcuts; their readers get the inputs ``x2`` and ``weight2`` and no ``residual``.

    float32 convolutions of the direct kernel only: an int8 sum cannot take a second scale. A bias of the shortcut is
    added to that of its reader, as a new constant.
    """
    by_winograd = choose(graph)
    reads = Counter(name for node in graph.nodes for name in node.inputs.values())
    reads.update(graph.raw.outputs)
    shortcuts = {
        node.outputs["y"]: node for node in graph.nodes if _is_shortcut(node) and reads[node.outputs["y"]] == 1
    }
    constants = dict(graph.raw.constants)
    gone: Set[str] = set()
    readers: Dict[str, RawNode] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "SparseConv2d" or node.attributes["x_scale"] or node.inputs["residual"] not in shortcuts:
            continue
        if index in by_winograd:
            continue
        taps, _, columns = constants[node.inputs["weight"]].shape
        if taps > MAX_TAPS or columns > MAX_COLUMNS:
            continue
        shortcut = shortcuts[node.inputs["residual"]]
        biases = [constants[part.inputs["bias"]] for part in (shortcut, node) if part.inputs["bias"]]
        inputs = {**node.inputs, "residual": "", "x2": shortcut.inputs["x"], "weight2": shortcut.inputs["weight"]}
        if biases:
            inputs["bias"] = "%s#bias" % node.name
            constants[inputs["bias"]] = np.sum(biases, axis=0, dtype=np.float32).reshape(columns)
        gone.add(shortcut.name)
        readers[node.name] = replace(node, inputs=inputs)
    if not gone:
        return graph
    nodes: List[RawNode] = [readers.get(node.name, node) for node in graph.nodes if node.name not in gone]
    return replace(graph, raw=replace(graph.raw, nodes=tuple(nodes), constants=constants))


def _is_shortcut(node: RawNode) -> bool:
    """A plain float32 1x1 convolution: no map, no residual, no ReLU, y alone."""
    if node.op != "SparseConv2d" or node.attributes["x_scale"] or node.attributes["relu"]:
        return False
    plain = not (node.inputs["map"] or node.inputs["residual"] or node.outputs["z1"] or node.outputs["z2"])
    return plain and bool(node.outputs["y"])
