"""The commands that make and compare bundles: export and verify; and the list of bases that export knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from crispseg.cli import BASELINE, BUNDLE, JSON, REPORT, SIZE, THREADS, app, parse_integers, parse_size
from crispseg.cli_foreign import (
    ARGUMENTS,
    CHANNELS,
    DROP,
    MEAN,
    MODULE,
    ONNX,
    OUTPUT,
    PAD,
    STD,
    UPSAMPLE,
    chosen_base,
)
from crispseg.cli_masks import MASK_REFINERS, export_mask_refiner
from crispseg.errors import EnvironmentMismatch, InputError

BASE = typer.Argument(
    None,
    metavar="[BASE]",
    help="a base that crispseg bases lists, torchvision:NAME or smp:ARCHITECTURE:ENCODER; or segrefiner, crm",
    show_default=False,
)
WEIGHTS = typer.Option(None, "--weights", help="checkpoint of the base or of --module", show_default=False)
REFINER = typer.Option("sparserefine", "--refiner", help="sparserefine, or none: the base alone")
REFINER_WEIGHTS = typer.Option(None, "--refiner-weights", help="checkpoint of the refiner", show_default=False)
SCALE = typer.Option(0.5, "--scale", min=0.05, max=1.0, help="size of the frame that the base sees / full size")
CLASSES = typer.Option("cityscapes", "--classes", help="cityscapes, camvid, or a file of names and colours")
THRESHOLD = typer.Option(None, "--threshold", help="entropy (nats) above which a pixel is refined")
CAPACITY = typer.Option(None, "--capacity", min=1, help="most pixels refined in a frame; default: a quarter")
PLANES = typer.Option(None, "--planes", help="channels of the refiner's levels, for example 32,64,128")
REPEATS = typer.Option(None, "--repeats", help="blocks of each level on either side, one number or one a level")
LOGITS = typer.Option("native", "--logits", help="base logits at their native stride, or at the size of its input")
RANDOM = typer.Option(False, "--random-weights", help="no checkpoints: for speed studies only")
HALF = typer.Option(False, "--half", help="store weights as float16 (half the size, float32 arithmetic)")
FORCE = typer.Option(False, "--force", help="write the bundle although a file differs from what it was made of")
STATIC = typer.Option(False, "--static", hidden=True)  # in commands of others; every export is so
NAME = typer.Option(None, "--name", help="name of the bundle")
WINDOW = typer.Option(None, "--window", min=32, help="segrefiner: side of its input, px; default: 256")
MASK_MODE = typer.Option(None, "--mode", help="segrefiner: instance (LR checkpoint, default) or semantic (HR)")
BUNDLE_OUT = typer.Option(..., "-o", "--out", metavar="BUNDLE", help="directory to write", show_default=False)
VERIFY_IMAGES = typer.Option(None, "--images", help="folder of real frames; else rendered scenes")
VERIFY_PRECISION = typer.Option("", "--precision", help="fp32 (default), or int8: the files of crispseg calibrate")
FRAMES = typer.Option(2, "--frames", min=1, help="number of frames to compare on")


@app.command()
def bases(json: bool = JSON) -> None:
    """List the base networks: size, cost, published accuracy and speed, checkpoints.

    Example: crispseg bases --json
    """
    from crispseg.cli_output import execute, show_bases

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.models.bases.listing import list_bases

        return list_bases()

    execute(work, json=json, title="reading", show=show_bases)


@app.command()
def export(
    context: typer.Context,
    base: Optional[str] = BASE,
    weights: Optional[Path] = WEIGHTS,
    refiner: str = REFINER,
    refiner_weights: Optional[Path] = REFINER_WEIGHTS,
    size: str = SIZE,
    scale: float = SCALE,
    classes: str = CLASSES,
    threshold: Optional[float] = THRESHOLD,
    capacity: Optional[int] = CAPACITY,
    planes: Optional[str] = PLANES,
    repeats: Optional[str] = REPEATS,
    logits: str = LOGITS,
    baseline: bool = BASELINE,
    half: bool = HALF,
    static: bool = STATIC,
    random_weights: bool = RANDOM,
    module: Optional[str] = MODULE,
    module_args: Optional[str] = ARGUMENTS,
    drop: List[str] = DROP,
    onnx: Optional[Path] = ONNX,
    output: Optional[str] = OUTPUT,
    mean: Optional[str] = MEAN,
    std: Optional[str] = STD,
    channels: Optional[str] = CHANNELS,
    base_upsample: Optional[str] = UPSAMPLE,
    pad: int = PAD,
    window: Optional[int] = WINDOW,
    mode: Optional[str] = MASK_MODE,
    force: bool = FORCE,
    name: Optional[str] = NAME,
    out: Path = BUNDLE_OUT,
    json: bool = JSON,
) -> None:
    """Turn checkpoints, or any network, into a bundle. BASE segrefiner or crm: a mask refiner.

    Example: crispseg export sfnet_lite_r18 --weights base.pth --refiner sparserefine --refiner-weights r.ckpt -o b
    """
    from crispseg.cli_output import execute, show_bundle
    from crispseg.cli_unused import refuse_unused

    if base in MASK_REFINERS:
        require_host_python("export")
        given = [key for key in context.params if str(context.get_parameter_source(key)).endswith("COMMANDLINE")]
        export_mask_refiner(str(base), out, weights, window, mode, half, random_weights, name, given, json)
        return
    if static:
        typer.echo("--static: shapes are always static, the option can be left out", err=True)
    if refiner == "none":
        refuse_unused(
            context, {name: "expected a refiner with it, found --refiner none" for name in ("planes", "repeats")}
        )

    def work(progress):  # type: ignore[no-untyped-def]
        height, width = parse_size(size)
        require_host_python("export")
        if window is not None or mode is not None:
            raise InputError("--window and --mode belong to crispseg export segrefiner; leave them out")
        settings = levels(planes, repeats, 2)
        chosen = chosen_base(base, module, onnx, module_args, drop, output, mean, std, channels, base_upsample, pad)
        from crispseg.export.project import export_bundle
        from crispseg.runtime.describe import describe

        export_bundle(
            chosen,
            out,
            weights=weights,
            refiner=None if refiner == "none" else refiner,
            refiner_weights=refiner_weights,
            height=height,
            width=width,
            scale=scale,
            classes=classes,
            threshold=threshold,
            capacity=capacity,
            logits=logits,
            baseline=baseline,
            random_weights=random_weights,
            half_weights=half,
            force=force,
            refiner_settings=settings,
            name=name,
            progress=lambda text: progress(text=text),
        )
        return {**describe(out), "kind": "export"}

    execute(work, json=json, title="exporting", show=show_bundle)


@app.command()
def verify(
    context: typer.Context,
    bundle: Path = BUNDLE,
    images: Optional[Path] = VERIFY_IMAGES,
    weights: Optional[Path] = WEIGHTS,
    refiner_weights: Optional[Path] = REFINER_WEIGHTS,
    frames: int = FRAMES,
    module: Optional[str] = MODULE,
    module_args: Optional[str] = ARGUMENTS,
    drop: List[str] = DROP,
    onnx: Optional[Path] = ONNX,
    output: Optional[str] = OUTPUT,
    pad: int = PAD,
    precision: str = VERIFY_PRECISION,
    threads: int = THREADS,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Compare a bundle's sources, ONNX Runtime and the native engine on frames; name the first op that differs.

    Exit code 3 when they do not agree. Example: crispseg verify demo/bundle --images val/images
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import refuse_unused

    if module is None:
        of_module = ("module_args", "drop", "pad")
        refuse_unused(context, {name: "expected --module with it, found none" for name in of_module})
        if onnx is None:
            refuse_unused(context, {"output": "expected --module or --onnx with it, found none"})

    def work(progress):  # type: ignore[no-untyped-def]
        require_host_python("verify")
        from crispseg.export.verify import verify_bundle
        from crispseg.runtime.prepare import prepared_frames

        base: Any = weights
        if module is not None or onnx is not None:
            from crispseg.bundle import load_bundle
            from crispseg.export.sources import open_source

            loaded = load_bundle(bundle)
            chosen = chosen_base(None, module, onnx, module_args, drop, output, None, None, None, None, pad)
            base = open_source(chosen, len(loaded.classes), weights, (loaded.base.height, loaded.base.width))
            base = getattr(base, "module", base)  # of an ONNX file, the source itself
        return verify_bundle(
            bundle,
            prepared_frames,
            images=images,
            weights=base,
            refiner_weights=refiner_weights,
            frames=frames,
            threads=threads,
            precision=precision,
            progress=progress,
        )

    result = execute(work, json=json, title="comparing", report_file=report)
    if not result["passed"]:
        raise typer.Exit(3)  # as every AccuracyGate


def require_host_python(command: str) -> None:
    """Export and training run on a host with a current Python; only what runs bundles supports 3.8.

    Raises:
        EnvironmentMismatch: Python is older than 3.10.
    """
    if sys.version_info < (3, 10):
        found = ".".join(map(str, sys.version_info[:2]))
        raise EnvironmentMismatch(
            f"crispseg {command} needs Python 3.10 or newer, found {found}; bundles can be made on another machine and "
            "run here"
        )


def levels(planes: Optional[str], repeats: Optional[str], default: int) -> Dict[str, Any]:
    """The refiner's levels as settings; empty when neither is given. One number of repeats stands for all levels."""
    result: Dict[str, Any] = {}
    if planes:
        result["planes"] = parse_integers(planes, "--planes")
    if repeats or planes:
        counts = parse_integers(repeats, "--repeats") if repeats else (default,)
        result["repeats"] = counts * len(result["planes"]) if len(counts) == 1 and planes else counts
    return result
