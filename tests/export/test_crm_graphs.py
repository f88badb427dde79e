"""CRM's graphs: what they hold, and that the comparison with PyTorch finds what would go wrong unseen."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import numpy_helper  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_crm  # noqa: E402

from crispseg.bundle_masks import CrmInfo  # noqa: E402
from crispseg.errors import CheckpointError, InputError, ParityError  # noqa: E402
from crispseg.export import crm as graphs_of  # noqa: E402
from crispseg.export.crm_bundle import compare, export_crm, gate  # noqa: E402
from crispseg.export.dense import to_bytes  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def graphs():
    return graphs_of.crm_graphs(fill_crm.model())


def copy(graph):
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    return made


def test_graphs_are_plain(graphs):
    ops = {name: Counter(node.op_type for node in graph.graph.node) for name, graph in graphs.items()}
    assert ops["backbone.onnx"] == {"Conv": 46, "Relu": 46, "Add": 13, "BatchNormalization": 3, "MaxPool": 1}
    assert ops["fusion.onnx"] == {"MatMul": 4, "Conv": 2, "Concat": 1, "Relu": 1, "Transpose": 1}
    assert ops["decoder.onnx"]["Gather"] <= 4
    assert not set(ops["decoder.onnx"]) & {"GridSample", "ScatterND", "ScatterElements", "Shape", "Expand"}
    for graph in graphs.values():
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    # 9.3 M of 24.3 M numbers: no fourth stage.
    assert sum(int(np.prod(t.dims)) for t in graphs["backbone.onnx"].graph.initializer) < 9e6


def test_same_network_same_bytes(graphs):
    again = graphs_of.crm_graphs(fill_crm.model())
    assert all(to_bytes(graphs[name]) == to_bytes(again[name]) for name in graphs)


def test_graphs_agree_with_the_network(graphs):
    parity = compare(fill_crm.model(), graphs)
    gate(parity)
    assert {hop: figures["max_error_std"] < 2e-5 for hop, figures in parity.items()} == {
        "backbone": True,
        "fusion": True,
        "decoder": True,
    }


def change_first(graph, wanted, change):
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if wanted(tensor.name, values):
            tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
            return
    raise AssertionError("no such initialiser")


@pytest.mark.parametrize(
    ("file", "wanted", "change"),
    [
        # What torch's newer exporter does: x + 1e-9 becomes x, and a query in a cell's centre 0 / 0.
        ("decoder.onnx", lambda name, v: v.size == 1 and v.dtype == np.float32 and 0 < v.max() < 1e-8, lambda v: v * 0),
        ("decoder.onnx", lambda name, v: v.shape == (32, 3), lambda v: v[:, ::-1]),
        ("fusion.onnx", lambda name, v: v.shape == (32, 256, 1, 1), lambda v: np.roll(v, 1, axis=0)),
        ("backbone.onnx", lambda name, v: v.shape == (64,), lambda v: v + 0.01),
    ],
)
def test_gate_finds_a_wrong_graph(graphs, file, wanted, change):
    wrong = copy(graphs[file])
    change_first(wrong, wanted, change)
    with pytest.raises(ParityError, match=f"CRM {file[:-5]}"):
        gate(compare(fill_crm.model(), {**graphs, file: wrong}))


def test_bundle_of_an_official_file(tmp_path):
    torch.save(fill_crm.state(), tmp_path / "model_45705")
    made = export_crm(tmp_path / "b", weights=tmp_path / "model_45705")
    assert isinstance(made.refiner, CrmInfo)
    assert not made.refiner.random_weights
    assert made.provenance["refiner"]["dropped"] == {"keys": 60, "groups": ["feats.layer4"]}
    assert set(made.provenance["refiner"]["parity"]) == {"backbone", "fusion", "decoder"}
    assert made.refiner.mean == (123.675, 116.28, 103.53)


def test_wrong_input_leaves_no_bundle(tmp_path):
    with pytest.raises(InputError, match="--random-weights"):
        export_crm(tmp_path / "b")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        export_crm(tmp_path / "b", weights=tmp_path / "other.pth")
    assert not (tmp_path / "b").exists()
