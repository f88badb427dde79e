"""The command line as a program: terminals, pipes, closed streams, Ctrl-C, what an import sends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from crispseg import cli_output
from crispseg.cli import main

COMMANDS = ("bases", "export", "run", "refine", "latency", "eval", "fit", "scenes", "verify", "inspect", "doctor")


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli_output.progress_bar("work") as progress:
        progress(1, 3, "text")
        progress(0.5, 2.0)
        progress(text="only")
    assert capsys.readouterr().out == ""


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "crispseg", *arguments], capture_output=True, text=True, **options)


def test_as_a_program():
    assert command("--version").stdout.startswith("crispseg ")
    done = command("inspect", "/not/there")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_closed_pipe_is_silent():
    line = f"{sys.executable} -m crispseg run --help | head -c 1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr


def test_ctrl_c_before_the_work_begins(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_output, "execute", interrupted)
    assert main(["scenes", "-n", "1", "-o", "x", "--json"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "error: interrupted\n"
    assert json.loads(captured.out)["error"]["exit_code"] == 130


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch, capsys):
    from crispseg import __main__

    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "crispseg.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "crispseg.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_without_the_packages_of_the_command_line(monkeypatch, capsys):
    from crispseg import __main__

    for name in [name for name in sys.modules if name == "typer" or name.startswith(("typer.", "crispseg.cli"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert __main__.main() == 2
    assert capsys.readouterr().err.endswith("found no typer; pip install typer rich numpy\n")


def test_onnxruntime_keeps_no_identity_and_sends_nothing(tmp_path):
    pytest.importorskip("onnxruntime")
    program = "import crispseg, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    for given, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              env={**kept, "HOME": str(tmp_path), **given})  # fmt: skip
        assert done.stdout.strip() == wanted, done.stderr
        if not given:
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    """As services start programs: no traceback, and no library prints into a file of ours."""
    line = f"{sys.executable} -m crispseg scenes -n 2 --size 32x32 --video -o s {closed}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "s" / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    done = subprocess.run(
        f"{sys.executable} -m crispseg inspect x {closed}", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
