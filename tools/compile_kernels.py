"""Compiles the CUDA kernels for every supported architecture and records what each needs. No GPU, no toolkit.

    python tools/compile_kernels.py                             # 72 75 86 87 89 90 with the NVRTC that is found
    python tools/compile_kernels.py --nvrtc LIB=72 --nvrtc LIB=75,86,87,89,90,100
    python tools/compile_kernels.py --write docs/kernels.md     # puts the table between the markers of the page

The figures come from the compiled image (ELF): registers from .nv.info, static shared memory from the size of
.nv.shared.*, local memory (stack and spilled registers) from the frame size in .nv.info.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from crispseg.engines import nvrtc  # noqa: E402
from crispseg.errors import CrispsegError  # noqa: E402

ARCHITECTURES = (72, 75, 86, 87, 89, 90)
BEGIN, END = "<!-- compile_kernels: begin -->", "<!-- compile_kernels: end -->"
_SYMBOL_TABLE = 2
_FUNCTION = 2
_REGISTERS, _FRAME = 0x2F, 0x11  # EIATTR_REGCOUNT, EIATTR_FRAME_SIZE: (symbol, value)


@dataclass(frozen=True)
class Usage:
    """What one kernel needs: registers a thread, bytes of static shared memory, bytes of local memory a thread."""

    registers: int
    shared: int
    local: int


@dataclass(frozen=True)
class Section:
    """One section of an ELF file."""

    name: str
    kind: int
    data: bytes
    size: int


def _sections(image: bytes) -> list[Section]:
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"expected a 64-bit little-endian ELF image, found {image[:6]!r}")
    (offset,) = struct.unpack_from("<Q", image, 40)
    entry, count, names = struct.unpack_from("<HHH", image, 58)
    rows = [struct.unpack_from("<IIQQQQ", image, offset + i * entry) for i in range(count)]
    if names >= count:
        raise ValueError("expected an ELF image with section names, found none")
    strings = rows[names][4]

    def text(at: int) -> str:
        return image[strings + at : image.index(b"\0", strings + at)].decode("ascii")

    nobits = 8
    return [
        Section(text(name), kind, b"" if kind == nobits else image[start : start + size], size)
        for name, kind, _, _, start, size in rows
    ]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, payload) of .nv.info: a format byte, an attribute byte, a length or a value, the payload."""
    at, sized = 0, 4
    while at + 4 <= len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, at)
        payload = length if form == sized else 0
        yield attribute, data[at + 4 : at + 4 + payload]
        at += 4 + payload


def kernel_usage(image: bytes, architecture: int) -> dict[str, Usage]:
    """Kernel name -> usage, of a cubin for ``architecture`` (72, 90, ...).

    Raises:
        ValueError: not a cubin, or one without the records.
    """
    sections = _sections(image)
    by_name = {section.name: section for section in sections}
    symbols = next((section.data for section in sections if section.kind == _SYMBOL_TABLE), b"")
    if not symbols or ".strtab" not in by_name or ".nv.info" not in by_name:
        raise ValueError("expected a cubin with symbols and .nv.info, found neither or one")
    strings = by_name[".strtab"].data
    names = []
    for name, kind, *_ in struct.iter_unpack("<IBBHQQ", symbols):
        text = strings[name : strings.index(b"\0", name)].decode("ascii")
        names.append(text if kind & 15 == _FUNCTION else "")
    found: dict[int, dict[str, int]] = {_REGISTERS: {}, _FRAME: {}}
    for attribute, payload in _attributes(by_name[".nv.info"].data):
        if attribute in found:
            symbol, value = struct.unpack("<II", payload)
            found[attribute][names[symbol]] = value
    kernels = [name[6:] for name in by_name if name.startswith(".text.")]
    missing = [name for name in kernels if name not in found[_REGISTERS] or name not in found[_FRAME]]
    if missing or not kernels:
        raise ValueError(f"no register count of {', '.join(missing) or 'any kernel'} in .nv.info")

    # From compute capability 9.0 on the driver keeps 1 KB of a block's shared memory, and the section counts it.
    reserved = 1024 if architecture >= 90 else 0

    def shared(name: str) -> int:
        section = by_name.get(".nv.shared." + name)
        return max(0, section.size - reserved) if section else 0

    return {name: Usage(found[_REGISTERS][name], shared(name), found[_FRAME][name]) for name in kernels}


