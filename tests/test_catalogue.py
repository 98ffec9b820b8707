"""Storm catalogues: what is read, what is refused and on which line, and the bundled storms."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medicane.config import Domain
from medicane.errors import InputError
from medicane.labels.catalogue import (
    PHASES,
    bundled_catalogue,
    catalogue_table,
    merge,
    read_catalogue,
)


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str, name: str = "storms.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def at(text: str) -> pd.Timestamp:
    return pd.Timestamp(text)


# --- windows ------------------------------------------------------------------------------------


def test_windows_are_read(written) -> None:
    storms = read_catalogue(
        written(
            "storm,start,end,note\n"
            'Numa,2017-11-16T14:45,2017-11-18T12:40,"one, two"\n'
            "\n"
            "Rolf, 2011-11-07 18:00:00 , 2011-11-08T08:05Z ,x\n"
        )
    )
    assert storms["storm"].tolist() == ["Rolf", "Numa"]
    assert storms["start"].tolist() == [at("2011-11-07 18:00"), at("2017-11-16 14:45")]
    assert storms["end"].tolist() == [at("2011-11-08 08:05"), at("2017-11-18 12:40")]
    assert storms["phase"].tolist() == ["medicane", "medicane"]
    assert storms["note"].tolist() == ["x", "one, two"]
    assert storms["start"].dtype == storms["end"].dtype == "datetime64[ns]"


@pytest.mark.parametrize(
    "text",
    [
        "2011-11-07T18:00",
        "2011-11-07T18:00Z",
        "2011-11-07T18:00:00+00:00",
        "2011-11-07 18:00",
        "20111107T180000",
        "2011-11-07T18:00:00.000000-00:00",
    ],
)
def test_iso_times_in_utc_are_accepted(written, text: str) -> None:
    storms = read_catalogue(written(f"storm,start,end\nRolf,{text},2011-11-08\n"))
    assert storms["start"][0] == at("2011-11-07 18:00")


def test_a_bare_date_is_a_whole_day(written) -> None:
    storms = read_catalogue(written("storm,start,end\nRolf,2011-11-07,2011-11-07\n"))
    assert storms["start"][0] == at("2011-11-07")
    assert storms["end"][0] == at("2011-11-07 23:59:59.999999")


GOOD = "storm,start,end,phase\nNuma,2017-11-16,2017-11-18,\n"


@pytest.mark.parametrize(
    ("row", "law", "found"),
    [
        ("Rolf,2011-11-08,2011-11-07,", "must not end before it starts", "11-08 to 2011-11-07"),
        ("Rolf,2011-11-07T00:00+01:00,2011-11-08,", "start: a time must be in UTC", "+01:00"),
        ("Rolf,2011-11-07,2011-11-08T00:00-05:30,", "end: a time must be in UTC", "-05:30"),
        ("Rolf,2011-11-07T00:00 CET,2011-11-08,", "must be ISO 8601", "CET"),
        ("Rolf,7.11.2011,2011-11-08,", "must be ISO 8601", "7.11.2011"),
        ("Rolf,2011-11-31,2011-12-08,", "must be ISO 8601", "2011-11-31"),
        ("Rolf,,2011-11-08,", "must be ISO 8601", "''"),
        ("Rolf,0011-11-07,2011-11-08,", "a year must lie in", "0011-11-07"),
        (",2011-11-07,2011-11-08,", "a storm must have a name", "an empty cell"),
        ("=1+2,2011-11-07,2011-11-08,", "not begin like a formula", "'=1+2'"),
        ("Rolf,2011-11-07,2011-11-08,@SUM(A1)", "not begin like a formula", "@SUM"),
        ("+cmd|' /C calc'!A0,2011-11-07,2011-11-08,", "not begin like a formula", "+cmd"),
        ("Ro\x1b[31mlf,2011-11-07,2011-11-08,", "a cell must be printable", "x1b[31m"),
        ("Rolf,2011-11-07,2011-11-08,mature", "be one of medicane, unknown, other", "mature"),
        ("Rolf,2011-11-07,2011-11-08", "the header's 4 values", "3"),
        ("Rolf,2011-11-07,2011-11-08,,", "the header's 4 values", "5"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(written, row: str, law: str, found: str) -> None:
    path = written(GOOD + "\n" + row + "\n")
    with pytest.raises(InputError) as caught:
        read_catalogue(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: line 4: ")
    assert law in told
    assert found in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "header", ["name,start,end", "storm,start", "time,lat,lon", "Storm,Start,End"]
)
def test_an_unknown_column_set_is_refused(written, header: str) -> None:
    path = written(header + "\na,b,c\n")
    with pytest.raises(InputError, match="line 1: the columns must be storm,start,end") as caught:
        read_catalogue(path)
    assert header in str(caught.value)


def test_what_is_no_table_is_refused(written, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="header line; found an empty file"):
        read_catalogue(written(""))
    with pytest.raises(InputError, match="a column must be named once"):
        read_catalogue(written("storm,start,end,end\n"))
    with pytest.raises(InputError, match="readable text file"):
        read_catalogue(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x89HDF\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.csv"):
        read_catalogue(tmp_path / "binary.csv")
    with pytest.raises(InputError, match="comma-separated"):
        read_catalogue(written('storm,start,end\n"Rolf,2011-11-07,2011-11-08\n'))


def test_no_storms_is_a_catalogue_too(written) -> None:
    for header in ("storm,start,end", "track_id,time,lat,lon,mslp_hpa"):
        storms = read_catalogue(written(header + "\n"))
        assert len(storms) == 0
        assert {"storm", "start", "end", "phase"} <= set(storms)
        assert len(catalogue_table(storms)) == 0


def test_windows_from_a_spreadsheet_with_a_byte_order_mark(written) -> None:
    path = written("\ufeffstorm,start,end\r\nRolf,2011-11-07,2011-11-08\r\n")
    assert read_catalogue(path)["storm"].tolist() == ["Rolf"]


# --- tracks -------------------------------------------------------------------------------------

TRACK = (
    "track_id,time,lat,lon,mslp_hpa,phase\n"
    "1,2011-11-07T06:00,40,5,1002,unknown\n"
    "1,2011-11-07T00:00,40,4,1004,unknown\n"
    "1,2011-11-07T12:00,41,6,999.5,\n"
    "1,2011-11-07T18:00,42,6.5,,medicane\n"
    "1,2011-11-08T00:00,43,7,1001,unknown\n"
    "2,2012-01-01T00:00,30,200,1003,other\n"
)


def test_tracks_become_stretches(written) -> None:
    storms = read_catalogue(written(TRACK))
    first = storms[storms["storm"] == "1"]
    assert first["phase"].tolist() == ["unknown", "medicane", "unknown"]
    # The unknown stretches reach to the medicane's ends: the time between is not calm.
    ends = [at("2011-11-07") + pd.Timedelta(hours=h) for h in (0, 12, 18, 24)]
    assert first["start"].tolist() == ends[:-1]
    assert first["end"].tolist() == ends[1:]
    assert first["min_mslp_hpa"].tolist() == [1002, 999.5, 1001]
    assert first[["south", "north", "west", "east"]].iloc[1].tolist() == [41, 42, 6, 6.5]
    assert storms.iloc[-1][["west", "east"]].tolist() == [-160, -160]


def test_positions_outside_the_domain_are_left_out(written) -> None:
    path = written(
        "track_id,time,lat,lon\n"
        "a,2011-11-07T00:00,40,5\na,2011-11-07T06:00,49,5\na,2011-11-07T12:00,40,6\n"
        "a,2011-11-07T18:00,40,7\nb,2012-01-01,60,5\n"
    )
    storms = read_catalogue(path, domain=Domain())
    assert storms["storm"].tolist() == ["a", "a"]
    assert storms["end"].tolist() == [at("2011-11-07 00:00"), at("2011-11-07 18:00")]
    assert storms["start"].tolist() == [at("2011-11-07 00:00"), at("2011-11-07 12:00")]
    assert read_catalogue(path)["storm"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "law"),
    [
        ("1,2011-11-07T18:00,95,4,1000,", "lat: a latitude must lie in -90..90; found '95'"),
        ("1,2011-11-07T18:00,x,4,1000,", "lat: a latitude must lie in -90..90; found 'x'"),
        ("1,2011-11-07T18:00,nan,4,1000,", "lat: a latitude must lie in"),
        ("1,2011-11-07T18:00,40,,1000,", "lon: a longitude must lie in -180..360; found ''"),
        ("1,2011-11-07T18:00,40,4,100000,", "mslp_hpa: a pressure must be"),
        ("1,2011-11-07T18:00+02:00,40,4,1000,", "time: a time must be in UTC"),
        (",2011-11-07T18:00,40,4,1000,", "track_id: a storm must have a name"),
    ],
)
def test_a_bad_position_is_refused_by_line(written, row: str, law: str) -> None:
    path = written(TRACK + row + "\n")
    with pytest.raises(InputError) as caught:
        read_catalogue(path)
    assert f"{path}: line 8: {law}" in str(caught.value)


# --- merging ------------------------------------------------------------------------------------

stretches = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 60), st.integers(0, 20), st.sampled_from([*PHASES])
    ),
    max_size=12,
)


def frame(rows: list[tuple[str, int, int, str]]) -> pd.DataFrame:
    start, hour = np.datetime64("2020-01-01", "ns"), np.timedelta64(1, "h")
    first = [start + row[1] * hour for row in rows]
    last = [start + (row[1] + row[2]) * hour for row in rows]
    return pd.DataFrame(
        {
            "storm": pd.Series([row[0] for row in rows], dtype=str),
            "start": pd.Series(first, dtype="datetime64[ns]"),
            "end": pd.Series(last, dtype="datetime64[ns]"),
            "phase": pd.Series([row[3] for row in rows], dtype=str),
        }
    )


@given(stretches, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_merging_twice_is_once_and_order_does_not_matter(rows: list, random: object) -> None:
    once = merge(frame(rows))
    pd.testing.assert_frame_equal(merge(once), once)
    random.shuffle(rows)
    pd.testing.assert_frame_equal(merge(frame(rows)), once)


@given(stretches)
@settings(max_examples=60, deadline=None)
def test_merging_keeps_every_hour_and_leaves_no_overlap(rows: list) -> None:
    hours: dict[tuple[str, str], set[int]] = {}
    for storm, start, length, phase in rows:
        hours.setdefault((storm, phase), set()).update(range(start, start + length + 1))
    merged = merge(frame(rows))
    found: dict[tuple[str, str], list[int]] = {}
    for row in merged.itertuples():
        first = int((row.start - at("2020-01-01")) / pd.Timedelta(hours=1))
        last = int((row.end - at("2020-01-01")) / pd.Timedelta(hours=1))
        found.setdefault((row.storm, row.phase), []).extend(range(first, last + 1))
    assert {key: len(value) for key, value in found.items()} == {
        key: len(value) for key, value in hours.items()
    }
    assert {key: set(value) for key, value in found.items()} == hours


@given(stretches)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_written_catalogue_is_read_back(tmp_path: Path, rows: list) -> None:
    merged = merge(frame(rows))
    merged.to_csv(tmp_path / "again.csv", index=False, date_format="%Y-%m-%dT%H:%M:%S")
    pd.testing.assert_frame_equal(read_catalogue(tmp_path / "again.csv"), merged)


def test_a_hundred_thousand_positions_take_a_few_seconds(tmp_path: Path) -> None:
    n = 100_000
    moments = np.datetime64("1950-01-01T00", "h") + np.arange(n) % 50_000
    track = np.arange(n) // 50
    pd.DataFrame(
        {"track_id": track, "time": moments, "lat": 40.0, "lon": 5.0, "mslp_hpa": 1001.0}
    ).to_csv(tmp_path / "tracks.csv", index=False, date_format="%Y-%m-%dT%H:%M")
    start = time.process_time()
    storms = read_catalogue(tmp_path / "tracks.csv")
    assert time.process_time() - start < 6
    assert len(storms) == n / 50


# --- real files and the bundled one -------------------------------------------------------------


def test_published_tracks_are_read(real_data: Path) -> None:
    storms = read_catalogue(real_data / "storm_tracks.csv")
    assert len(storms) == 25
    ianos = storms.set_index("storm").loc["Ianos"]
    assert ianos["start"] == at("2020-09-12 05:00")
    assert ianos["end"] == at("2020-09-20 18:00")
    assert ianos["min_mslp_hpa"] == pytest.approx(1000.3, abs=0.1)


def test_a_catalogue_with_other_columns_is_refused(real_data: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the columns must be .* found storm,is_medicane"):
        read_catalogue(real_data / "storm_catalogue.csv")


def test_the_bundled_storms() -> None:
    storms = bundled_catalogue()
    assert storms["storm"].nunique() == 25
    assert set(storms["phase"]) == set(PHASES)
    assert (storms["source"].str.len() > 10).all()
    assert (storms["certainty"].str.len() > 2).all()
    life = storms[storms["basis"] == "whole life"].set_index("storm")
    core = storms[storms["phase"] == "medicane"]
    assert not (life["phase"] == "medicane").any()
    for row in core.itertuples():
        assert life.loc[row.storm, "start"] <= row.start < row.end <= life.loc[row.storm, "end"]
    assert not set(core["storm"]) & set(storms.loc[storms["phase"] == "other", "storm"])
    rolf = core.set_index("storm").loc["Rolf"]
    assert (rolf["start"], rolf["end"]) == (at("2011-11-07 18:00"), at("2011-11-08 08:05"))


def test_the_bundled_storms_are_the_published_ones(real_data: Path) -> None:
    """The lives agree with the hourly positions, storm by storm."""
    tracks = read_catalogue(real_data / "storm_tracks.csv").set_index("storm")
    lives = bundled_catalogue().query("basis == 'whole life'").set_index("storm")
    assert set(tracks.index) == set(lives.index)
    assert (tracks["start"] == lives["start"].reindex(tracks.index)).all()
    assert (tracks["end"] == lives["end"].reindex(tracks.index)).all()
    lowest = pd.to_numeric(lives["min_mslp_hpa"]).reindex(tracks.index)
    known = lowest.notna()
    assert known.sum() >= 18
    assert (abs(tracks["min_mslp_hpa"] - lowest)[known] < 0.02).all()


def test_the_table_has_one_row_for_each_storm() -> None:
    table = catalogue_table()
    assert table["storm"].is_unique
    assert len(table) == 25
    assert (table["is_medicane"] == "no").sum() == 7
    assert table["start"].is_monotonic_increasing
    indexed = table.set_index("storm")
    assert indexed.loc["Celeno", "is_medicane"] == "yes"
    assert pd.isna(indexed.loc["Celeno", "medicane_start"])
    assert indexed.loc["Numa", "medicane_end"] == at("2017-11-18 12:40")
    assert indexed["source"].str.contains("Flaounas|DeMeTrA").all()


def test_the_table_of_a_plain_catalogue_says_what_it_knows(written) -> None:
    path = written(
        "storm,start,end,phase\na,2020-01-01,2020-01-03,unknown\na,2020-01-02,2020-01-02,\n"
        "b,2021-01-01,2021-01-02,unknown\nc,2022-01-01,2022-01-02,other\n"
    )
    table = catalogue_table(read_catalogue(path)).set_index("storm")
    assert table["is_medicane"].to_dict() == {"a": "yes", "b": "unknown", "c": "no"}
    assert table.loc["a", "medicane_start"] == at("2020-01-02")
    assert "source" not in table
