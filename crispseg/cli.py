"""The command line: parse, call, print. Every heavy import happens inside a command."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import typer
import typer.core

from crispseg.errors import InputError


class Commands(typer.core.TyperGroup):
    """The commands; the parser alone would end on Ctrl-C without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            from crispseg.cli_output import Interrupted

            raise Interrupted("interrupted") from None


app = typer.Typer(
    name="crispseg",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segments high-resolution images and video: a base network at low resolution, a sparse refiner where it is "
    "unsure. Every command takes --json.",
)


class Backend(str, Enum):
    """Where the networks run."""

    native = "native"
    onnxruntime = "onnxruntime"
    cuda = "cuda"
    tensorrt = "tensorrt"


class Fit(str, Enum):
    """How a frame of another size is brought to the bundle's."""

    auto = "auto"
    resize = "resize"
    letterbox = "letterbox"


BUNDLE = typer.Argument(..., metavar="BUNDLE", help="directory that crispseg export wrote", show_default=False)
INPUT = typer.Argument(
    ...,
    metavar="INPUT",
    show_default=False,
    help="image, folder, glob, video, camera:0, RTSP address or GStreamer pipeline",
)
OUT = typer.Option(..., "-o", "--out", help="folder for the results", show_default=False)
SAVE = typer.Option("labels,overlay", "--save", help="any of labels,overlay,color,confidence")
BACKEND = typer.Option(
    Backend.native, "--backend", help="required, never substituted; cuda, tensorrt: after crispseg build"
)
PRECISION = typer.Option("", "--precision", help="fp32, fp16 or int8; default: fp16 on a GPU, else fp32")
DEVICE = typer.Option(0, "--device", min=0, help="number of the GPU")
REFINER_ENGINE = typer.Option(
    False, "--refiner-engine", help="tensorrt: the refiner as an engine too, built before; else our CUDA kernels"
)
BUDGET = typer.Option(None, "--budget-ms", help="refine so few pixels that no frame takes longer; measured first")
PROVIDER = typer.Option("CPUExecutionProvider", "--provider", help="ONNX Runtime provider; required, never substituted")
THREADS = typer.Option(0, "--threads", min=0, max=1024, help="0 = all usable CPUs")
FIT = typer.Option(Fit.auto, "--fit", help="frames of another size: auto = resize, letterbox if the aspect differs")
LIMIT = typer.Option(None, "--limit", min=1, help="stop after this many frames")
ALPHA = typer.Option(0.5, "--alpha", min=0.0, max=1.0, help="opacity of the overlay")
OUTLINE = typer.Option(False, "--outline", help="draw the outline of the refined pixels into the overlay")
LEGEND = typer.Option(False, "--legend", help="draw a table of the classes into the overlay")
REFINE = typer.Option(True, "--refine/--no-refine", help="--no-refine: the base alone")
JSON = typer.Option(False, "--json", help="print one JSON document")
REPORT = typer.Option(None, "--report", help="also write the report: FILE.json or FILE.html", show_default=False)
FRAMES_FROM = typer.Option(None, "--input", help="image, folder, glob or video; else rendered scenes")
BASELINE = typer.Option(False, "--baseline", help="also the same base dense at full resolution")
SECONDS = typer.Option(3.0, "--seconds", min=0.0, max=3600.0, help="measured time for each pipeline")
WARMUP = typer.Option(1.0, "--warmup", min=0.0, max=3600.0, help="warm-up time, s")
MIN_RUNS = typer.Option(10, "--min-runs", min=1, help="least number of measured runs")
LAYERS = typer.Option(False, "--layers", help="also time, algorithm and GFLOP/s of each convolution of the refiner")
IMAGES = typer.Argument(..., metavar="IMAGES", help="folder of images, or one", show_default=False)
LABELS = typer.Argument(..., metavar="LABELS", help="folder of 8-bit label maps of the same stems", show_default=False)
RATIO = typer.Option(0.02, "--boundary-ratio", help="width of a boundary as a share of the image diagonal")
COUNT = typer.Option(
    ..., "-n", "--count", min=1, help="number of scenes, or of frames with --video", show_default=False
)
SIZE = typer.Option("1024x2048", "--size", help="height x width, px")
SEED = typer.Option(0, "--seed", help="the same seed gives the same pixels")
VIDEO = typer.Option(False, "--video", help="one clip with a moving camera, also as clip.mp4")
HASHES = typer.Option(True, "--hashes/--no-hashes", help="check the SHA-256 of every file")
VERSION = typer.Option(False, "--version", help="print the version", is_eager=True)


