"""The maps of a store as one lazy array: float32, unpacked as they are read, or as they lie."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from medicane import names
from medicane.errors import InputError
from medicane.packing import Packing, Reused, place_channels_last, unpack_channels_last
from medicane.store.chunks import ChunkFiles
from medicane.store.restarts import Restart
from medicane.store.schema import (
    LOWS,
    SCHEMA_VERSION,
    chained_digest,
    content_digest,
    first_digest,
    packing_of,
)

#: Integers of one channel, maps start to stop: (map, latitude, longitude).
Rows = Callable[[int, int], NDArray[np.int16]]

#: Maps read at once.
AT_ONCE = 24


class PackedMaps(BackendArray):
    """Lazy (time, channel, latitude, longitude) over one packed array for each channel.

    float32, or with ``unpack=False`` the int16 that are stored. What is read lies in memory
    channels last, under the same shape, for that is how the detector takes it. Any outer indexing
    reads what it needs and no other map; neighbouring maps are read together.
    """

    def __init__(
        self,
        channels: Sequence[tuple[Rows, Packing]],
        shape: tuple[int, ...],
        *,
        unpack: bool = True,
    ) -> None:
        self._channels = list(channels)
        self.shape = (shape[0], len(self._channels), *shape[1:])
        self.dtype = np.dtype(np.float32 if unpack else np.int16)
        self._memory = Reused()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        time, channel, latitude, longitude = key
        maps = np.arange(self.shape[0])[time]
        chosen = np.arange(self.shape[1])[channel]
        channels = [self._channels[i] for i in np.atleast_1d(chosen)]
        out = self._memory.empty((maps.size, *self.shape[2:], len(channels)), self.dtype)
        done = 0
        for first, last in _runs(np.atleast_1d(maps)):
            for start in range(first, last, AT_ONCE):
                stop = min(start + AT_ONCE, last)
                read = [rows(start, stop) for rows, _ in channels]
                part = out[done : done + stop - start]
                if self.dtype == np.int16:
                    place_channels_last(read, part)
                else:
                    unpack_channels_last(read, [packing for _, packing in channels], part)
                done += stop - start
        found = np.moveaxis(out, -1, 1)[..., longitude][:, :, latitude]
        # A single channel, a single map: the dimension goes.
        found = found if np.ndim(chosen) else found[:, 0]
        return found if np.ndim(maps) else found[0]


def open_store(path: str | Path, *, incomplete: bool = False, packed: bool = False) -> xr.Dataset:
    """Open a map store lazily: what ``xr.open_zarr(path)`` opens, the channels as one array.

    Values are read when they are indexed, without dask; ``.chunk(time=96)`` brings it in.

    Parameters
    ----------
    path
        Folder or URI.
    incomplete
        Accept the beginning of a record whose preparation has not ended.
    packed
        The maps a second time as they are stored, ``packed(time, channel, latitude, longitude)``
        int16, with coordinates ``scale_factor(channel)`` and ``add_offset(channel)``: ``maps`` is
        ``packed · scale_factor + add_offset`` in float32, to the bit.

    Returns
    -------
    xarray.Dataset
        ``maps(time, channel, latitude, longitude)`` float32, labels and lows.

    Raises
    ------
    InputError
        If there is no map store, its schema is another, or its preparation has not ended.
    """
    ds, channels = _open(path)
    if not ds.attrs["complete"] and not incomplete:
        raise InputError(
            path,
            "its preparation must have ended: run 'medicane prepare' again",
            found=f"{ds.sizes[names.TIME]} maps so far",
        )
    dims = (names.TIME, names.CHANNEL, names.LATITUDE, names.LONGITUDE)
    shape = tuple(ds.sizes[name] for name in dims if name != names.CHANNEL)

    def lazy(*, unpack: bool) -> xr.Variable:
        stored = PackedMaps(list(channels.values()), shape, unpack=unpack)
        told = "channels of the maps; their units are in the attribute channels"
        return xr.Variable(dims, indexing.LazilyIndexedArray(stored), {"long_name": told})

    # Zarr gives strings of variable width, which few libraries take; ids are few and short.
    ids = np.asarray(ds["storm"].values, dtype=object).astype(str)
    ds = ds.drop_vars(list(channels))
    ds = ds.assign(maps=lazy(unpack=True), storm=(names.TIME, ids, ds["storm"].attrs))
    if not packed:
        return ds
    steps = [packing for _, packing in channels.values()]
    ds = ds.assign(packed=lazy(unpack=False))
    return ds.assign_coords(
        scale_factor=(names.CHANNEL, [packing.scale for packing in steps]),
        add_offset=(names.CHANNEL, [packing.offset for packing in steps]),
    )


def maps_where(store: xr.Dataset, mask: NDArray[np.bool_]) -> xr.Dataset:
    """The maps of a store where a mask of shape (time,) is true, lazy and in order.

    One run of maps is a slice: an array of indices would be resolved anew, whole, at each read.
    """
    at = np.flatnonzero(mask)
    if at.size and at[-1] - at[0] + 1 == at.size:
        return store.isel({names.TIME: slice(int(at[0]), int(at[-1]) + 1)})
    return store.isel({names.TIME: at})


def verify_store(path: str | Path) -> None:
    """Read all of a store and compare it with its digest.

    Raises
    ------
    InputError
        If a value has changed since it was written.
    """
    ds, channels = _open(path)
    chain = record_digest(
        json.loads(ds.attrs["recipe"]),
        ds[names.TIME].values,
        list(channels.values()),
        {name: ds[name].values for name in LOWS if name in ds},
    )
    found = content_digest(chain, ds["medicane"].values, ds["storm"].values)
    if found != ds.attrs["content_digest"]:
        raise InputError(
            path, f"must have the digest {ds.attrs['content_digest'][:12]}…", found=found[:12] + "…"
        )


def stored_end(path: str | Path) -> Restart | None:
    """Where the record of a store ends now; None if there is no map of it.

    Raises
    ------
    InputError
        If there is something else than a map store.
    """
    if not Path(path).exists():
        return None
    ds, channels = _open(path)
    if not ds.sizes[names.TIME]:
        return None
    packings = [packing for _, packing in channels.values()]
    return Restart(
        # What does not change with time is written once.
        born=(Path(path) / names.LATITUDE / "zarr.json").stat().st_mtime_ns,
        n=ds.sizes[names.TIME],
        time=str(ds[names.TIME].values[-1].astype("datetime64[s]")),
        packed=first_digest(json.loads(ds.attrs["recipe"]), packings),
        chain=ds.attrs["maps_digest"],
        last_lows=ds.attrs["last_lows"],
    )


def record_digest(
    recipe: Mapping[str, Any],
    times: NDArray[np.datetime64],
    channels: Sequence[tuple[Rows, Packing]],
    lows: Mapping[str, NDArray[Any]],
) -> str:
    """The digest of all maps, read anew: what `chained_digest` comes to."""
    chain = first_digest(recipe, [packing for _, packing in channels])
    for start in range(0, times.size, AT_ONCE):
        part = slice(start, min(start + AT_ONCE, times.size))
        chain = chained_digest(
            chain,
            times[part],
            [rows(part.start, part.stop) for rows, _ in channels],
            {name: values[part] for name, values in lows.items()},
        )
    return chain


def _open(path: str | Path) -> tuple[xr.Dataset, dict[str, tuple[Rows, Packing]]]:
    """What ``xr.open_zarr(path)`` opens, and how to read its channels, in order."""
    law = "must be a map store; 'medicane prepare' writes one"
    try:
        while True:
            ds: xr.Dataset = xr.open_zarr(path, chunks=None)
            group = zarr.open_group(path, mode="r")
            # Has there been a commit in between, the one may not fit the other.
            if group.attrs.get("content_digest") == ds.attrs.get("content_digest"):
                break
    except (OSError, ValueError, KeyError) as error:
        raise InputError(path, law, found=_first_line(error)) from None
    found = ds.attrs.get("schema_version")
    if found is None or names.CHANNEL not in ds:
        raise InputError(path, law, found="another Zarr store")
    if found != SCHEMA_VERSION:
        raise InputError(
            path,
            f"must be a map store of schema {SCHEMA_VERSION}: remove it and run 'medicane prepare'",
            found=f"schema {found}",
        )
    return ds, {str(name): _channel(group, str(name)) for name in ds[names.CHANNEL].values}


def _channel(group: zarr.Group, name: str) -> tuple[Rows, Packing]:
    array = group[name]
    metadata = array.metadata.to_dict()
    rows: Rows = functools.partial(_through_zarr, array)
    if isinstance(group.store, zarr.storage.LocalStore) and ChunkFiles.plain(metadata):
        rows = ChunkFiles(group.store.root / array.path, metadata).read
    return rows, packing_of(array.attrs)


def _through_zarr(array: Any, start: int, stop: int) -> NDArray[np.int16]:
    return np.asarray(array[start:stop])


def _runs(positions: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last (without it) of each run of positions that follow one another."""
    if not positions.size:
        return []
    ends = np.flatnonzero(np.diff(positions) != 1)
    first = positions[np.concatenate([[0], ends + 1])]
    last = positions[np.concatenate([ends, [-1]])] + 1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
