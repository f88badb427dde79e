"""The float16 pass: what stays float32, what is refused, and that labels stay the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from half_emulation import emulated
from onnx import TensorProto, helper, numpy_helper

from crispseg.engines.tensorrt.operators import unsupported
from crispseg.errors import InputError, UnsupportedOp
from crispseg.export.passes.fp16 import HALF, KEEP, to_fp16

sys.path.insert(0, str(Path(__file__).parents[1]))

BUNDLE = Path(__file__).parents[2] / "demo" / "bundle"
AGREEMENT = 0.995


def network(nodes, inputs, outputs, weights=(), opset=17):
    graph = helper.make_graph(
        [helper.make_node(op, list(i), list(o), name=o[0], **a) for op, i, o, a in nodes],
        "net",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def copied(model):
    return onnx.ModelProto.FromString(model.SerializeToString())


def run(model, feeds):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def types(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    found = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    found.update((v.name, v.type.tensor_type.elem_type) for v in [*inferred.graph.input, *inferred.graph.output])
    return found


F, H = TensorProto.FLOAT, TensorProto.FLOAT16
IMAGE = [("x", F, [1, 4, 6, 8])]
RNG = np.random.default_rng(0)
KERNEL = ("w", RNG.standard_normal((4, 4, 1, 1)).astype(np.float32) * 0.5)
CONV = ("Conv", ["x", "w"], ["c"], {})


def test_lists_do_not_overlap():
    assert not HALF & KEEP
    assert {"Softmax", "GridSample", "ReduceMean", "Exp", "Log", "Pow"} <= KEEP


def test_inputs_and_outputs_stay_float32_unless_asked():
    model = network([CONV, ("Relu", ["c"], ["y"], {})], IMAGE, [("y", F, [1, 4, 6, 8])], [KERNEL])
    kept = copied(model)
    result = to_fp16(kept)
    assert (result.half, result.kept, result.casts) == (2, {}, 2)
    found = types(kept)
    assert found["x"] == found["y"] == F
    assert found["c"] == H
    half = copied(model)
    assert to_fp16(half, half_io=True).casts == 0
    assert types(half)["x"] == types(half)["y"] == H


def test_an_output_that_is_read_again_keeps_its_name_and_type():
    nodes = [CONV, ("Relu", ["c"], ["d"], {}), ("Conv", ["d", "w"], ["y"], {})]
    ends = [("c", F, [1, 4, 6, 8]), ("y", F, [1, 4, 6, 8])]
    model = network(nodes, IMAGE, ends, [KERNEL])
    half = copied(model)
    to_fp16(half)
    assert types(half)["c"] == F
    assert types(half)["d"] == H
    x = RNG.standard_normal((1, 4, 6, 8)).astype(np.float32)
    for got, wanted in zip(run(half, {"x": x}), run(model, {"x": x})):
        np.testing.assert_allclose(got, wanted, atol=1e-2)


def test_softmax_and_entropy_stay_float32():
    nodes = [
        CONV,
        ("Softmax", ["c"], ["p"], {"axis": 1}),
        ("Max", ["p", "floor"], ["q"], {}),
        ("Log", ["q"], ["l"], {}),
        ("Mul", ["p", "l"], ["pl"], {}),
        ("ReduceSum", ["pl", "axes"], ["s"], {"keepdims": 1}),
        ("Neg", ["s"], ["y"], {}),
    ]
    weights = [KERNEL, ("floor", np.float32(1e-5)), ("axes", np.array([1]))]
    model = network(nodes, IMAGE, [("y", F, [1, 1, 6, 8])], weights)
    half = copied(model)
    kept = to_fp16(half).kept
    assert set(kept) >= {"p", "q", "l", "pl", "s"}
    assert kept["q"].startswith("constant 1e-05")
    assert kept["pl"] == "between nodes that stay"
    assert all(types(half)[name] == F for name in ("p", "q", "l", "pl", "s"))


def test_normalisation_keeps_squares_epsilon_and_division():
    nodes = [
        CONV,
        ("ReduceMean", ["c"], ["m"], {"axes": [1], "keepdims": 1}),
        ("Sub", ["c", "m"], ["d"], {}),
        ("Pow", ["d", "two"], ["sq"], {}),
        ("ReduceMean", ["sq"], ["v"], {"axes": [1], "keepdims": 1}),
        ("Add", ["v", "eps"], ["ve"], {}),
        ("Sqrt", ["ve"], ["sd"], {}),
        ("Div", ["d", "sd"], ["n"], {}),
        ("Relu", ["n"], ["y"], {}),
    ]
    weights = [KERNEL, ("two", np.float32(2)), ("eps", np.float32(1e-5))]
    model = network(nodes, IMAGE, [("y", F, [1, 4, 6, 8])], weights)
    half = copied(model)
    kept = to_fp16(half).kept
    assert {"m", "sq", "v", "ve", "sd", "n"} <= set(kept)
    assert kept["n"] == "divides by what stayed"
    assert "c" not in kept
    # Activations of 300: their squares overflow float16, a pass without the list would give inf here.
    x = (RNG.standard_normal((1, 4, 6, 8)) * 600).astype(np.float32)
    got, wanted = run(emulated(half), {"x": x})[0], run(model, {"x": x})[0]
    np.testing.assert_allclose(got, wanted, atol=5e-3)
    broken = copied(model)
    to_fp16(broken, keep=frozenset())  # operators outside HALF stay all the same
    assert {"sq", "sd"} <= set(to_fp16(copied(model), keep=frozenset()).kept)


def test_grid_and_its_arithmetic_stay_float32():
    nodes = [
        CONV,
        ("Conv", ["x", "fw"], ["flow"], {}),
        ("Transpose", ["flow"], ["t"], {"perm": [0, 2, 3, 1]}),
        ("Div", ["t", "size"], ["scaled"], {}),
        ("Add", ["scaled", "grid"], ["at"], {}),
        ("GridSample", ["c", "at"], ["g"], {"align_corners": 1}),
        ("Relu", ["g"], ["y"], {}),
    ]
    weights = [
        KERNEL,
        ("fw", RNG.standard_normal((2, 4, 1, 1)).astype(np.float32)),
        ("size", np.array([8, 6], np.float32)),
        ("grid", RNG.uniform(-1, 1, (1, 6, 8, 2)).astype(np.float32)),
    ]
    model = network(nodes, IMAGE, [("y", F, [1, 4, 6, 8])], weights)
    half = copied(model)
    kept = to_fp16(half).kept
    assert kept == {"t": "coordinates", "scaled": "coordinates", "at": "coordinates", "g": "operator"}
    stored = {t.name: t.data_type for t in half.graph.initializer}
    assert stored["grid"] == F
    assert types(half)["flow"] == H


def test_resize_scales_stay_float32():
    nodes = [CONV, ("Resize", ["c", "", "scales"], ["y"], {"mode": "linear"})]
    weights = [KERNEL, ("scales", np.array([1, 1, 2, 2], np.float32))]
    model = network(nodes, IMAGE, [("y", F, [1, 4, 12, 16])], weights)
    half = copied(model)
    assert to_fp16(half).half == 2
    assert {t.name: t.data_type for t in half.graph.initializer}["scales"] == F
    run(half, {"x": np.zeros((1, 4, 6, 8), np.float32)})


def test_weight_that_does_not_fit_is_named():
    big = KERNEL[1].copy()
    big[0, 0] = 70000
    model = network([CONV, ("Relu", ["c"], ["y"], {})], IMAGE, [("y", F, [1, 4, 6, 8])], [("w", big)])
    with pytest.raises(InputError, match=r"weight 'w' of node c: expected values up to 65504.*found 70000"):
        to_fp16(model)
    result = to_fp16(
        network([CONV, ("Relu", ["c"], ["y"], {})], IMAGE, [("y", F, [1, 4, 6, 8])], [("w", big)]),
        keep_nodes=frozenset({"c"}),
    )
    assert result.kept == {"c": "asked for"}


def test_large_constant_keeps_its_node():
    nodes = [CONV, ("Add", ["c", "far"], ["a"], {}), ("Relu", ["a"], ["y"], {})]
    model = network(nodes, IMAGE, [("y", F, [1, 4, 6, 8])], [KERNEL, ("far", np.float32(-1e9))])
    assert to_fp16(model).kept == {"a": "constant 1e+09"}


def test_weights_stored_as_half_are_not_doubled():
    nodes = [("Cast", ["w.half"], ["w"], {"to": F}), CONV, ("Relu", ["c"], ["y"], {})]
    model = network(nodes, IMAGE, [("y", F, [1, 4, 6, 8])], [("w.half", KERNEL[1].astype(np.float16))])
    to_fp16(model)
    assert [t.data_type for t in model.graph.initializer] == [H]
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Relu", "Cast"]


def test_subgraphs_are_refused():
    model = network([CONV, ("Relu", ["c"], ["y"], {})], IMAGE, [("y", F, [1, 4, 6, 8])], [KERNEL])
    model.functions.append(helper.make_function("d", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                                                [helper.make_opsetid("", 17)]))  # fmt: skip
    with pytest.raises(UnsupportedOp, match="functions or subgraphs"):
        to_fp16(model)


def agreement(model, x, name):
    half = copied(model)
    result = to_fp16(half)
    assert not unsupported(half, "8.5"), "operators that TensorRT 8.5 does not list"
    assert not unsupported(half, "10.0")
    wanted = run(model, {"image": x})[0]
    got = run(emulated(half), {"image": x})[0]
    same = float((got.argmax(1) == wanted.argmax(1)).mean())
    error = float(np.abs(got - wanted).max() / wanted.std())
    print(f"{name}: {result.half} nodes in float16, {len(result.kept)} kept, {result.casts} casts")
    print(f"  labels {100 * same:.3f} %, largest error {error:.2g} of the deviation")
    assert error > 1e-6, "nothing was rounded"
    return same


def test_demo_base_keeps_its_labels():
    from crispseg.bundle import load_bundle
    from crispseg.runtime.geometry import resize_image
    from crispseg.scenes import render

    net = load_bundle(BUNDLE).base
    model = onnx.load(str(BUNDLE / net.file))
    picture = resize_image(render(0, 0.0, 360, 480)[0], net.height, net.width).astype(np.float32)
    x = ((picture - np.float32(net.mean)) / np.float32(net.std)).transpose(2, 0, 1)[None]
    assert agreement(model, np.ascontiguousarray(x, np.float32), "demo base") >= AGREEMENT


def test_sfnet_keeps_its_labels():
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import fill_bases

    from crispseg.export.dense import export_dense
    from crispseg.models.bases import base_info, build_base
    from crispseg.models.checkpoints import load_strict

    torch.set_num_threads(1)
    facts = fill_bases.manifest("sfnet_lite_r18")
    state = {k: torch.from_numpy(v) for k, v in fill_bases.fill(facts["keys"], facts["gains"]).items()}
    net = build_base("sfnet-lite-r18", 19)
    load_strict(net, state, base_info("sfnet-lite-r18").droppable)
    model = export_dense(net.eval(), height=96, width=160)
    x = fill_bases.image("sfnet_lite_r18", 96, 160)[0]
    assert agreement(model, x, "SFNet-Lite R18") >= AGREEMENT
