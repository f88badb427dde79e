"""What this machine can run, what it cannot and why, each with the command that fixes it.

Every library is tried in a process of its own: an import that crashes (a wheel for a newer CPU, a broken driver) is
then a finding and not the end of the examination.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import crispseg
from crispseg import environment
from crispseg.plugins.loader import BUILD_COMMAND
from crispseg.report import new_report
from crispseg.runtime import doctor_gpu

PYTHON_LEAST = (3, 8)
DISK_MIB, MEMORY_MIB = 1024, 2560  # a bundle with outputs; the stated peak of `run` at 1024x2048
PROBE_SECONDS = 60
_PIP = f"{Path(sys.executable).name} -m pip install "

# name -> code that fills `found` (text for a person) and may raise; `ok` is True unless it says otherwise.
_PROBES: Dict[str, str] = {
    "numpy": "import numpy; found = numpy.__version__",
    "pillow": "import PIL.Image; found = PIL.__version__",
    "native library": """
from crispseg.plugins import loader
library = loader.load()
context = library.cs_create(1, None)
path = next(str(p) for p in loader.candidates() if p.is_file())
if not context: raise RuntimeError(path + ": " + loader.last_error())
found = "%s, instruction set %s, %s" % (path, library.cs_isa(context).decode(), library.cs_build_info().decode())
found += "; `crispseg build BUNDLE --backend native` packs the weights of a bundle for it once"
""",
    "onnx": "import onnx; found = onnx.__version__",
    "onnxruntime": """
import onnxruntime
found = onnxruntime.__version__ + ", providers: " + ", ".join(onnxruntime.get_available_providers())
""",
    "video (PyAV, libx264)": """
import av, av.codec
av.codec.Codec("libx264", "w"); found = "av " + av.__version__ + ", encoder libx264 present"
""",
    "camera (OpenCV)": """
import cv2
lines = [l.strip() for l in cv2.getBuildInformation().splitlines()]
parts = [l for l in lines if l.startswith(("GStreamer:", "FFMPEG:", "v4l/v4l2:"))]
found = "cv2 " + cv2.__version__ + ", " + ", ".join(" ".join(p.split()[:2]) for p in parts)
""",
    "torch (export, fit, verify)": """
