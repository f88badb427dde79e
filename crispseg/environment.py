"""What this machine and this installation are: the part of every report that makes a figure comparable."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import crispseg
from crispseg.errors import hide_passwords

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "av",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "torch",
    "tensorrt",
)
_CGROUP = Path("/sys/fs/cgroup")


def environment(threads: int | None = None, **extra: object) -> dict:
    """Facts about the software and the machine, as JSON-able values; what cannot be read is None.

    Args:
        threads: number of threads that the measurement uses; 0 or None means all usable CPUs.
        **extra: further entries, added as they are (backend, provider, ...).

    Nothing heavy is imported: package versions come from their metadata.
    """
    return {
        "crispseg": crispseg.__version__,
        "commit": commit(),
        "command": command(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "python": platform.python_version(),
        "packages": {name: version for name, version in ((n, package_version(n)) for n in PACKAGES) if version},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "os": _os_name(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable_cpus(),
        "cpu_quota": cpu_quota(),
        "cpu_mhz": _cpu_mhz(),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": _load_average(),
        "isa": native_isa(),
        "memory_mib": total_memory_mib(),
        "memory_limit_mib": memory_limit_mib(),
        "l4t": l4t_release(),
        "nvidia_driver": nvidia_driver(),
        "threads": threads if threads else usable_cpus(),
        **extra,
    }


def command() -> str | None:
    """The command line to type for this report again, without passwords; None where another program asks."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.stem != "crispseg" and (program.name, program.parent.name) != ("__main__.py", "crispseg"):
        return None
    return " ".join(["crispseg", *(shlex.quote(hide_passwords(word)) for word in sys.argv[1:])])


def package_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int:
    """CPUs this process may use: the affinity mask, lowered by a cgroup quota (rounded down, at least 1)."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(count, int(quota)) if quota else count)


def cpu_quota() -> float | None:
    """CPUs that the control group allows (2.5 = two and a half), or None without a limit. cgroup v2, then v1."""
    quotas = []
    for folder in _cgroup_folders(""):
        fields = (_read(folder / "cpu.max") or "").split()
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
            quotas.append(int(fields[0]) / int(fields[1]))
    for folder in _cgroup_folders("cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None


def memory_limit_mib() -> float | None:
    """Memory that the control group allows, MiB, or None without a limit."""
    limits = []
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _cgroup_folders(controller):
            text = _read(folder / name)
            if text and text.isdigit() and int(text) < 1 << 60:  # v1 writes a huge number for "no limit"
                limits.append(int(text))
    return round(min(limits) / 2**20, 1) if limits else None


def total_memory_mib() -> float | None:
    """Physical memory, MiB."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    except (ValueError, OSError, AttributeError):
        return None


def peak_memory_mib() -> float | None:
    """Largest resident set of this process so far, MiB (VmHWM where /proc has it, getrusage otherwise)."""
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if platform.system() == "Darwin" else 1024), 1)


def cpu_model() -> str | None:
    """Name of the processor as the kernel gives it."""
    fields: dict = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    for key in ("model name", "hardware", "cpu model"):
        if fields.get(key):
            return fields[key]
    return _read("/proc/device-tree/model") or platform.processor() or None


def l4t_release(path: object = "/etc/nv_tegra_release") -> str | None:
    """Release of Jetson Linux, such as "35.4.1" (JetPack 5.1.2); None where this is no Jetson."""
    found = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3})*)", _read(path) or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def nvidia_driver(path: object = "/proc/driver/nvidia/version") -> str | None:
    """Version of NVIDIA's kernel driver, such as "580.159.03"; None without one (a Jetson has none either)."""
    found = re.search(r"Kernel Module\b[^\n]*?\s(\d{3,4}\.\d{1,4}(?:\.\d{1,4})?)\s", _read(path) or "")
    return found.group(1) if found else None


@functools.lru_cache(maxsize=None)
def commit() -> str | None:
    """Commit that this package was built from: recorded at build in ``_commit.txt``, or read from the work tree."""
    package = Path(crispseg.__file__).resolve().parent
    recorded = _read(package / "_commit.txt")
    if recorded:
        return recorded.split()[0]
    if not (package.parent / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@functools.lru_cache(maxsize=None)
def native_isa() -> str | None:
    """Instruction set that the native library chooses here ("avx512", "avx2", "generic"); None without the library."""
    try:
        from crispseg.plugins import loader

        library = loader.load()
        context = library.cs_create(1, None)
        if not context:
            return None
        try:
            return library.cs_isa(context).decode()
        finally:
            library.cs_destroy(context)
    except Exception:  # a report must come out on a machine whose library is missing or broken; doctor says why
        return None


def _cgroup_folders(controller: str) -> list:
    """Folders of this process's control group and its parents: v2 for "", else the named v1 controller."""
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or (parts[1] != "" if controller == "" else controller not in parts[1].split(",")):
            continue
        roots = [_CGROUP] if controller == "" else [_CGROUP / controller, _CGROUP / parts[1]]
        relative = Path(parts[2].lstrip("/"))
        return [root / path for root in roots for path in [relative, *relative.parents] if (root / path).is_dir()]
    return []


def _cpu_mhz() -> float | None:
    khz = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz and khz.isdigit():
        return int(khz) / 1000
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.lower().startswith("cpu mhz"):
            try:
                return float(line.partition(":")[2])
            except ValueError:
                return None
    return None


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _os_name() -> str | None:
    for line in (_read("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return platform.system() or None


def _read(path: object) -> str | None:
    try:
        return Path(str(path)).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None
