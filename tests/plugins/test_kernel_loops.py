"""tools/kernel_loops.py: what it reads from machine code, and that its figures follow the sources."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from crispseg.engines import nvrtc
from crispseg.errors import EnvironmentMismatch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compile_kernels  # noqa: E402
import kernel_loops  # noqa: E402

CODE = """
\t.section\t.text.csk_conv_f16_mma_128x32,"ax",@progbits
.text.csk_conv_f16_mma_128x32:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_9:
        /*0010*/                   IADD3 R0, R0, 0x1, RZ ;
.L_x_1:
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/                   LDSM.16.M88.4 R4, [R0] ;
        /*0040*/              @!PT LDS RZ, [RZ] ;
        /*0050*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0060*/                   LDGSTS.E.128 [R0], desc[UR8][R2.64], !P0 ;
        /*0070*/                   HMMA.16816.F32 R12, R4, R6, R12 ;
        /*0080*/              @!P0 BRA `(.L_x_1) ;
        /*0090*/                   STG.E [R2.64], R8 ;
        /*00a0*/               @P1 BRA `(.L_x_9) ;
        /*00b0*/                   EXIT ;
\t.section\t.nv.info
"""


def test_the_inner_loop_is_counted():
    code = kernel_loops.functions(CODE)
    assert list(code) == ["csk_conv_f16_mma_128x32"]
    loop = kernel_loops.main_loop(code["csk_conv_f16_mma_128x32"])
    assert loop.total == 7
    assert loop.counts == {"barriers": 1, "ldmatrix": 1, "shared": 1, "tensor": 2, "copies": 1, "branches": 1}
    with pytest.raises(ValueError, match="found none"):
        kernel_loops.main_loop(["        /*0000*/                   EXIT ;"])


def test_blocks_of_a_multiprocessor():
    name = "csk_conv_f16_mma_128x128"
    assert kernel_loops.block_shared(name) == 4 * 256 * 64 + 528 + 512 * 9
    assert kernel_loops.blocks_resident(name, 255, 90) == (2, "registers")
    assert kernel_loops.blocks_resident(name, 128, 90) == (3, "shared memory")
    assert kernel_loops.blocks_resident(name, 255, 86) == (1, "shared memory")
    assert kernel_loops.blocks_resident("csk_conv_i8_wmma_128x32", 97, 75)[0] == 1


def test_traffic_of_a_step():
    wgmma, mma = (kernel_loops.step_traffic(f"csk_conv_f16_{way}_128x128") for way in ("wgmma", "mma"))
    assert wgmma["macs"] == mma["macs"] == 128 * 128 * 32
    assert (wgmma["shared"], mma["shared"]) == (40 << 10, 48 << 10)


def test_shares_follow_the_device_code():
    # The rule of ConvShares (conv_common.cuh), with numbers worked out by hand.
    even = kernel_loops.fill_of(256, 8995)
    assert (even.tiles, even.steps, even.shares) == (142, 72, 264)
    assert even.busiest == 2 * (142 * 72 // 264 + 13) + 8 + 28
    assert kernel_loops.fill_of(128, 128 * 132 * 8).shares == 0


def test_constants_are_those_of_the_sources():
    text = nvrtc.kernel_sources()["conv_args.h"]
    values = {name: int(value) for name, value in re.findall(r"(CONV_\w+) = (\d+)", text)}
    assert values["CONV_CHUNK"] == kernel_loops.CHUNK
    assert values["CONV_ROWS"] == kernel_loops.ROWS
    assert values["CONV_MMA_STAGES"] == kernel_loops.STAGES
    assert values["CONV_WMMA_PITCH"] == kernel_loops.PITCH
    assert values["CONV_SHARE_STEPS"] == kernel_loops.SHARE_STEPS


def test_main_loops_of_the_kernels():
    program = kernel_loops.find_nvdisasm()
    try:
        compiler = nvrtc.find_compiler(90)
    except EnvironmentMismatch as error:
        pytest.skip(f"needs NVRTC: {error}")
    if not program:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    sources = dict(nvrtc.kernel_sources())
    sources["kernels.cu"] = '#include "base.cuh"\n#include "conv_wgmma.cuh"\n'  # a third of the time
    image = nvrtc.compile_kernels(compiler, 90, sources)
    usages = compile_kernels.kernel_usage(image, 90)
    code = kernel_loops.functions(kernel_loops.disassemble(image, program))
    for kind in ("f16", "i8"):
        name = f"csk_conv_{kind}_mma_128x128"
        loop = kernel_loops.main_loop(code[name])
        assert loop.tensor == 64
        assert loop.counts["ldmatrix"] == 16
        assert loop.counts["barriers"] == 1
        assert "spills" not in loop.counts
        assert loop.total <= 3.2 * loop.tensor  # issue slots are not what holds the tensor cores up
        assert kernel_loops.blocks_resident(name, usages[name].registers, 90)[0] == 2
        name = f"csk_conv_{kind}_wgmma_128x128"
        if compiler.version < (12, 0):
            continue
        # Four products and one wait: more waits are those of an assembler that runs the products one by one.
        loop = kernel_loops.main_loop(code[name])
        text = "\n".join(code[name])
        assert loop.tensor == 4
        assert text.count("GMMA.64x128") == 4
        assert text.count("WARPGROUP.DEPBAR") == 2  # of a step, and at the end
        assert kernel_loops.blocks_resident(name, usages[name].registers, 90)[0] == 2
    text = kernel_loops.report(90, "0.0", usages, "\n".join(f".text.{n}:\n" + "\n".join(b) for n, b in code.items()))
    assert "| csk_conv_i8_mma_128x128 |" in text


def test_page_names_the_state_of_its_figures():
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    text = page[page.index(kernel_loops.BEGIN) : page.index(kernel_loops.END)]
    assert "Computed from the compiled code, not measured" in text
    assert "| csk_conv_f16_mma_128x128 |" in text
