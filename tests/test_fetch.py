"""ERA5 month by month from its two archives: cropped right, whole or not at all, resumed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st

from medicane import names, pipeline
from medicane.config import Config, Domain, make_config
from medicane.errors import InputError
from medicane.fetch import arco, asked, cds, planned_months
from medicane.fetch.months import LONG_NAMES, Month, holds
from medicane.remote import attempts
from tests.archives_of_era5 import KEY, Jobs, climate_data_store, values, write_arco
from tests.commands import Medicane
from tests.conftest import ROOT
from tests.servers import breaking, file_server

START, END = "2020-01-30", "2020-02-01"
NAMES = [
    "levels_2020-01.nc",
    "levels_2020-02.nc",
    "single_2020-01.nc",
    "single_2020-02.nc",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what it has broken itself."""
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(cds, "LONGEST_WAIT_S", 0.02)


@pytest.fixture(scope="module")
def globe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of the globe, hourly, in the layout of ARCO-ERA5: ``arco.zarr`` in the folder."""
    folder = tmp_path_factory.mktemp("globe")
    write_arco(folder / "arco.zarr", start=START, hours=72)
    return folder


@pytest.fixture
def store_of_all(tmp_path: Path) -> Iterator[tuple[str, Jobs]]:
    """A Climate Data Store on loopback, and what it was asked."""
    with climate_data_store(tmp_path / "jobs") as (address, jobs):
        yield address, jobs


@pytest.fixture
def account(store_of_all: tuple[str, Jobs], tmp_path: Path, monkeypatch: Any) -> Jobs:
    """The key in the file of the client."""
    address, jobs = store_of_all
    file = tmp_path / "cdsapirc"
    file.write_text(f"url: {address}\nkey: {KEY}\n")
    for name in ("CDSAPI_URL", "CDSAPI_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSAPI_RC", str(file))
    return jobs


def settings(folder: Path, **data: Any) -> dict[str, Any]:
    grids = {"grids": str(folder / "era5" / "*.nc"), "store": str(folder / "maps.zarr")}
    return {
        "schema_version": 1,
        "data": {**grids, "catalogue": None, "degrees": 2.0, **data},
    }


def config(folder: Path, **data: Any) -> Config:
    return make_config(settings(folder, **data))


def crop(folder: Path, globe: Path, **more: Any) -> Any:
    arguments = {"start": START, "end": END, "uri": str(globe / "arco.zarr"), **more}
    return pipeline.fetch(config(folder), source="arco", **arguments)


@pytest.fixture(scope="module")
def cropped(globe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the months from START to END in ``era5``; not to be changed."""
    folder = tmp_path_factory.mktemp("cropped")
    crop(folder, globe)
    return folder


@pytest.fixture
def fetched(cropped: Path, tmp_path: Path) -> Path:
    """The same as the test's own: its `tmp_path`, with the four files in ``era5``."""
    shutil.copytree(cropped / "era5", tmp_path / "era5")
    return tmp_path


def refused(act: Any) -> str:
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def check_fields(folder: Path) -> None:
    """Every file holds the fields of its area, levels and times, as the archive tells them."""
    for path in sorted(folder.glob("*.nc")):
        with xr.open_dataset(path) as ds:
            assert ds["latitude"].values.tolist() == list(np.arange(48.0, 27.9, -2.0))
            assert ds["longitude"].values.tolist() == list(np.arange(-10.0, 42.1, 2.0))
            levels = None
            if path.name.startswith("levels"):
                assert ds["pressure_level"].values.tolist() == list(names.PHASE_SPACE_LEVELS)
                levels = ds["pressure_level"].values
            where = (ds["valid_time"].values, ds["latitude"].values, ds["longitude"].values)
            for name in ds.data_vars:
                wanted = values(str(name), *where, levels)
                np.testing.assert_allclose(ds[name].values, wanted, rtol=1e-6, atol=1e-3)


# What is wanted ----------------------------------------------------------------------------------


