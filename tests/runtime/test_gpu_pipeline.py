"""The GPU pipeline on the emulated driver: against the CPU pipeline, with frames under way, and its refusals."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gpu_toy
from gpu_toy import FRAME, LOW, CopyBase, picture
from native_net import CLASSES
from PIL import Image

from crispseg.bundle import load_bundle
from crispseg.cli_build import to_precision
from crispseg.engines import cuda, cuda_base, cuda_kernels, native, nvrtc, ort_cuda
from crispseg.engines.spec import EngineSpec
from crispseg.engines.tensorrt import run as tensorrt_run
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.runtime import gpu_open, gpu_pipeline, overlay
from crispseg.runtime.frames import Frame
from crispseg.runtime.geometry import placement, to_frame
from crispseg.runtime.latency import measure
from crispseg.runtime.pipeline import open_pipeline
from crispseg.runtime.run import run, segment

ALL = ("labels", "confidence", "active", "base")
OWN = ("staging", "enqueue", "host_latency", "post")
DEVICE_STAGES = ["h2d", "preprocess", "base", "select", "maps", "conv", "ensemble", "scatter", "pack",
                 "d2h"]  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, emulated_driver, kernel_image):
    """order -> bundle with kernels in its cache."""
    folder = tmp_path_factory.mktemp("gpu")
    sources, patch = nvrtc.kernel_sources(), pytest.MonkeyPatch()
    patch.setattr(nvrtc, "kernel_sources", lambda: sources)  # one key, even if somebody edits a kernel meanwhile
    written = {order: gpu_toy.write(folder / order, order=order) for order in ("rgb", "bgr")}
    for bundle in written.values():
        gpu_toy.store_kernels(bundle, kernel_image)
    for role in ("base", "baseline"):
        cuda_base.build(written["rgb"], role, to_precision)
    yield written
    patch.undo()


@pytest.fixture
def on_host(monkeypatch, emulated):
    """The base in ONNX Runtime's CPU provider, on emulated device memory: it runs at once, so the device must too."""
    emulated.eager(True)
    load = ort_cuda.load
    monkeypatch.setattr(ort_cuda, "load", lambda path, context, stream: load(
        path, context, stream, provider="CPUExecutionProvider"))  # fmt: skip


@pytest.fixture
def copied(monkeypatch, emulated):
    """A base that copies fixed logits on the device; it can be captured, and the device runs as late as it may."""
    logits = np.random.default_rng(5).normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)
    monkeypatch.setattr(gpu_open, "open_base", lambda bundle, net, spec, context, stream: CopyBase(context, logits))
    return logits


def same(found, exact, slack=0.0):
    assert found.labels.shape == exact.labels.shape
    assert found.labels.dtype == np.uint8
    assert (found.count, found.found) == (exact.count, exact.found)
    assert (found.labels != exact.labels).mean() <= slack
    if exact.confidence is not None:
        assert np.abs(found.confidence.astype(int) - exact.confidence).max() <= 1
    if exact.active is not None:
        assert (found.active == exact.active).all()
    assert (found.base is None) == (exact.base is None)
    if exact.base is not None:
        assert (found.base != exact.base).mean() <= slack


# Equal size, whole and broken factors, bars above and below, bars left and right.
@pytest.mark.parametrize(("size", "order"), [(FRAME, "rgb"), ((48, 80), "bgr"), ((37, 61), "rgb"), ((20, 64), "bgr"),
                                             ((48, 40), "rgb")], ids=str)  # fmt: skip
def test_the_same_pixels_as_the_cpu_pipeline(bundles, on_host, size, order):
    frame = picture(1, *size)
    with open_pipeline(bundles[order], threads=1) as pipe:
        exact = pipe.run(frame, ALL)
    with open_pipeline(bundles[order], backend="cuda", precision="fp32") as pipe:
        same(pipe.run(frame, ALL), exact)


def test_fp16_agrees_with_the_cpu_pipeline(bundles, on_host):
    frame = picture(2, 48, 80)
    with open_pipeline(bundles["rgb"], threads=1) as pipe:
        exact = pipe.run(frame)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        assert pipe.describe()["refiner"]["precision"] == "fp16"
        found = pipe.run(frame)
    assert abs(found.count - exact.count) <= 0.01 * exact.count
    assert (found.labels == exact.labels).mean() >= 0.995


def test_a_base_that_was_not_converted_names_the_command(bundles, on_host):
    with pytest.raises(EnvironmentMismatch, match=r"crispseg build .* --backend cuda --precision fp16"):
        open_pipeline(bundles["bgr"], backend="cuda")
    with pytest.raises(EnvironmentMismatch, match=r"crispseg build .* --backend cuda --precision fp16"):
        open_pipeline(bundles["bgr"], backend="cuda", precision="int8")
    with pytest.raises(BundleError, match="expected a calibration of the refiner"):
        open_pipeline(bundles["rgb"], backend="cuda", precision="int8")


