"""Detection on the workers of a dask cluster: blocks of time, each a task that opens its own maps.

What travels is small. A task is told which maps to read and where they are; it answers with a few
numbers for each. The model is sent to each worker once, and opened there once, as the grids are. A
block reads the maps before it that its windows begin with (and in fused mode those after it that
they end with), so that a map has the windows that it has in one process. The motion of the lows,
which goes from map to map, is found first, from the pressure alone.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import __version__, names
from medicane.config import Label, Precision
from medicane.errors import InputError
from medicane.phase_space.lows import (
    Centres,
    LastMap,
    find_lows,
    follow_lows,
    phase_space_levels,
)
from medicane.pipeline.cluster import (
    Each,
    at_work,
    check_visible,
    connected,
    everywhere,
    model_of,
    tasks_of,
)
from medicane.pipeline.summaries import Progress
from medicane.sequences import as_slice, contiguous_periods

if TYPE_CHECKING:
    import keras

    from medicane.predict import Encode
    from medicane.remote import StorageOptions

#: Maps that one task labels: a month of hourly ones. The halo adds 2 %, in fused mode 4 %.
BLOCK = 744
#: Maps of which the pressure is in memory at once.
AT_ONCE = 96


@dataclass(frozen=True)
class Model:
    """A detector that is sent to the workers; each loads it once, whatever it is called."""

    digest: str
    precision: Precision
    sent_as: str = field(compare=False)


@dataclass(frozen=True)
class Run:
    """What all blocks of one detection have in common. A worker opens its grids once."""

    id: str
    model: Model = field(compare=False)
    files: tuple[str, ...] = field(compare=False)
    where: str = field(compare=False)
    units: dict[str, str] | None = field(compare=False)
    select: dict[str, float] | None = field(compare=False)
    storage_options: StorageOptions | None = field(compare=False)
    mode: Literal["causal", "fused"] = field(compare=False)
    allow_short: bool = field(compare=False)
    version: str = field(compare=False, default=__version__)


@dataclass(frozen=True)
class Block:
    """The maps of one task.

    Attributes
    ----------
    positions
        Of the maps that are read, on the axis of time of the files.
    times
        Of the same maps.
    sea
        True over the sea, shape (latitude, longitude).
    history
        Maps before those that no file holds any more; None if there are none.
    own
        The maps that are labelled, counted from the first map of `history`.
    new
        The same, counted from the first map that is read, without those of `history`.
    """

    positions: slice | NDArray[np.int64]
    times: pd.Index
    sea: NDArray[np.bool_]
    history: xr.DataArray | None
    own: slice
    new: slice


class Labelled(NamedTuple):
    """What a task answers: a few numbers for each of its own maps, see `detection.label_series`."""

    predicted: xr.Dataset
    lows: xr.Dataset
    last: LastMap | None


def label_on_workers(
    series: xr.DataArray,
    standard: xr.Dataset,
    *,
    scheduler: str,
    each: Each | None = None,
    model: Path,
    digest: str,
    precision: Precision,
    length: int,
    step_hours: int,
    positions: NDArray[np.int64],
    sea: NDArray[np.bool_],
    previous: LastMap | None,
    mode: Literal["causal", "fused"],
    allow_short: bool,
    units: dict[str, str] | None,
    select: dict[str, float] | None,
    storage_options: StorageOptions | None,
    progress: Progress | None = None,
    where: str,
) -> Labelled:
    """What `detection.label_series` gives, computed on a cluster.

    Parameters
    ----------
    series, standard, sea, previous, mode, allow_short, progress, where
        As for `detection.label_series`. Both are lazy, and no map of them is read here.
    scheduler
        Address of a dask scheduler, as ``tcp://10.0.0.1:8786``.
    each
        Who hands the tasks out, if it is not this function.
    model, digest
        The detector's file.
    precision
        Of the encoder's arithmetic; see `medicane.runtime.open_encoder`.
    length, step_hours
        Of its sequences.
    positions
        Of the maps of `standard` on the axis of time of the files.
    units, select, storage_options
        As for `detection.open_maps`.

    Raises
    ------
    InputError
        If no scheduler answers; a worker has no medicane, or another version of it; it does not see
        the files; or what `detection.label_series` raises.
    """
    files = tuple(everywhere(file) for file in json.loads(standard.attrs["source_files"]))
    name = f"medicane-{uuid.uuid4().hex}"
    sent = Model(digest, precision, name)
    run = Run(name, sent, files, where, units, select, storage_options, mode, allow_short)
    blocks = blocks_of(series, positions, sea=sea, length=length, step_hours=step_hours, mode=mode)
    with connected(scheduler, name=name, model=model) as client:
        each = each or tasks_of(client)
        runs = [run] * len(blocks)
        before: Iterable[LastMap | None] = [previous] * len(blocks)
        if phase_space_levels(standard):
            found = each(find_lows_of_block, runs[1:], blocks[:-1])
            times = [block.times[block.new] for block in blocks]
            before = followed(found, times, previous=previous)
        labelled: list[Labelled] = []
        for one in each(label_block, runs, blocks, before):
            labelled.append(one)
            if progress is not None:
                progress(sum(one.predicted.sizes[names.TIME] for one in labelled), len(series))
    return Labelled(
        _joined([one.predicted for one in labelled]),
        _joined([one.lows for one in labelled]),
        labelled[-1].last,
    )


def followed(
    found: Iterable[Centres], times: Iterable[ArrayLike], *, previous: LastMap | None
) -> Iterator[LastMap | None]:
    """The lows that lead up to each block, told as soon as those of the block before are found.

    Parameters
    ----------
    found
        The lows of each block; those of the last one are not asked for.
    times
        Of the maps of each block.
    previous
        The lows before the first block.
    """
    yield previous
    for centres, moments in zip(found, times, strict=False):
        _, previous = follow_lows(centres, moments, previous=previous)
        yield previous


def blocks_of(
    series: xr.DataArray,
    positions: NDArray[np.int64],
    *,
    sea: NDArray[np.bool_],
    length: int,
    step_hours: int,
    mode: Literal["causal", "fused"],
    size: int | None = None,
) -> list[Block]:
    """Cut a series into blocks of time, each with the maps around it that its windows need.

    Parameters
    ----------
    series
        Maps that no file holds any more, in memory, and those of the files.
    positions
        Of the latter on the axis of time of the files.
    length, step_hours
        Of a sequence of the model.
    mode
        In fused mode a map's windows end up to ``length - 1`` maps after it.
    size
        Maps that one block labels, at least ``length``; by default `BLOCK`.

    Returns
    -------
    list of Block
        Each map is the own one of exactly one block.
    """
    size = max(size or BLOCK, length)
    index = series.indexes[names.TIME]
    periods = contiguous_periods(index, step_hours=step_hours)
    starts = [period.start for period in periods]
    n_history = len(index) - len(positions)
    blocks = []
    for start in range(0, len(index), size):
        stop = min(start + size, len(index))
        first, last = (
            periods[int(np.searchsorted(starts, at, side="right")) - 1] for at in (start, stop - 1)
        )
        begin = max(first.start, start - (length - 1))
        # The opening of a period is labelled as one sequence: it is read whole, if it begins here.
        end = max(stop + (length - 1 if mode == "fused" else 0), last.start + length)
        end = min(end, last.stop)
        read = slice(max(begin - n_history, 0), max(end - n_history, 0))
        ahead = max(n_history - begin, 0)  # maps of the history that are read
        blocks.append(
            Block(
                positions=as_slice(positions[read]),
                times=index[n_history:][read],
                sea=sea,
                history=series[begin : begin + ahead].load() if ahead else None,
                own=slice(start - begin, stop - begin),
                new=slice(max(start - begin - ahead, 0), max(stop - begin - ahead, 0)),
            )
        )
    return blocks


# --- on a worker ---------------------------------------------------------------------------------


def find_lows_of_block(run: Run, block: Block) -> Centres:
    """The lows of a block's own maps, from their pressure: what the motion of lows is made of."""
    with _at_work(run) as (network, _, standard, _):
        from medicane import model as detector

        maps = _read(standard, block, run).isel({names.TIME: block.new})
        highest = Label(**detector.facts_of(network)["label"]).msl_max_hpa
        latitude, longitude = maps[names.LATITUDE].values, maps[names.LONGITUDE].values
        parts = []
        for start in range(0, maps.sizes[names.TIME], AT_ONCE):
            msl = maps["msl"].isel({names.TIME: slice(start, start + AT_ONCE)}).values
            found = find_lows(
                msl, block.sea, latitude=latitude, longitude=longitude, max_hpa=highest
            )
            parts.append(found._replace(map_index=found.map_index + start))
        return Centres(*map(np.concatenate, zip(*parts, strict=True)))


