"""Turns a refiner's constants into what the native library takes: packed weights and argument records by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_int8 import ByteRows, int8_conv
from crispseg.engines.native_memory import aligned, is_shape_only
from crispseg.engines.native_winograd import TILES, choose
from crispseg.errors import BundleError
from crispseg.plugins.loader import ConvArguments, ConvInt8Arguments, GateArguments, Native
from crispseg.plugins.quantise import dequantise, quantise_by

# Forms of a packed weight, as the ends of their keys; Winograd's are "#" and the algorithm.
DIRECT, INT8 = "", "#int8"
FORMS = (DIRECT, INT8, *("#" + algorithm for algorithm in TILES))


@dataclass(frozen=True)
class Compiled:
    """What was decided and packed beforehand: algorithm of each submanifold node, packed weights (uint8) by key."""

    algorithms: Mapping[str, str]
    packed: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Weights:
    """``arguments``: node index -> cs_conv, cs_gate, or (mean, std) addresses. The arrays behind them are kept here.

    ``winograd``: (kernel map, algorithm) -> node index -> address of the transformed weights. ``int8``: node index ->
    cs_conv_int8 of an int8 convolution, whose part ``conv`` is the one in ``arguments``.
    """

    arguments: Dict[int, Any] = field(default_factory=dict)
    packed: Dict[str, np.ndarray] = field(default_factory=dict)
    keep: List[np.ndarray] = field(default_factory=list)
    winograd: Dict[Tuple[str, str], Dict[int, int]] = field(default_factory=dict)
    int8: Dict[int, ConvInt8Arguments] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights and other constants."""
        return sum(array.nbytes for array in self.packed.values()) + sum(array.nbytes for array in self.keep)


def prepare(
    native: Native,
    graph: Graph,
    compiled: Optional[Compiled] = None,
    allocate: Callable[[int], np.ndarray] = aligned,
    rows: Optional[Mapping[str, ByteRows]] = None,
) -> Weights:
    """Pack and keep what the nodes need; the graph's constants are let go.

    Args:
        native: context; weights are packed for its instruction set.
        graph: the refiner.
        compiled: decisions, and packed weights to use as they are; what it lacks is packed, if the graph has values.
        allocate: memory for packed weights, bytes -> uint8 array at an address divisible by 64.
        rows: matrices that are bytes, of a graph with int8 convolutions (``native_int8.bytes_of``).

    Raises:
        BundleError: ``compiled`` lacks a weight that the graph has by shape alone, or has one of another size than
            this library packs.
        UnsupportedOp: int8 convolutions without ``rows``.
    """
    weights = Weights()
    chosen = choose(graph, None if compiled is None else compiled.algorithms)
    packer = _Packer(native, graph, weights, {} if compiled is None else compiled.packed, allocate)
    for index, node in enumerate(graph.nodes):
        if node.op == "SparseConv2d":
            if node.attributes["x_scale"]:
                packed = packer.address(node.inputs["weight"], INT8)
                weights.int8[index] = int8_conv(graph, node, rows, packed, weights.keep)
            quantised = weights.int8.get(index)
            weights.arguments[index] = _conv(graph, node, weights, packer, quantised)
            if index in chosen:
                address = packer.address(node.inputs["weight"], "#" + chosen[index])
                weights.winograd.setdefault((node.inputs["map"], chosen[index]), {})[index] = address
        elif node.op == "EnsembleLogits" and node.attributes["mode"] == "gated":
            weights.arguments[index] = _gate(graph, node, weights)
        elif node.op == "PixelFeatures":
            stats = [np.array(node.attributes[name], np.float32) for name in ("mean", "std")]
            weights.keep += stats
            weights.arguments[index] = tuple(array.ctypes.data for array in stats)
    graph.raw.constants.clear()
    graph.raw.integers.clear()
    return weights


def _constant(graph: Graph, name: str, weights: Weights) -> int:
    """Address of a stored constant, 0 when not connected."""
    if not name:
        return 0
    array = np.array(graph.raw.constants[name], np.float32, order="C")
    weights.keep.append(array)
    return array.ctypes.data


