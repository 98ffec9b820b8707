"""Detections: labels, events and tracks; files that others read, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import huracanpy
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane.detections import (
    detections_digest,
    event_tracks,
    events,
    label_maps,
    read_detections,
    same_model,
    write_detections,
)
from medicane.errors import InputError
from medicane.store.commits import sole_writer

CHANNELS = ("msl_local", "u10")


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
    table = write_detections(tmp_path / "out", found, step_hours=6, history=series(9))
    target, listing = tmp_path / "out" / "detections.nc", tmp_path / "out" / "events.csv"
    with xr.open_dataset(target) as stored:
        xr.testing.assert_allclose(stored.load(), found)
        assert stored["probability"].dtype == np.float32
    assert len(pd.read_csv(listing)) == len(table) == 1
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


def test_a_damaged_history_is_not_taken_for_none(tmp_path: Path) -> None:
    """Without its last maps a series would go on with other labels."""
    found = label_maps(probabilities([0.1, 0.7]), threshold=0.5)
    write_detections(tmp_path, found, step_hours=6, history=series(2))
    path = tmp_path / "detections.nc"
    assert read_detections(path)[1] is not None
    with netCDF4.Dataset(path, "a") as file:
        file["history"].renameVariable("maps", "lost")
    with pytest.raises(InputError, match=r"detections\.nc: must be detections that medicane wrote"):
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
