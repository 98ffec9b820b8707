"""Folds of a cross-validation: every storm, or every year, is the test split once.

A fold is nothing but a section ``splits`` of the configuration; `medicane.sequences` makes the
splits of it, keeps the gaps and holds that nothing leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.config import Splits
from medicane.errors import InputError
from medicane.sequences import storm_spans

#: With fewer blocks of years there is none left to train on.
LEAST_FOLDS = 3


@dataclass(frozen=True)
class Fold:
    """One fold: a name that is also good for a file, and the splits."""

    name: str
    splits: Splits


def storm_folds(
    medicane: ArrayLike,
    storm: ArrayLike,
    *,
    splits: Splits,
    n_folds: int | None = None,
    storms: Sequence[str] | None = None,
) -> list[Fold]:
    """A fold for each storm that has a medicane map, in order of time.

    The rest of the record is training and validation by ``splits.fractions``, whatever date ranges
    say: the years of a fixed test split are storms to learn from here.

    Parameters
    ----------
    medicane, storm
        Shape (time,): labels 1, 0 or -1 and storm ids, as in the store.
    splits
        For the fractions.
    n_folds
        So many storms only, evenly over the record.
    storms
        These storms only.

    Raises
    ------
    InputError
        If a storm that is named has no medicane map, or there are fewer than 2 (or `n_folds`).
    """
    labels, ids = np.asarray(medicane), np.asarray(storm).astype(object).astype(str)
    found = set(ids[labels == names.MEDICANE]) - {""}
    ordered = [one for one in storm_spans(ids) if one in found]
    if storms is not None:
        unknown = sorted(set(storms) - found)
        if unknown:
            law = "a storm to leave out must have a medicane map"
            raise InputError("storms", law, found=unknown)
        ordered = [one for one in ordered if one in storms]
    least = n_folds if n_folds is not None else (1 if storms is not None else 2)
    if len(ordered) < least or least < 1:
        law = f"there must be at least {max(least, 1)} storms with medicane maps to leave out"
        raise InputError("--folds", law, found=len(ordered))
    if n_folds is not None:
        spread = np.linspace(0, len(ordered) - 1, n_folds).round().astype(int)
        ordered = [ordered[k] for k in spread]
    return [
        Fold(f"storm-{_safe(one)}", Splits(fractions=splits.fractions, leave_storm_out=one))
        for one in ordered
    ]


def year_folds(
    times: ArrayLike, medicane: ArrayLike, storm: ArrayLike, *, n_folds: int | None = None
) -> list[Fold]:
    """A fold for each year, or for each of `n_folds` runs of years.

    A block of years begins at New Year, or at the nearest map at which no storm is about. The
    validation split is the block before the test (after the first one: the block after it) and, as
    long as it holds no medicane, the next nearest ones; all the rest is training.

    Parameters
    ----------
    times, medicane, storm
        Shape (time,): ``datetime64``, labels 1, 0 or -1 and storm ids, as in the store.
    n_folds
        Number of folds; by default one for each calendar year that has maps.

    Raises
    ------
    InputError
        If there are fewer than 3 folds or more than years, the calendar is not the standard one, a
        storm covers a whole block, or there are not medicanes enough to train and validate on.
    """
    clock, labels = np.asarray(times), np.asarray(medicane)
    if clock.dtype.kind != "M":
        raise InputError("--by year", "needs times of the standard calendar", found=clock.dtype)
    year = clock.astype("datetime64[Y]").astype(int) + 1970
    years = np.unique(year)
    count = len(years) if n_folds is None else n_folds
    if not LEAST_FOLDS <= count <= len(years):
        law = f"must lie between {LEAST_FOLDS} and the {len(years)} years of the record"
        raise InputError("--folds", law, found=count)
    groups = np.array_split(years, count)
    edges = _storm_free(
        [int(np.searchsorted(year, group[0])) for group in groups[1:]], storm, size=clock.size
    )
    blocks = [slice(a, b) for a, b in zip([0, *edges], [*edges, clock.size], strict=True)]
    positive = labels == names.MEDICANE
    folds = []
    for k, group in enumerate(groups):
        validation = _validation_blocks(k, blocks, positive)
        train = [j for j in range(count) if j != k and j not in validation]
        if not any(positive[blocks[j]].any() for j in train):
            law = "there must be medicanes enough to train and to validate on"
            raise InputError(f"--folds {count}", law, found=f"none left beside {_span(group)}")
        folds.append(
            Fold(
                f"years-{_span(group)}",
                Splits(
                    train=_ranges(clock, blocks, train),
                    validation=_ranges(clock, blocks, sorted(validation)),
                    test=_ranges(clock, blocks, [k]),
                ),
            )
        )
    return folds


def _storm_free(edges: Sequence[int], storm: ArrayLike, *, size: int) -> list[int]:
    """Each boundary moved to the nearest map before which no storm is cut."""
    ids = np.asarray(storm).astype(object).astype(str)
    cut = np.zeros(size + 1, bool)  # cut[i]: a storm has maps on both sides of the boundary i
    for first, last in storm_spans(ids).values():
        cut[first + 1 : last + 1] = True
    free = np.flatnonzero(~cut)
    moved = [int(free[np.argmin(np.abs(free - edge))]) for edge in edges]
    whole = [0, *moved, size]
    if (np.diff(whole) <= 0).any():
        law = "a block of years must not lie within one storm"
        raise InputError("--by year", law, found=f"boundaries at the maps {moved} of {size}")
    return moved


def _validation_blocks(k: int, blocks: Sequence[slice], positive: NDArray[np.bool_]) -> set[int]:
    """The block before the fold's (or after the first), and more until one medicane is in it."""
    others = sorted((j for j in range(len(blocks)) if j != k), key=lambda j: (abs(j - k), j > k))
    chosen: set[int] = set()
    for j in others:
        chosen.add(j)
        if any(positive[blocks[one]].any() for one in chosen):
            break
    return chosen


def _ranges(
    clock: NDArray[Any], blocks: Sequence[slice], chosen: Sequence[int]
) -> tuple[tuple[Any, Any], ...]:
    """First and last time of each run of blocks; both ends are included."""
    runs: list[list[int]] = []
    for j in chosen:
        if runs and runs[-1][1] == j - 1:
            runs[-1][1] = j
        else:
            runs.append([j, j])
    return tuple(
        (
            pd.Timestamp(clock[blocks[a].start]).to_pydatetime(),
            pd.Timestamp(clock[blocks[b].stop - 1]).to_pydatetime(),
        )
        for a, b in runs
    )


def _span(group: NDArray[np.intp]) -> str:
    return f"{group[0]}" if group.size == 1 else f"{group[0]}-{group[-1]}"


def _safe(name: str) -> str:
    """A storm's name in the letters that a file name may have."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
