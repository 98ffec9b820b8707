"""The standard: every dialect becomes the same dataset, and what is unclear is refused."""

from __future__ import annotations

import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import config, names
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.standardise import land_sea_mask, standardise
from tests import dialects

MEDITERRANEAN = config.Domain()


def maps(
    *,
    latitude=None,
    longitude=None,
    n=3,
    name="msl",
    units: str | None = "Pa",
    values=None,
    times=None,
) -> xr.Dataset:
    """MSLP on a grid of one's own; random unless given."""
    latitude = np.arange(48, 27.9, -0.25) if latitude is None else np.asarray(latitude)
    longitude = np.arange(-10, 42.1, 0.25) if longitude is None else np.asarray(longitude)
    shape = (n, latitude.size, longitude.size)
    if values is None:
        values = 101_000 + 500 * np.random.default_rng(0).standard_normal(shape)
    times = pd.date_range("2001-01-01", periods=n, freq="6h") if times is None else times
    return xr.Dataset(
        {
            name: (
                ("time", "latitude", "longitude"),
                np.broadcast_to(values, shape),
                {} if units is None else {"units": units},
            )
        },
        coords={"time": times, "latitude": latitude, "longitude": longitude},
    )


def refused(ds: xr.Dataset, **options) -> str:
    with pytest.raises(InputError) as told:
        standardise(ds, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


# Dialects --------------------------------------------------------------------------------------


def test_both_era5_dialects_give_the_identical_dataset(tmp_path):
    values = dialects.fields()
    today = open_grids(dialects.today(tmp_path / "today.nc", values))
    before = open_grids(dialects.before(tmp_path / "before.nc", values))
    a, b = (standardise(ds).drop_attrs(deep=False) for ds in (today, before))
    xr.testing.assert_identical(a.compute(), b.compute())
    assert set(a.data_vars) == {"msl", "u10", "v10", "zg"}
    assert a["zg"].dims == ("time", "pressure_level", "latitude", "longitude")
    np.testing.assert_array_equal(a["pressure_level"], [900, 600, 300])
    np.testing.assert_allclose(a["zg"], values["z"] / 9.80665, rtol=1e-6)


def test_what_leaves_follows_the_contract(tmp_path):
    ds = standardise(open_grids(dialects.today(tmp_path / "a.nc", dialects.fields())))
    assert set(ds.coords) == {"time", "pressure_level", "latitude", "longitude"}
    assert ds["time"].dtype == "datetime64[ns]"
    assert (np.diff(ds["latitude"]) < 0).all()
    assert (np.diff(ds["longitude"]) > 0).all()
    for name, array in ds.data_vars.items():
        assert array.dtype == np.float32
        assert array.attrs["units"] == names.VARIABLES[name].units
        assert array.attrs["standard_name"] == names.VARIABLES[name].standard_name
        assert isinstance(array.data, da.Array)
    assert "source_files" in ds.attrs


def test_the_callers_dataset_is_not_changed(tmp_path):
    ds = open_grids(dialects.today(tmp_path / "a.nc", dialects.fields()))
    before = ds.copy(deep=True)
    standardise(ds, degrees=1.0)
    xr.testing.assert_identical(ds, before)
    assert ds["z"].attrs == before["z"].attrs


def test_a_forecast_becomes_its_valid_times(real_data):
    pytest.importorskip("eccodes", exc_type=(ImportError, RuntimeError))
    ds = standardise(open_grids(str(real_data / "arpege_*_20180501.grib")))
    assert set(ds.data_vars) == {"msl", "u10", "v10"}
    expected = pd.date_range("2018-05-01", "2018-05-02", freq="h")
    np.testing.assert_array_equal(ds["time"], expected)
    assert 100_000 < float(ds["msl"].mean()) < 102_000


def test_a_forecast_without_valid_times(tmp_path):
    ds = maps(n=3, latitude=[40, 39, 38], longitude=[10, 11, 12]).drop_vars("time")
    ds = ds.rename(time="step").assign_coords(
        time=np.datetime64("2001-01-01T12", "ns"), step=("step", [0, 6, 12], {"units": "hours"})
    )
    out = standardise(ds)
    np.testing.assert_array_equal(out["time"], pd.date_range("2001-01-01T12", periods=3, freq="6h"))
    out = standardise(ds.expand_dims("time"))  # one run, still a dimension
    assert out.sizes["time"] == 3


def test_two_runs_are_not_one_sequence():
    ds = maps(n=3, latitude=[40, 39, 38], longitude=[10, 11, 12]).rename(time="step")
    ds = ds.assign_coords(step=pd.to_timedelta([0, 6, 12], unit="h"))
    runs = ds.expand_dims(time=pd.date_range("2001-01-01", periods=2))
    assert "one forecast run" in refused(runs)


def test_a_time_that_could_be_run_or_valid_is_refused():
    ds = maps(latitude=[40, 39, 38], longitude=[10, 11, 12])
    ds = ds.assign_coords(step=np.timedelta64(6, "h"))
    assert "standard_name of time" in refused(ds)
    ds["time"].attrs["standard_name"] = "forecast_reference_time"
    assert pd.Timestamp(standardise(ds)["time"].values[0]) == pd.Timestamp("2001-01-01T06")
    ds["time"].attrs["standard_name"] = "time"
    assert pd.Timestamp(standardise(ds)["time"].values[0]) == pd.Timestamp("2001-01-01T00")


def test_a_single_map():
    ds = maps(n=1, latitude=[40, 39, 38], longitude=[10, 11, 12]).squeeze("time")
    assert standardise(ds).sizes == {"time": 1, "latitude": 3, "longitude": 3}


def test_gfs_levels_and_geopotential_metres(real_data):
    ds = standardise(
        open_grids(real_data / "ianos_gfs_20200917.nc"), domain=MEDITERRANEAN, degrees=0.25
    )
    assert ds["zg"].attrs["units"] == "m"
    assert ds["pressure_level"].values[0] == 1000
    assert {900, 850, 700, 600, 500, 400, 300} <= set(ds["pressure_level"].values)
    low = ds["msl"].isel(time=0).sel(latitude=slice(38, 34), longitude=slice(17, 22))
    where = low.compute().argmin(...)
    assert abs(float(low["latitude"][where["latitude"]]) - 36) < 1
    assert abs(float(low["longitude"][where["longitude"]]) - 19.5) < 1


def test_odd_names_without_units_are_declared(real_data):
    ds = open_grids(real_data / "gfs_central_med_20210902.nc")
    assert "data.units: {msl: Pa}" in refused(ds)
    units = {"msl": "Pa", "ugrd10m": "m s-1", "v10": "m/s"}
    out = standardise(ds, units=units, variables=["msl", "u10", "v10"])
    assert out["latitude"].values[0] == 40
    np.testing.assert_allclose(out["u10"].values[:, ::-1], ds["ugrd10m"].values, rtol=1e-6)


def test_members_are_selected_never_averaged(real_data):
    pytest.importorskip("eccodes", exc_type=(ImportError, RuntimeError))
    ds = open_grids(real_data / "era5_members_global_201701.grib")
    told = refused(ds)
    assert "data.select: {number: 0}" in told
    assert "10 values" in told
    assert "must be one of" in refused(ds, select={"number": 77})
    out = standardise(ds, select={"number": 3}, domain=MEDITERRANEAN, variables=["zg"])
    expected = ds["z"].sel(number=3).isel(isobaricInhPa=0) / 9.80665
    point = {"latitude": 39, "longitude": 15}
    np.testing.assert_allclose(
        out["zg"].sel(pressure_level=850, **point), expected.sel(point), rtol=1e-6
    )


def test_a_polar_grid_is_refused(real_data):
    told = refused(open_grids(real_data / "dale_polar.nc"))
    assert "1-D latitudes and longitudes" in told
    assert "level, r, az" in told


def test_expver_along_time_is_dropped_and_a_dimension_of_it_is_refused():
    ds = maps(latitude=[40, 39, 38], longitude=[10, 11, 12])
    along = ds.assign_coords(expver=("time", ["0001", "0001", "0005"]))
    assert "expver" not in standardise(along).coords
    mixed = ds.expand_dims(expver=[1, 5])  # merged where files are opened, not here
    assert "select one value" in refused(mixed)
    assert standardise(ds.expand_dims(expver=[1])).sizes == standardise(ds).sizes


def test_a_calendar_of_360_days_is_kept():
    times = xr.date_range("2001-02-28", periods=3, freq="D", calendar="360_day", use_cftime=True)
    out = standardise(maps(latitude=[40, 39, 38], longitude=[10, 11, 12], times=times))
    assert out.indexes["time"].calendar == "360_day"
    assert str(out["time"].values[2])[:10] == "2001-02-30"


# Names and units -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["msl", "MSL", "psl", "prmsl", "msletmsl"])
def test_aliases(name):
    assert list(standardise(maps(name=name)).data_vars) == ["msl"]


def test_a_standard_name_tells_an_unknown_name():
    ds = maps(name="pressure_at_sea")
    assert "known variable" in refused(ds)
    ds["pressure_at_sea"].attrs["standard_name"] = "air_pressure_at_mean_sea_level"
    assert list(standardise(ds).data_vars) == ["msl"]


def test_two_names_for_one_variable():
    ds = maps().merge(maps(name="prmsl"))
    assert "msl and prmsl" in refused(ds)


@pytest.mark.parametrize(("units", "factor"), [("hPa", 100), ("mbar", 100), ("mb", 100), ("Pa", 1)])
def test_units_of_pressure(units, factor):
    ds = maps(units=units, values=100_000.0 / factor)
    np.testing.assert_allclose(standardise(ds)["msl"], 100_000, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "units", "value", "expected"),
    [
        ("u10", "knots", 10.0, 5.14444),
        ("t2m", "degC", 20.0, 293.15),
        ("lsm", "(0 - 1)", 1.0, 1.0),
        ("lsm", "%", 50.0, 0.5),
        ("tcwv", "kg m**-2", 30.0, 30.0),
    ],
)
def test_units_of_other_variables(name, units, value, expected):
    out = standardise(maps(name=name, units=units, values=value))
    np.testing.assert_allclose(out[name], expected, rtol=1e-5)


