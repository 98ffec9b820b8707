"""Maps → probability of a medicane at each time: causal or fused, each map encoded once.

The naive form encodes every map once for each window it stands in (12 times at stride 1). Here the
encoder sees each map once and the head runs over windows of its features: the same numbers, since
nothing in the encoder depends on a map's neighbours at inference. (Encoders over time do depend on
the maps before: see `Network`; the numbers are those of the naive form there too.)

* **causal**: the label of map *t* uses maps up to *t* only: the last output of the window that ends
  at *t*. The first maps of a period have a shorter history, as they would in real time.
* **fused**: every window that holds map *t* votes; their logits are averaged (Donahue et al. 2015).
  For archives only: it looks ahead.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import xarray as xr
from scipy.special import expit

from medicane import model as detector
from medicane import names
from medicane.channels import check_whole
from medicane.errors import InputError
from medicane.packing import read_block
from medicane.sequences import contiguous_periods

if TYPE_CHECKING:
    import keras

LOG = logging.getLogger(__name__)

Mode = Literal["causal", "fused"]

#: The variable that says how unlike the maps of the training a map is, where the model knows.
RECONSTRUCTION_ERROR = "reconstruction_error"

#: Maps held at once. 96 maps of the Mediterranean at 0.25 degrees with 6 channels are 39 MB.
BLOCK = 96

#: Blocks read ahead, each by a thread of its own: one inflates while the other derives.
AHEAD = 2

#: What runs an encoder: maps (n, H, W, C) → features (n, F), or sequences (n, T, …) → (n, T, F).
Encode = Callable[[np.ndarray], np.ndarray]

T = TypeVar("T")


def predict(
    model: keras.Model,
    maps: xr.DataArray,
    *,
    mode: Mode = "causal",
    allow_short: bool = False,
    allow_none: bool = False,
    encode: Encode | None = None,
    block: int = BLOCK,
    progress: Callable[[int, int], None] | None = None,
    where: object = "maps",
) -> xr.Dataset:
    """Label each map of a series.

    Parameters
    ----------
    model
        A detector of `medicane.model`; its card says the step and the length of a sequence.
    maps
        ``(time, channel, latitude, longitude)``, lazy or not; read once, block by block in order.
    mode
        ``causal`` or ``fused``, see the module.
    allow_short
        Label contiguous periods shorter than one sequence too, with the history they have. Nothing
        is invented: they get what the first maps of every period get.
    allow_none
        Leave all maps without a label where no period is long enough, instead of raising.
    encode
        What runs the encoder (see `medicane.runtime.open_encoder`); by default Keras.
    block
        Maps read at once; of lazy maps whole chunks, so that none is read twice. Up to three
        blocks are in memory: one that is labelled, two that are read meanwhile.
    progress
        Called with (maps done, maps in all).

    Returns
    -------
    xr.Dataset
        ``logit(time)`` and ``probability(time)`` float32, ``n_sequences(time)`` int16: the windows
        behind each value, 0 (and NaN values) where a period is too short. Where the model was built
        with ``out_of_domain``, ``reconstruction_error(time)`` float32 as well; its attribute
        ``training_percentile_99`` says what 99 % of the training maps stay below.

    Raises
    ------
    InputError
        If the channels are not the model's, the grid is too small, no period is long enough, or a
        map or a part of it is missing (the message names time and channel).
    """
    labels = Labels(
        model,
        maps,
        mode=mode,
        allow_short=allow_short,
        allow_none=allow_none,
        encode=encode,
        where=where,
    )
    for images in read_ahead(functools.partial(read_block, maps), cuts(maps, block=block)):
        labels.take(images)
        if progress is not None:
            progress(labels.taken, len(labels.times))
    return labels.dataset()


class Labels:
    """The labels of a series in the making: its maps are taken one block after the other.

    Parameters
    ----------
    model, mode, allow_short, allow_none, encode, where
        As for `predict`, which raises what this raises.
    maps
        Whose times, channels and grid are looked at; no map is read.
    """

    def __init__(
        self,
        model: keras.Model,
        maps: xr.DataArray,
        *,
        mode: Mode = "causal",
        allow_short: bool = False,
        allow_none: bool = False,
        encode: Encode | None = None,
        where: object = "maps",
    ) -> None:
        self._facts = detector.facts_of(model)
        length, step_hours = int(self._facts["length"]), int(self._facts["step_hours"])
        self._channels = [str(name) for name in maps[names.CHANNEL].values]
        detector.check_maps(
            model,
            channels=self._channels,
            shape=(maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]),
            where=where,
        )
        self._where, self._coordinate = where, maps[names.TIME]
        #: Times of all maps, and how many of them were taken.
        self.times, self.taken = maps.indexes[names.TIME], 0
        periods = contiguous_periods(self.times, step_hours=step_hours)
        least = 1 if allow_short else length
        longest = max((p.stop - p.start for p in periods), default=0)
        if longest < least and not allow_none:
            raise InputError(
                where,
                f"one sequence is {length} maps {step_hours} h apart without a gap "
                "(--allow-short labels fewer with the history they have)",
                found=f"{len(self.times)} maps, at most {longest} in a row",
            )
        self._periods = [p for p in periods if p.stop - p.start >= least]
        for period in periods:
            if period.stop - period.start < least:
                LOG.warning(
                    "%s: %d maps from %s are fewer than one sequence of %d: left without a label",
                    where,
                    period.stop - period.start,
                    self.times[period.start],
                    length,
                )
        self._total = np.zeros(len(self.times))
        self._count = np.zeros(len(self.times), dtype=np.int16)
        self._error = np.full(len(self.times), np.nan, dtype=np.float32)
        self._network = Network(model, length=length, mode=mode, encode=encode)

    def take(self, images: np.ndarray) -> None:
        """Label the next maps of the series, (n, latitude, longitude, channel)."""
        begun, self.taken = self.taken, self.taken + len(images)
        for period in self._periods:
            new = slice(max(begun, period.start), min(self.taken, period.stop))
            if new.start >= new.stop:
                continue
            if new.start == period.start:
                self._network.begin()
            self._label(images[new.start - begun : new.stop - begun], new, period)

    def _label(self, images: np.ndarray, new: slice, period: slice) -> None:
        check_whole(
            images.transpose(0, 3, 1, 2),
            np.asarray(self.times[new]),
            [f"channel {name}" for name in self._channels],
            where=self._where,
        )
        self._network.read(images)
        if self._network.knows_its_domain:
            self._error[new] = self._network.errors()
        _vote(self._network, new, period, self._total, self._count)

    def dataset(self) -> xr.Dataset:
        """What `predict` returns, once all maps are taken."""
        with np.errstate(invalid="ignore"):
            logit = np.where(self._count > 0, self._total / np.maximum(self._count, 1), np.nan)
        labelled = xr.Dataset(
            {
                "probability": (names.TIME, expit(logit).astype(np.float32)),
                "logit": (names.TIME, logit.astype(np.float32)),
                "n_sequences": (names.TIME, self._count),
            },
            coords={names.TIME: self._coordinate},
        )
        if self._network.knows_its_domain:
            told = {
                "long_name": "error with which the autoencoder brings back the features of the map",
                "units": "1",
                "training_percentile_99": float(self._facts["out_of_domain"]["percentile_99"]),
            }
            labelled[RECONSTRUCTION_ERROR] = (names.TIME, self._error, told)
        return labelled


class Network:
    """A detector at work on one period: each map read once, windows made of what is kept.

    For an encoder of maps, features are kept. An encoder over time gives a map the same features in
    every window, except for the first ``reach - 1`` maps of a window: these see zeros where the
    series has maps. In causal mode the last of a window counts, and no window is shorter than the
    reach: features are made once, each block behind the ``reach - 1`` maps before it. In fused mode
    all of a window count: the maps themselves are kept, and each window is encoded anew.

    `encode` runs the encoder; without it Keras does, `batch` maps at a time: fewer are filled up.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        length: int,
        mode: Mode,
        batch: int = 32,
        encode: Encode | None = None,
    ) -> None:
        self._model, self.length, self.mode = model, length, mode
        encoder, self._head = detector.encoder_of(model), detector.head_of(model)
        self._reach = detector.temporal_reach(model)
        self._over_time = len(encoder.input_shape) == 5
        by_keras = (
            functools.partial(_apply_over_time, encoder)
            if self._over_time
            else functools.partial(_apply, encoder, batch=batch)
        )
        self._encode: Encode = encode or by_keras
        self._keeps_maps = self._over_time and mode == "fused"
        self._looks_ahead = detector.looks_ahead(model)
        self.knows_its_domain = detector.knows_its_domain(model)
        self.begin()

    def begin(self) -> None:
        """A new period: nothing came before it."""
        nothing = np.zeros(0, dtype=np.float32)
        self._before: np.ndarray = nothing  # the last maps, as far back as the encoder sees
        self._kept: np.ndarray = nothing  # the last ``length - 1`` maps and the new ones
        self._features: np.ndarray = nothing  # of the new maps

    def read(self, images: np.ndarray) -> None:
        """Take in the next maps of the period, (n, H, W, C)."""
        if not self._keeps_maps or self.knows_its_domain:
            self._features = self._encoded(images)
        new = images if self._keeps_maps else self._features
        self._kept = _joined(_last(self._kept, self.length - 1), new)

    def errors(self) -> np.ndarray:
        """Reconstruction error of the new maps, (n,)."""
        return detector.reconstruction_error(self._model, self._features)

    @property
    def held(self) -> int:
        """Maps that windows can be made of: the new ones and up to ``length - 1`` before them."""
        return len(self._kept)

    def opening(self, n: int) -> np.ndarray:
        """Logits of the first `n` maps held, with the history they have: (n,)."""
        if self._looks_ahead and self.mode == "causal":
            # Each of them ends a window of its own; one pass would show it the maps after it.
            ends = [self._logits(self._kept[None, : i + 1], batch=1)[0, -1] for i in range(n)]
            return np.array(ends)
        return self._logits(self._kept[None, :n], batch=1)[0]

    def windows(self, first: np.ndarray) -> np.ndarray:
        """Logits of the windows of ``length`` maps that start at `first` of those held."""
        views = np.lib.stride_tricks.sliding_window_view(self._kept, self.length, axis=0)
        chosen = np.moveaxis(views, -1, 1)[first[0] : first[-1] + 1]
        return self._logits(chosen, batch=8 if self._keeps_maps else 64)

    def newest(self) -> np.float32:
        """Logit of the last map held, from the maps held and no other."""
        return np.float32(self._logits(self._kept[None], batch=1)[0, -1])

    @property
    def features(self) -> np.ndarray:
        """Features of the new maps, (n, F)."""
        return self._features

    @property
    def memory(self) -> dict[str, np.ndarray]:
        """What the next maps of the period need of those before them; see `remember`."""
        return {"kept": _last(self._kept, self.length - 1), "before": self._before}

    def remember(self, memory: Mapping[str, np.ndarray]) -> None:
        """Go on with the period that `memory` was taken from."""
        self._kept, self._before = memory["kept"], memory["before"]

    def _encoded(self, images: np.ndarray) -> np.ndarray:
        if not self._over_time:
            return self._encode(images)
        series = _joined(self._before, images)
        features = self._encode(series[None])[0]
        self._before = _last(series, self._reach - 1)
        return features[len(series) - len(images) :]

    def _logits(self, windows: np.ndarray, *, batch: int) -> np.ndarray:
        if self._keeps_maps:
            windows = self._encode(windows)
        return _apply(self._head, windows, batch=batch)[:, :, 0]


