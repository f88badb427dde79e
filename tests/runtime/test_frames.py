from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
import zlib
from fractions import Fraction

import numpy as np
import pytest

from crispseg.errors import EnvironmentMismatch, InputError, hide_passwords

Image = pytest.importorskip("PIL.Image")
TiffImagePlugin = pytest.importorskip("PIL.TiffImagePlugin")
pytest.importorskip("av")
from crispseg.runtime import frames, live, video  # noqa: E402
from crispseg.runtime.images import read_image  # noqa: E402
from crispseg.runtime.sinks import VideoWriter  # noqa: E402


def picture(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_video(path, count=7, fps=Fraction(30000, 1001), height=32, width=48):
    writer = VideoWriter(path, fps)
    for i in range(count):
        writer.write(np.full((height, width, 3), (20 + 30 * i) % 250, np.uint8))
    writer.close()
    return path


def test_one_picture(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with frames.open_source(tmp_path / "a.png") as source:
        (frame,) = list(source)
    assert source.kind == "images"
    assert source.count == 1
    assert (frame.index, frame.name) == (0, "a")
    np.testing.assert_array_equal(frame.image, picture())


def test_folder_in_natural_order(tmp_path):
    for i in (1, 2, 10, 11, 100):
        Image.fromarray(picture(seed=i)).save(tmp_path / ("f%d.png" % i))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    (tmp_path / "sub").mkdir()
    got = list(frames.open_source(str(tmp_path)))
    assert [f.name for f in got] == ["f1", "f2", "f10", "f11", "f100"]
    np.testing.assert_array_equal(got[2].image, picture(seed=10))
    assert [f.name for f in frames.open_source(tmp_path, limit=2)] == ["f1", "f2"]
    assert [f.name for f in frames.open_source(str(tmp_path / "f1*.png"))] == ["f1", "f10", "f11", "f100"]
    assert frames.open_source(str(tmp_path / "f1*.png")).count == 4


def test_names_stay_distinct(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture()).save(tmp_path / folder / "a.png")
    got = [f.name for f in frames.open_source(str(tmp_path / "*" / "a.png"))]
    assert got == ["x_a.png", "y_a.png"]
    Image.fromarray(picture()).save(tmp_path / "x" / "a.bmp")
    assert [f.name for f in frames.open_source(tmp_path / "x")] == ["a.bmp", "a.png"]


def test_exif_orientation(tmp_path):
    image = Image.fromarray(np.repeat(np.repeat(picture(2, 3), 16, 0), 16, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(image), -1))


def test_other_formats(tmp_path):
    rgb = picture()
    grey = rgb[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    got = read_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(got, np.dstack([grey] * 3))
    alpha = np.dstack([rgb, np.full(grey.shape, 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), rgb)
    Image.fromarray(rgb).quantize(16).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == rgb.shape
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[:, :, 1], grey)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").shape == rgb.shape
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="floating point"):
        read_image(tmp_path / "float.tif")


def test_files_of_several_pictures(tmp_path):
    pages = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    more = {"save_all": True, "append_images": pages[1:]}
    for name, options in (("a.tif", {}), ("a.png", {}), ("a.webp", {"lossless": True})):
        pages[0].save(tmp_path / name, **more, **options)
        with pytest.raises(InputError, match=f"{name}: expected one picture, found 3 in the file"):
            read_image(tmp_path / name)
    pages[0].save(tmp_path / "a.jpg", format="MPO", quality=95, **more)  # what cameras write
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "map.tif"), True) as file:
        for page, kind in zip(pages, (0, 1, 4)):  # an overview and a mask, as maps have them
            page.save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()
    assert Image.open(tmp_path / "map.tif").n_frames == 3
    np.testing.assert_array_equal(read_image(tmp_path / "map.tif"), picture(seed=0))


