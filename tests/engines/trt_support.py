"""What the TensorRT tests share: a copy of the demo bundle, a device that is none, a plugin library that is none."""

from __future__ import annotations

import shutil
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import make

from crispseg.engines.tensorrt import artefacts, registry

BUNDLE = Path(__file__).parents[2] / "demo" / "bundle"
ATTRIBUTES = Path(__file__).parents[2] / "crispseg" / "plugins" / "tensorrt" / "core" / "attributes.h"

# The explicit route of 8.5: a libnvinfer that has a registry, and a plugin library that is told where it is.
_CORE = "static int registry; void* getPluginRegistry(void) { return &registry; }"
_LIBRARY = """
static void* seen; static char image[4096];
int crispseg_register(void* registry, const char* space) { seen = registry; return *space ? -1 : 8; }
void* seen_registry(void) { return seen; }
int crispseg_set_kernels(const char* path) { int i = 0; for (; path[i] && i < 4095; i++) image[i] = path[i]; image[i] = 0; return 0; }
const char* seen_kernels(void) { return image; }
"""  # noqa: E501


def copy_bundle(folder):
    """The demo bundle in a place of its own, loaded."""
    from crispseg.bundle import load_bundle

    shutil.copytree(BUNDLE, folder / "bundle")
    return load_bundle(folder / "bundle")


def compile_library(folder, name, source):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / (name + ".c")).write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / name), str(folder / (name + ".c"))], check=True)
    return folder / name


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """(stand-in for libnvinfer, stand-in for the plugin library)."""
    folder = tmp_path_factory.mktemp("libraries")
    return (compile_library(folder, "libnvinfer.so.8", _CORE),
            compile_library(folder, "libcrispseg_tensorrt.so", _LIBRARY))  # fmt: skip


class Buffer:
    def __init__(self, nbytes):
        self.array = np.zeros(max(1, nbytes), np.uint8)
        self.address, self.nbytes = self.array.ctypes.data, nbytes

    def close(self):
        self.array = None


class Stream:
    handle = 7

    def upload(self, address, array):
        pass

    def download(self, array, address):
        pass

    def synchronize(self):
        pass


class Context:
    """The parts of engines/cuda.py that TensorRT's engines use, on the host."""

    def __init__(self, **changes):
        facts = {"ordinal": 0, "name": "Test GPU", "capability": 87, "multiprocessors": 1, "memory": 1 << 30,
                 "driver": "12.4", "integrated": False, **changes}  # fmt: skip
        self.info = types.SimpleNamespace(**facts)

    def activate(self):
        pass

    def alloc(self, nbytes):
        return Buffer(nbytes)

    def stream(self):
        return Stream()

    def pinned(self, shape, dtype):
        return np.zeros(shape, dtype)


def pack(kind, weight):
    """Stands in for csg_pack_weight: the values, in the type."""
    return np.asarray(weight, np.float16 if kind == 1 else np.float32).tobytes()


def creator_fields():
    """op -> names of the fields that strip writes; a creator that lacks one loses it without a word."""
    import re

    from crispseg.plugins.ops import BY_NAME

    names = set(re.findall(r'\{"(\w+)"', ATTRIBUTES.read_text()))
    return {op: sorted(names | {a.name for a in record.attributes}) for op, record in BY_NAME.items()}


def convert(model, precision):
    """As the command does it."""
    from crispseg.cli_build import to_precision

    return to_precision(model, precision)


@pytest.fixture
def world(monkeypatch, libraries):
    """version -> (module, plugin library); nothing is loaded yet."""
    core, library = libraries

    def start(version):
        monkeypatch.setattr(registry, "_loaded", {})
        trt = make(version)
        trt.behaviour.library = creator_fields()
        explicit = registry._register_explicitly

        def register(path, release):
            result = explicit(path, release)
            trt.behaviour.plugins.update(trt.behaviour.library)
            return result

        monkeypatch.setattr(registry, "_register_explicitly", register)
        monkeypatch.setattr(registry, "_libnvinfer", lambda: str(core))
        monkeypatch.setattr(artefacts, "kernel_image", lambda *_: None)
        return trt, library

    return start
