"""The whole product on a generated street clip: ``make demo``.

Renders a clip with exact labels, runs the shipped bundle on it, and leaves ``demo/out/overlay.mp4``, label PNGs under
``demo/out/labels`` and ``demo/out/report.json``. Prints stage times, density, and the accuracy of the low-resolution
base, of the refined result and of the same base at full resolution, with the speed-up.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from crispseg import report as reports
from crispseg.cli_output import progress_bar
from crispseg.errors import CrispsegError
from crispseg.runtime.accuracy import evaluate
from crispseg.runtime.latency import measure
from crispseg.runtime.run import run
from crispseg.scenes import write_scenes

HERE = Path(__file__).resolve().parent
SIZE = (360, 480)


def make(frames: int, threads: int, out: Path) -> dict:
    """Renders, runs, measures; returns the report that is also in ``out/report.json``."""
    shutil.rmtree(out, ignore_errors=True)
    clip = out / "clip"
    bundle = HERE / "bundle"
    with progress_bar("rendering the clip"):
        scenes = write_scenes(clip, frames, *SIZE, seed=7, video=True)
    with progress_bar("segmenting") as progress:
        ran = run(
            bundle, clip / "clip.mp4", out, save=("labels", "overlay"), threads=threads, outline=True, progress=progress
        )
    with progress_bar("accuracy") as progress:
        accuracy = evaluate(bundle, clip / "images", clip / "labels", baseline=True, threads=threads, progress=progress)
    with progress_bar("latency") as progress:
        latency = measure(bundle, input=clip / "images", baseline=True, threads=threads, progress=progress)
    report = reports.new_report(
        "demo",
        clip={key: scenes[key] for key in ("count", "height", "width", "seed")},
        run=ran,
        accuracy=accuracy,
        latency=latency,
        stages=latency["stages"],
        density=accuracy["density"],
        speedup=latency["speedup"],
        environment=latency["environment"],
    )
    reports.write_json(out / "report.json", report)
    return report


def show(report: dict, console: Console) -> None:
    """Prints the report's tables."""
    stages = Table(title="stage times, ms", title_justify="left")
    for column in ("stage", "p50", "p90", "p99", "max"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for stage, times in report["stages"].items():
        stages.add_row(stage, *(f"{times[c]:.2f}" for c in ("p50", "p90", "p99", "max")))
    accuracy = Table(title="accuracy on the clip, percent", title_justify="left")
    for column in ("", "mIoU", "boundary IoU"):
        accuracy.add_column(column, justify="right" if column else "left")
    rows = (("base", "low-resolution base"), ("refined", "refined"), ("baseline", "the same base at full resolution"))
    for part, title in rows:
        scores = report["accuracy"][part]
        accuracy.add_row(title, f"{scores['miou']:.1f}", f"{scores['boundary_iou']:.1f}")
    console.print(stages)
    console.print(accuracy)
    speedup = report["speedup"]
    console.print(f"density {report['density']:.1f} % of the pixels refined")
    console.print(
        f"speed-up over the base at full resolution: {speedup['ratio']:.2f}x "
        f"({speedup['low']:.2f} to {speedup['high']:.2f})"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0, help="0 = all usable CPUs")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    options = parser.parse_args()
    console = Console(highlight=False)
    try:
        show(make(options.frames, options.threads, options.out), console)
    except CrispsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    out = options.out
    console.print(f"pictures: {out / 'overlay.mp4'}, {out / 'labels'}; data: {out / 'report.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