def test_bad_pictures(tmp_path):
    Image.fromarray(picture(200, 200)).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"hello", raw[:40], raw[: len(raw) // 2], raw[:60] + bytes(100) + raw[160:]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png.*expected"):
            list(frames.open_source(tmp_path / "a.png"))
    Image.new("1", (20000, 2)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="20000 x 2"):
        read_image(tmp_path / "wide.png")
    with pytest.raises(InputError, match="found none"):
        read_image(tmp_path / "none.png")


def test_picture_beyond_every_limit(tmp_path):
    header = struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")):
        raw += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "huge.png").write_bytes(raw)
    with pytest.raises(InputError, match="at most 16384 pixels a side.*shrink it"):
        read_image(tmp_path / "huge.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_nobody_feeds_does_not_hang(tmp_path):
    for name in ("a.png", "a.mp4"):
        os.mkfifo(str(tmp_path / name))
        with pytest.raises(InputError, match="found a pipe or device; save to a file first"):
            frames.open_source(tmp_path / name)
    with pytest.raises(InputError, match="found a pipe"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("source", ["nowhere", "", "a\0b", "nowhere/*.png", "http://x/y.mp4", "camera:x", "camera:"])
def test_nothing_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected"):
        frames.open_source(source)


def test_empty_folder_and_limit(tmp_path):
    with pytest.raises(InputError, match="found none"):
        frames.open_source(tmp_path)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="at least 1"):
        frames.open_source(tmp_path, limit=0)


def test_video_loses_no_frame(tmp_path):
    path = write_video(tmp_path / "v.mp4", count=40)
    with frames.open_source(path) as source:
        assert source.kind == "video"
        assert source.fps == Fraction(30000, 1001)
        assert source.count == 40
        got = list(source)
    assert [f.index for f in got] == list(range(40))
    assert got[3].name == "000003"
    levels = [int(f.image.mean()) for f in got]
    np.testing.assert_allclose(levels[:7], [20 + 30 * i for i in range(7)], atol=3)
    np.testing.assert_allclose([f.time_s for f in got], np.arange(40) * 1001 / 30000, atol=1e-4)


@pytest.mark.parametrize(("tag", "space", "height"), [(1, "ITU709", 48), (6, "ITU601", 48), (0, "ITU601", 48),
                                                      (0, "ITU709", 720)])  # fmt: skip
def test_colours_of_videos(tmp_path, tag, space, height):
    import av

    path = tmp_path / "c.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        if tag:
            stream.codec_context.colorspace = tag
        image = np.full((height, 64, 3), (200, 30, 40), np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace=space)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (frame,) = list(frames.open_source(path))
    np.testing.assert_allclose(frame.image[height // 2, 32], (200, 30, 40), atol=4)


def test_rotated_video(tmp_path):
    import av

    path = tmp_path / "r.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        try:
            stream.set_display_rotation(90)
        except AttributeError:
            pytest.skip("this PyAV cannot write a rotation")
        image = np.zeros((32, 64, 3), np.uint8)
        image[:, 32:] = 255
        for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
            container.mux(packet)
        container.mux(stream.encode(None))
    (frame,) = list(frames.open_source(path))
    assert frame.image.shape == (64, 32, 3)


def test_bad_videos(tmp_path):
    path = write_video(tmp_path / "v.mp4", count=20)
    raw = path.read_bytes()
    for content in (b"", b"junk" * 100, raw[:100]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"v\.mp4.*expected"):
            frames.open_source(path)


def test_video_without_frames(tmp_path):
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(InputError, match="expected"):
        frames.open_source(path)


def test_damaged_video_plays_on(tmp_path):
    path = write_video(tmp_path / "v.mp4", count=60)
    raw = bytearray(path.read_bytes())
    start = raw.index(b"mdat") + 1200
    for i in range(start, min(start + 400, len(raw))):
        raw[i] = 0xFF
    path.write_bytes(bytes(raw))
    with frames.open_source(path) as source:
        assert len(list(source)) >= 1


def test_live_takes_the_latest_frame_and_counts_drops():
    sent = []
    taken = threading.Event()

    def read():
        if len(sent) == 1:
            taken.wait(5)  # frame 0 is on its way through the network
        if len(sent) == 6:
            return None
        sent.append(len(sent))
        return np.full((2, 2, 3), len(sent) - 1, np.uint8)

    source = frames.live_source("fake", read, lambda: None, Fraction(30))
    iterator = iter(source)
    first = next(iterator)
    taken.set()
    time.sleep(0.3)  # a slow consumer: frames 1..5 arrive meanwhile
    second = next(iterator)
    assert int(first.image[0, 0, 0]) == 0
    assert int(second.image[0, 0, 0]) == 5
    assert source.dropped == 4
    assert [first.index, second.index] == [0, 1]
    assert next(iterator, None) is None
    source.close()


def test_a_reader_in_use_is_not_freed():
    closed = []
    release = threading.Event()
    source = frames.live_source("stuck", lambda: release.wait(20) and None, lambda: closed.append(1), Fraction(30))
    source.close()
    assert closed == []
    release.set()
    quick = frames.live_source("quick", lambda: None, lambda: closed.append(2), Fraction(30))
    quick.close()
    assert closed == [2]


def test_live_errors_reach_the_consumer():
    def broken():
        raise InputError("cable")

    with pytest.raises(InputError, match="cable"):
        list(frames.live_source("fake", broken, lambda: None, Fraction(30)))
    with pytest.raises(InputError, match="at least one frame"):
        list(frames.live_source("fake", lambda: None, lambda: None, Fraction(30)))
    silent = live.LatestFrame(lambda: time.sleep(0.05) or (None if silent.stop else np.zeros(0)), "x")
    silent.close()
    stuck = live.LatestFrame(lambda: time.sleep(3), "stuck", first_frame_s=0.1)
    with pytest.raises(InputError, match=r"within 0\.1 s"):
        next(iter(stuck))


def test_opencv_is_asked_for_only_when_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EnvironmentMismatch, match="opencv-python-headless"):
        frames.open_source("camera:0")
    with pytest.raises(EnvironmentMismatch, match="python3-opencv: pip's has no GStreamer"):
        frames.open_source("v4l2src ! videoconvert")


def test_gstreamer_without_support():
    cv2 = pytest.importorskip("cv2")
    if live._has_gstreamer(cv2):
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(EnvironmentMismatch, match="GStreamer"):
        frames.open_source("videotestsrc ! videoconvert")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://viewer:s3cr:et@10.0.0.5:554/live/1@hd", "rtsp://viewer:***@10.0.0.5:554/live/1@hd"),
        ("rtmp://:key@host/app", "rtmp://:***@host/app"),
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ('rtspsrc location=rtsp://h/x user-id=a user-pw="two words" ! decodebin',
         "rtspsrc location=rtsp://h/x user-id=a user-pw=*** ! decodebin"),
        ("rtspsrc location=rtsp://a:b@h/x ! decodebin", "rtspsrc location=rtsp://a:***@h/x ! decodebin"),
        ("drive.mp4", "drive.mp4"),
    ],
)  # fmt: skip
def test_passwords_of_cameras_stay_out_of_reports(given, shown, monkeypatch):
    """People send reports around."""
    monkeypatch.setattr(frames, "open_live", lambda name: (lambda: None, lambda: None, Fraction(30)))
    assert hide_passwords(given) == shown
    with frames._live(given) as source:
        assert source.describe()["source"] == shown


def test_decoder_threads_stay_out_of_the_interpreter():
    """A level, whichever, makes them call it; one program of twenty that ended after its first frame hung."""
    av = video.import_av()
    assert av.logging.get_level() is None or int(av.__version__.split(".")[0]) < 12


def test_stream_that_is_not_there():
    with pytest.raises(InputError, match="expected a readable stream"):
        frames.open_source("rtsp://127.0.0.1:9/nothing")


def test_stream_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(video, "_STREAM_TIMEOUT", (0.3, 0.3))
    told = pytest.raises(InputError, match=r"found: no answer within 0\.3 s; check the address")
    with socket.create_server(("127.0.0.1", 0)) as server, told:
        frames.open_source("rtsp://127.0.0.1:%d/silent" % server.getsockname()[1])


def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(frames.os, "stat", denied)
    with pytest.raises(InputError, match=r"a\.png: expected a picture.*found Permission denied; check the path"):
        frames.open_source(tmp_path / "locked" / "a.png")
