"""Where Q/DQ pairs go in a dense network: as TensorRT's explicit quantisation wants them.

TensorRT's rules (its developer guide, "Explicit quantization") in short: quantise the inputs of products, not their
outputs, so that Conv + Add + ReLU stay one kernel; of the two operands of a residual Add quantise the one that is not
the product; nothing stands between a product and its activation; operators that only move or select values keep one
scale on both sides. A tensor is quantised for all its readers or for none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from crispseg.errors import InputError
from crispseg.export.passes.fp16 import operators
from crispseg.export.passes.graph import Graph, flag

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# One scale on both sides: they move, select or interpolate values.
SHARED = operators(
    "MaxPool Resize Concat Transpose Reshape Slice Split Identity Squeeze Unsqueeze Flatten DepthToSpace"
)
ACTIVATIONS = ("Relu", "Clip")
FEWEST_FEATURES = 16  # a product of fewer inputs or outputs is an interpolation, not a layer
_COORDINATES = operators(
    "Add Sub Mul Div Neg Concat Transpose Reshape Unsqueeze Squeeze Slice Split Expand Tile Identity Clip MatMul"
)


@dataclass(frozen=True)
class Placement:
    """What becomes int8.

    ``nodes``: names of the products. ``tensors``: activations with a Q/DQ pair, in graph order. ``group``: tensor ->
    name of its scale; tensors of one group share it. ``ends``: float results of int8 products: engines that compute in
    integers throughout need their range. ``excluded``: products that stay float. ``macs_share``: of the multiply-adds.
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    group: dict[str, str]
    ends: tuple[str, ...]
    excluded: tuple[str, ...]
    macs_share: float

    @property
    def watched(self) -> tuple[str, ...]:
        """Tensors whose range is needed."""
        return (*self.tensors, *(name for name in self.ends if name not in self.group))


def place(
    model: ModelProto, exclude: Iterable[str] = (), keep_ops: Iterable[str] = (), head: bool = False
) -> Placement:
    """Choose the products that become int8, and the tensors that are quantised for them.

    Args:
        model: a dense network with named nodes, weights as float32 initialisers, every shape static.
        exclude: names of products (or patterns with ``*``) that stay float.
        keep_ops: operators that stay float.
        head: also the products whose result reaches an output through no other product: they stay float otherwise.

    Raises:
        InputError: an exclusion that matches nothing, an operator that is no product, or nothing is left.
    """
    graph = Graph(model)
    shapes = shapes_of(model)
    able = [node for node in graph.nodes if quantisable(graph, node)]
    able = [node for node in able if not feeds_grid(graph, node)]
    names = {node.name for node in able}
    out = _matching(exclude, names)
    unknown = [op for op in keep_ops if op not in PRODUCTS]
    if unknown:
        raise InputError(f"--keep-fp32 {unknown[0]}: expected operators of {', '.join(PRODUCTS)}")
    out |= {node.name for node in able if node.op_type in set(keep_ops)}
    noted = {n for e in model.metadata_props if e.key == "crispseg.float32" for n in e.value.split("\n")}
    out |= names & noted
    if not head:
        out |= heads(graph, names)
    chosen = [node for node in able if node.name not in out]
    if not able:
        raise InputError(
            "calibration: expected layers with float32 weights, found none; of a base from a float16 ONNX file, export "
            "the float32 file"
        )
    if not chosen:
        raise InputError("calibration: every layer is excluded; leave some of them to int8")
    group = _Groups()
    pending = [node.input[0] for node in chosen] + _residuals(graph, {id(node) for node in chosen}, shapes)
    while pending:
        name = pending.pop()
        if name in group.parent:
            continue
        group.add(name)
        source = graph.producer.get(name)
        if source is not None and source.op_type in SHARED:
            for item in source.input if source.op_type == "Concat" else source.input[:1]:
                if item not in graph.initializers:
                    pending.append(item)
                    group.join(name, item)
    order = {value.name: -1 for value in model.graph.input}
    order.update((name, i) for i, node in enumerate(graph.nodes) for name in node.output)
    tensors = sorted((name for name in group.used if name in order), key=lambda name: (order[name], name))
    ends = tuple(end for end in (end_of(graph, node) for node in chosen) if end not in group.used)
    return Placement(
        tuple(node.name for node in chosen),
        tuple(tensors),
        {name: group.root(name) for name in tensors},
        ends,
        tuple(sorted(out)),
        _share(graph, {node.name for node in chosen}, shapes),
    )


