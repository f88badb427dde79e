"""Builds the plugin library and its harness with g++, without CMake: a version of the headers costs a few seconds.

Objects are shared between versions where no TensorRT header is in them, and kept between runs in the emulation's cache.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List

import emulation

HERE = Path(__file__).resolve().parent
PLUGINS = HERE.parents[1] / "crispseg" / "plugins"
PLUGIN = PLUGINS / "tensorrt"
CASES = HERE / "tensorrt"
HEADERS = "CRISPSEG_TRT_HEADERS"

_CUDA = ["-I%s" % (PLUGINS / "cuda" / "include")]
_FAST = ["-O0", "-Wno-deprecated-declarations"]  # host code that only hands things over


def header_folders() -> Dict[str, Path]:
    """Version -> include folder: every ``$CRISPSEG_TRT_HEADERS/<version>`` that holds NvInferRuntime.h."""
    root = os.environ.get(HEADERS, "")
    found = {}
    for folder in sorted(Path(root).iterdir()) if root and Path(root).is_dir() else []:
        for include in (folder / "include", folder):
            if (include / "NvInferRuntime.h").is_file():
                found.setdefault(folder.name, include)
    return found


def _objects(sources: List[Path], flags: List[str]) -> List[Path]:
    return [emulation._object(emulation.cache(), source, [*_CUDA, *flags]) for source in sources]


def _trt_flags(include: Path) -> List[str]:
    return [*_FAST, "-isystem", str(include), "-isystem", str(PLUGIN / "cuda_stub")]


def core_program() -> Path:
    """The tests of the core: a program that takes the name of a case."""
    folder = emulation.cache()
    with emulation._locked(folder):
        core = [path for path in sorted((PLUGIN / "core").glob("*.cpp")) if path.name != "device.cpp"]
        objects = _objects([*core, *sorted(CASES.glob("core_*.cpp")), CASES / "recording.cpp"], _FAST)
        target = folder / ("core-" + "-".join(o.stem.rsplit("-", 1)[1][:4] for o in objects)) / "core_test"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".%d.partial" % os.getpid())
            emulation._run([*emulation.compiler(), *map(str, objects), "-o", str(partial)])
            os.replace(partial, target)
        return emulation.used(target)


def plugin_library(include: Path) -> Path:
    """libcrispseg_tensorrt.so for these headers, as CMake links it: kernels come through crispseg_set_kernels."""
    folder = emulation.cache()
    with emulation._locked(folder):
        objects = _objects(sorted((PLUGIN / "core").glob("*.cpp")), _FAST)
        objects += _objects(sorted((PLUGINS / "cuda" / "src").glob("*.cpp")), [])
        objects += _objects(sorted((PLUGIN / "shell").glob("*.cpp")), _trt_flags(include))
        script = "-Wl,--version-script=%s" % (PLUGIN / "shell" / "exports.map")
        return emulation._shared(folder, "libcrispseg_tensorrt.so", objects, [script])


def harness_library(include: Path) -> Path:
    """The harness for these headers."""
    folder = emulation.cache()
    with emulation._locked(folder):
        objects = _objects(sorted(CASES.glob("harness*.cpp")), [*_trt_flags(include), "-fvisibility=default"])
        return emulation._shared(folder, "libharness.so", objects)
