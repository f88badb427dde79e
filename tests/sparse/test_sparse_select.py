"""Selection, resampling, features, ensembles and writing back."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crispseg.sparse.ensemble import by_entropy  # noqa: E402
from crispseg.sparse.rows import feature_channels, full_logits, normalised, pixel_features, scatter_labels  # noqa: E402
from crispseg.sparse.select import (  # noqa: E402
    UPSAMPLINGS,
    entropy,
    keep_highest,
    logits_at,
    lowest_argmax,
    select,
    upsample_logits,
)

torch.set_num_threads(1)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_entropy_by_hand():
    assert float(entropy(torch.zeros(1, 19))) == pytest.approx(math.log(19), abs=1e-6)
    assert float(entropy(torch.tensor([[100.0, 0.0, 0.0]]))) == pytest.approx(0.0, abs=1e-6)
    # Only the logarithm's argument is clamped: p = 1e-7 adds p * ln(1e5), not 1e-5 * ln(1e5).
    logits = torch.tensor([[0.0, math.log(1e-7)]], dtype=torch.float64)
    assert float(entropy(logits)) == pytest.approx(1e-7 * math.log(1e5) + 1e-7, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(*(st.integers(1, 9) for _ in range(2)), *(st.integers(1, 23) for _ in range(2)), st.sampled_from(UPSAMPLINGS))
def test_upsampling_matches_torch_and_the_sites(h, w, height, width, mode):
    logits = torch.randn(2, 3, h, w)
    full = upsample_logits(logits, (height, width), mode)
    if mode == "nearest":
        rows = [i * h // height for i in range(height)]
        columns = [i * w // width for i in range(width)]
        assert torch.equal(full, logits[:, :, rows][:, :, :, columns])
    else:
        corners = mode == "bilinear_corners"
        wanted = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=corners)
        torch.testing.assert_close(full, wanted, rtol=1e-4, atol=1e-4)
    coords = (torch.rand(2, height, width) < 0.5).nonzero().int()
    at_sites = logits_at(logits, coords, (height, width), mode)
    b, y, x = coords.long().unbind(1)
    torch.testing.assert_close(at_sites, full[b, :, y, x], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", UPSAMPLINGS)
def test_select_agrees_with_its_definition(mode):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, 7) * 3
    chosen = select(logits, (13, 15), 0.8, mode)
    full = upsample_logits(logits, (13, 15), mode)
    assert torch.equal(chosen.mask, entropy(full, 1) > 0.8)
    assert 0 < int(chosen.mask.sum()) < chosen.mask.numel()
    assert torch.equal(chosen.coords, chosen.mask.nonzero())
    assert torch.equal(chosen.labels.long(), full.argmax(1))
    assert torch.equal(chosen.confidence, (full.softmax(1).amax(1) * 255).round().to(torch.uint8))
    assert chosen.found.tolist() == chosen.mask.flatten(1).sum(1).tolist()


def test_threshold_is_strict():
    logits = torch.zeros(1, 4, 2, 2)
    level = float(entropy(logits, 1).max())
    assert len(select(logits, (2, 2), level).coords) == 0
    assert len(select(logits, (2, 2), level - 1e-6).coords) == 4


def test_capacity_keeps_the_most_uncertain_in_raster_order():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 8, 8)
    everything, cut = select(logits, (16, 16), 0.1), select(logits, (16, 16), 0.1, capacity=20)
    assert torch.equal(cut.found, everything.found)
    assert cut.mask.flatten(1).sum(1).tolist() == [20, 20]
    assert torch.equal(cut.coords, cut.mask.nonzero())
    score = upsample_logits(entropy(logits, 1)[:, None], (16, 16))[:, 0]
    for image in range(2):
        left = everything.mask[image] & ~cut.mask[image]
        assert float(score[image][cut.mask[image]].min()) >= float(score[image][left].max())
    assert torch.equal(select(logits, (16, 16), 0.1, capacity=1000).mask, everything.mask)
    assert not select(logits, (16, 16), 0.1, capacity=0).mask.any()


def test_ties_go_to_the_first_in_raster_order():
    mask, score = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 4)
    score[2, 3] = 2
    kept = keep_highest(mask, score, 4)
    assert kept.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [2, 3]]


def test_lowest_class_wins_ties():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])
    assert lowest_argmax(logits, 1).tolist() == [1, 0, 2]


def test_features():
    image = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    coords = torch.tensor([[0, 0, 0], [1, 3, 4]], dtype=torch.int32)
    yi = torch.randn(2, 6)
    x = pixel_features(image, coords, yi, features=("rgb", "xy", "p", "p>0.3"), mean=MEAN, std=STD)
    assert x.shape == (2, feature_channels(("rgb", "xy", "p", "p>0.3"), 6)) == (2, 17)
    red, green, blue = image[1, 3, 4].tolist()
    wanted = [(v - m) / s for v, m, s in zip((blue, green, red), MEAN, STD)]
    torch.testing.assert_close(x[1, :3], torch.tensor(wanted))
    torch.testing.assert_close(x[1, 3:5], torch.tensor([3 / 4, 4 / 5]))
    torch.testing.assert_close(x[:, 5:11], yi.softmax(1))
    assert torch.equal(x[:, 11:], (yi.softmax(1) > 0.3).float())
    straight = pixel_features(image, coords, channel_order="rgb", mean=MEAN, std=STD)
    torch.testing.assert_close(
        straight[1], torch.tensor([(v - m) / s for v, m, s in zip((red, green, blue), MEAN, STD)])
    )
    assert torch.equal(straight, normalised(image, "rgb", MEAN, STD)[coords.long().unbind(1)])
    with pytest.raises(ValueError, match="needs the logits"):
        pixel_features(image, coords, features=("p",), mean=MEAN, std=STD)
    for wrong in ("hue", "p>x"):
        with pytest.raises(ValueError, match="rgb|float"):
            feature_channels((wrong,), 6)


def test_writing_back():
    labels, confidence = torch.full((1, 3, 3), 7, dtype=torch.uint8), torch.full((1, 3, 3), 9, dtype=torch.uint8)
    coords, rows = torch.tensor([[0, 1, 2]]), torch.tensor([[0.0, 50.0, 0.0]])
    new_labels, new_confidence = scatter_labels(labels, confidence, coords, rows)
    assert new_labels[0, 1, 2] == 1
    assert new_confidence[0, 1, 2] == 255
    assert int((new_labels != labels).sum()) == int((new_confidence != confidence).sum()) == 1
    none = scatter_labels(labels, confidence, coords[:0], rows[:0])
    assert torch.equal(none[0], labels)
    dense = torch.zeros(1, 3, 3, 3)
    full = full_logits(dense, coords, rows)
    assert full[0, :, 1, 2].tolist() == rows[0].tolist()
    assert int((full != dense).sum()) == 1


def test_entropy_ensemble_prefers_the_sure_one_and_yo_on_ties():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    assert torch.equal(by_entropy(sure, unsure), sure)
    assert torch.equal(by_entropy(unsure, sure), sure)
    assert torch.equal(by_entropy(sure, sure.flip(1)), sure.flip(1))
    broken = torch.tensor([[float("nan"), 0.0]])
    assert torch.equal(by_entropy(broken, sure), sure)
    assert bool(by_entropy(sure, broken).isnan().any())
