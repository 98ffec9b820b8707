"""Batches: the right maps with the right labels, each epoch its own order, no hanging worker."""

from __future__ import annotations

import os

import numpy as np
import pytest
import xarray as xr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.batches import SequenceBatches
from medicane.batches.dataset import MEMORY
from medicane.errors import InputError
from medicane.sequences import windows

N, CHANNELS, LAT, LON, LENGTH = 80, 3, 4, 5, 10


def numbered(n: int = N) -> xr.DataArray:
    """Maps whose every value tells its time, channel and cell."""
    parts = np.meshgrid(*(np.arange(k) for k in (n, CHANNELS, LAT, LON)), indexing="ij")
    values = sum(p * f for p, f in zip(parts, (1000, 100, 10, 1), strict=True)).astype(np.float32)
    times = np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    return xr.DataArray(
        values, dims=("time", "channel", "latitude", "longitude"), coords={"time": times}
    )


def rows_of(maps: xr.DataArray, length: int = LENGTH) -> np.ndarray:
    return windows(maps["time"].values, length=length, step_hours=6)


def label_pattern(n: int = N) -> np.ndarray:
    labels = np.zeros(n, np.int8)
    labels[20:24] = 1
    labels[24:27] = -1
    return labels


def batches(**options) -> SequenceBatches:
    maps = options.pop("maps", None)
    maps = numbered() if maps is None else maps
    labels = options.pop("labels", label_pattern(maps.sizes["time"]))
    rows = options.pop("rows", None)
    return SequenceBatches(maps, rows_of(maps) if rows is None else rows, labels=labels, **options)


