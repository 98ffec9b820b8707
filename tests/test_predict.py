"""Prediction: equal to the naive form, causal, silent nowhere; detections written whole."""

from __future__ import annotations

from pathlib import Path

import huracanpy
import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import model as detector
from medicane.config import make_config
from medicane.errors import InputError
from medicane.normalise import Statistics
from medicane.predict import (
    continued,
    detections_digest,
    event_tracks,
    events,
    label_maps,
    predict,
    read_detections,
    same_model,
    write_detections,
)
from medicane.store.commits import sole_writer

CHANNELS = ("msl_local", "u10")
LENGTH = 10


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {"blocks": [1], "growth_rate": 4, "units": 8},
        }
    )
    statistics = Statistics(CHANNELS, np.zeros(2), np.ones(2), 10)
    facts = {"length": LENGTH, "step_hours": 6, "smallest_grid": 2}
    return detector.build_detector(config, statistics, facts=facts)


def series(n: int, *, start: str = "2020-01-01", seed: int = 0) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    times = pd.date_range(start, periods=n, freq="6h").as_unit("ns")
    return xr.DataArray(
        rng.normal(size=(n, 2, 6, 8)).astype(np.float32),
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": times,
            "channel": list(CHANNELS),
            "latitude": np.linspace(40, 37.5, 6),
            "longitude": np.linspace(10, 13.5, 8),
        },
    )


def naive(network: keras.Model, maps: xr.DataArray) -> list[np.ndarray]:
    """Logits of every window, each map encoded anew for each: (window, length)."""
    values = maps.transpose("time", "latitude", "longitude", "channel").values
    logits = []
    for start in range(len(values) - LENGTH + 1):
        p = network.predict(values[None, start : start + LENGTH], verbose=0)[0, :, 0].astype(float)
        logits.append(np.log(p / (1 - p)))
    return logits


@pytest.mark.parametrize("block", [3, 7, 10, 16, 96])
def test_causal_equals_window_by_window(network: keras.Model, block: int) -> None:
    maps = series(31)
    windows = naive(network, maps)
    expected = np.concatenate([windows[0], [w[-1] for w in windows[1:]]])
    found = predict(network, maps, mode="causal", block=block)
    np.testing.assert_allclose(found["logit"], expected, atol=1e-4)
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-expected)), atol=1e-5)
    assert (found["n_sequences"] == 1).all()


@pytest.mark.parametrize("block", [4, 10, 13, 96])
def test_fused_equals_the_mean_of_all_windows(network: keras.Model, block: int) -> None:
    maps = series(27)
    total, count = np.zeros(27), np.zeros(27)
    for start, logits in enumerate(naive(network, maps)):
        total[start : start + LENGTH] += logits
        count[start : start + LENGTH] += 1
    found = predict(network, maps, mode="fused", block=block)
    np.testing.assert_array_equal(found["n_sequences"], count)
    np.testing.assert_allclose(found["logit"], total / count, atol=1e-4)


def test_causal_does_not_look_ahead(network: keras.Model) -> None:
    maps = series(30)
    other = maps.copy(deep=True)
    other[20:] += 9
    np.testing.assert_array_equal(
        predict(network, maps)["logit"][:20], predict(network, other)["logit"][:20]
    )


def test_a_gap_begins_anew(network: keras.Model, caplog: pytest.LogCaptureFixture) -> None:
    """Periods on either side of a gap are labelled as if the other were not there; a short one is
    left without a label, and said so."""
    first, short, last = (
        series(12),
        series(4, start="2020-02-01", seed=1),
        series(15, start="2020-03-01", seed=2),
    )
    found = predict(network, xr.concat([first, short, last], "time"))
    np.testing.assert_allclose(found["logit"][:12], predict(network, first)["logit"], atol=1e-5)
    np.testing.assert_allclose(found["logit"][16:], predict(network, last)["logit"], atol=1e-5)
    assert np.isnan(found["probability"][12:16]).all()
    assert (found["n_sequences"][12:16] == 0).all()
    assert "4 maps from 2020-02-01 00:00:00 are fewer than one sequence of 10" in caplog.text


