"""The TensorRT front end: every node it writes goes through the plugins' own core, op by op."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trt_support import BUNDLE, creator_fields, pack

sys.path.append(str(Path(__file__).parents[1]))

from crispseg.engines.tensorrt import operators, strip
from crispseg.engines.tensorrt.strip import strip_refiner
from crispseg.errors import UnsupportedOp
from crispseg.plugins.ops import BY_NAME, DOMAIN

PLUGINS = Path(__file__).parents[2] / "crispseg" / "plugins"
_TYPES = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 1, TensorProto.INT32: 2}
CORE = ("params.cpp", "validate.cpp", "tensors.cpp")


@pytest.fixture(scope="module")
def model():
    return onnx.load(str(BUNDLE / "refiner.onnx"))


@pytest.fixture(scope="module")
def library():
    """The CUDA library: its host side needs no GPU."""
    import emulation

    if not shutil.which(emulation.compiler()[0]):
        pytest.skip("needs g++")
    return emulation.host_library()


@pytest.fixture(scope="module")
def core(tmp_path_factory, library):
    """A program of the plugins' core that checks nodes (check_nodes.cpp)."""
    program = tmp_path_factory.mktemp("core") / "check_nodes"
    sources = [Path(__file__).with_name("check_nodes.cpp"), *(PLUGINS / "tensorrt" / "core" / name for name in CORE)]
    folders = [f"-I{PLUGINS / 'tensorrt' / 'core'}", f"-I{PLUGINS / 'cuda' / 'include'}"]
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run(["g++", "-std=c++17", "-O0", "-w", *folders, *map(str, sources), *link], check=True)
    return program


@pytest.fixture(scope="module")
def real_pack(library):
    """csg_pack_weight of the CUDA library."""
    from crispseg.plugins import cuda_loader

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cuda_loader.ENVIRONMENT, str(library))
        yield strip.pack_with_library()


def node_text(node, known):
    """One node in the form of check_nodes.cpp."""
    lines = ["node " + node.op_type]
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if isinstance(value, bytes):
            lines.append(f"attribute {item.name} text {len(value)} {value.decode()}")
        else:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            kind = "float" if isinstance(values[0], float) else "int"
            lines.append(f"attribute {item.name} {kind} {len(values)} {' '.join(map(repr, values))}")
    for name in node.input:
        kind, dims = known[name]
        lines.append(f"input {kind} {len(dims)} {' '.join(map(str, dims))}")
    return "\n".join([*lines, "end"]) + "\n"


