"""Latency of a pipeline: per-stage percentiles, density, throughput, memory; beside it the dense full-size base.

Method: frames are decoded or rendered before anything is timed. After a warm-up by time, frames are run one after
the other with nothing overlapped until both the wanted seconds and the wanted number of runs are reached. With the
baseline, pipeline and baseline take turns frame by frame (A B A B), so that a change of clock or load meets both.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from crispseg import bundle_calibration
from crispseg.engines.spec import usual_precision
from crispseg.environment import environment, peak_memory_mib, usable_cpus
from crispseg.errors import BundleError, EnvironmentMismatch, InputError, hide_passwords
from crispseg.files import hash_frames
from crispseg.report import new_report, summarise
from crispseg.runtime import clocks
from crispseg.runtime.budget import calibrate, require_adjustable, summary
from crispseg.runtime.left_out import LeftOut
from crispseg.runtime.not_finite import NotFinite

UNSTABLE_PERCENT = 10.0
UNSTABLE_GPU_PERCENT = 1.0  # as trtexec
MOST_FRAMES = 8
MOST_RENDERED = 4  # a street scene of 1024x2048 takes about a second to draw


@dataclass
class Runs:
    """What one pipeline did: a list per stage (ms), and the frame that each run used."""

    stages: Dict[str, List[float]] = field(default_factory=dict)
    frames: List[int] = field(default_factory=list)
    densities: List[float] = field(default_factory=list)
    counts: List[int] = field(default_factory=list)
    left: LeftOut = field(default_factory=LeftOut)
    finite: NotFinite = field(default_factory=NotFinite)
    seconds: float = 0.0
    layers: Optional[List[List[Any]]] = None  # of every run, when asked for

    def add(self, pipeline: Any, frame: np.ndarray, index: int) -> None:
        """Runs the pipeline once on ``frame`` uint8 [H,W,3], number ``index``, and keeps its times."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = pipeline.run(frame, want=("labels",))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.seconds += wall
        times = {name: ms for name, ms in result.times.items() if name not in ("total", "cpu")}
        for stage, ms in {**times, "total": 1000 * wall, "cpu": 1000 * cpu}.items():
            self.stages.setdefault(stage, []).append(ms)
        self.frames.append(index)
        self.densities.append(100 * float(result.density))
        self.counts.append(int(result.count))
        self.left.add(result.count, result.found)
        self.finite.add(result.not_finite)
        if self.layers is not None:
            self.layers.append(pipeline.layers())

    def summary(self) -> dict:
        """Percentiles of every stage; "total" and "cpu" last."""
        last = ("total", "cpu")
        names = [name for name in self.stages if name not in last] + [name for name in last if name in self.stages]
        return {name: summarise(self.stages[name]) for name in names}

    def variation(self, stage: str = "total") -> float:
        """Standard deviation / mean of a stage's times, percent, each divided by the median of its own frame."""
        totals, frames = np.array(self.stages[stage]), np.array(self.frames)
        for index in np.unique(frames):
            totals[frames == index] /= np.median(totals[frames == index])
        return float(100 * totals.std() / totals.mean())


