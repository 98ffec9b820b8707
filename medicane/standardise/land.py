"""Land and sea at grid points, offline and in little memory."""

from __future__ import annotations

import functools
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.standardise import axes


def land_sea_mask(latitude: np.ndarray, longitude: np.ndarray) -> xr.DataArray:
    """Land (1) and sea (0) at grid points, for data that bring no mask.

    Parameters
    ----------
    latitude, longitude
        Degrees north, shape (n,), and east, shape (m,); any order.

    Returns
    -------
    xarray.DataArray
        ``lsm(latitude, longitude)``, float32, 0 or 1: the 1 km mask of the package
        global-land-mask (GLOBE elevation, NOAA) at each point, the centre of its cell. A small
        island between grid points is therefore sea.
    """
    latitude, longitude = (np.asarray(axis, dtype=np.float64) for axis in (latitude, longitude))
    known = names.VARIABLES["lsm"]
    land = _sampled_land(tuple(latitude.tolist()), tuple(longitude.tolist()))
    return xr.DataArray(
        land.copy(),
        dims=(names.LATITUDE, names.LONGITUDE),
        coords={
            names.LATITUDE: (names.LATITUDE, latitude, axes.ATTRIBUTES[names.LATITUDE]),
            names.LONGITUDE: (names.LONGITUDE, longitude, axes.ATTRIBUTES[names.LONGITUDE]),
        },
        name="lsm",
        attrs={"standard_name": known.standard_name, "units": known.units},
    )


@functools.lru_cache(maxsize=8)
def _sampled_land(latitude: tuple[float, ...], longitude: tuple[float, ...]) -> np.ndarray:
    """Rows of the packed mask are inflated one by one: importing the package takes 1 GB."""
    spec = find_spec("global_land_mask")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("land-sea mask", "needs the package global-land-mask", found="none")
    path = Path(spec.submodule_search_locations[0]) / "globe_combined_mask_compressed.npz"
    with zipfile.ZipFile(path) as archive:
        rows_lat, columns_lon = _array(archive, "lat"), _array(archive, "lon")
        rows = _pixel(rows_lat, np.asarray(latitude))
        columns = _pixel(columns_lon, (np.asarray(longitude) + 180) % 360 - 180)
        land = np.empty((rows.size, columns.size), dtype=np.float32)
        with archive.open("mask.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            row_bytes = shape[1] * dtype.itemsize
            at = 0
            for row in np.unique(rows):
                while at < row:
                    at += _skipped(file, min(row - at, 256), row_bytes)
                sea = np.frombuffer(file.read(row_bytes), dtype=dtype)
                at += 1
                land[rows == row] = ~sea[columns]
    return land


def _pixel(axis: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The pixel that holds each point: the mask's coordinates are the first edges of its pixels."""
    step = axis[1] - axis[0]
    return np.clip(np.floor((points - axis[0]) / step + 1e-6).astype(int), 0, axis.size - 1)


def _skipped(file: Any, rows: int, row_bytes: int) -> int:
    file.read(rows * row_bytes)
    return rows


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file)
