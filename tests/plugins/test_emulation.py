"""The emulated CUDA driver itself: what it computes, and that it finds what it is there to find."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from ctypes import byref, c_int, c_int64, c_uint, c_ulonglong, c_void_p

import emulation
import numpy as np
import pytest
from emulation.prune import prune, used
from emulation_bench import COMPILED, Pair, address

from crispseg.errors import EnvironmentMismatch, InputError


# ---- kernels that are right ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "seed"), [(emulation.FORWARD, 0), (emulation.REVERSE, 0), (emulation.SHUFFLE, 5)])
def test_warp_helpers(bench, kind, seed):
    bench.hooks.order(kind, seed)
    v = np.random.default_rng(1).integers(-50, 50, 64).astype(np.int32)
    out = bench.context.alloc(64 * 12 * 4)
    bench.launch("t_warp", address(bench.put(v)), address(out), block=64)
    rows = bench.get(out, (64, 12))
    for warp in (v[:32], v[32:]):
        at = 0 if warp is v[:32] or np.shares_memory(warp, v[:32]) else 32
        for lane in range(32):
            row = rows[at + lane]
            ballot = int(sum(1 << i for i in range(32) if warp[i] > 0))
            match = int(sum(1 << i for i in range(32) if (warp[i] & 3) == (warp[lane] & 3)))
            down = warp[lane + 4] if lane % 8 < 4 else warp[lane]
            scan = warp[: lane + 1].sum()
            wanted = [warp.sum(), warp.max(), warp.min(), scan, ballot, 0, 1, warp[3], down, match, (v > 0).sum(), 1]
            np.testing.assert_array_equal(row.view(np.uint32), np.array(wanted, np.int64).astype(np.uint32))


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_scan(bench, threads):
    v = np.random.default_rng(threads).integers(0, 9, threads).astype(np.int32)
    out, total = bench.context.alloc(4 * threads), bench.context.alloc(4)
    bench.launch("t_scan", address(bench.put(v)), address(out), address(total), block=threads)
    np.testing.assert_array_equal(bench.get(out, threads), np.cumsum(v) - v)
    assert bench.get(total, 1)[0] == v.sum()


def test_half_conversion_is_that_of_numpy(bench):
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    exact = bits.view(np.float16).astype(np.float32)
    random = np.random.default_rng(0).standard_normal(20000).astype(np.float32) * np.float32(10.0) ** np.linspace(
        -9, 6, 20000
    )
    between = (exact[:-1] + exact[1:]) / 2  # ties
    values = np.concatenate([exact, between, random, [65519.9, 65520.0, np.inf, -np.inf, np.nan]]).astype(np.float32)
    n = len(values)
    out, back = bench.context.alloc(2 * n), bench.context.alloc(4 * n)
    bench.launch("t_half", address(bench.put(values)), address(out), address(back), c_int(n), grid=4, block=64)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16)
    got = bench.get(out, n, np.uint16).view(np.float16)
    np.testing.assert_array_equal(got[:-1].view(np.uint16), wanted[:-1].view(np.uint16))
    assert np.isnan(got[-1])
    np.testing.assert_array_equal(bench.get(back, n, np.float32)[:-1], wanted[:-1].astype(np.float32))


def test_arguments_of_every_size(bench):
    out = bench.context.alloc(40)
    pair = Pair(b"\x05", -(1 << 40))
    arguments = [address(out), ctypes.c_uint8(200), c_int64(1 << 50), ctypes.c_float(-3.0), pair]
    bench.launch("t_arguments", *arguments)
    arguments[2].value = 0  # copied at the call
    np.testing.assert_array_equal(bench.get(out, 5, np.int64), [200, 1 << 50, -3, 5, -(1 << 40)])


def test_dynamic_shared_memory_starts_poisoned(bench):
    out = bench.context.alloc(2 * 64 * 4)
    if COMPILED:
        assert "nobody wrote since the block began" in bench.fails("t_dynamic", address(out), block=64, shared=256)
        return
    bench.launch("t_dynamic", address(out), block=64, shared=256)
    row = bench.get(out, (2, 64))
    np.testing.assert_array_equal(row[0], 163 - np.arange(64))
    assert np.isnan(row[1].view(np.float32)).all()
    assert bench.status("t_dynamic", address(out), block=64, shared=49 << 10) == 1  # without the attribute


def test_blocks_may_wait_for_those_before_them(bench):
    flags = bench.put(np.zeros(8, np.int32))
    bench.launch("t_wait_for_block", address(flags), c_int(-1), grid=8)
    assert bench.get(flags, 8).all()


# ---- kernels that are wrong ----------------------------------------------------------------------------------------
def test_a_barrier_that_not_all_reach(bench):
    out = bench.context.alloc(256)
    both = "divergent at an aligned instruction" if COMPILED else "barriers must not diverge"
    assert "every thread of the block must reach it" in bench.fails("t_divergent", address(out))
    assert both in bench.fails("t_two_barriers", address(out))
    bench.launch("t_increment", address(bench.put(np.zeros(1, np.int32))), c_int(1))  # and life goes on
    bench.stream.synchronize()


def test_a_missing_barrier_shows_in_one_of_the_orders(bench):
    v = np.arange(64, dtype=np.int32)
    source, out = bench.put(v), bench.context.alloc(256)
    for barrier in (0, 1):
        results = []
        for kind in (emulation.FORWARD, emulation.REVERSE):
            bench.hooks.order(kind)
            if COMPILED and not barrier:
                text = bench.fails("t_reverse", address(source), address(out), c_int(barrier), block=64)
                assert "race" in text or "nobody wrote" in text
                continue
            bench.launch("t_reverse", address(source), address(out), c_int(barrier), block=64)
            results.append(bench.get(out, 64))
        if results:
            assert np.array_equal(results[0], v[::-1]) == bool(barrier)
            assert np.array_equal(*results) == bool(barrier)


def test_writes_outside_are_found(bench):
    out = bench.context.alloc(100)
    beyond = "byte 100 of an allocation of 100 bytes" + ("" if COMPILED else " was written")
    assert beyond in bench.fails("t_write_at", address(out), c_int64(25))
    assert "allocation of 100 bytes" in bench.fails("t_write_at", address(out), c_int64(4096))
    other = bench.context.alloc(64)
    assert "4 bytes before an allocation of 64 bytes" in bench.fails("t_write_at", address(other), c_int64(-1))
    shared = "writes 4 bytes at 32 of 32 bytes of shared memory" if COMPILED else "static shared variable of 32 bytes"
    assert shared in bench.fails("t_shared_overrun", address(other), c_int(8))


def test_reads_far_outside_end_the_launch(bench):
    out = bench.context.alloc(4096)
    text = bench.fails("t_read_at", address(out), c_int64(5000), address(out))
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in text
    assert "byte 20000 of an allocation of 4096 bytes" in text
    freed = bench.context.alloc(4096)
    gone = c_ulonglong(freed.address)
    freed.close()
    assert "ILLEGAL_ADDRESS" in bench.fails("t_read_at", gone, c_int64(0), address(out))
    deep = "calls itself" if COMPILED else "ILLEGAL_ADDRESS"  # the stack overflows
    assert deep in bench.fails("t_deep", address(out), c_int(1000))


def test_collectives_that_cannot_complete(bench):
    out = bench.context.alloc(256)
    own = "is not in the mask of lanes that it gives" if COMPILED else "lacks its own lane"
    assert own in bench.fails("t_own_lane", address(out))
    bench.launch("t_half_warp", address(out), c_uint(0xFFFF), c_int(16))  # a smaller mask is fine
    bench.stream.synchronize()
    text = bench.fails("t_half_warp", address(out), c_uint(0xFFFFFFFF), c_int(16))
    assert ("warp 0 cannot go on" if COMPILED else "different collectives") in text or "no thread can go on" in text


def test_division_by_zero_and_waiting_forever(bench):
    out = bench.put(np.zeros(8, np.int32))
    assert "divides an integer by zero" in bench.fails("t_divide", address(out), c_int(0))
    assert "waits for another block" in bench.fails("t_wait_for_block", address(out), c_int(1), grid=8)


def test_a_failed_kernel_breaks_the_context_until_the_tests_ask(bench):
    """As on a GPU, where every call of the process gives the same error from then on."""
    gc.collect()  # of earlier tests
    live, launches = bench.hooks.live(), bench.hooks.launches()
    out = bench.put(np.zeros(8, np.int32))
    other = bench.context.stream()
    bench.launch("t_read_at", c_ulonglong(0), c_int64(0), address(out))
    bench.launch("t_increment", address(out), c_int(1))
    bench.launch("t_increment", address(out), c_int(1), stream=other)
    status = [bench.lib.cuStreamSynchronize(c_void_p(bench.stream.handle)) for _ in range(2)]
    assert status == [700, 700]
    found, module = c_ulonglong(), c_void_p()
    assert bench.lib.cuMemAlloc_v2(byref(found), ctypes.c_size_t(4)) == 700
    assert bench.lib.cuModuleGetFunction(byref(module), bench.module, b"t_increment") == 700
    assert bench.lib.cuStreamQuery(c_void_p(other.handle)) == 700
    assert not bench.context.alive
    bench.kept.clear()
    out.close()  # says 700 too, which nobody asks, and gives the memory back
    gc.collect()
    assert bench.hooks.live() == live
    assert "t_read_at" in bench.hooks.check()
    assert bench.hooks.check() == ""
    assert bench.context.alive
    other.synchronize()
    assert bench.hooks.launches() == launches + 1, "nothing ran behind the failure, nor runs later"


def test_launch_limits(bench):
    p, one = bench.put(np.zeros(1, np.int32)), c_int(1)
    assert bench.status("t_increment", address(p), one, block=96) == 701, "more threads than the kernel is built for"
    assert bench.status("t_increment", address(p), one, grid=0) == 1
    found = c_void_p()
    for name in (b"t_absent", b"no_such"):  # not defined; not listed
        assert bench.lib.cuModuleGetFunction(byref(found), bench.module, name) == 500
    least = 90  # compute capability of this one
    status = bench.lib.cuModuleGetFunction(byref(found), bench.module, b"t_new")
    assert status == (0 if emulation.ptx.capability() >= least else 500)


# ---- memory ----------------------------------------------------------------------------------------------------------
def test_memory_is_poisoned_checked_and_finite(bench):
    gc.collect()  # of earlier tests
    live = bench.hooks.live()
    buffer = bench.context.alloc(1000)
    assert buffer.address % 256 == 0
    assert np.isnan(bench.get(buffer, 250, np.float32)).all()
    assert np.isnan(bench.get(buffer, 500, np.float16)).all()
    with pytest.raises(EnvironmentMismatch, match="INVALID_VALUE"):
        bench.stream.fill(buffer.address + 500, 0, 501)
    with pytest.raises(InputError, match="OUT_OF_MEMORY"):
        bench.context.alloc(1 << 40)
    assert bench.hooks.live() == live + 1
    buffer.close()
    assert bench.hooks.live() == live


def test_a_thread_without_a_context_is_told_so(bench):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(bench.lib.cuStreamSynchronize(c_void_p(bench.stream.handle)))
    )
    thread.start()
    thread.join()
    assert results == [201]


# ---- the build cache -------------------------------------------------------------------------------------------------
def test_what_was_not_used_for_days_leaves_the_build_cache(tmp_path):
    now = time.time()
    for name, days in (("a-1.o", 9), ("a-2.o", 1), ("b.o.7.partial", 9), ("old/kernels.so", 9), ("new/kernels.so", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        for thing in (path, path.parent):
            os.utime(thing, (now - 86400 * days,) * 2)
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (0, 0))
    used(tmp_path / "a-1.o")
    assert prune(tmp_path, 3.0) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.o", "a-2.o", "lock", "new"]
