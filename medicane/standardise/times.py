"""The times that maps are valid at: of a run and its steps, in order, as far as there are data."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.standardise import axes

LOG = logging.getLogger(__name__)

#: Dimensions of a forecast beside its valid time.
STEP_NAMES = ("step", "forecast_period", "leadtime", "lead_time", "prediction_timedelta")
RUN_NAMES = ("forecast_reference_time", "reference_time", "init_time")
VALID_NAMES = names.COORDINATE_ALIASES[names.TIME]
TIME_LIKE = (names.TIME, *VALID_NAMES, *RUN_NAMES, *STEP_NAMES)


def with_valid_times(ds: xr.Dataset, where: str) -> xr.Dataset:
    """One dimension ``time`` with the times that the maps are valid at, strictly increasing.

    Forecasts (a run and its steps) become valid times. Calendars other than the standard one keep
    their ``cftime`` objects.

    Raises
    ------
    InputError
        If there is no time, more than one time dimension, a time axis that is not CF, or a time
        that repeats or goes backward.
    """
    along = [str(d) for d in ds.dims if d in TIME_LIKE]
    if len(along) > 1:
        ds = ds.isel({d: 0 for d in along if ds.sizes[d] == 1})
        along = [d for d in along if d in ds.dims]
    if len(along) > 1:
        raise InputError(
            where, "maps must follow one time dimension: give one forecast run", found=along
        )
    times = valid_times(ds, where)
    dimension = along[0] if along else names.TIME
    values = np.atleast_1d(times.values)
    if times.ndim > 1 or values.size != ds.sizes.get(dimension, 1):
        raise InputError(
            where, "each map must have one valid time", found=f"times of shape {times.shape}"
        )
    # Run, step, expver along time: said by the valid time, or of no use to a map.
    versions = ds.coords.get(names.EXPVER)
    spent = [n for n, c in ds.coords.items() if n in TIME_LIKE or dimension in c.dims]
    ds = ds.drop_vars(spent)
    if not along:
        maps = [n for n in ds.data_vars if n != "lsm"]
        ds = ds.assign({n: ds[n].expand_dims(names.TIME) for n in maps})
    elif dimension != names.TIME:
        ds = ds.rename({dimension: names.TIME})
    checked = _checked_times(values, where)
    if versions is not None and versions.dims == (dimension,):
        _tell_preliminary(checked, versions.values, where)
    return ds.assign_coords({names.TIME: (names.TIME, checked, axes.ATTRIBUTES[names.TIME])})


def within_valid_range(ds: xr.Dataset, where: str) -> xr.Dataset:
    """The maps that there are: ARCO-ERA5 has times far ahead of its data, and says where they end.

    Its attributes ``valid_time_start``, ``valid_time_stop`` and ``valid_time_stop_era5t`` are days;
    those after ``valid_time_stop`` are ERA5T. ``time`` must be a dimension already.

    Raises
    ------
    InputError
        If no map lies within them.
    """
    days = {}
    for key in ("valid_time_start", "valid_time_stop", "valid_time_stop_era5t"):
        try:
            days[key] = np.datetime64(str(ds.attrs[key]), "D")
        except (KeyError, ValueError):
            continue
    times = ds[names.TIME].values
    if "valid_time_stop" not in days or not np.issubdtype(times.dtype, np.datetime64):
        return ds
    final = days["valid_time_stop"]
    last = max(final, days.get("valid_time_stop_era5t", final))
    of_day = times.astype("datetime64[D]")
    held = np.flatnonzero((of_day >= days.get("valid_time_start", of_day[0])) & (of_day <= last))
    if not held.size:
        raise InputError(f"{where}: time", f"the data end on {last}", found=_told(times[0]))
    versions = np.where(of_day[held] > final, names.ERA5T, names.ERA5)
    _tell_preliminary(times[held], versions, where)
    return ds.isel({names.TIME: slice(int(held[0]), int(held[-1]) + 1)})


def _tell_preliminary(times: np.ndarray, versions: np.ndarray, where: str) -> None:
    preliminary = times[versions == names.ERA5T]
    if preliminary.size:
        LOG.warning(
            "%s: %d of %d maps, %s to %s, are ERA5T (expver 5): ERA5 may still replace them",
            where,
            preliminary.size,
            times.size,
            _told(preliminary[0]),
            _told(preliminary[-1]),
        )


def valid_times(ds: xr.Dataset, where: str) -> xr.Variable:
    """Valid times as they stand, from whichever of valid time, run and step there are.

    Raises
    ------
    InputError
        If there are none, or it is not clear which they are.
    """
    valid = next((n for n in VALID_NAMES if n in ds.coords), None)
    if valid is not None:
        return ds[valid].variable
    step = next((n for n in STEP_NAMES if n in ds.coords), None)
    run = next((n for n in RUN_NAMES if n in ds.coords), None)
    if names.TIME in ds.coords:
        time = ds[names.TIME]
        standard = time.attrs.get("standard_name")
        if step is None or standard == "time" or (run is not None and standard is None):
            return time.variable
        if standard is None and step not in ds.dims and np.any(_duration(ds[step], where).values):
            raise InputError(
                f"{where}: time",
                "with a step, the standard_name of time must say which it is: time or "
                "forecast_reference_time",
                found="none",
            )
        run = names.TIME
    if run is None or step is None:
        raise InputError(where, "maps must have a time coordinate", found=_listed(ds.coords))
    return ds[run].variable + _duration(ds[step], where)


def _duration(step: xr.DataArray, where: str) -> xr.Variable:
    if np.issubdtype(step.dtype, np.timedelta64):
        return step.variable
    unit = str(step.attrs.get("units", "")).strip().lower()
    seconds = {"h": 3600, "hour": 3600, "hours": 3600, "minutes": 60, "seconds": 1, "days": 86400}
    if unit not in seconds:
        raise InputError(
            f"{where}: {step.name}",
            f"units must be one of {', '.join(seconds)}",
            found=repr(step.attrs.get("units")),
        )
    values = np.round(step.values * seconds[unit]).astype("timedelta64[s]")
    return xr.Variable(step.dims, values.astype("timedelta64[ns]"))


def _checked_times(values: np.ndarray, where: str) -> np.ndarray:
    at = f"{where}: time"
    if not values.size:
        raise InputError(at, "at least one map is needed", found="none")
    if np.issubdtype(values.dtype, np.datetime64):
        values = values.astype("datetime64[ns]")  # pandas 3 makes [us], files decode to [ns]
        if np.isnat(values).any():
            raise InputError(
                at, "every map must have a time", found=f"none at map {np.isnat(values).argmax()}"
            )
    elif values.dtype != object or not hasattr(values[0], "calendar"):
        raise InputError(at, "must be a CF time axis ('hours since …')", found=f"{values[0]!r}")
    backward = np.flatnonzero(values[1:] <= values[:-1])
    if backward.size:
        earlier, later = values[backward[0]], values[backward[0] + 1]
        kind = "a repeated" if later == earlier else "a step backward:"
        found = f"{kind} {_told(later)} after {_told(earlier)}"
        raise InputError(at, "times must strictly increase", found=found)
    return values


def _told(time: Any) -> str:
    return str(time).removesuffix(".000000000")


def _listed(items: Any) -> str:
    return ", ".join(sorted(map(str, items))) or "none"