@given(
    first=st.dates(min_value=pd.Timestamp("1940-01-01").date()),
    days=st.integers(0, 120),
    step=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]),
)
def test_months_are_the_period_cut_where_months_end(first: Any, days: int, step: int) -> None:
    if first.year > 2200:
        first = first.replace(year=2000 + first.year % 200, day=1)
    last = first + pd.Timedelta(days=days).to_pytimedelta()
    plan = planned_months(
        config(Path("x"), step_hours=step), Path("x"), start=str(first), end=str(last)
    )
    singles = [month for month in plan if month.kind == "single"]
    times = pd.DatetimeIndex(np.concatenate([month.times for month in singles]))
    assert times[0] == pd.Timestamp(first)
    assert times[-1] == pd.Timestamp(last) + pd.Timedelta(hours=24 - step)
    assert len(times) == 1 or set(np.diff(times)) == {np.timedelta64(step, "h")}
    for month, levels in zip(singles, [m for m in plan if m.kind == "levels"], strict=True):
        stamps = pd.DatetimeIndex(month.times)
        assert len({(t.year, t.month) for t in stamps}) == 1
        assert month.path.name == f"single_{stamps[0]:%Y-%m}.nc"
        np.testing.assert_array_equal(month.times, levels.times)


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("2020", "2020", "2020-01-01T00", "2020-12-31T18"),
        ("2020-02", "2020-02", "2020-02-01T00", "2020-02-29T18"),
        ("2020-02-10", "2020-03", "2020-02-10T00", "2020-03-31T18"),
    ],
)
def test_years_months_and_days_are_understood(start: str, end: str, first: str, last: str) -> None:
    plan = planned_months(config(Path("x")), Path("x"), start=start, end=end)
    assert plan[0].times[0] == np.datetime64(first)
    assert plan[-1].times[-1] == np.datetime64(last)


def test_the_period_is_that_of_the_splits_unless_it_is_said() -> None:
    ranges = {
        "train": ["1995-01-01", "1995-03-31"],
        "validation": ["1996-01-01", "1996-02-29"],
        "test": ["1994-02-01", "1994-02-28"],
    }
    whole = make_config(settings(Path("x")) | {"splits": ranges})
    plan = planned_months(whole, Path("x"))
    assert plan[0].times[0] == np.datetime64("1994-02-01T00")
    assert plan[-1].times[-1] == np.datetime64("1996-02-29T18")
    assert planned_months(whole, Path("x"), end="1994-12")[-1].path.name == "levels_1994-12.nc"


@pytest.mark.parametrize(
    ("more", "law"),
    [
        ({}, "--start: must be given where the splits have no dates"),
        ({"start": "2020"}, "--end: must be given where the splits have no dates"),
        ({"start": "spring", "end": "2020"}, "--start: must be a year, month or day; found spring"),
        ({"start": "2021", "end": "2020"}, "--end: must not be before --start"),
    ],
)
def test_a_period_that_is_none(more: dict[str, str], law: str) -> None:
    assert refused(lambda: planned_months(config(Path("x")), Path("x"), **more)).startswith(law)


def test_a_step_that_does_not_divide_a_day() -> None:
    told = refused(
        lambda: planned_months(config(Path("x"), step_hours=5), Path("x"), start="2020", end="2020")
    )
    assert told == "data.step_hours: must divide a day to be fetched; found 5"


def test_channels_that_are_not_of_era5_are_told() -> None:
    pictures = config(Path("x"), channels=["msl", "red"])
    told = refused(lambda: planned_months(pictures, Path("x"), start="2020", end="2020"))
    assert told == "data.channels: must be made of what ERA5 has; found ['red']"


def test_what_the_channels_need_is_asked_for_and_no_more() -> None:
    channels = ["msl", "sst", "t_500", "wind10", "thickness_900_600", "vorticity_850", "lsm"]
    plan = planned_months(config(Path("x"), channels=channels), Path("x"), start="2020", end="2020")
    single, levels = plan[:2]
    assert single.variables == ("msl", "u10", "v10", "sst")
    assert levels.variables == ("z", "t", "u", "v")
    assert levels.levels == names.PHASE_SPACE_LEVELS
    # The lows need pressure and heights, whatever the model sees.
    plan = planned_months(config(Path("x"), channels=["tcwv"]), Path("x"), start="2020", end="2020")
    assert plan[0].variables == ("msl", "tcwv")
    assert plan[1].variables == ("z",)


