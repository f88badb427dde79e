"""GPUs that are newer than the kernels (10.0, 12.0): they run what 8.0 runs, never the kernels of 9.0 alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_conv_cases import F16, F32, I8, Gpu, Run, check, of_type, random_data
from op_table import FULL, Conv

from crispseg.engines import cuda, cuda_kernels
from crispseg.runtime import doctor, doctor_gpu

CAPABILITY = "CRISPSEG_EMULATION_CAPABILITY"
ROOT = Path(__file__).parents[2]
PIPELINE = str(ROOT / "tests" / "runtime" / "test_gpu_pipeline.py") + "::test_two_frames_under_way_come_back_in_order"


@pytest.mark.parametrize("capability", ["100", "120"])
def test_on_an_emulated_device(emulated_driver, capability):
    """These tests, and of 12.0 the pipeline, again in a process whose driver says so."""
    if os.environ.get("CRISPSEG_KERNEL_IMAGE") or os.environ.get(CAPABILITY):
        pytest.skip("this is that process, or a real device")
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, *([PIPELINE] if capability == "120" else [])]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], env={**os.environ, CAPABILITY: capability},
                          capture_output=True, text=True, cwd=str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "." * 4 in done.stdout, "they were skipped"


@pytest.fixture(scope="module")
def gpu(emulated_driver, kernel_image):
    gpu = Gpu(kernel_image)
    if gpu.library.csg_compute_capability(gpu.context) < 100:
        gpu.close()
        pytest.skip("needs a device of compute capability 10.0 or higher")
    yield gpu
    gpu.close()


def test_convolutions_run_on_mma(emulated, gpu, kernel_image):
    kernels = cuda_kernels.Kernels(cuda.open_device(0), kernel_image)
    assert kernels.convolutions == {"fp16": "mma", "int8": "mma"}
    kernels.close()
    names = {row["name"] for row in json.loads(gpu.library.csg_kernel_report(gpu.context))}
    assert not any("wgmma" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "cin", "cout", "taps"), [(F16, 40, 200, 9), (I8, 70, 128, 25), (F16, 16, 48, 9), (I8, 8, 20, 1)]
)
def test_right(emulated, gpu, kind, cin, cout, taps):
    """Every width of tile, and more taps than any refiner has, in the shared memory of the device (12.0: 99 KiB)."""
    data = of_type(random_data(130, cin, cout, taps), kind)
    check(gpu, Conv("-", "-", cin, cout, **FULL), Run(type=kind, y_type=F32, z_types=(F16, I8)), data)


def test_doctor_says_how_the_kernels_come(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CRISPSEG_LIBNVRTC", str(tmp_path / "none.so"))
    code = doctor_gpu.PROBES["CUDA kernels"]
    checks = [dict(name="CUDA kernels", fix=None), dict(name="CUDA compiler (nvcc or NVRTC)", ok=False, found="-")]
    checks[0]["ok"], checks[0]["found"] = doctor.probe(code)
    doctor_gpu.combine(checks, {"CUDA kernels": "?"})
    assert not checks[0]["ok"]
    assert "NVRTC: expected one that compiles for sm_1" in checks[0]["found"]
    assert checks[0]["fix"].startswith('pip install -U "nvidia-cuda-nvrtc-cu12>=12.8"')
    assert "[fix" not in checks[0]["found"]
