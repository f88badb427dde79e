"""Turns a refiner's constants into what the native library takes: packed weights and argument records by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import numpy as np

from crispseg.engines.native_check import Graph
from crispseg.engines.native_graph import RawNode
from crispseg.engines.native_memory import aligned
from crispseg.engines.native_winograd import choose
from crispseg.errors import UnsupportedOp
from crispseg.plugins.loader import ConvArguments, GateArguments, Native


@dataclass
class Weights:
    """``arguments``: node index -> cs_conv, cs_gate, or (mean, std) addresses. The arrays behind them are kept here.

    ``winograd``: kernel map -> node index -> address of the transformed weights.
    """

    arguments: Dict[int, Any] = field(default_factory=dict)
    packed: Dict[str, np.ndarray] = field(default_factory=dict)
    keep: List[np.ndarray] = field(default_factory=list)
    winograd: Dict[str, Dict[int, int]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights and other constants."""
        return sum(array.nbytes for array in self.packed.values()) + sum(array.nbytes for array in self.keep)


def prepare(native: Native, graph: Graph) -> Weights:
    """Pack and keep what the nodes need; the graph's constants are let go."""
    weights, chosen = Weights(), choose(graph)
    for index, node in enumerate(graph.nodes):
        if node.op == "SparseConv2d":
            weights.arguments[index] = _conv(native, graph, node, weights)
            if index in chosen:
                address = _packed(native, graph, node.inputs["weight"], True, weights)
                weights.winograd.setdefault(chosen[index], {})[index] = address
        elif node.op == "EnsembleLogits" and node.attributes["mode"] == "gated":
            weights.arguments[index] = _gate(graph, node, weights)
        elif node.op == "PixelFeatures":
            stats = [np.array(node.attributes[name], np.float32) for name in ("mean", "std")]
            weights.keep += stats
            weights.arguments[index] = tuple(array.ctypes.data for array in stats)
    graph.raw.constants.clear()
    return weights


def _constant(graph: Graph, name: str, weights: Weights) -> int:
    """Address of a stored constant, 0 when not connected."""
    if not name:
        return 0
    array = np.array(graph.raw.constants[name], np.float32, order="C")
    weights.keep.append(array)
    return array.ctypes.data


def _packed(native: Native, graph: Graph, name: str, winograd: bool, weights: Weights) -> int:
    """Address of a weight in the layout of one algorithm; packed at its first use."""
    value = graph.raw.constants[name]
    key = name + ("#winograd" if winograd else "")
    if key not in weights.packed:
        source, shape = np.ascontiguousarray(value, np.float32), value.shape[1:] if winograd else value.shape
        size, pack = ("cs_winograd_bytes", "cs_winograd_pack") if winograd else ("cs_packed_bytes", "cs_pack_weight")
        weights.packed[key] = aligned(getattr(native.library, size)(native.handle, *shape))
        native.call(pack, source.ctypes.data, *shape, weights.packed[key].ctypes.data)
    return weights.packed[key].ctypes.data


def _conv(native: Native, graph: Graph, node: RawNode, weights: Weights) -> ConvArguments:
    name = node.inputs["weight"]
    if node.attributes["x_scale"]:
        raise UnsupportedOp(
            "%s: node %r: the native engine does not run int8 convolutions yet; use --backend onnxruntime"
            % (graph.raw.path, node.name)
        )
    a = ConvArguments()
    a.K, a.cin, a.cout = graph.raw.constants[name].shape
    a.weight = _packed(native, graph, name, False, weights)
    a.bias = _constant(graph, node.inputs["bias"], weights)
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
