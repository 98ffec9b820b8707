"""ERA5's two archives, small and on loopback; both hold the same fields.

A Zarr store of the layout of ARCO-ERA5, and a server that speaks the little of the interface of the
Climate Data Store that its client needs.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from medicane import names
from medicane.fetch.months import LONG_NAMES
from tests.servers import Quiet, serving

#: Of the globe of both archives; ERA5 has 0.25 degrees.
SPACING = 2.0
LEVELS = (1000, 900, 850, 700, 600, 500, 400, 300, 200)
UNITS = {"msl": "Pa", "u10": "m s**-1", "v10": "m s**-1", "z": "m**2 s**-2", "t": "K"}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}

KEY = "0badc0de-planted-key"


def values(
    name: str, times: Any, latitude: Any, longitude: Any, levels: Any = None
) -> np.ndarray[Any, Any]:
    """A field of shape (time, [level,] latitude, longitude) that any place and time can tell."""
    hours = (np.asarray(times, "datetime64[h]") - np.datetime64("2000-01-01T00")).astype(float)
    phi, lam = np.deg2rad(np.asarray(latitude)), np.deg2rad(np.asarray(longitude))
    wave = (
        np.cos(phi)[None, :, None] * np.sin(2 * lam[None, None, :] + 0.26 * hours[:, None, None])
        + 0.3 * np.sin(3 * phi)[None, :, None]
    )
    if levels is None:
        offset, scale = {"msl": (101_300.0, 900.0)}.get(name, (1.0, 8.0))
        return (offset + scale * wave).astype(np.float32)
    height = 44_330.0 * (1 - (np.asarray(levels, float) / 1013.25) ** 0.19)
    base = names.G0 * height if name == "z" else 250 + height / 1e3
    scale = 400.0 if name == "z" else 5.0
    return (base[None, :, None, None] + scale * wave[:, None]).astype(np.float32)


def write_arco(path: Path, *, start: str, hours: int, chunk: int = 1) -> xr.Dataset:
    """A Zarr store of the globe: hourly, longitudes from 0, levels from above, one time a chunk."""
    times = np.arange(hours) * np.timedelta64(1, "h") + np.datetime64(start, "ns")
    latitude = np.arange(90, -90 - SPACING / 2, -SPACING, np.float32)
    longitude = np.arange(0, 360, SPACING, np.float32)
    levels = np.array(LEVELS[::-1], np.int64)
    fields: dict[str, Any] = {}
    for name in ("msl", "u10", "v10"):
        data = values(name, times, latitude, longitude)
        about = {"units": UNITS[name]}
        fields[LONG_NAMES[name]] = (("time", "latitude", "longitude"), data, about)
    for name in ("z", "t"):
        data = values(name, times, latitude, longitude, levels)
        dims = ("time", "level", "latitude", "longitude")
        fields[LONG_NAMES[name]] = (dims, data, {"units": UNITS[name]})
    ds = xr.Dataset(
        fields, {"time": times, "level": levels, "latitude": latitude, "longitude": longitude}
    )
    encoding: dict[str, Any] = {
        n: {"chunks": (chunk, *a.shape[1:]), "_FillValue": np.float32(np.nan)}
        for n, a in ds.data_vars.items()
    }
    encoding["time"] = {"units": "hours since 1900-01-01", "dtype": "int64"}
    ds.to_zarr(path, zarr_format=2, consolidated=True, encoding=encoding)
    return ds


@dataclass
class Jobs:
    """What the server was asked, and what it does with it."""

    folder: Path
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)
    #: So often a job is said to be running before it is ready.
    looks: int = 1
    #: Why every job fails, if it does; the last time that there is, if there is one.
    fault: str = ""
    until: np.datetime64 | None = None


class ClimateDataStore(Quiet):
    """Submit, look, download."""

    def do_GET(self) -> None:  # noqa: N802
        jobs: Jobs = self.server.jobs  # type: ignore[attr-defined]
        path = urllib.parse.urlsplit(self.path).path.removeprefix("/api")
        here = f"http://{self.headers['Host']}/api"
        if path == "/catalogue/v1/messages":
            return self.tell({"messages": []})
        if match := re.fullmatch(r"/files/(\d+)\.nc", path):
            return self.file(jobs.folder / f"{match[1]}.nc", jobs)
        if self.headers.get("PRIVATE-TOKEN") != KEY:
            return self.tell({"title": "authentication failed", "detail": "invalid key"}, 401)
        jobs.keys.add(self.headers["PRIVATE-TOKEN"])
        if match := re.fullmatch(r"/retrieve/v1/processes/([\w-]+)", path):
            return self.tell({"id": match[1], "links": []})
        if match := re.fullmatch(r"/retrieve/v1/jobs/(\d+)", path):
            jobs.looks -= 1
            status = "running" if jobs.looks >= 0 else "failed" if jobs.fault else "successful"
            address = f"{here}/retrieve/v1/jobs/{match[1]}/results"
            links = [{"rel": "results", "href": address}]
            return self.tell(
                {"jobID": match[1], "processID": "era5", "status": status, "links": links}
            )
        if match := re.fullmatch(r"/retrieve/v1/jobs/(\d+)/results", path):
            if jobs.fault:
                return self.tell({"title": "The job has failed", "detail": jobs.fault}, 400)
            size = (jobs.folder / f"{match[1]}.nc").stat().st_size
            href = f"{here}/files/{match[1]}.nc?signature=planted-signature"
            asset = {"href": href, "file:size": size, "type": "application/netcdf"}
            return self.tell({"asset": {"value": asset}})
        return self.tell({"title": "not found"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        jobs: Jobs = self.server.jobs  # type: ignore[attr-defined]
        sent = json.loads(self.body())
        match = re.fullmatch(r"/api/retrieve/v1/processes/([\w-]+)/execution", self.path)
        if match is None or self.headers.get("PRIVATE-TOKEN") != KEY:
            return self.tell({"title": "authentication failed", "detail": "invalid key"}, 401)
        number = len(jobs.requests)
        jobs.requests.append((match[1], sent["inputs"]))
        write_retrieved(jobs.folder / f"{number}.nc", sent["inputs"], until=jobs.until)
        monitor = f"http://{self.headers['Host']}/api/retrieve/v1/jobs/{number}"
        links = [{"rel": "monitor", "href": monitor}]
        return self.tell({"jobID": str(number), "status": "accepted", "links": links}, 201)

    def tell(self, what: dict[str, Any], status: int = 200) -> None:
        self.answer(status, json.dumps(what).encode(), Content_Type="application/json")

    def file(self, path: Path, jobs: Jobs) -> None:
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.command == "GET":
            jobs.downloads.append(path.name)
        if asked:
            first = int(asked[1])
            told = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[first:], Content_Range=told)
        return self.answer(200, data, Accept_Ranges="bytes")


def write_retrieved(path: Path, request: dict[str, Any], *, until: Any = None) -> None:
    """What the Climate Data Store makes of a request: days by hours, the area, its dialect."""
    [year], [month] = request["year"], request["month"]
    times = np.array(
        [f"{year}-{month}-{day}T{hour}" for day in request["day"] for hour in request["time"]],
        "datetime64[s]",
    )
    times = times if until is None else times[times <= until]
    north, west, south, east = request["area"]
    latitude = np.arange(north, south - SPACING / 2, -SPACING)
    longitude = np.arange(west, east + SPACING / 2, SPACING)
    levels = np.array([float(level) for level in request.get("pressure_level", [])])
    with netCDF4.Dataset(path, "w") as file:
        dims = ["valid_time", *(["pressure_level"] if levels.size else []), "latitude", "longitude"]
        axes = {
            "valid_time": (times.astype(np.int64), "seconds since 1970-01-01"),
            "pressure_level": (levels, "hPa"),
            "latitude": (latitude, "degrees_north"),
            "longitude": (longitude, "degrees_east"),
        }
        for dim in dims:
            file.createDimension(dim, axes[dim][0].size)
            axis = file.createVariable(dim, axes[dim][0].dtype, (dim,))
            axis.units, axis[:] = axes[dim][1], axes[dim][0]
        for long in request["variable"]:
            name = SHORT_NAMES[long]
            variable = file.createVariable(name, "f4", dims, zlib=True)
            variable.units = UNITS[name]
            where = (times, latitude, longitude, levels if levels.size else None)
            variable[:] = values(name, *where)


@contextlib.contextmanager
def climate_data_store(folder: Path) -> Iterator[tuple[str, Jobs]]:
    """The address of a Climate Data Store, and its jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = Jobs(folder)
    with serving(ClimateDataStore, jobs=jobs) as (address, _):
        yield f"{address}/api", jobs
