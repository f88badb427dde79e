"""A float16 network in float32 operators that round every tensor to float16: what a device computes that accumulates
in float32 and stores float16. (ONNX Runtime's CPU provider runs a float16 network too, but drops pairs of casts.)"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper


def emulated(model):
    """A copy of ``model`` whose float16 tensors are float32 tensors of float16 values."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    half = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
    out = onnx.ModelProto.FromString(model.SerializeToString())
    graph = out.graph
    nodes = []
    for node in model.graph.node:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT
        rounded = [(i, name) for i, name in enumerate(node.output) if name in half]
        for i, name in rounded:
            node.output[i] = name + ".exact"
        nodes.append(node)
        for _, name in rounded:
            # A Reshape that keeps the shape stands between the casts, so that no optimiser removes the pair.
            shape = f"keep{rank[name]}"
            nodes.append(helper.make_node("Cast", [name + ".exact"], [name + ".a"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Reshape", [name + ".a", shape], [name + ".b"]))
            nodes.append(helper.make_node("Cast", [name + ".b"], [name], to=TensorProto.FLOAT))
            if shape not in {t.name for t in graph.initializer}:
                graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [rank[name]], [0] * rank[name]))
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)
    return out