def measure(
    bundle: Any,
    *,
    input: Optional[object] = None,
    baseline: bool = False,
    backend: str = "native",
    provider: str = "CPUExecutionProvider",
    threads: int = 0,
    seconds: float = 3.0,
    warmup: float = 1.0,
    min_runs: int = 10,
    frames: int = MOST_FRAMES,
    seed: int = 0,
    precision: str = "",
    device: int = 0,
    refiner_engine: bool = False,
    budget_ms: Optional[float] = None,
    layers: bool = False,
    progress: Optional[Callable[[float, float], None]] = None,
) -> dict:
    """Measures a bundle's pipeline on this machine.

    Args:
        bundle: a Bundle or the path of one.
        input: image, folder, glob or video to take frames from; None renders street scenes of the bundle's size.
        baseline: run ``baseline.onnx`` (the same base dense at full resolution) in turns and report the speed-up.
        backend: "native", "onnxruntime", "cuda" or "tensorrt", see :func:`open_pipeline`.
        provider: ONNX Runtime provider of the base and the baseline; not with a backend of a GPU.
        threads: 0 = all usable CPUs.
        seconds: measured time, s, for each of the two.
        warmup: warm-up time, s; at least two runs.
        min_runs: least number of measured runs.
        frames: most frames to keep in memory (of rendered ones at most 4); they are used in turns.
        seed: seed of the rendered scenes.
        precision: "" = the backend's usual one. "int8" measures the float pipeline beside it, in turns.
        device: number of the GPU.
        refiner_engine: backend tensorrt: the refiner as an engine too.
        budget_ms: measure with the capacity that keeps a frame within so many ms, see ``runtime/budget.py``.
        layers: also the time of each convolution of the refiner (backend native).
        progress: called with (seconds done, seconds in all), both estimates.

    Returns:
        A report of kind "latency". Times in ms, memory in MiB, density in percent.

    Raises:
        InputError: an option is out of range, or the input holds no frame.
        BundleError: the bundle cannot be used or has no baseline.
    """
    from crispseg.bundle import bundle_facts, load_bundle
    from crispseg.runtime.pipeline import open_pipeline

    for name, value, least in (
        ("seconds", seconds, 0),
        ("warmup", warmup, 0),
        ("min-runs", min_runs, 1),
        ("frames", frames, 1),
        ("threads", threads, 0),
    ):
        if not value >= least:  # also refuses NaN
            raise InputError(f"--{name} {value}: expected at least {least}")
    require_adjustable(budget_ms, refiner_engine)
    bundle = bundle if hasattr(bundle, "classes") else load_bundle(bundle)
    if baseline and bundle.baseline is None:
        raise BundleError(
            f"{bundle.path}: expected a baseline.onnx for --baseline, found none; "
            "export the bundle again with --baseline"
        )
    images, decode = load_frames(input, bundle.height, bundle.width, frames, seed)
    facts = environment(threads, backend=backend, provider=provider)  # before the load that is measured
    options: Any = {"backend": backend, "provider": provider, "threads": threads, "precision": precision,
                    "device": device}  # fmt: skip
    _reset_peak_memory()
    total_seconds = (warmup + seconds) * (1 + int(baseline) + int(precision == "int8"))
    started = time.perf_counter()

    def tick() -> None:
        if progress:
            progress(min(time.perf_counter() - started, total_seconds), total_seconds)

    with contextlib.ExitStack() as stack:
        opened = time.perf_counter()
        pipeline = open_pipeline(bundle, refiner_engine=refiner_engine, **options)
        stack.callback(_close, pipeline)
        opened = time.perf_counter() - opened
        first, warm_runs = _warm_up(pipeline, images, warmup, tick)
        choice = None if budget_ms is None else calibrate(pipeline, images, budget_ms)
        peak = peak_memory_mib()  # before a baseline is loaded beside it
        candidates = [(pipeline, Runs(layers=_known(pipeline) if layers else None))]
        beside: dict = {}  # what is measured in turns with it -> its runs
        missing: List[str] = []
        if baseline:
            other = open_pipeline(bundle, network="baseline", **options)
            stack.callback(_close, other)
            _warm_up(other, images, warmup, tick)
            beside["baseline"] = Runs()
            candidates.append((other, beside["baseline"]))
        if precision == "int8":
            floating = usual_precision(backend)
            try:
                other = open_pipeline(bundle, refiner_engine=refiner_engine, **{**options, "precision": floating})
            except EnvironmentMismatch as error:  # an engine of it was not built
                missing.append(f"no {floating} pipeline to compare with: {error}")
            else:
                stack.callback(_close, other)
                _warm_up(other, images, warmup, tick)
                beside[floating] = Runs()
                candidates.append((other, beside[floating]))
        device_before = clocks.device_state()  # warm: the clocks are up
        turn = 0
        while turn < max(min_runs, 2) or any(runs.seconds < seconds for _, runs in candidates):
            for candidate, runs in candidates:
                runs.add(candidate, images[turn % len(images)], turn % len(images))
            turn += 1
            tick()
        if not beside:
            peak = peak_memory_mib()
        overlapped = _overlapped(pipeline, images, turn) if hasattr(pipeline, "submit") else {}
        device_after = clocks.device_state()
        after = environment()
        engines = pipeline.describe() if hasattr(pipeline, "describe") else None
    runs = candidates[0][1]
    stages = runs.summary()
    if decode:
        stages = {"decode": summarise(decode), **stages}
    report: dict = {
        "bundle": {**bundle_facts(bundle), "size": f"{bundle.height}x{bundle.width}"},
        "input": {
            "source": hide_passwords(str(input)) if input is not None else f"rendered street scenes, seed {seed}",
            "frames": len(images),
            "size": f"{images[0].shape[0]}x{images[0].shape[1]}",
            "frames_sha256": hash_frames(images),
        },
        "runs": turn,
        "stages": stages,
        "throughput_fps": round(turn / runs.seconds, 3),
        **overlapped,
        "density": round(float(np.mean(runs.densities)), 4),
        "density_range": [round(min(runs.densities), 4), round(max(runs.densities), 4)],
        "count": int(round(float(np.mean(runs.counts)))),
        **runs.left.facts(),
        **runs.finite.facts(),
        "peak_memory_mib": peak,
        "coefficient_of_variation": round(runs.variation(), 2),
        "warmup": {
            "seconds": warmup,
            "runs": warm_runs,
            "open_ms": round(1000 * opened, 2),
            "first_run_ms": round(first, 2),
        },
    }
    if runs.layers is not None:
        from crispseg.engines import native_layers

        report["layers"] = native_layers.table(native_layers.medians(runs.layers))
    if choice is not None:
        totals = runs.stages["total"]
        report["budget"] = summary(choice, runs.left, sum(ms > choice.budget_ms for ms in totals), max(totals))
    for name, other_runs in beside.items():
        if name == "baseline":
            report["baseline_stages"] = other_runs.summary()
            missing += other_runs.finite.warnings(precision or usual_precision(backend), name)
            report["speedup"] = speedup(other_runs.stages["total"], runs.stages["total"])
        else:
            report["float_stages"], report["float_precision"] = other_runs.summary(), name
            report["int8_speedup"] = {
                part: speedup(other_runs.stages[part], runs.stages[part])
                for part in ("base", "total")
                if part in runs.stages and part in other_runs.stages
            }
    if precision == "int8":
        report["calibration"] = bundle_calibration.facts(bundle, precision)
        report["int8_macs_percent"] = bundle_calibration.macs_percent(bundle)
    report["pipeline"] = engines
    if device_before or device_after:
        report["gpu_state"] = {"before": device_before, "after": device_after}
    report["environment"] = {**facts, **{f"{name}_after": after[name] for name in ("load_average", "cpu_mhz")}}
    on_gpu = backend not in ("native", "onnxruntime") or provider != "CPUExecutionProvider"
    report["warnings"] = _warnings(bundle, runs, facts, threads) + missing
    report["warnings"] += runs.left.warnings() if choice is None else []
    report["warnings"] += runs.finite.warnings(precision or usual_precision(backend))
    report["warnings"] += bundle_calibration.warnings(bundle, precision)
    report["warnings"] += clocks.warnings(device_before, device_after) if on_gpu else []
    report["warnings"] += _gpu_warnings(runs)
    return new_report("latency", **report)


