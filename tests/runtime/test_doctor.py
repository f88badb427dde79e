from __future__ import annotations

import pytest

from crispseg.runtime import doctor


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
    assert [item["what"] for item in report["can"] if not item["ok"]] == [
        "base on a GPU (--provider CUDAExecutionProvider)"
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
