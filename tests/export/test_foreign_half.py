"""ONNX files whose image, logits, or both are float16."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime as ort  # noqa: E402
from foreign_cases import SIZE, C, bundle, exported, image, run, save, wrapped  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.bundle import load_bundle  # noqa: E402
from crispseg.calibration.base import read_dense  # noqa: E402
from crispseg.calibration.placement import place  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.errors import InputError  # noqa: E402

torch.set_num_threads(1)
HALF = TensorProto.FLOAT16


def halved(kind="tensor", first=True, last=True, channels_last=False, **options):
    """A network in float16 throughout; ``first``, ``last``: so are its input and its output."""
    model = exported(kind, **options)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(attribute.t)
                if node.output[0] not in {n.input[2] for n in graph.node if n.op_type == "Resize" and len(n.input) > 2}:
                    attribute.t.CopyFrom(numpy_helper.from_array(values.astype(np.float16)))
    graph.input[0].type.tensor_type.elem_type = graph.output[0].type.tensor_type.elem_type = HALF
    if not first:
        for node in graph.node:
            node.input[:] = ["x.half" if name == "x" else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", ["x"], ["x.half"], to=HALF))
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    name = graph.output[0].name
    if channels_last:
        shape = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
        output = helper.make_tensor_value_info("y", HALF, [shape[0], shape[2], shape[3], shape[1]])
        model = wrapped(model, [helper.make_node("Transpose", ["nhwc"], ["x"], perm=[0, 3, 1, 2])],
                        [helper.make_node("Transpose", [name], ["y"], perm=[0, 2, 3, 1])], output=output,
                        input=helper.make_tensor_value_info("nhwc", HALF, (1, *SIZE, 3)))  # fmt: skip
    elif not last:
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        model = wrapped(model, after=[helper.make_node("Cast", [name], ["y"], to=TensorProto.FLOAT)], output=output)
    return model


def original(model, x):
    """What ONNX Runtime says of the file as it is."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    x = x.transpose(0, 2, 3, 1) if port.shape[-1] == 3 else x
    x = x.astype(np.float16) if port.type == "tensor(float16)" else x
    found = session.run(None, {port.name: x})[0].astype(np.float32)
    return found.transpose(0, 3, 1, 2) if found.shape[1] != C else found


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, "image and logits"),
        ({"last": False}, "image"),
        ({"first": False}, "logits"),
        ({"channels_last": True}, "image and logits"),
        ({"dynamic": True, "opset": 18}, "image and logits"),
    ],
)
def test_the_bundle_computes_what_the_file_does(tmp_path, options, parts):
    model = halved(**options)
    made, said = bundle(tmp_path, save(tmp_path, model))
    x = image().astype(np.float16).astype(np.float32)
    wanted = original(model, x)
    np.testing.assert_allclose(run(made, x), wanted, atol=2e-3 * wanted.std())
    assert f"assumed: {parts} in float16: a Cast is added, the arithmetic stays the file's" in said
    graph = onnx.load(str(made.file("base.onnx"))).graph
    assert [v.type.tensor_type.elem_type for v in (graph.input[0], graph.output[0])] == [TensorProto.FLOAT] * 2
    assert all(t.data_type == HALF for t in graph.initializer if len(t.dims) == 4), "weights stay as they were"
    assert made.provenance["base"]["parity"]["gate"] == 5e-2
    assert made.provenance["base"]["parity"]["max_error_std"] < 2e-3


@pytest.mark.parametrize("kind", ["probabilities", "enlarged probabilities"])
def test_probabilities(tmp_path, kind):
    """A float16 softmax is left out, or its logarithm is taken."""
    model = halved(kind)
    made, _ = bundle(tmp_path, save(tmp_path, model))
    x = image().astype(np.float16).astype(np.float32)
    found = np.exp(run(made, x))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), original(model, x), atol=2e-3)
    assert made.provenance["base"]["parity"]["max_error_std"] < 1e-2


def test_export_run_and_verify(tmp_path, capsys):
    save(tmp_path, halved())
    size = ["--size", "44x68", "--scale", "0.5", "--classes", str(tmp_path / "classes.json")]
    (tmp_path / "classes.json").write_text(str([f"c{i}" for i in range(C)]).replace("'", '"'))
    file = ["--onnx", str(tmp_path / "net.onnx")]
    assert main(["export", *file, *size, "--refiner", "none", "-o", str(tmp_path / "b")]) == 0
    assert load_bundle(tmp_path / "b").base.file == "base.onnx"
    assert main(["verify", str(tmp_path / "b"), *file, "--frames", "1"]) == 0
    capsys.readouterr()


def test_int8_asks_for_the_float32_file(tmp_path):
    made, _ = bundle(tmp_path, save(tmp_path, halved()))
    with pytest.raises(InputError, match="of a base from a float16 ONNX file, export the float32 file"):
        place(read_dense(made.file("base.onnx")))
