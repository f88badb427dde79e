"""Single tensor and asynchronous instructions of the PTX interpreter against plain products of matrices.

A small C++ program (folder ptx_tensor) executes each of them on a memory of its own and compares.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import emulation
import pytest

HERE = Path(__file__).resolve().parent / "ptx_tensor"
PTX = emulation.HERE / "ptx"
INSTRUCTIONS = ("tensor", "wmma", "async", "wgmma")  # sources that need nothing else of the interpreter


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = emulation.cache()
    with emulation._locked(folder):
        objects = [emulation._object(folder, PTX / f"{name}.cpp", emulation._PTX) for name in INSTRUCTIONS]
        objects += [emulation._object(folder, path, ("-O0", f"-I{PTX}")) for path in sorted(HERE.glob("*.cpp"))]
    path = tmp_path_factory.mktemp("ptx_tensor") / "check"
    emulation._run([*emulation.compiler(), *map(str, objects), "-o", str(path)])
    return path


@pytest.mark.parametrize(
    "case", ["mma", "ldmatrix", "wmma", "copies", "copy_mistakes", "wgmma", "wgmma_order", "wgmma_operands"]
)
def test_instructions(program, case):
    done = subprocess.run([program, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")


def test_unknown_case_fails(program):
    assert subprocess.run([program, os.devnull]).returncode == 2
