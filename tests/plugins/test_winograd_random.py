"""Winograd against the direct kernel on random layers: shapes, densities, epilogues, threads."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import guarded_matrix, guards_intact, isas, native, strided_input

from crispseg.plugins import native_ops as ops

every_isa = pytest.mark.parametrize("isa", isas())
UNIT = 2.0**-24  # largest relative error of one rounding


@st.composite
def layers(draw):
    """One layer and its frame. Grids of one row or column, of whole and of cut tiles; empty and full ones."""
    size, channels = st.integers(1, 21), st.one_of(st.integers(1, 9), st.integers(1, 72))
    return {
        "height": draw(st.one_of(size, st.just(1))),
        "width": draw(st.one_of(size, st.just(1))),
        "density": draw(st.sampled_from([0.0, 0.03, 0.2, 0.6, 1.0])),
        "cin": draw(st.one_of(channels, st.just(300))),
        "cout": draw(channels),
        "pads": draw(st.tuples(*[st.integers(0, 5)] * 2)),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "relu": draw(st.booleans()),
        "outputs": draw(st.integers(0, 2)),
        "y": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def run(context, layer, side):
    """(outputs, bound of each output's error) with tiles of ``side``; 0 = the direct kernel."""
    rng = np.random.default_rng(layer["seed"])
    coords = np.argwhere(rng.random((layer["height"], layer["width"])) < layer["density"]).astype(np.int32, order="C")
    n, cin, cout = len(coords), layer["cin"], layer["cout"]

    def uniform(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    x, weight, residual = uniform(n, cin), uniform(9, cin, cout), uniform(n, cout)
    bias, affine = uniform(cout), [(uniform(cout), uniform(cout)) for _ in range(layer["outputs"])]
    wanted = [layer["y"] or not affine] + [True] * len(affine)
    blocks = [guarded_matrix(n, cout, layer["pads"][1], np.nan) for _ in wanted]
    source = strided_input(x, layer["pads"][0])
    args = {
        "bias": bias if layer["bias"] else None,
        "residual": residual if layer["residual"] else None,
        "relu": layer["relu"],
        "y": blocks[0][1] if wanted[0] else None,
        "z": [(*pair, inner) for pair, (_, inner) in zip(affine, blocks[1:])],
    }
    if side:
        packed = ops.pack_winograd(context, weight, side)
        tiles = ops.winograd_plan(context, coords, layer["height"], layer["width"], side)
        ops.winograd_conv(context, ops.conv_arguments(source, packed, n_out=n, **args), tiles)
    else:
        packed = ops.pack_weight(context, weight)
        table = ops.submanifold_map(context, coords, layer["height"], layer["width"])
        context.call("cs_sparse_conv", byref(ops.conv_arguments(source, packed, table, n_out=n, **args)))
    for block, inner in blocks:
        assert guards_intact(block, inner, layer["pads"][1])
    # Terms are below 1 in magnitude; their number bounds every partial sum. The transforms of 4x4 tiles enlarge errors.
    bound = UNIT * (9 * cin + 3) * 16
    return [inner.copy() for (_, inner), there in zip(blocks, wanted) if there], bound


FULL = {"height": 13, "width": 10, "density": 1.0, "cin": 72, "cout": 65, "pads": (1, 3), "bias": True,
        "residual": True, "relu": False, "outputs": 2, "y": True, "seed": 1}  # fmt: skip


@every_isa
@settings(max_examples=150, deadline=None)
@example(layer=FULL, threads=5)
@example(layer={**FULL, "height": 1, "width": 1}, threads=5)
@example(layer={**FULL, "density": 0.0}, threads=5)
@given(layer=layers(), threads=st.sampled_from([2, 3, 5]))
def test_random_layers(isa, layer, threads):
    want, bound = run(native(isa), layer, 0)
    for side in (2, 4):
        got, _ = run(native(isa), layer, side)
        for a, b in zip(got, want):
            assert not np.isnan(a).any()
            assert np.abs(a - b).max(initial=0) <= bound
        for a, b in zip(got, run(native(isa, threads), layer, side)[0]):
            assert a.tobytes() == b.tobytes()


@every_isa
@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1_000_003), (1_000_001, 1), (1001, 999)])
def test_sites_in_the_corners_of_large_grids(isa, side, height, width):
    corners = sorted({(y, x) for y in (0, height - 1) for x in (0, width - 1)})
    coords = np.array(corners, np.int32)
    tiles = ops.winograd_plan(native(isa), coords, height, width, side)
    places = sorted({(y // side, x // side) for y, x in corners})
    assert tiles.pairs == len(corners)
    assert len(tiles.outputs) == len(places)
    for (ty, tx), inputs, outputs in zip(places, tiles.inputs, tiles.outputs):
        for row, (y, x) in enumerate(corners):
            if (y // side, x // side) == (ty, tx):
                assert inputs[y % side + 1 + (side + 2) * (x % side + 1)] == row
                assert outputs[y % side + side * (x % side)] == row
    for rows in (tiles.inputs, tiles.outputs):
        assert sorted(rows[rows >= 0]) == list(range(len(corners)))
