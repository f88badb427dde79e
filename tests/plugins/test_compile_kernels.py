"""The CUDA kernels compile for the oldest and the newest architecture, without spills."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from crispseg.engines import nvrtc
from crispseg.errors import EnvironmentMismatch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compile_kernels  # noqa: E402

LINE = re.compile(r"^CS_KERNEL\((\w+), *(\d+), *(\d+),", re.MULTILINE)


def listed(architecture: int = 1000) -> set:
    """Kernels that table.h promises for an architecture."""
    text = nvrtc.kernel_sources()["table.h"]
    own = architecture in (90, 1000)  # kernels of 9.0 are for no other
    rows = [(name, int(capability)) for name, _, capability in LINE.findall(text)]
    return {name for name, capability in rows if capability <= architecture and (own or capability != 90)}


@pytest.mark.parametrize("architecture", [72, 90, pytest.param(120, marks=pytest.mark.slow)])
def test_kernels_compile_without_spills(architecture):
    try:
        compiler = nvrtc.find_compiler(architecture)
    except EnvironmentMismatch as error:
        pytest.skip(f"needs NVRTC, such as pip install nvidia-cuda-nvrtc-cu12==12.6.85: {error}")
    if not compiler.target(architecture):
        pytest.skip(f"NVRTC {compiler.version} compiles for {architecture} to PTX alone")
    image = nvrtc.compile_kernels(compiler, architecture, nvrtc.kernel_sources())
    usage = compile_kernels.kernel_usage(image, architecture)
    assert set(usage) == listed(architecture)
    assert {name: u.local for name, u in usage.items() if u.local} == {}
    for name, u in usage.items():
        assert 16 <= u.registers <= 255, name
        assert u.shared <= 48 << 10, name
    # Two blocks of the largest tile share a multiprocessor: 65536 registers, 128 threads a block.
    if architecture >= 80:
        assert usage["csk_conv_f16_mma_128x128"].registers <= 65536 // 128 // 2
        assert usage["csk_conv_f32"].shared == 17024  # what the kernel declares, without the driver's share
    assert "csk_conv_f32" in compile_kernels.table({architecture: usage}, {architecture: "0.0"})


def test_page_lists_every_kernel():
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    rows = page[page.index(compile_kernels.BEGIN) : page.index(compile_kernels.END)]
    assert set(re.findall(r"^\| (csk_\w+)", rows, re.MULTILINE)) == listed(), (
        "run: python tools/compile_kernels.py --write docs/kernels.md"
    )


def test_what_is_not_a_cubin_is_refused():
    with pytest.raises(ValueError, match="ELF"):
        compile_kernels.kernel_usage(b"// PTX" + b"\0" * 100, 90)
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 40, 64)
    struct.pack_into("<HHH", header, 58, 64, 0, 0)
    with pytest.raises(ValueError, match="section names"):
        compile_kernels.kernel_usage(bytes(header), 90)
