from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crispseg.bundle import write_bundle
from crispseg.errors import BundleError, EnvironmentMismatch, InputError

for name in ("onnx", "onnxruntime", "PIL.Image", "av"):
    pytest.importorskip(name)
import toy  # noqa: E402

from crispseg.runtime import dense_labels, geometry, pipeline  # noqa: E402
from crispseg.runtime.pipeline import normalise, open_pipeline  # noqa: E402

ORT = {"backend": "onnxruntime", "threads": 1}


needs_native = pytest.mark.skipif(toy.native_missing(), reason="native library not built")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy.write_toy(tmp_path_factory.mktemp("b") / "toy")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    engine = toy.FakeRefiner(48, 64)
    monkeypatch.setattr(pipeline, "_open_refiner", lambda bundle, spec: engine)
    return engine, toy.write_toy(tmp_path / "refined", refiner=True)


def agreement(labels, want):
    assert labels.shape == want.shape
    return (labels == want).mean()


@pytest.mark.parametrize("network", ["base", "baseline"])
@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("native", marks=needs_native)])
def test_dense(bundle, network, backend):
    image, want = toy.colour_blocks(48, 64)
    with open_pipeline(bundle.path, backend=backend, network=network, threads=1) as pipe:
        result = pipe.run(image, ("labels", "confidence", "active"))
        assert agreement(result.labels, want) > 0.9
        assert result.labels.dtype == result.confidence.dtype == np.uint8
        assert result.confidence[:, 2].min() > 200
        assert not result.active.any()
        assert (result.count, result.density) == (0, 0.0)
        assert list(result.times) == ["preprocess", "base", "select", "post", "total"]
        first = result.labels.copy()
        pipe.run(np.roll(image, 20, axis=1))
        np.testing.assert_array_equal(result.labels, first)  # the caller owns the arrays
        assert pipe.describe()["network"] == network
        assert not pipe.refined