def test_every_variable_has_the_name_that_the_archives_know() -> None:
    assert set(LONG_NAMES) < set(names.VARIABLES) - {"zg", "lsm"}
    known = {"temperature", "geopotential"}  # so plain that they need no alias
    for name, long in LONG_NAMES.items():
        assert long in names.VARIABLES[name].aliases or long in known, name


def test_a_request_is_days_by_hours_of_one_month() -> None:
    domain = Domain(north=44, south=30, west=-5, east=36)
    times = pd.date_range("2020-02-27", "2020-02-29T18:00", freq="6h").values
    month = Month(Path("levels_2020-02.nc"), "levels", ("z", "t"), (900, 500), times, domain)
    assert cds.request(month) == {
        "product_type": ["reanalysis"],
        "variable": ["geopotential", "temperature"],
        "pressure_level": ["900", "500"],
        "year": ["2020"],
        "month": ["02"],
        "day": ["27", "28", "29"],
        "time": ["00:00", "06:00", "12:00", "18:00"],
        "area": [44.0, -5.0, 30.0, 36.0],
        "data_format": "netcdf",
        "download_format": "unarchived",
    }
    told = asked(month, source="cds")
    assert told.startswith("levels_2020-02.nc: geopotential, temperature at 900, 500 hPa; 12 maps")
    assert '"pressure_level": ["900", "500"]' in told
    assert asked(month, source="arco", uri="s3://k:secret@b/x").endswith("of s3://***@b/x")


# ARCO-ERA5 ---------------------------------------------------------------------------------------


def test_months_are_cropped_from_the_globe(globe: Path, tmp_path: Path) -> None:
    done = crop(tmp_path, globe)
    assert files(tmp_path / "era5") == NAMES
    assert (done.n_files, done.n_new) == (4, 4)
    assert (done.first, done.last) == ("2020-01-30T00:00", "2020-02-01T18:00")
    check_fields(tmp_path / "era5")
    with xr.open_dataset(tmp_path / "era5" / "single_2020-01.nc") as ds:
        assert list(ds.data_vars) == ["msl", "u10", "v10"]
        assert ds["valid_time"].size == 8
        assert ds["msl"].attrs["units"] == "Pa"


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_any_chunking_is_cropped_alike(chunk: int, tmp_path: Path) -> None:
    write_arco(tmp_path / "arco.zarr", start=START, hours=72, chunk=chunk)
    crop(tmp_path, tmp_path)
    check_fields(tmp_path / "era5")


def test_no_chunk_is_read_twice_and_none_for_nothing(tmp_path: Path) -> None:
    write_arco(tmp_path / "arco.zarr", start=START, hours=72, chunk=8)
    with file_server(tmp_path) as upstream, breaking(upstream) as (address, faults):
        crop(tmp_path, tmp_path, uri=f"{address}/arco.zarr", end="2020-01-31")
        read = [path for _, path in faults.requests if "mean_sea" in path and "/." not in path]
    numbers = sorted(path.rsplit("/", 1)[1] for path in read)
    assert numbers == [f"{n}.0.0" for n in range(6)]


def test_what_was_fetched_is_what_prepare_reads(fetched: Path) -> None:
    prepared = pipeline.prepare(config(fetched))
    assert prepared.n_maps == 12
    store = xr.open_zarr(fetched / "maps.zarr")
    assert "low_latitude" in store  # pressure and heights are there


def test_a_finished_month_is_not_fetched_again(globe: Path, fetched: Path) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (fetched / "era5").glob("*")}
    done = crop(fetched, globe, uri=str(fetched / "nowhere.zarr"))  # nobody asks it
    assert (done.n_new, done.asked) == (0, ())
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (fetched / "era5").glob("*")}
    assert after == before


