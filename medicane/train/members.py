"""One network, fitted: its batches, its epochs, its best weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import xarray as xr

from medicane import __version__, names
from medicane import model as detector
from medicane.batches import RandomRuns, SequenceBatches
from medicane.config import Config
from medicane.errors import InputError
from medicane.normalise import Statistics
from medicane.sequences import contiguous_periods, split_windows
from medicane.train.curriculum import Unroll, stage_lengths
from medicane.train.fused import fuse
from medicane.train.progress import OnEpoch, Progress
from medicane.train.workers import Team, join

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A fitted network, not yet calibrated.

    `rows` one row an epoch; `prior_offset` what its sampling adds to the logits; `core_seconds` of
    processor time.
    """

    model: keras.Model
    rows: list[dict[str, float]]
    best_epoch: int
    prior_offset: float
    core_seconds: float


def fit_member(
    config: Config,
    store: xr.Dataset,
    splits: Mapping[str, np.ndarray],
    statistics: Statistics,
    *,
    facts: Mapping[str, Any],
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Member:
    """Build and fit one network from ``train.seed``; its weights are those of the best epoch.

    Parameters
    ----------
    splits
        ``train`` and ``validation``: (time) bool.
    statistics, facts
        As for `medicane.model.build_detector`.
    checkpoint, on_epoch
        As for `train_detector`; the checkpoint stays when the training ends.

    Raises
    ------
    InputError
        If another worker trains on another configuration or map store.
    ArithmeticError
        If the loss was not finite in the first epoch.
    """
    team = join(config.train.workers)
    key = _key(config, store)
    team.agree(key, where="train.workers", law="each must train on what worker 0 trains on")
    epochs = config.train.epochs
    batches = training_batches(config, store, splits["train"], team=team)
    keras.utils.set_random_seed(config.train.seed)
    model = detector.build_detector(config, statistics, facts=facts)
    trained = model
    if config.train.precision != "float32":
        keras.utils.set_random_seed(config.train.seed)
        trained = detector.build_detector(config, statistics, precision=config.train.precision)
    fitted = team.shared(_fitted_form(trained, config, training_maps(config, store)))
    detector.compile_detector(fitted, config.train, steps=epochs * len(batches))
    fuse(fitted)
    unroll = None
    if config.train.curriculum == "unroll":
        unroll = Unroll(stage_lengths(config.sequences.length), epochs)
    progress = Progress(
        model,
        config,
        store,
        splits["validation"],
        trained=trained,
        team=team,
        unroll=unroll,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        key=key,
    )
    progress.resume(fitted)
    with team.together(trained):
        while not progress.finished:
            if progress.unroll is not None:
                batches.piece_length = progress.unroll.length
            done = progress.done
            batches.take_up(done)
            fitted.fit(
                batches,
                epochs=epochs,
                initial_epoch=done,
                callbacks=[keras.callbacks.TerminateOnNaN(), progress],
                verbose=0,
                shuffle=False,  # SequenceBatches shuffles, from the seed and the epoch
            )
            if progress.done == done:
                break  # diverged: not one epoch was added
    if progress.best_weights is None:
        raise ArithmeticError("training diverged in its first epoch: the loss is not finite")
    model.set_weights(progress.best_weights)
    return Member(
        model=model,
        rows=progress.rows,
        best_epoch=progress.best_epoch,
        prior_offset=batches.prior_offset,
        core_seconds=team.total(progress.core_seconds),
    )


def windows_per_block(config: Config) -> int:
    """How many windows are trained on at once with their maps encoded once: ``train.block``, or 1.

    The one place that says where blocks apply: where windows share maps, the encoder reads maps one
    by one, and a window is what it is in the record. So not for encoders over time, fed-back
    labels, maps in shuffled order, a curriculum of shorter windows, or runs of many lengths.
    """
    train, model = config.train, config.model
    apply = (
        config.sequences.stride < config.sequences.length
        and model.encoder in ("compact", "densenet121")
        and not model.label_feedback
        and not train.shuffled_order
        and not train.variable_length
        and train.curriculum == "none"
    )
    return train.block if apply else 1


def training_maps(config: Config, store: xr.Dataset) -> xr.DataArray:
    """The maps that batches are made of: as float32, or packed, for the device to unpack them.

    Raises
    ------
    InputError
        If ``train.decode`` is ``device`` and the store does not come with its packed maps.
    """
    if config.train.decode == "host":
        return store["maps"]
    if "packed" not in store:
        law = "device needs the packed maps of a map store: open_store(…, packed=True)"
        raise InputError("train.decode", law, found="maps that are not packed")
    return store["packed"]


def _fitted_form(model: keras.Model, config: Config, maps: xr.DataArray) -> keras.Model:
    """What Keras fits: the detector, or a form of it for training that shares its weights."""
    form = model
    if config.model.label_feedback:
        form = detector.teacher_forced(model)
    elif windows_per_block(config) > 1:
        sequences = config.sequences
        form = detector.sliding(model, length=sequences.length, stride=sequences.stride)
    if config.train.decode == "host":
        return form
    return detector.reading_packed(
        form, scale=maps["scale_factor"].values, offset=maps["add_offset"].values
    )


def training_batches(
    config: Config, store: xr.Dataset, mask: np.ndarray, *, team: Team | None = None
) -> SequenceBatches:
    """The batches of the training split, as ``sequences``, ``train`` and ``label`` say.

    Parameters
    ----------
    team
        The worker whose share they are; by default the batches are whole.

    Raises
    ------
    InputError
        If no window fits in, hard negatives are asked for and the store has no lows, or
        `training_maps` are not to be had.
    """
    train, times, length = config.train, store.indexes[names.TIME], config.sequences.length
    step = config.data.step_hours
    windows = split_windows(
        times,
        mask,
        length=length,
        stride=config.sequences.stride,
        step_hours=step,
        where="splits.train",
    )
    hard = None
    if train.hard_negative_share is not None:
        if "low_msl" not in store:
            raise InputError(
                "train.hard_negative_share",
                "needs the lows of the maps, which the store holds where the grids have heights",
                found="no low_msl in the store",
            )
        hard = store["low_msl"].values < config.label.msl_max_hpa  # NaN, no low, is not deep
    about: dict[str, Any] = {
        "labels": store["medicane"].values,
        "batch_size": train.batch_size,
        "block": windows_per_block(config),
        "seed": train.seed,
        "negatives_per_positive": train.negatives_per_positive,
        "hard": hard,
        "hard_share": train.hard_negative_share,
        "shuffled_order": train.shuffled_order,
        "previous_label": (
            scheduled_sampling(train.epochs) if config.model.label_feedback else None
        ),
        "share": (0, 1) if team is None else (team.rank, team.size),
        "workers": train.loaders,
        "queue": train.prefetch_mb * 1_000_000,
    }
    maps = training_maps(config, store)
    batches = SequenceBatches(maps, windows, **about)
    if not train.variable_length:
        return batches
    inside = np.flatnonzero(mask)
    runs = RandomRuns(
        tuple(inside[run] for run in contiguous_periods(times[inside], step_hours=step)),
        length=length,
        # As many maps an epoch as of windows: the rows of a comparison stay fair.
        maps_per_epoch=batches.n_windows * length,
    )
    return SequenceBatches(maps, runs, **about)


def scheduled_sampling(epochs: int) -> Callable[[int], float]:
    """Epoch (from 0) → share of the maps that are told the true label before them.

    From 1 in the first epoch to 0 in the last, linearly (Bengio et al. 2015, arXiv 1506.03099): at
    the end the network hears only itself, as it does when it is used.
    """
    return lambda epoch: max(0.0, 1 - epoch / max(epochs - 1, 1))


def _key(config: Config, store: xr.Dataset) -> str:
    """What a checkpoint must agree on to be resumed."""
    recipe = {
        part: getattr(config, part).model_dump(mode="json")
        for part in ("sequences", "splits", "model", "train", "label")
    }
    recipe["mode"] = config.detect.mode
    text = json.dumps([recipe, store.attrs.get("content_digest"), __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
