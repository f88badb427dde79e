"""The refiner as a TensorRT engine with our plugins, where the GPU pipeline expects a refiner.

Same calls as ``engines/cuda_refiner.py``. Each frame's memory is bound where it lies, so that nothing is copied: an
execution context for each address, because one whose run lies in a graph keeps its addresses. They share one scratch
memory: all frames are on one stream, one behind the other. TensorRT has no uint8 for plugins: image, labels and
confidence are int32 words over the same bytes (tensorrt/strip.py), so nothing is converted either. Not yet run on
a device.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from crispseg.bundle import Bundle
from crispseg.engines.cuda import Buffer, Context, Stream
from crispseg.engines.cuda_clock import StageClock
from crispseg.engines.tensorrt import artefacts
from crispseg.engines.tensorrt import run as tensorrt_run
from crispseg.errors import EnvironmentMismatch, InputError, UnsupportedOp

STAGE = "refine"
_MAPS = ("labels", "confidence")


def load(bundle: Bundle, context: Context, precision: str, logits_type: str) -> TensorRTRefiner:
    """Open the refiner's engine that `crispseg build --refiner-engine` made last, of whatever capacity.

    The plugin library is registered, and given the kernels, before the engine is deserialised. Never builds.

    Args:
        bundle: checked, with a refiner.
        context: the device, current on the calling thread.
        precision: that it was built with; int8 stands for fp16 when the refiner has no calibration, as at the build.
        logits_type: of the base's logits in device memory.

    Raises:
        EnvironmentMismatch: no TensorRT, plugin library, kernels or engine that fits; the message has the command.
        BundleError: the engine's file is damaged.
        UnsupportedOp: the base's logits are not fp32.
    """
    if logits_type != "fp32":  # strip.py writes fp32 logits, and every base that crispseg exports gives them
        raise UnsupportedOp(
            "refiner engine: expected fp32 logits of the base, found %s; leave --refiner-engine out" % logits_type
        )
    engine = tensorrt_run.load(bundle, "refiner", context, precision=precision, shared=True)
    try:
        return TensorRTRefiner(engine, bundle, context, artefacts.refiner_precision(bundle, precision))
    except BaseException:
        engine.close()
        raise


class TensorRTRefiner:
    """A refiner's engine with memory for its outputs, all of it taken at load. One stream at a time uses it.

    Args:
        engine: TensorRTEngine of a refiner.
        bundle: that it was built from.
        context: the device.
        precision: for the report.

    Attributes:
        inputs, outputs: name -> (numpy dtype, shape) as the bundle's manifest has them: bytes, not words.
        binds_image: a run that is not captured comes first at every new address of a frame.

    Raises:
        EnvironmentMismatch: the engine's tensors are not those of the bundle.
    """

    binds_image = True

    def __init__(self, engine: Any, bundle: Bundle, context: Context, precision: str) -> None:
        self._engine, self._precision = engine, precision
        self._size = (bundle.height, bundle.width)
        self._capacity = self._check(bundle)
        self.inputs: Dict[str, Any] = {"image": (np.uint8, [*self._size, 3]), "logits": engine.inputs["logits"]}
        self.outputs = {name: (np.uint8, list(self._size)) if name in _MAPS else port
                        for name, port in engine.outputs.items()}  # fmt: skip
        self._own: Dict[str, Buffer] = {}
        self._spare: List[Any] = [engine]  # contexts that no graph holds
        self._bound: Dict[Tuple[int, int], Any] = {}  # (image, logits) -> context
        nbytes = 3 * bundle.height * bundle.width
        try:
            for name in engine.outputs:
                self._own[name] = context.alloc(engine.nbytes(name))
            if nbytes % 4:  # the last word reaches behind the frame's memory
                self._own["image"] = context.alloc(engine.nbytes("image"))
        except BaseException:
            self._free()
            raise
        self._image_bytes = nbytes

    def _check(self, bundle: Bundle) -> int:
        """Capacity of an engine whose tensors are those of the bundle."""
        engine, pixels, base = self._engine, bundle.height * bundle.width, bundle.base
        floats, words = np.dtype(np.float32), np.dtype(np.int32)
        want = {"image": (words, (_words(3 * pixels),)),
                "logits": (floats, (1, len(bundle.classes), base.logits_height, base.logits_width)),
                "count": (words, (1,)), "found": (words, (1,))}  # fmt: skip
        want.update((name, (words, (_words(pixels),))) for name in _MAPS)
        found = {**engine.inputs, **engine.outputs}
        coords: List[int] = list(found.get("coords", (words, ()))[1])
        capacity = coords[0] if len(coords) == 2 else 0
        want["coords"] = (words, (capacity, 2))
        wrong = [name for name, port in want.items() if found.get(name) != port]
        if wrong or capacity < 1 or set(engine.inputs) != {"image", "logits"}:
            raise EnvironmentMismatch(
                "refiner engine of %s: its tensors are not those of the bundle (%s); run `crispseg build %s --backend "
                "tensorrt --precision %s --refiner-engine --force`"
                % (bundle.path, ", ".join(wrong) or "inputs %s" % list(engine.inputs), bundle.path, self._precision)
            )
        return capacity

    @property
    def capacity(self) -> int:
        """Most refined pixels a frame, as built."""
        return self._capacity

    @capacity.setter
    def capacity(self, value: int) -> None:
        if value != self._capacity:
            raise InputError(fixed_capacity("capacity %d" % value, self._capacity))

    def enqueue(
        self,
        stream: Stream,
        image: int,
        logits: int,
        outputs: Sequence[str] = ("labels", "count", "found"),
        clock: Optional[StageClock] = None,
    ) -> None:
        """Put one frame's refinement on a stream, as :meth:`CudaRefiner.enqueue`; all outputs are computed.

        No allocation and no wait. The first run with new addresses must not be captured: it binds them, and TensorRT
        brings what it put off (kernels, shapes) up to date in it.
        """
        for name in outputs:
            if name not in self.outputs:
                raise InputError("refiner engine: output %r: expected one of %s" % (name, ", ".join(self.outputs)))
        if "image" in self._own:
            stream.copy(self._own["image"].address, image, self._image_bytes)
            image = self._own["image"].address
        run = self._bound.get((image, logits))
        if run is None:
            run = self._spare.pop() if self._spare else self._engine.another()
            addresses = {name: buffer.address for name, buffer in self._own.items()}
            run.bind({**addresses, "image": image, "logits": logits})
            self._bound[image, logits] = run
        run.enqueue(stream)
        if clock is not None:
            clock.mark(stream, STAGE)

    def unbind(self) -> None:
        """No graph holds a run any more: contexts may get other addresses."""
        self._spare += self._bound.values()
        self._bound = {}

    def address(self, name: str) -> int:
        """Device address of an output: uint8 [H,W], int32 [capacity,2] or int32 [1]."""
        return self._own[name].address

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        return {
            **self._engine.describe(),
            "precision": self._precision,
            "capacity": self._capacity,
            "memory_bytes": {"outputs": sum(buffer.nbytes for buffer in self._own.values())},
        }

    def close(self) -> None:
        """Free the engine and the memory. May be called twice."""
        self._engine.close()
        self._free()

    def _free(self) -> None:
        for buffer in self._own.values():
            buffer.close()


def fixed_capacity(asked: str, capacity: int = 0) -> str:
    """Message: an engine's capacity cannot be changed."""
    return (
        "%s: the capacity of a refiner engine is fixed when it is built%s; run `crispseg build BUNDLE --backend "
        "tensorrt --refiner-engine --capacity N`, or leave --refiner-engine out"
        % (asked, " (%d)" % capacity if capacity else "")
    )


def _words(nbytes: int) -> int:
    """int32 words that hold so many bytes: ``strip.words``, which needs onnx."""  # noqa: D403
    return -(-nbytes // 4)
