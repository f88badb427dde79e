"""Fixtures of all tests: the emulated GPU. This folder comes onto sys.path, so that tests can ``import emulation``."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import emulation
import pytest

from crispseg.errors import EnvironmentMismatch

IMAGE = "CRISPSEG_KERNEL_IMAGE"  # a compiled kernel image: the tests run on the real driver then (make gpu)


# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and Python leaves both so: tests of Ctrl-C
# would wait for ever, those of a closed terminal would see nothing.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, default)


class RealDriver:
    """Stands for the hooks of the emulated driver; a test that asks for what only those can tell is skipped."""

    def check(self):
        return ""

    def order(self, *unused):
        pass

    def schedule(self, *unused):
        pass

    def eager(self, on):
        if on:  # asked for by tests whose host code reads what the emulated device has written
            pytest.skip("device memory that the host reads: the emulated driver's only")

    def __getattr__(self, name):
        pytest.skip(f"{name}: known to the emulated driver only")


@pytest.fixture(scope="session")
def emulated_driver():
    """Builds the emulated driver and the CUDA host library of this work tree and names them in the environment.

    CRISPSEG_LIBCUDA and CRISPSEG_CUDA_LIBRARY are kept when they are set already. Returns the driver's test hooks.
    """
    if os.environ.get(IMAGE):
        yield RealDriver()
        return
    if not shutil.which(emulation.compiler()[0]):
        pytest.skip("the emulated CUDA driver needs g++")
    path = emulation.driver()
    patch = pytest.MonkeyPatch()
    if not os.environ.get("CRISPSEG_LIBCUDA"):
        patch.setenv("CRISPSEG_LIBCUDA", str(path))
    if not os.environ.get("CRISPSEG_CUDA_LIBRARY"):
        patch.setenv("CRISPSEG_CUDA_LIBRARY", str(emulation.host_library()))
    yield emulation.Hooks(path)
    patch.undo()


@pytest.fixture(scope="session")
def kernel_image(emulated_driver) -> bytes:
    """The product's kernels for the driver in use: what csg_create takes."""
    named = os.environ.get(IMAGE)
    if named:
        return Path(named).read_bytes()
    try:
        return emulation.image()
    except EnvironmentMismatch as error:  # PTX is asked for (CRISPSEG_EMULATION_IMAGE)
        pytest.skip(f"needs NVRTC, such as pip install nvidia-cuda-nvrtc-cu12==12.6.85: {error}")


@pytest.fixture
def emulated(emulated_driver):
    """The emulated driver for one test: afterwards no guard bytes are damaged and no kernel has failed unnoticed."""
    yield emulated_driver
    emulated_driver.order()
    emulated_driver.schedule()
    emulated_driver.eager(False)
    assert emulated_driver.check() == ""
