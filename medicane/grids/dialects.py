"""What files of some dialects need before they can be put together: CDS, CMIP and CORDEX."""

from __future__ import annotations

import logging
import re

import numpy as np
import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.grids.lazy import TIME_DIMENSIONS

LOG = logging.getLogger(__name__)

EXPVER, FINAL, PRELIMINARY = names.EXPVER, names.ERA5, names.ERA5T


def without_helpers(ds: xr.Dataset) -> xr.Dataset:
    """The dataset without what only describes its axes: bounds of cells and grid mappings."""
    described = [*ds.coords.values(), *ds.data_vars.values()]
    helpers = {
        about[key]
        for array in described
        for about in (array.attrs, array.encoding)
        for key in ("bounds", "grid_mapping")
        if about.get(key)
    }
    return ds.drop_vars([name for name in ds.variables if name in helpers])


def with_one_version(ds: xr.Dataset, told: str) -> xr.Dataset:
    """ERA5 and ERA5T in one file become one record: a map is ERA5 where there is one, else ERA5T.

    Until 2024 the Climate Data Store wrote both along a dimension ``expver``, each map missing in
    one of them. One cell of each map tells in which.

    Returns
    -------
    xarray.Dataset
        With the coordinate ``expver`` along time, integer, if the file says the versions.
    """
    time = next((str(d) for d in TIME_DIMENSIONS if d in ds.dims), None)
    if EXPVER not in ds.coords or time is None:
        return ds
    numbers = _as_numbers(ds[EXPVER].values)
    if numbers is None:
        return ds
    if EXPVER not in ds.dims:
        each = np.broadcast_to(numbers, ds.sizes[time])
        return ds.drop_vars(EXPVER).assign_coords({EXPVER: (time, each)})
    if set(numbers.tolist()) - {FINAL, PRELIMINARY} or len(set(numbers.tolist())) < len(numbers):
        return ds  # an extra dimension like any other: a value is selected, or it is refused
    order = [int(np.flatnonzero(numbers == v)[0]) for v in (FINAL, PRELIMINARY) if v in numbers]
    chosen = np.zeros(ds.sizes[time], int)
    if len(order) == 2:
        there = _present(ds, time)[:, order]
        chosen = np.where(there[:, 0] | ~there[:, 1], 0, 1)
    runs = np.split(np.arange(chosen.size), np.flatnonzero(np.diff(chosen)) + 1)
    pieces = [
        ds.isel({EXPVER: order[chosen[run[0]]], time: slice(int(run[0]), int(run[-1]) + 1)})
        for run in runs
    ]
    joined = pieces[0].drop_vars(EXPVER)
    if len(pieces) > 1:
        joined = xr.concat(
            [piece.drop_vars(EXPVER) for piece in pieces],
            dim=time,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
    each = numbers[order][chosen]
    LOG.info(
        "%s: expver 1 and 5 are merged: %d maps of ERA5, %d of ERA5T",
        told,
        (each == FINAL).sum(),
        (each == PRELIMINARY).sum(),
    )
    return joined.assign_coords({EXPVER: (time, each)})


def _as_numbers(values: np.ndarray) -> np.ndarray | None:
    """``0001``, b"5" or 1 as integers; None for what are none."""
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(values).tolist()]
    if not all(text.isdigit() for text in texts):
        return None
    return np.array([int(text) for text in texts]).reshape(np.shape(values))


def _present(ds: xr.Dataset, time: str) -> np.ndarray:
    """(time, expver): whether there is a map, by the corner cell of each variable."""
    there = np.zeros((ds.sizes[time], ds.sizes[EXPVER]), bool)
    for array in ds.data_vars.values():
        if {time, EXPVER} <= set(array.dims):
            corner = array.isel({d: 0 for d in array.dims if d not in (time, EXPVER)})
            there |= corner.transpose(time, EXPVER).notnull().values
    return there


def without_replaced_maps(datasets: list[xr.Dataset], time: str) -> list[xr.Dataset]:
    """Leave out the preliminary maps of times that another of the files has in final form."""
    if not any(EXPVER in ds.coords for ds in datasets):
        return datasets
    datasets = [
        ds
        if EXPVER in ds.coords
        else ds.assign_coords({EXPVER: (time, np.zeros(ds.sizes[time], int))})
        for ds in datasets
    ]
    finals = np.concatenate([ds[time].values[ds[EXPVER].values == FINAL] for ds in datasets])
    kept = []
    for ds in datasets:
        replaced = (ds[EXPVER].values == PRELIMINARY) & np.isin(ds[time].values, finals)
        if replaced.any():
            LOG.info("%d maps of ERA5T give way to those of ERA5", replaced.sum())
        kept.append(ds.isel({time: np.flatnonzero(~replaced)}) if replaced.any() else ds)
    return kept


def without_named_level(ds: xr.Dataset, told: str) -> xr.Dataset:
    """Drop the level of a file whose variable says it, such as CORDEX's ``zg500``.

    Files of several levels can then be merged; `medicane.standardise` puts the levels back.

    Raises
    ------
    InputError
        If name and coordinate disagree.
    """
    levels = (names.LEVEL, *names.COORDINATE_ALIASES[names.LEVEL])
    scalar = next((n for n in levels if n in ds.coords and not ds[n].ndim), None)
    named = [m for n in ds.data_vars if (m := re.fullmatch(names.LEVEL_IN_NAME, str(n)))]
    if scalar is None or not named:
        return ds
    value = float(ds[scalar])
    hpa = value / 100 if str(ds[scalar].attrs.get("units", "Pa")).lower() == "pa" else value
    for match in named:
        if abs(hpa - float(match[2])) > 1e-3:
            law = f"{match[0]} must be at {match[2]} hPa"
            raise InputError(f"{told}: {scalar}", law, found=f"{hpa:g} hPa")
    return ds.drop_vars(scalar)
