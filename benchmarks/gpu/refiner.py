"""Section "refiner": the default refiner from logits to labels, captured in a graph, and the host's part of it."""

from __future__ import annotations

import statistics
import time
from typing import Any, Dict, List

import numpy as np

from crispseg.engines.cuda_clock import StageClock
from crispseg.runtime import clocks
from gpu.bench import Bench, summary
from gpu.checks import Refiner, forms, prepared
from gpu.settings import Settings

WANTED = ("labels", "count", "found")


def run_refiner(settings: Settings) -> Dict[str, Any]:
    """Times of every precision (fp16 first: the one that counts); int8 where section "prepare" made that file."""
    _, scene = prepared(settings)
    files = forms(settings)
    bench = Bench(settings)
    before = clocks.device_state()
    result: Dict[str, Any] = {"definitions": definitions()}
    for precision in ("fp16", "int8", "fp32"):
        if precision not in files:
            continue
        refiner = Refiner(bench, files[precision], precision)
        refiner.feed(scene["image"], scene["logits"])
        runs = settings.replays if precision != "fp32" else max(2, settings.replays // 5)
        result[precision] = measure(bench, refiner, runs)
        bench.free()
    result["gpu_state"] = {"before": before, "after": clocks.device_state()}
    fp16 = result["fp16"]
    result["line"] = "fp16 %.3f ms (conv %.0f %%, select + maps %.3f ms), fp32 %.3f ms, host launch %.4f ms" % (
        fp16["gpu_compute_ms"]["median"], 100 * fp16["conv_share"], fp16["select_and_maps_ms"],
        result["fp32"]["gpu_compute_ms"]["median"], fp16["enqueue_ms"]["median"],
    )  # fmt: skip
    if "int8" in result:
        int8 = result["int8"]["gpu_compute_ms"]["median"]
        result["int8_speedup"] = round(fp16["gpu_compute_ms"]["median"] / int8, 4) if int8 else None
        result["line"] += ", int8 %.3f ms" % int8
    return result


def measure(bench: Bench, refiner: Refiner, runs: int) -> Dict[str, Any]:
    """One precision: graph replay by events, stages, host time, copies, throughput."""
    engine, stream = refiner.engine, bench.stream

    def work() -> None:
        engine.enqueue(stream, refiner.image, refiner.logits, WANTED)

    graph = bench.graph(work)
    compute = bench.times(lambda: graph.launch(stream), runs)
    enqueue = bench.host_times(lambda: graph.launch(stream), runs)
    eager = bench.host_times(work, max(2, runs // 4))
    clock = StageClock(bench.context)

    def marked() -> None:
        clock.start(stream)
        engine.enqueue(stream, refiner.image, refiner.logits, WANTED, clock)

    staged = bench.graph(marked)
    stages: Dict[str, List[float]] = {}
    for index in range(bench.settings.warmup + runs):
        staged.launch(stream)
        stream.synchronize()
        if index >= bench.settings.warmup:
            for name, ms in clock.times().items():
                stages.setdefault(name, []).append(ms)
    medians = {name: round(statistics.median(values), 5) for name, values in stages.items()}
    settings = bench.settings
    image = bench.context.pinned((settings.height, settings.width, 3), np.uint8)
    labels = bench.context.pinned(refiner.size, np.uint8)
    h2d = bench.times(lambda: stream.upload(refiner.image, image), runs)
    d2h = bench.times(lambda: stream.download(labels, engine.address("labels")), runs)
    count = int(bench.get(engine.address("count"), (1,), np.int32)[0])
    start = time.perf_counter()
    for _ in range(runs):
        graph.launch(stream)
    stream.synchronize()
    wall = time.perf_counter() - start
    nodes = graph.nodes
    graph.close()
    staged.close()
    total = sum(medians.values())
    return {
        "gpu_compute_ms": summary(compute), "enqueue_ms": summary(enqueue), "enqueue_without_graph_ms": summary(eager),
        "stages_ms": medians, "conv_share": medians.get("conv", 0.0) / total if total else 0.0,
        "select_and_maps_ms": round(medians.get("select", 0.0) + medians.get("maps", 0.0), 5),
        "h2d_ms": summary(h2d), "d2h_ms": summary(d2h), "graph_nodes": nodes, "count": count,
        "density": round(100 * count / (settings.height * settings.width), 3),
        "throughput_qps": round(runs / wall, 2), "capacity": engine.capacity,
        "device_memory_mib": (bench.context.memory()[1] - bench.context.memory()[0]) >> 20,
    }  # fmt: skip


def definitions() -> Dict[str, str]:
    """The terms, as reports define them."""
    from crispseg.report import DEFINITIONS

    return {name: DEFINITIONS[name] for name in ("enqueue", "h2d", "gpu_compute", "d2h", "throughput_qps", "gpu_state")}
