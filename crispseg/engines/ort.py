"""ONNX Runtime engine: dense networks, and the refiner through its portable bodies.

The provider that is named is the one that runs; when it is not there the engine does not start.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from crispseg.engines.external_data import check_external_data
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, CrispsegError, EnvironmentMismatch, InputError, UnsupportedOp
from crispseg.plugins.overloads import has_overloads, knows_overloads, without_overloads

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_INSTALL = {
    "CPUExecutionProvider": "pip install onnxruntime",
    "CUDAExecutionProvider": "pip install onnxruntime-gpu",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu tensorrt",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino",
    "DmlExecutionProvider": "pip install onnxruntime-directml",
    "CoreMLExecutionProvider": "pip install onnxruntime (on macOS)",
}


def load(
    path: Union[str, Path], spec: Optional[EngineSpec] = None, provider_options: Optional[Dict[str, str]] = None
) -> OrtEngine:
    """Open an ONNX file (external data beside it is found) on the provider of ``spec``.

    Raises:
        EnvironmentMismatch: ONNX Runtime or the provider is missing.
        BundleError: the file is missing, truncated or no valid ONNX.
        UnsupportedOp: an operator or ONNX version this ONNX Runtime does not know.
    """
    spec = spec or EngineSpec(backend="onnxruntime")
    path = Path(path)
    try:
        import onnxruntime as ort
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError)
        found = "none (%s)" % error
        if not absent:  # 1.17 beside NumPy 2, or a library that is missing
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            found = "one that does not load beside NumPy %s (%s)" % (np.__version__, reason)
        raise EnvironmentMismatch(
            "backend onnxruntime: expected the onnxruntime package, found %s; pip install %sonnxruntime"
            % (found, "" if absent else "--upgrade ")
        ) from None
    if not path.is_file():
        raise BundleError("%s: expected an ONNX file, found none; export the bundle again" % path)
    check_external_data(path)
    available = ort.get_available_providers()
    if spec.provider not in available:
        fix = _INSTALL.get(spec.provider)
        raise EnvironmentMismatch(
            "provider %s: not in this ONNX Runtime %s, which has %s; %s"
            % (
                spec.provider,
                ort.__version__,
                ", ".join(available),
                "run `%s`, or name one of these" % fix if fix else "name one of these",
            )
        )
    if spec.provider == "CPUExecutionProvider":
        # What a file is wrong in comes as an exception. Of a GPU, what is printed may name the library that is missing.
        ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = spec.thread_count
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Decoder, encoder and the native refiner share the CPUs: workers that spin between two networks only heat them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Shapes that change from frame to frame make a memory plan a new allocation for every new shape.
    options.enable_mem_pattern = False
    try:
        model = _prepared(path, spec, ort.__version__)
        providers = [(spec.provider, provider_options or {})]
        session = _without_fallback(ort.InferenceSession)(model, sess_options=options, providers=providers)
    except CrispsegError:
        raise
    except Exception as error:
        raise _load_error(path, error, ort.__version__) from None
    used = session.get_providers()
    if not used or used[0] != spec.provider:
        raise EnvironmentMismatch(
            "provider %s: ONNX Runtime started %s instead (driver or library missing, or device busy); "
            "fix the installation or name %s" % (spec.provider, ", ".join(used), used[0] if used else "another")
        )
    return OrtEngine(path, spec, session, ort)


def _without_fallback(session_class: Any) -> Any:
    """A session that fails where ONNX Runtime would print a banner on stdout and try another provider.

    Up to 1.22 it takes no word against that: the argument enable_fallback is ignored, the attribute set anew.
    """

    class Session(session_class):  # type: ignore[misc]
        _enable_fallback = property(lambda self: False, lambda self, value: None)

    return Session


def _prepared(path: Path, spec: EngineSpec, version: str) -> Union[str, bytes]:
    """What the session gets: the file, or its content changed in memory."""
    whole_numbers = spec.precision == "int8" and spec.provider == "CPUExecutionProvider"
    if not spec.capacity and not whole_numbers and knows_overloads(version):
        return str(path)
    import onnx

    if not spec.capacity and not whole_numbers and not has_overloads(onnx.load(str(path), load_external_data=False)):
        return str(path)
    model = onnx.load(str(path))
    if spec.capacity:
        _set_capacity(model, spec.capacity)
    if whole_numbers:
        from crispseg.engines.int8_scales import check_scales
        from crispseg.engines.ort_int8 import lower

        check_scales(model, path)
        model = lower(model)
    if not knows_overloads(version) and has_overloads(model):
        without_overloads(model)
    return bytes(model.SerializeToString())


def _set_capacity(model: Any, capacity: int) -> None:
    """Give SelectPixels of a refiner another capacity."""
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "SelectPixels" else ():
            if attribute.name == "capacity":
                attribute.i = min(attribute.i, capacity)


def _load_error(path: Path, error: Exception, version: str) -> Exception:
    text = " ".join(str(error).split())[:300]
    unknown = (
        "NOT_IMPLEMENTED",
        "is not a registered function/op",
        "Unsupported model IR version",
        "No opset import",
        "is under development",
    )
    if any(item in text for item in unknown):
        return UnsupportedOp("%s: ONNX Runtime %s cannot run it: %s; upgrade onnxruntime" % (path, version, text))
    return BundleError(
        "%s: expected a valid ONNX network, ONNX Runtime %s says: %s; copy or export the bundle again"
        % (path, version, text)
    )


def _run_error(path: Path, error: Exception, version: str) -> UnsupportedOp:
    text = " ".join(str(error).split())
    refused = re.search(r"allocate memory for requested buffer of size (\d+)", text)
    if refused:
        node = re.search(r"while running (\w+ node)", text)
        return UnsupportedOp(
            "%s: %s asked for %.1f GiB in one piece, and the machine refused; free memory or raise its limit, and if "
            "the network should need less, export the bundle again"
            % (path, node.group(1) if node else "a node", int(refused.group(1)) / 2.0**30)
        )
    return UnsupportedOp("%s: failed in ONNX Runtime %s: %s" % (path, version, text[:300]))


class OrtEngine:
    """One ONNX Runtime session. Used by one thread at a time."""

    def __init__(self, path: Path, spec: EngineSpec, session: Any, ort: Any) -> None:
        self.path = path
        self.spec = spec
        self.stage_times: Dict[str, float] = {}
        self._session = session
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        self._version = ort.__version__
        self.inputs = {item.name: _port(item, path) for item in session.get_inputs()}
        self.outputs = {item.name: _port(item, path) for item in session.get_outputs()}
        ports = list(self.inputs.values()) + list(self.outputs.values())
        if any(not isinstance(side, int) for _, shape in ports for side in shape) and "CPU" in spec.provider:
            # Data-dependent sizes fragment the arena; handing idle chunks back after a run keeps memory level.
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, inputs: Dict[str, np.ndarray], outputs: Optional[Sequence[str]] = None) -> Dict[str, np.ndarray]:
        """Run once; return the named outputs (default: all).

        Raises:
            InputError: an input is missing, unknown, or of another dtype or shape; an output is unknown.
            UnsupportedOp: the network failed while it ran.
        """
        if self._session is None:
            raise InputError("%s: the engine is closed" % self.path)
        self._check(inputs)
        names = list(self.outputs) if outputs is None else list(outputs)
        for name in names:
            if name not in self.outputs:
                raise InputError("%s: output %r: expected one of %s" % (self.path, name, ", ".join(self.outputs)))
        start = time.perf_counter()
        try:
            values = self._session.run(names, inputs, self._run_options)
        except Exception as error:
            raise _run_error(self.path, error, self._version) from None
        self.stage_times = {"run": (time.perf_counter() - start) * 1e3}
        return dict(zip(names, values))

    def bind(self, device: Tuple[str, int], *ports: Tuple[Sequence[Any], int]) -> Any:
        """Bind device memory: ((name, dtype, shape), address) of the input, then of the output."""
        binding = self._session.io_binding()
        for (port, address), place in zip(ports, (binding.bind_input, binding.bind_output)):
            name, dtype, shape = port
            place(name=name, device_type=device[0], device_id=device[1], element_type=dtype, shape=shape,
                  buffer_ptr=address)  # fmt: skip
        return binding

    def run_bound(self, binding: Any) -> None:
        """Run on bound memory; on a GPU this only enqueues.

        Raises:
            UnsupportedOp: the network failed while it ran.
        """
        if self._session is None:
            raise InputError("%s: the engine is closed" % self.path)
        if "CPU" not in self.spec.provider:
            # Without this every run would wait for the GPU (ONNX Runtime 1.14 and newer).
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise _run_error(self.path, error, self._version) from None

    def _check(self, inputs: Dict[str, np.ndarray]) -> None:
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            raise InputError(
                "%s: expected inputs %s, found %s"
                % (self.path, ", ".join(self.inputs) or "none", ", ".join(map(str, inputs)) or "none")
            )
        for name, (dtype, shape) in self.inputs.items():
            value = inputs[name]
            if not isinstance(value, np.ndarray) or value.dtype != dtype:
                found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise InputError("%s: input %s: expected %s, found %s" % (self.path, name, np.dtype(dtype), found))
            fits = len(value.shape) == len(shape)
            fits = fits and all(not isinstance(want, int) or want == got for want, got in zip(shape, value.shape))
            if not fits:
                raise InputError(
                    "%s: input %s: expected shape %s, found %s" % (self.path, name, _text(shape), _text(value.shape))
                )

    def describe(self) -> Dict[str, Any]:
        """Backend, version, providers in force, threads, and the ports, as JSON-able values."""
        return {
            "backend": "onnxruntime",
            "version": self._version,
            "file": self.path.name,
            "precision": self.spec.precision,
            "provider": self.spec.provider,
            "providers": [] if self._session is None else self._session.get_providers(),
            "threads": self.spec.thread_count,
            "inputs": {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in self.inputs.items()},
            "outputs": {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in self.outputs.items()},
        }

    def close(self) -> None:
        """Free the session; a closed engine refuses to run."""
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _port(item: Any, path: Path) -> Tuple[Any, List[Union[int, str, None]]]:
    if item.type not in _DTYPES:
        raise UnsupportedOp("%s: %s has type %s, which is not supported" % (path, item.name, item.type))
    return _DTYPES[item.type], list(item.shape)


def _text(shape: Sequence[Any]) -> str:
    return "[%s]" % ", ".join("?" if side is None else str(side) for side in shape)