def test_too_few_maps(network: keras.Model) -> None:
    with pytest.raises(
        InputError, match=r"three\.nc: one sequence is 10 maps 6 h apart .* found 3 maps, at most 3"
    ):
        predict(network, series(3), where="three.nc")


def test_allow_short_gives_what_any_opening_gets(network: keras.Model) -> None:
    maps = series(14)
    short = predict(network, maps[:3], allow_short=True)
    np.testing.assert_allclose(short["logit"], predict(network, maps)["logit"][:3], atol=1e-5)
    fused = predict(network, maps[:3], allow_short=True, mode="fused")
    np.testing.assert_allclose(fused["logit"], short["logit"], atol=1e-5)


def test_other_channels_are_refused(network: keras.Model) -> None:
    maps = series(12).assign_coords(channel=["msl_local", "v10"])
    with pytest.raises(InputError, match="the model needs the channels"):
        predict(network, maps)


def test_lazy_maps_are_read_once_and_in_blocks(network: keras.Model) -> None:
    maps, read = series(60), []

    def load(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        if block_info:
            read.append(block_info[0]["array-location"][0])
        return block

    lazy = maps.chunk(time=10)
    lazy = lazy.copy(
        data=lazy.data.map_blocks(load, dtype=np.float32, meta=np.empty((0, 0, 0, 0), np.float32))
    )
    found = predict(network, lazy, block=20)
    assert sorted(read) == [(i, i + 10) for i in range(0, 60, 10)]
    np.testing.assert_allclose(found["logit"], predict(network, maps)["logit"], atol=1e-5)


def test_history_continues_the_series(network: keras.Model) -> None:
    """The last maps of yesterday are all that today needs."""
    maps = series(40)
    whole = predict(network, maps)["logit"]
    today = predict(network, maps[25 - (LENGTH - 1) :])["logit"][LENGTH - 1 :]
    np.testing.assert_allclose(today, whole[25:], atol=1e-5)


# --- labels, events, files ------------------------------------------------------------------------


def probabilities(values: list[float], *, gap_after: int | None = None) -> xr.Dataset:
    times = list(pd.date_range("2020-09-15", periods=len(values), freq="6h"))
    if gap_after is not None:
        times[gap_after:] = [t + pd.Timedelta(days=2) for t in times[gap_after:]]
    p = np.array(values, np.float32)
    with np.errstate(divide="ignore"):
        logit = np.log(p / (1 - p)).astype(np.float32)
    count = np.where(np.isnan(p), 0, 1).astype(np.int16)
    return xr.Dataset(
        {"probability": ("time", p), "logit": ("time", logit), "n_sequences": ("time", count)},
        coords={"time": pd.DatetimeIndex(times).as_unit("ns")},
    )


def lows(n: int) -> xr.Dataset:
    return xr.Dataset(
        {
            "low_latitude": ("time", np.linspace(35, 38, n)),
            "low_longitude": ("time", np.linspace(18, 21, n)),
        }
    )


def test_labels_and_attributes() -> None:
    found = label_maps(
        probabilities([0.1, 0.5, 0.9, np.nan]), threshold=0.5, attributes={"mode": "causal"}
    )
    assert found["medicane"].values.tolist() == [0, 1, 1, -1]
    assert found["medicane"].dtype == np.int8
    assert found["medicane"].attrs["flag_meanings"].split() == [
        "unknown",
        "no_medicane",
        "medicane",
    ]
    assert found["probability"].attrs["units"] == "1"
    assert found.attrs["Conventions"].startswith("CF-")
    assert found.attrs["threshold"] == 0.5
    assert found.attrs["mode"] == "causal"


def test_consecutive_detections_are_one_event() -> None:
    values = [0.1, 0.7, 0.9, 0.2, 0.8, 0.6, 0.1]
    found = label_maps(probabilities(values), threshold=0.5, lows=lows(7))
    table = events(found, step_hours=6)
    assert list(table.columns) == (
        [
            "event_id",
            "start",
            "end",
            "n_maps",
            "max_probability",
            "time_of_max",
            "centre_latitude",
            "centre_longitude",
        ]
    )
    assert table[["start", "end", "n_maps"]].values.tolist() == [
        ["2020-09-15T06:00:00", "2020-09-15T12:00:00", 2],
        ["2020-09-16T00:00:00", "2020-09-16T06:00:00", 2],
    ]
    assert table["time_of_max"].tolist() == ["2020-09-15T12:00:00", "2020-09-16T00:00:00"]
    assert table["centre_latitude"].tolist() == [36.0, 37.0]


def test_a_gap_ends_an_event() -> None:
    found = label_maps(probabilities([0.9] * 6, gap_after=3), threshold=0.5)
    assert events(found, step_hours=6)["n_maps"].tolist() == [3, 3]
    assert events(found, step_hours=6)["centre_latitude"].isna().all()


def test_no_event_gives_the_header() -> None:
    assert len(events(label_maps(probabilities([0.1]), threshold=0.5), step_hours=6)) == 0


def test_written_files_are_what_others_read(tmp_path: Path) -> None:
    found = label_maps(probabilities([0.1, 0.7, 0.9, 0.2]), threshold=0.5, lows=lows(4))
    target, listing = write_detections(tmp_path / "out", found, step_hours=6, history=series(9))
    with xr.open_dataset(target) as stored:
        xr.testing.assert_allclose(stored.load(), found)
        assert stored["probability"].dtype == np.float32
    assert len(pd.read_csv(listing)) == 1
    tracks = huracanpy.load(str(tmp_path / "out" / "tracks.csv"))
    assert tracks["lat"].values.tolist() == pytest.approx([36, 37])
    assert pd.Timestamp(tracks["time"].values[0]) == pd.Timestamp("2020-09-15T06:00")
    again, history = read_detections(target)
    assert again.sizes["time"] == 4
    assert history is not None
    np.testing.assert_array_equal(history.values, series(9).values)
    assert {p.name for p in (tmp_path / "out").iterdir()} - {".detections.nc.lock"} == {
        "detections.nc",
        "events.csv",
        "tracks.csv",
    }


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("allow_short", [False, True])
def test_a_series_that_grows_gets_the_labels_of_one_call(
    network: keras.Model, mode: str, allow_short: bool
) -> None:
    """In pieces of one to many maps, across a gap, with a tail that waits for its sequence."""
    maps = xr.concat([series(14), series(25, start="2020-02-01", seed=2)], dim="time")
    expected = predict(network, maps, mode=mode, allow_short=allow_short)
    grown = predict(network, maps[:12], mode=mode, allow_short=allow_short)
    for start, stop in [(12, 14), (14, 15), (15, 19), (19, 20), (20, 37), (37, 39)]:
        gap = 14 if start >= 14 else 0
        history = max(start - (LENGTH - 1), gap)  # none of the maps before the gap
        new = predict(
            network, maps[history:stop], mode=mode, allow_short=allow_short, allow_none=True
        )
        before = grown
        grown = continued(before, new, length=LENGTH, step_hours=6, mode=mode)
        if mode == "causal":  # what was labelled is left alone
            labelled = (before["n_sequences"] > 0).values
            kept = grown["logit"].values[: len(labelled)][labelled]
            np.testing.assert_array_equal(kept, before["logit"].values[labelled])
    for name in ("probability", "logit", "n_sequences"):
        np.testing.assert_allclose(grown[name], expected[name], atol=1e-5)
    assert (grown["n_sequences"] > 0).all()


@pytest.mark.parametrize("missing", ["a map", "a cell"])
def test_missing_values_are_refused_by_time_and_channel(network: keras.Model, missing: str) -> None:
    maps = series(14)
    maps[5, 1] = np.where(
        (np.arange(48).reshape(6, 8) == 7) | (missing == "a map"), np.nan, maps[5, 1]
    )
    found = "no value at all" if missing == "a map" else "1 of 48 cells"
    with pytest.raises(InputError, match=f"new.nc: channel u10 at 2020-01-02T06:00: .*{found}"):
        predict(network, maps, block=4, where="new.nc")


def test_two_writers_do_not_lose_each_others_maps(tmp_path: Path) -> None:
    one = label_maps(probabilities([0.1, 0.7]), threshold=0.5)
    write_detections(tmp_path, one, step_hours=6, replaces="")
    read = detections_digest(tmp_path)
    assert read is not None
    two = label_maps(probabilities([0.1, 0.7, 0.8]), threshold=0.5)
    write_detections(tmp_path, two, step_hours=6, replaces=read)
    held = (tmp_path / "detections.nc").read_bytes()
    for stale in (read, ""):
        with pytest.raises(InputError, match=r"detections\.nc: must not change .* run again"):
            write_detections(tmp_path, one, step_hours=6, replaces=stale)
    with sole_writer(tmp_path / "detections.nc"), pytest.raises(InputError, match="one process"):
        write_detections(tmp_path, one, step_hours=6)
    assert (tmp_path / "detections.nc").read_bytes() == held


def test_what_a_killed_writer_left_is_cleared_and_mended(tmp_path: Path) -> None:
    found = label_maps(probabilities([0.1, 0.7]), threshold=0.5)
    write_detections(tmp_path, found, step_hours=6)
    events_before = (tmp_path / "events.csv").read_bytes()
    for name in (".detections-1.nc", ".events.csv-2", ".tracks.csv-3"):
        (tmp_path / name).write_text("half")
    (tmp_path / "events.csv").write_text("of detections that never came\n")
    write_detections(tmp_path, found, step_hours=6)
    assert (tmp_path / "events.csv").read_bytes() == events_before
    assert not list(tmp_path.glob(".*-*"))


def test_a_foreign_file_in_the_place_of_detections_is_told(tmp_path: Path) -> None:
    path = tmp_path / "detections.nc"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"detections\.nc: must be detections that medicane wrote"):
        read_detections(path)
    xr.Dataset({"sst": ("time", [1.0])}).to_netcdf(path)
    with pytest.raises(InputError, match="found no logit, medicane"):
        read_detections(path)


