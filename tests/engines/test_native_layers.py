"""What the native engine tells about its layers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from native_net import frame, interpret, unet

from crispseg.engines import native, native_winograd
from crispseg.engines.native_layers import Layer, medians, table
from crispseg.engines.spec import EngineSpec
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins.loader import available_isas

try:
    available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)


def layer(**values):
    base = dict(name="a", kind="up", level=0, rows=10, cin=2, cout=4, algorithm="direct", ms=2.0, gflop=0.5)
    return Layer(**{**base, **values})


def test_layers_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 8)
    monkeypatch.delenv("CRISPSEG_WINOGRAD", raising=False)
    net = unet(0)
    net.extra = ("up",)
    path = tmp_path / "refiner.onnx"
    onnx.save(net.model(), str(path))
    names = [node.name for node in net.model().graph.node if node.op_type == "SparseConv2d"]
    feeds = frame(1, level=0.0)
    exact = interpret(net.model(), feeds)
    with native.load(path, EngineSpec(threads=1)) as engine:
        assert engine.layers() == []
        engine.run(feeds, ["labels"])
        layers = engine.layers()
        assert [item.name for item in layers] == [name for name in names if name in engine.node_times]
        first, up = layers[0], next(item for item in layers if item.kind == "up")
        n = int(exact["count"][0])
        assert (first.kind, first.rows, first.level) == ("submanifold", n, 0)
        assert first.gflop == pytest.approx(2e-9 * 9 * n * first.cin * first.cout)
        assert up.gflop == pytest.approx(2e-9 * (exact["up"] >= 0).sum() * up.cin * up.cout)
        assert {item.algorithm for item in layers} == {"direct", "winograd4"}
        assert all(item.ms == engine.node_times[item.name] for item in layers)
        engine.run(feeds, ["count"])
        assert engine.layers() == []  # nothing was convolved
    assert engine.layers() == []


def test_rows_of_a_table():
    rows = table([layer(), layer(name="b", ms=6.0)])
    assert [row["share_percent"] for row in rows] == [25, 75]
    assert rows[0]["gflop_per_s"] == 250
    assert table([]) == []
    assert table([layer(ms=0.0)])[0]["gflop_per_s"] == 0


def test_medians_over_frames():
    seen = ((1, 10, "direct"), (9, 30, "winograd4"), (2, 20, "direct"))
    frames = [[layer(ms=float(ms), rows=rows, algorithm=algorithm)] for ms, rows, algorithm in seen]
    (middle,) = medians(frames)
    assert (middle.ms, middle.rows, middle.algorithm) == (2, 20, "direct/winograd4")
    assert np.isclose(middle.gflop, 0.5)
