"""The exported chain, not a toy: small base and refiner with random weights, both backends, every output."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxscript", "onnxruntime", "PIL.Image", "av"):
    pytest.importorskip(name)

import toy  # noqa: E402

from crispseg.engines import ort  # noqa: E402
from crispseg.errors import BundleError, InputError, UnsupportedOp  # noqa: E402
from crispseg.runtime.accuracy import evaluate  # noqa: E402
from crispseg.runtime.pipeline import open_pipeline  # noqa: E402
from crispseg.runtime.run import run  # noqa: E402
from crispseg.runtime.sinks import VideoWriter, write_png  # noqa: E402

WANT = ("labels", "confidence", "active")


BACKENDS = ["onnxruntime"]
if not toy.native_missing():
    BACKENDS.append("native")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    import torch

    from crispseg.export.project import export_bundle

    torch.set_num_threads(1)
    return export_bundle(
        "small", tmp_path_factory.mktemp("b") / "bundle", height=64, width=96, classes="camvid", baseline=True,
        random_weights=True, capacity=64 * 96, refiner_settings={"planes": (8, 16), "repeats": (1, 1)},
    )  # fmt: skip


def picture(height=64, width=96, seed=0):
    """Blobs, so that the network sees edges and plains."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width])


@pytest.mark.skipif(len(BACKENDS) < 2, reason="native library not built")
def test_backends_agree(bundle):
    with (
        open_pipeline(bundle, backend="native", threads=1) as a,
        open_pipeline(bundle, backend="onnxruntime", threads=1) as b,
    ):
        for seed in range(3):
            x, y = a.run(picture(seed=seed), WANT), b.run(picture(seed=seed), WANT)
            assert (x.labels == y.labels).mean() > 0.999
            assert abs(x.count - y.count) <= 2
            assert x.count > 0
            assert (x.active == y.active).mean() > 0.999
            assert np.abs(x.confidence.astype(int) - y.confidence).mean() < 1
            assert list(x.times)[-3:] == ["refine", "post", "total"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_active_pixels_change(bundle, backend):
    frame = picture()
    with open_pipeline(bundle, backend=backend, threads=1) as pipe:
        refined = pipe.run(frame, WANT)
        again = pipe.run(frame, WANT)
        np.testing.assert_array_equal(refined.labels, again.labels)
        assert refined.active.sum() == refined.count
        assert refined.density == pytest.approx(refined.active.mean())
        other = pipe.run(picture(50, 120), WANT)
        assert other.labels.shape == (50, 120)


@pytest.mark.parametrize("backend", BACKENDS)
def test_run_on_a_clip(bundle, tmp_path, backend):
    writer = VideoWriter(tmp_path / "clip.mp4", 10)
    for i in range(4):
        writer.write(picture(seed=i))
    writer.close()
    report = run(bundle, tmp_path / "clip.mp4", tmp_path / "out", "labels,overlay,color,confidence", backend=backend,
                 threads=1, outline=True, legend=True)  # fmt: skip
    assert report["frames"] == 4
    assert report["density"] > 0
    assert report["pipeline"]["refiner"]["backend"] == backend
    assert sorted(os.listdir(str(tmp_path / "out"))) == [
        "color.mp4", "confidence.mp4", "labels", "overlay.mp4", "report.json",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_refiner(bundle, tmp_path, backend):
    import hashlib
    import json
    import shutil

    shutil.copytree(str(bundle.path), str(tmp_path / "b"))
    path = tmp_path / "b" / "refiner.onnx"
    raw = path.read_bytes()
    write_png(tmp_path / "p.png", picture())
    for content in (raw[: len(raw) // 2], b"", b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"refiner\.onnx"):
            run(tmp_path / "b", tmp_path / "p.png", tmp_path / "out", backend=backend)
        # The same with a manifest that vouches for the damaged file.
        manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
        manifest["files"]["refiner.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (tmp_path / "b" / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises((BundleError, UnsupportedOp, InputError), match=r"refiner\.onnx"):
            run(tmp_path / "b", tmp_path / "p.png", tmp_path / "out", backend=backend)
        assert not (tmp_path / "out").exists()


def test_no_memory_growth(bundle):
    frames = [picture(seed=i) for i in range(6)]
    with open_pipeline(bundle, backend=BACKENDS[-1], threads=1) as pipe:
        for frame in frames * 5:
            pipe.run(frame)
        before = resident_mib()
        for frame in frames * 30:
            pipe.run(frame)
        assert resident_mib() - before < 4


def resident_mib():
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        pytest.skip("no /proc")


@pytest.mark.parametrize("backend", BACKENDS)
def test_eval_runs_the_base_once_a_frame(bundle, backend, tmp_path, monkeypatch):
    """The base's column comes from the logits that the refiner reads, and is that of the base alone."""
    sizes = [(64, 96), (50, 120), (33, 47)]  # as the bundle, letterboxed, small and odd
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, (height, width) in enumerate(sizes):
        image = picture(height, width, seed=number)
        write_png(tmp_path / "images" / f"{number}.png", image)
        write_png(tmp_path / "labels" / f"{number}.png", image[..., 0] % 11)
    with (
        open_pipeline(bundle, backend=backend, threads=1) as both,
        open_pipeline(bundle, backend=backend, threads=1, refine=False) as alone,
    ):
        for number, size in enumerate(sizes):
            frame = picture(*size, seed=number)
            result, wanted = both.run(frame, ("labels", "base")), alone.run(frame, ("labels", "base"))
            np.testing.assert_array_equal(result.base, wanted.labels)
            np.testing.assert_array_equal(wanted.base, wanted.labels)
            assert both.run(frame).base is None
    runs, real = [], ort.OrtEngine.run
    monkeypatch.setattr(ort.OrtEngine, "run", lambda self, *args: runs.append(self.path.name) or real(self, *args))

    def measure(bundle):
        runs.clear()
        found = evaluate(bundle, tmp_path / "images", tmp_path / "labels", backend=backend, threads=1)
        assert runs.count("base.onnx") == len(sizes)
        return found

    both, alone = measure(bundle), measure(replace(bundle, refiner=None))
    assert both["base"] == alone["base"] != both["refined"]
    assert alone["refined"] is None
