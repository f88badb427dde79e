"""What a run refuses, and what it leaves behind when something fails under way."""

from __future__ import annotations

import os

import numpy as np
import pytest

from crispseg.errors import BundleError, InputError

for name in ("onnx", "onnxruntime", "PIL.Image", "av"):
    pytest.importorskip(name)
import toy  # noqa: E402
from PIL import Image  # noqa: E402

from crispseg.runtime.pipeline import open_pipeline  # noqa: E402
from crispseg.runtime.run import run  # noqa: E402
from crispseg.runtime.sinks import VideoWriter  # noqa: E402

ORT = {"backend": "onnxruntime", "threads": 1}


def test_decode_error_reaches_the_caller(bundle, tmp_path):
    image, _ = toy.colour_blocks(48, 64)
    for i in range(5):
        Image.fromarray(image).save(tmp_path / ("p%d.png" % i))
    (tmp_path / "p3.png").write_bytes(b"junk")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("old")
    with pytest.raises(InputError, match=r"p3\.png"):
        run(bundle, tmp_path, out, "labels", **ORT)
    assert "report.json" not in os.listdir(str(out))
    assert toy.threads_left() == []


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_leaves_no_empty_folders(bundle, tmp_path, there):
    picture, out = tmp_path / "t.png", tmp_path / "o"
    Image.new("RGB", (64, 48)).save(picture)
    picture.write_bytes(picture.read_bytes()[:60])
    if there:
        out.mkdir()
    with pytest.raises(InputError, match="t.png"):
        run(bundle, picture, out, save=("labels", "overlay"), backend="onnxruntime", threads=1)
    assert out.exists() == there
    assert not there or not list(out.iterdir())


def test_inference_error_reaches_the_caller(bundle, clip, tmp_path):
    def fail():
        raise BundleError("broken in the middle")

    with open_pipeline(bundle, **ORT) as inner, pytest.raises(BundleError, match="in the middle"):
        run(bundle, clip, tmp_path / "out", "overlay,labels", pipeline=toy.Slow(inner, 0.0, 4, fail))
    assert os.listdir(str(tmp_path / "out")) == ["labels"]
    assert toy.threads_left() == []


def test_encode_error_reaches_the_caller(bundle, clip, tmp_path, monkeypatch):
    from crispseg.runtime import outputs

    real = outputs.write_png

    def fail(path, array):
        if path.name == "000002.png":
            raise InputError("disk full")
        real(path, array)

    monkeypatch.setattr(outputs, "write_png", fail)
    with pytest.raises(InputError, match="disk full"):
        run(bundle, clip, tmp_path / "out", "overlay,labels", **ORT)
    assert os.listdir(str(tmp_path / "out")) == ["labels"]
    assert toy.threads_left() == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"save": "labels,shapes"}, "save 'shapes': expected"),
    ({"alpha": 2.0}, "alpha"),
    ({"source": "nowhere.mp4"}, "found nothing there"),
    ({"bundle": "nowhere"}, "found nothing"),
    ({"backend": "magic"}, "backend 'magic'"),
    ({"limit": 0}, "at least 1"),
])  # fmt: skip
def test_bad_arguments_write_nothing(bundle, clip, tmp_path, changes, message):
    arguments = {"bundle": bundle, "source": clip, "out": tmp_path / "out", **ORT, **changes}
    with pytest.raises((InputError, BundleError), match=message):
        run(**arguments)
    assert not (tmp_path / "out").exists()


def test_nothing_is_painted_with_a_bad_opacity(bundle, clip, tmp_path):
    class Painter:
        def paint(self, *arguments):
            raise AssertionError("painted")

    with pytest.raises(InputError, match="alpha 1.5: expected a number from 0 to 1"):
        run(bundle, clip, tmp_path / "out", "overlay", alpha=1.5, pipeline=Painter())
    assert not (tmp_path / "out").exists()


