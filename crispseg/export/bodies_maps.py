"""Portable bodies of SubmanifoldMap and DownMap: kernel maps through dense index grids."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
from onnx import FunctionProto

from crispseg.export.functions import Body
from crispseg.plugins.ops import BY_NAME

# Tap k = ky + 3*kx.
_KY = np.tile(np.arange(3), 3)
_KX = np.repeat(np.arange(3), 3)


def _index_grid(b: Body, rows: str, columns: str, at: str) -> str:
    """Int32 [rows * columns] of -1, with i written at flat position at[i]."""
    minus_one = b.const([-1], np.int32)
    grid = b("Expand", minus_one, b("Reshape", b("Mul", rows, columns), b.const([1])))
    return b("ScatterElements", grid, at, b.cast(b.range(b.dim(at, 0)), "int32"), axis=0)


def _taps(b: Body, base: str, ky: np.ndarray, kx: np.ndarray, columns: str) -> str:
    """Flat grid positions [n, 9]: base + ky * columns + kx."""
    offsets = b("Add", b("Mul", b.const(ky), columns), b.const(kx))
    return b("Add", b("Unsqueeze", base, b.const([1])), offsets)


def submanifold_map(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """SubmanifoldMap: row numbers in a grid with a border of one empty site, nine gathers a row."""
    b = Body(BY_NAME["SubmanifoldMap"])
    two, one = b.const(2), b.const(1)
    columns = b("Add", b.attribute("width"), two)
    y, x = b.columns("coords")
    centre = b("Add", b("Mul", b("Add", y, one), columns), b("Add", x, one))
    grid = _index_grid(b, b("Add", b.attribute("height"), two), columns, centre)
    b("Gather", grid, _taps(b, centre, _KY - 1, _KX - 1, columns), axis=0, out="map")
    return b.function(overload, ["map"])


def down_map(overload: str, attributes: Mapping[str, Any]) -> FunctionProto:
    """DownMap: coarse sites by max-pooling the occupied grid, then one index grid for each direction.

    A site o exists when its window is occupied and o <= floor(S/2) - 1 on both axes, which is floor((S-2)/2) with
    ONNX's truncating division. S comes from the coordinates (with a site at 0,0 added, which gives no coarse site by
    itself, so that the maximum is never taken over nothing) or from the size.
    """
    b = Body(BY_NAME["DownMap"])
    one, two, three = b.const(1), b.const(2), b.const(3)
    height, width = b.attribute("height"), b.attribute("width")
    y, x = b.columns("coords")

    # Fine grid of row numbers; at least 3 x 3, the smallest that a pooling window fits.
    rows, columns = b("Max", height, three), b("Max", width, three)
    fine = _index_grid(b, rows, columns, b("Add", b("Mul", y, columns), x))
    occupied = b.cast(b("Greater", fine, b.const(-1, np.int32)), "float32")
    image = b("Reshape", occupied, b.vector(one, one, rows, columns))
    pooled = b("Squeeze", b("MaxPool", image, kernel_shape=[3, 3], strides=[2, 2]), b.const([0, 1]))

    if attributes["extent"] == "active":
        padded = b("Concat", b.cast("coords", "int64"), b.const([[0, 0]]), axis=0)
        extent = b("ReduceMax", padded, axes=[0], keepdims=0)
    else:
        extent = b("Sub", b.vector(height, width), one)
    limit = b("Div", extent, two)
    inside = []
    for axis in (0, 1):
        index = b.range(b.dim(pooled, axis))
        inside.append(b("Less", index, b("Gather", limit, b.const(axis), axis=0)))
    window = b("And", b("Unsqueeze", inside[0], b.const([1])), b("Unsqueeze", inside[1], b.const([0])))
    sites = b("NonZero", b("And", b("Greater", pooled, b.f32(0)), window))
    b.cast(b("Transpose", sites, perm=[1, 0]), "int32", out="coords_out")
    b.rows("coords_out", out="count_out")
    oy, ox = (b("Mul", b("Gather", sites, b.const(axis), axis=0), two) for axis in (0, 1))

    b("Gather", fine, _taps(b, b("Add", b("Mul", oy, columns), ox), _KY, _KX, columns), axis=0, out="down")

    # Coarse row numbers at the even positions 2o of a grid as fine as the input, two empty rows and columns before.
    wide = b("Add", width, two)
    at = b("Add", b("Mul", b("Add", oy, two), wide), b("Add", ox, two))
    spread = _index_grid(b, b("Add", height, two), wide, at)
    base = b("Add", b("Mul", b("Add", y, two), wide), b("Add", x, two))
    b("Gather", spread, _taps(b, base, -_KY, -_KX, wide), axis=0, out="up")
    return b.function(overload, ["coords_out", "count_out", "down", "up"])
