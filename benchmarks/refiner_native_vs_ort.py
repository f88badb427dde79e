"""The default refiner on one frame: native engine against the portable bodies in ONNX Runtime, one thread each.

Runs are interleaved (A B A B ...) and measured in CPU time of the process, so that other load on the machine disturbs
both alike. Weights are random: the time does not depend on them.

    python benchmarks/refiner_native_vs_ort.py --rounds 3 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bands import band_scene


def refiner_parser(title: str) -> argparse.ArgumentParser:
    """Options that say which refiner on which frame."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--stride", type=int, default=4, help="frame pixels per logit pixel")
    parser.add_argument("--planes", default="32,64,128,256,512,1024")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--density", type=float, default=0.12)
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser


def random_refiner(args: argparse.Namespace, classes: int, **settings: Any) -> Any:
    """The network of ``refiner_parser``'s options, weights by seed."""
    import torch

    from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner

    torch.manual_seed(0)
    planes = tuple(int(p) for p in args.planes.split(","))
    config = SparseRefineConfig(num_classes=classes, planes=planes, repeats=args.repeats, **settings)
    return SparseRefiner(config).eval()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = refiner_parser(__doc__.splitlines()[0])
    parser.add_argument("--extent", default="active", choices=("active", "image"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", default="native,onnxruntime", help="one or both, comma between")
    return parser.parse_args()


def export(args: argparse.Namespace, logits_shape: tuple, path: Path) -> None:
    """Write a refiner with random weights."""
    from crispseg.export.refiner import export_refiner

    module = random_refiner(args, logits_shape[0], extent=args.extent)
    model = export_refiner(module, height=args.height, width=args.width, logits_shape=logits_shape)
    path.write_bytes(model.SerializeToString())


def main() -> None:
    """Measure and print."""
    args = parse()
    from crispseg.engines.spec import EngineSpec
    from crispseg.environment import environment

    image, logits, density = band_scene(args.height, args.width, stride=args.stride, density=args.density)
    feeds = {"image": image, "logits": logits}
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "refiner.onnx"
        export(args, logits.shape[1:], path)
        for name in args.engines.split(","):
            if name == "native":
                from crispseg.engines import native as backend
            else:
                from crispseg.engines import ort as backend
            engines[name] = backend.load(path, EngineSpec(name, threads=args.threads))
    names = ["labels", "count", "found"]
    cpu = {name: [] for name in engines}
    wall = {name: [] for name in engines}
    stages = {name: [] for name in engines}
    found = {name: engine.run(feeds, names) for name, engine in engines.items()}  # warm-up, and the results
    for _ in range(args.rounds):
        for name, engine in engines.items():
            start, clock = time.process_time(), time.perf_counter()
            engine.run(feeds, names)
            cpu[name].append((time.process_time() - start) * 1e3)
            wall[name].append((time.perf_counter() - clock) * 1e3)
            stages[name].append(dict(engine.stage_times))
    report = {
        "frame": [args.height, args.width],
        "planes": args.planes,
        "repeats": args.repeats,
        "extent": args.extent,
        "active": int(next(iter(found.values()))["count"][0]),
        "density": density,
        "threads": args.threads,
        "rounds": args.rounds,
    }
    for name in engines:
        middle = statistics.median
        report[name] = {
            "cpu_ms": round(middle(cpu[name]), 2),
            "cpu_ms_all": [round(t, 2) for t in cpu[name]],
            "wall_ms": round(middle(wall[name]), 2),
            "stages_ms": {k: round(middle(s[k] for s in stages[name]), 2) for k in stages[name][0]},
        }
    if "native" in engines:
        times = report["native"]["stages_ms"]
        report["maps_share"] = round(times.get("maps", 0.0) / report["native"]["wall_ms"], 4)
    if len(engines) == 2:
        report["ratio"] = round(report["onnxruntime"]["cpu_ms"] / report["native"]["cpu_ms"], 3)
        pairs = [b / a for a, b in zip(cpu["native"], cpu["onnxruntime"])]
        report["ratio_pairs"] = [round(p, 3) for p in pairs]
        a, b = (found[name]["labels"] for name in ("native", "onnxruntime"))
        report["labels_agreement"] = float(np.mean(a == b))
    report["environment"] = environment(threads=args.threads)
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
