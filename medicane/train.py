"""Fit the detector: split, statistics of the training split, fit, stop early, calibrate.

Returns a model and its history; knows nothing of MLflow or Prefect. After each epoch the state
of the training is kept in a checkpoint, so that a training that was cut goes on where it stood and
ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import xarray as xr
from sklearn.metrics import average_precision_score

from medicane import __version__, names
from medicane import model as detector
from medicane.batches import SequenceBatches
from medicane.config import Config
from medicane.errors import InputError
from medicane.evaluate.calibration import fit_temperature, fit_threshold
from medicane.normalise import Statistics, training_statistics
from medicane.predict import predict
from medicane.sequences import split_times, split_windows

LOG = logging.getLogger(__name__)

#: Called after each epoch with its number (from 1) and its scores.
OnEpoch = Callable[[int, Mapping[str, float]], None]

#: Training maps up to this size are held in memory; above it, windows are read from the store.
CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class TrainedDetector:
    """A fitted detector, and what is worth knowing of how it came to be."""

    model: keras.Model
    history: pd.DataFrame  # one row an epoch
    statistics: Statistics
    splits: dict[str, np.ndarray]  # name → bool (time)
    threshold: float
    temperature: float
    best_epoch: int
    seconds: float
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def train_detector(
    config: Config,
    store: xr.Dataset,
    *,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedDetector:
    """Train on the training split, choose the epoch, threshold and temperature on validation.

    Parameters
    ----------
    config
        ``sequences``, ``splits``, ``model``, ``train`` and ``label`` are read.
    store
        A prepared map store (`medicane.store.open_store`), lazy.
    checkpoint
        A file for the state of the training, kept after each epoch and removed at the end. A state
        of another recipe or other data is ignored, and said so.
    on_epoch
        Called after each epoch with ``loss``, ``val_loss``, ``val_auc_pr``, ``learning_rate``.

    Returns
    -------
    TrainedDetector
        The weights are those of the epoch with the highest AUC-PR on validation.

    Raises
    ------
    InputError
        If training or validation hold no medicane or not one sequence, if the grid is too small for
        the encoder, or if the store has other channels than the configuration.
    """
    started = time.monotonic()
    keras.utils.set_random_seed(config.train.seed)
    _check_store(config, store)
    times = store.indexes[names.TIME]
    labels = store["medicane"].values
    splits = split_times(times, labels, store["storm"].values, config=config)
    for name in ("train", "validation"):
        if not (labels[splits[name]] == names.MEDICANE).any():
            raise InputError(
                f"splits.{name}",
                "must hold at least one medicane map",
                found=f"none among {int(splits[name].sum())} maps",
            )
    statistics = training_statistics(store["maps"], splits["train"])
    batches = _training_batches(config, store, splits["train"])
    facts = training_facts(config, store)
    model = detector.build_detector(config, statistics, facts=facts)
    detector.compile_detector(model, config.train, steps=config.train.epochs * len(batches))
    follow = _Follow(
        config,
        store,
        splits["validation"],
        batches,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        key=_key(config, store),
    )
    first = follow.resume(model)
    if first < config.train.epochs and not follow.stopped:
        model.fit(
            batches,
            epochs=config.train.epochs,
            initial_epoch=first,
            callbacks=[keras.callbacks.TerminateOnNaN(), follow],
            verbose=0,
            shuffle=False,  # SequenceBatches shuffles, from the seed and the epoch
        )
    if follow.best_weights is None:
        raise ArithmeticError("training diverged in its first epoch: the loss is not finite")
    model.set_weights(follow.best_weights)
    threshold, temperature, notes = _calibrate(config, model, store, splits["validation"], batches)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return TrainedDetector(
        model=model,
        history=pd.DataFrame(follow.rows),
        statistics=statistics,
        splits=splits,
        threshold=threshold,
        temperature=temperature,
        best_epoch=follow.best_epoch,
        seconds=time.monotonic() - started,
        notes=notes,
        facts=detector.facts_of(model),
    )


def training_facts(config: Config, store: xr.Dataset) -> dict[str, Any]:
    """What the saved model says of its training; JSON values only."""
    return {
        "software_version": __version__,
        "length": config.sequences.length,
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


def _training_batches(config: Config, store: xr.Dataset, mask: np.ndarray) -> SequenceBatches:
    chosen = split_windows(
        store.indexes[names.TIME],
        mask,
        length=config.sequences.length,
        stride=config.sequences.stride,
        step_hours=config.data.step_hours,
        where="splits.train",
    )
    size = int(mask.sum()) * int(np.prod(store["maps"].shape[1:])) * 4
    return SequenceBatches(
        store["maps"],
        chosen,
        labels=store["medicane"].values,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        negatives_per_positive=config.train.negatives_per_positive,
        cache=size <= CACHE_BYTES,
    )


def _key(config: Config, store: xr.Dataset) -> str:
    """What a checkpoint must agree on to be resumed."""
    recipe = {
        part: getattr(config, part).model_dump(mode="json")
        for part in ("sequences", "splits", "model", "train", "label")
    }
    text = json.dumps([recipe, store.attrs.get("content_digest"), __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _validation_logits(
    model: keras.Model, config: Config, store: xr.Dataset, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Causal logits and labels of the validation maps that lie in a whole sequence."""
    chosen = store.isel({names.TIME: np.flatnonzero(mask)})
    logits = predict(model, chosen["maps"], where="splits.validation")["logit"].values
    return logits, chosen["medicane"].values


