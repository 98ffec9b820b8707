"""Labels of map times: the ends, the overlaps, the unknown hours, and the speed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medicane import labels
from medicane.config import Data, Domain, Label
from medicane.errors import InputError
from medicane.labels import label_times
from medicane.labels.catalogue import PHASES, bundled_catalogue, merge, read_catalogue

START = np.datetime64("2020-01-01T00", "ns")
HOUR = np.timedelta64(1, "h")
CODE = {"medicane": 1, "unknown": -1, "other": 0}


def hourly(n: int, step: int = 1) -> NDArray:
    return START + np.arange(n) * step * HOUR


def catalogue(*rows: tuple[str, float, float, str]) -> pd.DataFrame:
    """Rows (storm, first hour, last hour, phase)."""

    def moments(k: int) -> pd.Series:
        minutes = [np.timedelta64(round(row[k] * 60), "m") for row in rows]
        return pd.Series([START + m for m in minutes], dtype="datetime64[ns]")

    return pd.DataFrame(
        {
            "storm": pd.Series([row[0] for row in rows], dtype=str),
            "start": moments(1),
            "end": moments(2),
            "phase": pd.Series([row[3] for row in rows], dtype=str),
        }
    )


def label(times: NDArray, storms: pd.DataFrame, **options: object) -> xr.Dataset:
    definition = options.pop("definition", Label())
    return label_times(times, storms, definition=definition, **options)


def test_both_ends_are_included() -> None:
    found = label(hourly(8), catalogue(("a", 2, 5, "medicane")))
    assert found["medicane"].values.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert found["storm"].values.tolist() == ["", "", "a", "a", "a", "a", "", ""]
    between = label(hourly(8), catalogue(("a", 2.1, 4.9, "medicane")))
    assert between["medicane"].values.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    moment = label(hourly(8), catalogue(("a", 3, 3, "medicane")))
    assert moment["medicane"].values.sum() == 1


def test_what_comes_out_is_documented_in_the_data() -> None:
    found = label(hourly(3), catalogue(("a", 1, 1, "unknown")))
    assert found["medicane"].dtype == np.int8
    assert found["medicane"].dims == found["storm"].dims == ("time",)
    assert found["medicane"].attrs["flag_values"].tolist() == [-1, 0, 1]
    assert found["medicane"].attrs["flag_meanings"] == "unknown not_medicane medicane"
    assert json.loads(found.attrs["label_definition"])["radius_km"] == 200
    assert (found["time"].values == hourly(3)).all()


def test_medicane_wins_over_unknown_over_other() -> None:
    found = label(
        hourly(10),
        catalogue(("o", 0, 9, "other"), ("m", 4, 5, "medicane"), ("u", 2, 7, "unknown")),
    )
    assert found["medicane"].values.tolist() == [0, 0, -1, -1, 1, 1, -1, -1, 0, 0]
    assert "".join(found["storm"].values) == "oouummuuoo"


def test_two_storms_at_once_count_once_and_the_first_is_named() -> None:
    rows = [("b", 2, 5, "medicane"), ("a", 4, 8, "medicane")]
    for order in (rows, rows[::-1]):
        found = label(hourly(10), catalogue(*order))
        assert found["medicane"].values.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]
        assert "".join(found["storm"].values) == "bbbbaaa"


def test_transition_hours_are_unknown_on_both_sides() -> None:
    storms = catalogue(("a", 4, 5, "medicane"), ("b", 8, 9, "medicane"), ("o", 0, 1, "other"))
    found = label(hourly(13), storms, definition=Label(transition_hours=2))
    assert found["medicane"].values.tolist() == [0, 0, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 0]
    assert "".join(name or "." for name in found["storm"].values) == "ooaaaaaabbbb."


def test_six_hourly_maps_are_labelled_by_their_instant() -> None:
    found = label(hourly(6, 6), catalogue(("a", 5.5, 12.25, "medicane")))
    assert found["medicane"].values.tolist() == [0, 1, 1, 0, 0, 0]


def test_storms_outside_of_the_record_or_the_domain_label_nothing() -> None:
    storms = catalogue(("past", -9, -2, "medicane"), ("next", 20, 30, "medicane"))
    assert not label(hourly(10), storms)["medicane"].values.any()
    storms = catalogue(("far", 2, 5, "medicane"), ("near", 7, 8, "medicane"))
    storms[["south", "north", "west", "east"]] = [[50.0, 60, 0, 5], [35.0, 50, -20, -9]]
    inside = label(hourly(10), storms, domain=Domain())
    assert np.flatnonzero(inside["medicane"].values).tolist() == [7, 8]
    assert label(hourly(10), storms)["medicane"].values.sum() == 6


def test_no_storms_and_no_times_are_fine() -> None:
    none = catalogue()
    found = label(hourly(4), none)
    assert found["medicane"].values.tolist() == [0, 0, 0, 0]
    assert found["storm"].values.tolist() == [""] * 4
    empty = label(hourly(0), catalogue(("a", 0, 1, "medicane")))
    assert empty.sizes == {"time": 0}


def test_times_must_increase() -> None:
    times = hourly(5)
    times[3] = times[2]
    with pytest.raises(InputError, match="times must increase strictly; found 2020-01-01 02"):
        label(times, catalogue(("a", 0, 1, "medicane")))


def test_other_calendars_are_labelled_by_their_own_dates() -> None:
    model = {"use_cftime": True}
    times = xr.date_range("2020-01-28", "2020-02-03", freq="12h", calendar="360_day", **model)
    storms = catalogue(("a", 27 * 24 + 12, 30 * 24, "medicane"))  # 28 January 12 UTC to the 31st
    found = label(times, storms)
    picked = [str(t) for t in times[found["medicane"].values == 1]]
    assert picked[0] == "2020-01-28 12:00:00"
    assert picked[-1] == "2020-01-30 00:00:00"  # 31 January is the month's last day there
    noleap = xr.date_range("2020-02-27", "2020-03-02", freq="24h", calendar="noleap", **model)
    leap_day = catalogue(("a", (31 + 28) * 24, (31 + 28) * 24, "medicane"))
    found = label(noleap, leap_day)
    assert noleap[found["medicane"].values == 1][0] == cftime.DatetimeNoLeap(2020, 2, 28)


def test_times_keep_their_type() -> None:
    storms = catalogue(("a", 0, 1, "medicane"))
    for times in (hourly(3), hourly(3).astype("datetime64[us]"), pd.DatetimeIndex(hourly(3))):
        found = label(times, storms)
        assert found["medicane"].values.tolist() == [1, 1, 0]


# --- laws ---------------------------------------------------------------------------------------

rows_of_hours = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(-10, 60),
        st.integers(0, 20),
        st.sampled_from([*PHASES]),
    ),
    max_size=10,
)


def plain(rows: list[tuple[str, int, int, str]], n: int, transition: int = 0) -> list[int]:
    """The label of each hour, said as simply as can be."""
    found = []
    for hour in range(n):
        phases = {phase for _, start, length, phase in rows if start <= hour <= start + length}
        near = {
            phase
            for _, start, length, phase in rows
            if start - transition <= hour <= start + length + transition
        }
        if "medicane" in phases:
            found.append(1)
        elif "unknown" in phases or "medicane" in near:
            found.append(-1)
        else:
            found.append(0)
    return found


@given(rows_of_hours, st.integers(0, 6))
@settings(max_examples=120, deadline=None)
def test_labels_are_what_the_simplest_loop_says(rows: list, transition: int) -> None:
    storms = catalogue(*[(s, start, start + length, phase) for s, start, length, phase in rows])
    found = label(hourly(50), storms, definition=Label(transition_hours=transition))
    assert found["medicane"].values.tolist() == plain(rows, 50, transition)


@given(rows_of_hours, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_and_merging_change_nothing(rows: list, random: object) -> None:
    def one(rows: list) -> pd.DataFrame:
        return catalogue(*[(s, start, start + n, phase) for s, start, n, phase in rows])

    found = label(hourly(50), one(rows))
    random.shuffle(rows)
    xr.testing.assert_identical(label(hourly(50), one(rows)), found)
    merged = label(hourly(50), merge(one(rows)))
    assert (merged["medicane"].values == found["medicane"].values).all()


@given(rows_of_hours)
@settings(max_examples=60, deadline=None)
def test_every_labelled_hour_has_a_storm_of_that_phase(rows: list) -> None:
    storms = catalogue(*[(s, start, start + n, phase) for s, start, n, phase in rows])
    found = label(hourly(50), storms)
    for hour, (value, storm) in enumerate(
        zip(found["medicane"].values, found["storm"].values, strict=True)
    ):
        here = [(s, CODE[phase]) for s, start, n, phase in rows if start <= hour <= start + n]
        assert (storm, value) in here or (not here and (storm, value) == ("", 0))


def test_forty_years_of_hours_and_ten_thousand_storms_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    n = 350_640
    first = rng.integers(0, n, 10_000)
    storms = pd.DataFrame(
        {
            "storm": [f"s{k}" for k in range(first.size)],
            "start": START + first * HOUR,
            "end": START + (first + rng.integers(0, 72, first.size)) * HOUR,
            "phase": rng.choice(list(PHASES), first.size),
        }
    )
    begin = time.process_time()
    found = label(hourly(n), storms)
    assert time.process_time() - begin < 2
    assert set(np.unique(found["medicane"].values)) == {-1, 0, 1}


# --- real storms --------------------------------------------------------------------------------


def test_rolf_is_a_medicane_where_both_definitions_say_so() -> None:
    times = pd.date_range("2011-11-04", "2011-11-10", freq="h")
    found = label_times(times, bundled_catalogue(), definition=Label(), domain=Domain())
    series = found["medicane"].to_series()
    assert series["2011-11-04"].eq(0).all()
    assert series["2011-11-06T12"] == -1  # mature, not yet called a warm core
    assert series["2011-11-07T17"] == -1
    assert series["2011-11-07T18"] == series["2011-11-08T08"] == 1
    assert series["2011-11-08T09"] == -1
    assert series["2011-11-09T14"] == -1
    assert series["2011-11-09T15"] == 0


def test_a_strong_cyclone_that_is_no_medicane_keeps_its_name() -> None:
    times = pd.date_range("2019-11-09", "2019-11-12", freq="6h")
    found = label_times(times, bundled_catalogue(), definition=Label())
    assert not found["medicane"].values.any()
    assert set(found["storm"].values) == {"", "unnamed_2019-11"}


def test_a_file_becomes_labels(tmp_path: object) -> None:
    path = tmp_path / "tracks.csv"
    path.write_text(
        "track_id,time,lat,lon,phase\n"
        "x,2020-01-01T02:00,36,18,unknown\nx,2020-01-01T04:00,36,19,medicane\n"
        "x,2020-01-01T06:00,36,20,medicane\nx,2020-01-01T08:00,36,50,medicane\n",
        encoding="utf-8",
    )
    found = label(hourly(10), read_catalogue(path, domain=Domain()))
    # Half way between two positions the weaker phase holds; out of the domain it is over.
    assert found["medicane"].values.tolist() == [0, 0, -1, -1, 1, 1, 1, 0, 0, 0]


def test_the_front_door_offers_what_is_read_and_written() -> None:
    for name in ("read_catalogue", "bundled_catalogue", "catalogue_table", "label_times", "merge"):
        assert callable(getattr(labels, name))


# --- kinds of storm ------------------------------------------------------------------------------


def of_kinds(*rows: tuple[str, float, float, str, str]) -> pd.DataFrame:
    """Rows (storm, first hour, last hour, phase, kind)."""
    storms = catalogue(*(row[:4] for row in rows))
    return storms.assign(kind=pd.Series([row[4] for row in rows], dtype=str))


def test_the_kind_of_a_time_is_that_of_the_storms_about() -> None:
    storms = of_kinds(
        ("a", 1, 4, "other", "lee"),
        ("b", 3, 6, "other", "seclusion"),
        ("c", 8, 9, "other", "lee"),
        ("d", 9, 10, "other", "lee"),
        ("e", 0, 11, "other", ""),
    )
    found = labels.kind_of_times(hourly(12), storms)
    assert found is not None
    several = labels.SEVERAL_KINDS
    assert found.tolist() == [
        "", "lee", "lee", several, several, "seclusion", "seclusion", "", "lee", "lee", "lee", "",
    ]  # fmt: skip


def test_a_catalogue_without_kinds_knows_none() -> None:
    storms = catalogue(("a", 1, 4, "other"))
    assert labels.kind_of_times(hourly(6), storms) is None
    assert labels.kind_of_times(hourly(6), bundled_catalogue()) is None
    unsaid = labels.kind_of_times(hourly(6), storms.assign(kind=""))
    assert unsaid is not None
    assert unsaid.tolist() == [""] * 6


def test_a_storm_outside_of_the_domain_is_of_no_kind() -> None:
    box = {"south": [10.0, 36.0], "north": [12.0, 37.0], "west": [5.0] * 2, "east": [9.0] * 2}
    storms = of_kinds(("a", 0, 1, "other", "lee"), ("b", 2, 3, "other", "lee")).assign(**box)
    found = labels.kind_of_times(hourly(4), storms, domain=Domain())
    assert found is not None
    assert found.tolist() == ["", "", "lee", "lee"]


def test_kinds_in_the_calendar_of_a_model() -> None:
    times = [cftime.Datetime360Day(2020, 1, 1, hour) for hour in range(4)]
    found = labels.kind_of_times(times, of_kinds(("a", 1, 2, "other", "lee")))
    assert found is not None
    assert found.tolist() == ["", "lee", "lee", ""]
    assert labels.kind_of_times(hourly(0), of_kinds(("a", 1, 2, "other", "lee"))).size == 0


@pytest.mark.parametrize("named", ["own", "bundled", None])
def test_the_configured_catalogue(tmp_path: Path, named: str | None) -> None:
    file = tmp_path / "storms.csv"
    file.write_text("storm,start,end,phase,kind\nx,2001-01-02,2001-01-03,other,lee\n")
    data = Data(grids=("x.nc",), catalogue=str(file) if named == "own" else named)
    found = labels.configured_catalogue(data)
    if named is None:
        assert found is None
    else:
        assert found is not None
        assert ("kind" in found) is (named == "own")
        assert len(found) == (1 if named == "own" else len(bundled_catalogue()))
