"""What the tests of the native ops share: contexts of every instruction set, and guarded memory."""

from __future__ import annotations

import functools
import os
from ctypes import byref
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import pytest

from crispseg.errors import EnvironmentMismatch
from crispseg.plugins import loader, native_ops

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


def sparse_conv(
    context: loader.Native,
    x: np.ndarray,
    weight: native_ops.PackedWeight,
    table: Optional[np.ndarray] = None,
    *,
    relu: bool = False,
    affine: Sequence[Tuple[np.ndarray, np.ndarray]] = (),
) -> List[np.ndarray]:
    """[y, z...] of a sparse convolution; x [n_in, cin] is copied behind a row of zeros."""
    n_out = len(x) if table is None else len(table)
    copy = native_ops.feature_matrix(len(x), weight.cin)
    copy[:] = x
    y = np.empty((n_out, weight.cout), np.float32)
    z = [(scale, shift, np.empty_like(y)) for scale, shift in affine]
    arguments = native_ops.conv_arguments(copy, weight, table, n_out=n_out, relu=relu, y=y, z=z)
    context.call("cs_sparse_conv", byref(arguments))
    return [y] + [target for _, _, target in z]
