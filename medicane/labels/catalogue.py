"""Storm catalogues: two forms of CSV in, one table of stretches of time out. The times are UTC.

* windows ``storm,start,end[,…]``: a row is a stretch of time, both ends included;
* tracks ``track_id,time,lat,lon[,mslp_hpa]``: a stretch from the first to the last position.

An optional column ``phase`` says what the stretch is: ``medicane`` (also if empty or absent),
``unknown`` (hours that are neither) or ``other`` (a strong cyclone that is not a medicane: label 0,
under its own name). Where stretches overlap, medicane wins over unknown, unknown over other. More
is said in `docs/catalogue.md`.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medicane import config, names
from medicane.errors import InputError

#: What a stretch of time can be, the strongest first, and its label.
PHASES = {
    "medicane": names.MEDICANE,
    "unknown": names.UNKNOWN,
    "other": names.NOT_MEDICANE,
}

WINDOW_COLUMNS = ("storm", "start", "end")
TRACK_COLUMNS = ("track_id", "time", "lat", "lon")

#: Years that ``datetime64[ns]`` can hold whole.
_YEARS = (1678, 2261)


def read_catalogue(path: str | Path, *, domain: config.Domain | None = None) -> pd.DataFrame:
    """Read a storm catalogue, in either form.

    Parameters
    ----------
    path
        A CSV file. A time without an offset is UTC; ``Z`` and ``+00:00`` are accepted. A bare date
        means its first moment, and as the end of a window its last.
    domain
        Track positions outside of it are left out: a storm that leaves the domain ends there, and
        one that never enters it is not in the result.

    Returns
    -------
    DataFrame
        ``storm`` (str), ``start``, ``end`` (``datetime64[ns]``, UTC, both included), ``phase``, in
        the order of start and storm. Overlapping stretches of one storm and phase are one row.
        Further columns of a window catalogue are kept as text (those of the first of merged rows).
        Tracks get ``south``, ``north``, ``west``, ``east`` (degrees) and, if the file has
        ``mslp_hpa``, ``min_mslp_hpa``.

    Raises
    ------
    InputError
        If the file cannot be read, has neither column set, or a row has an end before its start, a
        time that is not ISO 8601 or not in UTC, an unknown phase, or no storm. The message names
        the file and the line.
    """
    columns, lines = _read_columns(Path(path))
    if set(WINDOW_COLUMNS) <= set(columns):
        return merge(_windows(columns, lines, str(path)))
    return merge(_tracks(columns, lines, str(path), domain))


def _read_columns(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """The columns as text and the line number of each row; blank lines are passed over."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            table = [
                ([cell.strip() for cell in row], reader.line_num)
                for row in reader
                if any(cell.strip() for cell in row)
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, "the catalogue must be a readable text file", found=error) from None
    except csv.Error as error:
        law = "the catalogue must be comma-separated values"
        raise InputError(f"{path}: line {reader.line_num}", law, found=error) from None
    if not table:
        raise InputError(path, "the catalogue must have a header line", found="an empty file")
    header, first = table[0]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: line {first}", "a column must be named once", found=twice)
    if not any(set(form) <= set(header) for form in (WINDOW_COLUMNS, TRACK_COLUMNS)):
        law = "the columns must be storm,start,end[,…] or track_id,time,lat,lon[,mslp_hpa]"
        raise InputError(f"{path}: line {first}", law, found=",".join(header))
    for row, line in table[1:]:
        if len(row) != len(header):
            law = f"a row must have the header's {len(header)} values"
            raise InputError(f"{path}: line {line}", law, found=len(row))
    for row, line in table:
        for cell in row:
            if _is_foul(cell):
                law = "a cell must be printable, and not begin like a formula (= + - @)"
                raise InputError(f"{path}: line {line}", law, found=repr(cell))
    columns = {name: [row[k] for row, _ in table[1:]] for k, name in enumerate(header)}
    return columns, [line for _, line in table[1:]]


def _is_foul(cell: str) -> bool:
    """Whether a spreadsheet would compute a cell, or a terminal obey it: names are written out."""
    if not cell.isprintable():
        return True
    if cell[:1] not in ("=", "+", "-", "@") or not any(sign.isalnum() for sign in cell):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _moments(
    values: list[str], lines: list[int], where: str, name: str, *, end: bool = False
) -> pd.Series:
    """ISO 8601 in UTC → ``datetime64[ns]``; every distinct text is read once."""
    read: dict[str, dt.datetime] = {}
    for text, line in zip(values, lines, strict=True):
        if text not in read:
            read[text] = _moment(text, f"{where}: line {line}: {name}", end=end)
    moments = pd.Series([read[text] for text in values], dtype="datetime64[us]")
    return moments.astype("datetime64[ns]")


def _moment(text: str, where: str, *, end: bool) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(where, "a time must be ISO 8601", found=repr(text)) from None
    if moment.utcoffset():
        raise InputError(where, "a time must be in UTC", found=repr(text))
    moment = moment.replace(tzinfo=None)
    if not _YEARS[0] <= moment.year <= _YEARS[1]:
        law = f"a year must lie in {_YEARS[0]}-{_YEARS[1]}"
        raise InputError(where, law, found=repr(text))
    if end and ":" not in text and "T" not in text and " " not in text:
        moment = dt.datetime.combine(moment.date(), dt.time.max)
    return moment


