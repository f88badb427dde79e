"""The default refiner on frames of a few small uncertain spots: what the rule that chooses the kernel by frame saves.

    python benchmarks/isolated_sites.py [--spots 1,4,16,64,256,1024] [--rounds 3] [--json out.json]

Each spot is one uncertain pixel of the logits, far from the others. On coarse levels it becomes two by two sites or
fewer, where the direct kernel does less work. Compared on the same frames, in turns, one thread, process CPU time,
medians: the engine as it is; the direct kernel alone; and Winograd alone, on every frame. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from refiner_native_vs_ort import export, refiner_parser

from crispseg.engines import native, native_winograd
from crispseg.engines.spec import EngineSpec

CLASSES = 19


def parse() -> argparse.Namespace:
    """The command line."""
    parser = refiner_parser(__doc__.splitlines()[0])
    parser.add_argument("--spots", default="1,4,16,64,256,1024")
    parser.add_argument("--extent", default="active", choices=("active", "image"))
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def spots(args: argparse.Namespace, number: int) -> np.ndarray:
    """Logits float32 [1,C,h,w], certain but for ``number`` pixels on a jittered grid."""
    h, w = args.height // args.stride, args.width // args.stride
    rng = np.random.default_rng(number)
    logits = np.zeros((1, CLASSES, h, w), np.float32)
    logits[:, 0] = 12
    columns = int(np.ceil(np.sqrt(number * w / h)))
    rows = -(-number // columns)
    for index in range(number):
        y = int((index // columns + rng.uniform(0.3, 0.7)) * h / rows)
        x = int((index % columns + rng.uniform(0.3, 0.7)) * w / columns)
        logits[0, 0, y, x] = 0
    return logits


def engines(args: argparse.Namespace, path: Path) -> Dict[str, native.NativeEngine]:
    """The refiner with each way to choose."""
    export(args, (CLASSES, args.height // args.stride, args.width // args.stride), path)
    made = {"as it is": native.load(path, EngineSpec(threads=1))}
    for name, mode in (("direct", "0"), ("Winograd", "1")):
        os.environ[native_winograd.ENVIRONMENT] = mode
        made[name] = native.load(path, EngineSpec(threads=1))
        del os.environ[native_winograd.ENVIRONMENT]
    return made


def measure(made: Dict[str, native.NativeEngine], feeds: Dict[str, np.ndarray], rounds: int) -> Dict[str, Any]:
    """CPU ms of each engine, and what ran on each level."""
    times: Dict[str, List[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, engine in made.items():
            start = time.process_time()
            engine.run(feeds, ["labels"])
            if turn:
                times[name].append((time.process_time() - start) * 1e3)
    layers = made["as it is"].layers()
    levels = sorted({item.level for item in layers})
    same = [item for item in layers if item.kind == "submanifold"]
    rows = [max(item.rows for item in same if item.level == level) for level in levels]
    winograd = [level for level in levels if any(i.level == level and i.algorithm.startswith("winograd") for i in same)]
    return {"ms": {name: round(statistics.median(values), 2) for name, values in times.items()}, "sites": rows,
            "winograd_levels": winograd}  # fmt: skip


def main() -> None:
    """Measure and print."""
    args = parse()
    image = np.random.default_rng(0).integers(0, 256, (args.height, args.width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        made = engines(args, Path(folder) / "refiner.onnx")
    print("MiB of weights: " + ", ".join("%s %.0f" % (n, e.memory()["weights"] / 2**20) for n, e in made.items()))
    rows = []
    for number in map(int, args.spots.split(",")):
        row = {"spots": number, **measure(made, {"image": image, "logits": spots(args, number)}, args.rounds)}
        rows.append(row)
        ms = row["ms"]
        print("%5d spots, sites %s: %s ms; over direct %.2f, Winograd over it %.2f; Winograd on levels %s" % (
            number, row["sites"], ms, ms["as it is"] / ms["direct"], ms["Winograd"] / ms["as it is"],
            row["winograd_levels"]))  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
