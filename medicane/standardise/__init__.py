"""Bring opened grids to the contract: names, units, orientation, area, spacing. Raise on doubt.

What leaves this room has the dimensions ``time[, pressure_level], latitude, longitude``, float32
values in the units of `medicane.names`, latitude descending, longitude ascending in [−180, 180),
levels in hPa from the surface up, and valid times that strictly increase.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from medicane import config, names
from medicane.errors import InputError
from medicane.standardise import axes, times
from medicane.standardise.land import land_sea_mask as land_sea_mask
from medicane.standardise.placement import Placement, placement_of
from medicane.standardise.units import factor, factor_of
from medicane.standardise.variables import LEVEL_NAMES, check_directions, chosen, source_of
from medicane.standardise.variables import holds as holds

#: Cells of a field that are worked on at once: what stays in the processor's cache.
CELLS_AT_ONCE = 2**16

#: What a value can be, in the units of `names`: outside it, units or packing are wrong.
PLAUSIBLE = {
    "msl": (85_000.0, 110_000.0),
    "u10": (-120.0, 120.0),
    "v10": (-120.0, 120.0),
    "t2m": (180.0, 340.0),
    "sst": (260.0, 320.0),
    "tcwv": (-1.0, 150.0),
    "lsm": (-0.01, 1.01),
    "zg": (-1_500.0, 90_000.0),
    "z": (-15_000.0, 900_000.0),
    "t": (130.0, 340.0),
    "u": (-200.0, 200.0),
    "v": (-200.0, 200.0),
    "q": (-0.01, 0.1),
    **dict.fromkeys(("red", "green", "blue", "grey"), (0.0, 1.0)),
}


def standardise(
    ds: xr.Dataset,
    *,
    domain: config.Domain | None = None,
    degrees: float | None = None,
    units: Mapping[str, str] = {},
    select: Mapping[str, float] = {},
    where: str = "grids",
    variables: Collection[str] | None = None,
) -> xr.Dataset:
    """The known variables of `ds` as the contract wants them, lazily.

    Parameters
    ----------
    ds
        What `medicane.grids.open_grids` returned, or any dataset of maps.
    domain
        The area to keep; data that cover only a part of it give that part. None keeps all.
    degrees
        Spacing of the result; its coordinates are multiples of it. Coarser than the data by
        `remap.COARSENING_RATIO` or more: area-weighted means of cells; otherwise linear
        interpolation; equal: the values as they are. None keeps the points of the data. Grids
        that are not regular (rotated, curvilinear, Gaussian, reduced) are brought to one that is,
        see `scattered`, and must cover the domain.
    units
        Units of variables (by either name) or of ``pressure_level`` whose files state none.
    select
        One value of an extra dimension, for instance ``{"number": 0}``.
    where
        What errors call the data.
    variables
        Names (as in `names.VARIABLES`) to return, all of them required. None returns all that
        are known, with geopotential as geopotential height.

    Returns
    -------
    xarray.Dataset
        Dask-backed, one task per block and variable beyond reading and cropping. Every block is
        checked against `PLAUSIBLE` when it is computed; the first map is read and checked at once.

    Raises
    ------
    InputError
        For a missing variable, missing or incompatible units, an extra dimension of more than one
        value, points without latitudes and longitudes in degrees, times that repeat or go
        backward, no overlap with the domain, or values that cannot be true.
    """
    source_files = ds.attrs.get("source_files")
    ready = plan(
        ds,
        domain=domain,
        degrees=degrees,
        units=units,
        select=select,
        where=where,
        variables=variables,
    )
    way = ready.placement
    first_map, taken = way.take(ready.ds, time=slice(0, 1)), way.take(ready.ds)
    out = {}
    for name, (source, scale, offset) in ready.factors.items():
        convert = functools.partial(
            _convert,
            scale=scale,
            offset=offset,
            remap=way.remap,
            space=len(way.dimensions),
            name=name,
            where=where,
        )
        first = _on_maps(convert, first_map[source], way).compute()
        if name == "zg":
            _check_heights(first, where)
        out[name] = _on_maps(convert, taken[source], way).assign_attrs(_attributes(name))
    result = xr.Dataset({name: out[name] for name in names.VARIABLES if name in out})
    order = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
    result = result.transpose(*order, missing_dims="ignore")
    result = result.drop_vars(set(result.coords) - set(order))
    for axis, values in way.target.items():
        result = result.assign_coords({axis: (axis, values, axes.ATTRIBUTES[axis])})
    if source_files is not None:
        result.attrs["source_files"] = source_files
    result.attrs["remapping"] = way.method
    return result


@dataclass(frozen=True)
class Plan:
    """How opened grids are to be read; see `plan`.

    Attributes
    ----------
    ds
        The variables that are wanted, under our names, with our times and levels; values, units
        and horizontal grid as in the files.
    raw_names
        Our name → what the file calls it, of every variable that is known.
    factors
        Wanted variable → the variable that gives it, scale and offset to our units.
    placement
        What is taken of the area, and the way to the points of the result.
    """

    ds: xr.Dataset
    raw_names: dict[str, str]
    factors: dict[str, tuple[str, float, float]]
    placement: Placement


def plan(
    ds: xr.Dataset,
    *,
    domain: config.Domain | None = None,
    degrees: float | None = None,
    units: Mapping[str, str] = {},
    select: Mapping[str, float] = {},
    where: str = "grids",
    variables: Collection[str] | None = None,
) -> Plan:
    """All that `standardise` decides before it reads a value; parameters and errors as there."""
    ds, raw_names, wanted = chosen(ds, variables, where)
    ds = axes.placed(_squeezed(ds, select, where), domain, where)
    ds = axes.separated(ds)
    if axes.is_scattered(ds):
        check_directions(ds, raw_names, where)
    else:
        ds = axes.with_horizontal(ds, where)
    ds = times.within_valid_range(times.with_valid_times(ds, where), where)
    ds = _with_levels(ds, units, where)
    factors = {}
    for name in wanted:
        source = source_of(name, raw_names)
        raw = raw_names[source]
        if ds[source].dtype.kind not in "biuf":
            raise InputError(f"{where}: {raw}", "values must be numbers", found=ds[source].dtype)
        scale, offset = factor_of(ds[source], raw, source, name, units=units, where=where)
        factors[name] = source, scale, offset
    way = placement_of(ds, domain=domain, degrees=degrees, where=where)
    return Plan(ds=ds, raw_names=raw_names, factors=factors, placement=way)


def _squeezed(ds: xr.Dataset, select: Mapping[str, float], where: str) -> xr.Dataset:
    """One value of every extra dimension: the one asked for, or the only one."""
    for key, value in select.items():
        spelt = (key, *names.COORDINATE_ALIASES.get(key, ()))
        dimension = next((d for d in spelt if d in ds.coords and ds[d].ndim < 2), None)
        if dimension is None:
            law = f"must be a dimension of the data ({', '.join(map(str, ds.dims))})"
            raise InputError(f"{where}: data.select", law, found=key)
        there = np.atleast_1d(ds[dimension].values)
        if value not in there:
            law = f"must be one of {there.tolist()}"
            raise InputError(f"{where}: data.select: {key}", law, found=f"{value:g}")
        if dimension in ds.dims:
            ds = ds.sel({dimension: value})
    map_axes = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
    known = {n for axis in map_axes for n in (axis, *names.COORDINATE_ALIASES[axis])}
    for dimension in [str(d) for d in ds.dims if d not in known and d not in times.TIME_LIKE]:
        if ds.sizes[dimension] == 1:
            ds = ds.isel({dimension: 0})
            continue
        horizontal = {
            d for axis in (names.LATITUDE, names.LONGITUDE)
            if (n := axes.axis_name(ds, axis)) in ds.coords for d in ds[n].dims
        }  # fmt: skip
        if dimension in horizontal or not axes.has_horizontal(ds):
            continue  # told where the axes are checked
        values = ds[dimension].values.tolist() if dimension in ds.coords else "without names"
        law = f"select one value, e.g. data.select: {{{dimension}: 0}}; none is averaged"
        raise InputError(
            f"{where}: {dimension}", law, found=f"{ds.sizes[dimension]} values {values}"
        )
    return ds


# Levels --------------------------------------------------------------------------------------


def _with_levels(ds: xr.Dataset, units: Mapping[str, str], where: str) -> xr.Dataset:
    raw = axes.axis_name(ds, names.LEVEL)
    if raw is None:
        return ds
    several = [d for d in LEVEL_NAMES if d in ds.dims]
    if len(several) > 1:
        raise InputError(where, "levels must be on one axis", found=" and ".join(several))
    if raw not in ds.coords or ds[raw].ndim > 1:
        raise InputError(f"{where}: {raw}", "levels must have a 1-D coordinate", found="none")
    values = np.atleast_1d(ds[raw].values).astype(np.float64)
    stated = units.get(names.LEVEL) or units.get(raw) or ds[raw].attrs.get("units")
    stated = axes.level_units(values, str(stated) if stated else None)
    to_hpa = factor(stated or "", "hPa")
    if to_hpa is None or not values.size or not (values > 0).all():
        raise InputError(
            f"{where}: {raw}",
            f"levels must be pressures; declare e.g. data.units: {{{names.LEVEL}: hPa}}",
            found=f"units {stated!r}, values {values[:3].tolist()}",
        )
    return axes.with_levels(ds, raw, np.round(values * to_hpa[0] + to_hpa[1], 6), where)


def _check_heights(zg: xr.DataArray, where: str) -> None:
    """Refuse heights (m) that no atmosphere has at their pressures.

    Within `PLAUSIBLE`, geopotential may be called height, height geopotential, and Pa hPa. The
    hypsometric equation tells them apart: from 850 to 1100 hPa at the sea, with layers of 200 to
    320 K in the mean, which is more than there is on Earth.
    """
    if names.LEVEL not in zg.dims:
        return
    metres_a_kelvin = 287.05 / names.G0
    for level in zg[names.LEVEL].values:
        heights = zg.sel({names.LEVEL: level}).values
        coldest, warmest = (metres_a_kelvin * np.log(sea / level) for sea in (850.0, 1100.0))
        low, high = min(200 * coldest, 320 * coldest), 320 * warmest
        least, most = np.fmin.reduce(heights, axis=None), np.fmax.reduce(heights, axis=None)
        if least < low or most > high:
            raise InputError(
                f"{where}: zg",
                f"heights at {level:g} hPa must lie within {low:.0f} to {high:.0f} m; is it "
                "geopotential or its height, and are the levels in hPa?",
                found=f"{least:.0f} to {most:.0f}",
            )


def _attributes(name: str) -> dict[str, str]:
    known = names.VARIABLES[name]
    about = {
        "standard_name": known.standard_name, "units": known.units, "long_name": known.long_name
    }  # fmt: skip
    return {key: value for key, value in about.items() if value}


# Values --------------------------------------------------------------------------------------


def _on_maps(convert: Any, array: xr.DataArray, way: Placement) -> xr.DataArray:
    """`convert` on every block of maps, which are whole: nothing is put together, nothing copied.

    As `xr.apply_ufunc` would, but that copies each block that it is given.
    """
    horizontal = (names.LATITUDE, names.LONGITUDE)
    array = array.transpose(..., *way.dimensions)
    ahead = array.dims[: array.ndim - len(way.dimensions)]
    made = tuple(range(len(ahead), len(ahead) + len(horizontal)))
    changed: dict[str, Any] = {}
    if len(way.dimensions) != len(horizontal):
        changed = {"drop_axis": tuple(range(len(ahead), array.ndim)), "new_axis": made}
    data = da.asarray(array.data).map_blocks(
        convert,
        dtype=np.float32,
        chunks=(*array.data.chunks[: len(ahead)], *((way.target[n].size,) for n in horizontal)),
        meta=np.empty((0,) * (len(ahead) + 2), np.float32),
        **changed,
    )
    kept = {n: c for n, c in array.coords.items() if not set(c.dims) & set(way.dimensions)}
    return xr.DataArray(data, kept, (*ahead, *horizontal), name=array.name)


def _convert(
    maps: np.ndarray,
    *,
    scale: float,
    offset: float,
    remap: Callable[[np.ndarray], np.ndarray] | None,
    space: int,
    name: str,
    where: str,
) -> np.ndarray:
    """Units, spacing and type of a block of maps (…, latitude, longitude), then a last look."""

    def converted(maps: np.ndarray) -> np.ndarray:
        if remap is not None:
            maps = remap(maps)
        if (scale, offset) != (1.0, 0.0):
            maps = np.multiply(maps, scale, dtype=np.float64)
            maps += offset
        return maps

    if maps.ndim > space:
        at_once = max(CELLS_AT_ONCE * len(maps) // max(maps.size, 1), 1)
        first = converted(maps[:at_once])
        out = np.empty((len(maps), *first.shape[1:]), np.float32)
        out[:at_once] = first
        for start in range(at_once, len(maps), at_once):
            out[start : start + at_once] = converted(maps[start : start + at_once])
        maps = out
    else:
        maps = np.asarray(converted(maps), np.float32)
    if maps.size:
        low, high = PLAUSIBLE[name]
        least, most = np.fmin.reduce(maps, axis=None), np.fmax.reduce(maps, axis=None)
        if least < low or most > high:
            raise InputError(
                f"{where}: {name}",
                f"values must lie within {low:g} to {high:g} {names.VARIABLES[name].units}; "
                "are the units right?",
                found=f"{least:g} to {most:g}",
            )
    return maps
