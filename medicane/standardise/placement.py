"""What to take of the data, and how it is brought to the points of the result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from medicane import config, names
from medicane.errors import InputError
from medicane.standardise import axes, remap
from medicane.standardise.scattered import scattered_weights


@dataclass(frozen=True)
class Placement:
    """The way of every map from its source to the result.

    Attributes
    ----------
    dimensions
        The horizontal dimensions of the source.
    target
        ``latitude``, descending, and ``longitude``, ascending, of the result: degrees.
    method
        How values are brought there, in words.
    take
        Cuts the part that counts out of a dataset; keywords are slices of other dimensions.
    remap
        Brings maps (…, *dimensions) of that part to (…, latitude, longitude); None: as they are.
    """

    dimensions: tuple[str, ...]
    target: dict[str, np.ndarray]
    method: str
    take: Callable[..., xr.Dataset]
    remap: Callable[[np.ndarray], np.ndarray] | None


def placement_of(
    ds: xr.Dataset, *, domain: config.Domain | None, degrees: float | None, where: str
) -> Placement:
    """Where the maps of a dataset go.

    Parameters
    ----------
    ds
        With ``latitude`` and ``longitude`` as dimensions (`axes.with_horizontal`), or scattered
        (`axes.is_scattered`).

    Raises
    ------
    InputError
        If data and domain do not overlap; or, of scattered points, if they do not cover the domain
        or no spacing is given.
    """
    if axes.is_scattered(ds):
        return _of_points(ds, domain, degrees, where)
    return _of_grid(ds, domain, degrees, where)


def _of_points(
    ds: xr.Dataset, domain: config.Domain | None, degrees: float | None, where: str
) -> Placement:
    dimensions, latitude, longitude = axes.points_of(ds, where)
    if degrees is None:
        law = "a grid that is not regular is brought to one that is: give a spacing (data.degrees)"
        raise InputError(where, law, found="none")
    if domain is None:
        law = "a grid that is not regular must cover a domain: give one"
        raise InputError(where, law, found="none")
    wanted = {
        names.LATITUDE: _within(domain.south, domain.north, degrees),
        names.LONGITUDE: _within(domain.west, domain.east, degrees),
    }
    weights = scattered_weights(
        latitude,
        longitude,
        wanted_latitude=wanted[names.LATITUDE],
        wanted_longitude=wanted[names.LONGITUDE],
        degrees=degrees,
        where=where,
    )
    part = dict(zip(dimensions, weights.used, strict=True))

    def take(ds: xr.Dataset, **others: slice) -> xr.Dataset:
        return ds.isel({**part, **others}, missing_dims="ignore").chunk(dict.fromkeys(part, -1))

    return Placement(
        dimensions=dimensions,
        target={**wanted, names.LATITUDE: wanted[names.LATITUDE][::-1]},
        method=weights.method,
        take=take,
        remap=weights.apply,
    )


def _within(low: float, high: float, degrees: float) -> np.ndarray:
    return remap.target_axis(np.array([low, high]), degrees=degrees, low=low, high=high)


def _of_grid(
    ds: xr.Dataset, domain: config.Domain | None, degrees: float | None, where: str
) -> Placement:
    latitude, longitude = ds[names.LATITUDE].values, ds[names.LONGITUDE].values
    margin = 0.0
    if degrees is not None:
        margin = degrees / 2 + max(remap.spacing(latitude[::-1]), remap.spacing(longitude))
    rows, columns = axes.around(ds, domain, margin=margin, where=where)
    latitude, longitude = latitude[rows], axes.wrap(longitude[columns])
    if degrees is None:
        target = {names.LATITUDE: latitude, names.LONGITUDE: longitude}
        return _regular(rows, columns, target, "none")
    box = domain or axes.WORLD
    positions, points, methods = {}, {}, []
    weights: dict[str, np.ndarray | None] = {}
    for axis, source, taken, low, high in (
        (names.LATITUDE, latitude[::-1], rows[::-1], box.south, box.north),
        (names.LONGITUDE, longitude, columns, box.west, box.east),
    ):
        wanted = remap.target_axis(source, degrees=degrees, low=low, high=high)
        if not wanted.size:
            law = f"the data must overlap the domain at multiples of {degrees:g} degrees"
            found = f"{source[0]:g} to {source[-1]:g}, domain {low:g} to {high:g}"
            raise InputError(f"{where}: {axis}", law, found=found)
        points[axis], positions[axis], weights[axis] = wanted, taken, None
        same = remap.matching(source, wanted)
        if same is not None:  # nothing to do but to cut off the margin
            positions[axis] = taken[same]
            methods.append(f"{axis} none")
            continue
        method, weights[axis] = remap.axis_weights(
            source, wanted, degrees=degrees, on_sphere=axis == names.LATITUDE
        )
        methods.append(f"{axis} {method}")
    down = weights[names.LATITUDE]
    return _regular(
        positions[names.LATITUDE][::-1],
        positions[names.LONGITUDE],
        {**points, names.LATITUDE: points[names.LATITUDE][::-1]},
        ", ".join(methods),
        w_latitude=None if down is None else down[::-1, ::-1].copy(),
        w_longitude=weights[names.LONGITUDE],
    )


def _regular(
    rows: np.ndarray,
    columns: np.ndarray,
    target: dict[str, np.ndarray],
    method: str,
    **weights: Any,
) -> Placement:
    way = None
    if any(matrix is not None for matrix in weights.values()):
        matrix = remap.map_weights(**weights, shape=(rows.size, columns.size))
        wanted = (target[names.LATITUDE].size, target[names.LONGITUDE].size)
        way = functools.partial(remap.apply_weights, matrix=matrix, shape=wanted)
    return Placement(
        dimensions=(names.LATITUDE, names.LONGITUDE),
        target=target,
        method=method,
        take=functools.partial(axes.taken, rows=rows, columns=columns),
        remap=way,
    )
