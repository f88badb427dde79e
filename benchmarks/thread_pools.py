"""The base's pool of threads (ONNX Runtime) and the refiner's (native engine) on the same CPUs: do they fight?

    python benchmarks/thread_pools.py [BUNDLE] [--cpus 2] [--rounds 30] [--json out.json]

Whole frames of a bundle with, in turns: one thread each; as many as CPUs each, as crispseg runs them (ONNX Runtime's
workers sleep between two networks); the same with ONNX Runtime's workers spinning, which is its default; and two and
four times as many threads as CPUs each. Per frame: wall time, processor time, and their ratio, the CPUs in use.
The process is bound to that many CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from crispseg.environment import usable_cpus
from crispseg.runtime.pipeline import open_pipeline
from crispseg.scenes import render

SPIN = "session.intra_op.allow_spinning"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    demo = Path(__file__).parents[1] / "demo" / "bundle"
    parser.add_argument("bundle", nargs="?", default=demo, type=Path)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


@contextmanager
def spinning() -> Iterator[None]:
    """Sessions opened inside keep ONNX Runtime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions
    real = options.add_session_config_entry

    def add(self: Any, key: str, value: str) -> None:
        real(self, key, "1" if key == SPIN else value)

    options.add_session_config_entry = add
    try:
        yield
    finally:
        options.add_session_config_entry = real


def frame(pipeline: Any, picture: np.ndarray) -> Tuple[float, float]:
    """Wall and processor ms of a frame."""
    wall, cpu = time.perf_counter(), time.process_time()
    pipeline.run(picture)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def main() -> None:
    """Measure and print."""
    args = parse()
    os.sched_setaffinity(0, set(range(args.cpus)))
    assert usable_cpus() <= args.cpus
    opened = {"1 thread": open_pipeline(args.bundle, threads=1)}
    opened["%d threads" % args.cpus] = open_pipeline(args.bundle, threads=args.cpus)
    with spinning():
        opened["%d threads, spinning" % args.cpus] = open_pipeline(args.bundle, threads=args.cpus)
    for factor in (2, 4):
        opened["%d threads" % (factor * args.cpus)] = open_pipeline(args.bundle, threads=factor * args.cpus)
    bundle = opened["1 thread"].bundle
    pictures = [render(seed, 10.0 * seed, bundle.height, bundle.width)[0] for seed in range(4)]
    times: Dict[str, List[Tuple[float, float]]] = {name: [] for name in opened}
    for turn in range(args.rounds + 2):
        for name, pipeline in opened.items():
            found = frame(pipeline, pictures[turn % len(pictures)])
            if turn >= 2:
                times[name].append(found)
    rows = []
    for name, values in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*values))
        rows.append({"threads": name, "wall_ms": round(wall, 2), "cpu_ms": round(cpu, 2), "cpus": round(cpu / wall, 2)})
        first = rows[0]
        print("%-22s wall %7.2f ms (%.2fx of one thread), processor %7.2f ms (%.2fx), CPUs in use %.2f" % (
            name, wall, wall / first["wall_ms"], cpu, cpu / first["cpu_ms"], cpu / wall))  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
