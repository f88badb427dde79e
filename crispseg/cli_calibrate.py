"""The command that makes a bundle's int8 networks from images."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import List, Optional

import typer

from crispseg.cli import BUNDLE, JSON, REPORT, THREADS, app, split
from crispseg.errors import InputError


class Method(str, Enum):
    """Rules that turn what was seen into a range."""

    minmax = "minmax"
    entropy = "entropy"
    percentile = "percentile"
    mse = "mse"


IMAGES = typer.Argument(None, metavar="[IMAGES]", help="folder of real frames, 32 or more", show_default=False)
METHOD = typer.Option(Method.mse, "--method", help="how ranges are chosen from what was seen")
COUNT = typer.Option(256, "--count", min=1, help="most images to use, drawn with --seed; 32 or more of real ones")
SEED = typer.Option(0, "--seed", min=0, help="of the draw of images")
EXCLUDE = typer.Option(
    [], "--exclude", help="layer that stays float: name or pattern with *, of the refiner refiner:NAME; may be repeated"
)
KEEP = typer.Option("", "--keep-fp32", help="operators that stay float: Conv,ConvTranspose,Gemm,MatMul")
HEAD = typer.Option(False, "--head", help="also the last layer of the base, which stays float otherwise")
GATE = typer.Option(
    0.5,
    "--gate",
    min=0.0,
    help="largest drop of mIoU, points (boundary IoU: twice that); without --labels: percent of pixels that change",
)
LABELS = typer.Option(None, "--labels", help="label maps of the images: the gate measures mIoU and boundary IoU")
GATE_IMAGES = typer.Option(None, "--gate-images", help="images of --labels, when not those to calibrate on")
GATE_FRAMES = typer.Option(256, "--gate-frames", min=1, help="most frames that the gate measures on")
NETWORKS = typer.Option("", "--networks", help="base,refiner,baseline; default: base, and the refiner if there is one")
SYNTHETIC = typer.Option(False, "--synthetic", help="random data instead of images: for trying out, never for use")
TRT_CACHE = typer.Option(None, "--trt-cache", help="also write ranges as a calibration cache for TensorRT 8.x and 10")
FORCE = typer.Option(False, "--force", help="write the bundle although the gate failed")
SCAN = typer.Option(False, "--scan", help="only say what each layer costs in int8, and which ones should stay float")
SCAN_FRAMES = typer.Option(16, "--scan-frames", min=1, help="scan: frames to measure on, held in memory")
SCAN_BLOCKS = typer.Option(False, "--scan-blocks", help="scan: blocks of layers instead of single ones; faster")
SCAN_STATE = typer.Option(None, "--scan-state", help="scan: file of the measurements; default: scan-NAME-KEY.json here")
PLOT = typer.Option(None, "--plot", help="scan: also draw it, FILE.svg", show_default=False)
CHECK_HALF = typer.Option(False, "--check-fp16", help="only measure what float16 costs in the base, with this gate")
OUT = typer.Option(None, "-o", "--out", metavar="BUNDLE", help="directory to write", show_default=False)


@app.command()
def calibrate(
    context: typer.Context,
    bundle: Path = BUNDLE,
    images: Optional[Path] = IMAGES,
    method: Method = METHOD,
    count: int = COUNT,
    seed: int = SEED,
    exclude: List[str] = EXCLUDE,
    keep_fp32: str = KEEP,
    head: bool = HEAD,
    gate: float = GATE,
    labels: Optional[Path] = LABELS,
    gate_images: Optional[Path] = GATE_IMAGES,
    gate_frames: int = GATE_FRAMES,
    networks: str = NETWORKS,
    synthetic: bool = SYNTHETIC,
    trt_cache: Optional[Path] = TRT_CACHE,
    force: bool = FORCE,
    scan: bool = SCAN,
    scan_frames: int = SCAN_FRAMES,
    scan_blocks: bool = SCAN_BLOCKS,
    scan_state: Optional[Path] = SCAN_STATE,
    plot: Optional[Path] = PLOT,
    check_fp16: bool = CHECK_HALF,
    threads: int = THREADS,
    out: Path = OUT,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Make int8 networks of a bundle from real frames; exit code 3 when they cost too much accuracy.

    Example: crispseg calibrate demo/bundle val/images --labels val/labels -o demo-int8

    With --scan: measure every layer alone, an interrupted scan goes on where it was (docs/sensitivity.md).
    """
    from crispseg.cli_make import require_host_python
    from crispseg.cli_output import execute
    from crispseg.cli_unused import refuse_unused

    if not scan:
        of_scan = ("scan_frames", "scan_blocks", "scan_state", "plot")
        refuse_unused(context, {name: "expected --scan with it, found none" for name in of_scan})
    if scan or check_fp16:
        refuse_unused(context, {"force": "expected a bundle to write, found a measurement alone"})
    if scan:
        refuse_unused(context, {"gate_frames": "expected --scan-frames instead, found --scan"})
    elif check_fp16:
        of_int8 = ("method", "head", "networks")
        refuse_unused(context, {name: "expected int8, found --check-fp16" for name in of_int8})

    def work(progress):  # type: ignore[no-untyped-def]
        require_host_python("calibrate")
        from crispseg.cli_calibrate_bundle import Choices, calibrate_bundle

        choices = Choices(
            method=method.value,
            count=count,
            seed=seed,
            exclude=tuple(exclude),
            keep_ops=split(keep_fp32),
            head=head,
            gate=gate,
            labels=labels,
            gate_images=gate_images,
            gate_frames=gate_frames,
            networks=split(networks),
            synthetic=synthetic,
            trt_cache=trt_cache,
            force=force,
            threads=threads,
        )
        if scan and check_fp16:
            raise InputError("--scan, --check-fp16: expected one of them, found both")
        if scan:
            from crispseg.cli_calibrate_scan import ScanChoices, scan_bundle

            if plot is not None and plot.suffix.lower() != ".svg":
                raise InputError(f"--plot {plot}: expected FILE.svg, found the ending {plot.suffix or '(none)'}")
            if out is not None or trt_cache is not None:
                raise InputError("--scan: expected no -o and no --trt-cache, found one: a scan writes no bundle")
            options = ScanChoices(scan_frames, scan_blocks, scan_state, plot)
            return scan_bundle(bundle, images, choices, options, progress)
        if check_fp16:
            from crispseg.cli_calibrate_fp16 import check_half

            if out is not None or trt_cache is not None:
                raise InputError("--check-fp16: expected no -o and no --trt-cache, found one: it writes no bundle")
            return check_half(bundle, images, choices, progress)
        return calibrate_bundle(bundle, images, out, choices, progress)

    execute(work, json=json, title="calibrating", report_file=report)
