"""Dense networks on device memory: what a GPU pipeline asks of its base, and TensorRT's engines in that form.

A base has ``enqueue(stream, input_address, output_address)``, ``input_type`` and ``output_type`` ("fp32" or "fp16"),
``capturable`` (may it be recorded in a CUDA graph), ``inputs`` and ``outputs`` (name -> (dtype, shape)), ``describe()``
and ``close()``. ONNX Runtime's is in ``ort_cuda``.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from crispseg.engines.cuda import Stream
from crispseg.errors import BundleError, UnsupportedOp

_TYPES = {"float32": "fp32", "float16": "fp16"}


def single_port(where: str, what: str, ports: Mapping[str, Any]) -> Tuple[str, Any, List[int], str]:
    """(name, dtype, shape, "fp32" or "fp16") of the one input or output of a dense network.

    Raises:
        BundleError: there are none or several, or a side is open.
        UnsupportedOp: it is not float.
    """
    if len(ports) != 1:
        raise BundleError("%s: expected one %s, found %s" % (where, what, ", ".join(ports) or "none"))
    name, (dtype, shape) = next(iter(ports.items()))
    kind = np.dtype(dtype).name
    if kind not in _TYPES:
        raise UnsupportedOp("%s: %s %s: expected float32 or float16, found %s" % (where, what, name, kind))
    if not all(isinstance(side, (int, np.integer)) and side > 0 for side in shape):
        raise BundleError("%s: %s %s: expected fixed sides, found %s; export it again" % (where, what, name, shape))
    return name, dtype, [int(side) for side in shape], _TYPES[kind]


class TensorRTBase:
    """A dense engine of TensorRT (``engines/tensorrt/run.py``) as the base of a GPU pipeline."""

    capturable = True

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._in, _, _, self.input_type = single_port(engine.what, "input", self.inputs)
        self._out, _, _, self.output_type = single_port(engine.what, "output", self.outputs)
        self._bound: Tuple[int, int] = (0, 0)

    def enqueue(self, stream: Stream, input_address: int, output_address: int) -> None:
        """Put one run on a stream. The first run with new addresses must not be captured: it binds them."""
        if self._bound != (input_address, output_address):
            self._engine.bind({self._in: input_address, self._out: output_address})
            self._bound = (input_address, output_address)
        self._engine.enqueue(stream)

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        return {**self._engine.describe(), "captured": True}

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
