"""The native int8 ops on numpy arrays: for tests, tools and benchmarks. The engine calls the C functions directly."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np

from crispseg.errors import InputError
from crispseg.plugins.loader import ConvInt8Arguments, Native
from crispseg.plugins.native_ops import aligned, array, row_stride


@dataclass(frozen=True)
class Int8Weight:
    """Weights int8 [K, cin, cout] packed for one context, and their scales float32 [cout]."""

    data: np.ndarray
    scale: np.ndarray
    taps: int
    cin: int
    cout: int


@dataclass(frozen=True)
class Bytes:
    """Rows uint8 [n, c]: a value is step * (byte - zero); zero is 0 or 128."""

    rows: np.ndarray
    step: float
    zero: int = 0


def pack_int8(native: Native, weight: np.ndarray, scale: np.ndarray) -> Int8Weight:
    """Packs int8 [K, cin, cout] with scales float32 [cout] for the instruction set of ``native``."""
    taps, cin, cout = array(weight, np.int8, (None, None, None), "weight").shape
    array(scale, np.float32, (cout,), "scale")
    data = aligned(native.library.cs_packed_bytes_int8(native.handle, taps, cin, cout))
    native.call("cs_pack_weight_int8", weight.ctypes.data, taps, cin, cout, data.ctypes.data)
    return Int8Weight(data, scale, taps, cin, cout)


def byte_matrix(n: int, channels: int, zero: int = 0) -> np.ndarray:
    """uint8 [n, channels] of ``zero`` behind a row of it, rows a multiple of 4 bytes apart."""
    ld = -(-channels // 4) * 4
    memory = aligned((n + 1) * ld).reshape(n + 1, ld)
    memory[:] = zero
    return memory[1:, :channels]


def quantise_rows(native: Native, x: np.ndarray, step: float, zero: int = 0) -> Bytes:
    """float32 [n, c] -> its bytes, behind a row of ``zero``."""
    n, c = array(x, np.float32, (None, None), "x").shape
    out = byte_matrix(n, c, zero)
    native.call("cs_quantise_rows", x.ctypes.data, c, n, c, step, zero, out.ctypes.data, out.strides[0])
    return Bytes(out, step, zero)


def int8_arguments(
    x: Bytes,
    weight: Int8Weight,
    table: Optional[np.ndarray] = None,
    *,
    n_out: int,
    order: Optional[np.ndarray] = None,
    bias: Optional[np.ndarray] = None,
    residual: Optional[np.ndarray] = None,
    relu: bool = False,
    y: object = None,
    z: Sequence[Tuple[np.ndarray, np.ndarray, object]] = (),
) -> Tuple[ConvInt8Arguments, List[np.ndarray]]:
    """Arguments of ``cs_sparse_conv_int8``, and arrays that must outlive the call beside those given.

    x: rows behind a row of zero (``byte_matrix``); y and the outputs of z: float32 [n_out, cout] or ``Bytes`` to write.

    Raises:
        InputError: an array of another shape or type, or more than two outputs z.
    """
    a = ConvInt8Arguments()
    c, cout = a.conv, weight.cout
    c.x, c.ldx, c.n_in, c.n_out = x.rows.ctypes.data, x.rows.strides[0], len(x.rows), n_out
    c.K, c.cin, c.cout, c.weight = weight.taps, weight.cin, cout, weight.data.ctypes.data
    if table is not None:
        c.map = array(table, np.int32, (n_out, weight.taps), "map").ctypes.data
    if order is not None:
        c.order = array(order, np.int32, (n_out,), "order").ctypes.data
    if bias is not None:
        c.bias = array(bias, np.float32, (cout,), "bias").ctypes.data
    if residual is not None:
        c.residual, c.ldr = residual.ctypes.data, row_stride(residual)
    c.relu = int(relu)
    scale = np.float32(x.step) * weight.scale
    a.scale, a.zero = scale.ctypes.data, x.zero
    if len(z) > 2:
        raise InputError(f"z: expected at most two outputs, found {len(z)}")
    for i, target in enumerate([y] + [out for _, _, out in z]):
        rows = target.rows if isinstance(target, Bytes) else target
        if not isinstance(rows, np.ndarray):
            continue
        if isinstance(target, Bytes):
            a.step[i], a.out_zero[i] = target.step, target.zero
        address, ld = rows.ctypes.data, (rows.strides[0] if isinstance(target, Bytes) else row_stride(rows))
        if i == 0:
            c.y, c.ldy = address, ld
        else:
            c.z[i - 1], c.ldz[i - 1] = address, ld
    for i, (gain, shift, _) in enumerate(z):
        c.scale[i] = array(gain, np.float32, (cout,), "scale").ctypes.data
        c.shift[i] = array(shift, np.float32, (cout,), "shift").ctypes.data
    return a, [scale]


def sparse_conv_int8(native: Native, arguments: ConvInt8Arguments) -> None:
    """Runs ``cs_sparse_conv_int8``."""
    native.call("cs_sparse_conv_int8", byref(arguments))
