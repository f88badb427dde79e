"""Which file and which precision the GPU backends take from a bundle with an int8 refiner."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from trt_support import Context, convert, copy_bundle, libraries, pack, world  # noqa: F401  (fixtures)

from crispseg.bundle import load_bundle, write_bundle
from crispseg.bundle_calibration import Calibration, NetCalibration, preprocessing_hash
from crispseg.calibration import refiner
from crispseg.calibration.histogram import Histogram
from crispseg.calibration.refiner_graph import convolutions
from crispseg.engines import cuda_refiner
from crispseg.engines.spec import EngineSpec
from crispseg.engines.tensorrt import artefacts, run
from crispseg.engines.tensorrt.build import BuildOptions
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, UnsupportedOp
from crispseg.runtime import gpu_open


def with_int8_refiner(folder, base=False):
    """A copy of the demo bundle; ``base``: its float base also stands as the calibrated one."""
    bundle = copy_bundle(folder)
    model = onnx.load(str(bundle.file("refiner.onnx")))
    ranges = refiner.Ranges(frames=1, rows=1)
    for conv in convolutions(model):
        ranges.histograms[conv.x] = Histogram()
        ranges.histograms[conv.x].add(np.array([8.0], np.float32))
        ranges.macs[conv.name] = 1
    made = refiner.quantise_refiner(model, ranges)
    sources = {name: bundle.files[name].sha256 for name in ("refiner.onnx", "base.onnx", "base.weights")}
    record = NetCalibration(
        refiner.FILE, {"refiner.onnx": sources["refiner.onnx"]}, "mse", "0" * 64, 1,
        preprocessing_hash(bundle, "refiner"),
        0, False, made.kept, made.share,
    )  # fmt: skip
    networks = {"refiner": record}
    files = {name: bundle.file(name) for name in bundle.files}
    files[refiner.FILE] = refiner.save_model(made.model)
    if base:
        files["base.int8.onnx"] = bundle.file("base.onnx")
        networks["base"] = dataclasses.replace(record, file="base.int8.onnx", sources=sources)
    whole = write_bundle(
        folder / "int8", name="x", height=bundle.height, width=bundle.width, classes=bundle.classes, base=bundle.base,
        baseline=bundle.baseline, refiner=bundle.refiner, files=files, calibration=Calibration(networks),
    )  # fmt: skip
    return bundle, whole


@pytest.fixture
def loaded(monkeypatch):
    """Calls of the CUDA refiner: (file, precision)."""
    calls = []

    def load(path, kernels, spec, logits_type):
        calls.append((path.name, spec.precision))

    monkeypatch.setattr(cuda_refiner, "load", load)
    return calls


def test_the_cuda_kernels_get_the_int8_refiner(loaded, tmp_path):
    plain, whole = with_int8_refiner(tmp_path)
    for backend in ("cuda", "tensorrt"):
        for precision in ("fp16", "int8"):
            gpu_open.open_refiner(whole, EngineSpec(backend, precision=precision), None, "fp32")
    assert loaded == [("refiner.onnx", "fp16"), ("refiner.int8.onnx", "int8")] * 2
    gpu_open.open_refiner(plain, EngineSpec("tensorrt", precision="fp16"), None, "fp32")
    with pytest.raises(BundleError, match="expected a calibration of the refiner.*crispseg calibrate"):
        gpu_open.open_refiner(plain, EngineSpec("cuda", precision="int8"), None, "fp32")


def test_a_refiner_of_another_graph_is_refused(loaded, tmp_path):
    _, whole = with_int8_refiner(tmp_path)
    assert whole.calibration is not None
    record = dataclasses.replace(whole.calibration.networks["refiner"], sources={"refiner.onnx": "1" * 64})
    foreign = dataclasses.replace(whole, calibration=Calibration({"refiner": record}))
    with pytest.raises(BundleError, match="int8 refiner belongs to another graph"):
        gpu_open.open_refiner(foreign, EngineSpec("cuda", precision="int8"), None, "fp32")
    with pytest.raises(BundleError, match="int8 refiner belongs to another graph"):
        artefacts.source_file(foreign, "refiner", "int8")


def test_tensorrt_builds_and_finds_the_int8_engine(world, tmp_path):  # noqa: F811
    trt, library = world("10.13.3.9")
    _, whole = with_int8_refiner(tmp_path)
    assert artefacts.refiner_precision(whole, "int8") == "int8"
    assert artefacts.source_file(whole, "refiner", "int8") == refiner.FILE
    assert artefacts.source_file(whole, "refiner", "fp16") == "refiner.onnx"
    options = BuildOptions(precision="int8", workspace_mib=256)
    (row,) = artefacts.build_bundle(
        whole, options, convert, Context(), trt=trt, library=library, pack=pack, roles=["refiner"]
    )
    assert (row["precision"], row["plugin_layers"]) == ("int8", 46)
    found = artefacts.find(whole, "refiner", "int8", trt, Context().info, library=library)
    assert list(found.identity.sources) == sorted([refiner.FILE, "base.weights"])
    again = load_bundle(whole.path)
    assert artefacts.find(again, "refiner", "int8", trt, Context().info, library=library).path == found.path


def test_a_calibration_cache_beside_an_int8_base_is_refused(world, tmp_path):  # noqa: F811
    trt, library = world("10.13.3.9")
    _, whole = with_int8_refiner(tmp_path, base=True)
    assert artefacts.source_file(whole, "base", "int8") == "base.int8.onnx"
    (tmp_path / "ranges").write_bytes(b"TRT-1-EntropyCalibration2\n")
    options = BuildOptions(precision="int8", calibration=tmp_path / "ranges")
    with pytest.raises(InputError, match="int8 base, whose QuantizeLinear nodes hold them"):
        artefacts.build_bundle(whole, options, convert, Context(), trt=trt, library=library, pack=pack)


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_the_base_is_fp16_beside_a_refiner_that_alone_was_calibrated(world, tmp_path, version):  # noqa: F811
    trt, library = world(version)
    _, whole = with_int8_refiner(tmp_path)
    how = {"trt": trt, "library": library, "pack": pack}
    options = BuildOptions(precision="int8", workspace_mib=256)
    rows = artefacts.build_bundle(whole, options, convert, Context(), **how)
    assert [(row["part"], row["precision"], row["engine"]) for row in rows] == [
        ("base", "fp16", "built"), ("refiner", "int8", "built"),
    ]  # fmt: skip
    info = Context().info
    base = artefacts.find(whole, "base", "int8", trt, info)
    assert (base.identity.spec["precision"], list(base.identity.sources)) == ("fp16", ["base.onnx", "base.weights"])
    assert artefacts.find(whole, "base", "fp16", trt, info).path == base.path, "the float pipeline has the same one"
    assert artefacts.find(whole, "refiner", "int8", trt, info, library=library).identity.spec["precision"] == "int8"
    again = artefacts.build_bundle(whole, options, convert, Context(), **how)
    assert {row["engine"] for row in again} == {"kept"}


def test_ranges_from_elsewhere_are_kept_beside_an_int8_refiner(world, tmp_path):  # noqa: F811
    trt, _ = world("8.6.1")
    _, whole = with_int8_refiner(tmp_path)
    (tmp_path / "ranges").write_bytes(b"TRT-1-EntropyCalibration2\n")
    options = BuildOptions(precision="int8", calibration=tmp_path / "ranges")
    (row,) = artefacts.build_bundle(whole, options, convert, Context(), trt=trt, pack=pack, roles=["base"])
    assert row["precision"] == "int8"
    assert artefacts.find(whole, "base", "int8", trt, Context().info).identity.spec["precision"] == "int8"


def test_a_missing_base_names_a_command_that_makes_it(world, tmp_path):  # noqa: F811
    trt, _ = world("11.4.0.106")
    plain, whole = with_int8_refiner(tmp_path)
    with pytest.raises(EnvironmentMismatch, match="crispseg build .*int8 --backend tensorrt --precision fp16"):
        artefacts.find(whole, "base", "int8", trt, Context().info)
    with pytest.raises(UnsupportedOp, match="--precision int8 needs QuantizeLinear nodes"):
        artefacts.build_bundle(
            plain, BuildOptions(precision="int8"), convert, Context(), trt=trt, pack=pack, roles=["base"]
        )


@pytest.mark.parametrize(("version", "taken"), [("8.5.3", False), ("10.13.3.9", False), ("11.4.0.106", True)])
def test_a_dla_that_takes_no_quantised_files_is_not_left_idle(world, tmp_path, version, taken):  # noqa: F811
    trt, _ = world(version)
    bundle = copy_bundle(tmp_path)
    model = onnx.load(str(bundle.file("base.onnx")), load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "dla.scale"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int8(0), "dla.zero"))
    inputs = [model.graph.node[0].input[0], "dla.scale", "dla.zero"]
    model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", inputs, ["dla.q"], "dla.quantise"))
    files = {name: bundle.file(name) for name in bundle.files}
    files["base.onnx"] = model.SerializeToString()
    whole = write_bundle(
        tmp_path / "q", name="x", height=bundle.height, width=bundle.width, classes=bundle.classes, base=bundle.base,
        baseline=bundle.baseline, refiner=bundle.refiner, files=files,
    )  # fmt: skip
    options = BuildOptions(precision="int8", dla=1)
    how = {"trt": trt, "pack": pack, "roles": ["base"]}
    if not taken:
        with pytest.raises(UnsupportedOp, match="--dla 1: the DLA of TensorRT .* calibration cache alone"):
            artefacts.build_bundle(whole, options, lambda model, precision: model, Context(), **how)
        return
    (row,) = artefacts.build_bundle(whole, options, lambda model, precision: model, Context(), **how)
    assert row["precision"] == "int8"
    with run.load(whole, "base", Context(), precision="int8", trt=trt):
        assert "Runtime.DLA_core=" in trt.calls
