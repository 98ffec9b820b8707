"""Maps of NetCDF 4 files read past the HDF5 library, several chunks at a time.

The library holds one lock for all that it does, inflating included: whatever reads, one core works.
Here it only says where the chunks of a variable lie. They are read from there, inflated and
decoded on threads. Where anything is out of the ordinary, nothing is read here, and the library has
its say.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import dask
import deflate
import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: Chunks inflated at the same time.
THREADS = 2
#: Values decoded at once, about, unless a chunk holds more: what the processor's cache holds.
AT_ONCE = 2**16
#: Bytes of a chunk, at most: the library inflates longer ones.
LARGEST = 256 * 2**20
#: What CF says of packed values; xarray keeps it beside the variable.
PACKING = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned")


def threads_at_most(n: int) -> int:
    """So many threads; on a worker of a cluster, no more than it has."""
    return int(min(dask.config.get("num_workers", n), n))


class Chunks:
    """One variable of a NetCDF 4 file on this machine, its values decoded as xarray does.

    Parameters
    ----------
    path
        The file.
    name
        What the file calls the variable.
    variable
        The same, as xarray opened it.
    """

    def __init__(self, path: str, name: str, variable: xr.Variable) -> None:
        self._path, self._name = path, name
        self._dims, self._shape, self._dtype = variable.dims, variable.shape, variable.dtype
        self._packing = {k: variable.encoding[k] for k in PACKING if k in variable.encoding}

    def read(self, key: tuple[Any, ...]) -> NDArray[Any] | None:
        """The values at slices and positions; None if the library is to read them."""
        wanted = _ranges(key, self._shape)
        index = self._index if wanted else None
        if wanted is None or index is None:
            return None
        # The box that holds them: whole numbers from first to last on each axis.
        box = [(min(r[0], r[-1]), max(r[0], r[-1]) + 1) for r in wanted]
        out = np.empty([stop - start for start, stop in box], self._dtype)
        rows = index.chunk[0]
        rows *= max(1, AT_ONCE // (rows * math.prod(out.shape[1:])))
        (first, last), *rest = box
        cuts = [first, *range((first // rows + 1) * rows, last, rows), last]
        try:
            with (
                open(self._path, "rb") as file,
                ThreadPoolExecutor(threads_at_most(THREADS)) as pool,
            ):
                if _stamp(file.fileno()) != index.stamp:
                    return None

                def fill(start: int, stop: int) -> None:
                    raw = _inflated(file.fileno(), index, [(start, stop), *rest])
                    self._decode(raw, out[start - first : stop - first])

                for _ in pool.map(fill, cuts[:-1], cuts[1:]):
                    pass
        except (OSError, ValueError, deflate.DeflateError):
            return None  # the library tells what is wrong
        return out[tuple(_within(k, r) for k, r in zip(key, wanted, strict=True))]

    def _decode(self, raw: NDArray[Any], out: NDArray[Any]) -> None:
        """Unpack: to the bit what xarray makes of it."""
        if self._packing.keys() == {"_FillValue", "scale_factor", "add_offset"} and (
            raw.dtype.kind == "i" and out.dtype == np.float64
        ):  # almost all packed files; xarray takes three times as long
            np.multiply(raw, self._packing["scale_factor"], out=out)
            out += self._packing["add_offset"]
            missing = raw == self._packing["_FillValue"]
            if missing.any():
                out[missing] = np.nan
        elif self._packing:
            packed = xr.Variable(self._dims, raw, self._packing)
            out[:] = xr.conventions.decode_cf_variable(
                self._name, packed, decode_times=False
            ).values
        else:
            out[:] = raw

    @functools.cached_property
    def _index(self) -> _Index | None:
        try:
            return _index_of(self._path, self._name, self._shape)
        except (OSError, KeyError, ValueError, RuntimeError):
            return None


class _Index(NamedTuple):
    """Where the chunks of a variable lie: position of their first value → place and bytes."""

    stamp: tuple[int, ...]
    at: dict[tuple[int, ...], tuple[int, int]]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    shuffled: bool


def _index_of(path: str, name: str, shape: tuple[int, ...]) -> _Index | None:
    """None if it is not deflated, or anything else but shuffled before."""
    import h5py

    with h5py.File(path, "r") as file:
        found = file[name]
        filters = found.id.get_create_plist()
        kinds = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
        deflate_alone = [h5py.h5z.FILTER_DEFLATE]
        known = kinds in (deflate_alone, [h5py.h5z.FILTER_SHUFFLE, *deflate_alone])
        dtype = found.dtype
        if not known or dtype.kind not in "iuf" or dtype != dtype.newbyteorder("<"):
            return None
        if found.shape != shape or math.prod(found.chunks) * dtype.itemsize > LARGEST:
            return None
        at: dict[tuple[int, ...], tuple[int, int]] = {}
        skipped = []

        def note(chunk: Any) -> None:
            at[chunk.chunk_offset] = chunk.byte_offset, chunk.size
            skipped.append(chunk.filter_mask)

        found.id.chunk_iter(note)
        # A chunk that was never written has the fill value: the library knows it.
        if any(skipped) or len(at) != math.prod(map(math.ceil, np.divide(shape, found.chunks))):
            return None
        with open(path, "rb") as plain:
            stamp = _stamp(plain.fileno())
        return _Index(stamp, at, found.chunks, dtype, len(kinds) > 1)


def _stamp(file: int) -> tuple[int, ...]:
    """What differs if another file has taken the place of one."""
    about = os.fstat(file)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _inflated(file: int, index: _Index, box: list[tuple[int, int]]) -> NDArray[Any]:
    """The packed values of a box, all of whose chunks are in the index.

    Raises
    ------
    ValueError, deflate.DeflateError
        If a chunk is not what the index says.
    """
    starts = [
        range(start - start % n, stop, n) for (start, stop), n in zip(box, index.chunk, strict=True)
    ]
    raw = np.empty([stop - start for start, stop in box], index.dtype)
    for corner in itertools.product(*starts):
        place, size = index.at[corner]
        chunk = _chunk(os.pread(file, size, place), index)
        to, taken = [], []
        for begin, n, (start, stop) in zip(corner, index.chunk, box, strict=True):
            low, high = max(begin, start), min(begin + n, stop)
            to.append(slice(low - start, high - start))
            taken.append(slice(low - begin, high - begin))
        raw[tuple(to)] = chunk[tuple(taken)]
    return raw


def _chunk(deflated: bytes, index: _Index) -> NDArray[Any]:
    """The values of one chunk. No more is inflated than it holds."""
    size = math.prod(index.chunk) * index.dtype.itemsize
    found = deflate.zlib_decompress(deflated, size)
    if len(found) != size:
        raise ValueError("a chunk of another size")
    if not index.shuffled or index.dtype.itemsize == 1:
        return np.frombuffer(found, index.dtype).reshape(index.chunk)
    # Shuffled: the first bytes of all values, then the second ones, …
    width = index.dtype.itemsize
    planes = np.frombuffer(found, np.uint8).reshape(width, -1)
    values = planes[-1].astype(f"<u{width}")
    for plane in planes[-2::-1]:
        values <<= 8
        values |= plane
    return values.view(index.dtype).reshape(index.chunk)


def _ranges(key: tuple[Any, ...], shape: tuple[int, ...]) -> list[range] | None:
    """The positions asked for on each axis; None if they are none or anyhow."""
    if len(key) != len(shape):
        return None
    ranges = []
    for k, n in zip(key, shape, strict=True):
        if isinstance(k, slice):
            ranges.append(range(n)[k])
        elif isinstance(k, (int, np.integer)) and -n <= k < n:
            ranges.append(range(int(k) % n, int(k) % n + 1))
        else:
            return None
    return ranges if all(ranges) else None


def _within(k: Any, wanted: range) -> Any:
    """The same positions, in the box."""
    return slice(None, None, wanted.step) if isinstance(k, slice) else 0
