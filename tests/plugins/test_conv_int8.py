"""The native int8 convolution against exact integer sums, bit by bit, for every row of the op table."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from native_cases import guarded_matrix, guards_intact, isas
from op_table import CONVS, Conv, conv_data, reference_conv_int8

from crispseg.errors import InputError
from crispseg.plugins import loader
from crispseg.plugins import native_int8_ops as int8
from crispseg.plugins import native_ops as ops
from crispseg.plugins.quantise import quantise, quantise_weight

STEP = float(np.float32(2.5 / 127))  # a few values lie outside


@functools.lru_cache(maxsize=None)
def context(isa: str, vnni: str, threads: int = 1) -> loader.Native:
    """A context with or without 8-bit dot products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRISPSEG_VNNI", vnni)
        return loader.Native(threads, isa)


def variants():
    """(isa, CRISPSEG_VNNI) of every kernel that this machine has."""
    found = []
    for isa in isas():
        if not isinstance(isa, str):
            return [pytest.param(isa.values[0], "1", marks=isa.marks)]
        names = []
        for vnni in ("1", "0"):
            name = context(isa, vnni).library.cs_int8_kernels(context(isa, vnni).handle)
            if name not in names:
                found.append(pytest.param(isa, vnni, id=f"{isa}-{name.decode()}"))
            names.append(name)
    return found


every_kernel = pytest.mark.parametrize(("isa", "vnni"), variants())
every_conv = pytest.mark.parametrize("conv", CONVS, ids=lambda c: c.name)
GUARD = 77


