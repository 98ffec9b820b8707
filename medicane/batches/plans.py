"""How an epoch is laid out in batches: windows of one length, or runs cut at random.

A plan knows nothing of maps: it deals in indices into time. What an epoch holds follows from the
seed and the number of the epoch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane.batches.sampling import Indices, stratify
from medicane.errors import InputError

#: Streams of random numbers of one epoch, each apart: the draw and its order come first, and
#: alone, so that what else is switched on does not change them.
ORDER_STREAM, PREVIOUS_STREAM = 1, 2

#: Windows' lengths that a sequence of random runs has at most.
LONGEST_RUN = 3

#: Epochs whose cuts are looked at to tell what an epoch of random runs holds on average.
LOOKED_AT = 8


class Part(NamedTuple):
    """One batch: which maps stand where, and how much each counts.

    `rows` (batch, length) indices into time; `shown` (batch, length) float32, multiplied into the
    weights: 0 for what only fills up the end of a short sequence.
    """

    rows: Indices
    shown: NDArray[np.float32]


@dataclass(frozen=True)
class Series:
    """What a plan knows of the maps: (time) each.

    `positive` whether it is a medicane, `weights` float32 (0: unknown), `hard` whether it has a
    deep low at sea.
    """

    positive: NDArray[np.bool_]
    weights: NDArray[np.float32]
    hard: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Sampling:
    """How the sequences of an epoch are drawn and ordered; see `SequenceBatches`."""

    batch_size: int
    seed: int
    shuffle: bool = True
    negatives_per_positive: float | None = None
    hard_share: float | None = None
    shuffled_order: bool = False


@dataclass(frozen=True)
class RandomRuns:
    """Gap-free runs of maps, to be cut anew for each epoch into sequences of many lengths.

    Parameters
    ----------
    runs
        Indices into time, ascending by one in each run; those shorter than `shortest` are not used.
    length
        Maps in a window of the usual kind. A batch holds about ``batch_size`` times as many maps,
        and no sequence more than `LONGEST_RUN` times as many.
    maps_per_epoch
        Maps shown in an epoch after sampling, about, reached by cutting all runs several times
        over; by default they are cut once. Windows of stride 1 show each map `length` times: this
        makes epochs equal.
    shortest
        Least number of maps of a sequence.

    Raises
    ------
    InputError
        If no run is long enough, or `shortest` is more than `length`.
    """

    runs: tuple[Indices, ...]
    length: int
    maps_per_epoch: int | None = None
    shortest: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.length:
            raise InputError(
                "shortest", f"must be 1 to length ({self.length})", found=self.shortest
            )
        longest = max((len(run) for run in self.runs), default=0)
        if longest < self.shortest:
            raise InputError(
                "runs", f"at least one must hold {self.shortest} maps", found=f"at most {longest}"
            )

    @property
    def longest(self) -> int:
        """Most maps of a sequence."""
        return LONGEST_RUN * self.length

    def cut(self, rng: np.random.Generator, *, passes: int = 1) -> list[Indices]:
        """All runs, so many times over, cut at random."""
        usable = [run for run in self.runs if len(run) >= self.shortest]
        return [
            piece
            for _ in range(passes)
            for run in usable
            for piece in np.split(run, np.cumsum(self._lengths(len(run), rng))[:-1])
        ]

    def _lengths(self, n: int, rng: np.random.Generator) -> Indices:
        """Lengths of the pieces of a run of `n` maps: `shortest` to `longest`, sum `n`."""
        drawn = rng.integers(self.shortest, self.longest + 1, n // self.shortest + 1)
        ends = np.cumsum(drawn)
        last = int(np.searchsorted(ends, n))
        lengths = drawn[: last + 1].copy()
        lengths[last] -= ends[last] - n
        if lengths[last] < self.shortest:
            # The rest is too short: it joins its neighbour, and they part evenly if that is too
            # long; half of more than 3 `length` is always enough.
            both = int(lengths[last - 1] + lengths[last])
            halves = [both] if both <= self.longest else [both // 2, both - both // 2]
            lengths = np.array([*lengths[: last - 1], *halves])
        return rng.permutation(lengths)


class WindowPlan:
    """Windows of one length, drawn and shuffled."""

    def __init__(self, windows: ArrayLike, series: Series, sampling: Sampling) -> None:
        self.windows = _checked_windows(windows, series.positive.size)
        self._sampling = sampling
        self.strata = stratify(
            _holds(series.positive, self.windows),
            None if series.hard is None else _holds(series.hard, self.windows),
            negatives_per_positive=sampling.negatives_per_positive,
            hard_share=sampling.hard_share,
        )
        self._importance = self.strata.importance()
        weight = series.weights[self.windows]
        positive = (weight * series.positive[self.windows]).sum(axis=1, dtype=np.float64)
        self.prior_offset = self.strata.prior_offset(
            positive, weight.sum(axis=1, dtype=np.float64) - positive
        )
        self.n_sequences = self.strata.n_shown
        self.num_batches = -(-self.n_sequences // sampling.batch_size)

    @property
    def used(self) -> Indices:
        """Maps that can be asked for, ascending."""
        return np.unique(self.windows)

    def order(self, epoch: int) -> Indices:
        """Windows of an epoch in their order: (sequence) indices into the windows."""
        rng = np.random.default_rng([self._sampling.seed, epoch])
        chosen = self.strata.draw(rng)
        if self._sampling.shuffle:
            rng.shuffle(chosen)
        return chosen

    def parts(self, epoch: int) -> list[Part]:
        """The batches of an epoch; the last may be smaller."""
        order = self.order(epoch)
        rows = self.windows[order]
        if self._sampling.shuffled_order:
            rng = np.random.default_rng([self._sampling.seed, epoch, ORDER_STREAM])
            rows = rng.permuted(rows, axis=1)
        shown = np.repeat(self._importance[order][:, None], rows.shape[1], axis=1)
        edges = np.arange(1, self.num_batches) * self._sampling.batch_size
        return [
            Part(*part) for part in zip(np.split(rows, edges), np.split(shown, edges), strict=True)
        ]


class RunPlan:
    """Runs cut anew for each epoch; short sequences are filled up at the end with their last map.

    The network is causal in time and reads the filling last, and it has no weight. The last map
    repeated, rather than zeros, because batch normalisation sees it.
    """

    def __init__(self, runs: RandomRuns, series: Series, sampling: Sampling) -> None:
        self._runs, self._series, self._sampling = runs, series, sampling
        self._passes = 1
        maps = self._look()
        if runs.maps_per_epoch is not None:
            self._passes = max(1, round(runs.maps_per_epoch / maps))
            maps = self._look()
        # With a batch no smaller than the longest sequence, none of them is ever empty.
        self._room = max(sampling.batch_size * runs.length, runs.longest)
        self.num_batches = max(1, int(maps // self._room))

    def _look(self) -> float:
        """Maps in an epoch, on average of some; notes its sequences and the prior offset too."""
        looked_at = [self._drawn(epoch) for epoch in range(LOOKED_AT)]
        self.prior_offset = float(np.mean([offset for _, _, offset in looked_at]))
        self.n_sequences = round(float(np.mean([len(pieces) for pieces, _, _ in looked_at])))
        return float(np.mean([sum(map(len, pieces)) for pieces, _, _ in looked_at]))

    @property
    def used(self) -> Indices:
        """Maps that can be asked for, ascending."""
        long_enough = [run for run in self._runs.runs if len(run) >= self._runs.shortest]
        return np.unique(np.concatenate(long_enough))

    def _drawn(self, epoch: int) -> tuple[list[Indices], NDArray[np.float32], float]:
        """Sequences of an epoch in their order, the importance of each, and the prior offset."""
        rng = np.random.default_rng([self._sampling.seed, epoch])
        pieces = self._runs.cut(rng, passes=self._passes)
        series = self._series
        rows = np.concatenate(pieces)
        starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
        weight = np.add.reduceat(series.weights[rows].astype(np.float64), starts)
        positive = np.add.reduceat(
            series.weights[rows] * series.positive[rows].astype(float), starts
        )
        strata = stratify(
            np.logical_or.reduceat(series.positive[rows], starts),
            None if series.hard is None else np.logical_or.reduceat(series.hard[rows], starts),
            negatives_per_positive=self._sampling.negatives_per_positive,
            hard_share=self._sampling.hard_share,
        )
        chosen = strata.draw(rng)
        if self._sampling.shuffle:
            rng.shuffle(chosen)
        offset = strata.prior_offset(positive, weight - positive)
        return [pieces[i] for i in chosen], strata.importance()[chosen], offset

    def parts(self, epoch: int) -> list[Part]:
        """The batches of an epoch, of about equally many maps each."""
        pieces, importance, _ = self._drawn(epoch)
        rng = np.random.default_rng([self._sampling.seed, epoch, ORDER_STREAM])
        if self._sampling.shuffled_order:
            pieces = [rng.permutation(piece) for piece in pieces]
        groups = self._groups(np.array([len(piece) for piece in pieces]))
        if self._sampling.shuffle:
            groups = [groups[i] for i in rng.permutation(len(groups))]
        widths = [max(len(pieces[i]) for i in group) for group in groups]
        # Keras takes the shape of all batches from the first two: a length in which they differ
        # is free. A lone batch is made as long as any can be.
        if len(groups) == 1:
            widths[0] = max(widths[0], self._runs.longest)
        elif widths[0] == widths[1]:
            widths[0] += 1
        return [
            Part(
                np.stack([np.pad(pieces[i], (0, width - len(pieces[i])), "edge") for i in group]),
                np.stack([_shown(len(pieces[i]), width, importance[i]) for i in group]),
            )
            for group, width in zip(groups, widths, strict=True)
        ]

    def _groups(self, lengths: Indices) -> list[Indices]:
        """Sequences that share a batch: neighbours in length, so that little is filled up."""
        order = np.arange(lengths.size)
        if lengths.size < self.num_batches:  # a far smaller epoch than those looked at
            order = np.resize(order, self.num_batches)
        block = max(1, 8 * self._room // self._runs.length)
        chunks = [order[i : i + block] for i in range(0, order.size, block)]
        order = np.concatenate(
            [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]
        )
        before = np.cumsum(lengths[order]) - lengths[order]
        group = before * self.num_batches // lengths[order].sum()
        parts = np.split(order, np.searchsorted(group, np.arange(1, self.num_batches)))
        if all(part.size for part in parts):
            return parts
        return np.array_split(order, self.num_batches)


def _shown(count: int, width: int, weight: float) -> NDArray[np.float32]:
    return np.where(np.arange(width) < count, weight, 0).astype(np.float32)


def pieces_of(part: Part, length: int) -> Part:
    """A batch of windows as a batch of more and shorter ones: the same maps, cut in time.

    Where the window is no multiple of `length`, neighbouring pieces overlap; a map that an earlier
    piece has shown is history only, without weight, so that every map counts once.

    Parameters
    ----------
    part
        (batch, T).
    length
        Maps of a piece, at most T: (batch · ceil(T / length), length).
    """
    whole = part.rows.shape[1]
    count = -(-whole // length)
    starts = np.round(np.linspace(0, whole - length, count)).astype(int)
    columns = starts[:, None] + np.arange(length)
    first = np.ones(columns.shape, np.float32)
    first[1:] = columns[1:] > columns[:-1, -1:]
    rows = part.rows[:, columns].reshape(-1, length)
    shown = (part.shown[:, columns] * first).reshape(-1, length)
    return Part(rows, shown.astype(np.float32))


def previous_labels(
    positive: NDArray[np.bool_],
    known: NDArray[np.bool_],
    rows: Indices,
    *,
    share: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The label of the map before, where it is told: (batch, length, 1) float32.

    0 at the first map of a sequence, which has none before. Elsewhere the true label in a `share`
    of the maps, drawn at random; NaN where it is not told or unknown: the network's own answer
    stands in for it.

    Parameters
    ----------
    positive, known
        (time).
    rows
        (batch, length) indices into time.
    share
        0 to 1.
    """
    before = np.where(known, positive, np.nan).astype(np.float32)[rows[:, :-1]]
    told = rng.random(before.shape) < share
    start = np.zeros((rows.shape[0], 1), np.float32)
    return np.concatenate([start, np.where(told, before, np.nan)], axis=1)[..., None].astype(
        np.float32
    )


def _holds(mask: NDArray[np.bool_], windows: Indices) -> NDArray[np.bool_]:
    return np.asarray(mask[windows].any(axis=1), bool)


def _checked_windows(windows: ArrayLike, n: int) -> Indices:
    rows = np.asarray(windows, np.int64)
    if rows.ndim != 2 or rows.size == 0:
        raise InputError("windows", "must be at least one row of indices", found=rows.shape)
    if rows.min() < 0 or rows.max() >= n:
        raise InputError(
            "windows", f"must index the {n} maps", found=f"{rows.min()} to {rows.max()}"
        )
    return rows
