"""Which sequences an epoch shows: windows of one length, blocks of windows, or random runs.

A plan knows nothing of maps: it deals in indices into time. What an epoch holds follows from the
seed and the number of the epoch alone; its order follows from how many maps fit in memory, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane.batches.epochs import Epoch
from medicane.batches.reading import Spans
from medicane.batches.sampling import Indices, stratify
from medicane.errors import InputError

#: Streams of random numbers of one epoch, each apart: the draw and its order come first, and
#: alone, so that what else is switched on does not change them.
ORDER_STREAM, PREVIOUS_STREAM, SPAN_STREAM = 1, 2, 3

#: Windows' lengths that a sequence of random runs has at most.
LONGEST_RUN = 3

#: Batches of random runs whose sequences are sorted by length together.
SORTED = 8

#: Epochs whose cuts are looked at to tell what an epoch of random runs holds on average.
LOOKED_AT = 8


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
    #: Maps that may be in memory at once; none: any number.
    held: int | None = None


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
    """Windows of one length, drawn and shuffled, alone or in blocks of neighbours.

    A block of W windows that begin `stride` maps apart is one sequence of ``length + (W - 1) *
    stride`` maps: each is read, and encoded, once for all windows that it stands in. What a period
    has left over is a shorter block, filled up at its end with its last map; the windows that reach
    into the filling do not count. Blocks are sampled as windows are: those with a medicane are
    always shown, and of the others so many for each one with.
    """

    def __init__(
        self, windows: ArrayLike, series: Series, sampling: Sampling, *, block: int = 1
    ) -> None:
        self._sampling = sampling
        self._windows, self._length = _checked_windows(windows, series.positive.size)
        self._stride, begins = _blocks(self._windows, block, length=self._length)
        self._of_block = np.split(np.arange(self._windows.size), begins[1:])
        self._first = self._windows[begins]
        last = self._windows[np.append(begins[1:], self._windows.size) - 1]
        self._count = last + self._length - self._first
        self.strata = stratify(
            _any_between(series.positive, self._first, self._count),
            None if series.hard is None else _any_between(series.hard, self._first, self._count),
            negatives_per_positive=sampling.negatives_per_positive,
            hard_share=sampling.hard_share,
        )
        self._importance = self.strata.importance()
        # A map counts once for each window that it stands in.
        weight = _sums_between(series.weights, self._windows, self._length)
        positive = _sums_between(series.weights * series.positive, self._windows, self._length)
        positive, weight = (np.add.reduceat(sums, begins) for sums in (positive, weight))
        self.prior_offset = self.strata.prior_offset(positive, weight - positive)
        self.n_sequences = round(self.strata.shown(np.diff(begins, append=self._windows.size)))
        # A batch of blocks has about as many maps as one of so many windows.
        self._width = self._length + (block - 1) * self._stride
        self._ends = self._length + np.arange(block) * self._stride if block > 1 else None
        self._blocks = max(1, round(sampling.batch_size * self._length / self._width))
        self.num_batches = -(-self.strata.n_shown // self._blocks)
        self.maps_per_batch = self._blocks * self._width
        self.spans = Spans(self._first, self._first + self._count, most=sampling.held)

    def order(self, epoch: int) -> Indices:
        """Windows of an epoch in their order: (window) indices into the windows."""
        return np.concatenate([self._of_block[i] for i in self._order(epoch)])

    def _order(self, epoch: int) -> Indices:
        rng = np.random.default_rng([self._sampling.seed, epoch])
        chosen = self.strata.draw(rng)
        if not self._sampling.shuffle:
            return chosen
        rng.shuffle(chosen)
        rng = np.random.default_rng([self._sampling.seed, epoch, SPAN_STREAM])
        mixed = self.spans.mixed(self._first[chosen], batches=self.num_batches, rng=rng)
        return chosen[mixed]

    def parts(self, epoch: int) -> Epoch:
        """The batches of an epoch; the last may be smaller."""
        order, sampling = self._order(epoch), self._sampling
        edges = np.arange(1, self.num_batches) * self._blocks
        return Epoch(
            first=self._first[order],
            count=self._count[order],
            importance=self._importance[order],
            span=self.spans.of(self._first[order]),
            batches=np.split(np.arange(order.size), edges),
            widths=[self._width] * self.num_batches,
            ends=self._ends,
            n_spans=self.spans.start.size,
            shuffled=(sampling.seed, epoch, ORDER_STREAM) if sampling.shuffled_order else None,
        )


class RunPlan:
    """Runs cut anew for each epoch; short sequences are filled up at the end with their last map.

    The network is causal in time and reads the filling last, and it has no weight. The last map
    repeated, rather than zeros, because batch normalisation sees it.
    """

    def __init__(self, runs: RandomRuns, series: Series, sampling: Sampling) -> None:
        self._runs, self._series, self._sampling = runs, series, sampling
        usable = [run for run in runs.runs if len(run) >= runs.shortest]
        self.spans = Spans(
            np.concatenate(usable),
            np.concatenate([np.minimum(run + runs.longest, run[-1] + 1) for run in usable]),
            most=sampling.held,
        )
        self._passes = 1
        maps = self._look()
        if runs.maps_per_epoch is not None:
            self._passes = max(1, round(runs.maps_per_epoch / maps))
            maps = self._look()
        # With a batch no smaller than the longest sequence, none of them is ever empty.
        self._room = max(sampling.batch_size * runs.length, runs.longest)
        self.num_batches = max(1, int(maps // self._room))
        self.maps_per_batch = self._room

    def _look(self) -> float:
        """Maps in an epoch, on average of some; notes its sequences and the prior offset too."""
        looked_at = [self._drawn(epoch) for epoch in range(LOOKED_AT)]
        self.prior_offset = float(np.mean([offset for *_, offset in looked_at]))
        self.n_sequences = round(float(np.mean([first.size for first, *_ in looked_at])))
        return float(np.mean([count.sum() for _, count, *_ in looked_at]))

    def _drawn(self, epoch: int) -> tuple[Indices, Indices, NDArray[np.float32], float]:
        """First map, length and importance of the sequences of an epoch, and the prior offset."""
        rng = np.random.default_rng([self._sampling.seed, epoch])
        pieces = self._runs.cut(rng, passes=self._passes)
        series = self._series
        first = np.array([piece[0] for piece in pieces])
        count = np.array([len(piece) for piece in pieces])
        weight = _sums_between(series.weights, first, count)
        positive = _sums_between(series.weights * series.positive, first, count)
        strata = stratify(
            _any_between(series.positive, first, count),
            None if series.hard is None else _any_between(series.hard, first, count),
            negatives_per_positive=self._sampling.negatives_per_positive,
            hard_share=self._sampling.hard_share,
        )
        chosen = strata.draw(rng)
        if self._sampling.shuffle:
            rng.shuffle(chosen)
        offset = strata.prior_offset(positive, weight - positive)
        return first[chosen], count[chosen], strata.importance()[chosen], offset

    def parts(self, epoch: int) -> Epoch:
        """The batches of an epoch, of about equally many maps each."""
        first, count, importance, _ = self._drawn(epoch)
        seed, shuffle = self._sampling.seed, self._sampling.shuffle
        rng = np.random.default_rng([seed, epoch, SPAN_STREAM])
        if shuffle:
            order = self.spans.mixed(first, batches=self.num_batches, rng=rng)
            first, count, importance = first[order], count[order], importance[order]
        groups = self._groups(count)
        if shuffle:  # among those that were sorted together
            near = [groups[i : i + SORTED] for i in range(0, len(groups), SORTED)]
            groups = [some[i] for some in near for i in rng.permutation(len(some))]
        widths = [int(count[group].max()) for group in groups]
        # Keras takes the shape of all batches from the first two: a length in which they differ
        # is free. A lone batch is made as long as any can be.
        if len(groups) == 1:
            widths[0] = max(widths[0], self._runs.longest)
        elif widths[0] == widths[1]:
            widths[0] += 1
        return Epoch(
            first=first,
            count=count,
            importance=importance,
            span=self.spans.of(first),
            batches=groups,
            widths=widths,
            ends=None,
            n_spans=self.spans.start.size,
            shuffled=(seed, epoch, ORDER_STREAM) if self._sampling.shuffled_order else None,
        )

    def _groups(self, lengths: Indices) -> list[Indices]:
        """Sequences that share a batch: neighbours in length, so that little is filled up."""
        order = np.arange(lengths.size)
        if lengths.size < self.num_batches:  # a far smaller epoch than those looked at
            order = np.resize(order, self.num_batches)
        block = max(1, SORTED * self._room // self._runs.length)
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


def _blocks(first: Indices, most: int, *, length: int) -> tuple[int, Indices]:
    """The stride of windows, and which of them begin a block: at most so many follow at it."""
    apart = np.diff(first)
    stride = int(apart.min(initial=length))
    begins_run = np.append(True, apart != stride)
    place = np.arange(first.size)
    in_run = place - np.maximum.accumulate(np.where(begins_run, place, 0))
    return stride, np.flatnonzero(in_run % most == 0)


def _sums_between(values: NDArray[Any], first: Indices, count: Any) -> NDArray[np.float64]:
    """Sum of the values of each sequence: (sequence)."""
    before = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(before[first + count] - before[first])


def _any_between(mask: NDArray[np.bool_], first: Indices, count: Any) -> NDArray[np.bool_]:
    return np.asarray(_sums_between(mask, first, count) > 0)


def _checked_windows(windows: ArrayLike, n: int) -> tuple[Indices, int]:
    """First maps of windows, and their length."""
    rows = np.asarray(windows, np.int64)
    if rows.ndim != 2 or rows.size == 0:
        raise InputError("windows", "must be at least one row of indices", found=rows.shape)
    if rows.min() < 0 or rows.max() >= n:
        raise InputError(
            "windows", f"must index the {n} maps", found=f"{rows.min()} to {rows.max()}"
        )
    wrong = np.flatnonzero((np.diff(rows, axis=1) != 1).any(axis=1))
    if wrong.size:
        raise InputError(
            "windows", "must be rows of maps that follow one another", found=rows[wrong[0]]
        )
    first = rows[:, 0].copy()
    if (np.diff(first) <= 0).any():
        raise InputError("windows", "must be in order of time, none twice", found="another order")
    return first, rows.shape[1]
