"""Time of the native convolutions, kernel maps and plans on the levels of a 1024 x 2048 frame.

    python benchmarks/native_ops.py [--density 0.12] [--isa avx512] [--threads 1] [--passes 5] [--json out.json]

Every layer is timed against the multiply-add peak of the same core and, when torch is there, against torch.mm on rows
that are already gathered. Jobs are interleaved (A B C A B C). With one thread the clock is the CPU time of the process,
so that other load on the machine counts little; with more it is wall time. GFLOP counts all taps of a submanifold map
(missing neighbours included; also for Winograd, which multiplies less) and only the existing taps of down and up maps.
"""

from __future__ import annotations

import argparse
import json
import time
from ctypes import byref
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import Native

HEIGHT, WIDTH = 1024, 2048
CHANNELS = (32, 64, 128, 256, 512, 1024)


def contour_mask(density: float, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """bool [height, width]: bands along the contours of a smooth random field, ``density`` of all pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    field = np.zeros((height, width), np.float32)
    for _ in range(24):
        angle, length, phase = rng.uniform(0, np.pi), rng.uniform(90, 420), rng.uniform(0, 2 * np.pi)
        field += np.float32(length) * np.cos((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / length) + phase)
    slope = np.hypot(*np.gradient(field)) + 1e-3
    distance = np.abs(field) / slope  # to the contour, to first order: bands of even width
    return distance < np.quantile(distance, density)


class Layer:
    """One convolution with its buffers. kind: submanifold, down, up."""

    def __init__(
        self,
        native: Native,
        name: str,
        table: np.ndarray,
        n_in: int,
        cin: int,
        cout: int,
        planned: bool,
        pad: int,
        tiles: Optional[ops.Tiles] = None,
    ):
        rng = np.random.default_rng(1)
        self.native, self.name, self.shape = native, name, (len(table), cin, cout)
        self.table = table
        self.x = ops.feature_matrix(n_in, cin, cin + (pad if cin >= 256 else 0))
        self.x[:] = rng.standard_normal(self.x.shape, dtype=np.float32)
        self.weight_values = rng.standard_normal((9, cin, cout), dtype=np.float32)
        self.tiles = tiles
        if tiles:
            self.weight = ops.pack_winograd(native, self.weight_values, tiles.side)
        else:
            self.weight = ops.pack_weight(native, self.weight_values)
        self.bias = np.zeros(cout, np.float32)
        self.y = np.zeros((len(table), cout), np.float32)
        self.order = ops.plan_map(native, table) if planned else None
        taps = int((table >= 0).sum()) if name.split()[1] in ("down", "up") else table.size
        self.flop = 2.0 * taps * cin * cout
        self.arguments = ops.conv_arguments(
            self.x, self.weight, table, n_out=len(table), order=self.order, bias=self.bias, relu=True, y=self.y
        )

    def run(self) -> float:
        """Runs once, returns the floating point operations."""
        if self.tiles:
            ops.winograd_conv(self.native, self.arguments, self.tiles)
        else:
            self.native.call("cs_sparse_conv", byref(self.arguments))
        return self.flop


def layers(native: Native, coords: np.ndarray, wanted: str, pad: int) -> Tuple[List[Layer], List[Dict[str, float]]]:
    """The layers of every level, and the times of the maps (ms)."""
    height, width = HEIGHT, WIDTH
    out: List[Layer] = []
    maps: List[Dict[str, float]] = []

    def add(name: str, *arguments: object, tiles: Optional[ops.Tiles] = None) -> None:
        if wanted in name:
            out.append(Layer(native, name, *arguments, pad, tiles))  # type: ignore[arg-type]

    for level, c in enumerate(CHANNELS):
        times = {"level": level, "rows": len(coords)}
        level_of = (native, coords, height, width)
        times["submanifold_ms"], table = best_ms(ops.submanifold_map, *level_of)
        times["down_ms"], (sites, down, up) = best_ms(ops.down_map, *level_of)
        times["plan_ms"], _ = best_ms(ops.plan_map, native, table)
        times["tiles_ms"], tiles = best_ms(ops.winograd_plan, *level_of)
        _, large = best_ms(ops.winograd_plan, *level_of, 4)
        maps.append(times)
        if level == 0:
            add("L0 stem", table, len(coords), 3, c, False)
        add(f"L{level} raster", table, len(coords), c, c, False)
        add(f"L{level} planned", table, len(coords), c, c, True)
        add(f"L{level} winograd2", table, len(coords), c, c, False, tiles=tiles)
        add(f"L{level} winograd4", table, len(coords), c, c, False, tiles=large)
        add(f"L{level} concat", table, len(coords), 2 * c, c, False)
        add(f"L{level} concat winograd4", table, len(coords), 2 * c, c, False, tiles=large)
        if level + 1 < len(CHANNELS):
            add(f"L{level} down", down, len(coords), c, 2 * c, True)
            add(f"L{level} up", up, len(sites), 2 * c, c, True)
        coords, height, width = sites, (height - 1) // 2, (width - 1) // 2
    return out, maps


def best_ms(job: Callable[..., Any], *arguments: object, passes: int = 4) -> Tuple[float, Any]:
    """Best CPU time of a few passes, and the result."""
    best, result = float("inf"), None
    for _ in range(passes):
        start = time.process_time()
        result = job(*arguments)
        best = min(best, time.process_time() - start)
    return best * 1e3, result


def torch_job(layer: Layer, threads: int) -> Optional[Callable[[], float]]:
    """torch.mm on the gathered rows of a layer (at most 16384 of them), or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    table = layer.table[:16384]
    rows = np.concatenate([np.zeros_like(layer.x[:1]), layer.x])[table + 1].reshape(len(table), -1)
    a, b = torch.from_numpy(rows), torch.from_numpy(layer.weight_values.reshape(-1, layer.shape[2]))
    out = torch.empty((len(table), layer.shape[2]))

    def run() -> float:
        torch.mm(a, b, out=out)
        return 2.0 * len(table) * b.shape[0] * b.shape[1]

    return run


def rates(jobs: Dict[str, Callable[[], float]], passes: int, clock: Callable[[], float]) -> Dict[str, List[float]]:
    """GFLOP/s of every job in every pass; short jobs are repeated to 20 ms."""
    repeats = {}
    for name, job in jobs.items():
        start = clock()
        job()
        repeats[name] = max(1, int(0.02 / max(clock() - start, 1e-5)))
    out: Dict[str, List[float]] = {name: [] for name in jobs}
    for _ in range(passes):
        for name, job in jobs.items():
            start = clock()
            flop = sum(job() for _ in range(repeats[name]))
            out[name].append(flop / max(clock() - start, 1e-9) * 1e-9)
    return out


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, default=0.12)
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--only", default="", help="only layers whose name holds this text")
    parser.add_argument("--pad", type=int, default=16, help="floats between the rows of inputs of 256 channels or more")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()

    native = Native(options.threads, options.isa)
    coords = np.argwhere(contour_mask(options.density)).astype(np.int32, order="C")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    measured, maps = layers(native, coords, options.only, options.pad)
    rows = []
    print(f"{native.isa}, {native.threads} threads, {len(coords)} active pixels; GFLOP/s: best (median)")
    print("layer                 rows   cin  cout   GFLOP       ms           ours    peak  share mm")
    for layer in measured:
        jobs: Dict[str, Callable[[], float]] = {
            "peak": lambda: native.threads * native.library.cs_fma_loop(native.handle, 2_000_000),
            "ours": layer.run,
        }
        other = None if options.no_torch else torch_job(layer, options.threads)
        if other:
            jobs["mm"] = other
        got = rates(jobs, options.passes, clock)
        best, median, peak = max(got["ours"]), float(np.median(got["ours"])), max(got["peak"])
        mm = max(got["mm"]) if "mm" in got else None
        n, cin, cout = layer.shape
        rows.append({"layer": layer.name, "rows": n, "cin": cin, "cout": cout, "gflop": layer.flop * 1e-9,
                     "best": best, "median": median, "peak": peak, "torch_mm": mm})  # fmt: skip
        print(
            f"{layer.name:18} {n:7} {cin:5} {cout:5} {layer.flop * 1e-9:7.2f} {layer.flop * 1e-6 / best:8.2f} "
            f"{best:6.1f} ({median:5.1f}) {peak:7.1f} {best / peak:6.1%} {'' if mm is None else f'{mm:.1f}'}"
        )
    print("maps, best CPU ms:")
    for m in maps:
        print("  " + "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in m.items()))
    if options.json:
        head = {"isa": native.isa, "threads": native.threads, "density": options.density}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**head, "layers": rows, "maps": maps}, file, indent=1)


if __name__ == "__main__":
    main()
