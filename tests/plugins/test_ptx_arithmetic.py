"""Every arithmetic instruction of the interpreter of PTX against its definition (ptx_table.py), from written PTX."""

from __future__ import annotations

from ctypes import byref, c_void_p

import numpy as np
import pytest
from emulation_bench import address
from ptx_table import Entry, approximations, floats, integers, low

DTYPE = {"s16": np.int16, "s32": np.int32, "s64": np.int64, "f16": np.float16, "f32": np.float32, "f64": np.float64}
DTYPE.update({f"{k}{n}": np.dtype(f"u{n // 8}").type for k in "ub" for n in (16, 32, 64)}, pred=np.uint32)
HEAD = ".version 6.5\n.target sm_72\n.address_size 64\n"
ROWS = 640


def kernel(name: str, entry: Entry) -> str:
    """PTX: out[i] = opcode(in0[i], in1[i], ...) for i < n."""
    opcode, types, result, _ = entry
    operands = types.split()
    registers = {"f16": "b16"}
    text = [f".visible .entry {name}({', '.join(f'.param .u64 {name}_{i}' for i in range(len(operands) + 1))}) {{"]
    text += [".reg .u32 %i, %n, %t;", ".reg .u64 %p, %o;", ".reg .pred %q;"]
    text += [f".reg .{registers.get(kind, kind)} %v{i};" for i, kind in enumerate(operands)]
    text += [f".reg .{registers.get(result, result)} %r;"] if result != "pred" else [".reg .pred %r;"]
    text += ["mov.u32 %i, %tid.x;", "mov.u32 %n, %ctaid.x;", "mov.u32 %t, %ntid.x;", "mad.lo.u32 %i, %n, %t, %i;"]
    for i, kind in enumerate(operands):
        size = np.dtype(DTYPE[kind]).itemsize
        text += [f"ld.param.u64 %p, [{name}_{i}];", f"mul.wide.u32 %o, %i, {size};", "add.u64 %p, %p, %o;"]
        text += [f"ld.global.{registers.get(kind, kind)} %v{i}, [%p];"]
    text += [f"{opcode} %r, {', '.join(f'%v{i}' for i in range(len(operands)))};"]
    size = np.dtype(DTYPE[result]).itemsize
    text += [f"ld.param.u64 %p, [{name}_{len(operands)}];", f"mul.wide.u32 %o, %i, {size};", "add.u64 %p, %p, %o;"]
    if result == "pred":
        text += ["selp.u32 %t, 1, 0, %r;", "st.global.u32 [%p], %t;"]
    else:
        text += [f"st.global.{registers.get(result, result)} [%p], %r;"]
    return "\n".join([*text, "ret;", "}"])