def on_levels(name: str, units: str, value: float) -> xr.Dataset:
    ds = maps(name=name, units=units, values=value, latitude=[40, 39, 38], longitude=[1, 2, 3])
    return ds.expand_dims(level=[500]).assign_coords(level=("level", [500], {"units": "hPa"}))


@pytest.mark.parametrize(
    ("name", "units", "value"),
    [
        ("z", "m**2 s**-2", 5500 * 9.80665),
        ("z", "gpm", 5500),
        ("gh", "gpm", 5500),
        ("hgt", "m", 5500),
        ("zg", "m2 s-2", 5500 * 9.80665),
        ("zg", "dam", 550),
    ],
)
def test_geopotential_and_its_height(name, units, value):
    ds = on_levels(name, units, value)
    np.testing.assert_allclose(standardise(ds)["zg"], 5500, rtol=1e-6)
    np.testing.assert_allclose(standardise(ds, variables=["z"])["z"], 5500 * 9.80665, rtol=1e-6)


def test_the_geopotential_of_the_surface_is_not_a_level():
    ds = maps().merge(maps(name="z", units="m**2 s**-2", values=100.0))
    assert list(standardise(ds).data_vars) == ["msl"]
    assert "zg: the variable must be in the data" in refused(ds, variables=["zg"])


