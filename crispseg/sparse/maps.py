"""Sites and kernel maps of sparse 2-D tensors.

A sparse tensor is a matrix of rows, one row a site, in raster order of (b, y, x). A kernel map says for every output
row and every kernel tap k = ky + 3 * kx which input row is read, or -1 for none. Maps are found through a dense index
grid: no hash, no loop over pixels, and the result does not depend on the order of execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

#: Largest site a level may have: ``active`` is the rule of the reference (bound from the largest active coordinate
#: of the whole batch), ``image`` takes the bound from the size of the grid.
EXTENTS = ("active", "image")
TAPS = 9

Size = tuple[int, int]


@dataclass(frozen=True)
class LevelMaps:
    """Sites of one U-Net level and the maps that start there.

    Attributes:
        coords: long [N, 3], (b, y, x) on the grid of this level, raster order.
        size: (height, width) of the grid of this level.
        same: long [N, 9], the 3x3 submanifold map.
        down: long [M, 9], rows of this level that feed the M sites of the coarser level; None on the last level.
        up: long [N, 9], rows of the coarser level that feed this level's sites; None on the last level.
    """

    coords: Tensor
    size: Size
    same: Tensor
    down: Optional[Tensor] = None
    up: Optional[Tensor] = None


def coords_of(mask: Tensor) -> Tensor:
    """Sites of a boolean mask [B, H, W]: long [N, 3] of (b, y, x) in raster order. ValueError: another mask."""
    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool [B,H,W], found {mask.dtype} {list(mask.shape)}")
    return mask.nonzero()


def coarser(size: Size) -> Size:
    """Grid of the next level: a 3x3 window with stride 2 and no padding."""
    return (size[0] - 1) // 2, (size[1] - 1) // 2


def _checked(coords: Tensor, size: Size) -> Tensor:
    if coords.dim() != 2 or coords.shape[1] != 3 or coords.is_floating_point():
        raise ValueError(f"coords: expected integers [N,3], found {coords.dtype} {list(coords.shape)}")
    coords = coords.long()
    if coords.shape[0]:
        low, high = int(coords.min()), coords.amax(0).tolist()
        if low < 0 or high[1] >= size[0] or high[2] >= size[1]:
            raise ValueError(f"coords: expected sites inside {size[0]}x{size[1]}, found {low} .. {high[1:]}")
    return coords


def _taps(device: torch.device) -> tuple[Tensor, Tensor]:
    k = torch.arange(TAPS, device=device)
    return k % 3, k // 3


def _batch(coords: Tensor) -> int:
    return int(coords[-1, 0]) + 1 if coords.shape[0] else 0


def submanifold_map(coords: Tensor, size: Size) -> Tensor:
    """Map of a 3x3 convolution whose output sites are its input sites.

    Args:
        coords: int [N, 3], (b, y, x) in raster order.
        size: (height, width) of the grid.

    Returns:
        long [N, 9]: row of the site (y + ky - 1, x + kx - 1) of the same image, or -1.
    """
    coords = _checked(coords, size)
    b, y, x = coords.unbind(1)
    # One cell of border on every side, so that no tap needs a bounds check.
    height, width = size[0] + 2, size[1] + 2
    grid = coords.new_full((_batch(coords) * height * width,), -1)
    cell = (b * height + y + 1) * width + x + 1
    grid[cell] = torch.arange(coords.shape[0], device=coords.device)
    ky, kx = _taps(coords.device)
    return grid[cell[:, None] + ((ky - 1) * width + kx - 1)]


def down_map(coords: Tensor, size: Size, extent: str = "active") -> tuple[Tensor, Tensor, Tensor]:
    """Sites of the next level (3x3, stride 2, no padding) and the maps of both directions.

    A site (oy, ox) exists when an active site lies in rows 2oy..2oy+2 and columns 2ox..2ox+2 of the same image and
    the site is within the bound: floor((M - 2) / 2) with M the largest active coordinate of the batch (``active``),
    or floor((S - 3) / 2) with S the grid's size (``image``).

    Args:
        coords: int [N, 3], (b, y, x) in raster order.
        size: (height, width) of the grid of `coords`.
        extent: one of EXTENTS.

    Returns:
        coords' long [M, 3] on the grid ``coarser(size)``, down long [M, 9], up long [N, 9]. Tap k of `down` at site
        o reads the site 2o + k; `up` is its transpose.

    Raises:
        ValueError: another extent.
    """
    if extent not in EXTENTS:
        raise ValueError(f"extent: expected one of {EXTENTS}, found {extent!r}")
    coords = _checked(coords, size)
    rows = coords.shape[0]
    if rows == 0:
        empty = coords.new_empty((0, TAPS))
        return coords.new_empty((0, 3)), empty, empty.clone()
    height, width = coarser(size)
    if extent == "active":
        largest = coords.amax(0)
        height, width = (int(largest[axis]) // 2 for axis in (1, 2))  # bound + 1 = floor((M - 2) / 2) + 1
    ky, kx = _taps(coords.device)
    ty, tx = coords[:, 1:2] - ky, coords[:, 2:3] - kx
    oy, ox = ty >> 1, tx >> 1
    hit = (((ty | tx) & 1) == 0) & (oy >= 0) & (ox >= 0) & (oy < height) & (ox < width)
    cell = (coords[:, :1] * height + oy) * width + ox
    taken = torch.zeros((_batch(coords), height, width), dtype=torch.bool, device=coords.device)
    taken.view(-1)[cell[hit]] = True
    sites = taken.nonzero()
    grid = coords.new_full((taken.numel(),), -1)
    grid[taken.view(-1).nonzero().squeeze(1)] = torch.arange(sites.shape[0], device=coords.device)
    up = coords.new_full((rows, TAPS), -1)
    up[hit] = grid[cell[hit]]
    return sites, transpose_map(up, sites.shape[0]), up


def transpose_map(kernel_map: Tensor, rows_in: int) -> Tensor:
    """Map of the transposed convolution: long [rows_in, K] from long [M, K].

    Needs what every map of a convolution has: within one tap an input row feeds at most one output row.

    Raises:
        ValueError: the map does not have this property.
    """
    taps = kernel_map.shape[1]
    out = kernel_map.new_full((rows_in, taps), -1)
    row, tap = (kernel_map >= 0).nonzero().unbind(1)
    out[kernel_map[row, tap], tap] = row
    if int((out >= 0).sum()) != row.shape[0]:
        raise ValueError("kernel map: an input row feeds two output rows through one tap; it is not a convolution")
    return out


def pyramid(coords: Tensor, size: Size, levels: int, extent: str = "active") -> tuple[LevelMaps, ...]:
    """Sites and maps of all levels of a U-Net, finest first. Levels may be empty.

    Args:
        coords: int [N, 3] sites of the finest level, raster order.
        size: (height, width) of the finest grid.
        levels: number of levels, at least 1.
        extent: one of EXTENTS.
    """
    found = []
    coords = _checked(coords, size)
    for level in range(levels):
        same = submanifold_map(coords, size)
        if level == levels - 1:
            found.append(LevelMaps(coords, size, same))
            break
        sites, down, up = down_map(coords, size, extent)
        found.append(LevelMaps(coords, size, same, down, up))
        coords, size = sites, coarser(size)
    return tuple(found)
