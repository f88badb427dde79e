"""The native engine against a float64 interpreter of the contract, and its behaviour over many frames."""

from __future__ import annotations

import gc
import resource

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from native_net import CLASSES, FRAME, LOW, frame, interpret, unet

from crispseg.engines import native, native_winograd
from crispseg.engines.spec import EngineSpec
from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.plugins.loader import available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)

MATRICES = ("x", "yi", "cat", "wide", "twice", "low2", "dec.z0", "yo", "ye")
ALL = dict(level=0.0)  # every pixel uncertain
NONE = dict(level=30.0, share=1.1)


def save(model, path):
    onnx.save(model, str(path))
    return path


@pytest.fixture
def saved(tmp_path):
    return lambda net: save(net.model(), tmp_path / "refiner.onnx")


def four_active(seed=0):
    """Four pixels above the threshold around one low-resolution pixel, each in another 2x2 tile."""
    feeds = frame(seed, level=12.0, share=1.1)
    feeds["logits"][0, :, 3, 4] = 0
    return feeds


def check(found, exact, matrices=()):
    assert int(found["count"][0]) == exact["count"][0]
    assert int(found["found"][0]) == exact["found"][0]
    assert (found["coords"] == exact["coords"]).all()
    for name in matrices:
        assert found[name].shape == exact[name].shape, name
        scale = max(1.0, np.abs(exact[name]).max(initial=0))
        assert np.abs(found[name] - exact[name]).max(initial=0) < 1e-5 * scale, name
    margin = np.full(FRAME, np.inf)
    if len(exact["coords"]):
        top = np.sort(exact["ye"], 1)
        margin[exact["coords"][:, 0], exact["coords"][:, 1]] = top[:, -1] - top[:, -2]
    clear = margin > 1e-4
    assert (found["labels"] == exact["labels"])[clear].all()
    if "confidence" in found:
        assert np.abs(found["confidence"].astype(int) - exact["confidence"]).max() <= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("features", "mode", "head"),
    [
        ("rgb", "gated", {}),
        ("rgb,xy,p,p>0.25", "entropy", {"upsample": "nearest", "order": "bgr"}),
        ("xy,rgb", "gated", {"upsample": "bilinear_corners", "capacity": 150}),
    ],
)
@pytest.mark.parametrize("case", ["some", "all", "none", "four"])
def test_agrees_with_the_definition(saved, isa, features, mode, head, case):
    net = unet(features=features, mode=mode, **head)
    net.extra = list(MATRICES)
    feeds = {"some": frame(1), "all": frame(2, **ALL), "none": frame(3, **NONE), "four": four_active()}[case]
    exact = interpret(net.model(), feeds)
    if case == "none":
        assert exact["count"] == [0]
    if case == "four":
        assert exact["count"] == [16 if head.get("upsample") == "nearest" else 4]
    with native.load(saved(net), EngineSpec(threads=1), isa=isa) as engine:
        assert engine.describe()["isa"] == isa
        check(engine.run(feeds), exact, MATRICES)
        check(engine.run(feeds), exact, MATRICES)


def test_one_pixel(saved):
    net = unet(upsample="nearest", threshold=1.2)
    net.extra = ["yo"]
    feeds = frame(0, level=30.0, share=1.1)
    feeds["logits"][0, :, 0, 0] = 0
    exact = interpret(net.model(), feeds)
    assert exact["found"] == [16]
    one = unet(upsample="nearest", threshold=1.2, capacity=1)
    one.extra = ["yo"]
    exact = interpret(one.model(), feeds)
    assert exact["count"] == [1]
    with native.load(saved(one), EngineSpec(threads=2)) as engine:
        check(engine.run(feeds), exact, ["yo"])