def times_of(batch: np.ndarray) -> np.ndarray:
    """(batch, length) which map stands where, read off its first value."""
    return (batch[:, :, 0, 0, 0] // 1000).astype(int)


def first_maps(batch: np.ndarray) -> list[int]:
    """Which window each row of a batch is, read off its first value."""
    return (batch[:, 0, 0, 0, 0] // 1000).astype(int).tolist()


def test_shapes_types_and_values():
    maps, labels, weights = batches(batch_size=8)[0]
    assert maps.shape == (8, LENGTH, LAT, LON, CHANNELS)
    assert labels.shape == (8, LENGTH, 1)
    assert weights.shape == (8, LENGTH)
    assert maps.dtype == labels.dtype == weights.dtype == np.float32
    for row in maps:
        start = int(row[0, 0, 0, 0] // 1000)
        expected = numbered()[start : start + LENGTH].transpose(
            "time", "latitude", "longitude", ...
        )
        np.testing.assert_array_equal(row, expected)


def test_unknown_maps_have_no_weight_and_medicanes_have_their_label():
    one = batches(batch_size=100)
    maps, labels, weights = one[0]
    pattern = label_pattern()
    for start, label, weight in zip(first_maps(maps), labels, weights, strict=True):
        truth = pattern[start : start + LENGTH]
        np.testing.assert_array_equal(label[:, 0], truth == 1)
        np.testing.assert_array_equal(weight, truth != -1)


def test_own_weights_are_multiplied_in_and_unknown_stays_zero():
    own = np.linspace(0, 2, N)
    maps, _, weights = batches(batch_size=100, weights=own)[0]
    for start, weight in zip(first_maps(maps), weights, strict=True):
        known = label_pattern()[start : start + LENGTH] != -1
        np.testing.assert_allclose(weight, own[start : start + LENGTH] * known, rtol=1e-6)


def test_an_epoch_holds_every_window_once_and_the_next_in_another_order():
    data = batches(batch_size=7)
    epochs = []
    for _ in range(2):
        epochs.append([w for i in range(len(data)) for w in first_maps(data[i][0])])
        data.epoch += 1
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(N - LENGTH + 1))
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    assert len(data) == -(-71 // 7)


def test_the_seed_and_the_epoch_alone_decide():
    a, b, c = batches(seed=5), batches(seed=5, workers=2), batches(seed=6)
    a.epoch = b.epoch = c.epoch = 3
    assert first_maps(a[1][0]) == first_maps(b[1][0])
    assert first_maps(a[1][0]) != first_maps(c[1][0])
    b.epoch = 2
    b.on_epoch_end()  # of an epoch that never began: as `fit` does at its start
    assert b.epoch == 2
    b.on_epoch_begin()
    b.on_epoch_end()
    np.testing.assert_array_equal(a[0][0], b[0][0])


def test_without_shuffling_the_windows_come_in_time():
    data = batches(shuffle=False, batch_size=16)
    assert first_maps(data[0][0]) == list(range(16))


@settings(max_examples=15, deadline=None)
@given(ratio=st.floats(0.05, 20), seed=st.integers(0, 5))
def test_sampling_keeps_every_positive_window_and_draws_the_rest_anew(ratio, seed):
    data = batches(negatives_per_positive=ratio, seed=seed)
    pattern = label_pattern()
    positive = {s for s in range(71) if (pattern[s : s + LENGTH] == 1).any()}
    assert len(positive) == 13
    drawn = []
    for epoch in range(2):
        chosen = data.order(epoch)
        assert len(chosen) == len(set(chosen)) == data.n_windows
        assert positive <= set(chosen)
        drawn.append(set(chosen) - positive)
        assert len(drawn[-1]) == min(round(ratio * 13), 58)
    if 5 < len(drawn[0]) < 50:
        assert drawn[0] != drawn[1]


def test_the_prior_offset_is_the_shift_of_the_log_odds():
    data = batches(negatives_per_positive=1.0)
    pattern = label_pattern()[rows_of(numbered())]

    def odds(rows: np.ndarray) -> float:
        return (pattern[rows] == 1).sum() / (pattern[rows] == 0).sum()

    sampled = np.mean([1 / odds(data.order(e)) for e in range(400)])
    everything = odds(np.arange(71))
    assert data.prior_offset == pytest.approx(np.log(1 / sampled / everything), abs=0.01)
    assert data.prior_offset > 0.5
    assert batches().prior_offset == 0.0
    assert batches(negatives_per_positive=1e6).prior_offset == 0.0


@pytest.mark.parametrize("chunks", [None, {}])
def test_maps_are_read_from_disk_as_they_are_in_memory(tmp_path, chunks):
    maps = numbered()
    maps.to_dataset(name="maps").chunk(time=24).to_zarr(tmp_path / "maps.zarr", zarr_format=3)
    stored = xr.open_zarr(tmp_path / "maps.zarr", chunks=chunks)["maps"]
    for memory in (0, MEMORY):
        data = batches(maps=stored, batch_size=16, seed=1, memory=memory)
        np.testing.assert_array_equal(data[2][0], batches(batch_size=16, seed=1)[2][0])


class Recorder(keras.layers.Layer):
    """Passes the mean of each map on, so that a fit is quick."""

    def call(self, x):
        return keras.ops.mean(x, axis=(2, 3, 4), keepdims=False)[..., None] / 80_000.0


def tiny_model() -> keras.Model:
    inputs = keras.Input((LENGTH, LAT, LON, CHANNELS))
    model = keras.Model(inputs, keras.layers.Dense(1)(Recorder()(inputs)))
    keras.utils.set_random_seed(3)
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 0.1))
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    return model


@pytest.mark.timeout(120)
@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_fitting_with_two_workers_ends_and_equals_one(memory):
    weights = {}
    for workers in (1, 2):
        data = batches(
            batch_size=8, workers=workers, memory=memory, seed=2, negatives_per_positive=2
        )
        model = tiny_model()
        model.fit(data, epochs=3, shuffle=False, verbose=0)
        weights[workers] = [np.asarray(w) for w in model.get_weights()]
        assert data.epoch == 3
    for one, two in zip(weights[1], weights[2], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.timeout(120)
def test_fitting_sees_each_epoch_in_its_own_order():
    data = batches(batch_size=8, seed=4)
    by_keras = tiny_model()
    by_keras.fit(data, epochs=2, shuffle=False, verbose=0)
    by_hand = tiny_model()
    again = batches(batch_size=8, seed=4)
    for epoch in range(2):
        again.epoch = epoch
        for i in range(len(again)):
            by_hand.train_on_batch(*again[i])
    for one, two in zip(by_keras.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ({"labels": np.zeros(79)}, r"labels: must have one value for each of 80 maps"),
        ({"labels": np.full(80, 2)}, r"labels: must be 1, 0 or -1 \(unknown\); found 2"),
        ({"weights": np.full(80, -1.0)}, r"weights: must be 80 finite values of at least 0"),
        ({"batch_size": 0}, r"train.batch_size: must be at least 1; found 0"),
        (
            {"labels": np.zeros(80), "negatives_per_positive": 3},
            r"negatives_per_positive: needs at least one sequence with a medicane; found none",
        ),
    ],
)
def test_what_is_refused(fault, law):
    with pytest.raises(InputError, match=law):
        batches(**fault)


@pytest.mark.parametrize("rows", [np.empty((0, 10)), np.arange(10), np.array([[75, 80]])])
def test_windows_must_index_the_maps(rows):
    with pytest.raises(InputError, match="windows: must"):
        SequenceBatches(numbered(), rows, labels=label_pattern())


def test_past_the_end_is_an_index_error():
    data = batches()
    with pytest.raises(IndexError):
        data[len(data)]
