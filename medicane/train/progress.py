"""After each epoch: score on validation, keep the best weights and a checkpoint, stop early."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import xarray as xr
from sklearn.metrics import average_precision_score

from medicane import names
from medicane.config import Config
from medicane.predict import predict
from medicane.store import maps_where
from medicane.train.curriculum import Unroll
from medicane.train.workers import Team

LOG = logging.getLogger(__name__)

#: Called after each epoch with its number (from 1) and its scores.
OnEpoch = Callable[[int, Mapping[str, float]], None]


def validation_logits(
    model: keras.Model, config: Config, store: xr.Dataset, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the validation maps that lie in a whole sequence, in ``detect.mode``.

    Parameters
    ----------
    mask
        (time) the maps of the validation split.
    """
    chosen = maps_where(store, mask)
    found = predict(model, chosen["maps"], mode=config.detect.mode, where="splits.validation")
    return found["logit"].values, chosen["medicane"].values


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of the weights, in their order."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


class Progress(keras.callbacks.Callback):
    """Follows the training of one network.

    Parameters
    ----------
    detector
        What validation is scored with and whose weights are kept.
    trained
        The detector whose weights are fitted: `detector` itself, or its twin of another arithmetic,
        from which it takes its weights after each epoch. What Keras fits shares them.
    team
        Worker 0 scores, and keeps the checkpoint; the others hear of both.
    unroll
        The curriculum, or none. Where it goes on to its next stage the fit ends, to be called anew.
    checkpoint
        A file for the state of the training, written after each epoch.
    key
        What a checkpoint must agree on to be resumed.

    Attributes
    ----------
    rows
        One row an epoch: its number and its scores.
    best, best_epoch, best_weights
        The highest AUC-PR on validation, the epoch (from 1) that reached it, and its weights.
    stopped, diverged
        Whether the training ended early: for want of progress, or for a loss that is not finite.
    """

    def __init__(
        self,
        detector: keras.Model,
        config: Config,
        store: xr.Dataset,
        validation: np.ndarray,
        *,
        trained: keras.Model,
        team: Team,
        unroll: Unroll | None,
        checkpoint: Path | None,
        on_epoch: OnEpoch | None,
        key: str,
    ) -> None:
        super().__init__()
        self._detector, self._config, self._store = detector, config, store
        self._trained, self._team = trained, team
        self._validation, self._checkpoint = validation, checkpoint
        self._on_epoch, self._key = on_epoch, key
        self.unroll = unroll
        self.rows: list[dict[str, float]] = []
        self.best, self.best_epoch = -np.inf, 0
        self.stopped = self.diverged = False
        self.best_weights: list[np.ndarray] | None = None
        self._cpu_before, self._cpu_began = 0.0, time.process_time()

    @property
    def done(self) -> int:
        """Epochs that are done."""
        return len(self.rows)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to fit."""
        return self.stopped or self.diverged or self.done >= self._config.train.epochs

    @property
    def core_seconds(self) -> float:
        """Processor time of this training, all its cores and all its resumed parts together."""
        return self._cpu_before + time.process_time() - self._cpu_began

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {}).get("loss", np.nan))
        if not np.isfinite(loss):
            self.diverged = True
            return  # TerminateOnNaN has stopped the training; the best weights stay
        number = epoch + 1
        if self._trained is not self._detector:
            self._detector.set_weights(self._trained.get_weights())
        scores = {"loss": loss, **self._scores()}
        scores["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        if self.unroll is not None:
            scores["sequence_length"] = float(self.unroll.length)
        self.rows.append({"epoch": number, **scores})
        if scores["val_auc_pr"] > self.best:
            self.best, self.best_epoch = scores["val_auc_pr"], number
            self.best_weights = self._detector.get_weights()
        self._go_on_or_stop(number, scores["val_auc_pr"])
        LOG.info("epoch %d: %s", number, {k: round(v, 5) for k, v in scores.items()})
        if not self._team.first:
            return
        if self._checkpoint is not None:
            self._save(self._checkpoint)
        if self._on_epoch is not None:
            self._on_epoch(number, scores)

    def _scores(self) -> dict[str, float]:
        if self._team.size == 1:
            return self._validated()
        # The decisions that follow are those of one worker: another processor may round otherwise.
        told = json.dumps(self._validated()) if self._team.first else ""
        scores: dict[str, float] = json.loads(self._team.from_first(told.encode()))
        self._team.agree(
            weights_digest(self._detector), where="training", law="weights must stay those of all"
        )
        return scores

    def _validated(self) -> dict[str, float]:
        logits, labels = validation_logits(
            self._detector, self._config, self._store, self._validation
        )
        known = np.isfinite(logits) & (labels != names.UNKNOWN)
        positive, logits = labels[known] == names.MEDICANE, logits[known]
        return {
            "val_loss": float(np.mean(np.logaddexp(0, np.where(positive, -logits, logits)))),
            "val_auc_pr": float(average_precision_score(positive, logits)),
        }

    def _go_on_or_stop(self, number: int, score: float) -> None:
        began = 0
        if self.unroll is not None:
            if self.unroll.follow(number, score):
                LOG.info("epoch %d: sequences of %d maps from here on", number, self.unroll.length)
                self.model.stop_training = True  # this fit only: the next one has longer sequences
            if not self.unroll.whole:
                return
            began = self.unroll.began
        if number - max(self.best_epoch, began) >= self._config.train.patience:
            self.stopped = self.model.stop_training = True

    def _state(self, fitted: keras.Model) -> list[Any]:
        # variables, unlike weights, hold the states of the dropout generators too.
        held = {id(v): v for network in (fitted, self._detector) for v in network.variables}
        return [*held.values(), *fitted.optimizer.variables]

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = {
            "key": self._key,
            "rows": self.rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "core_seconds": self.core_seconds,
            "unroll": None if self.unroll is None else self.unroll.to_json(),
        }
        arrays = {f"state_{i}": np.asarray(v) for i, v in enumerate(self._state(self.model))}
        arrays |= {f"best_{i}": w for i, w in enumerate(self.best_weights or [])}
        temporary = path.with_suffix(".partial")
        try:
            with temporary.open("wb") as file:
                np.savez(file, progress=np.array(json.dumps(progress)), **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def resume(self, fitted: keras.Model) -> None:
        """Take up a checkpoint of the same recipe and data, if there is one.

        Parameters
        ----------
        fitted
            The network that Keras fits, compiled; its state and its optimiser's become those kept.
        """
        path = self._checkpoint
        kept_here = path is not None and self._team.first and path.exists()
        content = self._team.from_first(path.read_bytes() if path and kept_here else b"")
        if not content:
            return
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                kept = {name: stored[name] for name in stored.files}
            progress = json.loads(str(kept["progress"]))
            other = progress["key"] != self._key
        except Exception as error:  # of whatever kind damaged bytes bring up
            LOG.warning("%s: not a whole checkpoint, training begins anew (%s)", path, error)
            return
        if other:
            LOG.warning("%s: of another recipe or other data, not resumed", path)
            return
        for i, variable in enumerate(self._state(fitted)):
            variable.assign(kept[f"state_{i}"])
        count = sum(name.startswith("best_") for name in kept)
        self.best_weights = [kept[f"best_{i}"] for i in range(count)]
        self.rows = progress["rows"]
        self.best, self.best_epoch = progress["best"], progress["best_epoch"]
        self.stopped = progress["stopped"]
        self._cpu_before = progress["core_seconds"]
        if progress["unroll"] is not None:
            self.unroll = Unroll.from_json(progress["unroll"])
        LOG.info("training resumed after epoch %d", self.done)
