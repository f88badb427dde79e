"""What the passes need to know about a graph: who makes a tensor, who reads it, which node input has which role."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from crispseg.plugins.ops import BY_NAME, DOMAIN


class Graph:
    """Index of a model's main graph, valid until nodes are added or removed (then make another)."""

    def __init__(self, model: ModelProto) -> None:
        """Index ``model`` in one walk."""
        self.model = model
        self.nodes = list(model.graph.node)
        self.position = {id(node): i for i, node in enumerate(self.nodes)}
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producer.update((name, node) for name in node.output if name)
            for name in node.input:
                if name:
                    self.readers[name].append(node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.taken = set(self.producer) | set(self.initializers) | {value.name for value in model.graph.input}

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads ``name``, None when there are more, none, or it is an output of the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def convolution(self, name: str) -> NodeProto | None:
        """The SparseConv2d whose y is ``name``."""
        node = self.producer.get(name)
        return node if node is not None and is_op(node, "SparseConv2d") and node.output[0] == name else None

    def array(self, name: str) -> np.ndarray | None:
        """Value of an initialiser in its own shape and type, None for anything else."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add_initializer(self, name: str, value: np.ndarray) -> str:
        """Add an array as float32 under ``name``, or ``name`` and a number when that is taken; returns the name."""
        unique, i = name, 1
        while unique in self.taken:
            unique, i = f"{name}_{i}", i + 1
        self.taken.add(unique)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), unique))
        self.initializers[unique] = self.model.graph.initializer[-1]
        return unique

    def replace_nodes(self, nodes: list[NodeProto]) -> None:
        """Make ``nodes`` the graph's nodes, in this order."""
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)


def is_op(node: NodeProto, name: str) -> bool:
    """Whether the node is op ``name`` of the contract."""
    return node.domain == DOMAIN and node.op_type == name


def role_of(node: NodeProto, role: str) -> str:
    """Tensor connected to an input role of a crispseg node, "" when there is none. KeyError: no such role."""
    for i, record in enumerate(BY_NAME[node.op_type].inputs):
        if record.name == role:
            return node.input[i] if i < len(node.input) else ""
    raise KeyError(role)


def connect(node: NodeProto, role: str, name: str) -> None:
    """Connect an input role of a crispseg node, with "" for the optional ones before it. KeyError: no such role."""
    for i, record in enumerate(BY_NAME[node.op_type].inputs):
        if record.name == role:
            while len(node.input) <= i:
                node.input.append("")
            node.input[i] = name
            return
    raise KeyError(role)


def output_of(node: NodeProto, index: int) -> str:
    """Name of an output, "" when it is not connected."""
    return node.output[index] if index < len(node.output) else ""


def flag(node: NodeProto, name: str, default: int = 0) -> int:
    """Value of an int attribute."""
    for attribute in node.attribute:
        if attribute.name == name:
            return int(helper.get_attribute_value(attribute))
    return default


def set_flag(node: NodeProto, name: str, value: int) -> None:
    """Set an int attribute, present or not."""
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
            return
    node.attribute.append(helper.make_attribute(name, value))


def affine(graph: Graph, norm: NodeProto) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift (float64 [C]) of an inference BatchNormalization over initialisers, None for any other node."""
    if norm.op_type != "BatchNormalization" or norm.domain or len(norm.output) != 1 or flag(norm, "training_mode"):
        return None
    arrays = [graph.array(name) for name in norm.input[1:5]]
    if any(a is None for a in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale
