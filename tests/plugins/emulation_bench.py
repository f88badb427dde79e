"""What the tests of the emulated driver itself share: kernels of their own, launched with ctypes arguments."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint, c_ulonglong, c_void_p
from pathlib import Path

import emulation
import numpy as np
import pytest

from crispseg.engines import cuda
from crispseg.errors import EnvironmentMismatch

COMPILED = emulation.ptx.wanted()  # other mistakes are told then, and in other words


class Pair(ctypes.Structure):
    _fields_ = [("small", ctypes.c_char), ("large", ctypes.c_longlong)]


class Bench:
    """Loads the kernels of a source and launches them with ctypes arguments."""

    def __init__(self, hooks: emulation.Hooks, source: Path = emulation.HERE / "faults.cu") -> None:
        self.hooks, self.context = hooks, cuda.open_device()
        self.lib, self.kept = hooks.library, []
        self.stream = self.context.stream()
        self.module = c_void_p()
        try:
            image = emulation.image(source, source.with_name(source.stem + "_table.h"))
        except EnvironmentMismatch as error:
            pytest.skip(f"needs NVRTC: {error}")
        assert self.lib.cuModuleLoadData(byref(self.module), image) == 0

    def function(self, name: str) -> c_void_p:
        found = c_void_p()
        assert self.lib.cuModuleGetFunction(byref(found), self.module, name.encode()) == 0
        return found

    def status(self, name, *arguments, grid=1, block=32, shared=0, stream=None) -> int:
        pointers = (c_void_p * (len(arguments) + 1))(*[ctypes.addressof(a) for a in arguments])
        handle = (stream or self.stream).handle
        return self.lib.cuLaunchKernel(
            self.function(name),
            c_uint(grid),
            1,
            1,
            c_uint(block),
            1,
            1,
            c_uint(shared),
            c_void_p(handle),
            pointers,
            None,
        )

    def launch(self, name, *arguments, **shape) -> None:
        assert self.status(name, *arguments, **shape) == 0

    def fails(self, name, *arguments, **shape) -> str:
        """The message of a launch that goes wrong when it runs."""
        self.launch(name, *arguments, **shape)
        with pytest.raises(EnvironmentMismatch) as error:
            self.stream.synchronize()
        assert self.lib.cuCtxSynchronize() >= 700, "the context is lost, as on a GPU"
        assert self.hooks.check() in str(error.value)
        return str(error.value)

    def put(self, array) -> cuda.Buffer:
        self.kept.append(cuda.upload_now(self.context, np.ascontiguousarray(array)))
        return self.kept[-1]

    def get(self, buffer, shape, dtype=np.int32) -> np.ndarray:
        result = np.empty(shape, dtype)
        self.stream.download(result, buffer.address)
        self.stream.synchronize()
        return result


@pytest.fixture
def bench(emulated):
    return Bench(emulated)


def address(buffer) -> c_ulonglong:
    return c_ulonglong(buffer.address)
