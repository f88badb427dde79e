from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, UnsupportedOp

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from crispseg.engines import ort  # noqa: E402

SPEC = EngineSpec("onnxruntime", threads=1)


def conv_model(tmp_path, name="net.onnx", external=False, dynamic=False, op="Conv", domain=""):
    weight = numpy_helper.from_array(np.full((4, 3, 1, 1), 0.5, np.float32), "w")
    side = ["h", "w"] if dynamic else [6, 8]
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3] + side)
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4] + side)
    node = helper.make_node(op, ["image", "w"], ["logits"], domain=domain)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = tmp_path / name
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, location="net.weights", size_threshold=0)
    else:
        onnx.save_model(model, str(path))
    return path


def test_a_weight_of_absurd_size_is_one_exception(tmp_path, capfd):
    """ONNX Runtime's own logger would print a second line, whatever the session's may."""
    path = conv_model(tmp_path)
    model = onnx.load(str(path))
    model.graph.initializer[0].dims[0] = 1 << 62
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="expected a valid ONNX network"):
        ort.load(path, SPEC)
    assert capfd.readouterr().err == ""


def test_memory_that_is_refused_is_one_line(tmp_path):
    """A graph that wants 447 GiB, under a limit, so that no machine tries to give them."""
    pytest.importorskip("resource")
    path = conv_model(tmp_path)
    model = onnx.load(str(path))
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 200000, 200000], np.int64), "shape"))
    graph.node[0].input[0] = "sum"
    for node in (
        helper.make_node("Add", ["image", "mean"], ["sum"]),
        helper.make_node("ReduceMean", ["large"], ["mean"], axes=[2, 3]),
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
    ):
        graph.node.insert(0, node)
    path.write_bytes(model.SerializeToString())
    code = """if True:
        import resource, sys
        import numpy as np
        from crispseg.engines import ort
        from crispseg.engines.spec import EngineSpec
        from crispseg.errors import UnsupportedOp
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))
        engine = ort.load(sys.argv[1], EngineSpec("onnxruntime", threads=1))
        try:
            engine.run({"image": np.ones((1, 3, 6, 8), np.float32)})
        except UnsupportedOp as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert "net.onnx: ConstantOfShape node asked for 447.0 GiB in one piece, and the machine refused" in done.stdout
    assert done.stdout.count("\n") == 1


def test_runs(tmp_path):
    with ort.load(conv_model(tmp_path), SPEC) as engine:
        image = np.ones((1, 3, 6, 8), np.float32)
        out = engine.run({"image": image}, ["logits"])
        np.testing.assert_allclose(out["logits"], np.full((1, 4, 6, 8), 1.5))
        assert list(engine.run({"image": image})) == ["logits"]
        assert engine.stage_times["run"] > 0
        about = engine.describe()
        assert about["providers"] == ["CPUExecutionProvider"]
        assert about["threads"] == 1
        assert about["inputs"]["image"] == ["float32", [1, 3, 6, 8]]
    with pytest.raises(InputError, match="closed"):
        engine.run({"image": image})


def test_a_provider_that_fails_is_not_replaced(tmp_path, monkeypatch, capsys):
    """ONNX Runtime's own fallback prints a banner on stdout and goes on with another provider."""
    path = conv_model(tmp_path)

    def fail(*_):
        raise ValueError("driver missing")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BundleError, match="driver missing"):
        ort.load(path, SPEC)
    assert capsys.readouterr().out == ""


def test_external_data(tmp_path):
    path = conv_model(tmp_path, external=True)
    out = ort.load(path, SPEC).run({"image": np.ones((1, 3, 6, 8), np.float32)})
    assert out["logits"][0, 0, 0, 0] == 1.5
    (tmp_path / "net.weights").write_bytes(b"1234")
    with pytest.raises(BundleError, match="export the bundle again"):
        ort.load(path, SPEC)
    (tmp_path / "net.weights").unlink()
    with pytest.raises(BundleError):
        ort.load(path, SPEC)


