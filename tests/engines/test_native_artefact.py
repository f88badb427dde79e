"""crispseg build --backend native: the plan, the packed weights, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from native_net import frame, unet

from crispseg.engines import cache, native, native_artefact, native_measure, native_weights, native_winograd
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.plugins.loader import Native, available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)


class Files:
    """As much of a bundle as the artefact needs: a folder with a refiner, and its hash."""

    def __init__(self, folder, model):
        import hashlib
        from types import SimpleNamespace

        self.path = folder
        self.refiner = SimpleNamespace(file="refiner.onnx")
        onnx.save(model, str(folder / "refiner.onnx"))
        data = (folder / "refiner.onnx").read_bytes()
        self.files = {"refiner.onnx": SimpleNamespace(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))}

    def file(self, name):
        return self.path / name


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 8)
    monkeypatch.delenv("CRISPSEG_WINOGRAD", raising=False)
    return Files(tmp_path, unet(0).model())


def load(bundle, artefact=None):
    return native.load(bundle.file("refiner.onnx"), EngineSpec(threads=1), artefact=artefact)


def outputs(engine):
    return [engine.run(frame(seed, **case)) for seed, case in ((1, dict(level=0.0)), (2, {}))]


def same(a, b):
    return all((x[name] == y[name]).all() for x, y in zip(a, b) for name in x)


def test_the_artefact_gives_the_bits_of_the_file(bundle):
    assert native_artefact.find(bundle) is None
    made = native_artefact.build(bundle, deterministic=True)
    found = native_artefact.find(bundle)
    assert found is not None
    assert found.path == made.path
    assert (found.path / "graph.onnx").stat().st_size < bundle.file("refiner.onnx").stat().st_size
    with load(bundle) as packed, load(bundle, found) as mapped:
        assert same(outputs(packed), outputs(mapped))
        assert mapped.describe()["compiled"] == str(made.path)
        assert "build --backend native" in packed.describe()["compiled"]
        algorithms = {item.name: item.algorithm for item in mapped.layers() if item.kind == "submanifold"}
    plan = {item.node: item.algorithm for item in native_artefact.plan_of(found)}
    assert set(algorithms) <= set(plan)
    assert {"direct", "winograd"} == set(plan.values())


def test_float16_weights(tmp_path, monkeypatch):
    """low2 of the net is stored as float16 behind a Cast, which the compiled graph no longer has."""
    bundle = Files(tmp_path, unet(0).model())
    artefact = native_artefact.build(bundle, deterministic=True)
    model = onnx.load_model_from_string(artefact.read("graph.onnx"))
    assert "Cast" in {node.op_type for node in onnx.load(str(bundle.file("refiner.onnx"))).graph.node}
    assert "Cast" not in {node.op_type for node in model.graph.node}
    assert not model.functions
    with load(bundle) as packed, load(bundle, artefact) as mapped:
        assert same(outputs(packed), outputs(mapped))


def test_build_is_repeatable_and_kept(bundle):
    first = native_artefact.build(bundle, deterministic=True)
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    assert native_artefact.build(bundle, deterministic=True).path == first.path
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    again = native_artefact.build(bundle, deterministic=True, force=True)
    assert again.files == first.files
    assert again.facts == first.facts


def test_measured_plan(bundle):
    told = []
    artefact = native_artefact.build(bundle, progress=lambda *step: told.append(step))
    measured = [item for item in native_artefact.plan_of(artefact) if item.direct_ms is not None]
    assert measured
    assert all(item.winograd_ms > 0 and min(item.cin, item.cout) >= 8 for item in measured)
    for item in measured:
        faster = item.direct_ms >= native_measure.GAIN * item.winograd_ms
        assert (item.algorithm == "winograd") == pytest.approx(faster)
    assert not artefact.facts["deterministic"]
    assert told[-1][2] == "packing weights"
    with load(bundle, artefact) as engine:
        outputs(engine)


def test_one_form_of_large_weights(bundle, monkeypatch):
    """Winograd's alone; it then runs on scattered sites too."""
    monkeypatch.setattr(native_weights, "KEEP_BOTH", 0)
    artefact = native_artefact.build(bundle, deterministic=True)
    stored = set(artefact.facts["weights"])
    wide = {item.node for item in native_artefact.plan_of(artefact) if item.algorithm == "winograd"}
    nodes = check_graph(read_graph(bundle.file("refiner.onnx"))).nodes
    for node in nodes:
        if node.name in wide:
            assert node.inputs["weight"] + "#winograd" in stored
            assert node.inputs["weight"] not in stored
    feeds = frame(0, level=12.0, share=1.1)
    feeds["logits"][0, :, 3, 4] = 0  # four active pixels, each in another tile
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "0")
    with load(bundle) as direct:
        wanted = direct.run(feeds)
    monkeypatch.delenv("CRISPSEG_WINOGRAD")
    with load(bundle, artefact) as engine:
        got = engine.run(feeds)
        assert {item.algorithm for item in engine.layers() if item.name in wide and item.rows} == {"winograd"}
    for name in ("coords", "count", "labels"):
        assert (got[name] == wanted[name]).all()


