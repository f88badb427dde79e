"""Procedural scenes: the same seed gives the same pixels, labels are exact, clips move, files are whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crispseg.errors import InputError
from crispseg.scenes import Scene, render, write_scenes
from crispseg.scenes.camera import NEAR, View
from crispseg.scenes.canvas import SUPER, Canvas
from crispseg.scenes.finish import reduce_labels
from crispseg.scenes.world import chunk, street, visible

H, W = 120, 160
KNOWN = set(range(11)) | {255}


def view(yaw=0.0, bend=0.0, s=0.0):
    return View(320, 240, 250.0, 120.0, -1.5, 1.4, s, bend, yaw)


def test_same_arguments_give_the_same_frame():
    first, second = render(5, 3, H, W), render(5, 3, H, W)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()
    assert not np.array_equal(first[1], render(6, 3, H, W)[1])


def test_other_scenes_in_between_change_nothing():
    before = render(11, 0, H, W)
    for seed in range(20, 40):
        street(seed)
        chunk(seed, 1)
    render(12, 7, 96, 64)
    after = render(11, 0, H, W)
    assert before[0].tobytes() == after[0].tobytes()
    assert before[1].tobytes() == after[1].tobytes()


def test_scene_object_draws_what_render_draws():
    a, b = Scene(4, H, W).frame(2.5), render(4, 2.5, H, W)
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 5000), st.integers(32, 90), st.integers(32, 120))
def test_any_seed_time_and_size_gives_valid_arrays(seed, t, height, width):
    image, labels = render(seed, t, height, width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= KNOWN


def test_every_class_occurs_in_street_proportions():
    count = np.zeros(256)
    for seed in range(24):
        count += np.bincount(render(seed, 0, H, W)[1].ravel(), minlength=256)
    share = count / count.sum()
    low = {0: 0.08, 1: 0.1, 2: 0.004, 3: 0.2, 4: 0.02, 5: 0.03, 6: 0.003, 7: 0.004, 8: 0.02, 9: 0.002, 10: 0.0008}
    for label, least in low.items():
        assert share[label] > least, (label, share[label])
    assert share[3] < 0.5
    assert 0 < share[255] < 0.06


def test_sky_is_above_road_below():
    top, bottom = [], []
    for seed in range(12):
        labels = render(seed, 0, H, W)[1]
        top.append(labels[: H // 8])
        bottom.append(labels[-H // 8 :])
    top, bottom = np.stack(top), np.stack(bottom)
    assert (top == 0).mean() > 0.3
    assert (top == 3).mean() == 0
    assert (bottom == 3).mean() > 0.6
    assert (bottom == 0).mean() == 0


@pytest.mark.parametrize("seed", [3, 8, 21])
def test_labels_agree_between_resolutions(seed):
    small = render(seed, 0, H, W)[1]
    large = render(seed, 0, 2 * H, 2 * W)[1]
    reduced = reduce_labels(large)
    sure = (small != 255) & (reduced != 255)
    assert sure.mean() > 0.85
    assert (small[sure] == reduced[sure]).mean() > 0.95


def test_picture_has_an_edge_where_the_labels_have_one():
    """The picture and the labels come from the same strokes: contrast is far higher across label edges."""
    inside, across = [], []
    for seed in range(8):
        image, labels = render(seed, 0, H, W)
        step = np.abs(np.diff(image.astype(np.float32).mean(2), axis=1))
        edge = labels[:, 1:] != labels[:, :-1]
        across.append(step[edge].mean())
        inside.append(step[~edge].mean())
    assert np.mean(across) > 2.5 * np.mean(inside)


def test_neighbouring_frames_are_alike_and_distant_ones_are_not():
    near, far = [], []
    for seed in (0, 7, 19):
        a, b, c = (render(seed, t, H, W)[1] for t in (0, 1, 200))
        near.append((a == b).mean())
        far.append((a == c).mean())
    assert min(near) > 0.9
    assert np.mean(far) < np.mean(near) - 0.08
    assert max(near) < 1.0


def test_things_come_closer():
    st = street(9)
    v0, v1 = view(s=0.0), view(s=2.0)
    assert v1.point(3.0, 0.0, 12.0)[2] > v0.point(3.0, 0.0, 12.0)[2]
    ahead = {(o.kind, o.seed, o.s) for o in visible(st, 0.0, 100.0, 120) if 110 < o.s < 150 and o.speed == 0}
    later = {(o.kind, o.seed, o.s) for o in visible(st, 0.0, 104.0, 120) if 110 < o.s < 150 and o.speed == 0}
    assert {o for o in ahead if o[0] != "car"} == {o for o in later if o[0] != "car"}


def test_painting_order_is_far_to_near():
    things = [o for o in visible(street(2), 0.0, 50.0, 150) if o.kind in ("lamp", "sign", "bollard")]
    assert len(things) > 5
    assert all(a.s > b.s - 2.5 for a, b in zip(things, things[1:]))


def test_projection_of_known_points():
    v = view()
    assert v.point(-1.5, 1.4, 10.0) == (160.0, 120.0, 25.0)
    u, y, k = v.point(0.5, 0.0, 10.0)
    assert (u, y, k) == (160.0 + 2.0 * 25.0, 120.0 + 1.4 * 25.0, 25.0)
    assert v.point(0, 0, -1.0) is None


@pytest.mark.parametrize(("yaw", "bend"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.004), (-0.2, -0.003)])
def test_ground_inverts_the_projection(yaw, bend):
    v = view(yaw, bend, s=30.0)
    for d, s in ((0.0, 38.0), (2.0, 45.0), (-3.0, 60.0)):
        u, y, _ = v.point(d, 0.0, s)
        back_d, back_s, _ = v.ground(np.array([y], np.float32), np.array([u], np.float32))
        assert abs(float(back_s[0, 0]) - s) < 0.01 * (s - 30.0) + 1e-3
        assert abs(float(back_d[0, 0]) - d) < 0.02


def test_polygons_are_cut_at_the_near_plane():
    v = view()
    square = [(-1.0, 0.0, -5.0), (1.0, 0.0, -5.0), (1.0, 0.0, 10.0), (-1.0, 0.0, 10.0)]
    points = v.polygon(square)
    assert len(points) == 4
    assert max(p[1] for p in points) == pytest.approx(v.cy + 1.4 * v.focal / NEAR)
    assert v.polygon([(0, 0, -3), (1, 0, -3), (1, 1, -3)]) == []


def brute_majority(block, rank):
    ids, counts = np.unique(block, return_counts=True)
    best = counts.max()
    return 255 if best == 1 else max((i for i, n in zip(ids, counts) if n == best), key=lambda i: rank[i])


def test_reduction_takes_the_majority():
    from crispseg.scenes.finish import _RANK

    rng = np.random.RandomState(4)
    ids = np.array([0, 1, 2, 3, 8, 9, 255], np.uint8)
    big = ids[rng.randint(0, len(ids), (40, 60))]
    small = reduce_labels(big)
    for y in range(20):
        for x in range(30):
            assert small[y, x] == brute_majority(big[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel(), _RANK), (y, x)


def test_a_stroke_below_one_sample_is_undecided():
    c = Canvas(40, 40)
    c.line((0, 10), (40, 10), 0.5, (255, 0, 0), 2)
    c.line((0, 30), (40, 30), 2.0, (255, 0, 0), 2)
    labels = np.asarray(c.labels)
    assert set(np.unique(labels[5:15])) == {0, 255}
    assert set(np.unique(labels[25:35])) == {0, 2}
    faint, full = np.asarray(c.image)[5:15, 20, 0].max(), np.asarray(c.image)[25:35, 20, 0].max()
    assert 90 < faint < 160
    assert full == 255
    assert SUPER == 2


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_written_files_hold_the_scenes(tmp_path, image_format):
    report = write_scenes(tmp_path / "s", 3, 48, 64, seed=7, image_format=image_format)
    assert sorted(p.name for p in (tmp_path / "s" / "images").iterdir()) == [
        f"{i:04d}.{image_format}" for i in range(3)
    ]
    assert sorted(p.name for p in (tmp_path / "s" / "labels").iterdir()) == [f"{i:04d}.png" for i in range(3)]
    for i in range(3):
        image, labels = render(7 + i, 0, 48, 64)
        with Image.open(tmp_path / "s" / "labels" / f"{i:04d}.png") as found:
            assert found.mode == "L"
            assert np.array_equal(np.asarray(found), labels)
        with Image.open(tmp_path / "s" / "images" / f"{i:04d}.{image_format}") as found:
            near = np.abs(np.asarray(found, np.int32) - image)
            assert near.max() == 0 if image_format == "png" else near.mean() < 4
    assert report["count"] == 3
    assert report["clip"] is None
    assert sum(report["class_share"].values()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "form"), [(64, 96, "yuv420p"), (63, 96, "yuv444p"), (64, 95, "yuv444p"), (65, 97, "yuv444p")]
)
def test_written_clip_plays_and_matches(tmp_path, height, width, form):
    """Frame by frame the size of the labels, odd sides too."""
    av = pytest.importorskip("av")
    report = write_scenes(tmp_path, 4, height, width, seed=3, video=True, fps=10)
    assert report["pixel_format"] == form
    with av.open(report["clip"]) as box:
        frames = [f.to_ndarray(format="rgb24") for f in box.decode(video=0)]
        assert float(box.streams.video[0].average_rate) == 10
        assert box.streams.video[0].codec_context.pix_fmt == form
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        image = render(3, i * 2.5, height, width)[0]
        assert np.abs(frame.astype(np.int32) - image).mean() < 8
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"count": 0}, "count"),
        ({"count": -3}, "count"),
        ({"height": 8}, "size"),
        ({"width": 100000}, "size"),
        ({"fps": 0}, "rate"),
        ({"image_format": "bmp"}, "format"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, change, word):
    arguments = {"count": 2, "height": 48, "width": 64}
    arguments.update(change)
    with pytest.raises(InputError, match=word):
        write_scenes(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_unwritable_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="folder"):
        write_scenes(tmp_path / "file", 1, 48, 64)


@pytest.mark.parametrize("size", [(31, 64), (64, 9000), (0, 0)])
def test_render_refuses_bad_sizes(size):
    with pytest.raises(InputError, match="size"):
        render(0, 0, *size)


def test_scenes_never_mix_with_other_pictures(tmp_path):
    """Fewer scenes into the same folder would leave the rest of the first ones between them, of another size."""
    write_scenes(tmp_path, 2, 64, 96)
    (tmp_path / "images" / ".DS_Store").write_bytes(b"a file browser's")
    write_scenes(tmp_path, 2, 64, 96)
    with pytest.raises(InputError, match=r"images: expected no other files there, found 0001\.png; choose another"):
        write_scenes(tmp_path, 1, 64, 64)
    assert Image.open(tmp_path / "images" / "0000.png").size == (96, 64)
