"""The prepared map store: one bounded pass, resumed after a kill, appended to, read fast.

``xr.open_zarr(path)`` opens it. Maps are computed a block at a time and each block is committed, so
that at any moment the store holds a consistent beginning of the record, and the next `write_store`
carries on from there. What a map holds depends on the map alone (and, for the motion of its lows,
on the maps before it), never on the blocks, and neither does the digest.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.channels import check_whole, derive, wanted_variables
from medicane.config import Config
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.labels import configured_catalogue, label_times
from medicane.packing import read_block
from medicane.phase_space.lows import LastMap, lows_of_maps
from medicane.sequences import at_steps
from medicane.standardise import land_sea_mask, standardise
from medicane.store.commits import CommittedGroup, sole_writer
from medicane.store.schema import (
    LOWS,
    SCHEMA_VERSION,
    array_plans,
    chained_digest,
    content_digest,
    difference,
    lows_from_json,
    lows_to_json,
    recipe_digest,
    recipe_of,
    store_attributes,
)

__all__ = [
    "BLOCK",
    "StoreSummary",
    "maps_where",
    "open_store",
    "read_block",
    "verify_store",
    "write_store",
]

_log = logging.getLogger(__name__)

#: Maps computed, checked and committed at once: what bounds the memory.
BLOCK = 96
#: Source files held open at once: each keeps up to 16 MB a variable of what it has inflated.
OPEN_FILES = 8
#: The phase space needs these levels at least, hPa.
LEAST_LEVELS = (900, 600, 300)

#: Called with the maps done and the maps to do.
Progress = Callable[[int, int], None]


class StoreSummary(NamedTuple):
    """What `write_store` did.

    ``n_new`` maps were added, ``n_left_out`` maps of the source lie between the steps;
    ``relabelled`` tells whether labels of maps already stored have changed.
    """

    store: str
    n_maps: int
    n_new: int
    n_medicane: int
    n_unknown: int
    n_left_out: int
    first: str
    last: str
    digest: str
    relabelled: bool
    has_lows: bool


@dataclass(frozen=True)
class _Source:
    """Standard maps of the configuration, lazy, at the times that are wanted."""

    ds: xr.Dataset
    maps: xr.DataArray
    times: NDArray[np.datetime64]
    levels: tuple[int, ...]
    files: list[str]
    idealised: bool
    n_left_out: int


def write_store(config: Config, *, progress: Progress | None = None) -> StoreSummary:
    """Write, resume or extend the map store of a configuration.

    Open → standardise → derive → label → store, `BLOCK` maps in memory at a time. Running it again
    adds the maps that are later than the last one stored, and brings the labels of all maps up to
    the catalogue as it is now. What was committed stays, whatever goes wrong later.

    Parameters
    ----------
    config
        ``data`` and ``label`` are used.
    progress
        Called with (maps done, maps to do) after each commit.

    Raises
    ------
    InputError
        If grids or catalogue are not understood; a map or a part of it is missing (the message
        names time and channel); the maps are further apart than ``step_hours``; the store was made
        by another recipe, holds other maps at the same times, or ends after a new map; or another
        process is writing it.
    """
    if "://" in config.data.store:
        raise InputError("data.store", "must be a path on this machine", found=config.data.store)
    path = Path(config.data.store)
    catalogue = configured_catalogue(config.data)
    with xr.set_options(file_cache_maxsize=OPEN_FILES):
        source = _open_source(config)
        with sole_writer(path):
            return _write(config, path, source, catalogue, progress)


def maps_where(store: xr.Dataset, mask: NDArray[np.bool_]) -> xr.Dataset:
    """The maps of a store where a mask of shape (time,) is true, lazy and in order.

    One run of maps is a slice: an array of indices would be resolved anew, whole, at each read.
    """
    at = np.flatnonzero(mask)
    if at.size and at[-1] - at[0] + 1 == at.size:
        return store.isel({names.TIME: slice(int(at[0]), int(at[-1]) + 1)})
    return store.isel({names.TIME: at})


def open_store(path: str | Path, *, chunks: Any = None, incomplete: bool = False) -> xr.Dataset:
    """Open a map store lazily: ``xr.open_zarr(path)``, and checks.

    Parameters
    ----------
    path
        Folder or URI.
    chunks
        As for `xarray.open_zarr`. By default values are read when they are indexed, without dask.
    incomplete
        Accept the beginning of a record whose preparation has not ended.

    Raises
    ------
    InputError
        If there is no map store, its schema is another, or its preparation has not ended.
    """
    try:
        ds: xr.Dataset = xr.open_zarr(path, chunks=chunks)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            path, "must be a map store; 'medicane prepare' writes one", found=_first_line(error)
        ) from None
    found = ds.attrs.get("schema_version")
    if found != SCHEMA_VERSION or "maps" not in ds:
        raise InputError(path, f"must be a map store of schema {SCHEMA_VERSION}", found=found)
    if not ds.attrs["complete"] and not incomplete:
        raise InputError(
            path,
            "its preparation must have ended: run 'medicane prepare' again",
            found=f"{ds.sizes[names.TIME]} maps so far",
        )
    # Zarr gives strings of variable width, which few libraries take; ids are few and short.
    ids = np.asarray(ds["storm"].values, dtype=object).astype(str)
    return ds.assign(storm=(names.TIME, ids, ds["storm"].attrs))


def verify_store(path: str | Path) -> None:
    """Read all of a store and compare it with its digest.

    Raises
    ------
    InputError
        If a value has changed since it was written.
    """
    ds = open_store(path, incomplete=True)
    lows = {name: ds[name].values for name in LOWS if name in ds}
    chain = recipe_digest(json.loads(ds.attrs["recipe"]))
    for start in range(0, ds.sizes[names.TIME], BLOCK):
        part = slice(start, start + BLOCK)
        chain = chained_digest(
            chain,
            ds[names.TIME].values[part],
            ds["maps"][part].values,
            {name: values[part] for name, values in lows.items()},
        )
    found = content_digest(chain, ds["medicane"].values, ds["storm"].values)
    if found != ds.attrs["content_digest"]:
        raise InputError(
            path, f"must have the digest {ds.attrs['content_digest'][:12]}…", found=found[:12] + "…"
        )


# --- the source ------------------------------------------------------------------------------


def _open_source(config: Config) -> _Source:
    data = config.data
    raw = open_grids(list(data.grids), select=data.select or None)
    ds = standardise(
        raw,
        domain=data.domain,
        degrees=data.degrees,
        units=data.units,
        select=data.select,
        where="data.grids",
        variables=wanted_variables(raw, data.channels),
    )
    index = ds.indexes[names.TIME]
    if not isinstance(index, pd.DatetimeIndex):
        raise InputError(
            "data.grids: time",
            "maps that are to be labelled need the standard calendar",
            found=str(getattr(index, "calendar", type(index).__name__)),
        )
    times = index.to_numpy().astype("datetime64[ns]")
    chosen = at_steps(times, step_hours=data.step_hours, where="data.step_hours")
    if chosen.size < times.size:
        _log.info(
            "%d of %d maps lie at multiples of %d h and are kept",
            chosen.size,
            times.size,
            data.step_hours,
        )
    ds = ds.isel({names.TIME: chosen})
    held = set(np.asarray(ds[names.LEVEL], float)) if "zg" in ds else set()
    levels = tuple(p for p in names.PHASE_SPACE_LEVELS if p in held)
    if not set(LEAST_LEVELS) <= set(levels) or "msl" not in ds:
        _log.warning("no phase space in the store: it needs msl and zg at %s hPa", LEAST_LEVELS)
        levels = ()
    return _Source(
        ds=ds,
        maps=derive(ds, data.channels, where="data.grids"),
        times=times[chosen],
        levels=levels,
        files=list(json.loads(raw.attrs.get("source_files", "[]"))),
        idealised=bool(raw.attrs.get("idealised", 0)),
        n_left_out=times.size - chosen.size,
    )


# --- writing ---------------------------------------------------------------------------------


def _write(
    config: Config,
    path: Path,
    source: _Source,
    catalogue: pd.DataFrame | None,
    progress: Progress | None,
) -> StoreSummary:
    recipe = recipe_of(config, source.maps, source.levels)
    group = CommittedGroup.open(path)
    new = np.arange(source.times.size)
    relabelled = False
    if group is None:
        plans = array_plans(source.maps, _land_sea_mask(source.ds), source.levels)
        group = CommittedGroup.create(path, plans)
        old = np.zeros(0, "datetime64[ns]")
        chain, last = recipe_digest(recipe), None
    else:
        _check_recipe(path, group, recipe)
        old = group.read(names.TIME).astype("datetime64[s]").astype("datetime64[ns]")
        new = _new_times(path, old, source.times)
        _check_same_maps(path, old, source)
        chain, last = group.attributes["maps_digest"], lows_from_json(group.attributes["last_lows"])
    n_old = old.size
    times = np.concatenate([old, source.times[new]])
    labels = _labels(times, catalogue, config)
    if n_old:
        for name, values in labels.items():
            if not np.array_equal(group.read(name), values[:n_old]):
                group.rewrite(name, values[:n_old])
                relabelled = True
    sea = group.read("lsm") < 0.5
    about = store_attributes(
        recipe,
        files=[*json.loads(group.attributes.get("source_files", "[]")), *source.files],
        catalogue=config.data.catalogue,
        idealised=source.idealised,
    )
    if n_old and not new.size:
        _commit(group, about, chain, last, labels, times.size, previous=dict(group.attributes))
    for start, stop in _blocks(n_old, times.size):
        part = new[start - n_old : stop - n_old]
        maps, lows, last = _compute(source, part, sea, config, last)
        chain = chained_digest(chain, times[start:stop], maps, lows)
        group.append(
            {
                names.TIME: times[start:stop].astype("datetime64[s]").astype(np.int64),
                "maps": maps,
                **{name: values[start:stop] for name, values in labels.items()},
                **lows,
            }
        )
        _commit(group, about, chain, last, labels, times.size)
        if progress is not None:
            progress(stop - n_old, new.size)
    medicane = labels["medicane"]
    return StoreSummary(
        store=str(path),
        n_maps=times.size,
        n_new=new.size,
        n_medicane=int((medicane == names.MEDICANE).sum()),
        n_unknown=int((medicane == names.UNKNOWN).sum()),
        n_left_out=source.n_left_out,
        first=_minute(times[0]),
        last=_minute(times[-1]),
        digest=group.attributes["content_digest"],
        relabelled=relabelled,
        has_lows=bool(recipe["phase_space_levels"]),
    )


def _blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut [start, stop) at the multiples of `BLOCK`, so that chunks are written whole."""
    edges = [start, *range((start // BLOCK + 1) * BLOCK, stop, BLOCK), stop]
    return list(itertools.pairwise(edges)) if stop > start else []


def _compute(
    source: _Source,
    part: NDArray[np.int64],
    sea: NDArray[np.bool_],
    config: Config,
    last: LastMap | None,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]], LastMap | None]:
    """Channels and lows of one block; the fields they share are read once."""
    times = source.times[part]
    ds = source.ds.isel({names.TIME: part})
    wanted = [source.maps.isel({names.TIME: part}).data]
    if source.levels:
        zg = ds["zg"].sel({names.LEVEL: list(source.levels)})
        order = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
        wanted += [zg.transpose(*order).data, ds["msl"].transpose(*order[:1], *order[2:]).data]
    computed = [np.ascontiguousarray(a, np.float32) for a in dask.compute(*wanted)]
    maps = computed[0]
    check_whole(maps, times, [f"channel {c}" for c in source.maps[names.CHANNEL].values])
    if not source.levels:
        return maps, {}, None
    heights, pressure = computed[1:]
    check_whole(heights, times, [f"zg at {p} hPa" for p in source.levels])
    check_whole(pressure[:, None], times, ["msl"])
    found = lows_of_maps(
        heights,
        pressure,
        sea,
        times=times,
        levels=source.levels,
        latitude=ds[names.LATITUDE].values,
        longitude=ds[names.LONGITUDE].values,
        definition=config.label,
        previous=last,
    )
    # One bit pattern for every missing value: the digest reads bits.
    lows = {
        name: np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32)
        for name, values in found._asdict().items()
        if name in LOWS
    }
    return maps, lows, found.last


