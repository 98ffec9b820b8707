"""``medicane(time)`` from a storm catalogue: 1, 0, or -1 where nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import config, names
from medicane.errors import InputError
from medicane.labels.catalogue import (
    PHASES,
    bundled_catalogue,
    catalogue_table,
    merge,
    read_catalogue,
    storms_of_labels,
)

__all__ = [
    "SEVERAL_KINDS",
    "bundled_catalogue",
    "catalogue_table",
    "configured_catalogue",
    "kind_of_times",
    "label_times",
    "merge",
    "read_catalogue",
    "storms_of_labels",
]

#: The kind of a time at which storms of different kinds are about.
SEVERAL_KINDS = "several"


def configured_catalogue(data: config.Data) -> pd.DataFrame | None:
    """The catalogue that a configuration names; None where it names none.

    Raises
    ------
    InputError
        As `read_catalogue`.
    """
    if data.catalogue is None:
        return None
    if data.catalogue == config.BUNDLED:
        return bundled_catalogue()
    return read_catalogue(data.catalogue, domain=data.domain)


def label_times(
    times: ArrayLike | pd.Index,
    catalogue: pd.DataFrame,
    *,
    definition: config.Label,
    domain: config.Domain | None = None,
) -> xr.Dataset:
    """Label each map time.

    Parameters
    ----------
    times
        Shape (time,), strictly increasing, UTC: ``datetime64`` or objects of cftime.
    catalogue
        From `read_catalogue` or `bundled_catalogue`.
    definition
        ``transition_hours`` on either side of a medicane are unknown; the whole definition is
        written to the attribute ``label_definition``.
    domain
        A row whose positions are known (``south`` …) and lie outside of it labels nothing.

    Returns
    -------
    Dataset
        ``medicane(time)`` int8: 1, 0, -1 = unknown; ``storm(time)``: the storm of that hour
        (also of unknown and other hours), empty where there is none. Of two storms with the same
        phase at one time, the one that began first is named.

    Raises
    ------
    InputError
        If the times do not increase strictly.
    """
    index = times if isinstance(times, pd.Index) else pd.Index(np.asarray(times))
    maps, hours_of = _clock(index)
    if (np.diff(maps) <= 0).any():
        k = int(np.flatnonzero(np.diff(maps) <= 0)[0]) + 1
        raise InputError("time", "times must increase strictly", found=index[k])
    rows = _of_domain(catalogue, domain)
    storms, code = np.unique(rows["storm"].to_numpy(str), return_inverse=True)
    label = np.full(maps.size, names.NOT_MEDICANE, np.int8)
    storm = np.zeros(maps.size, np.intp)
    # Weakest first and, within a phase, latest first: what is painted last stays.
    for strength, start, end, name in _layers(rows, code, hours_of, definition.transition_hours):
        first, last = np.searchsorted(maps, start, "left"), np.searchsorted(maps, end, "right")
        label[first:last] = list(PHASES.values())[strength]
        storm[first:last] = name + 1
    data = xr.Dataset(
        {
            "medicane": ("time", label),
            "storm": ("time", np.concatenate([[""], storms]).astype(str)[storm]),
        },
        coords={"time": index},
    )
    data["medicane"].attrs = {
        "long_name": "medicane",
        "flag_values": np.array([-1, 0, 1], np.int8),
        "flag_meanings": "unknown not_medicane medicane",
    }
    data["storm"].attrs = {"long_name": "storm of that time, empty where there is none"}
    data.attrs["label_definition"] = definition.model_dump_json()
    return data


def kind_of_times(
    times: ArrayLike | pd.Index,
    catalogue: pd.DataFrame,
    *,
    domain: config.Domain | None = None,
) -> NDArray[np.str_] | None:
    """What kind of storm is about at each map time, by the catalogue's column ``kind``.

    Parameters
    ----------
    times
        Shape (time,), UTC: ``datetime64`` or objects of cftime.
    catalogue
        From `read_catalogue`; ``kind`` is text of the user's own, e.g. ``baroclinic``.
    domain
        As for `label_times`.

    Returns
    -------
    array of str or None
        Shape (time,): the kind; `SEVERAL_KINDS` where storms of different kinds are about, so that
        a false alarm is laid at no wrong door; empty where there is none. None where the catalogue
        has no such column.
    """
    if "kind" not in catalogue:
        return None
    index = times if isinstance(times, pd.Index) else pd.Index(np.asarray(times))
    maps, hours_of = _clock(index)
    rows = _of_domain(catalogue, domain)
    rows = rows[rows["kind"].fillna("") != ""]
    kinds, code = np.unique(rows["kind"].to_numpy(str), return_inverse=True)
    about = np.zeros((kinds.size, maps.size), bool)
    first = np.searchsorted(maps, hours_of(rows["start"]), "left")
    last = np.searchsorted(maps, hours_of(rows["end"]), "right")
    for kind, start, stop in zip(code, first, last, strict=True):
        about[kind, start:stop] = True
    named = np.concatenate([kinds, [SEVERAL_KINDS, ""]]).astype(str)
    n_kinds = about.sum(axis=0)
    single = about.argmax(axis=0) if kinds.size else np.zeros(maps.size, int)
    return named[np.where(n_kinds == 0, -1, np.where(n_kinds > 1, -2, single))]


def _of_domain(catalogue: pd.DataFrame, domain: config.Domain | None) -> pd.DataFrame:
    """The rows that can label: those of a known position outside of the domain do not."""
    if domain is None or "south" not in catalogue:
        return catalogue
    outside = (
        (catalogue["north"] < domain.south)
        | (catalogue["south"] > domain.north)
        | (catalogue["east"] < domain.west)
        | (catalogue["west"] > domain.east)
    )
    return catalogue[~outside]


def _layers(
    rows: pd.DataFrame,
    code: NDArray[np.intp],
    hours_of: Callable[[pd.Series], NDArray[np.float64]],
    transition_hours: float,
) -> Iterator[tuple[int, float, float, int]]:
    """Stretches (strength, start, end, storm) in the order in which they are painted."""
    strength = rows["phase"].map({phase: k for k, phase in enumerate(PHASES)}).to_numpy(int)
    start, end = hours_of(rows["start"]), hours_of(rows["end"])
    if transition_hours > 0:
        core = strength == 0
        strength = np.concatenate([strength, np.ones(core.sum(), int)])
        code = np.concatenate([code, code[core]])
        start = np.concatenate([start, start[core] - transition_hours])
        end = np.concatenate([end, end[core] + transition_hours])
    order = np.lexsort((-code, -start, -strength))
    yield from zip(
        strength[order].tolist(), start[order], end[order], code[order].tolist(), strict=True
    )


def _clock(
    index: pd.Index,
) -> tuple[NDArray[np.float64], Callable[[pd.Series], NDArray[np.float64]]]:
    """Map times as hours, and the function that turns catalogue times into the same hours."""
    epoch = pd.Timestamp("2000-01-01")
    if isinstance(index, pd.DatetimeIndex) or index.size == 0:
        moments = pd.DatetimeIndex(index)

        def hours(values: Any) -> NDArray[np.float64]:
            return np.asarray((values - epoch) / pd.Timedelta(hours=1), float)

        return hours(moments), hours
    import cftime

    calendar, units = index[0].calendar, "hours since 2000-01-01"

    def model_hours(values: pd.Series) -> NDArray[np.float64]:
        # A day that the model's calendar lacks (31 January of 360 days) is its month's last.
        return np.array(
            [
                cftime.date2num(_in_calendar(moment, calendar), units, calendar=calendar)
                for moment in values
            ],
            float,
        )

    maps = cftime.date2num(index.to_numpy(), units, calendar=calendar)
    return np.asarray(maps, float), model_hours


def _in_calendar(moment: pd.Timestamp, calendar: str) -> Any:
    import cftime

    clock = (moment.hour, moment.minute, moment.second, moment.microsecond)
    for day in range(moment.day, moment.day - 4, -1):
        try:
            return cftime.datetime(moment.year, moment.month, day, *clock, calendar=calendar)
        except ValueError:
            continue
    raise InputError("time", f"a storm's time must exist in the calendar {calendar}", found=moment)
