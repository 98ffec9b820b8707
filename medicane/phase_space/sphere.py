"""Distances, bearings and discs on the sphere of a latitude-longitude grid. Only numpy."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane.errors import InputError

FloatArray = NDArray[np.floating[Any]]

#: Mean radius of the Earth (IUGG), km.
EARTH_RADIUS_KM = 6371.0088


def distance_km(
    latitude1: ArrayLike, longitude1: ArrayLike, latitude2: ArrayLike, longitude2: ArrayLike
) -> FloatArray:
    """Great-circle distance in km between points in degrees; shapes broadcast, NaN stays NaN.

    Examples
    --------
    >>> round(float(distance_km(37.0, 20.0, 38.0, 20.0)), 1)
    111.2
    """
    lat1, lon1, lat2, lon2 = (
        np.radians(np.asarray(a, float)) for a in (latitude1, longitude1, latitude2, longitude2)
    )
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * (
        np.sin((lon2 - lon1) / 2) ** 2
    )
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(h, 1.0))))


def bearing_deg(
    latitude1: ArrayLike, longitude1: ArrayLike, latitude2: ArrayLike, longitude2: ArrayLike
) -> FloatArray:
    """Initial great-circle bearing from point 1 to point 2, degrees clockwise from north."""
    lat1, lon1, lat2, lon2 = (
        np.radians(np.asarray(a, float)) for a in (latitude1, longitude1, latitude2, longitude2)
    )
    east = np.sin(lon2 - lon1) * np.cos(lat2)
    north = np.cos(lat1) * np.sin(lat2) - np.sin(lat1) * np.cos(lat2) * np.cos(lon2 - lon1)
    return np.asarray(np.degrees(np.arctan2(east, north)) % 360)


def cell_areas_km2(latitude: FloatArray, longitude: FloatArray) -> FloatArray:
    """Area of a grid cell on each latitude row, km²; degrees in, median spacing."""
    step = np.radians(np.median(abs(np.diff(latitude)))) * np.radians(
        np.median(abs(np.diff(longitude)))
    )
    return np.asarray(EARTH_RADIUS_KM**2 * step * np.cos(np.radians(latitude)))


class Disc(NamedTuple):
    """Grid offsets of the points within a radius of a point of one latitude row."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    bearing: FloatArray
    area_km2: FloatArray


@lru_cache(maxsize=8)
def _discs(latitudes: tuple[float, ...], spacing: float, radius_km: float) -> tuple[Disc, ...]:
    """A `Disc` for each latitude row; rows and columns beyond the grid are included.

    The grid is evenly spaced in longitude, so that the shape of a disc depends on its row alone:
    computed once, it serves every low of every map.
    """
    lat = np.asarray(latitudes)
    step = float(np.median(np.diff(lat)))
    discs = []
    for centre in lat:
        reach = int(radius_km / (abs(step) * 111.0)) + 1
        rows = np.arange(-reach, reach + 1)
        there = np.clip(centre + rows * step, -90, 90)
        widest = max(float(np.cos(np.radians(abs(there).max()))), 0.05)
        columns = np.arange(-int(radius_km / (abs(spacing) * 111.0 * widest)) - 1, 0)
        columns = np.concatenate([columns, [0], -columns[::-1]])
        away = distance_km(centre, 0.0, there[:, None], columns[None] * spacing)
        inside = away <= radius_km
        bearing = bearing_deg(centre, 0.0, there[:, None], columns[None] * spacing)
        area = EARTH_RADIUS_KM**2 * np.radians(abs(step)) * np.radians(abs(spacing))
        down, along = np.nonzero(inside)
        discs.append(
            Disc(
                rows[down],
                columns[along],
                np.where(away > 1e-6, bearing, np.nan)[inside],
                area * np.cos(np.radians(there))[down],
            )
        )
    return tuple(discs)


def grid_discs(latitude: ArrayLike, longitude: ArrayLike, radius_km: float) -> tuple[Disc, ...]:
    """The points within `radius_km` of a grid point, for each latitude row; cached."""
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    for name, values in (("latitude", lat), ("longitude", lon)):
        step = np.diff(values)
        if step.size == 0 or not np.allclose(step, step[0], rtol=1e-3):
            law = "the grid must have at least 2 x 2 points and an even spacing"
            raise InputError(name, law, found=f"{values.size} points, steps {np.unique(step)[:3]}")
    spacing = np.diff(lon)
    return _discs(tuple(lat.tolist()), float(spacing.mean()), float(radius_km))


def gather(
    fields: NDArray[Any],
    disc: Disc,
    *,
    maps: NDArray[np.intp],
    row: int,
    columns: NDArray[np.intp],
) -> FloatArray:
    """Values of fields (time, …, latitude, longitude) on the disc of each (map, row, column).

    Returns float64 of shape (centre, …, point), NaN outside the grid.
    """
    j = row + disc.rows
    i = columns[:, None] + disc.columns[None]  # (centre, point)
    n_lat, n_lon = fields.shape[-2:]
    outside = (j < 0) | (j >= n_lat) | (i < 0) | (i >= n_lon)
    j, i = np.clip(j, 0, n_lat - 1), np.clip(i, 0, n_lon - 1)
    values = fields[maps[:, None], ..., j[None], i]  # (centre, point, …)
    values = np.where(
        outside.reshape(outside.shape + (1,) * (values.ndim - 2)), np.nan, values.astype(float)
    )
    return np.moveaxis(values, 1, -1)
