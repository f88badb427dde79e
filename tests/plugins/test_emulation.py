"""The emulated CUDA driver itself: what it computes, and that it finds what it is there to find."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from ctypes import byref, c_int, c_int64, c_size_t, c_uint, c_ulonglong, c_void_p

import emulation
import numpy as np
import pytest
from emulation.prune import prune, used

from crispseg.engines import cuda
from crispseg.errors import EnvironmentMismatch, InputError


class Pair(ctypes.Structure):
    _fields_ = [("small", ctypes.c_char), ("large", ctypes.c_longlong)]


class Bench:
    """Loads the faulty kernels and launches them with ctypes arguments."""

    def __init__(self, hooks: emulation.Hooks) -> None:
        self.hooks, self.context = hooks, cuda.open_device()
        self.lib, self.kept = hooks.library, []
        self.stream = self.context.stream()
        image = emulation.image(emulation.HERE / "faults.cu", emulation.HERE / "faults_table.h")
        self.module = c_void_p()
        assert self.lib.cuModuleLoadData(byref(self.module), image) == 0

    def function(self, name: str) -> c_void_p:
        found = c_void_p()
        assert self.lib.cuModuleGetFunction(byref(found), self.module, name.encode()) == 0
        return found

    def status(self, name, *arguments, grid=1, block=32, shared=0, stream=None) -> int:
        pointers = (c_void_p * (len(arguments) + 1))(*[ctypes.addressof(a) for a in arguments])
        handle = (stream or self.stream).handle
        return self.lib.cuLaunchKernel(
            self.function(name),
            c_uint(grid),
            1,
            1,
            c_uint(block),
            1,
            1,
            c_uint(shared),
            c_void_p(handle),
            pointers,
            None,
        )

    def launch(self, name, *arguments, **shape) -> None:
        assert self.status(name, *arguments, **shape) == 0

    def fails(self, name, *arguments, **shape) -> str:
        """The message of a launch that goes wrong when it runs."""
        self.launch(name, *arguments, **shape)
        with pytest.raises(EnvironmentMismatch) as error:
            self.stream.synchronize()
        assert self.hooks.check() == "", "an error is reported once"
        return str(error.value)

    def put(self, array) -> cuda.Buffer:
        self.kept.append(cuda.upload_now(self.context, np.ascontiguousarray(array)))
        return self.kept[-1]

    def get(self, buffer, shape, dtype=np.int32) -> np.ndarray:
        result = np.empty(shape, dtype)
        self.stream.download(result, buffer.address)
        self.stream.synchronize()
        return result


@pytest.fixture
def bench(emulated):
    return Bench(emulated)


def address(buffer) -> c_ulonglong:
    return c_ulonglong(buffer.address)


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
    assert "every thread of the block must reach it" in bench.fails("t_divergent", address(out))
    assert "barriers must not diverge" in bench.fails("t_two_barriers", address(out))
    bench.launch("t_increment", address(bench.put(np.zeros(1, np.int32))), c_int(1))  # and life goes on
    bench.stream.synchronize()


def test_a_missing_barrier_shows_in_one_of_the_orders(bench):
    v = np.arange(64, dtype=np.int32)
    source, out = bench.put(v), bench.context.alloc(256)
    for barrier in (0, 1):
        results = []
        for kind in (emulation.FORWARD, emulation.REVERSE):
            bench.hooks.order(kind)
            bench.launch("t_reverse", address(source), address(out), c_int(barrier), block=64)
            results.append(bench.get(out, 64))
        assert np.array_equal(results[0], v[::-1]) == bool(barrier)
        assert np.array_equal(*results) == bool(barrier)


def test_writes_outside_are_found(bench):
    out = bench.context.alloc(100)
    assert "byte 100 of an allocation of 100 bytes was written" in bench.fails("t_write_at", address(out), c_int64(25))
    assert "allocation of 100 bytes" in bench.fails("t_write_at", address(out), c_int64(4096))
    other = bench.context.alloc(64)
    assert "4 bytes before an allocation of 64 bytes" in bench.fails("t_write_at", address(other), c_int64(-1))
    assert "static shared variable of 32 bytes" in bench.fails("t_shared_overrun", address(other), c_int(8))


def test_reads_far_outside_end_the_launch(bench):
    out = bench.context.alloc(4096)
    text = bench.fails("t_read_at", address(out), c_int64(5000), address(out))
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in text
    assert "byte 20000 of an allocation of 4096 bytes" in text
    freed = bench.context.alloc(4096)
    gone = c_ulonglong(freed.address)
    freed.close()
    assert "ILLEGAL_ADDRESS" in bench.fails("t_read_at", gone, c_int64(0), address(out))
    assert "ILLEGAL_ADDRESS" in bench.fails("t_deep", address(out), c_int(1000)), "stack overflow"


def test_collectives_that_cannot_complete(bench):
    out = bench.context.alloc(256)
    assert "lacks its own lane" in bench.fails("t_own_lane", address(out))
    bench.launch("t_half_warp", address(out), c_uint(0xFFFF), c_int(16))  # a smaller mask is fine
    bench.stream.synchronize()
    text = bench.fails("t_half_warp", address(out), c_uint(0xFFFFFFFF), c_int(16))
    assert "different collectives" in text or "no thread can go on" in text


def test_division_by_zero_and_waiting_forever(bench):
    out = bench.put(np.zeros(8, np.int32))
    assert "divides an integer by zero" in bench.fails("t_divide", address(out), c_int(0))
    assert "waits for another block" in bench.fails("t_wait_for_block", address(out), c_int(1), grid=8)


def test_launch_limits(bench):
    p, one = bench.put(np.zeros(1, np.int32)), c_int(1)
    assert bench.status("t_increment", address(p), one, block=96) == 701, "more threads than the kernel is built for"
    assert bench.status("t_increment", address(p), one, grid=0) == 1
    found = c_void_p()
    for name in (b"t_absent", b"t_new", b"no_such"):  # not defined; of a higher compute capability; not listed
        assert bench.lib.cuModuleGetFunction(byref(found), bench.module, name) == 500


# ---- order of work ---------------------------------------------------------------------------------------------------
def test_work_runs_when_something_waits(bench):
    p = bench.put(np.zeros(1, np.int32))
    before = bench.hooks.launches()
    bench.launch("t_increment", address(p), c_int(1))
    assert bench.hooks.launches() == before
    host = bench.context.pinned(1, np.int32)
    bench.stream.download(host, p.address)
    assert host[0] == 0, "read before the stream was waited for"
    assert not bench.stream.idle
    bench.stream.synchronize()
    assert host[0] == 1
    assert bench.stream.idle


def test_events_order_streams(bench):
    p = bench.put(np.zeros(1, np.int32))
    host = bench.context.pinned(1, np.int32)
    other, done, start = bench.context.stream(), bench.context.event(), bench.context.event()
    bench.stream.record(start)
    bench.launch("t_increment", address(p), c_int(5))
    bench.stream.record(done)
    other.wait(done)
    other.download(host, p.address)
    other.synchronize()  # runs what the event waits for
    assert host[0] == 5
    assert done.done
    assert done.since(start) >= 0.0


@pytest.fixture
def no_garbage():
    """Freeing device memory waits for the device: a collection at the wrong moment would put the work in order."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_schedules_choose_among_the_orders_that_events_allow(bench, no_garbage):
    other, done, host = bench.context.stream(), bench.context.event(), bench.context.pinned(1, np.int32)
    early = {emulation.EARLY, emulation.UPLOADS_LATE, emulation.DOWNLOADS_LATE}
    for kind in (emulation.LATE, emulation.KERNELS_LATE, *early, emulation.ANY):
        for ordered in (False, True):
            seen = set()
            for seed in range(8):
                p = bench.put(np.zeros(1, np.int32))
                bench.hooks.schedule(kind, seed)
                bench.launch("t_increment", address(p), c_int(5))
                bench.stream.record(done)
                if ordered:
                    other.wait(done)
                other.download(host, p.address)
                other.synchronize()
                seen.add(int(host[0]))
                bench.stream.synchronize()
            assert seen == ({5} if ordered or kind in early else {0, 5} if kind == emulation.ANY else {0}), kind


