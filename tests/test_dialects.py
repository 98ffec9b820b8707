"""Golden files in the dialects that people have: each becomes the identical dataset."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import config, names
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.standardise import standardise
from tests import dialects

AREA = config.Domain(north=40, south=36, west=10, east=16)
WANTED = ("msl", "u10", "v10", "zg")


def standard(uri, **options) -> xr.Dataset:
    options = {"domain": AREA, "degrees": 0.5, "variables": WANTED, **options}
    return standardise(open_grids(uri), **options).compute()


def truth(values) -> xr.Dataset:
    """What every dialect must become, made without opening a file."""
    ds = dialects.dataset(values, height=True).rename(level=names.LEVEL)
    return ds[list(WANTED)].drop_attrs()


def identical(found: xr.Dataset, values) -> None:
    xr.testing.assert_identical(found.drop_attrs(), truth(values))
    for name, array in found.data_vars.items():
        assert array.dtype == np.float32
        assert array.attrs["units"] == names.VARIABLES[str(name)].units


def refused(uri, *, select=None, **options) -> str:
    with pytest.raises(InputError) as told:
        standardise(open_grids(uri, select=select), select=select or {}, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture
def grib():
    try:
        import cfgrib  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no GRIB here: {error}")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (dialects.today, "today.nc"),
        (dialects.before, "before.nc"),
        (dialects.of_both_versions, "both.nc"),
        (dialects.in_a_zip, "era5.nc"),
        (dialects.arco, "arco.zarr"),
        (dialects.weatherbench, "wb2.zarr"),
        (dialects.coards, "coards.nc"),
        (dialects.cmip6, "cmip6"),
        (dialects.cordex, "cordex"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_dialect_becomes_the_identical_dataset(
    write: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    values = dialects.fields()
    identical(standard(write(tmp_path / name, values)), values)


@pytest.mark.parametrize("write", [dialects.gfs, dialects.open_data])
def test_forecasts_in_grib_become_the_identical_dataset(write, grib, tmp_path) -> None:
    values = dialects.fields()
    identical(standard(write(tmp_path / "grib", values)), values)


# The Climate Data Store --------------------------------------------------------------------------


def test_era5_wins_over_era5t_and_what_was_merged_is_told(tmp_path, caplog) -> None:
    path = dialects.of_both_versions(tmp_path / "both.nc", dialects.fields())
    with caplog.at_level(logging.INFO):
        raw = open_grids(path)
    assert "3 maps of ERA5, 1 of ERA5T" in caplog.text
    assert raw["expver"].values.tolist() == [1, 1, 1, 5]
    caplog.clear()
    standardise(raw, variables=["msl"], where="both.nc")
    assert "both.nc: 1 of 4 maps, 2020-09-17T18:00:00" in caplog.text
    assert "ERA5T (expver 5)" in caplog.text


def test_a_version_can_be_selected(tmp_path) -> None:
    values = dialects.fields()
    path = dialects.of_both_versions(tmp_path / "both.nc", values)
    final = open_grids(path, select={"expver": 1})
    np.testing.assert_array_equal(final["msl"][:3], values["msl"][:3].astype("f4"))
    assert np.isnan(final["msl"][3]).all()


def as_version(path: Path, version: str) -> None:
    import netCDF4

    with netCDF4.Dataset(path, "a") as file:
        file["expver"][:] = np.array([version] * file["expver"].size, dtype=object)


def test_final_files_replace_preliminary_ones_of_the_same_times(tmp_path) -> None:
    """The month was downloaded early; a part of it has come again as ERA5."""
    values, later = dialects.fields(8), dialects.fields(4, seed=2)
    as_version(dialects.today(tmp_path / "early.nc", values), "0005")
    dialects.today(tmp_path / "final.nc", later)
    ds = open_grids(str(tmp_path / "*.nc"))
    assert ds["expver"].values.tolist() == [1] * 4 + [5] * 4
    np.testing.assert_array_equal(ds["msl"][:4], later["msl"].astype("f4"))
    np.testing.assert_array_equal(ds["msl"][4:], values["msl"][4:].astype("f4"))


def test_two_preliminary_files_of_the_same_times_are_refused(tmp_path) -> None:
    for name in ("a.nc", "b.nc"):
        as_version(dialects.today(tmp_path / name, dialects.fields()), "0005")
    with pytest.raises(InputError, match="must not overlap in time"):
        open_grids(str(tmp_path / "*.nc"))


def test_files_that_say_their_version_beside_some_that_do_not(tmp_path) -> None:
    values = dialects.fields(8)
    first = {name: field[:4] for name, field in values.items()}
    ds = dialects.dataset({n: f[4:] for n, f in values.items()}).rename(
        time="valid_time", level="pressure_level"
    )
    ds = ds.assign_coords(valid_time=dialects.times_of(8)[4:])
    ds.to_netcdf(tmp_path / "b.nc")
    dialects.today(tmp_path / "a.nc", first)
    found = open_grids(str(tmp_path / "*.nc"))
    assert found["expver"].values.tolist() == [1] * 4 + [0] * 4
    assert standardise(found).sizes["time"] == 8


def test_members_are_listed_and_one_is_selected(tmp_path) -> None:
    values = dialects.fields()
    ds = dialects.dataset(values)[["msl"]]
    members = xr.concat([ds + 4 * m for m in range(3)], pd.Index([0, 1, 2], name="number"))
    members["msl"].attrs["units"] = "Pa"
    members.to_netcdf(tmp_path / "members.nc")
    told = refused(tmp_path / "members.nc")
    assert "number: select one value" in told
    assert "[0, 1, 2]" in told
    raw = open_grids(tmp_path / "members.nc", select={"number": 2})
    one = standardise(raw, select={"number": 2})
    np.testing.assert_array_equal(one["msl"], (values["msl"] + 8).astype("f4"))


def test_a_member_that_is_not_there_is_not_taken_for_another(tmp_path) -> None:
    """A file of one member says which: asking for another one is an error, not that one."""
    path = dialects.today(tmp_path / "one.nc", dialects.fields())
    assert standardise(open_grids(path), select={"number": 0}).sizes["time"] == 4
    told = refused(path, select={"number": 3})
    assert "data.select: number: must be one of [0]; found 3" in told
    assert "must be a dimension of the data" in refused(path, select={"realisation": 1})


# ZIP ---------------------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([("../../escaped.nc", b"CDF\x01")], "lead out of the archive"),
        ([("/tmp/absolute.nc", b"CDF\x01")], "lead out of the archive"),
        ([("notes.txt", b"hello")], "NetCDF or GRIB files only"),
        ([("data.nc", b"hello")], "data.nc: must be NetCDF"),
        ([("inner.nc", b"PK\x03\x04")], "inner.nc: must be NetCDF or GRIB"),
        ([("cut.nc", b"\x89HDF\r\n\x1a\n")], "cut.nc"),
        ([], "an empty ZIP archive"),
    ],
)
def test_archives_that_are_refused(members, found, tmp_path) -> None:
    path = tmp_path / "era5.zip"
    archive(path, *members)
    if not members:
        path.write_bytes(b"PK\x03\x04")
        found = "whole ZIP archive"
    told = refused(path)
    assert found in told
    assert "era5.zip" in told
    assert not (tmp_path.parent / "escaped.nc").exists()


def test_an_archive_with_a_flipped_bit(tmp_path) -> None:
    path = dialects.in_a_zip(tmp_path / "era5.zip", dialects.fields(40))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "era5.zip: must be a whole ZIP archive" in refused(path)


def test_an_archive_is_unpacked_once_and_read_after_it_has_gone(tmp_path) -> None:
    path = dialects.in_a_zip(tmp_path / "era5.zip", dialects.fields())
    one, two = open_grids(path), open_grids(path)
    assert one["msl"].data.name == two["msl"].data.name
    path.unlink()
    assert np.isfinite(one["msl"]).all()


def test_an_archive_of_two_grids(tmp_path) -> None:
    """Waves come on a grid of their own."""
    with zipfile.ZipFile(tmp_path / "era5.zip", "w") as file:
        values = dialects.fields()
        file.write(dialects.today(tmp_path / "instant.nc", values), "instant.nc")
        waves = dialects.dataset(values)[["msl"]].isel(latitude=slice(0, None, 2))
        waves.rename(msl="swh", time="valid_time").to_netcdf(tmp_path / "wave.nc")
        file.write(tmp_path / "wave.nc", "wave.nc")
    told = refused(tmp_path / "era5.zip")
    assert "latitude: coordinates must be exactly equal" in told
    assert "wave.nc" in told


# Forecasts ---------------------------------------------------------------------------------------


def test_one_file_of_a_forecast_is_one_map(grib, tmp_path) -> None:
    values = dialects.fields()
    dialects.gfs(tmp_path / "gfs", values)
    one = standard(tmp_path / "gfs" / "kwbc_f012.grib2")
    xr.testing.assert_identical(one.drop_attrs(), truth(values).isel(time=[2]))


def test_what_is_left_out_of_a_mixed_grib_file_is_told(grib, tmp_path) -> None:
    dialects.gfs(tmp_path / "gfs", dialects.fields())
    raw = open_grids(tmp_path / "gfs" / "kwbc_f006.grib2")
    assert set(raw.data_vars) == {"prmsl", "u10", "v10", "gh"}
    assert "u (potentialVorticity)" in raw.attrs["left_out"]
    assert "r (isobaricInhPa)" in raw.attrs["left_out"]


def test_files_of_two_grids_are_not_mixed(grib, tmp_path) -> None:
    values = dialects.fields()
    dialects.gfs(tmp_path / "gfs", values)
    surface = {name: field for name, field in values.items() if name == "msl"}
    ds = dialects.dataset(surface)[["msl"]].rename(msl="t2m").isel(latitude=slice(1, None))
    ds.rename(time="valid_time").to_netcdf(tmp_path / "other.nc")
    told = refused([str(tmp_path / "gfs" / "*.grib2"), str(tmp_path / "other.nc")])
    assert "latitude: coordinates must be exactly equal" in told


# Stores in the cloud ----------------------------------------------------------------------------


def test_times_ahead_of_the_data_are_no_maps(caplog) -> None:
    """ARCO-ERA5 has an axis of 150 years, and says in attributes what it holds."""
    ds = dialects.dataset(dialects.fields(8))
    ahead = ds.assign_attrs(valid_time_start="1940-01-01", valid_time_stop="2020-09-17")
    assert standardise(ahead).sizes["time"] == 4
    assert not caplog.records
    ahead.attrs["valid_time_stop_era5t"] = "2020-09-18"
    assert standardise(ahead, where="arco").sizes["time"] == 8
    assert "arco: 4 of 8 maps, 2020-09-18T00:00:00" in caplog.text
    ahead.attrs = {"valid_time_stop": "1999-12-31"}
    with pytest.raises(InputError, match="the data end on 1999-12-31"):
        standardise(ahead)


# Calendars and models ----------------------------------------------------------------------------


@pytest.mark.parametrize("calendar", ["360_day", "noleap"])
def test_other_calendars_keep_their_dates(calendar, tmp_path) -> None:
    values = dialects.fields()
    found = standard(dialects.cmip6(tmp_path / "cmip6", values, calendar=calendar))
    assert found.indexes["time"].calendar == calendar
    dates = [f"{t:%Y-%m-%dT%H}" for t in found.indexes["time"].to_list()]
    assert dates == [f"{t:%Y-%m-%dT%H}" for t in dialects.times_of()]
    rest = truth(values).drop_vars("time")
    xr.testing.assert_identical(found.drop_vars("time").drop_attrs(), rest)


def test_a_level_that_the_name_denies(tmp_path) -> None:
    ds = dialects.dataset(dialects.fields(), height=True)[["zg"]].isel(level=0, drop=True)
    ds = ds.rename(zg="zg500").assign_coords(plev=((), 85_000.0, {"units": "Pa"}))
    ds.to_netcdf(tmp_path / "zg500.nc")
    assert "zg500 must be at 500 hPa; found 850 hPa" in refused(tmp_path / "zg500.nc")


def test_named_levels_that_variables_do_not_share() -> None:
    ds = dialects.dataset(dialects.fields(), height=True)
    low, high = (ds["zg"].isel(level=i, drop=True) for i in (1, 2))
    fields = xr.Dataset({"zg600": low, "zg300": high, "ua850": ds["u10"]})
    assert standardise(fields, variables=["zg"])["pressure_level"].values.tolist() == [600, 300]
    with pytest.raises(InputError, match="levels in common; found zg at 600, 300 hPa; u at 850"):
        standardise(fields, variables=["zg", "u"])
    with pytest.raises(InputError, match="only one variable may be zg"):
        standardise(fields.assign(zg=ds["zg"]), variables=["zg"])


def test_model_levels_without_units_are_no_pressures() -> None:
    ds = dialects.dataset(dialects.fields())[["z"]]
    numbered = ds.assign_coords(level=[1, 2, 3])
    with pytest.raises(InputError, match="levels must be pressures"):
        standardise(numbered)
    assert standardise(ds)["pressure_level"].values.tolist() == [900, 600, 300]


def test_levels_on_two_axes() -> None:
    ds = dialects.dataset(dialects.fields())
    other = ds[["z"]].rename(z="t", level="plev").isel(plev=slice(0, 2))
    other["t"] = other["t"] * 0 + 250
    other["t"].attrs["units"] = "K"
    with pytest.raises(InputError, match="levels must be on one axis; found level and plev"):
        standardise(ds.merge(other))


def test_units_are_read_from_the_attribute_alone(tmp_path) -> None:
    path = dialects.coards(tmp_path / "coards.nc", dialects.fields())
    with xr.open_dataset(path) as ds:
        bare = ds.load()
    del bare["slp"].attrs["units"]
    bare["slp"].attrs["long_name"] = "** mean sea level [pa]"
    bare.to_netcdf(tmp_path / "bare.nc")
    assert "slp: the units attribute is missing" in refused(tmp_path / "bare.nc")
