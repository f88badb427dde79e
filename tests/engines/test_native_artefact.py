"""crispseg build --backend native: the plan, the packed weights, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from int8_net import int8_unet
from native_net import frame, unet

from crispseg.bundle_calibration import Calibration, NetCalibration, network_file, preprocessing_hash
from crispseg.engines import cache, native, native_artefact, native_measure, native_winograd
from crispseg.engines.native_check import check_graph
from crispseg.engines.native_graph import read_graph
from crispseg.engines.native_memory import is_shape_only
from crispseg.engines.spec import EngineSpec
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.plugins.loader import Native, available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)


class Files:
    """As much of a bundle as the artefact needs: a folder with a refiner, its hash, and perhaps its int8 form."""

    def __init__(self, folder, model, quantised=None):
        self.path = folder
        self.refiner = SimpleNamespace(file="refiner.onnx")
        statistics = {"mean": (0.0,), "std": (1.0,)}
        self.base = SimpleNamespace(height=8, width=8, resize="bilinear", channel_order="rgb", **statistics)
        self.baseline, self.calibration, self.height, self.width = None, None, 24, 40
        self.files = {}
        self.add("refiner.onnx", model)
        if quantised is not None:
            self.add("refiner.int8.onnx", quantised)
            sources = {"refiner.onnx": self.files["refiner.onnx"].sha256}
            record = NetCalibration("refiner.int8.onnx", sources, "mse", "0" * 64, 1,
                                    preprocessing_hash(self, "refiner"), 0, False, (), 1.0)  # fmt: skip
            self.calibration = Calibration({"refiner": record})

    def add(self, name, model):
        onnx.save(model, str(self.path / name))
        data = (self.path / name).read_bytes()
        self.files[name] = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def file(self, name):
        return self.path / name


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 8)
    monkeypatch.delenv("CRISPSEG_WINOGRAD", raising=False)
    return Files(tmp_path, unet(0).model())


@pytest.fixture(scope="module")
def quantised():
    """An int8 refiner, two convolutions of which stay float beside the first and the last."""
    return int8_unet(exclude=("enc", "t"))


@pytest.fixture
def both(bundle, quantised):
    """The bundle, calibrated."""
    return Files(bundle.path, unet(0).model(), quantised)


PRECISIONS = ("fp32", "int8")


def load(bundle, artefact=None, precision="fp32"):
    path = bundle.file(network_file(bundle, "refiner", precision))
    return native.load(path, EngineSpec(threads=1, precision=precision), artefact=artefact)


def build(bundle, precision="fp32", **options):
    return native_artefact.build(bundle, deterministic=True, precision=precision, **options)


def outputs(engine):
    return [engine.run(frame(seed, **case)) for seed, case in ((1, dict(level=0.0)), (2, {}))]


def same(a, b):
    return all((x[name] == y[name]).all() for x, y in zip(a, b) for name in x)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_artefact_gives_the_bits_of_the_file(both, precision):
    nothing = native_artefact.find(both, precision)
    assert nothing.artefact is None
    assert "--backend native --precision %s" % precision in nothing.why
    made = build(both, precision)
    found = native_artefact.find(both, precision).artefact
    assert found is not None
    assert found.path == made.path
    other = native_artefact.find(both, "fp32" if precision == "int8" else "int8")
    assert other.artefact is None
    assert "precision: expected" in other.why
    file = both.file(network_file(both, "refiner", precision))
    assert (found.path / "graph.onnx").stat().st_size < file.stat().st_size
    with load(both, None, precision) as packed, load(both, found, precision) as mapped:
        assert same(outputs(packed), outputs(mapped))
        assert mapped.describe()["compiled"] == str(made.path)
        assert "build --backend native" in packed.describe()["compiled"]
        assert packed.memory()["weights"] == mapped.memory()["weights"]
        algorithms = {item.name: item.algorithm for item in mapped.layers() if item.kind == "submanifold"}
        assert not any(is_shape_only(array) for array in mapped._weights.packed.values())
    plan = {item.node: item.algorithm for item in native_artefact.plan_of(found)}
    assert {name for name, algorithm in algorithms.items() if algorithm != "int8"} <= set(plan)
    assert {"direct", "winograd4"} == set(plan.values())
    assert ("int8" in algorithms.values()) == (precision == "int8")


def test_nothing_is_packed_from_an_artefact(both, monkeypatch):
    """Every weight is mapped, in either precision."""
    made = {precision: build(both, precision) for precision in PRECISIONS}
    wanted = {precision: outputs(load(both, None, precision)) for precision in PRECISIONS}

    def never(self, *arguments):
        assert "pack" not in arguments[0]
        return called(self, *arguments)

    called = Native.call
    monkeypatch.setattr(Native, "call", never)
    for precision, artefact in made.items():
        with load(both, artefact, precision) as engine:
            assert same(outputs(engine), wanted[precision])
            packed = engine._weights.packed.values()
            assert all(isinstance(array, np.memmap) for array in packed)


def test_a_float_refiner_is_not_compiled_as_int8(bundle, quantised):
    with pytest.raises(BundleError, match="expected a calibration of the refiner.*crispseg calibrate"):
        build(bundle, "int8")
    calibrated = Files(bundle.path, unet(0).model(), quantised)
    record = calibrated.calibration.networks["refiner"]
    calibrated.calibration = Calibration({"base": record})
    with pytest.raises(BundleError, match="found that of the base alone.*build .* --backend native"):
        build(calibrated, "int8")
    foreign = dataclasses.replace(record, sources={"refiner.onnx": "1" * 64})
    calibrated.calibration = Calibration({"refiner": foreign})
    with pytest.raises(BundleError, match="int8 refiner belongs to another graph"):
        build(calibrated, "int8")


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
    assert all(min(item.winograd2_ms, item.winograd4_ms) > 0 and min(item.cin, item.cout) >= 8 for item in measured)
    for item in measured:
        chosen, gain = "direct", native_measure.GAIN
        if item.direct_ms >= gain * item.winograd2_ms:
            chosen = "winograd2"
        if getattr(item, chosen + "_ms") >= gain * item.winograd4_ms:
            chosen = "winograd4"
        assert item.algorithm == chosen
    assert not artefact.facts["deterministic"]
    assert told[-1][2] == "packing weights"
    with load(bundle, artefact) as engine:
        outputs(engine)


def test_both_forms_of_a_weight(bundle, monkeypatch):
    """The direct kernel takes over on scattered sites, in compiled engines and in those that pack at load."""
    artefact = native_artefact.build(bundle, deterministic=True)
    stored = set(artefact.facts["weights"])
    wide = {item.node for item in native_artefact.plan_of(artefact) if item.algorithm == "winograd4"}
    nodes = check_graph(read_graph(bundle.file("refiner.onnx"))).nodes
    for node in nodes:
        if node.name in wide:
            assert {node.inputs["weight"] + "#winograd4", node.inputs["weight"]} <= stored
    feeds = frame(0, level=12.0, share=1.1)
    feeds["logits"][0, :, 3, 4] = 0  # four active pixels, each in another tile
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "0")
    with load(bundle) as direct:
        wanted = direct.run(feeds)
    monkeypatch.delenv("CRISPSEG_WINOGRAD")
    for made in (None, artefact):
        with load(bundle, made) as engine:
            got = engine.run(feeds)
            assert {item.algorithm for item in engine.layers() if item.rows} == {"direct"}
            engine.run(frame(0, level=0.0))
            assert {item.algorithm for item in engine.layers() if item.name in wide} == {"winograd4"}
        for name in ("coords", "count", "labels"):
            assert (got[name] == wanted[name]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["weights.bin", "graph.onnx"])
@pytest.mark.parametrize("damage", ["cut", "flip", "link", "gone"])
def test_damage_is_refused_and_built_anew(both, name, damage, precision):
    artefact = build(both, precision)
    path = artefact.path / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(bytes(data[:-1]))
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    else:
        shutil.move(str(path), str(path) + ".real")
        if damage == "link":
            path.symlink_to(str(path) + ".real")
    found = native_artefact.find(both, precision).artefact
    with pytest.raises(BundleError, match="crispseg build .* --backend native --precision %s" % precision):
        load(both, found, precision)
    again = build(both, precision)
    assert again.files == artefact.files
    with load(both, again, precision) as engine, load(both, None, precision) as packed:
        assert same(outputs(engine), outputs(packed))


def swap(facts):
    """Places of two weights of one size, so that every one of them still fits."""
    sizes = {}
    for key, (_, size) in sorted(facts["weights"].items()):
        sizes.setdefault(size, []).append(key)
    a, b = next(keys for keys in sizes.values() if len(keys) > 1)[:2]
    facts["weights"][a], facts["weights"][b] = facts["weights"][b], facts["weights"][a]


FACTS = [
    lambda facts: facts["weights"].update({key: [1, 64] for key in facts["weights"]}),
    lambda facts: facts["weights"].update({key: [0, 1 << 50] for key in facts["weights"]}),
    lambda facts: facts["weights"].update({key: [0, 64] for key in facts["weights"]}),
    lambda facts: facts["weights"].popitem(),
    lambda facts: facts.update(weights=[]),
    lambda facts: facts.update(weights={}),
    lambda facts: facts.update(plan=[{"x": 1}]),
    lambda facts: facts.update(plan={}),
    lambda facts: facts.update(plan=[5]),
    lambda facts: [item.update(algorithm=["winograd2"]) for item in facts["plan"]],
    lambda facts: [item.update(node={}) for item in facts["plan"]],
    lambda facts: [item.update(algorithm="winograd2") for item in facts["plan"]],
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", [*FACTS, swap])
def test_wrong_facts_are_refused(both, change, sealed, precision):
    """By their hash, and what memory is read by is checked even where the hash was made to fit."""
    artefact = build(both, precision)
    path = artefact.path / cache.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest["facts"])
    if sealed:
        manifest["facts"]["sha256"] = native_artefact._facts_hash(manifest["facts"])
    path.write_text(json.dumps(manifest))
    found = native_artefact.find(both, precision).artefact
    if sealed and change is swap:
        load(both, found, precision).close()  # in bounds: wrong numbers, which only the hash can tell
        return
    with pytest.raises(BundleError, match="crispseg build .* --backend native --precision %s" % precision):
        load(both, found, precision)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', None])
def test_a_damaged_manifest_is_refused_and_built_anew(both, text):
    for precision in PRECISIONS:
        artefact = build(both, precision)
        path = artefact.path / cache.MANIFEST
        manifest = json.loads(path.read_text())
        manifest["identity"]["environment"]["isa"] = "generic"  # weights in another layout
        path.write_text(json.dumps(manifest) if text is None else text)
        with pytest.raises(BundleError, match="run `crispseg build .* --backend native --precision %s`" % precision):
            native_artefact.find(both, precision)
        build(both, precision)
        assert native_artefact.find(both, precision).artefact is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.timeout(60)
def test_a_pipe_instead_of_a_manifest_is_not_waited_for(both):
    path = build(both, "fp32").path / cache.MANIFEST
    path.unlink()
    os.mkfifo(str(path))
    with pytest.raises(BundleError, match="found a folder, pipe or device; run `crispseg build"):
        native_artefact.find(both, "fp32")
    build(both, "fp32")
    assert native_artefact.find(both, "fp32").artefact is not None


def test_an_artefact_under_another_key_is_refused(both):
    """That of int8 in the place of fp32."""
    quantised, plain = build(both, "int8"), build(both)
    shutil.rmtree(str(plain.path))
    shutil.copytree(str(quantised.path), str(plain.path))
    with pytest.raises(BundleError, match="run `crispseg build"):
        native_artefact.find(both)


def test_another_refiner_or_instruction_set_does_not_fit(bundle, tmp_path):
    native_artefact.build(bundle, deterministic=True)
    for isa in ISAS[1:]:
        other = native_artefact.find(bundle, isa=isa)
        assert other.artefact is None
        assert "isa: expected %s" % isa in other.why
    other = native_artefact.find(Files(tmp_path, unet(1).model()))
    assert other.artefact is None
    assert "refiner.onnx: expected" in other.why


def test_the_environment_overrules_the_plan(bundle, monkeypatch):
    native_artefact.build(bundle, deterministic=True)
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "0")
    assert native_artefact.find(bundle) == native_artefact.Found(why="CRISPSEG_WINOGRAD is set")


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
    """build, then run from the artefact; no int8 without a calibration."""
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
    assert {row["algorithm"] for row in report["plan"]} <= {"direct", "winograd2", "winograd4"}
    pipelines = [open_pipeline(path, threads=1) for path in (demo, copy)]
    assert pipelines[1].describe()["refiner"]["compiled"].startswith(str(copy))
    image = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    labels = [pipeline.run(image, want=("labels",)).labels for pipeline in pipelines]
    np.testing.assert_array_equal(*labels)
    for pipeline in pipelines:
        pipeline.close()
    for precision, error, text in (("fp16", InputError, "fp32 or int8"), ("int8", BundleError, "crispseg calibrate")):
        refused = CliRunner().invoke(app, ["build", str(copy), "--backend", "native", "--precision", precision])
        assert isinstance(refused.exception, error)
        assert text in str(refused.exception)
