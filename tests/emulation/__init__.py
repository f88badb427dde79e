"""An emulated CUDA driver: the GPU side of crispseg on a machine without a GPU, built with g++ alone.

``libcuda_emulated.so`` exports the driver API; a kernel image is a shared library made of the same ``kernels.cu`` by
g++. Blocks run one after the other, the threads of a block as fibers. It proves logic, order of work and memory use;
not speed, and not the hardware. Environment (read at cuInit): CRISPSEG_EMULATION_CAPABILITY (87), _ORDER (forward,
reverse, or the seed of a shuffle of blocks and threads), _EAGER=1 (work runs when it is enqueued, not when something
waits), _MIB (4096), _DEVICES=0; _IMAGE=ptx: kernel images are what NVRTC compiles, interpreted (folder ptx).
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence

from . import ptx
from .prune import prune, used

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[1] / "crispseg" / "plugins" / "cuda"
KERNELS = Path(os.environ.get("CRISPSEG_EMULATION_KERNELS") or CUDA / "kernels")  # another folder: mutate.py
CACHE = "CRISPSEG_EMULATION_CACHE"
FORWARD, REVERSE, SHUFFLE = 0, 1, 2
LATE, EARLY, KERNELS_LATE, UPLOADS_LATE, DOWNLOADS_LATE, ANY = range(6)  # when work of several streams runs: state.h

_COMMON = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-pthread"]
# What a GPU has too: no rule about the types of pointers that is enforced, and one rounding an operation.
_KERNEL = ["-DCS_EMULATE", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas", "-Wno-unused-variable"]
_KERNEL += ["-Wno-unused-parameter", f"-I{HERE}", f"-I{CUDA / 'kernels'}", "-x", "c++"]
_PTX = ("-O3", "-ffp-contract=off", "-fno-trapping-math")  # the interpreter (ptx/): loops over 32 lanes


def compiler() -> list[str]:
    """The C++ compiler and its fixed arguments ($CXX)."""
    return shlex.split(os.environ.get("CXX") or "g++")


def cache() -> Path:
    """Folder of objects and libraries; each is named by a hash of what made it; unused ones go."""
    folder = os.environ.get(CACHE) or os.path.join(tempfile.gettempdir(), f"crispseg-emulation-{os.getuid()}")
    path = Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise RuntimeError(f"{path}: expected a folder of this user; set {CACHE} to another")
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _prune_once(folder)
        yield


@functools.lru_cache(maxsize=None)
def _prune_once(folder: Path) -> int:
    return prune(folder)


def _run(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        text = done.stderr.decode("utf-8", "replace")
        raise RuntimeError(f"{' '.join(map(str, command))}\n{text[-8000:]}")
    return done.stdout


def _object(folder: Path, source: Path, flags: Sequence[str]) -> Path:
    """Compile one source; the name is a hash of the preprocessed text, so that unchanged files cost no compilation."""
    base = [*compiler(), *_COMMON, *flags]
    text = _run([*base, "-E", str(source)])
    digest = hashlib.sha256(repr(base).encode() + text).hexdigest()[:24]
    target = folder / f"{source.stem}-{digest}.o"
    if not target.exists():
        partial = folder / f"{target.name}.{os.getpid()}.partial"
        _run([*base, "-c", str(source), "-o", str(partial)])
        os.replace(partial, target)
    return used(target)


def _shared(folder: Path, name: str, objects: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    digest = hashlib.sha256(repr([o.name for o in objects] + list(flags)).encode()).hexdigest()[:24]
    target = folder / digest / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        partial = target.parent / f"{name}.{os.getpid()}.partial"
        command = [*compiler(), "-shared", "-pthread", "-Wl,--no-undefined", *map(str, objects), "-ldl", "-lm", *flags]
        _run([*command, "-o", str(partial)])
        os.replace(partial, target)
    return used(target)


@functools.lru_cache(maxsize=None)
def driver(flags: tuple[str, ...] = ()) -> Path:
    """``libcuda_emulated.so``, built when it is not there."""
    folder = cache()
    with _locked(folder):
        objects = [
            _object(folder, source, flags) for source in sorted(HERE.glob("*.cpp")) if source.name != "image.cpp"
        ]
        objects += [_object(folder, source, (*_PTX, *flags)) for source in sorted((HERE / "ptx").glob("*.cpp"))]
        return _shared(folder, "libcuda_emulated.so", objects)


@functools.lru_cache(maxsize=None)
def host_library() -> Path:
    """``libcrispseg_cuda.so`` of this work tree (no kernel image inside)."""
    folder = cache()
    flags = [f"-I{CUDA / 'include'}"]
    with _locked(folder):
        objects = [_object(folder, source, flags) for source in sorted((CUDA / "src").glob("*.cpp"))]
        return _shared(folder, "libcrispseg_cuda.so", objects)


def _units(source: Path) -> list[Path]:
    """The files that a source of nothing but includes names, else the source itself: units compile again alone."""
    text = re.sub(r"//.*", "", source.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [re.fullmatch(r'#include "([^"]+\.cuh)"', line) for line in lines]
    if not lines or not all(names):
        return [source]
    return [source.parent / m.group(1) for m in names if m and m.group(1) != "base.cuh"]


def image(
    source: Path = KERNELS / "kernels.cu",
    table: Path = KERNELS / "table.h",
    capability: int | None = None,
) -> bytes:
    """A kernel image for ``csg_create`` or ``cuModuleLoadData``: the kernels of ``source`` that ``table`` lists.

    Where the environment asks for PTX: for that compute capability, by default the emulated device's. An image made by
    g++ serves all.

    Raises:
        EnvironmentMismatch: PTX is asked for and NVRTC is not installed.
    """
    if ptx.wanted():
        return ptx.image(source, cache(), capability or ptx.capability())
    return _host_image(source, table)


@functools.lru_cache(maxsize=None)
def _host_image(source: Path, table: Path) -> bytes:
    folder = cache()
    with _locked(folder):
        objects = [_object(folder, unit, _KERNEL) for unit in _units(source)]
        objects.append(_object(folder, HERE / "image.cpp", [f'-DCS_EMU_TABLE="{table}"', *_KERNEL]))
        library = _shared(folder, "kernels.so", objects)
    return b"// emulated kernels\n" + str(library).encode() + b"\n" + b"\0" * 64


class Hooks:
    """The test hooks of the emulated driver."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.cs_emu_check.restype = ctypes.c_char_p
        self.library.cs_emu_launches.restype = ctypes.c_int64
        self.library.cs_emu_live_allocations.restype = ctypes.c_int64
        self.library.cs_emu_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self.library.cs_emu_set_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64]

    def check(self) -> str:
        """What went wrong since the last call (damaged guard bytes, failed kernels), or "".

        A failed kernel breaks the context: every call gives its error, on a GPU for the process, here until this call.
        """
        return self.library.cs_emu_check().decode("utf-8", "replace")

    def launches(self) -> int:
        """Kernels that have run."""
        return self.library.cs_emu_launches()

    def live(self) -> int:
        """Device allocations that are not freed."""
        return self.library.cs_emu_live_allocations()

    def order(self, kind: int | None = None, seed: int = 0) -> None:
        """Order of blocks and of threads in a block from now on; None = that of the environment."""
        if kind is None:
            text = os.environ.get("CRISPSEG_EMULATION_ORDER") or "forward"
            kind, seed = (SHUFFLE, int(text)) if text.isdigit() else (REVERSE if text == "reverse" else FORWARD, 0)
        self.library.cs_emu_set_order(kind, seed)

    def schedule(self, kind: int = LATE, seed: int = 0) -> None:
        """Which of the orders that streams and events allow the work of several streams takes."""
        self.library.cs_emu_set_schedule(kind, seed)

    def eager(self, on: bool) -> None:
        """Whether work runs when it is enqueued, in the order of the calls, instead of by the schedule."""
        self.library.cs_emu_set_eager(int(on))


