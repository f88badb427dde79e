"""A bundle's engines: built into ``bundle/engines`` by `crispseg build`, found there by everything that runs.

What an engine depends on stands in its identity (``engines/cache.py``): the network's files, precision and options, the
GPU, TensorRT and, for the refiner, the plugin library.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from crispseg.bundle import Bundle
from crispseg.bundle_calibration import calibrated, network_file, runs_at
from crispseg.engines import cache
from crispseg.engines.tensorrt import compat, dla, registry
from crispseg.engines.tensorrt.build import BuildOptions, build_engine
from crispseg.errors import CrispsegError, EnvironmentMismatch, InputError, UnsupportedOp

BACKEND = "tensorrt"
# Of what this package does to a graph before TensorRT sees it (fp16 pass, strip): raised when engines must be rebuilt.
FORMAT = 3
ROLES = ("base", "refiner", "baseline")

# (dense model, precision) -> model; the fp16 pass lives with the exporter.
Convert = Callable[[Any, str], Any]


def engine_file(role: str) -> str:
    """Name of the engine inside its artefact."""
    return role + ".engine"


def refiner_precision(bundle: Bundle, precision: str) -> str:
    """What the refiner is built for: without a calibration of its own it stays fp16 beside an int8 base."""
    return "fp16" if precision == "int8" and not calibrated(bundle, "refiner") else precision


def base_precision(bundle: Bundle, options: BuildOptions) -> str:
    """What the base is built for: fp16 beside an int8 refiner when it has no int8 ranges, from wherever.

    They may come from its own calibration, from a calibration cache, or stand in its file.
    """
    if options.calibration is not None or runs_at(bundle, "base", options.precision) == options.precision:
        return options.precision
    import onnx

    model = onnx.load(str(bundle.file(bundle.base.file)), load_external_data=False)
    return "int8" if _quantised(model) else "fp16"


def source_file(bundle: Bundle, role: str, precision: str) -> str:
    """Name of the ONNX file that the engine is made from.

    Raises BundleError when the int8 file of the bundle belongs to another graph.
    """
    if calibrated(bundle, role):
        return network_file(bundle, role, precision)
    return str(getattr(bundle, role).file)  # int8: it has QuantizeLinear nodes itself, or a calibration cache beside it


def environment(trt: Any, device: Any, role: str, library: Optional[Path] = None) -> Dict[str, Any]:
    """What an engine only works with.

    Args:
        trt: the tensorrt module.
        device: cuda.DeviceInfo.
        role: "base", "baseline" or "refiner".
        library: the plugin library; its hash counts for the refiner.
    """
    facts: Dict[str, Any] = {
        "gpu": device.name,
        "compute_capability": device.capability,
        "tensorrt": compat.version(trt),
        # An engine outlives updates of the driver within a major release of CUDA.
        "cuda": device.driver.split(".")[0],
    }
    if role == "refiner":
        facts["plugin_sha256"] = cache.file_hash(library or registry.find_library())
    return facts


def identity(
    bundle: Bundle, role: str, spec: Mapping[str, Any], facts: Mapping[str, Any], capacity: int = 0
) -> cache.Identity:
    """Identity of one engine. ``spec``: all options when it is built; what matters to the caller when it is looked for.

    Raises InputError for a part that the bundle does not have.
    """
    net = getattr(bundle, role)
    if net is None:
        raise InputError("bundle %s: has no %s" % (bundle.path, role))
    asked = {**spec, "format": FORMAT}
    if role == "refiner":
        asked["precision"] = refiner_precision(bundle, spec["precision"])
        asked["capacity"] = min(capacity or net.capacity, net.capacity)
    sources = cache.sources(bundle, source_file(bundle, role, asked["precision"]))
    return cache.Identity(BACKEND, role, sources, asked, facts)


def find(
    bundle: Bundle,
    role: str,
    precision: str,
    trt: Any,
    device: Any,
    *,
    capacity: Optional[int] = 0,
    library: Optional[Path] = None,
) -> cache.Artefact:
    """The engine of a part of the bundle for this device, built before. Never builds.

    At int8 a base whose refiner alone was calibrated is fp16, unless it was built with ranges from elsewhere.
    ``capacity``: of a refiner, 0 = the bundle's, None = any: the newest is taken.

    Raises:
        EnvironmentMismatch: there is none for this device, TensorRT or precision; the message has the command.
    """
    facts = environment(trt, device, role, library)
    wanted = identity(bundle, role, {"precision": precision}, facts, capacity or 0)
    if role == "base" and runs_at(bundle, role, precision) != precision:
        try:
            return cache.find(bundle.path, wanted)
        except EnvironmentMismatch:  # no ranges of whatever kind: base_precision
            return cache.find(bundle.path, identity(bundle, role, {"precision": "fp16"}, facts))
    if capacity is None:
        spec = {key: value for key, value in wanted.spec.items() if key != "capacity"}
        wanted = dataclasses.replace(wanted, spec=spec)
    return cache.find(bundle.path, wanted)


def build_bundle(
    bundle: Bundle,
    options: BuildOptions,
    convert: Convert,
    context: Any,
    *,
    trt: Any = None,
    roles: Sequence[str] = ("base", "refiner"),
    capacity: int = 0,
    library: Optional[Path] = None,
    pack: Any = None,
    force: bool = False,
    progress: Optional[Callable[..., None]] = None,
) -> List[Dict[str, Any]]:
    """Build the engines of a bundle for the device of ``context``; those that are there already are kept.

    Args:
        bundle: checked.
        options: how; ``timing_cache`` None takes one beside the engines.
        convert: brings a dense model to "fp16", "int8" or, where TensorRT takes every type from the file, "int8-typed".
        context: cuda.Context of the device.
        trt: the tensorrt module; None imports it.
        roles: which parts; those that the bundle lacks are skipped. The refiner's engine needs the plugin library.
        capacity: most active pixels of the refiner, 0 = the bundle's.
        library: the plugin library; None finds it.
        pack: packs weights for the kernels; None uses the CUDA library.
        force: build again what is there.
        progress: called with (done, total, text).

    Returns:
        One row for each engine: part, precision, seconds, MiB, layers, and whether it was ``built`` or ``kept``.
    """
    trt = compat.require() if trt is None else trt
    if options.calibration is not None and any(calibrated(bundle, role) for role in roles if role != "refiner"):
        raise InputError(
            "calibration cache: expected a base without ranges of its own; bundle %s has an int8 base, whose "
            "QuantizeLinear nodes hold them: leave --calibration-cache out" % bundle.path
        )
    cache.require_room(bundle.path)
    roles = [role for role in roles if getattr(bundle, role) is not None]
    image = kernel_image(bundle, context, True, progress)  # frames are prepared and refined by kernels in any case
    if "refiner" in roles:
        library = library or registry.find_library()
        registry.load(trt, library, image)
    options = with_timing_cache(bundle.path, options, trt, context)
    rows = []
    for role in roles:
        facts = environment(trt, context.info, role, library)
        spec = options.spec()
        if role == "base":
            spec["precision"] = base_precision(bundle, options)
        wanted = identity(bundle, role, spec, facts, capacity)
        kept = None if force else _kept(bundle, wanted)
        if kept is None:
            artefact = _build(bundle, role, wanted, options, convert, trt, pack, progress)
        else:
            artefact = kept
        rows.append(_row(artefact, kept is not None))
    return rows


def with_timing_cache(bundle: Path, options: BuildOptions, trt: Any, context: Any) -> BuildOptions:
    """The options with a timing cache beside the engines of the bundle there, unless they name one."""
    if options.timing_cache is not None:
        return options
    name = "timing-%s-sm%d.cache" % (compat.version(trt), context.info.capability)
    return _with(options, timing_cache=bundle / cache.FOLDER / name)


def _build(
    bundle: Bundle, role: str, wanted: cache.Identity, options: BuildOptions, convert: Convert, trt: Any, pack: Any,
    progress: Optional[Callable[..., None]],
) -> cache.Artefact:  # fmt: skip
    from crispseg.engines.tensorrt import strip

    start = time.perf_counter()
    precision = wanted.spec["precision"]
    model = _read(bundle, source_file(bundle, role, precision))
    if role == "refiner":
        room = min(strip.SCRATCH, (options.workspace_mib or 1 << 20) << 20)
        packer = pack or strip.pack_with_library()
        front = strip.strip_refiner(model, precision, packer, wanted.spec["capacity"], room)
        options = _with(options, precision=precision, calibration=None, profiles={}, dla=None)
        registry.require_fields(trt, front.model)
    else:
        options = _with(options, precision=precision)
        if precision == "int8" and options.calibration is None:
            _require_quantised(model, bundle, role)
            if options.dla is not None and not dla.quantises(trt):
                raise UnsupportedOp(
                    "bundle %s: %s: --dla %d: the DLA of TensorRT %s takes int8 ranges from a calibration cache alone, "
                    "found QuantizeLinear nodes; use --precision fp16, or a bundle without an int8 base and "
                    "--calibration-cache" % (bundle.path, role, options.dla, compat.version(trt))
                )
        typed = precision == "int8" and options.calibration is None and compat.strongly_typed(trt)
        converted = convert(model, "int8-typed" if typed else precision)
        front = strip.describe(model if converted is None else converted)
    built = build_engine(
        front.model.SerializeToString(),
        options,
        what=role,
        nodes=front.nodes,
        plugins=front.plugins,
        floats=front.floats,
        progress=progress,
        trt=trt,
    )
    facts = {**built.facts, "total_s": round(time.perf_counter() - start, 2)}
    return cache.store(bundle.path, wanted, {engine_file(role): built.plan}, facts)


def _read(bundle: Bundle, name: str) -> Any:
    """The network with its weights. Raises BundleError."""
    import onnx

    from crispseg.engines.external_data import check_external_data

    path = bundle.file(name)
    check_external_data(path)
    return onnx.load(str(path))


def _require_quantised(model: Any, bundle: Bundle, role: str) -> None:
    if not _quantised(model):
        raise UnsupportedOp(
            "bundle %s: %s: --precision int8 needs QuantizeLinear nodes in the ONNX file, found none; run "
            "`crispseg calibrate` on it first, or use --precision fp16" % (bundle.path, role)
        )


def _quantised(model: Any) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def kernel_image(
    bundle: Bundle, context: Any, build: bool = False, progress: Optional[Callable[..., None]] = None
) -> Optional[Path]:
    """The kernels' image for this device: None when it is linked into the library, else a file of the bundle's cache.

    Args:
        bundle: checked.
        context: cuda.Context.
        build: compile it when it is not there.
        progress: of the compilation.

    Raises:
        EnvironmentMismatch: no image and not to be built, or no compiler.
    """
    from crispseg.engines import cuda_kernels

    cuda_kernels.require_capability(context)
    linked = cuda_kernels.linked_kernels(context)
    if linked is not None:
        linked.close()
        return None
    if build:
        return cuda_kernels.build(bundle, context, progress).path / cuda_kernels.IMAGE
    found = cache.find(bundle.path, cuda_kernels.identity(context))
    found.read(cuda_kernels.IMAGE)
    return found.path / cuda_kernels.IMAGE


def _kept(bundle: Bundle, wanted: cache.Identity) -> Optional[cache.Artefact]:
    try:
        artefact = cache.load(bundle.path / cache.FOLDER / wanted.key)
        artefact.read(engine_file(wanted.role))
    except CrispsegError:
        return None
    return artefact


def _row(artefact: cache.Artefact, kept: bool) -> Dict[str, Any]:
    facts, name = artefact.facts, engine_file(artefact.identity.role)
    return {
        "part": artefact.identity.role,
        "precision": artefact.identity.spec.get("precision"),
        "engine": "kept" if kept else "built",
        "build_s": facts.get("build_s"),
        "mib": round(artefact.files[name][1] / 2**20, 2),
        "layers": facts.get("layers"),
        "plugin_layers": facts.get("plugin_layers"),
        "strongly_typed": facts.get("strongly_typed"),
        "key": artefact.identity.key[:16],
    }


def _with(options: BuildOptions, **changes: Any) -> BuildOptions:
    return dataclasses.replace(options, **changes)
