"""Types and memory of a refiner on the GPU: which matrix is of which type, where it lies, how many rows a level holds.

Everything is decided when the refiner is loaded: rows are bounded by the capacity of level 0 and by the grids of the
coarser levels, so memory has a fixed size and no frame allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_plan import Buffer, Layout, Plan, plan_buffers
from crispseg.errors import UnsupportedOp

ITEM_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_VECTOR_BYTES = 16  # rows and their slices begin at multiples of it
_LOGIT_READERS = {"EnsembleLogits.yo", "ScatterLabels.ye"}
_DEPTH = {"fp32": 1, "fp16": 16, "int8": 32}  # columns that a convolution reads at once: past the last there are zeros
_STRIDE = 16


@dataclass(frozen=True)
class DevicePlan:
    """``types``: matrix -> "fp32", "fp16" or "int8". ``capacities[level]``: most rows. ``slot_bytes[slot]``: of a slot.

    ``zeroed``: slots that are filled with zeros at load; the columns that nobody writes keep them. ``scales``: of the
    int8 matrices.
    """

    types: Dict[str, str]
    plan: Plan
    capacities: Tuple[int, ...]
    slot_bytes: Tuple[int, ...]
    zeroed: FrozenSet[int]
    scales: Mapping[str, float] = field(default_factory=dict)

    def place(self, name: str) -> Tuple[int, int, int]:
        """(slot, offset in bytes, row stride in elements) of a matrix."""
        place = self.plan.places[name]
        buffer = self.plan.buffers[place.buffer]
        return buffer.slot, ITEM_BYTES[self.types[name]] * place.offset, buffer.width


def float_type(precision: str) -> str:
    """Type of what is not int8."""
    return "fp32" if precision == "fp32" else "fp16"


def conv_type(node: RawNode, precision: str) -> str:
    """Arithmetic of a convolution."""
    return "int8" if node.attributes["x_scale"] else float_type(precision)


def plan_device(
    graph: Graph, precision: str, capacity: int = 0, scales: Optional[Mapping[str, float]] = None
) -> DevicePlan:
    """Plan the memory of a refiner.

    Args:
        graph: a checked refiner, an int8 one with its conversions (``int8_rows.with_conversions``).
        precision: "fp32" or "fp16", of the features and the arithmetic; logits and ensemble are fp32. "int8": fp16
            where the graph is not int8.
        capacity: rows of level 0, 0 = the graph's.
        scales: of the matrices to hold as int8.

    Raises:
        UnsupportedOp: the graph mixes types in a way that the kernels do not run.
    """
    scales = scales or {}
    types = _types(graph, precision, scales)
    capacities = level_capacities(graph, capacity or graph.capacity)
    multiplied = {node.inputs["x"] for node in graph.nodes if node.op == "SparseConv2d"}

    def columns(name: str) -> int:
        return graph.tensors[name].columns

    def ragged(name: str) -> bool:
        """Read by a convolution that reads past its last column."""
        return name in multiplied and columns(name) % _DEPTH[types[name]] != 0

    def group(names: Sequence[str]) -> Any:
        whole = max(names, key=columns)  # of a joined buffer: the Concat's output
        return (types[whole], columns(whole)) if ragged(whole) else None

    def stride(width: int) -> int:
        return -(-width // _STRIDE) * _STRIDE

    def size(buffer: Buffer, names: Sequence[str]) -> float:
        return capacities[buffer.level] * buffer.width * ITEM_BYTES[types[names[0]]]

    def joins(name: str, column: int) -> bool:
        return column * ITEM_BYTES[types[name]] % _VECTOR_BYTES == 0 and not ragged(name)

    plan = plan_buffers(graph, Layout(stride, joins, size, group))
    for index in {place.buffer for name, place in plan.places.items() if types[name] == "int8"}:
        buffer = plan.buffers[index]  # all of its matrices are int8
        buffer.width = -(-buffer.width // _DEPTH["int8"]) * _DEPTH["int8"]
    slots = 1 + max((buffer.slot for buffer in plan.buffers), default=-1)
    slot_bytes: List[int] = [0] * slots
    zeroed: Set[int] = set()
    for name, place in plan.places.items():
        buffer = plan.buffers[place.buffer]
        nbytes = capacities[buffer.level] * buffer.width * ITEM_BYTES[types[name]]
        slot_bytes[buffer.slot] = max(slot_bytes[buffer.slot], nbytes)
        if ragged(name):
            zeroed.add(buffer.slot)
    return DevicePlan(types, plan, capacities, tuple(slot_bytes), frozenset(zeroed), scales)


def level_capacities(graph: Graph, capacity: int) -> Tuple[int, ...]:
    """Most rows of each level when level 0 has up to ``capacity``: a site has at most four coarser ones."""
    rows = [capacity]
    for node in graph.nodes:
        if node.op == "DownMap":
            level = graph.tensors[node.inputs["coords"]].level
            below = graph.grids[len(rows)]
            rows.append(max(1, min(4 * rows[level], below[0] * below[1])))
    return tuple(rows)


def _types(graph: Graph, precision: str, scales: Mapping[str, float]) -> Dict[str, str]:
    readers: Dict[str, Set[str]] = {}
    for node in graph.nodes:
        for role, name in node.inputs.items():
            readers.setdefault(name, set()).add(node.op + "." + role)
    types: Dict[str, str] = {}
    for node in graph.nodes:
        reads = {"PixelFeatures.yi": "fp32", "EnsembleLogits.yi": "fp32", "ScatterLabels.ye": "fp32"}
        if node.op == "SparseConv2d":
            reads["SparseConv2d.x"] = conv_type(node, precision)
        for role, name in node.inputs.items():
            wanted = reads.get(node.op + "." + role)
            if name and wanted and types[name] != wanted:
                raise _mixed(graph, node.name, "reads %r, which is %s, as %s" % (name, types[name], wanted))
        kinds = {types[name] for name in node.inputs.values()} if node.op == "Concat" else set()
        if len(kinds) > 1:
            raise _mixed(graph, node.name, "joins %s columns" % " and ".join(sorted(kinds)))
        for name in node.outputs.values():
            if not name or graph.tensors[name].kind != "matrix":
                continue
            # Logits are compared with logits: nothing is gained by rounding them.
            logits = node.op in ("LogitsAt", "EnsembleLogits")
            logits = logits or (node.op == "SparseConv2d" and readers.get(name, set()) <= _LOGIT_READERS)
            types[name] = (
                "int8"
                if name in scales
                else kinds.copy().pop()
                if kinds
                else "fp32"
                if logits
                else float_type(precision)
            )
    return types


def _mixed(graph: Graph, name: str, what: str) -> UnsupportedOp:
    return UnsupportedOp(
        "%s: node %r %s on the GPU; run it with --precision fp32 or --backend native" % (graph.raw.path, name, what)
    )
