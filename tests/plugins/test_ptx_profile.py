"""Counts of executed instructions: those of a written kernel, and of a convolution against what its tiles need."""

from __future__ import annotations

from ctypes import byref, c_void_p

import numpy as np
import pytest
from cuda_conv_cases import F16, I8, Gpu, Run, of_type, random_data, run_conv
from emulation import ptx
from emulation.ptx import profile
from emulation_bench import address
from op_table import Conv

TEXT = b""".version 6.5
.target sm_72
.address_size 64
.visible .entry k(.param .u64 k_0) {
.reg .u32 %i, %n;
.reg .f32 %f;
.reg .pred %p;
.reg .u64 %a;
mov.u32 %i, %tid.x;
mov.u32 %n, 0;
mov.f32 %f, 0f00000000;
$L:
add.f32 %f, %f, 0f3F800000;
add.u32 %n, %n, 1;
setp.le.u32 %p, %n, %i;
@%p bra $L;
ld.param.u64 %a, [k_0];
st.global.f32 [%a], %f;
ret;
}
\0"""


def test_of_a_loop(bench):
    module = c_void_p()
    assert bench.lib.cuModuleLoadData(byref(module), TEXT) == 0
    bench.module = module
    out = bench.put(np.zeros(1, np.float32))
    bench.launch("k", address(out), block=32)  # not counted
    bench.stream.synchronize()
    with profile.counted(bench.lib) as found:
        for _ in range(2):
            bench.launch("k", address(out), grid=3, block=64)
        bench.stream.synchronize()
    assert set(found) == {"k"}
    assert found["k"].launches == 2
    # A warp goes as often through the loop as its last thread: 32 and 64 times.
    passes, warps = 2 * 3 * (32 + 64), 2 * 3 * 2
    assert found["k"].classes() == {
        "float": passes, "integer": passes, "predicate": passes, "branch": passes + warps,
        "move": 3 * warps, "parameter": warps, "global": warps,
    }  # fmt: skip
    assert found["k"].lines[13] == passes


needs_ptx = pytest.mark.skipif(not ptx.wanted(), reason="counts of compiled kernels")


@needs_ptx
@pytest.mark.parametrize("kind", [F16, I8], ids=["fp16", "int8"])
def test_of_a_convolution(emulated, kernel_image, kind):
    """The tensor instructions of a tile are those of its steps: none twice, none for taps that no row has."""
    gpu = Gpu(kernel_image)
    capability = gpu.library.csg_compute_capability(gpu.context)
    conv = Conv("-", "-", 64, 128, bias=True)
    data = of_type(random_data(200, 64, 128), kind)
    data["map"][:, 4] = -1
    with profile.counted(emulated.library) as found:
        run_conv(gpu, conv, data, Run(type=kind, workspace=False))
    gpu.close()
    counts = {name: kernel for name, kernel in found.items() if name.startswith("csk_conv")}
    assert len(counts) == 1
    name, kernel = counts.popitem()
    tiles, steps = 2, 8 * (2 if kind == F16 else 1)
    # m16n8k16 (k32 of int8), m64n128k16 of four warps, m16n16k16; a step is 32 bytes of k, twice.
    each = {"mma": 128 // 16 * (128 // 8) * 2, "wgmma": 4 * 2 * 2, "wmma": 64 * (2 if kind == F16 else 4)}
    family = name.split("_")[3]
    assert family == ("wgmma" if capability == 90 else "mma" if capability >= 80 else "wmma")
    assert kernel.classes()["tensor"] == tiles * steps * each[family]
    if family != "wmma":
        ahead = 2 if family == "wgmma" else 3
        assert kernel.classes()["copy"] == tiles * 4 * (steps + ahead) * (128 + 128) // 32
