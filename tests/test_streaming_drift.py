"""The report of drift: right by brute force, and on heads whose memory is known by formula."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import average_precision_score

from medicane import model as detector
from medicane import names
from medicane.errors import InputError
from medicane.predict import predict
from medicane.streaming import carried_drift
from tests.small_networks import VARIANTS, build
from tests.test_streaming import STEP, every_step, series

#: Windows of 10 maps; the training's longest sequence, and how many of them the state is carried.
LENGTH, LONGEST, LENGTHS = 10, 12, 4
YOUNG = (LENGTHS - 1) * LONGEST


def store(n: int = 90, *, gap: int | None = 45, seed: int = 0) -> xr.Dataset:
    """Maps, four storms of four maps and an unknown one in between; a gap before map `gap`."""
    times = every_step(n)
    if gap is not None:
        times[gap:] += 40 * STEP
    medicane, storm = np.zeros(n, np.int8), np.full(n, "", dtype="<U2")
    for number, start in enumerate(range(4, n - 6, max(n // 7, 6))):
        medicane[start : start + 4], storm[start : start + 4] = 1, f"s{number}"
    medicane[26::20] = names.UNKNOWN
    return xr.Dataset(
        {
            "maps": series(times, seed=seed),
            "medicane": ("time", medicane),
            "storm": ("time", storm),
        }
    )


@pytest.fixture(scope="module")
def gru() -> keras.Model:
    return build(facts={"longest_sequence": LONGEST})


def fixed(update: float, candidate: float | None, *, scale: float = 3.0) -> keras.Model:
    """A GRU whose update gate is `update`, whatever the maps and the state are.

    Its candidate state is `candidate`, or a function of the map alone where that is None.
    """
    model = build(facts={"longest_sequence": LONGEST})
    layer = detector.head_of(model).get_layer("gru")
    units = layer.units
    kernel, recurrent, bias = (np.array(w) for w in layer.get_weights())
    kernel[:, : 2 * units] = 0
    recurrent[:] = 0
    bias[:] = 0
    bias[0, :units] = np.log(update / (1 - update)) if update > 0 else -100
    if candidate is not None:
        kernel[:] = 0
        bias[0, 2 * units :] = np.arctanh(candidate)
    layer.set_weights([kernel, recurrent, bias])
    logit = detector.head_of(model).get_layer("logit")
    logit.set_weights([np.full((units, 1), scale / units), np.array([-1.0])])
    return model


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


@pytest.mark.slow
def test_it_is_what_brute_force_finds(gru: keras.Model) -> None:
    """Each map, read at the end of every sequence that begins at a multiple of the length."""
    data = store()
    found = carried_drift(gru, data, lengths=LENGTHS, block=7, n_resamples=50)
    windowed, aged, labels = [], [], []
    for start, stop in ((0, 45), (45, 90)):
        period = data.isel(time=slice(start, stop))
        values = period["maps"].transpose("time", "latitude", "longitude", "channel").values
        windowed.append(predict(gru, period["maps"], allow_short=True)["probability"][YOUNG:])
        labels.append(period["medicane"].values[YOUNG:])
        for at in range(YOUNG, stop - start):
            last = at // LONGEST * LONGEST
            starts = [last - age * LONGEST for age in range(LENGTHS)]
            aged.append(
                [
                    np.asarray(gru(values[None, s : at + 1], training=False))[0, -1, 0]
                    for s in starts
                ]
            )
    p, q, y = np.array(aged), np.concatenate(windowed), np.concatenate(labels)
    assert len(p) == 18  # nine maps of each period have all ages
    known = y != names.UNKNOWN
    assert found[["maps_from", "maps_to"]].values.tolist() == [[1, 12], [13, 24], [25, 48]]
    assert set(found["n_maps"]) == {known.sum()} == {17}
    assert set(found["n_medicanes"]) == {(y == 1).sum()}
    reference = average_precision_score(y[known] == 1, q[known])
    for row, ages in zip(found.itertuples(), ([0], [1], [2, 3]), strict=True):
        own, beside = p[:, ages], q[:, None]
        assert row.mean_difference == pytest.approx(np.abs(own - beside).mean(), abs=1e-6)
        assert row.largest_difference == pytest.approx(np.abs(own - beside).max(), abs=1e-6)
        assert row.auc_pr_windowed == pytest.approx(reference)
        truth = np.repeat(y[known] == 1, len(ages))
        carried = average_precision_score(truth, own[known].reshape(-1))
        assert row.auc_pr_carried == pytest.approx(carried)
        assert row.auc_pr_difference == pytest.approx(carried - reference)
    assert (found["mean_difference"] > 1e-4).all()


def test_rows_double_and_hold_all_their_ages(gru: keras.Model) -> None:
    """Of six lengths: 1, 2, 3 and 4, 5 and 6; each row pools its ages on the same maps."""
    data = store(110, gap=None)
    found = carried_drift(gru, data, lengths=6, n_resamples=200)
    assert found[["maps_from", "maps_to"]].values.tolist() == [
        [1, 12],
        [13, 24],
        [25, 48],
        [49, 72],
    ]
    assert found["n_maps"].nunique() == found["auc_pr_windowed"].nunique() == 1
    with_three = carried_drift(gru, data.isel(time=slice(36, None)), lengths=3, n_resamples=200)
    # The same maps, ages and labels, seen from a later start.
    shared = ["maps_from", "n_maps", "mean_difference", "auc_pr_carried", "low", "high"]
    np.testing.assert_allclose(found[shared][:2], with_three[shared][:2], rtol=1e-5, atol=1e-7)
    assert (found["low"] <= found["auc_pr_difference"] + 1e-9).all()
    assert (found["auc_pr_difference"] <= found["high"] + 1e-9).all()


def test_a_head_without_memory_does_not_drift() -> None:
    found = carried_drift(fixed(0, None), store(), lengths=LENGTHS, n_resamples=20)
    assert found["largest_difference"].max() < 1e-6
    np.testing.assert_allclose(found["auc_pr_carried"], found["auc_pr_windowed"])
    assert found[["auc_pr_difference", "low", "high"]].abs().max().max() < 1e-12


def test_a_head_that_only_counts_drifts_as_its_formula_says() -> None:
    """h = 1 - u^m after m maps, whatever they show: its probability grows with the age."""
    update, candidate, scale = 0.95, 0.9, 4.0
    model = fixed(update, candidate, scale=scale)
    found = carried_drift(model, store(gap=None), lengths=3, n_resamples=20)
    n = 90 - 2 * LONGEST
    position = np.arange(n) % LONGEST

    def probability(maps: Any) -> Any:
        return sigmoid(scale * candidate * (1 - update**maps) - 1)

    window = probability(LENGTH)
    for row in found.itertuples():
        apart = np.abs(probability(row.Index * LONGEST + position + 1) - window)
        assert row.mean_difference == pytest.approx(apart.mean(), rel=1e-3)
        assert row.largest_difference == pytest.approx(apart.max(), rel=1e-3)
    assert found["mean_difference"].iloc[-1] > found["mean_difference"].iloc[1] > 0.1
    # Windows all give one number, which ranks nothing: the base rate. So do equal ages.
    assert found["auc_pr_windowed"].iloc[0] == pytest.approx(
        found["n_medicanes"].iloc[0] / found["n_maps"].iloc[0]
    )


@pytest.mark.parametrize("name", ["lstm", "feedback_gru"])
def test_it_need_not_be_trained_for_it(name: str) -> None:
    """What it costs is what the table shows: then the training was on windows of ten maps."""
    found = carried_drift(build(**VARIANTS[name]), store(), lengths=2, n_resamples=20)
    assert found[["maps_from", "maps_to"]].values.tolist() == [[1, 10], [11, 20]]
    assert np.isfinite(found["mean_difference"]).all()


def test_each_map_is_encoded_once_by_the_runtime_that_is_given(gru: keras.Model) -> None:
    encoder, seen = detector.encoder_of(gru), []

    def encode(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return 2 * np.asarray(encoder(images, training=False))  # not what Keras would give

    data = store()
    found = carried_drift(gru, data, lengths=LENGTHS, encode=encode, n_resamples=20)
    assert sum(seen) == 90
    plain = carried_drift(gru, data, lengths=LENGTHS, n_resamples=20)
    assert np.abs(found["mean_difference"] - plain["mean_difference"]).min() > 1e-6


def test_without_medicanes_there_is_no_score(gru: keras.Model) -> None:
    data = store()
    data["medicane"][:] = 0
    found = carried_drift(gru, data.drop_vars("storm"), lengths=LENGTHS, n_resamples=20)
    assert (found["n_medicanes"] == 0).all()
    assert found[["auc_pr_windowed", "auc_pr_carried", "low", "high"]].isna().all().all()
    assert (found["mean_difference"] > 0).all()


def test_what_cannot_be_measured_is_refused(gru: keras.Model) -> None:
    data = store(48, gap=24)
    with pytest.raises(
        InputError,
        match="sea: a state carried over 3 times 12 maps needs more than 24 maps 6 h apart without "
        "a gap; found 24 at most",
    ):
        carried_drift(gru, data, lengths=3, where="sea")
    with pytest.raises(InputError, match="lengths: must be at least 1; found 0"):
        carried_drift(gru, data, lengths=0)
    with pytest.raises(InputError, match="a GRU or LSTM reads the maps in their order; found tcn"):
        carried_drift(build(rnn="tcn"), data)
