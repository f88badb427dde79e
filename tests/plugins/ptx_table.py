"""Instructions of PTX that the kernels hold, and what each computes: the definition of the PTX manual in Python.

An entry is (opcode, types of the operands, type of the result, function). Integers come to the function as Python's,
signed or not by their type, results are cut to their width; floats come as arrays. ``None`` as a result: not defined.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Callable, List, Tuple

import numpy as np

Entry = Tuple[str, str, str, Callable[..., Any]]
WIDTH = {"u16": 16, "s16": 16, "b16": 16, "u32": 32, "s32": 32, "b32": 32, "u64": 64, "s64": 64, "b64": 64}


def low(value: int, bits: int, signed: bool = False) -> int:
    """The low bits of an integer as a number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _quotient(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def _prmt(a: int, b: int, selector: int) -> int:
    whole, result = a | b << 32, 0
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = whole >> (8 * (nibble & 7)) & 255
        result |= (255 * (byte >> 7) if nibble & 8 else byte) << (8 * i)
    return result


def _bfi(a: int, b: int, start: int, length: int) -> int:
    start, length = start & 255, length & 255
    mask = low(((1 << length) - 1) << start, 32)
    return (b & ~mask) | (low(a << start, 32) & mask)


def _bfe(bits: int, signed: bool) -> Callable[[int, int, int], int]:
    def extract(a: int, start: int, length: int) -> int:
        start, length = start & 255, length & 255
        last = min(start + length - 1, bits - 1)
        sign = 0 if not signed or length == 0 else low(a, bits) >> last & 1
        result = 0
        for i in range(bits):
            bit = low(a, bits) >> (start + i) & 1 if i < length and start + i < bits else sign
            result |= bit << i
        return result

    return extract


def _bfind(bits: int, signed: bool, amount: bool) -> Callable[[int], int]:
    def find(a: int) -> int:
        if signed and a < 0:
            a = ~a
        at = low(a, bits).bit_length() - 1
        return at if at < 0 or not amount else bits - 1 - at

    return find


def integers() -> List[Entry]:
    """Arithmetic, logic and shifts."""
    table: List[Entry] = []
    for kind, bits in WIDTH.items():
        signed, two = kind[0] == "s", f"{kind} {kind}"
        if kind[0] == "b":
            table += [
                (f"and.{kind}", two, kind, lambda a, b: a & b),
                (f"or.{kind}", two, kind, lambda a, b: a | b),
                (f"xor.{kind}", two, kind, lambda a, b: a ^ b),
                (f"not.{kind}", kind, kind, lambda a: ~a),
                (f"shl.{kind}", f"{kind} u32", kind, lambda a, b, n=bits: a << b if b < n else 0),
            ]
            if bits > 16:
                reverse = lambda a, n=bits: int(format(a, f"0{n}b")[::-1], 2)  # noqa: E731
                table += [
                    (f"popc.{kind}", kind, "u32", lambda a: bin(a).count("1")),
                    (f"clz.{kind}", kind, "u32", lambda a, n=bits: n - a.bit_length()),
                    (f"brev.{kind}", kind, kind, reverse),
                ]
            continue
        table += [
            (f"add.{kind}", two, kind, lambda a, b: a + b),
            (f"sub.{kind}", two, kind, lambda a, b: a - b),
            (f"mul.lo.{kind}", two, kind, lambda a, b: a * b),
            (f"mul.hi.{kind}", two, kind, lambda a, b, n=bits: (a * b) >> n),
            (f"mad.lo.{kind}", f"{two} {kind}", kind, lambda a, b, c: a * b + c),
            (f"min.{kind}", two, kind, min),
            (f"max.{kind}", two, kind, max),
            (f"div.{kind}", two, kind, lambda a, b: _quotient(a, b) if b else None),
            (f"rem.{kind}", two, kind, lambda a, b: a - b * _quotient(a, b) if b else None),
            (f"shr.{kind}", f"{kind} u32", kind, lambda a, b: a >> min(b, 64)),
        ]
        if bits < 64:
            wide = f"{kind[0]}{2 * bits}"
            table.append((f"mul.wide.{kind}", two, wide, lambda a, b: a * b))
            table.append((f"mad.wide.{kind}", f"{two} {wide}", wide, lambda a, b, c: a * b + c))
        if signed:
            table += [(f"neg.{kind}", kind, kind, lambda a: -a), (f"abs.{kind}", kind, kind, abs)]
        if bits > 16:
            table += [
                (f"bfind.{kind}", kind, "u32", _bfind(bits, signed, False)),
                (f"bfind.shiftamt.{kind}", kind, "u32", _bfind(bits, signed, True)),
                (f"bfe.{kind}", f"{kind} u32 u32", kind, _bfe(bits, signed)),
            ]
        for name, holds in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
            table.append((f"setp.{name}.{kind}", two, "pred", eval(f"lambda a, b: a {holds} b")))
    table += [
        ("prmt.b32", "b32 b32 b32", "b32", _prmt),
        ("bfi.b32", "b32 b32 u32 u32", "b32", _bfi),
        ("cvt.s64.s32", "s32", "s64", lambda a: a),
        ("cvt.u64.u32", "u32", "u64", lambda a: a),
        ("cvt.u32.u64", "u64", "u32", lambda a: a),
        ("cvt.u32.u16", "u16", "u32", lambda a: a),
        ("cvt.s32.s16", "s16", "s32", lambda a: a),
        ("cvt.u16.u32", "u32", "u16", lambda a: a),
        ("cvt.s32.s8", "s32", "s32", lambda a: low(a, 8, True)),
        ("cvt.u32.u8", "u32", "u32", lambda a: low(a, 8)),
        ("cvt.sat.s16.s32", "s32", "s16", lambda a: max(-(1 << 15), min((1 << 15) - 1, a))),
        ("cvt.sat.u32.s64", "s64", "u32", lambda a: max(0, min((1 << 32) - 1, a))),
    ]
    return table


def _rounded(exact: Callable[..., Any], kind: type) -> Callable[..., np.ndarray]:
    """Floats that rounding once, to nearest even, of an exact sum or product gives; elsewhere as IEEE says."""

    def compute(*operands: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            plain = exact(*[o.astype(np.float64) for o in operands]).astype(kind)
        result = plain.copy()
        for i, values in enumerate(zip(*[o.tolist() for o in operands])):
            if all(np.isfinite(values)) and np.isfinite(plain[i]):
                value = exact(*[Fraction(v) for v in values])
                if value:
                    result[i] = _nearest(value, kind)
        return result

    return compute


def _nearest(value: Fraction, kind: type) -> Any:
    about = kind(float(value))
    near = [about, np.nextafter(about, kind(np.inf)), np.nextafter(about, kind(-np.inf))]
    finite = [v for v in near if np.isfinite(v)]
    best = min(abs(Fraction(float(v)) - value) for v in finite)
    ties = [v for v in finite if abs(Fraction(float(v)) - value) == best]
    even = [v for v in ties if not np.asarray(v).view(np.uint64 if kind is np.float64 else np.uint32) & 1]
    return (even or ties)[0]


def _least(a: np.ndarray, b: np.ndarray, pick: Any) -> np.ndarray:
    """The other operand where one is NaN; -0 is less than +0."""
    result = pick(a, b)
    both = (a == 0) & (b == 0)
    sign = np.signbit(a) | np.signbit(b) if pick is np.fmin else np.signbit(a) & np.signbit(b)
    return np.where(both, np.copysign(np.zeros_like(a), np.where(sign, -1, 1).astype(a.dtype)), result)


def flushed(a: np.ndarray) -> np.ndarray:
    """Subnormal values as zeros of their sign."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, np.copysign(np.zeros_like(a), a), a)


def _to_integer(kind: str, rounding: Any, of_double: bool) -> Callable[[np.ndarray], List[int]]:
    bits, signed = WIDTH[kind], kind[0] == "s"
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    none = 1 << (bits - 1) if of_double or bits == 64 else 0

    def compute(a: np.ndarray) -> List[int]:
        values = rounding(a).tolist()
        return [none if v != v else most if v >= most else least if v <= least else int(v) for v in values]

    return compute


def floats() -> List[Entry]:
    """Arithmetic that rounds once, comparisons, conversions."""
    table: List[Entry] = []
    for kind, dtype in (("f32", np.float32), ("f64", np.float64)):
        two, f64 = f"{kind} {kind}", kind == "f64"
        table += [
            (f"add.rn.{kind}", two, kind, lambda a, b: a + b),
            (f"sub.{kind}", two, kind, lambda a, b: a - b),
            (f"mul.rn.{kind}", two, kind, lambda a, b: a * b),
            (f"div.rn.{kind}", two, kind, lambda a, b: a / b),
            (f"fma.rn.{kind}", f"{two} {kind}", kind, _rounded(lambda a, b, c: a * b + c, dtype)),
            (f"rcp.rn.{kind}", kind, kind, lambda a: a.dtype.type(1) / a),
            (f"sqrt.rn.{kind}", kind, kind, np.sqrt),
            (f"neg.{kind}", kind, kind, lambda a: -a),
            (f"abs.{kind}", kind, kind, np.abs),
            (f"min.{kind}", two, kind, lambda a, b: _least(a, b, np.fmin)),
            (f"max.{kind}", two, kind, lambda a, b: _least(a, b, np.fmax)),
            (f"cvt.rni.{kind}.{kind}", kind, kind, np.rint),
            (f"cvt.rzi.{kind}.{kind}", kind, kind, np.trunc),
            (f"cvt.rmi.{kind}.{kind}", kind, kind, np.floor),
            (f"cvt.rpi.{kind}.{kind}", kind, kind, np.ceil),
            (f"setp.nan.{kind}", two, "pred", lambda a, b: np.isnan(a) | np.isnan(b)),
            (f"setp.num.{kind}", two, "pred", lambda a, b: ~(np.isnan(a) | np.isnan(b))),
        ]
        for name, holds in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
            compare = eval(f"lambda a, b: a {holds} b")
            nan = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
            ordered = lambda a, b, f=compare, n=nan: f(a, b) & ~n(a, b)  # noqa: E731
            unordered = lambda a, b, f=compare, n=nan: f(a, b) | n(a, b)  # noqa: E731
            table += [(f"setp.{name}.{kind}", two, "pred", ordered), (f"setp.{name}u.{kind}", two, "pred", unordered)]
        for whole in ("s32", "u32", "s64", "u64"):
            for name, rounding in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
                table.append((f"cvt.{name}.{whole}.{kind}", kind, whole, _to_integer(whole, rounding, f64)))
        for whole in ("s16", "u16", "s32", "u32", "s64", "u64"):
            exact = lambda a, t=dtype: _nearest(Fraction(a), t) if a else t(0)  # noqa: E731
            table.append((f"cvt.rn.{kind}.{whole}", whole, kind, exact))
    table += [
        ("add.ftz.f32", "f32 f32", "f32", lambda a, b: flushed(flushed(a) + flushed(b))),
        ("mul.ftz.f32", "f32 f32", "f32", lambda a, b: flushed(flushed(a) * flushed(b))),
        ("cvt.f64.f32", "f32", "f64", lambda a: a.astype(np.float64)),
        ("cvt.rn.f32.f64", "f64", "f32", lambda a: a.astype(np.float32)),
        ("cvt.f32.f16", "f16", "f32", lambda a: a.astype(np.float32)),
        ("cvt.rn.f16.f32", "f32", "f16", lambda a: a.astype(np.float16)),
    ]
    return table


def approximations() -> List[Entry]:
    """Results within 2 ^ -21 of the exact value, the manual's bounds taken together."""
    return [
        ("ex2.approx.ftz.f32", "f32", "f32", lambda a: np.exp2(flushed(a).astype(np.float64))),
        ("lg2.approx.ftz.f32", "f32", "f32", lambda a: np.log2(flushed(a).astype(np.float64))),
        ("rcp.approx.ftz.f32", "f32", "f32", lambda a: 1 / flushed(a).astype(np.float64)),
        ("rsqrt.approx.f32", "f32", "f32", lambda a: 1 / np.sqrt(a.astype(np.float64))),
    ]
