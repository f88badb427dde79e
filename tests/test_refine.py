"""`crispseg refine` from files to files, with a small untrained SegRefiner."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from crispseg.bundle import load_bundle  # noqa: E402
from crispseg.bundle_masks import load_mask_bundle  # noqa: E402
from crispseg.cli import main  # noqa: E402
from crispseg.errors import BundleError, InputError  # noqa: E402
from crispseg.export import crm_bundle  # noqa: E402
from crispseg.export.segrefiner_bundle import export_segrefiner_bundle  # noqa: E402
from crispseg.files import hash_files  # noqa: E402
from crispseg.runtime.coco import decode, encode  # noqa: E402
from crispseg.runtime.mask_images import find_pairs, read_label_map, read_mask, read_photo  # noqa: E402
from crispseg.runtime.mask_refiner import Refined, RefineOptions, refine_labels  # noqa: E402
from crispseg.runtime.mask_run import refine  # noqa: E402

ORT = RefineOptions(backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    place = tmp_path_factory.mktemp("refine") / "bundle"
    return export_segrefiner_bundle(place, random_weights=True, channels=32, window=64, seed=1)


@pytest.fixture
def files(tmp_path):
    """A photo of 90 x 120 with the mask of a disc."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (90, 120, 3), np.uint8)
    y, x = np.mgrid[:90, :120]
    mask = ((y - 45) ** 2 + (x - 60) ** 2 < 30**2).astype(np.uint8) * 255
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def pixels(path):
    return np.array(Image.open(path))


def test_export_keeps_what_it_measured(bundle):
    assert bundle.kind == "segrefiner"
    assert bundle.refiner.random_weights
    assert "RANDOM" in bundle.provenance["warning"]
    assert bundle.provenance["refiner"]["parity"]["torch -> onnxruntime"]["max_probability_error"] < 1e-5
    assert load_mask_bundle(bundle.path) == bundle
    with pytest.raises(BundleError, match="crispseg refine"):
        load_bundle(bundle.path)


def test_half_weights(bundle, files):
    made = export_segrefiner_bundle(files / "half", random_weights=True, channels=32, window=64, seed=1, half=True)
    sizes = [b.files["unet.onnx"].bytes for b in (made, bundle)]
    assert sizes[0] < 0.55 * sizes[1]
    for number, backend in enumerate(("native", "onnxruntime")):
        options = RefineOptions(backend=backend, threads=1)
        refine(made, files / "a.png", files / "mask.png", files / str(number), options)
    assert (pixels(files / "0" / "masks" / "a.png") != pixels(files / "1" / "masks" / "a.png")).mean() < 0.001


def test_wrong_exports_leave_nothing(tmp_path):
    for changes, words in (
        ({}, "--weights FILE"),
        ({"random_weights": True, "window": 100}, "multiple of 32"),
        ({"random_weights": True, "mode": "video"}, "instance or semantic"),
    ):
        with pytest.raises(InputError, match=words):
            export_segrefiner_bundle(tmp_path / "b", channels=32, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["instance", "semantic"])
def test_same_seed_same_mask_on_every_backend_and_batch(bundle, files, mode):
    made = {}
    for name, options in (
        ("native", RefineOptions(mode, seed=4, backend="native", threads=1)),
        ("again", RefineOptions(mode, seed=4, backend="onnxruntime", threads=1, batch=5)),
        ("other", RefineOptions(mode, seed=5, backend="native", threads=1)),
    ):
        report = refine(bundle, files / "a.png", files / "mask.png", files / mode / name, options)
        made[name] = pixels(files / mode / name / "masks" / "a.png")
        assert report["photos"] == 1
        assert report["pipeline"]["mode"] == mode
        assert report["network_calls"] == calls_of(report, mode)
    assert set(np.unique(made["native"])) <= {0, 255}
    # The draws are the same; float rounding may flip a pixel whose probability is one half to the last bits.
    assert (made["native"] != made["again"]).mean() < 0.001
    assert (made["native"] != made["other"]).any()


