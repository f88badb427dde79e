"""Store convolution weights as float16.

Before: SparseConv2d whose weight is a float32 initialiser.
After: a float16 initialiser and a Cast to float32 in front of the node. The arithmetic stays float32; the file and
the download halve. A runtime folds the Cast when it loads the graph.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crispseg.errors import InputError
from crispseg.export.passes.graph import Graph, connect, is_op, role_of


def half_weights(model: ModelProto) -> int:
    """Convert in place; returns how many weights were converted.

    Raises:
        InputError: a weight does not fit in float16 (above 65504, or not finite).
    """
    graph = Graph(model)
    casts = {}
    for node in graph.nodes:
        name = role_of(node, "weight") if is_op(node, "SparseConv2d") else ""
        tensor = graph.initializers.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            continue
        if name not in casts:
            value = numpy_helper.to_array(tensor)
            largest = float(np.abs(value).max(initial=0.0))
            if not largest <= float(np.finfo(np.float16).max):
                raise InputError(
                    f"weight {name!r}: expected values up to 65504 for float16, found {largest:g}; use float32 weights"
                )
            stored = f"{name}.half"
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), stored))
            casts[name] = helper.make_node("Cast", [stored], [f"{name}.full"], f"{name}.full", to=TensorProto.FLOAT)
        connect(node, "weight", f"{name}.full")
    graph.replace_nodes(list(casts.values()) + graph.nodes)
    return len(casts)
