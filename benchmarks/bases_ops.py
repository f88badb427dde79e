"""Where one forward pass of an exported base spends its time in ONNX Runtime: by operator, and the slowest nodes.

Names are those after ONNX Runtime's own optimisation ("ReorderOutput" is its change of layout). Weights are random.

    python benchmarks/bases_ops.py sfnet-r18 [--size 512x1024] [--match "flow|Grid"] [--json out.json]
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import tempfile
from pathlib import Path

import onnxruntime
import torch

from crispseg.export import dense
from crispseg.models.bases import build_base


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--size", default="512x1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--match", default="", help="show the sum over nodes whose name matches, too")
    parser.add_argument("--nodes", type=int, default=15, help="slowest nodes to show")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def profile(data: bytes, size: tuple[int, int], rounds: int, threads: int) -> dict[str, tuple[str, float]]:
    """Node -> (operator, mean ms of a pass)."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "p")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(rounds + 1):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict = collections.defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            times[event["name"][: -len("_kernel_time")], event["args"]["op_name"]].append(event["dur"] / 1e3)
    return {name: (op, sum(t[1:]) / len(t[1:])) for (name, op), t in times.items()}  # the first pass warms up


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = tuple(map(int, args.size.split("x")))
    model = dense.export_dense(build_base(args.base, 19).eval(), height=size[0], width=size[1])
    nodes = profile(dense.to_bytes(model), size, args.rounds, args.threads)
    total = sum(ms for _, ms in nodes.values())
    by_op: dict = collections.defaultdict(float)
    for op, ms in nodes.values():
        by_op[op] += ms
    slowest = sorted(nodes.items(), key=lambda item: -item[1][1])[: args.nodes]
    report = {
        "base": args.base,
        "size": list(size),
        "total_ms": round(total, 2),
        "operators_ms": {op: round(ms, 2) for op, ms in sorted(by_op.items(), key=lambda item: -item[1])},
        "slowest_ms": {name: round(ms, 2) for name, (_, ms) in slowest},
    }
    if args.match:
        found = {name: round(ms, 2) for name, (_, ms) in nodes.items() if re.search(args.match, name)}
        report["matching_ms"] = {"sum": round(sum(found.values()), 2), **found}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
