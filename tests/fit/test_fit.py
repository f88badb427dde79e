"""Training: data, resume, checkpoints, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from crispseg.bundle import load_bundle  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.errors import CheckpointError, InputError  # noqa: E402
from crispseg.fit import data, train  # noqa: E402
from crispseg.fit.data import batches, class_weights, random_crop, read_pairs  # noqa: E402
from crispseg.fit.loop import save_atomically  # noqa: E402
from crispseg.fit.options import FitOptions  # noqa: E402
from crispseg.fit.pairs import Cache, Entry, Pairs  # noqa: E402
from crispseg.fit.refine import find_threshold, fit_refiner, load_base  # noqa: E402
from crispseg.fit.train import confusion, finish, fit_base, load_data, miou  # noqa: E402
from crispseg.models.bases.small import SmallNet, from_config  # noqa: E402
from crispseg.models.checkpoints import load_checkpoint, load_config, load_strict  # noqa: E402

H, W, C = 64, 96, 3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path):
    """Six pictures whose class is told by the colour: ground below a slanted line, a bright disc."""
    images, labels = tmp_path / "set" / "images", tmp_path / "set" / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    yy, xx = np.mgrid[:H, :W]
    for i in range(6):
        rng = np.random.default_rng(i)
        label = (yy > 30 + 0.2 * xx * (-1) ** i).astype(np.uint8)
        cy, cx = rng.integers(12, 50), rng.integers(12, 80)
        label[(yy - cy) ** 2 + (xx - cx) ** 2 < 60] = 2
        label[:2] = 255
        colours = np.array([[90, 120, 200], [70, 70, 70], [230, 200, 40]])
        image = colours[np.where(label == 255, 0, label)] + rng.normal(0, 8, (H, W, 3))
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(images / f"{i}.png")
        Image.fromarray(label).save(labels / f"{i}.png")
    return images, labels


def options(pair, out, **changes) -> FitOptions:
    values = {
        "out": out,
        "height": H,
        "width": W,
        "num_classes": C,
        "folders": (pair,),
        "validation": pair,
        "steps": 6,
        "batch": 2,
        "warmup": 2,
        "validate_every": 3,
        "ema": 0.5,
        "threads": 1,
        "scale_range": (0.5, 1.0),
    }
    return FitOptions(**{**values, **changes})


def test_base_learns_and_resumes_exactly(folders, tmp_path):
    whole = fit_base(options(folders, tmp_path / "whole"))
    assert whole["steps"] == 6
    assert len(whole["history"]) == 2
    assert whole["options"]["folders"] == [["set", "labels"]]

    # The same run, broken after step 3 and resumed, ends with the same weights to the last bit.
    # The state of step 3 is written after its report, so stop at the first report of step 4 and later.
    def late_stop(event):
        if event["step"] > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_base(options(folders, tmp_path / "broken"), late_stop)
    fit_base(options(folders, tmp_path / "broken", resume=True))
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "broken"))
    assert a["step"] == b["step"] == 6
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key


def test_best_checkpoint_loads_strictly(folders, tmp_path):
    fit_base(options(folders, tmp_path / "run", steps=2, validate_every=2))
    path = tmp_path / "run" / "best.pt"
    module = from_config(load_config(path))
    load_strict(module, load_checkpoint(path))
    assert module(torch.zeros(1, 3, 33, 47)).shape == (1, C, 33, 47)


def test_resume_of_nothing_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="found nothing; check -o"):
        fit_base(options(folders, tmp_path / "none", resume=True))


@pytest.mark.parametrize("what", ["weights", "report"])
def test_a_full_disk_leaves_no_part_of_a_file(folders, tmp_path, what):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = {
        "weights": lambda: save_atomically({"w": torch.zeros(10000)}, tmp_path / "best.pt"),
        "report": lambda: finish({"history": [0.5] * 100}, options(folders, tmp_path)),
    }[what]
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(InputError, match="cannot (be written|write the report)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_resume_of_another_network_is_refused(folders, tmp_path):
    fit_base(options(folders, tmp_path / "run", steps=1))
    with pytest.raises(CheckpointError, match="use another -o"):
        fit_base(options(folders, tmp_path / "run", steps=2, num_classes=4, resume=True))


def test_refiner_beats_its_base(folders, tmp_path):
    fit_base(options(folders, tmp_path / "base", steps=40, lr=3e-3, ema=0.8))
    refine = options(
        folders,
        tmp_path / "refiner",
        base=tmp_path / "base" / "best.pt",
        planes=(8, 12),
        repeats=(1, 1),
        features=("rgb", "p"),
        density=0.3,
        steps=40,
        lr=5e-3,
        ema=0.8,
        scale_range=(1.0, 1.0),
    )
    record = fit_refiner(refine)
    last = record["history"][-1]
    assert last["miou"] > last["miou_base"] + 2
    assert record["warnings"] == []
    assert 10 < last["density"] < 60
    # A run that starts from it is as good at once.
    again = fit_refiner(
        dataclasses.replace(
            refine, out=tmp_path / "again", init=tmp_path / "refiner" / "best.pt", steps=1, lr=1e-9, validate_every=1
        )
    )
    assert again["history"][0]["miou"] > last["miou"] - 2
    config = load_config(tmp_path / "refiner" / "best.pt")
    assert config["planes"] == [8, 12]
    assert config["threshold"] == record["threshold"]


def test_threshold_selects_the_density(folders, tmp_path):
    module = SmallNet(C).eval()
    with torch.no_grad():
        for p in module.classifier.parameters():
            p.normal_(0, 0.3)
    pairs = read_pairs(*folders, C)

    def base(images):
        x = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 60 - 2
        with torch.no_grad():
            return module.forward_logits(x)

    from crispseg.sparse.select import entropy

    threshold = find_threshold(base, pairs, 0.25)
    share = [
        (entropy(torch.nn.functional.interpolate(base(i[None]), size=(H, W), mode="bilinear"), 1) > threshold)
        for i, _ in pairs
    ]
    assert abs(torch.stack(share).float().mean() - 0.25) < 0.03


def test_batches_depend_on_seed_and_step_alone(folders):
    pairs = [(1.0, read_pairs(*folders, C))]
    o = options(folders, "unused")
    first = batches(pairs, o, (32, 48), (0.5, 1.0), 0)
    next(first)
    second = next(first)
    again = next(batches(pairs, o, (32, 48), (0.5, 1.0), 1))
    other = next(batches(pairs, dataclasses.replace(o, seed=1), (32, 48), (0.5, 1.0), 1))
    assert np.array_equal(second[0], again[0])
    assert np.array_equal(second[1], again[1])
    assert not np.array_equal(second[0], other[0])


def test_crop_pads_with_ignore(folders):
    pair = read_pairs(*folders, C)[0]
    image, label = random_crop(pair, 0.25, (32, 48), np.random.default_rng(0))
    assert image.shape == (32, 48, 3)
    assert label.shape == (32, 48)
    assert (label == 255).sum() > 32 * 48 // 2


def test_confusion_and_miou_by_hand():
    matrix = confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 0, 255]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert miou(matrix) == pytest.approx(50.0)


def test_class_weights_favour_the_rare():
    label = np.zeros((10, 10), np.uint8)
    label[0, :5] = 1
    pair = (np.zeros((10, 10, 3), np.uint8), label)
    weights = class_weights(Pairs([Entry(lambda: pair)], Cache(0)), 2, 0.5)
    assert weights[1] > 3 * weights[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"folders": (), "scenes": 0}, "no training data"),
        ({"scenes": 2}, "CamVid"),
        ({"steps": 0}, "at least 1"),
        ({"scale": 2.0}, "--scale"),
        ({"stride": 16}, "--stride"),
        ({"scale_range": (2.0, 1.0)}, "--scale-range"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"device": "abacus"}, "--device abacus: expected cpu, cuda"),
    ],
)
def test_bad_options(folders, tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        fit_base(options(folders, tmp_path / "x", **changes))


def test_bad_data(folders, tmp_path):
    images, labels = folders
    with pytest.raises(InputError, match="found none"):
        read_pairs(tmp_path / "nothing", labels, C)
    Image.fromarray(np.full((H, W), 7, np.uint8)).save(labels / "0.png")
    with pytest.raises(InputError, match="expected ids below 2 or 255, found 7"):
        read_pairs(images, labels, 2)
    (labels / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png"):
        read_pairs(images, labels, 12)
    with pytest.raises(InputError, match="--base"):
        load_base(options(folders, tmp_path, base=None))


def test_a_set_that_does_not_fit_is_read_when_drawn(folders, monkeypatch):
    """Little memory changes how often files are read, and nothing else."""
    opened = []  # threads: the one that makes batches may still read what nobody waits for
    read, own = data.read_image, threading.get_ident
    monkeypatch.setattr(data, "read_image", lambda file, *rest: (opened.append(own()), read(file, *rest))[1])
    drawn, reads = [], []
    for kept in (100, 2, 0):
        pairs = read_pairs(*folders, C, Cache(kept * 4 * H * W))
        stream = batches([(1.0, pairs)], options(folders, "unused", batch=4), (32, 48), (0.5, 1.0), 0)
        drawn.append([next(stream) for _ in range(6)])
        stream.close()
        assert sum(entry.kept is not None for entry in pairs.entries) == min(kept, 6)
        pairs = read_pairs(*folders, C, Cache(kept * 4 * H * W))
        opened.clear()
        assert len(list(pairs)) == 6
        reads.append(opened.count(own()))
    assert reads == [0, 4, 6]
    for other in drawn[1:]:
        for (images, labels), (same, alike) in zip(drawn[0], other):
            assert np.array_equal(images, same)
            assert np.array_equal(labels, alike)


def test_the_room_is_one_for_the_whole_run(folders, monkeypatch):
    monkeypatch.setattr(train, "CACHE_BYTES", 4 * H * W * 9)
    groups, validation = load_data(options(folders, "unused", folders=(folders,), validation=folders))
    for _ in range(2):  # what is drawn later does not push the limit
        assert len(list(validation)) == len(groups[0][1]) == 6
    assert [sum(e.kept is not None for e in pairs.entries) for pairs in (groups[0][1], validation)] == [6, 3]


def test_what_is_read_late_is_checked_again(folders):
    images, labels = folders
    pairs = read_pairs(images, labels, C, Cache(0))
    assert pairs.label_counts().sum() == 6 * H * W
    Image.fromarray(np.full((H, W), 9, np.uint8)).save(labels / "1.png")
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:2000])
    with pytest.raises(InputError, match="expected ids below 3 or 255, found 9"):
        pairs[1]
    with pytest.raises(InputError, match=r"2\.png: cannot be read"):
        pairs[2]
    Image.fromarray(np.zeros((H, W - 1, 3), np.uint8)).save(images / "3.png")
    with pytest.raises(InputError, match=r"3\.png: expected the image's size \(64, 95\), found \(64, 96\)"):
        pairs[3]
    Image.fromarray(np.zeros((H, W), np.uint8)).save(labels / "1.png")
    with pytest.raises(InputError, match=r"3\.png: expected the image's size \(64, 95\), found \(64, 96\)"):
        read_pairs(images, labels, C, Cache(0))  # of its header alone


def test_pictures_are_upright(tmp_path):
    """Orientation of EXIF: the label map belongs to the upright photo, as in eval and run."""
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / "labels" / "a.png")
    ((image, _),) = read_pairs(tmp_path, tmp_path / "labels", 3)
    assert np.array_equal(image, stored[::-1, ::-1])


@pytest.mark.parametrize(("field", "value"), [("iou_weight", 3.0), ("logit_noise", 1.0)])
def test_iou_loss_and_noise_reach_the_training(folders, tmp_path, field, value):
    """One step from the same start: the loss that is reported differs from that without, and IoU only adds to it."""
    fit_base(options(folders, tmp_path / "base", steps=1))
    changes = {"base": tmp_path / "base" / "best.pt", "planes": (4, 6), "repeats": (1, 1), "features": ("rgb", "p")}
    changes.update(steps=1, scale_range=(1.0, 1.0), threshold=0.0)
    losses = []
    for name, more in (("plain", {}), ("same", {}), ("other", {field: value})):
        record = fit_refiner(options(folders, tmp_path / name, **changes, **more))
        losses.append(record["history"][0]["loss"])
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]
    if field == "iou_weight":
        assert losses[0] < losses[2] <= losses[0] + value


def test_refiner_on_another_base(folders, tmp_path):
    """SFNet-Lite, from a bare state dict: its own upsampling rule goes into the refiner."""
    from crispseg.models.bases import build_base

    torch.manual_seed(0)
    torch.save(build_base("sfnet-lite-r18", C).state_dict(), tmp_path / "sf.pt")
    changes = {"base": tmp_path / "sf.pt", "planes": (4, 6), "repeats": (1, 1), "steps": 1, "scale_range": (1.0, 1.0)}
    fit_refiner(options(folders, tmp_path / "r", base_name="sfnet_lite_r18", **changes))
    assert load_config(tmp_path / "r" / "best.pt")["upsample"] == "bilinear_corners"
    with pytest.raises(CheckpointError, match=r"sf\.pt"):
        fit_refiner(options(folders, tmp_path / "x", **changes))


def test_refiner_on_the_base_of_a_bundle(folders, tmp_path, capsys):
    """Any network can be a bundle's base; its logits come from ONNX Runtime and are those that PyTorch gives."""
    fit_base(options(folders, tmp_path / "base", steps=12, lr=3e-3, ema=0.8))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["sky", "ground", "disc"]))
    size = ["--size", f"{H}x{W}", "--scale", "0.5", "--classes", str(classes)]
    source = ["small", "--weights", str(tmp_path / "base" / "best.pt"), "--refiner", "none"]
    assert main(["export", *source, *size, "-o", str(tmp_path / "b")]) == 0
    data = []
    for kind in ("", "val-"):
        data += [f"--{kind}images", str(folders[0]), f"--{kind}labels", str(folders[1])]
    net = ["--planes", "8,12", "--repeats", "1", "--density", "0.3", "--steps", "1", "--batch", "2", "--threads", "1"]
    records = []
    for given in (["--bundle", str(tmp_path / "b")], ["--base", str(tmp_path / "base" / "best.pt"), *size]):
        capsys.readouterr()
        assert main(["fit", "refiner", *given, *data, *net, "--json", "-o", str(tmp_path / f"r{len(records)}")]) == 0
        records.append(json.loads(capsys.readouterr().out))
    ours, reference = records
    assert ours["threshold"] == pytest.approx(reference["threshold"], abs=2e-3)
    assert ours["history"][0]["miou_base"] == pytest.approx(reference["history"][0]["miou_base"], abs=0.2)
    assert ours["options"]["bundle"] == "small"
    assert ours["history"][0]["miou"] < ours["history"][0]["miou_base"], "one step is no training"
    assert "train longer" in ours["warnings"][0]
    refiner = ["--refiner-weights", str(tmp_path / "r0" / "best.pt")]
    assert main(["export", *source[:3], *refiner, *size, "-o", str(tmp_path / "whole")]) == 0
    made = load_bundle(tmp_path / "whole").refiner
    assert made.threshold == pytest.approx(ours["threshold"])


