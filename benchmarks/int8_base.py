"""Times dense bases in int8 against fp32 in ONNX Runtime, and the calibration itself.

One thread, process CPU time, interleaved A B A B so that a change of the machine's speed hits both. Three forms of each
base: the float file, the calibrated file as it stands (Q/DQ pairs where TensorRT wants them), and the form that
``--precision int8`` runs. The ranges come from rendered scenes: they do not change the speed.

    python benchmarks/int8_base.py --json int8_base.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from crispseg.bundle import load_bundle
from crispseg.calibration import base
from crispseg.calibration.placement import place
from crispseg.engines import ort
from crispseg.engines.spec import EngineSpec
from crispseg.environment import environment, peak_memory_mib
from crispseg.runtime.prepare import prepare
from crispseg.scenes import render

DEMO = Path(__file__).resolve().parent.parent / "demo" / "bundle"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sfnet-lite-r18", help="measured beside the demo bundle, random weights")
    parser.add_argument("--size", default="1024x2048", help="frame; the base sees half of it")
    parser.add_argument("--frames", type=int, default=4, help="frames to calibrate on")
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU seconds of measurement for each base")
    parser.add_argument("--skip-file-form", action="store_true", help="leave the slow form out")
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


def export(name: str, size: str, target: Path) -> None:
    from crispseg.cli import main

    with contextlib.redirect_stdout(sys.stderr):
        code = main(["export", name, "--random-weights", "--refiner", "none", "--size", size, "-o", str(target)])
    if code:
        raise SystemExit(code)


def measure(path: Path, folder: Path, args: argparse.Namespace) -> dict:
    bundle = load_bundle(path)
    frames = [render(0, 25 * i, bundle.height, bundle.width)[0] for i in range(args.frames)]
    values = [prepare(frame, bundle, bundle.base)[1] for frame in frames]
    model = base.read_dense(bundle.file(bundle.base.file))
    placement = place(model)
    start = time.process_time()
    histograms = base.collect(model, placement.watched, values, threads=1)
    collected = time.process_time() - start
    made = base.quantise(model, placement, histograms)
    file = folder / "base.int8.onnx"
    file.write_bytes(base.to_bytes(made.model))
    forms = {"fp32": (bundle.file(bundle.base.file), "fp32"), "int8": (file, "int8")}
    if not args.skip_file_form:
        forms["int8 file as it stands"] = (file, "fp32")
    engines = {
        name: ort.load(p, EngineSpec("onnxruntime", threads=1, precision=how)) for name, (p, how) in forms.items()
    }
    labels = {name: engine.run({"image": values[0]})["logits"].argmax(1) for name, engine in engines.items()}
    cpu: dict = {name: [] for name in engines}
    start, turn = time.process_time(), 0
    while turn < 5 or time.process_time() - start < args.seconds:
        for name, engine in engines.items():
            before = time.process_time()
            engine.run({"image": values[turn % len(values)]})
            cpu[name].append(1e3 * (time.process_time() - before))
        turn += 1
    medians = {name: statistics.median(times) for name, times in cpu.items()}
    ratios = np.array(cpu["fp32"]) / np.array(cpu["int8"])
    return {
        "base": bundle.base.architecture,
        "input": f"{bundle.base.height}x{bundle.base.width}",
        "cpu_ms": {name: round(value, 2) for name, value in medians.items()},
        "speedup": round(medians["fp32"] / medians["int8"], 3),
        "speedup_p10_p90": [round(float(v), 3) for v in np.percentile(ratios, (10, 90))],
        "runs": turn,
        "macs_percent_int8": round(100 * placement.macs_share, 2),
        "operators": integer_operators(made.model),
        "same_class_percent": round(100 * float((labels["int8"] == labels["fp32"]).mean()), 3),
        "calibration_cpu_ms_a_frame": round(1e3 * collected / len(values), 1),
    }


def integer_operators(model: object) -> dict:
    """Operators of the form that runs, the ones that matter for speed."""
    from crispseg.engines.ort_int8 import lower

    names = ("QLinearConv", "Conv", "QLinearAdd", "Add", "QuantizeLinear", "DequantizeLinear")
    count = Counter(node.op_type for node in lower(model).graph.node)  # type: ignore[arg-type]
    return {name: count[name] for name in names}


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(DEMO, Path(folder), args)]
        if args.base:
            export(args.base, args.size, Path(folder) / "bundle")
            rows.append(measure(Path(folder) / "bundle", Path(folder), args))
    report = {"rows": rows, "peak_memory_mib": peak_memory_mib(), "environment": environment(threads=1)}
    text = json.dumps(report, indent=2, default=str)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