def _land_sea_mask(ds: xr.Dataset) -> NDArray[np.float32]:
    at = ds[names.LATITUDE].values, ds[names.LONGITUDE].values
    mask = ds["lsm"] if "lsm" in ds else land_sea_mask(*at)
    if names.TIME in mask.dims:
        mask = mask.isel({names.TIME: 0})
    return np.asarray(mask.transpose(names.LATITUDE, names.LONGITUDE).values, np.float32)


def _labels(
    times: NDArray[np.datetime64], catalogue: pd.DataFrame | None, config: Config
) -> dict[str, NDArray[Any]]:
    if catalogue is None:  # nobody has said what these maps are
        unknown = np.full(times.size, names.UNKNOWN, np.int8)
        return {"medicane": unknown, "storm": np.full(times.size, "", object)}
    found = label_times(times, catalogue, definition=config.label, domain=config.data.domain)
    return {
        "medicane": found["medicane"].values.astype(np.int8),
        "storm": found["storm"].values.astype(str).astype(object),
    }


def _commit(
    group: CommittedGroup,
    about: dict[str, Any],
    chain: str,
    last: LastMap | None,
    labels: dict[str, NDArray[Any]],
    n_all: int,
    *,
    previous: dict[str, Any] | None = None,
) -> None:
    n = group.written
    attributes = about | {
        "maps_digest": chain,
        "last_lows": lows_to_json(last),
        "content_digest": content_digest(chain, labels["medicane"][:n], labels["storm"][:n]),
        "complete": int(n == n_all),
    }
    if attributes != previous:
        group.commit(attributes)


