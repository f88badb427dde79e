"""Verification of a bundle: passes when engines agree, and names the op when they do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import golden
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from crispseg.bundle import load_bundle, write_bundle
from crispseg.errors import BundleError, EnvironmentMismatch, InputError
from crispseg.export.compare import Hop, difference, entropy, expose, tensors_of, undecided_sites
from crispseg.export.project import export_bundle
from crispseg.export.verify import verify_bundle
from crispseg.models.bases.small import SmallNet
from crispseg.report import to_json
from crispseg.runtime.pipeline import open_pipeline, pad_colour
from crispseg.runtime.prepare import prepared_frames

torch.set_num_threads(1)


class Pretender:
    """Takes the place of the native engine: ONNX Runtime, with one tensor changed on its way out."""

    def __init__(self, path, change):
        model = onnx.load(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        source = expose(model, tensors_of(model)).SerializeToString()
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.change = change

    def run(self, inputs, outputs=None):
        found = dict(zip(outputs, self.session.run(list(outputs), inputs)))
        self.change(found)
        return found


def pretend(monkeypatch, change):
    module = types.ModuleType("crispseg.engines.native")
    module.load = lambda path, spec: Pretender(path, change)
    monkeypatch.setitem(sys.modules, "crispseg.engines.native", module)
    monkeypatch.setattr("crispseg.engines.native", module, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, and the checkpoints it was made from."""
    root = tmp_path_factory.mktemp("verify")
    torch.manual_seed(3)
    base = SmallNet(11, (8, 12, 16, 16), (1, 1, 1, 1), 8)
    torch.save({"config": {**base.config}, "state_dict": base.state_dict()}, root / "base.pt")
    refiner = golden.network(
        num_classes=11, planes=(4, 6, 8), repeats=(2, 1, 1), threshold=2.3, channel_order="rgb", upsample="bilinear"
    )
    config = {"architecture": "sparserefine"}
    config.update({k: list(v) if isinstance(v, tuple) else v for k, v in vars(refiner.config).items()})
    torch.save({"config": config, "state_dict": refiner.state_dict()}, root / "refiner.pt")
    export_bundle(
        "small",
        root / "bundle",
        weights=root / "base.pt",
        refiner_weights=root / "refiner.pt",
        height=64,
        width=96,
        capacity=64 * 96,
        classes="camvid",
    )
    return root


def verify(made, **more):
    options = {"weights": made / "base.pt", "refiner_weights": made / "refiner.pt", "threads": 1, **more}
    return verify_bundle(options.pop("path", made / "bundle"), prepared_frames, **options)


def hops(report):
    return {(hop["network"], hop["hop"]): hop for hop in report["hops"] + report["skipped"]}


RECORDED = ("base", "recorded at export -> onnxruntime")


