"""The GPU pipeline on the emulated driver: what is missing names a command; run, overlays, latency with a budget."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gpu_toy
from gpu_toy import FRAME, picture
from PIL import Image

from crispseg.bundle import load_bundle
from crispseg.engines import cuda, cuda_kernels, ort_cuda
from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.runtime import gpu_open, overlay
from crispseg.runtime.frames import Frame
from crispseg.runtime.geometry import placement, to_frame
from crispseg.runtime.latency import measure
from crispseg.runtime.pipeline import open_pipeline
from crispseg.runtime.run import run, segment

ALL = ("labels", "confidence", "active", "base")


def test_no_driver(tmp_path, monkeypatch):
    bundle = gpu_toy.write(tmp_path / "b")
    monkeypatch.setenv("CRISPSEG_LIBCUDA", "/nowhere/libcuda.so.1")
    for backend in ("cuda", "tensorrt"):
        with pytest.raises(EnvironmentMismatch, match="CUDA driver: expected /nowhere/libcuda.so.1"):
            open_pipeline(bundle, backend=backend)


def test_kernels_that_were_not_built_name_the_command(tmp_path, emulated):
    bundle = gpu_toy.write(tmp_path / "b")
    with pytest.raises(EnvironmentMismatch, match=r"crispseg build .*b --backend cuda"):
        open_pipeline(bundle, backend="cuda")


def test_kernels_of_another_gpu_are_refused_with_the_difference(tmp_path, emulated, kernel_image, monkeypatch):
    bundle = gpu_toy.write(tmp_path / "b")
    gpu_toy.store_kernels(bundle, kernel_image)
    info = cuda.open_device(0).info
    other = info.capability + 1
    monkeypatch.setattr(cuda.open_device(0), "info", replace(info, capability=other))
    text = "compute_capability: expected %d, found %d.*crispseg build" % (other, info.capability)
    with pytest.raises(EnvironmentMismatch, match=text):
        cuda_kernels.open_kernels(cuda.open_device(0), load_bundle(bundle.path))


def test_onnxruntime_without_cuda(bundles, emulated):
    import onnxruntime

    if ort_cuda.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(EnvironmentMismatch, match="CUDAExecutionProvider.*onnxruntime-gpu"):
        open_pipeline(bundles["rgb"], backend="cuda")


def test_tensorrt_that_is_missing(bundles, emulated, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(EnvironmentMismatch, match="(?i)tensorrt"):
        open_pipeline(bundles["rgb"], backend="tensorrt")


def test_what_opened_is_closed_when_the_rest_fails(bundles, emulated, monkeypatch):
    gc.collect()
    before = emulated.live()

    def fail(*unused):
        raise InputError("no base today")

    monkeypatch.setattr(gpu_open, "open_base", fail)
    with pytest.raises(InputError, match="no base today"):
        open_pipeline(bundles["rgb"], backend="cuda")
    gc.collect()
    assert emulated.live() == before


def test_run_keeps_the_order_with_frames_under_way(bundles, copied, tmp_path):
    frames = [picture(seed, *FRAME) for seed in range(3)]
    for index, image in enumerate(frames):
        Image.fromarray(image).save(tmp_path / ("%d.png" % index))
    report = run(bundles["rgb"], tmp_path, tmp_path / "out", "labels", backend="cuda")
    assert report["frames"] == 3
    assert report["stages"]["gpu_compute"]["p50"] >= 0
    assert report["pipeline"]["graphs"]["number"] == 1
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        for index, image in enumerate(frames):
            saved = np.asarray(Image.open(tmp_path / "out" / "labels" / ("%d.png" % index)))
            assert (saved == pipe.run(image).labels).all()


def test_overlays_have_the_bytes_of_the_cpu(bundles, copied):
    table = overlay.palette(bundles["rgb"].classes)
    frame = picture(0, *FRAME)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        assert pipe.run(frame).overlay is None
        pipe.submit(frame)
        pipe.paint(table, 0.3)  # the frame under way is finished first
        assert pipe.collect().overlay is None
        for image in (frame, picture(2, *FRAME)):
            result = pipe.run(image, ALL)
            assert (result.overlay == overlay.blend(image, result.labels, table, 0.3)).all()
            assert "overlay" in result.times
        pipe.paint(None)
        assert pipe.run(frame).overlay is None


@pytest.mark.parametrize(("size", "fit"), [((48, 80), "resize"), ((37, 61), "letterbox"), ((20, 65), "letterbox"),
                                           ((47, 40), "letterbox"), ((7, 300), "resize")], ids=str)  # fmt: skip
def test_overlays_of_any_size_have_the_bytes_of_the_cpu(bundles, copied, size, fit):
    """And so have the maps of every other wish: the GPU brings them to the frame's size by the CPU's rule."""
    bundle, image = bundles["rgb"], picture(3, *size)
    table = overlay.palette(bundle.classes)
    with open_pipeline(bundle, backend="cuda", fit=fit) as pipe:
        pipe.paint(table, 0.6)
        result = pipe.run(image, ALL)
        place = placement(size, FRAME, fit)
        assert pipe._place == place
        for name, of in (("labels", pipe._refiner), ("confidence", pipe._refiner), ("base", pipe._labels)):
            canvas = np.empty(FRAME, np.uint8)
            stream = pipe._stream
            stream.download(canvas, of.address("labels" if name == "base" else name))
            stream.synchronize()
            assert (getattr(result, name) == to_frame(canvas, place)).all(), name
    assert (result.overlay == overlay.blend(image, result.labels, table, 0.6)).all()
    assert "overlay" in result.times


def test_run_draws_on_what_the_gpu_blended(bundles, copied, tmp_path, monkeypatch):
    for index, size in enumerate([FRAME, FRAME, (48, 80)]):
        Image.fromarray(picture(index, *size)).save(tmp_path / ("%d.png" % index))
    drawn, blend = [], overlay.blend
    saved = {}
    for where in ("cpu", "gpu"):
        options = {"outline": True, "legend": True, "alpha": 0.7, "backend": "cuda"}
        with monkeypatch.context() as patch:
            patch.setattr(overlay, "blend", lambda *given, who=where: drawn.append(who) or blend(*given))
            if where == "cpu":
                patch.setattr("crispseg.runtime.gpu_pipeline.GpuPipeline.paint", lambda *given: None)
            run(bundles["rgb"], tmp_path, tmp_path / where, "overlay", **options)
        saved[where] = [np.asarray(Image.open(tmp_path / where / "overlay" / ("%d.png" % i))) for i in range(3)]
    assert drawn == ["cpu"] * 3, "no frame is left to the CPU, whatever its size"
    for one, two in zip(saved["cpu"], saved["gpu"]):
        assert (one == two).all()


def test_latency_with_a_budget(bundles, copied, tmp_path, monkeypatch):
    monkeypatch.setattr("crispseg.runtime.budget.SHARES", (0.5, 1.0))
    Image.fromarray(picture(0, *FRAME)).save(tmp_path / "a.png")
    report = measure(bundles["rgb"], input=tmp_path / "a.png", backend="cuda", seconds=0, warmup=0, min_runs=1,
                     budget_ms=1e6)  # fmt: skip
    assert report["throughput_qps"] > 0
    assert {"h2d", "gpu_compute", "d2h", "enqueue"} <= set(report["stages"])
    assert report["budget"]["capacity"] == FRAME[0] * FRAME[1]
    assert {"staging", "gpu_compute", "throughput_qps"} <= set(report["definitions"])


class Ahead:
    """Remembers in which order frames go in and results come out."""

    depth = 2

    def __init__(self):
        self.log, self.waiting = [], []

    def submit(self, image, want):
        self.log.append("in%d" % image)
        self.waiting.append(image)

    def collect(self):
        self.log.append("out%d" % self.waiting[0])
        return self.waiting.pop(0)

    def run(self, image, want):
        self.log.append("run%d" % image)
        return image


def test_frames_go_in_ahead_of_results():
    frames = [Frame(i, i, 0.0, str(i)) for i in range(4)]
    pipe = Ahead()
    assert [(frame.index, result) for frame, result in segment(pipe, frames, (), ahead=True)] == [
        (0, 0), (1, 1), (2, 2), (3, 3)
    ]  # fmt: skip
    assert pipe.log == ["in0", "in1", "out0", "in2", "out1", "in3", "out2", "out3"]
    pipe = Ahead()
    list(segment(pipe, frames, (), ahead=False))
    assert pipe.log == ["run0", "run1", "run2", "run3"]


def test_breaking_off_leaves_no_frame_under_way():
    frames = [Frame(i, i, 0.0, str(i)) for i in range(4)]
    pipe = Ahead()
    for _ in segment(pipe, frames, (), ahead=True):
        break
    assert pipe.log == ["in0", "in1", "out0", "out1"]
    assert not pipe.waiting
