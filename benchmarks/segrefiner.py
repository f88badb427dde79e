"""SegRefiner's instance mode as crispseg runs it against the same steps in PyTorch eager.

Random weights and noise: times depend on neither. One object is six calls of one U-Net, whatever its size in the
picture, so a few objects and steps are measured and 32 objects are *computed* from them: calls * time of a call +
objects * time around the calls (cutting, drawing, pasting). Both sides run in this process in turns (A B A B), process
CPU time, 1 thread by default. Eager runs the official batch loop (cut with grid-free interpolate, sample, paste with
grid_sample over the whole picture) written with PyTorch's own operators.

    python benchmarks/segrefiner.py [--window 256] [--objects 1] [--steps 1] [--runs 3] [--batch 1]
                                    [--backends native,onnxruntime] [--channels 128] [--threads 1] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch.nn import functional

from crispseg.bundle_masks import SegRefinerInfo
from crispseg.engines import native_mask, ort
from crispseg.engines.spec import EngineSpec
from crispseg.export.segrefiner import export_segrefiner
from crispseg.models.refiners.segrefiner import FINE_LEFT, MEAN, STD, SegRefinerConfig, random_segrefiner
from crispseg.runtime.segrefiner_instance import refine_objects
from crispseg.runtime.segrefiner_sampling import fine_before, first_steps, seeded_draw

HEIGHT, WIDTH = 480, 640  # a COCO picture
ALL_STEPS, ALL_OBJECTS = 6, 32


def scene(objects: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture of noise and discs in it."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centres = rng.integers((80, 80), (HEIGHT - 80, WIDTH - 80), (objects, 2))
    return photo, [(y - cy) ** 2 + (x - cx) ** 2 < 60**2 for cy, cx in centres]


def eager(module: torch.nn.Module, photo: np.ndarray, masks: list[np.ndarray], window: int, steps: int, batch: int,
          inside: list[float]) -> None:  # fmt: skip
    """The official loop; ``inside`` collects the CPU time of the network."""
    picture = ((torch.from_numpy(photo).float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    before = fine_before(FINE_LEFT)
    for start in range(0, len(masks), batch):
        group = [torch.from_numpy(mask) for mask in masks[start : start + batch]]
        boxes, images, coarse = [], [], []
        for mask in group:
            rows, columns = torch.nonzero(mask.any(1)), torch.nonzero(mask.any(0))
            y0, y1 = max(int(rows[0]) - 20, 0), min(int(rows[-1]) + 21, HEIGHT)
            x0, x1 = max(int(columns[0]) - 20, 0), min(int(columns[-1]) + 21, WIDTH)
            boxes.append((x0, y0, x1, y1))
            images.append(functional.interpolate(picture[:, :, y0:y1, x0:x1], (window, window), mode="bilinear"))
            small = functional.interpolate(mask[None, None, y0:y1, x0:x1].float(), (window, window), mode="bilinear")
            coarse.append((small >= 0.5).float())
        image, given = torch.cat(images), torch.cat(coarse)
        state, fine = given, torch.zeros_like(given)
        for t in range(ALL_STEPS - 1, ALL_STEPS - 1 - steps, -1):
            begin = time.process_time()
            logits = module(torch.cat([image, state], 1), torch.full((len(group),), t))
            inside.append(time.process_time() - begin)
            sure = 2 * (logits.sigmoid() - 0.5).abs()
            fine = fine + (1 - fine) * sure * (before[t] - FINE_LEFT[t]) / (1 - sure * FINE_LEFT[t])
            state = torch.where(torch.rand_like(fine) < fine, (logits >= 0).float(), given)
        grids = []
        for x0, y0, x1, y1 in boxes:
            x = (torch.arange(WIDTH) + 0.5 - x0) / (x1 - x0) * 2 - 1
            y = (torch.arange(HEIGHT) + 0.5 - y0) / (y1 - y0) * 2 - 1
            grids.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1))
        functional.grid_sample(logits.sigmoid(), torch.stack(grids), align_corners=False).ge(0.5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="of both sides")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", default="native,onnxruntime")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = random_segrefiner(0, SegRefinerConfig(channels=args.channels))
    info = SegRefinerInfo("unet.onnx", "instance", args.window, FINE_LEFT, MEAN, STD)
    photo, masks = scene(args.objects)
    with tempfile.TemporaryDirectory() as folder:
        import onnx

        path = Path(folder) / "unet.onnx"
        onnx.save(export_segrefiner(module, args.window), str(path))
        engines = {}
        for name in args.backends.split(","):
            spec = EngineSpec(name, threads=args.threads)
            engines[name] = native_mask.load(path, spec) if name == "native" else ort.load(path, spec)
    inside: dict[str, list[float]] = {}

    def ours(name: str) -> Callable[[], Any]:
        engine = engines[name]

        def network(image: np.ndarray, t: np.ndarray) -> np.ndarray:
            begin = time.process_time()
            logits = engine.run({"image": image, "t": t}, ["logits"])["logits"]
            inside[name].append(time.process_time() - begin)
            return logits

        steps = first_steps(ALL_STEPS, args.steps)
        return lambda: list(
            refine_objects(network, photo, masks, info, steps=steps, draw=seeded_draw(0), batch=args.batch)
        )

    jobs: dict[str, Callable[[], Any]] = {
        "eager": lambda: eager(module, photo, masks, args.window, args.steps, args.batch, inside["eager"]),
        **{name: ours(name) for name in engines},
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    with torch.inference_mode():
        for _ in range(args.runs + 1):
            for name, job in jobs.items():
                inside[name] = []
                begin = time.process_time()
                job()
                rows[name].append((time.process_time() - begin, sum(inside[name])))
    result: dict[str, Any] = {"window": args.window, "objects": args.objects, "steps": args.steps, "batch": args.batch,
                              "channels": args.channels, "threads": args.threads}  # fmt: skip
    for name, times in rows.items():
        times = times[1:]  # the first one warms up
        network = statistics.median(inner for _, inner in times) / (args.objects * args.steps)
        around = statistics.median(total - inner for total, inner in times) / args.objects
        whole = ALL_OBJECTS * (ALL_STEPS * network + around)
        result[name] = {"network_s_per_object_and_step": round(network, 4), "around_s_per_object": round(around, 4),
                        "computed_s_for_32_objects": round(whole, 1)}  # fmt: skip
    for name in engines:
        result[name]["over_eager"] = round(
            result["eager"]["computed_s_for_32_objects"] / result[name]["computed_s_for_32_objects"], 3
        )
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
