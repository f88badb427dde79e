"""A kernel that breaks the CUDA context in the middle of a run: one line that says so, and no files left half done."""

from __future__ import annotations

import ctypes
import os

import failing_driver
import gpu_toy
import numpy as np
import pytest
from gpu_toy import FRAME, LOW, CopyBase, picture
from native_net import CLASSES
from PIL import Image

from crispseg.cli import main
from crispseg.engines import cuda
from crispseg.runtime import gpu_open


@pytest.fixture(scope="module")
def driver(tmp_path_factory, emulated_driver):
    if os.environ.get("CRISPSEG_KERNEL_IMAGE"):
        pytest.skip("the emulated driver's only")
    return failing_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("kernel", ["csk_frame_pack", "csk_conv_f16_mma", "csk_to_frame", "csk_overlay"])
def test_a_run_ends_in_one_line(driver, kernel_image, tmp_path, monkeypatch, capsys, kernel):
    logits = np.random.default_rng(5).normal(0, 4.0, (1, CLASSES, *LOW)).astype(np.float32)
    monkeypatch.setattr(gpu_open, "open_base", lambda bundle, net, spec, context, stream: CopyBase(context, logits))
    bundle = gpu_toy.write(tmp_path / "b")
    Image.fromarray(picture(0, FRAME[0] + 1, FRAME[1])).save(tmp_path / "a.png")
    monkeypatch.setenv("CRISPSEG_LIBCUDA", str(driver))
    gpu_toy.store_kernels(bundle, kernel_image)
    if cuda.open_device(0).info.capability < 80:
        kernel = kernel.replace("_mma", "_wmma")
    monkeypatch.setenv("FAILING", "719")
    monkeypatch.setenv("FAILING_KERNEL", kernel)
    try:
        words = ["run", str(bundle.path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--backend", "cuda"]
        assert main(words) == 2
    finally:
        ctypes.CDLL(str(driver)).break_nothing()
    told = " ".join("".join(capsys.readouterr()).split())
    assert "CUDA_ERROR_LAUNCH_FAILED" in told
    assert "the GPU is lost for this process: start again" in told
    assert "Traceback" not in told
    assert not list((tmp_path / "out").rglob("*.*"))
