"""The whole way from a map store to a detector: one network or several, calibrated as one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import xarray as xr

from medicane import __version__, names
from medicane import model as detector
from medicane.batches import LONGEST_RUN
from medicane.config import Config
from medicane.errors import InputError
from medicane.normalise import Statistics, training_statistics
from medicane.sequences import split_times
from medicane.train.calibration import calibrate, learn_domain
from medicane.train.members import Member, fit_member, training_maps
from medicane.train.progress import OnEpoch


@dataclass(frozen=True)
class TrainedDetector:
    """A fitted detector, and what is worth knowing of how it came to be.

    Attributes
    ----------
    model
        The detector, calibrated.
    history
        One row an epoch: ``epoch``, ``loss``, ``val_loss``, ``val_auc_pr``, ``learning_rate``; with
        a curriculum ``sequence_length``; of an ensemble ``member`` (from 1), the epochs of its
        members counted on.
    statistics
        Of the channels, over the training split.
    splits
        Name → (time) bool.
    threshold, temperature
        As fitted on validation, or configured.
    best_epoch
        The epoch whose weights were kept; of an ensemble, that of its best member.
    seconds
        Of this call.
    notes
        What was odd about the calibration.
    facts
        What the model's file says of its training.
    core_minutes
        Processor time of the training, validation included: all cores, all members and all parts of
        a training that was resumed.
    n_parameters
        Weights of the detector, those of normalisation and calibration included.
    """

    model: keras.Model
    history: pd.DataFrame
    statistics: Statistics
    splits: dict[str, np.ndarray]
    threshold: float
    temperature: float
    best_epoch: int
    seconds: float
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    core_minutes: float = 0.0
    n_parameters: int = 0


def train_detector(
    config: Config,
    store: xr.Dataset,
    *,
    statistics: Statistics | None = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedDetector:
    """Train on the training split, choose the epoch, threshold and temperature on validation.

    Parameters
    ----------
    config
        ``sequences``, ``splits``, ``model``, ``train``, ``label`` and ``detect`` are read.
    store
        A prepared map store (`medicane.store.open_store`), lazy; with its packed maps where
        ``train.decode`` is ``device``.
    statistics
        Those of the training split, where they are known already; by default a pass over its maps.
    checkpoint
        A file for the state of the training, kept after each epoch; each member of an ensemble has
        one beside it. A state of another recipe or other data is ignored, and said so. A member
        that is finished is not trained again. Whoever has kept the model may `remove_checkpoint`.
    on_epoch
        Called after each epoch with ``loss``, ``val_loss``, ``val_auc_pr``, ``learning_rate``; the
        epochs of the members of an ensemble are counted on.

    Returns
    -------
    TrainedDetector
        The weights are those of the epoch with the highest AUC-PR on validation.

    Raises
    ------
    InputError
        If training or validation hold no medicane or not one sequence, if the grid is too small for
        the encoder, if the store has other channels than the configuration, or if packed maps are
        asked for and not there.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    _check_store(config, store)
    labels = store["medicane"].values
    splits = split_times(store.indexes[names.TIME], labels, store["storm"].values, config=config)
    for name in ("train", "validation"):
        if not (labels[splits[name]] == names.MEDICANE).any():
            raise InputError(
                f"splits.{name}",
                "must hold at least one medicane map",
                found=f"none among {int(splits[name].sum())} maps",
            )
    if statistics is None:
        statistics = training_statistics(store["maps"], splits["train"])
    facts = training_facts(config, store)
    members: list[Member] = []
    history: list[dict[str, float]] = []
    cpu_members = time.process_time()
    for number in range(1, config.train.ensemble + 1):
        before = len(history)
        member = fit_member(
            _member_config(config, number),
            store,
            splits,
            statistics,
            facts=facts,
            checkpoint=_member_file(checkpoint, number),
            on_epoch=None if on_epoch is None else _counted_on(on_epoch, before),
        )
        named = {"member": number} if config.train.ensemble > 1 else {}
        history += [{**row, "epoch": row["epoch"] + before, **named} for row in member.rows]
        members.append(member)
    cpu_members = time.process_time() - cpu_members
    model = _joined(members, facts)
    threshold, temperature, notes = calibrate(
        config,
        model,
        store,
        splits["validation"],
        prior_offset=float(np.mean([member.prior_offset for member in members])),
    )
    if config.model.out_of_domain:
        learn_domain(config, model, store, splits["train"])
    # Members count their own, resumed parts included; the rest is this process's.
    around = time.process_time() - cpu_started - cpu_members
    table = pd.DataFrame(history)
    return TrainedDetector(
        model=model,
        history=table,
        statistics=statistics,
        splits=splits,
        threshold=threshold,
        temperature=temperature,
        best_epoch=int(table["epoch"].iloc[int(table["val_auc_pr"].argmax())]),
        seconds=time.monotonic() - started,
        notes=notes,
        facts=detector.facts_of(model),
        core_minutes=(around + sum(member.core_seconds for member in members)) / 60,
        n_parameters=model.count_params(),
    )


def training_facts(config: Config, store: xr.Dataset) -> dict[str, Any]:
    """What the saved model says of its training; JSON values only."""
    length = config.sequences.length
    return {
        "software_version": __version__,
        "length": length,
        # A recurrent state may be carried on where sequences were longer than a window.
        "longest_sequence": length * (LONGEST_RUN if config.train.variable_length else 1),
        "step_hours": config.data.step_hours,
        "degrees": config.data.degrees,
        "domain": config.data.domain.model_dump(),
        "formulas": [c if isinstance(c, str) else c.model_dump() for c in config.data.channels],
        "label": config.label.model_dump(),
        "smallest_grid": detector.smallest_grid(config.model),
        "data_digest": str(store.attrs.get("content_digest", "")),
        "idealised": bool(store.attrs.get("idealised", 0)),
        "seed": config.train.seed,
    }


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove what `train_detector` has kept, of all members."""
    checkpoint.unlink(missing_ok=True)
    for file in checkpoint.parent.glob(f"{checkpoint.stem}.member*{checkpoint.suffix}"):
        file.unlink()


def _check_store(config: Config, store: xr.Dataset) -> None:
    where = config.data.store
    stored = [str(name) for name in store[names.CHANNEL].values]
    if stored != list(config.data.channel_names):
        raise InputError(
            f"{where}: channels",
            f"must be those of data.channels {list(config.data.channel_names)}",
            found=stored,
        )
    shape = (store.sizes[names.LATITUDE], store.sizes[names.LONGITUDE])
    least = detector.smallest_grid(config.model)
    if min(shape) < least:
        raise InputError(
            where,
            f"the {config.model.encoder} encoder needs a grid of at least {least} x {least} cells",
            found=f"{shape[0]} x {shape[1]}",
        )
    training_maps(config, store)


def _member_config(config: Config, number: int) -> Config:
    """The configuration of one member, as it would be trained alone; numbers from 1."""
    alone = config.train.model_copy(update={"seed": config.train.seed + number - 1, "ensemble": 1})
    return config.model_copy(update={"train": alone})


def _member_file(checkpoint: Path | None, number: int) -> Path | None:
    if checkpoint is None or number == 1:
        return checkpoint
    return checkpoint.with_suffix(f".member{number}{checkpoint.suffix}")


def _counted_on(on_epoch: OnEpoch, before: int) -> OnEpoch:
    return lambda epoch, scores: on_epoch(before + epoch, scores)


def _joined(members: list[Member], facts: dict[str, Any]) -> keras.Model:
    if len(members) == 1:
        return members[0].model
    return detector.ensemble_of([member.model for member in members], facts=facts)