@pytest.mark.parametrize(
    ("levels", "units"),
    [([500, 850, 1000], "hPa"), ([50000, 85000, 100000], "Pa"), ([500, 1000, 850], "millibars")],
)
@pytest.mark.parametrize("stated", [True, False])
def test_levels_in_either_unit_and_any_order(levels, units, stated):
    ds = maps(name="gh", units="m", latitude=[40, 39, 38], longitude=[1, 2, 3])
    pressures = np.array(levels) / (100 if units == "Pa" else 1)
    zg = xr.DataArray([{1000: 100, 850: 1500, 500: 5500}[p] for p in pressures], dims="level")
    ds["gh"] = (ds["gh"] * 0 + zg).assign_attrs(units="m")
    ds = ds.assign_coords(level=("level", levels, {"units": units} if stated else {}))
    out = standardise(ds)
    np.testing.assert_array_equal(out["pressure_level"], [1000, 850, 500])
    np.testing.assert_array_equal(
        out["zg"].isel(time=0, latitude=0, longitude=0), [100, 1500, 5500]
    )


@pytest.mark.parametrize(
    ("name", "units", "value", "level_units"),
    [
        ("gh", "m", 5500 * 9.80665, "hPa"),
        ("z", "m2 s-2", 5500, "hPa"),
        ("gh", "m", 5500, "Pa"),
    ],
    ids=["geopotential called height", "height called geopotential", "hPa called Pa"],
)
def test_heights_that_no_atmosphere_has_at_their_level(name, units, value, level_units):
    """Within what a height can be anywhere, so only the level tells."""
    ds = on_levels(name, units, value)
    ds["level"].attrs["units"] = level_units
    told = refused(ds)
    assert "geopotential or its height, and are the levels in hPa?" in told
    assert told.startswith(f"grids: zg: heights at {500 if level_units == 'hPa' else 5} hPa")


