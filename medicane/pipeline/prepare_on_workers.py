"""The blocks of a map store, computed on the workers of a dask cluster for its one writer.

The workers read, derive and find the lows; the process that was called packs the maps and commits
them part by part in order, as it always does: what is stored, its digest, and what a kill leaves
are those of one process. So the maps themselves travel to it, 40 MB for a block of the
Mediterranean at a quarter of a degree, and a few blocks for each worker wait there.

The motion of the lows, which goes from map to map, is found first, from the pressure alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medicane import __version__, names
from medicane.config import Config, Label
from medicane.errors import InputError
from medicane.phase_space.lows import Centres, LastMap, find_lows
from medicane.pipeline.cluster import at_work, check_visible, connected, everywhere, tasks_of
from medicane.pipeline.scale_out import followed
from medicane.sequences import as_slice
from medicane.store.source import Compute, Computed, Source, compute_blocks, open_source

Part = NDArray[np.int64]
Times = NDArray[np.datetime64]


@dataclass(frozen=True)
class Preparation:
    """What all blocks of one preparation have in common. A worker opens its grids once."""

    id: str
    config: Config = field(compare=False)
    version: str = field(compare=False, default=__version__)


def on_workers(config: Config, *, scheduler: str) -> Compute:
    """What computes the blocks of a store on a cluster; see `medicane.store.write_store`.

    Parameters
    ----------
    config
        Of the store.
    scheduler
        Address of a dask scheduler, as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    InputError
        When it computes: if no scheduler answers; a worker has no medicane, or another version of
        it, or does not see the grids; or what `medicane.store.source.compute_blocks` raises.
    """

    def compute(
        source: Source,
        parts: Sequence[Part],
        *,
        sea: NDArray[np.bool_],
        definition: Label,
        last: LastMap | None,
    ) -> Iterator[Computed]:
        if not parts:
            return
        data = config.data.model_copy(update={"grids": tuple(map(everywhere, source.files))})
        run = Preparation(f"medicane-{uuid.uuid4().hex}", config.model_copy(update={"data": data}))
        n = len(parts)
        same, seas, times = [run] * n, [sea] * n, [source.times[part] for part in parts]
        with connected(scheduler, name=run.id) as client:
            each = tasks_of(client)
            before: Iterable[LastMap | None] = [last] * n
            if source.levels:
                found = each(find_lows_of_part, same[1:], parts[:-1], times[:-1], seas[1:])
                before = followed(found, times, previous=last)
            yield from each(compute_part, same, parts, times, seas, before)

    return compute


def find_lows_of_part(
    run: Preparation, part: Part, times: Times, sea: NDArray[np.bool_]
) -> Centres:
    """The lows of some maps, from their pressure: what the motion of lows is made of."""
    with at_work(run.version):
        source = _source(run, part, times)
        maps = source.ds.isel({names.TIME: as_slice(part)})
        return find_lows(
            maps["msl"].values,
            sea,
            latitude=maps[names.LATITUDE].values,
            longitude=maps[names.LONGITUDE].values,
            max_hpa=run.config.label.msl_max_hpa,
        )


def compute_part(
    run: Preparation, part: Part, times: Times, sea: NDArray[np.bool_], last: LastMap | None
) -> Computed:
    """The channels and lows of some maps; `last` has the lows of the map before them."""
    with at_work(run.version):
        source = _source(run, part, times)
        label = run.config.label
        (computed,) = compute_blocks(source, [part], sea=sea, definition=label, last=last)
        return computed


def _source(run: Preparation, part: Part, times: Times) -> Source:
    """The grids as this worker sees them, which must hold the maps that are asked for."""
    source = _opened(run)
    if part[-1] >= source.times.size or not np.array_equal(source.times[part], times):
        raise InputError(
            "data.grids",
            "each worker must see the same files",
            found=f"other times than {times[0]} to {times[-1]}",
        )
    return source


@lru_cache(maxsize=2)
def _opened(run: Preparation) -> Source:
    check_visible(run.config.data.grids)
    return open_source(run.config)
