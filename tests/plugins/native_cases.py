"""What the tests of the native ops share: contexts of every instruction set, guarded memory, a convolution."""

from __future__ import annotations

import functools
import os
from ctypes import byref
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import pytest
from op_table import Conv

from crispseg.errors import EnvironmentMismatch
from crispseg.plugins import loader, native_ops

GUARD = -77777
FLOAT_GUARD = np.float32(-1234.5)
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


def guarded_matrix(n: int, channels: int, pad: int, fill: float):
    """(block, inner): [n, channels] filled with ``fill``, with ``pad`` guard columns and two guard rows around."""
    block = np.full((n + 4, channels + 2 * pad), FLOAT_GUARD, np.float32)
    inner = block[2 : n + 2, pad : channels + pad] if pad else block[2 : n + 2]
    inner[:] = fill
    return block, inner


def guards_intact(block: np.ndarray, inner: np.ndarray, pad: int) -> bool:
    """Whether nothing but the inner matrix was written."""
    outside = np.ones(block.shape, bool)
    outside[2 : len(inner) + 2, pad : inner.shape[1] + pad] = False
    return bool((block[outside] == FLOAT_GUARD).all())


def strided_input(values: np.ndarray, pad: int) -> np.ndarray:
    """The values behind a row of zeros; NaN in the padding columns and after the last row: nothing else is read."""
    n, channels = values.shape
    block = np.full((n + 2, channels + pad), np.nan, np.float32)
    block[0, :channels] = 0
    x = block[1 : n + 1, :channels]
    x[:] = values
    return x


def poison(context: loader.Native) -> None:
    """Leaves NaN in the scratch of the convolution: blocks of many chunks."""
    x = np.full((1000, 600), np.nan, np.float32)
    weight = native_ops.pack_weight(context, np.ones((1, 600, 128), np.float32))
    assert np.isnan(sparse_conv(context, x, weight)[0]).all()


def assert_close(got, want, conv: Conv) -> None:
    """[y, z...] within 1e-5 of the largest wanted value; y all NaN where it is not asked for."""
    for i, (have, expected) in enumerate(zip(got, want)):
        if i == 0 and not conv.y:
            assert np.isnan(have).all()
            continue
        assert have.shape == expected.shape
        if have.size:
            assert np.abs(have - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3)
