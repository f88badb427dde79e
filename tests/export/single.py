"""Run one op of the contract in ONNX Runtime through its portable body."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from crispseg.export.bodies import attach_bodies
from crispseg.plugins.ops import BY_NAME, DOMAIN, IR_VERSION, OPSET, PLUGIN_ATTRIBUTES

_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8}


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node(op_name, feeds, attributes, outputs=None):
    """Model of one node: feeds by role (absent = unconnected), outputs = roles wanted (default: required ones)."""
    op = BY_NAME[op_name]
    wanted = outputs or [role.name for role in op.outputs if not role.optional]
    node = helper.make_node(
        op_name,
        [role.name if role.name in feeds else "" for role in op.inputs],
        [role.name if role.name in wanted else "" for role in op.outputs],
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    while node.output and not node.output[-1]:
        node.output.pop()
    inputs = [
        helper.make_tensor_value_info(r.name, _TYPES[r.dtype], [None] * r.rank) for r in op.inputs if r.name in feeds
    ]
    results = [
        helper.make_tensor_value_info(r.name, _TYPES[r.dtype], [None] * r.rank) for r in op.outputs if r.name in wanted
    ]
    graph = helper.make_graph([node], op_name, inputs, results)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = attach_bodies(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION))
    onnx.checker.check_model(model)
    return model


def run(op_name, feeds, attributes, outputs=None):
    """{role: array} of one op."""
    model = one_node(op_name, feeds, attributes, outputs)
    runner = session(model)
    used = {i.name for i in runner.get_inputs()}  # an input that a body does not read is optimised away
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, {k: np.ascontiguousarray(v) for k, v in feeds.items() if k in used})))
