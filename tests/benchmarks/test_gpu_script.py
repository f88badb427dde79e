"""``make gpu`` without a GPU: its parts, how it takes failures, and the whole script on the emulated driver."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu import building, checks, layers, rivals, run, sections_build, settings, structure, summary  # noqa: E402

from crispseg.plugins.loader import Native  # noqa: E402

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'csk_conv_f16_mma_128x64' for 'sm_90'
ptxas info    : Function properties for csk_conv_f16_mma_128x64
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 165 registers, used 1 barriers, 760 bytes cmem[0]
ptxas info    : Compiling entry function 'csk_conv_f32' for 'sm_90'
    16 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 17024 bytes smem
"""


def test_structure_is_that_of_the_network():
    torch = pytest.importorskip("torch")
    from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner
    from crispseg.models.refiners.unet import RowConv

    planes = (4, 6, 10)
    module = SparseRefiner(SparseRefineConfig(num_classes=5, planes=planes, repeats=2))
    kernels = [m.kernel for m in module.modules() if isinstance(m, RowConv)]
    theirs = Counter((k.shape[0] if k.dim() == 3 else 1, *k.shape[-2:]) for k in kernels)
    theirs[(1, *module.classifier.weight.shape[::-1])] += 1
    found = structure.layers(planes, 2, 3, 5)
    assert Counter((1 if x.kind == "identity" else 9, x.cin, x.cout) for x in found) == theirs
    assert len(structure.layers((32, 64, 128, 256, 512, 1024), 2)) == 61
    assert torch is not None


def toy_levels():
    coords = np.argwhere(np.random.default_rng(3).random((20, 31)) < 0.3).astype(np.int32)
    with Native(1) as native:
        return structure.pyramid(native, np.ascontiguousarray(coords), 20, 31, 2, "active")


def test_macs_count_the_taps_that_exist():
    levels = toy_levels()
    same = next(x for x in structure.layers((4, 8), 1) if x.name == "enc0.0.conv1")
    assert structure.macs(levels, same) == (levels[0].same >= 0).sum() * 16
    assert structure.macs(levels, same, every_tap=True) == len(levels[0].coords) * 9 * 16
    up = next(x for x in structure.layers((4, 8), 1) if x.kind == "up")
    assert structure.rows_in(levels, up) == len(levels[1].coords)
    assert structure.macs(levels, up) == (levels[0].up >= 0).sum() * 32


@pytest.mark.parametrize("kind", ["submanifold", "down", "up"])
def test_the_rivals_compute_the_same(kind):
    torch = pytest.importorskip("torch")
    levels = toy_levels()
    layer = next(x for x in structure.layers((8, 16), 1) if x.kind == kind and x.cin > 3)
    data = rivals.torch_data(torch, levels, layer, device="cpu")
    entries = structure.table(levels, layer)
    x, weight = data["x"].numpy().astype(np.float64), data["weight"].numpy().astype(np.float64)
    exact = sum(x[np.where(entries[:, k] < 0, len(x) - 1, entries[:, k])] @ weight[k] for k in range(9))
    for way in (rivals.scatter, rivals.gather):
        assert np.abs(way(torch, data).numpy() - exact).max() < 0.02


def test_ptxas_report():
    first, second = building.ptxas_report(PTXAS)
    assert first == {"name": "csk_conv_f16_mma_128x64", "spill_bytes": 0, "registers": 165, "shared_bytes": 0}
    assert (second["spill_bytes"], second["shared_bytes"]) == (16, 17024)


def test_a_failing_compiler_is_named():
    with pytest.raises(building.BuildError, match=r"exit 3.*: \.\.\. no such thing"):
        building.command([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])
    with pytest.raises(building.BuildError, match="not-there"):
        building.command(["/not-there/nvcc"])


