"""Small files as others write them, from one truth: the Climate Data Store, forecasts, models."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr

from medicane import names

LATITUDE = np.arange(40.0, 35.9, -0.5)
LONGITUDE = np.arange(10.0, 16.1, 0.5)
LEVELS = np.array([900.0, 600.0, 300.0])


def fields(n: int = 4, *, seed: int = 1) -> dict[str, np.ndarray]:
    """MSLP (Pa), 10 m wind (m/s) and geopotential (m2/s2) in steps that int16 packing keeps."""
    draw = np.random.default_rng(seed)
    shape = (n, LATITUDE.size, LONGITUDE.size)
    level = np.array([9_000.0, 42_000.0, 90_000.0])[None, :, None, None]
    return {
        "msl": 101_000 + 4.0 * draw.integers(-500, 500, shape),
        "u10": 0.5 * draw.integers(-40, 40, shape),
        "v10": 0.5 * draw.integers(-40, 40, shape),
        "z": level + 4.0 * draw.integers(-500, 500, (n, LEVELS.size, *shape[1:])),
    }


def hours_since_1900(start: str, n: int, step: int = 6) -> np.ndarray:
    first = (np.datetime64(start, "h") - np.datetime64("1900-01-01T00", "h")).astype(int)
    return first + step * np.arange(n)


def today(path: Path, values: dict[str, np.ndarray], *, start: str = "2020-09-17") -> Path:
    """The dialect of today: valid_time in seconds, pressure_level, number, expver; floats."""
    n = len(next(iter(values.values())))
    with netCDF4.Dataset(path, "w") as file:
        file.Conventions = "CF-1.7"
        _axes(file, "valid_time", n, "pressure_level" if "z" in values else None)
        time = file.createVariable("valid_time", "i8", ("valid_time",))
        time.units, time.calendar = "seconds since 1970-01-01", "proleptic_gregorian"
        time.standard_name, time.long_name = "time", "time"
        seconds = (np.datetime64("1900-01-01") - np.datetime64("1970-01-01")).astype(int) * 86_400
        time[:] = seconds + 3600 * hours_since_1900(start, n)
        number = file.createVariable("number", "i8", ())
        number.standard_name, number[...] = "realization", 0
        expver = file.createVariable("expver", str, ("valid_time",))
        expver[:] = np.array(["0001"] * n, dtype=object)
        if "z" in values:
            level = file.createVariable("pressure_level", "f8", ("pressure_level",))
            level.units, level.positive, level.stored_direction = "hPa", "down", "decreasing"
            level[:] = LEVELS
        for name, field in values.items():
            dims = ("valid_time", *(["pressure_level"] if name == "z" else []))
            variable = file.createVariable(
                name, "f4", (*dims, "latitude", "longitude"), zlib=True, fill_value=np.nan
            )
            variable.units, variable.coordinates = UNITS[name], "number valid_time expver"
            variable[:] = field
    return path


def before(path: Path, values: dict[str, np.ndarray], *, start: str = "2020-09-17") -> Path:
    """The dialect before: time in hours since 1900, level in millibars upward, packed int16."""
    n = len(next(iter(values.values())))
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as file:
        file.Conventions = "CF-1.6"
        _axes(file, "time", n, "level" if "z" in values else None)
        time = file.createVariable("time", "i4", ("time",))
        time.units, time.calendar = "hours since 1900-01-01 00:00:00.0", "gregorian"
        time[:] = hours_since_1900(start, n)
        if "z" in values:
            level = file.createVariable("level", "i4", ("level",))
            level.units, level.long_name = "millibars", "pressure_level"
            level[:] = LEVELS[::-1]
        for name, field in values.items():
            dims = ("time", *(["level"] if name == "z" else []))
            variable = file.createVariable(
                name, "i2", (*dims, "latitude", "longitude"), fill_value=-32767
            )
            variable.units = UNITS[name]
            variable.scale_factor = 4.0 if name in ("msl", "z") else 0.5
            variable.add_offset = {"msl": 101_000.0, "z": 50_000.0}.get(name, 0.0)
            variable[:] = field[:, ::-1] if name == "z" else field
    return path


UNITS = {"msl": "Pa", "u10": "m s**-1", "v10": "m s**-1", "z": "m**2 s**-2", "tp": "m"}


def _axes(file: netCDF4.Dataset, time: str, n: int, level: str | None) -> None:
    file.createDimension(time, n)
    if level:
        file.createDimension(level, LEVELS.size)
    for name, values, units in (
        ("latitude", LATITUDE, "degrees_north"),
        ("longitude", LONGITUDE, "degrees_east"),
    ):
        file.createDimension(name, values.size)
        axis = file.createVariable(name, "f8", (name,))
        axis.units, axis[:] = units, values


# Golden files of other dialects: the same fields, as others would write them ---------------------


def heights(values: dict[str, np.ndarray]) -> np.ndarray:
    """Geopotential height (m) of the geopotential, float32: what the standard makes of it."""
    single = np.asarray(values["z"], np.float32).astype(np.float64)
    return (single * (1 / names.G0)).astype(np.float32)


def times_of(n: int = 4, *, start: str = "2020-09-17") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=n, freq="6h")


def dataset(values: dict[str, np.ndarray], *, height: bool = False) -> xr.Dataset:
    """The fields under our names, with plain coordinates, as a start for a dialect."""
    space = ("latitude", "longitude")
    ds = xr.Dataset(
        {
            name: (
                ("time", *(["level"] if name == "z" else []), *space),
                np.asarray(field, np.float32),
                {"units": UNITS[name]},
            )
            for name, field in values.items()
        },
        coords={
            "time": times_of(len(values["msl"])),
            "level": LEVELS,
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
    )
    if height:
        ds["zg"] = (ds["z"].dims, heights(values), {"units": "m"})
        ds = ds.drop_vars("z")
    return ds


def of_both_versions(path: Path, values: dict[str, np.ndarray]) -> Path:
    """The dialect before, of a recent month: ERA5 (1) and ERA5T (5) along ``expver``."""
    n = len(values["msl"])
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as file:
        _axes(file, "time", n, "level")
        file.createDimension("expver", 2)
        version = file.createVariable("expver", "i4", ("expver",))
        version[:] = [1, 5]
        time = file.createVariable("time", "i4", ("time",))
        time.units = "hours since 1900-01-01 00:00:00.0"
        time[:] = hours_since_1900("2020-09-17", n)
        level = file.createVariable("level", "i4", ("level",))
        level.units, level[:] = "millibars", LEVELS[::-1]
        for name, field in values.items():
            dims = ("time", "expver", *(["level"] if name == "z" else []))
            variable = file.createVariable(
                name, "f4", (*dims, "latitude", "longitude"), fill_value=-32767
            )
            variable.units = UNITS[name]
            field = field[:, ::-1] if name == "z" else field
            both = np.full((n, 2, *field.shape[1:]), np.nan)
            both[: n - 1, 0] = field[: n - 1]  # final but for the last map
            both[n - 1 :, 1] = field[n - 1 :]
            both[0, 1] = field[0] + 8  # there twice: the final one counts
            variable[:] = np.where(np.isnan(both), -32767, both)
    return path


def in_a_zip(path: Path, values: dict[str, np.ndarray]) -> Path:
    """What the data store sends where step types mix: an archive, whatever its name says."""
    folder = path.with_suffix(".parts")
    folder.mkdir()
    rain = {"tp": np.zeros_like(values["msl"])}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, fields_of_part in (("instant", values), ("accum", rain)):
            name = f"data_stream-oper_stepType-{part}.nc"
            archive.write(today(folder / name, fields_of_part), name)
    return path


def arco(path: Path, values: dict[str, np.ndarray]) -> Path:
    """ARCO-ERA5: long names, levels upward without units, all longitudes from 0 to 360."""
    ds = dataset(values).rename(LONG_NAMES).isel(level=slice(None, None, -1))
    ds = ds.assign_coords(level=ds["level"].values.astype("i8"))
    ds = ds.reindex(longitude=np.arange(0, 360, 0.5), latitude=np.arange(41, 34.9, -0.5))
    ds["land_sea_mask"] = ds["mean_sea_level_pressure"].isel(time=0, drop=True) * 0
    ds["land_sea_mask"].attrs = {"units": "(0 - 1)"}
    ds.attrs = {"valid_time_start": "1940-01-01", "valid_time_stop": "2020-09-30"}
    ds.chunk(time=1).to_zarr(path, zarr_format=2, consolidated=True)
    return path


def weatherbench(path: Path, values: dict[str, np.ndarray]) -> Path:
    """WeatherBench 2: as ARCO-ERA5, latitude upward, longitude before latitude."""
    ds = dataset(values).rename(LONG_NAMES).isel(level=slice(None, None, -1))
    ds = ds.isel(latitude=slice(None, None, -1))
    ds = ds.transpose("time", "level", "longitude", "latitude")
    for name in ds.data_vars:
        ds[name].attrs["short_name"] = name
    ds.chunk(time=1).to_zarr(path, zarr_format=2, consolidated=True)
    return path


def coards(path: Path, values: dict[str, np.ndarray]) -> Path:
    """COARDS as NCEP writes it: hours since the year 1 in the old calendar, lev in millibar."""
    n = len(values["msl"])
    moments = times_of(n).to_pydatetime()
    units = "hours since 1-1-1 00:00:0.0"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.Conventions = "COARDS"
        for name, axis, about in (
            ("time", netCDF4.date2num(moments, units, calendar="standard"), units),
            ("lev", LEVELS, "millibar"),
            ("lat", LATITUDE[::-1], "degrees_north"),
            ("lon", LONGITUDE, "degrees_east"),
        ):
            file.createDimension(name, len(axis))
            variable = file.createVariable(name, "f8", (name,))
            variable.units, variable[:] = about, axis
        fields_of_it = {
            "slp": (values["msl"], "Pascals"),
            "ugrd10m": (values["u10"], "m/s"),
            "vgrd10m": (values["v10"], "m/s"),
            "hgt": (heights(values), "m"),
        }
        for name, (field, about) in fields_of_it.items():
            dims = ("time", *(["lev"] if name == "hgt" else []), "lat", "lon")
            variable = file.createVariable(name, "f4", dims, fill_value=-9.96921e36)
            variable.units, variable.missing_value = about, np.float32(-9.96921e36)
            variable[:] = field[..., ::-1, :]
    return path


def cmip6(folder: Path, values: dict[str, np.ndarray], *, calendar: str = "standard") -> Path:
    """CMIP6: a file a variable, plev in Pa, latitude upward, bounds of everything."""
    folder.mkdir()
    ds = dataset(values, height=True).rename(
        msl="psl", u10="uas", v10="vas", latitude="lat", longitude="lon", level="plev"
    )
    ds = ds.isel(lat=slice(None, None, -1)).assign_coords(plev=ds["plev"].values * 100)
    ds["plev"].attrs = {"units": "Pa", "standard_name": "air_pressure", "positive": "down"}
    if calendar != "standard":
        first = str(times_of(1)[0].date())
        ds["time"] = xr.date_range(
            first, periods=ds.sizes["time"], freq="6h", calendar=calendar, use_cftime=True
        )
    for axis in ("lat", "lon"):
        ds[axis].attrs["bounds"] = f"{axis}_bnds"
        ds[f"{axis}_bnds"] = ((axis, "bnds"), ds[axis].values[:, None] + [-0.25, 0.25])
    ds["time"].encoding = {"units": "days since 1850-01-01", "dtype": "f8"}
    bounds = ["lat_bnds", "lon_bnds"]
    for name, wanted in (("psl", []), ("uas", ["height"]), ("vas", ["height"]), ("zg", [])):
        part = (
            ds[[name, *bounds]]
            if name == "zg"
            else ds[[name, *bounds]].drop_vars("plev", errors="ignore")
        )
        part = part.assign_coords(height=10.0) if wanted else part
        part.attrs = {"mip_era": "CMIP6", "Conventions": "CF-1.7 CMIP-6.2"}
        part.to_netcdf(folder / f"{name}_6hrPlevPt_MODEL_historical_r1i1p1f1_gn.nc")
    return folder / "*.nc"


def cordex(folder: Path, values: dict[str, np.ndarray]) -> Path:
    """CORDEX: a file a field, levels in the names, latitude and longitude of every point."""
    folder.mkdir()
    ds = dataset(values, height=True).rename(
        msl="psl", u10="uas", v10="vas", latitude="rlat", longitude="rlon"
    )
    ds = ds.isel(rlat=slice(None, None, -1))
    latitude, longitude = xr.broadcast(ds["rlat"], ds["rlon"])
    ds = ds.assign_coords(
        lat=(latitude.dims, latitude.values, {"units": "degrees_north"}),
        lon=(latitude.dims, longitude.values, {"units": "degrees_east"}),
    )
    ds = ds.assign_coords(rlat=ds["rlat"].values - 38, rlon=ds["rlon"].values - 13)
    ds["rlat"].attrs["units"] = ds["rlon"].attrs["units"] = "degrees"
    ds["rotated_pole"] = ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"})
    for name in ("psl", "uas", "vas", "zg"):
        ds[name].attrs["grid_mapping"] = "rotated_pole"
    files = {
        name: ds[[name, "rotated_pole"]].drop_vars("level", errors="ignore")
        for name in ("psl", "uas", "vas")
    }
    for i, level in enumerate(LEVELS):
        part = ds[["zg", "rotated_pole"]].isel(level=i, drop=True)
        part = part.rename(zg=f"zg{level:g}")
        files[f"zg{level:g}"] = part.assign_coords(plev=((), level * 100, {"units": "Pa"}))
    for name, part in files.items():
        part.attrs = {"project_id": "CORDEX", "CORDEX_domain": "MED-44"}
        part.to_netcdf(folder / f"{name}_MED-44_MODEL_historical_r1i1p1_6hr.nc")
    return folder / "*.nc"


def gfs(folder: Path, values: dict[str, np.ndarray]) -> Path:
    """GFS in GRIB 2: a file a step, ``prmsl``, and names that stand on several kinds of level."""
    return _forecast(
        folder, values, centre="kwbc", pressure="prmsl", more=(("u", "potentialVorticity", 2),)
    )


def open_data(folder: Path, values: dict[str, np.ndarray]) -> Path:
    """ECMWF open data in GRIB 2: a file a step, ``msl``, 2 m and 10 m and the surface."""
    return _forecast(folder, values, centre="ecmf", pressure="msl", more=(("skt", "surface", 0),))


def _forecast(
    folder: Path,
    values: dict[str, np.ndarray],
    *,
    centre: str,
    pressure: str,
    more: tuple[tuple[str, str, int], ...],
) -> Path:
    folder.mkdir()
    for i, field in enumerate(values["msl"]):
        common = {"centre": centre, "dataDate": 20200917, "dataTime": 0, "endStep": 6 * i}
        with (folder / f"{centre}_f{6 * i:03d}.grib2").open("wb") as file:
            grib_message(file, field, common, short=pressure, kind="meanSea", level=0)
            for name, short in (("u10", "10u"), ("v10", "10v")):
                grib_message(
                    file, values[name][i], common, short=short, kind="heightAboveGround", level=10
                )
            above = {"kind": "heightAboveGround", "level": 80}
            grib_message(file, values["u10"][i] * 0, common, short="u", **above)
            for short, kind, level in more:
                grib_message(file, values["u10"][i], common, short=short, kind=kind, level=level)
            for j, level in enumerate(LEVELS):
                on = {"kind": "isobaricInhPa", "level": int(level)}
                grib_message(file, heights(values)[i, j], common, short="gh", **on)
                grib_message(file, field * 0 + j, common, short="r", **on)
    return folder / "*.grib2"


def grib_message(
    file: BinaryIO, field: np.ndarray, common: dict[str, Any], *, short: str, kind: str, level: int
) -> None:
    """One field in GRIB 2, in single precision."""
    import eccodes

    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    about = {
        **common, "typeOfLevel": kind, "level": level, "shortName": short,
        "Ni": LONGITUDE.size, "Nj": LATITUDE.size,
        "latitudeOfFirstGridPointInDegrees": LATITUDE[0],
        "latitudeOfLastGridPointInDegrees": LATITUDE[-1],
        "longitudeOfFirstGridPointInDegrees": LONGITUDE[0],
        "longitudeOfLastGridPointInDegrees": LONGITUDE[-1],
        "iDirectionIncrementInDegrees": 0.5, "jDirectionIncrementInDegrees": 0.5,
        "packingType": "grid_ieee",
    }  # fmt: skip
    for key, value in about.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, np.asarray(field, float).ravel())
    eccodes.codes_write(handle, file)
    eccodes.codes_release(handle)


LONG_NAMES = {
    "msl": "mean_sea_level_pressure",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "z": "geopotential",
}
