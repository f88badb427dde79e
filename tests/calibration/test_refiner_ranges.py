"""Calibration of the refiner: what is observed, which scales come out, and what the int8 graph computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("engines", "plugins", "export"))

from native_net import frame, interpret, unet

from crispseg.calibration import refiner
from crispseg.calibration.refiner import collect_ranges, quantise_refiner, save_model
from crispseg.calibration.refiner_graph import choose, convolutions
from crispseg.engines import native, ort
from crispseg.engines.spec import EngineSpec
from crispseg.errors import InputError
from crispseg.plugins.quantise import quantise_weight

FLOAT = ["stem", "yo"]


class Opened:
    """Opens models in the native engine and remembers them."""

    def __init__(self, folder):
        self.folder, self.models = folder, []

    def __call__(self, model):
        self.models.append(model)
        path = self.folder / f"observed{len(self.models)}.onnx"
        onnx.save(model, str(path))
        return native.load(path, EngineSpec(threads=1))


@pytest.fixture(scope="module")
def model():
    made = unet().model()
    for node in made.graph.node:  # the exporter names a convolution after its output
        if node.op_type == "SparseConv2d":
            node.name = next(name for name in node.output if name).replace(".z0", "")
    return made


@pytest.fixture
def opened(tmp_path):
    return Opened(tmp_path)


def frames():
    return [(feeds["image"], feeds["logits"]) for feeds in (frame(seed) for seed in (1, 2, 3))]


@pytest.fixture
def ranges(model, opened):
    return collect_ranges(model, frames, opened)


def test_edges_groups_and_exclusions(model):
    convs = {conv.name: conv for conv in convolutions(model)}
    assert [name for name, conv in convs.items() if conv.edge] == FLOAT
    assert convs["low2"].shape == (9, 12, 12), "a weight stored as float16"
    together = {convs[name].scale_group for name in ("skip", "dec", "w", "t")}
    assert len(together) == 1, "cat, catz, wide and twice share inputs"
    assert convs["mix"].scale_group not in together
    chosen = [conv.name for conv in choose(list(convs.values()), ["d*", "mix"])]
    assert "enc" in chosen
    assert not {"dec", "dead", "mix", *FLOAT} & set(chosen)
    assert FLOAT[0] in [conv.name for conv in choose(list(convs.values()), edges=True)]
    with pytest.raises(InputError, match="--exclude refiner:nothing.*it has stem, enc"):
        choose(list(convs.values()), ["nothing"])


def test_ranges_are_those_of_the_definition(model, ranges):
    exact = [interpret(model, {"image": image, "logits": logits}) for image, logits in frames()]
    for conv in convolutions(model):
        values = np.concatenate([np.abs(found[conv.x]).ravel() for found in exact])
        histogram = ranges.histograms[conv.x]
        assert histogram.largest == pytest.approx(values.max(), rel=1e-5), conv.x
        assert histogram.counts.sum() == values.size
        products = sum(int((found[conv.map] >= 0).sum()) if conv.map else found[conv.count][0] for found in exact)
        assert ranges.macs[conv.name] == products * conv.shape[1] * conv.shape[2], conv.name
    assert ranges.rows == sum(found["count"][0] for found in exact)
    assert ranges.other_macs == ranges.rows * (7 * 12 + 2 * 7 + 7 * 5 + 5 * 7)
    assert ranges.frames == 3


def test_little_memory_takes_more_passes_and_finds_the_same(model, ranges, opened, monkeypatch):
    monkeypatch.setattr(refiner, "MAX_OBSERVED_BYTES", 100_000)
    before, calls = len(opened.models), []
    again = collect_ranges(model, frames, opened, lambda *at: calls.append(at), total=3)
    assert len(opened.models) - before > 2
    assert calls[-1] == (3 * (len(opened.models) - before),) * 2
    assert again.macs == ranges.macs
    for name, histogram in ranges.histograms.items():
        assert (again.histograms[name].counts == histogram.counts).all()


def test_the_int8_graph(model, ranges):
    before = model.SerializeToString()
    made = quantise_refiner(model, ranges, "minmax")
    assert model.SerializeToString() == before, "the model given is left alone"
    onnx.checker.check_model(made.model)
    assert set(made.kept) == set(FLOAT) | ({"dead"} - set(made.scales))
    convs = {conv.name: conv for conv in convolutions(model)}
    cat = [made.scales[name] for name in ("skip", "dec", "w", "t")]
    assert len(set(cat)) == 1
    largest = max(ranges.histograms[convs[name].x].largest for name in ("skip", "dec", "w", "t"))
    assert cat[0] == np.float32(largest / 127)
    total = sum(ranges.macs.values()) + ranges.other_macs
    assert made.share == pytest.approx(sum(ranges.macs[name] for name in made.scales) / total)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in made.model.graph.initializer}
    assert arrays["enc.w.int8"].dtype == np.int8
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "enc.w"))
    q, scale = quantise_weight(weight)
    assert (arrays["enc.w.int8"] == q).all()
    assert (arrays["enc.w.scale"] == scale).all()
    assert "enc.w" not in arrays, "the float weight is gone"
    assert "stem.w" in arrays
    assert not {"low2.w.half", "low2.w"} & set(arrays)
    assert save_model(quantise_refiner(model, ranges, "minmax").model) == save_model(made.model)
    noted = onnx.load_from_string(save_model(made.model, {"seed": 3}))
    assert {p.key: p.value for p in noted.metadata_props}["crispseg.calibration"] == '{"seed": 3}'
    assert len(made.model.metadata_props) == len(model.metadata_props)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_onnx_runtime_runs_it_close_to_the_float_refiner(model, ranges, tmp_path, method):
    made = quantise_refiner(model, ranges, method)
    path = tmp_path / refiner.FILE
    path.write_bytes(save_model(made.model))
    engine = ort.load(path, EngineSpec("onnxruntime", threads=1))
    for image, logits in frames():
        feeds = {"image": image, "logits": logits}
        wanted, exact = interpret(made.model, feeds), interpret(model, feeds)
        found = engine.run(feeds, ["labels", "coords"])
        assert (found["coords"] == exact["coords"]).all()
        assert (found["labels"] == wanted["labels"]).mean() > 0.995, "the graph's own definition"
        assert (found["labels"] == exact["labels"]).mean() > 0.97


def test_what_cannot_be_calibrated_is_refused(model, ranges, opened):
    with pytest.raises(InputError, match="every convolution is excluded"):
        quantise_refiner(model, ranges, exclude=["*"])
    made = quantise_refiner(model, ranges)
    with pytest.raises(InputError, match="calibrate the float refiner"):
        quantise_refiner(made.model, ranges)
    with pytest.raises(InputError, match="found 0 frames"):
        collect_ranges(model, list, opened)
    sure = frame(3, level=30.0, share=1.1)
    with pytest.raises(InputError, match="found 1 frames with 0"):
        collect_ranges(model, lambda: [(sure["image"], sure["logits"])], opened)


def test_the_demo_refiner_keeps_its_labels(opened, tmp_path):
    """Calibrated on three scenes, the int8 refiner gives the labels of the float one on a fourth."""
    from crispseg.bundle import load_bundle
    from crispseg.runtime.prepare import prepare
    from crispseg.scenes import render

    bundle = load_bundle(Path(__file__).parents[2] / "demo" / "bundle")
    path = bundle.file("refiner.onnx")
    with ort.load(bundle.file("base.onnx"), EngineSpec("onnxruntime", threads=1)) as base:
        scenes = []
        for seed in range(4):
            canvas, value = prepare(render(seed, 0.0, bundle.height, bundle.width)[0], bundle, bundle.base)
            scenes.append((canvas, base.run({"image": value}, ("logits",))["logits"]))
    demo = refiner.load_model(path)
    made = quantise_refiner(demo, collect_ranges(demo, lambda: scenes[:3], opened))
    assert set(made.kept) == {"stem", "yo"}
    assert 0.85 < made.share < 0.88
    (tmp_path / refiner.FILE).write_bytes(save_model(made.model))
    feeds = {"image": scenes[3][0], "logits": scenes[3][1]}
    labels = []
    for file, precision in ((path, "fp32"), (tmp_path / refiner.FILE, "int8")):
        with native.load(file, EngineSpec(threads=1, precision=precision)) as engine:
            labels.append(engine.run(feeds, ["labels"])["labels"])
    assert (labels[0] == labels[1]).mean() > 0.997
