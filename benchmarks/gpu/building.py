"""Builds what a GPU run needs without CMake: the two host libraries with g++, the kernels with nvcc.

Only for the GPU that is there, so it is done in well under a minute. Without nvcc the kernels are compiled with NVRTC,
as ``crispseg build`` does it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from crispseg.errors import CrispsegError
from gpu.settings import ROOT, Settings

PLUGINS = ROOT / "crispseg" / "plugins"
_SECONDS = 240.0
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
          "-ffp-contract=fast", "-pthread"]  # fmt: skip
_ISAS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}


class BuildError(RuntimeError):
    """A compiler failed; the text is the end of what it said."""


def find_nvcc() -> Optional[str]:
    """Path of nvcc: $CUDACXX, the PATH, /usr/local/cuda/bin."""
    places = [os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((place for place in places if place and os.path.exists(place)), None)


def command(arguments: Sequence[Any], seconds: float = _SECONDS) -> str:
    """Runs a compiler; returns what it printed. Raises BuildError."""
    words = [str(a) for a in arguments]
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False, cwd=str(ROOT)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError("%s: %s" % (words[0], error)) from None
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise BuildError("%s failed (exit %d): ... %s" % (" ".join(words[:3]), done.returncode, text[-3000:]))
    return text


def compile_kernels(target: Path, capability: int) -> Dict[str, Any]:
    """``kernels.cu`` -> cubin for one compute capability, with nvcc.

    Returns:
        {"seconds", "nvcc", "kernels": registers, shared memory and spills of every kernel, as ptxas reports them}.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("nvcc: expected it on the PATH or in /usr/local/cuda/bin, found none")
    start = time.monotonic()
    name = "%da" % capability if capability == 90 and "sm_90a" in command([nvcc, "--help"], 20) else str(capability)
    architecture = "arch=compute_%s,code=sm_%s" % (name, name)
    words = [
        nvcc,
        "-cubin",
        "-std=c++17",
        "-O3",
        "-allow-unsupported-compiler",
        "-Xptxas",
        "-v",
        "-gencode",
        architecture,
    ]
    text = command([*words, "-o", target, PLUGINS / "cuda" / "kernels" / "kernels.cu"])
    return {
        "seconds": round(time.monotonic() - start, 1),
        "nvcc": _release(command([nvcc, "--version"], 20)),
        "capability": capability,
        "bytes": target.stat().st_size,
        "kernels": ptxas_report(text),
    }


def compile_with_nvrtc(target: Path, capability: int) -> Dict[str, Any]:
    """The same with NVRTC, which reports no registers (the driver does, once the image is loaded)."""
    from crispseg.engines import nvrtc

    start = time.monotonic()
    compiler = nvrtc.find_compiler(capability)
    target.write_bytes(nvrtc.compile_kernels(compiler, capability, nvrtc.kernel_sources()))
    seconds = round(time.monotonic() - start, 1)
    return {"seconds": seconds, "nvrtc": "%d.%d" % compiler.version, "bytes": target.stat().st_size}


def ptxas_report(text: str) -> List[Dict[str, Any]]:
    """What ``-Xptxas -v`` says of every kernel: {"name", "registers", "shared_bytes", "spill_bytes"}."""
    rows: List[Dict[str, Any]] = []
    for line in text.splitlines():
        name = re.search(r"Compiling entry function '(\w+)'", line)
        if name:
            rows.append({"name": name.group(1)})
        elif rows:
            spill = re.search(r"(\d+) bytes spill stores", line)
            if spill:
                rows[-1]["spill_bytes"] = int(spill.group(1))
            used = re.search(r"Used (\d+) registers", line)
            if used:
                rows[-1]["registers"] = int(used.group(1))
                shared = re.search(r"(\d+) bytes smem", line)
                rows[-1]["shared_bytes"] = int(shared.group(1)) if shared else 0
    return rows


