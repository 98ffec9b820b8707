"""Plans: runs of many lengths, shorter pieces, the shuffled control, the label before."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.batches import RandomRuns, SequenceBatches
from medicane.batches.epochs import Part, pieces_of, previous_labels
from medicane.errors import InputError
from tests.test_batches import LENGTH, N, batches, label_pattern, numbered, times_of

RUNS = (np.arange(0, 7), np.arange(7, 52), np.arange(52, 80))


def run_batches(**options) -> SequenceBatches:
    runs = options.pop("runs", RandomRuns(RUNS, length=LENGTH))
    return batches(rows=runs, **options)


# --- random runs ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 400),
    length=st.integers(10, 15),
    shortest=st.integers(3, 10),
    seed=st.integers(0, 3),
)
def test_a_run_is_cut_whole_into_lengths_within_bounds(n, length, shortest, seed):
    run = np.arange(100, 100 + max(n, shortest))
    cut = RandomRuns((run,), length=length, shortest=shortest).cut(np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate(cut)), run)
    for piece in cut:
        assert shortest <= len(piece) <= 3 * length
        assert (np.diff(piece) == 1).all()


def test_lengths_vary_from_the_shortest_to_three_windows():
    cut = RandomRuns((np.arange(5000),), length=12).cut(np.random.default_rng(0))
    lengths = {len(piece) for piece in cut}
    assert min(lengths) == 10
    assert max(lengths) == 36
    assert len(lengths) > 20


def test_an_epoch_shows_every_map_of_the_runs_as_often_as_asked():
    for passes in (1, 3):
        runs = RandomRuns(RUNS, length=LENGTH, maps_per_epoch=73 * passes + 5)
        data = run_batches(runs=runs, batch_size=4)
        shown = np.zeros(N, int)
        for i in range(len(data)):
            maps, _, _ = data[i]
            part = data._current(0)[i]
            np.add.at(shown, times_of(maps)[part.shown > 0], 1)
        assert (shown[:7] == 0).all()  # a run shorter than the shortest sequence
        assert (shown[7:] == passes).all()


def test_what_fills_up_is_the_last_map_again_without_weight():
    data = run_batches(batch_size=5, runs=RandomRuns(RUNS, length=LENGTH, maps_per_epoch=300))
    filled = 0
    for i in range(len(data)):
        maps, labels, weights = data[i]
        times = times_of(maps)
        shown = data._current(0)[i].shown > 0
        for row in range(len(times)):
            count = int(shown[row].sum())
            assert count >= 10
            assert shown[row, :count].all()
            assert (np.diff(times[row, :count]) == 1).all()
            assert (times[row, count:] == times[row, count - 1]).all()
            known = label_pattern()[times[row]] != -1
            np.testing.assert_array_equal(weights[row] > 0, shown[row] & known)
            np.testing.assert_array_equal(labels[row, :, 0], label_pattern()[times[row]] == 1)
            filled += len(times[row]) - count
    assert filled > 0


def test_batches_hold_about_equally_many_maps():
    runs = RandomRuns((np.arange(3000),), length=12, maps_per_epoch=18_000)
    maps = numbered(3000)
    data = SequenceBatches(maps, runs, labels=np.zeros(3000), batch_size=16, seed=1)
    parts = data._current(0)
    assert len(parts) == len(data) == 18_000 // (16 * 12)
    held = np.array([(part.shown > 0).sum() for part in parts])
    assert held.sum() == 18_000
    assert held.min() > 0.7 * 192
    assert held.max() < 1.3 * 192
    # Sequences of like length share a batch: little is filled up.
    assert sum(part.rows.size for part in parts) < 1.15 * 18_000


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
def test_every_batch_holds_something_and_the_first_two_differ_in_length(batch_size):
    data = run_batches(batch_size=batch_size)
    for epoch in range(6):
        data.take_up(epoch)
        parts = data._current(epoch)
        assert len(parts) == len(data)
        assert all(part.rows.shape[0] > 0 for part in parts)
        if len(parts) == 1:
            assert parts[0].rows.shape[1] == 3 * LENGTH
        else:
            assert parts[0].rows.shape[1] != parts[1].rows.shape[1]


def test_runs_follow_from_seed_and_epoch_alone():
    a, b, c = (run_batches(batch_size=4, seed=s, workers=k) for s, k in ((1, 1), (1, 2), (2, 1)))
    for data in (a, b, c):
        data.take_up(2)
    np.testing.assert_array_equal(a[0][0], b[0][0])
    assert a[0][0].shape != c[0][0].shape or (a[0][0] != c[0][0]).any()
    first = times_of(a[0][0])
    a.take_up(3)
    assert first.shape != times_of(a[0][0]).shape or (first != times_of(a[0][0])).any()


def test_runs_are_sampled_like_windows():
    runs = RandomRuns((np.arange(N),), length=LENGTH, maps_per_epoch=20 * N)
    data = run_batches(runs=runs, negatives_per_positive=0.5, batch_size=4)
    shown = [sum((p.shown > 0).sum() for p in data._plan.parts(e)) for e in range(4)]
    assert np.mean(shown) == pytest.approx(20 * N, rel=0.3)  # sampled, runs are cut more often
    odds = []
    for epoch in range(40):
        parts = data._plan.parts(epoch)
        rows = np.concatenate([p.rows[p.shown > 0] for p in parts])
        odds.append((label_pattern()[rows] == 0).sum() / (label_pattern()[rows] == 1).sum())
    everything = (label_pattern() == 0).sum() / (label_pattern() == 1).sum()
    assert data.prior_offset == pytest.approx(np.log(everything / np.mean(odds)), abs=0.1)
    assert data.prior_offset > 0.2


def test_runs_can_be_hard_too():
    deep = np.zeros(N, bool)
    deep[60:] = True
    runs = RandomRuns((np.arange(N),), length=LENGTH, maps_per_epoch=20 * N)
    share = {}
    for wanted in (0.1, 0.9):
        data = run_batches(
            runs=runs, negatives_per_positive=0.5, hard=deep, hard_share=wanted, batch_size=4
        )
        rows = np.concatenate([p.rows[p.shown > 0] for p in data._plan.parts(0)])
        share[wanted] = deep[rows].mean()
    assert share[0.9] > 2 * share[0.1]


def test_runs_have_no_order_of_windows_to_ask_for():
    with pytest.raises(TypeError, match="random runs"):
        run_batches().order(0)


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"runs": (np.arange(9),), "length": 12}, "runs: at least one must hold 10 maps"),
        ({"runs": (), "length": 12}, "runs: at least one must hold 10 maps; found at most 0"),
        ({"runs": (np.arange(90),), "length": 9}, r"shortest: must be 1 to length \(9\); found 10"),
    ],
)
def test_runs_that_are_refused(options, law):
    with pytest.raises(InputError, match=law):
        RandomRuns(**options)


@pytest.mark.timeout(120)
def test_keras_fits_runs_of_many_lengths_for_several_epochs():
    data = run_batches(
        batch_size=3, runs=RandomRuns(RUNS, length=LENGTH, maps_per_epoch=300), shuffled_order=True
    )
    inputs = keras.Input((None, 4, 5, 3))
    pooled = keras.ops.mean(inputs, axis=(2, 3, 4), keepdims=False)[..., None] / 80_000.0
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    model.compile(optimizer="sgd", loss="mse")
    history = model.fit(data, epochs=3, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert data.epoch == 3


# --- shorter pieces -------------------------------------------------------------------------------


@given(length=st.integers(10, 15), piece=st.integers(1, 15), n=st.integers(1, 4))
def test_pieces_hold_every_map_of_a_window_once(length, piece, n):
    piece = min(piece, length)
    rows = np.arange(n * length).reshape(n, length) * 3
    shown = np.full((n, length), 0.5, np.float32)
    cut = pieces_of(Part(rows, shown, np.arange(n)), piece)
    assert cut.rows.shape == cut.shown.shape == (n * -(-length // piece), piece)
    assert (np.diff(cut.rows, axis=1) == 3).all()
    counted = cut.rows[cut.shown > 0]
    np.testing.assert_array_equal(np.sort(counted), rows.ravel())
    assert cut.shown.sum() == pytest.approx(shown.sum())
    # A map that is there again comes first: history for those after it.
    for row in cut.shown:
        assert (np.diff((row > 0).astype(int)) >= 0).all()


def test_a_batch_of_pieces_shows_the_maps_of_the_batch():
    whole, cut = batches(batch_size=4, seed=2), batches(batch_size=4, seed=2)
    cut.piece_length = 5
    for i in (0, 3):
        maps, labels, weights = whole[i]
        short, short_labels, short_weights = cut[i]
        assert short.shape == (8, 5, *maps.shape[2:])
        np.testing.assert_array_equal(short.reshape(maps.shape), maps)
        np.testing.assert_array_equal(short_labels.reshape(labels.shape), labels)
        np.testing.assert_array_equal(short_weights.reshape(weights.shape), weights)
    assert len(cut) == len(whole)
    assert cut.prior_offset == whole.prior_offset


# --- the shuffled control -------------------------------------------------------------------------


def test_shuffled_order_permutes_maps_labels_and_weights_together():
    ordered = batches(batch_size=6, seed=2, weights=np.linspace(1, 2, N))
    shuffled = batches(batch_size=6, seed=2, weights=np.linspace(1, 2, N), shuffled_order=True)
    moved = 0
    for i in range(len(ordered)):
        maps, _, _ = ordered[i]
        mixed, labels, weights = shuffled[i]
        times = times_of(mixed)
        np.testing.assert_array_equal(np.sort(times, axis=1), times_of(maps))
        pattern = label_pattern()[times]
        np.testing.assert_array_equal(labels[..., 0], pattern == 1)
        np.testing.assert_allclose(weights, np.linspace(1, 2, N)[times] * (pattern != -1), 1e-6)
        moved += (times != times_of(maps)).sum()
    assert moved > 0.8 * 71 * LENGTH  # a random order leaves one map in ten where it was


def test_shuffled_order_is_new_each_epoch_and_the_same_for_one_seed():
    a, b = (batches(batch_size=71, seed=4, shuffled_order=True, shuffle=False) for _ in range(2))
    np.testing.assert_array_equal(a[0][0], b[0][0])
    before = times_of(a[0][0])
    a.take_up(1)
    after = times_of(a[0][0])
    assert (before != after).mean() > 0.8
    # Each window has an order of its own.
    places = before - before.min(axis=1, keepdims=True)
    assert len({tuple(row) for row in places}) == 71


def test_shuffled_runs_keep_their_filling_at_the_end():
    runs = RandomRuns(RUNS, length=LENGTH, maps_per_epoch=300)
    data = run_batches(batch_size=5, runs=runs, shuffled_order=True)
    for i in range(len(data)):
        times, shown = times_of(data[i][0]), data._current(0)[i].shown > 0
        for row, told in zip(times, shown, strict=True):
            count = int(told.sum())
            assert len(set(row[:count])) == count == np.ptp(row[:count]) + 1
            assert (row[count:] == row[count - 1]).all()


# --- the label of the map before ------------------------------------------------------------------


def test_the_true_label_of_the_map_before_is_told():
    data = batches(batch_size=71, shuffle=False, previous_label=lambda epoch: 1.0)
    inputs, labels, weights = data[0]
    assert set(inputs) == {"maps", "previous"}
    np.testing.assert_array_equal(inputs["maps"], batches(batch_size=71, shuffle=False)[0][0])
    previous = inputs["previous"]
    assert previous.shape == labels.shape
    assert previous.dtype == np.float32
    np.testing.assert_array_equal(previous[:, 0], 0)
    known = weights[:, :-1] > 0
    np.testing.assert_array_equal(previous[:, 1:, 0][known], labels[:, :-1, 0][known])
    assert np.isnan(previous[:, 1:, 0][~known]).all()


def test_less_and_less_of_it_is_told():
    data = batches(batch_size=71, previous_label=lambda epoch: 1 - epoch / 4)
    told = []
    for epoch in range(5):
        data.take_up(epoch)
        inputs, _, weights = data[0]
        known = weights[:, :-1] > 0
        told.append(np.isfinite(inputs["previous"][:, 1:, 0][known]).mean())
        assert (inputs["previous"][:, 0] == 0).all()
    np.testing.assert_allclose(told, [1, 0.75, 0.5, 0.25, 0], atol=0.06)
    assert told[0] == 1
    assert told[-1] == 0


def test_what_is_told_follows_from_the_seed():
    def drawn(seed: int, index: int) -> np.ndarray:
        data = batches(batch_size=20, shuffle=False, seed=seed, previous_label=lambda epoch: 0.5)
        return np.isnan(data[index][0]["previous"])

    np.testing.assert_array_equal(drawn(1, 0), drawn(1, 0))
    assert (drawn(1, 0) != drawn(2, 0)).any()
    assert (drawn(1, 0) != drawn(1, 1)).any()


def test_the_label_before_in_a_shuffled_sequence_is_that_of_the_map_shown_before():
    positive = np.arange(20) % 2 == 1
    rows = np.array([[3, 8, 5, 6]])
    found = previous_labels(
        positive, np.ones(20, bool), rows, share=1.0, rng=np.random.default_rng(0)
    )
    assert found[0, :, 0].tolist() == [0, 1, 0, 1]