def speedup(baseline_ms: List[float], pipeline_ms: List[float]) -> dict:
    """Ratio of the medians, and the 10th and 90th percentile of the ratios of neighbouring runs."""
    pairs = np.asarray(baseline_ms) / np.asarray(pipeline_ms)
    low, high = np.percentile(pairs, (10, 90))
    ratio = np.median(baseline_ms) / np.median(pipeline_ms)
    return {"ratio": round(float(ratio), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def load_frames(source: Optional[object], height: int, width: int, count: int, seed: int = 0) -> tuple:
    """Up to ``count`` frames uint8 [H,W,3] of one size, and the time each took to decode (ms; empty if rendered).

    Raises:
        InputError: the source cannot be read or holds no frame.
    """
    if source is None:
        from crispseg.scenes import render

        # Frames far apart in the drive, so that they differ.
        return [render(seed, 25 * index, height, width)[0] for index in range(min(count, MOST_RENDERED))], []
    from crispseg.runtime.frames import open_source

    images: List[np.ndarray] = []
    times: List[float] = []
    opened = open_source(str(source))
    try:
        iterator = iter(opened)
        while len(images) < count:
            start = time.perf_counter()
            frame = next(iterator, None)
            if frame is None:
                break
            times.append(1000 * (time.perf_counter() - start))
            images.append(np.ascontiguousarray(getattr(frame, "image", frame)))
    finally:
        _close(opened)
    if not images:
        raise InputError(f"{source}: expected at least one frame, found none")
    return images, times


def _warm_up(pipeline: Any, images: List[np.ndarray], seconds: float, tick: Callable[[], None]) -> tuple:
    """Runs every frame at least once (buffers reach their final size) and for the given time: (first ms, runs)."""
    runs, first, start = 0, 0.0, time.perf_counter()
    while runs < max(2, len(images)) or time.perf_counter() - start < seconds:
        pipeline.run(images[runs % len(images)], want=("labels",))
        runs += 1
        first = first or 1000 * (time.perf_counter() - start)
        tick()
    return first, runs


def _overlapped(pipeline: Any, images: List[np.ndarray], count: int) -> dict:
    """Throughput of ``count`` frames, each enqueued before the one in front of it has ended."""
    start = time.perf_counter()
    under_way, compute = 0, []
    for index in range(count):
        if under_way == pipeline.depth:
            compute.append(pipeline.collect().times.get("gpu_compute", 0.0))
            under_way -= 1
        pipeline.submit(images[index % len(images)], want=("labels",))
        under_way += 1
    compute += [pipeline.collect().times.get("gpu_compute", 0.0) for _ in range(under_way)]
    seconds = time.perf_counter() - start
    return {
        "throughput_qps": round(count / seconds, 3),
        "total_host_walltime_s": round(seconds, 4),
        "total_gpu_compute_s": round(sum(compute) / 1000, 4),
    }


def _warnings(bundle: Any, runs: Runs, facts: dict, threads: int) -> List[str]:
    texts = []
    for net in ("base", "refiner"):
        if getattr(getattr(bundle, net), "random_weights", False):
            texts.append(f"the {net} has random weights: times are real, density and labels are not")
    variation = runs.variation()
    if variation > UNSTABLE_PERCENT:
        texts.append(
            f"total times vary by {variation:.0f} % (standard deviation / mean, same frame): close "
            "other programs, fix the CPU clock (cpupower frequency-set -g performance) or measure longer"
        )
    load, cpus = facts.get("load_average"), usable_cpus()
    if load is not None and load > 0.5 * cpus:
        texts.append(f"load average {load:.1f} on {cpus} usable CPUs at the start: other programs were running")
    if threads > cpus:
        texts.append(f"{threads} threads on {cpus} usable CPUs: they take turns; use --threads {cpus}")
    return texts


def _gpu_warnings(runs: Runs) -> List[str]:
    """What trtexec warns of: a throughput that something else than the GPU sets, and times of the GPU that vary."""
    texts: List[str] = []
    if "gpu_compute" not in runs.stages:
        return texts
    compute = float(np.median(runs.stages["gpu_compute"]))
    for stage, what, remedy in (
        ("enqueue", "putting work on the GPU's queue", "a faster or less busy host core keeps the GPU at work"),
        ("h2d", "copying frames to the GPU", "smaller frames or a faster link"),
        ("d2h", "copying results from the GPU", "labels alone are one byte a pixel: leave confidence out"),
    ):
        median = float(np.median(runs.stages.get(stage, [0.0])))
        if median > compute:
            texts.append(
                f"throughput may be bound by {stage} ({what}, {median:.2f} ms) rather than by gpu_compute "
                f"({compute:.2f} ms): {remedy}"
            )
    variation = runs.variation("gpu_compute")
    if variation > UNSTABLE_GPU_PERCENT:
        texts.append(
            f"gpu_compute varies by {variation:.1f} % (standard deviation / mean, same frame): lock the clocks "
            "(nvidia-smi --lock-gpu-clocks, sudo jetson_clocks on a Jetson) before figures are compared"
        )
    return texts


def _known(pipeline: Any) -> List[List[Any]]:
    """An empty list for the layers of every run. Raises InputError when the pipeline does not tell them."""
    if not hasattr(pipeline, "layers"):
        raise InputError("--layers: expected --backend native; see `crispseg layers` for TensorRT engines")
    pipeline.layers()
    return []


def _reset_peak_memory() -> None:
    """Starts the kernel's high-water mark anew, so that rendering the input does not count; where it can be done."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _close(thing: Any) -> None:
    close = getattr(thing, "close", None)
    if close:
        close()
