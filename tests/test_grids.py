"""Opening grids: every format, nothing computed, and every broken input told by name."""

from __future__ import annotations

import json
import pickle
import sys

import dask
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

from medicane.errors import InputError
from medicane.grids import lazy, open_grids
from tests import dialects


@pytest.fixture
def no_computing():
    """Any computation by dask fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("computed while opening")

    with dask.config.set(scheduler=refuse):
        yield


def refused(uri, **options) -> str:
    with pytest.raises(InputError) as told:
        open_grids(uri, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def grib(real_data):
    try:
        import cfgrib  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no GRIB here: {error}")
    return real_data


# One file --------------------------------------------------------------------------------------


def test_a_netcdf_file_as_it_is(tmp_path, no_computing):
    path = dialects.today(tmp_path / "era5.nc", dialects.fields())
    ds = open_grids(path)
    assert set(ds.data_vars) == {"msl", "u10", "v10", "z"}
    assert ds["z"].dims == ("valid_time", "pressure_level", "latitude", "longitude")
    assert ds["msl"].attrs["units"] == "Pa"
    assert ds["valid_time"].dtype == "datetime64[ns]"
    assert json.loads(ds.attrs["source_files"]) == [str(path)]


def test_packed_values_are_decoded(tmp_path):
    values = dialects.fields()
    ds = open_grids(dialects.before(tmp_path / "era5.nc", values))
    np.testing.assert_array_equal(ds["msl"].values, values["msl"])


def test_every_data_variable_is_lazy_and_whole_in_space(tmp_path, no_computing):
    ds = open_grids(dialects.today(tmp_path / "era5.nc", dialects.fields()))
    for name in ds.data_vars:
        blocks = dict(zip(ds[name].dims, ds[name].chunks, strict=True))
        assert blocks["latitude"] == (dialects.LATITUDE.size,)
        assert blocks["longitude"] == (dialects.LONGITUDE.size,)


def test_blocks_are_tens_of_maps_and_bounded(tmp_path, monkeypatch):
    path = dialects.before(tmp_path / "era5.nc", dialects.fields(300))
    ds = open_grids(path)
    assert ds["msl"].chunks[0] == (128, 128, 44)
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 10 * ds["z"].nbytes // 300)
    opened = open_grids(path)
    assert set(opened["z"].chunks[0]) == {10}
    assert opened["msl"].chunks[0] == opened["z"].chunks[0]  # cut in the same places


def test_blocks_keep_to_the_stored_chunks(tmp_path):
    ds = xr.Dataset(
        {"msl": (("time", "latitude", "longitude"), np.full((200, 5, 6), 1e5))},
        coords={"time": xr.date_range("2001-01-01", periods=200, freq="6h")},
    )
    path = tmp_path / "chunked.nc"
    ds.to_netcdf(path, encoding={"msl": {"chunksizes": (40, 5, 6), "zlib": True}})
    assert open_grids(path)["msl"].chunks[0] == (120, 80)
    ds.to_netcdf(path, encoding={"msl": {"chunksizes": (200, 5, 6), "zlib": True}})
    assert open_grids(path)["msl"].chunks[0] == (200,)


def test_other_calendars_stay(tmp_path):
    path = tmp_path / "model.nc"
    times = xr.date_range("2001-02-28", periods=4, freq="D", calendar="360_day", use_cftime=True)
    xr.Dataset({"psl": ("time", np.ones(4))}, coords={"time": times}).to_netcdf(path)
    ds = open_grids(path)
    assert [str(t)[:10] for t in ds["time"].values][1:3] == ["2001-02-29", "2001-02-30"]


def test_a_zarr_store(tmp_path, no_computing):
    path = tmp_path / "maps.zarr"
    with dask.config.set(scheduler="synchronous"):
        source = open_grids(dialects.today(tmp_path / "era5.nc", dialects.fields()))
        source.drop_vars("expver").drop_encoding().to_zarr(path, zarr_format=3, consolidated=False)
    ds = open_grids(path)
    assert ds["msl"].chunks is not None
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_equal(
            ds["msl"].drop_vars("number"), source["msl"].drop_vars(["number", "expver"])
        )


def test_select_takes_one_member_before_anything_is_read(tmp_path, no_computing):
    path = tmp_path / "members.nc"
    xr.Dataset(
        {"msl": (("number", "time"), np.arange(6.0).reshape(2, 3))},
        coords={"number": [0, 5], "time": xr.date_range("2001-01-01", periods=3)},
    ).to_netcdf(path)
    assert open_grids(path, select={"number": 5})["msl"].dims == ("time",)
    assert "there are [0, 5]" in refused(path, select={"number": 3})


# Several files ---------------------------------------------------------------------------------


def months(folder, *, kinds=("surface", "pressure")):
    for month, start in enumerate(["2020-09-17", "2020-09-18", "2020-09-19"]):
        values = dialects.fields(seed=month)
        for kind in kinds:
            some = {k: v for k, v in values.items() if (k == "z") == (kind == "pressure")}
            dialects.today(folder / f"{kind}_{start}.nc", some, start=start)


def test_a_glob_of_months_split_by_kind(tmp_path, no_computing):
    months(tmp_path)
    ds = open_grids(str(tmp_path / "*.nc"))
    assert set(ds.data_vars) == {"msl", "u10", "v10", "z"}
    assert ds.sizes["valid_time"] == 12
    assert ds.indexes["valid_time"].is_monotonic_increasing
    assert len(json.loads(ds.attrs["source_files"])) == 6


def test_the_glob_holds_the_values_of_its_files(tmp_path):
    months(tmp_path)
    ds = open_grids(str(tmp_path / "*.nc"))
    expected = np.concatenate([dialects.fields(seed=month)["z"] for month in range(3)])
    np.testing.assert_array_equal(ds["z"].values, expected.astype(np.float32))


def test_the_order_of_a_list_does_not_matter(tmp_path):
    months(tmp_path)
    files = sorted(tmp_path.glob("*.nc"))
    xr.testing.assert_identical(
        open_grids(files).drop_attrs(),
        open_grids(files[::-1]).drop_attrs()[list(open_grids(files))],
    )


def test_few_tasks_per_file(tmp_path):
    months(tmp_path)
    ds = open_grids(str(tmp_path / "*.nc"))
    tasks = len(ds["msl"].__dask_graph__())
    assert tasks <= 3 * 3, f"{tasks=} for three files"


def test_files_that_overlap_in_time(tmp_path):
    a = dialects.today(tmp_path / "a.nc", dialects.fields(4), start="2020-09-17")
    b = dialects.today(tmp_path / "b.nc", dialects.fields(4), start="2020-09-17T18")
    told = refused([a, b])
    assert "a.nc" in told
    assert "b.nc" in told
    assert "overlap in time" in told
    assert "2020-09-17T18:00:00" in told


def shifted(path, tmp_path, name, **change):
    ds = xr.load_dataset(path)
    out = tmp_path / name
    ds.assign_coords({k: ds[k] + v for k, v in change.items()}).to_netcdf(out)
    return out


def test_conflicting_coordinates_of_files_in_a_row(tmp_path):
    a = dialects.before(tmp_path / "a.nc", {"msl": dialects.fields()["msl"]})
    b = dialects.before(tmp_path / "b.nc", {"msl": dialects.fields()["msl"]}, start="2020-09-18")
    told = refused([a, shifted(b, tmp_path, "c.nc", latitude=0.25)])
    assert "latitude: coordinates must be exactly equal" in told
    assert "c.nc" in told
    assert "40.25 to 36.25" in told


def test_conflicting_coordinates_of_files_side_by_side(tmp_path):
    values = dialects.fields()
    a = dialects.today(tmp_path / "a.nc", {"msl": values["msl"]})
    b = dialects.today(tmp_path / "b.nc", {"z": values["z"]}, start="2020-09-18")
    told = refused([a, b])
    assert "valid_time: coordinates must be exactly equal" in told
    assert "2020-09-18" in told


def test_dialects_are_not_mixed(tmp_path):
    values = dialects.fields()
    a = dialects.today(tmp_path / "a.nc", {"msl": values["msl"]})
    b = dialects.before(tmp_path / "b.nc", {"z": values["z"]})
    assert "one time dimension; found valid_time and time" in refused([a, b])


def test_a_variable_in_two_kinds_of_file(tmp_path):
    values = dialects.fields()
    a = dialects.today(tmp_path / "a.nc", {"msl": values["msl"]})
    b = dialects.today(tmp_path / "b.nc", {"msl": values["msl"], "u10": values["u10"]})
    assert "['msl']" in refused([a, b])


# GRIB ------------------------------------------------------------------------------------------


def test_two_grib_files_are_one_forecast(real_data, no_computing):
    folder = grib(real_data)
    ds = open_grids(str(folder / "arpege_*_20180501.grib"))
    assert {"msl", "u10", "v10"} <= set(ds.data_vars)
    assert ds.sizes["step"] == 25
    assert not list(folder.glob("*.idx"))


def test_grib_members_stay_a_dimension(real_data, no_computing):
    ds = open_grids(grib(real_data) / "era5_members_global_201701.grib")
    assert ds.sizes["number"] == 10
    assert ds["z"].chunks is not None


def test_a_grib_file_cut_short(real_data, tmp_path):
    whole = (grib(real_data) / "arpege_mslp_gulf_of_lion_20180501.grib").read_bytes()
    cut = tmp_path / "cut.grib"
    cut.write_bytes(whole[:100_000])
    told = refused(cut)
    assert "cut.grib" in told
    assert "whole GRIB" in told


def test_without_cfgrib_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.grib"
    path.write_bytes(b"GRIB" + bytes(100))
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    assert "pip install 'medicane[grib]'" in refused(path)


# Broken inputs ---------------------------------------------------------------------------------


def test_an_empty_glob(tmp_path):
    told = refused(str(tmp_path / "*.nc"))
    assert str(tmp_path / "*.nc") in told
    assert "at least one file" in told


def test_nothing_at_all():
    assert "at least one" in refused([])


def test_a_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.nc")


def test_a_folder_that_is_not_a_store(tmp_path):
    assert "FOLDER/*.nc" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>request queued</html>", "begins with b'<html>request"),
        (b"", "an empty file"),
    ],
)
def test_a_file_that_only_looks_like_netcdf(tmp_path, content, found):
    path = tmp_path / "era5.nc"
    path.write_bytes(content)
    told = refused(path)
    assert "must be NetCDF, GRIB or Zarr" in told
    assert found in told


@pytest.mark.parametrize("dialect", [dialects.today, dialects.before])
def test_a_netcdf_file_cut_short(tmp_path, dialect):
    path = dialect(tmp_path / "whole.nc", dialects.fields(40))
    cut = tmp_path / "cut.nc"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    told = refused(cut)
    assert "cut.nc" in told
    assert "whole NetCDF" in told


def test_a_netcdf_file_with_rotten_data_is_named_when_it_is_read(tmp_path):
    path = dialects.today(tmp_path / "rotten.nc", dialects.fields(40))
    with h5py.File(path) as file:
        packed = file["u10"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[packed.byte_offset : packed.byte_offset + packed.size] = bytes(packed.size)
    path.write_bytes(content)
    ds = open_grids(path)
    with pytest.raises(InputError, match=r"rotten\.nc: u10: the data must be readable"):
        ds.compute()


def test_a_file_that_vanishes_after_opening_is_named(tmp_path):
    path = dialects.today(tmp_path / "gone.nc", {"msl": dialects.fields()["msl"]})
    ds = open_grids(path)
    xr.backends.file_manager.FILE_CACHE.clear()
    path.unlink()
    with pytest.raises(InputError, match=r"gone\.nc: msl: the data must be readable"):
        ds["msl"].compute()


def test_a_time_axis_that_is_not_cf(tmp_path):
    path = tmp_path / "odd.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", 3)
        time = file.createVariable("time", "f8", ("time",))
        time.units, time[:] = "fortnights since the beginning", [0, 1, 2]
        file.createVariable("msl", "f8", ("time",))[:] = 1e5
    told = refused(path)
    assert "CF time axis" in told
    assert "odd.nc" in told


def test_errors_of_worker_processes_keep_their_line(tmp_path):
    error = InputError("a.nc: msl", "must be readable", found="nothing")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError)
    assert str(again) == str(error)


def test_opened_grids_travel_to_worker_processes(tmp_path):
    ds = open_grids(dialects.today(tmp_path / "era5.nc", dialects.fields()))
    xr.testing.assert_identical(pickle.loads(pickle.dumps(ds)).compute(), ds.compute())


# Units of files that are joined ----------------------------------------------------------------


@pytest.mark.parametrize("units", ["hPa", None])
def test_files_that_follow_one_another_must_have_one_unit(tmp_path, units):
    dialects.today(tmp_path / "a.nc", dialects.fields())
    dialects.today(tmp_path / "b.nc", dialects.fields(), start="2020-09-18")
    with netCDF4.Dataset(tmp_path / "b.nc", "a") as file:
        file["msl"].delncattr("units")
        if units:
            file["msl"].units = units
    told = refused(tmp_path / "*.nc")
    assert f"b.nc: msl: units must be those of {tmp_path}/a.nc ('Pa'); found {units!r}" in told