def through_core(core, model):
    """Type and shape of every tensor as the core infers them; a refused node is an error."""
    known = {t.name: (_TYPES[t.data_type], tuple(t.dims)) for t in model.graph.initializer}
    for value in model.graph.input:
        kind = value.type.tensor_type
        known[value.name] = (_TYPES[kind.elem_type], tuple(d.dim_value for d in kind.shape.dim))
    for node in model.graph.node:
        if node.op_type == "Concat":
            parts = [known[name] for name in node.input]
            assert len({(kind, dims[0]) for kind, dims in parts}) == 1, node.name
            known[node.output[0]] = (parts[0][0], (parts[0][1][0], sum(dims[1] for _, dims in parts)))
            continue
        done = subprocess.run([str(core)], input=node_text(node, known), capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[0] == f"ok {len(node.output)}", (node.name, lines)
        for name, line in zip(node.output, lines[1:]):
            kind, _, *dims = map(int, line.split())
            known[name] = (kind, tuple(dims))
    return known


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plugins_take_every_node(model, core, real_pack, precision):
    result = strip_refiner(model, precision, real_pack)
    known = through_core(core, result.model)
    for value in result.model.graph.output:
        kind = value.type.tensor_type
        assert known[value.name] == (_TYPES[kind.elem_type], tuple(d.dim_value for d in kind.shape.dim)), value.name
    assert known["labels"] == (2, (360 * 480 // 4,))
    assert known["coords"] == (2, (60480, 2))
    assert known["yo"] == (0, (60480, 11))
    assert known["x"] == ((1, (60480, 16)) if precision == "fp16" else (0, (60480, 14)))


def test_the_core_refuses_what_is_wrong(model, core, real_pack):
    result = strip_refiner(model, "fp16", real_pack)
    for change in ("mask", "width", "type", "words"):
        broken = onnx.ModelProto.FromString(result.model.SerializeToString())
        node = next(n for n in broken.graph.node if n.op_type == "SparseConv2d")
        attributes = {a.name: a for a in node.attribute}
        if change == "mask":
            attributes["inputs"].i ^= 1 << 4
        elif change == "width":
            attributes["cin"].i += 16
        elif change == "type":
            attributes["x_type"].i = 0
        else:
            tensor = next(t for t in broken.graph.initializer if t.name == node.input[3])
            value = numpy_helper.to_array(tensor)[:-1]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        with pytest.raises(AssertionError):
            through_core(core, broken)


def test_form_of_the_graph(model):
    result = strip_refiner(model, "fp16", pack)
    onnx.checker.check_model(result.model)
    assert len(model.functions) == 13, "the model given is changed"
    assert not result.model.functions
    fields = creator_fields()
    for node in result.model.graph.node:
        assert all(node.input), node.name
        assert all(node.output), node.name
        if node.domain != DOMAIN:
            assert node.op_type == "Concat"
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert bin(attributes["inputs"]).count("1") == len(node.input), node.name
        assert bin(attributes["outputs"]).count("1") == len(node.output), node.name
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"")
        assert not node.overload
        # x_scale becomes types, scales and the input `dequant`.
        contract = {a.name for a in BY_NAME[node.op_type].attributes} - {"x_scale"}
        assert contract <= set(attributes), node.name
        assert set(attributes) <= set(fields[node.op_type]) | {"plugin_version", "plugin_namespace"}
    kinds = {value.type.tensor_type.elem_type for value in [*result.model.graph.input, *result.model.graph.output]}
    assert kinds == {TensorProto.INT32, TensorProto.FLOAT}, "bytes travel as words"
    assert len(result.plugins) == len(set(result.plugins)) == 46
    assert result.nodes[0] == result.plugins[0] + " (SelectPixels)"
    for release in operators.RELEASES:
        assert operators.unsupported(result.model, release) == []
    assert any("function" in text for text in operators.unsupported(model, "8.5"))


def test_up_convolutions_read_in_parity_order(model):
    result = strip_refiner(model, "fp16", pack)
    order = {n.output[3]: n.output[4] for n in result.model.graph.node if n.op_type == "DownMap"}
    readers = [n for n in result.model.graph.node if n.op_type == "SparseConv2d" and n.input[1] in order]
    assert len(readers) == len(order) > 0
    for node in readers:
        mask = next(a.i for a in node.attribute if a.name == "inputs")
        assert mask >> 11 & 1
        assert node.input[-1] == order[node.input[1]]


def test_capacity_and_scratch(model):
    result = strip_refiner(model, "fp16", pack, capacity=1000, scratch=1 << 20)
    attributes = [{a.name: a for a in n.attribute} for n in result.model.graph.node]
    assert attributes[0]["capacity"].i == 1000
    assert {a["workspace"].i for a in attributes if "workspace" in a} == {1 << 20}
    coords = next(v for v in result.model.graph.output if v.name == "coords")
    assert coords.type.tensor_type.shape.dim[0].dim_value == 1000
    whole = strip_refiner(model, "fp16", pack, capacity=10**9)
    assert next(a.i for a in whole.model.graph.node[0].attribute if a.name == "capacity") == 360 * 480


# ---- widths that are no multiple of 16: padding inside a Concat ----------------------------------------------------


def small_refiner(rng):
    """Rows of 3 -> two branches of 5 and 7 -> Concat 12 -> 12 (residual) -> 4 classes; the ops around are minimal."""
    plugin = {"plugin_version": "1", "plugin_namespace": ""}
    size = {"height": 8, "width": 9}
    weights = {}

    def weight(name, *shape):
        weights[name] = rng.standard_normal(shape).astype(np.float32)
        return name

    def node(op, inputs, outputs, **attributes):
        domain, more = (DOMAIN, plugin) if op in BY_NAME else ("", {})
        return helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes, **more)

    scale, joined = [weight("s", 12), weight("t", 12)], [weight("w2", 9, 12, 12), weight("b2", 12)]
    nodes = [
        node("SelectPixels", ["logits"], ["l", "coords", "count", "found", "c"], upsample="nearest", threshold=0.5,
             capacity=20, **size),
        node("LogitsAt", ["logits", "coords", "count"], ["yi"], upsample="nearest", **size),
        node("PixelFeatures", ["image", "coords", "count"], ["x"], features="rgb", channel_order="rgb",
             mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0], **size),
        node("SubmanifoldMap", ["coords", "count"], ["map"], **size),
        node("SparseConv2d", ["x", "map", "count", weight("w0", 9, 3, 5), weight("b0", 5)], ["a"], relu=1),
        node("SparseConv2d", ["x", "map", "count", weight("w1", 9, 3, 7)], ["b"], relu=1),
        node("Concat", ["a", "b"], ["ab"], axis=1),
        node("SparseConv2d", ["ab", "map", "count", *joined, "ab", *scale], ["d", "e"], relu=0),
        node("SparseConv2d", ["e", "", "count", weight("w3", 1, 12, 4), weight("b3", 4)], ["yo"], relu=0),
        node("EnsembleLogits", ["yi", "yo", "count"], ["ye"], mode="entropy"),
        node("ScatterLabels", ["l", "c", "coords", "count", "ye"], ["labels", "confidence"]),
        node("SparseConv2d", ["d", "", "count", weight("w4", 1, 12, 2)], ["unused"], relu=1),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [8, 9, 3]),
              helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 4, 5])]  # fmt: skip
    outputs = [helper.make_tensor_value_info(n, TensorProto.UINT8, [8, 9]) for n in ("labels", "confidence")]
    graph = helper.make_graph(
        nodes, "refiner", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights.items()]
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=10
    )


