"""The doctor's questions about GPUs: driver, kernels, compiler, TensorRT and its plugin, and JetPack on a Jetson.

The probes are code for ``doctor.probe`` (a process of their own each). Not yet run on a Jetson.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

from crispseg.environment import l4t_release

PROBES: Dict[str, str] = {
    "CUDA driver": """
import ctypes
from crispseg.engines import cuda_driver as d
driver = d.library(); number = ctypes.c_int(); size = ctypes.c_size_t(); name = ctypes.create_string_buffer(256)
def get(function, *arguments): d.call(driver, function, ctypes.byref(number), *arguments); return number.value
version = get("cuDriverGetVersion"); devices = []
for i in range(get("cuDeviceGetCount")):
    device = get("cuDeviceGet", i)
    d.call(driver, "cuDeviceGetName", name, 256, device)
    d.call(driver, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    capability = get("cuDeviceGetAttribute", 75, device), get("cuDeviceGetAttribute", 76, device)
    devices.append("%s (compute capability %d.%d, %d multiprocessors, %d MiB)" % ((name.value.decode(),) + capability
                   + (get("cuDeviceGetAttribute", 16, device), size.value >> 20)))
release = "CUDA %d.%d from %s: " % (version // 1000, version % 1000 // 10, d.library_name())
found = release + (", ".join(devices) or "no device")
ok = bool(devices)
""",
    "CUDA compiler (nvcc or NVRTC)": """
import ctypes, os, re, shutil, subprocess
from crispseg.engines import nvrtc
parts = []
nvcc = shutil.which("nvcc") or next((p for p in ("/usr/local/cuda/bin/nvcc",) if os.path.exists(p)), None)
if nvcc:
    text = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, timeout=20).stdout.decode()
    release = re.search("release ([0-9.]+)", text)
    parts.append("nvcc %s at %s" % (release.group(1) if release else "?", nvcc))
for path in nvrtc.candidates():
    try: library = ctypes.CDLL(str(path))
    except OSError: continue
    major, minor = ctypes.c_int(), ctypes.c_int(); library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    parts.append("NVRTC %d.%d at %s" % (major.value, minor.value, path))
ok = bool(parts); found = ", ".join(parts) or "neither found"
""",
    "CUDA kernels": """
import ctypes
from crispseg.plugins import cuda_loader
library = cuda_loader.load(); size = ctypes.c_size_t(); image = library.csg_embedded_image(ctypes.byref(size))
linked = " (image of %d KiB)" % (size.value >> 10) if image and size.value else ", no image"
found = "%s, %s%s" % (library._name, library.csg_build_info().decode(), linked)
from crispseg.engines import cuda, cuda_kernels
from crispseg.errors import CrispsegError
good, told, fix = [], [], ""
try: contexts = [cuda.open_device(i) for i in range(cuda.device_count())]
except CrispsegError: contexts = []  # the check of the driver tells
for context in contexts:
    try: told.append("%s: %s" % (context.info.name, cuda_kernels.outlook(context))); good.append(context)
    except CrispsegError as error:
        text, _, advice = str(error).rpartition("; ")
        told.append(text); fix = fix or advice
ok = bool(good) or not contexts
if told: found += " | " + " | ".join(told)
if not ok: found += " [fix: " + fix
""",
    "TensorRT": """
import os, tensorrt
found = "%s at %s" % (tensorrt.__version__, os.path.dirname(tensorrt.__file__))
""",
    "TensorRT plugin": """
import ctypes, json
from crispseg.engines.tensorrt import registry
path = registry.find_library(); library = ctypes.CDLL(str(path)); found = str(path)
describe = getattr(library, "crispseg_plugin_info", None)
if describe is not None:
    describe.restype = ctypes.c_char_p; facts = json.loads(describe().decode())
    serves = "10 and 11" if facts["shell"] == "IPluginV3" else "8.5 and 8.6"
    found += ", for TensorRT %s (headers of %s), %d ops, %s" % (serves, facts["tensorrt"], facts["ops"], facts["cuda"])
try: import tensorrt
except ImportError: pass
else: registry.load(tensorrt, path); found += ", registers in TensorRT " + tensorrt.__version__
""",
}
OPTIONAL = {*PROBES, "JetPack", "JetPack packages", "virtual environment"}
_UNLINKED = ", no image"  # end of what the probe of the kernels finds

# Jetson Linux -> JetPack, as NVIDIA's release notes pair them.
_JETPACK = {
    "32.7.1": "4.6.1", "34.1.1": "5.0.1", "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2",
    "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.1": "5.1.5", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2",
}  # fmt: skip
# Packages of JetPack that the GPU backends need, by the major release of Jetson Linux; CUDA's carry its version.
_TENSORRT_PACKAGES = ("python3-libnvinfer", "libnvinfer-dev")
_CUDA_PACKAGES = {"35": ("cuda-nvcc-11-4", "cuda-nvrtc-11-4", "cuda-cudart-dev-11-4")}
VENV = "python3 -m venv --system-site-packages .venv"


def fixes(pip: str) -> Dict[str, str]:
    """What gets each missing thing here: name of a probe -> command or advice. ``pip``: "python -m pip install "."""
    jetson = l4t_release() is not None
    driver = (
        "install NVIDIA's driver if this machine has an NVIDIA GPU; nvidia-smi must list it (in a container: docker "
    )
    driver += "run --gpus all; on a Jetson: --runtime nvidia)"
    compiler = 'sudo apt install cuda-nvcc-11-4 cuda-nvrtc-11-4, then export PATH="$PATH:/usr/local/cuda/bin"'
    if not jetson:
        compiler = pip + '"crispseg[cuda]" (NVRTC, no toolkit needed), or install a CUDA toolkit'
    tensorrt = pip + "tensorrt (x86-64; -cu12 or -cu13 behind the name chooses CUDA's release)"
    if jetson:
        tensorrt = "sudo apt install tensorrt python3-libnvinfer, and " + VENV
    headers = "sudo apt install libnvinfer-dev" if jetson else "export TensorRT_ROOT=<folder with include/NvInfer.h>"
    return {
        "CUDA driver": driver,
        "CUDA compiler (nvcc or NVRTC)": compiler,
        "CUDA kernels": "build the package again (pip install .): the library is plain C++ and needs no CUDA; its "
        "image comes from nvcc at that time, or from NVRTC at crispseg build: " + compiler,
        "TensorRT": tensorrt,
        "TensorRT plugin": headers + ", then build the package again (pip install .), see docs/gpu.md",
    }


def combine(checks: List[dict], fix: Dict[str, str]) -> None:
    """Settles in place what one probe alone cannot: a library without an image needs NVRTC for crispseg build."""
    by_name = {check["name"]: check for check in checks}
    kernels, compiler = by_name["CUDA kernels"], by_name["CUDA compiler (nvcc or NVRTC)"]
    kernels["found"], _, advice = kernels["found"].partition(" [fix: ")
    if advice and not kernels["ok"]:  # there is a GPU, and it knows better
        kernels["fix"] = advice
    if not kernels["ok"] or not kernels["found"].endswith(_UNLINKED):
        return
    if "NVRTC" in compiler["found"]:
        kernels["found"] += "; crispseg build --backend cuda compiles one for each bundle"
        return
    text = "build the package again (pip install .): nvcc is here now" if compiler["ok"] else fix["CUDA kernels"]
    kernels.update(ok=False, fix=text, found=kernels["found"] + ", and no NVRTC to compile one")


def jetpack_checks(tensorrt_found: bool, release: Optional[str] = None, prefix: str = sys.prefix) -> List[dict]:
    """On a Jetson: JetPack's release, its packages, and whether this Python sees them. Elsewhere nothing."""
    release = release or l4t_release()
    if release is None:
        return []
    major = release.split(".")[0]
    name = _JETPACK.get(release) or {"32": "4", "34": "5", "35": "5", "36": "6"}.get(major, "unknown")
    supported = major in ("35", "36")
    checks = [
        {
            "name": "JetPack",
            "ok": supported,
            "needed": False,
            "found": "%s (Jetson Linux %s), %s" % (name, release, platform.machine()),
            "fix": None if supported else "JetPack 5.1 or newer is wanted (TensorRT 8.5, Python 3.8)",
        }
    ]
    wanted = _TENSORRT_PACKAGES + _CUDA_PACKAGES.get(major, ())
    there = _packages(wanted)
    if there is not None:
        missing = [package for package in wanted if package not in there]
        checks.append(
            {
                "name": "JetPack packages",
                "ok": not missing,
                "needed": False,
                "found": "missing: " + ", ".join(missing)
                if missing
                else ", ".join("%s %s" % item for item in there.items()),
                "fix": "sudo apt update && sudo apt install " + " ".join(missing) if missing else None,
            }
        )
    checks.append(_virtual_environment(tensorrt_found, Path(prefix)))
    return checks


def _packages(names: tuple) -> Optional[Dict[str, str]]:
    """Installed Debian packages of these: name -> version; None without dpkg."""
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n", *names]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.split() for line in done.stdout.decode("utf-8", "replace").splitlines())
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


def _virtual_environment(tensorrt_found: bool, prefix: Path) -> dict:
    """JetPack's TensorRT lies in the system's Python: a virtual environment that hides it cannot import it."""
    try:
        text = (prefix / "pyvenv.cfg").read_text(errors="replace")
    except OSError:
        text = ""
    hides = bool(text) and "include-system-site-packages = true" not in text.lower()
    ok = tensorrt_found or not hides
    found = (
        "the system's Python" if not text else "%s, %s the system's packages" % (prefix, "hides" if hides else "sees")
    )
    fix = None if ok else "rm -r %s && %s, then install crispseg into it again" % (os.path.basename(str(prefix)), VENV)
    return {"name": "virtual environment", "ok": ok, "needed": False, "found": found, "fix": fix}
