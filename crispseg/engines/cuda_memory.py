"""Device memory of a refiner: feature slots, coordinates, maps, counts, label maps and scratch, allocated at load."""

from __future__ import annotations

from typing import Dict, Tuple

from crispseg.engines.cuda import Buffer
from crispseg.engines.cuda_kernels import Kernels
from crispseg.engines.cuda_plan import DevicePlan
from crispseg.engines.native_check import Graph


class DeviceMemory:
    """Where everything lies. Sizes follow the capacities of ``plan``; nothing grows.

    Raises:
        InputError: no room on the device.
    """

    def __init__(self, kernels: Kernels, graph: Graph, plan: DevicePlan) -> None:
        self._levels, self._plan = len(graph.grids), plan
        self._context = kernels.context
        alloc = self._context.alloc
        self._slots = [alloc(nbytes) for nbytes in plan.slot_bytes]
        self._numbers = alloc(4 * (self._levels + 1))  # rows of each level, then found
        self._ints: Dict[str, Buffer] = {}
        for name, tensor in graph.tensors.items():
            if tensor.kind in ("coords", "map"):
                self._ints[name] = alloc(4 * (tensor.columns or 2) * plan.capacities[tensor.level])
        for level in {graph.tensors[node.inputs["coords"]].level for node in graph.nodes if node.op == "DownMap"}:
            self._ints["#order%d" % level] = alloc(4 * plan.capacities[level])
        self.pixels: Dict[str, Buffer] = {}
        for node in graph.nodes:
            for role in ("labels", "confidence"):
                if node.op == "SelectPixels":
                    self.pixels[node.outputs[role]] = alloc(graph.height * graph.width)
                elif node.op == "ScatterLabels":
                    # In place, unless somebody else wants to see the map before the refinement too.
                    source, new = node.inputs[role], node.outputs[role + "_out"]
                    readers = sum(source in other.inputs.values() for other in graph.nodes)
                    shared = source not in graph.raw.outputs and readers == 1
                    self.pixels[new] = self.pixels[source] if shared else alloc(graph.height * graph.width)
        sizes = [kernels.size("csg_select_workspace", graph.height, graph.width)]
        sizes += [kernels.size("csg_map_workspace", *grid) for grid in graph.grids]
        self._workspace = alloc(max(sizes))
        stream = self._context.stream()
        stream.fill(self._numbers.address, 0, self._numbers.nbytes)
        for slot in plan.zeroed:
            stream.fill(self._slots[slot].address, 0, self._slots[slot].nbytes)
        stream.synchronize()
        stream.close()

    def matrix(self, name: str) -> Tuple[int, int]:
        """Address and row stride (elements) of a matrix."""
        slot, offset, stride = self._plan.place(name)
        return self._slots[slot].address + offset, stride

    def ints(self, name: str) -> int:
        """Address of coordinates or of a map."""
        return self._ints[name].address

    def order(self, level: int) -> int:
        """Address of the rows of a level grouped by parity."""
        return self.ints("#order%d" % level)

    def count(self, level: int) -> int:
        """Address of the number of rows of a level."""
        return self._numbers.address + 4 * level

    @property
    def found(self) -> int:
        """Address of the number of pixels above the threshold; those of the levels lie in front of it."""
        return self.count(self._levels)

    def scratch(self) -> Tuple[int, int]:
        """Address and size of the workspace."""
        return self._workspace.address, self._workspace.nbytes

    def reserve(self, nbytes: int) -> None:
        """Let the workspace have so many bytes at least; between frames alone."""
        if nbytes > self._workspace.nbytes:
            self._context.synchronize()
            self._workspace.close()
            self._workspace = self._context.alloc(nbytes)

    def sizes(self) -> Dict[str, int]:
        """Bytes: feature matrices, coordinates and maps, label maps, scratch."""
        return {
            "features": sum(slot.nbytes for slot in self._slots),
            "maps": sum(buffer.nbytes for buffer in self._ints.values()) + self._numbers.nbytes,
            "pixels": sum({id(buffer): buffer.nbytes for buffer in self.pixels.values()}.values()),
            "scratch": self._workspace.nbytes,
        }

    def close(self) -> None:
        """Free everything."""
        for buffer in [*self._slots, *self._ints.values(), *self.pixels.values(), self._numbers, self._workspace]:
            buffer.close()