def convolved(x, weight, bias, residual, relu):
    """Rows through a map that is the identity for every tap: enough to see which column meets which weight."""
    y = sum(x @ weight[k] for k in range(weight.shape[0])) + bias + residual
    return np.maximum(y, 0) if relu else y


def run_rows(model, x, unpack, columns):
    """The convolutions and Concats of a graph on rows ``x``; each weight is read by ``unpack(node, name)``."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rows = {"x": x}
    for node in model.graph.node:
        if node.op_type == "Concat":
            rows[node.output[0]] = np.concatenate([rows[name] for name in node.input], 1)
        if node.op_type != "SparseConv2d":
            continue
        get = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if "inputs" in get:  # stripped: connected inputs in table order
            bits = [i for i in range(12) if get["inputs"] >> i & 1]
            ins = dict(zip(bits, node.input))
            outs = dict(zip([i for i in range(3) if get["outputs"] >> i & 1], node.output))
        else:
            ins = {i: name for i, name in enumerate(node.input) if name}
            outs = {i: name for i, name in enumerate(node.output) if name}
        weight = unpack(get, arrays[ins[3]])
        bias = arrays[ins[4]] if 4 in ins else 0.0
        y = convolved(rows[ins[0]], weight, bias, rows[ins[5]] if 5 in ins else 0.0, get["relu"])
        rows.update({outs[i]: v for i, v in {0: y}.items() if i in outs})
        for i in (1, 2):
            if i in outs:
                scale, shift = arrays[ins[4 + 2 * i]], arrays[ins[5 + 2 * i]]
                rows[outs[i]] = np.maximum(y * scale + shift, 0)
    return rows


def test_padding_inside_a_concat_meets_zeros(core, real_pack):
    rng = np.random.default_rng(3)
    model = small_refiner(rng)
    wide = strip_refiner(model, "fp16", lambda kind, weight: weight.astype(np.float32).tobytes()).model

    def plain(get, value):
        return value

    def unpacked(get, words):
        return np.frombuffer(words.tobytes(), np.float32).reshape(get["taps"], get["cin"], get["cout"])

    x = rng.standard_normal((6, 3)).astype(np.float32)
    padded = np.zeros((6, 16), np.float32)
    padded[:, :3] = x
    wanted, got = run_rows(model, x, plain, None), run_rows(wide, padded, unpacked, None)
    assert got["ab"].shape == (6, 32)
    assert got["d"].shape == (6, 32), "the residual's layout"
    np.testing.assert_allclose(got["yo"], wanted["yo"], rtol=2e-5, atol=1e-4)
    columns = [*range(5), *range(16, 23)]
    np.testing.assert_allclose(got["d"][:, columns], wanted["d"], rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(got["e"][:, columns], wanted["e"], rtol=2e-5, atol=1e-4)
    rest = np.delete(got["e"], columns, 1)
    assert not rest.any(), "padding columns hold zeros"
    through_core(core, strip_refiner(model, "fp16", real_pack).model)
    through_core(core, strip_refiner(model, "fp32", real_pack).model)


def test_what_is_no_refiner_is_refused(model):
    broken = onnx.ModelProto.FromString(model.SerializeToString())
    broken.graph.node.append(helper.make_node("Softmax", ["yo"], ["p"], "p"))
    with pytest.raises(UnsupportedOp, match="Softmax is no op of a refiner"):
        strip_refiner(broken, "fp16", pack)
    with pytest.raises(UnsupportedOp, match="precision int8: expected convolutions with x_scale"):
        strip_refiner(model, "int8", pack)
    with pytest.raises(UnsupportedOp, match="precision int4: expected fp32, fp16, int8"):
        strip_refiner(model, "int4", pack)
    lost = onnx.ModelProto.FromString(model.SerializeToString())
    del lost.graph.initializer[:]
    with pytest.raises(UnsupportedOp, match="Cast is no op of a refiner"):
        strip_refiner(lost, "fp16", pack)


def test_operator_tables():
    for release, opset in (("8.5", 17), ("10.0", 20)):
        listed = operators.table(release)
        assert listed["opset"] == opset
        assert listed["source"].startswith("https://github.com/onnx/onnx-tensorrt/blob/")
        assert {"Conv", "Resize", "GridSample", "Softmax"} <= set(listed["operators"])
    assert "LayerNormalization" not in operators.table("8.5")["operators"]
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], "norm")
    graph = helper.make_graph([node], "g", [], [])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    found = operators.unsupported(made, "8.5")
    assert found == ["opset 18 (TensorRT 8.5 reads up to 17)", "norm (LayerNormalization)"]
    assert operators.unsupported(made, "10.0") == []
    for name in ("base.onnx", "baseline.onnx"):
        dense = onnx.load(str(BUNDLE / name), load_external_data=False)
        for release in operators.RELEASES:
            assert operators.unsupported(dense, release) == [], name
