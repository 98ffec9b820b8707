"""How far a carried state drifts: carried and windowed labels of the same maps, side by side."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score

from medicane import model as detector
from medicane import names
from medicane.errors import InputError
from medicane.evaluate import resample_blocks, with_interval
from medicane.evaluate.intervals import Resampling, resampled_average_precision
from medicane.predict import BLOCK, Encode, predict
from medicane.sequences import contiguous_periods

if TYPE_CHECKING:
    import keras

#: Runs of maps that the head reads at once.
RUNS = 16

Values = NDArray[np.floating[Any]]


def carried_drift(
    model: keras.Model,
    store: xr.Dataset,
    *,
    lengths: int = 8,
    encode: Encode | None = None,
    block: int = BLOCK,
    n_resamples: int = 1000,
    where: object = "store",
) -> pd.DataFrame:
    """Compare the carried form with the windowed one, by the number of maps since the reset.

    The state is begun anew every `longest_sequence` maps, each time, and carried on over `lengths`
    as many: so each map is labelled at `lengths` ages of the state, and every row of the table is
    about the same maps. Those that begin a period, which have not all ages, are left out.

    Parameters
    ----------
    model
        A detector that `medicane.model.carried_head` takes. It need not be trained for it: what
        this costs is what the table shows.
    store
        ``maps(time, channel, latitude, longitude)``, ``medicane(time)`` and, for the intervals,
        ``storm(time)``: a prepared store, or a split of it.
    lengths
        How long the state is carried, in lengths of the longest sequence of the training.
    encode, block
        As for `predict`. The features of a whole period are held in memory.
    n_resamples
        Of the block bootstrap behind the intervals.

    Returns
    -------
    pandas.DataFrame
        A row for the sequences of the training, then one for each doubling of their length:
        ``maps_from``, ``maps_to`` since the reset; ``n_maps`` and ``n_medicanes`` known;
        ``mean_difference``, ``largest_difference`` of the probabilities, absolute, over all maps;
        ``auc_pr_windowed``, ``auc_pr_carried`` and their difference, carried minus windowed, as
        ``auc_pr_difference`` with its 95 % interval ``low`` to ``high`` (NaN where undefined).

    Raises
    ------
    InputError
        If the model has no state to carry, or no period is long enough.
    """
    head, length = detector.carried_head(model), detector.longest_sequence(model)
    if lengths < 1:
        raise InputError("lengths", "must be at least 1", found=lengths)
    step_hours = int(detector.facts_of(model)["step_hours"])
    periods = contiguous_periods(store.indexes[names.TIME], step_hours=step_hours)
    young = (lengths - 1) * length  # maps of a period that have not all ages
    long_enough = [period for period in periods if period.stop - period.start > young]
    if not long_enough:
        raise InputError(
            where,
            f"a state carried over {lengths} times {length} maps needs more than {young} "
            f"maps {step_hours} h apart without a gap",
            found=f"{max((p.stop - p.start for p in periods), default=0)} at most",
        )
    run = encode or functools.partial(detector.encoder_of(model).predict, verbose=0)
    carried, windowed = [], []
    for period in long_enough:
        maps = store["maps"].isel({names.TIME: period})
        features: list[np.ndarray] = []
        labelled = predict(
            model, maps, allow_short=True, encode=_kept(run, features), block=block, where=where
        )
        windowed.append(labelled["logit"].values[young:])
        carried.append(_carried(head, np.concatenate(features), length=length, lengths=lengths))
    chosen = np.concatenate([np.arange(p.start + young, p.stop) for p in long_enough])
    return _table(
        np.concatenate(carried, axis=1),
        np.concatenate(windowed),
        store.isel({names.TIME: chosen}),
        length=length,
        n_resamples=n_resamples,
    )


def _kept(run: Encode, features: list[np.ndarray]) -> Encode:
    """The encoder, its features kept: each map is read and encoded once for both forms."""

    def encode(images: np.ndarray) -> np.ndarray:
        features.append(run(images))
        return features[-1]

    return encode


def _carried(head: keras.Model, features: np.ndarray, *, length: int, lengths: int) -> np.ndarray:
    """Logits (age, map) of the maps that have all ages; an age is a number of whole `length`."""
    n, longest = len(features), length * lengths
    begun = -(-n // length)
    # The head is causal: what fills up the last runs changes no label before it.
    filled = np.pad(features, ((0, longest), (0, 0)), mode="edge")
    runs = np.lib.stride_tricks.sliding_window_view(filled, longest, axis=0)
    runs = np.moveaxis(runs[: begun * length : length], -1, 1)
    found = []
    for start in range(0, begun, RUNS):
        part = runs[start : start + RUNS]
        states = [np.zeros((len(part), s.shape[-1]), np.float32) for s in head.inputs[1:]]
        found.append(np.asarray(head.predict_on_batch([part, *states])[0])[:, :, 0])
    logits = np.concatenate(found).reshape(begun, lengths, length)
    first = lengths - 1
    aged = [logits[first - age : begun - age, age].reshape(-1) for age in range(lengths)]
    return np.stack(aged)[:, : n - first * length]


def _table(
    carried: np.ndarray,
    windowed: np.ndarray,
    store: xr.Dataset,
    *,
    length: int,
    n_resamples: int,
) -> pd.DataFrame:
    medicane = store["medicane"].values
    known = medicane != names.UNKNOWN
    labels = medicane[known] == names.MEDICANE
    resampling = resample_blocks(
        store[names.TIME].values[known],
        labels.astype(np.int8),
        store["storm"].values[known] if "storm" in store else None,
        n_resamples=n_resamples,
    )
    reference = _auc_pr(windowed[known], labels, resampling)
    edges = [0, 1]
    while edges[-1] < len(carried):
        edges.append(min(2 * edges[-1], len(carried)))
    rows = []
    for first, last in itertools.pairwise(edges):
        ages = carried[first:last]
        apart = np.abs(expit(ages.astype(np.float64)) - expit(windowed.astype(np.float64)))
        repeated = replace(resampling, block=np.tile(resampling.block, len(ages)))
        value, resamples = _auc_pr(ages[:, known].reshape(-1), np.tile(labels, len(ages)), repeated)
        difference = with_interval(
            "auc_pr", value - reference[0], resamples - reference[1], resampling.n_storms
        )
        rows.append(
            {
                "maps_from": first * length + 1,
                "maps_to": last * length,
                "n_maps": int(known.sum()),
                "n_medicanes": int(labels.sum()),
                "mean_difference": float(apart.mean()),
                "largest_difference": float(apart.max()),
                "auc_pr_windowed": reference[0],
                "auc_pr_carried": value,
                "auc_pr_difference": difference["value"],
                "low": difference["low"],
                "high": difference["high"],
            }
        )
    return pd.DataFrame(rows)


def _auc_pr(
    logit: Values, labels: NDArray[np.bool_], resampling: Resampling
) -> tuple[float, Values]:
    """Average precision, and that of each resample."""
    value = float(average_precision_score(labels, logit)) if labels.any() else float("nan")
    return value, resampled_average_precision(logit, labels, resampling)
