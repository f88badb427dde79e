"""The native library is there. Other tests skip without it, so that a missing one must fail somewhere: here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crispseg
from crispseg.plugins import loader


def test_the_library_loads_and_names_its_instruction_sets():
    library = loader.load()
    assert library.cs_abi_version() == loader.ABI_VERSION
    assert b"generic" in library.cs_build_info()


def python(library: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Another Python with this library."""
    path = os.pathsep.join([str(Path(crispseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, loader.ENVIRONMENT: str(library), "PYTHONPATH": path, "COLUMNS": "4000"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"), reason="needs Linux and g++")
@pytest.mark.parametrize("version", [loader.ABI_VERSION - 1, loader.ABI_VERSION + 1])
def test_a_library_of_another_version_is_refused(tmp_path, version):
    """In words, before any other function of it is called: here they would end the process."""
    source, library = tmp_path / "other.cpp", tmp_path / "libother.so"
    functions = "".join(
        'extern "C" void %s() { __builtin_trap(); }\n' % name for name in loader.PROTOTYPES if name != "cs_abi_version"
    )
    source.write_text('extern "C" int cs_abi_version() { return %d; }\n%s' % (version, functions))
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    done = python(library, "-c", "from crispseg.plugins.loader import Native; Native()")
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "EnvironmentMismatch" in told
    assert "libother.so has ABI version %d, expected %d" % (version, loader.ABI_VERSION) in told
    assert loader.BUILD_COMMAND in told
    doctor = python(library, "-m", "crispseg", "doctor")
    assert "libother.so has ABI version %d, expected %d" % (version, loader.ABI_VERSION) in doctor.stdout
    assert doctor.stdout.count("cmake -S crispseg/plugins") == 1
