"""Where every feature matrix of a refiner lies in memory.

A *buffer* holds one matrix, or the columns of several that a Concat joins: their producers write into column slices of
it (row stride = width of the buffer), so that the Concat costs nothing. A *slot* is memory that several buffers use one
after another. Row counts are known only at run time, so slots grow then; the plan decides who shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode

_DENSITY, _GROWTH = 0.12, 1.36  # active share of level 0, and of each level against the one above it


@dataclass
class Buffer:
    """Rows of ``level`` by ``width`` columns, in use from node ``first`` to node ``last``, in slot ``slot``."""

    level: int
    width: int
    first: int
    last: int
    slot: int = -1


@dataclass(frozen=True)
class Place:
    """A matrix: columns [offset, offset + columns) of a buffer."""

    buffer: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """``pads[slot]``: widest row of the slot, which is the size of the zero row in front of row 0.

    ``copies``: (node index, role) of the Concat inputs that could not be written in place.
    """

    places: Dict[str, Place]
    buffers: Tuple[Buffer, ...]
    pads: Tuple[int, ...]
    copies: FrozenSet[Tuple[int, str]]


@dataclass(frozen=True)
class Layout:
    """What a device asks of a plan.

    ``stride``: columns -> elements from row to row. ``joins``: (matrix, column) -> whether a Concat may have this
    input written in place there. ``size``: of a buffer and its matrices, to find what fits. ``group``: matrices of a
    buffer -> who may share memory with it (equal values).
    """

    stride: Callable[[int], int]
    joins: Callable[[str, int], bool]
    size: Callable[[Buffer, Sequence[str]], float]
    group: Callable[[Sequence[str]], Any]


def cpu_layout(graph: Graph) -> Layout:
    """That of the native engine: everything float32, sizes are guesses."""
    share = [min(1.0, _DENSITY * _GROWTH**level) for level in range(len(graph.grids))]

    def size(buffer: Buffer, names: Sequence[str]) -> float:
        rows, columns = graph.grids[buffer.level]
        return rows * columns * share[buffer.level] * buffer.width

    return Layout(_stride, lambda name, column: True, size, lambda names: None)


def plan_buffers(graph: Graph, layout: Optional[Layout] = None) -> Plan:
    """Give every matrix a place; on the CPU without a layout."""
    layout = layout or cpu_layout(graph)
    places, widths, copies = _join(graph, layout)
    buffers: List[Buffer] = []
    renumbered: Dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.outputs.values():
            if name not in places:
                continue
            old = places[name].buffer
            if old not in renumbered:
                renumbered[old] = len(buffers)
                buffers.append(Buffer(graph.tensors[name].level, layout.stride(widths[old]), index, index))
            buffers[renumbered[old]].last = index
        for name in node.inputs.values():
            if name in places:
                buffers[renumbered[places[name].buffer]].last = index
    final = {name: Place(renumbered[place.buffer], place.offset) for name, place in places.items()}
    for name in graph.raw.outputs:
        if name in final:
            buffers[final[name].buffer].last = len(graph.nodes)
    names: List[List[str]] = [[] for _ in buffers]
    for name, place in final.items():
        names[place.buffer].append(name)
    pads = _share(buffers, layout, names)
    return Plan(final, tuple(buffers), tuple(pads), frozenset(copies))


def _stride(columns: int) -> int:
    """Floats from row to row: wide rows a power of two apart share few cache sets, which costs up to a quarter."""
    return columns + 16 if columns >= 256 else columns


def _join(graph: Graph, layout: Layout) -> Tuple[Dict[str, Place], List[int], Set[Tuple[int, str]]]:
    """Places in unshared buffers, width of each buffer, and the Concat inputs to copy.

    Backwards, so that a Concat of a Concat finds the outer one's place first.
    """
    places: Dict[str, Place] = {}
    widths: List[int] = []
    copies: Set[Tuple[int, str]] = set()

    def place(name: str) -> Place:
        if name not in places:
            places[name] = Place(len(widths), 0)
            widths.append(graph.tensors[name].columns)
        return places[name]

    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        for name in node.outputs.values():
            if name and graph.tensors[name].kind == "matrix":
                place(name)
        if node.op != "Concat":
            continue
        at = place(node.outputs["y"])
        offset = at.offset
        for role, name in node.inputs.items():
            if name in places or not layout.joins(name, offset):  # in place of another Concat, or twice in this one
                copies.add((index, role))
            else:
                places[name] = Place(at.buffer, offset)
            offset += graph.tensors[name].columns
    return places, widths, copies


def _share(buffers: Sequence[Buffer], layout: Layout, matrices: Sequence[Sequence[str]]) -> List[int]:
    """Put buffers into slots by lifetime, the best fitting free slot first; returns the widest row of each slot."""
    pads: List[int] = []
    sizes: List[float] = []
    busy_until: List[int] = []
    owners: List[Any] = []
    for buffer, names in sorted(zip(buffers, matrices), key=lambda item: item[0].first):
        size, group = layout.size(buffer, names), layout.group(names)
        free = [slot for slot in range(len(pads)) if busy_until[slot] < buffer.first and owners[slot] == group]
        large = [slot for slot in free if sizes[slot] >= size]
        if large:
            slot = min(large, key=lambda item: sizes[item])
        elif free:
            slot = max(free, key=lambda item: sizes[item])
        else:
            slot = len(pads)
            pads.append(0)
            sizes.append(0.0)
            busy_until.append(-1)
            owners.append(group)
        buffer.slot = slot
        pads[slot] = max(pads[slot], buffer.width)
        sizes[slot] = max(sizes[slot], size)
        busy_until[slot] = buffer.last
    return pads


@dataclass(frozen=True)
class Need:
    """What a set of outputs takes: node indices in order, tensors, and kernel maps that a convolution reads."""

    nodes: Tuple[int, ...]
    tensors: FrozenSet[str]
    read_maps: FrozenSet[str]
    last_use: Dict[str, int]


def needed(graph: Graph, outputs: Sequence[str]) -> Need:
    """Walk back from ``outputs``. A node that feeds none of them does not run; nor does an unused half of one."""
    tensors: Set[str] = set(outputs)
    nodes: List[int] = []
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if any(name in tensors for name in node.outputs.values() if name):
            nodes.append(index)
            tensors.update(name for name in _reads(node, tensors) if name)
    nodes.reverse()
    maps, last_use = set(), {}
    for index in nodes:
        node = graph.nodes[index]
        if node.op == "SparseConv2d" and node.inputs["map"]:
            maps.add(node.inputs["map"])
        for name in _reads(node, tensors):
            last_use[name] = index
    for name in outputs:
        last_use[name] = len(graph.nodes)
    return Need(tuple(nodes), frozenset(tensors), frozenset(maps), last_use)


def _reads(node: RawNode, wanted: Set[str]) -> List[str]:
    roles = dict(node.inputs)
    if node.op == "ScatterLabels" and node.outputs["confidence_out"] not in wanted:
        del roles["confidence"]
    return list(roles.values())
