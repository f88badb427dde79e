"""The dense fp16 matrix rate of this GPU: what the convolutions are measured against."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List

import numpy as np

from gpu.bench import F16, Bench


def dense_rate(bench: Bench) -> Dict[str, Any]:
    """{"tflops", "by", "size"}: torch's matmul (cuBLAS), else CuPy's, else our own kernel with an identity map."""
    size = bench.settings.matmul
    refused: List[str] = []
    for by, measure in (("torch", _torch), ("cupy", _cupy)):
        if bench.settings.dry_run:
            refused.append("%s: not in a dry run" % by)
            continue
        try:
            ms = measure(size)
        except Exception as error:  # whatever a broken installation raises: the next one is tried
            refused.append("%s: %s: %s" % (by, type(error).__name__, str(error)[:200]))
            continue
        return {"tflops": round(2e-9 * size**3 / ms, 2), "by": by + " fp16 matmul", "size": size, "ms": round(ms, 4),
                "refused": refused}  # fmt: skip
    rows, columns = (size * size // 1024, 1024) if size >= 1024 else (size, size)
    ms = _own(bench, rows, columns)
    rate = round(2e-9 * rows * columns * columns / ms, 2) if ms else 0.0
    return {"tflops": rate, "by": "our own kernel, identity map, [%d,%d] @ [%d,%d]" % (rows, columns, columns, columns),
            "size": size, "ms": round(ms, 4), "refused": refused}  # fmt: skip


def _torch(size: int) -> float:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(a)
    times = []
    for index in range(18):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.mm(a, b, out=out)
        end.record()
        torch.cuda.synchronize()
        if index >= 5:
            times.append(start.elapsed_time(end))
    del a, b, out
    torch.cuda.empty_cache()
    return float(statistics.median(times))


def _cupy(size: int) -> float:
    import cupy

    a, b = (cupy.random.standard_normal((size, size), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
    out = cupy.empty_like(a)
    times = []
    for index in range(18):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        cupy.matmul(a, b, out=out)
        end.record()
        end.synchronize()
        if index >= 5:
            times.append(cupy.cuda.get_elapsed_time(start, end))
    return float(statistics.median(times))


def _own(bench: Bench, rows: int, columns: int) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, columns), dtype=np.float32).astype(np.float16)
    weight = rng.standard_normal((1, columns, columns), dtype=np.float32) / np.sqrt(columns)
    call = bench.conv(
        type=F16, x=bench.put(x), ldx=columns, count=bench.put(np.array([rows], np.int32)), capacity=rows, K=1,
        cin=columns, cout=columns, weight=bench.pack(F16, weight), y_type=F16, y=bench.room(2 * rows * columns),
        ldy=columns,
    )  # fmt: skip
    ms = statistics.median(bench.graph_times(call, bench.settings.inner, 10 if not bench.settings.dry_run else 1))
    bench.free()
    return float(ms)
