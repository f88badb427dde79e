"""The commands: help, mistakes in one line, JSON, reports, and options handed on."""

from __future__ import annotations

import errno
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crispseg
from crispseg import cli
from crispseg.cli import main
from crispseg.errors import AccuracyGate, BundleError, InputError

COMMANDS = ("bases", "export", "run", "refine", "latency", "eval", "fit", "scenes", "verify", "inspect", "doctor")


@pytest.fixture
def fake(monkeypatch):
    """Replaces functions of modules that the commands import: fake("crispseg.runtime.run", run=...)."""

    def replace(name: str, **members: object) -> None:
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return replace


def raising(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: crispseg {command}" in " ".join(text.split())
    assert "--json" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"crispseg {crispseg.__version__}\n"


BAD = [
    ["run"],
    ["nonsense"],
    ["inspect", "/not/there"],
    ["inspect", "/not/there", "--nonsense"],
    ["latency", "/not/there", "--threads", "-1"],
    ["latency", "/not/there", "--threads", "9999"],
    ["latency", "/not/there", "--backend", "abacus"],
    ["eval", "/not/there", "a", "b"],
    ["run", "/not/there", "clip.mp4", "-o", "out"],
    ["scenes", "-n", "0", "-o", "out"],
    ["scenes", "-n", "two", "-o", "out"],
    ["scenes", "-n", "1", "--size", "big", "-o", "out"],
    ["fit", "nonsense", "-o", "out"],
    ["fit", "base", "-o", "out", "--images", "a"],
    ["fit", "base", "-o", "out", "--val-images", "a"],
]


@pytest.mark.parametrize("arguments", BAD, ids=lambda a: " ".join(a))
def test_bad_input_is_one_line_and_exit_code_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("debug", ["0", "1"])
def test_errors_show_no_password(debug, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setenv("CRISPSEG_DEBUG", debug)
    demo = Path(__file__).parents[1] / "demo" / "bundle"
    assert main(["run", str(demo), "rtsp://me:s3cret@127.0.0.1:9/x", "-o", str(tmp_path / "o"), "--json"]) == 2
    captured = capsys.readouterr()
    assert "rtsp://me:***@127.0.0.1:9/x" in captured.err
    assert "s3cret" not in captured.err + captured.out
    assert ("Traceback" in captured.err) == (debug == "1")


@pytest.mark.parametrize("arguments", BAD[2:6], ids=lambda a: " ".join(a))
def test_errors_as_json(arguments, capsys):
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["schema"], document["kind"]) == (1, "error")
    error = document["error"]
    assert error["exit_code"] == 2
    assert captured.err == f"error: {error['message']}\n"


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (BundleError("bundle x: expected a,\n found b"), 2, "expected a, found b"),
        (AccuracyGate("0.5 points lost"), 3, "0.5 points lost"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.png"), 2, "out/a.png: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "pip install torch"),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime.capi"), 2, "pip install onnxruntime"),
        (ModuleNotFoundError("No module named 'crispseg.zzz'", name="crispseg.zzz"), 1, "please report"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
        (ValueError(), 1, "no message"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_exception_is_one_line(error, code, part, fake, capsys):
    fake("crispseg.runtime.describe", describe=raising(error))
    assert main(["inspect", "b"]) == code
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_traceback_on_request(fake, capsys, monkeypatch):
    monkeypatch.setenv("CRISPSEG_DEBUG", "1")
    fake("crispseg.runtime.describe", describe=raising(InputError("x")))
    assert main(["inspect", "b"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_json_is_the_only_thing_on_stdout(fake, capsys):
    def measure(bundle, **options):
        print("a library talks")
        options["progress"](1, 2)
        return {"kind": "latency", "options": {k: v for k, v in options.items() if k != "progress"}, "x": np.float32(1)}

    fake("crispseg.runtime.latency", measure=measure)
    assert main(["latency", "b", "--baseline", "--seconds", "0.5", "--backend", "onnxruntime", "--json"]) == 0
    captured = capsys.readouterr()
    options = json.loads(captured.out)["options"]
    assert (options["baseline"], options["seconds"], options["backend"]) == (True, 0.5, "onnxruntime")
    assert "a library talks" in captured.err


@pytest.mark.parametrize("name", ["r.json", "r.html", "r.HTM"])
def test_report_file(name, fake, capsys, tmp_path):
    fake("crispseg.runtime.latency", measure=lambda bundle, **options: {"kind": "latency", "density": 12.5})
    assert main(["latency", "b", "--report", str(tmp_path / name)]) == 0
    assert "12.5" in (tmp_path / name).read_text()
    assert "12.5" in capsys.readouterr().out


def test_impossible_report_file_is_refused_before_the_work(fake, capsys, tmp_path):
    fake("crispseg.runtime.latency", measure=raising(AssertionError("must not run")))
    (tmp_path / "file").write_text("")
    assert main(["latency", "b", "--report", str(tmp_path / "file" / "r.json")]) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("r.txt", "found the ending .txt"),
        ("r", "found no ending"),
        ("r.csv", ".json"),
        ("bundle.json", "another JSON"),
        ("index.html", "another page"),
    ],  # fmt: skip
)
def test_report_of_another_kind_is_refused_before_the_work(name, part, fake, capsys, tmp_path):
    fake("crispseg.runtime.latency", measure=raising(AssertionError("must not run")))
    (tmp_path / "bundle.json").write_text('{\n "schema": 1,\n "name": "mine"}')
    (tmp_path / "index.html").write_text("<!doctype html><title>My pages</title>")
    assert main(["latency", "b", "--report", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --report")
    assert part in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.json", "index.html"]


def test_report_replaces_a_report(fake, capsys, tmp_path):
    fake("crispseg.runtime.latency", measure=lambda bundle, **options: {"schema": 1, "kind": "latency", "x": 1})
    for before in (None, " ", '{"x": 2}'):
        if before is not None:
            (tmp_path / "r.json").write_text(before)
        assert main(["latency", "b", "--report", str(tmp_path / "r.json")]) == (2 if before == '{"x": 2}' else 0)
    for name in ("new.json", "new.html"):
        assert main(["latency", "b", "--report", str(tmp_path / name)]) == 0
        assert main(["latency", "b", "--report", str(tmp_path / name)]) == 0


def test_interrupted_run_prints_its_report_and_exits_130(fake, capsys):
    fake("crispseg.runtime.run", run=lambda *a, **k: {"kind": "run", "interrupted": True, "save": k["save"]})
    assert main(["run", "b", "clip.mp4", "-o", "out", "--save", "labels,color", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["save"] == "labels,color"


def test_disagreement_is_exit_code_3(fake):
    fake("crispseg.export.verify", verify_bundle=lambda *a, **k: {"kind": "verify", "passed": False})
    assert main(["verify", "b"]) == 3


def test_export_hands_its_options_on(fake, capsys):
    seen = {}

    def export_bundle(base, out, **options):
        seen.update(options, base=base, out=str(out))
        options["progress"]("load")

    fake("crispseg.export.project", export_bundle=export_bundle)
    fake("crispseg.runtime.describe", describe=lambda path: {"kind": "inspect", "path": str(path)})
    command = "export small --random-weights --size 64x96 --classes camvid -o b --json"
    assert main([*command.split(), "--refiner", "none"]) == 0
    assert seen["refiner"] is None
    capsys.readouterr()
    assert main([*command.split(), "--planes", "8,16"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kind": "export", "path": "b"}
    assert (seen["height"], seen["width"], seen["refiner"], seen["classes"]) == (64, 96, "sparserefine", "camvid")
    assert seen["refiner_settings"] == {"planes": (8, 16), "repeats": (2, 2)}


@pytest.mark.parametrize("command", ["export small -o b", "verify b", "fit base -o b"])
def test_host_commands_say_which_python_they_need(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    assert main(command.split()) == 2
    assert "needs Python 3.10 or newer, found 3.8" in capsys.readouterr().err


def test_fit_hands_its_options_on(fake, capsys, monkeypatch):
    pytest.importorskip("torch")
    got = []

    def fit_refiner(options, report):
        got.append(options)
        report({"step": 1, "steps": 2, "loss": 0.5})
        report({"step": 2, "steps": 2, "validation": {"miou": 40.0}})
        return {"miou": 40.0}

    fake("crispseg.fit.refine", fit_refiner=fit_refiner)
    command = "fit refiner -o r --images a --labels b --images c --labels d --size 64x96 --classes camvid --steps 2"
    assert main([*command.split(), "--planes", "8,16", "--base", "base.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == 40.0
    [options] = got
    assert [[str(p) for p in pair] for pair in options.folders] == [["a", "b"], ["c", "d"]]
    assert (options.height, options.width, options.num_classes, options.steps) == (64, 96, 11, 2)
    assert (options.planes, options.repeats) == ((8, 16), (1, 1))


def test_scenes_writes_images_and_labels(capsys, tmp_path):
    assert main(["scenes", "-n", "2", "--size", "64x96", "-o", str(tmp_path / "s"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["count"] == 2
    label = np.asarray(Image.open(sorted((tmp_path / "s" / "labels").iterdir())[0]))
    assert label.shape == (64, 96)


@pytest.mark.parametrize("text", ["", "10", "0x5", "ax5", "5x6x7", "-1x5"])
def test_size_refuses(text):
    with pytest.raises(InputError, match="--size"):
        cli.parse_size(text)


def test_size_and_integers():
    assert cli.parse_size("1024X2048") == (1024, 2048)
    assert cli.parse_integers("8, 16,", "--planes") == (8, 16)
    with pytest.raises(InputError, match="--planes"):
        cli.parse_integers("8,x", "--planes")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_terminal_cannot_show(encoding, fake, capsys, monkeypatch):
    fake(
        "crispseg.runtime.latency", measure=lambda bundle, **options: {"kind": "latency", "input": "Stra\u00dfe\udcff"}
    )
    for arguments in (["latency", "b"], ["latency", "b", "--json"]):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert main(arguments) == 0
        text = raw.getvalue().decode(encoding)
        assert "Stra" in text
    assert json.loads(text)["input"] == "Stra\u00dfe\udcff"
    assert capsys.readouterr().err == ""


def test_no_endless_measurement(capsys):
    assert main(["latency", "b", "--seconds", "inf"]) == 2
    assert "--seconds" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_costs_no_result(fake, capsys, tmp_path):
    """The disk is full after minutes of work: the result is printed all the same, as one document."""

    def measure(bundle, **options):
        (tmp_path / "r.json.partial").mkdir()  # in the way of the report
        return {"kind": "latency", "density": 12.5}

    fake("crispseg.runtime.latency", measure=measure)
    for arguments in (["--json"], []):
        assert main(["latency", "b", "--report", str(tmp_path / "r.json"), *arguments]) == 2
        captured = capsys.readouterr()
        assert "12.5" in captured.out
        assert "cannot write the report" in captured.err
        if arguments:
            assert json.loads(captured.out)["density"] == 12.5
        (tmp_path / "r.json.partial").rmdir()


def test_advice_names_this_very_interpreter(fake, capsys, monkeypatch):
    fake("crispseg.runtime.describe", describe=raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["inspect", "b"]) == 2
    assert f"run: {sys.executable} -m pip install torch" in capsys.readouterr().err
