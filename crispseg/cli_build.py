"""The command that compiles a bundle for this machine."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from crispseg.cli import BUNDLE, JSON, REPORT, app
from crispseg.errors import InputError


class Target(str, Enum):
    """Backends that a bundle can be compiled for; native runs without as well."""

    tensorrt = "tensorrt"
    cuda = "cuda"
    native = "native"


class Precision(str, Enum):
    """Arithmetic of the engines."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Part(str, Enum):
    """Networks of a bundle that have engines."""

    base = "base"
    refiner = "refiner"
    baseline = "baseline"


TARGET = typer.Option(Target.tensorrt, "--backend", help="tensorrt: engines; cuda: kernels alone, base in ONNX Runtime")
PRECISION = typer.Option(Precision.fp16, "--precision", help="int8 needs a calibrated bundle")
WORKSPACE = typer.Option(None, "--workspace", min=1, help="most scratch memory of a layer, MiB; default: all")
TIMING = typer.Option(None, "--timing-cache", help="file of measured times; default: one in the bundle")
LEVEL = typer.Option(None, "--opt-level", min=0, max=5, help="builder optimisation level, TensorRT 8.6 and later")
PROFILE = typer.Option([], "--profile", help="[INPUT=]MIN,OPT,MAX shapes of an input with open sides, as 1x3x512x1024")
DLA = typer.Option(None, "--dla", min=0, help="DLA core for the base (Jetson), GPU for what it cannot run")
CALIBRATION = typer.Option(None, "--calibration-cache", help="TensorRT 8.x or 10 int8 ranges for a base without Q/DQ")
CAPACITY = typer.Option(None, "--capacity", min=1, help="most refined pixels a frame; default: the bundle's")
PLUGIN_REFINER = typer.Option(
    None,
    "--refiner-engine/--no-refiner-engine",
    help="also the refiner as an engine with the plugin library; default: "
    "when that library is there (crispseg run takes it with --refiner-engine)",
)
BASELINE_TOO = typer.Option(False, "--baseline", help="also the base dense at full size, for comparison")
DEVICE = typer.Option(0, "--device", min=0, help="number of the GPU")
PART = typer.Option(Part.base, "--part", help="which network's engine")
RUNS = typer.Option(20, "--runs", min=1, help="measured runs; profiled runs are slower than others")
ASKED = typer.Option(None, "--precision", help="default: fp16, native fp32. int8 needs a calibrated bundle, or ranges")
DETERMINISTIC = typer.Option(False, "--deterministic", help="native: choose algorithms by rule instead of by time")
FORCE = typer.Option(False, "--force", help="build again what is there")


