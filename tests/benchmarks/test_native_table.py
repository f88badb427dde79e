"""The table of benchmarks/native.py: what counts as reached, and when another benchmark's result is taken."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def native(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("native")
    sys.modules.pop("native", None)


def test_rows(native):
    table = native.Table()
    table.add("rate", 1.25, 1.2512345)
    table.add("rate", 1.25, 1.249)
    table.add("share", 1.0, 1.2, most=True)
    table.add("share", 1.0, 0.4, "why", most=True)
    table.add("peer", 2.0, None, "is not installed")
    assert [row["ok"] for row in table.rows] == [True, False, False, True, None]
    assert table.rows[0]["measured"] == 1.251
    assert table.rows[4] == {"item": "peer", "target": 2.0, "measured": None, "ok": None, "note": "is not installed"}


def test_results_newer_than_the_library_are_taken(native, monkeypatch, tmp_path):
    library, ran = tmp_path / "lib.so", []
    library.write_bytes(b"")
    monkeypatch.setattr(native, "OUT", tmp_path)
    monkeypatch.setattr(native.loader, "candidates", lambda: [library])

    def run(command, **_):
        ran.append(command)
        (tmp_path / "front_end.json").write_text(json.dumps({"run": len(ran)}))
        return type("Result", (), {"returncode": 0})

    monkeypatch.setattr(native.subprocess, "run", run)
    assert native.other_benchmark("front_end") == {"run": 1}  # there was none
    os.utime(library, (1, 1))
    assert native.other_benchmark("front_end") == {"run": 1}
    os.utime(tmp_path / "front_end.json", (0, 0))
    assert native.other_benchmark("front_end") == {"run": 2}
    assert "front_end.py" in ran[0][1]


def test_missing_peers_say_why(native, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in native.peers.square_matmul()
