"""How often warps execute which kind of instruction, in kernels as NVRTC compiles them: counted, not estimated.

What ``tools/kernel_loops.py`` reads off one pass of a loop, this counts in launches: every instruction of PTX that a
warp executes, once for the warp. ``ptxas`` makes others of them: an address computation may become none.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Dict, Iterator, Tuple

# The first that an opcode begins with; the rest is arithmetic.
CLASSES: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("tensor", ("mma.", "wmma.mma", "wgmma.mma_async")),
    ("matrix load", ("ldmatrix", "wmma.load")),
    ("shared", ("ld.shared", "st.shared", "atom.shared", "wmma.store")),
    ("copy", ("cp.async.ca", "cp.async.cg")),
    ("global", ("ld.global", "st.global", "ld.volatile", "st.volatile", "atom.global", "red.global", "ld.u", "st.u")),
    ("parameter", ("ld.param", "st.param")),
    ("local", ("ld.local", "st.local")),
    ("barrier", ("bar.", "barrier", "cp.async", "fence", "membar", "wgmma.")),
    ("warp", ("shfl", "vote", "match", "redux", "activemask")),
    ("branch", ("bra", "brx", "call", "ret", "exit", "trap")),
    ("predicate", ("setp", "selp", "slct")),
    ("move", ("mov", "cvta")),
)
_FLOAT = (".f16", ".f32", ".f64")


def class_of(opcode: str) -> str:
    """tensor, shared, copy, global, ..., "float" or "integer" for arithmetic and conversions."""
    for name, beginnings in CLASSES:
        if opcode.startswith(beginnings):
            return name
    return "float" if any(part in opcode for part in _FLOAT) else "integer"


@dataclass
class Kernel:
    """Counts of one kernel: launches, and executions by opcode and by line of the PTX."""

    launches: int = 0
    opcodes: Dict[str, int] = field(default_factory=dict)
    lines: Dict[int, int] = field(default_factory=dict)

    def classes(self) -> Dict[str, int]:
        """Executions by class, the most frequent first."""
        found: Dict[str, int] = {}
        for opcode, count in self.opcodes.items():
            found[class_of(opcode)] = found.get(class_of(opcode), 0) + count
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@contextmanager
def counted(library: ctypes.CDLL) -> Iterator[Dict[str, Kernel]]:
    """Counts what runs inside the block (wait for it there): kernel -> counts, filled at the end.

    Args:
        library: the emulated driver (``Hooks.library``).
    """
    library.cs_emu_profile_text.restype = ctypes.c_char_p
    library.cs_emu_profile(1)
    found: Dict[str, Kernel] = {}
    try:
        yield found
    finally:
        library.cs_emu_profile(0)
        found.update(_read(library.cs_emu_profile_text().decode("ascii")))


def _read(text: str) -> Dict[str, Kernel]:
    found: Dict[str, Kernel] = {}
    kernel = Kernel()
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) == 2:
            kernel = found.setdefault(words[1], Kernel())
            kernel.launches += int(words[0])
            continue
        count, number, opcode = int(words[0]), int(words[1]), words[2]
        kernel.opcodes[opcode] = kernel.opcodes.get(opcode, 0) + count
        kernel.lines[number] = kernel.lines.get(number, 0) + count
    return found
