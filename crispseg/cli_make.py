"""The commands that need PyTorch: export, verify and fit; and the list of bases that export knows."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer

from crispseg.cli import BASELINE, BUNDLE, JSON, REPORT, SIZE, THREADS, app, parse_integers, parse_size, split
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


class What(str, Enum):
    """Networks that can be trained."""

    refiner = "refiner"
    base = "base"


BASE = typer.Argument(
    None,
    metavar="[BASE]",
    help="a base that crispseg bases lists, torchvision:NAME or smp:ARCHITECTURE:ENCODER",
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
NAME = typer.Option(None, "--name", help="name of the bundle")
WINDOW = typer.Option(None, "--window", min=32, help="segrefiner: side of its input, px; default: 256")
MASK_MODE = typer.Option(None, "--mode", help="segrefiner: instance (LR checkpoint, default) or semantic (HR)")
BUNDLE_OUT = typer.Option(..., "-o", "--out", metavar="BUNDLE", help="directory to write", show_default=False)
VERIFY_IMAGES = typer.Option(None, "--images", help="folder of real frames; else rendered scenes")
VERIFY_PRECISION = typer.Option("", "--precision", help="fp32 (default), or int8: the files of crispseg calibrate")
FRAMES = typer.Option(2, "--frames", min=1, help="number of frames to compare on")

WHAT = typer.Argument(..., metavar="refiner|base", help="network to train", show_default=False)
TRAIN_IMAGES = typer.Option([], "--images", help="folder of images; may be repeated", show_default=False)
TRAIN_LABELS = typer.Option([], "--labels", help="folder of labels, one for each --images", show_default=False)
VAL_IMAGES = typer.Option(None, "--val-images", help="validation images", show_default=False)
VAL_LABELS = typer.Option(None, "--val-labels", help="validation labels", show_default=False)
SCENES = typer.Option(0, "--scenes", min=0, help="number of procedural scenes to train on")
SCENE_SHARE = typer.Option(0.25, "--scene-share", min=0.0, max=1.0, help="share of scenes in a batch beside images")
STEPS = typer.Option(2000, "--steps", min=1, help="optimiser steps")
BATCH = typer.Option(8, "--batch", min=1, help="crops in a step")
RATE = typer.Option(1e-3, "--lr", help="highest learning rate (AdamW, cosine)")
WARMUP_STEPS = typer.Option(100, "--warmup", min=1, help="steps until the highest learning rate")
EMA = typer.Option(0.998, "--ema", min=0.0, max=0.9999, help="decay of the weight average that is validated and kept")
SCALE_RANGE = typer.Option(
    None, "--scale-range", help="random scaling of the pictures, LOW,HIGH; default 0.35,1.05 (base), 0.8,1.3 (refiner)"
)
TRAIN_SEED = typer.Option(0, "--seed", help="seed of everything random")
DEVICE = typer.Option("cpu", "--device", help="cpu, cuda or cuda:1")
RESUME = typer.Option(False, "--resume", help="continue the run in -o")
FIT_OUT = typer.Option(..., "-o", "--out", help="folder for best.pt and last.pt", show_default=False)
BASE_FILE = typer.Option(None, "--base", help="base checkpoint (refiner only)", show_default=False)
BASE_NAME = typer.Option("small", "--base-name", help="architecture of --base, see crispseg bases (refiner only)")
INIT = typer.Option(None, "--init", help="checkpoint to start from", show_default=False)
STRIDE = typer.Option(8, "--stride", help="stride of the logits, 4 or 8 (base only)")
IOU_WEIGHT = typer.Option(
    0.0, "--iou-weight", min=0.0, help="weight of the soft IoU of the merged label map beside cross-entropy (refiner)"
)
LOGIT_NOISE = typer.Option(
    0.0, "--logit-noise", min=0.0, help="noise on the base's logits, so that its good days are not trusted (refiner)"
)
BALANCE = typer.Option(0.35, "--class-balance", min=0.0, max=1.0, help="loss weight of a class: frequency ** -this")
FEATURES = typer.Option("rgb", "--features", help="inputs of the refiner: rgb,xy,p,p>0.5 (refiner only)")
EXTENT = typer.Option("image", "--extent", help="bound of the coarser levels: image or active (refiner only)")
ENSEMBLER = typer.Option("gated", "--ensembler", help="gated or entropy (refiner only)")
DENSITY = typer.Option(0.12, "--density", help="share of active pixels that sets the threshold (refiner only)")
VALIDATE_EVERY = typer.Option(400, "--validate-every", min=1, help="steps between validations")


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

    if base in MASK_REFINERS:
        require_host_python("export")
        foreign = {"--refiner-weights": refiner_weights, "--threshold": threshold, "--capacity": capacity,
                   "--planes": planes, "--repeats": repeats, "--baseline": baseline, "--module": module,
                   "--onnx": onnx, "--force": force}  # fmt: skip
        export_mask_refiner(str(base), out, weights, window, mode, half, random_weights, name, foreign, json)
        return

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
    bundle: Path = BUNDLE,
    images: Optional[Path] = VERIFY_IMAGES,
    weights: Optional[Path] = WEIGHTS,
    refiner_weights: Optional[Path] = REFINER_WEIGHTS,
    frames: int = FRAMES,
    precision: str = VERIFY_PRECISION,
    threads: int = THREADS,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Compare PyTorch, ONNX Runtime and the native engine on frames; name the first op that differs.

    Exit code 3 when they do not agree. Example: crispseg verify demo/bundle --images val/images
    """
    from crispseg.cli_output import execute

    def work(progress):  # type: ignore[no-untyped-def]
        require_host_python("verify")
        from crispseg.export.verify import verify_bundle

        return verify_bundle(
            bundle,
            images=images,
            weights=weights,
            refiner_weights=refiner_weights,
            frames=frames,
            threads=threads,
            precision=precision,
            progress=progress,
        )

    result = execute(work, json=json, title="comparing", report_file=report)
    if not result["passed"]:
        raise typer.Exit(3)  # as every AccuracyGate


