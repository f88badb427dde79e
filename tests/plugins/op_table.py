"""ONE table of shapes for the op tests, as data with generators, and the numpy references of maps and convolution.

The references are written from the op contract alone and share nothing with the kernels: dictionaries for the maps,
a gather and a float64 matrix product for the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np


@dataclass(frozen=True)
class Sites:
    """A set of active pixels: ``mask(rng, height, width)`` -> bool [height, width]."""

    name: str
    height: int
    width: int
    mask: Callable[[np.random.Generator, int, int], np.ndarray]

    def coords(self) -> np.ndarray:
        """int32 [N, 2] (y, x) in raster order."""
        active = self.mask(np.random.default_rng(7), self.height, self.width)
        return np.ascontiguousarray(np.argwhere(active), dtype=np.int32)


def nothing(_: np.random.Generator, height: int, width: int) -> np.ndarray:
    """No pixel."""
    return np.zeros((height, width), bool)


def everything(_: np.random.Generator, height: int, width: int) -> np.ndarray:
    """All pixels."""
    return np.ones((height, width), bool)


def at(*places: Tuple[int, int]) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """The named pixels; negative = from the end."""

    def mask(_: np.random.Generator, height: int, width: int) -> np.ndarray:
        out = np.zeros((height, width), bool)
        for y, x in places:
            out[y, x] = True
        return out

    return mask


def density(share: float) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Salt noise."""
    return lambda rng, height, width: rng.random((height, width)) < share