def test_int8_refiner_agrees_with_the_native_engine(on_host, tmp_path, kernel_image):
    bundle = gpu_toy.calibrated(gpu_toy.write(tmp_path / "float"), tmp_path / "int8")
    gpu_toy.store_kernels(bundle, kernel_image)
    cuda_base.build(bundle, "base", to_precision)
    frame = picture(2, 48, 80)
    with native.load(bundle.file("refiner.int8.onnx"), EngineSpec(threads=1, precision="int8")) as other:
        with open_pipeline(bundle, backend="cuda", precision="int8") as pipe:
            facts = pipe.describe()["refiner"]
            assert (facts["precision"], facts["file"]) == ("int8", "refiner.int8.onnx")
            assert facts["int8_convolutions"] == 9
            found = pipe.run(frame)
        with open_pipeline(bundle, threads=1) as pipe:
            pipe._refiner.close()
            pipe._refiner = other
            exact = pipe.run(frame)
    assert abs(found.count - exact.count) <= 0.01 * exact.count
    assert (found.labels == exact.labels).mean() >= 0.99


def test_a_damaged_copy_is_refused_and_made_again(bundles, on_host, tmp_path, kernel_image):
    bundle = gpu_toy.write(tmp_path / "b")
    gpu_toy.store_kernels(bundle, kernel_image)
    path = cuda_base.build(bundle, "base", to_precision).path / "base.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated.*crispseg build"):
        open_pipeline(bundle, backend="cuda")
    cuda_base.build(bundle, "base", to_precision)
    open_pipeline(bundle, backend="cuda").close()


@pytest.mark.parametrize(("network", "refine"), [("base", False), ("baseline", True)])
def test_dense_networks_alone(bundles, on_host, network, refine):
    frame = picture(3, 30, 50)
    with open_pipeline(bundles["rgb"], threads=1, network=network, refine=refine) as pipe:
        exact = pipe.run(frame, ALL)
    with open_pipeline(bundles["rgb"], backend="cuda", precision="fp32", network=network, refine=refine) as pipe:
        same(pipe.run(frame, ALL), exact)
        assert pipe.capacity == 0
        with pytest.raises(InputError, match="capacity"):
            pipe.set_capacity(5)


def test_frames_of_changing_sizes_and_wishes(bundles, on_host):
    sizes = [FRAME, (48, 80), FRAME, (20, 64)]
    with (
        open_pipeline(bundles["rgb"], threads=1) as cpu,
        open_pipeline(bundles["rgb"], backend="cuda", precision="fp32") as gpu,
    ):
        for turn, size in enumerate(sizes):
            want = ALL[: 1 + turn % 4]
            frame = picture(turn, *size)
            same(gpu.run(frame, want), cpu.run(frame, want))


def test_two_frames_under_way_come_back_in_order(bundles, copied, emulated):
    frames = [picture(seed, *FRAME) for seed in range(3)]
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        alone = [pipe.run(frame, ALL) for frame in frames]
        assert len({result.labels.tobytes() for result in alone}) == len(frames)
        live, launched = emulated.live(), emulated.launches()
        pipe.submit(frames[0], ALL)
        results = []
        for frame in frames[1:]:
            pipe.submit(frame, ALL)
            results.append(pipe.collect())
        results.append(pipe.collect())
        for result, exact in zip(results, alone):
            same(result, exact)
        assert emulated.live() == live
        assert emulated.launches() > launched
        with pytest.raises(InputError, match="submit one first"):
            pipe.collect()


def test_what_could_not_be_planned_is_planned_again(bundles, copied, monkeypatch):
    frame = picture(0, *FRAME)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        wanted = pipe.run(frame, ALL)

        def full(*unused):
            raise MemoryError("device memory")

        with monkeypatch.context() as patch:
            patch.setattr(gpu_pipeline, "Slot", full)
            for _ in range(2):
                with pytest.raises(MemoryError):
                    pipe.run(frame)
        same(pipe.run(frame, ALL), wanted)


def test_no_more_frames_than_slots(bundles, copied):
    frame = picture(0, *FRAME)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        pipe.submit(frame)
        pipe.submit(frame)
        with pytest.raises(InputError, match="collect one first"):
            pipe.submit(frame)
        with pytest.raises(InputError, match="no frame under way"):
            pipe.run(frame)
        pipe.collect()
        pipe.collect()