class _Totals(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ulonglong) for n in ("requests", "wavefronts", "fewest", "sectors", "fewest_sectors")]


class _Counts(ctypes.Structure):
    _fields_ = [("on", ctypes.c_int), ("of", _Totals * 4)]


class Accesses:
    """What the accesses of whole warps to shared memory cost (banks.h), in the kernels of an emulated image."""

    KINDS = ("copy", "matrix", "store", "load")

    def __init__(self, kernel_image: bytes) -> None:
        self._library = ctypes.CDLL(kernel_image.split(b"\n")[1].decode())
        self._library.cs_emu_access_counts.restype = ctypes.POINTER(_Counts)

    @contextmanager
    def counted(self) -> Iterator[dict]:
        """Counts inside the block; filled at its end: kind -> {"requests", "wavefronts", "fewest", ...}."""
        counts = self._library.cs_emu_access_counts().contents
        ctypes.memset(ctypes.addressof(counts), 0, ctypes.sizeof(counts))
        counts.on = 1
        found: dict = {}
        try:
            yield found
        finally:
            counts.on = 0
            for kind, totals in zip(self.KINDS, counts.of):
                found[kind] = {name: getattr(totals, name) for name, _ in totals._fields_}

    def wavefronts(self, addresses: Sequence[int], size: int) -> int:
        """Wavefronts of one access of ``size`` bytes by 32 lanes."""
        return self._library.cs_emu_wavefronts((ctypes.c_size_t * 32)(*addresses), size)
