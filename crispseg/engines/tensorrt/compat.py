"""What differs between TensorRT 8.5 and 11, and nothing else.

A feature is there when a class has its attribute: enum values were renumbered at 10.0 and again at 11.0 and names came
back in minor releases, so neither version numbers nor raw integers decide anything. Every name below is checked against
the recorded API of eight releases (tests/engines/test_tensorrt_api.py), path by path.

Type names of parameters (``config``, ``parser``, ``network``, ``engine``, ``context`` ...) are what that check goes by.
"""

from __future__ import annotations

import os
import platform
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np

from crispseg.errors import EnvironmentMismatch, InputError, UnsupportedOp

PRECISIONS = ("fp32", "fp16", "int8")
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def require() -> Any:
    """The tensorrt module. Raises EnvironmentMismatch with the command that installs it."""
    try:
        import tensorrt
    except ImportError as error:
        raise EnvironmentMismatch(
            "backend tensorrt: expected the tensorrt package, found none (%s); %s" % (_one_line(error), install_hint())
        ) from None
    return tensorrt


def install_hint() -> str:
    """The command that installs TensorRT on this machine."""
    if platform.machine() == "aarch64" and os.path.exists("/etc/nv_tegra_release"):
        return (
            "run `sudo apt install tensorrt python3-libnvinfer`, and make the virtual environment with "
            "--system-site-packages"
        )
    return "run `pip install tensorrt`"


def version(trt: Any) -> str:
    """Such as "10.13.3.9"; for reports and cache keys only."""
    return str(trt.__version__)


# ---- logging ----------------------------------------------------------------------------------------------------


def make_logger(trt: Any, sink: Callable[[str, str], None]) -> Any:
    """A logger that calls ``sink(severity, text)``; severity is "error", "warning", "info" or "verbose"."""
    names = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
        trt.ILogger.Severity.INFO: "info",
        trt.ILogger.Severity.VERBOSE: "verbose",
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            sink(names.get(severity, "info"), msg)

    return Logger()


# ---- network and parser -----------------------------------------------------------------------------------------


def strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT can take every type from the ONNX file (10 and later; 11 knows nothing else)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any, strong: bool = True) -> int:
    """Flags of ``create_network``: explicit batch where it has a flag, strong typing where it exists."""
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):  # required in 8.x, ignored in 10, gone in 11
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if strong and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def prefer_plugins(trt: Any, parser: Any) -> None:
    """A plugin wins over a model-local function and over a built-in importer of the same name (flag of 10.15)."""
    if hasattr(trt, "OnnxParserFlag") and hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE"):
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)


