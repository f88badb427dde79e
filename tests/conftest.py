"""Fixtures of all tests: the emulated GPU. This folder comes onto sys.path, so that tests can ``import emulation``."""

from __future__ import annotations

import os
import shutil

import emulation
import pytest


@pytest.fixture(scope="session")
def emulated_driver():
    """Builds the emulated driver and the CUDA host library of this work tree and names them in the environment.

    CRISPSEG_LIBCUDA and CRISPSEG_CUDA_LIBRARY are kept when they are set already. Returns the driver's test hooks.
    """
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
    """The product's kernels for the emulated driver: what csg_create takes."""
    return emulation.image()


@pytest.fixture
def emulated(emulated_driver):
    """The emulated driver for one test: afterwards no guard bytes are damaged and no kernel has failed unnoticed."""
    yield emulated_driver
    emulated_driver.order()
    emulated_driver.eager(False)
    assert emulated_driver.check() == ""
