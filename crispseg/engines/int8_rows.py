"""Which matrices of an int8 refiner are held as int8, and where float rows have to be converted.

A matrix may be int8 when everything that reads it is an int8 convolution with one scale (op contract, docs/bundle.md):
whoever makes it then rounds it on the way out, and nobody converts anything. Rows that somebody else reads too (a
residual, a convolution that stayed float, an output of the graph) are kept as floats, and an int8 convolution gets a
copy of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Dict, List, Optional, Sequence, Set, Tuple

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode

CONVERT = "ConvertRows"  # not in the contract: one float matrix -> its int8 copy


def int8_rows(nodes: Sequence[RawNode], outputs: Collection[str]) -> Dict[str, float]:
    """Matrices to hold as int8.

    Args:
        nodes: of the graph, in the order in which they run.
        outputs: of the graph; they stay floats.

    Returns:
        name -> scale: a value is scale * (-127..127).
    """
    readers: Dict[str, List[Tuple[RawNode, str]]] = {}
    for node in nodes:
        for role, name in node.inputs.items():
            readers.setdefault(name, []).append((node, role))
    floats: Set[str] = set(outputs)
    while True:
        wanted = _wanted(nodes, readers, floats)
        # A Concat with an input that cannot be int8 is float, and then so are its other inputs.
        mixed = {node.outputs["y"] for node in nodes if node.op == "Concat" and node.outputs["y"] in wanted
                 and any(name not in wanted for name in node.inputs.values())}  # fmt: skip
        if not mixed:
            return wanted
        floats |= mixed


def _wanted(
    nodes: Sequence[RawNode], readers: Dict[str, List[Tuple[RawNode, str]]], floats: Collection[str]
) -> Dict[str, float]:
    """What the readers alone say, from the last node to the first."""
    wanted: Dict[str, float] = {}
    for node in reversed(nodes):
        if node.op not in ("SparseConv2d", "Concat"):
            continue
        for name in node.outputs.values():
            scales = {_scale(reader, role, wanted) for reader, role in readers.get(name, [])} if name else set()
            if name not in floats and len(scales) == 1:
                (scale,) = scales
                if scale:
                    wanted[name] = scale
    return wanted


def _scale(reader: RawNode, role: str, wanted: Dict[str, float]) -> Optional[float]:
    """Scale with which a reader takes a matrix as int8, None when it reads floats."""
    if reader.op == "Concat":
        return wanted.get(reader.outputs["y"])
    if reader.op == "SparseConv2d" and role == "x":
        return reader.attributes["x_scale"] or None
    return None


def with_conversions(graph: Graph, rows: Dict[str, float]) -> Tuple[Graph, Dict[str, float]]:
    """Give every int8 convolution that would read floats a converted copy.

    Args:
        graph: checked.
        rows: from :func:`int8_rows`.

    Returns:
        The graph with nodes of op ``CONVERT`` (inputs ``x``, outputs ``y``, attribute ``scale``) in front of the first
        reader of each copy, and ``rows`` with the copies.
    """
    made, tensors = dict(rows), dict(graph.tensors)
    copies: Dict[Tuple[str, float], str] = {}
    nodes: List[RawNode] = []
    for node in graph.nodes:
        scale, name = node.attributes.get("x_scale", 0.0), node.inputs.get("x", "")
        if node.op == "SparseConv2d" and scale and name not in rows:
            if (name, scale) not in copies:
                copy = copies[name, scale] = "%s#int8.%d" % (name, len(copies))
                made[copy], tensors[copy] = scale, tensors[name]
                nodes.append(RawNode(copy, CONVERT, {"x": name}, {"y": copy}, {"scale": scale}))
            node = replace(node, inputs={**node.inputs, "x": copies[name, scale]})
        nodes.append(node)
    return replace(graph, raw=replace(graph.raw, nodes=tuple(nodes)), tensors=tensors), made
