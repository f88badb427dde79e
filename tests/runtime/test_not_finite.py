"""Logits with NaN or infinity are told: CPU engines, the GPU pipeline on the emulated driver, report and warning."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gpu_toy
import numpy as np
import pytest
import toy
from gpu_toy import FRAME, LOW, CopyBase, picture
from native_net import CLASSES
from onnx import TensorProto, helper, numpy_helper

from crispseg.bundle import load_bundle
from crispseg.engines import ort
from crispseg.plugins.loader import available_isas
from crispseg.runtime.accuracy import evaluate
from crispseg.runtime.latency import measure
from crispseg.runtime.not_finite import NotFinite, check_logits
from crispseg.runtime.pipeline import open_pipeline
from crispseg.runtime.run import run

ORT = {"backend": "onnxruntime", "threads": 1}
DEMO = Path(__file__).parents[2] / "demo" / "bundle"
ENGINES = ("native avx512", "native avx2", "native generic", "onnxruntime")
KINDS = ("nan", "inf", "all")  # of test_pipelines; each spoils the same nine cells


def spoil(logits, kind):
    """Logits [1,C,h,w] with rows 2..4, columns 5..7 spoiled, or class 1 masked in all."""
    logits = logits.copy()
    if kind == "nan":
        logits[0, 2, 2:5, 5:8] = np.nan
    if kind == "inf":
        logits[0, 2, 2:5, 5:8] = np.inf
    if kind == "all":
        logits[0, :, 2:5, 5:8] = -np.inf
    if kind == "masked":
        logits[0, 1] = -np.inf
    return logits


def plain(bundle=None):
    """Logits of a bundle's base, smooth enough that few pixels are uncertain; of the small one without."""
    rng = np.random.default_rng(5)
    if bundle is None or len(bundle.classes) == CLASSES:
        return rng.normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)
    logits = rng.normal(0, 0.5, (1, len(bundle.classes), bundle.base.logits_height, bundle.base.logits_width))
    for c in range(0, len(bundle.classes), 2):
        logits[0, c, :, 3 * c : 3 * c + 6] += 9
    return logits.astype(np.float32)


@pytest.mark.parametrize("kind", [*KINDS, "masked", "none"])
def test_check_logits(kind):
    logits = spoil(plain(), kind)
    before = logits.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_logits(logits) == (9 if kind in KINDS else 0)
    if kind == "masked":
        assert (logits[0, 1] == np.float32(-1e30)).all()
        logits[0, 1] = -np.inf
    assert logits.tobytes() == before.tobytes()


def test_a_sum_beyond_the_range_is_no_pixel():
    assert check_logits(np.full((1, 2, 40, 40), 3e38, np.float32)) == 0


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return {False: gpu_toy.write(tmp_path_factory.mktemp("not_finite") / "base", refiner=False)}


@pytest.fixture(scope="module")
def demo():
    return load_bundle(DEMO)


@pytest.fixture
def given(monkeypatch):
    """Logits that every base gives from then on: one after the other, the last for good."""
    queue = []
    inner = ort.OrtEngine.run

    def outputs(self, inputs, names=None):
        if list(self.outputs) != ["logits"]:
            return inner(self, inputs, names)
        return {"logits": (queue.pop(0) if len(queue) > 1 else queue[0]).copy()}

    monkeypatch.setattr(ort.OrtEngine, "run", outputs)
    return queue


