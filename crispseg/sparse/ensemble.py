"""Mixing the logits of the base and of the refiner, row by row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from crispseg.sparse.select import entropy


def gate_inputs(yi: Tensor, yo: Tensor) -> Tensor:
    """[softmax(yi), E(yi), softmax(yo), E(yo)]: float [N, 2 C + 2] from two float [N, C]."""
    return torch.cat([yi.softmax(1), entropy(yi)[:, None], yo.softmax(1), entropy(yo)[:, None]], 1)


def gated(yi: Tensor, yo: Tensor, attn: tuple[Tensor, ...], fuser: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Gated ensemble. The gate looks at probabilities but mixes logits; the result is a new logit vector.

    Args:
        yi: float [N, C] base logits.
        yo: float [N, C] refiner logits.
        attn: w1 [D, 2C+2], b1 [D], w2 [2, D], b2 [2], in the layout of torch's Linear.
        fuser: w3 [D, C], b3 [D], w4 [C, D], b4 [C].

    Returns:
        ye float [N, C], gate float [N, 2].
    """
    w1, b1, w2, b2 = attn
    w3, b3, w4, b4 = fuser
    gate = linear(linear(gate_inputs(yi, yo), w1, b1).relu(), w2, b2).softmax(1)
    mixed = gate[:, :1] * yi + gate[:, 1:] * yo
    return linear(linear(mixed, w3, b3).relu(), w4, b4), gate


def by_entropy(yi: Tensor, yo: Tensor) -> Tensor:
    """Row of lower entropy, float [N, C]; yo on ties and where an entropy is not a number."""
    return torch.where((entropy(yi) < entropy(yo))[:, None], yi, yo)
