"""The GPU pipeline on the emulated driver: against the CPU pipeline, with frames under way, and its refusals."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gpu_toy
from gpu_toy import FRAME, LOW, CopyBase, picture
from native_net import CLASSES

from crispseg.cli_build import to_precision
from crispseg.engines import cuda_base, native
from crispseg.engines.spec import EngineSpec
from crispseg.engines.tensorrt import run as tensorrt_run
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.runtime import gpu_open, gpu_pipeline
from crispseg.runtime.pipeline import open_pipeline

ALL = ("labels", "confidence", "active", "base")
OWN = ("staging", "enqueue", "host_latency", "post")
DEVICE_STAGES = ["h2d", "preprocess", "base", "select", "maps", "conv", "ensemble", "scatter", "pack",
                 "d2h"]  # fmt: skip


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