def test_unwritable_output(bundle, clip, tmp_path):
    (tmp_path / "file").write_text("x")
    for save in ("labels", "overlay"):
        with pytest.raises(InputError, match=r"file/out: expected a folder, found a file; choose another place"):
            run(bundle, clip, tmp_path / "file" / "out", save, **ORT)
    (tmp_path / "taken" / "overlay.mp4").mkdir(parents=True)
    with pytest.raises(InputError, match=r"overlay\.mp4: expected a file, found a folder"):
        run(bundle, clip, tmp_path / "taken", "overlay", **ORT)


def test_results_never_replace_the_input(bundle, clip, tmp_path):
    image, _ = toy.colour_blocks(48, 64)
    for picture in ("labels/a.png", "sub/labels/a.png"):
        (tmp_path / picture).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / picture)
    (tmp_path / "link").symlink_to(tmp_path)
    os.rename(str(clip), str(tmp_path / "overlay.mp4"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for source, out in (
        ("labels", "."), ("labels/a.png", "link"), ("sub/labels/*.png", "sub"), ("overlay.mp4", "."),
    ):  # fmt: skip
        with pytest.raises(InputError, match="would replace the input .*; choose another folder"):
            run(bundle, tmp_path / source, tmp_path / out, **ORT)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    run(bundle, tmp_path / "labels", tmp_path, "color", **ORT)  # beside the input is fine
    assert (tmp_path / "color" / "a.png").is_file()


def test_results_never_replace_the_labels_of_a_data_set(bundle, tmp_path):
    """DATA/images beside DATA/labels, and -o DATA: the exact labels have the names that the results would have."""
    image, labels = toy.colour_blocks(48, 64)
    for name, picture in (("images", image), ("labels", labels)):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "data" / name / "a.png")
    truth = (tmp_path / "data" / "labels" / "a.png").read_bytes()
    with pytest.raises(InputError, match="no folder labels with files beside the input, which results would replace"):
        run(bundle, tmp_path / "data" / "images", tmp_path / "data", **ORT)
    assert (tmp_path / "data" / "labels" / "a.png").read_bytes() == truth
    assert sorted(os.listdir(str(tmp_path / "data"))) == ["images", "labels"]
    os.mkfifo(str(tmp_path / "data" / "report.json"))  # not waited for
    with pytest.raises(InputError, match="no folder labels"):
        run(bundle, tmp_path / "data" / "images", tmp_path / "data", **ORT)
    run(bundle, tmp_path / "data" / "images", tmp_path / "data", "overlay", **ORT)
    with pytest.raises(InputError, match="no folder labels"):
        run(bundle, tmp_path / "data" / "images", tmp_path / "data", **ORT)
    (tmp_path / "data" / "labels" / "a.png").unlink()
    for _ in range(2):  # results of an earlier run may be replaced
        run(bundle, tmp_path / "data" / "images", tmp_path / "data", "labels", **ORT)


def test_results_never_lie_in_the_bundle(clip, tmp_path):
    bundle = toy.write_toy(tmp_path / "toy")
    before = sorted(os.listdir(str(tmp_path / "toy")))
    for out in (tmp_path / "toy", tmp_path / "toy" / "a" / "b", tmp_path / "x" / ".." / "toy" / "out"):
        with pytest.raises(InputError, match="lies inside the bundle"):
            run(bundle, clip, out, **ORT)
    assert sorted(os.listdir(str(tmp_path / "toy"))) == before
    run(bundle, clip, tmp_path / "toy_out", "labels", limit=1, **ORT)


@pytest.mark.parametrize("save", ["overlay", "labels,color"])
def test_full_disk(bundle, tmp_path, save):
    resource = pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    writer = VideoWriter(tmp_path / "noise.mp4", 10)
    for _ in range(8):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # no file may grow beyond that
    try:
        with pytest.raises(InputError, match="cannot be written"):
            run(bundle, tmp_path / "noise.mp4", tmp_path / "out", save, **ORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [name for _, _, names in os.walk(str(tmp_path / "out")) for name in names]
    assert not [name for name in left if not name.endswith(".png")]
    assert toy.threads_left() == []
