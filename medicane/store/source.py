"""The source of a store: standard maps of the configuration, computed a block at a time."""

from __future__ import annotations

import itertools
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import get_scheduler
from numpy.typing import NDArray

from medicane import names
from medicane.channels import check_whole, derive, wanted_variables
from medicane.config import BUNDLED, Config, Data, Label
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.grids.hdf5 import threads_at_most
from medicane.labels import storms_of_labels
from medicane.packing import Packing, Reused
from medicane.phase_space.lows import LastMap, lows_of_maps
from medicane.sequences import as_slice, at_steps
from medicane.standardise import land_sea_mask, standardise
from medicane.store.schema import LOWS

_log = logging.getLogger(__name__)

#: The phase space needs these levels at least, hPa.
LEAST_LEVELS = (900, 600, 300)
#: Parts of the source that are read and derived at the same time.
READERS = 2
#: Packings are fitted to this many maps at most of one piece of the source in `SAMPLE_STEP` maps,
#: two pieces at least and `SAMPLES` at most: 5 % of a record of years, less of a long one.
SAMPLE, SAMPLE_STEP, SAMPLES = 96, 2_048, 64


@dataclass(frozen=True)
class Source:
    """Standard maps of the configuration, lazy, at the times that are wanted."""

    ds: xr.Dataset
    maps: xr.DataArray
    times: NDArray[np.datetime64]
    levels: tuple[int, ...]
    files: list[str]
    idealised: bool
    n_left_out: int
    #: What the maps themselves say they show, as a catalogue; none if they say nothing.
    storms: pd.DataFrame | None


class Computed(NamedTuple):
    """Some maps of the source: channels, and lows where there is a phase space.

    ``maps`` (map, channel, latitude, longitude) float32; ``lows`` name → (map) float32; ``last`` is
    what the maps that follow need of the lows.
    """

    times: NDArray[np.datetime64]
    maps: NDArray[np.float32]
    lows: dict[str, NDArray[np.float32]]
    last: LastMap | None


class Compute(Protocol):
    """What computes parts of a source, in order: `compute_blocks`, here or on other machines."""

    def __call__(
        self,
        source: Source,
        parts: Sequence[NDArray[np.int64]],
        *,
        sea: NDArray[np.bool_],
        definition: Label,
        last: LastMap | None,
    ) -> Iterator[Computed]: ...


def open_source(config: Config) -> Source:
    """The source that ``data`` of a configuration describes; only its first map is read."""
    data = config.data
    raw = _in_one_layer(
        open_grids(
            list(data.grids), select=data.select or None, storage_options=data.storage_options
        )
    )
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
    return Source(
        ds=ds,
        maps=derive(ds, data.channels, where="data.grids"),
        times=times[chosen],
        levels=levels,
        files=list(json.loads(raw.attrs.get("source_files", "[]"))),
        idealised=bool(raw.attrs.get("idealised", 0)),
        n_left_out=times.size - chosen.size,
        storms=_own_labels(raw, index, data),
    )


def _own_labels(raw: xr.Dataset, index: pd.DatetimeIndex, data: Data) -> pd.DataFrame | None:
    if "medicane" not in raw.coords:
        return None
    if data.catalogue not in (None, BUNDLED):
        raise InputError(
            "data.catalogue",
            "map images that are labelled take no other catalogue: set it to null",
            found=data.catalogue,
        )
    return storms_of_labels(index, raw["medicane"].values, step_hours=data.step_hours)


def _in_one_layer(raw: xr.Dataset) -> xr.Dataset:
    """The same arrays of dask with graphs of one layer.

    There is a layer for each file otherwise, and each computation looks through them all.
    """
    flat = {
        name: (
            array.dims,
            da.Array(dict(array.data.dask), array.data.name, array.data.chunks, array.dtype),
            array.attrs,
        )
        for name, array in raw.data_vars.items()
        if array.chunks is not None
    }
    return raw.assign(flat)


