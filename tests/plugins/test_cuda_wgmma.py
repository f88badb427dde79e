"""The convolution kernels of compute capability 9.0 alone, on a device of that kind: a real one, or emulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cuda_conv_cases import F16, F32, I8, Gpu, Run, run_conv
from op_table import FULL, Conv
from test_cuda_conv import check, of_type, random_data, same_bits

CAPABILITY = "CRISPSEG_EMULATION_CAPABILITY"
OURS = {"csk_conv_f16_wgmma_128x128", "csk_conv_i8_wgmma_128x128"}
both = pytest.mark.parametrize("kind", [F16, I8], ids=["fp16", "int8"])


def test_on_an_emulated_device_of_9_0(emulated_driver):
    """These tests and those of bank conflicts again in a process whose driver says 9.0."""
    if os.environ.get("CRISPSEG_KERNEL_IMAGE") or os.environ.get(CAPABILITY) == "90":
        pytest.skip("this is that process, or a real device")
    here = Path(__file__)
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(here), str(here.with_name("test_emulated_banks.py"))]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], env={**os.environ, CAPABILITY: "90"},
                          capture_output=True, text=True, cwd=str(here.parents[2]))  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def gpu(emulated_driver, kernel_image):
    gpu = Gpu(kernel_image)
    if gpu.library.csg_compute_capability(gpu.context) != 90:
        gpu.close()
        pytest.skip("needs a device of compute capability 9.0")
    yield gpu
    gpu.close()


def kernels(gpu: Gpu) -> set:
    return {row["name"] for row in json.loads(gpu.library.csg_kernel_report(gpu.context))}


def test_the_check_of_the_device_lets_them_in(gpu):
    assert kernels(gpu) >= OURS


def test_they_can_be_left_out(gpu, kernel_image, monkeypatch):
    monkeypatch.setenv("CRISPSEG_WGMMA", "0")
    without = Gpu(kernel_image)
    assert not kernels(without) & OURS
    assert "csk_conv_f16_mma_128x128" in kernels(without)
    data = of_type(random_data(20, 40, 128), F16)
    check(without, Conv("-", "-", 40, 128, bias=True), Run(type=F16), data)
    without.close()


@both
@pytest.mark.parametrize(
    ("rows", "cin", "cout", "taps"), [(1, 1, 128, 1), (129, 40, 200, 9), (64, 16, 128, 3), (257, 70, 256, 4)]
)
def test_right(emulated, gpu, kind, rows, cin, cout, taps):
    data = of_type(random_data(rows, cin, cout, taps), kind)
    check(gpu, Conv("-", "-", cin, cout, **FULL), Run(type=kind, y_type=kind, z_types=(F16, I8)), data)


@both
def test_orders_of_threads_and_other_kernels_give_the_same_bits(emulated, gpu, kind):
    conv, how = Conv("-", "-", 70, 200, **FULL), Run(type=kind, y_type=F32, z_types=(F32, F16))
    data = of_type(random_data(140, 70, 200, 5), kind)
    first = check(gpu, conv, how, data)
    for order in ((1, 0), (2, 5)):
        emulated.order(*order)
        assert same_bits(run_conv(gpu, conv, data, how), first)
    emulated.order()
    if kind == I8:
        assert same_bits(run_conv(gpu, conv, data, replace(how, portable=2)), first)


@both
def test_shared_tiles(emulated, gpu, kind):
    conv, how = Conv("-", "-", 224, 128, **FULL), Run(type=kind, y_type=F32, z_types=(F32, F16))
    data = of_type(random_data(40, 224, 128, present=0.8), kind)
    whole = check(gpu, conv, replace(how, workspace=False), data)
    parts = check(gpu, conv, how, data)
    assert same_bits(parts, whole) == (kind == I8)


@both
def test_tiles_without_any_tap(emulated, gpu, kind):
    data = of_type(random_data(200, 64, 128), kind)
    data["map"][100:] = -1
    check(gpu, Conv("-", "-", 64, 128, **FULL), Run(type=kind), data)
    data["map"] = np.full_like(data["map"], -1)
    check(gpu, Conv("-", "-", 64, 128, **FULL), Run(type=kind), data)
