"""Sequences → ``(maps, labels, weights)`` for Keras: shuffled and sampled, in order inside."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError

Batch = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


class SequenceBatches(keras.utils.PyDataset):
    """Windows of maps, a batch at a time.

    The maps inside a window keep their order; the windows are shuffled anew for each epoch. What an
    epoch holds follows from the seed and the number of the epoch alone, whatever the number of
    workers and wherever training was taken up again.

    Item ``i`` is

    * maps (batch, length, latitude, longitude, channel) float32,
    * labels (batch, length, 1) float32: 1, or 0; unknown maps have 0 and no weight,
    * weights (batch, length) float32: 0 for unknown maps, else 1 or as given.

    The last batch of an epoch may be smaller. Pass ``shuffle=False`` to `keras.Model.fit`: the
    shuffling is done here.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), lazy, or the path of a map store.
    windows
        (window, length) indices into time, from `medicane.sequences`.
    labels
        (time) 1, 0 or −1 (unknown).
    weights
        (time) ≥ 0, multiplied into the weights of the known maps; 1 by default.
    batch_size
        Windows in a batch.
    seed, shuffle
        Of the order of windows and of the sampling.
    negatives_per_positive
        Windows without a medicane drawn for each window with one, anew each epoch and without
        replacement; none: all of them. `prior_offset` tells what to take off the logits.
    cache
        Hold the maps of these windows in memory (4 bytes a value), read once at the first batch.
    workers, max_queue_size
        As in `keras.utils.PyDataset`; threads, never processes.

    Attributes
    ----------
    epoch
        Number of the current epoch, from 0; Keras advances it, and it can be set to resume.

    Raises
    ------
    InputError
        If there are no windows, they reach outside the maps, the labels have another length or
        other values, or sampling is asked for and no window holds a medicane.

    Examples
    --------
    >>> batches = SequenceBatches(store["maps"], rows, labels=store["medicane"])  # doctest: +SKIP
    >>> model.fit(batches, epochs=30, shuffle=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        maps: xr.DataArray | str | Path,
        windows: ArrayLike,
        *,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        batch_size: int = 16,
        seed: int = 0,
        shuffle: bool = True,
        negatives_per_positive: float | None = None,
        cache: bool = False,
        workers: int = 1,
        max_queue_size: int = 10,
    ) -> None:
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=max_queue_size)
        source = maps if isinstance(maps, xr.DataArray) else xr.open_zarr(maps, chunks=None)["maps"]
        self._maps = source.transpose(names.TIME, names.CHANNEL, names.LATITUDE, names.LONGITUDE)
        n = source.sizes[names.TIME]
        self._windows = _checked_windows(windows, n)
        known, self._positive = _checked_labels(labels, n)
        self._weights = known.astype(np.float32)
        if weights is not None:
            self._weights *= _checked_weights(weights, n)
        if batch_size < 1:
            raise InputError("train.batch_size", "must be at least 1", found=batch_size)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self._shuffle = shuffle
        has = self._positive[self._windows].any(axis=1)
        self._with, self._without = np.flatnonzero(has), np.flatnonzero(~has)
        self._drawn = self._without.size
        if negatives_per_positive is not None:
            if self._with.size == 0:
                raise InputError(
                    "train.negatives_per_positive",
                    "needs at least one sequence with a medicane",
                    found=f"none among {self._windows.shape[0]} sequences",
                )
            wanted = round(negatives_per_positive * self._with.size)
            self._drawn = min(self._drawn, wanted)
        self._cache = cache
        self._lock = threading.Lock()
        self._held: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._begun = False

    @property
    def n_windows(self) -> int:
        """Windows in one epoch."""
        return self._with.size + self._drawn

    @property
    def num_batches(self) -> int:
        """Batches in one epoch; the last may be smaller."""
        return -(-self.n_windows // self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    @property
    def prior_offset(self) -> float:
        """What sampling adds to the logit of a map: log(odds in an epoch / odds in all windows).

        Counted over the known maps of the windows with their weights, in expectation over the
        epochs; 0 without sampling. Taken off the logits, it gives back the true base rate.
        """
        if self._drawn == self._without.size:
            return 0.0
        weight = self._weights[self._windows]
        positive = (weight * self._positive[self._windows]).sum(axis=1, dtype=np.float64)
        negative = weight.sum(axis=1, dtype=np.float64) - positive
        share = self._drawn / self._without.size
        all_negative = negative.sum()
        kept_negative = negative[self._with].sum() + share * negative[self._without].sum()
        if positive.sum() == 0 or kept_negative == 0:
            return 0.0
        return float(np.log(all_negative / kept_negative))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Windows of an epoch, in their order: (window) indices into the windows given."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = self._without
        if self._drawn < drawn.size:
            drawn = rng.choice(drawn, self._drawn, replace=False)
        chosen = np.sort(np.concatenate([self._with, drawn]))
        if self._shuffle:
            rng.shuffle(chosen)
        return chosen.astype(np.int64)

    def on_epoch_begin(self) -> None:
        """Keras calls this before it draws from an epoch."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go on to the next epoch; Keras calls this."""
        # `fit` also calls it before its first epoch, which has not begun and must not be skipped.
        self.epoch += self._begun
        self._begun = False

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        chosen = self._current()[index * self.batch_size : (index + 1) * self.batch_size]
        rows = self._windows[chosen]
        labels = self._positive[rows].astype(np.float32)[..., None]
        return self._read(rows), labels, self._weights[rows]

    def _current(self) -> NDArray[np.int64]:
        epoch, kept = self.epoch, self._order
        if kept is None or kept[0] != epoch:
            kept = (epoch, self.order(epoch))
            self._order = kept
        return kept[1]

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._cache:
            with self._lock:  # the first batch of any worker fills it, the others wait
                if self._held is None:
                    used = np.unique(self._windows)
                    self._held = (self._load(used), used)
            held, used = self._held
            return held[np.searchsorted(used, rows)]
        used = np.unique(rows)
        return self._load(used)[np.searchsorted(used, rows)]

    def _load(self, used: NDArray[np.int64]) -> NDArray[np.float32]:
        """Maps of ascending indices, channels last; each run of maps is read once."""
        _, channels, n_lat, n_lon = self._maps.shape
        out = np.empty((used.size, n_lat, n_lon, channels), np.float32)
        start = 0
        for run in np.split(used, np.flatnonzero(np.diff(used) != 1) + 1):
            for first in range(int(run[0]), int(run[-1]) + 1, 256):
                stop = min(first + 256, int(run[-1]) + 1)
                block = np.asarray(self._maps[first:stop].values)
                out[start : start + stop - first] = block.transpose(0, 2, 3, 1)
                start += stop - first
        return out


def _checked_windows(windows: ArrayLike, n: int) -> NDArray[np.int64]:
    rows = np.asarray(windows, np.int64)
    if rows.ndim != 2 or rows.size == 0:
        raise InputError("windows", "must be at least one row of indices", found=rows.shape)
    if rows.min() < 0 or rows.max() >= n:
        raise InputError(
            "windows", f"must index the {n} maps", found=f"{rows.min()} to {rows.max()}"
        )
    return rows


def _checked_labels(labels: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    values = np.asarray(labels)
    if values.shape != (n,):
        raise InputError("labels", f"must have one value for each of {n} maps", found=values.shape)
    wrong = values[~np.isin(values, (names.MEDICANE, names.NOT_MEDICANE, names.UNKNOWN))]
    if wrong.size:
        raise InputError("labels", "must be 1, 0 or -1 (unknown)", found=wrong[0])
    return values != names.UNKNOWN, values == names.MEDICANE


def _checked_weights(weights: ArrayLike, n: int) -> NDArray[np.float32]:
    values = np.asarray(weights, np.float32)
    if values.shape != (n,) or not (np.isfinite(values) & (values >= 0)).all():
        raise InputError("weights", f"must be {n} finite values of at least 0", found=values.shape)
    return values
