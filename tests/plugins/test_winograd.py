"""The Winograd convolution: its plan, and the submanifold rows of the op table against the float64 reference."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from native_cases import assert_close, guarded_matrix, guards_intact, isas, native, sparse_conv, strided_input
from op_table import CONVS, SITES, Conv, Sites, conv_data, everything, find_sites, reference_conv

from crispseg.errors import InputError
from crispseg.plugins import loader
from crispseg.plugins import native_ops as ops

every_isa = pytest.mark.parametrize("isa", isas())
WIDE = (
    Conv("band", "submanifold", 128, 128, bias=True, residual=True, relu=True, outputs=2, pad=5),
    Conv("all_active_odd", "submanifold", 600, 70, bias=True, pad=3),
    Conv("odd_sizes", "submanifold", 256, 160, bias=True, residual=True, relu=True, outputs=1, y=False, pad=16),
    Conv("isolated", "submanifold", 320, 128, bias=True, relu=True, pad=1),
)
ROWS = tuple(c for c in CONVS if c.kind == "submanifold") + WIDE
every_side = pytest.mark.parametrize("side", [2, 4])
every_conv = pytest.mark.parametrize("conv", ROWS, ids=lambda c: c.name)
every_sites = pytest.mark.parametrize("sites", SITES, ids=lambda s: s.name)


def reference_tiles(sites: Sites, side: int):
    """(inputs [T, (side + 2)**2], outputs [T, side**2]) from a dictionary of sites."""
    coords = sites.coords()
    rows = {(y, x): i for i, (y, x) in enumerate(coords.tolist())}
    places = sorted({(y // side, x // side) for y, x in rows})
    wide = side + 2

    def row(y: int, x: int) -> int:
        return rows.get((y, x), -1)

    inputs = [[row(side * y - 1 + k % wide, side * x - 1 + k // wide) for k in range(wide**2)] for y, x in places]
    outputs = [[row(side * y + k % side, side * x + k // side) for k in range(side**2)] for y, x in places]
    return np.array(inputs, np.int32).reshape(-1, wide**2), np.array(outputs, np.int32).reshape(-1, side**2)


def poison(context: loader.Native, side: int) -> None:
    """Leaves NaN in the scratch of the convolution."""
    sites = Sites("all", 30, 30, everything)
    tiles = ops.winograd_plan(context, sites.coords(), 30, 30, side)
    x, y = strided_input(np.full((900, 640), np.nan, np.float32), 0), np.zeros((900, 256), np.float32)
    weight = ops.pack_winograd(context, np.ones((9, 640, 256), np.float32), side)
    ops.winograd_conv(context, ops.conv_arguments(x, weight, n_out=900, y=y), tiles)
    assert np.isnan(y).all()


def run(context: loader.Native, conv: Conv, data, side: int, in_place: bool = False) -> List[np.ndarray]:
    """[y, z1, z2], with every guard checked."""
    sites = find_sites(conv.sites)
    tiles = ops.winograd_plan(context, sites.coords(), sites.height, sites.width, side)
    x = strided_input(data["x"], conv.pad)
    blocks = [guarded_matrix(len(x), conv.cout, conv.pad, np.nan) for _ in range(1 + conv.outputs)]
    residual = data["residual"] if conv.residual else None
    if in_place:
        blocks[0][1][:] = residual
        residual = blocks[0][1]
    weight = ops.pack_winograd(context, data["weight"], side)
    arguments = ops.conv_arguments(
        x,
        weight,
        n_out=len(x),
        bias=data["bias"] if conv.bias else None,
        residual=residual,
        relu=conv.relu,
        y=blocks[0][1] if conv.y else None,
        z=[(data[f"scale{i}"], data[f"shift{i}"], blocks[1 + i][1]) for i in range(conv.outputs)],
    )
    ops.winograd_conv(context, arguments, tiles)
    for block, inner in blocks:
        assert guards_intact(block, inner, conv.pad)
    return [inner.copy() for _, inner in blocks]


@every_isa
@every_side
@every_sites
def test_plan_is_the_definition(isa, sites, side):
    inputs, outputs = reference_tiles(sites, side)
    table = ops.submanifold_map(native(isa), sites.coords(), sites.height, sites.width)
    pairs = (table >= 0).sum()
    for threads in (1, 3):
        for _ in range(2):  # the grid must be clean again
            tiles = ops.winograd_plan(native(isa, threads), sites.coords(), sites.height, sites.width, side)
            np.testing.assert_array_equal(tiles.inputs, inputs)
            np.testing.assert_array_equal(tiles.outputs, outputs)
            assert tiles.pairs == pairs


@every_isa
@every_side
@every_conv
def test_matches_float64(isa, conv, side):
    context = native(isa)
    poison(context, side)
    data = conv_data(conv)
    assert_close(run(context, conv, data, side), reference_conv(data, conv), conv)


@every_isa
@every_side
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("conv", [c for c in ROWS if c.pad], ids=lambda c: c.name)
def test_threads_give_the_same_bits(isa, threads, conv, side):
    data = conv_data(conv)
    for _ in range(2):
        for a, b in zip(run(native(isa), conv, data, side), run(native(isa, threads), conv, data, side)):
            assert a.tobytes() == b.tobytes()


@every_isa
@every_side
@pytest.mark.parametrize("conv", [c for c in ROWS if c.residual and c.y], ids=lambda c: c.name)
def test_residual_may_be_the_output(isa, conv, side):
    data, context = conv_data(conv), native(isa)
    for a, b in zip(run(context, conv, data, side), run(context, conv, data, side, in_place=True)):
        np.testing.assert_array_equal(a, b)


@every_isa
@pytest.mark.parametrize("channels", [64, 512, 1024])
def test_error_against_the_direct_kernels(isa, channels):
    """F(2x2) has theirs, F(4x4) about three times as much, and below 4e-6 of the largest value."""
    context, conv = native(isa), Conv("all_active_odd", "submanifold", channels, 64)
    data = conv_data(conv)
    want = reference_conv(data, conv)[0]
    direct = sparse_conv(context, data["x"], ops.pack_weight(context, data["weight"]), data["map"])[0] - want
    two, four = (run(context, conv, data, side)[0] - want for side in (2, 4))
    size = [np.sqrt(np.mean(error**2)) for error in (direct, two, four)]
    assert size[1] <= size[0]
    assert size[2] <= 4 * size[0]
    assert np.abs(direct).max() <= 1e-6 * np.abs(want).max()
    assert np.abs(four).max() <= 4e-6 * np.abs(want).max()


@every_isa
@pytest.mark.parametrize("tile", [2, 4])
def test_many_blocks(isa, tile):
    """Several blocks of tiles, of both block sizes, on one thread and three."""
    side = 65
    coords = np.argwhere(np.random.default_rng(3).random((side, side)) < 0.7).astype(np.int32, order="C")
    for cin, cout in ((40, 36), (160, 128)):
        rng = np.random.default_rng(4)
        x = strided_input(rng.standard_normal((len(coords), cin)).astype(np.float32), 0)
        values = rng.standard_normal((9, cin, cout)).astype(np.float32)
        got = []
        for threads in (1, 3):
            context = native(isa, threads)
            weight, y = ops.pack_winograd(context, values, tile), np.full((len(x), cout), np.nan, np.float32)
            arguments = ops.conv_arguments(x, weight, n_out=len(x), relu=True, y=y)
            ops.winograd_conv(context, arguments, ops.winograd_plan(context, coords, side, side, tile))
            got.append(y)
        table = ops.submanifold_map(context, coords, side, side)
        want = sparse_conv(context, x, ops.pack_weight(context, values), table, relu=True)[0]
        assert np.abs(got[0] - want).max() <= 1e-5 * np.abs(want).max()
        assert got[0].tobytes() == got[1].tobytes()


@every_isa
@every_side
def test_memory_does_not_grow_after_the_first_call(isa, side):
    context = loader.Native(2, isa)
    data = conv_data(WIDE[0])
    run(context, WIDE[0], data, side)
    size = context.scratch_bytes
    for _ in range(3):
        run(context, WIDE[0], data, side)
    assert context.scratch_bytes == size
    context.close()


@pytest.mark.parametrize("tile", [2, 4])
def test_nan_spreads_to_the_neighbours_only(tile):
    """The transforms keep what a 3x3 kernel does not reach out of a sum, but for the other pixels of a tile of 4x4."""
    isa = isas()[0]
    if not isinstance(isa, str):
        pytest.skip("no library")
    context, side = native(isa), 12
    sites = Sites("all", side, side, everything)
    x = strided_input(np.ones((side * side, 32), np.float32), 0)
    x[5 * side + 6] = np.nan
    y = np.zeros((side * side, 32), np.float32)
    weight = ops.pack_winograd(context, np.ones((9, 32, 32), np.float32), tile)
    arguments = ops.conv_arguments(x, weight, n_out=len(x), relu=True, y=y)
    ops.winograd_conv(context, arguments, ops.winograd_plan(context, sites.coords(), side, side, tile))
    want = np.zeros((side, side), bool)
    want[4:7, 5:8] = True
    if tile == 4:
        want[4:8, 4:8] = True
    np.testing.assert_array_equal(np.isnan(y).all(1).reshape(side, side), want)
    np.testing.assert_array_equal(np.isnan(y).any(1).reshape(side, side), want)


BAD = {
    "input too large": lambda a, t: t.inputs.__setitem__((0, 3), a.n_in),
    "input below -1": lambda a, t: t.inputs.__setitem__((0, 3), -2),
    "output too large": lambda a, t: t.outputs.__setitem__((0, 3), a.n_out),
    "output below -1": lambda a, t: t.outputs.__setitem__((0, 3), -2),
    "taps": lambda a, t: setattr(a, "K", 8),
    "rows differ": lambda a, t: setattr(a, "n_in", 3),
    "no output": lambda a, t: setattr(a, "y", None),
    "ldy": lambda a, t: setattr(a, "ldy", 1),
    "unaligned": lambda a, t: setattr(a, "weight", a.weight + 4),
}


@every_isa
@every_side
@pytest.mark.parametrize("change", BAD.values(), ids=list(BAD))
def test_bad_arguments_are_refused(isa, change, side):
    context, sites = native(isa), find_sites("two_by_two")
    tiles = ops.winograd_plan(context, sites.coords(), 2, 2, side)
    weight = ops.pack_winograd(context, np.ones((9, 3, 8), np.float32), side)
    x, y = strided_input(np.ones((4, 3), np.float32), 0), np.zeros((4, 8), np.float32)
    arguments = ops.conv_arguments(x, weight, n_out=4, y=y)
    change(arguments, tiles)
    with pytest.raises(InputError, match="cs_winograd_conv"):
        ops.winograd_conv(context, arguments, tiles)


@every_isa
def test_bad_sites_are_refused(isa):
    for coords in ([[0, 4]], [[-1, 0]], [[1, 1], [1, 1]]):
        with pytest.raises(InputError, match="cs_winograd_plan"):
            ops.winograd_plan(native(isa), np.array(coords, np.int32), 4, 4)
    with pytest.raises(InputError, match="side of 2 or 4, found 3"):
        ops.winograd_plan(native(isa), np.array([[0, 0]], np.int32), 4, 4, 3)
