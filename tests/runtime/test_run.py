"""What a run writes and reports, also when it is interrupted or its source is live or broken."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

for name in ("onnx", "onnxruntime", "PIL.Image", "av"):
    pytest.importorskip(name)
import toy  # noqa: E402
from PIL import Image  # noqa: E402

from crispseg.runtime import frames  # noqa: E402
from crispseg.runtime.pipeline import open_pipeline  # noqa: E402
from crispseg.runtime.run import run  # noqa: E402

ORT = {"backend": "onnxruntime", "threads": 1}


def decoded(path):
    with frames.open_source(path) as source:
        return source.fps, list(source)


def test_video(bundle, clip, tmp_path):
    out = tmp_path / "out"
    steps = []
    report = run(bundle.path, clip, out, "overlay,labels,color,confidence", progress=lambda *a: steps.append(a), **ORT)
    assert sorted(os.listdir(str(out))) == ["color.mp4", "confidence.mp4", "labels", "overlay.mp4", "report.json"]
    assert sorted(os.listdir(str(out / "labels"))) == ["%06d.png" % i for i in range(12)]
    for name in ("color", "overlay", "confidence"):
        fps, got = decoded(out / (name + ".mp4"))
        assert fps == Fraction(30000, 1001)
        assert len(got) == 12
        assert got[0].image.shape == (48, 64, 3)
    _, want = toy.colour_blocks(48, 64)
    labels = np.asarray(Image.open(out / "labels" / "000002.png"))
    assert (labels == np.roll(want, 6, axis=1)).mean() > 0.85
    assert json.loads((out / "report.json").read_text())["frames"] == 12
    assert report["frames"] == 12
    assert report["dropped"] == 0
    assert not report["interrupted"]
    assert report["throughput_fps"] > 0
    assert list(report["stages"]) == ["decode", "preprocess", "base", "select", "post", "encode", "total"]
    assert set(report["stages"]["base"]) >= {"p50", "p90", "p99", "max"}
    assert len(report["bundle"]["sha256"]) == 64
    assert report["bundle"]["path"] == str(bundle.path)
    assert len(report["input"]["files_sha256"]) == 64
    assert report["peak_memory_mib"] > 0
    assert steps[-1] == (12, 12)


def test_pictures(bundle, tmp_path):
    image, _ = toy.colour_blocks(48, 64)
    for i, shape in enumerate([(48, 64), (31, 45)]):
        Image.fromarray(image[: shape[0], : shape[1]]).save(tmp_path / ("p%d.png" % i))
    out = tmp_path / "out"
    report = run(bundle, tmp_path, out, ["labels", "overlay", "confidence"], legend=True, outline=True, **ORT)
    assert report["frames"] == 2
    for folder in ("labels", "overlay", "confidence"):
        assert sorted(os.listdir(str(out / folder))) == ["p0.png", "p1.png"]
        assert Image.open(out / folder / "p1.png").size == (45, 31)
    assert Image.open(out / "labels" / "p1.png").mode == "L"
    assert Image.open(out / "confidence" / "p1.png").mode == "L"


def test_ctrl_c_leaves_a_playable_file(bundle, clip, tmp_path):
    out = tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)
    with open_pipeline(bundle, **ORT) as inner:
        pipe = toy.Slow(inner, 0.0, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        report = run(bundle, clip, out, "overlay,labels", pipeline=pipe)
    assert signal.getsignal(signal.SIGINT) is before
    assert report["interrupted"]
    assert report["frames"] == 5, "the frame under way is finished"
    assert sorted(os.listdir(str(out))) == ["labels", "overlay.mp4", "report.json"]
    assert len(decoded(out / "overlay.mp4")[1]) == 5
    assert len(os.listdir(str(out / "labels"))) == 5


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_video_that_was_cut_off_is_told(bundle, tmp_path, suffix):
    """Files lose no frame; one that holds less than it says is no reason to fail, but none to keep silent either."""
    import av

    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / ("whole." + suffix)), "w") as box:
        stream = box.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            image = rng.integers(0, 256, (48, 64, 3), np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        box.mux(stream.encode(None))
    whole = tmp_path / ("whole." + suffix)
    cut = tmp_path / ("cut." + suffix)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    options = {"backend": "onnxruntime", "threads": 1}
    assert "warnings" not in run(bundle, whole, tmp_path / "out", "labels", **options)
    report = run(bundle, cut, tmp_path / "out", "labels", **options)
    assert 5 < report["frames"] < 38
    told = "expected 40 frames, as the file says, could read %d: it is cut off or damaged" % report["frames"]
    assert told in report["warnings"][0]
    assert "warnings" not in run(bundle, cut, tmp_path / "out", "labels", limit=3, **options)


def test_a_variable_rate_is_no_damage(bundle, tmp_path):
    """Matroska states no number of frames; what its duration means at the rate of the first frames is none either."""
    import av

    times = [0, 40, 80, 120, 160, 200, 240, *range(1000, 5000, 400)]
    with av.open(str(tmp_path / "v.mkv"), "w") as box:
        stream = box.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time_ms % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    with frames.open_source(tmp_path / "v.mkv") as source:
        assert source._counters.expected > 2 * len(times), "the rate is taken for constant"
    report = run(bundle, tmp_path / "v.mkv", tmp_path / "out", "labels", backend="onnxruntime", threads=1)
    assert report["frames"] == len(times)
    assert "warnings" not in report


def test_keyboard_interrupt_as_an_exception(bundle, clip, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with open_pipeline(bundle, **ORT) as inner:
        report = run(bundle, clip, tmp_path / "out", "overlay", pipeline=toy.Slow(inner, 0.0, 3, interrupt))
    assert report["interrupted"]
    assert report["frames"] == 3
    assert len(decoded(tmp_path / "out" / "overlay.mp4")[1]) == 3


def test_second_ctrl_c_drops_the_frame_under_way(bundle, clip, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    out = tmp_path / "out"
    with open_pipeline(bundle, **ORT) as inner:
        report = run(bundle, clip, out, "overlay", pipeline=toy.Slow(inner, 0.0, 3, twice))
    assert report["interrupted"]
    assert sorted(os.listdir(str(out))) == ["overlay.mp4", "report.json"]
    assert len(decoded(out / "overlay.mp4")[1]) == 3


def test_live_source_drops_and_counts(bundle, tmp_path):
    image, _ = toy.colour_blocks(48, 64)
    sent = []

    def read():
        if len(sent) == 30:
            return None
        time.sleep(0.005)
        sent.append(1)
        return image

    source = frames.live_source("fake", read, lambda: None, Fraction(30))
    with open_pipeline(bundle, **ORT) as inner:
        report = run(bundle, "fake", tmp_path / "out", "overlay", pipeline=toy.Slow(inner, 0.03), opened_source=source)
    assert report["dropped"] > 5
    assert report["frames"] + report["dropped"] == 30
    assert len(decoded(tmp_path / "out" / "overlay.mp4")[1]) == report["frames"]


def test_ctrl_c_ends_a_live_source_that_sends_nothing_more(bundle, tmp_path):
    image, _ = toy.colour_blocks(48, 64)
    sent = []

    def read():
        if sent:
            time.sleep(1.0)
        sent.append(1)
        return image

    source = frames.live_source("fake", read, lambda: None, Fraction(30))
    timer = threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with open_pipeline(bundle, **ORT) as inner:
        report = run(bundle, "fake", tmp_path / "out", "overlay", pipeline=toy.Slow(inner), opened_source=source)
    assert report["interrupted"]
    assert report["frames"] >= 1


def test_pixels_beyond_the_capacity_are_told(bundle, clip, tmp_path):
    """How many, and that the labels there are the base's."""

    class Cut:
        """Every frame has 30 uncertain pixels, and room for 20."""

        def __init__(self, inner):
            self.inner, self.describe = inner, inner.describe

        def run(self, frame, want=("labels",)):
            return replace(self.inner.run(frame, want), count=20, found=30)

    with open_pipeline(bundle, **ORT) as inner:
        report = run(bundle, clip, tmp_path / "o", "labels", pipeline=Cut(inner))
    assert report["overflow_frames"] == 12
    assert report["left_out_pixels"] == {"mean": 10, "max": 10}
    assert "12 of 12 frames" in report["warnings"][0]
    assert "33.3 %" in report["warnings"][0]
