"""The convolutions of a refiner as calibration sees them: what they read, which share a scale, which stay float."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Iterable, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from crispseg.errors import InputError
from crispseg.export.passes.graph import Graph, is_op, output_of, role_of


@dataclass(frozen=True)
class Conv:
    """One SparseConv2d.

    ``x``, ``map``, ``count``, ``weight``: tensor names ("" = no map); ``shape``: (taps, cin, cout); ``scale_group``:
    equal for convolutions that must have one scale, because they read the same tensor, or parts of it through Concat;
    ``edge``: "first" (reads the pixel features), "last" (gives the logits) or "".
    """

    name: str
    x: str
    map: str
    count: str
    weight: str
    shape: tuple[int, int, int]
    scale_group: str
    edge: str


def convolutions(model: ModelProto) -> list[Conv]:
    """Every SparseConv2d of a refiner, in the order in which they run.

    Raises:
        InputError: a weight that is no stored constant, or a node without a name of its own.
    """
    graph = Graph(model)
    weights = constants(model)
    groups = _Groups()
    for node in graph.nodes:
        if node.op_type == "Concat":
            for name in node.input:
                groups.join(name, node.output[0])
    found: list[Conv] = []
    for node in graph.nodes:
        if not is_op(node, "SparseConv2d"):
            continue
        weight = weights.get(role_of(node, "weight"))
        if weight is None or weight.ndim != 3:
            raise InputError(
                f"node {node.name!r}: expected a stored float weight [K,Cin,Cout]; calibrate the float refiner"
            )
        x = role_of(node, "x")
        taps, cin, cout = weight.shape
        found.append(
            Conv(
                node.name,
                x,
                role_of(node, "map"),
                role_of(node, "count"),
                role_of(node, "weight"),
                (taps, cin, cout),
                groups.of(x),
                _edge(graph, node),
            )
        )
    names = [conv.name for conv in found]
    if len(set(names)) != len(names) or not all(names):
        raise InputError("refiner: expected every convolution to have a name of its own; export the refiner again")
    return found


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Initialisers as float32, those that are stored as float16 also under the name of their Cast."""
    values = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in model.graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }
    for node in model.graph.node:
        if node.op_type == "Cast" and not node.domain and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    return values


def choose(convs: Sequence[Conv], exclude: Iterable[str] = (), edges: bool = False) -> list[Conv]:
    """The convolutions to run in int8.

    Args:
        convs: of the refiner.
        exclude: node names to leave in float; ``*`` and ``?`` match as in file names.
        edges: also the first and the last one.

    Raises:
        InputError: a name that matches no convolution.
    """
    patterns = list(exclude)
    for pattern in patterns:
        if not any(fnmatchcase(conv.name, pattern) for conv in convs):
            names = ", ".join(conv.name for conv in convs[:8]) + (", ..." if len(convs) > 8 else "")
            raise InputError(
                f"--exclude refiner:{pattern}: expected a convolution of the refiner, found none; it has {names} "
                "(crispseg latency --layers lists them)"
            )
    return [
        conv
        for conv in convs
        if (edges or not conv.edge) and not any(fnmatchcase(conv.name, pattern) for pattern in patterns)
    ]


def _edge(graph: Graph, node: NodeProto) -> str:
    maker = graph.producer.get(role_of(node, "x"))
    if maker is not None and is_op(maker, "PixelFeatures"):
        return "first"
    y = output_of(node, 0)
    readers = [reader.op_type for reader in graph.readers.get(y, [])] if y else []
    return "last" if any(op in ("EnsembleLogits", "ScatterLabels") for op in readers) else ""


class _Groups:
    """Disjoint sets of tensor names; a set is called after the name that sorts first."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        first, second = sorted((self.of(a), self.of(b)))
        self._parent[second] = first
