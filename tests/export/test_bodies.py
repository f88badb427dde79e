"""Portable bodies against numpy: the op table, and selection, features, ensemble and scatter at their edges."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy_ops as reference
import op_table
import single
from onnx import helper

from crispseg.errors import UnsupportedOp
from crispseg.export.bodies import attach_bodies, portable_body
from crispseg.plugins.ops import BY_NAME, DOMAIN
from crispseg.plugins.quantise import dequantise, quantise_weight


def sites(kind, height, width):
    mask = np.zeros((height, width), bool)
    if kind == "one":
        mask[height // 2, width // 2] = True
    elif kind == "all":
        mask[:] = True
    return np.argwhere(mask).astype(np.int32)


def counted(coords):
    return {"coords": coords, "count": np.array([len(coords)], np.int32)}


@pytest.mark.parametrize("row", op_table.SITES, ids=lambda row: row.name)
def test_maps(row):
    feeds = counted(row.coords())
    size = {"height": row.height, "width": row.width}
    found = single.run("SubmanifoldMap", feeds, size)["map"]
    np.testing.assert_array_equal(found, op_table.reference_submanifold(feeds["coords"]))
    assert found.dtype == np.int32
    for extent in ("active", "image"):
        found = single.run("DownMap", feeds, {**size, "extent": extent})
        coords, down, up = op_table.reference_down(feeds["coords"], row.height, row.width, extent)
        expected = {"coords_out": coords, "count_out": [len(coords)], "down": down, "up": up}
        for role in expected:
            np.testing.assert_array_equal(found[role], expected[role], err_msg=f"{role} {extent}")
            assert found[role].dtype == np.int32


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "bilinear_corners"])
@pytest.mark.parametrize(("low", "full"), [((4, 6), (8, 12)), ((5, 7), (13, 16)), ((8, 8), (8, 8)), ((1, 1), (3, 2))])
@pytest.mark.parametrize("threshold", [-1.0, 0.9, 50.0])
def test_select_pixels(upsample, low, full, threshold):
    logits = np.random.default_rng(1).normal(size=(1, 5) + low).astype(np.float32) * 2
    attributes = {"height": full[0], "width": full[1], "upsample": upsample, "threshold": threshold, "capacity": 10**6}
    found = single.run("SelectPixels", {"logits": logits}, attributes)
    expected = reference.select_pixels(logits, *full, upsample, threshold, 10**6)
    assert np.abs(expected["entropy"] - threshold).min() > 1e-5, "the case must not sit on the threshold"
    for role in ("labels", "coords", "count", "found"):
        np.testing.assert_array_equal(found[role], expected[role], err_msg=role)
    assert np.abs(found["confidence"].astype(int) - expected["confidence"]).max() <= 1

    feeds = {"logits": logits, **counted(found["coords"])}
    at = single.run("LogitsAt", feeds, {k: attributes[k] for k in ("height", "width", "upsample")})["yi"]
    y, x = found["coords"].T
    wanted = reference.upsampled(logits, *full, upsample)[:, y, x].T
    np.testing.assert_allclose(at, wanted, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("capacity", [1, 7, 50, 95, 96])
def test_over_capacity_keeps_the_most_uncertain_and_breaks_ties_in_raster_order(capacity):
    # Nearest at ratio 2 makes every entropy occur four times, so ties are the rule.
    logits = np.random.default_rng(2).normal(size=(1, 3, 4, 6)).astype(np.float32)
    found = single.run(
        "SelectPixels",
        {"logits": logits},
        {"height": 8, "width": 12, "upsample": "nearest", "threshold": -1.0, "capacity": capacity},
    )
    expected = reference.select_pixels(logits, 8, 12, "nearest", -1.0, capacity)
    for role in ("coords", "count", "found"):
        np.testing.assert_array_equal(found[role], expected[role], err_msg=role)
    assert found["found"][0] == 96
    assert found["count"][0] == capacity


def test_tied_classes_take_the_lowest_and_threshold_is_strict():
    logits = np.zeros((1, 2, 1, 1), np.float32)
    even = float(np.float32(np.log(2.0)))
    for threshold, active in ((even - 1e-4, 1), (even + 1e-4, 0)):
        attributes = {"height": 1, "width": 1, "threshold": threshold, "capacity": 1}
        found = single.run("SelectPixels", {"logits": logits}, attributes)
        assert found["labels"].tolist() == [[0]]
        assert found["count"][0] == active
    logits = np.zeros((1, 1, 1, 1), np.float32)  # one class: entropy is exactly 0
    found = single.run("SelectPixels", {"logits": logits}, {"height": 1, "width": 1, "threshold": 0.0, "capacity": 1})
    assert found["count"][0] == 0


@pytest.mark.parametrize("kind", ["none", "one", "all"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixel_features(kind, order):
    rng = np.random.default_rng(4)
    coords = sites(kind, 5, 7)
    image = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    yi = rng.normal(size=(len(coords), 4)).astype(np.float32)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    attributes = {"channel_order": order, "mean": mean, "std": std, "height": 5, "width": 7}
    feeds = {"image": image, **counted(coords)}
    y, x = coords.T
    colours = image[y, x].astype(np.float64)
    rgb = ((colours if order == "rgb" else colours[:, ::-1]) - mean) / std
    found = single.run("PixelFeatures", feeds, {**attributes, "features": "rgb"})["x"]
    np.testing.assert_allclose(found, rgb, atol=1e-6)
    found = single.run("PixelFeatures", {**feeds, "yi": yi}, {**attributes, "features": "p>0.3,xy,rgb,p"})["x"]
    p = reference.softmax(yi, 1)
    np.testing.assert_allclose(found, np.concatenate([p > 0.3, coords / [5, 7], rgb, p], 1), atol=1e-6)


@pytest.mark.parametrize("conv", op_table.CONVS, ids=lambda conv: conv.name)
def test_sparse_conv2d(conv):
    data = op_table.conv_data(conv)
    feeds = {role: data[role] for role in ("x", "map", "weight") if role in data}
    feeds.update({role: data[role] for role in ("bias", "residual") if getattr(conv, role)})
    for i in range(conv.outputs):
        feeds[f"scale{i + 1}"], feeds[f"shift{i + 1}"] = data[f"scale{i}"], data[f"shift{i}"]
    feeds["count"] = np.array([len(data["residual"])], np.int32)
    wanted = ["y"] * conv.y + ["z1", "z2"][: conv.outputs]
    found = single.run("SparseConv2d", feeds, {"relu": int(conv.relu)}, wanted)
    for role, expected in zip(["y", "z1", "z2"], op_table.reference_conv(data, conv)):
        if role in wanted:
            limit = 1e-5 * max(1.0, np.abs(expected).max(initial=0))
            np.testing.assert_allclose(found[role], expected, rtol=0, atol=limit, err_msg=role)


@pytest.mark.parametrize("conv", op_table.CONVS[::5], ids=lambda conv: conv.name)
@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
def test_int8_sparse_conv2d(conv, signed):
    data = op_table.conv_data(conv)
    data["x"] = data["x"] if signed else np.maximum(data["x"], 0)
    x_scale = np.float32(2.5 / 127)  # some values lie outside
    roles = {role: data[role] for role in ("x", "map") if role in data}
    roles.update({role: data[role] for role in ("bias", "residual") if getattr(conv, role)})
    for i in range(conv.outputs):
        roles[f"scale{i + 1}"], roles[f"shift{i + 1}"] = data[f"scale{i}"], data[f"shift{i}"]
    roles["count"] = np.array([len(data["residual"])], np.int32)
    q, w_scale = quantise_weight(data["weight"])
    again, same = quantise_weight(dequantise(q, w_scale))
    assert (again == q).all()
    np.testing.assert_allclose(same, w_scale, rtol=2e-7)
    roles["weight"] = dequantise(q, w_scale)
    wanted = ["y"] * conv.y + ["z1", "z2"][: conv.outputs]
    found = single.run("SparseConv2d", roles, {"relu": int(conv.relu), "x_scale": float(x_scale)}, wanted)
    for role, expected in zip(["y", "z1", "z2"], op_table.reference_conv_int8(data, conv, x_scale)):
        if role in wanted:
            limit = 1e-5 * max(1.0, np.abs(expected).max(initial=0))
            np.testing.assert_allclose(found[role], expected, rtol=0, atol=limit, err_msg=role)


def test_second_epilogue_alone_and_maps_into_an_empty_level():
    none = np.full((3, 9), -1, np.int32)
    weight, zeros = np.ones((9, 5, 2), np.float32), np.zeros(2, np.float32)
    feeds = {"x": np.zeros((0, 5), np.float32), "map": none, "weight": weight, "count": np.array([3], np.int32)}
    feeds.update(scale2=zeros, shift2=zeros + 4)
    assert single.run("SparseConv2d", feeds, {}, ["z2"])["z2"].tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("mode", ["gated", "entropy"])
def test_ensemble_and_scatter(n, mode):
    rng = np.random.default_rng(7)
    c, d = 5, 8
    coords = sites("all", 5, 10)[:n]
    yi, yo = rng.normal(size=(2, n, c)).astype(np.float32) * 3
    yo[: n // 3] = yi[: n // 3]  # ties
    shapes = {"w1": (d, 2 * c + 2), "b1": (d,), "w2": (2, d), "b2": (2,), "w3": (d, c), "b3": (d,), "w4": (c, d)}
    weights = {k: rng.normal(size=s).astype(np.float32) for k, s in {**shapes, "b4": (c,)}.items()}
    feeds = {"yi": yi, "yo": yo, "count": np.array([n], np.int32)}
    if mode == "gated":
        feeds.update(weights)
    ye = single.run("EnsembleLogits", feeds, {"mode": mode})["ye"]
    expected = reference.ensemble(yi, yo, list(weights.values()) if mode == "gated" else None)
    np.testing.assert_allclose(ye, expected, atol=2e-5 * max(1.0, np.abs(expected).max(initial=0)))

    labels, confidence = np.full((5, 10), 77, np.uint8), np.full((5, 10), 9, np.uint8)
    out = single.run("ScatterLabels", {"labels": labels, "confidence": confidence, "ye": ye, **counted(coords)}, {})
    labels[tuple(coords.T)] = ye.argmax(1)
    confidence[tuple(coords.T)] = np.round(255 * reference.softmax(ye, 1).max(1, initial=0))
    np.testing.assert_array_equal(out["labels_out"], labels)
    assert np.abs(out["confidence_out"].astype(int) - confidence).max() <= 1


def test_entropy_mode_gives_nan_to_the_refined_row():
    yi, yo = np.array([[np.nan, 0.0]], np.float32), np.array([[3.0, 1.0]], np.float32)
    feeds = {"yi": yi, "yo": yo, "count": np.array([1], np.int32)}
    np.testing.assert_array_equal(single.run("EnsembleLogits", feeds, {"mode": "entropy"})["ye"], yo)


def node(op_name, inputs, outputs, **attributes):
    return helper.make_node(op_name, inputs, outputs, domain=DOMAIN, **attributes)


@pytest.mark.parametrize(
    "bad",
    [
        node("Foo", ["x"], ["y"]),
        node("SparseConv2d", ["x", "", "count", "w"], []),
        node("SparseConv2d", ["", "", "count", "w"], ["y"]),
        node("SparseConv2d", ["x", "", "count", "w"], ["y"], relu=2),
        node("SparseConv2d", ["x", "", "count", "w"], ["y"], pad=1),
        node("SparseConv2d", ["x", "", "count", "w"], ["y", "z"]),
        node("SparseConv2d", ["x", "", "count", "w"], ["y"], plugin_version="2"),
        node("SubmanifoldMap", ["coords", "count"], ["map"], height=4),
        node("DownMap", ["coords", "count"], ["a", "b", "c", "d"], height=4, width=4, extent="batch"),
        node("EnsembleLogits", ["yi", "yo", "count", "w1"], ["ye"]),
        node("EnsembleLogits", ["yi", "yo", "count", "w1"], ["ye"], mode="entropy"),
        node("SelectPixels", ["l"], list("abcde"), height=4, width=4, threshold=0.1, capacity=0),
        node("SelectPixels", ["l"], list("abcde"), height=4, width=4, threshold=float("nan"), capacity=1),
        node("PixelFeatures", ["i", "c", "n"], ["x"], features="p", mean=[0.0] * 3, std=[1.0] * 3, height=1, width=1),
        node("PixelFeatures", ["i", "c", "n"], ["x"], features="hsv", mean=[0.0] * 3, std=[1.0] * 3, height=1, width=1),
        node("PixelFeatures", ["i", "c", "n"], ["x"], mean=[0.0] * 3, std=[1.0, 0.0, 1.0], height=1, width=1),
        node("PixelFeatures", ["i", "c", "n"], ["x"], mean=[0.0] * 2, std=[1.0] * 3, height=1, width=1),
    ],
    ids=lambda n: n.op_type,
)
def test_a_node_outside_the_contract_is_refused(bad):
    with pytest.raises(UnsupportedOp):
        portable_body(bad)


def test_bodies_are_attached_once_a_variant():
    model = single.one_node("SubmanifoldMap", counted(sites("one", 3, 3)), {"height": 3, "width": 3})
    assert len(attach_bodies(model).functions) == 1
    assert set(BY_NAME) >= {f.name for f in model.functions}
