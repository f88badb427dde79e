"""crispseg calibrate on the demo bundle: what it writes, what it refuses, and what the other commands make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from dense_net import folder_of_frames, tiny_bundle
from PIL import Image

from crispseg.bundle import load_bundle
from crispseg.bundle_calibration import METADATA
from crispseg.calibration import trt_cache
from crispseg.cli import main

DEMO = Path(__file__).parents[2] / "demo" / "bundle"


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return folder_of_frames(tmp_path_factory.mktemp("frames") / "images", 33, 64, 96)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle").path


def calibrate(capsys, *arguments):
    """(exit code, JSON document)."""
    fixed = ["--networks", "base", "--threads", "1", "--count", "32", "--json"]
    code = main(["calibrate", *map(str, arguments), *fixed])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def int8(tiny, frames, tmp_path_factory):
    """The calibrated tiny bundle, and the same made again, both at one date."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    folder = tmp_path_factory.mktemp("int8")
    for name in ("one", "two"):
        arguments = ["calibrate", tiny, frames, "--count", 32, "--networks", "base,baseline", "--threads", 1, "--gate",
                     5, "--trt-cache", folder / (name + ".cache"), "-o", folder / name]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
    patch.undo()
    return folder


@pytest.fixture(scope="module")
def demo8(tmp_path_factory):
    """The demo bundle with an int8 base; random data does for its mechanics."""
    target = tmp_path_factory.mktemp("demo") / "int8"
    arguments = ["calibrate", DEMO, "--synthetic", "--count", 4, "--networks", "base", "--threads", 1, "--gate", 100,
                 "--gate-frames", 1, "-o", target]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    return target


