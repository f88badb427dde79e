"""Memory, streams, events and graphs on the emulated driver, and what is said when there is no driver."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from crispseg.engines import cuda, cuda_driver, cuda_kernels
from crispseg.errors import EnvironmentMismatch, InputError


@pytest.fixture
def context(emulated):
    return cuda.open_device(0)


def test_device_facts_and_one_context_a_process(context):
    assert cuda.open_device(0) is context
    assert cuda.device_count() >= 1
    info = context.info
    assert info.capability >= 72
    assert info.multiprocessors > 0
    assert info.name
    assert float(info.driver) >= 11.4
    free, total = context.memory()
    assert 0 < free <= total == info.memory


def test_copies_there_and_back(context):
    stream = context.stream()
    source, target = context.pinned((3, 5), np.float32), context.pinned((3, 5), np.float32)
    assert not target.any()
    source[:] = np.arange(15).reshape(3, 5)
    a, b = context.alloc(source.nbytes), context.alloc(source.nbytes)
    stream.upload(a.address, source)
    stream.copy(b.address, a.address, a.nbytes)
    stream.download(target, b.address)
    stream.synchronize()
    assert stream.idle
    assert (target == source).all()
    stream.fill(b.address, 0x01, b.nbytes)
    stream.download(target, b.address)
    stream.synchronize()
    assert (target.view(np.uint8) == 1).all()


def test_rows_with_pitch(context):
    stream = context.stream()
    image, out = context.pinned((4, 6), np.uint8), context.pinned((7, 10), np.uint8)
    image[:] = np.arange(24).reshape(4, 6)
    a, b = context.alloc(24), context.alloc(70)
    stream.fill(b.address, 255, 70)
    stream.upload(a.address, image)
    stream.copy_rows(b.address + 2 * 10 + 3, 10, a.address + 1, 6, 5, 4)
    stream.download(out, b.address)
    stream.synchronize()
    expected = np.full((7, 10), 255, np.uint8)
    expected[2:6, 3:8] = image[:, 1:]
    assert (out == expected).all()


def test_graph_replays_with_new_contents_and_new_times(context):
    stream, before, after = context.stream(), context.event(), context.event()
    source, target = context.pinned(64, np.uint8), context.pinned(64, np.uint8)
    a = context.alloc(64)
    with stream.capture() as graphs:
        stream.record(before)
        stream.upload(a.address, source)
        stream.download(target, a.address)
        stream.record(after)
    (graph,) = graphs
    assert graph.nodes == 4
    assert not target.any()
    for value in (7, 9):
        source[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (target == value).all()
        assert after.done
        assert after.since(before) >= 0.0
    graph.close()
    with pytest.raises(InputError, match="Graph: used after"):
        graph.launch(stream)


def test_an_error_inside_a_capture_leaves_the_stream_usable(context):
    stream = context.stream()
    with pytest.raises(ValueError, match="mine"), stream.capture():
        raise ValueError("mine")
    assert not stream.capturing
    array, a = context.pinned(4, np.uint8), context.alloc(4)
    stream.upload(a.address, array)
    stream.synchronize()


def test_events_order_two_streams(context):
    one, two, event = context.stream(), context.stream(), context.event()
    source, target = context.pinned(16, np.uint8), context.pinned(16, np.uint8)
    source[:] = 5
    a = context.alloc(16)
    one.upload(a.address, source)
    one.record(event)
    two.wait(event)
    two.download(target, a.address)
    two.synchronize()
    assert (target == 5).all()


def test_memory_is_given_back(context, emulated):
    gc.collect()
    before = emulated.live()
    buffer = context.alloc(1000)
    assert emulated.live() == before + 1
    buffer.close()
    buffer.close()
    with pytest.raises(InputError, match="Buffer: used after"):
        _ = buffer.address
    context.alloc(1000)
    gc.collect()
    assert emulated.live() == before


def test_page_locked_memory_lives_as_long_as_a_view(context):
    view = context.pinned((100, 100), np.uint8)[50:, 50:]
    view[:] = 3
    gc.collect()
    assert view.sum() == 3 * 2500


def test_out_of_memory_names_the_way_out(context):
    with pytest.raises(InputError, match=r"CUDA_ERROR_OUT_OF_MEMORY.*smaller capacity"):
        context.alloc(1 << 45)


def test_copies_refuse_strided_arrays(context):
    with pytest.raises(InputError, match="contiguous"):
        context.stream().upload(context.alloc(64).address, np.zeros((8, 8), np.uint8)[:, ::2])


def test_no_such_device(context):
    with pytest.raises(EnvironmentMismatch, match="device 99: expected one of"):
        cuda.open_device(99)


def test_no_driver_names_the_library(monkeypatch):
    monkeypatch.setenv(cuda_driver.ENVIRONMENT, "/nowhere/libcuda.so.1")
    with pytest.raises(EnvironmentMismatch, match=r"/nowhere/libcuda.so.1.*--backend native"):
        cuda.open_device(0)


def test_a_driver_without_a_function_is_too_old(monkeypatch, emulated_driver):
    monkeypatch.setitem(cuda_driver._PROTOTYPES, "cuNotThere", [])
    with pytest.raises(EnvironmentMismatch, match="cuNotThere.*11.4"):
        cuda_driver.call(cuda_driver.library(), "cuNotThere")


@pytest.mark.parametrize("status", [700, 719])
def test_a_kernel_that_fails_says_what_can_be_tried(emulated_driver, status):
    """Of the emulated driver, which knows both errors; the call that reports one is any that waits."""
    with pytest.raises(EnvironmentMismatch) as caught:
        cuda_driver.call(Failing(cuda_driver.library(), status), "cuStreamSynchronize", None)
    text = str(caught.value)
    assert text.startswith("CUDA driver: cuStreamSynchronize: CUDA_ERROR_")
    assert "lost for this process: start again, on a GPU of 9.0 with CRISPSEG_WGMMA=0" in text
    assert "\n" not in text


def test_so_does_the_next_call_of_the_library(context, emulated, kernel_image):
    kernels, pixels = cuda_kernels.Kernels(context, kernel_image), context.alloc(16)
    arguments = (None, pixels.address, 4, 4, 0, 0, 4, 4, pixels.address, 4, 4)
    kernels.call("csg_to_frame", *arguments)
    emulated.library.cs_emu_break(700)
    with pytest.raises(EnvironmentMismatch, match=r"csk_to_frame.*ILLEGAL_ADDRESS.*lost for this process: start again"):
        kernels.call("csg_to_frame", *arguments)
    assert emulated.check() == "a test says so"
    stream = context.stream()
    with pytest.raises(EnvironmentMismatch) as caught, stream.capture():  # refused there, which does no harm
        kernels.call("csg_to_frame", 0xBAD, *arguments[1:])
    assert "lost" not in str(caught.value)
    kernels.close()


class Failing:
    """A driver whose streams report an error."""

    def __init__(self, driver, status):
        self._driver, self._status = driver, status

    def __getattr__(self, name):
        if name != "cuStreamSynchronize":
            return getattr(self._driver, name)
        wait = lambda stream: self._status  # noqa: E731
        wait.argtypes = []
        return wait
