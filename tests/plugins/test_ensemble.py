"""The two ensemblers against float64."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from rows_support import Guarded, entropy, gate_weights, gated_reference

from crispseg.errors import EnvironmentMismatch, InputError
from crispseg.plugins.loader import GateArguments, Native, available_isas

try:
    ISAS = available_isas()
except EnvironmentMismatch as error:
    pytest.skip(str(error), allow_module_level=True)

CLASSES = [2, 11, 19, 150]
ROWS = [0, 1, 7, 8, 16, 17, 31, 32, 33, 63, 64, 65, 700]


def gate_arguments(weights, classes, hidden):
    return GateArguments(C=classes, hidden=hidden, **{k: v.ctypes.data for k, v in weights.items()})


def run_gated(native, yi, yo, weights, hidden, extra=0):
    n, classes = yi.shape
    out = Guarded((n, classes + extra), np.float32)
    gate = gate_arguments(weights, classes, hidden)
    native.call(
        "cs_ensemble_gated",
        yi.ctypes.data,
        classes,
        yo.ctypes.data,
        classes,
        n,
        ctypes.byref(gate),
        out.pointer,
        classes + extra,
    )
    out.check()
    assert np.isnan(out.array[:, classes:]).all()
    return out.array[:, :classes]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("hidden", [64, 13])
def test_gated(isa, classes, hidden):
    weights = gate_weights(classes, hidden)
    rng = np.random.default_rng(classes)
    with Native(1, isa) as one, Native(3, isa) as three:
        for n in ROWS:
            yi = rng.normal(0, 4, (n, classes)).astype(np.float32)
            yo = rng.normal(0, 4, (n, classes)).astype(np.float32)
            out = run_gated(one, yi, yo, weights, hidden, extra=2)
            exact = gated_reference(yi, yo, weights) if n else np.zeros((0, classes))
            assert np.abs(out - exact).max(initial=0) <= 1e-5 * np.abs(exact).max(initial=1)
            assert (run_gated(three, yi, yo, weights, hidden) == out).all()


@pytest.mark.parametrize("isa", ISAS)
def test_gated_in_place_and_row_by_row(isa):
    """ye may be yi or yo; a row's result does not depend on the rows around it."""
    weights = gate_weights(19, 64)
    rng = np.random.default_rng(5)
    yi, yo = (rng.normal(0, 3, (77, 19)).astype(np.float32) for _ in range(2))
    gate = gate_arguments(weights, 19, 64)
    with Native(1, isa) as native:
        out = run_gated(native, yi, yo, weights, 64)
        for row in (0, 40, 76):
            assert (run_gated(native, yi[row : row + 1], yo[row : row + 1], weights, 64)[0] == out[row]).all()
        for which in (0, 1):
            a, b = yi.copy(), yo.copy()
            target = (a, b)[which]
            native.call(
                "cs_ensemble_gated",
                a.ctypes.data,
                19,
                b.ctypes.data,
                19,
                77,
                ctypes.byref(gate),
                target.ctypes.data,
                19,
            )
            assert (target == out).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", CLASSES)
def test_entropy(isa, classes):
    rng = np.random.default_rng(classes)
    for n in ROWS:
        yi = rng.normal(0, 2, (n, classes)).astype(np.float32)
        yo = rng.normal(0, 2, (n, classes)).astype(np.float32)
        if n > 7:
            yo[3] = yi[3]  # a tie goes to yo, here the same values
            yo[4] = yi[4][::-1]
            yi[5, 0] = np.nan
            yo[6, 1] = np.nan
        keep = entropy(yi, 1) < entropy(yo, 1)
        close = np.abs(entropy(yi, 1) - entropy(yo, 1)) < 1e-5
        with Native(2, isa) as native:
            out = Guarded((n, classes + 1), np.float32)
            given = (yi.ctypes.data, classes, yo.ctypes.data, classes, n, classes)
            native.call("cs_ensemble_entropy", *given, out.pointer, classes + 1)
            out.check()
            assert np.isnan(out.array[:, classes]).all()
            wanted = np.where(keep[:, None], yi, yo)
            assert np.array_equal(out.array[~close, :classes], wanted[~close], equal_nan=True)
            native.call("cs_ensemble_entropy", *given, yo.ctypes.data, classes)
            assert np.array_equal(yo, out.array[:, :classes], equal_nan=True)


def test_bad_arguments():
    weights = gate_weights(4, 8)
    x = np.zeros((3, 4), np.float32)
    with Native(1) as native:
        gate = gate_arguments(weights, 4, 8)
        with pytest.raises(InputError, match="stride"):
            native.call(
                "cs_ensemble_gated", x.ctypes.data, 3, x.ctypes.data, 4, 3, ctypes.byref(gate), x.ctypes.data, 4
            )
        gate.w3 = None
        with pytest.raises(InputError, match="weight is null"):
            native.call(
                "cs_ensemble_gated", x.ctypes.data, 4, x.ctypes.data, 4, 3, ctypes.byref(gate), x.ctypes.data, 4
            )
        with pytest.raises(InputError, match="null pointer"):
            native.call("cs_ensemble_entropy", None, 4, x.ctypes.data, 4, 3, 4, x.ctypes.data, 4)
