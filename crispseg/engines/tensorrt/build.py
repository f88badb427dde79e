"""ONNX -> TensorRT engine: parse, configure, profile, time, build. One function, no state."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from crispseg.engines.tensorrt import compat, dla, registry, timing
from crispseg.engines.tensorrt.diagnose import Message, explain, explain_parse
from crispseg.errors import EnvironmentMismatch, InputError, UnsupportedOp

Shape = Tuple[int, ...]
Progress = Callable[..., None]
_MAX_MODEL = (1 << 31) - 1  # protobuf
_KEPT = 4000  # messages of the log, for the explanation of a failure
_SIDES = re.compile(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){0,7}\Z")


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    ``precision``: fp32, fp16 or int8, as the ONNX file has it. ``workspace_mib``: most scratch memory of a layer, None
    = all of the device. ``timing_cache``: file, None = no cache. ``opt_level``: 0..5, None = TensorRT's choice.
    ``profiles``: input -> (minimum, optimum, maximum) shape, for inputs with open sides alone; "" = the only such
    input. ``dla``: core. ``calibration``: file with int8 ranges for an ONNX file without Q/DQ (8.x and 10 alone).
    ``tf32``: whether float32 products may be computed with the 10 bits of TF32, as TensorRT does unless told.
    """

    precision: str = "fp32"
    workspace_mib: Optional[int] = None
    timing_cache: Optional[Path] = None
    opt_level: Optional[int] = None
    profiles: Mapping[str, Tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    dla: Optional[int] = None
    calibration: Optional[Path] = None
    tf32: bool = True

    def __post_init__(self) -> None:
        if self.precision not in compat.PRECISIONS:
            raise InputError("--precision %s: expected %s" % (self.precision, ", ".join(compat.PRECISIONS)))
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= 1 << 20:
            raise InputError("--workspace %s: expected 1 to %d MiB" % (self.workspace_mib, 1 << 20))
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise InputError("--opt-level %s: expected 0 to 5" % self.opt_level)
        if self.dla is not None and (self.dla < 0 or self.precision == "fp32"):
            raise InputError(
                "--dla %s: expected a core (0, 1) and --precision fp16 or int8: DLA has no fp32" % self.dla
            )
        if self.calibration is not None and self.precision != "int8":
            raise InputError("calibration cache: expected --precision int8, found %s" % self.precision)

    def spec(self) -> Dict[str, Any]:
        """What of this changes the engine, for its cache key."""
        spec = {
            "precision": self.precision,
            "workspace_mib": self.workspace_mib,
            "opt_level": self.opt_level,
            "profiles": {name: [list(shape) for shape in triple] for name, triple in sorted(self.profiles.items())},
            "dla": self.dla,
            "calibration": None if self.calibration is None else _calibration_hash(self.calibration),
        }
        return spec if self.tf32 else {**spec, "tf32": False}


@dataclass(frozen=True)
class Built:
    """A serialised engine and the facts of its build (JSON-able)."""

    plan: bytes
    facts: Dict[str, Any]


def parse_profile(text: str) -> Tuple[str, Tuple[Shape, Shape, Shape]]:
    """("image", shapes) of "image=1x3x256x512,1x3x512x1024,1x3x1024x2048"; without a name "". Raises InputError."""
    name, given, shapes = text.rpartition("=")
    parts = [part.strip().lower() for part in shapes.split(",")]
    triple = [tuple(int(side) for side in part.split("x")) for part in parts if _SIDES.match(part)]
    if (given and not name) or len(parts) != 3 or len(triple) != 3 or len({len(shape) for shape in triple}) != 1:
        raise InputError(
            "--profile %s: expected [INPUT=]MIN,OPT,MAX, for example image=1x3x256x512,1x3x512x1024,1x3x1024x2048"
            % text
        )
    if not all(low <= best <= high for low, best, high in zip(*triple)):
        raise InputError("--profile %s: expected MIN <= OPT <= MAX on every axis" % text)
    return name.strip(), (triple[0], triple[1], triple[2])


def build_engine(
    model: bytes,
    options: BuildOptions,
    *,
    what: str = "network",
    nodes: Sequence[str] = (),
    plugins: Sequence[str] = (),
    floats: Sequence[str] = (),
    progress: Optional[Progress] = None,
    trt: Any = None,
) -> Built:
    """Build an engine for the GPU of this machine. Minutes of work.

    Args:
        model: ONNX with all weights inside, without model-local functions; its plugins are registered.
        options: how.
        what: the network's name for messages and progress.
        nodes: "name (operator)" of the model's nodes, for messages.
        plugins: names of the nodes that must become plugin layers.
        floats: names of the nodes that compute in fp32; held there where the file's types are only advice (8.x).
        progress: called with (seconds, None, text) while the build runs.
        trt: the tensorrt module; None imports it.

    Raises:
        EnvironmentMismatch: no TensorRT or GPU, or out of memory.
        UnsupportedOp: a node that this TensorRT cannot take, or a plugin node that did not become a plugin.
        InputError: a profile that does not fit the network.
    """
    trt = compat.require() if trt is None else trt
    if len(model) > _MAX_MODEL:
        raise UnsupportedOp("%s: %d bytes; expected less than 2 GiB, the limit of protobuf" % (what, len(model)))
    if plugins:
        registry.require_creators(trt, plugins_of(nodes, plugins))
    log: List[Message] = []

    def note(severity: str, text: str) -> None:
        if len(log) < _KEPT or severity == "error":
            log.append((severity, text))

    start = time.perf_counter()
    strong = compat.strongly_typed(trt) and options.calibration is None
    logger = compat.make_logger(trt, note)
    builder = _create(lambda: trt.Builder(logger), what, log)
    network = builder.create_network(compat.network_flags(trt, strong))
    parser = trt.OnnxParser(network, logger)
    compat.prefer_plugins(trt, parser)
    if not parser.parse(model):
        errors = compat.parser_messages(trt, parser)
        if errors and errors[0]["node"] < 0 and not errors[0]["name"]:
            bad = compat.unsupported_nodes(trt, parser, model)
            errors[0]["node"] = bad[0] if bad else -1
        raise explain_parse(errors, nodes, what, compat.version(trt))
    layers = _check_plugins(trt, network, plugins, what)
    config = builder.create_builder_config()
    held = _configure(trt, builder, network, config, options, strong, floats)
    _add_profiles(trt, builder, network, config, options.profiles, what)
    measured, warm = None, False
    if options.timing_cache is not None:
        measured, warm = timing.attach(config, options.timing_cache)
    calibrator = _calibrate(trt, config, options)
    with _Ticker(what, progress) as ticker:
        monitor = compat.set_progress(trt, config, ticker.step) if progress is not None else None
        plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    del monitor, calibrator  # TensorRT keeps no reference of its own
    if plan is None:
        raise explain(log, what, options.workspace_mib, options.precision)
    facts: Dict[str, Any] = {
        "tensorrt": compat.version(trt),
        "build_s": round(time.perf_counter() - start, 2),
        "layers": network.num_layers,
        "plugin_layers": len(layers),
        "strongly_typed": strong,
        "layers_held_in_fp32": held,
        "timing_cache_used": warm,
        "warnings": len([1 for severity, _ in log if severity == "warning"]),
    }
    if options.timing_cache is not None:
        facts["timing_cache_bytes"] = timing.save(config, measured, options.timing_cache)
    data = bytes(memoryview(plan))
    facts["bytes"] = len(data)
    return Built(data, facts)


def plugins_of(nodes: Sequence[str], plugins: Sequence[str]) -> List[str]:
    """Operators of the plugin nodes, from "name (operator)"."""
    operators = {text.rpartition(" (")[0]: text.rpartition(" (")[2].rstrip(")") for text in nodes}
    return sorted({operators[name] for name in plugins if name in operators})


def _create(make: Callable[[], Any], what: str, log: Sequence[Message]) -> Any:
    """The bindings raise TypeError ("factory function returned nullptr") when the library gives no object."""
    try:
        return make()
    except TypeError as error:
        reason = log[-1][1] if log else str(error)
        raise EnvironmentMismatch(
            "%s: TensorRT gives no builder: %s; it needs a GPU and its driver (crispseg doctor)"
            % (what, " ".join(reason.split())[:200])
        ) from None


def _check_plugins(trt: Any, network: Any, plugins: Sequence[str], what: str) -> List[str]:
    """A parser that found another meaning for a plugin node (a built-in op, a function) says nothing: count them."""
    layers = compat.plugin_layers(trt, network)
    if len(layers) < len(plugins):
        lost = [name for name in plugins if name not in layers] or list(plugins)
        raise UnsupportedOp(
            "%s: expected %d plugin layers, TensorRT %s made %d; node %s became something else; build the plugin "
            "library for this TensorRT (crispseg doctor)"
            % (what, len(plugins), compat.version(trt), len(layers), lost[0])
        )
    return layers


def _configure(
    trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions, strong: bool, floats: Sequence[str]
) -> int:
    """Everything but profiles and caches; returns how many layers are held in fp32."""
    if not compat.has_fast(trt, builder, options.precision):
        raise EnvironmentMismatch(
            "--precision %s: this GPU has no fast arithmetic of that kind; use --precision fp32" % options.precision
        )
    if options.workspace_mib is not None:
        compat.set_workspace(trt, config, options.workspace_mib << 20)
    if options.opt_level is not None:
        compat.set_optimisation_level(trt, config, options.opt_level)
    if options.dla is not None:
        dla.build_for(trt, builder, config, options.dla)
    compat.set_detailed(trt, config)
    if not options.tf32:
        compat.forbid_tf32(trt, config)
    if not compat.set_precision(trt, config, options.precision, strong):
        return 0
    return compat.hold_float_layers(trt, network, options.precision, frozenset(floats))


def _add_profiles(
    trt: Any, builder: Any, network: Any, config: Any, profiles: Mapping[str, Tuple[Shape, Shape, Shape]], what: str
) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(int(side) for side in tensor.shape) for tensor in inputs}
    opened = [name for name, shape in shapes.items() if min(shape, default=1) < 0]
    named: Dict[str, Tuple[Shape, Shape, Shape]] = {}
    for name, triple in profiles.items():
        target = opened[0] if not name and len(opened) == 1 else name
        if target not in opened:
            raise InputError(
                "--profile %s: %s has no open sides there: expected one of %s; bundles have one fixed size, leave "
                "--profile out" % (name or "(unnamed)", what, ", ".join(opened) or "none")
            )
        fits = len(shapes[target]) == len(triple[0]) and all(
            side < 0 or all(shape[axis] == side for shape in triple) for axis, side in enumerate(shapes[target])
        )
        if not fits:
            raise InputError("--profile %s: expected shapes like %s (-1 = any)" % (target, list(shapes[target])))
        named[target] = triple
    missing = [name for name in opened if name not in named]
    if missing:
        raise InputError("%s: input %s has open sides; give --profile %s=MIN,OPT,MAX" % (what, missing[0], missing[0]))
    if named:
        compat.add_profile(trt, builder, config, named)


