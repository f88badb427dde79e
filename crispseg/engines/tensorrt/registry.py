"""The plugin library in TensorRT's registry: loaded once a process, before anything is parsed or deserialised.

TensorRT 8.6 and later load a library themselves; 8.5 cannot, so there our library is opened with ctypes and told where
the registry is. The library is not linked to libnvinfer: one binary serves 10 and 11, another 8.5 and 8.6.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from crispseg.engines.tensorrt.compat import version
from crispseg.errors import EnvironmentMismatch
from crispseg.plugins.ops import BY_NAME, CONTRACT_VERSION, PLUGIN_ATTRIBUTES

ENVIRONMENT = "CRISPSEG_TENSORRT_LIBRARY"
LIBRARY = "libcrispseg_tensorrt.so"
NAMESPACE = ""
BUILD_COMMAND = (
    "cmake -S crispseg/plugins -B build -DTensorRT_ROOT=<folder with include/NvInfer.h> && cmake --build build, "
    "then set %s=build/%s" % (ENVIRONMENT, LIBRARY)
)

# TensorRT refuses a second load of the same library (and returns None), and unloading is not worth its risk: the
# handle lives as long as the process.
_loaded: Dict[str, Any] = {}


def find_library() -> Path:
    """The plugin library: named by the environment, else beside crispseg/plugins. Raises EnvironmentMismatch."""
    import crispseg.plugins

    named = os.environ.get(ENVIRONMENT)
    places = [Path(named)] if named else [Path(folder) / LIBRARY for folder in crispseg.plugins.__path__]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise EnvironmentMismatch(
        "TensorRT plugin library: expected %s, found none; the TensorRT headers were not there when crispseg was "
        "built: %s" % (" or ".join(map(str, places)), BUILD_COMMAND)
    )


def load(trt: Any, library: Path, kernels: Optional[Path] = None) -> None:
    """Register the plugins of ``library``; does nothing when that is done.

    Args:
        trt: the tensorrt module.
        library: of :func:`find_library`.
        kernels: image of the CUDA kernels when the library has none embedded (built without nvcc).

    Raises:
        EnvironmentMismatch: the library does not load, belongs to another TensorRT, or lacks a creator.
    """
    key = str(library)
    if key not in _loaded:
        registry = trt.get_plugin_registry()
        if registry is None:
            raise EnvironmentMismatch(
                "TensorRT %s: expected a plugin registry, found none; install TensorRT again" % version(trt)
            )
        _loaded[key] = _load_library(trt, registry, library)
        missing = [name for name in BY_NAME if find_creator(trt, registry, name) is None]
        if missing:
            del _loaded[key]
            raise EnvironmentMismatch(
                "%s: TensorRT %s knows no plugin %s after loading it; the library is of another version of crispseg or "
                "of TensorRT: %s" % (library, version(trt), ", ".join(missing), BUILD_COMMAND)
            )
    if kernels is not None:
        _set_kernels(library, kernels)


def _load_library(trt: Any, registry: Any, library: Path) -> Any:
    if hasattr(trt.IPluginRegistry, "load_library"):
        handle = registry.load_library(str(library))
        if handle is None:
            raise EnvironmentMismatch(
                "%s: TensorRT %s does not load it (not a plugin library, built for another TensorRT, or its names are "
                "taken by one that is loaded); %s" % (library, version(trt), BUILD_COMMAND)
            )
        return handle
    return _register_explicitly(library, version(trt))


def _register_explicitly(library: Path, release: str) -> Any:
    """8.5: hand the registry's address to the library. A pointer works with libnvinfer loaded RTLD_LOCAL, as Python
    loads it; the REGISTER_TENSORRT_PLUGIN macro would not find its symbol then."""  # noqa: D209
    try:
        core = ctypes.CDLL(_libnvinfer())
        core.getPluginRegistry.restype = ctypes.c_void_p
        ours = ctypes.CDLL(str(library))
        ours.crispseg_register.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        ours.crispseg_register.restype = ctypes.c_int
        address = core.getPluginRegistry()
        count = ours.crispseg_register(address, NAMESPACE.encode()) if address else -1
    except (OSError, AttributeError) as error:
        raise EnvironmentMismatch(
            "%s: cannot be registered with TensorRT %s: %s; %s" % (library, release, error, BUILD_COMMAND)
        ) from None
    if count < 0:
        raise EnvironmentMismatch(
            "%s: TensorRT %s does not take its plugins (built for another TensorRT?); %s"
            % (library, release, BUILD_COMMAND)
        )
    return ours


def _libnvinfer() -> str:
    """The libnvinfer that the tensorrt module brought into this process."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                path = line.split(maxsplit=5)[-1].strip()
                if os.path.basename(path).startswith("libnvinfer.so"):
                    return path
    except OSError:
        pass
    found = ctypes.util.find_library("nvinfer")
    if found is None:
        raise OSError("no libnvinfer in this process")
    return found


def _set_kernels(library: Path, kernels: Path) -> None:
    try:
        ours = ctypes.CDLL(str(library))
        ours.crispseg_set_kernels.argtypes = [ctypes.c_char_p]
        ours.crispseg_set_kernels.restype = ctypes.c_int
        status = ours.crispseg_set_kernels(os.fsencode(str(kernels)))
    except (OSError, AttributeError) as error:
        raise EnvironmentMismatch("%s: cannot be given its kernels: %s; %s" % (library, error, BUILD_COMMAND)) from None
    if status < 0:
        raise EnvironmentMismatch(
            "%s: does not take the kernels %s; run `crispseg build BUNDLE --backend cuda` again" % (library, kernels)
        )


def find_creator(trt: Any, registry: Any, name: str) -> Any:
    """The creator of op ``name``, None without one. V3 creators are only found by the newer call."""
    if hasattr(trt.IPluginRegistry, "get_creator"):
        return registry.get_creator(name, str(CONTRACT_VERSION), NAMESPACE)
    return registry.get_plugin_creator(name, str(CONTRACT_VERSION), NAMESPACE)


def require_creators(trt: Any, names: Sequence[str]) -> None:
    """Raise EnvironmentMismatch unless every op of ``names`` has a creator."""
    registry = trt.get_plugin_registry()
    missing = [name for name in sorted(set(names)) if find_creator(trt, registry, name) is None]
    if missing:
        raise EnvironmentMismatch(
            "plugins %s: expected them in TensorRT's registry, found none; load the plugin library first (%s)"
            % (", ".join(missing), BUILD_COMMAND)
        )


def require_fields(trt: Any, model: Any) -> None:
    """Raise EnvironmentMismatch unless every attribute of a stripped model's plugin nodes is a field of its creator.

    The parser hands over the fields that a creator lists and drops all other attributes without a word.
    """
    registry = trt.get_plugin_registry()
    for node in model.graph.node:
        if node.op_type not in BY_NAME:
            continue
        creator = find_creator(trt, registry, node.op_type)
        listed = set() if creator is None else {field.name for field in creator.field_names}
        lost = sorted({item.name for item in node.attribute} - listed - set(PLUGIN_ATTRIBUTES))
        if lost:
            raise EnvironmentMismatch(
                "plugin %s: expected fields %s, found %s; the plugin library is of another version of crispseg: %s"
                % (node.op_type, ", ".join(lost), ", ".join(sorted(listed)) or "none", BUILD_COMMAND)
            )