def test_channel_order(tmp_path):
    image, want = toy.colour_blocks(48, 64)
    with open_pipeline(toy.write_toy(tmp_path / "b", order="bgr"), **ORT) as pipe:
        assert agreement(pipe.run(image).labels, want) > 0.9


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalisation(tmp_path, order):
    with open_pipeline(toy.write_toy(tmp_path / "b", order=order), **ORT) as pipe:
        image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        normalise(image, pipe.net, pipe._input)
        mean, std = np.float32((100, 110, 120)), np.float32((50, 55, 60))
        source = image if order == "rgb" else image[:, :, ::-1]
        want = ((source.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(pipe._input, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (37, 51), (100, 30), (20, 200), (1, 1)])
@pytest.mark.parametrize("fit", ["auto", "resize", "letterbox"])
def test_other_sizes(bundle, size, fit):
    image, want = toy.colour_blocks(*size)
    with open_pipeline(bundle, fit=fit, **ORT) as pipe:
        result = pipe.run(image)
    assert result.labels.shape == size
    if size[1] >= 50:
        assert agreement(result.labels, want) > 0.85


def test_refined(fake):
    engine, bundle = fake
    image, _ = toy.colour_blocks(48, 64)
    with open_pipeline(bundle, threads=1) as pipe:
        result = pipe.run(image, ("labels", "confidence", "active"))
        assert result.labels[:2, :3].min() == 2
        assert result.labels.sum() == 12
        assert result.active.sum() == 6
        assert result.active[:2, :3].all()
        assert (result.count, result.found) == (6, 9)
        assert result.density == 6 / (48 * 64)
        assert result.confidence.min() == 200
        assert list(result.times) == ["preprocess", "base", "select", "maps", "conv", "refine", "post", "total"]
        np.testing.assert_array_equal(engine.seen[0][0], image)
        engine.labels[:] = 1
        assert result.labels.sum() == 12
        plain = pipe.run(image)
        assert engine.seen[1][1] == ["count", "found", "labels"]
        assert plain.confidence is None
        assert plain.active is None
    assert engine.closed


def test_refined_in_a_letterbox(fake):
    engine, bundle = fake
    image = np.full((100, 40, 3), 240, np.uint8)
    with open_pipeline(bundle) as pipe:
        pipe.run(image, ("labels", "active"))
    canvas = engine.seen[0][0]
    assert canvas.shape == (48, 64, 3)
    assert (canvas[:, 22:41] == 240).all()
    assert (canvas[:, :22] == [100, 110, 120]).all()


def test_refine_false_and_wrong_choices(fake, bundle):
    engine, refined = fake
    with open_pipeline(refined, refine=False, **ORT) as pipe:
        pipe.run(np.zeros((48, 64, 3), np.uint8))
    assert engine.seen == []
    for bad in ({"backend": "magic"}, {"network": "x"}, {"fit": "x"}, {"threads": -1}):
        with pytest.raises(InputError, match="expected"):
            open_pipeline(bundle, **bad)
    with pytest.raises(EnvironmentMismatch, match="not in this ONNX Runtime"):
        open_pipeline(bundle, backend="onnxruntime", provider="TensorrtExecutionProvider")
    without = dataclasses.replace(bundle, baseline=None)
    with pytest.raises(InputError, match="no full-resolution baseline"):
        open_pipeline(without, network="baseline", **ORT)


@pytest.mark.parametrize("changes", [{"height": 28}, {"logits_width": 4}, {"width": 64}])
def test_manifest_and_graph_must_agree(bundle, changes):
    other = dataclasses.replace(bundle, base=dataclasses.replace(bundle.base, **changes))
    with pytest.raises(BundleError, match="as bundle.json says"):
        open_pipeline(other, **ORT)


def test_manifest_and_refiner_must_agree(fake):
    engine, bundle = fake
    engine.inputs["image"] = (np.uint8, [48, 65, 3])
    with pytest.raises(BundleError, match=r"refiner\.onnx: expected input"):
        open_pipeline(bundle)
    assert engine.closed
    engine.inputs["image"] = (np.uint8, [48, 64, 3])
    del engine.outputs["coords"]
    with pytest.raises(BundleError, match="expected outputs coords"):
        open_pipeline(bundle)


@pytest.mark.parametrize("frame", [
    np.zeros((48, 64), np.uint8), np.zeros((48, 64, 4), np.uint8), np.zeros((48, 64, 3), np.float32),
    np.zeros((0, 64, 3), np.uint8), [[1]], None,
])  # fmt: skip
def test_bad_frames(bundle, frame):
    with open_pipeline(bundle, **ORT) as pipe:
        with pytest.raises(InputError, match="uint8"):
            pipe.run(frame)
        with pytest.raises(InputError, match="want"):
            pipe.run(np.zeros((4, 4, 3), np.uint8), ("everything",))


def test_broken_network_file(tmp_path):
    bundle = toy.write_toy(tmp_path / "a")
    broken = write_bundle(
        tmp_path / "b", name="x", height=48, width=64, classes=bundle.classes, base=bundle.base,
        files={"base.onnx": b"\x08\x0a junk"},
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"base\.onnx"):
        open_pipeline(broken, **ORT)


@settings(max_examples=80, deadline=None)
@given(h0=st.integers(1, 90), w0=st.integers(1, 90), h=st.integers(2, 60), w=st.integers(2, 60),
       fit=st.sampled_from(geometry.FITS))  # fmt: skip
def test_geometry(h0, w0, h, w, fit):
    place = geometry.placement((h0, w0), (h, w), fit)
    assert place.height >= 1
    assert place.width >= 1
    assert place.top >= 0
    assert place.left >= 0
    assert place.top + place.height <= h
    assert place.left + place.width <= w
    if fit == "resize":
        assert (place.height, place.width) == (h, w)
    if fit == "letterbox":
        assert place.height == h or place.width == w
    image = np.random.default_rng(0).integers(0, 256, (h0, w0, 3), dtype=np.uint8)
    canvas = geometry.to_canvas(image, place, (1, 2, 3))
    assert canvas.shape == (h, w, 3)
    # Nearest: a map that is constant over the content comes back constant; no value is invented, no bar leaks in.
    labels = np.full((h, w), 9, np.uint8)
    inside = labels[place.top : place.top + place.height, place.left : place.left + place.width]
    inside[:] = np.arange(inside.size).reshape(inside.shape) % 7
    back = geometry.to_frame(labels, place)
    assert back.shape == (h0, w0)
    assert 9 not in back
    if (h0, w0) == (place.height, place.width):
        np.testing.assert_array_equal(back, inside)


@pytest.mark.parametrize("size", [(512, 800), (256, 1600), (512, 777), (300, 700), (200, 400), (100, 100)])
def test_resizing_in_bands_is_exact(size):
    image = np.random.default_rng(0).integers(0, 256, (512 if size[0] != 300 else 900, 1600, 3), dtype=np.uint8)
    alone = geometry.resize_image(image, *size)
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(geometry.resize_image(image, size[0], size[1], pool), alone)


def test_auto_fit():
    assert geometry.placement((1080, 1920), (540, 960)).height == 540
    assert geometry.placement((1088, 1920), (540, 960)).width == 960  # 0.7 percent off: stretched
    boxed = geometry.placement((480, 640), (540, 960))
    assert (boxed.height, boxed.width, boxed.top, boxed.left) == (540, 720, 0, 120)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 6), w=st.integers(1, 6), height=st.integers(1, 70), width=st.integers(1, 40),
       rule=st.sampled_from(["nearest", "bilinear", "bilinear_corners"]))  # fmt: skip
