"""A bundle from checkpoints: files, sizes, provenance, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

sys.path.insert(0, str(Path(__file__).parents[1]))
import fill_bases  # noqa: E402

from crispseg.bundle import load_bundle  # noqa: E402
from crispseg.errors import AccuracyGate, BundleError, CheckpointError, InputError, UnsupportedOp  # noqa: E402
from crispseg.export import dense, networks, project  # noqa: E402
from crispseg.models.bases.small import SmallNet  # noqa: E402
from crispseg.models.refiners.sparserefine import SparseRefineConfig, SparseRefiner  # noqa: E402

torch.set_num_threads(1)

WIDTHS, DEPTHS = (8, 12, 16, 16), (1, 1, 1, 1)
REFINER = {"planes": (4, 6, 8), "repeats": 1}


def plain(config):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints as ``crispseg fit`` writes them, and an official refiner."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(1)
    net = SmallNet(11, WIDTHS, DEPTHS, 8)
    config = {**net.config}
    record = {"options": {"steps": 3}, "scores": {"miou": 1.5}}
    torch.save({"config": config, "state_dict": net.state_dict(), "training": record}, root / "base.pt")
    ours = SparseRefiner(
        SparseRefineConfig(num_classes=11, threshold=0.7, upsample="bilinear", channel_order="rgb", **REFINER)
    )
    torch.save(
        {"config": {"architecture": "sparserefine", **plain(ours.config)}, "state_dict": ours.state_dict()},
        root / "refiner.pt",
    )
    official = {"model." + k: v for k, v in ours.state_dict().items()}
    torch.save({"state_dict": official, "epoch": 3}, root / "official.ckpt")
    return root


def export(folder, out, **more):
    options = {"height": 50, "width": 70, "classes": "camvid", "capacity": 3000, **more}
    options.setdefault("weights", folder / "base.pt")
    options.setdefault("refiner_weights", folder / "refiner.pt")
    return project.export_bundle(options.pop("base", "small"), out, **options)


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    return export(folder, tmp_path_factory.mktemp("out") / "bundle", baseline=True, capacity=3500)


def test_manifest_says_what_is_inside(bundle):
    again = load_bundle(bundle.path)
    assert again == bundle
    assert sorted(bundle.files) == ["base.onnx", "base.weights", "baseline.onnx", "refiner.onnx"]
    assert (bundle.height, bundle.width, len(bundle.classes)) == (50, 70, 11)
    assert (bundle.base.height, bundle.base.width) == (25, 35)
    assert (bundle.base.logits_height, bundle.base.logits_width) == (4, 5)
    assert (bundle.baseline.height, bundle.baseline.logits_height, bundle.baseline.logits_width) == (50, 7, 9)
    assert bundle.base.architecture == "small"
    assert bundle.base.channel_order == "rgb"
    assert bundle.base.mean == (123.675, 116.28, 103.53)
    assert bundle.base.upsample == "bilinear"
    refiner = bundle.refiner
    assert (refiner.planes, refiner.repeats, refiner.features) == ((4, 6, 8), (1, 1, 1), ("rgb",))
    assert (refiner.threshold, refiner.capacity, refiner.upsample) == (0.7, 3500, "bilinear")
    assert not bundle.base.random_weights
    assert not refiner.random_weights


def test_provenance_holds_hashes_recipe_and_measured_parity(bundle, folder):
    notes = bundle.provenance
    assert "warning" not in notes
    assert notes["base"]["sha256"] == hashlib.sha256((folder / "base.pt").read_bytes()).hexdigest()
    assert notes["base"]["checkpoint"] == "base.pt"
    assert notes["base"]["training"]["scores"] == {"miou": 1.5}
    for role in ("base", "baseline"):
        assert 0 < notes[role]["parity"]["max_error_std"] < 1e-4
    assert notes["refiner"]["parity"]["labels_agreement"] > 0.999
    assert 200 < notes["refiner"]["parity"]["active"] < 4000
    assert notes["tools"]["torch"].startswith("2")
    assert str(folder) not in json.dumps(notes)


def test_files_run_together_as_torch_does(bundle, folder):
    base, _ = networks.base_network("small", 11, folder / "base.pt")
    refiner = networks.refiner_network(11, folder / "refiner.pt")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    small = torch.randn(1, 3, 25, 35)
    cpu = ["CPUExecutionProvider"]
    (logits,) = ort.InferenceSession(str(bundle.file("base.onnx")), providers=cpu).run(None, {"image": small.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), base.module.forward_logits(small), rtol=0, atol=1e-5)
        refined = refiner.module.refine(torch.from_numpy(image)[None], torch.from_numpy(logits))
        wanted = refiner.module.labels(refined, torch.from_numpy(logits))[0].numpy()
    session = ort.InferenceSession(str(bundle.file("refiner.onnx")), providers=cpu)
    labels, found = session.run(["labels", "found"], {"image": image, "logits": logits})
    assert int(found[0]) == int(refined.mask.sum()) > 0
    assert (labels == wanted).mean() > 0.999


def test_baseline_adds_little_to_the_weights(bundle, folder, tmp_path):
    alone = export(folder, tmp_path / "alone")
    assert "base.weights" not in alone.files
    total = bundle.files["base.weights"].bytes + bundle.files["base.onnx"].bytes
    assert abs(total - alone.files["base.onnx"].bytes) < 4096
    assert bundle.files["baseline.onnx"].bytes < 0.5 * alone.files["base.onnx"].bytes


def test_same_input_gives_the_same_files(folder, tmp_path, bundle):
    again = export(folder, tmp_path / "again", baseline=True, capacity=3500)
    assert again.files == bundle.files
    random = [export(folder, tmp_path / n, weights=None, refiner_weights=None, random_weights=True,
                     refiner_settings=REFINER) for n in "ab"]  # fmt: skip
    assert random[0].files == random[1].files


def test_random_weights_are_said_loudly(tmp_path, folder):
    made = export(folder, tmp_path / "r", refiner_weights=None, random_weights=True, refiner_settings=REFINER)
    assert made.refiner.random_weights
    assert not made.base.random_weights
    assert made.provenance["warning"].startswith("RANDOM WEIGHTS: refiner untrained")
    assert "random weights" in made.name
    assert made.refiner.upsample == "nearest"
    assert made.refiner.threshold == 0.3


def test_random_weights_leave_the_callers_generator_alone(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    networks.refiner_network(3, None, REFINER)
    assert torch.equal(torch.rand(1), wanted)


def test_half_weights_are_smaller_and_close(tmp_path, folder, bundle):
    half = export(folder, tmp_path / "half", baseline=True, half_weights=True)
    assert half.files["base.weights"].bytes < 0.55 * bundle.files["base.weights"].bytes
    assert 1e-5 < half.provenance["base"]["parity"]["max_error_std"] < 1e-2
    assert half.provenance["weights_precision"] == "float16"


def test_bundle_without_a_refiner(tmp_path, folder):
    made = export(folder, tmp_path / "b", refiner=None, refiner_weights=None, capacity=None)
    assert made.refiner is None
    assert sorted(made.files) == ["base.onnx"]


def test_overrides_and_defaults(tmp_path, folder):
    made = export(folder, tmp_path / "b", threshold=0.05, capacity=None, upsample="nearest", scale=0.3, name="mine")
    assert (made.refiner.threshold, made.refiner.upsample, made.name) == (0.05, "nearest", "mine")
    assert made.refiner.capacity == 875  # a quarter of 50 x 70
    assert (made.base.height, made.base.width) == (15, 21)


def test_logits_at_the_size_of_the_input(tmp_path, folder):
    made = export(folder, tmp_path / "b", logits="input")
    assert (made.base.logits_height, made.base.logits_width) == (25, 35)


def test_progress_names_every_step(tmp_path, folder):
    lines = []
    export(folder, tmp_path / "b", progress=lines.append)
    assert lines[0] == "load small"
    assert "export base at 25x35" in lines
    assert lines[-1] == "write bundle"


class TestRefinerCheckpoints:
    def test_official_structure_is_read_off_the_shapes(self, folder):
        net = networks.refiner_network(11, folder / "official.ckpt")
        config = net.module.config
        assert (config.planes, config.repeats, config.features) == ((4, 6, 8), (1, 1, 1), ("rgb",))
        assert (config.channel_order, config.upsample, config.extent) == ("bgr", "nearest", "active")
        ours = networks.refiner_network(11, folder / "refiner.pt").module.state_dict()
        assert all(torch.equal(v, ours[k]) for k, v in net.module.state_dict().items())

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"planes": (4,), "repeats": 3},
            {"planes": (4, 5, 6, 7), "repeats": (1, 2, 3, 2)},
            {"features": ("rgb", "xy")},
            {"features": ("rgb", "p")},
            {"features": ("rgb", "xy", "p"), "ensembler": "entropy"},
            {"selector": "learnable"},
        ],
    )
    def test_every_structure_is_found(self, settings):
        config = SparseRefineConfig(num_classes=7, **{**REFINER, **settings})
        found = networks.infer_structure(SparseRefiner(config).state_dict(), "x")
        assert found == {k: getattr(config, k) for k in found}

    def test_default_structure(self):
        with torch.device("meta"):
            state = SparseRefiner().state_dict()
        assert networks.infer_structure(state, "x")["planes"] == (32, 64, 128, 256, 512, 1024)

    def test_other_classes_are_refused(self, folder, tmp_path):
        with pytest.raises(CheckpointError, match="expected a refiner for 19 classes, found 11"):
            networks.refiner_network(19, folder / "official.ckpt")

    def test_config_must_agree_with_the_weights(self, folder, tmp_path):
        state = torch.load(folder / "refiner.pt", weights_only=True)
        state["config"]["planes"] = [4, 6, 4096]
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"config says planes \[4, 6, 4096\], the weights say \(4, 6, 8\)"):
            networks.refiner_network(11, tmp_path / "a.pt")

    def test_a_base_is_not_a_refiner(self, folder):
        with pytest.raises(CheckpointError, match="expected a SparseRefine checkpoint"):
            networks.refiner_network(11, folder / "base.pt")

    def test_learnable_selector_cannot_be_exported(self, folder, tmp_path):
        torch.save(SparseRefiner(SparseRefineConfig(11, selector="learnable", **REFINER)).state_dict(), tmp_path / "l")
        with pytest.raises(UnsupportedOp, match="learnable"):
            export(folder, tmp_path / "out", refiner_weights=tmp_path / "l")
        assert not (tmp_path / "out").exists()


class TestBaseCheckpoints:
    def test_config_cannot_ask_for_more_than_the_file_holds(self, folder, tmp_path):
        state = torch.load(folder / "base.pt", weights_only=True)
        for key, value, match in (
            ("widths", [4000, 4000, 4000, 4000], "the file holds"),
            ("pyramid", 10**9, "expected values of 0..4096"),
            ("architecture", "sfnet-lite-r18", "expected base 'small'"),
            ("num_classes", 12, r"a\.pt: expected .* with 12"),
            ("depths", [1, 1, 1], "settings of a base .small., found IndexError"),
        ):
            torch.save({**state, "config": {**state["config"], key: value}}, tmp_path / "a.pt")
            with pytest.raises(CheckpointError, match=match):
                networks.base_network("small", 11, tmp_path / "a.pt")

    def test_bare_file_of_another_base(self, folder, tmp_path):
        torch.save(torch.load(folder / "base.pt", weights_only=True)["state_dict"], tmp_path / "bare.pt")
        with pytest.raises(CheckpointError, match="missing"):
            networks.base_network("sfnet-lite-r18", 11, tmp_path / "bare.pt")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"base": "sfnet"}, InputError, "unknown"),
        ({"base": "sfnet", "refiner_weights": None}, InputError, "unknown"),
        ({"scale": 0}, InputError, "scale 0"),
        ({"scale": 1.5}, InputError, "scale 1.5"),
        ({"height": 4}, InputError, "height first"),
        ({"capacity": 0}, InputError, "capacity 0"),
        ({"capacity": 50 * 70 + 1}, InputError, "1 to 3500"),
        ({"threshold": float("nan")}, InputError, "finite"),
        ({"upsample": "cubic"}, InputError, "upsample"),
        ({"logits": "full"}, InputError, "native or input"),
        ({"refiner": "crm"}, InputError, "crm"),
        ({"refiner": None}, InputError, "without a refiner"),
        ({"refiner_settings": {"plane": 3}}, CheckpointError, "unknown settings plane"),
        ({"weights": None}, InputError, "expected --weights"),
        ({"weights": None, "refiner_weights": None}, InputError, "--weights and --refiner-weights"),
        ({"random_weights": True}, InputError, "every checkpoint is given"),
        ({"classes": "nowhere"}, InputError, "nowhere"),
        ({"classes": "cityscapes"}, CheckpointError, "19 classes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, tmp_path, change, error, match):
    with pytest.raises(error, match=match):
        export(folder, tmp_path / "out", **change)
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoint_names_the_file(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.pt"):
        export(folder, tmp_path / "out", weights=tmp_path / "no.pt")


def test_a_foreign_directory_is_not_replaced(folder, tmp_path):
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match="choose another name"):
        export(folder, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "keep me"


def test_an_export_that_computes_something_else_is_refused(folder, tmp_path, monkeypatch):
    right = dense.export_dense

    def wrong(module, **options):
        model = right(module, **options)
        tensor = next(t for t in model.graph.initializer if t.name == "classifier.bias")
        values = onnx.numpy_helper.to_array(tensor) + np.float32(0.5)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(dense, "export_dense", wrong)
    with pytest.raises(AccuracyGate, match=r"base\.onnx"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refiner_that_computes_something_else_is_refused(folder, tmp_path, monkeypatch):
    right = project.export_refiner
    monkeypatch.setattr(project, "export_refiner", lambda module, **o: right(module, **{**o, "threshold": 1.5}))
    with pytest.raises(AccuracyGate, match=r"refiner\.onnx"):
        export(folder, tmp_path / "out")


def test_the_command_prints_and_stores_parity_and_refuses_by_exit_code(folder, tmp_path, monkeypatch, capsys):
    from crispseg.cli import main

    arguments = [
        "export",
        "small",
        "--weights",
        str(folder / "base.pt"),
        "--refiner-weights",
        str(folder / "refiner.pt"),
    ]
    # --static asks for what every export does anyway: it is taken, and not offered.
    arguments += ["--size", "50x70", "--classes", "camvid", "--capacity", "3000", "--static", "-o", str(tmp_path / "b")]
    assert main(arguments) == 0
    text, said = (" ".join(part.split()) for part in capsys.readouterr())
    assert said.count("--static: shapes are always static, the option can be left out") == 1
    assert main(["export", "--help"]) == 0
    assert "--static" not in capsys.readouterr().out
    assert "base, torch -> onnxruntime: input standard normal, seed 0; gate 0.001; max_error" in text
    assert "refiner, torch -> onnxruntime (portable bodies): input 96x128 noise, seed 0; active" in text
    stored = json.loads((tmp_path / "b" / "bundle.json").read_text())["provenance"]
    assert stored["base"]["parity"]["max_error_std"] < 1e-4
    assert stored["refiner"]["parity"]["labels_agreement"] > 0.999

    monkeypatch.setattr(project, "GATE", 1e-12)
    arguments[-1] = str(tmp_path / "refused")
    assert main(arguments) == 2
    assert "base.onnx: expected logits within 1e-12" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "refused").exists()
    assert main([*arguments, "--force"]) == 0
    assert "FORCED: base.onnx: expected logits within 1e-12" in " ".join(capsys.readouterr().out.split())


def test_altered_weight_file_is_noticed(bundle, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    data = bytearray((copy / "base.weights").read_bytes())
    data[100] ^= 1
    (copy / "base.weights").write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"base\.weights"):
        load_bundle(copy)


def test_official_base_checkpoint_gives_the_official_logits(tmp_path):
    arch = "sfnet_lite_r18"
    facts = fill_bases.manifest(arch)
    filled = fill_bases.fill(facts["keys"], facts["gains"])
    state = {"module." + k: torch.from_numpy(v) for k, v in filled.items()}
    torch.save({"state_dict": state, "epoch": 1, "mean_iu": np.float64(0.8), "command": "x"}, tmp_path / "o.pth")
    made = project.export_bundle(
        "sfnet-lite-r18", tmp_path / "b", weights=tmp_path / "o.pth", height=144, width=240, refiner=None
    )
    assert (made.base.logits_height, made.base.logits_width) == (18, 30)
    assert made.base.upsample == "bilinear_corners"
    assert made.provenance["base"]["dropped"] == {"keys": 16, "groups": ["head.dsn", "head.fpn_in"]}
    assert made.provenance["base"]["parity"]["max_error_std"] < 1e-4
    session = ort.InferenceSession(str(made.file("base.onnx")), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": fill_bases.image(arch, 72, 120)[0]})
    full = torch.nn.functional.interpolate(torch.from_numpy(logits), (72, 120), mode="bilinear", align_corners=True)
    extra = facts["extra_72x120"]
    error = np.abs(full.numpy().reshape(-1)[extra["flat_index"]] - np.array(extra["value"])).max()
    assert error <= 2e-4 * extra["std"]
