"""What one frame under way has to itself: memory for going up and coming down, graphs, events.

The frame has its own device memory, and so have its results, so that the copy engines work on one frame while the
kernels work on another: upload, kernels and download are on three streams, each of which waits for the one before it
by an event. Whoever fills a slot again has taken its results before: then all three have done with it.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import numpy as np

from crispseg.engines.cuda import Graph, Stream
from crispseg.engines.cuda_clock import StageClock
from crispseg.engines.cuda_kernels import Kernels
from crispseg.runtime.geometry import Placement

_ALIGNMENT = 256  # of each result: what the copy engines like, and more than any type wants
_MAPS = ("labels", "confidence", "base")  # of the canvas' pixels; they come down at the frame's own size


class Slot:
    """One of the frames under way.

    Args:
        kernels: of the device.
        place: of the frames on the canvas.
        want: results to download: "labels", "confidence", "active", "base", "overlay".
        rows: most refined pixels a frame.

    Attributes:
        frame: page-locked uint8 [H0,W0,3], to be filled before :meth:`upload`.
        image: device memory of the frame, uint8 [H0,W0,3].
        labels, confidence, base: page-locked uint8 [H0,W0]; coords: int32 [rows,2], on the canvas; numbers: int32 [3],
            not_finite, count, found; overlay: uint8 [H0,W0,3]. Valid once ``done`` is reached; None where not wanted.
        uploaded, computed, done: the frame is on the device; its results are packed; they are on the host.
        clock: stages of the graphs.
    """

    def __init__(self, kernels: Kernels, place: Placement, want: Sequence[str], rows: int) -> None:
        self._kernels, self._place = kernels, place
        context, frame = kernels.context, place.frame
        self.frame = context.pinned((*frame, 3), np.uint8)
        self.image = context.alloc(self.frame.nbytes)
        pixels = frame[0] * frame[1]
        sizes = {"count": 4, "found": 4, "labels": pixels}
        if "confidence" in want:
            sizes["confidence"] = pixels
        if "active" in want:
            sizes["coords"] = 8 * rows
        self.outputs = list(sizes)  # of the refiner
        sizes = {"not_finite": 4, **sizes}
        if "base" in want:
            sizes["base"] = pixels
        if "overlay" in want:
            sizes["overlay"] = self.frame.nbytes
        self._offsets: Dict[str, int] = {}
        end = 0
        for name, nbytes in sizes.items():
            self._offsets[name] = end
            end += nbytes
            if name not in ("not_finite", "count"):  # the numbers are neighbours
                end += -end % _ALIGNMENT
        self._sizes = sizes
        self._results = context.alloc(end)
        self._host = context.pinned(end, np.uint8)  # one copy brings all of it
        self.numbers = self._host[:12].view(np.int32)
        self.labels = self._view("labels").reshape(frame)
        self.confidence = self._view("confidence").reshape(frame) if "confidence" in sizes else None
        self.base = self._view("base").reshape(frame) if "base" in sizes else None
        self.coords = self._view("coords").view(np.int32).reshape(-1, 2) if "coords" in sizes else None
        self.overlay = self._view("overlay").reshape(self.frame.shape) if "overlay" in sizes else None
        self.graphs: List[Optional[Graph]] = []
        self.clock = StageClock(context)
        self._up, self._down = context.event(), context.event()
        self.uploaded, self.computed, self.done = context.event(), context.event(), context.event()
        self.host: Dict[str, float] = {}

    def _view(self, name: str) -> np.ndarray:
        start = self._offsets[name]
        return self._host[start : start + self._sizes[name]]

    def upload(self, stream: Stream) -> None:
        """Put the frame's way to the device on a stream; ``uploaded`` stands behind it."""
        stream.record(self._up)
        stream.upload(self.image.address, self.frame)
        stream.record(self.uploaded)

    def address(self, name: str) -> int:
        """Device address of a result, from where it is downloaded."""
        return self._results.address + self._offsets[name]

    def pack(self, stream: Stream, addresses: Dict[str, int]) -> None:
        """Take the results (name -> device address) out of the memory that the next frame writes.

        Maps are brought from the canvas to the frame's own size by the rule of ``geometry.to_frame``.
        """
        place = self._place
        for name, source in addresses.items():
            if place.identity or name not in _MAPS:
                stream.copy(self.address(name), source, self._sizes[name])
            else:
                self._kernels.call(
                    "csg_to_frame", stream.handle, source, *place.canvas, place.top, place.left, place.height,
                    place.width, self.address(name), *place.frame,
                )  # fmt: skip

    def download(self, stream: Stream) -> None:
        """Put the results' way to the host on a stream; ``done`` stands behind it."""
        stream.record(self._down)
        stream.download(self._host, self._results.address)
        stream.record(self.done)

    def times(self) -> Dict[str, float]:
        """Stage -> ms on the device, once ``done`` is reached."""
        return {"h2d": self.uploaded.since(self._up), **self.clock.times(), "d2h": self.done.since(self._down)}

    def close(self) -> None:
        """Free everything but the page-locked arrays, which go with their last view."""
        for graph in self.graphs:
            if graph is not None:
                graph.close()
        for thing in (self.clock, self._up, self._down, self.uploaded, self.computed, self.done):
            thing.close()
        self.image.close()
        self._results.close()