def test_a_month_that_has_grown_is_fetched_again_whole(globe: Path, tmp_path: Path) -> None:
    crop(tmp_path, globe, end="2020-01-30")
    done = crop(tmp_path, globe)
    assert done.n_new == 4
    with xr.open_dataset(tmp_path / "era5" / "levels_2020-01.nc") as ds:
        assert ds["valid_time"].size == 8
    check_fields(tmp_path / "era5")
    # A shorter period later asks for nothing, and leaves what is there.
    assert crop(tmp_path, globe, end="2020-01-30").n_new == 0


def test_a_dry_run_tells_and_touches_nothing(globe: Path, tmp_path: Path) -> None:
    done = crop(tmp_path, globe, dry_run=True, uri="gs://nobody/asks.zarr")
    assert done.n_new == 4
    assert done.asked[1].startswith("levels_2020-01.nc: geopotential at 900, 850, 700, 600, 500")
    assert done.asked[1].endswith("of gs://nobody/asks.zarr")
    assert not (tmp_path / "era5").exists()


def test_progress_counts_maps_from_first_to_last(globe: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    crop(tmp_path, globe, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {24}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (24, 24)


def break_store(globe: Path, folder: Path, change: Any) -> str:
    """A copy of the globe with a change to it."""
    shutil.copytree(globe / "arco.zarr", folder / "broken.zarr")
    change(folder / "broken.zarr")
    return str(folder / "broken.zarr")


def rewritten(store: Path, change: Any) -> None:
    """The hours that are asked for, changed; a load of the others would be for nothing."""
    some = change(xr.open_zarr(store).isel(time=slice(None, 48, 6))).load()
    shutil.rmtree(store)
    some.drop_encoding().to_zarr(store, zarr_format=2)


def without(name: str) -> Any:
    return lambda store: rewritten(store, lambda ds: ds.drop_vars(name))


def without_level(store: Path) -> None:
    rewritten(store, lambda ds: ds.sel(level=[300, 500, 900]))


def only_north(store: Path) -> None:
    rewritten(store, lambda ds: ds.sel(latitude=slice(90, 60)))


def without_chunk(store: Path) -> None:
    (store / "mean_sea_level_pressure" / "30.0.0").unlink()


def with_zeros(store: Path) -> None:
    """As a chunk that is missing where the fill value is a number."""
    zarr.open(store / "geopotential")[6] = 0.0


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (without("10m_u_component_of_wind"), "must hold every variable; found no 10m_u_component"),
        (without_level, "must hold every level; found no [400, 600, 700, 850] hPa"),
        (only_north, "must cover data.domain; found another area"),
        (without_chunk, "must hold values at every time; found none at 2020-01-31T06:00"),
        (with_zeros, "must hold values at every time; found none at 2020-01-30T06:00"),
    ],
)
def test_what_a_store_lacks_is_told_and_no_month_is_made_of_it(
    change: Any, law: str, globe: Path, tmp_path: Path
) -> None:
    uri = break_store(globe, tmp_path, change)
    told = refused(lambda: crop(tmp_path, globe, uri=uri, end="2020-01-31"))
    assert told.startswith(uri)
    assert law in told
    assert set(files(tmp_path / "era5")) <= {"single_2020-01.nc"}


def test_times_beyond_the_store_are_told(globe: Path, tmp_path: Path) -> None:
    told = refused(lambda: crop(tmp_path, globe, end="2020-02-05"))
    assert told.endswith("must hold every time; found none at 2020-02-02T00:00")
    assert files(tmp_path / "era5") == ["levels_2020-01.nc", "single_2020-01.nc"]


def test_a_store_that_is_none(tmp_path: Path) -> None:
    told = refused(lambda: crop(tmp_path, tmp_path))
    assert "must be a Zarr store that can be read" in told


def test_a_store_behind_a_failing_server_is_cropped_right(globe: Path, tmp_path: Path) -> None:
    with file_server(globe) as upstream, breaking(upstream) as (address, faults):
        for kind in ("500", "cut", "refused"):
            faults.inject(kind, times=2)
            faults.inject(kind, times=3, on="geopotential")
        crop(tmp_path, globe, uri=f"{address}/arco.zarr")
        assert faults.met == 15
    check_fields(tmp_path / "era5")


