"""Every barrier, wait, group and fence of the tensor-core convolutions is needed, and the interpreter of PTX says so.

Each of them is taken out of the compiled kernel, or a wait is made to leave one group more: the launch must fail.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

import emulation
import pytest
from cuda_conv_cases import F16, I8, Gpu, Run, of_type, random_data, run_conv
from emulation import ptx
from op_table import Conv

from crispseg.errors import EnvironmentMismatch

pytestmark = pytest.mark.skipif(not ptx.wanted(), reason="only in kernels that NVRTC compiled")

ORDER = re.compile(
    r"\s*(bar\.(warp\.)?sync|cp\.async\.(commit|wait)_group|wgmma\.(fence|commit_group|wait_group)|fence\.proxy)\b.*;\s*"
)
WAIT = re.compile(r"(.*wait_group\S*\s+)(\d+);\s*")


@dataclass(frozen=True)
class Kernel:
    """A kernel, a convolution that it computes, and how many instructions of those kinds it has at least."""

    name: str
    capability: int
    conv: Conv
    run: Run
    least: int


KERNELS = [
    Kernel("csk_conv_f16_wgmma_128x128", 90, Conv("-", "-", 160, 200, bias=True), Run(type=F16), 12),
    Kernel("csk_conv_i8_mma_128x64", 80, Conv("-", "-", 100, 64, bias=True), Run(type=I8), 8),
    Kernel("csk_conv_f16_wmma_128x64", 72, Conv("-", "-", 40, 64, bias=True), Run(type=F16, portable=1), 6),
]


def without_one(text: str, name: str) -> Iterator[Tuple[str, str]]:
    """(What was done, PTX) for each instruction of the kernel that orders others."""
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(f".visible .entry {name}("))
    last = next(i for i in range(first, len(lines)) if lines[i] == "}")
    for i in range(first, last):
        if ORDER.fullmatch(lines[i]):
            wait = WAIT.fullmatch(lines[i])
            for new in ["", *([f"{wait[1]}{int(wait[2]) + 1};"] if wait else [])]:
                yield f"line {i}: {lines[i].strip()} -> {new.strip()}", "\n".join([*lines[:i], new, *lines[i + 1 :]])


def failure(hooks: emulation.Hooks, image: bytes, kernel: Kernel) -> str:
    """What the driver says of a launch; wgmma kernels fail in the check when a context opens."""
    gpu: Optional[Gpu] = None
    try:
        gpu = Gpu(image)
        if kernel.name not in {row["name"] for row in json.loads(gpu.library.csg_kernel_report(gpu.context))}:
            return "left out without a word"
        data = of_type(random_data(300, kernel.conv.cin, kernel.conv.cout, 5), kernel.run.type)
        for order in (
            emulation.FORWARD,
            emulation.REVERSE,
        ):  # in one of them threads may come in the right order by chance
            hooks.order(order)
            run_conv(gpu, kernel.conv, data, kernel.run)
    except (AssertionError, EnvironmentMismatch) as error:
        return str(error)
    finally:
        hooks.order()
        hooks.check()  # a failure of a kernel ends here
        if gpu is not None:
            gpu.close()
    return ""


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_nothing_can_be_left_out(emulated, kernel_image, kernel):
    if ptx.capability() < kernel.capability:
        pytest.skip(f"needs a device of {kernel.capability / 10}")
    assert failure(emulated, kernel_image, kernel) == ""
    changed = list(without_one(kernel_image.decode().rstrip("\0"), kernel.name))
    assert len(changed) >= kernel.least
    unseen: List[str] = []
    for what, text in changed:
        said = failure(emulated, text.encode() + b"\0", kernel)
        if kernel.name not in said or not re.search("race|under way|fence|wrote", said):
            unseen.append(f"{what}: {said}")
    assert not unseen
