"""Low-resolution logits -> label map on the GPU, without a refiner: the selection kernel with nothing selected."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from crispseg.engines.cuda import Stream
from crispseg.engines.cuda_clock import StageClock
from crispseg.engines.cuda_kernels import TYPES, Kernels
from crispseg.plugins.loader import UPSAMPLE


class CudaLabels:
    """Stands where a refiner stands, with the same calls; ``capacity`` is 0: nothing is refined.

    Args:
        kernels: of the device.
        size: (H, W) of the label map.
        logits: (C, h, w) of the logits.
        upsample: "nearest", "bilinear" or "bilinear_corners".
        logits_type: "fp32" or "fp16".
    """

    capacity = 0
    binds_image = False

    def __init__(
        self, kernels: Kernels, size: Tuple[int, int], logits: Tuple[int, int, int], upsample: str, logits_type: str
    ) -> None:
        self._kernels, self._size, self._logits = kernels, size, logits
        self._upsample, self._type = UPSAMPLE[upsample], TYPES[logits_type]
        alloc = kernels.context.alloc
        self._labels, self._confidence = alloc(size[0] * size[1]), alloc(size[0] * size[1])
        self._numbers = alloc(16)  # one pair of coordinates, count, found
        self._workspace = alloc(kernels.size("csg_select_workspace", *size))

    def enqueue(
        self, stream: Stream, image: int, logits: int, outputs: Sequence[str], clock: Optional[StageClock] = None
    ) -> None:
        """As :meth:`CudaRefiner.enqueue`; ``image`` is not read."""
        numbers = self._numbers.address
        confidence = self._confidence.address if "confidence" in outputs else None
        self._kernels.call(
            "csg_select_pixels", stream.handle, self._type, logits, *self._logits, *self._size, self._upsample,
            float("inf"), 1, self._labels.address, confidence, numbers, numbers + 8, numbers + 12,
            self._workspace.address, self._workspace.nbytes,
        )  # fmt: skip
        if clock is not None:
            clock.mark(stream, "select")

    def address(self, name: str) -> int:
        """Device address of labels, confidence, coords, count or found."""
        places = {"coords": 0, "count": 8, "found": 12}
        if name in places:
            return self._numbers.address + places[name]
        return self._labels.address if name == "labels" else self._confidence.address

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts."""
        return {"backend": "cuda", "kernels": self._kernels.describe()}

    def close(self) -> None:
        """Free the memory."""
        for buffer in (self._labels, self._confidence, self._numbers, self._workspace):
            buffer.close()