def test_numpy_labels(h, w, height, width, rule):
    logits = np.random.default_rng(h * 7 + w).normal(size=(1, 4, h, w)).astype(np.float32) * 3
    labels, confidence = dense_labels.NumpyLabels(height, width, rule).run(logits, True)
    for y, x in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        value = sample(logits[0], y, x, height, width, rule)
        assert value[labels[y, x]] >= value.max() - 1e-5
        p = np.exp(value - value.max())
        assert abs(int(confidence[y, x]) - 255 * p.max() / p.sum()) <= 0.51


def sample(logits, y, x, height, width, rule):
    """The definition, one pixel at a time."""

    def position(i, size, source):
        if rule == "nearest":
            return float(i * source // size)
        if rule == "bilinear_corners":
            return i * (source - 1) / (size - 1) if size > 1 else 0.0
        return min(max((i + 0.5) * source / size - 0.5, 0.0), source - 1.0)

    py, px = position(y, height, logits.shape[1]), position(x, width, logits.shape[2])
    y0, x0 = int(py), int(px)
    y1, x1 = min(y0 + 1, logits.shape[1] - 1), min(x0 + 1, logits.shape[2] - 1)
    top = logits[:, y0, x0] * (1 - (px - x0)) + logits[:, y0, x1] * (px - x0)
    low = logits[:, y1, x0] * (1 - (px - x0)) + logits[:, y1, x1] * (px - x0)
    return top * (1 - (py - y0)) + low * (py - y0)


@needs_native
@pytest.mark.parametrize("rule", ["nearest", "bilinear", "bilinear_corners"])
def test_native_labels_equal_numpy(rule):
    logits = np.random.default_rng(3).normal(size=(1, 5, 7, 9)).astype(np.float32) * 3
    native = dense_labels.NativeLabels(53, 71, rule, 1)
    labels, confidence = native.run(logits, True)
    want, want_confidence = dense_labels.NumpyLabels(53, 71, rule).run(logits, True)
    assert (labels == want).mean() > 0.999
    assert np.abs(confidence.astype(int) - want_confidence).max() <= 1
    assert native.run(logits)[1] is None
    native.close()
