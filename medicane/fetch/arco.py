"""ARCO-ERA5: hourly global fields as Zarr on a public object store, cropped to months on disk.

One stored chunk is one time of the whole globe, on all 37 levels where there are levels (154 MB):
whatever the area, all of it passes the network. `READERS` chunks are in memory at a time.

Carver, R. W. and Merose, A. (2023): ARCO-ERA5: An Analysis-Ready Cloud-Optimized Reanalysis
Dataset. 22nd Conf. on AI for Env. Science, Am. Meteo. Soc.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from medicane import __version__, names
from medicane.errors import InputError, redacted
from medicane.fetch.months import LONG_NAMES, Month
from medicane.remote import Remote, StorageOptions, is_remote

#: Where it is, for anyone to read.
PUBLIC = "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3"

#: Stored chunks that are read at a time.
READERS = 4


@dataclass(frozen=True)
class Store:
    """A Zarr store of the layout of ARCO-ERA5, opened, and its URI."""

    uri: str
    ds: xr.Dataset


def open_store(uri: str, *, storage_options: StorageOptions | None = None) -> Store:
    """Open a Zarr store lazily; nothing but its metadata and coordinates is read.

    Parameters
    ----------
    uri
        A URI or a folder.
    storage_options
        How it is reached. The public one is read without an account unless they say otherwise.

    Raises
    ------
    InputError
        If it cannot be reached, or is not of the layout of ARCO-ERA5.
    """
    options: Mapping[str, Any] = storage_options or {}
    if uri == PUBLIC:
        options = {"gs": {"token": "anon"}, **options}
    try:
        held: Any = Remote(uri, options).zarr_store() if is_remote(uri) else uri
        # Not as dask arrays: a million times of hundreds of variables make graphs of gigabytes.
        ds = xr.open_dataset(held, engine="zarr", chunks=None, cache=False)
    except InputError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(uri, "must be a Zarr store that can be read", found=found) from error
    for axis in ("time", "latitude", "longitude"):
        if axis not in ds.indexes:
            raise InputError(uri, f"must have a coordinate {axis}", found=list(ds.indexes))
    return Store(uri, ds)


def crop(
    store: Store, month: Month, path: Path, *, progress: Callable[[int], None] | None = None
) -> None:
    """Write the area, levels and times of a month to a file in the dialect of ERA5.

    Parameters
    ----------
    path
        The file, which is written from its first byte to its last.
    progress
        Called with the maps done.

    Raises
    ------
    InputError
        If the store lacks a variable, a level, a time or a part of the area, has no values at a
        time, or cannot be read.
    """
    ds = store.ds
    lacking = [LONG_NAMES[n] for n in month.variables if LONG_NAMES[n] not in ds]
    if lacking:
        raise InputError(store.uri, "must hold every variable", found=f"no {', '.join(lacking)}")
    place = _place(store, month)
    at = ds.indexes["time"].get_indexer(pd.DatetimeIndex(month.times))
    if (at < 0).any():
        missing = month.times[at < 0][0].astype("datetime64[m]")
        raise InputError(store.uri, "must hold every time", found=f"none at {missing}")
    with netCDF4.Dataset(path, "w") as file:
        _describe(file, store, month, place)
        jobs = [(name, part) for name in month.variables for part in _parts(store, name, at)]
        counted = dict.fromkeys(month.variables, 0)
        pool = ThreadPoolExecutor(READERS)
        try:
            read = pool.map(lambda job: _read(store, month, place, *job), jobs)
            for (name, part), values in zip(jobs, read, strict=True):
                file[name][part] = values
                counted[name] += part.stop - part.start
                if progress is not None:
                    progress(sum(counted.values()) // len(counted))
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Place:
    """What is wanted of the axes of a store: a band of latitudes, and longitudes west to east."""

    band: slice
    columns: NDArray[np.int64]
    levels: NDArray[np.int64] | None
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


def _place(store: Store, month: Month) -> _Place:
    ds, domain = store.ds, month.domain
    latitude = ds["latitude"].values.astype(np.float64)
    longitude = (ds["longitude"].values.astype(np.float64) + 180) % 360 - 180
    rows = np.flatnonzero((latitude >= domain.south) & (latitude <= domain.north))
    columns = np.flatnonzero((longitude >= domain.west) & (longitude <= domain.east))
    if rows.size < 2 or columns.size < 2:
        raise InputError(store.uri, "must cover data.domain", found="another area")
    columns = columns[np.argsort(longitude[columns])]
    levels = None
    if month.levels:
        held = ds["level"].values.astype(int).tolist() if "level" in ds.coords else []
        lacking = sorted(set(month.levels) - set(held))
        if lacking:
            raise InputError(store.uri, "must hold every level", found=f"no {lacking} hPa")
        levels = np.array([held.index(level) for level in month.levels])
    band = slice(int(rows[0]), int(rows[-1]) + 1)
    return _Place(band, columns, levels, latitude[band], longitude[columns])


def _parts(store: Store, name: str, at: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of a month's times that lie in one stored chunk each: no chunk is read twice."""
    stored = store.ds[LONG_NAMES[name]].encoding.get("preferred_chunks") or {}
    chunk = at // int(stored.get("time", 1))
    edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), at.size]
    return (slice(a, b) for a, b in itertools.pairwise(edges))