def test_frames_have_the_bars_of_the_pipeline(made, tmp_path):
    """Black ones would be uncertain to most bases and stand in the report's densities."""
    from PIL import Image

    bundle = load_bundle(made / "bundle")
    Image.new("RGB", (bundle.width // 4, bundle.height), (9, 9, 9)).save(tmp_path / "tall.png")
    (frame,) = prepared_frames(bundle, tmp_path / "tall.png", 1)
    canvas = frame.canvas
    assert canvas.shape == (bundle.height, bundle.width, 3)
    assert (canvas[:, :2] == pad_colour(bundle.base)).all()
    assert sum(pad_colour(bundle.base)) > 0


@pytest.mark.parametrize("size", [(40, 96), (64, 30)])
def test_counts_are_those_of_the_pipeline(made, tmp_path, size):
    """What the base says of bars is not refined, and not counted."""
    from PIL import Image

    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "frame.png")
    with open_pipeline(made / "bundle", backend="onnxruntime", threads=1) as pipe:
        result = pipe.run(noise)
    report = verify(made, images=tmp_path / "frame.png", frames=1)
    (found,) = report["frames_compared"]
    assert 0 < result.count < size[0] * 96 + 64 * size[1]
    assert (found["count"], found["found"]) == (result.count, result.found)
    assert found["density"] == pytest.approx(100 * result.density, abs=1e-3)
    assert report["passed"] is True


def test_engines_that_agree(made, monkeypatch):
    pretend(monkeypatch, lambda found: None)
    seen = []
    report = verify(made, progress=lambda *args: seen.append(args))
    assert report["passed"] is True
    assert len(report["bundle"]["sha256"]) == len(report["input"]["frames_sha256"]) == 64
    found = hops(report)
    assert set(found) == {
        ("base", "torch -> onnxruntime"),
        RECORDED,
        ("refiner", "torch -> onnxruntime"),
        ("refiner", "onnxruntime -> native"),
    }
    for hop in found.values():
        assert hop["passed"] is True
        assert hop["first_difference"] is None
    names = ["x", "yi", "stem", "enc0.1", "down1", "enc1.0", "down2", "up1", "up0", "final", "yo", "ye"]
    assert found["refiner", "torch -> onnxruntime"]["tensors"] == len(names)
    assert found["refiner", "onnxruntime -> native"]["tensors"] > 30
    assert found["refiner", "onnxruntime -> native"]["error"] == 0
    assert 0 < found["refiner", "torch -> onnxruntime"]["error"] < 1e-4
    assert all(0 < frame["density"] <= 100 and frame["count"] == frame["found"] for frame in report["frames_compared"])
    assert len(report["frames_compared"]) == len(seen) - 1 == 2
    json.loads(to_json(report))
    assert "first_difference" in report["definitions"]


@pytest.mark.parametrize("tensor", ["map1", "enc1.0.mid", "up0", "final", "yo"])
def test_the_first_op_that_differs_is_named(made, monkeypatch, tensor):
    model = onnx.load(made / "bundle" / "refiner.onnx")
    all_tensors = {m.tensor: m for m in tensors_of(model)}
    later = [m.tensor for m in tensors_of(model)]
    later = later[later.index(tensor) :]

    def change(found):
        for name in later:
            if name in found and all_tensors[name].dtype != "uint8" and found[name].size:
                found[name] = found[name].copy()
                found[name].flat[0] += 1 + found[name].max()

    pretend(monkeypatch, change)
    report = verify(made, frames=1)
    hop = hops(report)["refiner", "onnxruntime -> native"]
    assert report["passed"] is False
    assert hop["passed"] is False
    assert hop["first_difference"].startswith(f"{tensor} ({all_tensors[tensor].op} ")


def test_another_selection_and_other_labels_fail(made, monkeypatch):
    def shift(found):
        found["coords"], found["yi"] = found["coords"][:-40], found["yi"][:-40]
        found["labels"] = 10 - found["labels"]

    pretend(monkeypatch, lambda found: shift(found) if "labels" in found else None)
    hop = hops(verify(made, frames=1))["refiner", "onnxruntime -> native"]
    assert hop["sites_different"] == 40
    assert hop["passed"] is False


def test_altered_weights_are_found_against_the_checkpoint(made, tmp_path, monkeypatch):
    pretend(monkeypatch, lambda found: None)
    bundle = load_bundle(made / "bundle")
    model = onnx.load(bundle.file("refiner.onnx"))
    (node,) = (n for n in model.graph.node if n.output[0] == "down2")
    (tensor,) = (t for t in model.graph.initializer if t.name == node.input[3])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    files = {name: bundle.file(name) for name in bundle.files}
    files["refiner.onnx"] = model.SerializeToString()
    kept = ("name", "height", "width", "classes", "base", "baseline", "refiner", "provenance")
    write_bundle(tmp_path / "b", files=files, **{name: getattr(bundle, name) for name in kept})
    report = verify(made, path=tmp_path / "b", frames=1)
    found = hops(report)
    assert found["refiner", "torch -> onnxruntime"]["first_difference"].startswith("down2 (SparseConv2d down2)")
    assert found["refiner", "onnxruntime -> native"]["passed"] is True
    assert found["base", "torch -> onnxruntime"]["passed"] is True
    assert report["passed"] is False


def test_hops_without_checkpoint_or_library_say_why(made, monkeypatch, tmp_path):
    def missing(path, spec):
        raise EnvironmentMismatch("library libcrispseg: none found; build it")

    pretend(monkeypatch, lambda found: None)
    sys.modules["crispseg.engines.native"].load = missing
    without = {"weights": None, "refiner_weights": None, "frames": 1}
    report = verify(made, **without)
    assert [(hop["network"], hop["hop"]) for hop in report["hops"]] == [RECORDED]
    assert all(hop["reason"] for hop in report["skipped"])
    assert len(report["skipped"]) == 3
    assert report["passed"] is True
    with pytest.raises(InputError, match=r"expected two engines to compare, found none: base.* no checkpoint given.*"
                       r"older crispseg.*libcrispseg: none found"):  # fmt: skip
        verify(made, path=rewritten(made / "bundle", tmp_path, recorded=None), **without)


def rewritten(path, target, recorded, **files):
    """A copy of a bundle with another record of its base's logits, or other files."""
    bundle = load_bundle(path)
    notes = {k: v for k, v in bundle.provenance["base"].items() if k != "recorded"}
    if recorded is not None:
        notes["recorded"] = recorded
    kept = ("name", "height", "width", "classes", "base", "baseline", "refiner")
    write_bundle(
        target / "b",
        files={**{name: bundle.file(name) for name in bundle.files}, **files},
        provenance={**bundle.provenance, "base": notes},
        **{name: getattr(bundle, name) for name in kept},
    )
    return target / "b"


@pytest.mark.parametrize("change", ["head", "nothing"])
def test_another_base_is_found_without_its_source(made, tmp_path, change):
    """The bundle's own record tells: no checkpoint, no torch."""
    model = onnx.load(made / "bundle" / "base.onnx")
    tensor = [t for t in model.graph.initializer if len(t.dims) == 4][-1]
    if change == "head":
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    kept = load_bundle(made / "bundle").provenance["base"]["recorded"]
    path = rewritten(made / "bundle", tmp_path, kept, **{"base.onnx": model.SerializeToString()})
    hop = hops(verify(made, path=path, weights=None, refiner_weights=None, frames=1))[RECORDED]
    assert hop["passed"] is (change == "nothing")
    assert (hop["first_difference"] is None) is (change == "nothing")


@pytest.mark.parametrize(
    "damage", [{"shape": [3, 11]}, {"logits": "%%"}, {"shape": [2, 5]}, {"shape": None}, {"logits": None}]
)
def test_a_damaged_record_is_refused(made, tmp_path, damage):
    kept = {**load_bundle(made / "bundle").provenance["base"]["recorded"], **damage}
    path = rewritten(made / "bundle", tmp_path, kept)
    with pytest.raises(BundleError, match=r"bundle\.json: provenance\.base\.recorded: expected logits"):
        verify(made, path=path, frames=1)


def test_with_the_native_engine(made):
    report = verify(made)
    hop = hops(report)["refiner", "onnxruntime -> native"]
    if "reason" in hop:
        pytest.skip(hop["reason"])
    assert report["passed"] is True, report["hops"]
    assert 0 < hop["error"] < 1e-4
    assert hop["tensors"] > 30
    assert {(item["error"], item["agreement"]) for item in report["limits"]} == {(1e-4, 99.9), (1e-4, 90)}
    assert len(report["limits"]) == len(report["hops"])
    assert "tolerance" not in report


def test_a_compiled_engine_is_compared_too(made, tmp_path):
    from crispseg.engines import native_artefact

    shutil.copytree(made / "bundle", tmp_path / "b")
    try:
        artefact = native_artefact.build(load_bundle(tmp_path / "b"), deterministic=True)
    except EnvironmentMismatch as error:
        pytest.skip(str(error))
    checked = {"path": tmp_path / "b", "weights": None, "refiner_weights": None, "frames": 1}
    hop = hops(verify(made, **checked))["refiner", "native -> compiled"]
    assert hop["passed"] is True
    assert hop["agreement"] == 100
    (artefact.path / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="crispseg build"):
        verify(made, **checked)


def test_pictures_of_another_size(made, tmp_path, monkeypatch):
    from PIL import Image

    pretend(monkeypatch, lambda found: None)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3)).astype(np.uint8)).save(tmp_path / f"p{i}.png")
    report = verify(made, images=tmp_path, frames=2)
    assert report["passed"] is True
    assert [frame["frame"] for frame in report["frames_compared"]] == ["p0", "p1"]