def test_frames_do_not_touch_each_other(saved):
    """One engine over frames of very different numbers of sites gives what a fresh engine gives, bit for bit."""
    path = saved(unet())
    cases = [frame(1), frame(2, **ALL), frame(3, **NONE), four_active(), frame(4, share=0.9), frame(2, **ALL), frame(1)]
    with native.load(path, EngineSpec(threads=1)) as engine, native.load(path, EngineSpec(threads=3)) as threads:
        for feeds in cases:
            with native.load(path, EngineSpec(threads=1)) as fresh:
                wanted = fresh.run(feeds)
            for one in (engine, threads):
                found = one.run(feeds)
                assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_no_growth_over_many_runs(saved):
    with native.load(saved(unet()), EngineSpec(threads=2)) as engine:
        for seed in range(8):
            engine.run(frame(seed, **ALL))
        held = engine.memory()
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(200):
            engine.run(frame(seed, share=(seed % 21) / 20.0))
        assert engine.memory() == held
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


def test_only_what_is_asked_for(saved):
    net = unet()
    feeds = frame(5)
    with native.load(saved(net), EngineSpec(threads=1)) as engine:
        everything = engine.run(feeds)
        assert set(everything) == set(engine.outputs) == {"labels", "confidence", "coords", "count", "found"}
        assert not any(name.startswith("n") and "dead" in name for name in engine.node_times)
        for names in (("labels",), ("confidence",), ("count", "found"), ("coords", "labels"), ()):
            found = engine.run(feeds, names)
            assert list(found) == list(names)
            assert all(np.array_equal(found[name], everything[name]) for name in names)
        engine.run(feeds, ("coords",))
        assert engine.stage_times["conv"] == engine.stage_times["scatter"] * 0
        engine.run(feeds, ("labels",))
        assert set(engine.stage_times) == {"select", "maps", "conv", "ensemble", "scatter"}
        assert all(value > 0 for value in engine.stage_times.values())


def test_base_labels_survive_when_asked_for(saved):
    """SelectPixels' own labels as an output: ScatterLabels must not write into them."""
    net = unet()
    feeds = frame(6)
    exact = interpret(net.model(), feeds)
    model = net.model(outputs=("labels", "labels0", "confidence", "confidence0", "coords", "count", "found"))
    assert len(model.graph.output) == 7
    path = saved(net)
    onnx.save(model, str(path))
    with native.load(path, EngineSpec(threads=1)) as engine:
        found = engine.run(feeds)
        assert (found["labels0"] == exact["labels0"]).all()
        assert np.abs(found["confidence0"] - exact["confidence0"]).max() <= 1
        assert (found["labels0"] != found["labels"]).any()


def test_results_belong_to_the_caller(saved):
    with native.load(saved(unet()), EngineSpec(threads=1)) as engine:
        first = engine.run(frame(1))
        copies = {name: value.copy() for name, value in first.items()}
        engine.run(frame(2, **ALL))
        assert all(np.array_equal(first[name], copies[name]) for name in first)


def test_wrong_inputs(saved):
    feeds = frame(1)
    with native.load(saved(unet()), EngineSpec(threads=1)) as engine:
        with pytest.raises(InputError, match=r"image.*expected uint8 \[24, 40, 3\].*found uint8 \[24, 41, 3\]"):
            engine.run({**feeds, "image": np.zeros((24, 41, 3), np.uint8)})
        with pytest.raises(InputError, match="logits.*float32.*float64"):
            engine.run({**feeds, "logits": feeds["logits"].astype(np.float64)})
        with pytest.raises(InputError, match="expected inputs image, logits, found image"):
            engine.run({"image": feeds["image"]})
        with pytest.raises(InputError, match="output 'nothing'"):
            engine.run(feeds, ["nothing"])
        found = engine.run({"image": feeds["image"][:, ::-1][:, ::-1], "logits": np.asfortranarray(feeds["logits"])})
        assert (found["labels"] == engine.run(feeds)["labels"]).all()
    with pytest.raises(InputError, match="closed"):
        engine.run(feeds)
    engine.close()


