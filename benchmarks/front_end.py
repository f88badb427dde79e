"""Times the front end (upsample + softmax + entropy + argmax + selection) against the same steps in torch.

One thread each, process CPU time, interleaved A B A B so that a change of the machine's speed hits both.
The logits are a smooth random class map: large certain regions, uncertain borders, like a trained network's.

    python benchmarks/front_end.py --json front_end.json
"""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np
from turns import in_turns

from crispseg.plugins.loader import UPSAMPLE, Native, available_isas


def scene_logits(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Logits float32 [C, height, width] of smooth regions: about one pixel in eight lies near a border."""
    rng = np.random.default_rng(seed)
    ys = np.arange(height)[:, None] / height
    xs = np.arange(width)[None, :] / width
    field = np.empty((classes, height, width), np.float32)
    for c in range(classes):
        total = np.zeros((height, width))
        for _ in range(6):
            fy, fx = rng.uniform(-9, 9, 2)
            total += rng.normal() * np.sin(2 * np.pi * (fy * ys + fx * xs) + rng.uniform(0, 6.3))
        field[c] = 25 * total
    return np.ascontiguousarray(field + rng.normal(0, 0.3, field.shape), np.float32)


class NativeFrontEnd:
    """One context and its output arrays."""

    def __init__(self, logits, size, isa, confidence, threshold, upsample="bilinear"):
        self.native = Native(1, isa)
        height, width = size
        self.labels = np.empty(size, np.uint8)
        self.confidence = np.empty(size, np.uint8) if confidence else None
        self.coords = np.empty((height * width, 2), np.int32)
        self.count, self.found = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self.arguments = (
            logits.ctypes.data,
            *logits.shape,
            height,
            width,
            UPSAMPLE[upsample],
            threshold,
            height * width,
            self.labels.ctypes.data,
            self.confidence.ctypes.data if confidence else None,
            self.coords.ctypes.data,
            self.count.ctypes.data,
            self.found.ctypes.data,
        )

    def __call__(self):
        self.native.call("cs_select_pixels", *self.arguments)


def torch_front_end(logits, size, threshold):
    """The steps one after another, full-size tensors in between."""
    import torch

    low = torch.from_numpy(logits)[None]

    def run():
        full = torch.nn.functional.interpolate(low, size=size, mode="bilinear", align_corners=False)
        p = torch.softmax(full, 1)
        entropy = -(p * torch.log(p.clamp_min(1e-5))).sum(1)
        return full.argmax(1).to(torch.uint8), torch.nonzero(entropy[0] > threshold)

    return run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--low", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", help="write the numbers here as well")
    options = parser.parse_args()
    size = tuple(options.size)
    logits = scene_logits(options.classes, *options.low)
    noise = np.random.default_rng(1).normal(0, 0.7, logits.shape).astype(np.float32)  # nothing certain anywhere
    jobs = {}
    for isa in available_isas():
        jobs[f"{isa} labels"] = NativeFrontEnd(logits, size, isa, False, options.threshold)
        jobs[f"{isa} labels+confidence"] = NativeFrontEnd(logits, size, isa, True, options.threshold)
        jobs[f"{isa} labels, nothing certain"] = NativeFrontEnd(noise, size, isa, False, options.threshold)
        jobs[f"{isa} labels, nearest"] = NativeFrontEnd(logits, size, isa, False, options.threshold, "nearest")
        jobs[f"{isa} labels, corners"] = NativeFrontEnd(logits, size, isa, False, options.threshold, "bilinear_corners")
    if not options.no_torch:
        import torch

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # in torch's favour: denormals make it slower still
        jobs["torch step by step"] = torch_front_end(logits, size, options.threshold)
    times = in_turns(jobs, options.repeats)
    density = {name: float(job.count[0]) / (size[0] * size[1]) for name, job in jobs.items() if hasattr(job, "count")}
    rows = {name: {"median_ms": statistics.median(t), "best_ms": min(t)} for name, t in times.items()}
    for name, row in rows.items():
        if name in density:
            row["density"] = density[name]
        if "torch step by step" in rows:
            row["times_faster_than_torch"] = rows["torch step by step"]["median_ms"] / row["median_ms"]
        print(f"{name:40s}", "  ".join(f"{k} {v:8.3f}" for k, v in row.items()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"classes": options.classes, "low": list(options.low), "size": list(size), "rows": rows}, file, indent=1
            )


if __name__ == "__main__":
    main()
