"""CUDA memory, streams, events and graphs through the driver API, with ctypes alone.

The only module that touches CUDA memory, the same on a desktop and on JetPack 5 (``cuda_driver``: the library). Device
addresses and handles are plain ints. One primary context per device and process is shared by everything: ONNX Runtime,
TensorRT and the kernels of crispseg use the same one.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import contextmanager
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from crispseg.engines.cuda_driver import LOST, NOT_READY, call, library, library_name
from crispseg.errors import EnvironmentMismatch, InputError

_P, _D = c_void_p, c_ulonglong  # handle or host pointer; CUdeviceptr
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS, _INTEGRATED = 75, 76, 16, 18  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no hidden order with the legacy default stream
# CU_STREAM_CAPTURE_MODE_RELAXED: the garbage collector may free device memory on this thread while a capture goes on.
_RELAXED = 2
_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: the record becomes a node of the graph, so its event has a time (CUDA 11.1)
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE

_lock = threading.Lock()
_contexts: Dict[Tuple[str, int], Context] = {}


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2."""

    _fields_ = [
        ("src_x", c_size_t), ("src_y", c_size_t), ("src_kind", c_uint), ("src_host", _P), ("src", _D),
        ("src_array", _P), ("src_pitch", c_size_t),
        ("dst_x", c_size_t), ("dst_y", c_size_t), ("dst_kind", c_uint), ("dst_host", _P), ("dst", _D),
        ("dst_array", _P), ("dst_pitch", c_size_t), ("width", c_size_t), ("height", c_size_t),
    ]  # fmt: skip


@dataclass(frozen=True)
class DeviceInfo:
    """``capability``: 72, 87, 90, ...; ``driver``: CUDA version of the driver, such as "12.4"; ``memory`` in bytes;
    ``integrated``: shares the host's memory (Jetson)."""  # noqa: D209

    ordinal: int
    name: str
    capability: int
    multiprocessors: int
    memory: int
    driver: str
    integrated: bool


def device_count() -> int:
    """CUDA devices that the driver shows. Raises EnvironmentMismatch without a driver."""
    number = c_int()
    call(library(), "cuDeviceGetCount", byref(number))
    return number.value


def open_device(ordinal: int = 0) -> Context:
    """The primary context of a device, current on the calling thread; the same object each time.

    Raises:
        EnvironmentMismatch: no driver, no device, or no such device.
    """
    name = library_name()
    driver = library(name)
    with _lock:
        context = _contexts.get((name, ordinal))
        if context is None:
            count = device_count()
            if not 0 <= ordinal < count:
                raise EnvironmentMismatch(
                    "CUDA device %d: expected one of %d devices that %s shows (CUDA_VISIBLE_DEVICES hides others); "
                    "choose another, or use --backend native" % (ordinal, count, name)
                )
            context = _contexts[(name, ordinal)] = Context(driver, ordinal)
    context.activate()
    return context


