"""Fold BatchNorm into the convolution before it.

Before: SparseConv2d (only y, no residual, no relu) whose y is read by one inference BatchNormalization alone.
After: one SparseConv2d with scaled weight and a bias; no such pair is left.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from crispseg.errors import UnsupportedOp
from crispseg.export.passes.graph import Graph, affine, connect, flag, output_of, role_of


def fold_batchnorm(model: ModelProto) -> int:
    """Fold in place; returns how many were folded. Products are formed in double.

    Raises:
        UnsupportedOp: weight and BatchNorm do not have the same number of channels.
    """
    graph = Graph(model)
    dropped = set()
    for norm in graph.nodes:
        terms = affine(graph, norm)
        conv = graph.convolution(norm.input[0]) if terms is not None else None
        if terms is None or conv is None or graph.only_reader(norm.input[0]) is None or not _plain(conv):
            continue
        weight = graph.array(role_of(conv, "weight"))
        bias = graph.array(role_of(conv, "bias")) if role_of(conv, "bias") else np.float64(0)
        if weight is None or bias is None:
            continue
        scale, shift = terms
        if weight.ndim != 3 or weight.shape[2] != len(scale):
            raise UnsupportedOp(
                f"node {conv.name!r}: expected a weight [K,Cin,{len(scale)}] before BatchNorm {norm.name!r}, "
                f"found {list(weight.shape)}"
            )
        stem = conv.name or conv.output[0]
        connect(conv, "weight", graph.add_initializer(f"{stem}.weight", weight * scale))
        connect(conv, "bias", graph.add_initializer(f"{stem}.bias", bias * scale + shift))
        conv.output[0] = norm.output[0]
        graph.producer[norm.output[0]] = conv
        dropped.add(id(norm))
    if dropped:
        graph.replace_nodes([node for node in graph.nodes if id(node) not in dropped])
    return len(dropped)


def _plain(conv: NodeProto) -> bool:
    return not (role_of(conv, "residual") or flag(conv, "relu") or output_of(conv, 1) or output_of(conv, 2))