def test_an_untrained_base_is_no_base_to_refine(tmp_path, capsys):
    source = ["small", "--random-weights", "--refiner", "none", "--size", "64x96", "--classes", "camvid"]
    assert main(["export", *source, "-o", str(tmp_path / "b")]) == 0
    arguments = ["fit", "refiner", "--bundle", str(tmp_path / "b"), "--scenes", "4", "-o", str(tmp_path / "r")]
    assert main(arguments) == 2
    assert "expected a trained base, found random weights" in capsys.readouterr().err
    assert main([*arguments, "--size", "64x96"]) == 2
    assert "--size: expected none with --bundle" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(folders, tmp_path, monkeypatch, capsys):
    """Only where a state was written in this very run."""
    size = ["--size", f"{H}x{W}", "--classes", "camvid", "--images", str(folders[0]), "--labels", str(folders[1])]
    for text, written in (("interrupted\n", False), ("--resume goes on from", True), ("interrupted\n", False)):

        def interrupted(options, tell, written=written):
            if written:
                options.out.mkdir()
                (options.out / "last.pt").write_bytes(b"state")
            raise KeyboardInterrupt

        monkeypatch.setattr(train, "fit_base", interrupted)
        assert main(["fit", "base", *size, "-o", str(tmp_path / "run")]) == 130
        assert text in capsys.readouterr().err
