from __future__ import annotations

import shutil
import subprocess
import sys
import types

import pytest

from crispseg.runtime import doctor, doctor_gpu


def test_every_failed_check_has_a_fix_and_every_use_is_judged(monkeypatch):
    answers = {doctor._PROBES["onnxruntime"]: (True, "1.2, providers: CPUExecutionProvider")}
    monkeypatch.setattr(doctor, "probe", lambda code: answers.get(code, (False, "not installed")))
    checks = doctor.diagnose()
    assert {"name", "ok", "found", "fix"} <= set(checks[0])
    assert all(check["fix"] for check in checks if not check["ok"])
    can = {item["what"]: item for item in doctor.abilities(checks)}
    assert not any(item["ok"] for item in can.values())
    assert can["video files and RTSP"]["missing"] == ["video (PyAV, libx264)"]


def test_cpu_alone_is_enough_for_run(monkeypatch):
    gpu = {doctor._PROBES["CUDA driver"], doctor._PROBES["TensorRT"]}
    monkeypatch.setattr(doctor, "probe", lambda code: (code not in gpu, "1.0, providers: CPUExecutionProvider"))
    report = doctor.examine()
    assert report["ok"] is True
    makes = [] if sys.version_info >= (3, 10) else ["export and verify", "fit"]
    assert [item["what"] for item in report["can"] if not item["ok"]] == [
        "GStreamer pipelines (CSI cameras)",
        *makes,
        "base on a GPU (--provider CUDAExecutionProvider)",
        "run on a GPU without TensorRT (--backend cuda)",
        "TensorRT engines (crispseg build, --backend tensorrt)",
        "the refiner as a TensorRT engine too (--refiner-engine)",
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("found = '1.0'", (True, "1.0")),
        ("import not_there_at_all", (False, "not installed")),
        ("raise RuntimeError('a\\nb')", (False, "RuntimeError: a b")),
        ("import os; os.kill(os.getpid(), 4)", (False, "crashes when loaded: SIGILL (built for another CPU?)")),
        ("import os; os._exit(7)", (False, "ends with exit code 7 when loaded")),
        ("print('noise'); found = 'x'", (True, "x")),
    ],
)
def test_probe(code, expected):
    assert doctor.probe(code) == expected


def test_probe_gives_up():
    assert doctor.probe("import time; time.sleep(20)", seconds=0.2)[0] is False


# ---- GPUs -------------------------------------------------------------------------------------------------------

KERNELS, COMPILER = "CUDA kernels", "CUDA compiler (nvcc or NVRTC)"


def examine(monkeypatch, **found):
    """Checks by name with every probe answered: "name with _ for blanks": (ok, found); all others are fine."""
    answers = {doctor._PROBES[name]: answer for name, answer in found.items()}
    monkeypatch.setattr(doctor, "probe", lambda code: answers.get(code, (True, "1.0, CUDAExecutionProvider")))
    checks = doctor.diagnose()
    return {check["name"]: check for check in checks}, {can["what"]: can for can in doctor.abilities(checks)}


def test_a_library_without_an_image_needs_nvrtc(monkeypatch):
    use = "run on a GPU without TensorRT (--backend cuda)"
    bare = (True, "libcrispseg_cuda.so, crispseg cuda, ABI 2, no kernels inside, no image")
    checks, can = examine(monkeypatch, **{KERNELS: bare, COMPILER: (True, "NVRTC 12.6 at libnvrtc.so.12")})
    assert checks[KERNELS]["ok"]
    assert "crispseg build" in checks[KERNELS]["found"]
    assert can[use]["ok"]
    checks, can = examine(monkeypatch, **{KERNELS: bare, COMPILER: (False, "neither found")})
    assert not checks[KERNELS]["ok"]
    assert "crispseg[cuda]" in checks[KERNELS]["fix"]
    assert can[use]["missing"] == [KERNELS]
    checks, _ = examine(monkeypatch, **{KERNELS: bare, COMPILER: (True, "nvcc 12.6 at /usr/bin/nvcc")})
    assert "nvcc is here now" in checks[KERNELS]["fix"]
    linked = (True, "libcrispseg_cuda.so, crispseg cuda, ABI 2, kernels for 75 86 (image of 900 KiB)")
    checks, _ = examine(monkeypatch, **{KERNELS: linked, COMPILER: (False, "neither found")})
    assert checks[KERNELS]["ok"]
    assert checks[KERNELS]["fix"] is None


def test_a_gpu_that_is_too_old_is_named_with_the_way_out(monkeypatch):
    found = "libcrispseg_cuda.so, no image | Tesla P4: expected compute capability 7.2 or higher, found 6.1"
    probed = (False, found + " [fix: use --backend native")
    checks, can = examine(monkeypatch, **{KERNELS: probed, COMPILER: (True, "NVRTC 12.6 at libnvrtc.so.12")})
    assert (checks[KERNELS]["found"], checks[KERNELS]["fix"]) == (found, "use --backend native")
    use = can["run on a GPU without TensorRT (--backend cuda)"]
    assert use["missing"] == [KERNELS]
    assert "found 6.1" in use["why"]


def test_only_an_engine_of_the_refiner_needs_the_plugin(monkeypatch):
    missing = (False, "EnvironmentMismatch: TensorRT plugin library: expected libcrispseg_tensorrt.so, found none")
    checks, can = examine(monkeypatch, **{"TensorRT plugin": missing})
    assert can["TensorRT engines (crispseg build, --backend tensorrt)"]["ok"]
    use = can["the refiner as a TensorRT engine too (--refiner-engine)"]
    assert use["missing"] == ["TensorRT plugin"]
    assert "TensorRT_ROOT" in checks["TensorRT plugin"]["fix"]
    assert "JetPack" not in checks  # no Jetson


