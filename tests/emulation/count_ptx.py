"""Instructions that a convolution executes, by class: ``python tests/emulation/count_ptx.py``; needs NVRTC.

A 3 x 3 convolution on the emulated device of each compute capability, on compiled kernels. ``tools/kernel_loops.py``
reads one pass of the main loop off the machine code; this counts a launch in PTX, epilogues and all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulation import run_ptx
from emulation.ptx import profile

COLUMNS = ("tensor", "matrix load", "copy", "shared", "global", "integer", "float", "predicate", "move", "warp",
           "branch", "barrier")  # fmt: skip


def count(rows: int, cin: int, cout: int, kind: str) -> Dict[str, Any]:
    """Runs one convolution in this process: kernel -> launches and executions by class."""
    import emulation

    sys.path.insert(0, str(run_ptx.TESTS / "plugins"))
    hooks = emulation.Hooks(emulation.driver())
    from cuda_conv_cases import F16, I8, Gpu, Run, of_type, random_data, run_conv
    from op_table import Conv

    gpu, number = Gpu(emulation.image()), F16 if kind == "fp16" else I8
    data = of_type(random_data(rows, cin, cout, present=1.0), number)
    with profile.counted(hooks.library) as found:
        run_conv(gpu, Conv("-", "-", cin, cout, bias=True, relu=True), data, Run(type=number, workspace=False))
    gpu.close()
    return {name: {"launches": k.launches, **k.classes()} for name, k in found.items() if name.startswith("csk_conv")}


def table(rows: List[Dict[str, Any]]) -> str:
    """Markdown: executions of a warp for each tensor instruction."""
    lines = ["| device | kernel | " + " | ".join(COLUMNS) + " | all |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        tensor = row["tensor"]
        counts = [row.get(name, 0) for name in COLUMNS]
        cells = ["%.2f" % (value / tensor) for value in [*counts, sum(counts)]]
        cells[0] = "%d" % tensor
        lines.append("| %.1f | %s | %s |" % (row["capability"] / 10, row["kernel"], " | ".join(cells)))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", default="72,87,90", help="these, comma between")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--channels", default="256,128", help="in,out")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--here", choices=("fp16", "int8"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cin, cout = (int(word) for word in options.channels.split(","))
    if options.here:
        print(json.dumps(count(options.rows, cin, cout, options.here)))
        return 0
    rows: List[Dict[str, Any]] = []
    for capability in [int(word) for word in options.capability.split(",")]:
        for kind in ("fp16", "int8"):
            words = [sys.executable, __file__, "--here", kind, "--rows", str(options.rows)]
            words += ["--channels", options.channels]
            environment = run_ptx.environment(capability)
            environment["CRISPSEG_LIBCUDA"], environment["CRISPSEG_CUDA_LIBRARY"] = libraries()
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
            for kernel, counts in json.loads(done.stdout).items():
                rows.append({"capability": capability, "kernel": kernel, **counts})
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def libraries() -> List[str]:
    """The emulated driver and the host library of this work tree."""
    import emulation

    return [str(emulation.driver()), str(emulation.host_library())]


if __name__ == "__main__":
    sys.exit(main())
