"""Which architectures CMake asks nvcc for; nvcc is a stand-in that knows some, and nothing is compiled."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "crispseg" / "plugins"
NVCC = """#!/bin/sh
if [ "$1" = --help ]; then for a in %s; do echo "        'compute_$a','sm_$a',"; done; exit; fi
exit 0
"""


@pytest.mark.parametrize(
    ("known", "asked", "codes"),
    [
        ("72 75 80 86 87", "", ["sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "compute_80"]),  # CUDA 11.4
        (
            "75 80 86 87 88 89 90 90a 100 100a 103 120 121",
            "",
            ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80"],
        ),
        ("72 75 80 86 87 90", "72", ["sm_72", "compute_72"]),
        ("75 80 86 87 90", "90;75;87", ["sm_75", "sm_87", "sm_90", "compute_87"]),  # in any order
        ("75 80 86 90 90a", "90", ["sm_90a", "compute_90"]),  # the PTX is not that of 90a, which runs nowhere else
    ],
)
def test_machine_code_and_ptx_for_the_others(tmp_path, known, asked, codes):
    """PTX of the lowest that has all kernels: the driver makes 8.8, 10.3, 11.0, 12.1 and what comes later of it."""
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(NVCC % known)
    nvcc.chmod(0o755)
    command = ["cmake", "-S", str(PLUGINS), "-B", str(tmp_path / "build"), "-G", "Unix Makefiles"]
    command += ["-DCRISPSEG_NVCC=%s" % nvcc, "-DCRISPSEG_EMBED_KERNELS=ON"]
    command += ["-DCRISPSEG_CUDA_ARCHS=%s" % asked] if asked else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rules = "".join(path.read_text() for path in (tmp_path / "build").rglob("build.make"))
    found = set(re.findall(r"-gencode arch=(\w+),code=(\w+)", rules))
    assert {code for _, code in found} == set(codes)
    assert all(virtual.split("_")[1] == code.split("_")[1] for virtual, code in found)
