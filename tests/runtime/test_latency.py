from __future__ import annotations

import hashlib
import json
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

from crispseg.errors import BundleError, InputError
from crispseg.report import render_html, to_json
from crispseg.runtime import clocks, latency
from crispseg.runtime.latency import Runs, measure, speedup


@pytest.fixture
def fake(monkeypatch):
    """Pipelines whose clock goes on: 1.25 ms for the bundle's, 3 ms for its baseline; every call is logged."""
    log, clock = [], SimpleNamespace(now=0.0)
    read = lambda: clock.now  # noqa: E731
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=read, process_time=read))
    net = SimpleNamespace(random_weights=False)
    nets = {"base": net, "refiner": net, "baseline": net}
    bundle = SimpleNamespace(name="fake", path="x", classes=(), height=32, width=48, **nets)

    def open_pipeline(
        bundle, *, backend, provider, threads, precision, device, refine=True, network="base", refiner_engine=False
    ):
        def run(frame, want):
            log.append((network, int(frame[0, 0, 0])))
            clock.now += 0.003 if network == "baseline" else 0.00125
            times = {"base": 0.7, "refine:conv": 0.3, "total": 99.0}
            return SimpleNamespace(times=times, density=0.1, count=5, found=6, not_finite=0)

        return SimpleNamespace(run=run, close=lambda: log.append((network, "closed")))

    def render(seed, index, height, width):
        return np.full((height, width, 3), index, np.uint8), np.zeros((height, width), np.uint8)

    for name, members in (
        ("crispseg.bundle", {"bundle_facts": lambda _: {"name": "fake"}, "load_bundle": lambda _: bundle}),
        ("crispseg.runtime.pipeline", {"open_pipeline": open_pipeline}),
        ("crispseg.scenes", {"render": render}),
    ):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return bundle, log


def test_the_state_of_the_gpu_before_and_after(fake, monkeypatch):
    def states():
        yield {"source": "nvml", "gpus": [{"name": "a GPU", "sm_mhz": 1980, "limited_by": []}]}
        yield {"source": "nvml", "gpus": [{"name": "a GPU", "sm_mhz": 1200, "limited_by": ["power cap"]}]}

    state = states()
    monkeypatch.setattr(clocks, "device_state", lambda: next(state))
    report = measure("x", seconds=0.01, warmup=0.0, min_runs=2, frames=1, backend="cuda")
    assert [report["gpu_state"][when]["gpus"][0]["sm_mhz"] for when in ("before", "after")] == [1980, 1200]
    assert any("power cap" in text for text in report["warnings"])
    assert "limited_by" in report["definitions"]["gpu_state"]
    assert "1980" in render_html(report)


def test_report(fake):
    _, log = fake
    report = measure("x", seconds=0.02, warmup=0.0, min_runs=6, frames=3)
    assert list(report["stages"]) == ["base", "refine:conv", "total", "cpu"]
    assert report["stages"]["base"]["p50"] == 0.7
    assert report["stages"]["total"]["p50"] == 1.25  # measured here, not the pipeline's own word
    assert report["runs"] >= 6
    assert report["throughput_fps"] == 800
    assert (report["density"], report["count"], report["overflow_frames"]) == (10, 5, report["runs"])
    assert report["left_out_pixels"] == {"mean": 1, "max": 1}
    assert report["peak_memory_mib"] > 1
    drawn = hashlib.sha256(b"".join(b"32x48\n" + bytes([index]) * (32 * 48 * 3) for index in (0, 25, 50)))
    assert report["input"]["frames_sha256"] == drawn.hexdigest()
    assert report["environment"]["cpus_usable"] >= 1
    assert {"load_average_after", "cpu_mhz_after"} <= set(report["environment"])
    assert {"p50", "density", "conv", "total", "throughput_fps"} <= set(report["definitions"])
    assert any("capacity" in text for text in report["warnings"])
    assert log[-1] == ("base", "closed")
    assert {frame for _, frame in log[:3]} == {0, 25, 50}
    json.loads(to_json(report))