@app.callback(invoke_without_command=True)
def entry(context: typer.Context, version: bool = VERSION) -> None:  # noqa: D103  (the help text is the app's)
    if version:
        import crispseg

        print(f"crispseg {crispseg.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@app.command()
def run(
    context: typer.Context,
    bundle: Path = BUNDLE,
    input: str = INPUT,
    out: Path = OUT,
    save: str = SAVE,
    backend: Backend = BACKEND,
    provider: str = PROVIDER,
    threads: int = THREADS,
    precision: str = PRECISION,
    device: int = DEVICE,
    refiner_engine: bool = REFINER_ENGINE,
    budget_ms: Optional[float] = BUDGET,
    fit: Fit = FIT,
    limit: Optional[int] = LIMIT,
    alpha: float = ALPHA,
    outline: bool = OUTLINE,
    legend: bool = LEGEND,
    refine: bool = REFINE,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Segment images, a video or a live source.

    Example: crispseg run demo/bundle drive.mp4 -o out --save labels,overlay
    """
    from crispseg.cli_output import execute, warn
    from crispseg.cli_unused import of_backend, of_pictures, refuse_unused
    from crispseg.runtime.interrupt import exit_code

    refuse_unused(context, {**of_backend(backend.value), **of_pictures(split(save))})

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.run import run

        return run(
            bundle,
            input,
            out,
            save=save,
            backend=backend.value,
            provider=provider,
            threads=threads,
            precision=precision,
            device=device,
            refiner_engine=refiner_engine,
            budget_ms=budget_ms,
            fit=fit.value,
            limit=limit,
            alpha=alpha,
            outline=outline,
            legend=legend,
            refine=refine,
            progress=progress,
            warn=warn,
        )

    result = execute(work, json=json, title="segmenting", report_file=report)
    if result.get("interrupted"):
        raise typer.Exit(exit_code())


@app.command()
def latency(
    context: typer.Context,
    bundle: Path = BUNDLE,
    input: Optional[str] = FRAMES_FROM,
    baseline: bool = BASELINE,
    backend: Backend = BACKEND,
    provider: str = PROVIDER,
    threads: int = THREADS,
    precision: str = PRECISION,
    device: int = DEVICE,
    refiner_engine: bool = REFINER_ENGINE,
    budget_ms: Optional[float] = BUDGET,
    seconds: float = SECONDS,
    warmup: float = WARMUP,
    min_runs: int = MIN_RUNS,
    layers: bool = LAYERS,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Measure stage times, density, throughput and memory.

    Example: crispseg latency demo/bundle --baseline --report latency.html
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import of_backend, refuse_unused

    refuse_unused(context, of_backend(backend.value))

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.latency import measure

        return measure(
            bundle,
            input=input,
            baseline=baseline,
            backend=backend.value,
            provider=provider,
            threads=threads,
            precision=precision,
            device=device,
            refiner_engine=refiner_engine,
            budget_ms=budget_ms,
            seconds=seconds,
            warmup=warmup,
            min_runs=min_runs,
            layers=layers,
            progress=progress,
        )

    execute(work, json=json, title="measuring", report_file=report)


@app.command("eval")
def evaluate(
    context: typer.Context,
    bundle: Path = BUNDLE,
    images: Path = IMAGES,
    labels: Path = LABELS,
    baseline: bool = BASELINE,
    backend: Backend = BACKEND,
    provider: str = PROVIDER,
    threads: int = THREADS,
    precision: str = PRECISION,
    device: int = DEVICE,
    refiner_engine: bool = REFINER_ENGINE,
    limit: Optional[int] = LIMIT,
    boundary_ratio: float = RATIO,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Measure mIoU and boundary IoU of base, refined result and full-size base.

    Example: crispseg eval demo/bundle val/images val/labels --baseline
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import of_backend, refuse_unused

    refuse_unused(context, of_backend(backend.value))

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.accuracy import evaluate

        return evaluate(
            bundle,
            images,
            labels,
            baseline=baseline,
            backend=backend.value,
            provider=provider,
            threads=threads,
            precision=precision,
            device=device,
            refiner_engine=refiner_engine,
            limit=limit,
            boundary_ratio=boundary_ratio,
            progress=progress,
        )

    execute(work, json=json, title="evaluating", report_file=report)


@app.command()
def scenes(
    count: int = COUNT,
    out: Path = OUT,
    size: str = SIZE,
    seed: int = SEED,
    video: bool = VIDEO,
    json: bool = JSON,
) -> None:
    """Draw procedural street scenes with exact labels (CamVid's 11 classes).

    Example: crispseg scenes -n 50 --size 1024x2048 -o street --video
    """
    from crispseg.cli_output import execute

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.report import new_report
        from crispseg.scenes import write_scenes

        height, width = parse_size(size)
        progress(0, count)
        return new_report("scenes", **write_scenes(out, count, height, width, seed=seed, video=video))

    execute(work, json=json, title="drawing")


@app.command()
def inspect(bundle: Path = BUNDLE, hashes: bool = HASHES, json: bool = JSON) -> None:
    """Show what a bundle holds.

    Example: crispseg inspect demo/bundle
    """
    from crispseg.cli_output import execute, show_bundle

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.bundle_masks import is_mask_bundle

        if is_mask_bundle(bundle):
            from crispseg.runtime.describe_masks import describe_masks

            return describe_masks(bundle, verify=hashes)
        from crispseg.runtime.describe import describe

        return describe(bundle, verify=hashes)

    def show(result):  # type: ignore[no-untyped-def]
        if "classes" in result:
            return show_bundle(result)
        from crispseg.runtime.describe_masks import show_masks

        return show_masks(result)

    execute(work, json=json, title="reading", show=show)


@app.command()
def doctor(json: bool = JSON) -> None:
    """Say what this machine can run, what not, and the command that fixes it.

    Example: crispseg doctor
    """
    from crispseg.cli_output import execute, show_doctor

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.doctor import examine

        return examine(progress)

    execute(work, json=json, title="examining", show=show_doctor)


def parse_size(text: str) -> Tuple[int, int]:
    """(height, width) of "1024x2048". Raises InputError."""
    parts = text.lower().replace("*", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise InputError(f"--size {text}: expected height x width in px, for example 1024x2048")
    return int(parts[0]), int(parts[1])


def split(text: str) -> Tuple[str, ...]:
    """Items of a comma-separated option."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def parse_integers(text: str, name: str) -> Tuple[int, ...]:
    """Positive integers of a comma-separated option. Raises InputError."""
    items = split(text)
    if not items or not all(item.isdigit() and int(item) for item in items):
        raise InputError(f"{name} {text}: expected positive integers with commas, for example 16,32,48")
    return tuple(int(item) for item in items)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit code and never raises for anything that a command did."""
    from crispseg.runtime.interrupt import as_ctrl_c

    given: List[str] = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):  # a file name that the terminal's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with as_ctrl_c():
            code = typer.main.get_command(app)(args=given, prog_name="crispseg", standalone_mode=False)
            sys.stdout.flush()
        return int(code) if isinstance(code, int) else 0
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, (int, type(None))) else 1
    except BaseException as error:
        from crispseg.cli_output import report_failure

        return report_failure(error, "--json" in given)


# They add their commands.
from crispseg import cli_build, cli_calibrate, cli_eval_masks, cli_fit, cli_make, cli_masks  # noqa: E402, F401
