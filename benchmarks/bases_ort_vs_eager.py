"""Every base of the catalog at one size: its exported graph in ONNX Runtime against the same module in PyTorch eager.

Runs are interleaved (A B A B ...) and measured in CPU time of the process. Each base gets the 1:2 image at which one
forward pass takes about the same number of multiply-accumulates. Weights are random: the time does not depend on them.

    python benchmarks/bases_ort_vs_eager.py [--bases sanet,sfnet-r18] [--rounds 5] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from turns import in_turns

from crispseg.engines import ort
from crispseg.engines.spec import EngineSpec
from crispseg.environment import environment
from crispseg.export import dense
from crispseg.models.bases import BASES, build_base

CLASSES = 19


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", default="", help="names, comma between; default: the whole catalog")
    parser.add_argument("--gmac", type=float, default=30.0, help="multiply-accumulates of one pass, 1e9")
    parser.add_argument("--size", default="", help="HxW for all instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


def fitting_size(macs: float, gmac: float) -> tuple[int, int]:
    """The 1:2 size, a multiple of 32, at which a base of ``macs`` at 1024x2048 has about ``gmac``."""
    height = 1024 * (gmac * 1e9 / macs) ** 0.5 if macs else 512
    height = min(1024, max(128, round(height / 32) * 32))
    return height, 2 * height


def measure(name: str, size: tuple[int, int], rounds: int, threads: int) -> dict:
    """One line of the table."""
    torch.manual_seed(0)
    module = build_base(name, CLASSES).eval()
    model = dense.export_dense(module, height=size[0], width=size[1])
    kinds = [node.op_type for node in model.graph.node]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.onnx"
        path.write_bytes(dense.to_bytes(model))
        del model
        engine = ort.load(path, EngineSpec("onnxruntime", threads=threads))
    image = torch.randn(1, 3, *size)
    feeds = {"image": image.numpy()}
    found = {}

    def eager() -> None:
        with torch.inference_mode():
            found["eager"] = module.forward_logits(image).numpy()

    def exported() -> None:
        found["onnxruntime"] = engine.run(feeds, ["logits"])["logits"]

    times = in_turns({"eager": eager, "onnxruntime": exported}, rounds)
    engine.close()
    middle = {side: round(statistics.median(values), 1) for side, values in times.items()}
    pairs = [a / b for a, b in zip(times["eager"], times["onnxruntime"])]
    error = abs(found["eager"] - found["onnxruntime"]).max() / found["eager"].std()
    return {
        "base": name,
        "size": list(size),
        "nodes": len(kinds),
        "cpu_ms": middle,
        "ratio": round(statistics.median(pairs), 3),
        "ratio_pairs": [round(p, 3) for p in pairs],
        "max_error_std": float(f"{error:.3g}"),
    }


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    names = args.bases.split(",") if args.bases else [n for n in BASES if n != "small"]
    rows = []
    for name in names:
        size = tuple(map(int, args.size.split("x"))) if args.size else fitting_size(BASES[name].macs, args.gmac)
        row = measure(name, size, args.rounds, args.threads)
        rows.append(row)
        print(
            f"{name:18} {size[0]}x{size[1]:<5} {row['nodes']:5} nodes  eager {row['cpu_ms']['eager']:8.1f}  "
            f"onnxruntime {row['cpu_ms']['onnxruntime']:8.1f} ms  {row['ratio']:.2f}x error {row['max_error_std']:.0e}",
            flush=True,
        )
    report = {
        "unit": "process CPU ms; ratio = eager / onnxruntime, median of pairs",
        "threads": args.threads,
        "rounds": args.rounds,
        "slowest_ratio": min(row["ratio"] for row in rows),
        "bases": rows,
        "environment": environment(threads=args.threads),
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
