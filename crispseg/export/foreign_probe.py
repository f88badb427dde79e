"""Whether what a foreign network returns are logits: told from its values on noise, whatever its last operators are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crispseg.errors import InputError

#: Probabilities below it count as it before their logarithm is taken. float16 holds it.
FLOOR = 2.0**-23
LOGARITHM = "the network returns probabilities: their logarithm is used, which is as good as logits"
# Noise that much stronger than normalised images drives logits far out of 0..1; a sigmoid stays in it.
_LOUD = 30.0


def is_probability(run: Callable[[float], np.ndarray], what: str = "network output") -> bool:
    """Whether the output has gone through a softmax over the classes, so that its logarithm must be taken.

    Args:
        run: gives the output, float [1,C,h,w], on the same noise image times the number it gets.
        what: begins the messages.

    Raises:
        InputError: labels, the result of a sigmoid, or numbers that are not finite.
    """
    values = run(1.0)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise InputError(
            f"{what}: expected finite logits, found {count} of {values.size} values infinite or not a number on a "
            "noise image; check the weights"
        )
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1 or low == high:
        return False
    if float(np.abs(values.sum(1) - 1).max()) < 1e-3:
        if ((values == 0) | (values == 1)).all():
            raise InputError(
                f"{what}: expected logits, found labels (one class is 1 and all others are 0 at every pixel); export "
                "the network without its argmax"
            )
        return True
    loud = run(_LOUD)
    if float(loud.min()) >= 0 and float(loud.max()) <= 1:
        raise InputError(
            f"{what}: expected logits, found values from 0 to 1 that do not sum to 1 over the classes, as a sigmoid "
            "gives them: where they are near 1 they no longer tell classes apart; export the network without it"
        )
    return False