def chosen(engine, monkeypatch):
    """The backend; of the native library with this instruction set."""
    backend, _, isa = engine.partition(" ")
    if backend == "native":
        if toy.native_missing():
            pytest.skip("no native library")
        if isa not in available_isas():
            pytest.skip("this CPU lacks %s" % isa)
        monkeypatch.setenv("CRISPSEG_ISA", isa)
    return backend


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pipelines(demo, bundles, given, monkeypatch, backend, refined):
    """The bundle with a refiner is the demo, whose ops have bodies for ONNX Runtime."""
    backend = chosen(backend, monkeypatch)
    bundle = demo if refined else bundles[False]
    given[:] = [spoil(plain(bundle), kind) for kind in (*KINDS, "none")]
    with open_pipeline(bundle, backend=backend, threads=1) as pipe:
        frame = picture(1, bundle.height, bundle.width)
        results = [pipe.run(frame, ("labels", "confidence")) for _ in range(4)]
    assert [r.not_finite for r in results] == [9, 9, 9, 0]
    assert all(0.001 < (r.confidence == 0).mean() < 0.5 for r in results[:3])
    assert (results[3].confidence > 0).all()


@pytest.mark.parametrize("backend", ENGINES)
def test_a_masked_class_is_legal_and_leaves_the_others_refined(demo, given, monkeypatch, backend):
    """Interpolated as it comes, -inf would be NaN in every pixel, and nothing would be refined."""
    backend = chosen(backend, monkeypatch)
    low = plain(demo)
    low[0, 1] = -1e4
    given[:] = [spoil(low, "masked"), low]
    frame = picture(1, demo.height, demo.width)
    with open_pipeline(demo, backend=backend, threads=1) as pipe:
        masked, exact = (pipe.run(frame, ("labels", "confidence")) for _ in range(2))
    assert masked.not_finite == 0
    assert (masked.count, masked.found) == (exact.count, exact.found)
    assert exact.count > 100
    np.testing.assert_array_equal(masked.labels, exact.labels)
    np.testing.assert_array_equal(masked.confidence, exact.confidence)


# ---- GPU ------------------------------------------------------------------------------------------------------------


class Taught(CopyBase):
    """Copies the logits that stand on the device at that moment, so that frames of a captured graph differ."""

    def teach(self, stream, logits):
        stream.upload(self.buffer.address, np.ascontiguousarray(logits))
        stream.synchronize()


@pytest.mark.parametrize("refined", [True, False])
def test_gpu_pipeline(tmp_path, monkeypatch, emulated, kernel_image, refined):
    """Graphs are replayed, two frames are under way, the device is as late as it may be."""
    from crispseg.runtime import gpu_open

    bundle, made = gpu_toy.write(tmp_path / "b", refiner=refined), []
    gpu_toy.store_kernels(bundle, kernel_image)

    def base(bundle, net, spec, context, stream):
        made.append(Taught(context, plain()))
        return made[-1]

    monkeypatch.setattr(gpu_open, "open_base", base)
    frame = picture(1, *FRAME)
    with open_pipeline(bundle, backend="cuda", precision="fp32") as pipe:
        kinds, found, results = ("none", "nan", "none", "masked", "all", "inf", "none"), [], []
        for kind in kinds:
            pipe.run(frame)  # nothing is under way when the base is taught
            made[0].teach(pipe._stream, spoil(plain(), kind))
            results.append(pipe.run(frame, ("labels", "confidence")))
            found.append(results[-1].not_finite)
        assert found == [9 if kind in KINDS else 0 for kind in kinds]
        if refined:
            assert results[3].count > 100
        assert (results[3].confidence > 0).all()
        # Two under way: the base of the second is taught between them, on its own stream.
        made[0].teach(pipe._stream, spoil(plain(), "nan"))
        host, inner = pipe._context.pinned(plain().shape, np.float32), made[0].buffer.address
        host[:] = plain()
        pipe.submit(frame, ("labels", "confidence"))
        pipe._stream.upload(inner, host)
        pipe.submit(frame, ("labels", "confidence"))
        assert [pipe.collect().not_finite for _ in range(2)] == [9, 0]


# ---- what the user is told ------------------------------------------------------------------------------------------


