"""The exported refiner: official numbers through ONNX Runtime, structure, float16 weights, wrong inputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import golden
import onnx
import single
import torch
from onnx import helper

from crispseg.errors import InputError, UnsupportedOp
from crispseg.export.bodies import node_attributes
from crispseg.export.refiner import export_refiner
from crispseg.plugins.ops import DOMAIN

torch.set_num_threads(1)
ROWS = ("yi", "yo", "ye")


def run(model, feeds, extra=()):
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for name in extra:
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    runner = single.session(model)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, feeds)))


def relative(found, expected):
    return float(np.abs(found - expected).max(initial=0) / max(1e-9, np.abs(expected).max(initial=0)))


def export(module, feeds, **options):
    height, width = feeds["image"].shape[:2]
    return export_refiner(module, height=height, width=width, logits_shape=feeds["logits"].shape[1:], **options)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize(
    ("case", "extent"),
    [
        *((case, "active") for case in ("a_64x96", "b_67x95", "c_allactive_32x32", "e_corners_64x96")),
        *((case, "image") for case in ("a_64x96", "b_67x95", "e_corners_64x96")),  # no golden file for c
    ],
)
def test_official_numbers(case, extent, optimise):
    inputs = golden.load(f"inputs_{case}")
    expected = golden.load(f"small_{case}" + ("_imageclip" if extent == "image" else ""))
    low = inputs["low_logits"].astype(np.float32).transpose(0, 3, 1, 2)
    feeds = {"image": inputs["rgb"][0], "logits": low}
    found = run(export(golden.network(extent=extent), feeds, optimise=optimise), feeds, ROWS)
    np.testing.assert_array_equal(found["coords"], inputs["coords"][:, 1:])
    assert relative(found["yo"], expected["yo"]) < 1e-5
    assert relative(found["ye"], expected["ye"]) < 2e-5
    if "yi" in expected:
        np.testing.assert_array_equal(found["yi"], expected["yi"])
    if "argmax_e" in expected:
        top = np.sort(expected["ye"], 1)
        sure = top[:, -1] - top[:, -2] > 1e-3 * np.abs(expected["ye"]).max()
        at = tuple(inputs["coords"][:, 1:].T)
        np.testing.assert_array_equal(found["labels"][at][sure], expected["argmax_e"][0][at][sure])
        outside = np.ones(found["labels"].shape, bool)
        outside[at] = False
        np.testing.assert_array_equal(found["labels"][outside], expected["argmax_e"][0][outside])


def test_nothing_active():
    inputs, expected = golden.load("inputs_d_zeroactive_24x40"), golden.load("small_d_zeroactive_24x40")
    feeds = {"image": inputs["rgb"][0], "logits": inputs["low_logits"].astype(np.float32).transpose(0, 3, 1, 2)}
    for optimise in (True, False):
        found = run(export(golden.network(), feeds, optimise=optimise), feeds)
        assert found["count"].tolist() == [0]
        assert found["coords"].shape == (0, 2)
        np.testing.assert_array_equal(found["labels"], expected["argmax"][0])


@pytest.mark.parametrize(
    "config",
    [
        {"planes": (8,), "repeats": 2},
        {"planes": (4, 8), "repeats": (3, 1), "ensembler": "entropy", "channel_order": "rgb"},
        {"planes": (4, 4, 4), "repeats": (1, 2, 1), "features": ("rgb", "xy", "p", "p>0.5"), "num_classes": 5},
        {"planes": (6, 5, 4, 3), "upsample": "bilinear", "threshold": 1.2, "extent": "image"},
        {"planes": (6, 5), "upsample": "bilinear_corners", "threshold": 1.2},
    ],
)
def test_every_structure_agrees_with_the_module(config):
    module = golden.network(**config)
    feeds = golden.scene(config.get("num_classes", 19))
    model = export(module, feeds)
    found = run(model, feeds, ROWS)
    with torch.no_grad():
        image, logits = torch.from_numpy(feeds["image"])[None], torch.from_numpy(feeds["logits"])
        refined = module.refine(image, logits)
        labels = module.labels(refined, logits)[0].numpy()
    assert 0 < len(refined.coords) < labels.size
    np.testing.assert_array_equal(found["coords"], refined.coords[:, 1:].numpy())
    for name in ROWS:
        assert relative(found[name], getattr(refined, name).numpy()) < 2e-5, name
    assert (found["labels"] != labels).mean() < 1e-3
    assert {n.op_type for n in model.graph.node if n.domain != DOMAIN} <= {"Concat"}


def test_over_capacity_refines_the_most_uncertain():
    module, feeds = golden.network(), golden.scene()
    everything = run(export(module, feeds), feeds)
    limit = int(everything["count"][0]) // 2
    found = run(export(module, feeds, capacity=limit), feeds)
    assert found["found"] == everything["count"]
    assert found["count"].tolist() == [limit]
    kept, allowed = set(map(tuple, found["coords"].tolist())), set(map(tuple, everything["coords"].tolist()))
    assert kept < allowed


def test_only_contract_ops_are_left_and_every_node_says_so():
    feeds = golden.scene()
    module = golden.network(planes=(4, 8, 8), repeats=2)
    naive, model = export(module, feeds, optimise=False), export(module, feeds)
    before, after = (Counter(n.op_type for n in m.graph.node) for m in (naive, model))
    assert before["BatchNormalization"] == before["Relu"] == 2 * 10 + 2 * 2 + 1
    assert after["SparseConv2d"] == before["SparseConv2d"]
    assert set(after) - {n.op_type for n in model.graph.node if n.domain == DOMAIN} == {"Concat"}
    assert len(model.graph.node) < len(naive.graph.node) / 2
    for node in model.graph.node:
        if node.domain == DOMAIN:
            values = node_attributes(node)
            assert (values["plugin_version"], values["plugin_namespace"]) == ("1", "")
    assert {p.key: p.value for p in model.metadata_props} == {
        "crispseg.contract": "1",
        "crispseg.kind": "sparserefine",
    }
    assert [i.name for i in model.graph.input] == ["image", "logits"]
    assert [o.name for o in model.graph.output] == ["labels", "confidence", "coords", "count", "found"]
    last = next(n for n in model.graph.node if n.output[-1] == "final")
    assert list(last.output) == ["", "final"], "raw rows that nobody reads are not written"


def test_half_weights_change_the_file_and_hardly_the_result():
    module, feeds = golden.network(), golden.scene()
    full, half = export(module, feeds), export(module, feeds, weights="float16")
    assert len(half.SerializeToString()) < 0.75 * len(full.SerializeToString())
    assert {t.data_type for t in half.graph.initializer if len(t.dims) == 3} == {onnx.TensorProto.FLOAT16}
    a, b = run(full, feeds, ROWS), run(half, feeds, ROWS)
    assert 0 < relative(b["yo"], a["yo"]) < 5e-3
    np.testing.assert_array_equal(a["coords"], b["coords"])


def test_a_weight_too_large_for_half_is_refused():
    module, feeds = golden.network(), golden.scene()
    with torch.no_grad():
        module.stem.kernel[0, 0, 0] = 1e6
    with pytest.raises(InputError, match="65504"):
        export(module, feeds, weights="float16")
    export(module, feeds)


def test_learnable_selector_is_refused_with_the_reason():
    module = golden.network(selector="learnable")
    with pytest.raises(UnsupportedOp, match="entropy"):
        export(module, golden.scene())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"height": 0}, "height"),
        ({"width": 2.5}, "width"),
        ({"height": 2**20, "width": 2**20}, "pixels"),
        ({"logits_shape": (7, 4, 4)}, "logits_shape"),
        ({"logits_shape": (19, 4)}, "logits_shape"),
        ({"upsample": "cubic"}, "upsample"),
        ({"threshold": float("nan")}, "threshold"),
        ({"capacity": 0}, "capacity"),
        ({"weights": "int4"}, "weights"),
    ],
)
def test_wrong_inputs(options, word):
    right = {"height": 8, "width": 8, "logits_shape": (19, 4, 4)}
    with pytest.raises(InputError, match=word):
        export_refiner(golden.network(), **{**right, **options})
