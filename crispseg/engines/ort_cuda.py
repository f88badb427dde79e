"""A dense network in ONNX Runtime on device memory: the base of the ``cuda`` backend.

Input and output are bound to addresses that the pipeline owns, and the work goes to the pipeline's stream
(user_compute_stream), so that frames stay on the GPU and nothing waits. ONNX Runtime may allocate and choose algorithms
at any run: it is not captured in a graph.

Not yet run on a device: the tests drive it with the CPU provider on emulated device memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple, Union

from crispseg.engines import ort
from crispseg.engines.cuda import Context, Stream
from crispseg.engines.device_base import single_port
from crispseg.engines.spec import EngineSpec

PROVIDER = "CUDAExecutionProvider"


def load(path: Union[str, Path], context: Context, stream: Stream, provider: str = PROVIDER) -> OrtDeviceBase:
    """Open a network whose input and output lie in the memory of ``context``.

    Raises:
        EnvironmentMismatch: ONNX Runtime or its CUDA provider is missing.
        BundleError: the file is missing, damaged, or its ports have open sides.
        UnsupportedOp: an operator that ONNX Runtime does not know, or ports that are not float.
    """
    options: Dict[str, str] = {}
    if provider == PROVIDER:
        options = {"device_id": str(context.info.ordinal), "user_compute_stream": str(stream.handle)}
    return OrtDeviceBase(ort.load(path, EngineSpec("onnxruntime", provider), options), context)


class OrtDeviceBase:
    """One input, one output, at fixed addresses of the caller.

    Attributes:
        input_type, output_type: "fp32" or "fp16".
        capturable: False.
        inputs, outputs: name -> (numpy dtype, shape).
    """

    capturable = False

    def __init__(self, engine: ort.OrtEngine, context: Context) -> None:
        self.path, self._engine = engine.path, engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._device = ("cuda" if "CUDA" in engine.spec.provider else "cpu", context.info.ordinal)
        *self._in, self.input_type = single_port(str(engine.path), "input", self.inputs)
        *self._out, self.output_type = single_port(str(engine.path), "output", self.outputs)
        self._bound: Dict[Tuple[int, int], Any] = {}

    def enqueue(self, stream: Stream, input_address: int, output_address: int) -> None:
        """Put one run on the stream that the network was opened with."""
        key = (input_address, output_address)
        if key not in self._bound:
            self._bound[key] = self._engine.bind(self._device, (self._in, input_address), (self._out, output_address))
        self._engine.run_bound(self._bound[key])

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        return {**self._engine.describe(), "captured": False}

    def close(self) -> None:
        """Free the session."""
        self._bound = {}
        self._engine.close()
