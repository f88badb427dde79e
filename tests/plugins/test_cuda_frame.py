"""Frames on a GPU (or the emulated driver): the CPU pipeline's resize to the bit, letterbox, overlay."""

from __future__ import annotations

import numpy as np
import pytest

from crispseg.errors import InputError
from crispseg.plugins.cuda_loader import F16, F32, Fit
from crispseg.runtime import overlay
from crispseg.runtime.geometry import placement, resize_image, to_frame

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# frame, rectangle inside the picture
SIZES = [
    ((40, 60), (40, 60)),  # as it is
    ((40, 60), (20, 30)),  # half: whole factors
    ((41, 63), (17, 29)),  # shrinking by a fraction
    ((20, 30), (47, 77)),  # growing
    ((64, 48), (13, 48)),  # rows only
    ((64, 48), (64, 20)),  # columns only
    ((30, 200), (90, 17)),  # growing one way, shrinking the other
    ((1, 1), (5, 7)),
    ((90, 70), (1, 1)),
    ((3, 151), (2, 150)),
    ((100, 139), (99, 138)),
]


def picture(size, seed=0):
    """uint8 [H, W, 3]: noise, and saturated stripes at which a kernel that rounds differently would show."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    image[::3, ::2] = 255
    image[1::4, 1::5] = 0
    return image


class Prepare:
    """csg_prepare_frame with poisoned outputs and scratch."""

    def __init__(self, gpu, image, rectangle, canvas, dtype=np.float32, bgr=0, pad=(7.0, 128.0, 250.0)):
        self.gpu, self.canvas, self.image = gpu, canvas, gpu.put(image)
        top, left, rows, columns = rectangle
        self.fit = Fit(top=top, left=left, rows=rows, columns=columns, bgr=bgr)
        self.fit.mean[:], self.fit.std[:], self.fit.pad[:] = MEAN, STD, pad
        self.out, self.small = gpu.room((3, *canvas), dtype), gpu.room((rows, columns, 3), np.uint8)
        self.work = gpu.room(gpu.size("csg_resize_workspace", *image.shape[:2], rows, columns), np.uint8)

    def enqueue(self):
        kind = F16 if self.out.dtype == np.float16 else F32
        head = (self.image, *self.image.shape[:2], self.fit, kind, self.out, *self.canvas, self.small)
        self.gpu.call("csg_prepare_frame", *head, self.work, self.work.nbytes)

    def check(self, image):
        """Equal to the CPU pipeline, in every bit of the picture and of its fp32 form."""
        fit = self.fit
        small = resize_image(image, fit.rows, fit.columns)
        np.testing.assert_array_equal(self.small.get(), small)
        canvas = np.empty((3, *self.canvas), np.float32)
        for c in range(3):
            canvas[c] = fit.pad[c]
            inside = canvas[c, fit.top : fit.top + fit.rows, fit.left : fit.left + fit.columns]
            inside[...] = small[:, :, 2 - c if fit.bgr else c]
            canvas[c] = (canvas[c] - np.float32(MEAN[c])) / np.float32(STD[c])
        np.testing.assert_array_equal(self.out.get(), canvas.astype(self.out.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_resize_is_that_of_the_cpu(gpu, dtype, size, target):
    image = picture(size, sum(target))
    prepare = Prepare(gpu, image, (0, 0, *target), target, dtype, bgr=int(dtype == np.float16))
    prepare.enqueue()
    prepare.check(image)


@pytest.mark.parametrize("seed", range(10))
def test_any_size(gpu, seed):
    """Random sizes, rectangles and canvases."""
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(1, 90, 2))
    rows, columns, top, left, below, right = (int(v) for v in rng.integers([1, 1, 0, 0, 0, 0], [60, 160, 9, 9, 9, 9]))
    image = picture(size, seed)
    canvas = (top + rows + below, left + columns + right)
    prepare = Prepare(gpu, image, (top, left, rows, columns), canvas, bgr=seed & 1)
    prepare.enqueue()
    prepare.check(image)


def test_letterbox_of_the_pipeline(gpu):
    image = picture((50, 70))
    place = placement((50, 70), (32, 64), "letterbox")
    assert place.left > 0
    prepare = Prepare(gpu, image, (place.top, place.left, place.height, place.width), (32, 64), np.float16)
    prepare.enqueue()
    prepare.check(image)
    gpu.same_in_any_order(prepare.enqueue, [prepare.out, prepare.small])


def test_only_the_picture_or_only_the_planes(gpu):
    image = picture((30, 40))
    prepare = Prepare(gpu, image, (0, 0, 12, 20), (12, 20))
    tail = (prepare.work, prepare.work.nbytes)
    gpu.call("csg_prepare_frame", prepare.image, 30, 40, prepare.fit, F32, None, 12, 20, prepare.small, *tail)
    assert prepare.out.untouched(0)
    prepare.work.reset()
    gpu.call("csg_prepare_frame", prepare.image, 30, 40, prepare.fit, F32, prepare.out, 12, 20, None, *tail)
    prepare.check(image)


def test_replay_with_another_frame(gpu):
    first = picture((33, 47))
    prepare = Prepare(gpu, first, (2, 3, 16, 21), (20, 27))
    graph = gpu.capture(prepare.enqueue)
    assert prepare.out.untouched(0)
    for seed in (0, 1, 2):
        image = picture((33, 47), seed)
        prepare.image.put(image)
        gpu.launch(graph)
        prepare.check(image)


# frame, canvas, fit; enlarged, shrunk, both, bars on either side, sides that fill no word, one line, one column
PLACES = [
    ((40, 60), (40, 60), "resize"), ((80, 120), (40, 60), "resize"), ((41, 63), (17, 29), "resize"),
    ((13, 31), (40, 60), "resize"), ((50, 70), (32, 64), "letterbox"), ((70, 50), (32, 64), "letterbox"),
    ((1, 700), (32, 64), "letterbox"), ((700, 1), (32, 64), "resize"), ((1, 1), (5, 7), "letterbox"),
    ((9, 33), (2, 150), "resize"),
]  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("frame", "canvas", "fit"), PLACES)
def test_a_map_at_the_frames_size(gpu, frame, canvas, fit, shift):
    values = np.random.default_rng(frame[0]).integers(0, 256, canvas, np.uint8)
    place, out = placement(frame, canvas, fit), gpu.room(frame, np.uint8, shift=shift)
    where = (place.top, place.left, place.height, place.width)
    source = gpu.put(values)

    def enqueue():
        gpu.call("csg_to_frame", source, *canvas, *where, out, *frame)

    enqueue()
    np.testing.assert_array_equal(out.get(), to_frame(values, place))
    gpu.same_in_any_order(enqueue, [out])


def test_a_map_of_lines_too_long_for_32_bits(gpu):
    """(2 x + 1) * columns above 2^32."""
    values = np.random.default_rng(0).integers(0, 256, (1, 30000), np.uint8)
    place, out = placement((1, 100001), (1, 30000), "resize"), gpu.room((1, 100001), np.uint8)
    gpu.call("csg_to_frame", gpu.put(values), 1, 30000, 0, 0, 1, 30000, out, 1, 100001)
    np.testing.assert_array_equal(out.get(), to_frame(values, place))
    assert 2 * 100001 * 30000 > 2**32


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("size", "colours"), [((1, 1), 1), ((5, 7), 3), ((16, 64), 19), ((33, 35), 256)])
def test_overlay(gpu, size, colours, shift):
    rng = np.random.default_rng(colours)
    frame, table = picture(size), rng.integers(0, 256, (colours, 3), np.uint8)
    labels = rng.integers(0, 256, size, np.uint8)
    out = gpu.room((*size, 3), np.uint8, shift=shift)
    rooms = gpu.put(frame, shift=shift), gpu.put(labels), gpu.put(table)
    for alpha in (0.0, 0.5, 0.7, 1.0):

        def enqueue(alpha=alpha):
            gpu.call("csg_overlay", *rooms[:2], *size, rooms[2], colours, alpha, out)

        enqueue()
        named = labels < colours
        weight = int(float(np.float32(alpha)) * 255 + 0.5)
        mixed = (255 - weight) * frame.astype(int) + weight * table[np.minimum(labels, colours - 1)].astype(int)
        got = out.get()
        assert (got[~named] == frame[~named]).all()
        assert (got[named] == (2 * mixed[named] + 255) // 510).all()
    gpu.same_in_any_order(enqueue, [out])


def test_overlay_has_the_bytes_of_the_cpu_pipeline(gpu):
    """Every frame value under every colour value, for weights whose product with 255 lies near a half too."""
    frame = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, axis=1)[..., None].repeat(3, axis=2)
    labels = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    table = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1).astype(np.uint8)
    out, rooms = gpu.room(frame.shape, np.uint8), (gpu.put(frame), gpu.put(labels), gpu.put(table))
    for alpha in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 77.5 / 255):
        gpu.call("csg_overlay", *rooms[:2], 256, 256, rooms[2], 256, alpha, out)
        np.testing.assert_array_equal(out.get(), overlay.blend(frame, labels, table, alpha))


def test_bad_arguments(gpu):
    prepare = Prepare(gpu, picture((10, 12)), (0, 0, 5, 6), (5, 6))
    tail = (prepare.work, prepare.work.nbytes)
    with pytest.raises(InputError, match="rectangle"):
        gpu.call("csg_prepare_frame", prepare.image, 10, 12, prepare.fit, F32, prepare.out, 5, 5, None, *tail)
    with pytest.raises(InputError, match="workspace: expected"):
        gpu.call("csg_prepare_frame", prepare.image, 10, 12, prepare.fit, F32, prepare.out, 5, 6, None, tail[0], 3)
    prepare.fit.std[1] = 0
    with pytest.raises(InputError, match="std"):
        gpu.call("csg_prepare_frame", prepare.image, 10, 12, prepare.fit, F32, prepare.out, 5, 6, None, *tail)
    for where in ((0, 0, 6, 6), (1, 0, 5, 6), (0, -1, 5, 6), (0, 0, 0, 6)):
        with pytest.raises(InputError, match="csg_to_frame: rectangle"):
            gpu.call("csg_to_frame", prepare.image, 5, 6, *where, prepare.small, 5, 6)
    with pytest.raises(InputError, match="csg_to_frame: .*out of range"):
        gpu.call("csg_to_frame", prepare.image, 5, 6, 0, 0, 5, 6, prepare.small, 0, 6)
    with pytest.raises(InputError, match="alpha"):
        gpu.call("csg_overlay", prepare.image, prepare.image, 5, 6, prepare.image, 3, 1.5, prepare.small)
