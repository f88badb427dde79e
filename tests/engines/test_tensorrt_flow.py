"""The whole flow, parse to profile, on a module made from the recorded API of each release."""

from __future__ import annotations

import ctypes
import re
import sys

import numpy as np
import onnx
import pytest
from fake_tensorrt import VERSIONS, Behaviour, make
from onnx import TensorProto, helper, numpy_helper
from trt_support import BUNDLE, Context, convert, copy_bundle, creator_fields, libraries, pack  # noqa: F401

from crispseg.engines.tensorrt import artefacts, compat, profile, registry, run
from crispseg.engines.tensorrt.build import BuildOptions, build_engine, parse_profile
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, UnsupportedOp

SOME = ("8.5.3", "8.6.1", "10.13.3.9", "11.4.0.106")


@pytest.fixture
def world(monkeypatch, libraries):  # noqa: F811
    """version -> (module, plugin library); nothing is loaded yet."""
    core, library = libraries

    def start(version):
        monkeypatch.setattr(registry, "_loaded", {})
        trt = make(version)
        trt.behaviour.library = creator_fields()
        explicit = registry._register_explicitly

        def register(path, release):
            result = explicit(path, release)
            trt.behaviour.plugins.update(trt.behaviour.library)
            return result

        monkeypatch.setattr(registry, "_register_explicitly", register)
        monkeypatch.setattr(registry, "_libnvinfer", lambda: str(core))
        monkeypatch.setattr(artefacts, "kernel_image", lambda *_: None)
        return trt, library

    return start


@pytest.mark.parametrize("version", VERSIONS)
def test_build_find_run_profile(version, world, tmp_path):
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


def test_library_that_is_none(world, tmp_path):
    for version, text in (("8.5.3", "cannot be registered with TensorRT 8.5.3"), ("10.13.3.9", "does not load it")):
        trt, _ = world(version)
        with pytest.raises(EnvironmentMismatch, match=text):
            registry.load(trt, tmp_path / "nothing.so")


def test_creator_without_a_field_is_refused(world, tmp_path):
    trt, library = world("10.13.3.9")
    trt.behaviour.library["SparseConv2d"].remove("workspace")
    bundle = copy_bundle(tmp_path)
    with pytest.raises(EnvironmentMismatch, match="SparseConv2d: expected fields workspace"):
        artefacts.build_bundle(bundle, BuildOptions(), convert, Context(), trt=trt, library=library, pack=pack,
                               roles=("refiner",))  # fmt: skip
    assert not list(bundle.path.glob("engines/*/*.engine"))


# ---- single networks -------------------------------------------------------------------------------------------


