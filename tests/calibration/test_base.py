"""Placement, the Q/DQ file, and its integer form for ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from dense_net import dense_net, inputs, run
from onnx import TensorProto, helper, numpy_helper

from crispseg.bundle_calibration import METADATA
from crispseg.calibration import base
from crispseg.calibration.placement import place
from crispseg.engines.ort_int8 import lower
from crispseg.engines.tensorrt.operators import RELEASES, unsupported
from crispseg.errors import BundleError, InputError
from crispseg.export.passes.fp16 import to_fp16
from crispseg.export.passes.int8_pairs import weight_pairs


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return base.read_dense(dense_net(tmp_path_factory.mktemp("net") / "dense.onnx"))


@pytest.fixture(scope="module")
def made(net):
    placement = place(net)
    histograms = base.collect(net, placement.watched, inputs(), threads=1)
    return base.quantise(net, placement, histograms, "minmax", facts={"seed": 0})


def test_placement(net):
    found = place(net)
    assert found.nodes == ("stem", "a1", "a2", "b1", "b2", "b.short", "mix")
    assert found.excluded == ("head",)
    # a2 joins the Add, whose other operand is quantised; of two convolutions the later one (b.short) joins.
    assert set(found.tensors) == {
        "image", "stem.relu", "pool", "a1.relu", "a.relu", "b1.relu", "b2", "b.relu", "up", "joined"
    }  # fmt: skip
    groups = {}
    for name, root in found.group.items():
        groups.setdefault(root, set()).add(name)
    shared = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    assert shared == [["a.relu", "b.relu", "joined", "up"], ["pool", "stem.relu"]]
    assert set(found.ends) == {"a2", "b.short", "mix.relu"}


def test_share_of_multiply_adds(net):
    pixels = {"stem": 32 * 48, "a1": 16 * 24, "a2": 16 * 24, "b1": 8 * 12, "b2": 8 * 12, "b.short": 8 * 12,
              "mix": 16 * 24, "head": 16 * 24}  # fmt: skip
    weights = {t.name[:-2]: int(np.prod(t.dims)) for t in net.graph.initializer if t.name.endswith(".w")}
    macs = {name: pixels[name] * weights[name] for name in pixels}
    assert place(net).macs_share == pytest.approx(1 - macs["head"] / sum(macs.values()))
    without = place(net, exclude=["b*"])
    low = sum(macs[name] for name in ("stem", "a1", "a2", "mix"))
    assert without.macs_share == pytest.approx(low / sum(macs.values()))
    assert without.excluded == ("b.short", "b1", "b2", "head")
    assert place(net, head=True).macs_share == 1


def test_what_place_refuses(net):
    with pytest.raises(InputError, match="--exclude nothing: no layer of that name; there are a1"):
        place(net, exclude=["nothing"])
    with pytest.raises(InputError, match="every layer is excluded"):
        place(net, keep_ops=["Conv"])
    with pytest.raises(InputError, match="expected operators of Conv"):
        place(net, keep_ops=["Relu"])


def test_the_file_is_what_tensorrt_wants(net, made):
    graph = made.model.graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert tensors[node.input[2]].dtype == np.int8
            assert not tensors[node.input[2]].any()
            assert (tensors[node.input[1]] > 0).all()
        if node.op_type == "Conv" and node.name != "head":
            assert [producer[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            weight = producer[node.input[1]]
            assert helper.get_node_attr_value(weight, "axis") == 0
            assert tensors[weight.input[0]].dtype == np.int8
            assert tensors[weight.input[1]].shape == tensors[weight.input[0]].shape[:1]
            assert tensors[node.input[2]].dtype == np.float32  # no quantised bias
        if node.op_type == "Relu":  # nothing between a product, or a sum, and its activation
            assert producer[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type == "Add":  # one operand straight from its product
            kinds = sorted(producer[name].op_type for name in node.input)
            assert kinds == ["Conv", "DequantizeLinear"]
    for release in RELEASES:
        assert unsupported(made.model, release) == []
    assert "stem.w" not in tensors  # the float weights are gone


def test_close_to_the_float_network(net, made):
    for value in inputs(2, seed=9):
        want, got = run(net, value), run(made.model, value, optimise=False)
        assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean()
        assert (got.argmax(1) == want.argmax(1)).mean() > 0.95


def test_same_input_same_bytes(net, made):
    placement = place(net)
    histograms = base.collect(net, placement.watched, inputs(), threads=1)
    again = base.quantise(net, placement, histograms, "minmax", facts={"seed": 0})
    assert base.to_bytes(again.model) == base.to_bytes(made.model)
    other = base.quantise(net, placement, base.collect(net, placement.watched, inputs(seed=5), threads=1), "minmax")
    assert base.to_bytes(other.model) != base.to_bytes(made.model)
    facts = {entry.key: entry.value for entry in made.model.metadata_props}[METADATA]
    assert json.loads(facts) == {"seed": 0}


def test_parts_of_a_pass_change_nothing(net, monkeypatch):
    placement = place(net)
    whole = base.collect(net, placement.watched, inputs(2), threads=1)
    monkeypatch.setattr(base, "MOST_OBSERVED", 1)  # one tensor a run
    single = base.collect(net, placement.watched, inputs(2), threads=1)
    calls = []
    again = base.collect(
        net, placement.watched, lambda: (calls.append(value) or value for value in inputs(2)), threads=1
    )
    assert len(calls) == 2 * (len(placement.watched) - 1)  # a pass for each tensor; the input needs none
    for name in placement.watched:  # ONNX Runtime fuses other nodes in each pass: the last bit may differ
        assert whole[name].counts.sum() == single[name].counts.sum()
        assert single[name].threshold("minmax") == pytest.approx(whole[name].threshold("minmax"), rel=1e-5)
        np.testing.assert_array_equal(single[name].counts, again[name].counts)


def test_weights_quantised_again_are_the_same_integers():
    weight = np.random.default_rng(0).normal(0, 1, (6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    q, scale = base.quantise_weight(weight, 0)
    again, scale2 = base.quantise_weight(q * scale.reshape(-1, 1, 1, 1), 0)
    np.testing.assert_array_equal(q, again)
    assert scale[2] == 1
    assert np.abs(q).max() == 127
    assert np.abs(q * scale.reshape(-1, 1, 1, 1) - weight).max() <= scale.max() * 0.5001


def test_scales_are_float16_values():
    scale = np.float32([1.0, 1.0001, 1e-3, 3e-5, 1e-9, 7e4, 65504])
    found = base.half_above(scale)
    assert (found >= scale).all()
    assert (found <= scale * 1.002).all()
    np.testing.assert_array_equal(found[[0, 4, 5, 6]], scale[[0, 4, 5, 6]])
    np.testing.assert_array_equal(found[:4], found[:4].astype(np.float16).astype(np.float32))
    weight = np.random.default_rng(1).normal(0, 1e-4, (8, 9)).astype(np.float32)
    q, step = base.quantise_weight(weight, 0)
    assert np.abs(q * step[:, None] - weight).max() <= 0.5001 * step.max()


def test_a_quantised_file_is_refused(made, tmp_path):
    onnx.save(made.model, str(tmp_path / "q.onnx"))
    with pytest.raises(BundleError, match="found QuantizeLinear nodes"):
        base.read_dense(tmp_path / "q.onnx")
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(BundleError, match="expected an ONNX network"):
        base.read_dense(tmp_path / "no.onnx")


# ---- the integer form -----------------------------------------------------------------------------------------------


def test_lowered_graph_computes_in_integers(made, tmp_path):
    import onnxruntime as ort

    low = lower(made.model)
    count = Counter(node.op_type for node in low.graph.node)
    assert count["QLinearConv"] == 7
    assert count["QLinearAdd"] == 2
    assert count["Conv"] == 1  # the head
    assert count["Relu"] == 0
    # Image, and the two sides of Resize, which stays float; the rest never leaves the integers.
    assert count["QuantizeLinear"] == 2
    assert {n.name for n in low.graph.node if n.op_type == "DequantizeLinear"} == {
        "b.relu.dequantise",
        "mix.relu.end.float",
    }
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(low.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    assert kinds["QLinearConv"] == 7
    assert kinds["Conv"] == 1


def test_lowered_arithmetic_is_that_of_the_file(net, made):
    for value in inputs(2, seed=3):
        want, file, low = run(net, value), run(made.model, value, optimise=False), run(lower(made.model), value)
        # One more rounding to 8 bits before each residual sum and before the head.
        assert np.abs(low - want).mean() < 1.5 * np.abs(file - want).mean()


def test_lowered_integers_are_equal_where_nothing_is_added(net):
    """Up to the first float result the integers are those of the file."""
    part = onnx.ModelProto.FromString(net.SerializeToString())
    keep = [node for node in part.graph.node if node.name in ("stem", "stem.relu", "pool", "a1", "a1.relu", "a2")]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in keep]
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info("a2", TensorProto.FLOAT, [1, 16, 16, 24]))
    placement = place(part, head=True)
    made = base.quantise(part, placement, base.collect(part, placement.watched, inputs(), threads=1), "percentile")
    for value in inputs(2, seed=4):
        # The bias is rounded to an integer of the sum, so what is nearly a tie may round the other way; behind the
        # second product such a difference has spread over its window.
        for name, differ in (("stem.relu.int8", 1e-3), ("a1.relu.int8", 1e-2)):
            want = run(with_output(made.model, name, TensorProto.INT8), value, False).astype(int)
            got = run(with_output(lower(made.model), name, TensorProto.UINT8), value).astype(int) - 128
            assert np.abs(want - got).max() <= 1
            assert (want != got).mean() < differ


def with_output(model, name, kind):
    made = onnx.ModelProto.FromString(model.SerializeToString())
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return made


def test_clip_becomes_bounds_in_integers(tmp_path):
    model = onnx.load(str(dense_net(tmp_path / "n.onnx")))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "low"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.7), "high"))
    for node in model.graph.node:
        if node.name == "a1.relu":
            node.op_type = "Clip"
            node.input.extend(["low", "high"])
    onnx.save(model, str(tmp_path / "n.onnx"))
    net = base.read_dense(tmp_path / "n.onnx")
    placement = place(net)
    made = base.quantise(net, placement, base.collect(net, placement.watched, inputs(), threads=1), "minmax")
    assert made.thresholds["a1.relu"] == pytest.approx(0.7)
    low = lower(made.model)
    assert sum(node.op_type == "QLinearConv" for node in low.graph.node) == 7
    value = inputs(1, seed=8)[0]
    want, got = run(made.model, value, optimise=False), run(low, value)
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean()


def test_float_and_foreign_pairs_are_left_alone(net, made):
    assert lower(net) == net
    foreign = onnx.ModelProto.FromString(made.model.SerializeToString())
    for tensor in foreign.graph.initializer:
        if tensor.name == "int8.zero":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3).reshape(()), "int8.zero"))
    value = inputs(1)[0]
    np.testing.assert_allclose(run(lower(foreign), value, False), run(foreign, value, False), atol=1e-5)


# ---- what TensorRT gets ---------------------------------------------------------------------------------------------


def test_float_weight_pairs_for_tensorrt_8(made):
    model = onnx.ModelProto.FromString(made.model.SerializeToString())
    assert weight_pairs(model) == 7
    onnx.checker.check_model(model)
    assert all(t.data_type != TensorProto.INT8 or not numpy_helper.to_array(t).any() for t in model.graph.initializer)
    assert unsupported(model, "8.5") == []
    value = inputs(1)[0]
    np.testing.assert_array_equal(run(model, value, False), run(made.model, value, False))


def test_half_between_the_pairs_for_strong_typing(net, made):
    model = onnx.ModelProto.FromString(made.model.SerializeToString())
    done = to_fp16(model, quantised=True)
    assert done.kept == {}
    assert unsupported(model, "10.0") == []
    types = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == TensorProto.FLOAT16
    producer = {name: node.op_type for node in model.graph.node for name in node.output}
    assert all("Cast" not in (producer.get(n.input[0]), producer.get(n.input[1]))
               for n in model.graph.node if n.op_type == "Conv")  # fmt: skip
    value = inputs(1)[0]
    want, whole = run(net, value), run(made.model, value, False)
    assert np.abs(run(model, value, False) - want).mean() < 1.3 * np.abs(whole - want).mean()