@settings(max_examples=20, deadline=None)
@given(
    level=st.floats(10, 1050),
    sea=st.floats(90_000, 105_000),
    kelvin=st.floats(215, 305),
)
def test_heights_of_any_real_atmosphere_are_taken(level, sea, kelvin):
    height = 287.05 / 9.80665 * kelvin * np.log(sea / 100 / level)
    ds = on_levels("gh", "m", height).assign_coords(level=("level", [level], {"units": "hPa"}))
    np.testing.assert_allclose(standardise(ds)["zg"], height, rtol=1e-5, atol=0.1)


@pytest.mark.parametrize("kind", ["complex128", "U8", "datetime64[ns]"])
def test_values_that_are_no_numbers(kind):
    ds = maps(values=101_000)
    ds["msl"] = ds["msl"].astype(kind).assign_attrs(units="Pa")
    assert "grids: msl: values must be numbers; found" in refused(ds)


def test_model_levels_are_refused():
    ds = on_levels("t", "K", 260.0)
    ds["level"].attrs["units"] = "1"
    assert "levels must be pressures" in refused(ds)
    twice = xr.concat([on_levels("t", "K", 260.0)] * 2, "level")
    assert "levels must not repeat" in refused(twice)


def test_missing_units_say_how_to_declare_them():
    ds = maps(units=None)
    assert refused(ds, where="a.nc") == (
        "a.nc: msl: the units attribute is missing; declare it, e.g. data.units: {msl: Pa}"
    )
    assert "missing" in refused(maps(units=" "))
    np.testing.assert_allclose(
        standardise(maps(units=None, values=1000.0), units={"msl": "hPa"})["msl"], 100_000
    )


def test_wrong_units():
    assert "convertible to Pa; found 'kelvin'" in refused(maps(units="kelvin"))
    assert "convertible to Pa; found 'nonsense'" in refused(maps(units="nonsense"))
    assert "data.units" in refused(maps(units=None), units={"msl": "metres"})


def test_a_declaration_must_not_contradict_the_file():
    assert "must not contradict" in refused(maps(), units={"msl": "hPa"})
    assert standardise(maps(), units={"msl": "pascal"})["msl"].size


def test_units_that_cannot_be_true_are_found_on_the_first_map():
    told = refused(maps(units="Pa", values=1012.0))
    assert "85000 to 110000 Pa" in told
    assert "1012 to 1012" in told


def test_units_that_cannot_be_true_are_found_on_any_map():
    ds = maps(n=50).chunk(time=10)
    ds["msl"] = ds["msl"].where(ds["time"] != ds["time"][33], 0.0).assign_attrs(units="Pa")
    out = standardise(ds)
    with pytest.raises(InputError, match="msl: values must lie within"):
        out.compute()