def calls_of(report, mode):
    if mode == "instance":
        return 6
    return 5 + -(-report["items"][0]["windows"] // report["pipeline"]["batch"])


def test_command_line(bundle, files, capsys, monkeypatch):
    made = []
    out = files / "out"
    given = [str(bundle.path), str(files / "a.png"), str(files / "mask.png"), "-o", str(out), "--steps", "2", "--json"]
    assert main(["refine", *given]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["pictures"] == 2
    assert report["environment"]["packages"]
    assert report["bundle"]["path"] == str(bundle.path)
    assert report["input"]["photos_sha256"] == hash_files([files / "a.png"])
    assert report["input"]["masks_sha256"] == hash_files([files / "mask.png"])
    assert "refined" in report["items"][0]
    assert "random weights" in report["warnings"][0]
    assert main(["inspect", str(bundle.path)]) == 0
    assert "mask refiner segrefiner" in capsys.readouterr().out
    assert main(["run", str(bundle.path), str(files / "a.png"), "-o", str(out)]) == 2
    assert "crispseg refine" in capsys.readouterr().err
    assert main(["refine", *given, "--mode", "semantic"]) == 2
    assert "--steps: expected instance mode" in capsys.readouterr().err
    for kind, wrong in (
        ("segrefiner", ["--threshold", "1"]),
        ("segrefiner", ["--static"]),
        ("crm", ["--size", "10x10"]),
        ("crm", ["--mean", "1,2,3"]),
        ("crm", ["--window", "64"]),
    ):
        assert main(["export", kind, "--random-weights", *wrong, "-o", str(files / "b")]) == 2
        assert f"{wrong[0]} does not belong" in capsys.readouterr().err
    assert not (files / "b").exists()
    monkeypatch.setattr(crm_bundle, "export_crm", lambda place, **given: made.append(given["name"]))
    assert main(["export", "crm", "--random-weights", "-o", str(files / "b")]) == 2  # nothing was written to show
    assert made == ["crm (random weights)"]


def test_folders_match_by_stem(bundle, files):
    photos, masks = files / "photos", files / "masks"
    for folder in (photos, masks):
        folder.mkdir()
    for name in ("p2_im", "p10_im"):
        (photos / f"{name}.png").write_bytes((files / "a.png").read_bytes())
        (masks / f"{name[:-3]}_seg.png").write_bytes((files / "mask.png").read_bytes())
    assert [pair.name for pair in find_pairs(photos, masks)] == ["p2_im", "p10_im"]
    (masks / "p3_seg.png").write_bytes((files / "mask.png").read_bytes())
    report = refine(bundle, photos, masks, files / "out", RefineOptions(steps=1, threads=1), limit=1)
    assert report["photos"] == 1
    assert report["warnings"][0] == "1 masks have no photo and were left out: p3_seg.png"
    assert [p.name for p in (files / "out" / "masks").iterdir()] == ["p2_im.png"]
    (masks / "p10_seg.png").unlink()
    with pytest.raises(InputError, match=r"none for p10_im\.png"):
        find_pairs(photos, masks)
    with pytest.raises(InputError, match="one of each"):
        find_pairs(photos, files / "mask.png")
    with pytest.raises(InputError, match="would replace the input"):
        refine(bundle, photos, masks, files, ORT)


def test_a_pair_that_does_not_fit_is_found_before_any_work(bundle, files):
    photos, masks = files / "photos", files / "masks"
    small, palette = Image.new("L", (119, 90)), Image.new("P", (120, 90))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    for name, bad, words in (("b", small, "90 x 119, found 90 x 120"), ("c", palette, "found a palette")):
        for folder in (photos, masks):
            folder.mkdir()
        for stem in ("a", name):
            (photos / f"{stem}.png").write_bytes((files / "a.png").read_bytes())
        (masks / "a.png").write_bytes((files / "mask.png").read_bytes())
        bad.save(masks / f"{name}.png")
        with pytest.raises(InputError, match=words):
            refine(bundle, photos, masks, files / "out", ORT)
        assert not (files / "out").exists()
        shutil.rmtree(photos)
        shutil.rmtree(masks)


def test_progress_counts_within_a_photo(bundle, files):
    seen = []
    options = RefineOptions("semantic", backend="onnxruntime", threads=1, batch=1)
    report = refine(bundle, files / "a.png", files / "mask.png", files / "out", options, progress=seen_by(seen))
    assert report["items"][0]["windows"] > 2
    assert len(seen) == report["items"][0]["windows"] + 1
    assert seen == sorted(seen)
    assert seen[0] == (5 / report["network_calls"], 1, "")
    assert seen[-1] == (1, 1, "")
    labels = np.zeros((90, 120), np.uint8)
    labels[10:50, 10:60], labels[50:80, 20:90] = 1, 2
    parts = []
    refine_labels(Shifting(), np.zeros((90, 120, 3), np.uint8), labels, 0, progress=lambda *work: parts.append(work))
    assert parts == [(0.5, 2), (1, 2), (1.5, 2), (2, 2)]


def seen_by(seen):
    return lambda done, total, text="": seen.append((done, total, text))


def test_ctrl_c_finishes_the_photo_and_says_so(bundle, files):
    photos, masks = files / "photos", files / "masks"
    for folder, source in ((photos, "a.png"), (masks, "mask.png")):
        folder.mkdir()
        for stem in "abc":
            (folder / f"{stem}.png").write_bytes((files / source).read_bytes())
    said = []

    def stop_in_the_first(done, total, text=""):
        said.append(text)
        if len(said) == 1:
            signal.raise_signal(signal.SIGINT)

    options = RefineOptions("semantic", backend="onnxruntime", threads=1, batch=1)
    report = refine(bundle, photos, masks, files / "out", options, progress=stop_in_the_first)
    assert report["interrupted"]
    assert report["photos"] == 1
    assert "Ctrl-C again" in said[1]
    assert sorted(p.name for p in (files / "out").rglob("*.*")) == ["a.png", "report.json"]

    def stop_twice(done, total, text=""):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        refine(bundle, photos, masks, files / "twice", options, progress=stop_twice)
    assert [p.name for p in (files / "twice").rglob("*")] == ["masks"]


def test_masks_of_other_kinds(files):
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    wide = (grey.astype(np.uint16) * 257).astype(np.uint16)
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    for name, image in (
        ("l", Image.fromarray(grey)),
        ("16", Image.fromarray(wide)),
        ("rgba", Image.fromarray(rgba, "RGBA")),
        ("la", Image.fromarray(rgba[..., [0, 3]], "LA")),
    ):
        image.save(files / f"{name}.png")
        assert read_mask(files / f"{name}.png").tolist() == grey.tolist(), name
    Image.fromarray(grey > 127).save(files / "bit.png")
    assert read_mask(files / "bit.png").tolist() == [[0, 0, 255, 255]]
    palette = Image.fromarray(np.array([[0, 3]], np.uint8))
    palette.putpalette([9] * 768)
    palette.save(files / "p.png")
    with pytest.raises(InputError, match="--labels"):
        read_mask(files / "p.png")
    assert read_label_map(files / "p.png").tolist() == [[0, 3]]
    with pytest.raises(InputError, match="class ids"):
        read_label_map(files / "rgba.png")
    (files / "torn.png").write_bytes((files / "l.png").read_bytes()[:40])
    with pytest.raises(InputError, match="readable picture"):
        read_mask(files / "torn.png")


def test_exif_turns_the_photo_and_never_the_mask(files):
    stored = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(stored).save(files / "turned.png", exif=exif)
    upright = np.rot90(stored, -1)
    assert np.array_equal(read_photo(files / "turned.png", (6, 4)), upright)
    assert np.array_equal(read_photo(files / "turned.png", (4, 6), ignore_exif=True), stored)
    with pytest.raises(InputError, match="--ignore-exif"):
        read_photo(files / "turned.png", (4, 6))
    with pytest.raises(InputError, match="resize the mask"):
        read_photo(files / "turned.png", (5, 6))


class Shifting:
    """Moves every mask one pixel to the right, with a probability that its size decides."""

    def refine(self, photo, mask, progress=None):
        if progress is not None:
            progress(1, 2)
        moved = np.roll(mask > 0, 1, 1)
        moved[:, 0] = False
        return Refined(
            moved, np.where(moved, np.float32(0.5 + (mask > 0).mean() / 2), np.float32(0)), {"refined": True}
        )


def test_label_maps_are_joined_by_probability():
    labels = np.array([[1, 1, 1, 2, 0, 0, 255, 3]], np.uint8)
    photo = np.zeros((1, 8, 3), np.uint8)
    found = refine_labels(Shifting(), photo, labels)
    # 1 claims columns 1..3 and, being larger, wins column 3 from nobody else; 2 claims 4 against 0, which claims 5, 6.
    assert found.mask.tolist() == [[1, 1, 1, 1, 2, 0, 255, 3]]
    found = refine_labels(Shifting(), photo, labels, background=0)
    assert found.mask.tolist() == [[0, 1, 1, 1, 2, 0, 255, 0]]
    assert found.facts == {"classes": 3, "refined": 3}


def test_label_map_files(bundle, files):
    labels = np.full((90, 120), 7, np.uint8)
    labels[20:70, 30:90] = 3
    labels[:5] = 255
    Image.fromarray(labels).save(files / "labels.png")
    options = RefineOptions(threads=1, steps=2)
    report = refine(bundle, files / "a.png", files / "labels.png", files / "o", options, labels=True, background=7)
    made = pixels(files / "o" / "labels" / "a.png")
    assert set(np.unique(made)) <= {3, 7, 255}
    assert np.array_equal(made == 255, labels == 255)
    assert report["items"][0]["classes"] == 1
    with pytest.raises(InputError, match="--labels"):
        refine(bundle, files / "a.png", files / "mask.png", files / "o", options, background=7)


def test_run_lengths():
    # As pycocotools writes them.
    assert encode(np.array([[1, 0, 1], [1, 1, 0]], bool)) == {"size": [2, 3], "counts": "02100"}
    for mask in (np.zeros((3, 5), bool), np.ones((3, 5), bool), np.random.default_rng(0).random((70, 33)) < 0.3):
        again = encode(mask)
        assert np.array_equal(decode(again, "x"), mask)
    assert decode({"size": [2, 2], "counts": [1, 2, 1]}, "x").tolist() == [[False, True], [True, False]]
    for wrong in (
        [[1, 2, 3, 4]],
        {"size": [2, 2], "counts": "02"},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [10**6, 10**6], "counts": [0]},
        {"size": [2, 2], "counts": "oooooooooo"},
        {"size": [2, 2], "counts": [10**30]},
        {"size": [2, 2]},
        3,
    ):
        with pytest.raises(InputError, match="^here: "):
            decode(wrong, "here")


def test_coco_results(bundle, files):
    big = np.zeros((90, 120), bool)
    big[20:70, 20:80] = True
    tiny = np.zeros((90, 120), bool)
    tiny[3:9, 3:9] = True
    results = [
        {"image_id": 42, "category_id": 3, "bbox": [20, 20, 60, 50], "score": 0.5, "segmentation": encode(tiny)},
        {"image_id": 42, "category_id": 1, "bbox": [20, 20, 60, 50], "score": 0.9, "segmentation": encode(big)},
    ]
    (files / "results.json").write_text(json.dumps(results))
    photos = files / "photos"
    photos.mkdir()
    (photos / "000000000042.png").write_bytes((files / "a.png").read_bytes())
    options = RefineOptions(threads=1, steps=1)
    report = refine(bundle, photos, files / "results.json", files / "o", options)
    assert report["items"] == [{"name": "000000000042", "objects": 2, "refined": 1}]
    assert report["input"]["masks_sha256"] == hash_files([files / "results.json"])
    made = json.loads((files / "o" / "results.json").read_text())
    assert [{**item, "segmentation": 0} for item in made] == [{**item, "segmentation": 0} for item in results]
    assert made[0] == results[0]
    assert made[1]["segmentation"] != results[1]["segmentation"]
    assert decode(made[1]["segmentation"], "x").shape == (90, 120)
    with pytest.raises(InputError, match="--mode instance"):
        refine(bundle, photos, files / "results.json", files / "o", RefineOptions("semantic", threads=1))
    results[1]["image_id"] = 7
    (files / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="photo of image_id 7"):
        refine(bundle, photos, files / "results.json", files / "o", options)
    results[1].update(image_id=42, segmentation={"size": [90, 120], "counts": [5]})
    (files / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="object 1: counts"):  # before the first object is refined
        refine(bundle, photos, files / "results.json", files / "new", options)
    assert not (files / "new").exists()
    assert refine(bundle, files / "a.png", files / "mask.png", files / "o", options)["output"] == {"masks": "masks"}


def test_options_are_checked(bundle):
    from crispseg.runtime.mask_refiner import open_mask_refiner

    for options, words in (
        (RefineOptions(mode="video"), "instance or semantic"),
        (RefineOptions(steps=7), "1 to 6"),
        (RefineOptions(backend="native", provider="CUDAExecutionProvider"), "provider belongs to onnxruntime"),
        (RefineOptions(seed=-1), "--seed"),
    ):
        with pytest.raises(InputError, match=words):
            open_mask_refiner(bundle, options)
