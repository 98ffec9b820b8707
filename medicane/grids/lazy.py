"""Dask blocks in front of a file: whole maps, cut along time; each knows the name of its file."""

from __future__ import annotations

import os
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from medicane import names
from medicane.errors import InputError
from medicane.grids.hdf5 import Chunks

#: A block of one variable holds at most this many bytes and this many maps …
BLOCK_BYTES = 32 * 2**20
BLOCK_MAPS = 128
#: … unless one stored (compressed) chunk is longer: inflating it again for each block costs more.
STORED_CHUNK_BYTES = 256 * 2**20

#: Names of a dimension along which files follow one another.
TIME_DIMENSIONS = (names.TIME, *names.COORDINATE_ALIASES[names.TIME])


class _Reader:
    """One variable of one file, as dask reads it: a failure names the file."""

    def __init__(
        self, variable: xr.Variable, source: str, name: str, chunks: Chunks | None
    ) -> None:
        self.variable, self.source, self.name, self.chunks = variable, source, name, chunks
        self.shape, self.dtype, self.ndim = variable.shape, variable.dtype, variable.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            found = None if self.chunks is None else self.chunks.read(key)
            if found is not None:
                return found
            return np.asarray(self.variable[key].values)
        except Exception as error:
            raise InputError(
                f"{self.source}: {self.name}", "the data must be readable", found=short(error)
            ) from error


def in_blocks(ds: xr.Dataset, source: str, *, told: str, hdf5: bool = False) -> xr.Dataset:
    """Put dask blocks, cut along time only, in front of every data variable.

    Parameters
    ----------
    source
        The file, for the identity of the blocks.
    told
        What errors call it.
    hdf5
        Whether it is a NetCDF file of the kind whose chunks `hdf5.Chunks` reads.
    """
    try:
        stamp: object = os.stat(source).st_mtime_ns
    except OSError:
        stamp = None
    # All are cut in the same places: what is read for one block of maps is read for no other.
    heaviest = max((_map_bytes(array.variable) for array in ds.data_vars.values()), default=1)
    lazy = {}
    for name, array in ds.data_vars.items():
        variable = array.variable
        if not variable.ndim:
            continue
        chunks = _chunks(variable, heaviest)
        token = tokenize(os.path.abspath(source), stamp, name, chunks, sorted(map(str, ds.coords)))
        own = (
            Chunks(source, str(name), variable) if hdf5 and variable.encoding.get("zlib") else None
        )
        data = da.from_array(
            _Reader(variable, told, str(name), own),
            chunks=chunks,
            name=f"{name}-{token}",
            lock=False,  # xarray's backends hold the locks that their libraries need
            asarray=False,
            meta=np.empty((0,) * variable.ndim, dtype=variable.dtype),
        )
        lazy[name] = xr.Variable(variable.dims, data, variable.attrs)
    return ds.assign(lazy)


def _time_axis(variable: xr.Variable) -> str | None:
    sizes = dict(zip(map(str, variable.dims), variable.shape, strict=True))
    return next((d for d in (*TIME_DIMENSIONS, "step") if sizes.get(d, 1) > 1), None)


def _map_bytes(variable: xr.Variable) -> int:
    """Of the fields of one time; 1 for a variable without times."""
    axis = _time_axis(variable)
    return 1 if axis is None else max(1, variable.nbytes // variable.sizes[axis])


def _chunks(variable: xr.Variable, heaviest: int) -> tuple[int, ...]:
    """Whole maps, as many of `heaviest` bytes as a block holds; whole stored chunks if any."""
    axis = _time_axis(variable)
    if axis is None:
        return variable.shape
    sizes = dict(zip(map(str, variable.dims), variable.shape, strict=True))
    n_times, map_bytes = sizes[axis], _map_bytes(variable)
    length = maps_a_block(heaviest, n_times)
    stored = variable.encoding.get("preferred_chunks") or {}
    stored_length = int(stored.get(axis, 1) or 1)
    if stored_length > length and stored_length * map_bytes <= STORED_CHUNK_BYTES:
        length = stored_length
    elif 1 < stored_length <= length < n_times:
        length -= length % stored_length
    return tuple(length if d == axis else size for d, size in sizes.items())


def maps_a_block(map_bytes: int, n_times: int) -> int:
    """How many maps of this size a block holds."""
    return int(np.clip(BLOCK_BYTES // map_bytes, 1, min(BLOCK_MAPS, n_times)))


def short(error: BaseException) -> str:
    """The first line of an error, as found by a library."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
