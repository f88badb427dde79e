"""Kernel maps of the native library against a dictionary, and against maps recorded from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import GUARD, guarded, intact, isas, native
from op_table import SITES, reference_down, reference_submanifold

from crispseg.errors import InputError
from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import EXTENT

GOLDEN = Path(__file__).parents[1] / "data" / "sparserefine"
pytestmark = pytest.mark.parametrize("isa", isas())


@pytest.mark.parametrize("sites", SITES, ids=lambda s: s.name)
def test_submanifold_map(isa, sites):
    coords = sites.coords()
    got = ops.submanifold_map(native(isa), coords, sites.height, sites.width)
    np.testing.assert_array_equal(got, reference_submanifold(coords))


@pytest.mark.parametrize("extent", ["active", "image"])
@pytest.mark.parametrize("sites", SITES, ids=lambda s: s.name)
def test_down_map(isa, sites, extent):
    coords = sites.coords()
    got = ops.down_map(native(isa), coords, sites.height, sites.width, extent)
    for have, want in zip(got, reference_down(coords, sites.height, sites.width, extent)):
        np.testing.assert_array_equal(have, want)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 140), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_random_masks(isa, height, width, share, seed):
    coords = np.argwhere(np.random.default_rng(seed).random((height, width)) < share).astype(np.int32, order="C")
    np.testing.assert_array_equal(
        ops.submanifold_map(native(isa), coords, height, width), reference_submanifold(coords)
    )
    for extent in EXTENT:
        got = ops.down_map(native(isa), coords, height, width, extent)
        for have, want in zip(got, reference_down(coords, height, width, extent)):
            np.testing.assert_array_equal(have, want)


def test_nothing_is_written_outside(isa):
    sites = next(s for s in SITES if s.name == "odd_sizes")
    coords = sites.coords()
    n, context = len(coords), native(isa)
    block, table = guarded(n * 9)
    context.call("cs_submanifold_map", coords.ctypes.data, n, sites.height, sites.width, table.ctypes.data)
    assert intact(block, n * 9)
    _, want_down, _ = reference_down(coords, sites.height, sites.width, "active")
    m = len(want_down)
    blocks = [guarded(size) for size in (2 * m, 1, 9 * m, 9 * n)]
    pointers = [inner.ctypes.data for _, inner in blocks]
    context.call("cs_down_map", coords.ctypes.data, n, sites.height, sites.width, 0, *pointers)
    assert blocks[1][1][0] == m
    assert all(intact(block, len(inner)) for block, inner in blocks)
    assert not (blocks[2][1] == GUARD).any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_give_the_same_maps(isa, threads):
    coords = np.argwhere(np.random.default_rng(0).random((200, 300)) < 0.5).astype(np.int32, order="C")
    assert len(coords) > 3 * 8192
    context = native(isa, threads)
    np.testing.assert_array_equal(ops.submanifold_map(context, coords, 200, 300), reference_submanifold(coords))
    for have, want in zip(ops.down_map(context, coords, 200, 300), reference_down(coords, 200, 300, "active")):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    "coords",
    [[[0, 0], [0, 0]], [[1, 0], [0, 5]], [[0, 3], [0, 2]], [[0, 20]], [[10, 0]], [[-1, 0]], [[0, -1]]],
    ids=["duplicate", "lines", "columns", "wide", "tall", "above", "left"],
)
def test_bad_sites_are_refused_and_leave_no_trace(isa, coords):
    bad, context = np.array(coords, np.int32), native(isa)
    with pytest.raises(InputError, match="site"):
        ops.submanifold_map(context, bad, 10, 20)
    with pytest.raises(InputError, match="site"):
        ops.down_map(context, bad, 10, 20)
    good = np.argwhere(np.ones((10, 20))).astype(np.int32, order="C")
    np.testing.assert_array_equal(ops.submanifold_map(context, good, 10, 20), reference_submanifold(good))


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5), (1 << 20, 1 << 20)])
def test_bad_extent_is_refused(isa, height, width):
    with pytest.raises(InputError, match="grid"):
        ops.submanifold_map(native(isa), np.zeros((1, 2), np.int32), height, width)


def test_memory_does_not_grow_after_the_first_call(isa):
    context = native(isa)
    coords = SITES[14].coords()
    for _ in range(2):
        ops.submanifold_map(context, coords, 67, 95)
        ops.down_map(context, coords, 67, 95)
        size = context.scratch_bytes
    for sites in SITES[:14]:
        ops.submanifold_map(context, sites.coords(), sites.height, sites.width)
        ops.down_map(context, sites.coords(), sites.height, sites.width)
    assert context.scratch_bytes == size


@pytest.mark.parametrize("taps", [1, 4, 9, 12])
def test_plan_is_a_stable_permutation_of_near_rows(isa, taps):
    rng = np.random.default_rng(taps)
    table = np.where(rng.random((5000, taps)) < 0.5, -1, 3).astype(np.int32)
    order = ops.plan_map(native(isa), table)
    np.testing.assert_array_equal(np.sort(order), np.arange(5000))
    assert np.abs(order - np.arange(5000)).max() < 2000  # stays inside a block: the input rows stay in the cache
    if taps <= 9:
        bits = ((table >= 0) << np.arange(taps)).sum(1)[order]
        same = bits[1:] == bits[:-1]
        assert same.mean() > 0.3
        assert (np.diff(order)[same] > 0).all()


def test_plan_separates_the_parities_of_an_up_map(isa):
    coords = np.argwhere(np.ones((60, 60))).astype(np.int32, order="C")
    _, _, up = ops.down_map(native(isa), coords, 60, 60, "image")
    for order, most in ((ops.plan_map(native(isa), up), 3.0), (np.arange(3600), 9.0)):
        tiles = (up[order] >= 0).reshape(-1, 12, 9).any(1)
        assert tiles.sum(1).mean() <= most
    assert tiles.sum(1).mean() > 3.0


@pytest.mark.parametrize("case", ["a_64x96", "b_67x95", "c_allactive_32x32", "e_corners_64x96"])
def test_recorded_maps(isa, case):
    inputs, outputs = GOLDEN / f"inputs_{case}.npz", GOLDEN / f"small_{case}.npz"
    recorded = np.load(outputs)
    coords = np.load(inputs)["coords"]
    height, width = (int(v) for v in case.split("_")[-1].split("x"))
    coords = np.ascontiguousarray(coords[:, -2:], dtype=np.int32)
    for level in range(3):
        name = f"map_subm_l{level}"
        if name in recorded.files:
            np.testing.assert_array_equal(ops.submanifold_map(native(isa), coords, height, width), recorded[name])
        if f"coords_l{level + 1}" not in recorded.files:
            break
        sites, down, up = ops.down_map(native(isa), coords, height, width, "active")
        np.testing.assert_array_equal(sites, recorded[f"coords_l{level + 1}"][:, -2:])
        if f"map_down_l{level}" in recorded.files:
            np.testing.assert_array_equal(down, recorded[f"map_down_l{level}"])
        image = GOLDEN / f"small_{case}_imageclip.npz"
        if image.is_file() and level == 0:
            wanted = np.load(image)["coords_l1"][:, -2:]
            np.testing.assert_array_equal(ops.down_map(native(isa), coords, height, width, "image")[0], wanted)
        coords, height, width = sites, (height - 1) // 2, (width - 1) // 2
