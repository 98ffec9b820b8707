"""Open gridded maps lazily: NetCDF, GRIB and Zarr, one file or many. No renaming, no computing.

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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from medicane import names
from medicane.errors import InputError

#: A block of one variable holds at most this many bytes and this many maps …
BLOCK_BYTES = 32 * 2**20
BLOCK_MAPS = 96
#: … unless one stored (compressed) chunk is longer: inflating it again for each block costs more.
STORED_CHUNK_BYTES = 256 * 2**20

#: Names of a dimension along which files follow one another.
TIME_DIMENSIONS = (names.TIME, *names.COORDINATE_ALIASES[names.TIME])


def open_grids(
    uri: str | Path | Sequence[str | Path], *, select: Mapping[str, float] | None = None
) -> xr.Dataset:
    """Open grids lazily; nothing but headers and coordinates is read.

    Parameters
    ----------
    uri
        A NetCDF or GRIB file, a glob, a Zarr store (folder or URI), or a list of these. What a
        file is follows from its first bytes, not from its suffix. Files with the same variables
        follow one another in time; files with other variables are merged with them, on exactly
        equal coordinates.
    select
        One value of an extra dimension, for instance ``{"number": 0}``, taken before merging.

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
    sources = _sources(uri)
    opened: list[_Opened] = []
    with _without_collection():
        for source in sources:
            opened += _open(source)
    if select:
        opened = [_Opened(one.path, _select(one.ds, select)) for one in opened]
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


def _sources(uri: str | Path | Sequence[str | Path]) -> list[str]:
    """Every file or store that `uri` stands for, in order."""
    if not isinstance(uri, (str, Path)):
        if not uri:
            raise InputError("grids", "at least one file, glob or URI is needed", found="none")
        found = [source for one in uri for source in _sources(one)]
        return list(dict.fromkeys(found))
    text = os.fspath(uri).removeprefix("file://")
    if "://" in text or os.path.exists(text):
        return [text]
    if not glob.has_magic(text):
        raise InputError(text, "the file must exist", found="no such file")
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise InputError(text, "the glob must match at least one file", found="none")
    return matches


def _open(source: str) -> list[_Opened]:
    """The dataset of a source; several where a GRIB file mixes kinds of level."""
    kind = _kind(source)
    # ns: the one resolution in which dates of all dialects compare equal.
    options: dict[str, Any] = {
        "chunks": None,
        "cache": False,
        "decode_times": xr.coders.CFDatetimeCoder(time_unit="ns"),
        "decode_timedelta": False,
    }
    try:
        if kind == "grib":
            datasets = _open_grib(source, options)
        elif kind == "zarr":
            with warnings.catch_warnings():  # about speed, of stores that are not consolidated
                warnings.simplefilter("ignore", RuntimeWarning)
                datasets = [xr.open_dataset(source, engine="zarr", **options)]
        else:
            _check_classic_length(source)
            _check_hdf5_length(source)
            datasets = [xr.open_dataset(source, engine="netcdf4", **options)]
        return [_Opened(source, _blocks(_with_coordinates(ds), source)) for ds in datasets]
    except InputError:
        raise
    except Exception as error:
        law = {
            "netcdf": "must be a whole NetCDF file with a CF time axis",
            "grib": "must be a whole GRIB file",
            "zarr": "must be a Zarr store that can be read",
        }[kind]
        raise InputError(source, law, found=_short(error)) from error


