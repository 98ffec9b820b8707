"""What a batch holds: which maps stand where, how much each counts, what is told of the one before.

All in indices into time; the maps themselves are read when a batch is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medicane.batches.reading import SLACK
from medicane.batches.sampling import Indices


class Part(NamedTuple):
    """One batch: which maps stand where, and how much each counts.

    `rows` (batch, length) indices into time. `shown` float32, multiplied into the weights:
    (batch, length), 0 for what only fills up the end of a short sequence; of blocks (batch,
    window, 1), 0 for a window that a short block does not hold. `span` (batch), see
    `reading.Spans`.
    """

    rows: Indices
    shown: NDArray[np.float32]
    span: Indices


@dataclass(frozen=True)
class Epoch:
    """An epoch laid out: its batches, each made when it is asked for.

    Attributes
    ----------
    first, count, importance, span
        (sequence) first map, number of maps, weight of the maps, and the span it begins in.
    batches
        Which sequences each batch holds: at least one.
    widths
        Maps in the sequences of each batch; shorter ones are filled up with their last map.
    ends
        Of blocks, the place one past the last map of each window, (window); else none.
    n_spans
        Spans that there are.
    shuffled
        Seed of the order of the maps in each sequence; none: in order of time.
    """

    first: Indices
    count: Indices
    importance: NDArray[np.float32]
    span: Indices
    batches: list[Indices]
    widths: list[int]
    ends: Indices | None
    n_spans: int
    shuffled: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Part]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Part:
        chosen, width = self.batches[index], self.widths[index]
        first, count = self.first[chosen, None], self.count[chosen, None]
        column = np.arange(width)
        place = np.minimum(column, count - 1)
        if self.shuffled is not None:
            rng = np.random.default_rng([*self.shuffled, index])
            key = np.where(column < count, rng.random(place.shape), 1 + column)
            place = np.take_along_axis(np.argsort(key, axis=1), place, axis=1)
        ends = column + 1 if self.ends is None else self.ends
        shown = np.where(ends <= count, self.importance[chosen, None], 0).astype(np.float32)
        return Part(
            first + place, shown if self.ends is None else shown[..., None], self.span[chosen]
        )

    def by_window(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of the maps of blocks (batch, map) as views, (batch, window, map); else as is."""
        if self.ends is None:
            return values
        views = np.lib.stride_tricks.sliding_window_view(values, self.ends[0], axis=1)
        return views[:, :: self.ends[1] - self.ends[0]]

    def needed(self, index: int) -> NDArray[np.bool_]:
        """Which spans are in use around a batch: (span)."""
        begin, end = self._in_use
        kept: NDArray[np.bool_] = (begin <= index + SLACK) & (end >= index - SLACK)
        return kept

    def ahead(self, index: int) -> Indices:
        """The span of each sequence of the batch after this one; none after the last."""
        if index + 1 == len(self):
            return np.empty(0, np.int64)
        return self.span[self.batches[index + 1]]

    @cached_property
    def _in_use(self) -> tuple[Indices, Indices]:
        """First and last batch that each span is needed for."""
        number = np.repeat(np.arange(len(self)), [chosen.size for chosen in self.batches])
        span = self.span[np.concatenate(self.batches)]
        begin, end = np.full(self.n_spans, len(self)), np.full(self.n_spans, -1)
        np.minimum.at(begin, span, number)
        np.maximum.at(end, span, number)
        return begin, end


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
    return Part(rows, shown.astype(np.float32), np.repeat(part.span, count))


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
