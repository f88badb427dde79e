"""The commands of the mask refiners: refine; and how export writes their bundles."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Optional, Sequence

import typer

from crispseg.cli import DEVICE, JSON, LIMIT, PROVIDER, REPORT, THREADS, app
from crispseg.errors import InputError

#: First words of `crispseg export` that make a mask-refiner bundle.
MASK_REFINERS = ("segrefiner", "crm")
_COMMON = ("base", "weights", "random_weights", "name", "out", "json")
#: What each of them takes of the parameters of `crispseg export`.
OPTIONS = {"segrefiner": (*_COMMON, "window", "mode", "half"), "crm": _COMMON}


class Mode(str, Enum):
    """How SegRefiner looks at a mask."""

    auto = "auto"
    instance = "instance"
    semantic = "semantic"


class Engine(str, Enum):
    """Where the network runs."""

    auto = "auto"
    native = "native"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


BUNDLE = typer.Argument(..., metavar="BUNDLE", help="mask-refiner bundle that crispseg export wrote")
PHOTOS = typer.Argument(..., metavar="IMAGES", help="photo, or folder of photos", show_default=False)
MASKS = typer.Argument(
    ..., metavar="MASKS", help="grey mask, folder of masks of the same stems, or COCO results (.json)"
)
OUT = typer.Option(..., "-o", "--out", help="folder for the results", show_default=False)
MODE = typer.Option(Mode.auto, "--mode", help="instance: object by object; semantic: windows; auto: the bundle's")
STEPS = typer.Option(0, "--steps", min=0, help="time steps in instance mode, 0 = all: fewer are faster and coarser")
SEED = typer.Option(0, "--seed", min=0, help="of the draws; the same seed gives the same mask on every backend")
BATCH = typer.Option(0, "--batch", min=0, help="objects or windows in one call; 0 = 2 on a CPU, 32 on a GPU")
ENGINE = typer.Option(
    Engine.auto,
    "--backend",
    help="auto: native for SegRefiner on a CPU, else onnxruntime; a named one is never replaced",
)
PRECISION = typer.Option("", "--precision", help="tensorrt: fp16 or fp32, as built; default: fp16")
LABELS = typer.Option(False, "--labels", help="the masks are label maps: refined class by class and joined")
BACKGROUND = typer.Option(
    None, "--background", min=0, max=255, help="class id that is not refined and takes what no class claims (--labels)"
)
IGNORE_EXIF = typer.Option(False, "--ignore-exif", help="the masks belong to the photos as stored, not upright")
ANNOTATIONS = typer.Option(None, "--annotations", help="COCO file with the photos' names", show_default=False)


@app.command()
def refine(
    context: typer.Context,
    bundle: Path = BUNDLE,
    images: Path = PHOTOS,
    masks: Path = MASKS,
    out: Path = OUT,
    mode: Mode = MODE,
    steps: int = STEPS,
    seed: int = SEED,
    batch: int = BATCH,
    labels: bool = LABELS,
    background: Optional[int] = BACKGROUND,
    ignore_exif: bool = IGNORE_EXIF,
    annotations: Optional[Path] = ANNOTATIONS,
    backend: Engine = ENGINE,
    provider: str = PROVIDER,
    threads: int = THREADS,
    precision: str = PRECISION,
    device: int = DEVICE,
    limit: Optional[int] = LIMIT,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Sharpen masks of photos with SegRefiner or CRM.

    Example: crispseg refine segrefiner-hr photo.jpg mask.png -o out
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import refuse_unused
    from crispseg.runtime.interrupt import exit_code

    if backend is Engine.tensorrt:
        refuse_unused(context, {"threads": "expected --backend native or onnxruntime with it, found tensorrt"})
    else:
        refuse_unused(context, {"device": f"expected --backend tensorrt with it, found {backend.value}"})

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.mask_refiner import RefineOptions
        from crispseg.runtime.mask_run import refine

        chosen = "" if mode is Mode.auto else mode.value
        engine = "" if backend is Engine.auto else backend.value
        options = RefineOptions(chosen, steps, seed, batch, engine, provider, threads, precision, device)
        return refine(
            bundle,
            images,
            masks,
            out,
            options,
            labels=labels,
            background=background,
            ignore_exif=ignore_exif,
            annotations=annotations,
            limit=limit,
            progress=progress,
        )

    result = execute(work, json=json, title="refining", report_file=report)
    if result.get("interrupted"):
        raise typer.Exit(exit_code())


def export_mask_refiner(
    kind: str,
    out: Path,
    weights: Optional[Path],
    window: Optional[int],
    mode: Optional[str],
    half: bool,
    random_weights: bool,
    name: Optional[str],
    given: Sequence[str],
    json: bool,
) -> None:
    """Write a SegRefiner or CRM bundle and print its report.

    ``given``: parameters of export that stand on the command line.

    Raises:
        InputError: an option that the refiner has no use for.
    """
    from crispseg.cli_output import execute
    from crispseg.runtime.describe_masks import describe_masks, show_masks

    wrong = [f"--{key.replace('_', '-')}" for key in given if key not in OPTIONS[kind]]
    if wrong:
        raise InputError(f"export {kind}: {', '.join(wrong)} does not belong to it; leave it out")

    def work(progress):  # type: ignore[no-untyped-def]
        def say(text: str) -> None:
            progress(text=text)

        if kind == "crm":
            from crispseg.export.crm_bundle import export_crm

            title = name or f"crm{' (random weights)' if random_weights else ''}"
            export_crm(out, weights=weights, name=title, random_weights=random_weights, progress=say)
        else:
            from crispseg.export.segrefiner_bundle import export_segrefiner_bundle

            export_segrefiner_bundle(
                out,
                weights=weights,
                window=256 if window is None else window,
                mode=mode or "instance",
                half=half,
                random_weights=random_weights,
                name=name,
                progress=say,
            )
        return {**describe_masks(out), "kind": "export"}

    execute(work, json=json, title="exporting", show=show_masks)