@dataclass(frozen=True)
class _Packer:
    """Addresses of weights in one of their forms, each packed at its first use."""

    native: Native
    graph: Graph
    weights: Weights
    ready: Mapping[str, np.ndarray]
    allocate: Callable[[int], np.ndarray]

    def size(self, name: str, form: str) -> int:
        return packed_bytes(self.native, self.graph.raw.constants[name].shape, form)

    def address(self, name: str, form: str) -> int:
        packed = self.weights.packed.get(name + form)
        if packed is None:
            packed = self.weights.packed[name + form] = self._ready(name, form)
        return packed.ctypes.data

    def _ready(self, name: str, form: str) -> np.ndarray:
        size, key = self.size(name, form), name + form
        if key in self.ready:
            packed = self.ready[key]
            if packed.nbytes != size or packed.ctypes.data % 64:
                raise BundleError("%s: packed weight %r: expected %d bytes at a multiple of 64, found %d"
                                  % (self.graph.raw.path, key, size, packed.nbytes))  # fmt: skip
            return packed
        raw = self.graph.raw
        value = raw.integers.get(name, raw.constants[name])
        if is_shape_only(value):
            raise BundleError(
                "%s: packed weight %r: expected it in the engine, found none" % (self.graph.raw.path, key)
            )
        if form == INT8 and value.dtype != np.int8:
            value = quantise_by(value, raw.weight_scales[name])
        elif form != INT8 and value.dtype == np.int8:
            value = dequantise(value, raw.weight_scales[name])
        source = np.ascontiguousarray(value, np.int8 if form == INT8 else np.float32)
        packed = self.allocate(size)
        names = {DIRECT: "cs_pack_weight", INT8: "cs_pack_weight_int8"}
        self.native.call(
            names.get(form, "cs_winograd_pack"), source.ctypes.data, *_sides(value.shape, form), packed.ctypes.data
        )
        return packed


def packed_bytes(native: Native, shape: Sequence[int], form: str) -> int:
    """Size of a weight [K, Cin, Cout] in one of its forms; 0 for a shape that the form does not take."""
    library = native.library
    measure = {DIRECT: library.cs_packed_bytes, INT8: library.cs_packed_bytes_int8}
    return int(measure.get(form, library.cs_winograd_bytes)(native.handle, *_sides(shape, form)))


def _sides(shape: Sequence[int], form: str) -> Sequence[int]:
    """What the library wants to know of a shape: Winograd's forms are those of 3x3 weights alone, by side of a tile."""
    return shape if form in (DIRECT, INT8) else (TILES[form[1:]], *shape[1:])


def _conv(
    graph: Graph,
    node: RawNode,
    weights: Weights,
    packer: _Packer,
    quantised: Optional[ConvInt8Arguments],
) -> ConvArguments:
    name = node.inputs["weight"]
    a = ConvArguments() if quantised is None else quantised.conv
    a.K, a.cin, a.cout = graph.raw.constants[name].shape
    if quantised is None:  # also beside Winograd's form: the direct kernel takes over where sites lie apart
        a.weight = packer.address(name, DIRECT)
    a.bias = _constant(graph, node.inputs["bias"], weights)
    if node.inputs.get("x2"):
        second = node.inputs["weight2"]
        a.cin2, a.weight2 = graph.raw.constants[second].shape[1], packer.address(second, DIRECT)
    a.relu = node.attributes["relu"]
    for i, suffix in enumerate("12"):
        a.scale[i] = _constant(graph, node.inputs["scale" + suffix], weights)
        a.shift[i] = _constant(graph, node.inputs["shift" + suffix], weights)
    return a


def _gate(graph: Graph, node: RawNode, weights: Weights) -> GateArguments:
    hidden = graph.raw.constants[node.inputs["w1"]].shape[0]
    names = [kind + str(i) for i in range(1, 5) for kind in "wb"]
    addresses = {name: _constant(graph, node.inputs[name], weights) for name in names}
    return GateArguments(C=graph.classes, hidden=hidden, **addresses)
