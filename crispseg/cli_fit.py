"""The command that trains small bases and refiners."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer

from crispseg.cli import JSON, SIZE, THREADS, app, parse_size, split
from crispseg.cli_make import CLASSES, PLANES, REPEATS, SCALE, THRESHOLD, levels, require_host_python
from crispseg.errors import InputError


class What(str, Enum):
    """Networks that can be trained."""

    refiner = "refiner"
    base = "base"


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
BASE_BUNDLE = typer.Option(
    None,
    "--bundle",
    help="bundle whose base the refiner is for, also your own network; says size, scale and classes (refiner only)",
    show_default=False,
)
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
def fit(
    context: typer.Context,
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
    bundle: Optional[Path] = BASE_BUNDLE,
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
    from crispseg.cli_output import Interrupted, execute
    from crispseg.cli_unused import of_training, refuse_unused

    refuse_unused(context, of_training(what.value, bundle is not None))
    if len(images) != len(labels):
        raise InputError(f"expected one --labels for each --images, found {len(labels)} for {len(images)}")
    if (val_images is None) != (val_labels is None):
        raise InputError("expected --val-images and --val-labels together, found one of them")

    def work(progress):  # type: ignore[no-untyped-def]
        require_host_python("fit")
        from crispseg.classes import load_classes
        from crispseg.fit.options import FitOptions
        from crispseg.report import new_report

        frame: Dict[str, Any]
        if bundle is None:
            height, width = parse_size(size)
            frame = {"height": height, "width": width, "num_classes": len(load_classes(classes)), "scale": scale}
        else:
            given, frame = open_base(bundle, threads, device)
        options = FitOptions(
            out=out,
            **frame,
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
        if bundle is not None:
            from crispseg.fit.refine import fit_refiner

            train: Any = partial(fit_refiner, given=given)
        elif what is What.refiner:
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

        before = last_written(out)
        try:
            return new_report("fit", what=what.value, out=str(out), **train(options, tell))
        except KeyboardInterrupt:
            if last_written(out) == before:
                raise
            raise Interrupted(f"interrupted; the same command with --resume goes on from {out / 'last.pt'}") from None

    execute(work, json=json, title="training")


def last_written(out: Path) -> Optional[int]:
    """When the state of a run was written, ns; None when there is none."""
    try:
        return (out / "last.pt").stat().st_mtime_ns
    except OSError:
        return None


def open_base(path: Path, threads: int, device: str) -> Tuple[Any, Dict[str, Any]]:
    """The base of a bundle in ONNX Runtime, as ``fit_refiner`` takes it, and what the bundle says of frame and classes.

    Raises:
        BundleError: no bundle of base and refiner. InputError: its base has random weights.
    """
    import numpy as np

    from crispseg.bundle import load_bundle
    from crispseg.engines import ort
    from crispseg.engines.spec import EngineSpec
    from crispseg.fit.refine import GivenBase
    from crispseg.runtime.geometry import resize_image
    from crispseg.runtime.pipeline import normalise

    bundle = load_bundle(path)
    net = bundle.base
    if net.random_weights:
        raise InputError(f"--bundle {path}: expected a trained base, found random weights; export it with --weights")
    dense = ort.load(bundle.file(net.file), EngineSpec("onnxruntime", threads=threads))

    def run(image: Any) -> Any:
        value = np.empty((1, 3, net.height, net.width), np.float32)
        normalise(resize_image(np.ascontiguousarray(image), net.height, net.width), net, value)
        return dense.run({"image": value}, ("logits",))["logits"]

    frame = {"height": bundle.height, "width": bundle.width, "num_classes": len(bundle.classes)}
    scale = net.height / bundle.height
    return GivenBase(run, net.upsample, device), {**frame, "scale": scale, "bundle": bundle.name}


def parse_range(text: Optional[str], option: str) -> Optional[Tuple[float, float]]:
    """Two numbers out of LOW,HIGH; None stays None. Raises InputError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: expected LOW,HIGH, for example 0.5,2") from None
    return low, high
