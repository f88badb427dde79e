"""Runs that last for weeks: bounded memory, exact where that is possible."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from crispseg.report import summarise
from crispseg.runtime.series import Series


def test_a_short_run_loses_nothing():
    values = np.random.default_rng(0).gamma(2.0, 5.0, 1000).tolist()
    series = Series()
    for value in values:
        series.append(value)
    assert series.summary() == summarise(values)
    assert (len(series), series.least, series.most) == (1000, min(values), max(values))
    assert Series().summary() == summarise([])
    assert Series().mean is None


def test_a_long_run_is_thinned_evenly():
    """The first half is fast and the second slow: percentiles of both must stay."""
    series = Series(most=64)
    values = [1.0 + 0.001 * (i % 7) for i in range(5000)] + [2.0 + 0.001 * (i % 7) for i in range(5000)]
    values[1234] = 99.0  # one spike, that no sample has to hold
    for value in values:
        series.append(value)
    assert 32 <= len(series.kept) <= 64
    found, exact = series.summary(), summarise(values)
    assert (found["max"], len(series)) == (99.0, 10000)
    assert found["mean"] == pytest.approx(exact["mean"], abs=1e-3)
    for name in ("p90", "p99"):
        assert found[name] == pytest.approx(exact[name], abs=0.01)
    assert sum(value < 1.5 for value in series.kept) == pytest.approx(len(series.kept) / 2, abs=2)


def test_the_record_of_a_run_stays_small():
    from crispseg.runtime import run
    from crispseg.runtime.pipeline import FrameResult

    record = run.Record(budget_ms=5.0)
    fields = {name: None for name in FrameResult.__dataclass_fields__}
    for index in range(70000):
        times = {"base": 1.0, "total": float(index % 7)}
        record.add(FrameResult(**{**fields, "times": times, "density": 0.1, "count": 5, "found": 7}))
    assert max(len(series.kept) for series in (*record.stages.values(), record.densities, record.counts)) <= 1 << 16
    assert (record.left.pixels, record.left.cut) == (140000, 70000)
    assert record.over_budget == sum(index % 7 > 5 for index in range(70000))
    held = [value for value in vars(record).values() if isinstance(value, (list, dict)) and len(value) > 100]
    assert not held
    assert sys.getsizeof(record.stages["base"].kept) < 1 << 20
