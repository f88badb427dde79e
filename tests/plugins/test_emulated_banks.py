"""Shared memory of the tensor-core convolutions: no access of a warp meets a bank conflict, no copy reads in vain.

The emulated device counts them (tests/emulation/banks.h) by the addresses that the kernels compute.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from cuda_conv_cases import F16, I8, Gpu, Run, assert_right, expected, of_type, random_data, run_conv
from op_table import Conv

from tests import emulation

pytestmark = pytest.mark.skipif(
    "CRISPSEG_KERNEL_IMAGE" in os.environ or emulation.ptx.wanted(), reason="counts only in images made by g++"
)


@pytest.fixture(scope="module")
def gpu(kernel_image):
    gpu = Gpu(kernel_image)
    yield gpu
    gpu.close()


@pytest.mark.parametrize("kind", [F16, I8], ids=["fp16", "int8"])
@pytest.mark.parametrize("columns", [32, 64, 128])
def test_no_bank_conflict(emulated, gpu, kernel_image, kind, columns):
    conv = Conv("-", "-", 64, columns, bias=True)
    data, how = of_type(random_data(150, 64, columns), kind), Run(type=kind)
    own = columns == 128 and gpu.library.csg_compute_capability(gpu.context) == 90  # wgmma, two steps ahead
    with emulation.Accesses(kernel_image).counted() as found:
        got = run_conv(gpu, conv, data, how)
    assert_right(conv, how, got, expected(conv, data, how))
    for name, counts in found.items():
        assert (counts["requests"] > 0) != (own and name == "matrix"), name
        assert counts["wavefronts"] == counts["fewest"], (name, counts)
    assert 0 < found["copy"]["sectors"] <= found["copy"]["fewest_sectors"]  # whole sectors, each read once
    # A step of a warp: its quarter of the rows and columns copied, 16 rows or columns by 32 bytes loaded at a time.
    tiles, steps = 2, 9 * (64 * (2 if kind == F16 else 1) // 64)
    loads = {128: 2 * (4 + 4), 64: 2 * (4 + 2), 32: 2 * (2 + 2)}[columns]
    assert found["matrix"]["requests"] == (0 if own else tiles * 4 * steps * loads)
    ahead = 2 if own else 3  # copies of nothing after the last step
    assert found["copy"]["requests"] == tiles * 4 * (steps + ahead) * (128 + columns) // 32
    assert found["store"]["requests"] == tiles * 128 * columns // 64  # pairs of sums
    assert found["load"]["requests"] == tiles * 128 * columns // 128


def test_what_a_conflict_costs(kernel_image):
    count = emulation.Accesses(kernel_image).wavefronts
    lanes = np.arange(32)
    assert count(4 * lanes, 4) == 1
    assert count(0 * lanes, 4) == 1  # one word for all
    assert count(128 * lanes, 4) == 32  # one bank for all
    assert count(8 * lanes, 4) == 2
    assert count(16 * lanes, 16) == 4
    assert count(32 * lanes, 16) == 8
    assert count(64 * (lanes % 8) + 16 * (lanes // 8), 16) == 16  # rows of 64 bytes that are not swizzled
    assert count(80 * (lanes % 8) + 16 * (lanes // 8), 16) == 4  # padded