def overflowing(height, width, rows, columns):
    """A base whose class 1 is infinite where a picture is bright."""
    step = height // rows
    weight = np.random.default_rng(3).normal(0, 2.5, (CLASSES, 3, step, step)).astype(np.float32)
    large = np.array(np.float32(3e38))
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["y"], strides=[step, step]),
        helper.make_node("MaxPool", ["image"], ["m"], kernel_shape=[step, step], strides=[step, step]),
        helper.make_node("ReduceMax", ["m"], ["top"], axes=[1]),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        helper.make_node("Where", ["bright", "large", "one"], ["factor"]),
        helper.make_node("Mul", ["y", "factor"], ["much"]),
        helper.make_node("Mul", ["much", "factor"], ["logits"]),
    ]
    initialisers = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(large, "large"),
                    numpy_helper.from_array(np.array(np.float32(1)), "one"),
                    numpy_helper.from_array(np.array(np.float32(2.5)), "limit")]  # fmt: skip
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES, rows, columns])
    graph = helper.make_graph(nodes, "toy", [x], [y], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """(bundle, folder of three pictures): the base overflows in the second and the third."""
    from PIL import Image

    folder, patch = tmp_path_factory.mktemp("bright"), pytest.MonkeyPatch()
    patch.setattr(gpu_toy, "base_onnx", overflowing)
    gpu_toy.write(folder / "bundle", refiner=False)
    patch.undo()
    for name in ("frames", "labels"):
        (folder / name).mkdir()
    for index in range(3):
        image = np.minimum(picture(index, *FRAME), 200)
        if index:
            image[4:20, 8:40] = 255
        Image.fromarray(image).save(str(folder / "frames" / ("p%d.png" % index)))
        Image.fromarray(np.zeros(FRAME, np.uint8)).save(str(folder / "labels" / ("p%d.png" % index)))
    return folder / "bundle", folder / "frames"


def test_run_tells_once_and_goes_on(bright, tmp_path):
    bundle, frames = bright
    told = []
    report = run(bundle, frames, tmp_path / "o", "labels", warn=told.append, **ORT)
    assert report["frames"] == 3
    assert report["not_finite_frames"] == 2
    assert "not_finite_frames" in report["definitions"]
    assert len(told) == 1
    assert told[0].startswith("frame 2 (p1): the base gave NaN or infinity in ")
    (line,) = report["warnings"]
    assert "2 of 3 frames (first: 2)" in line
    assert "crispseg verify" in line
    report = run(bundle, frames, tmp_path / "o", "labels", network="baseline", **ORT)
    assert "the baseline gave" in report["warnings"][0]


def test_the_command_tells_on_stderr(bright, tmp_path):
    bundle, frames = bright
    command = ["run", str(bundle), str(frames), "-o", str(tmp_path / "o"), "--save", "labels", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "crispseg", *command, "--backend", "onnxruntime", "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "frame 2 (p1)" in lines[0]
    assert '"not_finite_frames": 2' in done.stdout
    assert len(list((tmp_path / "o" / "labels").glob("*.png"))) == 3


def test_eval_and_latency_tell(bright):
    bundle, frames = bright
    report = evaluate(bundle, frames, frames.parent / "labels", baseline=True, **ORT)
    assert report["not_finite_frames"] == 2
    assert ["the base gave" in line for line in report["warnings"]] == [True, False]
    assert "the baseline gave" in report["warnings"][1]
    report = measure(bundle, input=frames, seconds=0.0, warmup=0.0, min_runs=3, baseline=True, **ORT)
    assert report["not_finite_frames"] == 2
    assert sum("2 of 3 frames" in line for line in report["warnings"]) == 2


def test_advice():
    tally = NotFinite()
    assert [tally.add(n) for n in (0, 3, 0, 7)] == [False, True, False, False]
    assert "2 of 4 frames (first: 2)" in tally.warnings("fp16")[0]
    assert "7 pixels" in tally.warnings("fp16")[0]
    assert "--precision fp32" in tally.warnings("fp16")[0]
    assert "--precision fp32" not in tally.warnings("fp32")[0]
    assert NotFinite().warnings("fp16") == []
