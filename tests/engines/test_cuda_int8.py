"""Int8 refiners on the CUDA kernels (emulated driver) against the definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_net import int8_unet
from native_net import frame, interpret, unet

from crispseg.engines.cuda_plan import ITEM_BYTES
from crispseg.engines.int8_rows import CONVERT, int8_rows, with_conversions
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.spec import EngineSpec
from crispseg.errors import UnsupportedOp

GIVEN = ("low2", "t", "yo", "ye")


def graph_of(model, tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    return check_graph(read_graph(path))


def agree(found, exact, limit):
    assert (found["coords"] == exact["coords"]).all()
    for name in GIVEN:
        assert found[name].shape == exact[name].shape
        scale = max(1.0, np.abs(exact[name]).max(initial=0))
        assert np.abs(found[name] - exact[name]).max(initial=0) < limit * scale, name
    assert (found["labels"] == exact["labels"]).mean() > 0.998


@pytest.mark.parametrize(
    ("exclude", "edges"),
    [((), False), (("low2", "dec", "mix"), False), ((), True)],
    ids=["all", "some", "first and last"],
)
def test_agrees_with_the_definition(opened, exclude, edges):
    model = int8_unet(exclude, edges, GIVEN)
    engine = opened(model)
    for feeds in (frame(1), frame(3, level=30.0, share=1.1)):
        agree(engine.run(feeds), interpret(model, feeds), 2e-5)
    for seed in (2, 1):
        feeds = frame(seed)
        agree(engine.run(feeds), interpret(model, feeds), 2e-5)
    assert engine.describe()["int8_convolutions"] == sum(
        any(a.name == "x_scale" for a in node.attribute) for node in model.graph.node
    )


def test_fp16_around_it(opened):
    model, feeds = int8_unet(extra=GIVEN), frame(1)
    engine = opened(model, "int8")
    # A value of fp16 may fall to the other side of a rounding border, which moves sums by a step.
    agree(engine.run(feeds), interpret(model, feeds), 0.05)
    assert engine.describe()["precision"] == "int8"
    types = set(engine._plan.types.values())
    assert types == {"fp32", "fp16", "int8"}, "logits, float rows, int8 rows"


def test_agrees_with_the_native_engine(opened, tmp_path):
    from crispseg.engines import native

    for exclude, edges in (((), False), (("skip", "t"), True)):
        model = int8_unet(exclude, edges, GIVEN)
        path = tmp_path / "native.onnx"
        onnx.save(model, str(path))
        engine = opened(model)
        with native.load(path, EngineSpec(threads=1, precision="int8")) as other:
            for seed in (6, 7):
                agree(engine.run(frame(seed)), other.run(frame(seed)), 1e-5)


def test_every_pixel_active(opened):
    model, feeds = int8_unet(extra=GIVEN), frame(2, level=0.0)
    agree(opened(model).run(feeds), interpret(model, feeds), 2e-5)


def test_what_is_held_as_int8_and_what_is_converted(tmp_path):
    joined = {"back", "back.z0", "cat", "catz", "enc", "enc.z1", "stem.z0", "twice", "wide"}
    cases = [
        ((), joined | {"dec.z0", "enc.z0", "low.z0", "low2"}, []),
        (("skip",), {"dec.z0", "enc.z0", "low.z0", "low2"}, ["stem.z0", "catz", "wide", "twice"]),
        (("low2", "dec", "mix"), {"enc.z0", "low2"}, ["stem.z0", "cat", "wide", "twice"]),
    ]
    for exclude, held, converted in cases:
        graph = graph_of(int8_unet(exclude), tmp_path)
        rows = int8_rows(graph.nodes, graph.raw.outputs)
        assert set(rows) == held, exclude
        more, scales = with_conversions(graph, rows)
        made = [node for node in more.nodes if node.op == CONVERT]
        assert [node.inputs["x"] for node in made] == converted, exclude
        for node in more.nodes:
            if node.op == "SparseConv2d" and node.attributes["x_scale"]:
                assert scales[node.inputs["x"]] == node.attributes["x_scale"]
        assert all(node.inputs["x"] not in rows for node in made)


def test_an_output_of_the_graph_stays_float(tmp_path):
    graph = graph_of(int8_unet(extra=["low2"]), tmp_path)
    rows = int8_rows(graph.nodes, graph.raw.outputs)
    assert "low2" not in rows
    assert [n.inputs["x"] for n in with_conversions(graph, rows)[0].nodes if n.op == CONVERT] == ["low2"]


def test_readers_with_two_scales_get_copies_of_their_own(opened):
    model = int8_unet(extra=GIVEN)
    for node in model.graph.node:
        if node.name in ("dec", "w"):
            attribute = next(a for a in node.attribute if a.name == "x_scale")
            attribute.f *= 1.25 if node.name == "dec" else 0.8
    feeds = frame(5)
    agree(opened(model).run(feeds), interpret(model, feeds), 2e-5)


def test_memory_is_smaller_and_nobody_overlaps(opened):
    engine = opened(int8_unet(), "int8")
    plan = engine._plan
    for name, place in plan.plan.places.items():
        buffer = plan.plan.buffers[place.buffer]
        item = ITEM_BYTES[plan.types[name]]
        assert buffer.width * item % 16 == 0
        assert place.offset * item % 16 == 0
        assert plan.slot_bytes[buffer.slot] >= plan.capacities[buffer.level] * buffer.width * item
    half = opened(unet().model(), "fp16")
    assert engine.memory()["weights"] < half.memory()["weights"]


def test_a_float_refiner_is_no_int8_refiner(opened):
    with pytest.raises(UnsupportedOp, match="x_scale, found none; run `crispseg calibrate`"):
        opened(unet().model(), "int8")
