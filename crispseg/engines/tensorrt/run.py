"""A built engine on a device: shapes and addresses set once, then one call a frame. Never builds.

Every TensorRT from 8.5 on has execute_async_v3, so there is one way to run. Memory and streams are those of
``engines/cuda.py``. Not yet run on a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from crispseg.bundle import Bundle
from crispseg.engines.tensorrt import artefacts, compat, dla, registry
from crispseg.errors import EnvironmentMismatch, InputError, UnsupportedOp

Port = Tuple[np.dtype, Tuple[int, ...]]


def load(
    bundle: Bundle,
    role: str,
    context: Any,
    *,
    precision: str = "fp16",
    capacity: Optional[int] = None,
    trt: Any = None,
    library: Optional[Path] = None,
    kernels: Optional[Path] = None,
    shared: bool = False,
) -> TensorRTEngine:
    """Open the engine of a part of a bundle ("base", "refiner", "baseline") that `crispseg build` made.

    Args:
        bundle: checked.
        role: which part.
        context: cuda.Context of the device.
        precision: that it was built with.
        capacity: most active pixels of a refiner, 0 = the bundle's, None = of whichever was built last.
        trt: the tensorrt module; None imports it.
        library: the plugin library; None finds it. For a refiner alone.
        kernels: image of the CUDA kernels; None takes the one that is linked in, or the bundle's.
        shared: for :meth:`TensorRTEngine.another`.

    Raises:
        EnvironmentMismatch: no engine for this device, TensorRT or precision; the message has the command.
        BundleError: the engine's file is damaged.
    """
    trt = compat.require() if trt is None else trt
    if role == "refiner":
        library = library or registry.find_library()
    artefact = artefacts.find(bundle, role, precision, trt, context.info, capacity=capacity, library=library)
    plan = artefact.read(artefacts.engine_file(role))
    if role == "refiner" and library is not None:
        registry.load(trt, library, kernels or artefacts.kernel_image(bundle, context))
    core = None if role == "refiner" else artefact.identity.spec.get("dla")
    return open_engine(plan, context, what=role, trt=trt, advice=artefact.rebuild, core=core, shared=shared)


def open_engine(
    plan: bytes,
    context: Any,
    *,
    what: str = "engine",
    trt: Any = None,
    advice: str = "build it again",
    core: Optional[int] = None,
    shared: bool = False,
) -> TensorRTEngine:
    """Deserialise an engine; its plugins are registered. ``core``: of the DLA that it was built for; ``shared``: its
    scratch memory is ours, for :meth:`TensorRTEngine.another`.

    Raises EnvironmentMismatch when TensorRT does not take it, InputError when there is no room for shared memory.
    """  # noqa: D205
    trt = compat.require() if trt is None else trt
    context.activate()
    log: List[str] = []
    logger = compat.make_logger(trt, lambda severity, text: log.append(text) if severity == "error" else None)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:
        raise EnvironmentMismatch("%s: TensorRT gives no runtime: %s; see crispseg doctor" % (what, error)) from None
    if core is not None:
        dla.open_on(trt, runtime, core)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = " ".join((log or ["no reason given"])[-1].split())[:300]
        raise EnvironmentMismatch(
            "%s: TensorRT %s does not take this engine: %s; %s" % (what, compat.version(trt), reason, advice)
        )
    scratch = context.alloc(compat.device_memory(trt, engine)) if shared else None
    execution = _execution(trt, engine, what, scratch)
    return TensorRTEngine(trt, logger, runtime, engine, execution, context, what, scratch)


def _execution(trt: Any, engine: Any, what: str, scratch: Any) -> Any:
    """An execution context, with memory of its own where there is none to share."""
    made = engine.create_execution_context() if scratch is None else compat.context_without_memory(trt, engine)
    if made is None:
        raise EnvironmentMismatch(
            "%s: no room for its %d MiB of scratch memory; close other programs that use the GPU"
            % (what, compat.device_memory(trt, engine) >> 20)
        )
    if scratch is not None:
        compat.give_memory(trt, made, scratch.address, scratch.nbytes)
    return made


class TensorRTEngine:
    """One engine with one execution context; one stream at a time uses it.

    Attributes:
        inputs, outputs: name -> (dtype, shape); a refiner's bytes are int32 words (tensorrt/strip.py).
    """

    def __init__(
        self, trt: Any, logger: Any, runtime: Any, engine: Any, execution: Any, context: Any, what: str,
        scratch: Any = None,
    ) -> None:  # fmt: skip
        self.trt, self.what, self.context, self._scratch = trt, what, context, scratch
        self._others: List[TensorRTEngine] = []
        self._logger, self._runtime, self._engine, self._execution = logger, runtime, engine, execution
        self.inputs: Dict[str, Port] = {}
        self.outputs: Dict[str, Port] = {}
        for name, enters, dtype, shape in compat.io_tensors(trt, engine):
            (self.inputs if enters else self.outputs)[name] = (dtype, shape)
        self._own: Dict[str, Any] = {}
        self._opened = dict(self.inputs)  # with -1 where a profile leaves a side open
        if not any(side < 0 for _, shape in self.inputs.values() for side in shape):
            self._settle()

    def another(self) -> TensorRTEngine:
        """A second execution context, for other addresses, on the same scratch memory: the two never run at once.

        Closed with this engine, which was opened as shared. A context whose run lies in a CUDA graph must not be given
        other addresses; a graph for others needs a context of its own, which may share the memory (TensorRT's developer
        guide, CUDA graphs).
        """
        execution = _execution(self.trt, self._engine, self.what, self._scratch)
        made = TensorRTEngine(self.trt, self._logger, self._runtime, self._engine, execution, self.context, self.what)
        self._others.append(made)
        return made

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Shapes of the inputs that a profile left open; may be set again. Raises InputError outside the profile."""
        for buffer in self._own.values():
            buffer.close()
        self._own = {}
        for name, shape in shapes.items():
            self._port(name)
            dtype, known = self._opened.get(name, self.outputs.get(name))  # type: ignore[misc]
            fits = len(known) == len(shape) and all(a < 0 or a == b for a, b in zip(known, shape))
            if not fits or not self._execution.set_input_shape(name, tuple(shape)):
                raise InputError("%s: input %s: expected a shape inside the profile of %s, found %s"
                                 % (self.what, name, list(known), list(shape)))  # fmt: skip
            self.inputs[name] = (dtype, tuple(shape))
        self._settle()

    def _settle(self) -> None:
        """Shapes of the outputs, once those of the inputs are known."""
        missing = self._execution.infer_shapes()
        if missing:
            raise InputError("%s: TensorRT needs the shapes of %s first" % (self.what, ", ".join(missing)))
        for name, (dtype, _) in list(self.outputs.items()):
            shape = tuple(int(side) for side in self._execution.get_tensor_shape(name))
            if min(shape, default=1) < 0:
                raise UnsupportedOp("%s: output %s has no size before the run; export it with a capacity"
                                    % (self.what, name))  # fmt: skip
            self.outputs[name] = (dtype, shape)

    def nbytes(self, name: str) -> int:
        """Bytes of an input or output."""
        dtype, shape = self._port(name)
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Device addresses of inputs and outputs; they stay until bound again. Set before a capture, never inside."""
        for name, address in addresses.items():
            self._port(name)
            if not self._execution.set_tensor_address(name, int(address)):
                raise InputError("%s: TensorRT does not take the address of %s" % (self.what, name))

    def enqueue(self, stream: Any) -> None:
        """Put one run on a cuda.Stream; no wait, no allocation. Raises EnvironmentMismatch when TensorRT refuses."""
        if not self._execution.execute_async_v3(stream.handle):
            raise EnvironmentMismatch(
                "%s: TensorRT did not start the run (an address is not bound, or the device failed); see crispseg "
                "doctor" % self.what
            )

    def run(self, inputs: Mapping[str, np.ndarray], stream: Any = None) -> Dict[str, np.ndarray]:
        """Run once from host arrays to host arrays, with memory of its own. For tests and checks, not for speed."""
        unknown = sorted(set(inputs) ^ set(self.inputs))
        if unknown:
            raise InputError("%s: expected inputs %s, found %s" % (self.what, list(self.inputs), list(inputs)))
        stream = stream or self.context.stream()
        if not self._own:
            self._own = {name: self.context.alloc(self.nbytes(name)) for name in [*self.inputs, *self.outputs]}
        self.bind({name: buffer.address for name, buffer in self._own.items()})
        staged = []
        for name, (dtype, shape) in self.inputs.items():
            value = inputs[name]
            if value.dtype != dtype or tuple(value.shape) != shape:
                raise InputError("%s: input %s: expected %s %s, found %s %s"
                                 % (self.what, name, dtype, list(shape), value.dtype, list(value.shape)))  # fmt: skip
            pinned = self.context.pinned(shape, dtype)
            pinned[...] = value
            staged.append(pinned)
            stream.upload(self._own[name].address, pinned)
        self.enqueue(stream)
        results = {name: self.context.pinned(shape, dtype) for name, (dtype, shape) in self.outputs.items()}
        for name, array in results.items():
            stream.download(array, self._own[name].address)
        stream.synchronize()
        return results

    @property
    def scratch_bytes(self) -> int:
        """Device memory that one execution context needs."""
        return compat.device_memory(self.trt, self._engine)

    def set_profiler(self, profiler: Any) -> None:
        """Report every layer's time to ``profiler`` (compat.make_profiler). TensorRT synchronises for it."""
        self._profiler = profiler  # TensorRT keeps no reference
        self._execution.profiler = profiler
        self._execution.enqueue_emits_profile = True

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        return compat.inspect(self.trt, self._engine, self._execution)

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        ports = {"inputs": self.inputs, "outputs": self.outputs}
        return {
            "backend": artefacts.BACKEND,
            "version": compat.version(self.trt),
            "scratch_mib": round(self.scratch_bytes / 2**20, 2),
            **{key: {n: [d.name, list(s)] for n, (d, s) in value.items()} for key, value in ports.items()},
        }

    def close(self) -> None:
        """Free the context before the engine and the engine before the runtime, as TensorRT wants it."""
        for other in self._others:
            other.close()
        for buffer in self._own.values():
            buffer.close()
        self._own, self._others = {}, []
        self._execution = self._engine = self._runtime = None
        if self._scratch is not None:
            self._scratch.close()

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _port(self, name: str) -> Port:
        port = self.inputs.get(name) or self.outputs.get(name)
        if port is None:
            names = ", ".join([*self.inputs, *self.outputs])
            raise InputError("%s: no tensor %r: expected one of %s" % (self.what, name, names))
        return port