@app.command()
def fit(
    what: What = WHAT,
    out: Path = FIT_OUT,
    images: List[Path] = TRAIN_IMAGES,
    labels: List[Path] = TRAIN_LABELS,
    val_images: Optional[Path] = VAL_IMAGES,
    val_labels: Optional[Path] = VAL_LABELS,
    scenes: int = SCENES,
    scene_share: float = SCENE_SHARE,
    size: str = SIZE,
    scale: float = SCALE,
    classes: str = CLASSES,
    base: Optional[Path] = BASE_FILE,
    base_name: str = BASE_NAME,
    init: Optional[Path] = INIT,
    stride: int = STRIDE,
    class_balance: float = BALANCE,
    iou_weight: float = IOU_WEIGHT,
    logit_noise: float = LOGIT_NOISE,
    planes: Optional[str] = PLANES,
    repeats: Optional[str] = REPEATS,
    features: str = FEATURES,
    extent: str = EXTENT,
    ensembler: str = ENSEMBLER,
    density: float = DENSITY,
    threshold: Optional[float] = THRESHOLD,
    steps: int = STEPS,
    batch: int = BATCH,
    lr: float = RATE,
    warmup: int = WARMUP_STEPS,
    ema: float = EMA,
    scale_range: Optional[str] = SCALE_RANGE,
    validate_every: int = VALIDATE_EVERY,
    seed: int = TRAIN_SEED,
    device: str = DEVICE,
    threads: int = THREADS,
    resume: bool = RESUME,
    json: bool = JSON,
) -> None:
    """Train a refiner on a frozen base, or a small base from scratch.

    Example: crispseg fit refiner --base base/best.pt --images train/images --labels train/labels --size 360x480 -o r
    """
    from crispseg.cli_output import execute

    if len(images) != len(labels):
        raise InputError(f"expected one --labels for each --images, found {len(labels)} for {len(images)}")
    if (val_images is None) != (val_labels is None):
        raise InputError("expected --val-images and --val-labels together, found one of them")

    def work(progress):  # type: ignore[no-untyped-def]
        require_host_python("fit")
        from crispseg.classes import load_classes
        from crispseg.fit.options import FitOptions
        from crispseg.report import new_report

        height, width = parse_size(size)
        options = FitOptions(
            out=out,
            height=height,
            width=width,
            num_classes=len(load_classes(classes)),
            scale=scale,
            folders=tuple(zip(images, labels)),
            validation=(val_images, val_labels) if val_images and val_labels else None,
            scenes=scenes,
            scene_share=scene_share,
            steps=steps,
            batch=batch,
            lr=lr,
            warmup=warmup,
            ema=ema,
            scale_range=parse_range(scale_range, "--scale-range"),
            validate_every=validate_every,
            seed=seed,
            device=device,
            threads=threads,
            resume=resume,
            base=base,
            base_name=base_name,
            init=init,
            stride=stride,
            class_balance=class_balance,
            iou_weight=iou_weight,
            logit_noise=logit_noise,
            ensembler=ensembler,
            density=density,
            threshold=threshold,
            features=split(features),
            extent=extent,
            **levels(planes, repeats, 1),
        )
        if what is What.refiner:
            from crispseg.fit.refine import fit_refiner as train
        else:
            from crispseg.fit.train import fit_base as train
        state = {}

        def tell(entry: dict) -> None:
            if "loss" in entry:
                state["loss"] = f"loss {entry['loss']:.3f}"
            if entry.get("validation"):
                state["miou"] = f"mIoU {entry['validation'].get('miou', 0):.1f}"
            progress(entry.get("step", 0), entry.get("steps"), " ".join(state.values()))

        return new_report("fit", what=what.value, out=str(out), **train(options, tell))

    execute(work, json=json, title="training")


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


def parse_range(text: Optional[str], option: str) -> Optional[Tuple[float, float]]:
    """Two numbers out of LOW,HIGH; None stays None. Raises InputError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: expected LOW,HIGH, for example 0.5,2") from None
    return low, high


def levels(planes: Optional[str], repeats: Optional[str], default: int) -> Dict[str, Any]:
    """The refiner's levels as settings; empty when neither is given. One number of repeats stands for all levels."""
    result: Dict[str, Any] = {}
    if planes:
        result["planes"] = parse_integers(planes, "--planes")
    if repeats or planes:
        counts = parse_integers(repeats, "--repeats") if repeats else (default,)
        result["repeats"] = counts * len(result["planes"]) if len(counts) == 1 and planes else counts
    return result