def values(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Edges and random values of a type."""
    dtype = np.dtype(DTYPE[kind])
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        edges = [0, 0.5, 1, 1.5, 2.5, limits.max, limits.tiny, limits.smallest_subnormal, limits.tiny / 8, np.inf, 3e4]
        edges += [2.0**15, 2.0**31, 2.0**31 - 128, 2.0**32, 2.0**63, 2.0**64, 65519.9, 65520, 1e-7, 0.1, limits.eps]
        with np.errstate(over="ignore"):
            edges = np.array([*edges, *[-e for e in edges], np.nan], np.float64).astype(dtype)
            wide = rng.standard_normal(120) * 2.0 ** rng.integers(-20, 20, 120)
            return np.concatenate([edges, wide.astype(dtype)])
    bits = 8 * dtype.itemsize
    edges = [
        0,
        1,
        2,
        3,
        5,
        7,
        31,
        32,
        33,
        63,
        64,
        127,
        128,
        255,
        1 << (bits - 1),
        (1 << (bits - 1)) - 1,
        (1 << bits) - 1,
    ]
    edges += [low(-2, bits), low(-7, bits)]
    random = [int(v) >> int(s) for v, s in zip(rng.integers(0, 1 << 63, 60), rng.integers(max(0, 63 - bits), 63, 60))]
    return np.array([low(v, bits, dtype.kind == "i") for v in [*edges, *random]], dtype)


def operands_of(entry: Entry) -> list:
    """ROWS values for each operand, all pairs of edges among them where there are two."""
    rng = np.random.default_rng(0)
    kinds = entry[1].split()
    columns = []
    for i, kind in enumerate(kinds):
        options = values(kind, rng)
        if kind == "u32" and i and entry[0].split(".")[0] in ("shl", "shr", "bfe", "bfi"):
            options = np.array([0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 200, 255, 256, 1 << 31], np.uint32)
        columns.append(options[rng.integers(0, len(options), ROWS)] if len(kinds) > 1 else np.resize(options, ROWS))
    return columns


def expected(entry: Entry, columns: list):
    """(values, which of them are defined)."""
    _, types, result, function = entry
    if any(kind[0] == "f" for kind in types.split()):
        with np.errstate(all="ignore"):
            found = function(*columns)
        if isinstance(found, list):  # integers
            bits = 8 * np.dtype(DTYPE[result]).itemsize
            signed = np.dtype(DTYPE[result]).kind == "i"
            found = np.array([low(v, bits, signed) for v in found], DTYPE[result])
        return found, np.ones(ROWS, bool)
    found = [function(*row) for row in zip(*[c.tolist() for c in columns])]
    defined = np.array([v is not None for v in found])
    if result in ("f32", "f64", "pred"):
        return np.array(found, DTYPE[result]), defined
    bits, signed = 8 * np.dtype(DTYPE[result]).itemsize, np.dtype(DTYPE[result]).kind == "i"
    return np.array([low(v or 0, bits, signed) for v in found], DTYPE[result]), defined


@pytest.fixture(scope="module")
def module(emulated_driver):
    from crispseg.engines import cuda

    cuda.open_device()
    names = {entry: f"k{i}" for i, entry in enumerate([*integers(), *floats(), *approximations()])}
    text = HEAD + "\n".join(kernel(name, entry) for entry, name in names.items())
    handle = c_void_p()
    assert emulated_driver.library.cuModuleLoadData(byref(handle), text.encode() + b"\0") == 0
    return handle, {entry[0]: name for entry, name in names.items()}


def computed(bench, module, entry: Entry, columns: list) -> np.ndarray:
    bench.module = module[0]
    out = bench.put(np.zeros(ROWS, DTYPE[entry[2]]))
    bench.launch(
        module[1][entry[0]], *[address(bench.put(c)) for c in columns], address(out), grid=ROWS // 64, block=64
    )
    return bench.get(out, ROWS, DTYPE[entry[2]])


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind != "f":
        return a == b
    bits = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))


@pytest.mark.parametrize("entry", [*integers(), *floats()], ids=lambda entry: entry[0])
def test_exact(bench, module, entry):
    columns = operands_of(entry)
    want, defined = expected(entry, columns)
    if entry[0][:3] in ("div", "rem") and columns[1].dtype.kind != "f":
        columns[1] = np.where(columns[1] == 0, 1, columns[1]).astype(columns[1].dtype)  # division by zero is a mistake
    got = computed(bench, module, entry, columns)
    wrong = np.flatnonzero(defined & ~same(got, want.astype(got.dtype)))
    assert not len(wrong), [(*[c[i] for c in columns], got[i], want[i]) for i in wrong[:5]]


@pytest.mark.parametrize("entry", approximations(), ids=lambda entry: entry[0])
def test_approximate(bench, module, entry):
    columns = operands_of(entry)
    want, _ = expected(entry, columns)
    got = computed(bench, module, entry, columns).astype(np.float64)
    finite = np.isfinite(want) & (np.abs(want) < 3e38) & (np.abs(want) > 2.0**-126)
    assert finite.sum() > 50
    assert (np.abs(got[finite] - want[finite]) <= 2.0**-21 * np.maximum(np.abs(want[finite]), 1.0)).all()
    assert (np.isnan(got) == np.isnan(want)).all()
