"""Operators of foreign bases that TensorRT reads under another name or not at all."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from foreign_cases import SIZE, C, bundle, save  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.export import sources  # noqa: E402
from crispseg.export.sources import Foreign  # noqa: E402

torch.set_num_threads(1)


def grid_sample(opset):
    """1x3x22x34 -> 5 classes, warped by a constant grid."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal((C, 3, 1, 1)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.uniform(-1, 1, (1, *SIZE, 2)).astype(np.float32), "grid"),
    ]
    mode = "linear" if opset >= 20 else "bilinear"
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GridSample", ["c", "grid"], ["y"], mode=mode, align_corners=1),
    ]
    entries = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, k, *SIZE)) for n, k in (("x", 3), ("y", C))]
    graph = helper.make_graph(nodes, "g", entries[:1], entries[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


@pytest.mark.parametrize("opset", [16, 17, 20])
def test_grid_sample_leaves_by_its_old_name(tmp_path, opset):
    made, _ = bundle(tmp_path, save(tmp_path, grid_sample(opset)))
    model = onnx.load(str(made.file("base.onnx")))
    (node,) = [n for n in model.graph.node if n.op_type == "GridSample"]
    assert {a.name: a.s for a in node.attribute}["mode"] == b"bilinear"
    assert model.opset_import[0].version == min(opset, 17)
    assert made.provenance["base"]["parity"]["max_error_std"] < 1e-5


def test_operators_that_tensorrt_lacks_are_named():
    node = helper.make_node("Det", ["x"], ["y"], name="tail")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))
    graph = helper.make_graph([node], "g", [entry], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ())])
    gaps = sources.tensorrt_gaps(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert gaps["8.5"] == ["tail (Det)"]


def test_operators_that_tensorrt_lacks_come_with_a_remedy(tmp_path):
    from crispseg.engines.tensorrt.operators import REMEDIES, advice, table

    assert not set(REMEDIES) & set(table("8.5")["operators"])
    (text,) = advice("8.5", ["a/LayerNormalization (LayerNormalization)", "b (LayerNormalization)"])
    assert text.startswith(
        "TensorRT 8.5 does not list LayerNormalization (node a/LayerNormalization and 1 more): write it as"
    )
    assert "--backend cuda" in text
    assert advice("8.5", ["opset 18 (TensorRT 8.5 reads up to 17)"])[0].endswith("export it at an older opset")
    made, said = bundle(tmp_path, Foreign(module="foreign_nets:normalised"))
    (node,) = [n.name for n in onnx.load(str(made.file("base.onnx"))).graph.node if n.op_type == "LayerNormalization"]
    assert made.provenance["base"]["tensorrt_unsupported"] == {"8.5": [f"{node} (LayerNormalization)"]}
    assert [t for t in said if t.startswith(f"TensorRT 8.5 does not list LayerNormalization (node {node}): write")]
