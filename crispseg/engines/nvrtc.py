"""Compiles the CUDA kernels for one architecture with NVRTC: no nvcc, no toolkit, some seconds.

NVRTC is one library: of the wheels nvidia-cuda-nvrtc-cu12 and -cu13 (``pip install crispseg[cuda]``), of a toolkit
($CUDA_HOME, /usr/local/cuda), or of the system. $CRISPSEG_LIBNVRTC names another. The kernels include no header but
their own, so nothing else is needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from crispseg.errors import CrispsegError, EnvironmentMismatch
from crispseg.plugins import cuda_loader

ENVIRONMENT = "CRISPSEG_LIBNVRTC"
INSTALL = "pip install crispseg[cuda], or install a CUDA toolkit and set CUDA_HOME"
MAIN = "kernels.cu"
OPTIONS = ("--std=c++17",)
_PTX_LEAST = 80  # the PTX of older architectures lacks the kernels that newer GPUs run on
_JETSON = (72, 87, 88, 101, 110)
_FIRST = {10: (12, 8), 11: (13, 0), 12: (12, 8)}  # first CUDA for a compute capability's major number
_SUFFIXES = (".cu", ".cuh", ".h")
_LOG_LINES = 12


def kernel_sources(folder: Optional[Path] = None) -> Dict[str, str]:
    """File name -> text of the kernels and their headers, in the order of their names.

    Raises:
        EnvironmentMismatch: the package came without them.
    """
    folder = folder or cuda_loader.kernel_folder()
    try:
        files = sorted(item for item in folder.iterdir() if item.suffix in _SUFFIXES)
        found = {item.name: item.read_text("utf-8") for item in files}
    except OSError as error:
        raise EnvironmentMismatch("%s: cannot be read: %s; install crispseg again" % (folder, error)) from None
    if MAIN not in found:
        raise EnvironmentMismatch("%s: expected %s, found none; install crispseg again" % (folder, MAIN))
    return found


def sources_hash(sources: Dict[str, str]) -> str:
    """SHA-256 (hex) of the kernels and of how they are compiled."""
    digest = hashlib.sha256("\0".join(OPTIONS).encode("ascii"))
    for name, text in sorted(sources.items()):
        digest.update(("\0%s\0%s" % (name, text)).encode("utf-8"))
    return digest.hexdigest()


def candidates() -> List[Path]:
    """NVRTC libraries of this machine, $CRISPSEG_LIBNVRTC alone when set, else wheels, toolkits, system."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return [Path(named)]
    folders: List[Path] = []
    for entry in sys.path:  # wheels: nvidia/cuda_nvrtc/lib (CUDA 11, 12), nvidia/cu13/lib
        folders += sorted((Path(entry or ".") / "nvidia").glob("*/lib"))
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    for root in roots:
        folders += [Path(root) / "lib64", Path(root) / "lib"] if root else []
    folders += [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/usr/lib64")]
    found: List[Path] = []
    for folder in folders:
        for path in sorted(folder.glob("libnvrtc.so*")):
            real = path.resolve()
            if real.is_file() and real not in found:
                found.append(real)
    return found


@dataclass(frozen=True)
class Compiler:
    """An NVRTC library: its CUDA ``version`` and the ``architectures`` it compiles for (empty: it does not say)."""

    path: Path
    library: ctypes.CDLL
    version: Tuple[int, int]
    architectures: Tuple[int, ...]

    def target(self, architecture: int) -> int:
        """The nearest architecture whose code runs on ``architecture``: same major, no newer minor; 0 = none.

        Machine code for a Jetson runs there alone, and nothing else runs there (CUDA programming guide, binary
        compatibility).
        """
        if not self.architectures or architecture in self.architectures:
            return architecture
        same = (item for item in self.architectures if item // 10 == architecture // 10 and item < architecture)
        return 0 if architecture in _JETSON else max((item for item in same if item not in _JETSON), default=0)

    def code(self, architecture: int) -> str:
        """What is compiled for ``architecture``; "" = nothing that runs there.

        "sm_87": machine code. "sm_90a": with wgmma, for 9.0 alone. "compute_90": PTX of an older architecture, which
        the driver compiles when it loads it.
        """
        target = self.target(architecture)
        if target:
            return "sm_%d%s" % (target, "a" if target == architecture == 90 and self.version >= (12, 0) else "")
        older = (item for item in self.architectures if _PTX_LEAST <= item < architecture)
        newest = max(older, default=0)
        return "compute_%d" % newest if newest else ""


def find_compiler(architecture: int, driver: str = "") -> Compiler:
    """The newest NVRTC that compiles for ``architecture`` (87, 90, ...) and whose code the driver loads.

    One that does not know the architecture yet serves when there is no other: it makes PTX (:meth:`Compiler.code`).

    Args:
        architecture: compute capability as a number.
        driver: the driver's CUDA version, such as "12.4". Its major version bounds the compiler's, all of it that of a
            compiler that makes PTX. "" = any.

    Raises:
        EnvironmentMismatch: there is none; the message lists what was found.
    """
    most = tuple(int(part) for part in driver.split(".")[:2]) if driver else (10**6, 0)
    refused: List[str] = []
    fitting: List[Compiler] = []
    for path in candidates():
        try:
            compiler = _open(path)
        except (OSError, AttributeError, CrispsegError) as error:
            refused.append("%s does not load (%s)" % (path, error))
            continue
        text, code = "%s (CUDA %d.%d" % ((path,) + compiler.version), compiler.code(architecture)
        ahead = compiler.version > most if code.startswith("compute_") else compiler.version[0] > most[0]
        if not code or (ahead and not compiler.target(architecture)):
            refused.append(text + " without sm_%d)" % architecture)
        elif ahead:
            refused.append(text + ", newer than the driver's %s)" % driver)
        else:
            fitting.append(compiler)
    if fitting:
        return max(fitting, key=lambda item: (item.target(architecture) > 0, item.version))
    first = _FIRST.get(architecture // 10)
    raise EnvironmentMismatch(
        "NVRTC: expected one that compiles for sm_%d%s%s, found %s; %s"
        % (architecture, " (CUDA %d.%d or newer)" % first if first else "",
           " and CUDA up to %d" % most[0] if driver else "", "; ".join(refused) or "none", install(architecture))
    )  # fmt: skip


def install(architecture: int) -> str:
    """The command that gets an NVRTC for this architecture."""
    first = _FIRST.get(architecture // 10)
    if first is None:
        return INSTALL
    wheel = "nvidia-cuda-nvrtc%s>=%d.%d" % ("-cu12" if first < (13, 0) else "", *first)
    return 'pip install -U "%s", or install such a CUDA toolkit and set CUDA_HOME' % wheel


def compile_kernels(
    compiler: Compiler, architecture: int, sources: Dict[str, str], options: Sequence[str] = ()
) -> bytes:
    """Compile to a cubin, or to PTX for an architecture that the compiler does not know yet.

    Args:
        compiler: from :func:`find_compiler`.
        architecture: compute capability as a number.
        sources: from :func:`kernel_sources`.
        options: further options, such as "-lineinfo".

    Raises:
        EnvironmentMismatch: it does not compile; the message holds the first lines of the log.
    """
    library = compiler.library
    program, size = c_void_p(), c_size_t()
    headers = [name for name in sources if name != MAIN]
    names = (c_char_p * len(headers))(*[name.encode("utf-8") for name in headers])
    texts = (c_char_p * len(headers))(*[sources[name].encode("utf-8") for name in headers])
    code = compiler.code(architecture)
    form = "PTX" if code.startswith("compute_") else "CUBIN"
    arguments = ["--gpu-architecture=" + code, *OPTIONS, *options]
    flags = (c_char_p * len(arguments))(*[item.encode("utf-8") for item in arguments])
    _check(library, "nvrtcCreateProgram", library.nvrtcCreateProgram(
        byref(program), sources[MAIN].encode("utf-8"), MAIN.encode("utf-8"), len(headers), texts, names))  # fmt: skip
    try:
        status = library.nvrtcCompileProgram(program, len(arguments), flags)
        if status:
            raise EnvironmentMismatch(
                "kernels for sm_%d: NVRTC %d.%d (%s) says: %s"
                % ((architecture,) + compiler.version + (compiler.path, _log(library, program)))
            )
        _check(library, "nvrtcGet%sSize" % form, getattr(library, "nvrtcGet%sSize" % form)(program, byref(size)))
        image = ctypes.create_string_buffer(size.value)
        _check(library, "nvrtcGet" + form, getattr(library, "nvrtcGet" + form)(program, image))
        return image.raw
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _log(library: ctypes.CDLL, program: c_void_p) -> str:
    size = c_size_t()
    if library.nvrtcGetProgramLogSize(program, byref(size)) or size.value < 2:
        return "nothing"
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, text)
    lines = [line for line in text.value.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line]
    return " | ".join((errors or lines)[:_LOG_LINES])


def _open(path: Path) -> Compiler:
    # NVRTC opens its built-in headers by name; the wheels of CUDA 13 have no run path, so they must be loaded already.
    for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):
        ctypes.CDLL(str(builtins))
    library = ctypes.CDLL(str(path))
    library.nvrtcCreateProgram.argtypes = [c_void_p, c_char_p, c_char_p, c_int, c_void_p, c_void_p]
    library.nvrtcCompileProgram.argtypes = [c_void_p, c_int, c_void_p]
    library.nvrtcGetErrorString.restype = c_char_p
    for name in ("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", "nvrtcGetCUBINSize", "nvrtcGetCUBIN",
                 "nvrtcGetPTXSize", "nvrtcGetPTX"):  # fmt: skip
        getattr(library, name).argtypes = [c_void_p, c_void_p]
    major, minor, count = c_int(), c_int(), c_int()
    _check(library, "nvrtcVersion", library.nvrtcVersion(byref(major), byref(minor)))
    architectures: Tuple[int, ...] = ()
    if hasattr(library, "nvrtcGetSupportedArchs"):  # CUDA 11.2
        _check(library, "nvrtcGetNumSupportedArchs", library.nvrtcGetNumSupportedArchs(byref(count)))
        numbers = (c_int * count.value)()
        _check(library, "nvrtcGetSupportedArchs", library.nvrtcGetSupportedArchs(numbers))
        architectures = tuple(numbers)
    return Compiler(path, library, (major.value, minor.value), architectures)


def _check(library: ctypes.CDLL, name: str, status: int) -> None:
    if status:
        text = library.nvrtcGetErrorString(status) or b""
        raise EnvironmentMismatch("NVRTC: %s: %s" % (name, text.decode("utf-8", "replace") or status))
