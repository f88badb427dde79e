"""Portable bodies of SparseConv2d, EnsembleLogits and ScatterLabels: ops on rows."""

from __future__ import annotations

from typing import Any, Collection, Mapping

from onnx import FunctionProto

from crispseg.export.functions import Body
from crispseg.plugins.ops import BY_NAME


def sparse_conv2d(overload: str, attributes: Mapping[str, Any], connected: Collection[str]) -> FunctionProto:
    """SparseConv2d as one Gather and one large MatMul, which is the fastest form in ONNX Runtime.

    Entry -1 of the map addresses the last row of the padded input, which is zero. With x_scale the input is rounded to
    the int8 grid; the weight input lies on its own already. Integer kernels agree up to the rounding of the float sum.

    Args:
        overload: name of the variant.
        attributes: checked attributes of the node.
        connected: roles of the node's connected inputs and outputs.
    """
    b = Body(BY_NAME["SparseConv2d"])
    weight = "weight"
    inner = b.vector(b.const(-1), b.dim(weight, 2))
    flat = b("Reshape", weight, inner)
    x = rows = _on_grid(b) if attributes["x_scale"] else "x"
    if "map" in connected:
        zero = b("Expand", b.f32([[0]]), b.vector(b.const(1), b.dim(weight, 1)))
        gathered = b("Gather", b("Concat", x, zero, axis=0), "map", axis=0)
        rows = b("Reshape", gathered, b.vector(b.const(-1), b.dim(flat, 0)))
    y = b("MatMul", rows, flat)
    for extra in ("bias", "residual"):
        if extra in connected:
            y = b("Add", y, extra)
    b("Relu" if attributes["relu"] else "Identity", y, out="y")
    outputs = ["y"]
    for i in ("1", "2"):
        if "z" + i in connected:
            b("Relu", b("Add", b("Mul", "y", "scale" + i), "shift" + i), out="z" + i)
        elif i == "1" and "z2" in connected:
            b("Identity", "y", out="z1")  # never read: z2 alone keeps its position in the output list
        else:
            continue
        outputs.append("z" + i)
    return b.function(overload, outputs)


def _on_grid(b: Body) -> str:
    """Values of x rounded to multiples of x_scale within +-127 of them. (QuantizeLinear would let -128 in.)"""
    scale = b.attribute("x_scale")
    q = b("Clip", b("Round", b("Div", "x", scale)), b.f32(-127), b.f32(127))
    return b("Mul", q, scale)


def ensemble_logits(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """EnsembleLogits, both modes."""
    b = Body(BY_NAME["EnsembleLogits"])
    parts = []
    for logits in ("yi", "yo"):
        p = b("Softmax", logits, axis=1)
        parts += [p, b.entropy(p, axis=1, keepdims=1)]
    if attributes["mode"] == "entropy":
        b("Where", b("Less", parts[1], parts[3]), "yi", "yo", out="ye")
        return b.function(overload, ["ye"])
    hidden = b("Relu", _linear(b, b("Concat", *parts, axis=1), "w1", "b1"))
    gate = b("Softmax", _linear(b, hidden, "w2", "b2"), axis=1)
    mixed = [b("Mul", b("Gather", gate, b.const([i]), axis=1), x) for i, x in enumerate(("yi", "yo"))]
    fused = b("Relu", _linear(b, b("Add", *mixed), "w3", "b3"))
    _linear(b, fused, "w4", "b4", out="ye")
    return b.function(overload, ["ye"])


def _linear(b: Body, x: str, weight: str, bias: str, out: str | None = None) -> str:
    return b("Add", b("MatMul", x, b("Transpose", weight, perm=[1, 0])), bias, out=out)


def scatter_labels(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """ScatterLabels: argmax and confidence of the rows, written at their sites."""
    b = Body(BY_NAME["ScatterLabels"])
    sites = b.cast("coords", "int64")
    best = b.cast(b("ArgMax", "ye", axis=1, keepdims=0), "uint8")
    highest = b("ReduceMax", b("Softmax", "ye", axis=1), axes=[1], keepdims=0)
    sure = b.cast(b("Round", b("Mul", highest, b.f32(255))), "uint8")
    b("ScatterND", "labels", sites, best, out="labels_out")
    b("ScatterND", "confidence", sites, sure, out="confidence_out")
    return b.function(overload, ["labels_out", "confidence_out"])
