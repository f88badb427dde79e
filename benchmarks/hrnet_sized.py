"""Half-resolution base + refiner against the same base dense at full resolution, for a base of HRNet-W48's size.

The base is a four-branch convolution net with HRNet-W48's widths (48, 96, 192, 384 at strides 4 to 32), no fusions in
between, and as many blocks as give its 747 GMAC at 1024x2048; weights are random, so this measures time, not accuracy.
The refiner is the default SparseRefine (planes 32..1024) on logits whose uncertain pixels lie in object-boundary bands.
Both sides run in this process in turns (A B A B); process CPU time, 1 thread each by default.

    python benchmarks/hrnet_sized.py [--runs 3] [--threads 1] [--json benchmarks/out/hrnet_sized.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from bands import band_scene
from torch import nn

from crispseg.engines import native, ort
from crispseg.engines.spec import EngineSpec
from crispseg.environment import environment
from crispseg.export.dense import export_dense
from crispseg.export.refiner import export_refiner
from crispseg.models.bases.small import Block, conv_bn
from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner

HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
WIDTHS = (48, 96, 192, 384)
BLOCKS = 31


class FourBranches(nn.Module):
    """Stem to stride 4, four branches at strides 4 to 32, concat at stride 4, 1x1 head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 3, 2), nn.ReLU(), conv_bn(64, 64, 3, 2), nn.ReLU())
        inputs = (64, *WIDTHS[:-1])
        self.branches = nn.ModuleList(
            nn.Sequential(Block(cin, cout, 1 if i == 0 else 2), *(Block(cout, cout) for _ in range(BLOCKS - 1)))
            for i, (cin, cout) in enumerate(zip(inputs, WIDTHS))
        )
        total = sum(WIDTHS)
        self.head = nn.Sequential(conv_bn(total, total, 1), nn.ReLU(), nn.Conv2d(total, CLASSES, 1))

    def forward_logits(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 3, H, W] -> logits at stride 4."""
        x = self.stem(x)
        levels = []
        for branch in self.branches:
            x = branch(x)
            levels.append(x)
        size = (int(levels[0].shape[2]), int(levels[0].shape[3]))
        up = [levels[0], *(F.interpolate(y, size=size, mode="bilinear", align_corners=False) for y in levels[1:])]
        return self.head(torch.cat(up, 1))


def macs(model: onnx.ModelProto) -> float:
    """GMAC of the convolutions of a static graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    shapes |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.output}
    weights = {w.name: w.dims for w in model.graph.initializer}
    total = 0.0
    for node in inferred.graph.node:
        if node.op_type == "Conv":
            out, weight = shapes[node.output[0]], weights[node.input[1]]
            total += float(np.prod(out)) * float(np.prod(weight[1:]))
    return total / 1e9


def cpu_seconds(call) -> float:
    """Process CPU time of one call, s."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/out/hrnet_sized.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    base = FourBranches().eval()
    spec = EngineSpec("onnxruntime", threads=options.threads)
    image, logits, _ = band_scene(HEIGHT, WIDTH, classes=CLASSES, stride=8, density=0.12)
    with tempfile.TemporaryDirectory() as folder:
        engines, gmac = {}, {}
        for name, divide in (("full", 1), ("half", 2)):
            model = export_dense(base, height=HEIGHT // divide, width=WIDTH // divide)
            gmac[name] = macs(model)
            path = Path(folder) / f"{name}.onnx"
            onnx.save(model, path)
            engines[name] = ort.load(path, spec)
        refiner = SparseRefiner(SparseRefineConfig(num_classes=CLASSES, extent="image")).eval()
        model = export_refiner(
            refiner,
            height=HEIGHT,
            width=WIDTH,
            logits_shape=tuple(logits.shape[1:]),
            upsample="bilinear",
            threshold=0.3,
            capacity=HEIGHT * WIDTH // 4,
        )
        path = Path(folder) / "refiner.onnx"
        onnx.save(model, path)
        del model, refiner
        sparse = native.load(path, EngineSpec("native", threads=options.threads))
        frames = {n: np.zeros((1, 3, HEIGHT // d, WIDTH // d), np.float32) for n, d in (("full", 1), ("half", 2))}
        found: dict = {}

        def refine() -> None:
            found.update(sparse.run({"image": image, "logits": logits}, ["labels", "count"]))

        calls = {
            "full": lambda: engines["full"].run({"image": frames["full"]}),
            "half": lambda: engines["half"].run({"image": frames["half"]}),
            "refiner": refine,
        }
        for call in calls.values():  # the first call of each allocates
            call()
        times: dict = {name: [] for name in calls}
        for _ in range(options.runs):
            for name, call in calls.items():
                times[name].append(cpu_seconds(call))
    ratios = [f / (h + r) for f, h, r in zip(times["full"], times["half"], times["refiner"])]
    report = {
        "gmac": gmac,
        "density": float(found["count"][0]) / (HEIGHT * WIDTH),
        "cpu_seconds": {name: {"median": statistics.median(v), "all": v} for name, v in times.items()},
        "speedup": {"median": statistics.median(ratios), "all": ratios, "target": 1.9},
        "environment": environment(threads=options.threads),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({k: v for k, v in report.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
