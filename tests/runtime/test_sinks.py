from __future__ import annotations

import contextlib
import os
import resource
from fractions import Fraction

import numpy as np
import pytest

from crispseg.classes import CAMVID, CITYSCAPES
from crispseg.errors import InputError

Image = pytest.importorskip("PIL.Image")
av = pytest.importorskip("av")
from crispseg.runtime import overlay, sinks  # noqa: E402
from crispseg.runtime.video import VideoReader  # noqa: E402


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate)
    reader = VideoReader(str(path))
    got = list(reader)
    reader.close()
    return about, [image for image, _ in got], [time_s for _, time_s in got]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(5, 2)])
def test_video_round_trip(tmp_path, fps):
    writer = sinks.VideoWriter(tmp_path / "o.mp4", fps)
    colours = [(200, 30, 40), (20, 180, 60), (30, 60, 190), (120, 120, 120)]
    for colour in colours:
        writer.write(np.full((48, 64, 3), colour, np.uint8))
        assert not (tmp_path / "o.mp4").exists()
    writer.close()
    assert os.listdir(str(tmp_path)) == ["o.mp4"]
    about, frames, times = decode(tmp_path / "o.mp4")
    assert about == ("h264", "yuv420p", fps)
    assert frames[0].shape == (48, 64, 3)
    assert len(frames) == 4
    np.testing.assert_allclose(times, [i / float(fps) for i in range(4)], atol=1e-4)
    for frame, colour in zip(frames, colours):
        np.testing.assert_allclose(frame[24, 32], colour, atol=6)
    raw = (tmp_path / "o.mp4").read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat"), "the index must stand in front for browsers"


def test_odd_sides_are_padded(tmp_path):
    writer = sinks.VideoWriter(tmp_path / "o.mp4", 10)
    writer.write(np.full((33, 47, 3), 90, np.uint8))
    writer.close()
    _, frames, _ = decode(tmp_path / "o.mp4")
    assert frames[0].shape == (34, 48, 3)
    assert abs(int(frames[0][33, 47, 0]) - 90) < 4


def test_uneven_and_rounded_times(tmp_path):
    writer = sinks.VideoWriter(tmp_path / "o.mp4", 30)
    for time_s in (0.0, 0.033, 0.067, 0.25, 0.25, 1.0):
        writer.write(np.zeros((32, 32, 3), np.uint8), time_s)
    writer.close()
    _, _, times = decode(tmp_path / "o.mp4")
    np.testing.assert_allclose(times, [0, 1 / 30, 2 / 30, 0.25, 0.2501, 1.0], atol=2e-4)


def test_size_change_is_refused_and_abort_removes(tmp_path):
    writer = sinks.VideoWriter(tmp_path / "o.mp4", 30)
    writer.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="changes its size"):
        writer.write(np.zeros((32, 34, 3), np.uint8))
    writer.abort()
    assert os.listdir(str(tmp_path)) == []
    empty = sinks.VideoWriter(tmp_path / "e.mp4", 30)
    empty.close()
    assert os.listdir(str(tmp_path)) == []


@contextlib.contextmanager
def small_disk():
    """Files of this process may not grow beyond 3000 bytes, as on a full disk; pytest's own output neither."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_png(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("new.png", "old.png"):
        with small_disk(), pytest.raises(InputError, match="cannot be written"):
            sinks.write_png(tmp_path / name, noise)
    assert os.listdir(str(tmp_path)) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_full_disk_video(tmp_path):
    writer = sinks.VideoWriter(tmp_path / "o.mp4", 30)
    rng = np.random.default_rng(0)
    with small_disk():
        with pytest.raises(InputError, match="cannot be written"):  # noqa: PT012
            for _ in range(60):
                writer.write(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            writer.close()
        writer.abort()
    assert os.listdir(str(tmp_path)) == []


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a folder, found a file"):
        sinks.make_folder(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written"):
        sinks.write_png(tmp_path / "none" / "a.png", np.zeros((2, 2), np.uint8))
    writer = sinks.VideoWriter(tmp_path / "none" / "o.mp4", 30)
    with pytest.raises(InputError, match="cannot be written"):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    assert sinks.make_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_names_up_to_the_limit(tmp_path):
    longest = tmp_path / ("x" * 251 + ".png")
    sinks.write_png(longest, np.zeros((2, 2), np.uint8))
    assert list(tmp_path.iterdir()) == [longest]
    with pytest.raises(InputError, match="File name too long; shorten the names"):
        sinks.write_png(tmp_path / ("x" * 252 + ".png"), np.zeros((2, 2), np.uint8))
    assert list(tmp_path.iterdir()) == [longest]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (33, 47), (33, 47, 3), (1, 1, 3), (200, 300, 3)])
def test_png_round_trip(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for values in (array, array // 100, array[::-1, ::-1]):
        sinks.write_png(tmp_path / "a.png", values)
        image = Image.open(tmp_path / "a.png")
        image.load()
        np.testing.assert_array_equal(np.asarray(image), values)
        assert image.mode == ("RGB" if len(shape) == 3 else "L")


def test_label_png_holds_ids(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sinks.write_png(tmp_path / "l.png", labels)
    image = Image.open(tmp_path / "l.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), labels)
    with pytest.raises(InputError, match="uint8"):
        sinks.write_png(tmp_path / "x.png", labels.astype(np.int32))


@pytest.mark.parametrize("classes", [CAMVID, CITYSCAPES])
def test_colours(classes):
    table = overlay.palette(classes)
    labels = np.concatenate([np.arange(len(classes)), [255]]).astype(np.uint8)[None]
    colours = overlay.colorize(labels, table)
    np.testing.assert_array_equal(colours[0, :-1], [item.color for item in classes])
    np.testing.assert_array_equal(colours[0, -1], [0, 0, 0])


def test_blend():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = rng.integers(0, 11, (20, 30), dtype=np.uint8)
    table = overlay.palette(CAMVID)
    want = 0.3 * table[labels] + 0.7 * image
    assert np.abs(overlay.blend(image, labels, table, 0.3) - want).max() <= 1
    weighed = (255 - 77) * image.astype(int) + 77 * table[labels].astype(int)  # 0.3 * 255 = 76.5
    np.testing.assert_array_equal(overlay.blend(image, labels, table, 0.3), (2 * weighed + 255) // 510)
    np.testing.assert_array_equal(overlay.blend(image, labels, table, 0.0), image)
    np.testing.assert_array_equal(overlay.blend(image, labels, table, 1.0), table[labels])
    active = np.zeros((20, 30), bool)
    active[5:10, 5:10] = True
    out = overlay.blend(image, labels, table, 0.0, active=active)
    assert (out[5, 5:10] == 255).all()
    np.testing.assert_array_equal(out[6:9, 6:9], image[6:9, 6:9])
    assert overlay.outline(np.ones((4, 5), bool)).sum() == 14


def test_legend():
    image = np.zeros((200, 300, 3), np.uint8)
    labels = np.full((200, 300), 3, np.uint8)
    out = overlay.blend(image, labels, overlay.palette(CAMVID), 0.0, legend=CAMVID)
    assert out.shape == image.shape
    assert (out == CAMVID[3].color).all(axis=2).any()
    assert not (out == CAMVID[1].color).all(axis=2).any()
    assert overlay.draw_legend(image, []).shape == image.shape
