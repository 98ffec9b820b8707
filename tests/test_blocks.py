"""Blocks of windows: every window once, sampled as windows are, and the odds counted exactly."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.batches import RandomRuns, SequenceBatches
from medicane.errors import InputError
from medicane.sequences import windows
from tests.test_batches import LENGTH, N, batches, label_pattern, numbered, times_of


def gapped(gaps: list[int], n: int = N) -> np.ndarray:
    """Times of n maps, six hours apart but for a day of nothing before each of `gaps`."""
    hours = np.arange(n) * 6
    for gap in gaps:
        hours[gap:] += 24
    return np.datetime64("2001-01-01", "ns") + hours * np.timedelta64(1, "h")


def windows_in(data: SequenceBatches, index: int, *, stride: int) -> list[tuple[Any, ...]]:
    """(first map, labels, weights) of the windows of a batch that count, cut by plain slices."""
    maps, labels, weights = data[index]
    times, found = times_of(maps), []
    for block in range(len(maps)):
        for window in range(labels.shape[1]):
            at = times[block, window * stride : window * stride + LENGTH]
            if weights[block, window].any():
                assert (np.diff(at) == 1).all()  # no filling inside
                found.append((int(at[0]), labels[block, window, :, 0], weights[block, window]))
    return found


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(1, N - 1), max_size=4, unique=True),
    stride=st.integers(1, 9),
    block=st.integers(2, 40),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 3),
)
def test_an_epoch_shows_every_window_once(gaps, stride, block, batch_size, seed):
    times = gapped(sorted(gaps))
    try:
        rows = windows(times, length=LENGTH, stride=stride, step_hours=6)
    except InputError:
        return  # no period is long enough
    own = np.linspace(1, 2, N)
    data = batches(
        rows=rows,
        block=block,
        batch_size=batch_size,
        seed=seed,
        weights=own,
        labels=np.arange(N) % 2,
    )
    shown = [window for i in range(len(data)) for window in windows_in(data, i, stride=stride)]
    assert sorted(first for first, _, _ in shown) == rows[:, 0].tolist()
    for first, labels, weights in shown:
        at = np.arange(first, first + LENGTH)
        np.testing.assert_array_equal(labels, at % 2)
        np.testing.assert_allclose(weights, own[at], rtol=1e-6)
    assert data.n_windows == len(rows)
    assert data.prior_offset == 0
    np.testing.assert_array_equal(np.sort(data.order(0)), np.arange(len(rows)))


def test_each_map_is_handed_out_once_and_windows_are_views():
    data = batches(block=8, batch_size=8, shuffle=False)
    maps, labels, weights = data[0]
    # 8 windows of 10 maps are 80; blocks of 17 maps come nearest to that five times.
    assert maps.shape == (5, 17, 4, 5, 3)
    assert labels.shape == (5, 8, LENGTH, 1)
    assert weights.shape == (5, 8, LENGTH)
    assert labels.dtype == weights.dtype == np.float32
    np.testing.assert_array_equal(times_of(maps), np.arange(5)[:, None] * 8 + np.arange(17))
    assert labels.strides[1] == labels.strides[2]  # the next window is the same memory, one map on
    assert [len(data[i][0]) for i in range(len(data))] == [5, 4]


def test_what_a_period_has_left_over_is_filled_up_and_does_not_count():
    times = gapped([21])
    rows = windows(times, length=LENGTH, step_hours=6)
    data = batches(rows=rows, block=5, batch_size=100, shuffle=False, labels=np.zeros(N))
    maps, _, weights = data[0]
    # Twelve windows in the first 21 maps: two whole blocks, and one of two windows (11 maps).
    assert times_of(maps)[2].tolist() == [*range(10, 21), 20, 20, 20]
    assert (weights[2] > 0).all(axis=1).tolist() == [True, True, False, False, False]
    assert times_of(maps)[3][0] == 21
    # A block never reaches across the gap.
    for row in times_of(maps):
        assert not (row[0] < 21 <= row[-1])


def test_windows_further_apart_than_the_others_begin_a_block():
    rows = windows(numbered()["time"].values, length=LENGTH, step_hours=6)
    some = np.concatenate([rows[:5], rows[7:12], rows[40:41]])
    data = batches(rows=some, block=4, batch_size=100, shuffle=False)
    assert times_of(data[0][0])[:, 0].tolist() == [0, 4, 7, 11, 40]


@settings(max_examples=25, deadline=None)
@given(
    ratio=st.floats(0.05, 4),
    share=st.one_of(st.none(), st.floats(0.1, 0.9)),
    block=st.integers(2, 12),
    stride=st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_the_prior_offset_counts_windows_with_their_maps_as_often_as_shown(
    ratio, share, block, stride, seed
):
    """Against the plainest count: window by window, map by map."""
    n = 240
    rng = np.random.default_rng(seed)
    labels = label_pattern(n)
    labels[200:204] = 1
    deep = rng.random(n) < 0.02
    own = rng.random(n).astype(np.float32)
    maps = numbered(n)
    rows = windows(maps["time"].values, length=LENGTH, stride=stride, step_hours=6)
    data = batches(
        maps=maps,
        rows=rows,
        labels=labels,
        weights=own,
        block=block,
        negatives_per_positive=ratio,
        hard=deep,
        hard_share=share,
    )
    blocks = [rows[i : i + block] for i in range(0, len(rows), block)]
    strata: dict[str, list[np.ndarray]] = {"storm": [], "hard": [], "easy": []}
    for one in blocks:
        storm, hard = (labels[one] == 1).any(), share is not None and deep[one].any()
        strata["storm" if storm else "hard" if hard else "easy"].append(one)
    wanted = min(round(ratio * len(strata["storm"])), len(blocks) - len(strata["storm"]))
    drawn = {"easy": wanted, "hard": 0}
    if share is not None:
        hard = min(round(share * wanted), len(strata["hard"]))
        drawn["easy"] = min(wanted - hard, len(strata["easy"]))
        drawn["hard"] = wanted - drawn["easy"]
    shown = {name: count for name, count in drawn.items() if count}
    even = sum(shown.values()) / max(sum(len(strata[name]) for name in shown), 1)

    def negatives(name: str) -> float:
        return sum(float(own[i]) for one in strata[name] for i in one.ravel() if labels[i] == 0)

    everything = negatives("storm") + sum(negatives(name) for name in shown)
    # In an epoch each drawn block counts even / rate as much, and is there at that rate.
    epoch = negatives("storm") + sum(negatives(name) * even for name in shown)
    complete = len(strata["storm"]) + wanted == len(blocks)
    expected = 0 if complete else np.log(everything / epoch)
    assert data.prior_offset == pytest.approx(expected, abs=1e-6)
    # And in truth: the odds among what is handed out, over many epochs.
    if data.prior_offset > 0.05 and seed == 0:
        odds = []
        for epoch in range(60):
            data.take_up(epoch)
            handed = [data[i][1:] for i in range(len(data))]
            positive = sum((y[..., 0] * w).sum() for y, w in handed)
            odds.append(sum(w.sum() for _, w in handed) / positive - 1)
        known = own * (labels != -1)
        counts = np.bincount(rows.ravel(), minlength=n) * known
        all_odds = counts.sum() / counts[labels == 1].sum() - 1
        if share is None:  # else a stratum may be left out of the count
            assert data.prior_offset == pytest.approx(np.log(all_odds / np.mean(odds)), abs=0.15)


def test_blocks_with_a_medicane_are_always_shown_and_others_drawn_anew():
    n = 600
    maps, labels = numbered(n), label_pattern(n)
    labels[300:305] = 1
    data = batches(maps=maps, labels=labels, block=6, negatives_per_positive=2.0)
    rows = windows(maps["time"].values, length=LENGTH, step_hours=6)
    number = np.arange(len(rows)) // 6
    with_storm = {b for b in number if (labels[rows[number == b]] == 1).any()}
    drawn = []
    for epoch in range(3):
        shown = data.order(epoch)
        assert len(shown) == len(set(shown.tolist()))
        assert with_storm <= set(number[shown])
        drawn.append(set(number[shown]) - with_storm)
        assert len(drawn[-1]) == 2 * len(with_storm)
        assert abs(len(shown) - data.n_windows) <= 6
    assert drawn[0] != drawn[1] != drawn[2]


def test_hard_blocks_count_less_as_they_are_drawn_more():
    n = 600
    maps, labels = numbered(n), label_pattern(n)
    deep = np.zeros(n, bool)
    deep[[100, 250, 400]] = True
    data = batches(
        maps=maps, labels=labels, block=6, negatives_per_positive=1.0, hard=deep, hard_share=0.5
    )
    weights = {True: set(), False: set()}
    for i in range(len(data)):
        handed, answers, weight = data[i]
        for rows, label, counts in zip(times_of(handed), answers, weight, strict=True):
            if not label.any():
                weights[bool(deep[rows].any())].add(round(float(counts.max()), 4))
    assert len(weights[True]) == len(weights[False]) == 1
    assert weights[True].pop() < 1 < weights[False].pop()


@pytest.mark.parametrize(
    "options",
    [
        {"shuffled_order": True},
        {"previous_label": lambda epoch: 1.0},
        {"rows": RandomRuns((np.arange(N),), length=LENGTH)},
    ],
)
def test_what_blocks_cannot_be_combined_with(options):
    with pytest.raises(InputError, match=r"train.block: must be 1 for random runs, maps in shuff"):
        batches(block=4, **options)
    assert batches(block=1, **options)[0]


def test_there_is_no_block_of_nothing():
    with pytest.raises(InputError, match=r"train.block: must be at least 1; found 0"):
        batches(block=0)


@pytest.mark.parametrize(
    ("rows", "law"),
    [
        ([[0, 1, 2], [1, 2, 4]], r"must be rows of maps that follow one another; found \[1 2 4\]"),
        ([[1, 2, 3], [0, 1, 2]], "must be in order of time, none twice"),
        ([[1, 2, 3], [1, 2, 3]], "must be in order of time, none twice"),
    ],
)
def test_windows_follow_the_record(rows, law):
    with pytest.raises(InputError, match=law):
        batches(rows=np.array(rows))


# --- taken up in the course of an epoch -----------------------------------------------------------


def summing_model(block: int) -> keras.Model:
    """One weight on the mean of each map; of blocks, its windows of ten maps."""
    maps = keras.Input((None, 4, 5, 3))
    found = keras.ops.mean(maps, axis=(2, 3, 4))[..., None] / 80_000.0
    if block > 1:
        found = keras.ops.stack([found[:, i : i + LENGTH] for i in range(block)], axis=1)
    model = keras.Model(maps, keras.layers.Dense(1, kernel_initializer="ones")(found))
    model.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9), loss="mse")
    return model


@pytest.mark.timeout(120)
@pytest.mark.parametrize("memory", [0, 10**9])
@pytest.mark.parametrize(("block", "workers"), [(1, 1), (1, 2), (6, 1), (6, 2)])
def test_a_fit_cut_in_the_course_of_an_epoch_goes_on_as_if_nothing_had_been(block, workers, memory):
    options: dict[str, Any] = {
        "block": block,
        "workers": workers,
        "memory": memory,
        "seed": 3,
        "batch_size": 4,
        "negatives_per_positive": 1.5,
    }
    whole = summing_model(block)
    whole.fit(batches(**options), epochs=3, shuffle=False, verbose=0)

    data, cut = batches(**options), summing_model(block)
    for epoch, stop in ((0, len(data)), (1, 2)):  # the second epoch is cut after two batches
        data.take_up(epoch)
        for index in range(stop):
            cut.train_on_batch(*data[index])
    again = batches(**options)
    again.take_up(1, 2)
    assert len(again) == len(data) - 2
    cut.fit(again, initial_epoch=1, epochs=2, shuffle=False, verbose=0)
    assert again.epoch == 2
    assert len(again) == len(data)
    cut.fit(again, initial_epoch=2, epochs=3, shuffle=False, verbose=0)
    assert again.epoch == 3
    for one, two in zip(whole.get_weights(), cut.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_the_rest_of_an_epoch_is_a_fit_of_its_own():
    data = batches()
    data.take_up(0, 2)
    with pytest.raises(RuntimeError, match="the rest of an epoch that was taken up must be a fit"):
        summing_model(1).fit(data, epochs=2, shuffle=False, verbose=0)


def test_there_is_no_batch_after_the_last_to_take_up():
    data = batches()
    for batch in (-1, len(data)):
        with pytest.raises(IndexError, match=f"batch {batch} of {len(data)}"):
            data.take_up(0, batch)
