"""The native ops on numpy arrays: for tests, tools and benchmarks. The engine calls the C functions directly."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import numpy as np

from crispseg.errors import InputError
from crispseg.plugins.loader import EXTENT, ConvArguments, Native


def array(value: np.ndarray, dtype: type, shape: Sequence[Optional[int]], name: str) -> np.ndarray:
    """``value`` if it is a C-contiguous array of this dtype and shape (None = any size).

    Raises:
        InputError: anything else.
    """
    good = (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(want is None or want == have for want, have in zip(shape, value.shape))
        and value.flags.c_contiguous
    )
    if not good:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        expected = f"{np.dtype(dtype)} {['any' if s is None else s for s in shape]}"
        raise InputError(f"{name}: expected contiguous {expected}, found {found}")
    return value


def aligned(size: int, alignment: int = 64) -> np.ndarray:
    """uint8 [size] at an aligned address."""
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size]


def feature_matrix(n: int, channels: int, ld: Optional[int] = None) -> np.ndarray:
    """float32 [n, channels] of zeros with row stride ``ld``, behind a row of zeros that the map entry -1 addresses."""
    ld = channels if ld is None else ld
    memory = aligned((n + 1) * ld * 4).view(np.float32).reshape(n + 1, ld)
    memory[:] = 0
    return memory[1:, :channels]


def submanifold_map(native: Native, coords: np.ndarray, height: int, width: int) -> np.ndarray:
    """int32 [N, 9] from coords int32 [N, 2]: the 3x3 neighbours, k = ky + 3 kx, -1 = none."""
    n = len(array(coords, np.int32, (None, 2), "coords"))
    out = np.empty((n, 9), np.int32)
    native.call("cs_submanifold_map", coords.ctypes.data, n, height, width, out.ctypes.data)
    return out


def down_map(
    native: Native, coords: np.ndarray, height: int, width: int, extent: str = "active"
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sites of the next level int32 [M, 2], down int32 [M, 9], up int32 [N, 9]. extent: "active" or "image".

    Raises:
        InputError: another extent, or coords that are no int32 [N, 2].
    """
    if extent not in EXTENT:
        raise InputError(f"extent: expected one of {sorted(EXTENT)}, found {extent!r}")
    n = len(array(coords, np.int32, (None, 2), "coords"))
    room = max(0, min(4 * n, ((height - 1) // 2) * ((width - 1) // 2)))
    sites = np.empty((room, 2), np.int32)
    down = np.empty((room, 9), np.int32)
    up = np.empty((n, 9), np.int32)
    count = np.zeros(1, np.int32)
    pointers = [a.ctypes.data for a in (sites, count, down, up)]
    native.call("cs_down_map", coords.ctypes.data, n, height, width, EXTENT[extent], *pointers)
    return sites[: count[0]].copy(), down[: count[0]].copy(), up


def plan_map(native: Native, table: np.ndarray) -> np.ndarray:
    """int32 [N]: the order in which the convolution should visit the rows of a kernel map int32 [N, K]."""
    n, taps = array(table, np.int32, (None, None), "map").shape
    order = np.empty(n, np.int32)
    native.call("cs_plan_map", table.ctypes.data, n, taps, order.ctypes.data)
    return order


@dataclass(frozen=True)
class Tiles:
    """Occupied tiles of a level, ``side`` (2 or 4) pixels a side; -1 = none.

    ``inputs``: rows of the pixels in and around them, int32 [T, (side + 2)**2]. ``outputs``: int32 [T, side**2].
    ``pairs``: neighbours of all sites, themselves included.
    """

    side: int
    inputs: np.ndarray
    outputs: np.ndarray
    pairs: int


def winograd_plan(native: Native, coords: np.ndarray, height: int, width: int, side: int = 2) -> Tiles:
    """Tiles for ``winograd_conv`` from coords int32 [N, 2]; column-major numbers as in ``cs_winograd_plan``.

    Raises:
        InputError: a side other than 2 and 4, or other coords.
    """
    if side not in (2, 4):
        raise InputError(f"tile: expected a side of 2 or 4, found {side}")
    n = len(array(coords, np.int32, (None, 2), "coords"))
    room = max(0, min(n, -(-height // side) * -(-width // side)))
    inputs, outputs = np.empty((room, (side + 2) ** 2), np.int32), np.empty((room, side**2), np.int32)
    count, pairs = np.zeros(1, np.int32), np.zeros(1, np.int64)
    pointers = [a.ctypes.data for a in (inputs, outputs, count, pairs)]
    native.call("cs_winograd_plan", coords.ctypes.data, n, height, width, side, *pointers)
    return Tiles(side, inputs[: count[0]].copy(), outputs[: count[0]].copy(), int(pairs[0]))


@dataclass(frozen=True)
class PackedWeight:
    """Weights float32 [K, cin, cout] in the layout of one instruction set and one algorithm."""

    data: np.ndarray
    taps: int
    cin: int
    cout: int


def pack_weight(native: Native, weight: np.ndarray) -> PackedWeight:
    """Packs float32 [K, cin, cout] for the instruction set of ``native``."""
    taps, cin, cout = array(weight, np.float32, (None, None, None), "weight").shape
    data = aligned(native.library.cs_packed_bytes(native.handle, taps, cin, cout))
    native.call("cs_pack_weight", weight.ctypes.data, taps, cin, cout, data.ctypes.data)
    return PackedWeight(data, taps, cin, cout)


def pack_winograd(native: Native, weight: np.ndarray, side: int = 2) -> PackedWeight:
    """Transforms and packs float32 [9, cin, cout] for ``winograd_conv`` on tiles of that side."""
    _, cin, cout = array(weight, np.float32, (9, None, None), "weight").shape
    data = aligned(native.library.cs_winograd_bytes(native.handle, side, cin, cout))
    native.call("cs_winograd_pack", weight.ctypes.data, side, cin, cout, data.ctypes.data)
    return PackedWeight(data, 9, cin, cout)


def winograd_conv(native: Native, arguments: ConvArguments, tiles: Tiles) -> None:
    """Runs ``cs_winograd_conv`` on arguments whose weight comes from ``pack_winograd`` for the same side."""
    count = len(array(tiles.outputs, np.int32, (None, tiles.side**2), "tiles"))
    array(tiles.inputs, np.int32, (count, (tiles.side + 2) ** 2), "tiles")
    pointers = tiles.inputs.ctypes.data, tiles.outputs.ctypes.data
    native.call("cs_winograd_conv", byref(arguments), tiles.side, *pointers, count)


def _row_matrix(value: np.ndarray, shape: Tuple[int, int], name: str) -> np.ndarray:
    """A float32 matrix whose rows are contiguous, at any row stride."""
    good = (
        isinstance(value, np.ndarray)
        and value.dtype == np.float32
        and value.shape == shape
        and (not value.size or value.shape[1] == 1 or value.strides[1] == 4)
        and (not value.size or (value.strides[0] % 4 == 0 and value.strides[0] >= 4 * value.shape[1]))
    )
    if not good:
        raise InputError(f"{name}: expected a float32 matrix {shape} with contiguous rows")
    return value


def row_stride(value: np.ndarray) -> int:
    """Floats from one row of a float32 matrix to the next; numpy leaves it open for a matrix without rows."""
    return value.strides[0] // 4 if value.size else max(1, value.shape[1])


def conv_arguments(
    x: np.ndarray,
    weight: PackedWeight,
    table: Optional[np.ndarray] = None,
    *,
    n_out: int,
    order: Optional[np.ndarray] = None,
    bias: Optional[np.ndarray] = None,
    residual: Optional[np.ndarray] = None,
    relu: bool = False,
    y: Optional[np.ndarray] = None,
    z: Sequence[Tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
    second: Optional[Tuple[np.ndarray, PackedWeight]] = None,
) -> ConvArguments:
    """Checked arguments of ``cs_sparse_conv``. The arrays must outlive the call.

    x: [n_in, cin] with a readable row of zeros before row 0 (``feature_matrix``); table: int32 [n_out, K] or None
    (identity); y: [n_out, cout] to write or None; z: up to two (scale, shift, output [n_out, cout]); second: x2
    [n_out, cin2] (``feature_matrix``) and its ``pack_weight`` of [1, cin2, cout], whose product is added.

    Raises:
        InputError: an array of another shape or type, or more than two outputs z.
    """
    taps, cin, cout = weight.taps, weight.cin, weight.cout
    out = (n_out, cout)
    a = ConvArguments()
    _row_matrix(x, (len(x), cin), "x")
    a.x, a.ldx, a.n_in, a.n_out = x.ctypes.data, row_stride(x), len(x), n_out
    a.K, a.cin, a.cout, a.weight = taps, cin, cout, weight.data.ctypes.data
    if table is not None:
        a.map = array(table, np.int32, (n_out, taps), "map").ctypes.data
    if order is not None:
        a.order = array(order, np.int32, (n_out,), "order").ctypes.data
    if bias is not None:
        a.bias = array(bias, np.float32, (cout,), "bias").ctypes.data
    if residual is not None:
        a.residual, a.ldr = _row_matrix(residual, out, "residual").ctypes.data, row_stride(residual)
    a.relu = int(relu)
    if y is not None:
        a.y, a.ldy = _row_matrix(y, out, "y").ctypes.data, row_stride(y)
    if len(z) > 2:
        raise InputError(f"z: expected at most two outputs, found {len(z)}")
    for i, (scale, shift, target) in enumerate(z):
        a.scale[i] = array(scale, np.float32, (cout,), "scale").ctypes.data
        a.shift[i] = array(shift, np.float32, (cout,), "shift").ctypes.data
        a.z[i], a.ldz[i] = _row_matrix(target, out, "z").ctypes.data, row_stride(target)
    if second is not None:
        x2, weight2 = second
        if (weight2.taps, weight2.cout) != (1, cout):
            raise InputError(f"second: expected weights [1, any, {cout}], found [{weight2.taps}, any, {weight2.cout}]")
        a.x2, a.ldx2 = _row_matrix(x2, (n_out, weight2.cin), "second").ctypes.data, row_stride(x2)
        a.cin2, a.weight2 = weight2.cin, weight2.data.ctypes.data
    return a