def test_half_of_a_copy_may_be_seen(bench, no_garbage):
    other, source, host = bench.context.stream(), bench.context.pinned(2, np.int32), bench.context.pinned(2, np.int32)
    source[:], seen = 7, set()
    for seed in range(100):
        p = bench.put(np.zeros(2, np.int32))
        bench.hooks.schedule(emulation.ANY, seed)
        bench.stream.upload(p.address, source)
        other.download(host, p.address)
        other.synchronize()
        seen.add(tuple(host.tolist()))
        bench.stream.synchronize()
        bench.hooks.schedule()
    assert seen >= {(0, 0), (7, 0), (7, 7)}


def test_schedules_get_between_the_nodes_of_a_graph(bench, no_garbage):
    other, host, seen = bench.context.stream(), bench.context.pinned(1, np.int32), set()
    p = bench.put(np.zeros(1, np.int32))
    with bench.stream.capture() as graphs:
        bench.stream.fill(p.address, 0, 4)
        for _ in range(3):
            bench.launch("t_increment", address(p), c_int(1))
    for seed in range(20):
        bench.hooks.schedule(emulation.ANY, seed)
        graphs[0].launch(bench.stream)
        other.download(host, p.address)
        other.synchronize()
        seen.add(int(host[0]))
        bench.stream.synchronize()
    assert seen > {0, 3}


