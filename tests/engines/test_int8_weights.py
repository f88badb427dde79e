"""int8 weights in a refiner's file: read exactly, refused when they are not those of the contract."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from native_net import Net, frame
from onnx import numpy_helper

from crispseg.engines.int8_weights import fold_dequantize
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.native_memory import is_shape_only
from crispseg.errors import BundleError, UnsupportedOp
from crispseg.plugins.quantise import quantise_by


def net():
    made = Net(3)
    made.head("rgb")
    made.conv("stem", "x", "map0", "count", 9, 3, 8, z=1)
    made.conv("a", "stem.z0", "map0", "count", 9, 8, 8, residual="stem", z=1, x_scale=0.02)
    made.conv("b", "a.z0", "map0", "count", 9, 8, 8, relu=1, x_scale=0.03)
    made.conv("yo", "b", "", "count", 1, 8, 5)
    made.tail("yo")
    return made


def node(model, op):
    return next(item for item in model.graph.node if item.op_type == op)


def change(model, name, value):
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def test_weights_and_scales_are_read_exactly(tmp_path):
    made = net()
    path = tmp_path / "refiner.onnx"
    path.write_bytes(made.model().SerializeToString())
    raw = check_graph(read_graph(path)).raw
    assert set(raw.weight_scales) == {"a.w", "b.w"}
    for name in ("a.w", "b.w"):
        np.testing.assert_array_equal(
            quantise_by(raw.constants[name], raw.weight_scales[name]), made.constants[name + ".q"]
        )
    assert [item.attributes["x_scale"] for item in raw.nodes if item.op == "SparseConv2d"] == pytest.approx(
        [0, 0.02, 0.03, 0]
    )


def test_integers_may_stay_what_they_are(tmp_path):
    """As the native engine reads them: a quarter of the memory."""
    made = net()
    path = tmp_path / "refiner.onnx"
    path.write_bytes(made.model().SerializeToString())
    raw = check_graph(read_graph(path, floats=False)).raw
    assert set(raw.integers) == set(raw.weight_scales) == {"a.w", "b.w"}
    for name, value in raw.integers.items():
        np.testing.assert_array_equal(value, made.constants[name + ".q"])
        assert is_shape_only(raw.constants[name])
        assert raw.constants[name].shape == value.shape
    assert not read_graph(path).integers


def test_a_float_convolution_with_an_int8_weight(tmp_path):
    """No x_scale: the weight is stored as int8, the arithmetic is float32; also from an artefact."""
    from native_net import interpret
    from test_native_artefact import Files

    from crispseg.engines import native, native_artefact
    from crispseg.engines.spec import EngineSpec
    from crispseg.errors import EnvironmentMismatch
    from crispseg.plugins.loader import available_isas

    try:
        available_isas()
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    made = net()
    made.extra = ["yo"]
    model = made.model()
    for item in model.graph.node:
        for attribute in [a for a in item.attribute if a.name == "x_scale"]:
            item.attribute.remove(attribute)
    bundle = Files(tmp_path, model)
    exact = interpret(model, frame(1))["yo"]
    found = []
    for artefact in (None, native_artefact.build(bundle, deterministic=True)):
        with native.load(bundle.file("refiner.onnx"), EngineSpec(threads=1), artefact=artefact) as engine:
            found.append(engine.run(frame(1))["yo"])
            assert "int8" not in {layer.algorithm for layer in engine.layers()}
    assert np.abs(found[0] - exact).max() < 1e-5 * np.abs(exact).max()
    np.testing.assert_array_equal(*found)


def float_weight(model):
    conv = next(item for item in model.graph.node if item.output[0] == "a")
    conv.input[3] = "b2w"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((9, 8, 8), np.float32), "b2w"))


BAD = {
    "float weight": float_weight,
    "axis": lambda m: setattr(node(m, "DequantizeLinear").attribute[0], "i", 1),
    "no axis": lambda m: node(m, "DequantizeLinear").attribute.pop(),
    "zero point": lambda m: change(m, "b.w.zero", np.ones(8, np.int8)),
    "-128": lambda m: change(m, "a.w.q", np.full((9, 8, 8), -128, np.int8)),
    "scale 0": lambda m: change(m, "a.w.scale", np.zeros(8, np.float32)),
    "scales": lambda m: change(m, "a.w.scale", np.ones(7, np.float32)),
    "float16 scales": lambda m: change(m, "a.w.scale", np.ones(8, np.float16)),
    "float values": lambda m: change(m, "a.w.q", np.ones((9, 8, 8), np.float32)),
    "rank": lambda m: change(m, "a.w.q", np.ones((72, 8), np.int8)),
    "activation": lambda m: node(m, "DequantizeLinear").input.__setitem__(0, "x"),
    "int8 bias": lambda m: change(m, "yo.b", np.ones(5, np.int8)),
}


@pytest.mark.parametrize("name", list(BAD))
def test_other_weights_are_refused(tmp_path, name):
    made = net()
    if name == "zero point":
        made.constants.setdefault("b.w.zero", np.zeros(8, np.int8))
        dequantise = [item for item in made.nodes if item.op_type == "DequantizeLinear"][1]
        if len(dequantise.input) == 2:
            dequantise.input.append("b.w.zero")
    model = made.model()
    BAD[name](model)
    path = tmp_path / "refiner.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises((BundleError, UnsupportedOp)) as caught:
        check_graph(read_graph(path))
    assert str(path) in str(caught.value)


def test_an_attribute_that_is_not_known_is_refused():
    item = node(net().model(), "DequantizeLinear")
    item.attribute.add().name = "block_size"
    with pytest.raises(UnsupportedOp, match="axis 2 alone"):
        fold_dequantize(item, {}, "here")


def test_onnx_runtime_runs_the_portable_bodies():
    ort = pytest.importorskip("onnxruntime")
    from native_net import interpret

    from crispseg.export.bodies import attach_bodies

    made = net()
    made.extra = ["a", "b", "yo"]
    model, feeds = made.model(), frame(1)
    exact = interpret(model, feeds)
    session = ort.InferenceSession(attach_bodies(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
    np.testing.assert_allclose(found["a"], exact["a"], atol=0.05)  # ties at the border of two integers
    assert np.abs(found["yo"] - exact["yo"]).mean() < 1e-3
    assert np.abs(found["yo"] - exact["yo"]).max() < 0.1
