"""Maps → probability of a medicane at each time: causal or fused, each map encoded once.

The naive form encodes every map once for each window it stands in (12 times at stride 1). Here the
encoder sees each map once and the head runs over windows of its features: the same numbers, since
nothing in the encoder depends on a map's neighbours at inference.

* **causal**: the label of map *t* uses maps up to *t* only: the last output of the window that ends
  at *t*. The first maps of a period have a shorter history, as they would in real time.
* **fused**: every window that holds map *t* votes; their logits are averaged (Donahue et al. 2015).
  For archives only: it looks ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from scipy.special import expit

from medicane import model as detector
from medicane import names
from medicane.channels import check_whole
from medicane.errors import InputError
from medicane.sequences import contiguous_periods

if TYPE_CHECKING:
    import keras

LOG = logging.getLogger(__name__)

Mode = Literal["causal", "fused"]

#: Maps held at once. 96 maps of the Mediterranean at 0.25 degrees with 6 channels are 39 MB.
BLOCK = 96


def predict(
    model: keras.Model,
    maps: xr.DataArray,
    *,
    mode: Mode = "causal",
    allow_short: bool = False,
    allow_none: bool = False,
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
    block
        Maps held in memory at once.
    progress
        Called with (maps done, maps in all).

    Returns
    -------
    xr.Dataset
        ``logit(time)`` and ``probability(time)`` float32, ``n_sequences(time)`` int16: the windows
        behind each value, 0 (and NaN values) where a period is too short.

    Raises
    ------
    InputError
        If the channels are not the model's, the grid is too small, no period is long enough, or a
        map or a part of it is missing (the message names time and channel).
    """
    facts = detector.facts_of(model)
    length, step_hours = int(facts["length"]), int(facts["step_hours"])
    detector.check_maps(
        model,
        channels=[str(name) for name in maps[names.CHANNEL].values],
        shape=(maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]),
        where=where,
    )
    times = maps.indexes[names.TIME]
    periods = contiguous_periods(times, step_hours=step_hours)
    least = 1 if allow_short else length
    longest = max((p.stop - p.start for p in periods), default=0)
    if longest < least and not allow_none:
        raise InputError(
            where,
            f"one sequence is {length} maps {step_hours} h apart without a gap "
            "(--allow-short labels fewer with the history they have)",
            found=f"{len(times)} maps, at most {longest} in a row",
        )
    total = np.zeros(len(times))
    count = np.zeros(len(times), dtype=np.int16)
    encoder, head = detector.encoder_of(model), detector.head_of(model)
    done = 0
    for period in periods:
        if period.stop - period.start < least:
            LOG.warning(
                "%s: %d maps from %s are fewer than one sequence of %d: left without a label",
                where,
                period.stop - period.start,
                times[period.start],
                length,
            )
            done += period.stop - period.start
            continue
        features = np.empty((0, encoder.output_shape[-1]), dtype=np.float32)
        first = period.start  # the map that features[0] belongs to
        for start, images in _blocks(maps, period, block):
            check_whole(
                images.transpose(0, 3, 1, 2),
                np.asarray(times[start : start + len(images)]),
                [f"channel {name}" for name in maps[names.CHANNEL].values],
                where=where,
            )
            new = _apply(encoder, images, batch=32)
            features = np.concatenate([features, new])
            _vote(head, features, first, start, period, length, mode, total, count)
            kept = min(length - 1, len(features))
            first += len(features) - kept
            features = features[len(features) - kept :]
            done += len(images)
            if progress is not None:
                progress(done, len(times))
    with np.errstate(invalid="ignore"):
        logit = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    coords = {names.TIME: maps[names.TIME]}
    return xr.Dataset(
        {
            "probability": (names.TIME, expit(logit).astype(np.float32)),
            "logit": (names.TIME, logit.astype(np.float32)),
            "n_sequences": (names.TIME, count),
        },
        coords=coords,
    )


def _blocks(maps: xr.DataArray, period: slice, block: int) -> Iterator[tuple[int, np.ndarray]]:
    ordered = maps.transpose(names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)
    for start in range(period.start, period.stop, block):
        stop = min(start + block, period.stop)
        yield start, np.asarray(ordered[start:stop].values, dtype=np.float32)


def _apply(network: Any, values: np.ndarray, *, batch: int) -> np.ndarray:
    """The network over many items in batches of one shape a call (no retracing at the tail)."""
    parts = []
    for start in range(0, len(values), batch):
        part = values[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        parts.append(np.asarray(network.predict_on_batch(padded))[: len(part)])
    return np.concatenate(parts)


def _vote(
    head: Any,
    features: np.ndarray,
    first: int,
    start: int,
    period: slice,
    length: int,
    mode: Mode,
    total: np.ndarray,
    count: np.ndarray,
) -> None:
    """Add the logits of all windows that end in the new maps ``start …`` to `total` and `count`."""
    stop = first + len(features)
    if start == period.start:
        # The opening of a period: every map has the history since its start, one pass gives it.
        opening = features[: min(length, len(features))]
        logits = np.asarray(head.predict_on_batch(opening[None]))[0, :, 0]
        total[first : first + len(opening)] += logits
        count[first : first + len(opening)] += 1
    elif first == period.start and start - first < length:
        # The previous block was shorter than one window: its opening goes on here.
        opening = features[: min(length, len(features))]
        logits = np.asarray(head.predict_on_batch(opening[None]))[0, :, 0]
        already = start - first
        total[start : first + len(opening)] += logits[already:]
        count[start : first + len(opening)] += 1
    # Windows that end at the maps from here on, the opening window apart.
    ends = np.arange(max(start, period.start + length), stop)
    if len(ends) == 0:
        return
    views = np.lib.stride_tricks.sliding_window_view(features, length, axis=0)
    chosen = views[ends - first - (length - 1)].transpose(0, 2, 1)
    logits = _apply(head, np.ascontiguousarray(chosen), batch=64)[:, :, 0]
    if mode == "causal":
        total[ends] += logits[:, -1]
        count[ends] += 1
    else:
        members = ends[:, None] - (length - 1) + np.arange(length)
        np.add.at(total, members, logits)
        np.add.at(count, members, 1)