def test_graph_replays_with_the_arguments_of_the_capture(bench):
    p = bench.put(np.zeros(1, np.int32))
    by, timed = c_int(3), bench.context.event()
    before = bench.hooks.launches()
    with bench.stream.capture() as graphs:
        bench.launch("t_increment", address(p), by)
        bench.stream.record(timed)
        bench.launch("t_increment", address(p), by)
    by.value = 100
    bench.stream.synchronize()
    assert bench.hooks.launches() == before, "captured work does not run"
    for turn in (1, 2):
        graphs[0].launch(bench.stream)
        assert bench.get(p, 1)[0] == 6 * turn
    assert graphs[0].nodes == 3
    assert timed.done
    assert bench.hooks.launches() == before + 4


def test_capture_refuses_what_a_gpu_refuses(bench):
    lib, handle, graph = bench.lib, c_void_p(bench.stream.handle), c_void_p()
    host = (ctypes.c_char * 4)()
    p = bench.put(np.zeros(1, np.int32))
    forbidden = {
        "alloc": lambda: lib.cuMemAlloc_v2(byref(c_ulonglong()), c_size_t(16)),
        "pinned": lambda: lib.cuMemHostAlloc(byref(c_void_p()), c_size_t(16), 0),
        "sync": lambda: lib.cuStreamSynchronize(handle),
        "query": lambda: lib.cuStreamQuery(handle),
        "all": lambda: lib.cuCtxSynchronize(),
        "copy": lambda: lib.cuMemcpyDtoH_v2(host, address(p), c_size_t(4)),
        "free": lambda: lib.cuMemFree_v2(address(p)),
        "module": lambda: lib.cuModuleLoadData(byref(c_void_p()), b"x"),
    }
    for name, call in forbidden.items():
        assert lib.cuStreamBeginCapture_v2(handle, 1) == 0
        assert call() == 900, name
        bench.status("t_increment", address(p), c_int(1))
        assert lib.cuStreamEndCapture(handle, byref(graph)) == 901, name
        assert not graph.value
    assert bench.get(p, 1)[0] == 0

    # Another thread may do so during a thread-local capture, but not during a global one.
    for mode, wanted in ((1, 0), (0, 900)):
        assert lib.cuStreamBeginCapture_v2(handle, mode) == 0
        results = []

        def elsewhere(results=results):
            bench.context.activate()
            memory = c_ulonglong()
            results.append(lib.cuMemAlloc_v2(byref(memory), c_size_t(16)))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert results == [wanted]
        assert lib.cuStreamEndCapture(handle, byref(graph)) == (901 if wanted else 0)


def test_forks_of_a_capture_must_join(bench):
    lib = bench.lib
    p = bench.put(np.zeros(1, np.int32))
    other, fork, join = bench.context.stream(), bench.context.event(), bench.context.event()
    first, second, graph = c_void_p(bench.stream.handle), c_void_p(other.handle), c_void_p()
    for joined in (False, True):
        assert lib.cuStreamBeginCapture_v2(first, 1) == 0
        assert lib.cuEventRecord(c_void_p(fork.handle), first) == 0
        assert lib.cuStreamWaitEvent(second, c_void_p(fork.handle), 0) == 0
        bench.launch("t_increment", address(p), c_int(2), stream=other)
        if joined:
            assert lib.cuEventRecord(c_void_p(join.handle), second) == 0
            assert lib.cuStreamWaitEvent(first, c_void_p(join.handle), 0) == 0
        assert lib.cuStreamEndCapture(first, byref(graph)) == (0 if joined else 904)
    executable = c_void_p()
    assert lib.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)) == 0
    assert lib.cuGraphLaunch(executable, first) == 0
    assert bench.get(p, 1)[0] == 2
    assert lib.cuEventSynchronize(c_void_p(join.handle)) == 907
    lone = bench.context.event()
    bench.stream.record(lone)
    assert lib.cuStreamBeginCapture_v2(second, 1) == 0
    assert lib.cuStreamWaitEvent(second, c_void_p(lone.handle), 0) == 905
    assert lib.cuStreamEndCapture(second, byref(graph)) == 901


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
