"""The pipeline on a GPU: a frame goes up once, its label map comes down as uint8, all between stays on the device.

Three streams: frames go up on one, results come down on another, and between them the kernels of all frames run one
behind the other. Events say who waits for whom; the host waits for nothing but a frame's results. The kernels of a
frame (resize and normalise, base, refiner, packing of the results) are one CUDA graph when the base can be captured,
else two graphs around the base. Two slots (``gpu_slot``) take turns: while the GPU works on one frame, the next one is
decoded, copied and uploaded, and the last one downloaded and encoded: :meth:`GpuPipeline.submit`,
:meth:`GpuPipeline.collect`. Stage times are CUDA events.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

import numpy as np

from crispseg.bundle import Bundle, NetInfo
from crispseg.engines.cuda import Buffer, Context, Stream, upload_now
from crispseg.engines.cuda_kernels import TYPES, Kernels
from crispseg.errors import InputError
from crispseg.runtime.bars import DeviceBars, bar_cells
from crispseg.runtime.geometry import Placement, placement, to_frame
from crispseg.runtime.gpu_frame import FrameInput
from crispseg.runtime.gpu_slot import Slot
from crispseg.runtime.pipeline import FrameResult, check_frame

_COPIES = ("h2d", "d2h")


class GpuPipeline:
    """Engines and buffers for one stream of frames. Used by one thread at a time; close it when done.

    Args:
        bundle: what runs.
        net: its base, or its baseline.
        context: the device.
        kernels: of the device.
        stream: on which the kernels run.
        base: dense network with ``enqueue(stream, input, output)``, ``input_type``, ``output_type``, ``capturable``.
        refiner: a CudaRefiner, a TensorRTRefiner, or a CudaLabels for the dense network alone.
        make_labels: makes a CudaLabels of the base, for the labels of the base alone beside a refiner.
        fit: how a frame of another size is brought to the bundle's.
    """

    depth = 2

    def __init__(
        self, bundle: Bundle, net: NetInfo, context: Context, kernels: Kernels, stream: Stream, base: Any, refiner: Any,
        make_labels: Callable[[], Any], fit: str,
    ) -> None:  # fmt: skip
        self.bundle, self.net = bundle, net
        self.refined = refiner.capacity > 0
        self._context, self._kernels, self._stream = context, kernels, stream
        self._up, self._down = context.stream(), context.stream()
        self._base, self._refiner, self._fit = base, refiner, fit
        self._make_labels = make_labels
        self._labels: Any = None  # beside a refiner, when asked for
        shape = (len(bundle.classes), net.logits_height, net.logits_width)
        item = {"fp32": 4, "fp16": 2}
        self._logits = context.alloc(int(np.prod(shape)) * item[base.output_type])
        self._input = context.alloc(3 * net.height * net.width * item[base.input_type])
        self._frames: Optional[FrameInput] = None
        self._bars: Optional[DeviceBars] = None
        self._place: Optional[Placement] = None
        self._want: Tuple[str, ...] = ()
        self._palette: Optional[Buffer] = None
        self._alpha = 0.0
        self._slots: List[Slot] = []
        self._pending: Deque[Slot] = deque()
        self._ready: Deque[FrameResult] = deque()
        self._turn = 0

    # ---- capacity ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Most refined pixels a frame; 0 without a refiner."""
        return self._refiner.capacity

    def set_capacity(self, capacity: int) -> None:
        """Refine at most so many pixels a frame (the most uncertain ones); graphs are captured anew.

        Raises:
            InputError: below 1, above the bundle's capacity, there is no refiner, or it is an engine.
        """
        most = self.bundle.refiner.capacity if self.bundle.refiner and self.refined else 0
        if not 1 <= capacity <= most:
            raise InputError("capacity %d: expected 1 to %d (the bundle's)" % (capacity, most))
        self._finish_all()
        self._drop()
        self._refiner.capacity = capacity

    # ---- overlay ----------------------------------------------------------------------------------------------------

    def paint(self, table: Optional[np.ndarray], alpha: float = 0.5) -> None:
        """Blend class colours over every frame from now on, at its own size: ``overlay`` of its result.

        The bytes are those of ``overlay.blend``.

        Args:
            table: uint8 [256, 3], the colour of each id; None = no more.
            alpha: 0 (frame only) to 1 (colours only).
        """
        self._context.activate()
        self._finish_all()
        self._drop()
        if self._palette is not None:
            self._palette.close()
        self._palette, self._alpha = None if table is None else upload_now(self._context, table), alpha

    # ---- run --------------------------------------------------------------------------------------------------------

    def run(self, frame: np.ndarray, want: Sequence[str] = ("labels",)) -> FrameResult:
        """Segment one frame, uint8 [H0, W0, 3] RGB, and wait for it. ``want``: as for :class:`Pipeline`.

        Raises:
            InputError: the frame has another dtype or shape, ``want`` names something else, or frames are under way.
        """
        if self._pending or self._ready:
            raise InputError("run: expected no frame under way, found %d; collect them first" % len(self._pending))
        start = time.perf_counter()
        self.submit(frame, want)
        result = self.collect()
        result.times["total"] = 1e3 * (time.perf_counter() - start)
        return result

    def submit(self, frame: np.ndarray, want: Sequence[str] = ("labels",)) -> None:
        """Put a frame on the GPU's queue and return; its result comes from :meth:`collect`, in order.

        The frame is copied. At most ``depth`` frames are under way.

        Raises:
            InputError: as :meth:`run`, or ``depth`` frames are under way.
        """
        check_frame(frame, want)
        if len(self._pending) + len(self._ready) >= self.depth:
            raise InputError("submit: expected fewer than %d frames under way; collect one first" % self.depth)
        self._context.activate()
        key = ("labels",) + tuple(item for item in ("confidence", "active", "base") if item in want)
        if self._place is None or self._place.frame != frame.shape[:2] or self._want != key:
            self._finish_all()
            self._plan(placement((frame.shape[0], frame.shape[1]), (self.bundle.height, self.bundle.width),
                                 self._fit), key)  # fmt: skip
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % self.depth
        before = time.perf_counter()
        np.copyto(slot.frame, frame)
        copied = time.perf_counter()
        self._launch(slot)
        slot.host = {"staging": 1e3 * (copied - before), "enqueue": 1e3 * (time.perf_counter() - copied)}
        self._pending.append(slot)

    def collect(self) -> FrameResult:
        """The result of the oldest frame under way; waits for it.

        ``total`` is the sum of the frame's own parts (staging, enqueue, host_latency, post): what it waited for other
        frames, or for the caller, is not its own.

        Raises:
            InputError: no frame is under way.
        """
        if self._ready:
            return self._ready.popleft()
        if not self._pending:
            raise InputError("collect: expected a frame under way, found none; submit one first")
        return self._finish()

    def _finish_all(self) -> None:
        while self._pending:
            self._ready.append(self._finish())

    def _finish(self) -> FrameResult:
        slot = self._pending[0]
        slot.done.synchronize()
        self._pending.popleft()  # not before: broken off by Ctrl-C, the slot must not be filled again
        place = self._place
        assert place is not None
        last = time.perf_counter()
        device = slot.times()
        compute = sum(ms for stage, ms in device.items() if stage not in _COPIES)
        times = {**slot.host, **device, "gpu_compute": compute, "host_latency": sum(device.values())}
        not_finite, count, found = map(int, slot.numbers)
        if not self.refined:
            count = found = 0
        active = None
        if slot.coords is not None:
            active = np.zeros(place.canvas, bool)
            active[slot.coords[:count, 0], slot.coords[:count, 1]] = True
            active = to_frame(active, place)
        labels = slot.labels.copy()
        base = labels.copy() if "base" in self._want and slot.base is None else _copy(slot.base)
        confidence, painted = _copy(slot.confidence), _copy(slot.overlay)
        times["post"] = 1e3 * (time.perf_counter() - last)
        times["total"] = times["post"] + times["host_latency"] + sum(slot.host.values())
        density = count / float(place.canvas[0] * place.canvas[1])
        return FrameResult(labels, confidence, active, count, found, density, times, base, painted, not_finite)

    # ---- plan -------------------------------------------------------------------------------------------------------

    def _plan(self, place: Placement, want: Tuple[str, ...]) -> None:
        """Buffers for frames of a size, and their graphs."""
        self._drop()
        self._turn = 0
        self._frames = FrameInput(self._kernels, place, self.net, self._base.input_type)
        low = (self.net.logits_height, self.net.logits_width)
        cells = bar_cells(place, low, self.net.upsample)
        self._bars = DeviceBars(self._context, (len(self.bundle.classes), *low), cells, self._base.output_type)
        rows = max(1, self._refiner.capacity)
        results = [item for item in want if item != "base" or self.refined]  # without a refiner they are the labels
        if "base" in results and self._labels is None:
            self._labels = self._make_labels()
        if self._palette is not None:
            results.append("overlay")
        for _ in range(self.depth):
            self._slots.append(Slot(self._kernels, place, results, rows))
        # Once without capturing: libraries load kernels and choose algorithms at their first run, TensorRT's engines
        # get their addresses. A refiner that binds the frame's own memory has to see that of each slot.
        binds = self._refiner.binds_image and place.identity
        for slot in self._slots if binds else self._slots[:1]:
            slot.upload(self._stream)
            self._record(slot, 0)
            self._base_run()
            self._record(slot, 1)
        self._stream.synchronize()
        for slot in self._slots:
            slot.clock.reserve(self._slots[0].clock.marks)
            for part in (0, 1):
                with self._stream.capture() as graph:
                    self._record(slot, part)
                    if self._base.capturable and part == 0:
                        self._base_run()
                        self._record(slot, 1)
                slot.graphs.append(graph[0])
                if self._base.capturable:
                    break
        self._place, self._want = place, want  # not before: what failed is planned again

    def _record(self, slot: Slot, part: int) -> None:
        """Part 0: everything before the base; part 1: everything after it."""
        stream, clock, refiner = self._stream, slot.clock, self._refiner
        assert self._frames is not None
        assert self._bars is not None
        image = slot.image.address
        if part == 0:
            clock.start(stream)
            self._frames.enqueue(stream, image, self._input.address)
            clock.mark(stream, "preprocess")
            return
        self._bars.enqueue(stream, self._logits.address)
        self._kernels.call(
            "csg_check_logits", stream.handle, TYPES[self._base.output_type], self._logits.address,
            len(self.bundle.classes), self.net.logits_height, self.net.logits_width, slot.address("not_finite"),
        )  # fmt: skip
        clock.mark(stream, "base")
        refiner.enqueue(stream, self._frames.canvas(image), self._logits.address, slot.outputs, clock)
        sources = {name: refiner.address(name) for name in slot.outputs}
        if slot.base is not None:
            self._labels.enqueue(stream, image, self._logits.address, ("labels",), clock)
            sources["base"] = self._labels.address("labels")
        slot.pack(stream, sources)
        clock.mark(stream, "pack")
        if slot.overlay is not None and self._palette is not None:
            self._kernels.call(
                "csg_overlay", stream.handle, image, slot.address("labels"), *slot.labels.shape,
                self._palette.address, 256, self._alpha, slot.address("overlay"),
            )  # fmt: skip
            clock.mark(stream, "overlay")

    def _base_run(self) -> None:
        self._base.enqueue(self._stream, self._input.address, self._logits.address)

    def _launch(self, slot: Slot) -> None:
        slot.upload(self._up)
        self._stream.wait(slot.uploaded)
        for index, graph in enumerate(slot.graphs):
            if index == 1:
                self._base_run()
            assert graph is not None
            graph.launch(self._stream)
        self._stream.record(slot.computed)
        self._down.wait(slot.computed)
        slot.download(self._down)

    def _drop(self) -> None:
        for stream in (self._up, self._stream, self._down):
            stream.synchronize()
        for slot in self._slots:
            slot.close()
        for part in (self._frames, self._bars):
            if part is not None:
                part.close()
        self._slots, self._place, self._frames, self._bars = [], None, None, None
        if self._refiner.binds_image:
            self._refiner.unbind()

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def describe(self) -> Dict[str, Any]:
        """JSON-able facts about the device and the engines for the report."""
        info = self._context.info
        free, total = self._context.memory()
        graphs = [graph.nodes for slot in self._slots[:1] for graph in slot.graphs if graph is not None]
        return {
            "network": "baseline" if self.net is self.bundle.baseline else "base",
            "fit": self._fit,
            "device": {"name": info.name, "compute_capability": "%d.%d" % divmod(info.capability, 10),
                       "multiprocessors": info.multiprocessors, "shares_host_memory": info.integrated,
                       "driver_cuda": info.driver, "memory_mib": total >> 20, "memory_free_mib": free >> 20},
            "dense": self._base.describe(),
            "refiner": self._refiner.describe() if self.refined else None,
            "labels": None if self.refined else self._refiner.describe(),
            "graphs": {"number": len(graphs), "nodes": graphs},
        }  # fmt: skip

    def close(self) -> None:
        """Wait for the GPU and free everything. May be called twice."""
        self._pending.clear()
        self._ready.clear()
        if self._kernels.handle is None:
            return
        self._context.activate()
        self._drop()
        if self._palette is not None:
            self._palette.close()
        if self._labels is not None:
            self._labels.close()
        streams = (self._up, self._down, self._stream)
        for thing in (self._base, self._refiner, self._logits, self._input, *streams, self._kernels):
            thing.close()

    def __enter__(self) -> GpuPipeline:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _copy(array: Optional[np.ndarray]) -> Optional[np.ndarray]:
    return None if array is None else array.copy()
