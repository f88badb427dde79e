"""The interpreter of PTX: lanes that part and meet, functions, memory, and what it says of wrong programs."""

from __future__ import annotations

import re
from ctypes import byref, c_int, c_void_p
from typing import List

import emulation
import numpy as np
import pytest
from emulation_bench import Bench, address

HEAD = ".version 6.5\n.target sm_72\n.address_size 64\n"
ORDERS = ((emulation.FORWARD, 0), (emulation.REVERSE, 0), (emulation.SHUFFLE, 5))
LANE = np.arange(32)
IN = (np.arange(128, dtype=np.uint32) * np.uint32(2654435761)) >> np.uint32(3)


def kernel(body: str, directives: str = "", before: str = "") -> str:
    """PTX of kernel k(in, out): %i is the thread, %v its word of ``in``, [%o] its word of ``out``."""
    return f"""{HEAD}{before}
.visible .entry k(.param .u64 k_0, .param .u64 k_1) {directives} {{
  .reg .pred %p<8>; .reg .u32 %i, %v, %r<32>; .reg .u64 %in, %o, %q<16>; .reg .f32 %f<4>;
  ld.param.u64 %in, [k_0]; ld.param.u64 %o, [k_1];
  mov.u32 %i, %tid.x; mul.wide.u32 %q0, %i, 4;
  add.u64 %q1, %in, %q0; add.u64 %o, %o, %q0; ld.global.u32 %v, [%q1];
{body}
  ret;
}}
"""


class Machine(Bench):
    """Runs k of a text with IN (or words) and gives the words of ``out``."""

    def __init__(self, hooks: emulation.Hooks) -> None:
        super().__init__(hooks)
        self.modules: List[c_void_p] = []

    def load(self, text: str) -> int:
        self.module = c_void_p()
        return self.lib.cuModuleLoadData(byref(self.module), text.encode() + b"\0")

    def run(self, text: str, words: np.ndarray = IN, block: int = 32, **shape) -> np.ndarray:
        assert self.load(text) == 0
        results = []
        for order in ORDERS:
            self.hooks.order(*order)
            out = self.put(np.full(block, 0xEEEEEEEE, np.uint32))
            self.launch("k", address(self.put(words)), address(out), block=block, **shape)
            results.append(self.get(out, block, np.uint32))
        self.hooks.order()
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
        return results[0]

    def wrong(self, text: str, block: int = 32, **shape) -> str:
        assert self.load(text) == 0
        out = self.put(np.zeros(block, np.uint32))
        return self.fails("k", address(self.put(IN)), address(out), block=block, **shape)


@pytest.fixture
def machine(emulated):
    return Machine(emulated)