def test_another_size_while_a_frame_is_under_way(bundles, copied):
    one, two = picture(1, *FRAME), picture(2, 48, 80)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        alone = [pipe.run(frame) for frame in (one, two)]
        pipe.submit(one)
        pipe.submit(two)
        for exact in alone:
            same(pipe.collect(), exact)


def test_a_frame_is_one_graph_and_every_stage_has_a_time(bundles, copied):
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        result = pipe.run(picture(0, *FRAME))
        pipe.submit(picture(0, *FRAME))
        under_way = pipe.collect()
        facts = pipe.describe()
    assert facts["graphs"]["number"] == 1
    assert facts["graphs"]["nodes"][0] > 40
    names = list(result.times)
    assert [name for name in names if name in DEVICE_STAGES] == DEVICE_STAGES
    assert {"staging", "enqueue", "gpu_compute", "host_latency", "post", "total"} <= set(names)
    assert all(ms >= 0 for ms in result.times.values())
    parts = sum(result.times[name] for name in DEVICE_STAGES)
    assert result.times["host_latency"] == pytest.approx(parts)
    assert under_way.times["total"] == pytest.approx(sum(under_way.times[name] for name in OWN))
    assert result.times["total"] > result.times["staging"] + result.times["enqueue"]
    assert result.times["gpu_compute"] == pytest.approx(parts - result.times["h2d"] - result.times["d2h"])


def test_a_base_that_cannot_be_captured_lies_between_two_graphs(bundles, on_host):
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        pipe.run(picture(0, *FRAME))
        assert pipe.describe()["graphs"]["number"] == 2


def test_a_lower_capacity(bundles, copied):
    frame = picture(0, *FRAME)
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        whole = pipe.run(frame, ALL)
        pipe.set_capacity(whole.count // 3)
        cut = pipe.run(frame, ALL)
        assert (cut.count, cut.found) == (whole.count // 3, whole.found)
        assert cut.active.sum() == cut.count
        pipe.set_capacity(pipe.bundle.refiner.capacity)
        same(pipe.run(frame, ALL), whole)


def test_results_belong_to_the_caller(bundles, copied):
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        first = pipe.run(picture(0, *FRAME))
        kept = first.labels.copy()
        for seed in range(1, 3):
            pipe.run(picture(seed, *FRAME))
        assert (first.labels == kept).all()


def test_closing_gives_the_device_back(bundles, copied, emulated):
    gc.collect()
    before = emulated.live()
    pipe = open_pipeline(bundles["rgb"], backend="cuda")
    pipe.run(picture(0, *FRAME))
    pipe.submit(picture(1, *FRAME))
    assert emulated.live() > before
    pipe.close()
    pipe.close()
    gc.collect()
    assert emulated.live() == before


def test_bad_frames_are_refused(bundles, copied):
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
            pipe.run(np.zeros((4, 4), np.uint8))
        with pytest.raises(InputError, match="want 'depth'"):
            pipe.run(picture(0, *FRAME), ("depth",))
        pipe.run(picture(0, *FRAME))


class EngineOf(CopyBase):
    """What ``engines/tensorrt/run.py`` gives, around a copy on the device; fp16 in and out, as a built base has it."""

    what = "base"

    def __init__(self, context, logits):
        super().__init__(context, logits.astype(np.float16))
        self.inputs = {"image": (np.dtype(np.float16), (1, 3, *gpu_toy.INPUT))}
        self.outputs = {"logits": (np.dtype(np.float16), logits.shape)}

    def bind(self, addresses):
        self.bound = addresses

    def enqueue(self, stream):
        super().enqueue(stream, self.bound["image"], self.bound["logits"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_tensorrt_engine_as_base(bundles, emulated, monkeypatch, precision):
    logits = np.random.default_rng(5).normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)
    asked = []

    def load(bundle, role, context, **options):
        asked.append((role, options))
        return EngineOf(context, logits)

    monkeypatch.setattr(tensorrt_run, "load", load)
    with open_pipeline(bundles["rgb"], backend="tensorrt", precision=precision) as pipe:
        result = pipe.run(picture(0, 48, 80), ALL)
        facts = pipe.describe()
    assert asked == [("base", {"precision": precision})]
    assert facts["graphs"]["number"] == 1
    assert facts["refiner"]["precision"] == "fp16"
    monkeypatch.setattr(gpu_open, "open_base", lambda *given: CopyBase(
        given[3], logits.astype(np.float16).astype(np.float32)))  # fmt: skip
    with open_pipeline(bundles["rgb"], backend="cuda") as pipe:
        same(result, pipe.run(picture(0, 48, 80), ALL), slack=0.002)


# ---- what is missing -------------------------------------------------------------------------------------------------


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


# ---- the commands ----------------------------------------------------------------------------------------------------


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