def test_what_a_message_begins_with_is_not_said_twice(monkeypatch):
    missing = (False, "CUDA driver: expected libcuda.so.1, found none")
    checks, _ = examine(monkeypatch, **{"CUDA driver": missing})
    assert checks["CUDA driver"]["found"] == "expected libcuda.so.1, found none"


def test_the_plugin_says_which_tensorrt_it_serves(tmp_path, monkeypatch):
    source = tmp_path / "plugin.c"
    source.write_text(
        'const char *crispseg_plugin_info(void) { return "{\\"tensorrt\\": \\"11.1.0\\", \\"shell\\": '
        '\\"IPluginV3\\", \\"ops\\": 8, \\"cuda\\": \\"kernels for 86\\"}"; }'
    )
    library = tmp_path / "libcrispseg_tensorrt.so"
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setenv("CRISPSEG_TENSORRT_LIBRARY", str(library))
    code = doctor_gpu.PROBES["TensorRT plugin"].replace("import tensorrt", "import tensorrt_is_not_here")
    ok, found = doctor.probe(code)
    assert ok
    assert found == "%s, for TensorRT 10 and 11 (headers of 11.1.0), 8 ops, kernels for 86" % library


def test_jetson(monkeypatch, tmp_path):
    installed = {"python3-libnvinfer": "8.5.2-1+cuda11.4", "cuda-nvcc-11-4": "11.4.315-1"}
    monkeypatch.setattr(doctor_gpu, "_packages", lambda names: installed)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.8.10\n")
    jetpack, packages, venv = doctor_gpu.jetpack_checks(False, "35.4.1", str(tmp_path))
    assert jetpack["ok"]
    assert jetpack["found"].startswith("5.1.2 (Jetson Linux 35.4.1)")
    assert packages["fix"].endswith("sudo apt install libnvinfer-dev cuda-nvrtc-11-4 cuda-cudart-dev-11-4")
    assert not venv["ok"]
    assert "--system-site-packages" in venv["fix"]
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    assert doctor_gpu.jetpack_checks(False, "35.4.1", str(tmp_path))[2]["ok"]
    assert not doctor_gpu.jetpack_checks(False, "32.7.1", str(tmp_path))[0]["ok"]
    assert doctor_gpu.jetpack_checks(True, "35.9.9", str(tmp_path / "none"))[2]["found"] == "the system's Python"


def test_fixes_on_a_jetson(monkeypatch):
    monkeypatch.setattr(doctor_gpu, "l4t_release", lambda: "35.4.1")
    fixes = doctor_gpu.fixes("pip install ")
    assert fixes["TensorRT"].startswith("sudo apt install tensorrt python3-libnvinfer")
    assert "cuda-nvrtc-11-4" in fixes[COMPILER]
    assert set(fixes) == set(doctor_gpu.PROBES)


def test_installed_packages():
    found = doctor_gpu._packages(("dpkg", "no-such-package-at-all"))
    assert found is None or list(found) in (["dpkg"], [])


def test_gpu_probes_run_here_without_a_crash(monkeypatch):
    monkeypatch.setenv("CRISPSEG_LIBCUDA", "libcuda-that-is-not-there.so")
    ok, found = doctor.probe(doctor_gpu.PROBES["CUDA driver"])
    assert not ok
    assert found.startswith("CUDA driver: expected libcuda-that-is-not-there.so, found none")
    assert "install" not in found
    for name in (COMPILER, KERNELS, "TensorRT plugin"):
        ok, found = doctor.probe(doctor_gpu.PROBES[name])
        assert "SyntaxError" not in found
        assert "NameError" not in found
        assert found


@pytest.mark.parametrize("built", ["YES", "NO"])
def test_cameras_are_no_pipelines(monkeypatch, built):
    """pip's OpenCV opens cameras and has no GStreamer."""
    answers = {doctor._PROBES["camera (OpenCV)"]: (True, f"cv2 4.10.0, GStreamer: {built}, v4l/v4l2: YES")}
    monkeypatch.setattr(doctor, "probe", lambda code: answers.get(code, (True, "1.0")))
    checks = doctor.diagnose()
    can = {item["what"]: item["ok"] for item in doctor.abilities(checks)}
    assert can["cameras"]
    assert can["GStreamer pipelines (CSI cameras)"] is (built == "YES")
    assert all(check["fix"] for check in checks if not check["ok"])


def test_an_old_python_runs_bundles_and_makes_none(monkeypatch):
    """On Python 3.8 PyTorch may be there; export refuses all the same."""
    monkeypatch.setattr(doctor, "probe", lambda code: (True, "1.0, providers: CPUExecutionProvider"))
    monkeypatch.setattr(doctor, "sys", types.SimpleNamespace(version_info=(3, 8, 10), executable=sys.executable))
    checks = doctor.diagnose()
    uses = {use["what"]: use for use in doctor.abilities(checks)}
    assert uses["run, latency, eval (native engine)"]["ok"]
    for what in ("export and verify", "fit"):
        assert uses[what]["missing"] == ["Python 3.10 (export, fit, verify)"]
    assert next(check["fix"] for check in checks if check["name"].startswith("Python 3.10")) is not None