def label_block(run: Run, block: Block, previous: LastMap | None) -> Labelled:
    """Label the own maps of a block; `previous` has the lows of the map before them."""
    with _at_work(run) as (network, encode, standard, maps):
        from medicane.pipeline.detection import follow_on, label_series

        series = _read(maps, block, run)
        predicted, lows, last = label_series(
            network,
            series if block.history is None else follow_on(block.history, series),
            _read(standard, block, run).isel({names.TIME: block.new}),
            sea=block.sea,
            previous=previous,
            mode=run.mode,
            allow_short=run.allow_short,
            encode=encode,
            allow_none=True,  # whether there is a sequence at all was asked of the whole series
            where=run.where,
        )
        return Labelled(predicted.isel({names.TIME: block.own}), lows, last)


@contextmanager
def _at_work(
    run: Run,
) -> Iterator[tuple[keras.Model, Encode | None, xr.Dataset, xr.DataArray]]:
    """This process alone on a block of a run, with model and grids open."""
    with at_work(run.version):
        yield *_loaded(run.model), *_opened(run)


@lru_cache(maxsize=2)
def _loaded(model: Model) -> tuple[keras.Model, Encode | None]:
    """A detector and what runs its encoder, loaded once in this process."""
    from medicane import model as detector
    from medicane.runtime import open_encoder

    network = detector.load_detector(model_of(model.sent_as))
    encoder = detector.encoder_of(network)
    return network, open_encoder(encoder, digest=model.digest, precision=model.precision)


@lru_cache(maxsize=2)
def _opened(run: Run) -> tuple[xr.Dataset, xr.DataArray]:
    """Standard fields and channels of a run, opened once in this process."""
    from medicane import model as detector
    from medicane.pipeline.detection import open_maps

    check_visible(run.files)
    facts = detector.facts_of(_loaded(run.model)[0])
    return open_maps(
        run.files,
        facts,
        units=run.units,
        select=run.select,
        storage_options=run.storage_options,
        where=run.where,
    )


_Maps = TypeVar("_Maps", xr.Dataset, xr.DataArray)


def _read(maps: _Maps, block: Block, run: Run) -> _Maps:
    """The maps of a block, which must be those that were seen where it was cut."""
    part = maps.isel({names.TIME: block.positions})
    if not part.indexes[names.TIME].equals(block.times):
        raise InputError(
            run.where,
            "each worker must see the same files",
            found=f"other times than {block.times[0]} to {block.times[-1]}",
        )
    return part


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        parts,
        dim=names.TIME,
        join="exact",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