def shapes_of(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor.

    Raises:
        InputError: a side is open.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        sides = value.type.tensor_type.shape.dim
        if any(not side.HasField("dim_value") for side in sides):
            raise InputError(f"tensor {value.name}: expected fixed sides for calibration; export the network again")
        shapes[value.name] = tuple(side.dim_value for side in sides)
    return shapes


def quantisable(graph: Graph, node: NodeProto) -> bool:
    """A product of an activation and a float32 weight that looks like a layer's."""
    if node.op_type not in PRODUCTS or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return False
    weight = graph.array(node.input[1])
    if weight is None or weight.dtype != np.float32 or node.input[0] in graph.initializers:
        return False
    if node.op_type == "ConvTranspose" and flag(node, "group", 1) != 1:
        return False  # its channels lie on two axes
    if node.op_type in ("Gemm", "MatMul"):
        return weight.ndim == 2 and min(weight.shape) >= FEWEST_FEATURES and not flag(node, "transA")
    return True


def feeds_grid(graph: Graph, node: NodeProto) -> bool:
    """Whether a MatMul's result ends as coordinates of a GridSample."""
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    pending, seen = [node], set()
    while pending:
        for reader in [r for name in pending.pop().output for r in graph.readers[name]]:
            if reader.op_type == "GridSample":
                return True
            if reader.op_type in _COORDINATES and id(reader) not in seen:
                seen.add(id(reader))
                pending.append(reader)
    return False


def heads(graph: Graph, products: set[str]) -> set[str]:
    """Names of the products that reach an output of the graph through no other product."""
    found, pending, seen = set(), list(graph.outputs), set()
    while pending:
        name = pending.pop()
        node = graph.producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.name in products:
            found.add(node.name)
        else:
            pending.extend(node.input)
    return found


def end_of(graph: Graph, node: NodeProto) -> str:
    """Result of a product, behind the activation that belongs to it."""
    reader = graph.only_reader(node.output[0])
    return reader.output[0] if reader is not None and reader.op_type in ACTIVATIONS else node.output[0]


def weight_axis(node: NodeProto) -> int:
    """Axis of a product's weight that numbers the output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if flag(node, "transB") else 1
    return 1


def _residuals(graph: Graph, chosen: set[int], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The operand of each residual Add that is quantised: the other one joins its product in one kernel."""
    found = []
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.initializers for name in node.input):
            continue
        first, second = node.input
        if first == second or shapes[first] != shapes[second]:
            continue
        fused = [
            name
            for name in (first, second)
            if name in graph.producer and id(graph.producer[name]) in chosen and graph.only_reader(name) is node
        ]
        if fused:  # of two products the later one is fused
            last = max(fused, key=lambda name: graph.position[id(graph.producer[name])])
            found.append(second if last == first else first)
    return found


def _matching(patterns: Iterable[str], names: set[str]) -> set[str]:
    found = set()
    for pattern in patterns:
        matches = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matches:
            some = ", ".join(sorted(names)[:4])
            raise InputError(f"--exclude {pattern}: no layer of that name; there are {some}, ... (crispseg inspect)")
        found |= matches
    return found


def _share(graph: Graph, chosen: set[str], shapes: dict[str, tuple[int, ...]]) -> float:
    total = low = 0
    for node in graph.nodes:
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        weight, out = shapes[node.input[1]], int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            macs = out * int(np.prod(weight[1:]))
        elif node.op_type == "ConvTranspose":
            macs = int(np.prod(shapes[node.input[0]])) * int(np.prod(weight[1:]))
        else:
            macs = out * weight[-1 if node.op_type == "Gemm" and flag(node, "transB") else -2]
        total += macs
        low += macs if node.name in chosen else 0
    return low / total if total else 0.0


class _Groups:
    """Sets of tensors that share a scale (union-find); the root is the name that comes first."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.links: dict[str, str] = {}

    @property
    def used(self) -> set[str]:
        return set(self.parent)

    def add(self, name: str) -> None:
        self.parent[name] = name

    def join(self, one: str, other: str) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.links[high] = low

    def root(self, name: str) -> str:
        while self.links.get(name, name) != name:
            name = self.links[name]
        return name