def test_the_bundle_says_where_it_came_from(int8, tiny, capsys):
    bundle, source = load_bundle(int8 / "one"), load_bundle(tiny)
    found = bundle.calibration.networks["base"]
    assert set(bundle.calibration.networks) == {"base", "baseline"}
    assert found.sources == {"base.onnx": source.files["base.onnx"].sha256}
    assert (found.method, found.image_count, found.seed, found.synthetic) == ("mse", 32, 0, False)
    assert found.excluded == ("head",)
    assert found.macs_share > 0.99
    assert set(found.versions) == {"crispseg", "numpy", "onnx", "onnxruntime"}
    assert bundle.calibration.date == "2023-11-14T22:13:20Z"
    assert bundle.calibration.gate["kind"] == "agreement"
    assert bundle.calibration.gate["agreement"] > 95
    for name in source.files:  # the float files are as they were
        assert bundle.files[name] == source.files[name]
    metadata = {e.key: e.value for e in onnx.load(str(bundle.file(found.file))).metadata_props}
    assert json.loads(metadata[METADATA])["sources"] == found.sources
    assert main(["inspect", str(int8 / "one"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["calibration"]["networks"]["base"]["images_sha256"] == found.images_sha256
    assert [row["part"] for row in report["networks"]] == ["base", "baseline", "base, int8", "baseline, int8"]
    counts = [row["parameters"] for row in report["networks"]]
    assert counts[:2] == counts[2:], "scales and zero points are no parameters"


def test_the_same_inputs_give_the_same_bytes(int8):
    for path in (int8 / "one").iterdir():
        assert path.read_bytes() == (int8 / "two" / path.name).read_bytes(), path.name
    assert (int8 / "one.cache").read_bytes() == (int8 / "two.cache").read_bytes()


def test_the_cache_has_every_tensor_of_the_float_network(int8, tiny):
    _, scales = trt_cache.parse((int8 / "one.cache").read_bytes())
    model = onnx.load(str(tiny / "base.onnx"))
    assert set(scales) == {name for node in model.graph.node for name in node.output} | {"image"}


def test_the_networks_see_the_pipelines_own_preprocessing(int8, tiny, frames):
    """The range of the input is that of the prepared frames."""
    from crispseg.runtime.images import read_image
    from crispseg.runtime.prepare import prepare

    bundle = load_bundle(tiny)
    record = load_bundle(int8 / "one").calibration.networks["base"]
    assert record.image_count == 32
    _, scales = trt_cache.parse((int8 / "one.cache").read_bytes())
    largest = max(np.abs(prepare(read_image(path), bundle, bundle.base)[1]).max() for path in frames.iterdir())
    assert 0.9 * largest <= 127 * scales["image"] <= 1.0001 * largest


def test_recalibrating_one_network_keeps_the_other(int8, frames, tmp_path, capsys):
    code, _ = calibrate(capsys, int8 / "one", frames, "--method", "minmax", "--gate", 100, "-o", tmp_path / "b")
    assert code == 0
    before, after = load_bundle(int8 / "one").calibration, load_bundle(tmp_path / "b").calibration
    assert after.networks["baseline"] == before.networks["baseline"]
    assert after.networks["base"].method == "minmax"


def test_int8_runs_and_reports_its_calibration(demo8, frames, tmp_path, capsys):
    for backend in ("native", "onnxruntime"):
        out = tmp_path / backend
        arguments = ["run", demo8, frames / "000.png", "-o", out, "--save", "labels", "--precision", "int8",
                     "--backend", backend, "--threads", 1, "--json"]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["pipeline"]["dense"]["file"] == "base.int8.onnx"
        assert report["pipeline"]["dense"]["precision"] == "int8"
        assert report["pipeline"]["refiner"]["file"] == "refiner.onnx"
        assert report["calibration"]["networks"]["base"]["image_count"] == 4
        assert len(report["warnings"]) == 2
        assert "random data" in report["warnings"][0]
        assert "the refiner has no calibration" in report["warnings"][1]


def test_eval_takes_int8_and_says_so(int8, frames, tmp_path, capsys):
    for backend, precision in (("native", "fp32"), ("native", "int8"), ("onnxruntime", "int8")):
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "label.png")
        arguments = ["eval", int8 / "one", frames / "000.png", tmp_path / "label.png", "--precision", precision,
                     "--backend", backend, "--baseline", "--threads", 1, "--json"]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["precision"] == precision
        assert (report["calibration"] is None) == (precision == "fp32")


def test_latency_measures_float_beside_int8(demo8, frames, capsys):
    arguments = ["latency", demo8, "--input", frames / "000.png", "--precision", "int8", "--seconds", 0,
                 "--warmup", 0, "--min-runs", 2, "--threads", 1, "--json"]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["float_precision"] == "fp32"
    assert set(report["float_stages"]) == set(report["stages"]) - {"decode"}
    assert report["int8_speedup"]["base"]["ratio"] > 0
    assert report["int8_macs_percent"] == {"base": 99.94}
    assert {"int8_speedup", "int8_macs_percent"} <= set(report["definitions"])


def test_float_bundles_have_no_int8(frames, capsys):
    assert main(["run", str(DEMO), str(frames), "-o", "/nowhere", "--precision", "int8", "--json"]) == 2
    assert "run `crispseg calibrate" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_calibration_of_another_graph_is_refused(int8, frames, tmp_path, capsys):
    shutil.copytree(int8 / "one", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    # Somebody puts another base into the bundle.
    manifest["base"]["file"] = manifest["baseline"]["file"]
    manifest["calibration"]["networks"]["base"]["sources"]["base.onnx"] = "0" * 64
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(manifest))
    for command in (["run", tmp_path / "b", frames, "-o", tmp_path / "o"], ["latency", tmp_path / "b"]):
        assert main([*map(str, command), "--precision", "int8", "--json"]) == 2
        assert "belongs to another graph" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "o").exists()


def test_a_failed_gate_writes_nothing(tiny, frames, tmp_path, capsys):
    code, document = calibrate(capsys, tiny, frames, "--gate", 0, "-o", tmp_path / "b")
    assert code == 3
    assert "--method" in document["error"]["message"]
    assert list(tmp_path.iterdir()) == []
    code, document = calibrate(capsys, tiny, frames, "--gate", 0, "--force", "--method", "minmax", "-o", tmp_path / "b")
    assert code == 0
    assert document["gate"]["passed"] is False
    assert "written because of --force" in document["warnings"][0]
    assert load_bundle(tmp_path / "b").calibration.gate["passed"] is False


def test_random_data_is_marked(demo8, capsys):
    assert load_bundle(demo8).calibration.networks["base"].synthetic is True
    assert main(["inspect", str(demo8), "--json"]) == 0
    assert "random data" in json.loads(capsys.readouterr().out)["warnings"][0]
    assert main(["inspect", str(demo8)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " random images, 99.9 % of the multiply-adds, 1 layers in float" in text
    assert "gate passed: " in text


def test_the_gate_measures_on_labels(tiny, frames, tmp_path, capsys):
    """Labels that the float network itself made: its own mIoU is 100, and int8 cannot be better."""
    assert main(["run", str(tiny), str(frames), "-o", str(tmp_path / "run"), "--save", "labels", "--json"]) == 0
    capsys.readouterr()
    labels = next(path.parent for path in (tmp_path / "run").rglob("000.png"))
    code, document = calibrate(
        capsys, tiny, frames, "--labels", labels, "--gate", 20, "--gate-frames", 5, "-o", tmp_path / "b"
    )
    assert code == 0
    assert document["gate"]["kind"] == "labels"
    assert document["gate"]["frames"] == 5
    assert document["gate"]["miou"]["before"] == 100
    assert 80 < document["gate"]["miou"]["after"] < 100
    assert load_bundle(tmp_path / "b").calibration.gate == document["gate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-o: expected the directory"),
        (["-o", "OUT"], "found none given"),
        (["EMPTY", "-o", "OUT"], "at least 32 images"),
        (["missing", "-o", "OUT"], "found nothing"),
        (["FRAMES", "--synthetic", "-o", "OUT"], "--synthetic: expected no images"),
        (["FRAMES", "--networks", "head", "-o", "OUT"], "--networks head: expected any of base, baseline"),
        (["FRAMES", "--networks", "baseline", "-o", "OUT"], "--networks baseline: expected base or refiner with it"),
        (["FRAMES", "--exclude", "nothing", "-o", "OUT"], "no layer of that name"),
        (["FRAMES", "--keep-fp32", "Softmax", "-o", "OUT"], "--keep-fp32 Softmax"),
        (["FRAMES", "--labels", "EMPTY", "-o", "OUT"], "label map"),
        (["FRAMES", "-o", "FRAMES"], "expected a new directory or an existing bundle"),
    ],
)  # fmt: skip
def test_refused(arguments, message, tiny, frames, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"OUT": tmp_path / "out", "FRAMES": frames, "EMPTY": tmp_path / "empty"}
    code = main(["calibrate", str(tiny), *(str(places.get(item, item)) for item in arguments), "--count", "32",
                 *([] if "--networks" in arguments else ["--networks", "base"]), "--json"])  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert code == 2
    assert message in document["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_label_maps_are_no_frames(tiny, frames, tmp_path, capsys):
    """IMAGES is searched with its folders: the data set's own folder would bring its label maps along."""
    for name in ("images", "labels"):
        shutil.copytree(frames, tmp_path / "set" / name)
    code, found = calibrate(capsys, tiny, tmp_path / "set", "-o", tmp_path / "x")
    assert code == 2
    assert "found pictures below labels too; give the folder of the frames" in found["error"]["message"]
    assert calibrate(capsys, tiny, tmp_path / "set" / "labels", "--gate", "100", "-o", tmp_path / "x")[0] == 0


def test_check_fp16_measures_and_writes_nothing(tiny, frames, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["calibrate", str(tiny), str(frames), "--count", "32", "--threads", "1", "--check-fp16", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "fp16"
    assert report["nodes_in_half"] > 10
    assert 99.5 < report["gate"]["agreement"] < 100  # float16 was really used
    assert main([*arguments, "--gate", "0"]) == 3
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.startswith("fp16:")
    assert "--keep-fp32" in message
    assert main([*arguments, "--exclude", "nothing"]) == 2
    assert main([*arguments, "-o", "b"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_in_place_engines_of_the_float_files_stay(tiny, frames, tmp_path, capsys):
    from crispseg.engines import cache

    copy = tmp_path / "bundle"
    shutil.copytree(tiny, copy)
    loaded = load_bundle(copy)
    for name in ("base.onnx", "base.int8.onnx"):
        sources = {name: loaded.files[name].sha256 if name in loaded.files else "0" * 64}
        cache.store(copy, cache.Identity("tensorrt", "base", sources, {"precision": "fp16"}), {"plan": b"x"})
    code, report = calibrate(capsys, copy, frames, "--gate", 100, "-o", copy)
    assert code == 0
    assert report["engines_kept"] == 1
    assert any(
        f"run `crispseg build {copy} --backend tensorrt --precision fp16`" in text for text in report["warnings"]
    )
    assert len(list((copy / "engines").iterdir())) == 1


def test_verify_compares_the_calibrated_files(demo8, tiny, capsys):
    assert main(["verify", str(demo8), "--precision", "int8", "--frames", "1", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["network"], row["hop"]) for row in report["hops"]] == [
        ("base, int8", "Q/DQ file -> integer form"), ("refiner", "onnxruntime -> native")
    ]  # fmt: skip
    assert 0 < report["hops"][0]["error"] < 0.05
    limits = [(row["network"], row["error"], row["agreement"]) for row in report["limits"]]
    assert limits == [("base, int8", 0.05, 98.0), ("refiner", 1e-4, 99.9)]
    assert main(["verify", str(tiny), "--precision", "int8", "--json"]) == 2
    assert "crispseg calibrate" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["verify", str(demo8), "--precision", "fp16", "--json"]) == 2
    capsys.readouterr()