def build(settings: Settings, capability: int, with_image: bool = True) -> Dict[str, Any]:
    """Builds into ``settings.folder``. Returns {"libraries": variable -> path, ...}; failures stand under "failed"."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    result: Dict[str, Any] = {"libraries": {}, "failed": {}}
    image = None
    if with_image:
        compiler = compile_kernels if find_nvcc() else compile_with_nvrtc
        try:
            result["image"] = compiler(folder / "kernels.cubin", capability)
            image = folder / "kernels.cubin"
        except (BuildError, CrispsegError) as error:
            result["failed"]["kernels"] = str(error)
    start = time.monotonic()
    jobs = {
        "CRISPSEG_LIBRARY": lambda: native_library(folder),
        "CRISPSEG_CUDA_LIBRARY": lambda: cuda_library(folder, image, capability),
    }
    for variable, job in jobs.items():
        given = os.environ.get(variable)
        try:
            result["libraries"][variable] = given or str(job())
        except BuildError as error:
            result["failed"][variable] = str(error)
    result["host_seconds"] = round(time.monotonic() - start, 1)
    return result


def native_library(folder: Path) -> Path:
    """The CPU library, which is the reference."""
    source, objects = PLUGINS / "native", folder / "native"
    objects.mkdir(exist_ok=True)
    isas = list(_ISAS) if platform.machine() in ("x86_64", "AMD64") else ["generic"]
    have = ["-DCS_HAVE_%s=1" % isa.upper() for isa in isas]
    includes = ["-I", source / "include", "-I", source / "src"]
    jobs: List[List[Any]] = []
    for path in sorted((source / "src").glob("*.cpp")):
        if path.name.endswith(".isa.cpp"):
            for isa in isas:
                defines = ["-DCS_ISA=" + isa, "-DCS_ISA_%s=1" % isa.upper()]
                jobs.append([*_ISAS[isa], *defines, path, "-o", objects / ("%s.%s.o" % (path.stem, isa))])
        else:
            jobs.append([*have, path, "-o", objects / (path.stem + ".o")])
    _compile([[_compiler(), *_FLAGS, *includes, "-c", *job] for job in jobs])
    target = folder / "libcrispseg.so"
    command([_compiler(), "-shared", "-pthread", "-o", target, *(job[-1] for job in jobs)])
    return target


def cuda_library(folder: Path, image: Optional[Path], capability: int) -> Path:
    """The host side of the CUDA ops, with the kernel image inside when there is one."""
    source, objects = PLUGINS / "cuda", folder / "cuda"
    objects.mkdir(exist_ok=True)
    extra = ["-DCRISPSEG_HAVE_IMAGE=1", '-DCRISPSEG_IMAGE_INFO="%d"' % capability] if image else []
    jobs: List[List[Any]] = [
        [*extra, p, "-o", objects / (p.stem + ".o")] for p in sorted((source / "src").glob("*.cpp"))
    ]
    if image:
        text = "\n".join(
            [
                '.section .rodata,"a",%progbits',
                ".balign 64",
                ".global crispseg_kernel_image, crispseg_kernel_image_end",
                ".hidden crispseg_kernel_image, crispseg_kernel_image_end",
                "crispseg_kernel_image:",
                '.incbin "%s"' % image,
                "crispseg_kernel_image_end:",
                ".byte 0",
                '.section .note.GNU-stack,"",%progbits',
                "",
            ]
        )
        (objects / "image.s").write_text(text)
        jobs.append([objects / "image.s", "-o", objects / "image.o"])
    includes = ["-I", source / "include", "-I", source / "src"]
    _compile([[_compiler(), *_FLAGS, *includes, "-c", *job] for job in jobs])
    target = folder / "libcrispseg_cuda.so"
    command([_compiler(), "-shared", "-o", target, *(job[-1] for job in jobs), "-ldl"])
    return target


def _compile(commands: Sequence[Sequence[Any]]) -> None:
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(command, commands))


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _release(text: str) -> str:
    found = re.search(r"release ([\d.]+), V([\d.]+)", text)
    return found.group(2) if found else "unknown"
