"""int8 convolutions in the native engine: which matrices are bytes, what a byte means, where they lie.

A byte matrix holds ``zero + q``: zero is 0 where no value is negative (it comes from a ReLU), which is the faster form
of the kernels, else 128. Only int8 convolutions write bytes; what a float32 layer makes is converted by a node of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from crispseg.engines.int8_rows import CONVERT, int8_rows, with_conversions
from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_memory import Slot
from crispseg.engines.native_plan import Buffer, Layout, Plan, cpu_layout, plan_buffers
from crispseg.errors import UnsupportedOp
from crispseg.plugins.loader import ConvInt8Arguments

SIGNED = 128
_WORD = 4  # bytes that the kernels read at once: rows begin at multiples of it
_WIDE, _APART = 1024, 64  # rows a power of two apart share few cache sets: wide ones get a cache line in between


@dataclass(frozen=True)
class ByteRows:
    """A value is ``step * (byte - zero)``."""

    step: float
    zero: int


def bytes_of(graph: Graph) -> Tuple[Graph, Dict[str, ByteRows]]:
    """The graph with its conversions, and what its byte matrices are; unchanged and nothing without int8 nodes."""
    quantised = [node for node in graph.nodes if node.attributes.get("x_scale")]
    if not quantised:
        return graph, {}
    makers = {name for node in quantised for name in node.outputs.values()}
    makers |= {node.outputs["y"] for node in graph.nodes if node.op == "Concat"}
    floats = set(graph.raw.outputs) | (set(graph.tensors) - makers)
    graph, steps = with_conversions(graph, int8_rows(graph.nodes, floats))
    zeros = _zeros(graph, steps)
    return graph, {name: ByteRows(step, zeros[name]) for name, step in steps.items()}


def _zeros(graph: Graph, steps: Mapping[str, float]) -> Dict[str, int]:
    """Byte that means 0 of every byte matrix; one for all that a Concat joins, as they share rows."""
    positive: Set[str] = set()
    for node in graph.nodes:
        if node.op == "SparseConv2d":
            positive |= {node.outputs["z1"], node.outputs["z2"]} | (
                {node.outputs["y"]} if node.attributes["relu"] else set()
            )
        elif node.op in ("Concat", CONVERT) and positive.issuperset(node.inputs.values()):
            positive.add(node.outputs["y"])
    zeros = {name: 0 if name in positive else SIGNED for name in steps}
    joins = [[*node.inputs.values(), node.outputs["y"]] for node in graph.nodes
             if node.op == "Concat" and node.outputs["y"] in steps]  # fmt: skip
    changed = True
    while changed:
        changed = False
        for names in joins:
            largest = max(zeros[name] for name in names)
            changed = changed or any(zeros[name] != largest for name in names)
            zeros.update((name, largest) for name in names)
    return zeros


def plan_memory(graph: Graph, rows: Mapping[str, ByteRows]) -> Tuple[Plan, List[Slot]]:
    """Places of all matrices and their empty slots: float32, or bytes of one zero."""
    floats = cpu_layout(graph)
    if not rows:
        plan = plan_buffers(graph)
        return plan, [Slot(pad) for pad in plan.pads]

    def zero(names: Sequence[str]) -> Any:
        return rows[names[0]].zero if names[0] in rows else None

    def size(buffer: Buffer, names: Sequence[str]) -> float:
        return floats.size(buffer, names) / (_WORD if names[0] in rows else 1)

    plan = plan_buffers(graph, Layout(floats.stride, floats.joins, size, zero))
    matrices: List[List[str]] = [[] for _ in plan.buffers]
    for name, place in plan.places.items():
        matrices[place.buffer].append(name)
    pads, zeros = list(plan.pads), [None] * len(plan.pads)  # type: Tuple[List[int], List[Any]]
    for buffer, names in zip(plan.buffers, matrices):
        zeros[buffer.slot] = zero(names)
        if names[0] in rows:
            columns = max(plan.places[name].offset + graph.tensors[name].columns for name in names)
            buffer.width = -(-columns // _WORD) * _WORD + (_APART if columns >= _WIDE else 0)
            pads[buffer.slot] = max(pads[buffer.slot], buffer.width)
    slots = [Slot(pad) if fill is None else Slot(pad, np.uint8, fill) for pad, fill in zip(pads, zeros)]
    return replace(plan, pads=tuple(pads)), slots


def int8_conv(
    graph: Graph, node: RawNode, rows: Optional[Mapping[str, ByteRows]], weight: int, keep: List[np.ndarray]
) -> ConvInt8Arguments:
    """What int8 adds to a convolution's arguments, and its packed weight; the rest of ``conv`` is left to the caller.

    Args:
        graph: with its scales.
        node: x_scale is set.
        rows: byte matrices.
        weight: address of the packed weight.
        keep: takes the scales of the columns, which the record points to.

    Raises:
        UnsupportedOp: there are no byte matrices: the graph did not go through ``bytes_of``.
    """
    if rows is None:
        raise UnsupportedOp("%s: node %r: expected byte matrices beside x_scale" % (graph.raw.path, node.name))
    a = ConvInt8Arguments()
    scale = np.float32(node.attributes["x_scale"]) * graph.raw.weight_scales[node.inputs["weight"]]
    keep.append(scale)
    a.conv.weight, a.scale, a.zero = weight, scale.ctypes.data, rows[node.inputs["x"]].zero
    for i, role in enumerate(("y", "z1", "z2")):
        made = rows.get(node.outputs[role])
        if made is not None:
            a.step[i], a.out_zero[i] = made.step, made.zero
    return a