def test_junit(tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/><testcase classname="a" name="bad">'
        '<failure message="differs">x</failure></testcase><testcase classname="b" name="not">'
        '<skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    found = sections_build.read_junit(tmp_path / "tests.xml")
    assert (found["passed"], found["skipped"], found["failed"]) == (1, 1, {"a::bad": "differs"})
    assert found["skipped_because"] == {"no GPU": 1}


def test_targets():
    sections = {"refiner": {"status": "ok", "result": {"fp16": {"gpu_compute_ms": {"median": 3.0}, "conv_share": 0.5}}}}
    rows = {row["what"]: row for row in summary.targets(sections, real=True)}
    assert rows["refiner, logits to labels, fp16, graph replay, ms"]["met"] is True
    assert rows["share of SparseConv2d in the refiner's time"]["met"] is False
    assert rows["spconv's implicit GEMM (fp16), times of ours"]["met"] is None
    assert all(row["met"] is None for row in summary.targets(sections, real=False))
    assert all(summary.text(row) for row in rows.values())


def test_a_section_out_of_time_is_a_result(tmp_path):
    chosen = settings.tiny(str(tmp_path))
    chosen.save()
    outcome = run.run_section("device", chosen, 0.01)
    assert outcome["status"] == "failed"
    assert outcome["why"].startswith("not done in")


def test_results_of_an_emulated_driver_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", run.ROOT / "benchmarks" / "gpu" / "results" / "of-the-test")
    chosen = settings.Settings(str(tmp_path))
    run.write({"emulated": True}, {"name": "Emulated GPU"}, chosen, None)
    assert not run.RESULTS.exists()
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    run.write({"emulated": False}, {"name": "NVIDIA H200"}, chosen, tmp_path / "x" / "also.json")
    assert json.loads((tmp_path / "results" / "nvidia-h200.json").read_text()) == {"emulated": False}
    assert (tmp_path / "x" / "also.json").is_file()


def test_no_gpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu" / "run.py")]
    found = subprocess.run(
        command,
        env={"CRISPSEG_LIBCUDA": "libcuda-that-is-not-there.so", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert "make gpu needs an NVIDIA GPU" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_int8_form_lies_beside_the_refiner(tmp_path):
    given = settings.Settings(str(tmp_path))
    assert checks.forms(given) == {"fp32": tmp_path / "refiner.onnx", "fp16": tmp_path / "refiner.onnx"}
    (tmp_path / settings.int8_name("refiner.onnx")).touch()
    assert checks.forms(given)["int8"] == tmp_path / "refiner.int8.onnx"
    assert settings.int8_name("x") == "x.int8.onnx"


def test_agreement_counts_active_pixels():
    reference = {"labels": np.arange(12).reshape(3, 4), "coords": np.array([[0, 1], [2, 3], [9, 9]]),
                 "count": np.array([2])}  # fmt: skip
    labels = reference["labels"].copy()
    assert checks.agreement(labels, reference) == {"all": 1.0, "active": 1.0}
    labels[2, 3] = 99
    assert checks.agreement(labels, reference) == {"all": 11 / 12, "active": 0.5}
    assert checks.agreement(labels, {**reference, "count": np.array([0])})["active"] == 1.0


def test_scene_has_the_density_asked_for():
    chosen = settings.Settings("", height=256, width=512)
    coords = layers.scene(chosen)[2]
    assert abs(len(coords) / (256 * 512) - 0.118) < 0.01


@pytest.mark.slow
def test_dry_run_on_the_emulated_driver(emulated_driver, tmp_path):
    pytest.importorskip("torch")
    target = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "gpu" / "run.py"), "--dry-run", "--json", str(target)]
    found = subprocess.run([*command, "--work", str(tmp_path / "work")], capture_output=True, text=True)
    report = json.loads(target.read_text())
    states = {name: outcome["status"] for name, outcome in report["sections"].items()}
    assert set(states) == set(run.SECTIONS)
    assert {name for name, state in states.items() if state == "failed"} == set(), found.stdout
    assert all(states[name] == "ok" for name in ("device", "build", "prepare", "checks", "refiner", "layers"))
    assert report["emulated"]
    assert found.returncode == 0
    checked = report["sections"]["checks"]["result"]
    assert len(checked["passed"]) >= 25
    assert checked["measured"]["int8"]["labels_equal_to_fp32"]["active"] > 0.9
    refiner = report["sections"]["refiner"]["result"]
    assert refiner["int8"]["count"] == refiner["fp32"]["count"] > 0
    assert refiner["int8_speedup"] > 0
    assert all(row["met"] is None for row in report["targets"])
    assert "Traceback" not in found.stderr