def parser_messages(trt: Any, parser: Any) -> List[Dict[str, Any]]:
    """The parser's errors: text, index of the node, and its name and operator where the version tells them."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        entry = {"text": error.desc(), "node": error.node(), "name": "", "operator": ""}
        if hasattr(trt.ParserError, "node_name"):
            entry["name"], entry["operator"] = error.node_name(), error.node_operator()
        found.append(entry)
    return found


def unsupported_nodes(trt: Any, parser: Any, model: bytes) -> List[int]:
    """Indices of the nodes that this TensorRT cannot take. Only asked after a failed parse: it parses once more."""
    if hasattr(trt.OnnxParser, "supports_model_v2"):
        if parser.supports_model_v2(model):
            return []
        parts = [
            (parser.get_subgraph_nodes(index), parser.is_subgraph_supported(index))
            for index in range(parser.num_subgraphs)
        ]
        known = {node for nodes, supported in parts if supported for node in nodes}
        return sorted({node for nodes, supported in parts if not supported for node in nodes} - known)
    supported, collection = parser.supports_model(model)
    return [] if supported else sorted({node for nodes, good in collection if not good for node in nodes})


def plugin_layers(trt: Any, network: Any) -> List[str]:
    """Names of the layers that are plugins."""
    kinds = {trt.LayerType.PLUGIN_V2}
    if hasattr(trt.LayerType, "PLUGIN_V3"):
        kinds.add(trt.LayerType.PLUGIN_V3)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [layer.name for layer in layers if layer.type in kinds]


# ---- builder configuration --------------------------------------------------------------------------------------


def set_precision(trt: Any, config: Any, precision: str, strong: bool) -> List[str]:
    """Flags that allow what the ONNX file asks for. Nothing to do with strong typing, which refuses these flags.

    Returns:
        The names of the flags that were set.
    """
    names: List[str] = []
    if strong:
        return names
    if precision in ("fp16", "int8") and hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
        names.append("FP16")
    if precision == "int8" and hasattr(trt.BuilderFlag, "INT8"):
        config.set_flag(trt.BuilderFlag.INT8)
        names.append("INT8")
    if names and hasattr(trt.BuilderFlag, "PREFER_PRECISION_CONSTRAINTS"):
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        names.append("PREFER_PRECISION_CONSTRAINTS")
    return names


def hold_float_layers(trt: Any, network: Any, precision: str, names: FrozenSet[str]) -> int:
    """Weak typing: keep the layers of these nodes, fp32 in the ONNX file, in fp32; returns how many.

    Without it FP16 may run them in half precision, whatever the file says. In an int8 network only what sums, samples
    or exponentiates is held: the rest is fp32 in the file up to its QuantizeLinear and must fuse with it.
    """
    if not hasattr(trt.ILayer, "precision"):
        return 0
    free = {
        trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.SHUFFLE, trt.LayerType.CONCATENATION,
        trt.LayerType.SLICE, trt.LayerType.GATHER, trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE,
        trt.LayerType.PLUGIN_V2, trt.LayerType.IDENTITY,  # the Cast of 8.x
    }  # fmt: skip
    if hasattr(trt.LayerType, "CAST"):
        free.add(trt.LayerType.CAST)
    if hasattr(trt.LayerType, "PLUGIN_V3"):
        free.add(trt.LayerType.PLUGIN_V3)
    fragile = {trt.LayerType.SOFTMAX, trt.LayerType.GRID_SAMPLE, trt.LayerType.REDUCE, trt.LayerType.UNARY}
    held = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if layer.type in free or (precision == "int8" and layer.type not in fragile):
            continue
        if layer.name not in names and layer.name.rpartition("_")[0] not in names:  # one node may become several
            continue
        if any(tensor is None or tensor.dtype != trt.DataType.FLOAT for tensor in outputs):
            continue
        layer.precision = trt.DataType.FLOAT
        for i in range(layer.num_outputs):
            layer.set_output_type(i, trt.DataType.FLOAT)
        held += 1
    return held


def set_optimisation_level(trt: Any, config: Any, level: int) -> None:
    """0..5. Raises EnvironmentMismatch where there is no such setting (8.5)."""
    if not hasattr(trt.IBuilderConfig, "builder_optimization_level"):
        raise EnvironmentMismatch(
            "--opt-level %d: TensorRT %s has no optimisation level (8.6 and later have); leave it out"
            % (level, version(trt))
        )
    config.builder_optimization_level = level


def set_workspace(trt: Any, config: Any, nbytes: int) -> None:
    """Most scratch memory that any layer may use."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, nbytes)


def forbid_tf32(trt: Any, config: Any) -> None:
    """Compute float32 products in float32; every release allows TF32 by itself."""
    config.clear_flag(trt.BuilderFlag.TF32)


