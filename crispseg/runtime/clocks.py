"""Clocks, temperature and power of the GPUs at one moment: what makes two GPU measurements comparable.

Desktop: NVML through ctypes, else the nvidia-smi program. Jetson (its NVML, where there is one, knows no clocks):
nvpmodel, jetson_clocks and tegrastats. Every source is optional and its text untrusted: what is absent or reads oddly
is left out, nothing raises. Not yet run on a Jetson.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
from ctypes import byref, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from crispseg.environment import l4t_release

NVML = "libnvidia-ml.so.1"
MOST_GPUS = 16
_SECONDS = 5.0  # for each program
_SM, _MEMORY = 1, 2  # nvmlClockType_t
# Bits of nvmlClocksEventReasons (before driver 535: ...ThrottleReasons); same values.
_REASONS = (
    (0x001, "idle"),
    (0x002, "application clocks"),
    (0x004, "power cap"),
    (0x008, "hardware slowdown"),
    (0x010, "sync boost"),
    (0x020, "thermal (software)"),
    (0x040, "thermal (hardware)"),
    (0x080, "power brake"),
    (0x100, "display clocks"),
)
# Column of nvidia-smi -> (entry, is it a number)
_SMI = (
    ("name", "name", False),
    ("driver_version", "driver", False),
    ("clocks.sm", "sm_mhz", True),
    ("clocks.mem", "memory_mhz", True),
    ("clocks.max.sm", "sm_mhz_max", True),
    ("clocks.max.mem", "memory_mhz_max", True),
    ("temperature.gpu", "temperature_c", True),
    ("power.draw", "power_w", True),
    ("power.limit", "power_limit_w", True),
    ("pstate", "performance_state", False),
)


def device_state() -> Optional[Dict[str, Any]]:
    """Clocks (MHz), temperatures (C), power (W; Jetson rails mW) and power mode of this machine's GPUs now.

    Returns:
        {"source": "nvml" | "nvidia-smi" | "tegra", ...} with "gpus" (desktop) or the entries of the Jetson, or None
        when nothing of NVIDIA answers.
    """
    if l4t_release():
        state = _tegra()
        if len(state) > 1:
            return state
    gpus = read_nvml()
    if gpus:
        return {"source": "nvml", "gpus": gpus}
    text = _run("nvidia-smi", "--query-gpu=" + ",".join(c for c, _, _ in _SMI), "--format=csv,noheader,nounits")
    gpus = parse_nvidia_smi(text or "")
    return {"source": "nvidia-smi", "gpus": gpus} if gpus else None


def warnings(before: Optional[Dict[str, Any]], after: Optional[Dict[str, Any]]) -> List[str]:
    """What in two states (before and after a measurement) makes its times doubtful, in words."""
    texts = []
    for state in (after,):
        for number, gpu in enumerate((state or {}).get("gpus", ())):
            limits = [reason for reason in gpu.get("limited_by", ()) if reason not in ("idle", "application clocks")]
            if limits:
                texts.append("GPU %d: its clocks were held down at the end by: %s" % (number, ", ".join(limits)))
    modes = [(state or {}).get("power_mode") for state in (before, after)]
    if modes[0] != modes[1]:
        texts.append("the power mode changed during the measurement: %s, then %s" % (modes[0], modes[1]))
    state = after or {}
    if state.get("source") == "tegra":
        if not str(state.get("power_mode", "")).startswith("MAXN"):
            texts.append(
                "power mode %s: the fastest is MAXN (sudo nvpmodel -m 0)" % (state.get("power_mode") or "unknown")
            )
        if state.get("clocks_locked") is False:
            texts.append("clocks follow the load: fix them with sudo jetson_clocks before measuring")
    return texts


# ---- desktop ----------------------------------------------------------------------------------------------------


def read_nvml(name: str = NVML) -> List[Dict[str, Any]]:
    """One record a GPU through NVML; empty when the library is absent or refuses."""
    try:
        library = ctypes.CDLL(name)
        if library.nvmlInit_v2():
            return []
    except (OSError, AttributeError):
        return []
    try:
        count = c_uint()
        if library.nvmlDeviceGetCount_v2(byref(count)):
            return []
        driver = ctypes.create_string_buffer(96)
        has_driver = library.nvmlSystemGetDriverVersion(driver, 96) == 0
        gpus = []
        for index in range(min(count.value, MOST_GPUS)):
            handle = c_void_p()
            if library.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(handle)) == 0:
                gpu = _nvml_gpu(library, handle)
                if has_driver:
                    gpu["driver"] = driver.value.decode("utf-8", "replace")
                gpus.append(gpu)
        return gpus
    except AttributeError:
        return []
    finally:
        with contextlib.suppress(AttributeError):
            library.nvmlShutdown()


def _nvml_gpu(library: Any, handle: c_void_p) -> Dict[str, Any]:
    gpu: Dict[str, Any] = {}
    name = ctypes.create_string_buffer(96)
    if library.nvmlDeviceGetName(handle, name, 96) == 0:
        gpu["name"] = name.value.decode("utf-8", "replace")

    def number(entry: str, function: str, *before: Any, scale: float = 1.0) -> None:
        value = c_uint()
        # A function that the installed library lacks, or a value that the GPU lacks (a status other than 0).
        with contextlib.suppress(AttributeError):
            if getattr(library, function)(handle, *before, byref(value)) == 0:
                gpu[entry] = round(value.value * scale, 3) if scale != 1.0 else value.value

    number("sm_mhz", "nvmlDeviceGetClockInfo", c_int(_SM))
    number("memory_mhz", "nvmlDeviceGetClockInfo", c_int(_MEMORY))
    number("sm_mhz_max", "nvmlDeviceGetMaxClockInfo", c_int(_SM))
    number("memory_mhz_max", "nvmlDeviceGetMaxClockInfo", c_int(_MEMORY))
    number("temperature_c", "nvmlDeviceGetTemperature", c_int(0))
    number("power_w", "nvmlDeviceGetPowerUsage", scale=1e-3)
    number("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit", scale=1e-3)
    number("performance_state", "nvmlDeviceGetPerformanceState")
    if "performance_state" in gpu:
        gpu["performance_state"] = "P%d" % gpu["performance_state"]
    reasons = c_ulonglong()
    for function in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        with contextlib.suppress(AttributeError):
            if getattr(library, function)(handle, byref(reasons)) == 0:
                gpu["limited_by"] = [text for bit, text in _REASONS if reasons.value & bit]
                break
    return gpu


def parse_nvidia_smi(text: str) -> List[Dict[str, Any]]:
    """Records from ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits`` (columns of ``_SMI``)."""
    gpus = []
    for line in text.splitlines()[:MOST_GPUS]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_SMI):
            continue
        gpu: Dict[str, Any] = {}
        for cell, (_, entry, is_number) in zip(cells, _SMI):
            if is_number:
                value = _number(cell)
                if value is not None:
                    gpu[entry] = value
            elif cell and not cell.startswith("["):  # [N/A], [Not Supported]
                gpu[entry] = cell
        gpus.append(gpu)
    return gpus


# ---- Jetson -----------------------------------------------------------------------------------------------------


def _tegra() -> Dict[str, Any]:
    state: Dict[str, Any] = {"source": "tegra"}
    state.update(parse_nvpmodel(_run("nvpmodel", "-q") or ""))
    state.update(parse_jetson_clocks(_run("jetson_clocks", "--show") or ""))  # answers root only
    line = _first_line("tegrastats", "--interval", "100")
    state.update(parse_tegrastats(line or ""))
    if "gpu_mhz" not in state:
        state.update(_devfreq(Path("/sys/class/devfreq")))
    return state


def parse_nvpmodel(text: str) -> Dict[str, Any]:
    """``nvpmodel -q``: {"power_mode", "power_mode_id"}; what the text does not say is left out."""
    found = re.search(r"NV Power Mode:[ \t]*([\w.+-]{1,64})[ \t]*(?:\r?\n[ \t]*(\d{1,3})[ \t]*$)?", text, re.MULTILINE)
    if not found:
        return {}
    result: Dict[str, Any] = {"power_mode": found.group(1)}
    if found.group(2):
        result["power_mode_id"] = int(found.group(2))
    return result


def parse_jetson_clocks(text: str) -> Dict[str, Any]:
    """``jetson_clocks --show``: clock ranges {"gpu_mhz_range", "emc_mhz_range"} and "clocks_locked"."""
    result: Dict[str, Any] = {}
    locked = []
    for line in text.splitlines():
        found = re.match(
            r"\s*(GPU|EMC|cpu\d+)\b.*?MinFreq=(\d{1,12}).*?MaxFreq=(\d{1,12}).*?CurrentFreq=(\d{1,12})", line
        )
        if not found:
            continue
        part, low, high = found.group(1), int(found.group(2)), int(found.group(3))
        if part in ("GPU", "EMC"):  # Hz; the CPUs are in kHz
            result[part.lower() + "_mhz_range"] = [round(low / 1e6, 1), round(high / 1e6, 1)]
        if part == "EMC":
            override = re.search(r"FreqOverride=(\d)", line)
            locked.append(override.group(1) == "1" if override else low == high)
        elif "Online=0" not in line:
            locked.append(low == high)
    if locked:
        result["clocks_locked"] = all(locked)
    return result


def parse_tegrastats(line: str) -> Dict[str, Any]:
    """One line of ``tegrastats``: clocks, loads, temperatures {zone: C} and power {rail: mW, now}.

    Xavier and Orin, L4T 32 to 36: "GR3D_FREQ 0%@318" or "0%@[306,0]"; rails "VDD_IN 3528mW/3569mW" or "3528/3569".
    """
    result: Dict[str, Any] = {}
    memory = re.search(r"\bRAM (\d{1,9})/(\d{1,9})MB", line)
    if memory:
        result["memory_used_mib"], result["memory_mib"] = int(memory.group(1)), int(memory.group(2))
    cpus = re.search(r"\bCPU \[([^\]]{1,400})\]", line)
    if cpus:
        result["cpu_mhz"] = [int(mhz) for mhz in re.findall(r"\d{1,3}%@(\d{1,5})", cpus.group(1))]
    for entry, field in (("emc", "EMC_FREQ"), ("gpu", "GR3D_FREQ")):
        found = re.search(r"\b%s (\d{1,3})%%(?:@\[?(\d{1,5}))?" % field, line)
        if found:
            result[entry + "_load"] = int(found.group(1))
            if found.group(2):
                result[entry + "_mhz"] = int(found.group(2))
    zones = re.findall(r"(?:^|\s)([A-Za-z]\w{0,20})@(-?\d{1,3}(?:\.\d{1,4})?)C\b", line)
    # A zone that is switched off reads -256 C.
    temperatures = {name: float(value) for name, value in zones if -60 < float(value) < 200}
    if temperatures:
        result["temperature_c"] = temperatures
    rails = re.findall(r"(?:^|\s)([A-Z][A-Za-z0-9_]{1,24}) (\d{1,6})(?:mW)?/(\d{1,6})(?:mW)?(?=\s|$)", line)
    power = {name: int(now) for name, now, _ in rails if name not in ("RAM", "SWAP", "IRAM")}
    if power:
        result["power_mw"] = power
    return result


def _devfreq(root: Path) -> Dict[str, Any]:
    """The GPU's clock from sysfs (gv11b: Xavier, ga10b: Orin)."""
    with contextlib.suppress(OSError, ValueError):
        for folder in sorted(root.iterdir()):
            if re.search(r"gv11b|ga10b|gp10b|\.gpu$", folder.name):
                return {"gpu_mhz": round(int((folder / "cur_freq").read_text()) / 1e6)}
    return {}


# ---- programs ---------------------------------------------------------------------------------------------------


def _run(program: str, *arguments: str) -> Optional[str]:
    """What the program prints, or None when it is absent, fails or does not end."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _first_line(program: str, *arguments: str) -> Optional[str]:
    """First line of a program that prints on and on; it is ended then."""
    path = shutil.which(program)
    if path is None:
        return None
    command: Tuple[str, ...] = (path, *arguments)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    timer = _killer(process)
    try:
        assert process.stdout is not None
        return process.stdout.readline(65536).decode("utf-8", "replace") or None
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def _killer(process: Any) -> Any:
    import threading

    timer = threading.Timer(_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _number(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None
