"""The commands one after the other on a small untrained bundle, with ONNX Runtime alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from crispseg.cli import main

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def call(capsys, command: str, *paths: object, options: str, code: int = 0) -> dict:
    assert main([command, *map(str, paths), *options.split(), "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "bundle"
    options = "--random-weights --baseline --planes 8,16 --size 64x96 --classes camvid --capacity 600"
    assert main(["export", "small", *options.split(), "-o", str(path), "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    path = tmp_path_factory.mktemp("street")
    assert main(["scenes", "-n", "3", "--size", "64x96", "-o", str(path), "--json"]) == 0
    return path


def test_inspect(bundle, capsys):
    report = call(capsys, "inspect", bundle, options="")
    assert [row["part"] for row in report["networks"]] == ["base", "baseline", "refiner"]
    assert report["networks"][0]["parameters"] == report["networks"][1]["parameters"] > 1000
    assert any("SparseConv2d" in name for name in report["networks"][2]["operators"])
    assert len(report["warnings"]) == 3
    assert report["settings"]["refiner"]["capacity"] == 600
    assert main(["inspect", str(bundle)]) == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().out


def test_latency(bundle, street, capsys):
    options = "--backend onnxruntime --threads 1 --seconds 0 --warmup 0 --min-runs 2 --baseline"
    report = call(capsys, "latency", bundle, "--input", street / "images", options=options)
    assert {"decode", "preprocess", "base", "refine", "post", "total", "cpu"} <= set(report["stages"])
    assert report["density"] == pytest.approx(100 * 600 / (64 * 96), abs=1e-3)
    assert report["speedup"]["ratio"] > 0
    assert len(report["bundle"]["sha256"]) == 64


def test_eval(bundle, street, capsys):
    options = "--backend onnxruntime --threads 1 --baseline --limit 2"
    report = call(capsys, "eval", bundle, street / "images", street / "labels", options=options)
    assert report["frames"] == 2
    for part in ("base", "refined", "baseline"):
        assert 0 <= report[part]["miou"] <= 100
        assert 0 <= report[part]["boundary_iou"] <= 100
        assert len(report[part]["per_class"]) == 11


def test_run(bundle, street, capsys, tmp_path):
    options = "--backend onnxruntime --threads 1 --save labels,color"
    report = call(capsys, "run", bundle, street / "images", "-o", tmp_path / "out", options=options)
    assert report["frames"] == 3
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "0001.png"))
    assert labels.shape == (64, 96)
    assert labels.max() < 11


@pytest.mark.parametrize("name", ["base.onnx", "refiner.onnx", "base.weights", "bundle.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_bundle(bundle, street, capsys, tmp_path, name, damage):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    file = broken / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif name == "bundle.json":
        file.write_bytes(content.replace(b'"ignore_label"', b'"ignored_label"'))
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + b"@@@@" + content[middle + 4 :])
    out = tmp_path / "out"
    options = "--backend onnxruntime"
    report = call(capsys, "run", broken, street / "images", "-o", out, options=options, code=2)
    assert name in report["error"]["message"]
    assert not out.exists()