def byte_input(x: np.ndarray, zero: int, pad: int) -> int8.Bytes:
    """Bytes of x; the padding and the row after the last hold garbage, the row before the first holds zero."""
    n, c = x.shape
    ld = -(-(c + pad) // 4) * 4
    block = np.random.default_rng(3).integers(0, 256, (n + 2, ld), np.uint8)
    block[0, :c] = zero
    block[1 : n + 1, :c] = quantise(x, STEP).astype(np.int16) + zero
    return int8.Bytes(block[1 : n + 1, :c], STEP, zero)


def byte_output(n: int, c: int, pad: int, step: float, zero: int):
    block = np.full((n + 4, c + 2 * pad), GUARD, np.uint8)
    return block, int8.Bytes(block[2 : n + 2, pad : c + pad] if pad else block[2 : n + 2], step, zero)


def run(native, conv: Conv, data, zero, order=None, steps=(0.0, 0.0, 0.0), zeros=(0, 0, 0)):
    """[y, z1, z2] as float32 or uint8 rows, with every guard checked."""
    table = data.get("map")
    x = byte_input(data["x"], zero, conv.pad)
    n_out = len(x.rows) if table is None else len(table)
    weight = int8.pack_int8(native, *quantise_weight(data["weight"]))
    outputs, checks = [], []
    for i in range(1 + conv.outputs):
        if steps[i]:
            block, target = byte_output(n_out, conv.cout, conv.pad, steps[i], zeros[i])
            checks.append((block, target.rows))
        else:
            block, target = guarded_matrix(n_out, conv.cout, conv.pad, np.nan)
            checks.append((block, target))
        outputs.append(target)
    arguments, keep = int8.int8_arguments(
        x,
        weight,
        table,
        n_out=n_out,
        order=order,
        bias=data["bias"] if conv.bias else None,
        residual=data["residual"] if conv.residual else None,
        relu=conv.relu,
        y=outputs[0] if conv.y else None,
        z=[(data[f"scale{i}"], data[f"shift{i}"], outputs[1 + i]) for i in range(conv.outputs)],
    )
    int8.sparse_conv_int8(native, arguments)
    del keep
    for block, inner in checks:
        if block.dtype == np.uint8:
            outside = np.ones(block.shape, bool)
            outside[2 : len(inner) + 2, conv.pad : inner.shape[1] + conv.pad] = False
            assert (block[outside] == GUARD).all()
        else:
            assert guards_intact(block, inner, conv.pad)
    return [inner.copy() for _, inner in checks]


@functools.lru_cache(maxsize=None)
def expected(conv: Conv, zero: int):
    """Inputs and exact outputs of a row of the table."""
    data = signed(conv_data(conv), zero)
    return data, reference_conv_int8(data, conv, STEP)


def signed(data, zero):
    return data if zero else {**data, "x": np.maximum(data["x"], 0)}


def as_bytes(values, step, zero):
    q = quantise(values, step).astype(np.int16)
    return ((q if zero else np.maximum(q, 0)) + zero).astype(np.uint8)


@every_kernel
@every_conv
@pytest.mark.parametrize("zero", [0, 128])
def test_exact(isa, vnni, conv, zero):
    """Floats out: the same bits as numpy. Bytes out: the bytes of those."""
    native = context(isa, vnni)
    data, want = expected(conv, zero)
    got = run(native, conv, data, zero)
    for i, (have, exact) in enumerate(zip(got, want)):
        if i or conv.y:
            np.testing.assert_array_equal(have, exact)
    order = ops.plan_map(native, data["map"]) if "map" in data else None
    steps, zeros = (0.11, 0.013, 0.031), (0 if conv.relu else 128, 0, 128)
    got = run(native, conv, data, zero, order, steps, zeros)
    for i, (have, exact) in enumerate(zip(got, want)):
        if i or conv.y:
            np.testing.assert_array_equal(have, as_bytes(exact, np.float32(steps[i]), zeros[i]))


@every_kernel
@pytest.mark.parametrize("zero", [0, 128])
def test_threads_and_blocks(isa, vnni, zero):
    """More rows than a block and several chunks of the sum, one thread against three, raster against planned order."""
    rng = np.random.default_rng(5)
    table = rng.integers(-1, 3000, (4001, 9)).astype(np.int32)
    table[rng.random(table.shape) < 0.6] = -1
    x = rng.standard_normal((3000, 402)).astype(np.float32)
    data = signed({"map": table, "x": x, "weight": rng.standard_normal((9, 402, 70)).astype(np.float32)}, zero)
    conv = Conv("-", "-", 402, 70)
    want = reference_conv_int8(data, conv, STEP)[0]
    for threads in (1, 3):
        native = context(isa, vnni, threads)
        for order in (None, ops.plan_map(native, table)):
            np.testing.assert_array_equal(run(native, conv, data, zero, order)[0], want)


@every_kernel
@pytest.mark.parametrize("zero", [0, 128])
def test_largest_sums_do_not_saturate(isa, vnni, zero):
    """All bytes and weights at the end of their range, K * cin near the limit."""
    native, cin = context(isa, vnni), 7332  # 9 * 7332 = 65988
    x = np.full((3, cin), 1e9, np.float32)
    for sign in (127, -127):
        weight = np.full((9, cin, 20), sign, np.int8)
        table = np.array([[0] * 9, [1] * 4 + [-1] * 5, [-1] * 9], np.int32)
        y = np.empty((3, 20), np.float32)
        packed = int8.pack_int8(native, weight, np.ones(20, np.float32))
        rows = byte_input(x, zero, 0).rows
        arguments, _keep = int8.int8_arguments(int8.Bytes(rows, 1.0, zero), packed, table, n_out=3, y=y)
        int8.sparse_conv_int8(native, arguments)
        want = np.array([127 * sign * cin * taps for taps in (9, 4, 0)], np.float32)
        np.testing.assert_array_equal(y, np.broadcast_to(want[:, None], y.shape))


@every_kernel
@pytest.mark.parametrize("zero", [0, 128])
def test_quantise_rows(isa, vnni, zero):
    """Ties, the ends of the range, infinities, and quotients next to a tie."""
    native, rng = context(isa, vnni, 2), np.random.default_rng(0)
    for step in (0.5, 0.1, 1 / 3, 7.7e-3, 123.4, 1e-20):
        step = np.float32(step)
        near = (rng.integers(-130, 130, 40000) + 0.5).astype(np.float32) * step
        near = near.view(np.int32) + rng.integers(-3, 4, len(near)).astype(np.int32)
        x = np.concatenate([near.view(np.float32), rng.normal(0, 60, 40000).astype(np.float32) * step,
                            np.float32([np.inf, -np.inf, 0, -0.0, 1e30, -1e30, step, -step])])  # fmt: skip
        x = np.resize(x, (len(x) // 37, 37))
        found = int8.quantise_rows(native, np.ascontiguousarray(x), float(step), zero)
        np.testing.assert_array_equal(found.rows, as_bytes(x, step, zero))


BAD = {
    "second source": lambda a: setattr(a.conv, "x2", a.conv.x),
    "zero": lambda a: setattr(a, "zero", 1),
    "no scale": lambda a: setattr(a, "scale", None),
    "ldx": lambda a: setattr(a.conv, "ldx", 22),
    "cin": lambda a: (setattr(a.conv, "cin", 8000), setattr(a.conv, "ldx", 8000)),
    "step": lambda a: a.step.__setitem__(0, -1.0),
    "step nan": lambda a: a.step.__setitem__(2, float("nan")),
    "output zero": lambda a: a.out_zero.__setitem__(1, 64),
    "no map": lambda a: setattr(a.conv, "map", None),
    "no output": lambda a: setattr(a.conv, "y", None),
    "map outside": lambda a: setattr(a.conv, "n_in", 3),
}


@every_kernel
@pytest.mark.parametrize("change", BAD.values(), ids=list(BAD))
def test_bad_arguments_are_refused(isa, vnni, change):
    native = context(isa, vnni)
    x = byte_input(np.ones((4, 20), np.float32), 0, 0)
    weight = int8.pack_int8(native, np.ones((9, 20, 8), np.int8), np.ones(8, np.float32))
    table, y = np.full((4, 9), 3, np.int32), np.zeros((4, 8), np.float32)
    arguments, _keep = int8.int8_arguments(x, weight, table, n_out=4, y=y)
    change(arguments)
    with pytest.raises(InputError, match="cs_sparse_conv_int8"):
        int8.sparse_conv_int8(native, arguments)
    with pytest.raises(InputError, match="step"):
        native.call("cs_quantise_rows", y.ctypes.data, 8, 4, 8, 0.0, 0, y.ctypes.data, 8)