def compiler_for(architecture: int, named: dict[int, str]) -> nvrtc.Compiler:
    """The NVRTC that --nvrtc names for this architecture, else the newest that is found."""
    before = os.environ.get(nvrtc.ENVIRONMENT)
    if architecture in named:
        os.environ[nvrtc.ENVIRONMENT] = named[architecture]
    try:
        return nvrtc.find_compiler(architecture)
    finally:
        if before is None:
            os.environ.pop(nvrtc.ENVIRONMENT, None)
        else:
            os.environ[nvrtc.ENVIRONMENT] = before


def table(usages: dict[int, dict[str, Usage]], versions: dict[int, str]) -> str:
    """Markdown: a row a kernel, a column an architecture: registers, "+N local" where there is local memory."""
    architectures = sorted(usages)
    names = sorted({name for usage in usages.values() for name in usage})
    heads = [f"sm_{a} (CUDA {versions[a]})" for a in architectures]
    lines = ["| kernel | static shared | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 2) + "|"]
    for name in names:
        cells = []
        for architecture in architectures:
            usage = usages[architecture].get(name)
            local = f" + {usage.local} local" if usage and usage.local else ""
            cells.append(f"{usage.registers}{local}" if usage else "-")
        shared = sorted({usages[a][name].shared for a in architectures if name in usages[a]})
        lines.append(f"| {name} | {' to '.join(map(str, shared))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_between(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the markers of a page."""
    old = page.read_text("utf-8")
    if begin not in old or end not in old:
        raise SystemExit(f"{page}: expected the markers {begin} and {end}")
    new = old[: old.index(begin) + len(begin)] + "\n" + text + old[old.index(end) :]
    page.write_text(new, "utf-8")


def main() -> None:
    """Compile, print, and on request write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=None, help=f"default: {ARCHITECTURES}")
    parser.add_argument("--nvrtc", action="append", default=[], metavar="LIB=ARCH,ARCH", help="this NVRTC for these")
    parser.add_argument("--write", type=Path, help="page that holds the table")
    parser.add_argument("--keep", type=Path, help="folder for the compiled images")
    options = parser.parse_args()
    named: dict[int, str] = {}
    for item in options.nvrtc:
        path, _, listed = item.rpartition("=")
        if not path:
            parser.error(f"--nvrtc {item}: expected LIB=ARCH,ARCH")
        named.update({int(architecture): path for architecture in listed.split(",")})
    sources, usages, versions = nvrtc.kernel_sources(), {}, {}
    failed = False
    for architecture in options.arch or sorted({*ARCHITECTURES, *named}):
        start = time.perf_counter()
        try:
            compiler = compiler_for(architecture, named)
            image = nvrtc.compile_kernels(compiler, architecture, sources)
            usages[architecture] = kernel_usage(image, architecture)
        except CrispsegError as error:
            print(f"sm_{architecture}: {error}", file=sys.stderr)
            failed = True
            continue
        versions[architecture] = ".".join(map(str, compiler.version))
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"kernels-sm_{architecture}.cubin").write_bytes(image)
        kernels = usages[architecture]
        local = ", ".join(name for name, usage in kernels.items() if usage.local) or "none"
        print(
            f"sm_{architecture}: CUDA {versions[architecture]}, {len(kernels)} kernels, {len(image) // 1024} KB, "
            f"{time.perf_counter() - start:.1f} s, local memory in: {local}"
        )
    if options.write and not failed:
        write_between(options.write, table(usages, versions))
    elif not options.write:
        print(table(usages, versions))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
