"""Refiners for versions of ONNX Runtime that mix up overloads of one function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from crispseg.engines import ort
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError
from crispseg.plugins.overloads import has_overloads, knows_overloads, without_overloads

onnxruntime = pytest.importorskip("onnxruntime")
REFINER = Path(__file__).parents[2] / "demo" / "bundle" / "refiner.onnx"


@pytest.mark.parametrize(
    ("version", "known"), [("1.17.3", False), ("1.26.0", False), ("1.27.0", True), ("1.31.0.dev2", True), ("2.0", True)]
)
def test_versions(version, known):
    assert knows_overloads(version) is known


def test_every_variant_has_a_name(tmp_path):
    model = without_overloads(onnx.load(str(REFINER)))
    assert not has_overloads(model)
    names = [(function.domain, function.name) for function in model.functions]
    assert len(set(names)) == len(names) > 8
    nodes = [node for node in model.graph.node if node.domain == "crispseg"]
    assert {(node.domain, node.op_type) for node in nodes} == set(names)
    assert not any(node.overload for node in nodes)
    assert model.ir_version == 8
    for function in model.functions:
        assert all(node.name for node in function.node)
    onnx.checker.check_model(model)


def test_names_that_would_meet():
    def function(name, overload):
        made = onnx.helper.make_function("d", name, ["x"], ["y"], [onnx.helper.make_node("Relu", ["x"], ["y"])],
                                         [onnx.helper.make_opsetid("", 17)])  # fmt: skip
        made.overload = overload
        return made

    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph, functions=[function("f", "a,b"), function("f", "a.b"), function("f_a_b", "")])
    assert [made.name for made in without_overloads(model).functions] == ["f_a_b_1", "f_a_b_2", "f_a_b"]


@pytest.mark.skipif(not knows_overloads(onnxruntime.__version__), reason="this ONNX Runtime needs the other form")
def test_an_old_onnxruntime_gets_the_same_network(monkeypatch):
    rng = np.random.default_rng(0)
    feeds = {"image": rng.integers(0, 256, (360, 480, 3), dtype=np.uint8),
             "logits": rng.normal(0, 0.6, (1, 11, 23, 30)).astype(np.float32)}  # fmt: skip
    found = []
    for old in (False, True):
        monkeypatch.setattr(ort, "knows_overloads", lambda version, old=old: not old)
        with ort.load(REFINER, EngineSpec("onnxruntime", threads=1, capacity=4000)) as engine:
            found.append(engine.run(feeds, ("labels", "count")))
    assert found[0]["count"] > 1000
    assert np.array_equal(found[0]["labels"], found[1]["labels"])


def test_a_damaged_file_is_an_error_with_an_old_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setattr(ort, "knows_overloads", lambda version: False)
    (tmp_path / "refiner.onnx").write_bytes(REFINER.read_bytes()[:5000])
    with pytest.raises(BundleError, match="expected a valid ONNX network"):
        ort.load(tmp_path / "refiner.onnx", EngineSpec("onnxruntime", threads=1))
