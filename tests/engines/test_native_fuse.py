"""Shortcuts taken into the convolutions that add them: which ones, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from native_net import Net, frame

from crispseg.engines import native, native_fuse, native_winograd
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.spec import EngineSpec
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins.loader import available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)


def blocks(skip=None, conv=None, second_reader=False, extra=()):
    """stem - block of 9 to 12 channels - block of 12 to 20 - yo; both change their channels.

    ``skip``, ``conv``: options of the second block's shortcut and of the convolution that adds it.
    """
    net = Net(0)
    net.head()
    net.conv("stem", "x", "map0", "count", 9, 3, 9, z=1)
    net.conv("a.skip", "stem", "", "count", 1, 9, 12, bias=False)
    net.conv("a.1", "stem.z0", "map0", "count", 9, 9, 12, relu=1, y=True)
    net.conv("a", "a.1", "map0", "count", 9, 12, 12, residual="a.skip", z=1)
    net.conv("b.skip", "a", "", "count", 1, 12, 20, **(skip or {}))
    net.conv("b.1", "a.z0", "map0", "count", 9, 12, 20, relu=1)
    net.conv("b", "b.1", "map0", "count", 9, 20, 20, residual="b.skip", **{"relu": 1, **(conv or {})})
    last = "b"
    if second_reader:
        net.conv("c", "b", "map0", "count", 9, 20, 20, residual="b.skip")
        last = "c"
    net.conv("yo", last, "", "count", 1, 20, 5)
    net.tail("yo")
    net.extra = extra
    return net


def graph_of(net, path):
    onnx.save(net.model(), str(path))
    return check_graph(read_graph(path))


def fused(graph):
    return {node.outputs["y"] for node in native_fuse.fuse_shortcuts(graph).nodes if node.inputs.get("x2")}


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (blocks(), {"a", "b"}),
        (blocks(skip={"bias": False}, conv={"bias": False}), {"a", "b"}),
        (blocks(skip={"relu": 1}), {"a"}),
        (blocks(skip={"z": 1}), {"a"}),
        (blocks(second_reader=True), {"a"}),
        (blocks(extra=("b.skip",)), {"a"}),
        (blocks(skip={"x_scale": 0.05}), {"a"}),
        (blocks(conv={"x_scale": 0.05}), {"a"}),
    ],
)
def test_what_is_taken_in(net, expected, tmp_path):
    assert fused(graph_of(net, tmp_path / "r.onnx")) == expected


def test_wide_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(native_fuse, "MAX_COLUMNS", 12)
    assert fused(graph_of(blocks(), tmp_path / "r.onnx")) == {"a"}


def test_what_winograd_computes_stays(tmp_path, monkeypatch):
    graph = graph_of(blocks(), tmp_path / "r.onnx")
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 20)
    assert fused(graph) == {"a"}
    for mode, expected in (("0", {"a", "b"}), ("1", set()), ("2", {"a"})):
        monkeypatch.setenv("CRISPSEG_WINOGRAD", mode)
        assert fused(graph) == expected


def test_a_plan_that_names_one_of_them_is_passed_over(tmp_path):
    """Winograd's kernel would refuse the second source at the first frame."""
    graph = native_fuse.fuse_shortcuts(graph_of(blocks(), tmp_path / "r.onnx"))
    plan = {node.name: "winograd4" for node in graph.nodes}
    chosen = {graph.nodes[index].outputs["y"] for index in native_winograd.choose(graph, plan)}
    taken = {node.outputs["y"] for node in graph.nodes if node.inputs.get("x2")}
    assert taken
    assert chosen
    assert not taken & chosen


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bias", [{}, {"bias": False}])
def test_results_are_those_without(isa, bias, tmp_path, monkeypatch):
    path = tmp_path / "refiner.onnx"
    onnx.save(blocks(bias, extra=("yo", "b")).model(), str(path))
    feeds = frame(3)
    with native.load(path, EngineSpec(threads=2), isa) as engine:
        got = engine.run(feeds)
        layers = {item.name.split("_")[0]: item for item in engine.layers()}
        shortcuts = [item.shortcut for item in layers.values() if item.shortcut]
        assert shortcuts == [9, 12]
        wide = next(item for item in layers.values() if item.shortcut == 12)
        assert wide.gflop == pytest.approx(2e-9 * wide.rows * 20 * (9 * 20 + 12))
        assert wide.algorithm == "direct"
        again = engine.run(feeds)
    monkeypatch.setattr(native, "fuse_shortcuts", lambda graph: graph)
    with native.load(path, EngineSpec(threads=1), isa) as engine:
        want = engine.run(feeds)
        assert not any(item.shortcut for item in engine.layers())
        assert len(engine.layers()) == len(layers) + 2
    assert int(want["count"][0]) > 50
    for name in ("labels", "confidence", "coords"):
        np.testing.assert_array_equal(got[name], want[name])
    for name in ("yo", "b"):
        assert np.abs(got[name] - want[name]).max() <= 1e-5 * np.abs(want[name]).max()
        assert got[name].tobytes() == again[name].tobytes()


def test_artefact_of_a_fused_engine(tmp_path, monkeypatch):
    from test_native_artefact import Files, load, same

    from crispseg.engines import native_artefact

    monkeypatch.delenv("CRISPSEG_WINOGRAD", raising=False)
    bundle = Files(tmp_path, blocks().model())
    artefact = native_artefact.build(bundle, deterministic=True)
    assert {"a.skip.w", "b.skip.w"} <= set(artefact.facts["weights"])
    with load(bundle) as packed, load(bundle, artefact) as mapped:
        runs = [[engine.run(frame(3))] for engine in (packed, mapped)]
        assert same(*runs)
        assert [item.shortcut for item in mapped.layers() if item.shortcut] == [9, 12]


def test_outputs_that_need_no_block(tmp_path):
    path = tmp_path / "refiner.onnx"
    onnx.save(blocks(extra=("a.1", "b")).model(), str(path))
    with native.load(path, EngineSpec(threads=1)) as engine:
        part = engine.run(frame(3), ["a.1"])
        np.testing.assert_array_equal(part["a.1"], engine.run(frame(3))["a.1"])