def _calibrate(trt: Any, config: Any, options: BuildOptions) -> Any:
    if options.calibration is None:
        return None
    try:
        cache = options.calibration.read_bytes()
    except OSError as error:
        raise InputError("calibration cache %s: %s" % (options.calibration, error.strerror or error)) from None
    return compat.set_calibration(trt, config, cache)


def _calibration_hash(path: Path) -> str:
    from crispseg.engines.cache import file_hash

    return file_hash(path)


class _Ticker:
    """Says that a build still runs: TensorRT's own steps where it tells them, the time alone elsewhere."""

    def __init__(self, what: str, progress: Optional[Progress]) -> None:
        self.what, self.progress = what, progress
        self.start = time.perf_counter()
        self.text = "building %s" % what
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._tick, name="crispseg-build", daemon=True)

    def __enter__(self) -> _Ticker:
        self.thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.done.set()
        self.thread.join()

    def _tick(self) -> None:
        while self.progress is not None:
            elapsed = time.perf_counter() - self.start
            self.progress(elapsed, None, "%s, %d s" % (self.text, elapsed))
            if self.done.wait(1.0):
                return

    def step(self, phase: str, step: int, steps: int) -> bool:
        """Called by TensorRT, from its own threads. True: go on."""
        self.text = "building %s: %s %d/%d" % (self.what, phase, step, steps)
        return True
