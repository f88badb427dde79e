"""Choice of images, the gate, TensorRT's cache format, and the manifest's field."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest

from crispseg.bundle import load_bundle, write_bundle
from crispseg.bundle_calibration import Calibration, NetCalibration, facts, network_file, preprocessing_hash, warnings
from crispseg.calibration import gate, trt_cache
from crispseg.calibration.images import choose, random_frames, synthetic
from crispseg.calibration.provenance import date, sources
from crispseg.errors import AccuracyGate, BundleError, InputError

# ---- images ---------------------------------------------------------------------------------------------------------


def pictures(folder, count, same=False):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        (folder / f"{index:03d}.png").write_bytes(b"picture" + (b"" if same else bytes([index])))
    return sorted(folder.iterdir())


def test_a_seed_draws_the_same_images_in_order(tmp_path):
    files = pictures(tmp_path / "a", 60)
    one, two, other = choose(files, 40, 0), choose(files, 40, 0), choose(files, 40, 1)
    assert one == two
    assert one.files != other.files
    assert one.sha256 != other.sha256
    assert list(one.files) == sorted(one.files)
    assert one.count == len(set(one.files)) == 40
    assert choose(files, 256, 0).count == 60


def test_the_hash_takes_contents_names_and_order(tmp_path):
    files = pictures(tmp_path / "a", 40)
    whole = choose(files).sha256
    assert choose(pictures(tmp_path / "b", 40)).sha256 == whole  # the place does not matter
    assert choose(files[::-1]).sha256 != whole
    files[3].write_bytes(b"other")
    assert choose(files).sha256 != whole


def test_no_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 32 images.*found 31"):
        choose(pictures(tmp_path / "a", 31))
    with pytest.raises(InputError, match="found 0"):
        choose([])
    with pytest.raises(InputError, match="at least 32 different images, found 40, all identical"):
        choose(pictures(tmp_path / "b", 40, same=True))
    files = pictures(tmp_path / "c", 40)
    for path in files[20:]:
        path.write_bytes(b"the same")
    with pytest.raises(InputError, match="only 21 different"):
        choose(files)
    with pytest.raises(InputError, match="--count 8: expected at least 32"):
        choose(files, 8)


def test_random_frames_repeat():
    images = synthetic(24, 40, 32, 3)
    frames = list(random_frames(images, 24, 40))
    assert images.synthetic
    assert len(frames) == 32
    assert frames[0].shape == (24, 40, 3)
    assert frames[0].dtype == np.uint8
    assert all((a == b).all() for a, b in zip(frames, random_frames(images, 24, 40)))
    assert synthetic(24, 40, 32, 4).sha256 != images.sha256


# ---- gate -----------------------------------------------------------------------------------------------------------


def accuracy(miou, edge, **classes):
    return {"miou": miou, "boundary_iou": edge, "per_class": classes}


def reports(miou=59.8, edge=49.5, road=89.0, pole=None):
    before = {
        "frames": 5,
        "base": accuracy(55, 45, road=85.0, pole=10.0),
        "refined": accuracy(60, 50, road=90.0, pole=12.0),
    }
    after = {"frames": 5, "base": accuracy(54, 44, road=80.0, pole=10.0),
             "refined": accuracy(miou, edge, road=road, pole=12.0 if pole is None else pole)}  # fmt: skip
    return before, after


def test_gate_takes_the_final_label_map():
    found = gate.compare(*reports(), 0.5)
    assert found["passed"]
    assert found["part"] == "refined"
    assert found["miou"]["drop"] == pytest.approx(0.2)
    assert found["worst_class"]["class"] == "road"
    assert found["worst_class"]["drop"] == pytest.approx(1.0)
    assert found["base_miou"]["drop"] == pytest.approx(1.0)
    before, after = reports()
    alone = gate.compare({**before, "refined": None}, {**after, "refined": None}, 0.5)
    assert alone["part"] == "base"
    assert not alone["passed"]
    gate.require(found)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"miou": 59.4}, r"miou 60.00 to 59.40 \(-0.60, allowed 0.5\)"), ({"edge": 48.9}, "boundary_iou 50.00 to 48.90"),
     ({"road": 87.5}, "road 90.00 to 87.50"), ({"pole": 0.0}, "pole 12.00 to 0.00")],
)  # fmt: skip
def test_gate_fails_and_names_the_levers(change, text):
    found = gate.compare(*reports(**change), 0.5)
    assert not found["passed"]
    with pytest.raises(AccuracyGate, match=text) as raised:
        gate.require(found)
    assert raised.value.exit_code == 3
    for lever in ("--method", "--exclude", "--scan", "--count", "--gate", "--force"):
        assert lever in str(raised.value)
    assert gate.compare(*reports(**change), 10)["passed"]


def test_gate_without_labels():
    assert gate.agreement([(999, 1000), (990, 1000)], 1.0)["passed"]
    found = gate.agreement([(999, 1000), (970, 1000)], 1.0)
    assert found["agreement"] == pytest.approx(98.45)
    assert found["lowest_frame"] == pytest.approx(97.0)
    with pytest.raises(AccuracyGate, match=r"1.55 % of the pixels have another class"):
        gate.require(found)
    assert not gate.agreement([], 0.5)["passed"]


# ---- TensorRT's cache -----------------------------------------------------------------------------------------------

GOLDEN = b"""TRT-8501-EntropyCalibration2
image: 3c010a14
stem: relu: 3f800000
"""


def test_cache_golden_text():
    header, scales = trt_cache.parse(GOLDEN)
    assert header == "TRT-8501-EntropyCalibration2"
    assert list(scales) == ["image", "stem: relu"]
    assert scales["image"] == (1 + 0x010A14 / 2**23) / 2**7  # sign 0, exponent 0x78, mantissa 0x010a14
    assert scales["stem: relu"] == 1.0
    assert trt_cache.dump({name: scale * 127 for name, scale in scales.items()}) == GOLDEN


def test_cache_round_trip():
    random = np.random.default_rng(0)
    ranges = {f"tensor/{i}": float(np.float32(10.0 ** random.uniform(-6, 4))) for i in range(200)}
    _, scales = trt_cache.parse(trt_cache.dump({**ranges, "zero": 0.0}))
    assert list(scales) == list(ranges)
    for name, value in ranges.items():
        assert scales[name] == np.float32(value / 127)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"no header\na: 3f800000\n", GOLDEN + b"x 3f800000\n", GOLDEN + b"x: 3f8000001\n",
     GOLDEN + b"x: 7f800000\n", GOLDEN + b"x: 00000000\n", GOLDEN + b"x: bf800000\n", GOLDEN + b"image: 3f800000\n"],
)  # fmt: skip
def test_cache_refused(data):
    with pytest.raises(InputError, match="calibration cache"):
        trt_cache.parse(data)


# ---- manifest -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from pathlib import Path

    return load_bundle(Path(__file__).parents[2] / "demo" / "bundle")


def record(bundle, **changes):
    entry = NetCalibration("base.int8.onnx", sources(bundle, "base"), "mse", "0" * 64, 40,
                           preprocessing_hash(bundle, "base"), 0, False, ("head",), 0.99)  # fmt: skip
    return dataclasses.replace(entry, **changes)


def written(bundle, target, **changes):
    files = {**{name: bundle.file(name) for name in bundle.files}, "base.int8.onnx": b"int8"}
    return write_bundle(
        target, name="x", height=bundle.height, width=bundle.width, classes=bundle.classes, base=bundle.base,
        baseline=bundle.baseline, refiner=bundle.refiner, files=files,
        calibration=Calibration({"base": record(bundle, **changes)}, {"passed": True}, "2026-01-31T12:00:00Z"),
    )  # fmt: skip


def test_manifest_round_trip(bundle, tmp_path):
    found = written(bundle, tmp_path / "b")
    assert found.calibration == load_bundle(tmp_path / "b").calibration
    assert found.calibration.networks["base"] == record(bundle)
    assert network_file(found, "base", "int8") == "base.int8.onnx"
    assert network_file(found, "base", "fp32") == network_file(found, "base", "fp16") == "base.onnx"
    assert network_file(found, "refiner", "int8") == "refiner.onnx"
    assert "calibration" not in json.loads((bundle.path / "bundle.json").read_text())
    assert warnings(found, "int8") == ("the refiner has no calibration: it runs in float",)
    assert warnings(found, "fp32") == ()
    assert facts(found, "fp32") is None
    assert facts(found, "int8")["networks"]["base"]["sources"] == sources(bundle, "base")


def test_sources_hold_the_weights(bundle):
    assert sorted(sources(bundle, "base")) == ["base.onnx", "base.weights"]
    assert sorted(sources(bundle, "refiner")) == ["refiner.onnx"]


@pytest.mark.parametrize(
    "change",
    [{"sources": {"base.onnx": "1" * 64}}, {"sources": {"gone.onnx": "1" * 64}}, {"preprocessing_sha256": "2" * 64}],
)
def test_a_calibration_of_another_graph(bundle, tmp_path, change):
    found = written(bundle, tmp_path / "b", **change)
    assert network_file(found, "base", "fp32") == "base.onnx"
    with pytest.raises(BundleError, match="int8 base belongs to another graph.*crispseg calibrate"):
        network_file(found, "base", "int8")


def test_sources_without_the_graph_itself(bundle, tmp_path):
    found = written(bundle, tmp_path / "b", sources={"base.weights": bundle.files["base.weights"].sha256})
    with pytest.raises(BundleError, match="another graph"):
        network_file(found, "base", "int8")


def test_no_calibration(bundle):
    with pytest.raises(BundleError, match="expected a calibration of the base, found none; run `crispseg calibrate"):
        network_file(bundle, "base", "int8")


def test_hostile_manifests(bundle, tmp_path):
    written(bundle, tmp_path / "b")
    path = tmp_path / "b" / "bundle.json"
    good = json.loads(path.read_text())

    def broken(edit):
        data = copy.deepcopy(good)
        edit(data["calibration"], data["calibration"]["networks"]["base"])
        path.write_text(json.dumps(data))
        with pytest.raises(BundleError) as raised:
            load_bundle(tmp_path / "b", verify=False)
        return str(raised.value)

    assert "calibration.networks" in broken(lambda c, n: c.update(networks={}))
    assert "calibration.networks" in broken(lambda c, n: c["networks"].update(head=n))
    assert "unknown field" in broken(lambda c, n: n.update(more=1))
    assert "missing field" in broken(lambda c, n: n.pop("seed"))
    assert "not listed under files" in broken(lambda c, n: n.update(file="other.onnx"))
    assert "plain file name" in broken(lambda c, n: n.update(file="../base.onnx"))
    assert "64 lower-case hex" in broken(lambda c, n: n.update(images_sha256="x" * 64))
    assert "64 lower-case hex" in broken(lambda c, n: n["sources"].update({"base.onnx": 3}))
    assert "method" in broken(lambda c, n: n.update(method="guess"))
    assert "macs_share" in broken(lambda c, n: n.update(macs_share=1.5))
    assert "synthetic" in broken(lambda c, n: n.update(synthetic=0))
    assert "excluded" in broken(lambda c, n: n.update(excluded=[1]))
    assert "options" in broken(lambda c, n: n.update(options=[]))
    assert "date" in broken(lambda c, n: c.update(date="yesterday"))
    assert "gate" in broken(lambda c, n: c.update(gate=[]))


def test_date(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert date() == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH=soon"):
        date()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert date().endswith("Z")
