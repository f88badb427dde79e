"""What the tests of the native ops share: contexts of every instruction set, and guarded memory."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import List, Tuple

import numpy as np
import pytest

from crispseg.errors import EnvironmentMismatch
from crispseg.plugins import loader

GUARD = -77777
_MARGIN = 64


def isas() -> List[object]:
    """Parameters of pytest: every instruction set of this machine, or one skipped row without the library."""
    built = Path(__file__).parents[2] / "build" / "libcrispseg.so"
    if loader.ENVIRONMENT not in os.environ and built.is_file():
        os.environ[loader.ENVIRONMENT] = str(built)
    try:
        return list(loader.available_isas())
    except EnvironmentMismatch as error:
        return [pytest.param("none", marks=pytest.mark.skip(reason=str(error)))]


@functools.lru_cache(maxsize=None)
def native(isa: str, threads: int = 1) -> loader.Native:
    """A context that the tests of one process share, so that its scratch holds what earlier tests left."""
    return loader.Native(threads, isa)


def guarded(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """(whole, inner): int32 [size] between margins that ``intact`` checks."""
    block = np.full(size + 2 * _MARGIN, GUARD, np.int32)
    return block, block[_MARGIN : _MARGIN + size]


def intact(block: np.ndarray, size: int) -> bool:
    """Whether the margins still hold the guard value."""
    return bool((block[:_MARGIN] == GUARD).all() and (block[_MARGIN + size :] == GUARD).all())