class Context:
    """A device's primary context. From :func:`open_device`; it lives as long as the process."""

    def __init__(self, driver: ctypes.CDLL, ordinal: int) -> None:
        self._driver = driver
        device, handle, number, size = c_int(), c_void_p(), c_int(), c_size_t()
        self.call("cuDeviceGet", byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", byref(handle), device)
        self.handle, self.ordinal = int(handle.value or 0), ordinal
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        self.call("cuDeviceTotalMem_v2", byref(size), device)
        values = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS, _INTEGRATED):
            self.call("cuDeviceGetAttribute", byref(number), attribute, device)
            values.append(number.value)
        self.call("cuDriverGetVersion", byref(number))
        version = "%d.%d" % (number.value // 1000, number.value % 1000 // 10)
        text = name.value.decode("utf-8", "replace")
        capability = 10 * values[0] + values[1]
        self.info = DeviceInfo(ordinal, text, capability, values[2], size.value, version, bool(values[3]))

    def call(self, name: str, *arguments: Any, accept: Sequence[int] = ()) -> int:
        """Call a driver function of the table above; raises when it fails."""
        return call(self._driver, name, *arguments, accept=accept)

    def activate(self) -> None:
        """Make the context current on the calling thread. Every thread that uses the GPU does so first."""
        self.call("cuCtxSetCurrent", self.handle)

    def synchronize(self) -> None:
        """Wait for all work of the device."""
        self.call("cuCtxSynchronize")

    @property
    def alive(self) -> bool:
        """False once a kernel did what is not allowed: then every call fails until the process ends."""
        return self.call("cuCtxSynchronize", accept=range(1, 1000)) not in LOST

    def memory(self) -> Tuple[int, int]:
        """(free, total) bytes of device memory."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def alloc(self, nbytes: int) -> Buffer:
        """Device memory of ``nbytes`` (at least 1), aligned to 256 bytes. Raises InputError when there is no room."""
        address = _D()
        self.call("cuMemAlloc_v2", byref(address), max(1, nbytes))
        return Buffer(self, int(address.value), nbytes)

    def pinned(self, shape: Union[int, Sequence[int]], dtype: Any) -> np.ndarray:
        """Page-locked host memory as an array of zeros: what asynchronous copies need. Freed with its last view."""
        dtype = np.dtype(dtype)
        sides = (shape,) if isinstance(shape, int) else tuple(shape)
        nbytes = int(np.prod(sides, dtype=np.int64)) * dtype.itemsize
        pointer = c_void_p()
        self.call("cuMemHostAlloc", byref(pointer), max(1, nbytes), 0)
        memory = (ctypes.c_ubyte * max(1, nbytes)).from_address(int(pointer.value or 0))
        weakref.finalize(memory, self._release, "cuMemFreeHost", pointer.value)
        array = np.frombuffer(memory, np.uint8)
        array[:] = 0
        return array[:nbytes].view(dtype).reshape(sides)

    def stream(self) -> Stream:
        """A new stream."""
        handle = c_void_p()
        self.call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        return Stream(self, int(handle.value or 0))

    def event(self) -> Event:
        """A new event with a time."""
        handle = c_void_p()
        self.call("cuEventCreate", byref(handle), 0)
        return Event(self, int(handle.value or 0))

    def _release(self, name: str, handle: Any) -> None:
        """Free something; silent, because at the end of the process the driver may be gone."""
        try:
            self.activate()
            self.call(name, handle)
        except (EnvironmentMismatch, InputError):
            pass


class _Owned:
    """A handle that is given back once: by :meth:`close`, or when the object goes."""

    def __init__(self, context: Context, handle: int, release: str) -> None:
        self.context = context
        self._handle = handle
        self._finalizer = weakref.finalize(self, context._release, release, handle)

    @property
    def handle(self) -> int:
        """The driver's handle (for memory: the address)."""
        if not self._finalizer.alive:
            raise InputError("%s: used after it was freed" % type(self).__name__)
        return self._handle

    def close(self) -> None:
        """Give it back. May be called twice."""
        self._finalizer()


class Buffer(_Owned):
    """Device memory: ``address`` (int) and ``nbytes``."""

    def __init__(self, context: Context, address: int, nbytes: int) -> None:
        super().__init__(context, address, "cuMemFree_v2")
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """Device address."""
        return self.handle


class Event(_Owned):
    """A point in a stream's work."""

    def __init__(self, context: Context, handle: int) -> None:
        super().__init__(context, handle, "cuEventDestroy_v2")

    def synchronize(self) -> None:
        """Wait until the point is reached."""
        self.context.call("cuEventSynchronize", self.handle)

    @property
    def done(self) -> bool:
        """Whether the point is reached."""
        return self.context.call("cuEventQuery", self.handle, accept=(NOT_READY,)) == 0

    def since(self, start: Event) -> float:
        """Milliseconds on the device from ``start`` to this event; both are reached."""
        ms = c_float()
        self.context.call("cuEventElapsedTime", byref(ms), start.handle, self.handle)
        return float(ms.value)


class Stream(_Owned):
    """A queue of work on the device. Host arrays of copies are page-locked (:meth:`Context.pinned`) and contiguous."""

    def __init__(self, context: Context, handle: int) -> None:
        super().__init__(context, handle, "cuStreamDestroy_v2")
        self.capturing = False

    def upload(self, address: int, array: np.ndarray) -> None:
        """Host array -> device memory. The array must last until the copy is done."""
        self.context.call("cuMemcpyHtoDAsync_v2", address, _data(array), array.nbytes, self.handle)

    def download(self, array: np.ndarray, address: int) -> None:
        """Device memory -> host array."""
        self.context.call("cuMemcpyDtoHAsync_v2", _data(array), address, array.nbytes, self.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Device memory -> device memory."""
        self.context.call("cuMemcpyDtoDAsync_v2", target, source, nbytes, self.handle)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """``rows`` rows of ``width`` bytes, ``pitch`` bytes from row to row, device -> device."""
        copy = _Copy2D(src_kind=_DEVICE_MEMORY, src=source, src_pitch=source_pitch, dst_kind=_DEVICE_MEMORY,
                       dst=target, dst_pitch=target_pitch, width=width, height=rows)  # fmt: skip
        self.context.call("cuMemcpy2DAsync_v2", byref(copy), self.handle)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        """Set bytes."""
        self.context.call("cuMemsetD8Async", address, value, nbytes, self.handle)

    def record(self, event: Event) -> None:
        """Place the event here. Inside a capture it becomes a node of the graph and gets a new time at every launch."""
        if self.capturing:
            self.context.call("cuEventRecordWithFlags", event.handle, self.handle, _EXTERNAL)
        else:
            self.context.call("cuEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """What follows waits for the event (of any stream)."""
        self.context.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Wait until the stream is empty; errors of its work are raised here."""
        self.context.call("cuStreamSynchronize", self.handle)

    @property
    def idle(self) -> bool:
        """Whether all its work is done."""
        return self.context.call("cuStreamQuery", self.handle, accept=(NOT_READY,)) == 0

    @contextmanager
    def capture(self) -> Iterator[List[Graph]]:
        """Record the stream's work instead of doing it. The list holds the graph when the block has ended."""
        result: List[Graph] = []
        self.context.call("cuStreamBeginCapture_v2", self.handle, _RELAXED)
        self.capturing, graph = True, c_void_p()
        try:
            yield result
        except BaseException:
            self.capturing = False
            self.context.call("cuStreamEndCapture", self.handle, byref(graph), accept=range(1, 1000))
            if graph.value:
                self.context._release("cuGraphDestroy", graph.value)
            raise
        self.capturing = False
        self.context.call("cuStreamEndCapture", self.handle, byref(graph))
        result.append(_instantiate(self.context, int(graph.value or 0)))


class Graph(_Owned):
    """Captured work, ready to launch. ``nodes``: number of its nodes."""

    def __init__(self, context: Context, handle: int, nodes: int) -> None:
        super().__init__(context, handle, "cuGraphExecDestroy")
        self.nodes = nodes

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole."""
        self.context.call("cuGraphLaunch", self.handle, stream.handle)


def _instantiate(context: Context, graph: int) -> Graph:
    executable, nodes = c_void_p(), c_size_t()
    try:
        context.call("cuGraphGetNodes", graph, None, byref(nodes))
        context.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
    finally:
        context._release("cuGraphDestroy", graph)
    return Graph(context, int(executable.value or 0), nodes.value)


def _data(array: np.ndarray) -> int:
    if not array.flags.c_contiguous:
        raise InputError("copy: expected a contiguous array, found strides %s" % (array.strides,))
    return array.ctypes.data


def upload_now(context: Context, array: np.ndarray) -> Buffer:
    """New device memory that holds ``array`` (weights, tables); waits for the copy."""
    array = np.ascontiguousarray(array)
    buffer, stream = context.alloc(array.nbytes), context.stream()
    try:
        if array.nbytes:
            stream.upload(buffer.address, array)
        stream.synchronize()
    finally:
        stream.close()
    return buffer
