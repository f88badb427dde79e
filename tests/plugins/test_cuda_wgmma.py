"""The convolution kernels of compute capability 9.0 alone, on a device of that kind: a real one, or emulated."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import failing_driver as failing
import numpy as np
import pytest
from cuda_conv_cases import F16, F32, I8, Gpu, Run, check, of_type, random_data, run_conv, same_bits
from emulation import ptx
from op_table import FULL, Conv
from PIL import Image

from crispseg.cli import main
from crispseg.engines import cuda, cuda_kernels
from crispseg.engines.tensorrt import artefacts
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins import cuda_loader

CAPABILITY = "CRISPSEG_EMULATION_CAPABILITY"
OURS = {"csk_conv_f16_wgmma_128x128", "csk_conv_i8_wgmma_128x128"}
both = pytest.mark.parametrize("kind", [F16, I8], ids=["fp16", "int8"])


def test_on_an_emulated_device_of_9_0(emulated_driver):
    """These tests and those of bank conflicts again in a process whose driver says 9.0."""
    if os.environ.get("CRISPSEG_KERNEL_IMAGE") or os.environ.get(CAPABILITY) == "90" or ptx.wanted():
        pytest.skip("this is that process, one of test_ptx.py, or a real device")
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


def test_the_check_of_the_device_lets_them_in(gpu, kernel_image):
    assert kernels(gpu) >= OURS
    opened = cuda_kernels.Kernels(cuda.open_device(0), kernel_image)
    assert set(opened.convolutions.values()) == {"wgmma"}
    opened.close()


def test_they_can_be_left_out(gpu, kernel_image, monkeypatch):
    monkeypatch.setenv("CRISPSEG_WGMMA", "0")
    without = Gpu(kernel_image)
    assert not kernels(without) & OURS
    assert "csk_conv_f16_mma_128x128" in kernels(without)
    data = of_type(random_data(20, 40, 128), F16)
    check(without, Conv("-", "-", 40, 128, bias=True), Run(type=F16), data)
    without.close()


# ---- a check that fails ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing_driver(tmp_path_factory, emulated_driver):
    if os.environ.get("CRISPSEG_KERNEL_IMAGE"):
        pytest.skip("the emulated driver's only")
    return failing.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def failing_gpu(failing_driver, gpu, monkeypatch):
    """(how, part of a kernel's name) -> context of a driver that lets that kernel fail."""

    def start(how, kernel="wgmma"):
        monkeypatch.setenv("CRISPSEG_LIBCUDA", str(failing_driver))
        monkeypatch.setenv("FAILING", how)
        monkeypatch.setenv("FAILING_KERNEL", kernel)
        return cuda.open_device(0)

    yield start
    ctypes.CDLL(str(failing_driver)).break_nothing()


@pytest.mark.parametrize("kernel", ["f16_wgmma", "i8_wgmma", "i8_mma_128x128"])
@pytest.mark.parametrize(
    ("status", "name"), [("715", "CUDA_ERROR_ILLEGAL_INSTRUCTION"), ("719", "CUDA_ERROR_LAUNCH_FAILED")]
)
def test_a_kernel_that_breaks_the_context_names_the_way_around(failing_gpu, kernel_image, status, name, kernel):
    context = failing_gpu(status, kernel)
    with pytest.raises(EnvironmentMismatch) as caught:
        cuda_kernels.Kernels(context, kernel_image)
    text = str(caught.value)
    assert text.startswith("check of the wgmma convolutions")
    assert name in text
    assert "start again with CRISPSEG_WGMMA=0" in text
    assert "the CUDA context is lost" in text
    assert "\n" not in text
    assert not context.alive


@pytest.mark.parametrize("ask", [
    lambda context, bundle: cuda_kernels.open_kernels(context, bundle),
    lambda context, bundle: cuda_kernels.build(bundle, context),
    lambda context, bundle: cuda_kernels.outlook(context),
    lambda context, bundle: artefacts.kernel_image(bundle, context, True),
], ids=["open", "build", "outlook", "tensorrt"])  # fmt: skip
def test_a_broken_context_is_not_taken_for_an_image_of_other_gpus(
    failing_gpu, kernel_image, monkeypatch, tmp_path, ask
):
    """The image inside the library: nothing must look for another one, and hide what happened."""
    context, create = failing_gpu("715"), cuda_loader.create
    monkeypatch.setattr(cuda_loader, "embedded_image", lambda: kernel_image)
    monkeypatch.setattr(cuda_loader, "create", lambda image=None: create(image or kernel_image))
    bundle = type("Bundle", (), {"path": tmp_path})
    with pytest.raises(EnvironmentMismatch, match="CRISPSEG_WGMMA=0"):
        ask(context, bundle)


def test_the_commands_tell_it_in_one_line(failing_gpu, kernel_image, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "engines"))
    import gpu_toy

    bundle = gpu_toy.write(tmp_path / "b")
    Image.fromarray(gpu_toy.picture(0, *gpu_toy.FRAME)).save(tmp_path / "a.png")
    failing_gpu("")
    gpu_toy.store_kernels(bundle, kernel_image)
    failing_gpu("715")
    words = ["run", str(bundle.path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--backend", "cuda"]
    assert main([*words, "--precision", "fp32"]) == 2
    told = "".join(capsys.readouterr())
    assert "start again with CRISPSEG_WGMMA=0" in " ".join(told.split())
    assert "Traceback" not in told


def test_a_launch_that_is_refused_leaves_wgmma_out(failing_gpu, kernel_image):
    """Such a failure does no harm to the context: the other kernels run."""
    context = failing_gpu("refused", "f16_wgmma")
    kernels = cuda_kernels.Kernels(context, kernel_image)
    assert kernels.convolutions == kernels.describe()["convolutions"] == {"fp16": "mma", "int8": "wgmma"}
    assert context.alive
    kernels.close()


def test_without_memory_for_the_check_they_are_left_out(failing_gpu, kernel_image):
    kernels = cuda_kernels.Kernels(failing_gpu("memory"), kernel_image)
    assert set(kernels.convolutions.values()) == {"mma"}
    kernels.close()


def test_the_way_around_works(failing_gpu, kernel_image, monkeypatch):
    context = failing_gpu("715")
    monkeypatch.setenv("CRISPSEG_WGMMA", "0")
    kernels = cuda_kernels.Kernels(context, kernel_image)
    assert set(kernels.convolutions.values()) == {"mma"}
    kernels.close()


# ---- results ---------------------------------------------------------------------------------------------------------


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