def _read(store: Store, month: Month, place: _Place, name: str, part: slice) -> NDArray[np.float32]:
    """Values of (time, [level,] latitude, longitude); the store's are the globe's."""
    times = month.times[part]
    array = store.ds[LONG_NAMES[name]]
    where = f"{store.uri}: {LONG_NAMES[name]}"
    order = ["time", *(["level"] if month.levels else []), "latitude", "longitude"]
    if set(array.dims) != set(order):
        raise InputError(where, f"must have the dimensions {order}", found=list(array.dims))
    at = store.ds.indexes["time"].get_indexer(pd.DatetimeIndex(times))
    wanted = array.isel(time=at, latitude=place.band)
    if place.levels is not None:
        wanted = wanted.isel(level=place.levels)
    try:
        # All longitudes of the band: the area may lie on both sides of the first one.
        values = wanted.variable.load().transpose(*order).values[..., place.columns]
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(where, "must be readable", found=found) from error
    # Where a store has no chunk, zarr gives its fill value: what is no field is no data.
    flat = values.reshape(times.size, -1)
    empty = ~(np.nanmax(flat, axis=1, initial=-np.inf) > np.nanmin(flat, axis=1, initial=np.inf))
    if empty.any():
        moment = times[empty][0].astype("datetime64[m]")
        raise InputError(where, "must hold values at every time", found=f"none at {moment}")
    return np.asarray(values, np.float32)


def _describe(file: netCDF4.Dataset, store: Store, month: Month, place: _Place) -> None:
    """Dimensions, coordinates and variables, as the Climate Data Store has them."""
    file.setncatts(
        {
            "Conventions": "CF-1.7",
            "institution": "European Centre for Medium-Range Weather Forecasts",
            "source": f"ERA5, cropped from {redacted(store.uri)}",
            "history": f"medicane {__version__}",
        }
    )
    axes: list[tuple[str, NDArray[Any], dict[str, str]]] = [
        (
            "valid_time",
            month.times.astype("datetime64[s]").astype(np.int64),
            {
                "standard_name": "time",
                "units": "seconds since 1970-01-01",
                "calendar": "proleptic_gregorian",
            },
        ),
        (names.LATITUDE, place.latitude, {"units": "degrees_north"}),
        (names.LONGITUDE, place.longitude, {"units": "degrees_east"}),
    ]
    if month.levels:
        levels = np.array(month.levels, np.float64)
        axes.insert(1, (names.LEVEL, levels, {"units": "hPa", "positive": "down"}))
    for name, values, attributes in axes:
        file.createDimension(name, values.size)
        axis = file.createVariable(name, values.dtype, (name,))
        axis.setncatts({"standard_name": name} | attributes)
        axis[:] = values
    dimensions = [name for name, _, _ in axes]
    shape = [1, *(values.size for _, values, _ in axes[1:])]
    for name in month.variables:
        variable = file.createVariable(
            name, "f4", dimensions, zlib=True, complevel=1, chunksizes=shape,
            fill_value=np.float32(np.nan),
        )  # fmt: skip
        about = store.ds[LONG_NAMES[name]].attrs  # without units of the store's own there are none
        kept = ("standard_name", "long_name", "units")
        variable.setncatts({key: about[key] for key in kept if key in about})