# ---- control flow ----------------------------------------------------------------------------------------------------
def test_lanes_loop_as_often_as_each_needs_and_meet_again(machine):
    body = """
  mov.u32 %r1, 0; mov.u32 %r2, 0;
L: setp.ge.u32 %p1, %r1, %i; @%p1 bra E;
  add.u32 %r1, %r1, 1; add.u32 %r2, %r2, %r1; bra.uni L;
E: vote.sync.ballot.b32 %r3, %p1, -1; popc.b32 %r3, %r3;
  mad.lo.u32 %r2, %r3, 1000, %r2; st.global.u32 [%o], %r2;"""
    np.testing.assert_array_equal(machine.run(kernel(body)), 32000 + LANE * (LANE + 1) // 2)


def test_lanes_that_left_are_not_waited_for(machine):
    body = """
  and.b32 %r1, %i, 1; setp.eq.u32 %p1, %r1, 1; @%p1 ret;
  activemask.b32 %r3; shfl.sync.down.b32 %r2|%p2, %i, 2, 31, 0x55555555; selp.u32 %r2, %r2, 99, %p2;
  mad.lo.u32 %r2, %r2, 2, %r2; and.b32 %r3, %r3, 0xaaaaaaaa; add.u32 %r2, %r2, %r3;
  bar.warp.sync -1; st.global.u32 [%o], %r2;"""
    expected = np.where(LANE % 2, 0xEEEEEEEE, 3 * np.where(LANE < 30, LANE + 2, 99))
    np.testing.assert_array_equal(machine.run(kernel(body)), expected)


def test_parts_of_a_warp_meet_in_masks_of_their_own(machine):
    body = """
  setp.lt.u32 %p1, %i, 20; @!%p1 bra H;
  shfl.sync.idx.b32 %r1, %v, 3, 31, 0x000fffff; bra.uni E;
H: shfl.sync.idx.b32 %r1, %v, 25, 31, 0xfff00000;
E: st.global.u32 [%o], %r1;"""
    np.testing.assert_array_equal(machine.run(kernel(body)), np.where(LANE < 20, IN[3], IN[25]))


FUNCTIONS = """
.func (.param .align 4 .b8 r[8]) inner(.param .b32 a, .param .b32 b) {
  .reg .u32 %x, %y, %z; ld.param.u32 %x, [a]; ld.param.u32 %y, [b];
  add.u32 %z, %x, %y; st.param.b32 [r+0], %z; sub.u32 %z, %x, %y; st.param.b32 [r+4], %z; ret;
}
.func (.param .b32 r) outer(.param .b32 a) {
  .reg .u32 %x, %y; .reg .pred %p; ld.param.u32 %x, [a];
  setp.gt.u32 %p, %x, 40; @%p bra D;
  { .param .b32 c; st.param.b32 [c+0], %x; .param .b32 d; st.param.b32 [d+0], 7; .param .align 4 .b8 e[8];
    call.uni (e), inner, (c, d); ld.param.b32 %x, [e+0]; ld.param.b32 %y, [e+4]; }
  mul.lo.u32 %x, %x, %y;
D: st.param.b32 [r+0], %x; ret;
}
"""


def test_functions_called_from_several_places_by_some_of_the_lanes(machine):
    body = """
  and.b32 %r1, %i, 3; setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r1, 1; mov.u32 %r2, 5; @%p1 bra A; @%p2 bra B; bra E;
A: { .param .b32 x; st.param.b32 [x+0], %i; .param .b32 y; call.uni (y), outer, (x); ld.param.b32 %r2, [y+0]; }
  bra.uni E;
B: add.u32 %r3, %i, 30;
   { .param .b32 x; st.param.b32 [x+0], %r3; .param .b32 y; call.uni (y), outer, (x); ld.param.b32 %r2, [y+0]; }
E: vote.sync.ballot.b32 %r4, %p1, -1; sub.u32 %r4, %r4, 0x11111111; add.u32 %r2, %r2, %r4; st.global.u32 [%o], %r2;"""

    def outer(x):
        return x if x > 40 else (x + 7) * (x - 7)

    expected = [outer(i) if i % 4 == 0 else outer(i + 30) if i % 4 == 1 else 5 for i in range(32)]
    np.testing.assert_array_equal(machine.run(kernel(body, before=FUNCTIONS)), np.array(expected).astype(np.uint32))


def test_labels_and_registers_of_inner_scopes(machine):
    body = """
  mov.u32 %r1, 0; setp.lt.u32 %p1, %i, 9;
  { .reg .pred %p1; setp.lt.u32 %p1, %i, 4; @%p1 bra L; add.u32 %r1, %r1, 10; L: add.u32 %r1, %r1, 1; }
  { .reg .pred p; setp.ge.u32 p, %i, 30; @p bra L; add.u32 %r1, %r1, 100; L: add.u32 %r1, %r1, 1; }
  @%p1 add.u32 %r1, %r1, 1000;
  st.global.u32 [%o], %r1;"""
    expected = 2 + 10 * (LANE >= 4) + 100 * (LANE < 30) + 1000 * (LANE < 9)
    np.testing.assert_array_equal(machine.run(kernel(body)), expected)


# ---- collectives -----------------------------------------------------------------------------------------------------
def shuffled(mode: str, by: int, control: int):
    """(source, inside) of every lane: PTX ISA, shfl.sync."""
    segments, clamp = control >> 8 & 31, control & 31
    for lane in range(32):
        start, last = lane & segments, (lane & segments) | (clamp & ~segments & 31)
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": start | (by & ~segments & 31)}[mode]
        inside = source >= last if mode == "up" else source <= last
        yield (source if inside else lane), inside


@pytest.mark.parametrize(("mode", "by", "control"), [
    ("up", 3, 0), ("up", 1, 0x1800), ("down", 5, 31), ("down", 2, 0x181F), ("bfly", 9, 31), ("bfly", 4, 0x1C1F),
    ("idx", 7, 31), ("idx", 5, 0x1C1F),
])  # fmt: skip
def test_shuffles(machine, mode, by, control):
    body = f"""
  shfl.sync.{mode}.b32 %r1|%p1, %v, {by}, {control}, -1; selp.u32 %r2, 1, 0, %p1;
  shl.b32 %r1, %r1, 1; or.b32 %r1, %r1, %r2; st.global.u32 [%o], %r1;"""
    expected = [int(IN[source]) * 2 + inside & 0xFFFFFFFF for source, inside in shuffled(mode, by, control)]
    np.testing.assert_array_equal(machine.run(kernel(body)), np.array(expected, np.uint32))


def test_votes_matches_and_reductions(machine):
    body = """
  rem.u32 %r1, %v, 5; setp.gt.u32 %p1, %r1, 2;
  match.any.sync.b32 %r2, %r1, -1; popc.b32 %r2, %r2;
  vote.sync.any.pred %p2, %p1, -1; selp.u32 %r3, 100, 0, %p2; add.u32 %r2, %r2, %r3;
  vote.sync.all.pred %p2, %p1, -1; selp.u32 %r3, 1000, 0, %p2; add.u32 %r2, %r2, %r3;
  match.all.sync.b32 %r4|%p2, %r1, -1; add.u32 %r2, %r2, %r4;
  redux.sync.add.u32 %r3, %r1, -1; mad.lo.u32 %r2, %r3, 10000, %r2;
  st.global.u32 [%o], %r2;"""
    rest = IN[:32] % 5
    same = np.array([(rest == r).sum() for r in rest])
    np.testing.assert_array_equal(machine.run(kernel(body)), same + 100 + 10000 * rest.sum())


def test_barriers_that_count(machine):
    body = """
  .shared .align 4 .b8 s[512];
  mov.u32 %r1, s; shl.b32 %r2, %i, 2; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %v;
  setp.gt.u32 %p1, %i, 40; bar.red.popc.u32 %r3, 0, %p1;
  xor.b32 %r2, %r2, 256; mov.u32 %r4, s; add.u32 %r4, %r4, %r2; ld.shared.u32 %r5, [%r4];
  bar.red.or.pred %p2, 0, %p1; bar.red.and.pred %p3, 0, %p1; selp.u32 %r6, 1, 0, %p2; selp.u32 %r7, 2, 0, %p3;
  add.u32 %r5, %r5, %r3; add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r7; st.global.u32 [%o], %r5;"""
    np.testing.assert_array_equal(machine.run(kernel(body), block=128), IN[np.arange(128) ^ 64] + 87 + 1)


# ---- memory ----------------------------------------------------------------------------------------------------------
def test_address_spaces_and_generic_addresses(machine):
    before = ".global .align 4 .u32 table[4] = {10, 20, 30, 40};\n.const .align 2 .b16 small[2] = {-3, 4};"
    body = """
  .shared .align 8 .b8 s[256]; .local .align 16 .b8 depot[32];
  mov.u64 %q2, s; mul.wide.u32 %q3, %i, 8; add.u64 %q2, %q2, %q3; cvta.shared.u64 %q4, %q2;
  st.u32 [%q4+4], %v; ld.shared.u32 %r1, [%q2+4];
  mov.u64 %q5, depot; cvta.local.u64 %q6, %q5; st.local.v2.u32 [%q5+8], {%i, %r1}; ld.u32 %r2, [%q6+8];
  ld.v2.u32 {%r3, %r4}, [%q6+8]; cvta.to.local.u64 %q7, %q6; ld.local.u8 %r5, [%q7+8];
  and.b32 %r6, %i, 3; mul.wide.u32 %q8, %r6, 4; mov.u64 %q9, table; add.u64 %q9, %q9, %q8; ld.global.u32 %r7, [%q9];
  ld.const.s16 %r8, [small]; add.u32 %r2, %r2, %r5; sub.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4;
  add.u32 %r2, %r2, %r7; add.u32 %r2, %r2, %r8; st.global.u32 [%o], %r2;"""
    expected = LANE + IN[:32].astype(np.int64) + 10 * (LANE % 4 + 1) - 3
    np.testing.assert_array_equal(machine.run(kernel(body, before=before)), expected.astype(np.uint32))


def test_packing_and_narrow_loads(machine):
    body = """
  .reg .b16 %h<4>;
  mov.b32 {%h0, %h1}, %v; mov.b32 %r1, {%h1, %h0}; mov.b64 %q2, {%r1, %v}; mov.b64 {%r2, %r3}, %q2;
  xor.b32 %r2, %r2, %r3; ld.global.s8 %r4, [%q1]; ld.global.u8 %r5, [%q1]; sub.u32 %r4, %r4, %r5;
  ld.global.s8 %h2, [%q1]; cvt.s32.s16 %r6, %h2; add.u32 %r4, %r4, %r6;
  add.u32 %r2, %r2, %r4; st.global.u32 [%o], %r2;"""
    v = IN[:32].astype(np.int64)
    signed = (v & 255) - 256 * (v >> 7 & 1)
    expected = ((v >> 16 | v << 16) & 0xFFFFFFFF ^ v) + signed - (v & 255) + signed
    np.testing.assert_array_equal(machine.run(kernel(body)), expected.astype(np.uint32))


def test_atomics(machine):
    body = """
  .shared .align 4 .b8 s[16];
  setp.eq.u32 %p1, %i, 0; mov.u32 %r9, 0; @%p1 st.shared.v4.u32 [s], {%r9, %r9, %r9, %r9}; bar.warp.sync -1;
  atom.shared.add.u32 %r1, [s], 2; atom.shared.or.b32 %r2, [s+4], 4; atom.shared.max.s32 %r3, [s+8], %i;
  atom.shared.cas.b32 %r4, [s+12], 0, 77; red.shared.inc.u32 [s+12], 1000; bar.warp.sync -1;
  ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [s];
  mad.lo.u32 %r1, %r2, 1000, %r1; mad.lo.u32 %r1, %r3, 10000, %r1; mad.lo.u32 %r1, %r4, 1000000, %r1;
  st.global.u32 [%o], %r1;"""
    np.testing.assert_array_equal(machine.run(kernel(body)), np.full(32, 64 + 4000 + 310000 + 109 * 1000000))


def test_attributes_of_a_function(machine):
    text = kernel(
        ".shared .align 8 .b8 s[100]; .local .align 4 .b8 d[20]; st.shared.u32 [s], 1; st.local.u32 [d], 1;",
        ".maxntid 96, 2, 1",
    )
    assert machine.load(text) == 0
    function, value = machine.function("k"), c_int()
    assert machine.status("k", block=1, shared=(48 << 10) - 99) == 1
    for attribute, expected in ((0, 192), (1, 100), (3, 32), (8, (48 << 10) - 100)):
        assert machine.lib.cuFuncGetAttribute(byref(value), attribute, function) == 0
        assert value.value == expected
    limit = {72: 96, 75: 64}.get(machine.context.info.capability, 163 if machine.context.info.capability < 90 else 227)
    assert machine.lib.cuFuncSetAttribute(function, 8, (limit << 10) - 100) == 0
    assert machine.lib.cuFuncSetAttribute(function, 8, (limit << 10) - 99) == 1
    assert machine.status("k", block=193) == 701


# ---- what goes wrong -------------------------------------------------------------------------------------------------
# A thread's word of shared memory is [%r1]; then that of another thread.
SHARED = ".shared .align 16 .b8 s[512]; mov.u32 %r1, s; shl.b32 %r2, %i, 2; add.u32 %r1, %r1, %r2; "
STORE, LOAD, MEET = "st.shared.u32 [%r1], %v; ", "ld.shared.u32 %r3, [%r1]; ", "bar.warp.sync -1; "
NEXT = "xor.b32 %r2, %r2, 4; mov.u32 %r1, s; add.u32 %r1, %r1, %r2; "
BYTE = "mov.u32 %r1, s; add.u32 %r1, %r1, %i; st.shared.u8 [%r1], %v; "
FIRST = "setp.eq.u32 %p1, %i, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0; "
HALF = "setp.lt.u32 %p1, %i, 16; @%p1 bra L; "
WRONG = {
    "misaligned": ("add.u64 %o, %o, 4; st.global.v2.u32 [%o], {%v, %v};", "MISALIGNED.*writes 8 bytes at global"),
    "global": ("ld.global.u32 %r1, [%q1+4096]; st.global.u32 [%o], %r1;", "ILLEGAL.*thread .0,0,0. reads 4 bytes at"),
    "null": ("mov.u64 %q2, 0; ld.global.u32 %r1, [%q2];", "ILLEGAL.*far from any allocation"),
    "space": (SHARED + "cvta.shared.u64 %q2, 0; ld.global.u32 %r3, [%q2];", "ILLEGAL"),
    "range": (SHARED + "st.shared.u32 [%r1+400], %v;", r"ILLEGAL.*thread \(28,0,0\) writes 4 bytes at 512 of 512"),
    "local": (".local .align 4 .b8 d[16]; mov.u64 %q2, d; st.local.u32 [%q2+16], %v;", "ILLEGAL.*local memory"),
    "divide": ("sub.u32 %r1, %i, 7; div.u32 %r1, %v, %r1;", r"thread \(7,0,0\) divides an integer by zero"),
    "trap": ("setp.eq.u32 %p1, %i, 9; @%p1 trap;", r"block \(0,0,0\): thread \(9,0,0\) executes trap"),
    "unwritten": (
        SHARED + LOAD + "add.u32 %r3, %r3, 1; st.global.u32 [%o], %r3;",
        "stores a value from shared memory at 0 that nobody wrote",
    ),
    "unwritten_branch": (SHARED + LOAD + "setp.eq.u32 %p1, %r3, 1; @%p1 bra E; E: ", "decides by a value"),
    "unwritten_copied": (
        SHARED + LOAD + "st.shared.u32 [%r1+256], %r3; ld.shared.u32 %r3, [%r1+256]; st.global.u32 [%o], %r3;",
        "nobody wrote",
    ),
    "missing_lanes": (
        HALF + "bra.uni E; L: bar.warp.sync -1; E: shfl.sync.idx.b32 %r1, %v, 0, 31, -1;",
        "warp 0 cannot go on: lanes 0000ffff wait at",
    ),
    "other_mask": ("shfl.sync.idx.b32 %r1, %v, 0, 31, 0xffff;", "thread .16,0,0. is not in the mask"),
    "divergent": (HALF + "bar.sync 0; bra E; L: bar.sync 0; E:", "divergent at an aligned"),
    "race": (
        SHARED + STORE + NEXT.replace("4", "128", 1) + LOAD,
        r"reads 4 bytes of shared memory at \d+, which thread .* wrote, with no barrier of the block between",
    ),
    "race_warp": (SHARED + STORE + NEXT + LOAD, "with no barrier of the warp between"),
    "race_shuffle": (
        SHARED + STORE + "shfl.sync.idx.b32 %r4, %v, 0, 31, -1; " + NEXT + LOAD,
        "with no barrier of the warp between",
    ),
    "race_write": (SHARED + "st.shared.u32 [s], %i;", "writes 4 bytes .* at 0, which thread .0,0,0. wrote"),
    "race_after_read": (
        SHARED + FIRST + "ld.shared.u32 %r3, [s]; setp.eq.u32 %p1, %i, 40; @%p1 st.shared.u32 [s], 1;",
        "which thread .* has read",
    ),
    "race_bytes": (SHARED + "st.shared.u32 [%r1], 9; bar.sync 0; " + BYTE + "ld.shared.u8 %r4, [%r1+1];", "race"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(machine, name):
    body, says = WRONG[name]
    message = machine.wrong(kernel(body), block=64)
    assert "kernel k, block (0,0,0): " in message
    assert "of the PTX" in message
    assert re.search(says, message), message


PAIRS = "shr.u32 %r5, %i, 1; shl.b32 %r5, %r5, 1; mov.u32 %r6, 3; shl.b32 %r6, %r6, %r5; bar.warp.sync %r6; "
RIGHT = {
    "own_bytes": SHARED + BYTE + "ld.shared.u8 %r4, [%r1]; st.shared.u8 [%r1], 5;",
    "same_value": SHARED
    + "st.shared.u32 [s], 3; "
    + MEET
    + "st.shared.u32 [s], 3; bar.sync 0; ld.shared.u32 %r3, [s];",
    "after_warp": SHARED + STORE + MEET + NEXT + LOAD + MEET + "st.shared.u32 [%r1], %i;",
    "pairs_of_lanes": SHARED + STORE + "and.b32 %r7, %i, 31; " + PAIRS.replace("%i", "%r7") + NEXT + LOAD,
    "atomics": SHARED + FIRST + "red.shared.add.u32 [s], 1; bar.sync 0; ld.shared.u32 %r3, [s];",
    "dropped": SHARED + LOAD + "setp.gt.u32 %p1, %r3, 4; setp.lt.u32 %p2, %i, 0; and.pred %p1, %p1, %p2; "
    "selp.u32 %r3, %r3, %v, %p1; st.global.u32 [%o], %r3;",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(machine, name):
    machine.run(kernel(RIGHT[name]), block=64)


def test_barrier_that_others_have_passed_by(machine):
    message = machine.wrong(kernel("setp.lt.u32 %p1, %i, 32; @%p1 ret; bar.sync 0;"), block=64)
    assert "waits at the barrier of line" in message
    assert "other threads have left the kernel" in message


def test_waiting_for_what_does_not_come(machine):
    message = machine.wrong(kernel("L: ld.volatile.global.u32 %r1, [%q1]; setp.ne.u32 %p1, %r1, 12345; @%p1 bra L;"))
    assert "waits for another block" in message


@pytest.mark.parametrize(("text", "says"), [
    (kernel("frob.u32 %r1, %i;"), "line 10: unknown instruction frob.u32"),
    (kernel("").replace("sm_72", "sm_99"), "it is for sm_99, the device is sm_"),
    (kernel("").replace("sm_72", "sm_72a"), "it is for sm_72a" if int(emulation.ptx.capability()) != 72 else None),
    (kernel("")[:-3], "expected '}'"),
    (".version 6.5\n.address_size 64\n", "no .target"),
])  # fmt: skip
def test_texts_that_are_refused(machine, capfd, text, says):
    if says is None:
        pytest.skip("this device runs it")
    assert machine.load(text) == 200
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(("body", "says"), [
    ("add.u32 %r1, %i, %r99;", "line 10: unknown name %r99"),
    ("bra NOWHERE;", "no label NOWHERE"),
    ("add.u32 %r1, %i;", "1 results and 2 operands"),
])  # fmt: skip
def test_bodies_that_are_refused_at_the_launch(machine, body, says):
    assert says in machine.wrong(kernel(body))


def test_recursion_is_refused(machine):
    before = ".func f() { .reg .u32 %r; call.uni f; ret; }"
    assert "calls itself" in machine.wrong(kernel("call.uni f;", before=before))
