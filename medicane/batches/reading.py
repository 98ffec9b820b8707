"""Read once: which maps are read at a time, and how long they stay in memory.

An epoch that is shuffled through and through asks for maps from everywhere at any time. A record
larger than memory is read in *spans* instead, a few chunks of the store each, in random order; the
sequences that begin in a span are scattered over the time that it is in memory, among those of the
other spans that are in memory with it. Each span is read once an epoch.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from medicane.batches.sampling import Indices
from medicane.packing import Reused, read_block

#: Maps between the begins of two spans: four chunks of the store. The sequences that begin in a
#: span reach beyond it, by less than their length: so much is read twice.
SPAN = 96
#: Batches that may be asked for again, or out of turn, without reading anything again.
SLACK = 1
#: Spans that are read at a time.
READERS = 2


class Spans:
    """The stretches of a record that its sequences begin in.

    Parameters
    ----------
    first, stop
        (sequence) first map, and one past the last map, of all sequences that may be asked for.
    most
        Maps that may be in memory; none: any number.

    Attributes
    ----------
    start, stop
        (span) first map, and one past the last, of what is read for the sequences that begin there.
    """

    def __init__(self, first: Indices, stop: Indices, *, most: int | None = None) -> None:
        self._numbers, of = np.unique(first // SPAN, return_inverse=True)
        self.start = np.full(self._numbers.size, np.iinfo(np.int64).max)
        self.stop = np.zeros(self._numbers.size, np.int64)
        np.minimum.at(self.start, of, first)
        np.maximum.at(self.stop, of, stop)
        self._size = self.stop - self.start
        self._most = most

    @property
    def all_fit(self) -> bool:
        """Whether all of them may be in memory at once."""
        return self._most is None or int(self._size.sum()) <= self._most

    def of(self, first: Indices) -> Indices:
        """The span of each sequence, told by its first map: (sequence)."""
        return np.searchsorted(self._numbers, first // SPAN).astype(np.int64)

    def mixed(self, first: Indices, *, batches: int, rng: np.random.Generator) -> Indices:
        """Shuffled sequences in an order in which each span is needed for a short while.

        Take the maps of all spans as a line, span after span in random order. A sequence is shown
        at a random place of the stretch of line, as long as memory, that begins with its span. So
        at any place only the spans of one such stretch are needed. The first of them are all there
        from the start, and the last ones until the end. Where all fit, nothing is reordered.

        Parameters
        ----------
        first
            (sequence) first map of the sequences of an epoch, shuffled.
        batches
            Batches of the epoch.

        Returns
        -------
        (sequence) int64
            Indices into `first`.
        """
        if self.all_fit or self._most is None:
            return np.arange(first.size)
        of = self.of(first)
        needed = np.where(np.bincount(of, minlength=self._size.size) > 0, self._size, 0)
        total = int(needed.sum())
        turn = rng.permutation(self._size.size)
        before = np.empty_like(needed)
        before[turn] = np.cumsum(needed[turn]) - needed[turn]
        # Besides those mixed, there are the maps of the last batches, and one span is in part.
        apart = (SLACK + 1) * -(-total // batches) + int(self._size.max())
        mixed = max(self._most - apart, 1)
        low = np.where(before < mixed, 0, before)
        high = np.minimum(before + mixed, total)
        place = (np.arange(first.size) + 0.5) / first.size  # random, as the sequences are shuffled
        return np.argsort(low[of] + (high - low)[of] * place, kind="stable")


class HeldMaps:
    """Maps in memory, span by span; for several threads.

    Those of the next batch are read in the background, while this one is put together and used.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), lazy.
    dtype
        What they are held and handed out as.
    """

    def __init__(self, maps: xr.DataArray, spans: Spans, *, dtype: DTypeLike) -> None:
        self._maps, self._spans, self._dtype = maps, spans, dtype
        self._held: dict[int, Future[NDArray[Any]]] = {}
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="maps")
        self._memory = Reused()

    def gather(
        self, rows: Indices, span: Indices, *, kept: NDArray[np.bool_], ahead: Indices
    ) -> NDArray[Any]:
        """The maps of a batch: (batch, length, latitude, longitude, channel).

        Parameters
        ----------
        rows
            (batch, length) indices into time.
        span
            (batch) the span that each sequence begins in.
        kept
            (span) which of them stay in memory; others are let go.
        ahead
            Spans that are read for later, among those that are kept; any may stand there twice.
        """
        with self._lock:  # who comes second finds what both need on its way
            self._held = {
                i: maps
                for i, maps in self._held.items()
                if (self._spans.all_fit or kept[i]) and not _failed(maps)
            }
            for i in (*np.unique(span).tolist(), *np.unique(ahead).tolist()):
                if i not in self._held:
                    self._held[i] = self._readers.submit(self._read, i)
            held = [self._held[i] for i in span.tolist()]
        starts = self._spans.start[span]
        out = self._memory.empty((*rows.shape, *held[0].result().shape[1:]), self._dtype)
        for sequence, maps, at, start in zip(out, held, rows, starts, strict=True):
            np.take(maps.result(), at - start, axis=0, out=sequence, mode="clip")
        return out

    def _read(self, i: int) -> NDArray[Any]:
        start, stop = int(self._spans.start[i]), int(self._spans.stop[i])
        return read_block(self._maps, start, stop, dtype=self._dtype)


def _failed(reading: Future[NDArray[Any]]) -> bool:
    """Whether it has ended in an error: it is then tried again."""
    return reading.done() and reading.exception() is not None
