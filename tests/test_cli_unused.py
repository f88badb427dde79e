"""Options that a choice has no use for, and parts that a bundle lacks: refused, never silently ignored."""

from __future__ import annotations

import types

import pytest

from crispseg import cli
from crispseg.cli import main
from crispseg.cli_build import require_parts
from crispseg.cli_unused import BUILD, FIT, of_backend, of_build, of_pictures, of_training
from crispseg.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("run b clip.mp4 -o out --device 0", "--device: expected --backend cuda or tensorrt with it, found native"),
        ("latency b --device 1 --backend onnxruntime", "found onnxruntime"),
        ("eval b i l --device 1", "--device"),
        ("refine b i m -o out --device 1", "--device: expected --backend tensorrt with it, found auto"),
        ("refine b i m -o out --backend tensorrt --threads 2", "--threads: expected --backend native or onnxruntime"),
        ("eval-masks i m g --ignore-exif", "--ignore-exif: expected -o with it"),
        ("run b clip.mp4 -o out --backend cuda --provider CPUExecutionProvider", "--provider: expected --backend"),
        ("eval b i l --backend tensorrt --threads 2", "--threads: expected --backend native or onnxruntime with it"),
        ("run b clip.mp4 -o out --save labels --alpha 0.3", "--alpha: expected overlay in --save, found labels"),
        ("run b clip.mp4 -o out --save color --legend", "--legend"),
        ("fit base -o out --scenes 4 --features rgb", "--features: belongs to crispseg fit refiner, found fit base"),
        ("fit refiner -o out --scenes 4 --stride 4", "--stride: belongs to crispseg fit base"),
        ("export small --refiner none --planes 8 -o out", "--planes: expected a refiner"),
        ("build b --backend native --device 1", "--device: expected --backend cuda or tensorrt with it, found native"),
        ("build b --backend native --workspace 99", "--workspace: expected --backend tensorrt with it, found native"),
        ("build b --backend native --dla 0", "--dla"),
        ("build b --backend native --baseline", "--baseline: expected --backend cuda or tensorrt with it"),
        ("build b --backend cuda --profile 1,1,1", "--profile: expected --backend tensorrt with it, found cuda"),
        ("build b --backend cuda --no-refiner-engine", "--refiner-engine"),
        ("build b --deterministic", "--deterministic: expected --backend native with it, found tensorrt"),
        ("build b --no-refiner-engine --capacity 9", "--capacity: expected the refiner's engine with it"),
        ("calibrate b i -o out --scan-frames 3", "--scan-frames: expected --scan with it"),
        ("calibrate b i --scan --force", "--force"),
        ("calibrate b i --scan --gate-frames 9", "--gate-frames: expected --scan-frames instead"),
        ("calibrate b i --check-fp16 --method minmax", "--method: expected int8, found --check-fp16"),
        ("calibrate b i --check-fp16 --networks base", "--networks"),
        ("calibrate b i --scan --plot x.png", "--plot x.png: expected FILE.svg, found the ending .png"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(arguments, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_refused_options_are_those_of_the_command():
    """A name that no command has would never be refused."""
    commands = cli.typer.main.get_command(cli.app).commands
    for command, tables in {
        "run": [of_backend("cuda"), of_backend("native"), of_pictures(())],
        "latency": [of_backend("cuda"), of_backend("native")],
        "eval": [of_backend("cuda"), of_backend("native")],
        "build": [of_build(backend) for backend in BUILD],
        "fit": [of_training(what, True) for what in FIT],
    }.items():
        known = {parameter.name for parameter in commands[command].params}
        assert {name for table in tables for name in table} <= known


@pytest.mark.parametrize(("baseline", "refiner"), [(True, False), (False, True)])
def test_a_part_that_is_asked_for_is_not_left_out_silently(baseline, refiner):
    parts = types.SimpleNamespace(path="b", baseline=None, refiner=None)
    with pytest.raises(InputError, match="bundle b: expected a %s for --" % ("baseline" if baseline else "refiner")):
        require_parts(parts, baseline, refiner)
    require_parts(parts, False, False)
    parts.baseline = parts.refiner = "there"
    require_parts(parts, True, True)
