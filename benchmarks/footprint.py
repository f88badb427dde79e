"""Start-up time, peak memory at full size, and memory over many frames.

    python benchmarks/footprint.py [--frames 500] [--json benchmarks/out/footprint.json]

1. `import crispseg` and `crispseg --help`: wall time of a fresh process, best of 7.
2. Peak memory of `crispseg run` on 1024x2048 frames: SFNet-Lite at half resolution and the default refiner (planes
   32..1024) with random weights; such a base is unsure everywhere, so the capacity (12 % of all) sets the density.
3. Resident memory of the demo bundle's pipeline over many frames: after a tenth of them, and after all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from crispseg.environment import environment
from crispseg.runtime.pipeline import open_pipeline
from crispseg.scenes import render

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 1024, 2048


def best_seconds(command: list[str], repeats: int = 7) -> float:
    """Best wall time of a fresh process, s."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
        times.append(time.perf_counter() - start)
    return round(min(times), 4)


def crispseg(*arguments: object) -> None:
    """Runs the command line."""
    subprocess.run([sys.executable, "-m", "crispseg", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def full_size(folder: Path) -> dict:
    """Peak memory of `run` with the default refiner, MiB."""
    bundle, out = folder / "bundle", folder / "out"
    capacity = int(0.12 * HEIGHT * WIDTH)
    crispseg(
        *("export", "sfnet_lite_r18", "--random-weights", "--size", f"{HEIGHT}x{WIDTH}", "--capacity", capacity),
        *("-o", bundle),
    )
    crispseg("scenes", "-n", 3, "--size", f"{HEIGHT}x{WIDTH}", "-o", folder / "scenes")
    crispseg("run", bundle, folder / "scenes" / "images", "-o", out)
    report = json.loads((out / "report.json").read_text())
    return {"peak_memory_mib": report["peak_memory_mib"], "density": report["density"], "target_mib": 2560}


def resident_mib() -> float:
    """Resident set of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def growth(frames: int) -> dict:
    """Resident memory over many frames of the demo bundle, MiB."""
    pipeline = open_pipeline(ROOT / "demo" / "bundle", backend="native")
    images = [render(seed, 0, 360, 480)[0] for seed in range(10)]
    marks = {}
    for i in range(frames):
        pipeline.run(np.ascontiguousarray(images[i % len(images)]), want=("labels", "confidence"))
        if i + 1 in (frames // 10, frames // 2, frames):
            marks[str(i + 1)] = round(resident_mib(), 1)
    values = list(marks.values())
    return {"resident_mib": marks, "growth_mib": round(values[-1] - values[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/out/footprint.json"))
    options = parser.parse_args()
    report = {
        "import_seconds": best_seconds([sys.executable, "-c", "import crispseg"]),
        "bare_python_seconds": best_seconds([sys.executable, "-c", "import numpy"]),
        "help_seconds": best_seconds([sys.executable, "-m", "crispseg", "--help"]),
        "growth": growth(options.frames),
    }
    with tempfile.TemporaryDirectory() as folder:
        report["full_size_run"] = full_size(Path(folder))
    report["environment"] = environment()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({k: v for k, v in report.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
