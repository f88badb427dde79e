"""SegRefiner's loop, windows, cutting and pasting against recordings of the official code, without its network.

The recorded logits stand in for the network and every state that reaches it is compared. Kept of the recordings: the
last chunk of the instance case (one object), and the semantic case with local logits as float16; states, windows and
masks are whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crispseg.bundle_masks import SegRefinerInfo
from crispseg.runtime.mask_resize import normalised
from crispseg.runtime.mask_windows import Canvas, centres, find_windows, with_border
from crispseg.runtime.segrefiner_instance import object_box, refine_objects
from crispseg.runtime.segrefiner_sampling import first_steps, sample, seeded_draw, sigmoid, update_fine
from crispseg.runtime.segrefiner_semantic import refine_semantic

DATA = Path(__file__).parents[1] / "data" / "segrefiner"
FINE_LEFT = (0.8, 0.64, 0.48, 0.32, 0.16, 0.0)
INFO = SegRefinerInfo("unet.onnx", "instance", 64, FINE_LEFT, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def golden(name):
    return dict(np.load(DATA / f"{name}.npz"))


def bits(packed, *shape):
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)


class Recorded:
    """Gives the recorded logits in order and keeps the masks and steps that it was asked for."""

    def __init__(self, logits):
        self.logits, self.masks, self.steps = list(logits), [], []

    def __call__(self, image, t):
        assert image.dtype == np.float32
        assert t.dtype == np.int64
        self.masks += list(image[:, 3])
        self.steps += list(t)
        return np.stack([self.logits.pop(0) for _ in t])[:, None].astype(np.float32)


def replay(draws):
    """Recorded draws, uint16 / 65536, one for each call."""
    left = [draw.astype(np.float32) / np.float32(65536) for draw in draws]
    return lambda objects, t, side: left.pop(0).reshape(len(objects), 1, side, side)


def noise_network(image, t):
    """Logits that depend on everything that a network sees of its own picture, and on nothing else."""
    return (image.sum(1, keepdims=True) * 0.7 - 0.3 + 0.1 * t[:, None, None, None]).astype(np.float32)


def test_chance_of_being_fine():
    data = golden("pstep")
    for logits, fine, t, wanted in zip(data["logits"], data["cur_fine"], data["t"], data["next_fine"]):
        assert np.abs(update_fine(logits, fine, int(t), FINE_LEFT) - wanted).max() < 1e-6
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]


def test_preprocessing():
    data = golden("preprocess")
    assert np.abs(normalised(data["img_rgb"], INFO.mean, INFO.std).transpose(2, 0, 1) - data["img_tensor"]).max() < 1e-6


def test_instance_mode_as_recorded():
    data = golden("instance_last_chunk")
    height, width = data["hw"]
    mask = bits(data["coarse_bits"], height, width)
    network = Recorded(data["logits"])
    photo = np.zeros((height, width, 3), np.uint8)
    (found,) = refine_objects(
        network, photo, [mask], INFO, steps=first_steps(6), draw=replay(data["draws_u16"]), batch=2
    )
    assert network.steps == [5, 4, 3, 2, 1, 0]
    assert np.array_equal(np.stack(network.masks) > 0.5, bits(data["state_bits"], 6, 64, 64))
    assert list(found.box) == data["box"].tolist()
    assert np.array_equal(found.mask, bits(data["final_bits"], height, width))
    x0, y0, x1, y1 = found.box
    assert np.array_equal(found.probability >= 0.5, found.mask[y0:y1, x0:x1])


def test_semantic_mode_as_recorded():
    data = golden("semantic")
    height, width = data["hw"]
    mask = bits(data["coarse_bits"], height, width)
    network = Recorded([*data["global_logits"], *data["local_logits"]])
    photo = np.zeros((height, width, 3), np.uint8)
    found = refine_semantic(network, photo, mask, INFO, draw=replay(data["draws_u16"]), batch=4)
    assert network.steps == [5, 4, 3, 2, 1] + [0] * 14
    masks = np.stack(network.masks) > 0.5
    assert np.array_equal(masks[:5], bits(data["global_state_bits"], 5, 64, 64))
    assert np.array_equal(masks[5:], bits(data["local_state_bits"], 14, 64, 64))
    assert (found.candidates, found.windows, found.windows_run) == (int(data["n_candidates"]), 14, 14)
    assert np.array_equal(found.mask, bits(data["final_bits"], height, width))


def test_windows_as_recorded():
    data = golden("windows_301x417_s64_ties")
    height, width = (int(n) for n in data["hw"])
    fine = data["fine_prob_num"].astype(np.float32) / np.float32(data["fine_prob_den"])
    assert np.array_equal(centres(64, height), data["center_y_lut"])
    assert np.array_equal(centres(64, width), data["center_x_lut"])
    found = find_windows(fine, height, width, 64, 0.9, 0.3)
    assert found.candidates == int(data["n_candidates"])
    assert np.array_equal(found.boxes, data["windows_xyxy"])
    mask = bits(data["mask_bits"], height, width)
    kept = with_border(mask, found.boxes)
    assert np.array_equal(kept, data["kept_xyxy"])
    canvas = Canvas(height, width)
    y, x = np.mgrid[:64, :64]
    canvas.add(np.stack([(3 * x + 5 * y + 37 * k) % 257 / 256 for k in range(len(kept))]).astype(np.float32), kept)
    mean, covered = canvas.mean()
    assert np.array_equal(np.where(covered, mean >= 0.5, mask), bits(data["pasted_bits"], height, width))


def test_draws_depend_on_seed_object_and_step_alone():
    draw = seeded_draw(5)
    together, alone = draw([0, 7], 3, 9), draw([7], 3, 9)
    assert np.array_equal(together[1], alone[0])
    assert together.dtype == np.float32
    assert together.min() >= 0
    assert together.max() < 1
    others = (draw([7], 2, 9), draw([8], 3, 9), seeded_draw(6)([7], 3, 9))
    assert all(not np.array_equal(alone, other) for other in others)
    assert abs(draw([1], 1, 256).mean() - 0.5) < 0.005
    # The stream is part of what a seed means: it must be the same on every machine and version.
    assert (draw([7], 3, 2).ravel() * 2**24).astype(int).tolist() == STREAM


STREAM = [1676194, 13844309, 11334149, 599268]


def test_batches_change_nothing():
    rng = np.random.default_rng(2)
    photo = rng.integers(0, 256, (90, 120, 3), np.uint8)
    masks = [np.zeros((90, 120), bool) for _ in range(5)]
    for i, mask in enumerate(masks):
        mask[10 * i : 10 * i + 30, 15 * i : 15 * i + 40] = True
    masks[2][:] = False
    masks[2][4:8, 4:8] = True  # smaller than min_area
    results = []
    for batch in (1, 3, 32):
        found = refine_objects(
            noise_network, photo, masks, INFO, steps=first_steps(6), draw=seeded_draw(1), batch=batch
        )
        results.append({item.number: item.mask for item in found})
    assert sorted(results[0]) == [0, 1, 2, 3, 4]
    assert np.array_equal(results[0][2], masks[2])
    assert not np.array_equal(results[0][1], masks[1])
    for other in results[1:]:
        assert all(np.array_equal(other[i], results[0][i]) for i in results[0])


def test_fewer_steps_end_earlier():
    asked = []

    def network(image, t):
        asked.append(int(t[0]))
        return noise_network(image, t)

    image, coarse = np.zeros((1, 3, 8, 8), np.float32), np.ones((1, 1, 8, 8), bool)
    made = sample(network, image, coarse, first_steps(6, 2), FINE_LEFT, seeded_draw(0), [0])
    assert asked == [5, 4]
    assert made.probability.shape == (1, 1, 8, 8)


def test_empty_and_full_masks():
    photo = np.zeros((70, 80, 3), np.uint8)
    empty, full = np.zeros((70, 80), bool), np.ones((70, 80), bool)
    assert object_box(empty, 20) is None
    assert object_box(full, 20) == (0, 0, 80, 70)

    def unused(image, t):
        raise AssertionError("an empty mask needs no network")

    (found,) = refine_objects(unused, photo, [empty], INFO, steps=(0,), draw=seeded_draw(0), batch=1)
    assert not found.mask.any()
    few = empty.copy()
    few.reshape(-1)[:128] = True
    assert not refine_semantic(unused, photo, few, INFO, draw=seeded_draw(0), batch=1).mask.any()

    def sure(image, t):
        return np.full((len(t), 1, 64, 64), 9, np.float32)

    made = refine_semantic(sure, photo, full, INFO, draw=seeded_draw(0), batch=1)
    assert made.mask.all()
    assert made.windows_run == 0  # nothing but foreground in every window
    (found,) = refine_objects(sure, photo, [full], INFO, steps=(0,), draw=seeded_draw(0), batch=1)
    assert found.mask.mean() > 0.97  # zeros around the crop take the outermost pixels at most


@pytest.mark.parametrize("size", [(40, 50), (40, 200), (64, 64), (1, 300)])
def test_pictures_smaller_than_a_window(size):
    photo = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    mask = np.zeros(size, bool)
    mask[:, size[1] // 2 :] = True
    shapes = []

    def network(image, t):
        shapes.append(image.shape[1:])
        return noise_network(image, t)

    made = refine_semantic(network, photo, mask, INFO, draw=seeded_draw(0), batch=2)
    assert made.mask.shape == size
    assert set(shapes) == {(4, 64, 64)}
    assert made.windows_run > 0
