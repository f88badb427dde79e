"""Mistakes that only compiled kernels can hold (tests/emulation/ptx/mistakes.cu): the interpreter of PTX finds each.

Every right kernel computes what numpy says, in any order of threads; its wrong twin ends with the message below, or
gives other numbers. They run where CRISPSEG_EMULATION_IMAGE is ptx: in the processes of test_ptx.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List

import emulation
import numpy as np
import pytest
from emulation import ptx
from emulation_bench import Bench, address

from crispseg.errors import EnvironmentMismatch

pytestmark = pytest.mark.skipif(not ptx.wanted(), reason="only kernels that NVRTC compiled hold these mistakes")

ORDERS = ((emulation.FORWARD, 0), (emulation.REVERSE, 0), (emulation.SHUFFLE, 3))
OTHER = "other numbers"
UNWRITTEN = "nobody wrote"
WORDS = 3072


def words() -> np.ndarray:
    """Different words; those that tell a kernel something the compiler does not know are 0."""
    values = np.arange(1, WORDS + 1, dtype=np.uint32) * np.uint32(2654435761)
    values[1023] = 0
    return values


def halves() -> np.ndarray:
    """Small multiples of 1/4: their products are exact in any order."""
    values = np.random.default_rng(0).integers(-8, 9, 2 * WORDS) / 4
    values[2046:2048] = 0
    return values.astype(np.float16).view(np.uint32)


def bytes_() -> np.ndarray:
    """int8."""
    return np.random.default_rng(1).integers(-128, 128, 4 * WORDS).astype(np.int8).view(np.uint32)


# ---- what the right kernels compute: words of `in` -> words of `out` -------------------------------------------------
def same(v: np.ndarray) -> np.ndarray:
    return v[:128]


def other_warp(v: np.ndarray) -> np.ndarray:
    return v[np.arange(256) ^ 128]


def neighbour(v: np.ndarray) -> np.ndarray:
    return v[np.arange(128) ^ 4]


def fifth(v: np.ndarray) -> np.ndarray:
    return np.full(128, v[5])


def added(v: np.ndarray) -> np.ndarray:
    return v[:128] + v[128:256]


def refilled(v: np.ndarray) -> np.ndarray:
    return v[:256].reshape(64, 4)[np.arange(64) ^ 32].ravel()


def matrices(v: np.ndarray) -> np.ndarray:
    """Thread l gets of matrix i word l % 4 of row l / 4; matrix i is rows 8 i .. 8 i + 7 of four words."""
    rows, lane = v[:128].reshape(4, 8, 4), np.arange(32)
    return np.stack([rows[i, lane // 4, lane % 4] for i in range(4)], 1).ravel()


def product_of(kind: type, rows: int, columns: int, depth: int, sums: type) -> Callable[[np.ndarray], np.ndarray]:
    """[rows, depth] @ [columns, depth].T of values that lie one behind the other."""

    def compute(v: np.ndarray) -> np.ndarray:
        values = v.view(kind)[: (rows + columns) * depth].astype(np.float64).reshape(-1, depth)
        return (values[:rows] @ values[rows:].T).astype(sums).ravel().view(np.uint32)

    return compute


MMA = product_of(np.float16, 16, 8, 16, np.float32)
MMA_I8 = product_of(np.int8, 16, 8, 32, np.int32)
WMMA = product_of(np.float16, 16, 16, 16, np.float32)
WGMMA = product_of(np.float16, 64, 128, 32, np.float32)


@dataclass(frozen=True)
class Pair:
    """Kernels ``name_right`` and ``name_wrong``: what the first computes, what the second is told."""

    name: str
    want: Callable[[np.ndarray], np.ndarray]
    says: str  # a pattern, or OTHER
    threads: int = 32
    capability: int = 72
    shared: int = 4096
    data: Callable[[], np.ndarray] = words


PAIRS: List[Pair] = [
    Pair("m_load_16", same, "MISALIGNED"),
    Pair("m_shared_load_16", same, "MISALIGNED"),
    Pair("m_shared_range", same, "ILLEGAL_ADDRESS", shared=512),
    Pair("m_unwritten", same, UNWRITTEN),
    Pair("m_barrier", other_warp, f"race|{UNWRITTEN}", 64),
    Pair("m_refill", refilled, "race", 64),
    Pair("m_warp_order", neighbour, "race"),
    Pair("m_missing_lane", fifth, "LAUNCH_FAILED"),
    Pair("m_source_lane", fifth, OTHER),
    Pair("m_copy_wait", same, "under way", capability=80),
    Pair("m_copy_group", added, "under way", capability=80),
    Pair("m_copy_commit", same, "under way", capability=80),
    Pair("m_copy_barrier", other_warp, f"race|under way|{UNWRITTEN}", 64, 80),
    Pair("m_copy_place", same, "MISALIGNED", capability=80),
    Pair("m_matrix_rows", matrices, OTHER, capability=80),
    Pair("m_matrix_place", matrices, "MISALIGNED", capability=80),
    Pair("m_matrix_order", matrices, "race", capability=80),
    Pair("m_matrix_transposed", matrices, OTHER, capability=80),
    Pair("m_mma_a", MMA, OTHER, capability=80, data=halves),
    Pair("m_mma_b", MMA, OTHER, capability=80, data=halves),
    Pair("m_mma_i8", MMA_I8, OTHER, capability=80, data=bytes_),
    Pair("m_mma_divergent", MMA, "divergent", capability=80, data=halves),
    Pair("m_wmma_pitch", WMMA, "MISALIGNED", data=halves),
    Pair("m_wmma_start", WMMA, "MISALIGNED", data=halves),
]
WGMMA_WRONG = {
    "fence": "fence",
    "barrier": "race|fence|changed|barrier",
    "start": "fence",
    "wait": OTHER,
    "overwritten": "changed|overwritten|under way",
    "stride": OTHER,
    "swizzle": "pattern",
    "place": OTHER,
}


@pytest.fixture
def bench(emulated):
    return Bench(emulated, emulation.HERE / "ptx" / "mistakes.cu")


def run(bench: Bench, name: str, pair: Pair) -> np.ndarray:
    want = pair.want(pair.data())
    out = bench.put(np.full(len(want) + 16, 0xDEADBEEF, np.uint32))
    bench.launch(name, address(bench.put(pair.data())), address(out), block=pair.threads, shared=pair.shared)
    got = bench.get(out, len(want) + 16, np.uint32)
    assert (got[len(want) :] == 0xDEADBEEF).all()
    return got[: len(want)]


def goes_well(bench: Bench, name: str, pair: Pair) -> None:
    if ptx.capability() < pair.capability:
        pytest.skip(f"needs a device of {pair.capability / 10}")
    for order in ORDERS:
        bench.hooks.order(*order)
        np.testing.assert_array_equal(run(bench, name, pair), pair.want(pair.data()))


def goes_wrong(bench: Bench, name: str, pair: Pair, says: str) -> None:
    if ptx.capability() < pair.capability:
        pytest.skip(f"needs a device of {pair.capability / 10}")
    for order in ORDERS:
        bench.hooks.order(*order)
        if says == OTHER:
            assert (run(bench, name, pair) != pair.want(pair.data())).any(), "nothing was found"
            continue
        with pytest.raises(EnvironmentMismatch, match=says) as error:
            run(bench, name, pair)
        assert name in str(error.value), "the message names the kernel"
        assert bench.hooks.check() in str(error.value)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_right(bench, pair):
    goes_well(bench, pair.name + "_right", pair)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_wrong(bench, pair):
    goes_wrong(bench, pair.name + "_wrong", pair, pair.says)


PRODUCT = Pair("m_wgmma", WGMMA, "", 128, 90, 192 * 64 + 1024, halves)


def test_wgmma_right(bench):
    goes_well(bench, "m_wgmma_right", PRODUCT)


@pytest.mark.parametrize("kind", WGMMA_WRONG)
def test_wgmma_wrong(bench, kind):
    goes_wrong(bench, f"m_wgmma_{kind}_wrong", PRODUCT, WGMMA_WRONG[kind])