def test_a_server_that_stays_away_leaves_the_months_before(globe: Path, tmp_path: Path) -> None:
    with file_server(globe) as upstream, breaking(upstream) as (address, faults):
        faults.inject("cut", times=10**6, on="geopotential/5")  # in February
        told = refused(lambda: crop(tmp_path, globe, uri=f"{address}/arco.zarr"))
        assert told.startswith(f"{address}/arco.zarr: geopotential: must be readable")
        assert "tried 5 times" in told
        assert files(tmp_path / "era5") == [NAMES[0], *NAMES[2:]]
        faults.plan.clear()
        assert crop(tmp_path, globe, uri=f"{address}/arco.zarr").n_new == 1
    check_fields(tmp_path / "era5")


def test_the_public_store_needs_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Seen(Exception):  # noqa: N818  stops before anything is asked
        pass

    def remote(uri: str, options: Any) -> None:
        seen.update(uri=uri, options=options)
        raise Seen

    monkeypatch.setattr(arco, "Remote", remote)
    with pytest.raises(InputError):
        arco.open_store(arco.PUBLIC)
    assert seen == {"uri": arco.PUBLIC, "options": {"gs": {"token": "anon"}}}
    with pytest.raises(InputError):
        arco.open_store(arco.PUBLIC, storage_options={"gs": {"token": "cloud"}})
    assert seen["options"] == {"gs": {"token": "cloud"}}


# The Climate Data Store --------------------------------------------------------------------------


def download(folder: Path, **more: Any) -> Any:
    arguments = {"start": START, "end": END, **more}
    return pipeline.fetch(config(folder), source="cds", **arguments)


def test_months_come_from_the_climate_data_store(account: Jobs, tmp_path: Path) -> None:
    account.looks = 3
    done = download(tmp_path)
    assert (done.n_files, done.n_new) == (4, 4)
    assert files(tmp_path / "era5") == NAMES
    check_fields(tmp_path / "era5")
    assert [dataset for dataset, _ in account.requests] == [
        "reanalysis-era5-single-levels",
        "reanalysis-era5-pressure-levels",
    ] * 2
    first = account.requests[0][1]
    assert (first["year"], first["month"], first["day"]) == (["2020"], ["01"], ["30", "31"])
    assert account.keys == {KEY}
    assert download(tmp_path).n_new == 0
    assert len(account.requests) == 4
    assert pipeline.prepare(config(tmp_path)).n_maps == 12


def test_both_archives_give_the_same_maps(account: Jobs, cropped: Path, tmp_path: Path) -> None:
    download(tmp_path)
    for name in NAMES:
        with (
            xr.open_dataset(tmp_path / "era5" / name) as one,
            xr.open_dataset(cropped / "era5" / name) as other,
        ):
            xr.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


