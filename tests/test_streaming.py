"""One map at a time: the labels of one call, however the series comes in and whatever breaks it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cftime
import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medicane import model as detector
from medicane.errors import InputError
from medicane.predict import predict
from medicane.streaming import LabelledMap, StreamingDetector
from tests.conftest import ROOT
from tests.small_networks import CHANNELS, VARIANTS, build, standard_maps

LENGTH, STEP = 10, np.timedelta64(6, "h")
START = np.datetime64("2020-01-01T00", "ns")
SHAPE = (8, 9)


def series(times: Any, *, seed: int = 0, shape: tuple[int, int] = SHAPE) -> xr.DataArray:
    values = np.moveaxis(standard_maps(len(times), *shape, seed=seed), -1, 1)
    return xr.DataArray(
        values,
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": times,
            "channel": list(CHANNELS),
            "latitude": 40 - 0.5 * np.arange(shape[0]),
            "longitude": 10 + 0.5 * np.arange(shape[1]),
        },
    )


def every_step(n: int) -> np.ndarray:
    return START + STEP * np.arange(n)


def labels(found: Sequence[LabelledMap]) -> np.ndarray:
    """(map, logit and probability and error of reconstruction)."""
    return np.array([(one.logit, one.probability, one.reconstruction_error) for one in found])


NETWORKS = ("gru", "lstm", "single_map", "tcn", "bidirectional", "feedback_gru", "c3d", "ensemble")
CARRIED = ("gru", "feedback_lstm", "ensemble_of_states")


@pytest.fixture(scope="module")
def networks() -> Callable[[str], keras.Model]:
    """Networks by name, each made once; they are trained on sequences of up to 30 maps."""
    made: dict[str, keras.Model] = {}

    def network(name: str) -> keras.Model:
        if name not in made:
            facts = {"longest_sequence": 30}
            if name == "ensemble":  # its encoder reads several maps, its head looks ahead
                parts = [network("c3d"), network("bidirectional")]
                made[name] = detector.ensemble_of(parts)
            elif name == "ensemble_of_states":
                made[name] = detector.ensemble_of([network("gru"), network("lstm")])
            else:
                made[name] = build(facts=facts, **VARIANTS[name])
        return made[name]

    return network


@pytest.fixture(scope="module")
def gru(networks: Callable[[str], keras.Model]) -> keras.Model:
    return networks("gru")


# The labels of one call --------------------------------------------------------------------------

#: Hours to the next map: mostly one step; less and more than that, and a whole number of steps.
spacings = st.lists(st.sampled_from([6] * 12 + [12, 3, 60]), min_size=0, max_size=30)


def irregular(hours: Sequence[int]) -> np.ndarray:
    return START + np.cumsum([0, *hours]).astype("timedelta64[h]")


@pytest.mark.parametrize("name", NETWORKS)
@given(hours=spacings, data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_streaming_is_the_batch_form(
    networks: Callable[[str], keras.Model],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    hours: list[int],
    data: st.DataObject,
) -> None:
    """Gaps anywhere, and a new process between any two maps: the labels are those of one call."""
    maps = series(irregular(hours), seed=len(hours))
    breaks = data.draw(st.sets(st.integers(0, len(hours))), label="new process before map")
    state = tmp_path_factory.mktemp("state") / "state.npz"
    whole, parted = StreamingDetector(networks(name)), StreamingDetector(networks(name))
    found, in_parts = [], []
    for number, new in enumerate(maps):
        if number in breaks:
            parted.save(state)
            parted = StreamingDetector(networks(name))
            parted.restore(state)
        found.append(whole.label(new))
        in_parts.append(parted.label(new))
    np.testing.assert_array_equal(labels(in_parts), labels(found))  # to the bit
    assert [one.begins_anew for one in in_parts] == [one.begins_anew for one in found]
    expected = predict(networks(name), maps, mode="causal", allow_short=True)
    np.testing.assert_allclose(labels(found)[:, 0], expected["logit"], atol=1e-5)
    np.testing.assert_allclose(labels(found)[:, 1], expected["probability"], atol=1e-6)
    assert [one.n_sequences for one in found] == expected["n_sequences"].values.tolist()
    assert [one.time for one in found] == list(maps["time"].values)
    anew = np.array([True, *(spacing != 6 for spacing in hours)])
    np.testing.assert_array_equal([one.begins_anew for one in found], anew)


@pytest.fixture(scope="module")
def carrying(
    networks: Callable[[str], keras.Model], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[StreamingDetector]]:
    """Three detectors that carry the state of a network; as new each time, but not traced anew."""
    made: dict[str, list[StreamingDetector]] = {}
    nothing = tmp_path_factory.mktemp("nothing")

    def detectors(name: str) -> list[StreamingDetector]:
        if name not in made:
            made[name] = [StreamingDetector(networks(name), carry_state=True) for _ in range(3)]
            made[name][0].save(nothing / name)
        for stream in made[name]:
            stream.restore(nothing / name)
        return made[name]

    return detectors


@pytest.mark.parametrize("name", CARRIED)
@given(hours=spacings, data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_carried_state_reads_each_period_in_one_go(
    networks: Callable[[str], keras.Model],
    carrying: Callable[[str], list[StreamingDetector]],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    hours: list[int],
    data: st.DataObject,
) -> None:
    maps = series(irregular(hours), seed=len(hours))
    breaks = data.draw(st.sets(st.integers(0, len(hours))), label="goes on elsewhere before map")
    state = tmp_path_factory.mktemp("state") / "state.npz"
    whole, parted, other = carrying(name)
    found, in_parts = [], []
    for number, new in enumerate(maps):
        if number in breaks:
            parted.save(state)
            parted, other = other, parted
            parted.restore(state)
        found.append(whole.label(new))
        in_parts.append(parted.label(new))
    np.testing.assert_array_equal(labels(in_parts), labels(found))
    values = maps.transpose("time", "latitude", "longitude", "channel").values
    starts = [0, *(1 + i for i, spacing in enumerate(hours) if spacing != 6)]
    expected = [
        np.asarray(networks(name)(piece[None], training=False))[0, :, 0]
        for piece in np.split(values, starts[1:])
    ]
    np.testing.assert_allclose(labels(found)[:, 1], np.concatenate(expected), atol=1e-6)
    since = [one.maps_since_reset for one in found]
    assert since == [1 + i - max(s for s in starts if s <= i) for i in range(len(found))]


def test_carried_and_windowed_are_the_same_up_to_a_window_and_then_part(gru: keras.Model) -> None:
    windowed, carried = StreamingDetector(gru), StreamingDetector(gru, carry_state=True)
    both = [(windowed.label(m).logit, carried.label(m).logit) for m in series(every_step(25))]
    apart = np.abs(np.diff(both, axis=1))[:, 0]
    assert apart[:LENGTH].max() < 1e-5
    assert apart[LENGTH:].max() > 1e-4


@pytest.mark.parametrize("name", ["gru", "c3d"])
def test_the_encoder_runs_where_it_is_told(
    networks: Callable[[str], keras.Model], name: str
) -> None:
    """One map at a time, or as many as it reaches back to; the labels are of what it gives."""
    encoder = detector.encoder_of(networks(name))
    given: list[tuple[int, ...]] = []

    def encode(maps: np.ndarray) -> np.ndarray:
        given.append(maps.shape)
        return 2 * np.asarray(encoder(maps, training=False))  # not what Keras would give

    maps = series(every_step(12))
    stream = StreamingDetector(networks(name), encode=encode)
    found = labels([stream.label(new) for new in maps])[:, 0]
    reach = detector.temporal_reach(networks(name))
    told = (
        [(1, *SHAPE, 3)] * 12
        if reach == 1
        else [(1, min(n, reach), *SHAPE, 3) for n in range(1, 13)]
    )
    assert given == told
    expected = predict(networks(name), maps, allow_short=True, encode=encode)["logit"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - predict(networks(name), maps, allow_short=True)["logit"]).min() > 1e-4


def test_it_says_how_unlike_the_training_a_map_is(tmp_path: Path) -> None:
    wary = build(out_of_domain=True, encoder="c3d", rnn="none")
    features = np.asarray(detector.encoder_of(wary)(standard_maps(1, 200, *SHAPE)))[0]
    detector.fit_out_of_domain(wary, features, epochs=2)
    maps = series(every_step(14))
    maps[9:] += 30
    stream = StreamingDetector(wary)
    found = [stream.label(new).reconstruction_error for new in maps]
    expected = predict(wary, maps, allow_short=True)["reconstruction_error"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert min(found[9:]) > expected.attrs["training_percentile_99"]
    plain = StreamingDetector(build()).label(maps[0])
    assert np.isnan(plain.reconstruction_error)


@pytest.mark.parametrize(("carry", "kept"), [(False, LENGTH - 1), (True, 0)])
def test_it_keeps_no_more_than_a_window(
    gru: keras.Model, tmp_path: Path, carry: bool, kept: int
) -> None:
    """However long the series: features of a window, or a state and no features at all."""
    stream, sizes = StreamingDetector(gru, carry_state=carry), []
    for number, new in enumerate(series(every_step(40)), start=1):
        stream.label(new)
        if number in (LENGTH, 40):
            stream.save(tmp_path / "state.npz")
            sizes.append((tmp_path / "state.npz").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 10  # the digits of a count and of a time
    with np.load(tmp_path / "state.npz") as stored:
        assert len(stored["memory_kept"]) == kept
        assert stored["memory_before"].size == 0  # no maps, where the encoder reads one at a time
        assert ("state_0" in stored) == carry


# What is given -----------------------------------------------------------------------------------


def test_a_map_may_come_in_any_form(gru: keras.Model) -> None:
    maps = series(every_step(3))
    forms: list[Callable[[int], LabelledMap]] = [
        lambda i: one.label(maps[i]),
        lambda i: one.label(maps[i : i + 1]),
        lambda i: one.label(maps[i].transpose("longitude", "channel", "latitude")),
        lambda i: one.label(maps[i].chunk(latitude=3)),
        lambda i: one.label(maps[i].drop_vars(["latitude", "longitude"])),
        lambda i: one.label(maps[i].astype(np.float64)),
        lambda i: one.label(maps[i].values, time=maps["time"].values[i]),
        lambda i: one.label(maps[i].values, time=pd.Timestamp(maps["time"].values[i])),
        lambda i: one.label(maps[i].values, time=pd.Timestamp(maps["time"].values[i]).isoformat()),
    ]
    expected = labels([StreamingDetector(gru).label(m) for m in maps[:1]])
    for form in forms:
        one = StreamingDetector(gru)
        first = form(0)
        np.testing.assert_allclose(labels([first]), expected, rtol=1e-6)
        assert first.time == maps["time"].values[0]
        assert [form(1).maps_since_reset, form(2).maps_since_reset] == [2, 3]


def test_a_series_of_another_calendar(
    networks: Callable[[str], keras.Model], tmp_path: Path
) -> None:
    """Of 360 days: a month without a gap that our calendar would see one in."""
    times = xr.date_range("2020-02-28", periods=14, freq="6h", calendar="360_day", use_cftime=True)
    maps = series(times)
    stream, found = StreamingDetector(networks("gru")), []
    for number, new in enumerate(maps):
        if number in (5, 6):
            stream.save(tmp_path / "state.npz")
            stream = StreamingDetector(networks("gru"))
            stream.restore(tmp_path / "state.npz")
        found.append(stream.label(new))
    assert found[-1].maps_since_reset == 14
    assert found[9].time == cftime.Datetime360Day(2020, 2, 30, 6)
    expected = predict(networks("gru"), maps, allow_short=True)
    np.testing.assert_allclose(labels(found)[:, 0], expected["logit"], atol=1e-5)
    with pytest.raises(InputError, match=r"calendar of the maps before, 360_day; found datetime64"):
        stream.label(series([np.datetime64("2021-01-01", "ns")])[0])


def test_a_gap_is_told(gru: keras.Model, caplog: pytest.LogCaptureFixture) -> None:
    maps = series(irregular([6, 6, 18, 6]))
    stream = StreamingDetector(gru, where="sea")
    assert [stream.label(new).maps_since_reset for new in maps] == [1, 2, 3, 1, 2]
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        "sea: 2020-01-02T06:00:00 does not follow 2020-01-01T12:00:00 at one step of 6 h: "
        "the history begins anew"
    )


REFUSED: dict[str, tuple[Callable[[xr.DataArray], Any], str]] = {
    "the same map again": (
        lambda m: m.assign_coords(time=m["time"] - STEP),
        r"sea: time: a map must be later than the last one, 2020-01-01T18:00:00; "
        r"found 2020-01-01T18:00:00",
    ),
    "an earlier one": (
        lambda m: m.assign_coords(time=m["time"] - 3 * STEP),
        r"sea: time: .* 2020-01-01T18:00:00; found 2020-01-01T06:00:00",
    ),
    "another channel": (
        lambda m: m.assign_coords(channel=["msl_local", "u10", "t850"]),
        r"sea: the model needs the channels .*'v10'.*; found .*'t850'",
    ),
    "another order": (lambda m: m[::-1], r"sea: the model needs the channels"),
    "no channel": (lambda m: m[0], r"sea: a map must be of the dimensions channel, latitude, long"),
    "a small grid": (lambda m: m[:, :7], r"sea: the model needs a grid of at least 8 x 8 cells"),
    "another grid": (
        lambda m: m[:, :, :8],
        r"sea: grid: must be that of the maps .*found \(8, 8\)",
    ),
    "another place": (
        lambda m: m.assign_coords(longitude=m["longitude"] + 1),
        r"sea: longitude: must equal that of the maps before \(10 to 14\); found 11 to 15",
    ),
    "a missing cell": (
        lambda m: m.where(m["longitude"] != 12),
        r"sea: channel msl_local at 2020-01-02T00:00: every cell .*found 8 of 72 cells",
    ),
    "a missing map": (
        lambda m: m * np.nan,
        r"sea: channel msl_local at 2020-01-02T00:00: .*no val",
    ),
    "an infinite cell": (lambda m: m.where(m["longitude"] != 12, np.inf), r"8 of 72 cells missing"),
    "no time": (lambda m: m.drop_vars("time"), r"sea: one map of one time is labelled at a time"),
    "two maps": (
        lambda m: xr.concat([m, m.assign_coords(time=m["time"] + STEP)], "time"),
        r"sea: one map of one time is labelled at a time; found .*'time': 2",
    ),
}


@pytest.mark.parametrize(
    ("fault", "carry"), [*((fault, False) for fault in REFUSED), ("a missing cell", True)]
)
def test_what_is_refused_leaves_the_detector_as_it_was(
    gru: keras.Model, fault: str, carry: bool
) -> None:
    spoil, message = REFUSED[fault]
    maps = series(every_step(5))
    stream, undisturbed = (StreamingDetector(gru, carry_state=carry, where="sea") for _ in range(2))
    for new in maps[:4]:
        stream.label(new)
        undisturbed.label(new)
    with pytest.raises(InputError, match=message):
        stream.label(spoil(maps[4]))
    assert stream.label(maps[4]) == pytest.approx(undisturbed.label(maps[4]), nan_ok=True, abs=0)


@pytest.mark.parametrize("carry", [False, True])
def test_a_map_that_was_broken_off_is_not_there_twice(gru: keras.Model, carry: bool) -> None:
    """Someone interrupts it once the map is encoded, and tries again."""
    maps = series(every_step(6))
    stream, undisturbed = (StreamingDetector(gru, carry_state=carry) for _ in range(2))
    network = stream._network
    for number, new in enumerate(maps):
        if number == 4:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(network, "knows_its_domain", True)
                patch.setattr(network, "errors", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    stream.label(new)
        assert labels([stream.label(new)])[0, 0] == labels([undisturbed.label(new)])[0, 0]


def interrupted() -> np.ndarray:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("shape", "time", "message"),
    [
        ((2, 8, 9), START, r"must be of shape \(3, latitude, longitude\), .*found \(2, 8, 9\)"),
        ((8, 9), START, r"must be of shape \(3, latitude, longitude\)"),
        ((3, 8, 9), None, r"a map must have a time, in UTC and without a zone; found None"),
        ((3, 8, 9), 20200101, r"a map must have a time, .*found 20200101"),
        ((3, 8, 9), "noon", r"a map must have a time, .*found 'noon'"),
        ((3, 8, 9), np.datetime64("NaT"), r"a map must have a time"),
        ((3, 8, 9), "2020-01-01T00:00+02:00", r"in UTC and without a zone; found '2020.*02:00'"),
        ((3, 7, 9), START, r"a grid of at least 8 x 8 cells; found 7 x 9"),
    ],
)
def test_bare_values_that_are_refused(
    gru: keras.Model, shape: tuple[int, ...], time: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StreamingDetector(gru).label(np.zeros(shape), time=time)


def test_a_time_is_told_once(gru: keras.Model) -> None:
    with pytest.raises(InputError, match="a map with coordinates tells its time; found 2020-01-01"):
        StreamingDetector(gru).label(series(every_step(1))[0], time="2020-01-01")


# A carried state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{}, {"longest_sequence": 10}])
def test_a_state_is_carried_where_the_training_was_for_it(facts: dict[str, int]) -> None:
    model = build(facts=facts)
    StreamingDetector(model)
    with pytest.raises(
        InputError,
        match=r"sea: carry_state needs a model trained on sequences longer than a window of 10 "
        r"maps \(train.variable_length\); found 10 at most",
    ):
        StreamingDetector(model, carry_state=True, where="sea")


@pytest.mark.parametrize("name", ["tcn", "single_map", "bidirectional", "c3d", "ensemble"])
def test_there_has_to_be_a_state(networks: Callable[[str], keras.Model], name: str) -> None:
    with pytest.raises(InputError, match="a state can be carried where a GRU or LSTM reads"):
        StreamingDetector(networks(name), carry_state=True)


# The file ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(gru: keras.Model, tmp_path: Path) -> Path:
    stream = StreamingDetector(gru)
    for new in series(every_step(13)):
        stream.label(new)
    stream.save(tmp_path / "state.npz")
    return tmp_path / "state.npz"


def test_the_file_says_what_it_is(gru: keras.Model, saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as stored:
        header = json.loads(str(stored["header"]))
        kept = stored["memory_kept"]
        np.testing.assert_array_equal(stored["axis_longitude"], series(every_step(1))["longitude"])
    assert header["format"] == "medicane streaming state, version 1"
    assert header["channels"] == list(CHANNELS)
    assert (header["step_hours"], header["length"]) == (6, LENGTH)
    assert header["carry_state"] is False
    assert header["time"] == "2020-01-04T00:00:00"
    assert header["model_digest"].startswith("sha256:")
    assert kept.shape == (LENGTH - 1, detector.head_of(gru).input_shape[-1])
    assert kept.dtype == np.float32
    assert {entry.name for entry in saved.parent.iterdir()} <= {saved.name, f".{saved.name}.lock"}


def test_a_model_from_its_file_is_the_same_model(gru: keras.Model, saved: Path) -> None:
    gru.save(saved.with_name("detector.keras"))
    loaded = detector.load_detector(saved.with_name("detector.keras"))
    new = series(every_step(14))[13]
    found = []
    for model in (gru, loaded):
        stream = StreamingDetector(model)
        stream.restore(saved)
        found.append(stream.label(new))
    assert found[1].maps_since_reset == 14
    np.testing.assert_array_equal(*map(labels, ([found[0]], [found[1]])))


def test_a_restored_detector_knows_time_and_grid(gru: keras.Model, saved: Path) -> None:
    stream = StreamingDetector(gru)
    stream.restore(saved)
    with pytest.raises(InputError, match="later than the last one, 2020-01-04T00:00:00"):
        stream.label(series(every_step(13))[12])
    later = series(every_step(14))[13]
    with pytest.raises(InputError, match="latitude: must equal that of the maps before"):
        stream.label(later.assign_coords(latitude=later["latitude"] - 2))
    with pytest.raises(InputError, match="grid: must be that of the maps before"):
        stream.label(np.zeros((3, 9, 9)), time=later["time"].values)
    stream.label(later)


def test_before_the_first_map(gru: keras.Model, tmp_path: Path) -> None:
    StreamingDetector(gru).save(tmp_path / "deep" / "state.npz")
    stream = StreamingDetector(gru)
    stream.restore(tmp_path / "deep" / "state.npz")
    assert stream.label(series(every_step(1))[0]).begins_anew


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"seed": 2}, r"its model_digest is sha256:\w+; found sha256:\w+"),
    "length": ({"facts": {"length": 12}}, r"its length is 12; found 10"),
    "step": ({"facts": {"step_hours": 3}}, r"its step_hours is 3; found 6"),
    "label": ({"facts": {"label": {"version": "other"}}}, r"its model_digest is"),
    "network": ({"rnn": "lstm"}, r"its model_digest is"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_model_is_refused(saved: Path, other: str) -> None:
    settings_, message = OTHERS[other]
    stream = StreamingDetector(build(**{"facts": {"longest_sequence": 30}, **settings_}))
    with pytest.raises(
        InputError, match=rf"state\.npz: must be a state of this detector: {message}"
    ):
        stream.restore(saved)
    assert stream.label(series(every_step(1))[0]).begins_anew


def test_another_calibration_is_another_model(saved: Path) -> None:
    recalibrated = build(facts={"longest_sequence": 30})
    StreamingDetector(recalibrated).restore(saved)
    detector.set_calibration(recalibrated, temperature=1.2)
    with pytest.raises(InputError, match="model_digest"):
        StreamingDetector(recalibrated).restore(saved)


def test_the_state_of_the_other_kind_is_refused(gru: keras.Model, saved: Path) -> None:
    with pytest.raises(InputError, match="its carry_state is True; found False"):
        StreamingDetector(gru, carry_state=True).restore(saved)
    StreamingDetector(gru, carry_state=True).save(saved)
    with pytest.raises(InputError, match="its carry_state is False; found True"):
        StreamingDetector(gru).restore(saved)


def foreign(kind: str, saved: Path) -> None:
    if kind == "nothing":
        saved.unlink()
    elif kind == "empty":
        saved.write_bytes(b"")
    elif kind == "text":
        saved.write_text("time,probability\n")
    elif kind == "cut":
        saved.write_bytes(saved.read_bytes()[:-200])
    elif kind == "array":
        with saved.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "other arrays":
        np.savez(saved, state_0=np.zeros(3))
    elif kind == "other header":
        np.savez(saved, header=np.array("5"))
    elif kind == "other version":
        np.savez(saved, header=np.array(json.dumps({"format": "medicane streaming state, v9"})))
    elif kind == "objects":
        np.savez(saved, header=np.array([{"format": 1}], dtype=object))
    elif kind == "folder":
        saved.unlink()
        saved.mkdir()
    else:
        with zipfile.ZipFile(saved, "w") as archive:
            archive.writestr("header.npy", "no array")


FOREIGN = (
    *("nothing", "empty", "text", "cut", "array", "other arrays", "other header", "other version"),
    *("objects", "folder", "zip"),
)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(gru: keras.Model, saved: Path, kind: str) -> None:
    foreign(kind, saved)
    stream = StreamingDetector(gru)
    with pytest.raises(
        InputError, match=r"state\.npz: must be a state that StreamingDetector\.save wrote; found"
    ) as refused:
        stream.restore(saved)
    assert "\n" not in str(refused.value)
    assert stream.label(series(every_step(1))[0]).begins_anew


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_broken_byte_goes_unnoticed(gru: keras.Model, saved: Path, data: st.DataObject) -> None:
    """A byte that is another: the file is refused, or the next label is what it would have been."""
    whole = saved.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= data.draw(st.integers(1, 255))
    file = saved.with_name("broken.npz")
    file.write_bytes(broken)
    new, expected, stream = series(every_step(14))[13], StreamingDetector(gru), None
    expected.restore(saved)
    try:
        stream = StreamingDetector(gru)
        stream.restore(file)
    except InputError:
        return
    np.testing.assert_array_equal(labels([stream.label(new)]), labels([expected.label(new)]))


def test_a_save_that_fails_leaves_the_file_that_was_there(
    gru: keras.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the new state takes its place."""
    before = saved.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        StreamingDetector(gru).save(saved)
    assert saved.read_bytes() == before
    assert not list(saved.parent.glob(".*partial"))


def test_the_file_is_left_alone_while_another_writes(gru: keras.Model, saved: Path) -> None:
    from medicane.store.commits import sole_writer

    before = saved.read_bytes()
    with sole_writer(saved), pytest.raises(InputError, match=r"state\.npz: one process at a time"):
        StreamingDetector(gru).save(saved)
    assert saved.read_bytes() == before


# The document ------------------------------------------------------------------------------------


def test_the_example_of_the_document_runs(
    gru: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Twice, as two scheduled runs: the second goes on where the first left off."""
    text = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    gru.save(tmp_path / "detector.keras")
    monkeypatch.chdir(tmp_path)
    maps = series(every_step(12))
    for part in (maps[:7], maps[7:]):
        exec(code, {"maps": part})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 12
    expected = predict(gru, maps, allow_short=True)["probability"]
    np.testing.assert_allclose([float(line[1]) for line in printed], expected, atol=1e-5)
    assert [line[2] for line in printed] == ["True"] + ["False"] * 11