def _joined(before: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate([before, new]) if len(before) else new


def _last(values: np.ndarray, n: int) -> np.ndarray:
    return values[max(len(values) - n, 0) :]


def cuts(maps: xr.DataArray, *, block: int = BLOCK) -> list[tuple[int, int]]:
    """Where to cut a series into blocks: (start, stop) of each, in order.

    Blocks are of `block` maps; of a lazy array they are whole chunks, as many as fit a block and
    one at least, since a chunk that is cut is read once for each of its pieces.
    """
    n = maps.sizes[names.TIME]
    chunks = maps.chunksizes.get(names.TIME) or [1] * n
    found: list[tuple[int, int]] = []
    start = stop = 0
    for size in chunks:
        if stop > start and stop + size - start > block:
            found.append((start, stop))
            start = stop
        stop += size
    return [*found, (start, stop)] if stop > start else found


def read_ahead(
    read: Callable[[int, int], T], blocks: Iterable[tuple[int, int]], *, threads: int = AHEAD
) -> Iterator[T]:
    """Read blocks in order, the next ones in the background while one is worked on.

    Parameters
    ----------
    read
        Called with start and stop, by several threads.
    blocks
        (start, stop) of each block.
    threads
        As many blocks are read at a time.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as readers:
        waiting: deque[Future[T]] = deque()
        try:
            for start, stop in blocks:
                waiting.append(readers.submit(read, start, stop))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _apply(network: Any, values: np.ndarray, *, batch: int) -> np.ndarray:
    """The network over many items in batches of one shape a call (no retracing at the tail)."""
    parts = []
    for start in range(0, len(values), batch):
        part = values[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        parts.append(np.asarray(network.predict_on_batch(padded))[: len(part)])
    return np.concatenate(parts)


def _apply_over_time(encoder: Any, sequences: np.ndarray) -> np.ndarray:
    """As `_apply`, for sequences of maps: one alone may be long, and is a batch of its own."""
    return _apply(encoder, sequences, batch=1 if len(sequences) == 1 else 8)


def _vote(
    network: Network, new: slice, period: slice, total: np.ndarray, count: np.ndarray
) -> None:
    """Add the logits of all windows that end in the `new` maps to `total` and `count`."""
    length = network.length
    first = new.stop - network.held  # the map that the first one held is
    if new.start - period.start < length:
        if new.stop - period.start < length and new.stop < period.stop:
            return  # the opening goes on in the next block
        # The opening of a period: every map has the history since its start.
        n = min(length, network.held)
        total[first : first + n] += network.opening(n)
        count[first : first + n] += 1
    # Windows that end at the maps from here on, the opening window apart.
    ends = np.arange(max(new.start, period.start + length), new.stop)
    if len(ends) == 0:
        return
    logits = network.windows(ends - first - (length - 1))
    if network.mode == "causal":
        total[ends] += logits[:, -1]
        count[ends] += 1
    else:
        members = ends[:, None] - (length - 1) + np.arange(length)
        np.add.at(total, members, logits)
        np.add.at(count, members, 1)
