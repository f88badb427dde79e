"""int8 refiners on the native engine: against the definition, ONNX Runtime, themselves on other threads, and memory."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnx")

from int8_net import int8_unet
from native_net import Net, frame, interpret, unet

from crispseg.engines import native
from crispseg.engines.int8_rows import CONVERT
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.native_int8 import SIGNED, bytes_of, plan_memory
from crispseg.engines.spec import EngineSpec
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins.loader import available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)

GIVEN = ("low2", "t", "yo", "ye")
ALL = dict(level=0.0)
NONE = dict(level=30.0, share=1.1)


@pytest.fixture
def opened(tmp_path):
    engines = []

    def load(model, isa="", threads=1):
        path = tmp_path / "refiner.int8.onnx"
        onnx.save(model, str(path))
        engines.append(native.load(path, EngineSpec(threads=threads, precision="int8"), isa=isa))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def models():
    """edges -> model: first and last layers float, or every layer int8 (the stem's and a shortcut's input signed)."""
    return {edges: int8_unet(edges=edges, extra=GIVEN) for edges in (False, True)}


def check(found, exact, limit=0.02):
    """``limit``: a value that lies on the border of two integers falls to one side or the other."""
    assert (found["coords"] == exact["coords"]).all()
    for name in GIVEN:
        assert found[name].shape == exact[name].shape
        scale = max(1.0, np.abs(exact[name]).max(initial=0))
        wrong = np.abs(found[name] - exact[name]) / scale
        assert wrong.max(initial=0) < limit, name
        assert wrong.size == 0 or np.median(wrong) < 1e-6, name
    assert (found["labels"] == exact["labels"]).mean() > 0.998


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vnni", ["1", "0"])
@pytest.mark.parametrize("edges", [False, True])
def test_agrees_with_the_definition(opened, models, monkeypatch, isa, vnni, edges):
    monkeypatch.setenv("CRISPSEG_VNNI", vnni)
    engine = opened(models[edges], isa)
    assert engine.describe()["int8"] in (
        ("vnni", "maddubs", "madd", "lanes") if vnni == "1" else ("maddubs", "madd", "lanes")
    )
    for feeds in (frame(1), frame(2, **ALL), frame(3, **NONE), frame(1)):
        check(engine.run(feeds), interpret(models[edges], feeds))
    algorithms = {layer.algorithm for layer in engine.layers()}
    assert "int8" in algorithms


@pytest.mark.parametrize("edges", [False, True])
def test_agrees_with_onnx_runtime(opened, models, edges):
    ort = pytest.importorskip("onnxruntime")
    engine = opened(models[edges])
    session = ort.InferenceSession(models[edges].SerializeToString(), providers=["CPUExecutionProvider"])
    for seed in range(3):
        feeds = frame(seed)
        check(engine.run(feeds), dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds))))


def test_same_bits_on_any_number_of_threads_and_after_other_frames(opened, models):
    one, three = opened(models[True]), opened(models[True], threads=3)
    cases = [frame(1), frame(2, **ALL), frame(3, **NONE), frame(4, share=0.9), frame(1)]
    results = [[engine.run(feeds) for feeds in cases] for engine in (one, three)]
    fresh = opened(models[True]).run(cases[-1])
    for a, b in zip(*results):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert all(np.array_equal(results[0][-1][name], fresh[name]) for name in fresh)


def graph_of(model, tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    return check_graph(read_graph(path))


def chain(signed_join=False):
    """stem (float) -> a, b (int8, fused) -> Concat -> c (int8) -> float classifier."""
    net = Net(5)
    net.head("rgb")
    net.conv("stem", "x", "map0", "count", 9, 3, 8, relu=1)
    net.conv("a", "stem", "map0", "count", 9, 8, 8, z=1, y=False, x_scale=0.02)
    net.conv("b", "a.z0", "map0", "count", 9, 8, 12, relu=0 if signed_join else 1, x_scale=0.03)
    net.conv("d", "a.z0", "map0", "count", 9, 8, 6, relu=1, x_scale=0.03)
    net.op("Concat", ["b", "d"], ["cat"], axis=1)
    net.conv("c", "cat", "map0", "count", 9, 18, 8, relu=1, x_scale=0.05)
    net.conv("yo", "c", "", "count", 1, 8, 5)
    net.tail("yo")
    net.extra = ["yo", "ye"]
    return net.model()


@pytest.mark.parametrize("signed_join", [False, True])
def test_bytes_where_all_readers_take_them(opened, tmp_path, signed_join):
    model = chain(signed_join)
    graph, rows = bytes_of(graph_of(model, tmp_path))
    assert [node.inputs["x"] for node in graph.nodes if node.op == CONVERT] == ["stem"]
    zero = SIGNED if signed_join else 0
    copies = {name: made.zero for name, made in rows.items()}
    assert copies == {"stem#int8.0": 0, "a.z0": 0, "b": zero, "d": zero, "cat": zero}
    plan, slots = plan_memory(graph, rows)
    for name, place in plan.places.items():
        slot = slots[plan.buffers[place.buffer].slot]
        assert slot.itemsize == (1 if name in rows else 4)
        assert slot.zero == (rows[name].zero if name in rows else 0)
        width = plan.buffers[place.buffer].width
        assert width % 4 == 0 or name not in rows
        assert place.offset + graph.tensors[name].columns <= width <= plan.pads[plan.buffers[place.buffer].slot]
    assert plan.places["b"].buffer == plan.places["d"].buffer == plan.places["cat"].buffer
    engine = opened(model)
    for seed in range(3):
        found, exact = engine.run(frame(seed)), interpret(model, frame(seed))
        wrong = np.abs(found["yo"] - exact["yo"])
        assert np.median(wrong) < 1e-6 * np.abs(exact["yo"]).max()
        assert wrong.max() < 0.03 * np.abs(exact["yo"]).max()
    assert [layer.algorithm for layer in engine.layers()] == ["direct", "int8", "int8", "int8", "int8", "direct"]


def test_memory(opened, models):
    """Weights take less than float32 ones, and nothing grows once the largest frame was seen."""
    quantised, floats = opened(models[True]), opened(unet().model())
    quantised.run(frame(1, **ALL))
    held = quantised.memory()
    assert held["weights"] < 0.6 * floats.memory()["weights"]
    for seed in range(5):
        quantised.run(frame(seed))
    assert quantised.memory() == held


def test_float_graphs_have_no_bytes(tmp_path):
    graph = graph_of(unet().model(), tmp_path)
    same, rows = bytes_of(graph)
    assert same is graph
    assert rows == {}
