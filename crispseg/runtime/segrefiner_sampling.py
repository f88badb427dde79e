"""SegRefiner's sampling loop (arXiv 2312.12425, section 3) around any function that maps pictures to logits.

A pixel is *coarse* (keeps the given mask) or *fine* (takes what the network says). Going from the noisiest step to the
cleanest, every step adds to the chance ``fine`` that the pixel has turned, and draws which pixels have; each step draws
afresh, so a pixel may fall back. No torch, no state: the draws depend on the seed, the object and the step alone, not
on how objects are put into batches.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence, Tuple

import numpy as np

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
Draw = Callable[[Sequence[int], int, int], np.ndarray]


class Sampled(NamedTuple):
    """``probability`` float32 [N, 1, S, S] of the last step; ``fine`` float32 [N, 1, S, S]."""

    probability: np.ndarray
    fine: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function of float32 of any shape that neither overflows nor warns."""
    small = np.exp(-np.abs(x))
    return (np.where(x >= 0, np.float32(1), small) / (1 + small)).astype(np.float32)


def fine_before(fine_left: Sequence[float]) -> Tuple[float, ...]:
    """For each step, the chance at the step before it: 1 at first."""
    return (1.0, *fine_left[:-1])


def update_fine(logits: np.ndarray, fine: np.ndarray, t: int, fine_left: Sequence[float]) -> np.ndarray:
    """Chance that a pixel is fine after step t.

    Args:
        logits: float32, any shape.
        fine: float32, the chance before, same shape.
        t: the step.
        fine_left: as in ``SegRefinerInfo``.
    """
    left, before = fine_left[t], fine_before(fine_left)[t]
    sure = np.float32(2) * np.abs(sigmoid(logits) - np.float32(0.5))
    turned = sure * np.float32(before - left) / (np.float32(1) - sure * np.float32(left))
    return (fine + (np.float32(1) - fine) * turned).astype(np.float32)


def seeded_draw(seed: int) -> Draw:
    """Draws by Philox, keyed by seed, object and step: draw(objects, t, side) -> float32 [N, 1, side, side].

    0 <= u < 1. 24 bits of raw output are one number, so the stream does not depend on the version of numpy.
    """

    def draw(objects: Sequence[int], t: int, side: int) -> np.ndarray:
        out = np.empty((len(objects), 1, side, side), np.float32)
        for row, item in zip(out, objects):
            key = np.array([seed & (2**64 - 1), (item << 16 | t) & (2**64 - 1)], np.uint64)
            words = np.random.Philox(key=key).random_raw((side * side + 1) // 2)
            halves = np.stack([words >> np.uint64(40), words >> np.uint64(8) & np.uint64(0xFFFFFF)], -1)
            row[:] = (halves.reshape(-1)[: side * side].astype(np.float32) * np.float32(2**-24)).reshape(row.shape)
        return out

    return draw


def sample(
    network: Network,
    image: np.ndarray,
    coarse: np.ndarray,
    steps: Sequence[int],
    fine_left: Sequence[float],
    draw: Draw,
    objects: Sequence[int],
) -> Sampled:
    """Run the loop on one batch.

    Args:
        network: (float32 [N, 4, S, S], int64 [N]) -> logits float32 [N, 1, S, S].
        image: float32 [N, 3, S, S], normalised.
        coarse: bool [N, 1, S, S], the given masks.
        steps: time steps in the order they run (descending); the last one gives the result and draws nothing.
        fine_left: as in ``SegRefinerInfo``.
        draw: see ``seeded_draw``.
        objects: number of each object, for the draws.
    """
    count, _, side, _ = coarse.shape
    fine = np.zeros(coarse.shape, np.float32)
    state = coarse
    logits = fine
    for t in steps:
        logits = network(with_mask(image, state), np.full(count, t, np.int64))
        fine = update_fine(logits, fine, t, fine_left)
        if t != steps[-1]:
            state = np.where(draw(objects, t, side) < fine, logits >= 0, coarse)
    return Sampled(sigmoid(logits), fine)


def with_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Input of the network, float32 [N, 4, S, S]: image [N, 3, S, S] and mask [N, 1, S, S] as 0 and 1."""
    return np.concatenate([image, mask.astype(np.float32)], 1)


def first_steps(count: int, wanted: int = 0) -> Tuple[int, ...]:
    """The first ``wanted`` (0 = all) of the steps count-1 ... 0."""
    return tuple(range(count - 1, -1, -1))[: wanted or count]
