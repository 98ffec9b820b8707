"""Folders of map images: for people whose data are pictures.

A folder holds PNG or JPEG files of one size and kind, each with its time in its name. Labels are
optional: sub-folders ``medicane``, ``not_medicane`` and ``unknown``, or a file ``labels.csv`` with
the columns ``file,label``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from medicane import names
from medicane.errors import InputError
from medicane.grids.lazy import maps_a_block, short

SUFFIXES = (".png", ".jpg", ".jpeg")
#: How PNG and JPEG files begin.
FIRST_BYTES = (b"\x89PNG", b"\xff\xd8\xff")
LABELS_FILE = "labels.csv"
#: Names of classes, for sub-folders and in `LABELS_FILE`, where 1, 0 and -1 do as well.
CLASSES = {
    "medicane": names.MEDICANE, "not_medicane": names.NOT_MEDICANE, "unknown": names.UNKNOWN
}  # fmt: skip
#: The variables of a picture, by its kind.
COLOURS = {"grey": ("grey",), "colour": ("red", "green", "blue")}

#: Kinds of picture (of Pillow) → our kind, and the value that is full brightness.
MODES = {
    "1": ("grey", 255), "L": ("grey", 255), "LA": ("grey", 255), "I;16": ("grey", 65_535),
    "P": ("colour", 255), "RGB": ("colour", 255), "RGBA": ("colour", 255),
}  # fmt: skip

#: A date and an hour, minutes and seconds if there are any, in one of the usual spellings.
_TIME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"[-_.T ]?([01]\d|2[0-3])(?:(?:[-.:h]?|\2)([0-5]\d)(?:(?:[-.:m]?|\2)([0-5]\d))?)?Z?(?!\d)"
)


def holds_images(folder: Path) -> bool:
    """Whether a folder, or a folder in it, holds a picture."""
    places = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    return any(
        entry.suffix.lower() in SUFFIXES and entry.is_file()
        for place in places
        for entry in place.iterdir()
    )


def open_images(folder: str) -> xr.Dataset:
    """Open a folder of map images lazily, in the order of the times in their names.

    A name holds its time (UTC) once: year, month, day and hour, with or without ``-``, ``_`` or
    ``.`` between them, a ``T`` before the hour, minutes and seconds after it:
    ``2020091706.png``, ``ir_20200917_0600.png``, ``msl-2020-09-17T06.jpg``.

    Returns
    -------
    xarray.Dataset
        ``red``, ``green`` and ``blue``, or ``grey``: (time, row, column), 0 to 1, units "1". Where
        the pictures are labelled, the coordinate ``medicane(time)``: 1, 0 or -1 = unknown.

    Raises
    ------
    InputError
        If a name holds no time or several, two pictures are of one time, sizes or kinds differ,
        labels do not fit the pictures; computing raises it where a picture cannot be read.
    """
    root = Path(folder)
    labels, paths = _labelled(root)
    times = np.array([time_of(path) for path in paths], "datetime64[ns]")
    order = np.argsort(times, kind="stable")
    paths, times = [paths[i] for i in order], times[order]
    for i in np.flatnonzero(times[1:] == times[:-1]):
        raise InputError(
            paths[i + 1], "no two pictures may be of one time", found=f"that of {paths[i].name}"
        )
    kind, shape = _kind_and_shape(paths)
    pictures = _lazy(paths, kind, shape)
    data = {
        name: ((names.TIME, names.ROW, names.COLUMN), pictures[:, i], {"units": "1"})
        for i, name in enumerate(COLOURS[kind])
    }
    ds = xr.Dataset(data, coords={names.TIME: times}, attrs={"images": f"{kind} map images"})
    if labels is not None:
        ds = ds.assign_coords(medicane=(names.TIME, np.array(labels, np.int8)[order]))
    return ds


def time_of(path: Path) -> np.datetime64:
    """The one time in the name of a picture.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    found = set()
    for match in _TIME.finditer(path.stem):
        year, _, month, day, hour, minute, second = match.groups(default="00")
        found.add(f"{year}-{month}-{day}T{hour}:{minute}:{second}")
    law = "the name must hold one time with its hour, such as 20200917_06"
    if len(found) != 1:
        raise InputError(path, law, found=" and ".join(sorted(found)) or "none")
    try:
        return np.datetime64(found.pop(), "ns")
    except ValueError as error:  # 31 April
        raise InputError(path, law, found=error) from None


# Labels ----------------------------------------------------------------------------------------