import torch; found = torch.__version__ + (", CUDA usable" if torch.cuda.is_available() else ", CPU only")
""",
    "onnxscript (export)": "import onnxscript; found = onnxscript.__version__",
    **doctor_gpu.PROBES,
}
_FIX = {
    "numpy": _PIP + "numpy",
    "pillow": _PIP + "pillow",
    "native library": BUILD_COMMAND,
    "onnx": _PIP + "onnx",
    "onnxruntime": _PIP + "onnxruntime",
    "video (PyAV, libx264)": _PIP + "av",
    "camera (OpenCV)": _PIP + "opencv-python-headless",
    "torch (export, fit, verify)": _PIP + "torch",
    "onnxscript (export)": _PIP + "onnxscript",
    **doctor_gpu.fixes(_PIP),
}
_HOST = "Python 3.10 (export, fit, verify)"
_GSTREAMER = "GStreamer in OpenCV"
_CORE = ("python", "numpy", "pillow", "onnx", "onnxruntime")
# what a person wants to do -> the checks it needs
_USES: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("run, latency, eval (native engine)", (*_CORE, "native library")),
    ("run, latency, eval (--backend onnxruntime)", _CORE),
    ("video files and RTSP", ("video (PyAV, libx264)",)),
    ("cameras", ("camera (OpenCV)",)),
    ("GStreamer pipelines (CSI cameras)", ("camera (OpenCV)", _GSTREAMER)),
    ("export and verify", (*_CORE, _HOST, "torch (export, fit, verify)", "onnxscript (export)")),
    ("fit", ("python", _HOST, "numpy", "pillow", "torch (export, fit, verify)")),
    ("base on a GPU (--provider CUDAExecutionProvider)", (*_CORE, "CUDA driver", "onnxruntime CUDA provider")),
    (
        "run on a GPU without TensorRT (--backend cuda)",
        (*_CORE, "CUDA driver", "CUDA kernels", "onnxruntime CUDA provider"),
    ),
    (
        "TensorRT engines (crispseg build, --backend tensorrt)",
        (*_CORE, "CUDA driver", "CUDA kernels", "TensorRT"),
    ),
    (
        "the refiner as a TensorRT engine too (--refiner-engine)",
        (*_CORE, "CUDA driver", "CUDA kernels", "TensorRT", "TensorRT plugin"),
    ),
)
_OPTIONAL = {
    _HOST,
    _GSTREAMER,
    "camera (OpenCV)",
    "torch (export, fit, verify)",
    "onnxscript (export)",
    "onnxruntime CUDA provider",
    *doctor_gpu.OPTIONAL,
}


def diagnose(progress: Optional[Callable[[int, int], None]] = None) -> List[dict]:
    """All checks: list of {name, ok, needed, found, fix}; ``fix`` is None where nothing is to be done."""
    checks = [_python(), _host_python(), _crispseg()]
    with ThreadPoolExecutor(max_workers=environment.usable_cpus()) as pool:
        running = [(name, pool.submit(probe, code)) for name, code in _PROBES.items()]
        for done, (name, future) in enumerate(running, 1):
            ok, found = future.result()
            checks.append(_check(name, ok, found, _FIX[name]))
            if progress:
                progress(done, len(running))
    doctor_gpu.combine(checks, _FIX)
    checks += doctor_gpu.jetpack_checks(next(check["ok"] for check in checks if check["name"] == "TensorRT"))
    checks += [_gstreamer(checks), _cuda_provider(checks), _cpus(), _memory(), _disk()]
    return checks


def abilities(checks: List[dict]) -> List[dict]:
    """What the machine can do: list of {what, ok, missing, why}, from the checks."""
    by_name = {check["name"]: check for check in checks}
    result = []
    for what, needs in _USES:
        missing = [name for name in needs if not by_name[name]["ok"]]
        why = "; ".join(f"{name}: {by_name[name]['found']}" for name in missing)
        result.append({"what": what, "ok": not missing, "missing": missing, "why": why or None})
    return result


def examine(progress: Optional[Callable[[int, int], None]] = None) -> dict:
    """The report of kind "doctor": checks, abilities and environment. ``ok``: the native pipeline can run here."""
    checks = diagnose(progress)
    can = abilities(checks)
    return new_report("doctor", ok=can[0]["ok"], can=can, checks=checks, environment=environment.environment())


def probe(code: str, seconds: float = PROBE_SECONDS) -> Tuple[bool, str]:
    """Runs a probe in its own process: (ok, what was found in one line)."""
    program = (
        "import json, sys\nok, found = True, ''\ntry:\n"
        + "".join(f"    {line}\n" for line in code.strip().splitlines())
        + "except BaseException as error:\n    ok, found = False, '%s: %s' % (type(error).__name__, error)\n"
        "print('\\n' + json.dumps([ok, found]))\n"
    )
    paths = [str(Path(crispseg.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds, env=variables, check=False
        )
        ok, found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return False, f"no answer in {seconds:.0f} s"
    except OSError as error:
        return False, f"cannot start Python: {error}"
    except (IndexError, ValueError):
        return False, _death(done.returncode)
    if not ok and found.startswith("ModuleNotFoundError"):
        return False, "not installed"
    found = " ".join(str(found).split())
    if not ok:  # our own messages end in the command that fixes it, which stands beside the check anyway
        found = found.split(". Build it")[0].split(". Rebuild it")[0]
        if found.startswith("EnvironmentMismatch: "):
            found = found[len("EnvironmentMismatch: ") :].split("; ")[0]
    return bool(ok), found


def _death(code: int) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (built for another CPU?)" if name == "SIGILL" else ""
        return f"crashes when loaded: {name}{hint}"
    return f"ends with exit code {code} when loaded"


def _check(name: str, ok: bool, found: str, fix: Optional[str]) -> dict:
    found = found[len(name) + 2 :] if found.startswith(name + ": ") else found  # messages begin with the thing too
    return {"name": name, "ok": bool(ok), "needed": name not in _OPTIONAL, "found": found, "fix": None if ok else fix}


def _python() -> dict:
    found = f"{platform.python_version()} at {sys.executable}"
    least = ".".join(map(str, PYTHON_LEAST))
    return _check("python", sys.version_info >= PYTHON_LEAST, found, f"install Python {least} or newer")


def _host_python() -> dict:
    """What makes bundles is younger than what runs them: nobody shall install PyTorch in vain."""
    return _check(_HOST, sys.version_info >= (3, 10), platform.python_version(), "make bundles on another machine")


def _crispseg() -> dict:
    commit = environment.commit()
    return _check("crispseg", True, crispseg.__version__ + (f", commit {commit[:12]}" if commit else ""), None)


def _gstreamer(checks: List[dict]) -> dict:
    """An OpenCV from pip opens cameras and no pipelines."""
    there = "GStreamer: YES" in next(check["found"] for check in checks if check["name"] == "camera (OpenCV)")
    fix = "install the system's python3-opencv and none with pip (sudo apt install python3-opencv)"
    return _check(_GSTREAMER, there, "present" if there else "none", fix)


def _cuda_provider(checks: List[dict]) -> dict:
    found = next(check["found"] for check in checks if check["name"] == "onnxruntime")
    there = "CUDAExecutionProvider" in found
    return _check(
        "onnxruntime CUDA provider",
        there,
        "present" if there else "not in this build of onnxruntime",
        _PIP + "onnxruntime-gpu (instead of onnxruntime)",
    )


def _cpus() -> dict:
    quota = environment.cpu_quota()
    found = f"{environment.usable_cpus()} usable of {os.cpu_count()}, {environment.cpu_model() or platform.machine()}"
    return _check("cpus", True, found + (f", control group allows {quota:.2f}" if quota else ""), None)


def _memory() -> dict:
    total, limit = environment.total_memory_mib(), environment.memory_limit_mib()
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    room = min(value for value in (free, limit, total, float("inf")) if value is not None)
    found = ", ".join(
        f"{value:.0f} MiB {what}"
        for value, what in ((total, "in all"), (free, "available"), (limit, "allowed by the control group"))
        if value
    )
    return _check(
        "memory",
        room >= MEMORY_MIB,
        found or "unknown",
        f"{MEMORY_MIB} MiB are wanted for 1024x2048 frames: close programs, raise the container's limit "
        "(docker run --memory), or use a smaller bundle",
    )


def _disk() -> dict:
    free = shutil.disk_usage(os.getcwd()).free / 2**20
    return _check(
        "disk",
        free >= DISK_MIB,
        f"{free:.0f} MiB free in {os.getcwd()}",
        f"free {DISK_MIB} MiB there or work in another folder (df -h)",
    )
