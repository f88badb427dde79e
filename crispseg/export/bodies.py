"""Portable bodies: every op of the contract in standard ONNX ops (opset 17), as model-local functions.

With them a plain ONNX Runtime anywhere runs a refiner. Variants of one op (which optional inputs and outputs are
connected, which features, how the logits are upsampled) are told apart by ``FunctionProto.overload``.
"""

from __future__ import annotations

import re
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto, helper

from crispseg.export import bodies_front, bodies_maps, bodies_rows
from crispseg.plugins.ops import DOMAIN, check_attributes, check_connections


def node_attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node as plain Python values (strings decoded)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in values.items()}


def portable_body(node: NodeProto) -> FunctionProto:
    """The function that computes this node in standard ops; its ``overload`` names the variant.

    Raises:
        UnsupportedOp: the node is not one of the contract (op, attributes or connections).
    """
    where = f"node {node.name!r}" if node.name else "node"
    raw = node_attributes(node)
    attributes = check_attributes(node.op_type, raw, where)
    ins, outs = check_connections(node.op_type, node.input, node.output, attributes, where)
    if node.op_type == "SelectPixels":
        bounded = attributes["capacity"] < attributes["height"] * attributes["width"]
        overload = attributes["upsample"] + ("_capacity" if bounded else "")
        return bodies_front.select_pixels(overload, attributes)
    if node.op_type == "LogitsAt":
        return bodies_front.logits_at(attributes["upsample"], attributes)
    if node.op_type == "PixelFeatures":
        overload = re.sub(r"[^0-9A-Za-z.+-]+", "_", attributes["features"] + "," + attributes["channel_order"])
        return bodies_front.pixel_features(overload, attributes)
    if node.op_type == "SubmanifoldMap":
        return bodies_maps.submanifold_map("", attributes)
    if node.op_type == "DownMap":
        return bodies_maps.down_map(attributes["extent"], attributes)
    if node.op_type == "SparseConv2d":
        connected = [role for role, name in {**ins, **outs}.items() if name]
        variant: list[str] = [role for role in ("map", "bias", "residual", "z1", "z2") if role in connected]
        variant += (["relu"] if attributes["relu"] else []) + (["int8"] if attributes["x_scale"] else [])
        overload = "_".join(variant)
        return bodies_rows.sparse_conv2d(overload, attributes, connected)
    if node.op_type == "EnsembleLogits":
        return bodies_rows.ensemble_logits(attributes["mode"], attributes)
    return bodies_rows.scatter_labels("", attributes)


def attach_bodies(model: ModelProto) -> ModelProto:
    """Give every crispseg node of the model its overload and the model the functions they name (in place)."""
    functions: dict[tuple[str, str], FunctionProto] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        body = portable_body(node)
        node.overload = body.overload
        functions.setdefault((node.op_type, body.overload), body)
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept + [functions[key] for key in sorted(functions)])
    return model