def fit_packings(source: Source) -> list[Packing]:
    """A packing for each channel, from a sample spread over the source.

    Missing and unreadable maps are left out here: the pass over all maps tells of them, once what
    comes before is stored.
    """
    n, channels = source.times.size, source.maps.sizes[names.CHANNEL]
    least, most = np.full(channels, np.inf), np.full(channels, -np.inf)
    total, cells = np.zeros(channels), np.zeros(channels)
    # Whole pieces: to read a part of one takes as long.
    ends = _ends(source)
    count = min(max(2, n // SAMPLE_STEP), SAMPLES)
    at = np.searchsorted(ends, np.linspace(0, n - 1, count).astype(int), side="right")
    for piece in np.unique(at).tolist():
        start = int(ends[piece - 1]) if piece else 0
        stop = min(int(ends[piece]), start + SAMPLE)
        try:
            block = source.maps.isel({names.TIME: slice(start, stop)}).values
        except InputError:
            continue
        finite = np.isfinite(block)
        axes: dict[str, Any] = {"axis": (0, 2, 3), "where": finite}
        least = np.minimum(least, block.min(initial=np.inf, **axes))
        most = np.maximum(most, block.max(initial=-np.inf, **axes))
        total += block.sum(dtype=np.float64, **axes)
        cells += finite.sum(axis=(0, 2, 3))
    return [
        Packing.fit(least[i], most[i], about=total[i] / cells[i])
        if cells[i]
        else Packing.fit(0.0, 0.0, about=0.0)
        for i in range(channels)
    ]


def parts_of(source: Source, wanted: NDArray[np.int64], *, most: int) -> list[NDArray[np.int64]]:
    """Cut positions in the source into parts that are computed, and stored, one at a time.

    Parameters
    ----------
    source
        The source.
    wanted
        (map) ascending positions.
    most
        Maps in a part, about: a part ends where a piece of the source ends, for a piece that two
        parts share is read and derived twice, and so may be half as long again.
    """
    edges, begin = [], 0
    for before, end in itertools.pairwise([0, *_ends(source).tolist()]):
        if end - begin > most + most // 2 and before > begin:
            edges.append(before)
            begin = before
        while end - begin > most + most // 2:
            begin += most
            edges.append(begin)
    return [part for part in np.split(wanted, np.searchsorted(wanted, edges)) if part.size]


def _ends(source: Source) -> NDArray[np.int64]:
    """Where the pieces end that the source is read in."""
    return np.cumsum(source.maps.chunksizes.get(names.TIME, (source.times.size,)))


def compute_blocks(
    source: Source,
    parts: Sequence[NDArray[np.int64]],
    *,
    sea: NDArray[np.bool_],
    definition: Label,
    last: LastMap | None,
) -> Iterator[Computed]:
    """Channels and lows of parts of the source, in order; the next two are read meanwhile.

    Parameters
    ----------
    source
        The source.
    parts
        Each (map) ascending positions in it.
    sea
        (latitude, longitude), true over the sea.
    definition
        Radius and thresholds of the lows.
    last
        Of the maps before the first part.

    Raises
    ------
    InputError
        If a map or a part of it is missing.
    """
    memory = Reused()
    readers = threads_at_most(READERS)
    with ThreadPoolExecutor(readers) as pool:
        reading = deque(pool.submit(_read, source, part, memory) for part in parts[:readers])
        for k, part in enumerate(parts):
            fields = reading.popleft().result()
            reading += [pool.submit(_read, source, p, memory) for p in parts[k + readers :][:1]]
            times = source.times[part]
            lows, last = _lows(source, fields, times, sea, definition, last)
            yield Computed(times, fields[0], lows, last)


def _read(source: Source, part: NDArray[np.int64], memory: Reused) -> list[NDArray[np.float32]]:
    """Channels and, for the phase space, heights and pressure: what they share is read once."""
    # A slice is read as it is, an array of positions one run after another.
    at = {names.TIME: as_slice(part)}
    wanted = [source.maps.isel(at).data]
    if source.levels:
        order = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
        ds = source.ds.isel(at)
        levels = ds.indexes[names.LEVEL].get_indexer(pd.Index(source.levels))
        zg = ds["zg"].isel({names.LEVEL: as_slice(levels)})
        wanted += [zg.transpose(*order).data, ds["msl"].transpose(*order[:1], *order[2:]).data]
    wanted = [da.asarray(array) for array in wanted]
    fields = [memory.empty(array.shape) for array in wanted]
    # Each reader is one thread. A scheduler that is asked for is taken.
    da.store(wanted, fields, lock=False, scheduler=get_scheduler() or "synchronous")
    times = source.times[part]
    check_whole(fields[0], times, [f"channel {c}" for c in source.maps[names.CHANNEL].values])
    if source.levels:
        check_whole(fields[1], times, [f"zg at {p} hPa" for p in source.levels])
        check_whole(fields[2][:, None], times, ["msl"])
    return fields


def _lows(
    source: Source,
    fields: Sequence[NDArray[np.float32]],
    times: NDArray[np.datetime64],
    sea: NDArray[np.bool_],
    definition: Label,
    last: LastMap | None,
) -> tuple[dict[str, NDArray[np.float32]], LastMap | None]:
    if not source.levels:
        return {}, None
    found = lows_of_maps(
        fields[1],
        fields[2],
        sea,
        times=times,
        levels=source.levels,
        latitude=source.ds[names.LATITUDE].values,
        longitude=source.ds[names.LONGITUDE].values,
        definition=definition,
        previous=last,
    )
    # One bit pattern for every missing value: the digest reads bits.
    lows = {
        name: np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32)
        for name, values in found._asdict().items()
        if name in LOWS
    }
    return lows, found.last


def land_sea_mask_of(ds: xr.Dataset) -> NDArray[np.float32]:
    """(latitude, longitude), 1 = land: the data's own mask if they have one."""
    at = ds[names.LATITUDE].values, ds[names.LONGITUDE].values
    mask = ds["lsm"] if "lsm" in ds else land_sea_mask(*at)
    if names.TIME in mask.dims:
        mask = mask.isel({names.TIME: 0})
    return np.asarray(mask.transpose(names.LATITUDE, names.LONGITUDE).values, np.float32)
