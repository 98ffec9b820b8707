"""What a source of grids holds, what is missing, and how it would be read: before anything is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medicane import names
from medicane.config import Config, Domain
from medicane.errors import InputError
from medicane.pipeline.summaries import HeldVariable, Inspected

if TYPE_CHECKING:
    import xarray as xr

    from medicane.standardise import Plan

#: The spacing, step and length that are told of where no configuration says others.
DEFAULT_DEGREES, DEFAULT_STEP_HOURS, DEFAULT_LENGTH = 0.5, 6, 12


def inspect(
    inputs: Sequence[str | Path],
    *,
    config: Config | None = None,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
) -> Inspected:
    """Say what grids hold and how they would be read. Reads headers and coordinates.

    Parameters
    ----------
    inputs
        Files, globs, stores, URIs or a folder of map images; none: those of the configuration.
    config
        Its channels, area, spacing, step, units and selection are asked for; without one, the
        default channels on the Mediterranean, and of map images their own.
    units, select
        As ``data.units`` and ``data.select``; beside those of the configuration.

    Returns
    -------
    Inspected
        ``usable`` tells whether the channels can be made of it; otherwise ``missing`` and
        ``fault`` say why not.

    Raises
    ------
    InputError
        If it cannot be opened, or holds no maps at all.
    """
    from medicane import channels
    from medicane.grids import open_grids
    from medicane.standardise import axes, plan

    data = config.data if config else None
    uris = [str(uri) for uri in (inputs or (data.grids if data else ()))]
    units = {**(data.units if data else {}), **(units or {})}
    select = {**(data.select if data else {}), **(select or {})}
    where = (uris[0] if uris else "grids") + (f" and {len(uris) - 1} more" if uris[1:] else "")
    raw = open_grids(
        uris, select=select or None, storage_options=data.storage_options if data else None
    )
    if not axes.has_horizontal(raw) and not {names.ROW, names.COLUMN} <= set(raw.dims):
        found = f"dimensions {', '.join(map(str, raw.dims)) or 'none'}"
        raise InputError(where, "must hold maps: latitudes and longitudes", found=found)
    pictures = "images" in raw.attrs
    formulas: Any = data.channels if data else names.DEFAULT_CHANNELS
    degrees = data.degrees if data else DEFAULT_DEGREES
    if pictures and data is None:
        formulas, degrees = tuple(map(str, raw.data_vars)), None
    held, levels = _held(raw, units, where)
    missing = _missing(held, channels.required_variables(formulas))
    there = {variable.name for variable in held}
    wanted = [
        name for name in channels.wanted_variables(raw, formulas) if name in _with_twins(there)
    ]
    reading, fault = "", None
    try:
        ready = plan(
            raw,
            domain=data.domain if data else Domain(),
            degrees=degrees,
            units=units,
            select=select,
            where=where,
            variables=wanted or None,
        )
        reading = _reading(ready, degrees, data.domain if data else Domain())
    except InputError as error:
        fault = str(error)
    times = _times(raw, where)
    step = data.step_hours if data else DEFAULT_STEP_HOURS
    length = config.sequences.length if config else DEFAULT_LENGTH
    return Inspected(
        where=where,
        n_files=len(json.loads(raw.attrs["source_files"])),
        dialect=_dialect(raw),
        dimensions={str(d): int(n) for d, n in raw.sizes.items()},
        **times,
        sequences=_sequences(raw, where, step, length),
        **_area(raw),
        levels=levels,
        variables=held,
        versions=_versions(raw),
        labelled="medicane" in raw.coords,
        left_out=json.loads(raw.attrs.get("left_out", "[]")),
        channels=[c if isinstance(c, str) else c.name for c in formulas],
        missing=missing,
        reading=reading,
        fault=fault,
        usable=not missing and fault is None,
    )


# Variables --------------------------------------------------------------------------------------


def _held(
    raw: xr.Dataset, units: dict[str, str], where: str
) -> tuple[list[HeldVariable], list[float]]:
    """Every field of the source, what it would be called, and the levels (hPa) of all."""
    from medicane.standardise import axes
    from medicane.standardise.units import factor
    from medicane.standardise.variables import known_name, named_levels

    axis = axes.axis_name(raw, names.LEVEL)
    on_axis: list[float] = []
    if axis is not None and axis in raw.coords and raw[axis].ndim < 2:
        values = np.atleast_1d(raw[axis].values).astype(float)
        stated = units.get(names.LEVEL) or units.get(axis) or raw[axis].attrs.get("units")
        to_hpa = factor(axes.level_units(values, str(stated) if stated else None) or "", "hPa")
        if to_hpa is not None:
            on_axis = [float(p) for p in np.round(values * to_hpa[0] + to_hpa[1], 6)]
    by_name = {
        field: (name, level)
        for name, fields in named_levels(raw).items()
        for level, field in fields.items()
    }
    held = []
    for key, array in raw.data_vars.items():
        field = str(key)
        name, level = by_name.get(field, (known_name(raw, key), None))
        of_it: list[float] = []
        if name is not None and names.VARIABLES[name].on_levels:
            of_it = [level] if level is not None else on_axis
        stated = str(array.attrs.get("units") or "").strip()
        long_name = str(array.attrs.get("long_name") or "").strip()
        becomes = "zg" if name == "z" else name  # geopotential is read as its height
        held.append(
            HeldVariable(
                field=field,
                units=stated,
                long_name=long_name,
                name=becomes,
                standard_name=names.VARIABLES[becomes].standard_name if becomes else "",
                target_units=names.VARIABLES[becomes].units if becomes else "",
                levels=sorted(of_it, reverse=True),
                note=_note(field, name, stated, units, long_name),
            )
        )
    return held, sorted({p for variable in held for p in variable.levels}, reverse=True)


def _note(
    field: str, name: str | None, stated: str, declared: dict[str, str], long_name: str
) -> str:
    """What stands in the way of a known variable, and what to say to it."""
    from medicane.standardise.units import factor

    if name is None:
        return ""
    target = names.VARIABLES[name].units
    by_user = declared.get(name) or declared.get(field)
    if by_user:
        return f"declared as {by_user}"
    if not stated:
        told = re.search(r"\[([^\]]+)\]", long_name)
        hint = f"; its long name says {told[1]}" if told else ""
        return f"states no units{hint}: declare them, --units.{name} {target}"
    if factor(stated, target) is None:
        return f"its units cannot be converted to {target}"
    return ""


def _with_twins(there: set[str | None]) -> set[str]:
    from medicane.standardise.variables import TWINS

    held = {name for name in there if name}
    return held | {TWINS[name] for name in held if name in TWINS}


def _missing(held: list[HeldVariable], needs: set[tuple[str, float | None]]) -> list[str]:
    """What the channels need and the source lacks, in words; a land-sea mask is at hand."""
    from medicane.standardise.variables import TWINS

    missing = []
    for name in dict.fromkeys(name for name, _ in sorted(needs, key=str)):
        of_it = [v for v in held if v.name in {name, TWINS.get(name, name)}]
        wanted = sorted((p for n, p in needs if n == name and p is not None), reverse=True)
        there = {p for variable in of_it for p in variable.levels}
        lacking = [p for p in wanted if not any(abs(p - q) < 1e-3 for q in there)]
        if not of_it and name != "lsm":
            at = f" at {', '.join(f'{p:g}' for p in wanted)} hPa" if wanted else ""
            missing.append(f"{name}{at}")
        elif lacking:
            missing.append(f"{name} at {', '.join(f'{p:g}' for p in lacking)} hPa")
    return missing


# Times, area ------------------------------------------------------------------------------------


def _seconds(times: np.ndarray) -> np.ndarray:
    if np.issubdtype(times.dtype, np.datetime64):
        return times.astype("datetime64[s]").astype(float)
    return np.array([(t - times[0]).total_seconds() for t in times], float)


def _valid(raw: xr.Dataset, where: str) -> np.ndarray | None:
    from medicane.standardise.times import valid_times

    try:
        times = np.atleast_1d(valid_times(raw, where).values).ravel()
    except InputError:
        return None
    is_time = np.issubdtype(times.dtype, np.datetime64) or hasattr(times.flat[0], "calendar")
    return times if times.size and is_time else None


def _times(raw: xr.Dataset, where: str) -> dict[str, Any]:
    """First, last, step, gaps, repetitions and calendar of the valid times."""
    times = _valid(raw, where)
    if times is None:
        return {"n_times": 0}
    seconds = _seconds(times)
    order = np.argsort(seconds, kind="stable")
    apart = np.diff(seconds[order]) / 3600
    steps, counts = np.unique(apart[apart > 0], return_counts=True)
    # The step is the commonest one, the shorter of two that are as common.
    step = float(steps[counts.argmax()]) if steps.size else None
    gaps = np.flatnonzero(apart > step + 1e-6) if step else np.zeros(0, int)
    return {
        "n_times": int(times.size),
        "first": _moment(times[order[0]]),
        "last": _moment(times[order[-1]]),
        "step_hours": step,
        "gaps": [(_moment(times[order[i]]), _moment(times[order[i + 1]])) for i in gaps],
        "n_repeated": int((apart == 0).sum()),
        "in_order": bool((np.diff(seconds) >= 0).all()),
        "calendar": str(getattr(times.flat[0], "calendar", "standard")),
    }


def _moment(time: Any) -> str:
    return str(time.isoformat() if hasattr(time, "isoformat") else time)[:16]


def _sequences(raw: xr.Dataset, where: str, step_hours: int, length: int) -> str:
    """How many maps follow one another at the step of a detector."""
    from medicane.sequences import at_steps, contiguous_periods

    times = _valid(raw, where)
    if times is None or (np.diff(_seconds(times)) <= 0).any():
        return ""
    try:
        chosen = times[at_steps(times, step_hours=step_hours, where=where)]
    except InputError:
        return f"no maps {step_hours} h apart: another data.step_hours is needed"
    longest = max(p.stop - p.start for p in contiguous_periods(chosen, step_hours=step_hours))
    enough = "enough" if longest >= length else "too few"
    return f"{longest} maps {step_hours} h apart without a gap, {enough} for a sequence of {length}"


def _area(raw: xr.Dataset) -> dict[str, Any]:
    """Kind of grid, area and spacing."""
    from medicane.standardise import axes

    if names.ROW in raw.dims:
        return {"grid": f"pictures of {raw.sizes[names.COLUMN]} x {raw.sizes[names.ROW]} pixels"}
    ds = axes.separated(raw)
    latitude, longitude = (
        ds[str(axes.axis_name(ds, axis))] for axis in (names.LATITUDE, names.LONGITUDE)
    )
    rows, columns = (np.asarray(a.values, float) for a in (latitude, longitude))
    if columns.ndim == 1 and columns.size > 1 and np.abs(np.diff(columns)).max() > 180:
        columns = np.unwrap(columns, period=360)  # 359.5, 0, 0.5
    if not rows.size or not np.isfinite(rows).any() or not np.isfinite(columns).any():
        return {"grid": "no coordinates"}
    kind, spacing = "regular", None
    if axes.is_scattered(ds):
        kind = "uneven latitudes or longitudes (Gaussian)" if rows.ndim == 1 else "curvilinear"
        kind = "points" if latitude.dims == longitude.dims and rows.ndim == 1 else kind
    elif min(rows.size, columns.size) > 1:
        spacing = tuple(round(float(np.ptp(axis)) / (axis.size - 1), 6) for axis in (rows, columns))
    shape = " x ".join(map(str, rows.shape if rows.ndim > 1 else (rows.size, columns.size)))
    west, east = float(np.nanmin(columns)), float(np.nanmax(columns))
    return {
        "grid": f"{kind}, {shape if kind != 'points' else rows.size} points",
        "area": Domain.model_construct(
            north=float(np.nanmax(rows)), south=float(np.nanmin(rows)), west=west, east=east
        ).model_dump(),
        "spacing": spacing,
    }


def _versions(raw: xr.Dataset) -> dict[str, int]:
    """Maps of each version of ERA5 that the source tells apart."""
    if names.EXPVER not in raw.coords or raw[names.EXPVER].ndim != 1:
        return {}
    told = {names.ERA5: "ERA5", names.ERA5T: "ERA5T", 0: "not said"}
    values, counts = np.unique(raw[names.EXPVER].values, return_counts=True)
    return {told.get(v, str(v)): int(n) for v, n in zip(values, counts, strict=True)}


def _reading(ready: Plan, degrees: float | None, domain: Domain) -> str:
    """The way of the values, in words."""
    target = ready.placement.target
    rows, columns = target[names.LATITUDE], target[names.LONGITUDE]
    on = "its own points" if degrees is None else f"multiples of {degrees:g} degrees"
    text = (
        f"{rows.size} x {columns.size} points, {rows[-1]:g} to {rows[0]:g} N, {columns[0]:g} to "
        f"{columns[-1]:g} E, at {on}: {_in_words(ready.placement.method)}"
    )
    down, along = (np.ptp(axis) / max(axis.size - 1, 1) for axis in (rows, columns))
    short = max(rows[-1] - domain.south, domain.north - rows[0]) > 1.01 * down
    if short or max(columns[0] - domain.west, domain.east - columns[-1]) > 1.01 * along:
        text += (
            f"; a part of the domain {domain.south:g} to {domain.north:g} N, {domain.west:g} to "
            f"{domain.east:g} E"
        )
    for name, (source, scale, offset) in ready.factors.items():
        if (scale, offset) != (1.0, 0.0):
            text += f"; {name} is {ready.raw_names[source]} times {scale:.6g}"
            text += f" plus {offset:g}" if offset else ""
    return text


def _in_words(method: str) -> str:
    """The method of `standardise`, an axis at a time, for a reader."""
    words = {"none": "as they are", "conservative": "area means", "linear": "interpolated linearly"}
    by_axis = re.findall(r"(?:latitude|longitude) (\w+)", method) or [method]
    told = [words.get(one, one) for one in by_axis]
    return f"values {told[0]}" if len(set(told)) == 1 else f"values {told[0]} and {told[1]}"


# Dialect ----------------------------------------------------------------------------------------


def _dialect(raw: xr.Dataset) -> str:
    """Whose habits the names and attributes show; a guess that nothing depends on."""
    about = {str(key): str(value) for key, value in raw.attrs.items()}
    present = {str(name) for name in (*raw.data_vars, *raw.coords)}
    conventions = about.get("Conventions", "")
    if "images" in about:
        return f"folder of {about['images']}" + (
            ", labelled" if "medicane" in raw.coords else ", without labels"
        )
    if about.get("idealised"):
        return "idealised sea of this package"
    if "GRIB_edition" in about or "GRIB_centre" in about:
        centre = about.get("GRIB_centreDescription", about.get("GRIB_centre", ""))
        return f"GRIB of {centre} (names of cfgrib)"
    if "mean_sea_level_pressure" in present or "10m_u_component_of_wind" in present:
        arco = "valid_time_stop" in about
        return "ARCO-ERA5" if arco else "WeatherBench 2 (or another with long ERA5 names)"
    if any(key.startswith("CORDEX") or value == "CORDEX" for key, value in about.items()):
        return "CORDEX"
    if about.get("mip_era") or "CMIP" in conventions or about.get("project_id", "")[:4] == "CMIP":
        return about.get("mip_era", "CMIP")
    if "COARDS" in conventions:
        return "COARDS"
    if "valid_time" in present and {"pressure_level", "number", "expver"} & present:
        return "ERA5 of the Climate Data Store, the form of today"
    if "grib_to_netcdf" in about.get("history", "") or ("expver" in present):
        return "ERA5 of the Climate Data Store, the form before (grib_to_netcdf)"
    return f"NetCDF or Zarr, {conventions or 'no conventions stated'}"