def _phases(columns: dict[str, list[str]], lines: list[int], where: str) -> list[str]:
    given = columns.get("phase")
    if given is None:
        return ["medicane"] * len(lines)
    phases = [text.lower() or "medicane" for text in given]
    for phase, line in zip(phases, lines, strict=True):
        if phase not in PHASES:
            law = f"the phase must be one of {', '.join(PHASES)}"
            raise InputError(f"{where}: line {line}: phase", law, found=repr(phase))
    return phases


def _named(storms: list[str], lines: list[int], where: str, name: str) -> list[str]:
    for storm, line in zip(storms, lines, strict=True):
        if not storm:
            law = "a storm must have a name"
            raise InputError(f"{where}: line {line}: {name}", law, found="an empty cell")
    return storms


def _windows(columns: dict[str, list[str]], lines: list[int], where: str) -> pd.DataFrame:
    start = _moments(columns["start"], lines, where, "start")
    end = _moments(columns["end"], lines, where, "end", end=True)
    for k in np.flatnonzero(end < start)[:1]:
        raise InputError(
            f"{where}: line {lines[k]}",
            "a storm must not end before it starts",
            found=f"{columns['start'][k]} to {columns['end'][k]}",
        )
    known = {
        "storm": _named(columns["storm"], lines, where, "storm"),
        "start": start,
        "end": end,
        "phase": _phases(columns, lines, where),
    }
    texts = {k: pd.Series(v, dtype=str) for k, v in columns.items() if k not in known}
    return pd.DataFrame(known | texts).astype({"storm": str, "phase": str})


def _numbers(
    values: list[str], lines: list[int], where: str, law: str, valid: Callable[[float], bool]
) -> NDArray[np.float64]:
    numbers = np.empty(len(values))
    for k, (text, line) in enumerate(zip(values, lines, strict=True)):
        try:
            numbers[k] = float(text)
            if not valid(numbers[k]):
                raise ValueError
        except ValueError:
            name = where.rsplit(": ", 1)
            raise InputError(f"{name[0]}: line {line}: {name[1]}", law, found=repr(text)) from None
    return numbers


def _tracks(
    columns: dict[str, list[str]], lines: list[int], where: str, domain: config.Domain | None
) -> pd.DataFrame:
    """One row for each run of positions of one track and phase within the domain."""
    lat = _numbers(
        columns["lat"],
        lines,
        f"{where}: lat",
        "a latitude must lie in -90..90",
        lambda x: -90 <= x <= 90,
    )
    lon = _numbers(
        columns["lon"],
        lines,
        f"{where}: lon",
        "a longitude must lie in -180..360",
        lambda x: -180 <= x <= 360,
    )
    points = pd.DataFrame(
        {
            "storm": _named(columns["track_id"], lines, where, "track_id"),
            "time": _moments(columns["time"], lines, where, "time"),
            "phase": _phases(columns, lines, where),
            "lat": lat,
            "lon": (lon + 180) % 360 - 180,
        }
    ).astype({"storm": str, "phase": str})
    points["strength"] = points["phase"].map({phase: k for k, phase in enumerate(PHASES)})
    if "mslp_hpa" in columns:
        texts = [text or "nan" for text in columns["mslp_hpa"]]
        points["mslp_hpa"] = _numbers(
            texts,
            lines,
            f"{where}: mslp_hpa",
            "a pressure must be a number of hPa in 800..1100",
            lambda x: x != x or 800 <= x <= 1100,
        )
    points["inside"] = True if domain is None else _inside(points["lat"], points["lon"], domain)
    points = points.sort_values(["storm", "time", "strength"], kind="stable", ignore_index=True)
    changed = points[["storm", "phase", "inside"]] != points[["storm", "phase", "inside"]].shift()
    points["run"] = changed.any(axis=1).cumsum()
    points = points[points["inside"]]
    wanted: dict[str, Any] = {
        "storm": ("storm", "first"),
        "start": ("time", "min"),
        "end": ("time", "max"),
        "phase": ("phase", "first"),
        "strength": ("strength", "first"),
        "south": ("lat", "min"),
        "north": ("lat", "max"),
        "west": ("lon", "min"),
        "east": ("lon", "max"),
    }
    if "mslp_hpa" in points:
        wanted["min_mslp_hpa"] = ("mslp_hpa", "min")
    runs = points.groupby("run", sort=True).agg(**wanted)
    # Between the last position of one phase and the first of the next the weaker phase holds,
    # so that maps between two positions are not taken for calm.
    following = (runs["storm"] == runs["storm"].shift(-1)) & (
        runs.index.to_series().shift(-1) == runs.index.to_series() + 1
    )
    later, earlier = runs["start"].shift(-1), runs["end"].shift(1)
    weaker = runs["strength"] > runs["strength"].shift(-1)
    preceded = following.shift(1, fill_value=False)
    weaker_before = runs["strength"] > runs["strength"].shift(1)
    runs["end"] = runs["end"].where(~(following & weaker), later)
    runs["start"] = runs["start"].where(~(preceded & weaker_before), earlier)
    return runs.drop(columns="strength").reset_index(drop=True)