def set_detailed(trt: Any, config: Any) -> None:
    """Keep the types and formats of every layer in the engine, for the inspector."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def has_fast(trt: Any, builder: Any, precision: str) -> bool:
    """False when the GPU has no fast arithmetic of this precision. Newer versions do not tell: True."""
    if precision == "fp16" and hasattr(trt.Builder, "platform_has_fast_fp16"):
        return bool(builder.platform_has_fast_fp16)
    if precision == "int8" and hasattr(trt.Builder, "platform_has_fast_int8"):
        return bool(builder.platform_has_fast_int8)
    return True


def set_progress(trt: Any, config: Any, report: Callable[[str, int, int], bool]) -> Any:
    """Have ``report(phase, step, steps)`` called while an engine is built; False from it cancels the build.

    Returns:
        The monitor, to be kept alive for as long as the build runs, or None where there is none (8.x).
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: Dict[str, int] = {}
            self.interrupted = False  # an exception must not pass through TensorRT: it is raised after the build

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            self.phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return not self.interrupted and report(phase_name, step + 1, self.phases.get(phase_name, 0))
            except KeyboardInterrupt:
                self.interrupted = True
                return False

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def set_calibration(trt: Any, config: Any, cache: bytes) -> Any:
    """Use the ranges of a calibration cache (8.x, 10). Raises UnsupportedOp on 11, which takes Q/DQ files alone.

    Returns:
        The calibrator, to be kept alive for as long as the build runs.
    """
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise UnsupportedOp(
            "calibration cache: TensorRT %s takes int8 ranges from QuantizeLinear nodes of the ONNX file alone; export "
            "the network with them" % version(trt)
        )

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> None:
            return None  # nothing to measure: the cache has the ranges

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            return None

    calibrator = Calibrator()
    config.int8_calibrator = calibrator
    return calibrator


def add_profile(trt: Any, builder: Any, config: Any, shapes: Dict[str, Tuple[Any, Any, Any]]) -> None:
    """One optimisation profile: input name -> (minimum, optimum, maximum) shape."""
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in shapes.items():
        # 8.x returns None where later versions raise; a bad triple is only told at add_optimization_profile (-1).
        profile.set_shape(name, tuple(low), tuple(best), tuple(high))
    if config.add_optimization_profile(profile) < 0:
        raise InputError("--profile: TensorRT refuses %s; expected MIN <= OPT <= MAX on every axis" % (shapes,))


# ---- engine and context -----------------------------------------------------------------------------------------


def device_memory(trt: Any, engine: Any) -> int:
    """Bytes of scratch memory that one context needs."""
    if hasattr(trt.ICudaEngine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def context_without_memory(trt: Any, engine: Any) -> Any:
    """An execution context without scratch memory of its own, for :func:`give_memory`. None when there is no room."""
    if hasattr(trt, "ExecutionContextAllocationStrategy"):
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def give_memory(trt: Any, execution: Any, address: int, nbytes: int) -> None:
    """The scratch memory of a context: a device address that is a multiple of 256, of :func:`device_memory` bytes."""
    if hasattr(trt.IExecutionContext, "set_device_memory"):
        execution.set_device_memory(address, nbytes)
    else:
        execution.device_memory = address


def numpy_dtype(trt: Any, dtype: Any) -> np.dtype:
    """Name in numpy of a DataType. Raises UnsupportedOp for the types that numpy lacks (bf16, fp8, int4)."""
    if dtype.name not in _DTYPES:
        raise UnsupportedOp("tensor of type %s: expected one of %s" % (dtype.name, ", ".join(sorted(_DTYPES))))
    return np.dtype(_DTYPES[dtype.name])


def io_tensors(trt: Any, engine: Any) -> List[Tuple[str, bool, np.dtype, Tuple[int, ...]]]:
    """(name, is it an input, dtype, shape with -1 for what a profile leaves open) of every input and output."""
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        enters = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(int(side) for side in engine.get_tensor_shape(name))
        found.append((name, enters, numpy_dtype(trt, engine.get_tensor_dtype(name)), shape))
    return found


def make_profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    """A profiler that calls ``report(layer, ms)`` for every layer of a run."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()


def inspect(trt: Any, engine: Any, context: Any = None) -> str:
    """The engine inspector's JSON."""
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
