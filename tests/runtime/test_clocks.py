from __future__ import annotations

import ctypes.util
import subprocess

import pytest

from crispseg.environment import l4t_release, nvidia_driver
from crispseg.runtime import clocks

# In the forms printed by: an AGX Xavier (L4T 35), an Orin (L4T 36), a TX2 (L4T 32, rails without a unit).
XAVIER = (
    "11-28-2022 15:04:54 RAM 2318/31010MB (lfb 6735x4MB) SWAP 0/15505MB (cached 0MB) CPU [2%@1190,0%@1190,off,off,"
    "0%@1190,0%@1190,1%@1190,0%@1190] EMC_FREQ 1%@2133 GR3D_FREQ 37%@1377 VIC_FREQ 0%@115 APE 150 AUX@33C CPU@35.5C "
    "thermal@33.9C Tboard@34C AO@33C GPU@34C Tdiode@36.75C PMIC@50C CV@-256C GPU 1402mW/1201mW CPU 155mW/155mW "
    "SOC 932mW/932mW CV 0mW/0mW VDDRQ 155mW/155mW SYS5V 1689mW/1689mW"
)
ORIN = (
    "RAM 3456/15388MB (lfb 20x4MB) SWAP 0/7694MB (cached 0MB) CPU [12%@1420,8%@1420,off,off] EMC_FREQ 24%@2133 "
    "GR3D_FREQ 0%@[306,0] cpu@52.5C soc2@50C gpu@51C tj@53.5C VDD_IN 5000mW/5100mW"
)
TX2 = (
    "RAM 2135/7855MB (lfb 1057x4MB) CPU [2%@2035,0%@2035] EMC_FREQ 1%@1866 GR3D_FREQ 0%@1300 APE 150 MTS fg 0% bg 0% "
    "BCPU@30C GPU@29C PLL@30C PMIC@100C VDD_IN 3104/4029 VDD_GPU 145/207"
)
JETSON_CLOCKS = """SOC family:tegra194  Machine:Jetson-AGX
Online CPUs: 0-7
cpu0: Online=1 Governor=schedutil MinFreq=1190400 MaxFreq=2265600 CurrentFreq=1190400 IdleStates: C1=1 c6=1
cpu7: Online=0 Governor=schedutil MinFreq=1 MaxFreq=1 CurrentFreq=1
GPU MinFreq=114750000 MaxFreq=1377000000 CurrentFreq=318750000
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0
Fan: PWM=0
NV Power Mode: MAXN
"""


def test_tegrastats_of_three_boards():
    xavier = clocks.parse_tegrastats(XAVIER)
    assert (xavier["gpu_mhz"], xavier["gpu_load"], xavier["emc_mhz"]) == (1377, 37, 2133)
    assert xavier["cpu_mhz"] == [1190] * 6
    assert xavier["temperature_c"]["GPU"] == 34
    assert "CV" not in xavier["temperature_c"]
    assert xavier["power_mw"] == {"GPU": 1402, "CPU": 155, "SOC": 932, "CV": 0, "VDDRQ": 155, "SYS5V": 1689}
    assert xavier["memory_mib"] == 31010
    orin = clocks.parse_tegrastats(ORIN)
    assert (orin["gpu_mhz"], orin["power_mw"], orin["temperature_c"]["tj"]) == (306, {"VDD_IN": 5000}, 53.5)
    tx2 = clocks.parse_tegrastats(TX2)
    assert (tx2["gpu_mhz"], tx2["power_mw"]) == (1300, {"VDD_IN": 3104, "VDD_GPU": 145})


def test_nvpmodel():
    text = "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n"
    assert clocks.parse_nvpmodel(text) == {"power_mode": "MODE_15W_6CORE", "power_mode_id": 2}
    assert clocks.parse_nvpmodel("NV Power Mode: MAXN\n0") == {"power_mode": "MAXN", "power_mode_id": 0}
    assert clocks.parse_nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W_ALL") == {
        "power_mode": "MODE_30W_ALL"
    }


