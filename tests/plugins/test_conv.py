"""The native sparse convolution against a float64 matrix product, for every row of the op table."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from native_cases import (
    assert_close,
    guarded_matrix,
    guards_intact,
    isas,
    native,
    poison,
    sparse_conv,
    strided_input,
)
from op_table import CONVS, Conv, conv_data, reference_conv

from crispseg.errors import CrispsegError, EnvironmentMismatch, InputError
from crispseg.plugins import loader
from crispseg.plugins import native_ops as ops

every_isa = pytest.mark.parametrize("isa", isas())
every_conv = pytest.mark.parametrize("conv", CONVS, ids=lambda c: c.name)


def run(context: loader.Native, conv: Conv, data, order=None, in_place=False):
    """[y, z1, z2] of the native kernel, with every guard checked."""
    table = data.get("map")
    x = strided_input(data["x"], conv.pad)
    n_out = len(x) if table is None else len(table)
    weight = ops.pack_weight(context, data["weight"])
    blocks = [guarded_matrix(n_out, conv.cout, conv.pad, np.nan) for _ in range(1 + conv.outputs)]
    residual = data["residual"] if conv.residual else None
    if in_place:
        blocks[0][1][:] = residual
        residual = blocks[0][1]
    arguments = ops.conv_arguments(
        x,
        weight,
        table,
        n_out=n_out,
        order=order,
        bias=data["bias"] if conv.bias else None,
        residual=residual,
        relu=conv.relu,
        y=blocks[0][1] if conv.y else None,
        z=[(data[f"scale{i}"], data[f"shift{i}"], blocks[1 + i][1]) for i in range(conv.outputs)],
    )
    context.call("cs_sparse_conv", byref(arguments))
    for block, inner in blocks:
        assert guards_intact(block, inner, conv.pad)
    return [inner.copy() for _, inner in blocks]


@every_isa
@every_conv
def test_matches_float64(isa, conv):
    context = native(isa)
    poison(context)
    data = conv_data(conv)
    got = run(context, conv, data)
    assert_close(got, reference_conv(data, conv), conv)
    if "map" in data:
        ordered = run(context, conv, data, ops.plan_map(context, data["map"]))
        for a, b in zip(got, ordered):
            np.testing.assert_array_equal(a, b)


@every_isa
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("conv", [c for c in CONVS if c.pad], ids=lambda c: c.name)
def test_threads_give_the_same_bits(isa, threads, conv):
    data = conv_data(conv)
    for _ in range(2):
        for a, b in zip(run(native(isa), conv, data), run(native(isa, threads), conv, data)):
            assert a.tobytes() == b.tobytes()


@every_isa
@pytest.mark.parametrize("conv", [c for c in CONVS if c.residual and c.y], ids=lambda c: c.name)
def test_residual_may_be_the_output(isa, conv):
    data, context = conv_data(conv), native(isa)
    order = ops.plan_map(context, data["map"]) if "map" in data else None
    for a, b in zip(run(context, conv, data), run(context, conv, data, order, in_place=True)):
        np.testing.assert_array_equal(a, b)


@every_isa
def test_many_blocks(isa):
    """More rows than one block, one thread against three, raster against planned order."""
    rng = np.random.default_rng(5)
    table = rng.integers(-1, 3000, (7001, 9)).astype(np.int32)
    table[rng.random(table.shape) < 0.6] = -1
    data = {"map": table, "x": rng.standard_normal((3000, 35)).astype(np.float32)}
    data["weight"] = rng.standard_normal((9, 35, 19)).astype(np.float32)
    conv = Conv("-", "-", 35, 19)
    want = reference_conv(data, conv)
    results = []
    for threads in (1, 3):
        context = native(isa, threads)
        results += [run(context, conv, data), run(context, conv, data, ops.plan_map(context, table))]
    for got in results:
        assert_close(got, want, conv)
        np.testing.assert_array_equal(got[0], results[0][0])


@every_isa
def test_any_permutation_is_an_order(isa):
    conv = next(c for c in CONVS if c.sites == "odd_sizes" and c.cout == 19)
    data, context = conv_data(conv), native(isa)
    order = np.random.default_rng(1).permutation(len(data["map"])).astype(np.int32)
    for a, b in zip(run(context, conv, data), run(context, conv, data, order)):
        np.testing.assert_array_equal(a, b)


@every_isa
def test_rows_without_any_input(isa):
    """n_in = 0: bias alone; x may then be absent."""
    context = native(isa)
    weight = ops.pack_weight(context, np.ones((9, 20, 19), np.float32))
    bias, y = np.arange(19, dtype=np.float32), np.full((30, 19), np.nan, np.float32)
    table = np.full((30, 9), -1, np.int32)
    arguments = ops.conv_arguments(np.zeros((0, 20), np.float32), weight, table, n_out=30, bias=bias, y=y)
    arguments.x = None
    context.call("cs_sparse_conv", byref(arguments))
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (30, 19)))


@every_isa
def test_nan_goes_through_relu(isa):
    context = native(isa)
    x = np.array([[np.nan], [1.0]], np.float32)
    weight = ops.pack_weight(context, np.ones((1, 1, 21), np.float32))
    one = np.ones(21, np.float32)
    for out in sparse_conv(context, x, weight, relu=True, affine=[(one, one)]):
        assert np.isnan(out[0]).all()
        assert (out[1] >= 1).all()


@every_isa
def test_memory_does_not_grow_after_the_first_call(isa):
    context = loader.Native(2, isa)
    conv = next(c for c in CONVS if c.cin == 64 and c.cout == 64)
    data = conv_data(conv)
    run(context, conv, data)
    size = context.scratch_bytes
    for _ in range(3):
        run(context, conv, data)
    assert context.scratch_bytes == size
    context.close()


BAD = {
    "map too large": lambda a: a.update(map=np.full((4, 9), 4, np.int32)),
    "map below -1": lambda a: a.update(map=np.full((4, 9), -2, np.int32)),
    "order too large": lambda a: a.update(order=np.full(4, 4, np.int32)),
    "order negative": lambda a: a.update(order=np.full(4, -1, np.int32)),
    "no output": lambda a: a.update(y=None),
    "ldy": lambda a: a.update(ldy=1),
    "ldx": lambda a: a.update(ldx=2),
    "taps": lambda a: a.update(K=33),
    "no taps": lambda a: a.update(K=0),
    "negative rows": lambda a: a.update(n_out=-1),
    "no map": lambda a: a.update(map=None),
    "unaligned": lambda a: a.update(weight_offset=4),
    "z without scale": lambda a: a.update(z=True),
}


@every_isa
@pytest.mark.parametrize("change", BAD.values(), ids=list(BAD))
def test_bad_arguments_are_refused(isa, change):
    context = native(isa)
    weight = ops.pack_weight(context, np.ones((9, 3, 8), np.float32))
    values = {"map": np.zeros((4, 9), np.int32), "y": np.zeros((4, 8), np.float32)}
    change(values)
    x = strided_input(np.ones((4, 3), np.float32), 0)
    arguments = ops.conv_arguments(x, weight, values["map"], n_out=4, order=values.get("order"), y=values["y"])
    for name in ("ldy", "ldx", "K", "n_out"):
        if name in values:
            setattr(arguments, name, values[name])
    arguments.weight += values.get("weight_offset", 0)
    if "z" in values:
        arguments.z[0], arguments.ldz[0] = values["y"].ctypes.data, 8
    with pytest.raises(InputError, match="cs_sparse_conv"):
        context.call("cs_sparse_conv", byref(arguments))


@every_isa
def test_context(isa, monkeypatch):
    context = loader.Native(3, isa)
    assert (context.isa, context.threads) == (isa, 3)
    monkeypatch.setenv("CRISPSEG_ISA", isa)
    assert loader.Native(1).isa == isa
    monkeypatch.setenv("CRISPSEG_ISA", "vax")
    with pytest.raises(EnvironmentMismatch, match="vax"):
        loader.Native(1)
    with pytest.raises(InputError, match="threads"):
        loader.Native(0)
    context.close()
    context.close()
    with pytest.raises(CrispsegError, match="closed"):
        context.call("cs_plan_map", None, 0, 9, None)


def test_missing_library_says_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "_library", None)
    monkeypatch.setenv(loader.ENVIRONMENT, str(tmp_path / "libcrispseg.so"))
    with pytest.raises(EnvironmentMismatch, match="cmake"):
        loader.load()
    (tmp_path / "libcrispseg.so").write_bytes(b"not a library")
    with pytest.raises(EnvironmentMismatch, match="does not load"):
        loader.load()
