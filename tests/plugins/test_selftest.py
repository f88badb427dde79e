"""The library's own self-test (C++, plain loops in double precision): on the library in use, and as CMake builds it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
from native_cases import isas

from crispseg.plugins import loader

PLUGINS = Path(loader.__file__).parent
NATIVE = PLUGINS / "native"
OPS = 14
needs = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("g++"), reason="needs Linux and g++ to build the self-test"
)


def run(command: List[object]) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(source: Path, program: Path) -> None:
    """The self-test, or a variant that includes it, linked to the library in use; skips where there is none."""
    if not all(isinstance(name, str) for name in isas()):
        pytest.skip("no native library")
    library = next(p for p in loader.candidates() if p.is_file()).resolve()
    run(["g++", "-std=c++17", "-O1", f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'selftest'}", source, "-o", program,
         library, f"-Wl,-rpath,{library.parent}"])  # fmt: skip


@needs
def test_the_library_in_use_agrees_with_plain_loops(tmp_path):
    program = tmp_path / "selftest"
    build(NATIVE / "selftest" / "selftest.cpp", program)
    text = run([program, 1, 7])
    for isa in isas():
        lines = [line for line in text.splitlines() if line.startswith(f"{isa} ") and " cases " in line]
        assert len(lines) == OPS, text
        assert all(line.endswith(" ok") for line in lines)


@needs
def test_the_self_test_reports_a_library_that_computes_something_else(tmp_path):
    program = tmp_path / "selftest"
    # bgr is inverted on the way to the library: colours must come out wrong, all else right.
    source = tmp_path / "wrong.cpp"
    source.write_text(
        '#include "crispseg.h"\n'
        "static int swapped(cs_context *ctx, const uint8_t *image, int H, int W, const int32_t *coords, int32_t n,\n"
        "                   const float *mean, const float *std, int bgr, float *x, int64_t ldx) {\n"
        "  return cs_pixel_colours(ctx, image, H, W, coords, n, mean, std, !bgr, x, ldx);\n"
        "}\n"
        "#define cs_pixel_colours swapped\n"
        '#include "selftest.cpp"\n'
    )
    build(source, program)
    done = subprocess.run([str(program), "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.endswith(" FAILED")}
    assert failed == {"pixel_colours"}, done.stdout


@needs
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_cmake_builds_the_self_test(tmp_path):
    run(["cmake", "-S", PLUGINS, "-B", tmp_path, "-DCRISPSEG_SELFTEST=ON"])
    run(["cmake", "--build", tmp_path, "--parallel", 2, "--target", "crispseg_selftest"])
    assert "all good" in run([tmp_path / "crispseg_selftest"])
    assert ctypes.CDLL(str(tmp_path / "libcrispseg.so")).cs_abi_version() == loader.ABI_VERSION