def test_a_failing_store_is_asked_again(
    store_of_all: tuple[str, Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, _ = store_of_all
    with breaking(upstream.removesuffix("/api")) as (address, faults):
        monkeypatch.setenv("CDSAPI_URL", f"{address}/api")
        monkeypatch.setenv("CDSAPI_KEY", KEY)
        faults.inject("500", times=1, on="processes")
        faults.inject("503", times=1, on="execution", methods=("POST",))
        faults.inject("refused", times=2, on="/jobs/")
        faults.inject("cut", times=2, on="/files/")
        download(tmp_path, end="2020-01-30")
        assert faults.met == 6
    check_fields(tmp_path / "era5")


def test_a_store_that_does_not_answer_is_one_error(
    account: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("CDSAPI_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("CDSAPI_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        told = refused(lambda: download(tmp_path))
    assert told.startswith("Climate Data Store: single_2020-01.nc: must answer (5 tries)")
    assert KEY not in told + caplog.text
    assert files(tmp_path / "era5") == []


@pytest.mark.parametrize(
    ("fault", "key", "law"),
    [
        ("request too large", KEY, "The job has failed request too large"),
        ("", "wrong-key", "found 401 Client Error"),
    ],
)
def test_what_the_store_refuses_is_told(
    fault: str, key: str, law: str, account: Jobs, tmp_path: Path
) -> None:
    account.fault = fault
    told = refused(lambda: download(tmp_path, key=key))
    assert told.startswith("Climate Data Store: single_2020-01.nc: must give what is asked for")
    assert law in told
    assert fault in told
    assert key not in told
    assert files(tmp_path / "era5") == []


def test_without_a_key_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CDSAPI_URL", "CDSAPI_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "cdsapirc"))
    told = refused(lambda: download(tmp_path))
    assert str(tmp_path / "cdsapirc") in told


def test_a_month_of_which_not_all_is_there_yet_is_not_kept(account: Jobs, tmp_path: Path) -> None:
    account.until = np.datetime64("2020-01-31T06:00")
    told = refused(lambda: download(tmp_path))
    assert told == (
        "cds: single_2020-01.nc: every map that was asked for must come; end the period before; "
        "found fewer than 8 maps"
    )
    assert files(tmp_path / "era5") == []
    assert download(tmp_path, end="2020-01-30").n_new == 2


def test_neither_key_nor_signature_is_told_or_kept(
    account: Jobs, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    medicane = Medicane(capfd)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    words = ("fetch", "--config", file, "--source", "cds", "--start", START, "--end", END)
    with caplog.at_level(logging.DEBUG):
        answers = [medicane("--debug", *words)]
        (tmp_path / "era5" / NAMES[0]).unlink()
        account.fault = "failed on purpose"
        answers.append(medicane("--debug", *words))
    assert [answer.status for answer in answers] == [0, 2]
    assert "files      4, 4 new" in answers[0].out
    told = "".join(answer.out + answer.err for answer in answers)
    written = b"".join(p.read_bytes() for p in (tmp_path / "era5").iterdir())
    for secret in (KEY, "planted-signature"):
        assert secret not in told
        assert secret not in caplog.text
        assert secret.encode() not in written


# Folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grids", [["a/*.nc", "b/*.nc"], "s3://bucket/*.nc", "era5/2020.nc", "era5/[12]*/*.nc"]
)
def test_the_folder_is_that_of_one_glob_or_is_said(grids: Any, globe: Path, tmp_path: Path) -> None:
    elsewhere = make_config({"schema_version": 1, "data": {"grids": grids}})
    arguments = {"source": "arco", "start": "2020", "end": "2020", "dry_run": True}
    told = refused(lambda: pipeline.fetch(elsewhere, **arguments))
    assert told.startswith("data.grids: must be one glob, FOLDER/*.nc")
    done = pipeline.fetch(elsewhere, out=tmp_path / "here", **arguments)
    assert done.folder == str(tmp_path / "here")


def test_a_uri_is_no_answer_of_the_climate_data_store(tmp_path: Path) -> None:
    assert refused(lambda: download(tmp_path, uri="gs://x")).startswith("--uri: is that of a Zarr")


@pytest.mark.parametrize(
    ("changed", "law"),
    [
        ({"domain": {"east": 30}}, "longitude: must be that of data.domain"),
        ({"domain": {"south": 34}}, "latitude: must be that of data.domain"),
        ({"channels": ["msl", "t2m"]}, "single_2020-01.nc: must hold t2m"),
        ({"channels": ["zg_1000"]}, "levels_2020-01.nc: levels: must hold [1000, 900"),
    ],
)
def test_months_of_another_request_are_not_mixed_in(
    changed: dict[str, Any], law: str, globe: Path, fetched: Path
) -> None:
    uri = str(globe / "arco.zarr")
    other = config(fetched, **changed)
    told = refused(lambda: pipeline.fetch(other, source="arco", uri=uri, start=START, end=END))
    assert law in told
    assert files(fetched / "era5") == NAMES


def test_a_broken_month_is_told_and_not_replaced(globe: Path, fetched: Path) -> None:
    path = fetched / "era5" / NAMES[0]
    path.write_bytes(path.read_bytes()[:500])
    assert f"{path}: must be a whole NetCDF file" in refused(lambda: crop(fetched, globe))


def test_other_step_and_members_of_a_file_are_no_hindrance(globe: Path, tmp_path: Path) -> None:
    """Hourly files hold what a six-hourly configuration wants."""
    hourly = config(tmp_path, step_hours=1)
    uri = str(globe / "arco.zarr")
    pipeline.fetch(hourly, source="arco", uri=uri, start=START, end="2020-01-30")
    assert crop(tmp_path, globe, end="2020-01-30").n_new == 0


def test_two_at_once_do_not_mix(globe: Path, tmp_path: Path) -> None:
    from medicane.store.commits import sole_writer

    (tmp_path / "era5").mkdir()
    with sole_writer(tmp_path / "era5" / "fetch"):
        assert "one process at a time" in refused(lambda: crop(tmp_path, globe))


@pytest.mark.slow
def test_a_kill_loses_no_finished_month_and_leaves_no_half_one(
    globe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import json, sys; from medicane import pipeline; from medicane.config import make_config\n"
        "pipeline.fetch(make_config(json.loads(sys.argv[1])), source='arco', uri=sys.argv[2],"
        " start=sys.argv[3], end=sys.argv[4])"
    )
    draw = np.random.default_rng(0)
    with file_server(globe) as upstream, breaking(upstream) as (address, faults):
        for round_ in range(4):
            faults.inject("drip", times=10**6)
            arguments = [json.dumps(settings(tmp_path)), f"{address}/arco.zarr", START, END]
            asked_before = len(faults.requests)
            with subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            ) as process:
                until = asked_before + int(draw.integers(20, 60))
                while len(faults.requests) < until and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            whole = list((tmp_path / "era5").glob("*.nc"))
            months = planned_months(config(tmp_path), tmp_path / "era5", start=START, end=END)
            for month in months:
                if month.path in whole:
                    assert holds(month), round_
        faults.plan.clear()
        crop(tmp_path, globe, uri=f"{address}/arco.zarr")
    assert files(tmp_path / "era5") == NAMES
    check_fields(tmp_path / "era5")


# The command and the flow ------------------------------------------------------------------------


def test_the_command_fetches_and_says_what(
    globe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    medicane = Medicane(capfd)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    words = ["fetch", "--config", file, "--source", "arco", "--start", START, "--end", END]
    words += ["--uri", globe / "arco.zarr"]
    told = medicane.done(*words, "--dry-run")
    assert "files      4, 4 missing" in told
    assert "levels_2020-02.nc: geopotential at 900" in told
    assert not (tmp_path / "era5").exists()
    told = medicane.done(*words)
    assert f"folder     {tmp_path / 'era5'}\nfiles      4, 4 new\n" in told
    assert "period     2020-01-30T00:00 to 2020-02-01T18:00" in told
    words[words.index(END)] = "2019"
    answer = medicane(*words)
    assert answer.line.startswith("medicane: --end: must not be before --start; found 2020-01-30")


def test_without_the_extra_one_line_names_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    monkeypatch.setitem(sys.modules, "cdsapi", None)  # an import of it fails
    words = ["fetch", "--config", file, "--source", "cds", "--start", START, "--end", END]
    assert Medicane(capfd)(*words).line == (
        "medicane: medicane fetch --source cds: needs cdsapi: pip install 'medicane[cloud]'"
    )


def test_the_task_of_the_flow_takes_its_key_from_a_block(
    account: Jobs, globe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.system import Secret

    from flows.fetch import bring_months

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    asked_for: list[str] = []

    def load(name: str) -> Secret[str]:
        asked_for.append(name)
        return Secret(value=KEY)

    monkeypatch.setattr(Secret, "load", load)
    Path(os.environ["CDSAPI_RC"]).write_text(
        Path(os.environ["CDSAPI_RC"]).read_text().replace(KEY, "another-key")
    )
    done = bring_months.fn(file, "cds", START, "2020-01-30", None, None, "cds-key")
    assert (asked_for, account.keys) == (["cds-key"], {KEY})
    assert done.n_new == 2
    assert KEY not in done.model_dump_json()
