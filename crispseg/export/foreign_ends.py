"""Both ends of a foreign graph: its own input and output are connected to "image" and "logits"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from crispseg.errors import InputError
from crispseg.export.foreign_probe import FLOOR


def _replace(graph: onnx.GraphProto, old: str, new: str, outputs: bool) -> None:
    for node in graph.node:
        node.input[:] = [new if n == old else n for n in node.input]
        if outputs:
            node.output[:] = [new if n == old else n for n in node.output]


def _give_up(graph: onnx.GraphProto, name: str) -> None:
    """Rename what the file itself calls ``name``."""
    _replace(graph, name, f"{name}.inner", True)
    for tensor in graph.initializer:
        tensor.name = f"{name}.inner" if tensor.name == name else tensor.name


def connect_input(graph: onnx.GraphProto, name: str, layout: str, half: bool) -> None:
    """Feed the tensor ``name``, of ``layout`` and float16 where ``half``, from "image" float32 NCHW; in place."""
    if name != "image":
        _give_up(graph, "image")
    last, nodes = "image", []
    if half:
        nodes.append(helper.make_node("Cast", [last], ["image.half"], name="half/in", to=TensorProto.FLOAT16))
        last = "image.half"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [last], ["image.nhwc"], name="layout/in", perm=[0, 2, 3, 1]))
        last = "image.nhwc"
    _replace(graph, name, last, False)
    for node in reversed(nodes):
        graph.node.insert(0, node)


def without_softmax(
    path: Path, graph: onnx.GraphProto, output: str, layout: str, assumed: list[str]
) -> tuple[bool, str]:
    """(whether a last softmax over the classes was left out, name of what remains). Raises InputError: no logits."""
    producer = next((n for n in graph.node if output in n.output), None)
    if producer is not None and producer.op_type in ("Sigmoid", "HardSigmoid"):
        raise InputError(
            f"--onnx {path}: ends in a {producer.op_type}: expected logits, which a softmax over the classes turns "
            "into probabilities; export the network without it"
        )
    if producer is None or producer.op_type not in ("Softmax", "LogSoftmax"):
        return False, output
    axis = next((a.i for a in producer.attribute if a.name == "axis"), -1) % 4
    if axis != (1 if layout == "NCHW" else 3):
        raise InputError(f"--onnx {path}: ends in a {producer.op_type} over axis {axis}: expected logits")
    if producer.op_type == "LogSoftmax":
        return False, output  # its softmax is the network's: as good as logits
    assumed.append("the last Softmax is left out: the logits before it are used")
    return True, producer.input[0]


def connect_output(graph: onnx.GraphProto, name: str, layout: str, half: bool) -> None:
    """Make "logits" float32 NCHW of the tensor ``name``, of ``layout`` and float16 where ``half``; in place."""
    if name != "logits":
        _give_up(graph, "logits")
    last = "logits.half" if half else "logits.nhwc" if layout == "NHWC" else "logits"
    _replace(graph, name, last, True)
    if half:
        made = "logits.nhwc" if layout == "NHWC" else "logits"
        graph.node.append(helper.make_node("Cast", [last], [made], name="half/out", to=TensorProto.FLOAT))
        last = made
    if layout == "NHWC":
        graph.node.append(helper.make_node("Transpose", [last], ["logits"], name="layout/out", perm=[0, 3, 1, 2]))


def take_logarithm(graph: onnx.GraphProto) -> None:
    """Put the logarithm of probabilities in their place, in place; ``FLOOR`` bounds them."""
    _replace(graph, "logits", "logits.probabilities", True)
    graph.initializer.append(numpy_helper.from_array(np.array(FLOOR, np.float32), "logits.floor"))
    nodes = (
        ("Max", ["logits.probabilities", "logits.floor"], "logits.clamped"),
        ("Log", ["logits.clamped"], "logits"),
    )
    for kind, inputs, output in nodes:
        graph.node.append(helper.make_node(kind, inputs, [output], name=f"logits/{kind.lower()}"))