# --- what is already there -------------------------------------------------------------------


def _new_times(
    path: Path, old: NDArray[np.datetime64], times: NDArray[np.datetime64]
) -> NDArray[np.int64]:
    """Indices of the times to append; a time that would have to be inserted is refused."""
    between = times[(times <= old[-1]) & ~np.isin(times, old)]
    if between.size:
        raise InputError(
            path,
            f"maps are only added after the last one stored ({_minute(old[-1])}); "
            "remove the store to prepare it anew",
            found=f"a map at {_minute(between[0])}",
        )
    return np.flatnonzero(times > old[-1]).astype(np.int64)


def _check_same_maps(path: Path, old: NDArray[np.datetime64], source: _Source) -> None:
    """The first and the last map that source and store share must be the same."""
    both = np.flatnonzero(np.isin(source.times, old))
    if not both.size:
        return
    stored = xr.open_zarr(path, chunks=None)["maps"]
    for i in {int(both[0]), int(both[-1])}:
        position = int(np.searchsorted(old, source.times[i]))
        was = stored[position].values
        now = np.asarray(source.maps.isel({names.TIME: i}).values)
        # Regridding in blocks of another size may round the last bit otherwise; no more than that.
        scale = np.abs(was).max(axis=(1, 2), keepdims=True)
        wrong = np.flatnonzero(~(np.abs(now - was) <= 1e-4 * scale + 1e-12).all(axis=(1, 2)))
        if wrong.size:
            channel = source.maps[names.CHANNEL].values[wrong[0]]
            raise InputError(
                path,
                "the grids must still hold the maps that were stored; "
                "remove the store to prepare it anew",
                found=f"another map of channel {channel} at {_minute(source.times[i])}",
            )


def _check_recipe(path: Path, group: CommittedGroup, recipe: dict[str, Any]) -> None:
    try:
        stored = json.loads(group.attributes["recipe"])
    except (KeyError, ValueError, TypeError):
        raise InputError(
            path, "must be a map store, or not exist", found="another Zarr store"
        ) from None
    for key in {**recipe, **stored}:
        if stored.get(key) != recipe.get(key):
            was, now = difference(stored.get(key), recipe.get(key))
            raise InputError(
                path,
                f"was prepared with another recipe ({key}: {was}); give data.store another path "
                "or remove the store",
                found=f"{key}: {now}",
            )


def _minute(time: Any) -> str:
    return str(np.datetime_as_string(np.datetime64(time), unit="m"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