def test_units_are_understood_without_a_word(tmp_path):
    """The unit library warns of each unit that it defines again: not the reader's business."""
    program = (
        "import numpy as np, xarray as xr\n"
        "from medicane.standardise import standardise\n"
        "msl = (('time', 'lat', 'lon'), np.full((1, 2, 2), 1e3), {'units': 'mb'})\n"
        "axes = {'time': [np.datetime64('2001-01-01', 'ns')], 'lat': [40., 39.], 'lon': [1., 2.]}\n"
        "ds = xr.Dataset({'msl': msl}, axes)\n"
        "standardise(ds)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_missing_variable_is_told_with_what_there_is():
    told = refused(maps(), variables=["msl", "u10", "zg"], where="era5/*.nc")
    assert told == "era5/*.nc: u10, zg: the variable must be in the data; found msl"
    assert "['rain']" in refused(maps(), variables=["rain"])


# Times -----------------------------------------------------------------------------------------


def test_times_that_repeat_or_go_backward():
    times = pd.DatetimeIndex(["2001-01-01T00", "2001-01-01T06", "2001-01-01T06"])
    told = refused(maps(times=times))
    assert "strictly increase; found a repeated 2001-01-01T06:00:00" in told
    told = refused(maps(times=times[[1, 0, 2]]))
    assert "backward: 2001-01-01T00:00:00 after 2001-01-01T06:00:00" in told


def test_gaps_are_no_error(real_data):
    ds = standardise(open_grids(real_data / "global_mslp_irregular_20220817.nc"), degrees=2)
    assert len(set(np.diff(ds["time"].values))) > 1


def test_times_must_be_times():
    assert "CF time axis" in refused(maps(times=[0, 1, 2]))
    assert "must have a time" in refused(maps(n=1).squeeze("time").drop_vars("time"))
    times = pd.DatetimeIndex(["2001-01-01", "NaT", "2001-01-03"])
    assert "none at map 1" in refused(maps(times=times))


def test_microseconds_become_nanoseconds():
    times = np.array(["2001-01-01", "2001-01-02", "2001-01-03"], dtype="datetime64[us]")
    assert standardise(maps(times=times))["time"].dtype == "datetime64[ns]"


# Area ------------------------------------------------------------------------------------------


def test_the_domain_lies_across_the_date_origin(real_data):
    raw = open_grids(real_data / "global_mslp_irregular_20220817.nc")
    out = standardise(raw, domain=MEDITERRANEAN)
    assert out["longitude"].values[0] == -10
    assert out["longitude"].values[-1] == 42
    np.testing.assert_allclose(np.diff(out["longitude"]), 0.4)
    for longitude in (-9.6, -0.4, 0.0, 15.2):
        expected = raw["msl"].sel(latitude=40, longitude=longitude % 360, method="nearest")
        found = out["msl"].sel(latitude=40, longitude=longitude, method="nearest")
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_either_count_of_longitude_gives_one_dataset():
    longitude = np.arange(-180, 180, 2.0)
    values = 100_000 + 10 * np.cos(np.deg2rad(longitude))
    west = maps(longitude=longitude, latitude=np.arange(60, 0, -2.0), values=values)
    east = west.assign_coords(longitude=longitude % 360).sortby("longitude")
    for options in ({}, {"domain": MEDITERRANEAN}, {"domain": MEDITERRANEAN, "degrees": 0.5}):
        a, b = standardise(west, **options), standardise(east, **options)
        xr.testing.assert_identical(a.compute(), b.compute())


def test_a_closing_meridian_is_not_kept_twice():
    ds = maps(longitude=np.arange(0, 360.1, 2.0), latitude=np.arange(60, 0, -2.0))
    assert standardise(ds).sizes["longitude"] == 180


def test_ascending_latitudes_are_turned():
    ds = maps(latitude=[38, 39, 40], longitude=[10, 11, 12])
    out = standardise(ds)
    np.testing.assert_array_equal(out["latitude"], [40, 39, 38])
    np.testing.assert_array_equal(out["msl"].values, ds["msl"].values[:, ::-1].astype(np.float32))


def test_data_smaller_than_the_domain_keep_their_area():
    out = standardise(
        maps(latitude=np.arange(40, 35, -0.5), longitude=np.arange(10, 20, 0.5)),
        domain=MEDITERRANEAN,
        degrees=0.5,
    )
    assert (out["latitude"].values[0], out["longitude"].values[-1]) == (40, 19.5)


def test_no_overlap_with_the_domain():
    pacific = maps(longitude=np.arange(150, 170, 1.0), latitude=np.arange(30, 10, -1.0))
    told = refused(pacific, domain=MEDITERRANEAN, where="pacific.nc")
    assert told.startswith("pacific.nc: the data must overlap the domain 28 to 48 N, -10 to 42 E")
    assert "150 to 169 E" in told


def test_an_area_across_the_antimeridian_needs_a_domain():
    ds = maps(longitude=np.arange(170, 190, 1.0), latitude=np.arange(30, 10, -1.0))
    assert "must not cross 180" in refused(ds)
    out = standardise(ds, domain=config.Domain(north=30, south=10, west=170, east=179))
    assert out["longitude"].values[-1] == 179


@pytest.mark.parametrize(
    ("axes", "found"),
    [
        ({"latitude": [40, 40, 40]}, "uneven"),
        ({"latitude": [40, 39, 41, 38]}, "uneven"),
        ({"latitude": [4000, 3000, 2000]}, "4000"),
        ({"latitude": [40]}, "1 values"),
        ({"longitude": [10, np.nan, 12]}, "3 values"),
    ],
)
def test_irregular_grids_are_refused(axes, found):
    told = refused(maps(**{"latitude": [40, 39, 38], "longitude": [10, 11, 12], **axes}))
    assert "evenly spaced" in told
    assert found in told


def test_curvilinear_grids_are_refused():
    ds = maps(latitude=[40, 39, 38], longitude=[10, 11, 12]).rename(latitude="y", longitude="x")
    two = np.zeros((3, 3))
    ds = ds.drop_vars(["y", "x"]).assign_coords(lat=(("y", "x"), two), lon=(("y", "x"), two))
    assert "1-D latitudes" in refused(ds)
    rotated = ds.rename(y="rlat", x="rlon")
    assert "1-D latitudes" in refused(rotated)
    points = maps(latitude=[40, 39, 38], longitude=[10, 11, 12]).isel(longitude=0)
    assert "must have evenly spaced" in refused(points.drop_vars("longitude"))


# Spacing ---------------------------------------------------------------------------------------


def cell_areas(latitude: np.ndarray, spacing: float) -> np.ndarray:
    edges = np.stack([latitude - spacing / 2, latitude + spacing / 2])
    return np.abs(np.diff(np.sin(np.deg2rad(edges)), axis=0))[0]


@pytest.mark.parametrize(("source", "target"), [(0.25, 0.5), (0.25, 0.75), (0.1, 0.25), (0.25, 1)])
def test_coarsening_keeps_the_area_mean(source, target):
    """Over all target cells, the flux out equals the flux in: computed cell by cell."""
    latitude = np.round(np.arange(48 + target, 28 - target - 1e-9, -source), 6)
    longitude = np.round(np.arange(-10 - target, 42 + target + 1e-9, source), 6)
    slope = 101_000 + 100 * (latitude[:, None] - 38) + 20 * longitude
    noise = 300 * np.random.default_rng(3).standard_normal(slope.shape)
    ds = maps(latitude=latitude, longitude=longitude, values=slope + noise, n=1)
    out = standardise(ds, domain=MEDITERRANEAN, degrees=target)
    assert "conservative" in out.attrs["remapping"]
    field = ds["msl"].values[0]

    north, south = (out["latitude"].values[[0, -1]] + [target / 2, -target / 2]).tolist()
    west, east = (out["longitude"].values[[0, -1]] + [-target / 2, target / 2]).tolist()
    rows = np.clip(
        np.sin(np.deg2rad(np.minimum(latitude + source / 2, north)))
        - np.sin(np.deg2rad(np.maximum(latitude - source / 2, south))),
        0,
        None,
    )
    columns = np.clip(
        np.minimum(longitude + source / 2, east) - np.maximum(longitude - source / 2, west), 0, None
    )
    before = (field * rows[:, None] * columns).sum() / (rows.sum() * columns.sum())
    area = cell_areas(out["latitude"].values, target)[:, None] * np.ones(out.sizes["longitude"])
    after = (out["msl"].values[0].astype(np.float64) * area).sum() / area.sum()
    assert abs(after - before) <= 1e-6 * abs(before - 101_000) + 1e-3  # of the signal; float32
    plain = out["msl"].values[0].astype(np.float64).mean()
    assert abs(plain - before) > 1  # without areas it would not hold


def test_one_coarse_cell_by_hand():
    ds = maps(n=1)
    out = standardise(ds, domain=MEDITERRANEAN, degrees=0.5)
    assert out.sizes == {"time": 1, "latitude": 41, "longitude": 105}
    around = ds["msl"].isel(time=0).sel(latitude=slice(40.25, 39.75), longitude=slice(14.75, 15.25))
    edges = np.sin(np.deg2rad([40.25, 40.125, 39.875, 39.75]))
    weights = np.outer(-np.diff(edges), [0.25, 0.5, 0.25])
    expected = (around.values * weights).sum() / weights.sum()
    assert float(out["msl"].sel(latitude=40, longitude=15)[0]) == pytest.approx(expected, rel=1e-7)


def test_cells_at_the_border_are_means_of_what_there_is():
    ds = maps(n=1)
    out = standardise(ds, degrees=0.5)
    corner = ds["msl"].isel(time=0, latitude=slice(0, 2), longitude=slice(0, 2))
    rows = -np.diff(np.sin(np.deg2rad([48.125, 47.875, 47.75])))
    weights = np.outer(rows, [0.25, 0.125])
    expected = (corner.values * weights).sum() / weights.sum()
    assert float(out["msl"][0, 0, 0]) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("degrees", [0.25, 0.5, 0.3, 0.1])
def test_a_constant_stays_constant(degrees):
    out = standardise(maps(values=101_325.0, n=1), degrees=degrees)
    np.testing.assert_allclose(out["msl"], 101_325, rtol=1e-7)


def test_equal_grids_are_left_alone():
    ds = maps()
    out = standardise(ds, domain=MEDITERRANEAN, degrees=0.25)
    np.testing.assert_array_equal(out["msl"].values, ds["msl"].values.astype(np.float32))
    assert out.attrs["remapping"] == "latitude none, longitude none"


def test_linear_interpolation_is_exact_for_a_plane():
    latitude, longitude = np.arange(50, 26, -0.4), np.arange(-12, 44, 0.4)
    plane = 100_000 + 10 * latitude[:, None] - 7 * longitude
    out = standardise(
        maps(latitude=latitude, longitude=longitude, values=plane, n=1),
        domain=MEDITERRANEAN,
        degrees=0.5,
    )
    assert "linear" in out.attrs["remapping"]
    expected = 100_000 + 10 * out["latitude"] - 7 * out["longitude"]
    np.testing.assert_allclose(out["msl"][0], expected, atol=0.02)


def test_all_sources_give_exactly_equal_coordinates():
    spacings = (0.1, 0.25, 0.4, 0.5, 1.0)
    grids = [
        standardise(
            maps(
                latitude=np.arange(50, 25.9, -s).astype(np.float32),
                longitude=np.arange(-12, 44.1, s).astype(np.float32),
                n=1,
            ),
            domain=MEDITERRANEAN,
            degrees=0.5,
        )
        for s in spacings
    ]
    for other in grids[1:]:
        np.testing.assert_array_equal(grids[0]["latitude"], other["latitude"])
        np.testing.assert_array_equal(grids[0]["longitude"], other["longitude"])


@pytest.mark.parametrize("degrees", [0.5, 0.3])
def test_missing_values_stay_where_they_are(degrees):
    """Sea surface temperature ends at the coast: the land must not eat the sea, nor grow cold."""
    ds = maps(name="sst", units="K", values=290.0, n=1)
    land = (ds["longitude"] > 10) & (ds["latitude"] > 40)
    ds["sst"] = ds["sst"].where(~land).assign_attrs(units="K")
    out = standardise(ds, degrees=degrees)["sst"][0]
    assert np.isnan(out.sel(latitude=45, longitude=30))
    np.testing.assert_allclose(out.sel(latitude=slice(39, 28)), 290, rtol=1e-6)
    np.testing.assert_allclose(out.sel(longitude=slice(-10, 9)), 290, rtol=1e-6)


# Laziness --------------------------------------------------------------------------------------


class Counted:
    """An array that counts the maps read from it."""

    def __init__(self, n: int) -> None:
        self.shape, self.dtype, self.ndim = (n, 81, 209), np.dtype("f4"), 3
        self.maps = 0
        self.largest = 0

    def __getitem__(self, key):
        out = np.full(self.shape, 1e5, dtype=self.dtype)[key]
        if out.size:
            self.maps += out.shape[0]
            self.largest = max(self.largest, out.size)
        return out


def counted(n: int = 400, **options) -> tuple[Counted, xr.Dataset]:
    source = Counted(n)
    data = da.from_array(source, chunks=(50, 81, 209), meta=np.empty((0, 0, 0), "f4"))
    ds = maps(n=n)
    ds["msl"] = (ds["msl"].dims, data, {"units": "Pa"})
    return source, standardise(ds, **options)


def test_at_most_one_map_is_read():
    source, _ = counted(domain=MEDITERRANEAN, degrees=0.5)
    assert source.maps == 1


def test_no_more_than_the_domain_is_read():
    small = config.Domain(north=40, south=36, west=10, east=16)
    source, out = counted(domain=small, degrees=0.25)
    with dask.config.set(scheduler="synchronous"):
        out.compute()
    assert source.largest <= 50 * 21 * 29


def test_few_tasks_per_block():
    _, out = counted(domain=MEDITERRANEAN, degrees=0.5)
    (optimised,) = dask.optimize(out)
    assert len(optimised["msl"].__dask_graph__()) <= 2 * 8 + 2
    assert out["msl"].chunks[0] == (50,) * 8


# Land and sea ----------------------------------------------------------------------------------


def test_the_mask_knows_its_seas():
    mask = land_sea_mask(np.arange(48, 27.9, -0.5), np.arange(-10, 42.1, 0.5))
    assert mask.dims == ("latitude", "longitude")
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0, 1}
    for latitude, longitude, land in [
        (40, -4, 1),  # Madrid
        (36, 19.5, 0),  # Ionian Sea
        (40, 12, 0),  # Tyrrhenian Sea
        (45.5, 9.0, 1),  # Milan
        (30, 20, 1),  # Libya
        (43, 35, 0),  # Black Sea
        (37.5, 14.5, 1),  # Sicily
    ]:
        assert mask.sel(latitude=latitude, longitude=longitude) == land


def test_the_mask_does_not_depend_on_the_order_of_the_axes():
    latitude, longitude = np.arange(48, 40, -1.0), np.arange(0, 10, 1.0)
    mask = land_sea_mask(latitude, longitude)
    turned = land_sea_mask(latitude[::-1], longitude + 360)
    np.testing.assert_array_equal(mask, turned[::-1])


def test_the_mask_at_the_ends_of_the_earth():
    mask = land_sea_mask([90.0, 0.0, -90.0], [-180.0, 179.9])
    np.testing.assert_array_equal(mask, [[0, 0], [0, 0], [1, 1]])


def test_the_mask_is_the_callers_own():
    land_sea_mask([40.0], [12.0])[:] = 7
    assert land_sea_mask([40.0], [12.0]).item() == 0
