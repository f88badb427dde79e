"""Types and memory of a refiner on the GPU: which matrix is fp16, where it lies, how many rows each level holds.

Everything is decided when the refiner is loaded: rows are bounded by the capacity of level 0 and by the grids of the
coarser levels, so memory has a fixed size and no frame allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Sequence, Set, Tuple

from crispseg.engines.native_check import Graph
from crispseg.engines.native_plan import Buffer, Layout, Plan, plan_buffers
from crispseg.errors import UnsupportedOp

ITEM_BYTES = {"fp32": 4, "fp16": 2}
_VECTOR_BYTES = 16  # rows and their slices begin at multiples of it
_LOGIT_READERS = {"EnsembleLogits.yo", "ScatterLabels.ye"}
_DEPTH = 16  # the tensor cores read so many columns at once: the last ones of a row are there, as zeros


@dataclass(frozen=True)
class DevicePlan:
    """``types``: matrix -> "fp32" or "fp16". ``capacities[level]``: most rows. ``slot_bytes[slot]``: size of a slot.

    ``zeroed``: slots that are filled with zeros at load; the columns that nobody writes keep them.
    """

    types: Dict[str, str]
    plan: Plan
    capacities: Tuple[int, ...]
    slot_bytes: Tuple[int, ...]
    zeroed: FrozenSet[int]

    def place(self, name: str) -> Tuple[int, int, int]:
        """(slot, offset in bytes, row stride in elements) of a matrix."""
        place = self.plan.places[name]
        buffer = self.plan.buffers[place.buffer]
        return buffer.slot, ITEM_BYTES[self.types[name]] * place.offset, buffer.width


def plan_device(graph: Graph, precision: str, capacity: int = 0) -> DevicePlan:
    """Plan the memory of a refiner.

    Args:
        graph: a checked refiner.
        precision: "fp32" or "fp16", of the features and the arithmetic; logits and ensemble are fp32.
        capacity: rows of level 0, 0 = the graph's.

    Raises:
        UnsupportedOp: the graph mixes types in a way that the kernels do not run.
    """
    types = _types(graph, precision)
    capacities = level_capacities(graph, capacity or graph.capacity)
    multiplied = {node.inputs["x"] for node in graph.nodes if node.op == "SparseConv2d"}

    def columns(name: str) -> int:
        return graph.tensors[name].columns

    def ragged(name: str) -> bool:
        """Read by a convolution that reads past its last column."""
        return types[name] != "fp32" and name in multiplied and columns(name) % _DEPTH != 0

    def group(names: Sequence[str]) -> Any:
        whole = max(names, key=columns)  # of a joined buffer: the Concat's output
        return (types[whole], columns(whole)) if ragged(whole) else None

    def stride(width: int) -> int:
        return -(-width // _DEPTH) * _DEPTH

    def size(buffer: Buffer, names: Sequence[str]) -> float:
        return capacities[buffer.level] * buffer.width * ITEM_BYTES[types[names[0]]]

    def joins(name: str, column: int) -> bool:
        return column * ITEM_BYTES[types[name]] % _VECTOR_BYTES == 0 and not ragged(name)

    plan = plan_buffers(graph, Layout(stride, joins, size, group))
    slots = 1 + max((buffer.slot for buffer in plan.buffers), default=-1)
    slot_bytes: List[int] = [0] * slots
    zeroed: Set[int] = set()
    for name, place in plan.places.items():
        buffer = plan.buffers[place.buffer]
        nbytes = capacities[buffer.level] * buffer.width * ITEM_BYTES[types[name]]
        slot_bytes[buffer.slot] = max(slot_bytes[buffer.slot], nbytes)
        if ragged(name):
            zeroed.add(buffer.slot)
    return DevicePlan(types, plan, capacities, tuple(slot_bytes), frozenset(zeroed))


def level_capacities(graph: Graph, capacity: int) -> Tuple[int, ...]:
    """Most rows of each level when level 0 has up to ``capacity``: a site has at most four coarser ones."""
    rows = [capacity]
    for node in graph.nodes:
        if node.op == "DownMap":
            level = graph.tensors[node.inputs["coords"]].level
            below = graph.grids[len(rows)]
            rows.append(max(1, min(4 * rows[level], below[0] * below[1])))
    return tuple(rows)


def _types(graph: Graph, precision: str) -> Dict[str, str]:
    readers: Dict[str, Set[str]] = {}
    for node in graph.nodes:
        for role, name in node.inputs.items():
            readers.setdefault(name, set()).add(node.op + "." + role)
    types: Dict[str, str] = {}
    for node in graph.nodes:
        for role, name in node.inputs.items():
            wanted = {"SparseConv2d.x": precision, "PixelFeatures.yi": "fp32", "EnsembleLogits.yi": "fp32",
                      "ScatterLabels.ye": "fp32"}.get(node.op + "." + role)  # fmt: skip
            if name and wanted and types[name] != wanted:
                raise _mixed(graph, node.name, "reads %r, which is %s, as %s" % (name, types[name], wanted))
        kinds = {types[name] for name in node.inputs.values()} if node.op == "Concat" else set()
        if len(kinds) > 1:
            raise _mixed(graph, node.name, "joins fp32 and fp16 columns")
        for name in node.outputs.values():
            if not name or graph.tensors[name].kind != "matrix":
                continue
            # Logits are compared with logits: nothing is gained by rounding them.
            logits = node.op in ("LogitsAt", "EnsembleLogits")
            logits = logits or (node.op == "SparseConv2d" and readers.get(name, set()) <= _LOGIT_READERS)
            types[name] = kinds.copy().pop() if kinds else "fp32" if logits else precision
    return types


def _mixed(graph: Graph, name: str, what: str) -> UnsupportedOp:
    return UnsupportedOp(
        "%s: node %r %s on the GPU; run it with --precision fp32 or --backend native" % (graph.raw.path, name, what)
    )
