"""Section "device": what the measurements ran on."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from typing import Any, Dict

from gpu.building import find_nvcc
from gpu.settings import EMULATED, Settings
from gpu.skip import Skip


def run_device(settings: Settings) -> Dict[str, Any]:
    """Device, software, clocks. Skip without a driver or a GPU."""
    from crispseg.engines import cuda
    from crispseg.environment import environment, package_version
    from crispseg.errors import CrispsegError
    from crispseg.runtime import clocks

    try:
        context = cuda.open_device()
    except CrispsegError as error:
        raise Skip(str(error)) from None
    info = asdict(context.info)
    free, total = context.memory()
    if os.environ.get("CRISPSEG_LIBCUDA") and EMULATED not in info["name"].lower():
        info["name"] += " (driver library %s)" % os.environ["CRISPSEG_LIBCUDA"]
    packages = {
        name: package_version(name) for name in ("torch", "cupy-cuda12x", "cupy-cuda13x", "spconv-cu120", "triton")
    }
    return {
        "line": "%s, compute capability %d, CUDA %s" % (info["name"], info["capability"], info["driver"]),
        "device": info,
        "memory_free_mib": free >> 20,
        "memory_mib": total >> 20,
        "clocks": clocks.device_state(),
        "nvcc": find_nvcc(),
        "compute_sanitizer": shutil.which("compute-sanitizer"),
        "packages": {name: version for name, version in packages.items() if version},
        "environment": environment(),
    }
