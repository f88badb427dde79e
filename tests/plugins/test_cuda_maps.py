"""Kernel maps and the parity order on a GPU (or the emulated driver) against a dictionary, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from op_table import SITES, find_sites, reference_down, reference_submanifold

from crispseg.errors import InputError
from crispseg.plugins.cuda_loader import EXTENT

# A row more than the sites need, so that something stands beyond the count.
EXTRA = 3


def padded(coords, extra=EXTRA):
    """Coordinates with rows of nonsense beyond the count."""
    return np.concatenate([coords, np.full((extra, 2), 2**30, np.int32)])


class Maps:
    """All three functions on one set of sites, with poisoned outputs and scratch."""

    def __init__(self, gpu, coords, height, width, extent="active", extra=EXTRA, room=None, shift=0):
        n, capacity = len(coords), len(coords) + extra
        self.gpu, self.n, self.capacity, self.grid, self.extent = gpu, n, capacity, (height, width), EXTENT[extent]
        self.coords, self.count = gpu.put(padded(coords, extra)), gpu.count(n)
        self.room = gpu.kernels.library.csg_down_capacity(capacity, height, width) if room is None else room
        self.work = gpu.room(gpu.size("csg_map_workspace", height, width), np.uint8, shift=256 - 16)
        self.map = gpu.room((capacity, 9), np.int32, shift=shift)
        self.sites, self.sites_count = gpu.room((self.room, 2), np.int32), gpu.room(1, np.int32)
        self.down, self.up = gpu.room((self.room, 9), np.int32, shift=shift), gpu.room((capacity, 9), np.int32)
        self.order = gpu.room(capacity, np.int32)
        self.outputs = [self.map, self.sites, self.sites_count, self.down, self.up, self.order]

    def enqueue(self):
        head = (self.coords, self.count, self.capacity, *self.grid)
        tail = (self.work, self.work.nbytes)
        self.gpu.call("csg_submanifold_map", *head, self.map, *tail)
        outputs = (self.sites, self.sites_count, self.down, self.up)
        self.gpu.call("csg_down_map", *head, self.extent, self.room, *outputs, *tail)
        self.gpu.call("csg_parity_order", *head, self.order, *tail)

    def check(self, coords):
        n, extent = len(coords), "active" if self.extent == EXTENT["active"] else "image"
        np.testing.assert_array_equal(self.map.get()[:n], reference_submanifold(coords))
        sites, down, up = reference_down(coords, *self.grid, extent)
        m = min(len(sites), self.room)
        assert self.sites_count.get()[0] == m
        np.testing.assert_array_equal(self.sites.get()[:m], sites[:m])
        np.testing.assert_array_equal(self.down.get()[:m], down[:m])
        np.testing.assert_array_equal(self.up.get()[:n], np.where(up < m, up, -1))
        parity = (coords[:, 0] & 1) * 2 + (coords[:, 1] & 1)
        np.testing.assert_array_equal(self.order.get()[:n], np.argsort(parity, kind="stable"))
        assert all(room.untouched(n) for room in (self.map, self.up, self.order))
        assert all(room.untouched(m) for room in (self.sites, self.down))


@pytest.mark.parametrize("extent", ["active", "image"])
@pytest.mark.parametrize("sites", SITES, ids=lambda s: s.name)
def test_op_table(gpu, sites, extent):
    coords = sites.coords()
    maps = Maps(gpu, coords, sites.height, sites.width, extent)
    maps.enqueue()
    maps.check(coords)


@pytest.mark.parametrize("seed", range(12))
def test_random_masks(gpu, seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 14)), int(rng.integers(1, 140))
    coords = np.argwhere(rng.random((height, width)) < rng.random()).astype(np.int32, order="C")
    maps = Maps(gpu, coords, height, width, ("active", "image")[seed % 2], shift=4 * (seed % 3))
    maps.enqueue()
    maps.check(coords)


@pytest.mark.parametrize("width", [*range(59, 68), 125, 126, 127])
def test_every_end_of_a_cell(gpu, width):
    """The last coarser site lies in each place of a cell of 32, with sites right behind it."""
    coords = np.argwhere(np.ones((5, width))).astype(np.int32, order="C")
    for extent in ("active", "image"):
        maps = Maps(gpu, coords, 5, width + (extent == "active"), extent)
        maps.enqueue()
        maps.check(coords)


def test_many_chunks(gpu):
    """More rows than all blocks take at once on three multiprocessors, and coarse lines in several blocks."""
    coords = np.argwhere(np.random.default_rng(0).random((120, 101)) < 0.6).astype(np.int32, order="C")
    assert len(coords) > 3 * 2048
    maps = Maps(gpu, coords, 120, 101)
    maps.enqueue()
    maps.check(coords)
    maps.gpu.same_in_any_order(maps.enqueue, maps.outputs)


def test_sites_that_share_no_warp_with_their_cell(gpu):
    """Cells cut by the end of a warp and of a block: 31 sites in the first line shift all others against the warps."""
    mask = np.zeros((9, 96), bool)
    mask[0, :31] = True
    mask[1:] = True
    coords = np.argwhere(mask).astype(np.int32, order="C")
    maps = Maps(gpu, coords, 9, 96, "image")
    maps.enqueue()
    maps.check(coords)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_too_little_room_keeps_the_first_sites(gpu, room):
    sites = find_sites("band")
    coords = sites.coords()
    maps = Maps(gpu, coords, sites.height, sites.width, room=room)
    maps.enqueue()
    maps.check(coords)


def test_replay_follows_the_count(gpu):
    """One captured graph serves any number of sites up to the capacity, on scratch that the last run left."""
    sites = find_sites("odd_sizes")
    full = sites.coords()
    maps = Maps(gpu, full, sites.height, sites.width)
    graph = gpu.capture(maps.enqueue)
    assert maps.map.untouched(0)
    for mask_share in (1.0, 0.3, 0.0, 0.7):
        keep = np.random.default_rng(3).random(len(full)) < mask_share
        coords = full[keep]
        now = padded(full)
        now[: len(coords)] = coords
        maps.coords.put(now)
        maps.count.put(len(coords))
        for room in maps.outputs:
            room.reset()
        gpu.launch(graph)
        maps.check(coords)


def test_capacity_of_zero(gpu):
    maps = Maps(gpu, np.zeros((0, 2), np.int32), 9, 11, extra=0)
    gpu.call("csg_submanifold_map", None, maps.count, 0, 9, 11, None, maps.work, maps.work.nbytes)
    gpu.call("csg_parity_order", None, maps.count, 0, 9, 11, None, maps.work, maps.work.nbytes)
    tail = (0, None, maps.sites_count, None, None, maps.work, maps.work.nbytes)
    gpu.call("csg_down_map", None, maps.count, 0, 9, 11, 0, *tail)
    assert maps.sites_count.get()[0] == 0


def test_a_wrong_count_stays_inside(gpu):
    """A count beyond the capacity is cut to it, a negative one is none."""
    sites = find_sites("even_sizes")
    coords = sites.coords()
    maps = Maps(gpu, coords, sites.height, sites.width, extra=0)
    maps.count.put(10**6)
    maps.enqueue()
    maps.check(coords)
    maps.count.put(-5)
    for room in maps.outputs:
        room.reset()
    maps.enqueue()
    maps.check(coords[:0])


def test_sites_outside_are_left_out(gpu):
    """Coordinates that no selection makes do no harm: guards stay whole, other rows have their neighbours."""
    coords = np.array([[0, 0], [0, 1], [-7, 3], [3, 2**30], [4, 4]], np.int32)
    maps = Maps(gpu, coords, 6, 7, extra=0)
    maps.enqueue()
    table = maps.map.get()
    assert table[0].tolist() == [-1, -1, -1, -1, 0, -1, -1, 1, -1]
    assert table[1].tolist() == [-1, 0, -1, -1, 1, -1, -1, -1, -1]
    assert ((table >= -1) & (table < 5)).all()


def test_bad_arguments(gpu):
    maps = Maps(gpu, find_sites("one_middle").coords(), 9, 9)
    head = (maps.coords, maps.count, maps.capacity)
    with pytest.raises(InputError, match="grid"):
        gpu.call("csg_submanifold_map", *head, 0, 9, maps.map, maps.work, maps.work.nbytes)
    with pytest.raises(InputError, match="workspace: expected"):
        gpu.call("csg_submanifold_map", *head, 9, 9, maps.map, maps.work, maps.work.nbytes - 1)
    outputs = (maps.sites, maps.sites_count, maps.down, maps.up)
    with pytest.raises(InputError, match="extent"):
        gpu.call("csg_down_map", *head, 9, 9, 2, maps.room, *outputs, maps.work, maps.work.nbytes)
    shifted = (maps.coords.address + 4, maps.count, maps.capacity)
    with pytest.raises(InputError, match="aligned"):
        gpu.call("csg_parity_order", *shifted, 9, 9, maps.order, maps.work, maps.work.nbytes)
