"""What the main loops of the convolution kernels cost, read from their machine code. No GPU; nothing here is measured.

    pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm
    python tools/kernel_loops.py --arch 90                      # with the NVRTC that is found
    python tools/kernel_loops.py --arch 90 --write docs/kernels.md

First table: registers, shared memory and how many blocks of that a multiprocessor holds; instructions of one pass of
the main loop (a step of a warp) by kind, and how many there are for each one on the tensor cores. Second: shared
memory and L2 traffic of a step against its arithmetic. Third: how the levels of the default refiner (1024 x 2048,
11.8 % active, site counts of the benchmark's scene) fill the multiprocessors of a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import compile_kernels  # noqa: E402

from crispseg.engines import nvrtc  # noqa: E402

BEGIN, END = "<!-- kernel_loops: begin -->", "<!-- kernel_loops: end -->"
ENVIRONMENT = "CRISPSEG_NVDISASM"
TENSOR = ("HMMA", "IMMA", "HGMMA", "IGMMA")
KINDS = {
    "tensor": TENSOR,
    "ldmatrix": ("LDSM",),
    "shared": ("LDS", "STS", "ATOMS"),
    "copies": ("LDGSTS", "LDGDEPBAR", "DEPBAR"),
    "global": ("LDG", "STG", "RED", "ATOMG"),
    "barriers": ("BAR", "WARPSYNC", "WARPGROUP", "FENCE", "MEMBAR"),
    "branches": ("BRA", "BRX", "CALL", "RET", "BSSY", "BSYNC"),
    "spills": ("LDL", "STL"),
}
# Shared memory (KiB), threads and blocks of a multiprocessor; bytes that the driver keeps of each block.
LIMITS = {72: (96, 2048, 32, 0), 75: (64, 1024, 16, 0), 80: (164, 2048, 32, 1024), 86: (100, 1536, 16, 1024),
          87: (164, 1536, 16, 1024), 89: (100, 1536, 24, 1024), 90: (228, 2048, 32, 1024)}  # fmt: skip
TAPS, ROWS, CHUNK, PITCH, STAGES = 9, 128, 64, 96, 4  # conv_args.h
SHARE_STEPS, CORES = 8, 132
# (level, channels, sites, share of taps that exist) of the scene that benchmarks/gpu measures.
LEVELS = ((2, 128, 22756, 0.825), (3, 256, 8995, 0.814), (4, 512, 3578, 0.825), (5, 1024, 1317, 0.867))


@dataclass(frozen=True)
class Loop:
    """Instructions of one pass of a loop by kind ("other": arithmetic, addresses, moves), and their number."""

    counts: dict[str, int]
    total: int

    @property
    def tensor(self) -> int:
        """Instructions for the tensor cores."""
        return self.counts.get("tensor", 0)


def find_nvdisasm() -> str:
    """Path of nvdisasm: $CRISPSEG_NVDISASM, the search path, or its package. "" = none."""
    named = os.environ.get(ENVIRONMENT) or shutil.which("nvdisasm")
    if named:
        return named
    folders = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    found = [path for folder in folders for path in Path(folder).glob("nvidia/*/bin/nvdisasm")]
    return str(sorted(found)[-1]) if found else ""


def disassemble(image: bytes, program: str) -> str:
    """The machine code of a cubin as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(image)
        done = subprocess.run([program, "-c", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{program}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def functions(text: str) -> dict[str, list[str]]:
    """Kernel name -> its lines."""
    parts = re.split(r"^\.text\.(\w+):\s*$", text, flags=re.MULTILINE)
    return {name: body.split("\n.section", 1)[0].splitlines() for name, body in zip(parts[1::2], parts[2::2])}


def main_loop(lines: Sequence[str]) -> Loop:
    """The shortest loop (from a label to a branch back to it) that holds the most tensor-core instructions.

    Predicated-off fillers of the assembler (``@!PT``) are counted: they take an issue slot.

    Raises:
        ValueError: no loop with a tensor-core instruction.
    """
    labels: dict[str, int] = {}
    names: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in lines:
        label = re.match(r"^(\.L\w+):", line)
        if label:
            labels[label[1]] = len(names)
            continue
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)", line)
        if not found:
            continue
        names.append(found[1])
        target = re.search(r"`\((\.L\w+)\)", line)
        if found[1] == "BRA" and target and target[1] in labels:
            loops.append((labels[target[1]], len(names)))

    def tensor(loop: tuple[int, int]) -> int:
        return sum(name in TENSOR for name in names[loop[0] : loop[1]])

    # Of nested loops the inner one: most tensor instructions for its length.
    inner = [loop for loop in loops if tensor(loop) > 0]
    if not inner:
        raise ValueError("expected a loop with tensor-core instructions, found none")
    start, end = max(inner, key=lambda loop: (tensor(loop) / (loop[1] - loop[0]), tensor(loop)))
    kind_of = {name: kind for kind, members in KINDS.items() for name in members}
    counts = Counter(kind_of.get(name, "other") for name in names[start:end])
    return Loop(dict(counts), end - start)


def shape(name: str) -> tuple[str, int]:
    """("mma", 128) of csk_conv_f16_mma_128x128."""
    found = re.fullmatch(r"csk_conv_(?:f16|i8)_(\w+)_128x(\d+)", name)
    if not found:
        raise ValueError(f"expected the name of a tensor-core convolution, found {name}")
    return found[1], int(found[2])


def block_shared(name: str, taps: int = TAPS) -> int:
    """Bytes of shared memory of a block, as src/conv.cpp asks for them."""
    family, columns = shape(name)
    index = 4 * (ROWS + 4 + ROWS * taps)
    if family == "wmma":
        return 2 * (ROWS + columns) * PITCH + index
    return STAGES * (ROWS + columns) * CHUNK + index + (512 if family == "wgmma" else 0)


def blocks_resident(name: str, registers: int, architecture: int, threads: int = 128) -> tuple[int, str]:
    """Blocks that a multiprocessor holds, and what limits them."""
    shared, most_threads, most_blocks, reserved = LIMITS[architecture]
    warp = -(-registers * 32 // 256) * 256  # registers are given to warps in units of 256
    bounds = {
        "registers": 65536 // (warp * (threads // 32)),
        "shared memory": shared * 1024 // (block_shared(name) + reserved),
        "threads": most_threads // threads,
        "blocks": most_blocks,
    }
    limit = min(bounds, key=lambda what: bounds[what])
    return bounds[limit], limit


def step_traffic(name: str) -> dict[str, float]:
    """Of a step (64 bytes along k): multiply-adds of a block in fp16, bytes through shared memory and from L2.

    L2: the weights, and a third of the rows (the nine taps of a tile read nearly the same rows; the rest hits L1).
    """
    family, columns = shape(name)
    warp_rows, warp_columns = {128: (64, 64), 64: (64, 32), 32: (32, 32)}[columns]
    warps = ROWS // warp_rows * (columns // warp_columns)
    loaded = warps * (warp_rows + warp_columns) * CHUNK
    if family == "wgmma":  # the group of four warps reads all columns for each 64 rows, itself
        loaded = ROWS // 64 * (64 + columns) * CHUNK
    written = (ROWS + columns) * CHUNK
    return {"macs": ROWS * columns * CHUNK / 2, "shared": loaded + written, "l2": columns * CHUNK + ROWS * CHUNK / 3}


@dataclass(frozen=True)
class Fill:
    """How a layer fills a GPU: ``busiest`` = steps of the busiest multiprocessor, ``even`` = if all had the same."""

    tiles: int
    steps: int
    even: float
    busiest: float
    shares: int


def fill_of(channels: int, sites: int, cores: int = CORES, columns: int = 128) -> Fill:
    """Tiles of a 3x3 convolution, two blocks a multiprocessor, and whether they are shared (ConvShares' rule)."""
    tiles = -(-sites // ROWS) * -(-channels // columns)
    steps = TAPS * (channels * 2 // CHUNK)
    most = min(2 * cores, tiles * steps // SHARE_STEPS)
    whole = -(-tiles // cores) * (steps + 6)
    whole += whole // 10 * 3 if tiles <= cores else 0
    shared = -(-most // cores) * (tiles * steps // most + 13) + 8 + 14 * most // cores if most > 1 else whole
    even = tiles * steps / cores
    if whole <= shared:
        return Fill(tiles, steps, even, whole, 0)
    return Fill(tiles, steps, even, shared, most)


def report(architecture: int, version: str, usages: dict[str, compile_kernels.Usage], text: str) -> str:
    """The three tables as Markdown."""
    code = functions(text)
    names = sorted(name for name in usages if re.match(r"csk_conv_(f16|i8)_\w*mma_", name))
    lines = [f"sm_{architecture}, CUDA {version}. Computed from the compiled code, not measured.", ""]
    lines += ["| kernel | registers | shared KiB | blocks | limit | tensor | ldmatrix | copies | shared | global | "
              "barriers | branches | other | all | all a tensor |", "| --- " * 15 + "|"]  # fmt: skip
    for name in names:
        loop, usage = main_loop(code[name]), usages[name]
        blocks, limit = blocks_resident(name, usage.registers, architecture)
        kinds = ("tensor", "ldmatrix", "copies", "shared", "global", "barriers", "branches", "other")
        cells = [name, usage.registers, f"{block_shared(name) / 1024:.1f}", blocks, limit]
        cells += [loop.counts.get(kind, 0) for kind in kinds] + [loop.total, f"{loop.total / loop.tensor:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| tile of a step | multiply-adds | shared memory, bytes | cycles at 128 bytes | L2, bytes | "
              "multiply-adds an L2 byte |", "| --- " * 6 + "|"]  # fmt: skip
    for family, columns in (("wgmma", 128), ("mma", 128), ("mma", 64), ("mma", 32)):
        t = step_traffic(f"csk_conv_f16_{family}_128x{columns}")
        cells = [
            f"{family} 128 x {columns}",
            int(t["macs"]),
            int(t["shared"]),
            f"{t['shared'] / 128:.0f}",
            f"{t['l2']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, [*cells, f"{t['macs'] / t['l2']:.0f}"])) + " |")
    heads = ("level of the default refiner", "tiles x steps", f"steps of each of {CORES} if even", "of the busiest",
             "even of busiest", "taps that exist", "blocks that share")  # fmt: skip
    lines += ["", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for level, channels, sites, present in LEVELS:
        f = fill_of(channels, sites)
        cells = [f"{level}: {sites} x {channels}", f"{f.tiles} x {f.steps}", f"{f.even:.0f}", f"{f.busiest:.0f}",
                 f"{100 * f.even / f.busiest:.0f} %", f"{100 * present:.0f} %", f.shares or "none"]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile, disassemble, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, choices=sorted(LIMITS))
    parser.add_argument("--nvrtc", default="", metavar="LIB", help="this NVRTC")
    parser.add_argument("--write", type=Path, help="page that holds the tables")
    options = parser.parse_args()
    program = find_nvdisasm()
    if not program:
        parser.error(f"no nvdisasm: pip install nvidia-cuda-nvdisasm, or set {ENVIRONMENT}")
    compiler = compile_kernels.compiler_for(options.arch, {options.arch: options.nvrtc} if options.nvrtc else {})
    image = nvrtc.compile_kernels(compiler, options.arch, nvrtc.kernel_sources())
    usages = compile_kernels.kernel_usage(image, options.arch)
    text = report(options.arch, ".".join(map(str, compiler.version)), usages, disassemble(image, program))
    if options.write:
        compile_kernels.write_between(options.write, text, BEGIN, END)
    else:
        print(text)


if __name__ == "__main__":
    main()
