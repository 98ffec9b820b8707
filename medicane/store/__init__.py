"""The prepared map store: one bounded pass, resumed after a kill, appended to, read fast.

``xr.open_zarr(path)`` opens it, a variable for each channel; `open_store` puts them together as
``maps``. Maps are computed a block at a time and each block is committed, so that at any moment the
store holds a consistent beginning of the record, and the next `write_store` carries on from there.
What a map holds depends on the map alone (and, for the motion of its lows, on the maps before it),
never on the blocks, and neither does the digest.

Maps are packed into 16-bit integers, each channel in its own way, which is settled when the store
is created (``docs/decisions/0006-maps-are-packed.md``).
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.channels import describe
from medicane.config import Config
from medicane.errors import InputError
from medicane.labels import configured_catalogue, label_times
from medicane.packing import Packing, read_block
from medicane.phase_space.lows import LastMap
from medicane.store.commits import CommittedGroup, sole_writer
from medicane.store.continuing import (
    check_recipe,
    check_same_maps,
    cut_back,
    minute,
    new_times,
    times_of,
)
from medicane.store.reading import (
    maps_where,
    open_store,
    record_digest,
    stored_end,
    verify_store,
)
from medicane.store.restarts import Restart, Revision, restart_before, thinned
from medicane.store.schema import (
    LAND,
    LOWS,
    array_plans,
    chained_digest,
    content_digest,
    first_digest,
    lows_from_json,
    lows_to_json,
    packing_attributes,
    packing_of,
    recipe_of,
    store_attributes,
)
from medicane.store.source import (
    Compute,
    Source,
    compute_blocks,
    fit_packings,
    land_sea_mask_of,
    open_source,
    parts_of,
)

__all__ = [
    "BLOCK",
    "Restart",
    "Revision",
    "StoreSummary",
    "maps_where",
    "open_store",
    "read_block",
    "restart_before",
    "stored_end",
    "thinned",
    "verify_store",
    "write_store",
]

_log = logging.getLogger(__name__)

#: Maps computed, checked and committed at once, about: what bounds the memory.
BLOCK = 48
#: Source files held open at once: each keeps up to 16 MB a variable of what it has inflated.
OPEN_FILES = 4

#: Called with the maps done and the maps to do.
Progress = Callable[[int, int], None]


class StoreSummary(NamedTuple):
    """What `write_store` did.

    ``n_new`` maps were added, ``n_again`` written anew, ``n_left_out`` maps of the source lie
    between the steps; ``relabelled`` tells whether labels of maps already stored have changed.
    """

    store: str
    n_maps: int
    n_new: int
    n_again: int
    n_medicane: int
    n_unknown: int
    n_left_out: int
    first: str
    last: str
    digest: str
    relabelled: bool
    has_lows: bool


def write_store(
    config: Config,
    *,
    revision: Revision | None = None,
    progress: Progress | None = None,
    compute: Compute = compute_blocks,
) -> StoreSummary:
    """Write, resume or extend the map store of a configuration.

    Open → standardise → derive → label → store, about `BLOCK` maps in memory at a time, and twice
    as many being read. Running it again adds the maps that are later than the last one stored, and
    brings the labels of all maps up to the catalogue as it is now. What was committed stays,
    whatever goes wrong later.

    Parameters
    ----------
    config
        ``data`` and ``label`` are used.
    revision
        Which of the stored maps are put right. The record is cut back to the last restart before
        the first of them, which is a commit of its own, and written on from there. Without it, late
        and changed maps are refused.
    progress
        Called with (maps done, maps to do) after each commit.
    compute
        What computes the maps; by default this process, on two threads.

    Raises
    ------
    InputError
        If grids or catalogue are not understood; a map or a part of it is missing (the message
        names time and channel); the maps are further apart than ``step_hours``; the store was made
        by another recipe, holds other maps at the same times, or ends after a new map; the grids no
        longer hold a map that is to be written anew; or another process is writing it.
    """
    if "://" in config.data.store:
        raise InputError("data.store", "must be a path on this machine", found=config.data.store)
    path = Path(config.data.store)
    catalogue = configured_catalogue(config.data)
    with xr.set_options(file_cache_maxsize=OPEN_FILES):
        source = open_source(config)
        if source.storms is not None:
            catalogue = source.storms
        with sole_writer(path):
            return _write(config, path, source, catalogue, revision, progress, compute)


# --- writing ---------------------------------------------------------------------------------


def _write(
    config: Config,
    path: Path,
    source: Source,
    catalogue: pd.DataFrame | None,
    revision: Revision | None,
    progress: Progress | None,
    compute: Compute,
) -> StoreSummary:
    recipe = recipe_of(config, source.maps, source.levels)
    group = CommittedGroup.open(path, accept=lambda found: check_recipe(path, found, recipe))
    new = np.arange(source.times.size)
    relabelled, n_again = False, 0
    channels = describe(config.data.channels)
    if group is None:
        packings = {c["name"]: p for c, p in zip(channels, fit_packings(source), strict=True)}
        plans = array_plans(
            source.maps,
            channels,
            list(packings.values()),
            lsm=land_sea_mask_of(source.ds),
            levels=source.levels,
        )
        group = CommittedGroup.create(path, plans)
        old = np.zeros(0, "datetime64[ns]")
        chain, last = first_digest(recipe, list(packings.values())), None
    else:
        packings = {c["name"]: packing_of(group.attributes_of(c["name"])) for c in channels}
        chain, last = group.attributes["maps_digest"], lows_from_json(group.attributes["last_lows"])
        if revision is not None:
            begun = first_digest(recipe, list(packings.values()))
            cut = cut_back(path, group, source, revision, packed=begun)
            if cut is not None:
                n_again, chain, last = cut
                chain = chain or _digest_of(group, recipe, packings)
        old = times_of(group)
        new = new_times(path, old, source.times, revision)
        if revision is None:
            check_same_maps(path, old, source, packings)
    n_old = old.size
    times = np.concatenate([old, source.times[new]])
    labels = _labels(times, catalogue, config)
    if source.storms is not None:  # it says nothing of maps that it no longer holds
        gone = np.flatnonzero(~np.isin(old, source.times))
        for name, values in labels.items():
            values[gone] = group.read(name)[gone]
    if n_old:
        for name, values in labels.items():
            if not np.array_equal(group.read(name), values[:n_old]):
                group.rewrite(name, values[:n_old])
                relabelled = True
    sea = group.read(LAND) < 0.5
    about = store_attributes(
        recipe,
        files=[*json.loads(group.attributes.get("source_files", "[]")), *source.files],
        catalogue=config.data.catalogue if source.storms is None else "that of the maps",
        idealised=source.idealised,
    )
    if n_again or (n_old and not new.size):
        _commit(group, about, chain, last, labels, times.size, previous=dict(group.attributes))
    parts = parts_of(source, new, most=BLOCK)
    for block in compute(source, parts, sea=sea, definition=config.label, last=last):
        start, stop = group.written, group.written + block.times.size
        if _widened(group, packings, block.maps):
            chain = _digest_of(group, recipe, packings)
        packed = {
            name: packing.pack(block.maps[:, i])
            for i, (name, packing) in enumerate(packings.items())
        }
        chain = chained_digest(chain, block.times, list(packed.values()), block.lows)
        if start == n_old:  # not before there is a block: what is refused leaves no trace
            group.foresee("storm", labels["storm"][n_old:])
        group.append(
            {
                names.TIME: block.times.astype("datetime64[s]").astype(np.int64),
                **packed,
                "medicane": labels["medicane"][start:stop],
                **block.lows,
            }
        )
        _commit(group, about, chain, block.last, labels, times.size)
        if progress is not None:
            progress(stop - n_old, new.size)
    medicane = labels["medicane"]
    return StoreSummary(
        store=str(path),
        n_maps=times.size,
        n_new=new.size - n_again,
        n_again=n_again,
        n_medicane=int((medicane == names.MEDICANE).sum()),
        n_unknown=int((medicane == names.UNKNOWN).sum()),
        n_left_out=source.n_left_out,
        first=minute(times[0]),
        last=minute(times[-1]),
        digest=group.attributes["content_digest"],
        relabelled=relabelled,
        has_lows=bool(recipe["phase_space_levels"]),
    )


def _widened(
    group: CommittedGroup, packings: dict[str, Packing], maps: NDArray[np.float32]
) -> bool:
    """Make every packing hold these maps; whether the stored ones had to be packed anew."""
    found = False
    for i, (name, packing) in enumerate(packings.items()):
        least, most = float(maps[:, i].min()), float(maps[:, i].max())
        if packing.holds(least, most):
            continue
        packings[name] = wide = packing.widened(least, most)
        _log.warning(
            "channel %s: %g to %g is beyond what its packing holds; %d stored maps are packed "
            "anew in steps of %g instead of %g",
            *(name, least, most, group.written, wide.scale, packing.scale),
        )

        def again(rows: NDArray[Any], was: Packing = packing, now: Packing = wide) -> NDArray[Any]:
            return now.pack(was.unpack(rows))

        group.convert(name, again, packing_attributes(wide))
        found = True
    return found


def _digest_of(group: CommittedGroup, recipe: dict[str, Any], packings: dict[str, Packing]) -> str:
    """Digest of all maps written so far, read anew."""
    lows = LOWS if recipe["phase_space_levels"] else ()
    return record_digest(
        recipe,
        group.read(names.TIME).astype("datetime64[s]"),
        [(functools.partial(group.read, name), packing) for name, packing in packings.items()],
        {name: group.read(name) for name in lows},
    )


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
        group.commit(attributes, more_follows=n < n_all)