def _labelled(root: Path) -> tuple[list[int] | None, list[Path]]:
    """The pictures of a folder, and the label of each if they are labelled."""
    entries = sorted(root.iterdir())
    flat = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    table = root / LABELS_FILE
    classes = [entry for entry in entries if entry.is_dir() and _pictures(entry)]
    if not classes:
        return (_from_table(table, flat) if table.is_file() else None), flat
    if flat:
        law = "pictures must be in class sub-folders or beside them, not both"
        raise InputError(root, law, found=f"{flat[0].name} and {classes[0].name}/")
    if table.is_file():
        raise InputError(table, "class sub-folders label the pictures already: remove one of them")
    labels, paths = [], []
    for entry in classes:
        if entry.name not in CLASSES:
            law = f"sub-folders must be named {', '.join(CLASSES)}"
            raise InputError(root, law, found=f"{entry.name}/")
        inside = _pictures(entry)
        paths += inside
        labels += [CLASSES[entry.name]] * len(inside)
    return labels, paths


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def _from_table(table: Path, paths: Sequence[Path]) -> list[int]:
    """The label of each picture by ``labels.csv``."""
    spelt = {**CLASSES, **{str(value): value for value in CLASSES.values()}}
    told: dict[str, int] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or set(reader.fieldnames) != {"file", "label"}:
                law = "must have the columns file,label"
                raise InputError(table, law, found=reader.fieldnames)
            for row in reader:
                at = f"{table}: line {reader.line_num}"
                name, label = str(row["file"]).strip(), str(row["label"]).strip()
                if label not in spelt:
                    raise InputError(at, f"label must be one of {', '.join(spelt)}", found=label)
                if name in told:
                    raise InputError(at, "each picture must be named once", found=name)
                told[name] = spelt[label]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(table, "must be a CSV file", found=short(error)) from None
    there = {path.name for path in paths}
    for name in told:
        if name not in there:
            raise InputError(table, "must name pictures of its folder", found=name)
    for path in paths:
        if path.name not in told:
            raise InputError(table, f"must label {path.name} (unknown is a label)")
    return [told[path.name] for path in paths]


# Pixels ----------------------------------------------------------------------------------------


def _kind_and_shape(paths: Sequence[Path]) -> tuple[str, tuple[int, int]]:
    """Kind and (rows, columns) of all pictures, by their headers."""
    first: tuple[str, tuple[int, int]] | None = None
    for path in paths:
        with _opened(path) as picture:
            mode, (width, height) = picture.mode, picture.size
        if mode not in MODES:
            law = "a map image must be grey or of red, green and blue"
            raise InputError(path, law, found=f"the kind {mode}")
        found = MODES[mode][0], (height, width)
        first = first or found
        if found != first:
            raise InputError(
                path,
                f"all pictures must be alike ({paths[0].name}: {_told(*first)})",
                found=_told(*found),
            )
    assert first is not None
    return first


def _told(kind: str, shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]} pixels, {kind}"


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(path, "must be a PNG or JPEG picture", found=short(error)) from None


def _lazy(paths: Sequence[Path], kind: str, shape: tuple[int, int]) -> da.Array:
    """(time, colour, row, column) float32, each picture decoded once for all its colours."""
    colours = len(COLOURS[kind])
    size = maps_a_block(4 * colours * shape[0] * shape[1], len(paths))
    stamps = [path.stat().st_mtime_ns for path in paths]
    places = da.from_array(np.array(paths, dtype=object), chunks=size, name=False)
    return da.map_blocks(
        _decoded,
        places,
        kind=kind,
        shape=shape,
        dtype=np.float32,
        new_axis=(1, 2, 3),
        chunks=(places.chunks[0], (colours,), (shape[0],), (shape[1],)),
        name=f"pictures-{tokenize([str(path.resolve()) for path in paths], stamps)}",
        meta=np.empty((0, 0, 0, 0), np.float32),
    )


def _decoded(paths: np.ndarray, *, kind: str, shape: tuple[int, int]) -> np.ndarray:
    out = np.empty((len(paths), len(COLOURS[kind]), *shape), np.float32)
    for i, path in enumerate(paths):
        with _opened(path) as picture:
            mode = picture.mode
            try:
                if mode in ("P", "1"):
                    # A palette may hold a colour that is transparent.
                    picture = picture.convert("L" if mode == "1" else "RGBA")
                values = np.asarray(picture)
            except (OSError, ValueError, SyntaxError) as error:
                raise InputError(path, "the picture must be whole", found=short(error)) from None
        if values.ndim == 3 and values.shape[-1] in (2, 4):
            if values[..., -1].min() < 255:
                raise InputError(path, "no pixel may be transparent", found=f"the kind {mode}")
            values = values[..., :-1]
        if values.shape[:2] != shape:
            raise InputError(path, f"must still be {_told(kind, shape)}", found=values.shape)
        out[i] = np.moveaxis(values.reshape(*shape, -1), -1, 0) / np.float32(MODES[mode][1])
    return out
