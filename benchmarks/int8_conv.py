"""int8 against float32 convolutions of the native library, level by level of a 1024 x 2048 frame.

    python benchmarks/int8_conv.py [--density 0.12] [--isa avx512] [--passes 5] [--json out.json]

Submanifold layers C -> C with bias and ReLU. int8 reads bytes and writes bytes (``int8``) or float32 (``int8 to
float``); float32 runs directly and by Winograd. All forms of a level are interleaved (A B C D A B C D); one thread, CPU
time of the process. GOP counts all nine taps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from ctypes import byref
from typing import Any, Callable, Dict

import numpy as np
from native_ops import CHANNELS, HEIGHT, WIDTH, contour_mask
from turns import in_turns

from crispseg.plugins import native_int8_ops as int8
from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import Native
from crispseg.plugins.quantise import quantise_weight

STEP = 3.0 / 127


def forms(native: Native, table: np.ndarray, tiles: ops.Tiles, channels: int) -> Dict[str, Callable[[], None]]:
    """The same layer in every form: name -> what runs it once."""
    rng, n = np.random.default_rng(1), len(table)
    pad = 16 if channels >= 256 else 0
    x = ops.feature_matrix(n, channels, channels + pad)
    x[:] = np.maximum(rng.standard_normal(x.shape, dtype=np.float32), 0)
    weight = rng.standard_normal((9, channels, channels), dtype=np.float32) * np.float32((9 * channels) ** -0.5)
    bias, y = np.zeros(channels, np.float32), np.zeros((n, channels), np.float32)
    common: Dict[str, Any] = {"n_out": n, "bias": bias, "relu": True}
    plain, transformed = ops.pack_weight(native, weight), ops.pack_winograd(native, weight)
    direct = ops.conv_arguments(x, plain, table, y=y, **common)
    winograd = ops.conv_arguments(x, transformed, table, y=y, **common)
    rows = int8.quantise_rows(native, np.ascontiguousarray(x), STEP)
    packed = int8.pack_int8(native, *quantise_weight(weight))
    out = int8.Bytes(int8.byte_matrix(n, channels), STEP)
    to_bytes, keep = int8.int8_arguments(rows, packed, table, y=out, **common)
    to_float, kept = int8.int8_arguments(rows, packed, table, y=y, **common)
    held = (x, bias, y, table, plain, transformed, rows, packed, out, keep, kept)  # the calls hold addresses only
    return {
        "direct": lambda _=held: native.call("cs_sparse_conv", byref(direct)),
        "winograd": lambda: ops.winograd_conv(native, winograd, tiles),
        "int8": lambda: int8.sparse_conv_int8(native, to_bytes),
        "int8 to float": lambda: int8.sparse_conv_int8(native, to_float),
    }


def main() -> None:
    """Print a table; with --json also write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--density", type=float, default=0.12)
    parser.add_argument("--isa", default="")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--levels", type=int, default=len(CHANNELS))
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    native = Native(1, options.isa)
    kernels = native.library.cs_int8_kernels(native.handle).decode()
    print(f"{native.isa}, int8 by {kernels}, density {options.density}")
    print("level   C   rows |  direct winograd    int8 to float ms | GOP/s | int8 over direct, over the best float32")
    coords, height, width = np.ascontiguousarray(np.argwhere(contour_mask(options.density)), np.int32), HEIGHT, WIDTH
    results = []
    for level, channels in enumerate(CHANNELS[: options.levels]):
        table = ops.submanifold_map(native, coords, height, width)
        tiles = ops.winograd_plan(native, coords, height, width)
        times = in_turns(forms(native, table, tiles, channels), options.passes)
        best = {name: min(values) for name, values in times.items()}
        median = {name: statistics.median(values) for name, values in times.items()}
        rate = 18e-6 * len(coords) * channels**2 / best["int8"]
        over, over_best = best["direct"] / best["int8"], min(best["direct"], best["winograd"]) / best["int8"]
        print(f"{level:5} {channels:4} {len(coords):6} | " + " ".join(f"{best[name]:8.2f}" for name in best)
              + f" | {rate:5.0f} | {over:.2f} {over_best:.2f}", flush=True)  # fmt: skip
        results.append({"level": level, "channels": channels, "rows": len(coords), "best_ms": best,
                        "median_ms": median, "gop_per_s": rate, "over_direct": over,
                        "over_best_float": over_best})  # fmt: skip
        coords, _, _ = ops.down_map(native, coords, height, width)
        height, width = (height - 1) // 2, (width - 1) // 2
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"isa": native.isa, "kernels": kernels, "density": options.density, "levels": results}, file)


if __name__ == "__main__":
    main()
