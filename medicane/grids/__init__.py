"""Open gridded maps lazily: NetCDF, GRIB, Zarr, ZIP, map images; one file or many. No renaming.

Every data variable becomes a dask array, chunked along time only. Each block carries the name of
its file, so that a file that breaks while it is read, hours later, is still told by name.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.grids import dialects
from medicane.grids.formats import HORIZONTAL, open_source
from medicane.grids.lazy import TIME_DIMENSIONS
from medicane.remote import StorageOptions, expand, is_remote


def open_grids(
    uri: str | Path | Sequence[str | Path],
    *,
    select: Mapping[str, float] | None = None,
    storage_options: StorageOptions | None = None,
) -> xr.Dataset:
    """Open grids lazily; nothing but headers and coordinates is read.

    Parameters
    ----------
    uri
        A NetCDF or GRIB file, a ZIP of such files, a Zarr store, any of these as a path, a glob or
        a URI; a folder of map images (see `images.open_images`); or a list. What a file is follows
        from its first bytes, not from its suffix. Files with the same variables follow one another
        in time; files with other variables are merged with them, on exactly equal coordinates.
    select
        One value of an extra dimension, for instance ``{"number": 0}``, taken before merging.
    storage_options
        How URIs are reached; see `medicane.remote`.

    Returns
    -------
    xarray.Dataset
        Names, units and orientation as in the files; packing and CF times decoded (calendars that
        numpy has no dates for give ``cftime`` objects). ``attrs["source_files"]`` is a JSON list.

    Raises
    ------
    InputError
        If nothing matches; if a file is missing, empty, cut short or of another format; if times of
        two files overlap; if coordinates of two files differ. Computing raises it too, where the
        data of a file cannot be read.
    """
    sources = sources_of(uri, storage_options)
    opened: list[_Opened] = []
    with _without_collection():
        for source in sources:
            found = open_source(source, storage_options=storage_options)
            opened += [_Opened(told, _plain(ds, told, select)) for told, ds in found]
    ds = _combine(opened)
    ds.attrs["source_files"] = json.dumps(sources)
    return ds


@dataclass(frozen=True)
class _Opened:
    path: str
    ds: xr.Dataset

    @property
    def time(self) -> str | None:
        """The dimension along which files of this kind follow one another."""
        return next((str(d) for d in TIME_DIMENSIONS if d in self.ds.dims), None)


def sources_of(
    uri: str | Path | Sequence[str | Path], storage_options: StorageOptions | None = None
) -> list[str]:
    """Every file or store that `uri` stands for, in order.

    Raises
    ------
    InputError
        If nothing matches, or a file is missing.
    """
    if not isinstance(uri, (str, Path)):
        if not uri:
            raise InputError("grids", "at least one file, glob or URI is needed", found="none")
        found = [source for one in uri for source in sources_of(one, storage_options)]
        return list(dict.fromkeys(found))
    text = os.fspath(uri).removeprefix("file://")
    if is_remote(text):
        return expand(text, storage_options)
    if os.path.exists(text):
        return [text]
    if not glob.has_magic(text):
        raise InputError(text, "the file must exist", found="no such file")
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise InputError(text, "the glob must match at least one file", found="none")
    return matches


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect garbage now, and none while files are opened.

    A forgotten dataset closes its file when it is collected. Collected inside the constructor of
    another file, or with that file rewritten since, it has crashed the NetCDF library.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _plain(ds: xr.Dataset, told: str, select: Mapping[str, float] | None) -> xr.Dataset:
    """The fields of one file alone, of one version and member."""
    ds = _select(dialects.without_helpers(ds), select or {})
    return dialects.without_named_level(dialects.with_one_version(ds, told), told)


def _select(ds: xr.Dataset, select: Mapping[str, float]) -> xr.Dataset:
    for key, value in select.items():
        spelt = (key, *names.COORDINATE_ALIASES.get(key, ()))
        dimension = next((d for d in spelt if d in ds.dims), None)
        if dimension is not None and dimension in ds.indexes:
            try:
                ds = ds.sel({dimension: value})
            except KeyError:
                raise InputError(
                    f"data.select: {key}",
                    "must be a value of that dimension; found "
                    f"{value:g}, there are {ds[dimension].values.tolist()}",
                ) from None
    return ds


def _combine(opened: Sequence[_Opened]) -> xr.Dataset:
    """One after another where the variables are the same, side by side where they differ."""
    groups: dict[frozenset[str], list[_Opened]] = {}
    for one in opened:
        groups.setdefault(frozenset(map(str, one.ds.data_vars)), []).append(one)
    parts = [_in_order(group) for group in groups.values()]
    first = parts[0]
    for other in parts[1:]:
        twice = sorted(map(str, set(first.ds.data_vars) & set(other.ds.data_vars)))
        if twice:
            raise InputError(
                f"{other.path} and {first.path}",
                "files with different variables are merged, so none may be in both",
                found=f"{twice} in both, {sorted(map(str, set(first.ds) ^ set(other.ds)))} in one",
            )
        _check_same_coordinates(first, other, except_for=None)
        merged = xr.merge(
            [first.ds, _without_clashing_scalars(first.ds, other.ds)],
            join="exact",  # never align: a shifted grid would become a grid of NaN
            compat="override",  # the coordinates were compared above
            combine_attrs="drop_conflicts",
        )
        if all(names.EXPVER in one.ds.coords for one in (first, other)):
            # A map is as preliminary as any of its fields.
            latest = np.maximum(first.ds[names.EXPVER].values, other.ds[names.EXPVER].values)
            merged[names.EXPVER] = (merged[names.EXPVER].dims, latest)
        first = _Opened(first.path, merged)
    return first.ds.copy()


def _in_order(group: Sequence[_Opened]) -> _Opened:
    """Files of the same variables, concatenated in the order of their first times."""
    if len(group) == 1:
        return group[0]
    group = [_Opened(one.path, _along_valid_time(one)) for one in group]
    time = group[0].time
    if time is None or time not in group[0].ds.indexes:
        raise InputError(
            f"{group[1].path} and {group[0].path}",
            "files of the same variables must follow one another along time",
            found=f"dimensions {sorted(map(str, group[0].ds.dims))}",
        )
    for one in group[1:]:
        _check_same_coordinates(group[0], one, except_for=time)
        _check_same_units(group[0], one)
    kept = dialects.without_replaced_maps([one.ds for one in group], time)
    group = [_Opened(one.path, ds) for one, ds in zip(group, kept, strict=True)]
    try:
        filled = [one for one in group if one.ds.sizes[time]]
        ordered = sorted(filled, key=lambda one: one.ds[time].values[0])
    except TypeError:
        raise InputError(group[0].path, "all files must use one calendar") from None
    for before, after in itertools.pairwise(ordered):
        end, start = before.ds[time].values.max(), after.ds[time].values.min()
        if start <= end:
            raise InputError(
                f"{after.path} and {before.path}",
                "files of the same variables must not overlap in time",
                found=f"{_told(start)} in one, up to {_told(end)} in the other",
            )
    base = ordered[0].ds
    joined = xr.concat(
        [base, *(_without_clashing_scalars(base, one.ds) for one in ordered[1:])],
        dim=time,
        data_vars="minimal",  # a field without time (a land mask) is taken from the first file
        coords="minimal",
        compat="override",  # the coordinates were compared above
        join="exact",
        combine_attrs="drop_conflicts",
    )
    return _Opened(group[0].path, joined)


def _along_valid_time(one: _Opened) -> xr.Dataset:
    """A file of one map, or of the steps of a forecast, along the times that maps are valid at."""
    ds = one.ds
    if one.time is not None:
        return ds
    time = next((n for n in reversed(TIME_DIMENSIONS) if n in ds.coords), None)
    if time is None or (time == names.TIME and "step" in ds.coords):
        return ds
    dimensions = ds[time].dims
    if dimensions:
        ds = ds.swap_dims({dimensions[0]: time})
    else:
        static = {"lsm", *names.VARIABLES["lsm"].aliases}
        maps = [name for name in ds.data_vars if str(name) not in static]
        ds = ds.assign({name: ds[name].expand_dims(time) for name in maps})
    # Run and step are said by the valid time; they differ from file to file.
    return ds.drop_vars([n for n in (names.TIME, "step") if n in ds.coords and n != time])


def _check_same_coordinates(one: _Opened, other: _Opened, *, except_for: str | None) -> None:
    """Dimensions and their coordinates must be exactly equal."""
    pair = f"{other.path} and {one.path}"
    if one.time and other.time and one.time != other.time:
        raise InputError(
            pair, "must share one time dimension", found=f"{one.time} and {other.time}"
        )
    if not set(one.ds.dims) & set(other.ds.dims):
        raise InputError(pair, "must have dimensions in common", found="none")
    scalars = [n for n, c in one.ds.coords.items() if c.ndim == 0 and n in other.ds.coords]
    telling = [n for n in scalars if n in (names.TIME, *names.COORDINATE_ALIASES)]
    points = [n for n in one.ds.coords if str(n) in HORIZONTAL and one.ds[n].ndim > 1]
    for name in [*one.ds.dims, *telling, *points]:
        if name == except_for or name not in one.ds.coords or name not in other.ds.coords:
            continue
        left, right = one.ds[name].values, other.ds[name].values
        if left.shape != right.shape or not np.array_equal(left, right):
            raise InputError(
                f"{pair}: {name}",
                "coordinates must be exactly equal",
                found=f"{_span(right)} and {_span(left)}",
            )


def _check_same_units(one: _Opened, other: _Opened) -> None:
    """Joined values have one unit: that of the first file must not be taken for the second's."""
    for name, array in one.ds.data_vars.items():
        wanted, found = array.attrs.get("units"), other.ds[name].attrs.get("units")
        if wanted != found:
            raise InputError(
                f"{other.path}: {name}",
                f"units must be those of {one.path} ({wanted!r})",
                found=repr(found),
            )


def _without_clashing_scalars(base: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    """Drop scalar coordinates (heights, run ids) that the other dataset has already."""
    return ds.drop_vars([n for n, c in ds.coords.items() if c.ndim == 0 and n in base.coords])


def _span(values: np.ndarray) -> str:
    if values.ndim == 0:
        return _told(values[()])
    if not values.size:
        return "no values"
    return f"{values.size} values {_told(values.flat[0])} to {_told(values.flat[-1])}"


def _told(value: Any) -> str:
    text = str(value)
    return text.split(".")[0] if isinstance(value, np.datetime64) else text
