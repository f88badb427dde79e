"""Section "rivals": the same convolutions, maps and fp16 data in PyTorch and spconv, where they can be imported.

PyTorch, two ways on maps that are given (building them is not timed): gather + matmul + scatter tap by tap, with the
pairs of each tap listed beforehand; and one gather of all taps followed by one matmul. Each layer is captured in a CUDA
graph, as ours is. spconv: its implicit GEMM with index pairs cached, no graph.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any, Callable, Dict, List

import numpy as np

from gpu.bench import Bench
from gpu.layers import OnDevice, layer_call, scene_levels
from gpu.settings import Settings
from gpu.skip import Skip
from gpu.structure import Layer, Level, layers, rows_in, table


def run_rivals(settings: Settings) -> Dict[str, Any]:
    """Sum over the network's sparse 3x3 convolutions of each side, and the ratios."""
    try:
        import torch
    except ImportError as error:
        raise Skip("torch: %s" % error) from None
    if not torch.cuda.is_available():
        raise Skip("torch sees no CUDA device")
    bench, levels = Bench(settings), scene_levels(settings)
    unique: Dict[Layer, int] = {}
    for layer in layers(settings.planes, settings.repeats, 3, settings.classes):
        if layer.kind != "identity":
            plain = Layer("", layer.kind, layer.level, layer.cin, layer.cout)  # the product alone on every side
            unique[plain] = unique.get(plain, 0) + 1
    spconv, why = import_spconv()
    rows: List[Dict[str, Any]] = []
    runs, inner = max(5, settings.replays // 10), settings.inner
    for layer, number in unique.items():
        there = OnDevice(bench, levels)
        row: Dict[str, Any] = {
            "kind": layer.kind,
            "level": layer.level,
            "cin": layer.cin,
            "cout": layer.cout,
            "layers": number,
        }
        row["ours_ms"] = statistics.median(bench.graph_times(layer_call(bench, levels, there, layer), inner, runs))
        bench.free()
        data = torch_data(torch, levels, layer)
        row["torch_scatter_ms"] = torch_time(torch, functools.partial(scatter, torch, data), runs, inner)
        row["torch_gather_ms"] = torch_time(torch, functools.partial(gather, torch, data), runs, inner)
        if spconv is not None and layer.kind == "submanifold":
            try:
                row["spconv_ms"] = spconv_time(torch, spconv, levels[layer.level], layer, data["x"], runs, inner)
            except Exception as error:  # a rival's failure is noted, not ours to mend
                why = "%s: %s" % (type(error).__name__, str(error)[:300])
        del data
        torch.cuda.empty_cache()
        rows.append(row)
    sums = {name: total(rows, name) for name in ("ours_ms", "torch_scatter_ms", "torch_gather_ms")}
    ratios = {name: sums[name] / sums["ours_ms"] for name in ("torch_scatter_ms", "torch_gather_ms")}
    with_spconv = [row for row in rows if "spconv_ms" in row]
    if with_spconv:
        ratios["spconv_ms"] = total(with_spconv, "spconv_ms") / total(with_spconv, "ours_ms")
    line = "times of ours: torch gather+matmul+scatter %.2fx, gather+one matmul %.2fx, spconv %s" % (
        ratios["torch_scatter_ms"], ratios["torch_gather_ms"],
        "%.2fx" % ratios["spconv_ms"] if "spconv_ms" in ratios else "not measured (%s)" % why,
    )  # fmt: skip
    return {"line": line, "sums_ms": sums, "ratios": ratios, "layers": rows, "torch": torch.__version__,
            "spconv": spconv is not None, "spconv_note": why}  # fmt: skip


def total(rows: List[Dict[str, Any]], name: str) -> float:
    """Sum over the layers of the network."""
    return sum(row[name] * row["layers"] for row in rows)


def torch_data(torch: Any, levels: List[Level], layer: Layer, device: str = "cuda") -> Dict[str, Any]:
    """Random fp16 rows and weights on the device, the pairs of every tap, and the map with -1 = a row of zeros."""
    entries = table(levels, layer)
    assert entries is not None
    rng = np.random.default_rng(0)
    n = rows_in(levels, layer)

    def put(array: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    pairs = []
    for tap in range(entries.shape[1]):
        out = np.flatnonzero(entries[:, tap] >= 0)
        pairs.append((put(entries[out, tap].astype(np.int64)), put(out.astype(np.int64))))
    weight = rng.standard_normal((entries.shape[1], layer.cin, layer.cout), dtype=np.float32) / np.sqrt(4 * layer.cin)
    x = np.concatenate([rng.standard_normal((n, layer.cin), dtype=np.float32), np.zeros((1, layer.cin), np.float32)])
    return {
        "x": put(x.astype(np.float16)), "weight": put(weight.astype(np.float16)), "pairs": pairs,
        "map": put(np.where(entries < 0, n, entries).astype(np.int64)),
        "y": torch.zeros(len(entries), layer.cout, device=device, dtype=torch.float16),
    }  # fmt: skip


def scatter(torch: Any, data: Dict[str, Any]) -> Any:
    """Tap by tap: gather the rows, multiply, add to the output rows."""
    y = data["y"].zero_()
    for tap, (source, target) in enumerate(data["pairs"]):
        y.index_add_(0, target, torch.index_select(data["x"], 0, source) @ data["weight"][tap])
    return y


def gather(torch: Any, data: Dict[str, Any]) -> Any:
    """All taps gathered side by side, one product."""
    rows = torch.index_select(data["x"], 0, data["map"].reshape(-1)).reshape(len(data["map"]), -1)
    return torch.mm(rows, data["weight"].reshape(rows.shape[1], -1), out=data["y"])


def torch_time(torch: Any, work: Callable[[], Any], runs: int, inner: int, graph: bool = True) -> float:
    """Median ms on the device of one of ``inner`` launches in a row, as ours is timed; in a CUDA graph by default."""

    def several() -> None:
        for _ in range(inner):
            work()

    launch: Callable[[], Any] = several
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            several()
        launch = captured.replay
    times = []
    for index in range(3 + runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(start.elapsed_time(end) / inner)
    return float(statistics.median(times))


def import_spconv() -> Any:
    """(spconv.pytorch or None, why not)."""
    try:
        import spconv.pytorch as spconv

        return spconv, ""
    except Exception as error:  # its compiled parts raise what they like on a device they do not know
        return None, "%s: %s" % (type(error).__name__, str(error)[:200])


def spconv_time(torch: Any, spconv: Any, level: Level, layer: Layer, x: Any, runs: int, inner: int) -> float:
    """Submanifold 3x3 convolution with cached index pairs. (Written from spconv's documentation, not yet run.)"""
    module = spconv.SubMConv2d(layer.cin, layer.cout, 3, bias=False, indice_key="k").cuda().half().eval()
    indices = np.concatenate([np.zeros((len(level.coords), 1), np.int32), level.coords], 1)
    rows = spconv.SparseConvTensor(
        x[:-1].contiguous(), torch.from_numpy(indices).cuda(), [level.height, level.width], 1
    )
    with torch.no_grad():
        first = module(rows)
        rows.indice_dict = first.indice_dict
        return torch_time(torch, lambda: module(rows), runs, inner, graph=False)
