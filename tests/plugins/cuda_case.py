"""What the tests of the CUDA ops share: a device (the emulated driver, or a GPU), guarded memory, capture and replay.

A test takes ``gpu``, a fixture of two parameters: "emulated" (tests/emulation), and "device" with the marker gpu, which
needs a driver. One driver serves a process: ``pytest -m gpu`` runs the same tests on a GPU, ``-m "not gpu"`` runs them
emulated, and a run of both skips what comes second.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Callable, List, Optional, Sequence

import numpy as np
import pytest

GUARD = 512
_BYTE = 0xA5
LIBRARY = "CRISPSEG_CUDA_LIBRARY"


class Room:
    """Device memory of a shape between guards. Floats start as NaN, integers as 0xA5 bytes, or with ``values``."""

    def __init__(self, gpu: Gpu, shape: Any, dtype: Any, values: Optional[np.ndarray] = None, shift: int = 0) -> None:
        self.gpu, self.dtype = gpu, np.dtype(dtype)
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._start = GUARD + shift
        self._raw = np.full(self.nbytes + 2 * GUARD + shift, _BYTE, np.uint8)
        inside = self._inside(self._raw)
        if values is not None:
            inside[...] = values
        elif self.dtype.kind == "f":
            inside[...] = np.nan
        self._buffer = gpu.context.alloc(self._raw.nbytes)
        self.address = self._buffer.address + self._start
        self._write()

    def _inside(self, raw: np.ndarray) -> np.ndarray:
        return raw[self._start : self._start + self.nbytes].view(self.dtype).reshape(self.shape)

    def _write(self) -> None:
        host = self.gpu.context.pinned(self._raw.shape, np.uint8)
        host[...] = self._raw
        self.gpu.stream.upload(self._buffer.address, host)
        self.gpu.stream.synchronize()

    def put(self, values: np.ndarray) -> None:
        """Replace the contents; the address stays."""
        self._inside(self._raw)[...] = values
        self._write()

    def reset(self) -> None:
        """The contents that it had at first."""
        self._write()

    def get(self) -> np.ndarray:
        """A copy of the contents; both guards are checked."""
        host = self.gpu.context.pinned(self._raw.shape, np.uint8)
        self.gpu.stream.download(host, self._buffer.address)
        self.gpu.stream.synchronize()
        raw = np.array(host)
        assert (raw[: self._start] == _BYTE).all(), "write before the memory"
        assert (raw[self._start + self.nbytes :] == _BYTE).all(), "write beyond the memory"
        return self._inside(raw)

    def untouched(self, first: int) -> bool:
        """Whether rows from ``first`` on hold what they held at first."""
        now, then = self.get()[first:], self._inside(self._raw)[first:]
        return now.tobytes() == then.tobytes()

    def close(self) -> None:
        self._buffer.close()


class Gpu:
    """A device with the kernels loaded, and one stream."""

    def __init__(self, context: Any, image: Optional[bytes], hooks: Any = None) -> None:
        from crispseg.engines.cuda_kernels import Kernels

        self.context, self.hooks = context, hooks
        self.kernels = Kernels(context, image)
        self.stream = context.stream()
        self.rooms: List[Room] = []

    @property
    def capability(self) -> int:
        """72, 87, 90, ..."""
        return self.context.info.capability

    def room(self, shape: Any, dtype: Any, shift: int = 0) -> Room:
        """Poisoned memory between guards; ``shift`` bytes off an address that is a multiple of 256."""
        self.rooms.append(Room(self, shape, dtype, None, shift))
        return self.rooms[-1]

    def put(self, values: Any, dtype: Any = None, shift: int = 0) -> Room:
        """Memory that holds an array."""
        array = np.asarray(values, dtype)
        self.rooms.append(Room(self, array.shape, array.dtype, array, shift))
        return self.rooms[-1]

    def count(self, value: int) -> Room:
        """An int32 on the device."""
        return self.put([value], np.int32)

    def size(self, name: str, *arguments: int) -> int:
        """Bytes of a workspace."""
        return self.kernels.size(name, *arguments)

    def call(self, name: str, *arguments: Any) -> None:
        """Enqueue ``name(context, stream, *arguments)``: rooms go as their addresses, structures by reference."""
        self.kernels.call(name, self.stream.handle, *[_plain(a) for a in arguments])

    def wait(self) -> None:
        """Until the stream is empty; then every room's guards are checked by its own ``get``."""
        self.stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """The graph of what ``enqueue`` calls; nothing of it runs yet."""
        with self.stream.capture() as graphs:
            enqueue()
        return graphs[0]

    def launch(self, graph: Any) -> None:
        """Run a captured graph and wait for it."""
        graph.launch(self.stream)
        self.stream.synchronize()

    def same_in_any_order(self, enqueue: Callable[[], None], outputs: Sequence[Room]) -> None:
        """Run again (emulated: with blocks and threads in other orders) from poisoned outputs; bits must agree."""
        first = [room.get().tobytes() for room in outputs]
        for kind in (1, 2):
            if self.hooks is not None:
                self.hooks.order(kind, 7)
            for room in outputs:
                room.reset()
            enqueue()
            assert [room.get().tobytes() for room in outputs] == first, "another run gave other bits"
        if self.hooks is not None:
            self.hooks.order()

    def free(self) -> None:
        """Free every room; the guards of all are checked first."""
        rooms, self.rooms = self.rooms, []
        try:
            for room in rooms:
                room.get()
        finally:
            for room in rooms:
                room.close()


def _plain(argument: Any) -> Any:
    if isinstance(argument, Room):
        return argument.address
    return ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument


_open: List[Any] = []  # ("emulated" or "device", Gpu)


def _device() -> Gpu:
    from crispseg.engines import cuda, cuda_driver, nvrtc
    from crispseg.errors import EnvironmentMismatch
    from crispseg.plugins import cuda_loader

    if os.environ.get(cuda_driver.ENVIRONMENT):
        pytest.skip("%s names another driver" % cuda_driver.ENVIRONMENT)
    try:
        context = cuda.open_device(0)
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    size = ctypes.c_size_t()
    if cuda_loader.load().csg_embedded_image(ctypes.byref(size)):
        return Gpu(context, None)
    try:
        compiler = nvrtc.find_compiler(context.info.capability, context.info.driver)
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    return Gpu(context, nvrtc.compile_kernels(compiler, context.info.capability, nvrtc.kernel_sources()))


def _emulated(request: Any) -> Gpu:
    from crispseg.engines import cuda

    hooks = request.getfixturevalue("emulated_driver")
    return Gpu(cuda.open_device(0), request.getfixturevalue("kernel_image"), hooks)


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request: Any) -> Any:
    """A ``Gpu`` with the kernels loaded; afterwards all guards are intact."""
    kind = request.param
    if _open and _open[0][0] != kind:
        pytest.skip("this process uses the %s already; run the others with -m" % _open[0][0])
    if not _open:
        _open.append((kind, _device() if kind == "device" else _emulated(request)))
    the = _open[0][1]
    the.context.activate()
    yield the
    the.free()
    if the.hooks is not None:
        the.hooks.order()
        assert the.hooks.check() == ""
