"""The whole refiner on one frame: int8 against float32 in the native engine, and where the time goes.

    python benchmarks/int8_refiner.py [--planes 32,64,128,256,512,1024] [--rounds 5] [--json out.json]

The float32 engine chooses Winograd or direct for each layer as usual. Ranges come from one small frame; the first and
the last convolution stay float32, as ``crispseg calibrate`` leaves them. Runs are interleaved (A B A B); one thread,
CPU time of the process. Weights are random: the time does not depend on them, and the labels mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
from bands import band_scene
from onnx import ModelProto
from refiner_native_vs_ort import random_refiner, refiner_parser

from crispseg.calibration.refiner import collect_ranges, quantise_refiner
from crispseg.engines import native
from crispseg.engines.spec import EngineSpec
from crispseg.export.refiner import export_refiner

SMALL = (256, 512)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = refiner_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", default="")
    return parser.parse_args()


def models(args: argparse.Namespace, logits_shape: Tuple[int, ...], folder: Path) -> Tuple[Dict[str, Path], float]:
    """Files of the float32 and the int8 refiner, and the share of multiply-accumulates that is int8."""
    module = random_refiner(args, logits_shape[0])
    image, logits, _ = band_scene(*SMALL, stride=args.stride, density=args.density)
    small = export_refiner(module, height=SMALL[0], width=SMALL[1], logits_shape=logits.shape[1:])

    def open_engine(model: ModelProto) -> Any:
        path = folder / "observed.onnx"
        path.write_bytes(model.SerializeToString())
        return native.load(path, EngineSpec(threads=1))

    ranges = collect_ranges(small, lambda: [(image, logits)], open_engine)
    whole = export_refiner(module, height=args.height, width=args.width, logits_shape=logits_shape)
    quantised = quantise_refiner(whole, ranges)
    files = {"float32": folder / "refiner.onnx", "int8": folder / "refiner.int8.onnx"}
    files["float32"].write_bytes(whole.SerializeToString())
    files["int8"].write_bytes(quantised.model.SerializeToString())
    return files, quantised.share


def parts(engine: native.NativeEngine) -> Dict[str, float]:
    """ms of the last run by what was done: convolutions by algorithm and kind, and everything else."""
    out: Dict[str, float] = {}
    layers = {layer.name: layer for layer in engine.layers()}
    for name, ms in engine.node_times.items():
        layer = layers.get(name)
        key = f"{layer.algorithm} {layer.kind}" if layer else "to bytes" if "#int8" in name else "rest"
        out[key] = out.get(key, 0.0) + ms
    return out


def main() -> None:
    """Measure and print."""
    args = parse()
    image, logits, density = band_scene(args.height, args.width, stride=args.stride, density=args.density)
    feeds, names = {"image": image, "logits": logits}, ["labels", "count"]
    with tempfile.TemporaryDirectory() as folder:
        files, share = models(args, logits.shape[1:], Path(folder))
        engines = {name: native.load(path, EngineSpec(threads=1), isa=args.isa) for name, path in files.items()}
    found = {name: engine.run(feeds, names) for name, engine in engines.items()}
    times: Dict[str, list] = {name: [] for name in engines}
    split: Dict[str, list] = {name: [] for name in engines}
    for _ in range(args.rounds):
        for name, engine in engines.items():
            start = time.process_time()
            engine.run(feeds, names)
            times[name].append((time.process_time() - start) * 1e3)
            split[name].append(parts(engine))
    report: Dict[str, Any] = {"frame": [args.height, args.width], "planes": args.planes, "density": density,
                              "active": int(found["int8"]["count"][0]), "int8_share_of_macs": share,
                              "isa": engines["int8"].describe()["isa"],
                              "int8_kernels": engines["int8"].describe()["int8"]}  # fmt: skip
    for name, engine in engines.items():
        report[name] = {
            "cpu_ms": [round(t, 1) for t in times[name]],
            "best_ms": round(min(times[name]), 1),
            "median_ms": round(statistics.median(times[name]), 1),
            "parts_ms": {key: round(statistics.median(s[key] for s in split[name]), 1) for key in split[name][0]},
            "memory_mb": {key: round(value / 1e6, 1) for key, value in engine.memory().items()},
        }
    report["speedup_best"] = round(min(times["float32"]) / min(times["int8"]), 3)
    report["speedup_pairs"] = [round(a / b, 3) for a, b in zip(times["float32"], times["int8"])]
    report["labels_agreement"] = float(np.mean(found["float32"]["labels"] == found["int8"]["labels"]))
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
