"""The CUDA kernels as NVRTC compiles them, interpreted (tests/emulation/ptx): the tests of the kernels again.

Each part runs in a process of its own, for the emulated device of one compute capability; everything, on every
capability: ``python tests/emulation/run_ptx.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
from emulation import ptx, run_ptx

from crispseg.engines import nvrtc
from crispseg.errors import EnvironmentMismatch

HERE = Path(__file__).parent
# Capability -> files, choice among their tests, and how many must have run. 7.2 has wmma, 8.7 mma.sync, ldmatrix and
# cp.async, 9.0 wgmma.
PARTS = {
    72: (("test_cuda_conv.py", "test_ptx_profile.py"), "op_table or tiles or profile", 200),
    87: (
        ("test_cuda_maps.py", "test_cuda_select.py", "test_cuda_conv.py", "test_ptx_profile.py"),
        "not orders and not order_changes and not of_the_device",
        500,
    ),
    90: (("test_ptx_mistakes.py", "test_ptx_barriers.py", "test_cuda_wgmma.py", "test_ptx_profile.py"), "", 85),
}


@pytest.fixture(autouse=True)
def compiler():
    """Skips where there is nothing to test: no NVRTC, or another kind of kernels was asked for."""
    if os.environ.get("CRISPSEG_KERNEL_IMAGE") or ptx.wanted():
        pytest.skip("a process of these tests, or a real device")
    try:
        return nvrtc.find_compiler(87)
    except EnvironmentMismatch as error:
        pytest.skip(f"needs NVRTC, such as pip install nvidia-cuda-nvrtc-cu12==12.6.85: {error}")


def assert_well(outcome: run_ptx.Outcome, least: int) -> None:
    """Nothing failed, and not everything was skipped."""
    assert not outcome.failures, "\n".join(f"{name}: {text}" for name, text in outcome.failures.items())
    assert outcome.failed == 0
    assert outcome.passed >= least, f"{outcome.passed} passed, {outcome.skipped} skipped: {outcome.reasons}"


@pytest.mark.parametrize("capability", PARTS)
def test_part(emulated_driver, capability):
    names, chosen, least = PARTS[capability]
    words = [*(str(HERE / name) for name in names), "-m", "not gpu and not slow", "-k", chosen]
    assert_well(run_ptx.run(capability, words), least)


def test_what_fails_crashes_or_does_not_run_is_seen(tmp_path):
    source = tmp_path / "test_bad.py"
    source.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('none of these')\n"
    )
    outcome = run_ptx.run(87, [str(source)])
    assert (outcome.passed, outcome.failed, outcome.reasons) == (1, 1, {"none of these": 1})
    [(name, text)] = outcome.failures.items()
    assert name.endswith("test_bad::test_b")
    assert "assert 0" in text
    source.write_text("import os\ndef test_a(): os._exit(3)\n")
    assert run_ptx.run(87, [str(source)]).failed == 1
    assert run_ptx.run(87, [str(tmp_path / "test_none.py")]).failed == 1
    with pytest.raises(AssertionError, match="0 passed, 1 skipped"):
        assert_well(run_ptx.Outcome(skipped=1), 1)


def test_counts_of_a_convolution(emulated_driver, tmp_path):
    path = tmp_path / "counts.json"
    words = ["--capability", "72", "--rows", "8", "--channels", "16,64", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, str(emulation.HERE / "count_ptx.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = {row["kernel"]: row for row in json.loads(path.read_text())}
    # One tile of 128 x 64: nine taps, one chunk of 64 bytes; 32 products of 16 x 16 for each 16 of k.
    assert counts["csk_conv_f16_wmma_128x64"]["tensor"] == 9 * 32 * 2
    assert counts["csk_conv_i8_wmma_128x64"]["tensor"] == 9 * 32 * 4
    assert done.stdout.count("| 7.2 | csk_conv_") == 2


def test_sources_are_those_that_are_included():
    texts = ptx.sources(emulation.HERE / "ptx" / "mistakes.cu")
    assert list(texts)[0] == "mistakes.cu"
    assert {"wgmma.cuh", "mma.cuh", "base.cuh", "table.h"} <= set(texts)
    assert "select.cuh" not in texts


def test_images_are_compiled_once(tmp_path, monkeypatch):
    source = tmp_path / "one.cu"
    source.write_text('extern "C" __global__ void one(int *p) { *p = 1; }\n')
    first = ptx.image(source, tmp_path, 75)
    assert b".target sm_75" in first
    assert b".entry one(" in first
    assert first.endswith(b"\0")
    ptx.image.cache_clear()
    monkeypatch.setattr(ptx, "_compile", lambda *_: pytest.fail("compiled again"))
    assert ptx.image(source, tmp_path, 75) == first
    monkeypatch.undo()
    assert b".target sm_90a" in ptx.image(source, tmp_path, 90)
    source.write_text("nonsense\n")
    with pytest.raises(EnvironmentMismatch, match="NVRTC says.*error"):
        ptx.image(source, tmp_path, 80)


def test_the_environment_says_which_kind(monkeypatch):
    assert not ptx.wanted()
    monkeypatch.setenv(ptx.ENVIRONMENT, "cubin")
    with pytest.raises(RuntimeError, match="expected host or ptx, found cubin"):
        ptx.wanted()
