"""Section "pipeline": a base of HRNet-W48's size at half resolution and the refiner, against that base at full size.

The base runs in PyTorch in fp16, channels last, captured in a CUDA graph; random weights, so times only. The refiner is
ours, on the scene of the other sections. The sides take turns.
"""

from __future__ import annotations

import statistics
from typing import Any, Dict, List

from gpu.bench import Bench, summary
from gpu.checks import Refiner, prepared
from gpu.settings import Settings
from gpu.skip import Skip


def run_pipeline(settings: Settings) -> Dict[str, Any]:
    """Median ms of base full, base half, refiner, and the speed-up."""
    try:
        import torch
    except ImportError as error:
        raise Skip("torch: %s" % error) from None
    if not torch.cuda.is_available():
        raise Skip("torch sees no CUDA device")
    path, scene = prepared(settings)
    import hrnet_sized

    hrnet_sized.BLOCKS = settings.base_blocks
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    base = hrnet_sized.FourBranches().eval().half().cuda().to(memory_format=torch.channels_last)
    graphs = {}
    for name, divide in (("full", 1), ("half", 2)):
        shape = (1, 3, settings.height // divide, settings.width // divide)
        frame = torch.randn(shape, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
        graphs[name] = capture(torch, base, frame)
    bench = Bench(settings)
    refiner = Refiner(bench, path, "fp16")
    refiner.feed(scene["image"], scene["logits"])
    ours = bench.graph(lambda: refiner.engine.enqueue(bench.stream, refiner.image, refiner.logits, ("labels",)))
    times: Dict[str, List[float]] = {"full": [], "half": [], "refiner": []}
    for index in range(settings.warmup + settings.replays):
        found = {name: replay(torch, graph) for name, (graph, _, _) in graphs.items()}
        start, end = bench.context.event(), bench.context.event()
        bench.stream.record(start)
        ours.launch(bench.stream)
        bench.stream.record(end)
        end.synchronize()
        found["refiner"] = end.since(start)
        if index >= settings.warmup:
            for name, ms in found.items():
                times[name].append(ms)
    medians = {name: statistics.median(values) for name, values in times.items()}
    speedup = medians["full"] / (medians["half"] + medians["refiner"])
    return {
        "line": "base full %.3f ms; half %.3f + refiner %.3f ms: %.2fx"
        % (medians["full"], medians["half"], medians["refiner"], speedup),
        "ms": {name: summary(values) for name, values in times.items()}, "speedup": round(speedup, 3),
        "base": "torch %s, fp16, channels last, CUDA graph" % torch.__version__, "blocks": settings.base_blocks,
    }  # fmt: skip


def capture(torch: Any, base: Any, frame: Any) -> Any:
    """(graph, input, output) of the base on one frame."""
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                base.forward_logits(frame)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = base.forward_logits(frame)
    return graph, frame, logits


def replay(torch: Any, graph: Any) -> float:
    """Ms on the device of one replay."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))
