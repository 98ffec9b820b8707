"""`SequenceBatches`: the maps, labels and weights of a batch, read once and handed to Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.batches.epochs import Epoch, pieces_of, previous_labels
from medicane.batches.plans import (
    PREVIOUS_STREAM,
    RandomRuns,
    RunPlan,
    Sampling,
    Series,
    WindowPlan,
)
from medicane.batches.reading import HeldMaps
from medicane.errors import InputError

#: Bytes of maps in memory at most, by default; with batches on their way to Keras about as much
#: again. Records up to this size are read once and kept.
MEMORY = 300_000_000
#: Bytes of the batches that wait for Keras, by default.
QUEUE = 60_000_000

#: ``(inputs, labels, weights)``; the inputs are the maps, or a mapping of maps and previous labels.
Batch = tuple[Any, NDArray[np.float32], NDArray[np.float32]]


class SequenceBatches(keras.utils.PyDataset):
    """Windows of maps, a batch at a time.

    The maps inside a window keep their order; the windows are shuffled anew for each epoch. What an
    epoch holds follows from the seed and the number of the epoch alone, whatever the number of
    workers and wherever training was taken up again.

    A record that fits in `memory` is read once and kept. Of a larger one, each stretch of
    neighbouring chunks is read once an epoch, and windows are shuffled among those that are in
    memory together (see `medicane.batches.reading`).

    Item ``i`` is

    * maps (batch, length, latitude, longitude, channel) float32, or int16 where they are packed;
      with `previous_label` a mapping of ``maps`` and ``previous`` (batch, length, 1) float32, NaN
      where it is not told,
    * labels (batch, length, 1) float32: 1, or 0; unknown maps have 0 and no weight,
    * weights (batch, length) float32: 0 for unknown maps and for what fills up the end of a short
      sequence, else 1 or as given, times the importance of the sequence (see `hard_share`).

    With a `block` of W windows, item ``i`` is maps (batch, length + (W - 1) · stride, latitude,
    longitude, channel), each once, labels (batch, W, length, 1) and weights (batch, W, length):
    what `medicane.model.sliding` is trained with. Labels are views of those of the maps.

    The last batch of an epoch may be smaller. Pass ``shuffle=False`` to `keras.Model.fit`: the
    shuffling is done here.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), lazy: those of a map store. Integers of 16 bits are
        handed out as they are, to a network that unpacks them (`medicane.model.reading_packed`);
        all else as float32.
    windows
        (window, length) indices into time, in its order, from `medicane.sequences`; or
        `RandomRuns`, which are cut into sequences of many lengths, anew for each epoch.
    labels
        (time) 1, 0 or −1 (unknown).
    weights
        (time) ≥ 0, multiplied into the weights of the known maps; 1 by default.
    batch_size
        Windows in a batch; of blocks and of random runs, about as many maps as that.
    block
        Neighbouring windows that are handed out together, so that each map is encoded once for all
        of them. They are sampled together: a block with a medicane is always shown.
    seed, shuffle
        Of the order of windows and of the sampling.
    negatives_per_positive
        Windows without a medicane drawn for each window with one, anew each epoch and without
        replacement; none: all of them. `prior_offset` tells what to take off the logits.
    hard
        (time) whether the map holds a deep low at sea.
    hard_share
        Share of the drawn windows that hold such a map; where there are too few of either kind, the
        other fills up. Drawn more often, their maps count less, so that one offset of the logit
        stays right (see `sampling.Strata.importance`).
    shuffled_order
        The maps of each sequence in random order, with their labels and weights: the control that
        shows what the order is worth.
    previous_label
        Epoch → share of the maps, 0 to 1, that are told the true label of the map before them.
    memory
        Bytes of maps held at most (4 a value, 2 a packed one). Room for a few hundred maps is
        needed at least; with less, windows are hardly shuffled and more is held than allowed.
    share
        (number, of how many): hand out this share of every batch, for a worker of several. Its
        weights make up for shares that are not of one size, so that the mean over the workers'
        losses is the loss of the batch. Where there are fewer windows than workers, each has all.
    workers, max_queue_size
        As in `keras.utils.PyDataset`; threads, never processes. Of large batches fewer wait.
    queue
        Bytes of the batches that wait for Keras, at most; two wait in any case.

    Attributes
    ----------
    epoch
        Number of the current epoch, from 0; Keras advances it. `take_up` sets it.
    piece_length
        Hand the windows of a batch over as shorter sequences of this many maps, the same maps in
        all; none (default): whole. Set it between two fits only. Not for blocks.

    Raises
    ------
    InputError
        If there are no windows, they reach outside the maps or are not in order, the labels have
        another length or other values, sampling is asked for and no window holds a medicane, hard
        ones are asked for and not told, or blocks are combined with `shuffled_order`,
        `previous_label` or random runs, which have no windows in common.

    Examples
    --------
    >>> batches = SequenceBatches(store["maps"], rows, labels=store["medicane"])  # doctest: +SKIP
    >>> model.fit(batches, epochs=30, shuffle=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        maps: xr.DataArray,
        windows: ArrayLike | RandomRuns,
        *,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        batch_size: int = 16,
        block: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        negatives_per_positive: float | None = None,
        hard: ArrayLike | None = None,
        hard_share: float | None = None,
        shuffled_order: bool = False,
        previous_label: Callable[[int], float] | None = None,
        memory: int = MEMORY,
        share: tuple[int, int] = (0, 1),
        workers: int = 1,
        max_queue_size: int = 10,
        queue: int = QUEUE,
    ) -> None:
        n = maps.sizes[names.TIME]
        dtype = np.dtype(np.int16 if maps.dtype == np.int16 else np.float32)
        map_bytes = dtype.itemsize * maps.size // n
        self._known, self._positive = _checked_labels(labels, n)
        self._weights = self._known.astype(np.float32)
        if weights is not None:
            self._weights *= _checked_weights(weights, n)
        for key, value in (("train.batch_size", batch_size), ("train.block", block)):
            if value < 1:
                raise InputError(key, "must be at least 1", found=value)
        if block > 1 and (shuffled_order or previous_label or isinstance(windows, RandomRuns)):
            raise InputError(
                "train.block",
                "must be 1 for random runs, maps in shuffled order and labels that are fed back",
                found=block,
            )
        if hard_share is not None and (hard is None or np.shape(hard) != (n,)):
            raise InputError(
                "train.hard_negative_share",
                f"needs to know for each of {n} maps whether it holds a deep low at sea",
                found=None if hard is None else np.shape(hard),
            )
        deep = None if hard_share is None else np.asarray(hard, bool)
        series = Series(self._positive, self._weights, deep)
        sampling = Sampling(
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            negatives_per_positive=negatives_per_positive,
            hard_share=hard_share,
            shuffled_order=shuffled_order,
            held=memory // map_bytes,
        )
        self._plan = (
            RunPlan(windows, series, sampling)
            if isinstance(windows, RandomRuns)
            else WindowPlan(windows, series, sampling, block=block)
        )
        waiting = queue // (map_bytes * self._plan.maps_per_batch)
        super().__init__(
            workers=workers,
            use_multiprocessing=False,
            max_queue_size=min(max_queue_size, max(2, waiting)),
        )
        self.batch_size, self.block, self.seed, self.epoch = batch_size, block, seed, 0
        self.piece_length: int | None = None
        self._previous_label, self._share = previous_label, share
        self._held = HeldMaps(maps, self._plan.spans, dtype=dtype)
        self._laid_out: tuple[int, Epoch] | None = None
        self._begun, self._skipped, self._rest_is_done = False, 0, False

    @property
    def n_windows(self) -> int:
        """Windows in one epoch; of blocks and random runs, on average."""
        return self._plan.n_sequences

    @property
    def num_batches(self) -> int:
        """Batches in one epoch, or in what is left of one that was taken up in its course."""
        return self._plan.num_batches - self._skipped

    def __len__(self) -> int:
        return self.num_batches

    @property
    def prior_offset(self) -> float:
        """What sampling adds to the logit of a map: log(odds in an epoch / odds in all windows).

        Counted over the known maps of the windows with their weights, in expectation over the
        epochs; 0 without sampling. Taken off the logits, it gives back the true base rate. Among
        the windows that are drawn it is exact for hard and easy ones alike; the maps without a
        medicane in a window with one are shown in each epoch, and only their number is corrected.
        """
        return self._plan.prior_offset

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Windows of an epoch, in their order: (window) indices into the windows given.

        Raises
        ------
        TypeError
            For random runs, which have no windows to index.
        """
        if isinstance(self._plan, RunPlan):
            raise TypeError(
                "random runs are cut anew for each epoch: there are no windows to index"
            )
        return self._plan.order(epoch)

    def take_up(self, epoch: int, batch: int = 0) -> None:
        """Make this the current epoch, and this its first batch; both from 0.

        Batches are counted from it on, until the epoch has ended. Keras counts them once a fit, so
        the rest of an epoch is a fit of its own: ``fit(…, initial_epoch=epoch, epochs=epoch + 1)``.

        Raises
        ------
        IndexError
            If the epoch has no such batch.
        """
        if not 0 <= batch < self._plan.num_batches:
            raise IndexError(f"batch {batch} of {self._plan.num_batches}")
        self.epoch, self._begun, self._skipped = epoch, False, batch
        self._rest_is_done = False

    def on_epoch_begin(self) -> None:
        """Keras calls this before it draws from an epoch."""
        if self._rest_is_done:  # Keras would draw as few batches again, and not tell
            raise RuntimeError("the rest of an epoch that was taken up must be a fit of its own")
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go on to the next epoch; Keras calls this."""
        # `fit` also calls it before its first epoch, which has not begun and must not be skipped.
        rest = self._begun and self._skipped > 0
        if self._begun:
            self.take_up(self.epoch + 1)
        self._rest_is_done = rest

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        epoch, index = self.epoch, index + self._skipped
        laid_out = self._current(epoch)
        part = laid_out[index]
        if self.piece_length is not None:
            part = pieces_of(part, self.piece_length)
        rows = part.rows
        labels = laid_out.by_window(self._positive[rows].astype(np.float32))[..., None]
        weights = laid_out.by_window(self._weights[rows]) * part.shown
        mine, factor = share_of(len(rows), *self._share)
        ahead = laid_out.ahead(index)
        maps = self._held.gather(
            rows[mine],
            part.span[mine],
            kept=laid_out.needed(index),
            ahead=ahead[share_of(len(ahead), *self._share)[0]],
        )
        labels, weights = labels[mine], weights[mine] * factor
        if self._previous_label is None:
            return maps, labels, weights
        previous = previous_labels(
            self._positive,
            self._known,
            rows,
            share=self._previous_label(epoch),
            rng=np.random.default_rng([self.seed, epoch, PREVIOUS_STREAM, index]),
        )
        return {"maps": maps, "previous": previous[mine]}, labels, weights

    def _current(self, epoch: int) -> Epoch:
        kept = self._laid_out
        if kept is None or kept[0] != epoch:
            kept = (epoch, self._plan.parts(epoch))
            self._laid_out = kept
        return kept[1]


def share_of(n: int, number: int, workers: int) -> tuple[slice, np.float32]:
    """Which of the `n` rows of a batch a worker takes, and what its weights are multiplied by."""
    if n < workers:
        return slice(0, n), np.float32(1)
    first, stop = n * number // workers, n * (number + 1) // workers
    return slice(first, stop), np.float32(workers * (stop - first) / n)


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
