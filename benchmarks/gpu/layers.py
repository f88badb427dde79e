"""Section "layers": every convolution of the default refiner by itself, against the dense fp16 matrix rate of this GPU.

One graph holds several launches of one layer on the same buffers; inputs that fit the L2 stay there, as they mostly do
between two layers of the network. Multiply-adds are those of the taps that exist.
"""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Tuple

import numpy as np

from crispseg.plugins.loader import Native
from gpu.bench import F16, F32, Bench, padded, summary
from gpu.settings import Settings
from gpu.structure import Layer, Level, layers, macs, pyramid, rows_in


def scene(settings: Settings) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image uint8 [H,W,3], logits float32 [1,C,h,w], active pixels int32 [N,2]."""
    from bands import band_scene, entropy

    image, logits, _ = band_scene(
        settings.height, settings.width, classes=settings.classes, stride=settings.stride, density=settings.density,
        threshold=settings.threshold,
    )  # fmt: skip
    active = entropy(logits[0]) > settings.threshold
    rows = np.arange(settings.height) * active.shape[0] // settings.height
    columns = np.arange(settings.width) * active.shape[1] // settings.width
    return image, logits, np.ascontiguousarray(np.argwhere(active[rows][:, columns]), np.int32)


def scene_levels(settings: Settings) -> List[Level]:
    """Sites and maps of every level of the scene."""
    coords = scene(settings)[2]
    with Native(1) as native:
        return pyramid(native, coords, settings.height, settings.width, len(settings.planes), "active")


class OnDevice:
    """A level's maps, counts and visiting orders on the device."""

    def __init__(self, bench: Bench, levels: List[Level]) -> None:
        self.maps: Dict[Tuple[str, int], int] = {}
        self.counts = [bench.put(np.array([len(level.coords)], np.int32)) for level in levels]
        self.orders: Dict[int, int] = {}
        for index, level in enumerate(levels):
            self.maps["submanifold", index] = bench.put(level.same)
            if level.down is None or level.up is None:
                continue
            self.maps["down", index + 1] = bench.put(level.down)
            self.maps["up", index] = bench.put(level.up)
            rows = len(level.coords)
            order = bench.room(4 * max(1, rows))
            size = bench.kernels.size("csg_map_workspace", level.height, level.width)
            bench.call("csg_parity_order", bench.put(level.coords), self.counts[index], rows, level.height, level.width,
                       order, bench.room(size), size)  # fmt: skip
            bench.stream.synchronize()
            self.orders[index] = order


def layer_call(
    bench: Bench, levels: List[Level], there: OnDevice, layer: Layer, kind: int = F16, portable: int = 0
) -> Any:
    """A call of one layer on random data, with the epilogue that it has in the network.

    ``portable``: 1 = the tensor-core kernels of compute capability 7.2, 2 = those of 8.0 (9.0 has its own).
    """
    rng = np.random.default_rng([layer.level, layer.cin, layer.cout])
    rows, cout = len(levels[layer.level].coords), layer.cout
    dtype = np.float16 if kind == F16 else np.float32
    ldx, ldy = padded(layer.cin, kind), padded(cout, kind)
    x = np.zeros((rows_in(levels, layer), ldx), dtype)
    x[:, : layer.cin] = rng.standard_normal((len(x), layer.cin), dtype=np.float32)
    taps = 1 if layer.kind == "identity" else 9
    weight = rng.standard_normal((taps, layer.cin, cout), dtype=np.float32) / np.sqrt(4 * layer.cin)
    out = rows * ldy * np.dtype(dtype).itemsize
    fields: Dict[str, Any] = {
        "type": kind, "x": bench.put(x), "ldx": ldx, "count": there.counts[layer.level], "capacity": rows,
        "K": taps, "cin": layer.cin, "cout": cout, "weight": bench.pack(kind, weight),
        "portable": portable,
    }  # fmt: skip
    if layer.kind != "identity":
        fields["map"] = there.maps[layer.kind, layer.level]
    if layer.kind == "up":
        fields["order"] = there.orders[layer.level]
    if layer.residual:
        fields.update(residual_type=kind, residual=bench.put(np.zeros((rows, ldy), dtype)), ldr=ldy)
    if layer.y:
        fields.update(y_type=kind, y=bench.room(out), ldy=ldy)
    if layer.outputs:
        fields.update(
            scale=[bench.put(np.ones(cout, np.float32))], shift=[bench.put(np.zeros(cout, np.float32))],
            z_type=[kind], z=[bench.room(out)], ldz=[ldy],
        )  # fmt: skip
    call = bench.conv(**fields)
    size = bench.kernels.library.csg_conv_workspace(bench.kernels.handle, call.arguments)
    return bench.conv(**fields, workspace=bench.room(size), workspace_bytes=size) if size else call


