"""One engine, parse to run, on a module made from the recorded API of each release."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fake_tensorrt import VERSIONS, make
from fake_tensorrt_behaviour import Behaviour
from onnx import TensorProto, helper, numpy_helper
from trt_support import Context, creator_fields

from crispseg.engines.tensorrt import compat, profile, run
from crispseg.engines.tensorrt.build import BuildOptions, build_engine, parse_profile
from crispseg.errors import EnvironmentMismatch, InputError, UnsupportedOp

SOME = ("8.5.3", "8.6.1", "10.13.3.9", "11.4.0.106")


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
