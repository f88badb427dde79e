"""A second source of the native convolutions (the 1x1 shortcut of a block) against float64, direct and Winograd."""

from __future__ import annotations

from ctypes import byref
from dataclasses import replace

import numpy as np
import pytest
from native_cases import assert_close, guarded_matrix, guards_intact, isas, native, strided_input
from native_cases import poison as poison_direct
from op_table import CONVS, Conv, conv_data, reference_conv
from test_winograd import WIDE

from crispseg.errors import InputError
from crispseg.plugins import native_ops as ops

every_isa = pytest.mark.parametrize("isa", isas())
MANY = (*CONVS, *WIDE)
every_conv = pytest.mark.parametrize("conv", MANY, ids=lambda c: c.name)
ALGORITHMS = ("direct", "ordered")


def second_of(conv: Conv, rows: int):
    """x2 [rows, cin2] and weight [1, cin2, cout]; channels: one, odd ones, more than a chunk of the sum."""
    cin2 = (1, 21, 2 * conv.cin, 300)[(conv.cin + conv.cout) % 4]
    rng = np.random.default_rng(11)
    return (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, cin2), (1, cin2, conv.cout)))


def want(conv: Conv, data, x2, weight2):
    """The reference, given the second source as its residual."""
    whole = x2.astype(np.float64) @ weight2[0].astype(np.float64)
    whole = whole + data["residual"] if conv.residual else whole
    return reference_conv({**data, "residual": whole}, replace(conv, residual=True))


def run(context, conv: Conv, data, algorithm: str):
    """[y, z1, z2], guards checked."""
    table = data.get("map")
    x = strided_input(data["x"], conv.pad)
    n = len(x) if table is None else len(table)
    x2, weight2 = second_of(conv, n)
    order = ops.plan_map(context, table) if algorithm == "ordered" and table is not None else None
    blocks = [guarded_matrix(n, conv.cout, conv.pad, np.nan) for _ in range(1 + conv.outputs)]
    weight = ops.pack_weight(context, data["weight"])
    second = (strided_input(x2, 3), ops.pack_weight(context, weight2))
    arguments = ops.conv_arguments(
        x,
        weight,
        table,
        n_out=n,
        order=order,
        bias=data["bias"] if conv.bias else None,
        residual=data["residual"] if conv.residual else None,
        relu=conv.relu,
        y=blocks[0][1] if conv.y else None,
        z=[(data[f"scale{i}"], data[f"shift{i}"], blocks[1 + i][1]) for i in range(conv.outputs)],
        second=second,
    )
    context.call("cs_sparse_conv", byref(arguments))
    for block, inner in blocks:
        assert guards_intact(block, inner, conv.pad)
    return [inner.copy() for _, inner in blocks]


@every_isa
@every_conv
def test_matches_float64(isa, conv):
    context, data = native(isa), conv_data(conv)
    poison_direct(context)
    rows = len(data["map"]) if "map" in data else len(data["x"])
    expected = want(conv, data, *second_of(conv, rows))
    direct = run(context, conv, data, "direct")
    assert_close(direct, expected, conv)
    for a, b in zip(direct, run(context, conv, data, "ordered")):
        np.testing.assert_array_equal(a, b)


@every_isa
@pytest.mark.parametrize("conv", [c for c in MANY if c.pad], ids=lambda c: c.name)
def test_threads_give_the_same_bits(isa, conv):
    data = conv_data(conv)
    for algorithm in ALGORITHMS:
        one = run(native(isa), conv, data, algorithm)
        for threads in (2, 3):
            for a, b in zip(one, run(native(isa, threads), conv, data, algorithm)):
                assert a.tobytes() == b.tobytes()


BAD = {"cin2": 0, "ldx2": 2, "weight2": None, "K": 32}


@every_isa
@pytest.mark.parametrize("name", list(BAD))
def test_bad_arguments_are_refused(isa, name):
    context = native(isa)
    weights = [ops.pack_weight(context, np.ones((taps, 3, 8), np.float32)) for taps in (9, 1)]
    x, y = strided_input(np.ones((4, 3), np.float32), 0), np.zeros((4, 8), np.float32)
    table = np.zeros((4, 9), np.int32)
    arguments = ops.conv_arguments(x, weights[0], table, n_out=4, y=y, second=(x, weights[1]))
    setattr(arguments, name, BAD[name])
    with pytest.raises(InputError, match="cs_sparse_conv: x2"):
        context.call("cs_sparse_conv", byref(arguments))


@every_isa
def test_winograd_takes_none(isa):
    context = native(isa)
    x, y = strided_input(np.ones((4, 3), np.float32), 0), np.zeros((4, 8), np.float32)
    weight = ops.pack_winograd(context, np.ones((9, 3, 8), np.float32))
    second = (x, ops.pack_weight(context, np.ones((1, 3, 8), np.float32)))
    arguments = ops.conv_arguments(x, weight, n_out=4, y=y, second=second)
    tiles = ops.winograd_plan(context, np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32), 2, 2)
    with pytest.raises(InputError, match="only cs_sparse_conv takes one"):
        ops.winograd_conv(context, arguments, tiles)
