"""Small files as the Climate Data Store writes them, today and before, with values of our own."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np

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


UNITS = {"msl": "Pa", "u10": "m s**-1", "v10": "m s**-1", "z": "m**2 s**-2"}


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
