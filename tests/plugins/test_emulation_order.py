"""The emulated driver: when work runs, of one stream and of several, and what graphs record."""

from __future__ import annotations

import ctypes
import gc
import threading
from ctypes import byref, c_int, c_size_t, c_ulonglong, c_void_p

import emulation
import numpy as np
import pytest
from emulation_bench import address


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
