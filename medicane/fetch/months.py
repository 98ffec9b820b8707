"""What a configuration needs of ERA5, cut into months; and whether a file holds one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.channels import required_variables
from medicane.config import Config, Domain
from medicane.errors import InputError
from medicane.grids import open_grids

#: What the Climate Data Store, and ARCO-ERA5 after it, call the variables.
LONG_NAMES = {
    "msl": "mean_sea_level_pressure",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "t2m": "2m_temperature",
    "sst": "sea_surface_temperature",
    "tcwv": "total_column_water_vapour",
    "z": "geopotential",
    "t": "temperature",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "q": "specific_humidity",
}
#: Spacing of ERA5 in latitude and longitude.
DEGREES = 0.25


@dataclass(frozen=True)
class Month:
    """One file: a month of the variables of one kind of level.

    Attributes
    ----------
    path
        Where it goes, ``single_YYYY-MM.nc`` or ``levels_YYYY-MM.nc``.
    kind
        Single levels or pressure levels, which are two data sets.
    variables
        Names of `names.VARIABLES`.
    levels
        Pressure levels in hPa, from the surface up; none for single levels.
    times
        (time), the maps that are wanted of the month.
    """

    path: Path
    kind: Literal["single", "levels"]
    variables: tuple[str, ...]
    levels: tuple[int, ...]
    times: NDArray[np.datetime64]
    domain: Domain

    def told(self) -> str:
        """What is asked for, in one line."""
        area, first, last = self.domain, *self.times[[0, -1]].astype("datetime64[m]")
        what = ", ".join(LONG_NAMES[name] for name in self.variables)
        at = f" at {', '.join(map(str, self.levels))} hPa" if self.levels else ""
        return (
            f"{self.path.name}: {what}{at}; {self.times.size} maps, {first} to {last}; "
            f"{area.south:g} to {area.north:g} N, {area.west:g} to {area.east:g} E"
        )


def planned_months(
    config: Config, folder: Path, *, start: str | None = None, end: str | None = None
) -> list[Month]:
    """The files that a configuration needs of a period, in order.

    Parameters
    ----------
    config
        ``data.channels`` says which variables, beside the pressure and the heights that locate the
        lows; ``data.domain`` and ``data.step_hours`` say which part of them.
    folder
        Where they go.
    start, end
        The first and the last year, month or day; by default those of the splits.

    Raises
    ------
    InputError
        If the period is none, the step does not divide a day, or a channel is not of ERA5.
    """
    step = config.data.step_hours
    if 24 % step:
        raise InputError("data.step_hours", "must divide a day to be fetched", found=step)
    first, last = _period(config, start, end)
    times = pd.date_range(first.floor("D"), last, freq=f"{step}h").values.astype("datetime64[ns]")
    times = times[times >= first.to_datetime64()]
    if not times.size:
        raise InputError("--end", "must not be before --start", found=f"{first} to {last}")
    needs = required_variables(config.data.channels) | {("msl", None)}
    needs |= {("z", float(level)) for level in names.PHASE_SPACE_LEVELS}
    # Heights come as geopotential; a land-sea mask comes with this package.
    fields = {("z" if name == "zg" else name, level) for name, level in needs if name != "lsm"}
    unknown = sorted({name for name, _ in fields} - set(LONG_NAMES))
    if unknown:
        raise InputError("data.channels", "must be made of what ERA5 has", found=unknown)
    levels = sorted({int(level) for _, level in fields if level is not None}, reverse=True)
    stamps = times.astype("datetime64[M]")
    months = []
    for stamp in np.unique(stamps):
        for kind in ("single", "levels"):
            named = {name for name, level in fields if (level is None) == (kind == "single")}
            months.append(
                Month(
                    path=folder / f"{kind}_{stamp}.nc",
                    kind=kind,
                    variables=tuple(name for name in LONG_NAMES if name in named),
                    levels=tuple(levels) if kind == "levels" else (),
                    times=times[stamps == stamp],
                    domain=config.data.domain,
                )
            )
    return months


def holds(month: Month, path: Path | None = None) -> bool:
    """Whether a file holds all maps of a month; False if only later or earlier ones are missing.

    Parameters
    ----------
    path
        The file, if it is not the month's own.

    Raises
    ------
    InputError
        If it cannot be read, or is of other variables, levels or another area.
    """
    raw = open_grids(path or month.path)
    told = month.path.name
    lacking = sorted(set(month.variables) - set(map(str, raw.data_vars)))
    if lacking:
        raise InputError(
            told, f"must hold {', '.join(lacking)}", found=sorted(map(str, raw.data_vars))
        )
    if month.levels:
        held = {int(level) for level in _axis(raw, names.LEVEL, told)}
        if not held >= set(month.levels):
            raise InputError(f"{told}: levels", f"must hold {list(month.levels)}", found=held)
    for axis, low, high in (
        (names.LATITUDE, month.domain.south, month.domain.north),
        (names.LONGITUDE, month.domain.west, month.domain.east),
    ):
        values = _axis(raw, axis, told)
        if axis == names.LONGITUDE:
            values = (values + 180) % 360 - 180
        if max(abs(values.min() - low), abs(values.max() - high)) > DEGREES:
            raise InputError(
                f"{told}: {axis}",
                f"must be that of data.domain, {low:g} to {high:g}; choose another folder",
                found=f"{values.min():g} to {values.max():g}",
            )
    return bool(np.isin(month.times, _axis(raw, names.TIME, told).astype("datetime64[ns]")).all())


def _axis(raw: xr.Dataset, name: str, told: str) -> NDArray[Any]:
    """The values of a coordinate, whichever of its names it has."""
    for spelt in (name, *names.COORDINATE_ALIASES[name]):
        if spelt in raw.coords:
            return np.atleast_1d(raw[spelt].values)
    raise InputError(told, f"must have a coordinate {name}", found=sorted(map(str, raw.coords)))


def _period(
    config: Config, start: str | None, end: str | None
) -> tuple[pd.Timestamp, pd.Timestamp]:
    """The first and the last moment that is wanted."""
    splits = config.splits
    ranges = [*splits.train, *splits.validation, *splits.test]
    moments = []
    for key, text, pick in (("--start", start, 0), ("--end", end, 1)):
        if text is None and ranges:
            moments.append(pd.Timestamp((min, max)[pick](pair[pick] for pair in ranges)))
        elif text is None:
            raise InputError(key, "must be given where the splits have no dates")
        else:
            try:
                period = pd.Period(text)
            except ValueError:
                raise InputError(key, "must be a year, month or day", found=text) from None
            moments.append((period.start_time, period.end_time)[pick])
    return moments[0], moments[1]
