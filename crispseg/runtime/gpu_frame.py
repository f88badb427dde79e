"""A frame on the GPU: from the uploaded picture to the bundle's canvas and to the input of the base network."""

from __future__ import annotations

import ctypes
from typing import Any, List, Optional, Tuple

import numpy as np

from crispseg.bundle import NetInfo
from crispseg.engines.cuda import Buffer, Stream, upload_now
from crispseg.engines.cuda_kernels import TYPES, Kernels
from crispseg.plugins import cuda_loader
from crispseg.runtime.geometry import Placement
from crispseg.runtime.pipeline import pad_colour


class FrameInput:
    """Buffers and kernels for frames of one size; the same arithmetic as the CPU pipeline's Pillow.

    Args:
        kernels: of the device.
        place: of the frame on the bundle's canvas.
        net: the base.
        input_type: of its input, "fp32" or "fp16".
    """

    def __init__(self, kernels: Kernels, place: Placement, net: NetInfo, input_type: str) -> None:
        self._kernels, self._place, self._net, self._type = kernels, place, net, TYPES[input_type]
        context, (height, width) = kernels.context, place.canvas
        self._buffers: List[Buffer] = []
        self._canvas = 0  # none: the frame itself
        self._small: Optional[Buffer] = None
        workspace = [kernels.size("csg_resize_workspace", height, width, net.height, net.width)]
        if not place.identity:
            workspace.append(kernels.size("csg_resize_workspace", *place.frame, place.height, place.width))
            bars = np.empty((height, width, 3), np.uint8)  # bars are drawn once: frames never touch them
            bars[:] = pad_colour(net)
            self._buffers.append(upload_now(context, bars))
            self._canvas = self._buffers[-1].address
            if (place.height, place.width) != place.canvas:
                self._small = context.alloc(place.height * place.width * 3)
                self._buffers.append(self._small)
        self._workspace = context.alloc(max(workspace))
        self._buffers.append(self._workspace)

    def canvas(self, frame: int) -> int:
        """Device address of the picture at the bundle's size, uint8 [H,W,3], of the frame at ``frame``."""
        return self._canvas or frame

    def enqueue(self, stream: Stream, frame: int, target: int) -> None:
        """Frame (device address, uint8 [H0,W0,3]) -> canvas -> ``target``: address of the base's input [3,h,w]."""
        place, net = self._place, self._net
        if not place.identity:
            self._fit(stream, frame, place.frame, (place.height, place.width), None,
                      self._small.address if self._small else self._canvas)  # fmt: skip
        if self._small is not None:
            row = 3 * place.width
            corner = self._canvas + 3 * (place.top * place.canvas[1] + place.left)
            stream.copy_rows(corner, 3 * place.canvas[1], self._small.address, row, row, place.height)
        self._fit(stream, self.canvas(frame), place.canvas, (net.height, net.width), target, None)

    def _fit(
        self, stream: Stream, source: int, size: Tuple[int, int], to: Tuple[int, int], out: Any, small: Any
    ) -> None:
        fit = cuda_loader.Fit(rows=to[0], columns=to[1], bgr=int(self._net.channel_order != "rgb"))
        fit.mean[:], fit.std[:] = self._net.mean, self._net.std
        self._kernels.call(
            "csg_prepare_frame", stream.handle, source, *size, ctypes.byref(fit), self._type, out, *to, small,
            self._workspace.address, self._workspace.nbytes,
        )  # fmt: skip

    def close(self) -> None:
        """Free the buffers."""
        for buffer in self._buffers:
            buffer.close()
