"""Streaming histograms: exact where they can be, independent of order, and the four rules against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from crispseg.calibration.histogram import BINS, LEVELS, METHODS, MOST_SAMPLES, Histogram
from crispseg.errors import InputError


def filled(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def squared_error(values, threshold):
    step = threshold / LEVELS
    return float(np.mean((values - step * np.clip(np.rint(values / step), -LEVELS, LEVELS)) ** 2))


def test_order_of_frames_does_not_matter():
    random = np.random.default_rng(0)
    parts = [random.normal(0, scale, 5000).astype(np.float32) for scale in (1e-3, 5, 0.1, 40, 1)] + [np.zeros(9)]
    one, other = filled(*parts), filled(*reversed(parts))
    assert one.width == other.width
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.sum() == 5 * 5000 + 9
    assert [one.threshold(m) for m in METHODS] == [other.threshold(m) for m in METHODS]


def test_minmax_is_the_largest_magnitude_of_all_values():
    values = np.zeros(3 * MOST_SAMPLES, np.float32)
    values[7] = -12.345678  # no sample of the histogram meets it
    assert filled(values, np.float32([3.0])).threshold("minmax") == np.float32(12.345678)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
def test_percentile(percent):
    values = np.random.default_rng(1).laplace(0, 1, 100000).astype(np.float32)
    found = filled(values).threshold("percentile", percent)
    assert found == pytest.approx(np.percentile(np.abs(values), percent), rel=5e-3)


def test_mse_is_near_the_best_threshold():
    values = np.random.default_rng(2).laplace(0, 1, 100000).astype(np.float32)
    found = filled(values).threshold("mse")
    best = min(squared_error(values, t) for t in np.linspace(2, np.abs(values).max(), 200))
    assert squared_error(values, found) <= 1.02 * best
    assert squared_error(values, found) < squared_error(values, filled(values).threshold("minmax"))


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_an_outlier_is_cut_off(method):
    values = np.random.default_rng(3).normal(0, 1, 200000).astype(np.float32)
    values[0] = 60.0
    assert 2.5 < filled(values).threshold(method) < 10


@pytest.mark.parametrize("method", METHODS)
def test_never_beyond_what_was_seen_and_zero_for_zeros(method):
    assert filled(np.zeros(100, np.float32)).threshold(method) == 0.0
    assert filled(np.float32([0.5] * 100)).threshold(method) <= 0.5
    assert filled(np.float32([1e-30, 2e-30])).threshold(method) > 0.0


def test_memory_is_bounded():
    histogram = Histogram()
    for scale in range(40):
        histogram.add(np.full(1000, 2.0**scale, np.float32))
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == 40000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    with pytest.raises(InputError, match="finite"):
        filled(np.float32([1.0, bad]))


def test_unknown_method():
    with pytest.raises(InputError, match="minmax, entropy"):
        filled(np.float32([1])).threshold("median")