def test_baseline_takes_turns(fake):
    _, log = fake
    report = measure("x", seconds=0.0, warmup=0.0, min_runs=4, frames=2, baseline=True)
    measured = log[4:-2]  # after two warm-up runs of each
    assert measured == [("base", 0), ("baseline", 0), ("base", 25), ("baseline", 25)] * 2
    assert report["speedup"] == {"ratio": 2.4, "low": 2.4, "high": 2.4}
    assert report["stages"]["total"]["p50"] == 1.25
    assert report["baseline_stages"]["total"]["p50"] == 3


def test_speedup_numbers():
    result = speedup([30.0, 30.0, 60.0], [10.0, 20.0, 20.0])
    assert result["ratio"] == 1.5
    assert 1.5 <= result["low"] <= result["high"] <= 3


def test_variation_is_of_the_same_frame():
    runs = Runs(stages={"total": [1.0, 10.0, 1.0, 10.0]}, frames=[0, 1, 0, 1])
    assert runs.variation() == 0
    runs = Runs(stages={"total": [1.0, 3.0]}, frames=[0, 0])
    assert runs.variation() == pytest.approx(50)


def test_frames_overlapped_are_summed_as_trtexec_does(monkeypatch):
    """Two slots of 4 ms each on one GPU, submitted in no time: 10 frames take 40 ms."""
    clock, queue = SimpleNamespace(now=1.0), []

    def collect():
        queue.pop(0)
        clock.now += 0.004
        return SimpleNamespace(times={"gpu_compute": 4.0})

    pipeline = SimpleNamespace(depth=2, submit=lambda image, want: queue.append(image), collect=collect)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = latency._overlapped(pipeline, [np.zeros((2, 2, 3), np.uint8)], 10)
    assert found == {"throughput_qps": 250, "total_host_walltime_s": 0.04, "total_gpu_compute_s": 0.04}
    assert not queue


def gpu_runs(compute, **stages):
    """Two frames in turns, as the pipeline of a GPU gives their times."""
    return Runs(stages={"gpu_compute": compute, **stages}, frames=[i % 2 for i in range(len(compute))])


def test_warns_of_what_trtexec_warns_of():
    steady = [4.0, 9.0, 4.0, 9.0]  # the second frame has more active pixels: that is no variation
    assert latency._gpu_warnings(gpu_runs(steady, enqueue=[0.1] * 4, h2d=[0.5] * 4, d2h=[0.2] * 4)) == []
    for stage in ("enqueue", "h2d", "d2h"):
        (text,) = latency._gpu_warnings(gpu_runs(steady, **{stage: [8.0, 8.0, 8.0, 8.0]}))
        assert text.startswith("throughput may be bound by " + stage)
    (text,) = latency._gpu_warnings(gpu_runs([4.0, 9.0, 4.4, 9.0]))
    assert text.startswith("gpu_compute varies by ")
    assert latency._gpu_warnings(Runs(stages={"total": [1.0, 5.0]}, frames=[0, 0])) == []


@pytest.mark.parametrize("options", [{"seconds": -1}, {"seconds": float("nan")}, {"min_runs": 0}, {"threads": -2}])
def test_options_out_of_range(fake, options):
    with pytest.raises(InputError, match="expected at least"):
        measure("x", **options)


def test_without_baseline_says_so(fake):
    fake[0].baseline = None
    with pytest.raises(BundleError, match=r"baseline\.onnx"):
        measure("x", baseline=True)


def test_random_weights_are_said(fake):
    fake[0].base.random_weights = True
    report = measure("x", seconds=0, warmup=0, min_runs=1, frames=1)
    assert any("random weights" in text for text in report["warnings"])


def test_layers_of_the_refiner(fake, monkeypatch):
    from crispseg.engines.native_layers import Layer

    module = sys.modules["crispseg.runtime.pipeline"]
    with pytest.raises(InputError, match="--layers"):
        measure("x", seconds=0, warmup=0, min_runs=2, frames=1, layers=True)
    opened = module.open_pipeline

    def with_layers(*arguments, **options):
        pipeline = opened(*arguments, **options)
        pipeline.layers = lambda: [Layer("enc0", "submanifold", 0, 7, 3, 8, "direct", 2.0, 0.5)]
        return pipeline

    monkeypatch.setattr(module, "open_pipeline", with_layers)
    report = measure("x", seconds=0, warmup=0, min_runs=2, frames=1, layers=True)
    assert report["layers"][0]["gflop_per_s"] == 250
    assert report["layers"][0]["share_percent"] == 100