def test_times_between_the_hours_are_kept(tmp_path: Path) -> None:
    half_past = probabilities([0.1, 0.7])
    half_past = half_past.assign_coords(time=half_past["time"] + np.timedelta64(30, "m"))
    found = label_maps(half_past, threshold=0.5)
    write_detections(tmp_path, found, step_hours=6)
    again, _ = read_detections(tmp_path / "detections.nc")
    np.testing.assert_array_equal(again["time"], half_past["time"])


def test_a_failed_write_leaves_the_previous_files(tmp_path: Path) -> None:
    found = label_maps(probabilities([0.1, 0.7]), threshold=0.5)
    write_detections(tmp_path, found, step_hours=6)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = found.assign_attrs(unwritable=object())
    with pytest.raises(TypeError):
        write_detections(tmp_path, broken, step_hours=6)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_event_tracks_without_centres_are_empty() -> None:
    found = label_maps(probabilities([0.9, 0.9]), threshold=0.5)
    assert event_tracks(found, events(found, step_hours=6), step_hours=6).empty


def test_detections_of_another_model_are_not_extended() -> None:
    found = label_maps(
        probabilities([0.1]), threshold=0.5, attributes={"model_digest": "a", "mode": "causal"}
    )
    same_model(found, {"model_digest": "a", "mode": "causal"}, keys=("model_digest", "mode"))
    with pytest.raises(InputError, match=r"same model_digest \(a\).*found b"):
        same_model(found, {"model_digest": "b", "mode": "causal"}, keys=("model_digest", "mode"))
