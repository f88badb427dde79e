"""The engines of a bundle, build to profile, on a module made from the recorded API of each release."""

from __future__ import annotations

import ctypes
import re
import sys

import numpy as np
import pytest
from fake_tensorrt import VERSIONS, make
from trt_support import BUNDLE, Context, convert, copy_bundle, creator_fields, libraries, pack, world  # noqa: F401  (fixtures)

from crispseg.engines.tensorrt import artefacts, compat, profile, registry, run
from crispseg.engines.tensorrt.build import BuildOptions
from crispseg.errors import BundleError, EnvironmentMismatch, UnsupportedOp

SOME = ("8.5.3", "8.6.1", "10.13.3.9", "11.4.0.106")


@pytest.mark.parametrize("version", VERSIONS)
def test_build_find_run_profile(version, world, tmp_path):  # noqa: F811
    trt, library = world(version)
    bundle, context = copy_bundle(tmp_path), Context()
    texts = []
    options = BuildOptions(precision="fp16", workspace_mib=512, opt_level=None if version == "8.5.3" else 3)
    build = lambda: artefacts.build_bundle(  # noqa: E731
        bundle,
        options,
        convert,
        context,
        trt=trt,
        library=library,
        pack=pack,
        progress=lambda *a, **k: texts.append(a[2]),
    )
    rows = build()
    assert [(row["part"], row["engine"]) for row in rows] == [("base", "built"), ("refiner", "built")]
    assert rows[1]["plugin_layers"] == 46
    strong = version[0] != "8"
    assert all(row["strongly_typed"] is strong for row in rows)
    assert any(re.fullmatch(r"building base.*, \d+ s", text) for text in texts)
    calls = trt.calls
    assert ("IBuilderConfig.builder_optimization_level=" in calls) is (version != "8.5.3")
    assert ("IBuilderConfig.progress_monitor=" in calls) is strong
    assert calls.count("ILayer.precision=") == (0 if strong else 1)  # weak typing: the ReduceMean is held in fp32
    assert ("IPluginRegistry.load_library" in calls) is (version != "8.5.3")
    assert ("OnnxParser.set_flag" in calls) is (version in VERSIONS[5:])
    # The second build keeps both engines; the timing cache went from one to the next.
    assert [row["engine"] for row in build()] == ["kept", "kept"]
    assert (bundle.path / "engines" / f"timing-{trt.__version__}-sm87.cache").is_file()

    base = run.load(bundle, "base", context, precision="fp16", trt=trt)
    assert base.inputs["image"] == (np.dtype(np.float32), (1, 3, 180, 240))
    image = np.zeros((1, 3, 180, 240), np.float32)
    assert base.run({"image": image})["logits"].shape == (1, 11, 23, 30)
    rows = profile.layer_times(base, {"image": image}, runs=3, warmup=1)
    assert len(rows) > 50
    assert sum(row["share"] for row in rows) == pytest.approx(100, abs=1)
    refiner = run.load(bundle, "refiner", context, precision="fp16", trt=trt, library=library)
    assert refiner.inputs["image"] == (np.dtype(np.int32), (360 * 480 * 3 // 4,))
    assert refiner.outputs["labels"] == (np.dtype(np.int32), (360 * 480 // 4,))
    assert refiner.outputs["coords"][1] == (bundle.refiner.capacity, 2)
    facts = profile.summary(refiner.inspect())
    assert len(facts["plugins"]) == 46
    assert facts["precision"] == {"fp16": facts["layers"]}
    assert refiner.describe()["scratch_mib"] == 1.0
    for engine in (base, refiner):
        engine.close()


@pytest.mark.parametrize("version", SOME)
def test_plugin_library_is_loaded_once_and_checked(version, world, tmp_path, libraries):  # noqa: F811
    trt, library = world(version)
    trt.behaviour.library.pop("DownMap")
    with pytest.raises(EnvironmentMismatch, match="knows no plugin DownMap"):
        registry.load(trt, library)
    trt.behaviour.library = creator_fields()
    trt.behaviour.loaded.clear()
    registry.load(trt, library)
    registry.load(trt, library)
    registry.load(trt, library, tmp_path / "kernels.cubin")
    loads = trt.calls.count("IPluginRegistry.load_library")
    assert loads == (0 if version == "8.5.3" else 2)
    ours = ctypes.CDLL(str(library))
    ours.seen_kernels.restype = ctypes.c_char_p
    assert ours.seen_kernels().decode() == str(tmp_path / "kernels.cubin")
    if version == "8.5.3":
        core = ctypes.CDLL(str(libraries[0]))
        core.getPluginRegistry.restype = ours.seen_registry.restype = ctypes.c_void_p
        assert ours.seen_registry() == core.getPluginRegistry()


def test_library_that_is_none(world, tmp_path):  # noqa: F811
    for version, text in (("8.5.3", "cannot be registered with TensorRT 8.5.3"), ("10.13.3.9", "does not load it")):
        trt, _ = world(version)
        with pytest.raises(EnvironmentMismatch, match=text):
            registry.load(trt, tmp_path / "nothing.so")


def test_creator_without_a_field_is_refused(world, tmp_path):  # noqa: F811
    trt, library = world("10.13.3.9")
    trt.behaviour.library["SparseConv2d"].remove("workspace")
    bundle = copy_bundle(tmp_path)
    with pytest.raises(EnvironmentMismatch, match="SparseConv2d: expected fields workspace"):
        artefacts.build_bundle(bundle, BuildOptions(), convert, Context(), trt=trt, library=library, pack=pack,
                               roles=("refiner",))  # fmt: skip
    assert not list(bundle.path.glob("engines/*/*.engine"))


def test_what_does_not_fit_is_refused_with_the_command(world, tmp_path):  # noqa: F811
    trt, library = world("10.13.3.9")
    bundle, context = copy_bundle(tmp_path), Context()
    command = "run `crispseg build %s --backend tensorrt --precision fp16`" % bundle.path
    with pytest.raises(EnvironmentMismatch) as caught:
        run.load(bundle, "base", context, precision="fp16", trt=trt)
    assert command in str(caught.value)
    artefacts.build_bundle(
        bundle, BuildOptions(precision="fp16"), convert, context, trt=trt, library=library, pack=pack
    )
    other = {
        "gpu: expected Other GPU, found 'Test GPU'": (Context(name="Other GPU"), trt),
        "compute_capability: expected 90, found 87": (Context(capability=90), trt),
        "cuda: expected 13, found '12'": (Context(driver="13.0"), trt),
        "tensorrt: expected 10.16.1.11, found '10.13.3.9'": (context, make("10.16.1.11")),
    }
    for text, (device, module) in other.items():
        calls = len(module.calls)
        with pytest.raises(EnvironmentMismatch) as caught:
            run.load(bundle, "base", device, precision="fp16", trt=module)
        assert text in str(caught.value)
        assert command in str(caught.value)
        assert len(module.calls) == calls, "something was asked of TensorRT before the refusal"
    with pytest.raises(EnvironmentMismatch, match="precision: expected fp32, found 'fp16'"):
        run.load(bundle, "base", context, precision="fp32", trt=trt)
    with pytest.raises(EnvironmentMismatch, match="capacity: expected 100, found 60480"):
        run.load(bundle, "refiner", context, precision="fp16", trt=trt, library=library, capacity=100)
    changed = tmp_path / "libother.so"
    changed.write_bytes(library.read_bytes() + b" ")
    with pytest.raises(EnvironmentMismatch, match="plugin_sha256: expected"):
        run.load(bundle, "refiner", context, precision="fp16", trt=trt, library=changed)
    run.load(bundle, "refiner", Context(driver="12.9"), precision="fp16", trt=trt, library=library)  # driver update


def test_damaged_engine_never_reaches_tensorrt(world, tmp_path):  # noqa: F811
    trt, library = world("11.4.0.106")
    bundle, context = copy_bundle(tmp_path), Context()
    artefacts.build_bundle(
        bundle, BuildOptions(precision="fp16"), convert, context, trt=trt, library=library, pack=pack
    )
    (path,) = bundle.path.glob("engines/*/base.engine")
    whole = path.read_bytes()
    for data, text in ((whole[:-9], "truncated"), (whole[:-1] + b"!", "altered"), (whole + b"x", "altered")):
        path.write_bytes(data)
        before = trt.calls.count("Runtime")
        with pytest.raises(BundleError, match=text + ".*run `crispseg build"):
            run.load(bundle, "base", context, precision="fp16", trt=trt)
        assert trt.calls.count("Runtime") == before
    rows = artefacts.build_bundle(
        bundle, BuildOptions(precision="fp16"), convert, context, trt=trt, library=library, pack=pack
    )
    assert [row["engine"] for row in rows] == ["built", "kept"]
    run.load(bundle, "base", context, precision="fp16", trt=trt)


def test_engines_run_on_the_memory_and_streams_of_the_driver(world, tmp_path, monkeypatch):  # noqa: F811
    """The real engines/cuda.py on the emulated driver; the addresses that TensorRT gets are its memory."""
    sys.path.append(str(BUNDLE.parents[1] / "tests"))
    import shutil

    import emulation

    if not shutil.which(emulation.compiler()[0]):
        pytest.skip("needs g++")
    monkeypatch.setenv("CRISPSEG_LIBCUDA", str(emulation.driver()))
    from crispseg.engines.cuda import open_device

    context = open_device(0)
    trt, library = world("10.13.3.9")
    bundle = copy_bundle(tmp_path)
    artefacts.build_bundle(
        bundle, BuildOptions(precision="fp16"), convert, context, trt=trt, library=library, pack=pack
    )
    with run.load(bundle, "base", context, precision="fp16", trt=trt) as base:
        out = base.run({"image": np.ones((1, 3, 180, 240), np.float32)})
        assert out["logits"].shape == (1, 11, 23, 30)
        addresses = trt.behaviour.state(base._execution)["addresses"]
        assert addresses == {name: buffer.address for name, buffer in base._own.items()}
        back = context.pinned((1, 3, 180, 240), np.float32)
        stream = context.stream()
        stream.download(back, addresses["image"])
        stream.synchronize()
        assert (back == 1).all()


def test_int8_needs_a_quantised_file(world, tmp_path):  # noqa: F811
    trt, library = world("10.13.3.9")
    with pytest.raises(UnsupportedOp, match="--precision int8 needs QuantizeLinear nodes"):
        artefacts.build_bundle(copy_bundle(tmp_path), BuildOptions(precision="int8"), convert, Context(), trt=trt,
                               library=library, pack=pack)  # fmt: skip


def test_command_without_tensorrt(monkeypatch, capsys):
    from crispseg.cli import main

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", str(BUNDLE)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "backend tensorrt: expected the tensorrt package, found none" in error
    assert "pip install tensorrt" in error


def test_jetson_is_told_its_own_command(monkeypatch):
    monkeypatch.setattr(compat.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(compat.os.path, "exists", lambda path: path == "/etc/nv_tegra_release")
    assert "sudo apt install tensorrt python3-libnvinfer" in compat.install_hint()
    assert "--system-site-packages" in compat.install_hint()


def test_command_builds_and_keeps(world, tmp_path, monkeypatch, capsys):  # noqa: F811
    import json

    from crispseg.cli import main

    trt, library = world("10.13.3.9")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("crispseg.engines.cuda.open_device", lambda ordinal: Context(ordinal=ordinal))
    monkeypatch.setattr("crispseg.engines.tensorrt.strip.pack_with_library", lambda: pack)
    bundle = copy_bundle(tmp_path)
    monkeypatch.setenv(registry.ENVIRONMENT, str(tmp_path / "none.so"))
    arguments = ["build", str(bundle.path), "--precision", "fp16", "--workspace", "256", "--opt-level", "2", "--json"]

    def run_command(*more):
        code = main([*arguments, *more])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    code, report, _ = run_command()
    assert code == 0
    assert [row["part"] for row in report["engines"]] == ["base"]
    assert "no engine of the refiner, which runs in the CUDA kernels instead" in report["notes"][0]
    code, report, error = run_command("--refiner-engine")
    assert (code, report["error"]["exit_code"]) == (2, 2)
    assert "TensorRT plugin library: expected" in error
    monkeypatch.setenv(registry.ENVIRONMENT, str(library))
    code, report, _ = run_command("--baseline", "--timing-cache", str(tmp_path / "times"))
    assert code == 0
    rows = {row["part"]: row["engine"] for row in report["engines"]}
    assert rows == {"base": "kept", "baseline": "built", "refiner": "built"}
    assert (tmp_path / "times").is_file()
    assert report["tensorrt"] == "10.13.3.9"
    assert main(["layers", str(bundle.path), "--part", "refiner", "--runs", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["kind"] == "layers"
    assert len(table["plugins"]) == 46
    assert table["layers"][0].keys() == {"layer", "ms", "share", "precision", "kind"}
    assert table["sum_ms"] == pytest.approx(0.5 * table["layer_count"])
    assert main(["layers", str(bundle.path), "--precision", "fp32"]) == 2
    assert "run `crispseg build" in capsys.readouterr().err
    for bad in (["--profile", "image=1,2"], ["--dla", "0", "--precision", "fp32"], ["--opt-level", "9"]):
        assert main(["build", str(bundle.path), *bad]) == 2
    assert main(["build", str(tmp_path / "nothing")]) == 2