def _inside(lat: pd.Series, lon: pd.Series, domain: config.Domain) -> pd.Series:
    return lat.between(domain.south, domain.north) & lon.between(domain.west, domain.east)


def merge(catalogue: pd.DataFrame) -> pd.DataFrame:
    """One row for each stretch of a storm and phase: overlapping and touching rows become one.

    Sorted by start, storm and phase; other columns keep the values of the first row, bounding
    boxes and lowest pressures those of all. Merging twice changes nothing.
    """
    rows = catalogue.sort_values(["storm", "phase", "start", "end"], kind="stable")
    group = ["storm", "phase"]
    reached = rows.groupby(group)["end"].cummax()
    before = reached.groupby([rows["storm"], rows["phase"]]).shift()
    stretch = (~(rows["start"] <= before)).cumsum()
    how = dict.fromkeys(rows.columns, "first")
    how |= {"end": "max", "south": "min", "west": "min", "north": "max", "east": "max"}
    how |= {"min_mslp_hpa": "min"} if rows.get("min_mslp_hpa", pd.Series()).dtype == float else {}
    merged = rows.groupby(stretch).agg({name: how[name] for name in rows.columns})
    return merged.sort_values(["start", "storm", "phase"], kind="stable", ignore_index=True)


def storms_of_labels(
    times: pd.DatetimeIndex, labels: NDArray[np.int8], *, step_hours: int
) -> pd.DataFrame:
    """The catalogue that says of each map what its label says: for maps that bring labels.

    Parameters
    ----------
    times
        Shape (time,), strictly increasing.
    labels
        Shape (time,): 1, 0 or -1 = unknown.
    step_hours
        Two maps with a medicane further apart than this are of two storms.

    Returns
    -------
    DataFrame
        As `read_catalogue`: a run of maps of one label that is not 0 is a row, and those of
        medicanes are storms, named by their first time.
    """
    apart = (np.diff(times) > pd.Timedelta(hours=step_hours)) | (np.diff(labels) != 0)
    first = np.flatnonzero(np.concatenate([[True], apart]))
    last = np.append(first[1:], len(labels)) - 1
    phase_of = {label: phase for phase, label in PHASES.items()}
    kept = labels[first] != names.NOT_MEDICANE
    first, last = first[kept], last[kept]
    return pd.DataFrame(
        {
            "storm": [f"{moment:%Y-%m-%dT%H:%M}" for moment in times[first]],
            "start": times[first],
            "end": times[last],
            "phase": [phase_of[int(label)] for label in labels[first]],
        }
    ).astype({"storm": str, "phase": str})


def bundled_catalogue() -> pd.DataFrame:
    """The catalogue that comes with the package: 25 Mediterranean storms, 1995-2023.

    Returns
    -------
    DataFrame
        As `read_catalogue`, with ``is_medicane`` (yes, no), ``basis`` (what the stretch is: whole
        life, mature, warm core), ``certainty``, ``min_mslp_hpa``, ``min_mslp_time`` and ``source``,
        all text. The choices are in `docs/catalogue.md`; the list is not complete.
    """
    with resources.as_file(resources.files("medicane.data") / "medicanes.csv") as path:
        return read_catalogue(path)


def catalogue_table(catalogue: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row for each storm, as the command ``medicane catalogue`` lists it.

    Parameters
    ----------
    catalogue
        From `read_catalogue`; none: the bundled one.

    Returns
    -------
    DataFrame
        ``storm``, ``is_medicane`` (yes, no, or unknown where a catalogue without that column has
        nothing but unknown hours), ``start``, ``end`` (of everything known), ``medicane_start``,
        ``medicane_end`` (NaT if unknown or none), then ``certainty``, ``min_mslp_hpa``,
        ``min_mslp_time``, ``source`` where the catalogue has them.
    """
    rows = bundled_catalogue() if catalogue is None else catalogue
    storms = rows.groupby("storm")
    core = rows[rows["phase"] == "medicane"].groupby("storm")
    table = pd.DataFrame({"start": storms["start"].min(), "end": storms["end"].max()})
    table["medicane_start"] = core["start"].min()
    table["medicane_end"] = core["end"].max()
    if "is_medicane" in rows:
        kind = storms["is_medicane"].first()
    else:
        kind = storms["phase"].agg(
            lambda phase: next(
                said
                for what, said in (("medicane", "yes"), ("unknown", "unknown"), ("other", "no"))
                if what in set(phase)
            )
        )
    table.insert(0, "is_medicane", kind)
    for name in ("certainty", "min_mslp_hpa", "min_mslp_time", "source"):
        if name in rows:
            table[name] = storms[name].first()
    return table.sort_values(["start"], kind="stable").reset_index()
