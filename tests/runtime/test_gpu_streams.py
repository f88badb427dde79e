"""Frames under way on three streams: a device that runs them in the worst order that events allow changes nothing.

Mistakes are planted too: each must change a result, or be refused, in one of these orders.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gpu_toy
from emulation import ANY, DOWNLOADS_LATE, EARLY, KERNELS_LATE, LATE, UPLOADS_LATE
from gpu_toy import FRAME, LOW, CopyBase, picture
from native_net import CLASSES

from crispseg.engines import cuda, nvrtc
from crispseg.errors import CrispsegError
from crispseg.runtime import gpu_open, gpu_pipeline
from crispseg.runtime.gpu_slot import Slot
from crispseg.runtime.pipeline import open_pipeline

ALL = ("labels", "confidence", "active", "base")
ORDERS = [LATE, EARLY, KERNELS_LATE, UPLOADS_LATE, DOWNLOADS_LATE]
SCHEDULES = [*((kind, 0) for kind in ORDERS), *((ANY, seed) for seed in range(4))]
FRAMES = [picture(seed, *FRAME) for seed in range(4)]


@pytest.fixture(autouse=True)
def no_garbage():
    """Freeing device memory waits for the device: a collection at the wrong moment would put the work in order."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, emulated_driver, kernel_image):
    sources, patch = nvrtc.kernel_sources(), pytest.MonkeyPatch()
    patch.setattr(nvrtc, "kernel_sources", lambda: sources)  # one key, even if somebody edits a kernel meanwhile
    made = gpu_toy.write(tmp_path_factory.mktemp("streams") / "b")
    gpu_toy.store_kernels(made, kernel_image)
    yield made
    patch.undo()


class PictureBase(CopyBase):
    """The prepared picture itself, cut off, is its logits."""

    def enqueue(self, stream, input_address, output_address):
        stream.copy(output_address, input_address, self.buffer.nbytes)


@pytest.fixture
def opened(bundle, monkeypatch, emulated):
    """Opens a pipeline; a base that is not ``captured`` runs between two graphs."""
    logits = np.zeros((1, CLASSES, *LOW), np.float32)
    assert logits.size < 3 * gpu_toy.INPUT[0] * gpu_toy.INPUT[1]

    def make(captured=True, refine=True):
        def base(bundle, net, spec, context, stream):
            made = PictureBase(context, logits)
            made.capturable = captured
            return made

        monkeypatch.setattr(gpu_open, "open_base", base)
        return open_pipeline(bundle, backend="cuda", refine=refine)

    return make


def alone(pipe, frames=FRAMES):
    return [pipe.run(frame, ALL) for frame in frames]


def under_way(pipe, frames=FRAMES):
    """The results of all frames, two of them under way at any time. What the caller hands over is overwritten."""
    results = []
    for index, frame in enumerate(frames):
        handed = frame.copy()
        pipe.submit(handed, ALL)
        handed[:] = 0
        if index:
            results.append(pipe.collect())
    return [*results, pipe.collect()]


def equal(found, exact):
    return all(
        (a.count, a.found) == (b.count, b.found) and all((getattr(a, n) == getattr(b, n)).all() for n in ALL)
        for a, b in zip(found, exact)
    )


@pytest.mark.parametrize(("captured", "refine"), [(True, False), (False, False), (True, True)])
def test_no_order_of_work_changes_a_result(opened, emulated, captured, refine):
    # The refiner takes its time on the emulated device: the fewest frames that use a slot again.
    frames, schedules = (FRAMES[:3], SCHEDULES[1:3]) if refine else (FRAMES, SCHEDULES)
    with opened(captured, refine) as pipe:
        exact = alone(pipe, frames)
        assert len({result.labels.tobytes() for result in exact}) == len(frames)
        for kind, seed in schedules:
            emulated.schedule(kind, seed)
            assert equal(under_way(pipe, frames), exact), (kind, seed)
        assert pipe.describe()["graphs"]["number"] == (1 if captured else 2)


