"""The block bootstrap."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from medicane.evaluate.intervals import (
    Resampling,
    percentiles,
    resample_blocks,
    resampled_average_precision,
)


def sample(rng, *, n=1461, n_storms=12, maps_per_storm=9):
    """Times, labels and storms of a year with clumped medicane maps."""
    times = np.datetime64("2003-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    labels, storm = np.zeros(n, int), np.full(n, "", dtype="<U8")
    for k, first in enumerate(np.linspace(5, n - 30, n_storms).astype(int)):
        length = maps_per_storm + int(rng.integers(-3, 4))
        labels[first : first + length] = 1
        storm[first : first + length] = f"s{k}"
    return times, labels, storm


def by_map(labels, *, n_resamples=1000, seed=0):
    """The wrong bootstrap: every map a block of its own."""
    rng = np.random.default_rng(seed)
    n = labels.size
    return Resampling(
        np.arange(n), n, 0, rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)
    )


def test_blocks_are_storms_and_weeks():
    times, labels, storm = sample(np.random.default_rng(0))
    found = resample_blocks(times, labels, storm, n_resamples=50)
    assert (found.n_storms, found.n_weeks) == (12, 53)
    assert found.weight.shape == (50, 65)
    # As many storms and as many weeks in every resample as there are.
    assert (found.weight[:, :12].sum(axis=1) == 12).all()
    assert (found.weight[:, 12:].sum(axis=1) == 53).all()
    # Maps share a block exactly when they share the storm, or the week without one.
    for name in np.unique(storm[labels == 1]):
        assert np.unique(found.block[(storm == name) & (labels == 1)]).size == 1
    week = (np.arange(times.size) * 6) // 168
    negative = labels == 0
    pairs = np.unique(np.stack([found.block[negative], week[negative]]), axis=1)
    assert pairs.shape[1] == 53
    assert found.block[negative].min() == 12


def test_the_same_seed_gives_the_same_resamples():
    data = sample(np.random.default_rng(0))
    a, b = (resample_blocks(*data, n_resamples=20, seed=4) for _ in range(2))
    np.testing.assert_array_equal(a.weight, b.weight)
    assert (a.weight != resample_blocks(*data, n_resamples=20, seed=5).weight).any()


def test_a_storm_without_a_name_is_a_block_of_its_own():
    times, labels, _ = sample(np.random.default_rng(0))
    assert resample_blocks(times, labels, None).n_storms == 12


@pytest.mark.parametrize("labels", [np.zeros(30, int), np.ones(30, int), np.zeros(0, int)])
def test_one_class_or_nothing(labels):
    times = np.datetime64("2003-01-01", "ns") + np.arange(labels.size) * np.timedelta64(6, "h")
    found = resample_blocks(times, labels, None, n_resamples=7)
    sums = found.sums(np.ones(labels.size))
    assert sums.shape == (7, 1)
    if labels.size:
        assert sums.mean() == pytest.approx(30, rel=0.3)


def test_sums_are_those_of_drawing_the_maps_themselves():
    rng = np.random.default_rng(1)
    data = sample(rng)
    found = resample_blocks(*data, n_resamples=5)
    values = rng.normal(size=data[0].size)
    for r in range(5):
        drawn = np.repeat(values, found.weight[r, found.block].astype(int))
        assert found.sums(values)[r, 0] == pytest.approx(drawn.sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 10, 1000]))
def test_average_precision_equals_scikit_learns_on_every_resample(seed, levels):
    rng = np.random.default_rng(seed)
    times, labels, storm = sample(rng, n=300, n_storms=4, maps_per_storm=5)
    score = np.round((rng.normal(size=300) + labels) * levels) / levels  # few levels: many ties
    resampling = resample_blocks(times, labels, storm, n_resamples=10, seed=seed)
    found = resampled_average_precision(score, labels, resampling)
    for r in range(10):
        weight = resampling.weight[r, resampling.block]
        expected = average_precision_score(labels, score, sample_weight=weight)
        assert found[r] == pytest.approx(expected, abs=1e-12)


def test_average_precision_without_medicanes_is_undefined():
    times, labels, _ = sample(np.random.default_rng(0))
    resampling = resample_blocks(times, labels * 0, None, n_resamples=3)
    found = resampled_average_precision(np.ones(labels.size), labels * 0, resampling)
    assert np.isnan(found).all()


def test_clumped_storms_widen_the_interval():
    rng = np.random.default_rng(2)
    times, labels, storm = sample(rng)
    caught = np.zeros(labels.size, bool)
    for name in np.unique(storm[labels == 1]):
        caught[storm == name] = rng.random() < 0.6  # a storm is seen whole or not at all
    widths = {}
    resamplings = {"block": resample_blocks(times, labels, storm), "map": by_map(labels)}
    for kind, resampling in resamplings.items():
        hits, positives = resampling.sums(caught & (labels == 1), labels == 1).T
        low, high = percentiles(hits / positives)
        widths[kind] = high - low
        assert low <= caught[labels == 1].mean() <= high
    assert widths["block"] > 2 * widths["map"]


def test_coverage_by_block_and_the_failure_by_map():
    rng = np.random.default_rng(3)
    times, labels, storm = sample(rng, n_storms=20)
    positive = labels == 1
    block, single = (
        resample_blocks(times, labels, storm, n_resamples=300),
        by_map(labels, n_resamples=300),
    )
    covered = {"block": 0, "map": 0}
    for _ in range(100):
        caught = np.zeros(labels.size, bool)
        for name in np.unique(storm[positive]):
            caught[storm == name] = rng.random() < 0.6
        for kind, resampling in (("block", block), ("map", single)):
            hits, positives = resampling.sums(caught & positive, positive).T
            low, high = percentiles(hits / positives)
            covered[kind] += low <= 0.6 <= high
    assert covered["block"] >= 85
    assert covered["map"] <= 70


def test_a_thousand_resamples_of_five_thousand_maps_take_little_time():
    rng = np.random.default_rng(0)
    data = sample(rng, n=5000, n_storms=30)
    start = time.perf_counter()
    resampling = resample_blocks(*data, n_resamples=1000)
    resampled_average_precision(rng.random(5000), data[1], resampling)
    resampling.sums(data[1], data[1] == 0)
    assert time.perf_counter() - start < 2


def test_percentiles_leave_out_what_is_undefined():
    assert percentiles([np.nan] * 3) != percentiles([1.0])
    low, high = percentiles(np.concatenate([np.linspace(0, 1, 1001), [np.nan, np.inf]]))
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert all(np.isnan(percentiles([])))