@app.command()
def build(
    context: typer.Context,
    bundle: Path = BUNDLE,
    backend: Target = TARGET,
    asked: Optional[Precision] = ASKED,
    workspace: Optional[int] = WORKSPACE,
    timing_cache: Optional[Path] = TIMING,
    opt_level: Optional[int] = LEVEL,
    profile: List[str] = PROFILE,
    dla: Optional[int] = DLA,
    calibration_cache: Optional[Path] = CALIBRATION,
    capacity: Optional[int] = CAPACITY,
    refiner_engine: Optional[bool] = PLUGIN_REFINER,
    baseline: bool = BASELINE_TOO,
    device: int = DEVICE,
    deterministic: bool = DETERMINISTIC,
    force: bool = FORCE,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Compile a bundle for this machine, into BUNDLE/engines.

    Example: crispseg build demo/bundle --backend tensorrt --precision fp16
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import of_build, refuse_unused

    refuse_unused(context, of_build(backend.value))
    if refiner_engine is False:
        refuse_unused(context, {"capacity": "expected the refiner's engine with it, found --no-refiner-engine"})
    precision = asked or Precision.fp16

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.bundle import load_bundle
        from crispseg.bundle_masks import is_mask_bundle

        mask = is_mask_bundle(bundle)
        if mask and backend is not Target.tensorrt:
            raise InputError(f"--backend {backend.value}: a mask refiner needs no build there; use crispseg refine")
        if mask:
            of_segmentation = ("baseline", "refiner_engine", "capacity", "calibration_cache")
            refuse_unused(
                context, {name: "expected a segmentation bundle, found a mask refiner" for name in of_segmentation}
            )
        loaded = None if mask else load_bundle(bundle)
        if loaded is not None:
            require_parts(loaded, baseline, bool(refiner_engine) or capacity is not None)
        if backend is Target.native:
            return build_native(loaded, asked and asked.value, deterministic, force, progress)
        if backend is Target.cuda:
            return build_kernels(loaded, precision.value, baseline, device, force, progress)
        from crispseg.engines.tensorrt.build import BuildOptions, parse_profile

        options = BuildOptions(
            precision=precision.value,
            workspace_mib=workspace,
            timing_cache=timing_cache,
            opt_level=opt_level,
            profiles=dict(parse_profile(text) for text in profile),
            dla=dla,
            calibration=calibration_cache,
        )
        if mask:
            return build_masks(bundle, options, device, force, progress)
        roles = ["base", "baseline"] if baseline else ["base"]
        return build_engines(loaded, options, roles, refiner_engine, capacity or 0, device, force, progress)

    execute(work, json=json, title="building", report_file=report)


@app.command("layers")
def layer_table(
    bundle: Path = BUNDLE,
    part: Part = PART,
    precision: Precision = PRECISION,
    runs: int = RUNS,
    device: int = DEVICE,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Times, types and formats of the layers of a TensorRT engine.

    Example: crispseg layers demo/bundle --part base
    """
    from crispseg.cli_output import execute

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.bundle import bundle_facts, load_bundle
        from crispseg.engines.cuda import open_device
        from crispseg.engines.tensorrt import compat, profile, run
        from crispseg.environment import environment
        from crispseg.report import new_report

        loaded = load_bundle(bundle)
        trt = compat.require()
        context = open_device(device)
        with run.load(loaded, part.value, context, precision=precision.value, trt=trt) as engine:
            progress(0, None, "profiling")
            facts = {**engine.describe(), **profile.examine(engine, runs)}
        return new_report("layers", bundle=bundle_facts(loaded), part=part.value, device=context.info.name, **facts,
                          environment=environment())  # fmt: skip

    execute(work, json=json, title="profiling", report_file=report)


def require_parts(bundle: Any, baseline: bool, refiner: bool) -> None:
    """Raise InputError for a part of the bundle that is asked for by an option and is not there."""
    if baseline and bundle.baseline is None:
        raise InputError(f"bundle {bundle.path}: expected a baseline for --baseline, found none; export it with one")
    if refiner and bundle.refiner is None:
        raise InputError(
            f"bundle {bundle.path}: expected a refiner for --refiner-engine or --capacity, found none; leave them out"
        )


def build_native(
    bundle: Any, precision: Optional[str], deterministic: bool, force: bool, progress: Any
) -> Dict[str, Any]:
    """Pack the refiner's weights and choose an algorithm for each layer (backend native)."""
    from crispseg.bundle import bundle_facts
    from crispseg.engines import native_artefact
    from crispseg.environment import environment
    from crispseg.report import new_report

    if precision not in (None, "fp32", "int8"):
        raise InputError(f"--precision {precision}: expected fp32 or int8 of backend native")
    artefact = native_artefact.build(bundle, deterministic, force, progress, precision or "fp32")
    facts = artefact.facts
    made = artefact.identity
    row = {"part": "refiner", "precision": made.spec["precision"], "key": made.key[:16], "isa": made.environment["isa"],
           "mib": round(facts["bytes"] / 2**20, 1), "deterministic": facts["deterministic"]}  # fmt: skip
    return new_report("build", bundle=bundle_facts(bundle), backend="native", engines=[row],
                      plan=facts["plan"], environment=environment())  # fmt: skip


def build_kernels(
    bundle: Any, precision: str, baseline: bool, device: int, force: bool, progress: Any
) -> Dict[str, Any]:
    """Put CUDA kernels, and dense networks in fp16, into the bundle's cache (backend cuda)."""
    from crispseg.bundle import bundle_facts
    from crispseg.engines import cuda_base, cuda_kernels
    from crispseg.engines.cuda import open_device
    from crispseg.environment import environment
    from crispseg.report import new_report

    context = open_device(device)
    artefacts = [cuda_kernels.build(bundle, context, progress)]
    for role in ("base", "baseline") if baseline else ("base",):
        if precision != "fp32" and getattr(bundle, role) is not None:  # int8 is a matter of the refiner there
            artefacts.append(cuda_base.build(bundle, role, to_precision, progress, force))
    rows = [{"part": item.identity.role, "key": item.identity.key[:16], **item.facts} for item in artefacts]
    return new_report("build", bundle=bundle_facts(bundle), backend="cuda", device=context.info.name, engines=rows,
                      environment=environment())  # fmt: skip


def build_engines(
    bundle: Any,
    options: Any,
    roles: List[str],
    refiner: Optional[bool],
    capacity: int,
    device: int,
    force: bool,
    progress: Any,
) -> Dict[str, Any]:
    """Build the TensorRT engines of a bundle (backend tensorrt). ``refiner`` None: when the plugin library is there."""
    from crispseg.bundle import bundle_facts
    from crispseg.engines.tensorrt import compat
    from crispseg.environment import environment
    from crispseg.report import new_report

    trt = compat.require()  # before the device: without TensorRT its absence is the news
    from crispseg.engines.cuda import open_device
    from crispseg.engines.tensorrt.artefacts import build_bundle
    from crispseg.engines.tensorrt.registry import find_library
    from crispseg.errors import EnvironmentMismatch

    notes: List[str] = []
    if refiner is not False and bundle.refiner is not None:
        try:
            find_library()
            roles = [*roles, "refiner"]
        except EnvironmentMismatch as error:
            if refiner:
                raise
            notes.append("no engine of the refiner, which runs in the CUDA kernels instead: %s" % error)
    context = open_device(device)
    rows = build_bundle(
        bundle, options, to_precision, context, trt=trt, roles=roles, capacity=capacity, force=force, progress=progress
    )
    return new_report("build", bundle=bundle_facts(bundle), backend="tensorrt", tensorrt=compat.version(trt),
                      device=context.info.name, engines=rows, notes=notes, environment=environment())  # fmt: skip


def build_masks(bundle: Path, options: Any, device: int, force: bool, progress: Any) -> Dict[str, Any]:
    """Build the TensorRT engines of a mask refiner."""
    from crispseg.bundle_masks import CrmInfo, load_mask_bundle, mask_bundle_facts
    from crispseg.engines.tensorrt import compat
    from crispseg.environment import environment
    from crispseg.report import new_report

    loaded = load_mask_bundle(bundle)
    trt = compat.require()  # before the device: without TensorRT its absence is the news
    from crispseg.engines.cuda import open_device

    context = open_device(device)
    how: Dict[str, Any] = {"trt": trt, "force": force, "progress": progress}
    if isinstance(loaded.refiner, CrmInfo):
        from crispseg.engines.tensorrt.masks_crm import build_crm_engines
        from crispseg.runtime.crm_profiles import crm_profiles

        rows = build_crm_engines(loaded, options, crm_profiles(loaded.refiner), to_precision, context, **how)
    else:
        from crispseg.engines.tensorrt.masks_segrefiner import build_segrefiner_engine

        rows = build_segrefiner_engine(loaded, options, to_precision, context, **how)
    return new_report("build", bundle=mask_bundle_facts(loaded), backend="tensorrt", tensorrt=compat.version(trt),
                      device=context.info.name, engines=rows, environment=environment())  # fmt: skip


def to_precision(model: Any, precision: str) -> Any:
    """A dense network as it is built; fp32 files are taken as they are.

    "fp16": cast where that is safe. "int8": weights as float pairs, which TensorRT 8 wants; its flags choose the type
    of the rest. "int8-typed": what is not int8 becomes float16 in the file, for a TensorRT that knows no such flags.
    """
    if precision == "int8":
        from crispseg.export.passes.int8_pairs import weight_pairs

        weight_pairs(model)
    elif precision in ("fp16", "int8-typed"):
        from crispseg.export.passes.fp16 import to_fp16

        to_fp16(model, quantised=precision == "int8-typed")
    return model