def test_a_frame_is_a_handful_of_calls_that_wait_for_nothing(opened, monkeypatch):
    with opened() as pipe:
        pipe.run(FRAMES[0])
        called, call = [], cuda.Context.call
        monkeypatch.setattr(cuda.Context, "call", lambda self, name, *given, **more: (
            called.append(name), call(self, name, *given, **more))[1])  # fmt: skip
        pipe.submit(FRAMES[1])
        assert called == [
            "cuCtxSetCurrent",
            "cuEventRecord", "cuMemcpyHtoDAsync_v2", "cuEventRecord",
            "cuStreamWaitEvent", "cuGraphLaunch", "cuEventRecord",
            "cuStreamWaitEvent", "cuEventRecord", "cuMemcpyDtoHAsync_v2", "cuEventRecord",
        ]  # fmt: skip
        del called[:]
        pipe.collect()
        assert [name for name in called if name != "cuEventElapsedTime"] == ["cuEventSynchronize"]


def test_nothing_is_allocated_and_nothing_waits_in_a_capture(opened, emulated, monkeypatch):
    """In a global capture the driver refuses such calls, from whatever thread; the product's own are relaxed."""
    emulated.launches()  # the emulated driver's refusals are what is known
    monkeypatch.setattr(cuda, "_RELAXED", 0)  # CU_STREAM_CAPTURE_MODE_GLOBAL
    frame = picture(3, 37, 61)
    with opened() as pipe:
        pipe.paint(np.zeros((256, 3), np.uint8))
        result = pipe.run(frame, ALL)
        assert result.overlay.shape == frame.shape
        pipe.set_capacity(40)  # captured anew, with room for other shares of the convolutions
        assert pipe.run(frame, ALL).count == 40
        context = pipe._context
        for unsafe in (lambda: context.alloc(1), context.synchronize, pipe._stream.synchronize):
            with pytest.raises(CrispsegError), pipe._stream.capture():
                unsafe()


def skipping(name, role):
    """The pipeline's stream ``role`` waits for nothing."""

    def plant(pipe, patch):
        waits = cuda.Stream.wait
        patch.setattr(cuda.Stream, "wait", lambda stream, event: (
            None if stream is getattr(pipe, role) else waits(stream, event)))  # fmt: skip

    return pytest.param(plant, id=name)


def sharing(name, *parts):
    """Both slots have the same memory."""

    def plant(pipe, patch):
        first = []

        class Shared(Slot):
            def __init__(self, *given):
                super().__init__(*given)
                first.append(self)
                for part in parts:
                    setattr(self, part, getattr(first[0], part))

        patch.setattr(gpu_pipeline, "Slot", Shared)

    return pytest.param(plant, id=name)


def early(pipe, patch):
    patch.setattr(cuda.Event, "synchronize", lambda event: None)


@pytest.mark.parametrize("plant", [
    skipping("kernels do not wait for the upload", "_stream"),
    skipping("the download does not wait for the kernels", "_down"),
    sharing("one frame on the device", "image"),
    sharing("one page-locked frame", "frame"),
    sharing("results packed in one place", "_results"),
    sharing("page-locked results in one place", "_host", "labels", "confidence", "coords", "base", "numbers"),
    pytest.param(early, id="the host does not wait for the results"),
])  # fmt: skip
def test_a_mistake_shows_in_some_order(opened, emulated, monkeypatch, plant):
    emulated.launches()  # a real device need not show it
    with opened(refine=False) as pipe:
        exact = alone(pipe)
        pipe._drop()
        plant(pipe, monkeypatch)
        shown = []
        for kind, seed in SCHEDULES:
            emulated.schedule(kind, seed)
            try:
                shown += [] if equal(under_way(pipe), exact) else [(kind, seed)]
            except CrispsegError:
                shown.append((kind, seed))
                break
        monkeypatch.undo()
        emulated.schedule()
    assert shown
