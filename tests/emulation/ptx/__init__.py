"""Kernels as NVRTC compiles them: PTX, which the emulated driver interprets (the C++ of this folder).

CRISPSEG_EMULATION_IMAGE=ptx makes every emulated kernel image one of these, for the compute capability of
CRISPSEG_EMULATION_CAPABILITY: what runs then is the compiler's code and the inline assembly themselves, where an image
made by g++ has host versions of both. ``python tests/emulation/run_ptx.py`` runs the CUDA tests so.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
from ctypes import byref, c_char_p, c_size_t, c_void_p, create_string_buffer
from pathlib import Path
from typing import Dict, Sequence, Tuple

from ..prune import used

ENVIRONMENT = "CRISPSEG_EMULATION_IMAGE"
CAPABILITY = "CRISPSEG_EMULATION_CAPABILITY"
KERNELS = Path(__file__).resolve().parents[3] / "crispseg" / "plugins" / "cuda" / "kernels"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def wanted() -> bool:
    """Whether the environment asks for compiled kernels."""
    value = os.environ.get(ENVIRONMENT, "")
    if value not in ("", "host", "ptx"):
        raise RuntimeError(f"{ENVIRONMENT}: expected host or ptx, found {value}")
    return value == "ptx"


def capability() -> int:
    """Compute capability of the emulated device."""
    return int(os.environ.get(CAPABILITY) or 87)


def sources(source: Path) -> Dict[str, str]:
    """Name -> text of a source (first) and of what it includes, from its folder or from the product's kernels."""
    found: Dict[str, str] = {}
    left = [source.name]
    while left:
        name = left.pop()
        paths = [folder / name for folder in (source.parent, KERNELS) if (folder / name).is_file()]
        if name not in found and paths:
            found[name] = paths[0].read_text("utf-8")
            left += _INCLUDE.findall(found[name])
    return found


@functools.lru_cache(maxsize=None)
def image(source: Path, folder: Path, architecture: int, options: Tuple[str, ...] = ()) -> bytes:
    """PTX of a source for one compute capability (for 9.0: of sm_90a), from the cache in ``folder`` or by NVRTC.

    Raises:
        EnvironmentMismatch: no NVRTC is installed, or it refuses the source.
    """
    from crispseg.engines import nvrtc

    compiler = nvrtc.find_compiler(architecture)
    texts = sources(source)
    target = compiler.target(architecture)
    own = "a" if target == architecture == 90 and compiler.version >= (12, 0) else ""
    flags = (f"--gpu-architecture=compute_{target}{own}", *nvrtc.OPTIONS, *options)
    digest = hashlib.sha256(repr((compiler.version, flags, source.name, sorted(texts.items()))).encode())
    path = folder / f"{source.stem}-{target}{own}-{digest.hexdigest()[:24]}.ptx"
    with open(folder / f"{path.name}.lock", "w") as handle:  # several processes want the same, and it takes seconds
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not path.exists():
            partial = folder / f"{path.name}.{os.getpid()}.partial"
            partial.write_bytes(_compile(compiler, source.name, texts, flags))
            os.replace(partial, path)
        return used(path).read_bytes()


def _compile(compiler, name: str, texts: Dict[str, str], flags: Sequence[str]) -> bytes:
    from crispseg.engines import nvrtc
    from crispseg.errors import EnvironmentMismatch

    library = compiler.library
    library.nvrtcGetPTXSize.argtypes = library.nvrtcGetPTX.argtypes = [c_void_p, c_void_p]
    headers = [other for other in texts if other != name]
    program, size = c_void_p(), c_size_t()
    status = library.nvrtcCreateProgram(
        byref(program),
        texts[name].encode("utf-8"),
        name.encode("utf-8"),
        len(headers),
        (c_char_p * len(headers))(*[texts[other].encode("utf-8") for other in headers]),
        (c_char_p * len(headers))(*[other.encode("utf-8") for other in headers]),
    )
    nvrtc._check(library, "nvrtcCreateProgram", status)
    try:
        if library.nvrtcCompileProgram(program, len(flags), (c_char_p * len(flags))(*[f.encode() for f in flags])):
            raise EnvironmentMismatch(f"{name} ({' '.join(flags)}): NVRTC says: {nvrtc._log(library, program)}")
        nvrtc._check(library, "nvrtcGetPTXSize", library.nvrtcGetPTXSize(program, byref(size)))
        text = create_string_buffer(size.value)
        nvrtc._check(library, "nvrtcGetPTX", library.nvrtcGetPTX(program, text))
        return text.raw  # ends with the zero that cuModuleLoadData wants
    finally:
        library.nvrtcDestroyProgram(byref(program))