def run_layers(settings: Settings) -> Dict[str, Any]:
    """Times and rates of all layers."""
    from gpu.dense import dense_rate

    bench = Bench(settings)
    dense = dense_rate(bench)
    levels = scene_levels(settings)
    found = layers(settings.planes, settings.repeats, 3, settings.classes)
    unique: Dict[Layer, List[str]] = {}
    for layer in found:
        shape = Layer("", layer.kind, layer.level, layer.cin, layer.cout, layer.residual, layer.outputs, layer.y)
        unique.setdefault(shape, []).append(layer.name)
    rows: List[Dict[str, Any]] = []
    for shape, names in unique.items():
        there = OnDevice(bench, levels)
        times = bench.graph_times(
            layer_call(bench, levels, there, shape), settings.inner, max(10, settings.replays // 4)
        )
        bench.free()
        gmac = macs(levels, shape) / 1e9
        ms = statistics.median(times)
        rate = 2 * gmac / ms if ms else 0.0
        rows.append({
            "layers": names, "kind": shape.kind, "level": shape.level, "rows": len(levels[shape.level].coords),
            "cin": shape.cin, "cout": shape.cout, "gmac": round(gmac, 4), "ms": round(ms, 5), "tflops": round(rate, 2),
            "of_dense": round(rate / dense["tflops"], 4) if dense["tflops"] else None,
        })  # fmt: skip
    wide = [row for row in rows if min(row["cin"], row["cout"]) >= 128 and row["kind"] == "submanifold"]
    total = sum(row["ms"] * len(row["layers"]) for row in rows)
    wide_gmac = sum(row["gmac"] * len(row["layers"]) for row in wide)
    wide_ms = sum(row["ms"] * len(row["layers"]) for row in wide)
    share = 2 * wide_gmac / wide_ms / dense["tflops"] if wide_ms and dense["tflops"] else None
    worst = min((row["of_dense"] for row in wide if row["of_dense"] is not None), default=None)
    others = other_paths(bench, levels, found)
    return {
        "line": "convolutions %.3f ms; submanifold C >= 128: %s of the dense rate (%.0f TFLOP/s, %s)"
        % (total, "-" if share is None else "%.0f %%" % (100 * share), dense["tflops"], dense["by"]),
        "dense": dense, "layers": rows, "sum_ms": round(total, 4),
        "gmac": round(sum(row["gmac"] * len(row["layers"]) for row in rows), 2),
        "gmac_every_tap": round(sum(macs(levels, layer, True) for layer in found) / 1e9, 2),
        "wide_of_dense": share, "wide_worst_of_dense": worst, "other_paths": others,
        "sites": [len(level.coords) for level in levels],
    }  # fmt: skip


def other_paths(bench: Bench, levels: List[Level], found: List[Layer]) -> Dict[str, Any]:
    """One layer a level through the paths that this GPU does not take by itself: plain fp32, fp16 of older GPUs."""
    rows: Dict[str, Any] = {}
    for layer in found:
        if layer.name != "enc%d.0.conv1" % layer.level:
            continue
        for name, kind, portable in (("fp32", F32, 0), ("fp16 mma.sync", F16, 2), ("fp16 wmma", F16, 1)):
            call = layer_call(bench, levels, OnDevice(bench, levels), layer, kind, portable)
            times = summary(bench.graph_times(call, 1, 10 if not bench.settings.dry_run else 1))
            rows["%s, level %d, %d channels" % (name, layer.level, layer.cin)] = times
            bench.free()
    return rows