def _kind(source: str) -> str:
    """What a source is: netcdf, grib or zarr."""
    path = Path(source)
    if "://" in source:
        if source.rstrip("/").endswith((".nc", ".nc4", ".grib", ".grb", ".grib2", ".grb2")):
            raise InputError(
                source, "remote files must be Zarr stores; copy NetCDF and GRIB files to disk first"
            )
        return "zarr"
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        raise InputError(
            source, "a folder must be a Zarr store; for its files give a glob such as FOLDER/*.nc"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(source, "the file must be readable", found=_short(error)) from None
    if start.startswith((b"CDF", b"\x89HDF")):
        return "netcdf"
    if b"GRIB" in start:
        return "grib"
    if start.startswith(b"PK\x03\x04"):
        raise InputError(
            source, "must be NetCDF, GRIB or Zarr: unpack it first", found="a ZIP archive"
        )
    found = "an empty file" if not start else f"a file that begins with {start[:16]!r}"
    raise InputError(source, "must be NetCDF, GRIB or Zarr", found=found)


def _open_grib(source: str, options: Mapping[str, Any]) -> list[xr.Dataset]:
    """GRIB through cfgrib. Fields that do not fit together give datasets of their own."""
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:  # RuntimeError: no ecCodes library
        raise InputError(
            source, "reading GRIB needs cfgrib: pip install 'medicane[grib]'", found=_short(error)
        ) from None
    # No index file beside the data; and never skip a field, as cfgrib does by default.
    arguments: dict[str, Any] = {"indexpath": "", "errors": "raise"}
    try:
        return [xr.open_dataset(source, engine="cfgrib", backend_kwargs=arguments, **options)]
    except cfgrib.DatasetBuildError:
        datasets = cfgrib.open_datasets(source, backend_kwargs={"indexpath": ""}, **options)
        # Heights of single levels (2 m, 10 m) are in the variables' names; they would conflict.
        heights = ("heightAboveGround", "meanSea", "surface", "entireAtmosphere")
        return [ds.drop_vars(heights, errors="ignore") for ds in datasets]


def _check_classic_length(source: str) -> None:
    """Refuse a classic NetCDF file that is cut short: the C library would read zeros."""
    with open(source, "rb") as file:
        if file.read(4) not in (b"CDF\x01", b"CDF\x02"):
            return  # HDF5 knows its own length
    from scipy.io import netcdf_file

    found = None
    with warnings.catch_warnings():  # scipy's, about what a failure leaves open
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            with netcdf_file(source, mmap=True):  # lays variables over the file, reads none
                pass
        except (TypeError, ValueError) as error:
            found = f"a file cut short ({_short(error)})"
        if found is not None:
            gc.collect()
    if found is not None:
        raise InputError(source, "must be a whole NetCDF file", found=found)


def _check_hdf5_length(source: str) -> None:
    """Refuse an HDF5 file shorter than its superblock says, before the C library meets it."""
    with open(source, "rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x89HDF\r\n\x1a\n") or len(head) < 64:
        return
    # Where the end-of-file address stands, by superblock version; addresses of 8 bytes only.
    version = head[8]
    at, width = {0: (40, head[13]), 1: (44, head[13]), 2: (28, head[9]), 3: (28, head[9])}.get(
        version, (0, 0)
    )
    if width != 8:
        return
    told, held = int.from_bytes(head[at : at + 8], "little"), os.path.getsize(source)
    if told > held:
        found = f"a file cut short ({held} of {told} bytes)"
        raise InputError(source, "must be a whole NetCDF file", found=found)


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


def _with_coordinates(ds: xr.Dataset) -> xr.Dataset:
    """Coordinates are small and every check needs them: read them now."""
    return ds.assign_coords({n: c.load() for n, c in ds.coords.items() if c.ndim <= 1})


class _Reader:
    """One variable of one file, as dask reads it: a failure names the file."""

    def __init__(self, variable: xr.Variable, source: str, name: str) -> None:
        self.variable, self.source, self.name = variable, source, name
        self.shape, self.dtype, self.ndim = variable.shape, variable.dtype, variable.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self.variable[key].values)
        except Exception as error:
            raise InputError(
                f"{self.source}: {self.name}", "the data must be readable", found=_short(error)
            ) from error


def _blocks(ds: xr.Dataset, source: str) -> xr.Dataset:
    """Put dask blocks, cut along time only, in front of every data variable."""
    try:
        stamp: object = os.stat(source).st_mtime_ns
    except OSError:
        stamp = None
    lazy = {}
    for name, array in ds.data_vars.items():
        variable = array.variable
        if not variable.ndim:
            continue
        chunks = _chunks(variable)
        token = tokenize(os.path.abspath(source), stamp, name, chunks, sorted(map(str, ds.coords)))
        data = da.from_array(
            _Reader(variable, source, str(name)),
            chunks=chunks,
            name=f"{name}-{token}",
            lock=False,  # xarray's backends hold the locks that their libraries need
            asarray=False,
            meta=np.empty((0,) * variable.ndim, dtype=variable.dtype),
        )
        lazy[name] = xr.Variable(variable.dims, data, variable.attrs)
    return ds.assign(lazy)


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Whole maps, as many as fit a block; whole stored chunks where there are any."""
    sizes = dict(zip(map(str, variable.dims), variable.shape, strict=True))
    axis = next((d for d in (*TIME_DIMENSIONS, "step") if sizes.get(d, 1) > 1), None)
    if axis is None:
        return variable.shape
    n_times = sizes[axis]
    map_bytes = max(1, variable.dtype.itemsize * variable.size // n_times)
    length = int(np.clip(BLOCK_BYTES // map_bytes, 1, min(BLOCK_MAPS, n_times)))
    stored = variable.encoding.get("preferred_chunks") or {}
    stored_length = int(stored.get(axis, 1) or 1)
    if stored_length > length and stored_length * map_bytes <= STORED_CHUNK_BYTES:
        length = stored_length
    elif 1 < stored_length <= length:
        length -= length % stored_length
    return tuple(length if d == axis else size for d, size in sizes.items())


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
        first = _Opened(first.path, merged)
    return first.ds.copy()


def _in_order(group: Sequence[_Opened]) -> _Opened:
    """Files of the same variables, concatenated in the order of their first times."""
    if len(group) == 1:
        return group[0]
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
    for name in [*one.ds.dims, *telling]:
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
    return f"{values.size} values {_told(values[0])} to {_told(values[-1])}"


def _told(value: Any) -> str:
    text = str(value)
    return text.split(".")[0] if isinstance(value, np.datetime64) else text


def _short(error: BaseException) -> str:
    """The first line of an error, as found by a library."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