def isolated(step: int, offset: int = 0) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Every ``step``-th pixel in both directions: no two touch."""

    def mask(_: np.random.Generator, height: int, width: int) -> np.ndarray:
        out = np.zeros((height, width), bool)
        out[offset::step, offset::step] = True
        return out

    return mask


def band(thickness: float) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """A wavy band, as the border between two classes."""

    def mask(_: np.random.Generator, height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        middle = height / 2 + height / 3 * np.sin(x * 6.0 / width)
        return np.abs(y - middle) < thickness / 2

    return mask


CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))

SITES = (
    Sites("none", 9, 11, nothing),
    Sites("none_1x1", 1, 1, nothing),
    Sites("one_1x1", 1, 1, everything),
    Sites("one_middle", 9, 9, at((4, 5))),
    Sites("one_origin", 8, 8, at((0, 0))),
    Sites("one_last", 8, 9, at((-1, -1))),
    Sites("corners_even", 8, 12, at(*CORNERS)),
    Sites("corners_odd", 9, 13, at(*CORNERS)),
    Sites("two_by_two", 2, 2, everything),
    Sites("three_by_three", 3, 3, everything),
    Sites("one_line", 1, 40, everything),
    Sites("one_column", 40, 1, everything),
    Sites("two_lines", 2, 131, everything),
    Sites("three_lines", 3, 131, everything),
    Sites("odd_sizes", 67, 95, density(0.3)),
    Sites("even_sizes", 64, 96, density(0.1)),
    Sites("all_active_even", 32, 32, everything),
    Sites("all_active_odd", 33, 35, everything),
    Sites("dense", 31, 64, density(0.95)),
    Sites("isolated", 41, 47, isolated(3)),
    Sites("isolated_odd", 40, 46, isolated(2, 1)),
    Sites("sparse_wide", 20, 700, density(0.02)),
    Sites("band", 96, 150, band(9)),
    Sites("empty_borders", 30, 200, at((10, 70), (10, 71), (11, 70), (20, 130))),
)


def find_sites(name: str) -> Sites:
    """The row of SITES with this name."""
    return next(s for s in SITES if s.name == name)


@dataclass(frozen=True)
class Conv:
    """A convolution on a set of sites. kind: submanifold, down, up or identity (K = 1, no map)."""

    sites: str
    kind: str
    cin: int
    cout: int
    bias: bool = False
    residual: bool = False
    relu: bool = False
    outputs: int = 0
    y: bool = True
    pad: int = 0

    @property
    def name(self) -> str:
        """Readable test id."""
        flags = "".join(f for f, on in zip("bry", (self.bias, self.residual, self.relu)) if on)
        flags = (flags or "plain") + str(self.outputs) + ("" if self.y else "z")
        return f"{self.sites}-{self.kind}-{self.cin}x{self.cout}-{flags}"


KINDS = ("submanifold", "down", "up", "identity")
FULL = {"bias": True, "residual": True, "relu": True, "outputs": 2, "pad": 5}

CONVS = (
    # every set of sites, every kind of map
    *(Conv(s.name, kind, 14, 24, bias=True, relu=True) for s in SITES for kind in KINDS),
    # channel counts around every panel and vector width, with every part of the epilogue
    *(Conv("odd_sizes", "submanifold", cin, 32, **FULL) for cin in (1, 3, 14, 32, 35)),
    *(Conv("odd_sizes", "submanifold", 8, cout, **FULL) for cout in (1, 2, 7, 8, 11, 16, 17, 19, 24, 31, 33, 48, 50)),
    *(Conv("even_sizes", "up", 64, cout, **FULL) for cout in (11, 32)),
    *(Conv("odd_sizes", "identity", cin, cout, **FULL) for cin, cout in ((32, 19), (64, 32), (3, 2))),
    # long sums: several chunks of taps, several parts of a tap
    Conv("band", "submanifold", 64, 64, **FULL),
    Conv("even_sizes", "down", 128, 128, **FULL),
    Conv("isolated", "up", 256, 128, **FULL),
    Conv("corners_odd", "submanifold", 289, 40, **FULL),
    Conv("two_by_two", "submanifold", 1024, 1024, bias=True),
    Conv("one_line", "submanifold", 600, 35, residual=True),
    Conv("one_middle", "submanifold", 32, 128, **FULL),
    Conv("none", "submanifold", 32, 128, **FULL),
    Conv("even_sizes", "identity", 700, 20, bias=True),
    # the parts of the epilogue one by one
    Conv("band", "submanifold", 16, 32),
    Conv("band", "submanifold", 16, 19, bias=True),
    Conv("band", "submanifold", 16, 19, residual=True, pad=1),
    Conv("band", "submanifold", 16, 32, relu=True),
    Conv("band", "submanifold", 16, 32, outputs=1),
    Conv("band", "submanifold", 16, 19, bias=True, outputs=1, y=False),
    Conv("band", "submanifold", 16, 33, residual=True, outputs=2, y=False, pad=3),
)


# ---- references -------------------------------------------------------------------------------------------------


def reference_submanifold(coords: np.ndarray) -> np.ndarray:
    """int32 [N, 9], k = ky + 3 kx, from a dictionary of sites."""
    rows = {(y, x): i for i, (y, x) in enumerate(coords.tolist())}
    out = np.full((len(coords), 9), -1, np.int32)
    for i, (y, x) in enumerate(coords.tolist()):
        for k in range(9):
            out[i, k] = rows.get((y + k % 3 - 1, x + k // 3 - 1), -1)
    return out


def reference_down(
    coords: np.ndarray, height: int, width: int, extent: str
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse sites, down [M, 9], up [N, 9] by definition: o is a site iff a pixel of {2o..2o+2}^2 is active."""
    rows = {(y, x): i for i, (y, x) in enumerate(coords.tolist())}
    largest = (height - 1, width - 1)
    if extent == "active":
        largest = (int(coords[:, 0].max()), int(coords[:, 1].max())) if len(coords) else (-1, -1)
    last = [(m - 2) // 2 for m in largest]
    sites: List[Tuple[int, int]] = []
    for oy in range(last[0] + 1):
        for ox in range(last[1] + 1):
            if any((2 * oy + k % 3, 2 * ox + k // 3) in rows for k in range(9)):
                sites.append((oy, ox))
    down = np.full((len(sites), 9), -1, np.int32)
    up = np.full((len(coords), 9), -1, np.int32)
    for o, (oy, ox) in enumerate(sites):
        for k in range(9):
            row = rows.get((2 * oy + k % 3, 2 * ox + k // 3), -1)
            down[o, k] = row
            if row >= 0:
                up[row, k] = o
    return np.array(sites, np.int32).reshape(-1, 2), down, up


def reference_map(sites: Sites, kind: str) -> Tuple[Optional[np.ndarray], int]:
    """(map or None, rows of the input) of one kind of convolution on these sites."""
    coords = sites.coords()
    if kind == "identity":
        return None, len(coords)
    if kind == "submanifold":
        return reference_submanifold(coords), len(coords)
    coarse, down, up = reference_down(coords, sites.height, sites.width, "image")
    return (down, len(coords)) if kind == "down" else (up, len(coarse))


def reference_conv(data: Dict[str, np.ndarray], conv: Conv) -> List[np.ndarray]:
    """[y, z1, z2] in float64. data: x, map (absent = identity), weight, bias, residual, scale0, shift0, ..."""
    x = np.concatenate([data["x"].astype(np.float64), np.zeros((1, conv.cin))])  # index -1 = the row of zeros
    table = data.get("map")
    rows = x[:-1, None] if table is None else x[table]
    weight = data["weight"].astype(np.float64).reshape(-1, conv.cout)
    y = rows.reshape(len(rows), len(weight)) @ weight
    if conv.bias:
        y = y + data["bias"]
    if conv.residual:
        y = y + data["residual"]
    if conv.relu:
        y = np.maximum(y, 0)
    z = [np.maximum(y * data[f"scale{i}"] + data[f"shift{i}"], 0) for i in range(conv.outputs)]
    return [y] + z


def reference_conv_int8(data: Dict[str, np.ndarray], conv: Conv, x_scale: float) -> List[np.ndarray]:
    """[y, z1, z2] in float32 of the int8 convolution, bit by bit: integers summed, then one rounding an operation."""
    one = np.float32(1)
    q = np.clip(np.rint(data["x"] / np.float32(x_scale)), -127, 127).astype(np.int64)
    w_scale = np.abs(data["weight"]).max((0, 1)) / np.float32(127)
    w_scale = np.where(w_scale > 0, w_scale, one).astype(np.float32)
    weight = np.rint(data["weight"] / w_scale).astype(np.int64)
    assert np.abs(weight).max() <= 127
    q = np.concatenate([q, np.zeros((1, conv.cin), np.int64)])
    rows = q[:-1, None] if data.get("map") is None else q[data["map"]]
    total = rows.reshape(len(rows), weight.shape[0] * conv.cin).astype(np.float64) @ weight.reshape(-1, conv.cout)
    y = total.astype(np.float32) * (np.float32(x_scale) * w_scale)
    if conv.bias:
        y = y + data["bias"]
    if conv.residual:
        y = y + data["residual"]
    if conv.relu:
        y = np.maximum(y, np.float32(0))
    z = [np.maximum(y * data[f"scale{i}"] + data[f"shift{i}"], np.float32(0)) for i in range(conv.outputs)]
    return [y] + z


_maps: Dict[Tuple[str, str], Tuple[Optional[np.ndarray], int]] = {}


def conv_data(conv: Conv) -> Dict[str, np.ndarray]:
    """Random inputs of a row of CONVS."""
    key = (conv.sites, conv.kind)
    if key not in _maps:
        _maps[key] = reference_map(find_sites(conv.sites), conv.kind)
    table, n_in = _maps[key]
    n_out = n_in if table is None else len(table)
    taps = 1 if table is None else table.shape[1]
    rng = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    data = {"x": normal(n_in, conv.cin), "weight": normal(taps, conv.cin, conv.cout), "bias": normal(conv.cout)}
    data["residual"] = normal(n_out, conv.cout)
    for i in range(2):
        data[f"scale{i}"], data[f"shift{i}"] = normal(conv.cout), normal(conv.cout)
    if table is not None:
        data["map"] = table
    return data
