"""IoU, mBA and boundary IoU of masks, against the published scripts' numbers and by counting; eval-masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crispseg.cli import main
from crispseg.errors import InputError
from crispseg.runtime import disk
from crispseg.runtime.mask_accuracy import (
    Score,
    band_radii,
    boundary_accuracy,
    evaluate_masks,
    find_items,
    score,
    total,
)

DATA = Path(__file__).parents[1] / "data" / "crm"


def golden():
    g = np.load(DATA / "metrics_420x610.npz")
    height, width = g["hw"]
    unpack = {
        n: np.unpackbits(g[f"{n}_bits"])[: height * width].reshape(height, width) > 0 for n in ("gt", "seg", "mask")
    }
    return g, unpack


def test_disks_are_those_of_opencv():
    g = np.load(DATA / "metrics_disk_kernels.npz")
    for radius in range(1, 16):
        point = np.zeros((35, 35), bool)
        point[17, 17] = True
        found = disk.dilate(point, radius)
        wanted = np.zeros((35, 35), bool)
        wanted[17 - radius : 18 + radius, 17 - radius : 18 + radius] = g[f"r{radius}"]
        assert np.array_equal(found, wanted), radius


def test_published_numbers():
    g, masks = golden()
    radii = band_radii(*masks["gt"].shape)
    assert radii == g["radii"].tolist()
    assert [disk.gradient(masks["gt"], radius).sum() for radius in radii] == g["region_pixels"].tolist()
    for name in ("seg", "mask"):
        found = score(masks[name], masks["gt"])
        assert found.mba == pytest.approx(float(g[f"mba_{name}"]), abs=1e-12)
        assert [found.intersection, found.union] == g[f"iu_{name}"].tolist()


@pytest.mark.parametrize(
    ("size", "radii"),
    [((100, 100), [1] * 5), ((1400, 2101), [1, 3, 5, 7, 9]), ((6000, 6000), [1, 8, 16, 24, 32]), ((1, 1), [1] * 5)],
)
def test_radii_grow_with_the_picture(size, radii):
    assert band_radii(*size) == radii


def slow_gradient(mask, radius):
    """By definition: a pixel whose disk, inside the picture, holds both."""
    widths = disk.half_widths(radius)
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        seen = set()
        for row, width in enumerate(widths):
            if 0 <= y + row - radius < mask.shape[0]:
                seen |= set(mask[y + row - radius, max(0, x - width) : x + width + 1].tolist())
        result[y, x] = len(seen) == 2
    return result


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 5), st.floats(0, 1), st.integers(0, 1000))
def test_gradient_by_definition(height, width, radius, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(disk.gradient(mask, radius), slow_gradient(mask, radius))


def test_gradient_far_from_the_outline_is_cut_off_right():
    mask = np.zeros((60, 70), bool)
    mask[30:34, 41:] = True  # touches the border
    for radius in (1, 4):
        assert np.array_equal(disk.gradient(mask, radius), slow_gradient(mask, radius))


def test_counted_by_hand():
    truth = np.zeros((10, 10), bool)
    truth[2:8, 2:8] = True
    mask = np.zeros((10, 10), bool)
    mask[2:8, 3:9] = True
    found = score(mask, truth)
    # d = 1: the boundaries are the outermost rings of 20 pixels; they share 5 pixels above and 5 below.
    assert found[:4] == (30, 42, 10, 30)
    # The band of radius 1 holds 20 pixels inside and 24 outside; wrong in it are 6 missing ones and 6 too many, of
    # which the column x = 8 lies in the band.
    assert found.mba == pytest.approx(1 - 12 / 44)
    assert score(truth, truth)[:4] == (36, 36, 20, 20)
    assert boundary_accuracy(truth, truth) == 1.0
    assert boundary_accuracy(~truth, truth) == 0.0


def test_what_is_undefined_is_left_out():
    empty, full = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    assert score(empty, empty) == Score(0, 0, 0, 0, None)
    assert score(full, full).mba is None
    some = empty.copy()
    some[2:4, 2:4] = True
    found = total([score(empty, empty), score(some, some), score(empty, some)])
    assert found["iou"] == 50.0  # 4 of 8, by sums
    assert found["mean_iou"] == 50.0  # of two pictures, not of three
    assert total([score(empty, empty)]) == {"iou": None, "mean_iou": None, "mba": None, "boundary_iou": None}


def test_total_iou_is_no_mean():
    large, small = np.ones((10, 10), bool), np.zeros((10, 10), bool)
    small[0, 0] = True
    found = total([score(large, large), score(np.zeros((10, 10), bool), small)])
    assert found["iou"] == pytest.approx(100 * 100 / 101, abs=1e-4)
    assert found["mean_iou"] == 50.0


def write(path, mask, level=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask, np.uint8(level), np.uint8(0))).save(path)


@pytest.fixture
def folder(tmp_path):
    """Photos, coarse and exact masks laid out as in the BIG data set: one folder, told apart by their endings."""
    _, masks = golden()
    for index, name in enumerate(("a", "b")):
        photo = np.full((*masks["gt"].shape, 3), 80 + 50 * index, np.uint8)
        Image.fromarray(photo).save(tmp_path / f"{name}_im.png")
        write(tmp_path / f"{name}_seg.png", masks["seg"])
        write(tmp_path / f"{name}_gt.png", masks["gt"])
        write(tmp_path / "refined" / f"{name}_im.png", masks["mask"])  # as crispseg refine names them
    return tmp_path


def test_command(folder, capsys):
    g, masks = golden()
    place = str(folder)
    command = [
        "eval-masks",
        place,
        place,
        place,
        "--refined",
        str(folder / "refined"),
        "-o",
        str(folder / "out"),
        "--json",
    ]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "eval-masks"
    assert report["coarse"]["iou"] == pytest.approx(100 * g["iu_seg"][0] / g["iu_seg"][1], abs=1e-4)
    assert report["refined"]["mba"] == pytest.approx(100 * float(g["mba_mask"]), abs=1e-4)
    assert [row["name"] for row in report["pictures"]] == ["a", "b"]
    assert report["without_outline"] == 0
    assert {"iou", "mba", "boundary_iou", "gt_sha256"} <= set(report["definitions"])
    assert all(len(report["input"][part + "_sha256"]) == 64 for part in ("masks", "gt", "refined"))
    sheet = np.asarray(Image.open(folder / "out" / "a.png"))
    assert sheet.shape == (420 + 18, 4 * (610 + 4) - 4, 3)
    # Panels: photo, coarse, refined, exact. A pixel missing in the coarse mask is orange there.
    y, x = np.argwhere(masks["gt"] & ~masks["seg"])[0]
    assert tuple(sheet[18 + y, x]) == (80, 80, 80)
    red, green, blue = sheet[18 + y, 614 + x].astype(int)
    assert red > green > blue
    red, green, blue = sheet[18 + y, 3 * 614 + x]
    assert red == green == blue


def test_without_refined_masks_and_other_threshold(folder):
    write(folder / "a_seg.png", golden()[1]["seg"], 128)
    usual = evaluate_masks(folder, folder, folder, limit=1)
    assert usual["refined"] is None
    assert usual["coarse"]["iou"] > 80
    assert evaluate_masks(folder, folder, folder, limit=1, threshold=129)["coarse"]["iou"] == 0


def test_single_files(folder):
    items = find_items(folder / "a_im.png", folder / "b_seg.png", folder / "a_gt.png")
    assert [item.coarse.name for item in items] == ["b_seg.png"]


def test_wrong_input_is_named(folder, capsys):
    (folder / "b_seg.png").unlink()
    with pytest.raises(InputError, match=r"none for b_im\.png"):
        find_items(folder, folder, folder)
    with pytest.raises(InputError, match="expected files or folders"):
        find_items(folder, folder / "a_seg.png", folder)
    with pytest.raises(InputError, match="found none"):
        find_items(folder, folder / "missing", folder)
    write(folder / "small.png", np.ones((4, 5), bool))
    with pytest.raises(InputError, match="610x420, found 5x4"):
        evaluate_masks(folder / "a_im.png", folder / "small.png", folder / "a_gt.png")
    assert main(["eval-masks", str(folder), str(folder), str(folder), "-o", str(folder), "--json"]) == 2
    assert "choose another folder" in capsys.readouterr().err