def dense(shape=(1, 3, 8, 8), extra=(), functions=()):
    kernel = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Softmax", ["c"], ["y"], "soft", axis=1),
    ]
    sides = [None if side < 0 else side for side in shape]
    graph = helper.make_graph([*nodes, *extra], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)], [kernel])  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("crispseg", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def built(trt, model, options=None, **more):
    names = ["%s (%s)" % (node.name, node.op_type) for node in model.graph.node]
    return build_engine(model.SerializeToString(), options or BuildOptions(), what="net", nodes=names, trt=trt, **more)


@pytest.mark.parametrize("version", VERSIONS)
def test_flags_follow_typing(version, tmp_path):
    trt = make(version)
    result = built(trt, dense(), BuildOptions(precision="fp16"), floats=["soft"])
    flags = [call for call in trt.calls if call == "IBuilderConfig.set_flag"]
    assert len(flags) == (2 if version[0] == "8" else 0)  # FP16, PREFER_PRECISION_CONSTRAINTS
    assert result.facts["layers_held_in_fp32"] == (1 if version[0] == "8" else 0)
    assert b'"flags": ["FP16", "PREFER_PRECISION_CONSTRAINTS"]' in result.plan or version[0] != "8"


@pytest.mark.parametrize("version", VERSIONS)
def test_calibration_cache(version, tmp_path):
    trt = make(version)
    (tmp_path / "ranges").write_bytes(b"TRT-8601-EntropyCalibration2\nx: 3c010a14\n")
    options = BuildOptions(precision="int8", calibration=tmp_path / "ranges")
    if version.startswith("11."):
        with pytest.raises(UnsupportedOp, match="QuantizeLinear nodes of the ONNX file alone"):
            built(trt, dense(), options)
        return
    result = built(trt, dense(), options)
    assert result.facts["strongly_typed"] is False
    assert b'"INT8"' in result.plan


@pytest.mark.parametrize("version", VERSIONS)
def test_profile_and_dla(version):
    trt = make(version)
    shapes = dict([parse_profile("1x3x8x8,1x3x16x16,1x3x32x32")])
    result = built(trt, dense((1, 3, -1, -1)), BuildOptions(precision="fp16", profiles=shapes, dla=1))
    assert {"IOptimizationProfile.set_shape", "IBuilderConfig.DLA_core="} <= set(trt.calls)
    engine = run.open_engine(result.plan, Context(), trt=trt, core=1)
    order = [call for call in trt.calls if call in ("Runtime.DLA_core=", "Runtime.deserialize_cuda_engine")]
    assert order == ["Runtime.DLA_core=", "Runtime.deserialize_cuda_engine"]
    with pytest.raises(EnvironmentMismatch, match="DLA core 2, for which the engine was built: TensorRT finds 2"):
        run.open_engine(result.plan, Context(), trt=trt, core=2)
    engine.set_shapes({"x": (1, 3, 16, 16)})
    assert engine.outputs["y"][1] == (1, 3, 16, 16) or engine.outputs["y"][1][:2] == (1, 3)
    with pytest.raises(EnvironmentMismatch, match=r"--dla 2: expected a core below 2"):
        built(trt, dense(), BuildOptions(precision="fp16", dla=2))


def test_profiles_that_do_not_fit():
    trt = make("10.13.3.9")
    with pytest.raises(InputError, match="has open sides; give --profile x=MIN,OPT,MAX"):
        built(trt, dense((1, 3, -1, -1)))
    fixed = BuildOptions(profiles=dict([parse_profile("x=1x3x8x8,1x3x8x8,1x3x8x8")]))
    with pytest.raises(InputError, match="leave --profile out"):
        built(trt, dense(), fixed)
    with pytest.raises(InputError, match=r"expected shapes like \[1, 3, -1, -1\]"):
        built(trt, dense((1, 3, -1, -1)), BuildOptions(profiles=dict([parse_profile("1x4x8x8,1x4x8x8,1x4x8x8")])))
    for text in ("1x3x8x8", "1x3,1x3,1x3x8", "a,b,c", "=1x1,1x1,1x1", "1x9,1x8,1x9", "1x0,1x1,1x1"):
        with pytest.raises(InputError, match="--profile"):
            parse_profile(text)


@pytest.mark.parametrize("version", SOME)
def test_a_node_that_does_not_parse_is_named(version):
    bad = dense(extra=[helper.make_node("NoSuchOp", ["c"], ["z"], "strange")])
    with pytest.raises(UnsupportedOp, match=r"net: node .* does not parse in TensorRT .*No importer.*; use --backend"):
        built(make(version), bad)
    if version[0] == "8":  # later versions tell the name themselves
        with pytest.raises(UnsupportedOp, match=r"node strange \(NoSuchOp\)"):
            built(make(version), bad)


@pytest.mark.parametrize("version", ["10.0.1", "10.3.0", "10.13.3.9"])
def test_a_plugin_node_that_became_something_else_is_seen(version):
    trt = make(version)
    trt.behaviour.plugins.update(creator_fields())
    node = helper.make_node("SubmanifoldMap", ["a", "b"], ["m"], "maps", domain="crispseg")
    inside = [helper.make_node("Identity", ["a"], ["m"])]
    body = helper.make_function("crispseg", "SubmanifoldMap", ["a", "b"], ["m"], inside,
                                [helper.make_opsetid("", 17)])  # fmt: skip
    model = dense(functions=[body])
    model.graph.node.append(node)
    with pytest.raises(UnsupportedOp, match="expected 1 plugin layers.*node maps became something else"):
        built(trt, model, plugins=["maps"])
    del model.functions[:]
    assert built(trt, model, plugins=["maps"]).facts["plugin_layers"] == 1


def test_plugins_are_registered_before_parsing():
    trt = make("10.13.3.9")
    with pytest.raises(EnvironmentMismatch, match="plugins SubmanifoldMap: expected them in TensorRT's registry"):
        build_engine(b"", BuildOptions(), nodes=["maps (SubmanifoldMap)"], plugins=["maps"], trt=trt)
    assert "Builder" not in trt.calls


def test_out_of_memory_is_explained():
    trt = make("8.6.1")
    trt.behaviour.memory_error = [
        (
            "WARNING",
            "Skipping tactic 0x3 due to insufficient memory on requested size of 3221225472 detected for tactic 3.",
        ),
        ("ERROR", "10: Could not find any implementation for node /layer1/conv + /relu."),
    ]
    with pytest.raises(EnvironmentMismatch) as caught:
        built(trt, dense(), BuildOptions(workspace_mib=1024))
    text = str(caught.value)
    for part in (
        "net: out of memory at node /layer1/conv + /relu",
        "--workspace 1024 MiB",
        "asked for 3072 MiB",
        "--workspace 4096",
    ):
        assert part in text
    with pytest.raises(EnvironmentMismatch, match="close other programs.*--precision fp16"):
        built(trt, dense())
    trt.behaviour.memory_error = [("ERROR", "10: Could not find any implementation for node {ForeignNode[a...b]}.")]
    with pytest.raises(UnsupportedOp, match=r"no implementation of node \{ForeignNode\[a...b\]\} at precision fp32"):
        built(trt, dense())


def test_interrupt_cancels_the_build(monkeypatch):
    from crispseg.engines.tensorrt import build

    def interrupt(self, phase, step, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(build._Ticker, "step", interrupt)
    trt = make("10.13.3.9")
    with pytest.raises(KeyboardInterrupt):
        built(trt, dense(), progress=lambda *a, **k: None)
    assert "Builder.build_serialized_network" in trt.calls


def test_engine_of_another_version_is_refused(tmp_path):
    plan = built(make("10.3.0"), dense()).plan
    with pytest.raises(EnvironmentMismatch, match="TensorRT 11.4.0.106 does not take this engine: .*not compatible"):
        run.open_engine(plan, Context(), trt=make("11.4.0.106"))


def test_run_refuses_wrong_input():
    trt = make("10.13.3.9")
    engine = run.open_engine(built(trt, dense()).plan, Context(), trt=trt)
    with pytest.raises(InputError, match="input x: expected float32"):
        engine.run({"x": np.zeros((1, 3, 8, 8), np.float64)})
    with pytest.raises(InputError, match="expected inputs"):
        engine.run({})
    with pytest.raises(InputError, match="no tensor 'q'"):
        engine.bind({"q": 1})
    with pytest.raises(InputError, match="does not take the address"):
        engine.bind({"x": 0})


# ---- cache of a bundle -------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_command(world, tmp_path):
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


def test_damaged_engine_never_reaches_tensorrt(world, tmp_path):
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


def test_engines_run_on_the_memory_and_streams_of_the_driver(world, tmp_path, monkeypatch):
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


def test_int8_needs_a_quantised_file(world, tmp_path):
    trt, library = world("10.13.3.9")
    with pytest.raises(UnsupportedOp, match="--precision int8 needs QuantizeLinear nodes"):
        artefacts.build_bundle(copy_bundle(tmp_path), BuildOptions(precision="int8"), convert, Context(), trt=trt,
                               library=library, pack=pack)  # fmt: skip


def test_options_are_checked():
    for bad in ({"precision": "fp8"}, {"workspace_mib": 0}, {"opt_level": 6}, {"dla": 0}, {"calibration": "x"}):
        with pytest.raises(InputError):
            BuildOptions(**bad)
    with pytest.raises(EnvironmentMismatch, match="--opt-level 3: TensorRT 8.5.3.1 has no optimisation level"):
        built(make("8.5.3"), dense(), BuildOptions(opt_level=3))


def test_no_builder_without_a_gpu():
    class NoGpu(Behaviour):
        def created(self, name, this, bound):
            if name == "Builder":
                raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EnvironmentMismatch, match="gives no builder.*needs a GPU"):
        built(make("10.13.3.9", NoGpu), dense())


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


def test_logger_on_every_release():
    for version in VERSIONS:
        trt = make(version)
        lines = []
        logger = compat.make_logger(trt, lambda severity, text, lines=lines: lines.append((severity, text)))
        logger.log(trt.ILogger.Severity.ERROR, "x")
        assert lines == [("error", "x")]


def test_inspector_text_of_an_engine_without_details():
    assert profile.summary('{"Layers": ["conv", "Reformatting CopyNode for Input"]}') == {
        "layers": 2, "precision": {"unknown": 2}, "reformats": ["Reformatting CopyNode for Input"], "plugins": [],
        "detailed": False}  # fmt: skip
    with pytest.raises(InputError, match="expected JSON with Layers"):
        profile.summary("{}")
    onnx.checker.check_model(dense())


def test_command_builds_and_keeps(world, tmp_path, monkeypatch, capsys):
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