@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_a_base_from_outside(made, tmp_path, capsys, kind):
    import foreign_nets

    from crispseg.classes import ClassInfo
    from crispseg.cli import main
    from crispseg.export.sources import Foreign

    base = Foreign(module="foreign_nets:Net")
    if kind == "onnx":
        net = foreign_nets.Net(5).eval()
        torch.onnx.export(net, (torch.zeros(1, 3, 24, 32),), str(tmp_path / "net.onnx"), dynamo=False, opset_version=17)
        base = Foreign(onnx=tmp_path / "net.onnx")
    classes = [ClassInfo(f"c{i}", (i, i, i)) for i in range(5)]
    export_bundle(base, tmp_path / "b", refiner=None, height=48, width=64, classes=classes)
    report = verify(made, path=tmp_path / "b", weights=None, refiner_weights=None, frames=1)
    assert report["passed"] is True
    assert hops(report)[RECORDED]["passed"] is True
    reason = hops(report)["base", "torch -> onnxruntime"]["reason"]
    name = {"module": "foreign_nets:Net", "onnx": "net.onnx"}[kind]
    assert reason.startswith(f"made with --{kind} {name}: it was compared at export")
    assert "logits within" in reason
    assert reason.endswith(f"give --{kind} again to compare it here")
    assert main(["verify", str(tmp_path / "b"), "--json"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b"), "--weights", str(made / "base.pt")]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"--weights: expected a base that crispseg can build, found one made with --{kind}" in text
    with pytest.raises(InputError, match="expected a refiner for --refiner-weights"):
        verify_bundle(tmp_path / "b", prepared_frames, refiner_weights=made / "refiner.pt")
    # The module itself, when it is given again, is run on the frames.
    again = ["verify", str(tmp_path / "b"), "--module", "foreign_nets:Net", "--json", "--frames", "1"]
    assert main(again) == 0
    found = hops(json.loads(capsys.readouterr().out))["base", "torch -> onnxruntime"]
    assert found["passed"] is True
    assert 0 <= found["error"] < 1e-5
    if kind == "module":  # another module than the one that was exported
        assert main([*again, "--module-args", '{"kind": "twins"}', "--output", "1"]) == 3
        assert hops(json.loads(capsys.readouterr().out))["base", "torch -> onnxruntime"]["passed"] is False
    assert main(["verify", str(tmp_path / "b"), "--output", "1"]) == 2
    assert "--output: expected --module or --onnx with it" in capsys.readouterr().err


def test_wrong_inputs(made, tmp_path):
    with pytest.raises(InputError):
        verify(made, frames=0)
    with pytest.raises(InputError):
        verify(made, images=tmp_path / "none")
    with pytest.raises(BundleError):
        verify(made, path=tmp_path)


def test_only_pixels_at_the_cut_may_be_in_one_selection_alone():
    coords = np.array([[0, 0], [0, 1], [0, 2]])
    logits = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]], np.float32)
    cut = float(entropy(logits)[1])
    assert abs(float(entropy(logits)[0]) - np.log(2)) < 1e-12
    assert undecided_sites([(coords, logits)], cut + 1e-6, over_capacity=False) == {(0, 1)}
    assert undecided_sites([(coords, logits)], 0.5, over_capacity=False) == set()
    assert undecided_sites([(coords, logits), (coords[:0], logits[:0])], 0.5, over_capacity=True) == {(0, 2)}
    hop = Hop("refiner", "a -> b", 1e-4)
    hop.coords(coords[:2], coords, {(0, 2)})
    assert hop.passed is True
    assert hop.sites_different == 1
    hop.coords(coords[1:], coords, {(0, 2)})
    assert hop.passed is False


def test_difference():
    a = np.array([1.0, -4.0], np.float32)
    assert difference(a, a) == (0, 0)
    assert difference(a + 1, a) == (1, 0.25)
    assert difference(a[:1], a)[1] == np.inf
    assert difference(np.array([np.nan, -4]), a)[1] == np.inf
    assert difference(np.array([np.nan, -4]), np.array([np.nan, -4])) == (0, 0)
    assert difference(np.array([3], np.uint8), np.array([5], np.uint8)) == (2, 2)
    assert difference(a[:0], a[:0]) == (0, 0)


def test_without_torch_the_engines_are_compared_all_the_same(made):
    """On a device: what the bundle recorded, and the native engine against ONNX Runtime."""
    program = "import sys; sys.modules['torch'] = None; from crispseg.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, "verify", str(made / "bundle"), "--frames", "1", "--json"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hops(json.loads(done.stdout))[RECORDED]["passed"] is True