@pytest.mark.parametrize("name", ["weights.bin", "graph.onnx"])
@pytest.mark.parametrize("damage", ["cut", "flip", "link"])
def test_damage_is_refused(bundle, name, damage):
    artefact = native_artefact.build(bundle, deterministic=True)
    path = artefact.path / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(bytes(data[:-1]))
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    else:
        shutil.move(str(path), str(path) + ".real")
        path.symlink_to(str(path) + ".real")
    with pytest.raises(BundleError, match="crispseg build .* --backend native"):
        load(bundle, artefact)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["weights"].update({key: [1, 64] for key in facts["weights"]}),
        lambda facts: facts["weights"].update({key: [0, 1 << 50] for key in facts["weights"]}),
        lambda facts: facts["weights"].update({key: [0, 64] for key in facts["weights"]}),
        lambda facts: facts.update(weights=[]),
        lambda facts: facts.update(plan=[{"x": 1}]),
        lambda facts: facts.update(plan={}),
    ],
)
def test_wrong_facts_are_refused(bundle, change):
    artefact = native_artefact.build(bundle, deterministic=True)
    path = artefact.path / cache.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest["facts"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        load(bundle, cache.load(artefact.path))


def test_another_refiner_or_instruction_set_does_not_fit(bundle, tmp_path):
    native_artefact.build(bundle, deterministic=True)
    for isa in ISAS[1:]:
        assert native_artefact.find(bundle, isa) is None
    other = Files(tmp_path, unet(1).model())
    assert native_artefact.find(other) is None


def test_the_environment_overrules_the_plan(bundle, monkeypatch):
    native_artefact.build(bundle, deterministic=True)
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "0")
    assert native_artefact.find(bundle) is None


def test_bands():
    sites = native_measure.bands(96, 160)
    assert 0.08 < len(sites) / (96 * 160) < 0.16
    assert np.array_equal(sites, native_measure.bands(96, 160))
    flat = sites[:, 0] * 160 + sites[:, 1]
    assert (np.diff(flat) > 0).all()
    with Native(1) as context:  # bands, not noise: most neighbours are there
        from crispseg.plugins.native_ops import submanifold_map

        assert (submanifold_map(context, sites, 96, 160) >= 0).sum(1).mean() > 5


def test_command(tmp_path):
    """build, then run from the artefact; int8 is no matter of a build."""
    pytest.importorskip("onnxruntime")
    from pathlib import Path

    from typer.testing import CliRunner

    from crispseg.cli import app
    from crispseg.runtime.pipeline import open_pipeline

    demo = Path(__file__).parents[2] / "demo" / "bundle"
    copy = tmp_path / "bundle"
    shutil.copytree(str(demo), str(copy), ignore=shutil.ignore_patterns("engines"))
    result = CliRunner().invoke(app, ["build", str(copy), "--backend", "native", "--deterministic", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["engines"][0]["deterministic"]
    assert {row["algorithm"] for row in report["plan"]} == {"direct", "winograd"}
    pipelines = [open_pipeline(path, threads=1) for path in (demo, copy)]
    assert pipelines[1].describe()["refiner"]["compiled"].startswith(str(copy))
    image = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    labels = [pipeline.run(image, want=("labels",)).labels for pipeline in pipelines]
    np.testing.assert_array_equal(*labels)
    for pipeline in pipelines:
        pipeline.close()
    refused = CliRunner().invoke(app, ["build", str(copy), "--backend", "native", "--precision", "int8"])
    assert isinstance(refused.exception, InputError)
    assert "fp32" in str(refused.exception)
