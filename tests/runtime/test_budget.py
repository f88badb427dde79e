"""The capacity that keeps a latency budget: from synthetic timings, and on the shipped bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crispseg.errors import InputError
from crispseg.runtime.budget import calibrate, choose_capacity, summary
from crispseg.runtime.left_out import LeftOut
from crispseg.runtime.pipeline import FrameResult

DEMO = Path(__file__).parents[2] / "demo" / "bundle"


def line(fixed, per_pixel, counts, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [(n, fixed + per_pixel * n + noise * rng.random()) for n in counts for _ in range(5)]


def test_takes_the_largest_capacity_on_the_line():
    choice = choose_capacity(line(4.0, 1e-4, (1000, 10000, 50000)), 9.0, 100000)
    assert choice.capacity == pytest.approx(50000, abs=2)
    assert choice.fixed_ms == pytest.approx(4.0, abs=1e-3)
    assert choice.ms_per_kpixel == pytest.approx(0.1, rel=1e-6)


def test_never_above_the_bundles_capacity():
    assert choose_capacity(line(4.0, 1e-4, (1000, 10000)), 1000.0, 12345).capacity == 12345


def test_noise_lowers_the_capacity_and_the_raised_line_keeps_the_budget():
    points = line(4.0, 1e-4, (1000, 10000, 50000), noise=0.5)
    choice = choose_capacity(points, 9.0, 100000)
    assert choice.capacity < 50000
    worst = np.percentile([ms - 1e-4 * n for n, ms in points], 90) + 1e-4 * choice.capacity
    assert worst <= 9.0 + 0.05


def test_a_single_hiccup_does_not_make_the_budget_impossible():
    points = line(4.0, 1e-4, (1000, 10000, 20000, 50000))
    points[7] = (points[7][0], 500.0)
    assert choose_capacity(points, 60.0, 100000).capacity == 100000


def test_times_that_do_not_grow_allow_everything():
    assert choose_capacity([(100, 5.0), (1000, 4.9), (5000, 5.0)], 6.0, 7000).capacity == 7000


def test_a_budget_below_the_fixed_part_says_what_it_takes():
    with pytest.raises(InputError, match=r"4 ms before any pixel is refined.*allow more than"):
        choose_capacity(line(4.0, 1e-4, (1000, 10000)), 3.0, 100000)


class Timed:
    """A pipeline whose uncertain pixels are the frame's first value times 100."""

    def __init__(self, capacity=5000):
        self.capacity, self.used = capacity, []

    def set_capacity(self, capacity):
        self.capacity = capacity

    def run(self, frame):
        found = 100 * int(frame.flat[0])
        self.used.append((self.capacity, found))
        return FrameResult(labels=frame[..., 0], count=min(found, self.capacity), found=found)


def frame(value):
    return np.full((2, 3, 3), value, np.uint8)


def test_calibration_measures_shares_of_the_busiest_frame_and_sets_the_choice():
    pipeline = Timed()
    choice = calibrate(pipeline, [frame(3), frame(20), frame(5)], 1e6, repeats=2)
    assert {capacity for capacity, _ in pipeline.used} == {5000, 250, 500, 1000, 2000}
    assert {found for _, found in pipeline.used[3:]} == {2000}
    assert choice.capacity == pipeline.capacity == 5000
    assert sorted({n for n, _ in choice.points}) == [250, 500, 1000, 2000]


def test_an_impossible_budget_leaves_the_capacity():
    pipeline = Timed()
    with pytest.raises(InputError, match="budget"):
        calibrate(pipeline, [frame(20)], 1e-9)
    assert pipeline.capacity == 5000


@pytest.mark.parametrize(("budget", "capacity", "value", "text"), [
    (0.0, 10, 20, "positive"), (float("nan"), 10, 20, "positive"), (5.0, 0, 20, "refiner"), (5.0, 10, 0, "uncertain"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(budget, capacity, value, text):
    with pytest.raises(InputError, match=text):
        calibrate(Timed(capacity), [frame(value)], budget)


def test_summary_counts_what_was_left_out():
    choice = choose_capacity([(100, 1.0), (200, 2.0)], 2.0, 300)
    left = LeftOut()
    for count, found in ((100, 100), (200, 250), (200, 260)):
        left.add(count, found)
    facts = summary(choice, left, 1, 2.5)
    assert facts["left_out_pixels"] == {"mean": pytest.approx(36.67), "max": 60}
    assert (facts["frames_cut"], facts["frames_over_budget"], facts["worst_ms"]) == (2, 1, 2.5)


def test_the_shipped_bundle_refines_no_more_than_the_choice():
    pytest.importorskip("onnxruntime")
    from crispseg.runtime.pipeline import open_pipeline
    from crispseg.scenes import render

    image = render(0, 0, 360, 480)[0]
    with open_pipeline(DEMO, threads=1) as pipeline:
        whole = pipeline.run(image)
        choice = calibrate(pipeline, [image], 1e6, repeats=1)
        assert choice.capacity == choice.limit == pipeline.capacity
        assert len({n for n, _ in choice.points}) == 4
        pipeline.set_capacity(whole.count // 3)
        cut = pipeline.run(image, want=("labels", "active"))
        assert (cut.count, cut.found) == (whole.count // 3, whole.found)
        assert cut.active.sum() == cut.count


@pytest.fixture
def two_shares(monkeypatch):
    monkeypatch.setattr("crispseg.runtime.budget.SHARES", (0.5, 1.0))


def test_latency_reports_the_budget_and_what_was_left_out(two_shares):
    pytest.importorskip("onnxruntime")
    from crispseg.runtime.latency import measure

    report = measure(DEMO, threads=1, seconds=0, warmup=0, min_runs=1, frames=1, budget_ms=1e6)
    assert report["budget"]["capacity"] == report["budget"]["limit"]
    assert report["budget"]["left_out_pixels"] == {"mean": 0.0, "max": 0}
    assert len(report["budget"]["points"]) == 10
    assert "budget" in report["definitions"]


def test_run_with_a_budget_on_frames_without_uncertain_pixels_measures_scenes(two_shares, tmp_path):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    from crispseg.runtime.run import run

    Image.new("RGB", (480, 360)).save(tmp_path / "black.png")
    report = run(DEMO, tmp_path / "black.png", tmp_path / "out", "labels", threads=1, budget_ms=1e6)
    assert report["budget"]["frames_over_budget"] == 0
    assert max(n for n, _ in report["budget"]["points"]) > 1000


def test_no_budget_without_a_refiner(tmp_path):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    from crispseg.runtime.run import run

    Image.new("RGB", (480, 360)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match="refiner"):
        run(DEMO, tmp_path / "black.png", tmp_path / "out", "labels", threads=1, budget_ms=50, refine=False)
    assert not (tmp_path / "out").exists()
