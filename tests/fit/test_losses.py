"""The soft IoU loss against counting on hard label maps."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from crispseg.fit.losses import merged_iou_loss  # noqa: E402
from crispseg.fit.train import confusion, miou  # noqa: E402


def _case(seed: int, classes: int = 5) -> tuple:
    g = torch.Generator().manual_seed(seed)
    base = torch.randint(0, classes, (2, 9, 12), generator=g)
    target = torch.randint(0, classes, (2, 9, 12), generator=g).to(torch.uint8)
    target[torch.rand(target.shape, generator=g) < 0.2] = 255
    mask = torch.rand(target.shape, generator=g) < 0.3
    return mask, base, target, torch.randint(0, classes, (int(mask.sum()),), generator=g)


@pytest.mark.parametrize("seed", range(4))
def test_certain_rows_give_the_iou_of_the_merged_map(seed: int) -> None:
    mask, base, target, answer = _case(seed)
    rows = torch.nn.functional.one_hot(answer, 5).float() * 200
    merged = base.clone()
    merged[mask] = answer
    expected = 1 - miou(confusion(merged, target, 5)) / 100  # every class occurs in the target here
    assert merged_iou_loss(rows, mask, base, target).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_leads_to_the_truth() -> None:
    mask, base, target, _ = _case(7)
    rows = torch.zeros(int(mask.sum()), 5, requires_grad=True)
    for _ in range(400):
        loss = merged_iou_loss(rows, mask, base, target)
        (gradient,) = torch.autograd.grad(loss, rows)
        rows = (rows - 20 * gradient).detach().requires_grad_(True)
    truth = target[mask]
    known = truth != 255
    assert (rows.argmax(1)[known] == truth[known]).float().mean() > 0.98


def test_only_ignored_pixels_is_zero_and_differentiable() -> None:
    mask, base, target, _ = _case(1)
    rows = torch.randn(int(mask.sum()), 5, requires_grad=True)
    loss = merged_iou_loss(rows, mask, base, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == 0
    assert not rows.grad.any()


def test_noise_on_logits_is_smooth_and_of_the_deviation_asked_for() -> None:
    from crispseg.fit.refine import disturbed

    torch.manual_seed(0)
    logits = torch.randn(2, 11, 44, 60)
    assert disturbed(logits, 0.0) is logits
    noise = disturbed(logits, 1.5) - logits
    points = noise.std().item()  # between the grid's points the average of neighbours is smaller
    assert 0.7 < points < 1.5
    assert (noise[..., 1:] - noise[..., :-1]).abs().mean() < 0.4 * noise.abs().mean()


def test_near_edges_is_the_band_of_boundary_iou() -> None:
    import numpy as np

    from crispseg.fit.losses import near_edges
    from crispseg.runtime.accuracy import boundary

    rng = np.random.default_rng(3)
    label = np.kron(rng.integers(0, 4, (5, 6)), np.ones((17, 19))).astype(np.uint8)
    kept = near_edges(torch.from_numpy(label)[None])[0].numpy()
    distance = 3  # 2 % of 85 x 114
    inner = (slice(distance, -distance), slice(distance, -distance))  # the frame's own border counts there, not here
    assert ((kept != 255) == boundary(label, distance))[inner].all()
    assert (kept[kept != 255] == label[kept != 255]).all()