def test_out_of_memory_is_one_message_and_passes(saved, monkeypatch):
    from crispseg.engines import native_memory

    path, feeds = saved(unet()), frame(2, **ALL)
    with native.load(path, EngineSpec(threads=1)) as engine:
        wanted = engine.run(feeds)
    real = native_memory.aligned
    for call in range(12):  # the allocation that fails is another one each time
        left = [call]

        def failing(size, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError
            return real(size)

        with native.load(path, EngineSpec(threads=1)) as engine:
            monkeypatch.setattr(native_memory, "aligned", failing)
            with pytest.raises(InputError, match="not enough memory for .* smaller capacity"):
                engine.run(feeds)
            monkeypatch.setattr(native_memory, "aligned", real)
            found = engine.run(feeds)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_ports_and_description(saved):
    with native.load(saved(unet()), EngineSpec(threads=2)) as engine:
        assert engine.inputs["logits"] == (np.float32, [1, CLASSES, *LOW])
        assert engine.outputs["coords"] == (np.int32, [None, 2])
        described = engine.describe()
        assert described["threads"] == 2
        assert described["memory_bytes"]["weights"] > 0


def test_exported_refiner_agrees_with_onnxruntime(tmp_path):
    """The real exporter's graph, through the native kernels and through the portable bodies."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    import golden

    from crispseg.engines import ort
    from crispseg.export.refiner import export_refiner

    feeds = golden.scene()
    for options in ({}, {"weights": "float16"}):
        model = export_refiner(
            golden.network(), height=32, width=48, logits_shape=feeds["logits"].shape[1:], capacity=600, **options
        )
        path = save(model, tmp_path / "refiner.onnx")
        with native.load(path, EngineSpec(threads=1)) as engine:
            found = engine.run(feeds)
            assert not engine._nodes._plan.copies
        portable = ort.load(path, EngineSpec("onnxruntime", threads=1))
        wanted = portable.run(feeds)
        portable.close()
        assert 50 < int(found["count"][0]) <= 600
        for name in ("coords", "count", "found", "labels"):
            assert (found[name] == wanted[name]).all(), name
        assert np.abs(found["confidence"].astype(int) - wanted["confidence"]).max() <= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", [ALL, dict(), NONE], ids=["all", "some", "none"])
def test_winograd_everywhere_agrees_with_the_definition(saved, monkeypatch, isa, case):
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(native_winograd, "PAIRS_PER_PRODUCT", {2: 0, 4: 0})
    net = unet(5, threshold=0.2)
    net.extra = MATRICES
    feeds, found = frame(6, **case), {}
    exact = interpret(net.model(), feeds)
    for mode in ("1", "2", "0"):
        monkeypatch.setenv("CRISPSEG_WINOGRAD", mode)
        with native.load(saved(net), EngineSpec(threads=2), isa) as engine:
            for _ in range(2):
                found[mode] = engine.run(feeds)
                check(found[mode], exact, MATRICES)
    if len(exact["coords"]):
        for one, other in (("0", "1"), ("0", "2"), ("1", "2")):
            assert not np.array_equal(found[one]["yo"], found[other]["yo"])  # each rounds differently


def test_winograd_follows_the_frame(saved, monkeypatch):
    """Wide convolutions on dense sites only; isolated sites give the direct kernel's bits."""
    monkeypatch.setattr(native_winograd, "MIN_CHANNELS", 8)
    monkeypatch.delenv("CRISPSEG_WINOGRAD", raising=False)
    path = saved(unet(0))
    single, full = four_active(), frame(1, **ALL)
    with native.load(path) as engine:
        got = engine.run(full), engine.run(single)
        assert [len(tiles.weights) for same in engine._nodes._tiles.values() for tiles in same] == [4, 1]
        again = engine.run(full)
    for name, value in got[0].items():
        np.testing.assert_array_equal(again[name], value)
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "0")
    with native.load(path) as engine:
        assert not engine._nodes._tiles
        for name, value in engine.run(single).items():
            np.testing.assert_array_equal(got[1][name], value)
    monkeypatch.setenv("CRISPSEG_WINOGRAD", "yes")
    with pytest.raises(InputError, match="CRISPSEG_WINOGRAD"):
        native.load(path)
