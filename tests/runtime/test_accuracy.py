from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crispseg.errors import BundleError, InputError
from crispseg.runtime import accuracy
from crispseg.runtime.accuracy import Tally, boundary, boundary_distance, pair_files, read_pair

NAMES = ("a", "b", "c")


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """The paper's erosion, step by step: a 3x3 square, zeros outside."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        rows, cols = mask.shape
        mask = np.all([padded[y : y + rows, x : x + cols] for y in range(3) for x in range(3)], axis=0)
    return mask


def reference(frames: list, classes: int, ratio: float, ignore: int = 255) -> tuple:
    """Per-class IoU and boundary IoU by masks, one class at a time."""
    ious, edges = [], []
    for c in range(classes):
        both = either = edge_both = edge_either = 0
        for predicted, label in frames:
            valid = label != ignore
            distance = max(1, round(ratio * float(np.hypot(*label.shape))))
            g, p = (label == c), (predicted == c) & valid
            both, either = both + (g & p).sum(), either + (g | p).sum()
            gd, pd = g & ~eroded(g, distance), p & ~eroded(p, distance)
            edge_both, edge_either = edge_both + (gd & pd).sum(), edge_either + (gd | pd).sum()
        ious.append(100 * both / either if either else None)
        edges.append(100 * edge_both / edge_either if edge_either else None)
    return ious, edges


def mean(values: list) -> float:
    there = [v for v in values if v is not None]
    return sum(there) / len(there)


def tally_of(frames: list, classes: int = 3, ratio: float = 0.02) -> Tally:
    tally = Tally(classes, boundary_ratio=ratio)
    for predicted, label in frames:
        tally.add(np.asarray(predicted, np.uint8), np.asarray(label, np.uint8))
    return tally


def test_hand_computed_iou():
    result = tally_of([([[0, 0, 1, 1]], [[0, 1, 1, 255]])]).result(NAMES)
    assert result["per_class"] == {"a": 50.0, "b": 50.0, "c": None}  # c occurs nowhere and does not count
    assert result["miou"] == 50.0
    assert result["pixel_accuracy"] == pytest.approx(100 * 2 / 3, abs=1e-3)


def test_class_only_predicted_counts_as_zero():
    result = tally_of([([[0, 2]], [[0, 0]])]).result(NAMES)
    assert result["per_class"] == {"a": 50.0, "b": None, "c": 0.0}
    assert result["miou"] == 25.0


def test_sums_over_frames_before_dividing():
    frames = [(np.zeros((4, 4)), np.zeros((4, 4))), (np.ones((1, 4)), np.zeros((1, 4)))]
    assert tally_of(frames).result(NAMES)["per_class"]["a"] == pytest.approx(100 * 16 / 20)


def test_hand_computed_boundary():
    label = np.zeros((20, 20), np.uint8)
    label[5:15, 5:15] = 1
    edge = boundary(label, 2)
    assert edge[5:15, 5:15].sum() == 100 - 36  # the 10x10 square loses a ring of 2
    assert edge[label == 0].sum() == 300 - 60  # the ring that is 3 px off border and square
    shifted = np.roll(label, 1, axis=1)
    # Both squares cover rows 5..14, columns 6..14: 90 px. Inside one of them: rows 7..12, columns 7..13: 42 px.
    both, either = 90 - 42, 64 + 64 - (90 - 42)
    tally = tally_of([(shifted, label)], ratio=2 / np.hypot(20, 20))
    assert tally.result(NAMES)["boundary_per_class"]["b"] == 100 * both / either


def test_border_of_the_image_is_boundary():
    assert boundary(np.zeros((9, 9), np.uint8), 2).sum() == 81 - 25
    assert boundary(np.zeros((5, 5), np.uint8), 2).sum() == 24
    assert boundary(np.zeros((4, 4), np.uint8), 2).all()


def test_paper_distance():
    assert boundary_distance((360, 480)) == 12
    assert boundary_distance((1024, 2048)) == 46
    assert boundary_distance((2, 2)) == 1


def test_perfect_prediction_is_100_even_with_ignored_pixels():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (6, 8)), np.ones((5, 5))).astype(np.uint8)
    label = truth.copy()
    label[rng.random(label.shape) < 0.1] = 255
    result = tally_of([(truth, label)]).result(NAMES)
    assert result["miou"] == result["boundary_iou"] == result["pixel_accuracy"] == 100.0


def test_nothing_but_ignored():
    result = tally_of([(np.zeros((4, 4)), np.full((4, 4), 255))]).result(NAMES)
    assert result["miou"] is None
    assert result["boundary_iou"] is None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 3),
    st.sampled_from([0.02, 0.05, 0.12, 0.4]),
    st.sampled_from([0.0, 0.1, 0.6]),
)
def test_equals_masks_one_class_at_a_time(seed, height, width, block, ratio, ignored):
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(2):
        label = np.kron(rng.integers(0, 3, (height, width)), np.ones((block, block))).astype(np.uint8)
        predicted = np.where(rng.random(label.shape) < 0.2, rng.integers(0, 3, label.shape), label).astype(np.uint8)
        label[rng.random(label.shape) < ignored] = 255
        frames.append((predicted, label))
    result = tally_of(frames, ratio=ratio).result(NAMES)
    ious, edges = reference(frames, 3, ratio)
    assert list(result["per_class"].values()) == pytest.approx(ious, abs=1e-3)
    assert list(result["boundary_per_class"].values()) == pytest.approx(edges, abs=1e-3)
    if any(v is not None for v in ious):
        assert result["miou"] == pytest.approx(mean(ious), abs=1e-3)
        assert result["boundary_iou"] == pytest.approx(mean(edges), abs=1e-3)


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_ratio_out_of_range(ratio):
    with pytest.raises(InputError, match="boundary ratio"):
        Tally(3, boundary_ratio=ratio)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for name in ("f1", "f2"):
        write(tmp_path / "images" / f"{name}.png", rng.integers(0, 255, (12, 16, 3), np.uint8))
        write(tmp_path / "labels" / f"{name}.png", rng.integers(0, 3, (12, 16), np.uint8))
    return tmp_path


def test_pairs_by_stem(data):
    write(data / "labels" / "unused.png", np.zeros((2, 2), np.uint8))
    pairs = pair_files(data / "images", data / "labels")
    assert [(a.name, b.name) for a, b in pairs] == [("f1.png", "f1.png"), ("f2.png", "f2.png")]
    assert pair_files(*pairs[0]) == [pairs[0]]


def test_pairs_cityscapes_names(tmp_path):
    write(tmp_path / "i" / "bonn" / "bonn_1_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
    for ending in ("color", "labelIds", "labelTrainIds"):
        write(tmp_path / "l" / "bonn" / f"bonn_1_gtFine_{ending}.png", np.zeros((2, 2), np.uint8))
    [(_, label)] = pair_files(tmp_path / "i", tmp_path / "l")
    assert label.name == "bonn_1_gtFine_labelTrainIds.png"


def test_missing_label_is_named(data):
    (data / "labels" / "f2.png").unlink()
    with pytest.raises(InputError, match=r"found none for 1 \(f2.png\)"):
        pair_files(data / "images", data / "labels")


def test_missing_and_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found nothing"):
        pair_files(tmp_path / "none", tmp_path / "empty")
    with pytest.raises(InputError, match="found none"):
        pair_files(tmp_path / "empty", tmp_path / "empty")


def test_label_errors_name_file_and_value(data):
    image = data / "images" / "f1.png"
    beyond = write(data / "x.png", np.full((12, 16), 7, np.uint8))
    with pytest.raises(InputError, match=r"x\.png.*found 7 in 192 pixels"):
        read_pair(image, beyond, 3)
    small = write(data / "small.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"16x12, found 8x6"):
        read_pair(image, small, 3)
    colour = write(data / "colour.png", np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(InputError, match="one channel"):
        read_pair(image, colour, 3)
    with pytest.raises(InputError, match=r"floats\.tif: expected class ids in one channel .* float32"):
        read_pair(image, write(data / "floats.tif", np.full((12, 16), 1.5, np.float32)), 3)
    broken = data / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    with pytest.raises(InputError, match="broken.png"):
        read_pair(broken, beyond, 8)


def test_a_label_map_beyond_all_size_warns_nobody(data, recwarn):
    Image.new("L", (12000, 8000)).save(data / "huge.png")
    with pytest.raises(InputError, match=r"16x12, found 12000x8000"):
        read_pair(data / "images" / "f1.png", data / "huge.png", 3)
    assert not recwarn.list


def test_a_pipe_is_no_label_map(data):
    os.mkfifo(data / "pipe.png")
    with pytest.raises(InputError, match="found a pipe or device"):
        read_pair(data / "images" / "f1.png", data / "pipe.png", 3)


def test_ignored_ids(data):
    file = write(data / "l.png", np.tile(np.array([0, 2, 3, 255], np.uint8), (12, 4)))
    _, label = read_pair(data / "images" / "f1.png", file, 3)
    assert np.unique(label).tolist() == [0, 2, 255]


def fake_runtime(monkeypatch, truth: dict, refiner: bool = True, baseline: bool = True):
    """A pipeline that answers from a table: the base is all zeros, the refined map is the truth."""
    net = SimpleNamespace(upsample="bilinear", random_weights=False)
    bundle = SimpleNamespace(
        name="fake",
        path="x",
        classes=[SimpleNamespace(name=n) for n in NAMES],
        ignore_label=255,
        base=net,
        refiner=net if refiner else None,
        baseline=net if baseline else None,
    )

    def open_pipeline(
        bundle, *, backend, provider, threads, precision, device, refine=True, network="base", refiner_engine=False
    ):
        def run(frame, want):
            label = truth[frame.tobytes()]
            zeros = np.zeros_like(label)
            labels = label if refine and network == "base" else zeros
            return SimpleNamespace(
                labels=labels,
                base=zeros if "base" in want else None,
                density=0.25,
                count=10,
                found=12,
                not_finite=int(network == "baseline"),
            )

        return SimpleNamespace(run=run, describe=lambda: {"network": network, "refine": refine})

    for name, members in (
        ("crispseg.bundle", {"bundle_facts": lambda _: {"name": "fake"}, "load_bundle": lambda _: bundle}),
        ("crispseg.runtime.pipeline", {"open_pipeline": open_pipeline}),
    ):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return bundle


def test_evaluate_report(data, monkeypatch):
    truth = {}
    for name in ("f1", "f2"):
        image, label = read_pair(data / "images" / f"{name}.png", data / "labels" / f"{name}.png", 3)
        truth[image.tobytes()] = label
    fake_runtime(monkeypatch, truth)
    seen = []
    report = accuracy.evaluate(
        "x", data / "images", data / "labels", baseline=True, progress=lambda done, total: seen.append((done, total))
    )
    assert report["refined"]["miou"] == report["refined"]["boundary_iou"] == 100
    assert report["base"]["miou"] < 20
    assert set(report["base"]) >= {"miou", "boundary_iou", "per_class"}
    assert report["baseline"] == report["base"]
    assert (report["density"], report["frames"], report["overflow_frames"]) == (25, 2, 2)
    assert report["pipeline"] == {"network": "base", "refine": True}
    assert report["left_out_pixels"] == {"mean": 2, "max": 2}
    assert "2 of 2 frames" in report["warnings"][0]
    assert "16.7 % of the uncertain pixels" in report["warnings"][0]
    assert seen[-1] == (2, 2)
    assert {"miou", "boundary_iou", "boundary_ratio", "density"} <= set(report["definitions"])
    assert report["environment"]["python"]
    assert report["precision"] == "fp32"
    less = accuracy.evaluate("x", data / "images", data / "labels", limit=1)
    assert less["frames"] == 1
    for hashed in ("images_sha256", "labels_sha256"):
        assert len(report["input"][hashed]) == 64
        assert report["input"][hashed] != less["input"][hashed]


def test_evaluate_without_baseline_says_so(data, monkeypatch):
    fake_runtime(monkeypatch, {}, baseline=False)
    with pytest.raises(BundleError, match=r"baseline\.onnx"):
        accuracy.evaluate("x", data / "images", data / "labels", baseline=True)
