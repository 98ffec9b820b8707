"""Contiguous periods, ordered windows of maps, and splits that share no storm. No pixels here.

Everything works on indices into ``time``. Gap-free periods are found first and windows are laid
inside them, so that no window can cross a gap. Splits are contiguous in time, share no storm and
lie further apart than one sequence lasts; `check_leakage` holds that after they are made.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.config import Config, Range
from medicane.errors import InputError

_log = logging.getLogger(__name__)

#: The splits in order of time, which is also the order of protection: where two of them come too
#: close, maps are taken from the earlier name, so that test years stay whole.
SPLITS = ("train", "validation", "test")

Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


def elapsed_seconds(times: ArrayLike) -> Indices:
    """Seconds of each time since the first, exact; any calendar.

    Parameters
    ----------
    times
        (time) ``datetime64``, or cftime dates of one calendar.

    Raises
    ------
    InputError
        If the times are not strictly increasing; the message names the first offender.
    """
    values = np.asarray(times)
    if values.ndim != 1:
        raise InputError("time", "times must be one-dimensional", found=f"shape {values.shape}")
    if values.size == 0:
        return np.zeros(0, np.int64)
    if values.dtype.kind == "M":
        seconds = (values - values[0]).astype("timedelta64[s]").astype(np.int64)
    else:
        seconds = np.array([round((t - values[0]).total_seconds()) for t in values], np.int64)
    wrong = np.flatnonzero(np.diff(seconds) <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise InputError(
            "time", "times must increase strictly", found=f"{values[i + 1]} after {values[i]}"
        )
    return seconds


def at_steps(
    times: ArrayLike,
    *,
    step_hours: float,
    after: Any = None,
    where: str = "time",
    holder: str = "the grids must hold",
) -> Indices:
    """Which maps of a series follow one another at the step that is wanted.

    Finer series are thinned, never averaged: a 6-hourly model given 3-hourly maps takes those of
    00, 06, 12 and 18 UTC. Coarser ones are refused; nothing is interpolated in time.

    Parameters
    ----------
    times
        (time), strictly increasing; any calendar.
    step_hours
        Hours from one map to the next.
    after
        A time that the series continues: the maps at whole steps from it are taken. None takes all
        maps, or those at multiples of the step since 1970-01-01 if any two are closer than a step.
    where, holder
        What the error message calls these times, and who asks for the step.

    Returns
    -------
    (kept) int64
        Indices into `times`; empty only if `after` is given.

    Raises
    ------
    InputError
        If the maps that remain are further apart than one step, or if none remain.
    """
    values = np.asarray(times)
    step = round(step_hours * 3600)
    seconds = _epoch_seconds(values)
    chosen = np.arange(values.size)
    if after is not None:
        chosen = np.flatnonzero((seconds - _epoch_seconds(np.asarray([after]))) % step == 0)
    elif seconds.size > 1 and np.diff(seconds).min() < step:
        chosen = np.flatnonzero(seconds % step == 0)
    spacing = np.diff(seconds[chosen])
    if (not chosen.size and after is None) or (spacing.size and spacing.min() > step):
        found = f"{spacing.min() / 3600:g} h" if spacing.size else "none"
        raise InputError(where, f"{holder} maps every {step_hours:g} h", found=found)
    return chosen.astype(np.int64)


def as_slice(positions: Indices) -> slice | Indices:
    """Evenly spaced positions as a slice, others as they are.

    A lazy array is read at once where it is asked for a slice, and else piece by piece.
    """
    steps = np.unique(np.diff(positions))
    if len(positions) and (len(positions) == 1 or (len(steps) == 1 and steps[0] > 0)):
        step = int(steps[0]) if len(steps) else 1
        return slice(int(positions[0]), int(positions[-1]) + 1, step)
    return positions


def _epoch_seconds(values: NDArray[Any]) -> Indices:
    """Seconds since 1970-01-01 in the calendar of the values."""
    if values.size == 0:
        return np.zeros(0, np.int64)
    origin: Any = np.datetime64("1970-01-01", "s")
    if values.dtype.kind != "M":
        origin = type(values[0])(1970, 1, 1, calendar=values[0].calendar)
        return np.array([round((t - origin).total_seconds()) for t in values], np.int64)
    return (values - origin).astype("timedelta64[s]").astype(np.int64)


def contiguous_periods(times: ArrayLike, *, step_hours: float) -> list[slice]:
    """The longest runs of times that follow each other at exactly one step.

    Any other spacing, shorter or longer, ends a period. The periods cover every time once.

    Parameters
    ----------
    times
        (time), strictly increasing.
    step_hours
        Hours from one map to the next, > 0.

    Returns
    -------
    list of slice
        In order; a lone map is a period of one.
    """
    if not step_hours > 0:
        raise InputError("step_hours", "must be greater than 0", found=step_hours)
    seconds = elapsed_seconds(times)
    if seconds.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(seconds) != round(step_hours * 3600)) + 1
    edges = [0, *breaks.tolist(), seconds.size]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def windows(
    times: ArrayLike, *, length: int, stride: int = 1, step_hours: float, where: str = "time"
) -> Indices:
    """Ordered windows of maps that never cross a gap.

    Parameters
    ----------
    times
        (time), strictly increasing.
    length
        Maps in a window, ≥ 1.
    stride
        Maps between the starts of two windows of one period, ≥ 1. A period of n maps holds
        (n − length) // stride + 1 windows.
    step_hours
        Hours from one map to the next.
    where
        What the error message calls these times.

    Returns
    -------
    (window, length) int64
        Indices into `times`, ascending along both axes.

    Raises
    ------
    InputError
        If no gap-free period holds `length` maps; the message tells the longest one.
    """
    for name, value in (("length", length), ("stride", stride)):
        if value < 1:
            raise InputError(name, "must be at least 1", found=value)
    periods = contiguous_periods(times, step_hours=step_hours)
    starts = [np.arange(p.start, p.stop - length + 1, stride, dtype=np.int64) for p in periods]
    first = np.concatenate([np.zeros(0, np.int64), *starts])
    if first.size == 0:
        raise InputError(
            where,
            f"a sequence needs {length} maps, each {step_hours:g} h after the one before",
            found=_longest(np.asarray(times), periods),
        )
    return first[:, None] + np.arange(length, dtype=np.int64)


def _longest(times: NDArray[Any], periods: Sequence[slice]) -> str:
    if not periods:
        return "no maps at all"
    best = max(periods, key=lambda p: p.stop - p.start)
    n = best.stop - best.start
    span = f"{_minute(times[best.start])} to {_minute(times[best.stop - 1])}"
    return f"{n} {'map' if n == 1 else 'maps'} in the longest gap-free period ({span})"


def _minute(time: Any) -> str:
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="m"))
    return str(time.isoformat())[:16]


def split_windows(
    times: ArrayLike,
    mask: ArrayLike,
    *,
    length: int,
    stride: int = 1,
    step_hours: float,
    where: str = "split",
) -> Indices:
    """The windows that lie wholly inside one split.

    Parameters
    ----------
    times, mask
        (time); the mask is True for the maps of the split.
    length, stride, step_hours, where
        As for `windows`.

    Returns
    -------
    (window, length) int64
        Indices into `times`, not into the split.
    """
    inside = np.flatnonzero(np.asarray(mask, bool))
    # Maps left out are gaps in what remains, so no window can reach across them.
    held = windows(
        np.asarray(times)[inside], length=length, stride=stride, step_hours=step_hours, where=where
    )
    return inside[held].astype(np.int64)


def split_times(
    times: ArrayLike, medicane: ArrayLike, storm: ArrayLike, *, config: Config
) -> dict[str, Mask]:
    """Assign maps to train, validation and test, or to none (the gaps between them).

    Three ways, from ``config.splits``:

    * *fractions* (default): train, validation, test in order of time. Each boundary goes to the
      nearest place where the gap touches no storm; where there is none near, the gap is widened
      until every storm it touches lies inside it, and those storms are lost to all splits.
    * *date ranges*: a map in two splits or a storm in two splits is an error. Where two splits come
      closer than the gap, maps are taken from train before validation, and never from test.
    * *leave_storm_out*: that storm, with a sequence on either side, is the test split; the rest is
      train and validation by their date ranges, else by their fractions.

    Parameters
    ----------
    times, medicane, storm
        (time); as in the store: ``medicane`` 1, 0, −1, ``storm`` an id or empty. Every map with an
        id belongs to its storm, whatever its label: a storm's unknown hours leak like the others.
    config
        ``splits``, ``sequences`` and ``data.step_hours`` are used.

    Returns
    -------
    dict
        ``train``, ``validation``, ``test``: (time) bool, disjoint, none empty.

    Raises
    ------
    InputError
        If the gap is not longer than one sequence, a split is empty, date ranges overlap or cut a
        storm, or the storm to leave out is not there.
    """
    values = np.asarray(times)
    seconds = elapsed_seconds(values)
    labels, ids = np.asarray(medicane), np.asarray(storm).astype(str)
    for name, array in (("medicane", labels), ("storm", ids)):
        if array.shape != values.shape:
            raise InputError(
                name, f"must have one value for each of {values.size} times", found=array.shape
            )
    lasts = (config.sequences.length - 1) * config.data.step_hours
    if config.gap_hours <= lasts:
        raise InputError(
            "sequences.gap_hours",
            f"must be longer than one sequence of {config.sequences.length} maps ({lasts:g} h)",
            found=f"{config.gap_hours:g}",
        )
    gap = round(config.gap_hours * 3600)
    splits = config.splits
    if splits.leave_storm_out is not None:
        masks = _leave_out(values, seconds, ids, gap, config)
    elif splits.train:
        ranges = {name: getattr(splits, name) for name in SPLITS}
        masks = _by_dates(values, seconds, ids, gap, ranges)
    else:
        masks = _by_fractions(seconds, ids, gap, dict(zip(SPLITS, splits.fractions, strict=True)))
    for name, mask in masks.items():
        if not mask.any():
            raise InputError(
                f"splits.{name}",
                "must hold at least one map",
                found=f"none of {values.size} maps"
                + (f" from {_minute(values[0])} to {_minute(values[-1])}" if values.size else ""),
            )
        if not (labels[mask] == names.MEDICANE).any():
            _log.warning("the %s split holds no medicane (%d maps)", name, int(mask.sum()))
    check_leakage(masks, values, ids, gap_hours=config.gap_hours)
    return masks


def _by_fractions(
    seconds: Indices, ids: NDArray[np.str_], gap: int, fractions: Mapping[str, float]
) -> dict[str, Mask]:
    """Splits in order of time, of about these shares of the maps."""
    n = seconds.size
    shares = np.array(list(fractions.values())) / sum(fractions.values())
    targets = np.cumsum(shares)[:-1] * n
    # A boundary may wander into its neighbours by at most a quarter of the smaller one.
    reaches = [0.25 * n * min(a, b) for a, b in itertools.pairwise(shares)]
    cuts = [
        _cut(seconds, ids, gap, target, reach)
        for target, reach in zip(targets, reaches, strict=True)
    ]
    masks, start = {}, 0
    for name, (last, following) in zip(fractions, [*cuts, (n - 1, n)], strict=True):
        mask = np.zeros(n, bool)
        mask[start : last + 1] = True
        masks[name] = mask
        start = following
    return masks


def _cut(
    seconds: Indices, ids: NDArray[np.str_], gap: int, target: float, reach: float
) -> tuple[int, int]:
    """Last map before and first map after the gap nearest to `target` that cuts no storm."""
    n = seconds.size
    last = np.arange(n)
    following = np.searchsorted(seconds, seconds + gap, side="left")
    spans = storm_spans(ids)
    # Counting links (i → i + 1) inside storms and maps of storms makes "the gap touches no storm"
    # one subtraction per candidate.
    inside, across = np.zeros(n + 1, int), np.zeros(n + 1, int)
    for a, b in spans.values():
        inside[a : b + 1] = 1
        across[a:b] = 1
    before_map = np.concatenate([[0], np.cumsum(inside)])
    before_link = np.concatenate([[0], np.cumsum(across)])
    touched = (before_map[following] - before_map[last + 1]) + (
        before_link[following] - before_link[last]
    )
    distance = np.abs((last + following) / 2 - target)
    free = np.flatnonzero((touched == 0) & (following < n) & (distance <= max(reach, 1)))
    if free.size:
        best = int(free[np.argmin(distance[free])])
        return best, int(following[best])
    best = int(np.argmin(np.where(following < n, distance, np.inf)))
    low, high = best, int(following[best])
    swallowed: set[str] = set()
    grown = True
    while grown:  # widen until the gap holds every storm that it touches
        grown = False
        for storm, (a, b) in spans.items():
            if storm not in swallowed and b > low and a < high:
                low, high = min(low, a - 1), max(high, b + 1)
                swallowed.add(storm)
                grown = True
    _log.warning("no storm-free gap near a split boundary: %s fall into the gap", sorted(swallowed))
    return low, min(high, n)


def storm_spans(storm: ArrayLike) -> dict[str, tuple[int, int]]:
    """First and last map of each storm.

    Parameters
    ----------
    storm
        (time) id, empty where there is none.

    Returns
    -------
    dict
        Storm id → (first, last) index, in order of the first.
    """
    ids = np.asarray(storm).astype(str)
    held = np.flatnonzero(ids != "")
    found, code = np.unique(ids[held], return_inverse=True)
    first = np.full(found.size, ids.size)
    last = np.full(found.size, -1)
    np.minimum.at(first, code, held)
    np.maximum.at(last, code, held)
    return {str(found[i]): (int(first[i]), int(last[i])) for i in np.argsort(first, kind="stable")}


def _by_dates(
    times: NDArray[Any],
    seconds: Indices,
    ids: NDArray[np.str_],
    gap: int,
    ranges: Mapping[str, Iterable[Range]],
) -> dict[str, Mask]:
    masks = {name: _within(times, ranges[name]) for name in ranges}
    return _set_apart(masks, times, seconds, ids, gap)


def _within(times: NDArray[Any], ranges: Iterable[Range]) -> Mask:
    if times.dtype.kind != "M":
        raise InputError("splits", "date ranges need times of the standard calendar")
    mask = np.zeros(times.size, bool)
    for start, end in ranges:
        mask |= (times >= np.datetime64(start)) & (times <= np.datetime64(end))
    return mask


def _set_apart(
    masks: dict[str, Mask],
    times: NDArray[Any],
    seconds: Indices,
    ids: NDArray[np.str_],
    gap: int,
) -> dict[str, Mask]:
    """Refuse what leaks, then take the gaps out of the less protected split."""
    _refuse_shared(masks, times, ids)
    apart = dict(masks)
    order = [name for name in SPLITS if name in masks]
    for i, name in enumerate(order):
        for other in order[i + 1 :]:
            apart[name] = apart[name] & ~_near(seconds, apart[other], gap)
    return apart


def _near(seconds: Indices, mask: Mask, gap: int) -> Mask:
    """Maps less than `gap` seconds from a map of the mask."""
    held = seconds[mask]
    if held.size == 0:
        return np.zeros(seconds.size, bool)
    after = np.searchsorted(held, seconds, side="left")
    ahead = held[np.minimum(after, held.size - 1)] - seconds
    behind = seconds - held[np.maximum(after - 1, 0)]
    return (np.abs(ahead) < gap) | (np.abs(behind) < gap)


def _leave_out(
    times: NDArray[Any], seconds: Indices, ids: NDArray[np.str_], gap: int, config: Config
) -> dict[str, Mask]:
    storm = str(config.splits.leave_storm_out)
    spans = storm_spans(ids)
    if storm not in spans:
        listed = ", ".join(spans) if len(spans) <= 12 else f"{len(spans)} storms"
        raise InputError(
            "splits.leave_storm_out",
            "must be a storm of the catalogue with at least one map",
            found=f"{storm!r} (there are: {listed or 'none'})",
        )
    lead = round((config.sequences.length - 1) * config.data.step_hours * 3600)
    a, b = spans[storm]
    start, end = seconds[a] - lead, seconds[b] + lead
    grown = True
    while grown:  # a storm that the block touches belongs to the block
        touching = [
            (first, last)
            for first, last in spans.values()
            if seconds[last] >= start and seconds[first] <= end
        ]
        low = min([start, *(seconds[first] for first, _ in touching)])
        high = max([end, *(seconds[last] for _, last in touching)])
        grown = bool(low < start or high > end)
        start, end = low, high
    test = (seconds >= start) & (seconds <= end)
    rest = np.flatnonzero(~_near(seconds, test, gap))
    masks = {name: np.zeros(seconds.size, bool) for name in SPLITS}
    masks["test"] = test
    splits = config.splits
    if splits.train:
        for name in SPLITS[:2]:
            masks[name] = _within(times, getattr(splits, name)) & ~test
        return _set_apart(masks, times, seconds, ids, gap)
    if rest.size:
        # A storm cut by the gap around the test block is dropped: half a storm teaches little.
        fractions = dict(zip(SPLITS[:2], splits.fractions[:2], strict=True))
        for name, mask in _by_fractions(seconds[rest], ids[rest], gap, fractions).items():
            masks[name][rest[mask]] = True
    return masks


def check_leakage(
    masks: Mapping[str, ArrayLike],
    times: ArrayLike,
    storm: ArrayLike,
    *,
    gap_hours: float,
    windows: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Fail loudly if anything of one split could be known from another.

    Parameters
    ----------
    masks
        Split → (time) bool.
    times, storm
        (time).
    gap_hours
        Least hours from a map of one split to a map of another.
    windows
        Split → (window, length) indices; each must lie wholly inside its split.

    Raises
    ------
    InputError
        If a map or a storm is in two splits, a sequence reaches out of its split, or two splits are
        closer than the gap; the message names the storm or the times.
    """
    values, ids = np.asarray(times), np.asarray(storm).astype(str)
    held = {name: np.asarray(mask, bool) for name, mask in masks.items()}
    _refuse_shared(held, values, ids)
    for name, indices in (windows or {}).items():
        rows = np.asarray(indices, np.int64)
        out = np.flatnonzero(~held[name][rows].all(axis=1)) if rows.size else np.zeros(0, int)
        if out.size:
            raise InputError(
                f"splits.{name}",
                "a sequence must lie wholly inside its split",
                found=f"one from {_minute(values[rows[out[0], 0]])}"
                f" to {_minute(values[rows[out[0], -1]])}",
            )
    seconds = elapsed_seconds(values)
    which = np.full(values.size, -1)
    for i, mask in enumerate(held.values()):
        which[mask] = i
    used = np.flatnonzero(which >= 0)
    turns = np.flatnonzero(np.diff(which[used]) != 0)
    between = (seconds[used[turns + 1]] - seconds[used[turns]]) / 3600
    close = np.flatnonzero(between < gap_hours)
    if close.size:
        i, split_names = int(turns[close[0]]), list(held)
        a, b = used[i], used[i + 1]
        raise InputError(
            f"splits.{split_names[which[a]]} and {split_names[which[b]]}",
            f"must lie at least {gap_hours:g} h apart",
            found=f"{between[close[0]]:g} h from {_minute(values[a])} to {_minute(values[b])}",
        )


def _refuse_shared(masks: Mapping[str, Mask], times: NDArray[Any], ids: NDArray[np.str_]) -> None:
    listed = list(masks)
    for i, name in enumerate(listed):
        for other in listed[i + 1 :]:
            both = np.flatnonzero(masks[name] & masks[other])
            if both.size:
                raise InputError(
                    f"splits.{name} and {other}",
                    "a map must belong to one split only",
                    found=f"{_minute(times[both[0]])} in both",
                )
            shared = (set(ids[masks[name]]) & set(ids[masks[other]])) - {""}
            if shared:
                storm = str(min(shared))
                a, b = storm_spans(ids)[storm]
                raise InputError(
                    f"splits.{name} and {other}",
                    "a storm must belong to one split only",
                    found=f"{storm!r} ({_minute(times[a])} to {_minute(times[b])}) in both",
                )
