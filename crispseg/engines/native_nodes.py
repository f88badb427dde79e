"""What the nodes of a refiner do on the CPU: one method an op, one call into the library each.

Holds the memory of the engine (feature matrices, coordinates, maps, tile plans) and the state of the frame in progress.
"""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_int8 import ByteRows, plan_memory
from crispseg.engines.native_layers import Layer, existing_taps, kind_of
from crispseg.engines.native_memory import Room
from crispseg.engines.native_plan import Need
from crispseg.engines.native_weights import Weights
from crispseg.engines.native_winograd import DIRECT, Tiles
from crispseg.plugins.loader import EXTENT, UPSAMPLE
from crispseg.plugins.ops import parse_features


class Nodes:
    """Runs nodes of ``graph`` one by one, in their order: ``begin``, ``run`` of each, ``take`` of each output.

    Args:
        native: library context; its owner closes it.
        weights: packed weights and argument records of the graph's nodes.
        rows: matrices that are bytes.
    """

    def __init__(self, native: Any, graph: Graph, weights: Weights, rows: Mapping[str, ByteRows]) -> None:
        self._native = native
        self._graph = graph
        self._bytes = rows
        self._plan, self._slots = plan_memory(graph, rows)
        self._rooms: Dict[str, Room] = {}
        self._prepared, self._int8 = weights.arguments, weights.int8
        self._tiles: Dict[str, List[Tiles]] = {}
        for (name, algorithm), nodes in weights.winograd.items():
            self._tiles.setdefault(name, []).append(Tiles(algorithm, nodes))
        # Of the frame in progress.
        self._need = Need((), frozenset(), frozenset(), {})
        self._rows: List[int] = [0] * len(graph.grids)
        self._pixels: Dict[str, np.ndarray] = {}
        self._bases: List[int] = [0] * len(self._plan.buffers)
        self._given: Dict[str, np.ndarray] = {}
        self._capacity = 0
        self._found = 0
        self._ordered: Set[str] = set()  # maps whose visiting order is made
        self._algorithms: Dict[int, str] = {}  # node index -> what ran
        self._maps = {name: role for node in graph.nodes for role, name in node.outputs.items()}

    def begin(self, given: Dict[str, np.ndarray], need: Need, capacity: int) -> None:
        """Start a frame: checked inputs (uint8 image, float32 logits), what it takes, and the most pixels to refine."""
        self._given, self._need, self._capacity = given, need, capacity
        self._pixels.clear()
        self._algorithms.clear()
        self._ordered.clear()
        self._bases = [0] * len(self._bases)

    def run(self, index: int) -> None:
        """Run the node of this index."""
        node = self._graph.nodes[index]
        getattr(self, "_run_" + node.op)(index, node)

    def end(self) -> None:
        """Let go of the frame's arrays."""
        self._given = {}
        self._pixels.clear()

    def layers(self, times: Dict[str, float]) -> List[Layer]:
        """The convolutions of the last frame; ``times``: node name -> ms. Its maps must still be there."""
        out = []
        for index, algorithm in self._algorithms.items():
            node, a = self._graph.nodes[index], self._prepared[index]
            name = node.inputs["map"]
            kind = kind_of(self._maps, name)
            taps = a.K * a.n_out
            if kind in ("down", "up"):
                taps = existing_taps(self._rooms[name].array[:taps])
            gflop = 2e-9 * (taps * a.cin + a.n_out * a.cin2) * a.cout
            out.append(Layer(node.name, kind, self._level(node), a.n_out, a.cin, a.cout, algorithm, times[node.name],
                             gflop, a.cin2))  # fmt: skip
        return out

    @property
    def int8_kernels(self) -> str:
        """Instructions of the int8 convolutions, "" when there are none."""
        return self._native.library.cs_int8_kernels(self._native.handle).decode() if self._int8 else ""

    @property
    def active(self) -> int:
        """Refined pixels of the frame."""
        return self._rows[0]

    @property
    def memory(self) -> Dict[str, int]:
        """Bytes held: feature matrices; coordinates, maps and plans."""
        tiles = [item for same in self._tiles.values() for item in same]
        return {
            "features": sum(slot.room.nbytes for slot in self._slots),
            "maps": sum(room.nbytes for room in self._rooms.values()) + sum(item.nbytes for item in tiles),
        }

    def take(self, name: str) -> np.ndarray:
        """A new array with an output of the graph, of as many rows as its level has sites; pixel maps uint8 [H, W]."""
        tensor = self._graph.tensors[name]
        n = self._rows[tensor.level]
        if tensor.kind == "pixels":
            return self._pixels[name]
        if tensor.kind == "count":
            return np.array([n], np.int32)
        if tensor.kind == "found":
            return np.array([self._found], np.int32)
        if tensor.kind == "matrix":
            place = self._plan.places[name]
            buffer = self._plan.buffers[place.buffer]
            rows = self._slots[buffer.slot].rows(n, buffer.width)
            return rows[:, place.offset : place.offset + tensor.columns].copy()
        columns = 2 if tensor.kind == "coords" else tensor.columns
        return self._rooms[name].array[: n * columns].reshape(n, columns).copy()

    # ---- addresses ------------------------------------------------------------------------------------------------

    def _ints(self, name: str, count: int) -> int:
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(np.int32)
        return room.ensure(count)

    def _at(self, name: str) -> int:
        return self._rooms[name].address

    def _matrix(self, name: str) -> Tuple[int, int]:
        """Address and row stride of a matrix; its slot grows when this is the first use of its buffer in the run."""
        place = self._plan.places[name]
        buffer = self._plan.buffers[place.buffer]
        base = self._bases[place.buffer]
        if not base:
            rows = max(1, self._rows[buffer.level])
            base = self._bases[place.buffer] = self._slots[buffer.slot].ensure(rows * buffer.width)
        return base + self._slots[buffer.slot].itemsize * place.offset, buffer.width

    def _level(self, node: RawNode) -> int:
        return self._graph.tensors[node.inputs["count"]].level

    # ---- ops ------------------------------------------------------------------------------------------------------

    def _run_SelectPixels(self, _: int, node: RawNode) -> None:  # noqa: N802
        graph, need, names = self._graph, self._need, node.outputs
        size = (graph.height, graph.width)
        labels = self._pixels[names["labels"]] = np.empty(size, np.uint8)
        confidence = None
        if names["confidence"] in need.tensors:
            confidence = self._pixels[names["confidence"]] = np.empty(size, np.uint8)
        coords = self._ints(names["coords"], 2 * self._capacity)
        numbers = np.zeros(2, np.int32)
        self._native.call(
            "cs_select_pixels", self._given["logits"].ctypes.data, graph.classes, *graph.low, *size,
            UPSAMPLE[node.attributes["upsample"]], node.attributes["threshold"], self._capacity, labels.ctypes.data,
            None if confidence is None else confidence.ctypes.data, coords, numbers.ctypes.data,
            numbers.ctypes.data + 4,
        )  # fmt: skip
        self._rows[0], self._found = int(numbers[0]), int(numbers[1])

    def _run_LogitsAt(self, _: int, node: RawNode) -> None:  # noqa: N802
        graph = self._graph
        self._native.call(
            "cs_logits_at", self._given["logits"].ctypes.data, graph.classes, *graph.low, graph.height, graph.width,
            UPSAMPLE[node.attributes["upsample"]], self._at(node.inputs["coords"]), self._rows[0],
            *self._matrix(node.outputs["yi"]),
        )  # fmt: skip

    def _run_PixelFeatures(self, index: int, node: RawNode) -> None:  # noqa: N802
        graph, n, name = self._graph, self._rows[0], node.outputs["x"]
        address, ld = self._matrix(name)
        coords = self._at(node.inputs["coords"])
        place = self._plan.places[name]
        rows = self._slots[self._plan.buffers[place.buffer].slot].rows(n, ld)
        at = place.offset
        for kind, above in parse_features(node.attributes["features"]):
            here = address + 4 * (at - place.offset)
            if kind == "rgb":
                mean, std = self._prepared[index]
                self._native.call(
                    "cs_pixel_colours", self._given["image"].ctypes.data, graph.height, graph.width, coords, n, mean,
                    std, int(node.attributes["channel_order"] == "bgr"), here, ld,
                )  # fmt: skip
                at += 3
            elif kind == "xy":
                sites = self._rooms[node.inputs["coords"]].array[: 2 * n].reshape(n, 2)
                np.divide(sites[:, 0], graph.height, out=rows[:, at], casting="same_kind")
                np.divide(sites[:, 1], graph.width, out=rows[:, at + 1], casting="same_kind")
                at += 2
            else:
                yi, ldi = self._matrix(node.inputs["yi"])
                self._native.call("cs_softmax_rows", yi, ldi, n, graph.classes, here, ld)
                if above is not None:
                    columns = rows[:, at : at + graph.classes]
                    columns[...] = columns > above
                at += graph.classes

    def _visits(self, name: str) -> int:
        """Address of the order in which the direct kernel visits the rows of a map; made once a frame."""
        tensor, key = self._graph.tensors[name], name + "#order"
        if name not in self._ordered:
            order = self._ints(key, self._rows[tensor.level])
            self._native.call("cs_plan_map", self._at(name), self._rows[tensor.level], tensor.columns, order)
            self._ordered.add(name)
        return self._at(key)

    def _run_SubmanifoldMap(self, _: int, node: RawNode) -> None:  # noqa: N802
        level, name = self._level(node), node.outputs["map"]
        n, address = self._rows[level], self._ints(name, 9 * self._rows[level])
        if n:
            coords = self._at(node.inputs["coords"])
            self._native.call("cs_submanifold_map", coords, n, *self._graph.grids[level], address)
            for tiles in self._tiles.get(name, ()) if name in self._need.read_maps else ():
                tiles.plan(self._native, coords, n, self._graph.grids[level])

    def _run_DownMap(self, _: int, node: RawNode) -> None:  # noqa: N802
        level, names = self._level(node), node.outputs
        below = self._graph.tensors[names["coords_out"]].level
        n, (rows, columns) = self._rows[level], self._graph.grids[below]
        room = min(4 * n, rows * columns)
        coords = self._ints(names["coords_out"], 2 * room)
        down, up = self._ints(names["down"], 9 * room), self._ints(names["up"], 9 * n)
        count = np.zeros(1, np.int32)
        if n:
            self._native.call(
                "cs_down_map", self._at(node.inputs["coords"]), n, *self._graph.grids[level],
                EXTENT[node.attributes["extent"]], coords, count.ctypes.data, down, up,
            )  # fmt: skip
        self._rows[below] = int(count[0])

    def _run_SparseConv2d(self, index: int, node: RawNode) -> None:  # noqa: N802
        a, ins, outs, wanted = self._prepared[index], node.inputs, node.outputs, self._need.tensors
        a.x, a.ldx = self._matrix(ins["x"])
        a.n_in, a.n_out = self._rows[self._graph.tensors[ins["x"]].level], self._rows[self._level(node)]
        a.map = a.order = None
        if ins["map"] and a.n_out:
            a.map = self._at(ins["map"])
        a.residual, a.ldr = self._matrix(ins["residual"]) if ins["residual"] else (None, 0)
        if a.cin2:
            a.x2, a.ldx2 = self._matrix(ins["x2"])
        a.y, a.ldy = self._matrix(outs["y"]) if outs["y"] in wanted else (None, 0)
        for i, role in enumerate(("z1", "z2")):
            a.z[i], a.ldz[i] = self._matrix(outs[role]) if outs[role] in wanted else (None, 0)
        self._algorithms[index] = DIRECT
        for tiles in self._tiles.get(ins["map"], ()) if a.n_out else ():
            if tiles.run(self._native, index, a):
                self._algorithms[index] = tiles.algorithm
                return
        if a.n_out:
            a.order = self._visits(ins["map"]) if ins["map"] else None
            if index in self._int8:
                self._algorithms[index] = "int8"
                self._native.call("cs_sparse_conv_int8", ctypes.byref(self._int8[index]))
            else:
                self._native.call("cs_sparse_conv", ctypes.byref(a))

    def _run_ConvertRows(self, _: int, node: RawNode) -> None:  # noqa: N802
        tensor, made = self._graph.tensors[node.inputs["x"]], self._bytes[node.outputs["y"]]
        target = self._matrix(node.outputs["y"])
        self._native.call(
            "cs_quantise_rows", *self._matrix(node.inputs["x"]), self._rows[tensor.level], tensor.columns, made.step,
            made.zero, *target,
        )  # fmt: skip

    def _run_Concat(self, index: int, node: RawNode) -> None:  # noqa: N802
        self._matrix(node.outputs["y"])
        target = self._plan.places[node.outputs["y"]]
        offset = target.offset
        for role, name in node.inputs.items():
            tensor = self._graph.tensors[name]
            if (index, role) in self._plan.copies:
                source, n = self._plan.places[name], self._rows[tensor.level]
                views = []
                for buffer, start in ((target.buffer, offset), (source.buffer, source.offset)):
                    b = self._plan.buffers[buffer]
                    views.append(self._slots[b.slot].rows(n, b.width)[:, start : start + tensor.columns])
                np.copyto(views[0], views[1])
            offset += tensor.columns

    def _run_EnsembleLogits(self, index: int, node: RawNode) -> None:  # noqa: N802
        n = self._rows[self._level(node)]
        arguments = [*self._matrix(node.inputs["yi"]), *self._matrix(node.inputs["yo"]), n]
        ye = self._matrix(node.outputs["ye"])
        if node.attributes["mode"] == "gated":
            self._native.call("cs_ensemble_gated", *arguments, ctypes.byref(self._prepared[index]), *ye)
        else:
            self._native.call("cs_ensemble_entropy", *arguments, self._graph.classes, *ye)

    def _run_ScatterLabels(self, index: int, node: RawNode) -> None:  # noqa: N802
        graph, need = self._graph, self._need
        arrays: Dict[str, Optional[np.ndarray]] = {"labels": None, "confidence": None}
        for role in arrays:
            name, new = node.inputs[role], node.outputs[role + "_out"]
            if role == "labels" or new in need.tensors:
                array = self._pixels[name]
                arrays[role] = self._pixels[new] = array if need.last_use[name] <= index else array.copy()
        confidence = arrays["confidence"]
        self._native.call(
            "cs_scatter_labels", self._pixels[node.outputs["labels_out"]].ctypes.data,
            None if confidence is None else confidence.ctypes.data, graph.height, graph.width,
            self._at(node.inputs["coords"]), self._rows[0], *self._matrix(node.inputs["ye"]), graph.classes,
        )  # fmt: skip
