"""crispseg calibrate --networks: one network alone, and files that are only written when the gate was passed."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_bundle import write_pictures, write_small

from crispseg.bundle import load_bundle
from crispseg.cli import main


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("small") / "bundle").path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def call(capsys, *arguments):
    """(exit code, JSON document)."""
    code = main([*map(str, arguments), "--threads", "1", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_refiner_alone(float_bundle, images, tmp_path, capsys):
    code, report = call(
        capsys, "calibrate", float_bundle, images, "--networks", "refiner", "--gate", 100, "-o", tmp_path / "b"
    )
    assert code == 0
    assert [row["network"] for row in report["networks"]] == ["refiner"]
    assert set(load_bundle(tmp_path / "b").calibration.networks) == {"refiner"}
    for backend in ("native", "onnxruntime"):
        code, report = call(capsys, "run", tmp_path / "b", images / "000.png", "-o", tmp_path / backend, "--precision",
                            "int8", "--backend", backend)  # fmt: skip
        assert code == 0
        assert (report["pipeline"]["dense"]["file"], report["pipeline"]["dense"]["precision"]) == ("base.onnx", "fp32")
        assert report["pipeline"]["refiner"]["file"] == "refiner.int8.onnx"
        assert report["warnings"] == ["the base has no calibration: it runs in float"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "refiner", "--trt-cache", "CACHE"], "--trt-cache: expected base among --networks"),
        (["--gate-images", "IMAGES"], "--gate-images: expected --labels"),
        (["--networks", "refiner", "--exclude", "stem"], "--exclude stem: expected a layer of refiner"),
        (["--networks", "base", "--exclude", "refiner:*"], "--exclude refiner:*: expected a layer of base"),
        (["--exclude", "refiner:nothing"], "--exclude refiner:nothing: expected a convolution of the refiner"),
        (["--networks", "refiner", "--head"], "--head, --keep-fp32: expected base"),
        (["--networks", "refiner", "--keep-fp32", "Conv"], "--head, --keep-fp32: expected base"),
        (["--seed", "-1"], "--seed"),
        (["--scan", "--check-fp16"], "--scan, --check-fp16: expected one of them"),
    ],
)
def test_options_without_effect_are_refused(arguments, message, float_bundle, images, tmp_path, capsys):
    places = {"CACHE": tmp_path / "c.txt", "IMAGES": images}
    arguments = [places.get(item, item) for item in arguments]
    code, document = call(capsys, "calibrate", float_bundle, images, *arguments, "-o", tmp_path / "b")
    assert code == 2
    assert message in document["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_leaves_no_cache(float_bundle, images, tmp_path, capsys):
    code, _ = call(capsys, "calibrate", float_bundle, images, "--networks", "base", "--gate", 0, "--trt-cache",
                   tmp_path / "c.txt", "-o", tmp_path / "b")  # fmt: skip
    assert code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def int8(float_bundle, images, tmp_path_factory):
    target = tmp_path_factory.mktemp("int8") / "b"
    assert (
        main(["calibrate", str(float_bundle), str(images), "--gate", "100", "--threads", "1", "-o", str(target)]) == 0
    )
    return target


def _first_scale(model, value):
    quantise = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(item for item in model.graph.initializer if item.name == quantise.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), value), scale.name))


def _first_x_scale(model, value):
    entries = [e for node in model.graph.node for e in node.attribute if e.name == "x_scale" and e.f > 0]
    entries[0].f = value


def _rewrite(source, target, name, change, value):
    """A copy of a bundle with another ``name``, listed with its own hash."""
    shutil.copytree(source, target)
    model = onnx.load(str(target / name))
    change(model, value)
    onnx.save(model, str(target / name))
    manifest = json.loads((target / "bundle.json").read_text())
    data = (target / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (target / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize(("name", "change"), [("base.int8.onnx", _first_scale), ("refiner.int8.onnx", _first_x_scale)])
def test_scales_that_are_none(name, change, value, int8, images, tmp_path, capsys):
    """ONNX Runtime would compute with them."""
    _rewrite(int8, tmp_path / "b", name, change, value)
    for backend in ("native", "onnxruntime"):
        code, document = call(capsys, "run", tmp_path / "b", images / "000.png", "-o", tmp_path / "out", "--precision",
                              "int8", "--backend", backend)  # fmt: skip
        assert code == 2
        assert "scale" in document["error"]["message"]
        assert name in document["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["base", "refiner"])
def test_a_float_file_as_int8(role, int8, images, tmp_path, capsys):
    shutil.copytree(int8, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    manifest["calibration"]["networks"][role]["file"] = role + ".onnx"
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(manifest))
    code, document = call(
        capsys, "run", tmp_path / "b", images / "000.png", "-o", tmp_path / "o", "--precision", "int8"
    )
    assert code == 2
    assert "expected an int8 file made from" in document["error"]["message"]
