"""Weights of an int8 network as TensorRT 8 wants them: float32 with a Q/DQ pair of their own.

The calibrated file stores int8 weights behind a DequantizeLinear. TensorRT 8's parser knows no int8 weights; it
quantises float ones when it builds. Quantising the dequantised weight again gives the same integers. Valid on Python
3.8: a device converts before it builds.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def weight_pairs(model: ModelProto) -> int:
    """Replace int8 weights by float32 ones with a QuantizeLinear, in place; returns how many."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, fresh, count = [], [], 0
    for source in graph.node:
        node = NodeProto.FromString(source.SerializeToString())
        tensor = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is not None and tensor.data_type == TensorProto.INT8:
            name = node.input[0]
            q, scale = numpy_helper.to_array(tensor), numpy_helper.to_array(tensors[node.input[1]])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            sides = [-1 if i == axis else 1 for i in range(q.ndim)] if scale.size > 1 else [1] * q.ndim
            value = q.astype(np.float32) * scale.astype(np.float32).reshape(sides)
            fresh.append(numpy_helper.from_array(value, name + ".float"))
            pair = helper.make_node(
                "QuantizeLinear", [name + ".float", *node.input[1:]], [name], name + ".quantise", axis=axis
            )
            nodes.append(pair)
            del tensors[name]
            count += 1
        nodes.append(node)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in tensors]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *fresh])
    del graph.node[:]
    graph.node.extend(nodes)
    return count