def test_jetson_clocks():
    free = clocks.parse_jetson_clocks(JETSON_CLOCKS)
    assert free == {"gpu_mhz_range": [114.8, 1377.0], "emc_mhz_range": [204.0, 2133.0], "clocks_locked": False}
    fixed = JETSON_CLOCKS.replace("MinFreq=1190400", "MinFreq=2265600").replace(
        "MinFreq=114750000", "MinFreq=1377000000"
    )
    assert clocks.parse_jetson_clocks(fixed.replace("Override=0", "Override=1"))["clocks_locked"] is True


def test_nvidia_smi():
    text = (
        "NVIDIA H200, 580.159.04, 345, 3201, 1980, 3201, 31, 77.61, 700.00, P0\n"
        "Tesla K80, 470.1, 324, [N/A], 875, 2505, 40, [Not Supported], 149.00, [N/A]\n"
        "a line of something else\n"
    )
    first, second = clocks.parse_nvidia_smi(text)
    assert first == {
        "name": "NVIDIA H200", "driver": "580.159.04", "sm_mhz": 345, "memory_mhz": 3201, "sm_mhz_max": 1980,
        "memory_mhz_max": 3201, "temperature_c": 31, "power_w": 77.61, "power_limit_w": 700, "performance_state": "P0",
    }  # fmt: skip
    assert not {"power_w", "memory_mhz", "performance_state"} & set(second)


@pytest.mark.parametrize(
    "text", ["", "\0\xff" * 50, "GR3D_FREQ @", "NV Power Mode:", "GPU MinFreq=", ",,,,,,,,,", "[" * 5000]
)
def test_odd_text_is_nothing_and_no_error(text):
    assert clocks.parse_tegrastats(text) == {}
    assert clocks.parse_nvpmodel(text) == {}
    assert clocks.parse_jetson_clocks(text) == {}
    assert all(not any(isinstance(v, float) for v in gpu.values()) for gpu in clocks.parse_nvidia_smi(text))


NVML_SOURCE = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 7); return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.1", n); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "GPU of the test", n); return h == (void *)7 ? 0 : 2; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *v) { *v = kind == 1 ? 1980 : 3201; return 0; }
int nvmlDeviceGetTemperature(void *h, int s, unsigned *v) { *v = 41; return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *v) { *v = 512345; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *v) { return 3; }
int nvmlDeviceGetPerformanceState(void *h, int *v) { *v = 0; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *v) { *v = 0x44; return 0; }
"""


def test_nvml_of_an_old_driver(tmp_path):
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(NVML_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    (gpu,) = clocks.read_nvml(str(library))
    assert gpu == {
        "name": "GPU of the test", "sm_mhz": 1980, "memory_mhz": 3201, "temperature_c": 41, "power_w": 512.345,
        "performance_state": "P0", "limited_by": ["power cap", "thermal (hardware)"], "driver": "580.1",
    }  # fmt: skip
    texts = clocks.warnings(None, {"source": "nvml", "gpus": [gpu]})
    assert texts == ["GPU 0: its clocks were held down at the end by: power cap, thermal (hardware)"]


def test_no_nvml():
    assert clocks.read_nvml("libnvidia-ml-which-is-not-there.so") == []
    assert clocks.read_nvml(ctypes.util.find_library("c") or "libc.so.6") == []


def script(folder, name, text):
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_a_jetson(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(clocks, "l4t_release", lambda: "35.4.1")
    script(tmp_path, "nvpmodel", "printf 'NV Power Mode: MODE_30W_ALL\\n3\\n'")
    script(tmp_path, "jetson_clocks", "echo 'Error: Root privilege required' >&2; exit 1")
    script(tmp_path, "tegrastats", f"while true; do echo '{XAVIER}'; sleep 0.1; done")  # never ends by itself
    state = clocks.device_state()
    assert (state["source"], state["power_mode"], state["gpu_mhz"]) == ("tegra", "MODE_30W_ALL", 1377)
    assert any("nvpmodel -m 0" in text for text in clocks.warnings(state, state))


def test_releases(tmp_path):
    release, version = tmp_path / "release", tmp_path / "version"
    release.write_text(
        "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1\n"
    )
    assert l4t_release(release) == "35.4.1"
    assert l4t_release(tmp_path / "absent") is None
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (root@x)\nGCC: 12\n"
    )
    assert nvidia_driver(version) == "580.159.03"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    assert nvidia_driver(version) == "470.57.02"