def _calibrate(
    config: Config,
    model: keras.Model,
    store: xr.Dataset,
    mask: np.ndarray,
    batches: SequenceBatches,
) -> tuple[float, float, tuple[str, ...]]:
    """Fit temperature and threshold on validation and write them into the model."""
    logits, labels = _validation_logits(model, config, store, mask)
    offset = batches.prior_offset
    temperature = fit_temperature(logits, labels, prior_offset=offset)
    calibrated = (logits - offset) / temperature.value
    threshold = fit_threshold(1 / (1 + np.exp(-calibrated)), labels)
    chosen = threshold.value if config.detect.threshold is None else config.detect.threshold
    detector.set_calibration(model, temperature=temperature.value, offset=offset, threshold=chosen)
    notes = tuple(fitted.note for fitted in (temperature, threshold) if fitted.note)
    for note in notes:
        LOG.warning("calibration: %s", note)
    return chosen, temperature.value, notes


class _Follow(keras.callbacks.Callback):
    """After each epoch: score on validation, keep the best weights and a checkpoint, stop early."""

    def __init__(
        self,
        config: Config,
        store: xr.Dataset,
        validation: np.ndarray,
        batches: SequenceBatches,
        *,
        checkpoint: Path | None,
        on_epoch: OnEpoch | None,
        key: str,
    ) -> None:
        super().__init__()
        self._config, self._store, self._validation = config, store, validation
        self._batches, self._checkpoint, self._on_epoch, self._key = (
            batches,
            checkpoint,
            on_epoch,
            key,
        )
        self.rows: list[dict[str, float]] = []
        self.best, self.best_epoch, self.stopped = -np.inf, 0, False
        self.best_weights: list[np.ndarray] | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {}).get("loss", np.nan))
        if not np.isfinite(loss):
            return  # TerminateOnNaN has stopped the training; the best weights stay
        logits, labels = _validation_logits(self.model, self._config, self._store, self._validation)
        known = np.isfinite(logits) & (labels != names.UNKNOWN)
        positive, logits = labels[known] == names.MEDICANE, logits[known]
        scores = {
            "loss": loss,
            "val_loss": float(np.mean(np.logaddexp(0, np.where(positive, -logits, logits)))),
            "val_auc_pr": float(average_precision_score(positive, logits)),
            "learning_rate": float(np.asarray(self.model.optimizer.learning_rate)),
        }
        self.rows.append({"epoch": epoch + 1, **scores})
        if scores["val_auc_pr"] > self.best:
            self.best, self.best_epoch = scores["val_auc_pr"], epoch + 1
            self.best_weights = self.model.get_weights()
        if epoch + 1 - self.best_epoch >= self._config.train.patience:
            self.stopped = self.model.stop_training = True
        LOG.info("epoch %d: %s", epoch + 1, {k: round(v, 5) for k, v in scores.items()})
        if self._checkpoint is not None:
            self._save(self._checkpoint)
        if self._on_epoch is not None:
            self._on_epoch(epoch + 1, scores)

    def _state(self) -> list[Any]:
        # model.variables, unlike model.weights, holds the states of the dropout generators too.
        return [*self.model.variables, *self.model.optimizer.variables]

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = {
            "key": self._key,
            "rows": self.rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
        }
        arrays = {f"state_{i}": np.asarray(v) for i, v in enumerate(self._state())}
        arrays |= {f"best_{i}": w for i, w in enumerate(self.best_weights or [])}
        temporary = path.with_suffix(".partial")
        with temporary.open("wb") as file:
            np.savez(file, progress=np.array(json.dumps(progress)), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)

    def resume(self, model: keras.Model) -> int:
        """Take up a checkpoint of the same recipe and data; the number of epochs that are done."""
        path = self._checkpoint
        if path is None or not path.exists():
            return 0
        with np.load(path, allow_pickle=False) as kept:
            progress = json.loads(str(kept["progress"]))
            if progress["key"] != self._key:
                LOG.warning("%s: of another recipe or other data, not resumed", path)
                return 0
            self.set_model(model)
            for i, variable in enumerate(self._state()):
                variable.assign(kept[f"state_{i}"])
            count = sum(name.startswith("best_") for name in kept.files)
            self.best_weights = [kept[f"best_{i}"] for i in range(count)]
        self.rows = progress["rows"]
        self.best, self.best_epoch = progress["best"], progress["best_epoch"]
        self.stopped = progress["stopped"]
        self._batches.epoch = len(self.rows)
        LOG.info("training resumed after epoch %d", len(self.rows))
        return len(self.rows)