@pytest.mark.skipif(
    tuple(int(v) for v in onnxruntime.__version__.split(".")[:2]) < (1, 31),
    reason="known of 1.31; 1.19 reads external data anywhere",
)
def test_external_data_outside_is_refused(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    path = conv_model(folder, external=True)
    (folder / "net.weights").rename(tmp_path / "net.weights")
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../net.weights"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError):
        ort.load(path, SPEC)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"picture": np.ones((1, 3, 6, 8), np.float32)},
        {"image": np.ones((1, 3, 6, 8), np.float32), "more": np.ones(1, np.float32)},
        {"image": np.ones((1, 3, 6, 8), np.float64)},
        {"image": np.ones((1, 3, 8, 6), np.float32)},
        {"image": np.ones((3, 6, 8), np.float32)},
        {"image": [[1.0]]},
    ],
)
def test_bad_inputs(tmp_path, inputs):
    with pytest.raises(InputError, match="expected"):
        ort.load(conv_model(tmp_path), SPEC).run(inputs)


def test_unknown_output(tmp_path):
    with pytest.raises(InputError, match="expected one of logits"):
        ort.load(conv_model(tmp_path), SPEC).run({"image": np.ones((1, 3, 6, 8), np.float32)}, ["labels"])


def test_dynamic_shapes(tmp_path):
    engine = ort.load(conv_model(tmp_path, dynamic=True), SPEC)
    for side in (2, 9, 4):
        assert engine.run({"image": np.ones((1, 3, side, 5), np.float32)})["logits"].shape == (1, 4, side, 5)


def test_provider_is_required(tmp_path):
    path = conv_model(tmp_path)
    with pytest.raises(EnvironmentMismatch, match=r"has .*CPUExecutionProvider.*onnxruntime-gpu tensorrt"):
        ort.load(path, EngineSpec("onnxruntime", provider="TensorrtExecutionProvider"))
    with pytest.raises(EnvironmentMismatch, match="name one of these"):
        ort.load(path, EngineSpec("onnxruntime", provider="cpu"))


def test_provider_that_falls_back_is_refused(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession

    class FallBack(real):
        def __init__(self, path, sess_options, providers):
            super().__init__(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", FallBack)
    with pytest.raises(EnvironmentMismatch, match="started CPUExecutionProvider instead"):
        ort.load(conv_model(tmp_path), EngineSpec("onnxruntime", provider="CUDAExecutionProvider"))


def test_without_onnxruntime(tmp_path, monkeypatch):
    path = conv_model(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentMismatch, match="pip install onnxruntime"):
        ort.load(path, SPEC)


def test_an_onnxruntime_that_does_not_load(tmp_path, monkeypatch):
    """As 1.17 beside NumPy 2 does: an ImportError without a word."""
    path = conv_model(tmp_path)

    class Breaking:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                raise ImportError("")

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Breaking(), *sys.meta_path])
    with pytest.raises(EnvironmentMismatch, match=r"found one that does not load beside NumPy .*--upgrade onnxruntime"):
        ort.load(path, SPEC)


def test_broken_files(tmp_path):
    path = conv_model(tmp_path)
    raw = path.read_bytes()
    for content in (b"", b"not an onnx file", raw[: len(raw) // 2], raw[:-4], b"\xff" * 200):
        path.write_bytes(content)
        with pytest.raises((BundleError, UnsupportedOp)) as error:
            ort.load(path, SPEC)
        assert "net.onnx" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(BundleError, match="found none"):
        ort.load(tmp_path / "none.onnx", SPEC)


def test_unknown_operator(tmp_path):
    with pytest.raises(UnsupportedOp, match="upgrade onnxruntime"):
        ort.load(conv_model(tmp_path, op="Sparkle", domain="elsewhere"), SPEC)


@pytest.mark.parametrize("bad", [{"backend": "magic"}, {"threads": -1}, {"precision": "fp4"}, {"threads": 1.5}])
def test_spec(bad):
    with pytest.raises(InputError, match="expected"):
        EngineSpec(**bad)
    assert EngineSpec().thread_count >= 1
