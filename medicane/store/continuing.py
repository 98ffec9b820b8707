"""What is stored already, and how a source goes on from it, or puts it right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medicane import names
from medicane.errors import InputError
from medicane.packing import Packing
from medicane.phase_space.lows import LastMap
from medicane.store.commits import CommittedGroup
from medicane.store.reading import open_store
from medicane.store.restarts import Revision, restart_before
from medicane.store.schema import difference, lows_from_json
from medicane.store.source import Source


class Cut(NamedTuple):
    """What a record that was cut back goes on with; an empty ``chain`` is to be computed anew."""

    n_again: int
    chain: str
    last: LastMap | None


def cut_back(
    path: Path,
    group: CommittedGroup,
    source: Source,
    revision: Revision,
    *,
    packed: str,
) -> Cut | None:
    """Cut a record back to the last restart before the first map that is to be put right.

    Parameters
    ----------
    packed
        `first_digest` of the maps as they are packed now.

    Returns
    -------
    Cut or None
        None where nothing is to be put right.

    Raises
    ------
    InputError
        If the source no longer holds one of the maps that would be cut off.
    """
    old = times_of(group)
    if not old.size:
        return None
    late = (source.times >= revision.late_from) & (source.times <= old[-1])
    wrong = source.times[late & ~np.isin(source.times, old)][:1]
    if revision.changed_from is not None:
        wrong = np.concatenate([wrong, old[old >= revision.changed_from][:1]])
    if not wrong.size:
        return None
    restart = restart_before(revision.restarts, old, wrong.min())
    kept = 0 if restart is None else restart.n
    _check_held(path, old[kept:], source.times)
    group.cut(kept)
    if restart is None:
        return Cut(old.size, "", None)
    chain = restart.chain if restart.packed == packed else ""
    return Cut(old.size - kept, chain, lows_from_json(restart.last_lows))


def times_of(group: CommittedGroup) -> NDArray[np.datetime64]:
    """The times of what is written, (time) in nanoseconds."""
    return group.read(names.TIME).astype("datetime64[s]").astype("datetime64[ns]")


def _check_held(path: Path, wanted: NDArray[np.datetime64], times: NDArray[np.datetime64]) -> None:
    """What is written anew must be there: maps that the grids no longer hold would be lost."""
    gone = wanted[~np.isin(wanted, times)]
    if gone.size:
        raise InputError(
            path,
            f"the grids must hold all maps that are to be written anew, from {minute(wanted[0])}",
            found=f"none at {minute(gone[0])}",
        )


def new_times(
    path: Path,
    old: NDArray[np.datetime64],
    times: NDArray[np.datetime64],
    revision: Revision | None,
) -> NDArray[np.int64]:
    """Indices of the times to append; a time that would have to be inserted is refused."""
    if not old.size:
        return np.arange(times.size)
    if revision is not None:
        return np.flatnonzero(times > old[-1]).astype(np.int64)
    between = times[(times <= old[-1]) & ~np.isin(times, old)]
    if between.size:
        raise InputError(
            path,
            f"maps are only added after the last one stored ({minute(old[-1])}); "
            "remove the store to prepare it anew",
            found=f"a map at {minute(between[0])}",
        )
    return np.flatnonzero(times > old[-1]).astype(np.int64)


def check_same_maps(
    path: Path, old: NDArray[np.datetime64], source: Source, packings: dict[str, Packing]
) -> None:
    """The first and the last map that source and store share must be the same."""
    both = np.flatnonzero(np.isin(source.times, old))
    if not both.size:
        return
    stored = open_store(path, incomplete=True)["maps"]
    error = np.array([packing.error for packing in packings.values()])[:, None, None]
    for i in {int(both[0]), int(both[-1])}:
        position = int(np.searchsorted(old, source.times[i]))
        was = stored[position].values
        now = np.asarray(source.maps.isel({names.TIME: i}).values)
        # Regridding in blocks of another size may round the last bit otherwise; no more than that
        # and what packing takes off.
        slack = 1e-4 * np.abs(was).max(axis=(1, 2), keepdims=True) + error
        wrong = np.flatnonzero(~(np.abs(now - was) <= slack).all(axis=(1, 2)))
        if wrong.size:
            channel = source.maps[names.CHANNEL].values[wrong[0]]
            raise InputError(
                path,
                "the grids must still hold the maps that were stored; "
                "remove the store to prepare it anew",
                found=f"another map of channel {channel} at {minute(source.times[i])}",
            )


def check_recipe(path: Path, group: CommittedGroup, recipe: dict[str, Any]) -> None:
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


def minute(time: Any) -> str:
    return str(np.datetime_as_string(np.datetime64(time), unit="m"))
