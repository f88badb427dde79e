"""Where sparse stops paying: one 3x3 layer on 2 to 100 % of the pixels against the dense convolution of ONNX Runtime.

The direct and the Winograd kernel run on bands of growing width; the dense layer computes all pixels. One thread,
process CPU time, in turns, medians. Maps and tile plans, made once a frame for all layers of a level, are not timed.

    python benchmarks/density_sweep.py [--levels 0,1,2,3] [--json benchmarks/out/density_sweep.json]
"""

from __future__ import annotations

import argparse
import json
from ctypes import byref
from pathlib import Path
from typing import Any, Callable, Dict

import native_peers
import numpy as np
from native_ops import CHANNELS, HEIGHT, WIDTH, contour_mask
from turns import medians

from crispseg.environment import environment
from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import Native

DENSITIES = (2, 5, 10, 20, 40, 100)
LARGEST = 512 * 1024  # pixels of the dense layer: level 0 is measured on a quarter of the frame


def sparse_jobs(native: Native, c: int, percent: int, height: int, width: int) -> Dict[str, Callable[[], Any]]:
    """Direct and Winograd layers on bands that hold so many percent of the pixels."""
    mask = np.ones((height, width), bool) if percent == 100 else contour_mask(percent / 100, height, width)
    coords = np.argwhere(mask).astype(np.int32, order="C")
    table = ops.submanifold_map(native, coords, height, width)
    order = ops.plan_map(native, table)
    tiles = [ops.winograd_plan(native, coords, height, width, side) for side in (2, 4)]
    rng = np.random.default_rng(0)
    x = ops.feature_matrix(len(coords), c, c + (16 if c >= 256 else 0))
    x[:] = rng.standard_normal(x.shape, dtype=np.float32)
    weight = rng.standard_normal((9, c, c), dtype=np.float32)
    bias, y = np.zeros(c, np.float32), np.zeros((len(x), c), np.float32)
    options: Any = {"n_out": len(x), "bias": bias, "relu": True, "y": y}
    packed = [ops.pack_weight(native, weight), *(ops.pack_winograd(native, weight, side) for side in (2, 4))]
    direct = ops.conv_arguments(x, packed[0], table, order=order, **options)
    two, four = (ops.conv_arguments(x, transformed, **options) for transformed in packed[1:])
    keep = (x, bias, y, table, order, packed)

    def run_direct() -> Any:
        native.call("cs_sparse_conv", byref(direct))
        return keep

    return {
        "direct": run_direct,
        "winograd2": lambda: ops.winograd_conv(native, two, tiles[0]),
        "winograd4": lambda: ops.winograd_conv(native, four, tiles[1]),
    }


def sweep(native: Native, level: int, passes: int) -> Dict[str, Any]:
    """Times of one level at every density."""
    c, height, width = CHANNELS[level], HEIGHT >> level, WIDTH >> level
    if height * width > LARGEST:
        height, width = height // 2, width // 2
    dense = native_peers.dense(c, c, height, width)
    rows = []
    for percent in DENSITIES:
        jobs = sparse_jobs(native, c, percent, height, width)
        if not isinstance(dense, str):
            jobs["dense"] = dense
        row = {"density_percent": percent, **{k + "_ms": round(v, 3) for k, v in medians(jobs, passes).items()}}
        if "dense_ms" in row:
            row["gain"] = round(row["dense_ms"] / min(row["direct_ms"], row["winograd2_ms"], row["winograd4_ms"]), 2)
        rows.append(row)
    missing = dense if isinstance(dense, str) else ""
    return {"level": level, "channels": c, "size": f"{height}x{width}", "dense_missing": missing, "rows": rows}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", default="0,1,2,3")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/out/density_sweep.json"))
    options = parser.parse_args()
    native = Native(1)
    results = []
    for level in map(int, options.levels.split(",")):
        results.append(sweep(native, level, options.passes))
        head = results[-1]
        print(f"level {level}, {head['channels']} channels, {head['size']}; gain = dense / the fastest sparse kernel")
        print("".join(f"{name:>16}" for name in head["rows"][0]))
        for row in head["rows"]:
            print("".join(f"{value:>16}" for value in row.values()), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"levels": results, "environment": environment(1)}, indent=1))


if __name__ == "__main__":
    main()
