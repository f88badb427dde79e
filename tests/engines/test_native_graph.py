"""Refiners that are damaged, foreign, or do not fit together: one clear error each, never a crash."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from native_net import FRAME, frame, unet
from onnx import TensorProto, helper, numpy_helper

from crispseg.engines import native
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.native_plan import needed, plan_buffers
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, CrispsegError, EnvironmentMismatch, UnsupportedOp
from crispseg.plugins import loader


def node(model, op, index=0):
    return [item for item in model.graph.node if item.op_type == op][index]


def producer(model, tensor):
    return next(item for item in model.graph.node if tensor in item.output)


def set_attribute(item, name, value):
    for attribute in list(item.attribute):
        if attribute.name == name:
            item.attribute.remove(attribute)
    if value is not None:
        item.attribute.append(helper.make_attribute(name, value))


def constant(model, name, value):
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))


def drop(model, name):
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def swap(model, first, second):
    """Exchange the places of the producers of two tensors."""
    nodes = list(model.graph.node)
    i, j = (next(i for i, item in enumerate(nodes) if name in item.output) for name in (first, second))
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def foreign(model, op, domain=""):
    model.graph.node.append(helper.make_node(op, ["yo"], ["foreign"], "alien", domain=domain))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"


def rename_input(model, item, old, new):
    names = [new if name == old else name for name in item.input]
    del item.input[:]
    item.input.extend(names)


MALFORMED = {
    "kind": (lambda m: helper.set_model_props(m, {"crispseg.contract": "1"}), BundleError, "crispseg.kind"),
    "contract": (
        lambda m: helper.set_model_props(m, {"crispseg.kind": "sparserefine", "crispseg.contract": "2"}),
        UnsupportedOp,
        "contract version 1, found '2'",
    ),
    "domain version": (
        lambda m: setattr(m.opset_import[1], "version", 2),
        UnsupportedOp,
        "version 1 of domain crispseg, found 2",
    ),
    "unknown contract op": (lambda m: foreign(m, "Warp", "crispseg"), UnsupportedOp, r"crispseg\.Warp is not in"),
    "standard op": (lambda m: foreign(m, "Relu"), UnsupportedOp, "'alien'.*found Relu"),
    "other domain": (lambda m: foreign(m, "Inverse", "com.microsoft"), UnsupportedOp, "com.microsoft.Inverse"),
    "plugin version": (
        lambda m: set_attribute(node(m, "SparseConv2d"), "plugin_version", "2"),
        UnsupportedOp,
        "plugin_version",
    ),
    "unknown attribute": (lambda m: set_attribute(node(m, "LogitsAt"), "speed", 3), UnsupportedOp, "speed"),
    "missing attribute": (
        lambda m: set_attribute(node(m, "SelectPixels"), "threshold", None),
        UnsupportedOp,
        "threshold",
    ),
    "upsample": (lambda m: set_attribute(node(m, "LogitsAt"), "upsample", "cubic"), UnsupportedOp, "cubic"),
    "capacity": (lambda m: set_attribute(node(m, "SelectPixels"), "capacity", 0), UnsupportedOp, "capacity"),
    "frame size": (
        lambda m: set_attribute(node(m, "SelectPixels"), "height", 25),
        BundleError,
        "24 x 40, found 25 x 40",
    ),
    "grid size": (
        lambda m: set_attribute(node(m, "SubmanifoldMap", 1), "width", 20),
        BundleError,
        "11 x 19, found 11 x 20",
    ),
    "std zero": (lambda m: set_attribute(node(m, "PixelFeatures"), "std", [1.0, 0.0, 1.0]), UnsupportedOp, "std"),
    "concat axis": (lambda m: set_attribute(node(m, "Concat"), "axis", 0), UnsupportedOp, "axis 1"),
    "concat levels": (
        lambda m: rename_input(m, node(m, "Concat"), "back", "low2"),
        BundleError,
        "rows of level 0, found 'low2' of level 1",
    ),
    "missing weight": (lambda m: drop(m, "stem.w"), BundleError, "weight: expected a stored constant, found 'stem.w'"),
    "cin": (
        lambda m: constant(m, "enc.w", np.zeros((9, 7, 8), np.float32)),
        BundleError,
        r"enc.w' float32 \[9, 7, 8\]",
    ),
    "taps": (lambda m: constant(m, "enc.w", np.zeros((4, 8, 8), np.float32)), BundleError, r"\[9, 8, 'any'\]"),
    "bias": (lambda m: constant(m, "enc.b", np.zeros(9, np.float32)), BundleError, r"bias: expected float32 \[8\]"),
    "gate": (lambda m: constant(m, "w3", np.zeros((7, 6), np.float32)), BundleError, r"w3: expected float32 \[7, 5\]"),
    "half weight without Cast": (
        lambda m: constant(m, "enc.w", np.zeros((9, 8, 8), np.float16)),
        BundleError,
        "found 'enc.w' float16",
    ),
    "integer weight": (
        lambda m: constant(m, "enc.w", np.zeros((9, 8, 8), np.int32)),
        UnsupportedOp,
        "expected float32, float16 or int8",
    ),
    "NaN weight": (lambda m: constant(m, "enc.b", np.full(8, np.nan, np.float32)), BundleError, "enc.b'.*finite"),
    "short weight": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", m.graph.initializer[0].raw_data[:-4]),
        BundleError,
        "expected values of shape",
    ),
    "huge weight": (lambda m: m.graph.initializer[0].dims.append(2**40), BundleError, "expected values of shape"),
    "negative dimension": (lambda m: m.graph.initializer[0].dims.append(-1), BundleError, "expected values of shape"),
    "external weight": (external, BundleError, "lies in another file"),
    "twice the same constant": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        BundleError,
        "name used once",
    ),
    "cast of a tensor": (lambda m: rename_input(m, node(m, "Cast"), "low2.w.half", "yo"), UnsupportedOp, "Cast"),
    "cast to half": (lambda m: set_attribute(node(m, "Cast"), "to", TensorProto.FLOAT16), UnsupportedOp, "float32"),
    "use before definition": (lambda m: swap(m, "stem", "enc"), BundleError, "'stem.z0'.*none defined before"),
    "cycle": (
        lambda m: rename_input(m, producer(m, "enc"), "stem.z0", "mix"),
        BundleError,
        "'mix'.*none defined before",
    ),
    "defined twice": (
        lambda m: m.graph.node.append(producer(m, "yi")),
        BundleError,
        "a new tensor, found 'yi', defined before",
    ),
    "wrong kind": (lambda m: rename_input(m, producer(m, "enc"), "map0", "coords"), BundleError, "'coords', a coords"),
    "map of another level": (
        lambda m: rename_input(m, producer(m, "dec.z0"), "map0", "map1"),
        BundleError,
        "x: expected rows of level 1",
    ),
    "count of another level": (
        lambda m: rename_input(m, producer(m, "low"), "count1", "count"),
        BundleError,
        "rows of level 1, found 'count'",
    ),
    "residual of another level": (
        lambda m: rename_input(m, producer(m, "low2"), "low", "enc"),
        BundleError,
        "rows of level 1, found 'enc'",
    ),
    "two selections": (
        lambda m: m.graph.node.append(
            helper.make_node(
                "SelectPixels",
                ["logits"],
                ["a", "b", "c", "d", "e"],
                "again",
                domain="crispseg",
                **{a.name: helper.get_attribute_value(a) for a in node(m, "SelectPixels").attribute},
            )
        ),
        UnsupportedOp,
        "expected one SelectPixels",
    ),
    "scale without shift": (
        lambda m: rename_input(m, producer(m, "stem"), "stem.t0", ""),
        UnsupportedOp,
        "connected together",
    ),
    "classes": (
        lambda m: setattr(m.graph.input[1].type.tensor_type.shape.dim[1], "dim_value", 6),
        BundleError,
        "expected",
    ),
    "free frame size": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value"),
        BundleError,
        "image",
    ),
    "giant frame": (
        lambda m: [setattr(side, "dim_value", 65536) for side in m.graph.input[0].type.tensor_type.shape.dim[:2]],
        UnsupportedOp,
        "beyond the native engine",
    ),
    "another input": (
        lambda m: setattr(m.graph.input[0], "name", "picture"),
        BundleError,
        "expected inputs image, logits",
    ),
    "unknown output": (lambda m: setattr(m.graph.output[0], "name", "nowhere"), BundleError, "output 'nowhere'"),
    "input as output": (lambda m: setattr(m.graph.output[0], "name", "image"), BundleError, "output 'image'"),
    "no nodes": (lambda m: m.graph.ClearField("node"), BundleError, "output 'labels'"),
}


def open_engine(path):
    return native.load(path, EngineSpec(threads=1))


@pytest.mark.parametrize("case", list(MALFORMED))
def test_malformed(tmp_path, case):
    change, error, text = MALFORMED[case]
    model = unet().model()
    change(model)
    path = tmp_path / "refiner.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(error, match=text) as caught:
        check_graph(read_graph(path))
    assert "\n" not in str(caught.value)
    assert "refiner.onnx" in str(caught.value)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(BundleError, match="found no file"):
        open_engine(tmp_path / "none.onnx")
    with pytest.raises(BundleError, match="found no file"):
        open_engine(tmp_path)
    for content in (b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"hello world, this is no network"):
        path = tmp_path / "refiner.onnx"
        path.write_bytes(content)
        with pytest.raises(BundleError):
            open_engine(path)


def test_truncated_and_altered_files(tmp_path):
    """Every error is one of ours; a file that still loads also runs."""
    data = unet().model().SerializeToString()
    path = tmp_path / "refiner.onnx"
    rng = np.random.default_rng(0)
    versions = [data[: int(size)] for size in np.linspace(1, len(data) - 1, 40)]
    for _ in range(150):
        altered = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            altered[place] = rng.integers(0, 256)
        versions.append(bytes(altered))
    structure = len(data) // 3  # the nodes come first; weights fill most of the rest
    for place in rng.integers(0, structure, 150):
        versions.append(data[:place] + bytes([rng.integers(0, 256)]) + data[place + 1 :])
    try:
        loader.load()
        runs = True
    except EnvironmentMismatch:
        runs = False
    feeds, loaded = frame(1), 0
    for version in versions:
        path.write_bytes(version)
        try:
            graph = check_graph(read_graph(path))
        except CrispsegError:
            continue
        loaded += 1
        if not runs:
            continue
        with open_engine(path) as engine:
            shapes = {name: shape for name, (_, shape) in engine.inputs.items()}
            if shapes["image"] == [*FRAME, 3] and shapes["logits"] == list(feeds["logits"].shape):
                engine.run(feeds)
        assert graph.capacity <= FRAME[0] * FRAME[1]
    assert loaded > 10


def test_bodies_are_ignored(tmp_path):
    """Model-local functions, which carry the portable bodies, do not matter to the native engine."""
    model = unet().model()
    body = helper.make_function("crispseg", "LogitsAt", ["a"], ["b"], [helper.make_node("Magic", ["a"], ["b"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    model.functions.append(body)
    path = tmp_path / "refiner.onnx"
    path.write_bytes(model.SerializeToString())
    assert len(check_graph(read_graph(path)).nodes) == sum(item.op_type != "Cast" for item in model.graph.node)


def graph_of(tmp_path, net):
    path = tmp_path / "refiner.onnx"
    path.write_bytes(net.model().SerializeToString())
    return check_graph(read_graph(path))


def test_buffers_that_live_together_do_not_share(tmp_path):
    graph = graph_of(tmp_path, unet())
    plan = plan_buffers(graph)
    for i, a in enumerate(plan.buffers):
        for b in plan.buffers[i + 1 :]:
            if a.slot == b.slot:
                assert a.last < b.first or b.last < a.first
    assert len(plan.pads) < len(plan.buffers)
    for name, place in plan.places.items():
        buffer = plan.buffers[place.buffer]
        tensor = graph.tensors[name]
        assert buffer.level == tensor.level
        assert place.offset + tensor.columns <= buffer.width <= plan.pads[buffer.slot]
        users = [
            i for i, item in enumerate(graph.nodes) if name in item.inputs.values() or name in item.outputs.values()
        ]
        assert buffer.first <= min(users)
        assert max(users) <= buffer.last


def test_concat_in_place(tmp_path):
    """Every input is written in place once, in the last Concat that takes it; other uses of it are copies."""
    graph = graph_of(tmp_path, unet())
    plan = plan_buffers(graph)
    places = plan.places
    assert places["enc"] == places["cat"] == places["wide"]
    assert (places["stem.z0"].offset, places["enc.z1"].offset) == (14, 22)
    assert places["stem.z0"].buffer == places["enc.z1"].buffer == places["wide"].buffer
    assert places["back"] == places["twice"]
    assert places["back.z0"].buffer == places["catz"].buffer
    copied = sorted((graph.nodes[index].outputs["y"], graph.nodes[index].inputs[role]) for index, role in plan.copies)
    assert copied == [("cat", "back"), ("catz", "enc.z1"), ("twice", "back")]


def test_needed_leaves_out_what_feeds_no_output(tmp_path):
    graph = graph_of(tmp_path, unet())
    names = lambda need: {name for i in need.nodes for name in graph.nodes[i].outputs.values()}  # noqa: E731
    assert "dead" not in names(needed(graph, ("labels",)))
    assert "confidence0" not in needed(graph, ("labels",)).tensors
    assert "confidence0" in needed(graph, ("confidence",)).tensors
    assert len(needed(graph, ("count",)).nodes) == 1
