"""Fit the detector: split, statistics of the training split, fit, stop early, calibrate.

Returns a model and its history; knows nothing of MLflow or Prefect. After each epoch the state
of the training is kept in a checkpoint, so that a training that was cut goes on where it stood and
ends with the same weights.

* `training`: the whole way, for one detector or an ensemble.
* `members`: one network, fitted epoch by epoch.
* `progress`: what happens after each epoch, and the checkpoint.
* `curriculum`: short sequences first.
* `workers`: several processes that train one network together.
* `calibration`: what is fitted after the network: temperature, threshold, autoencoder.
"""

from medicane.train.progress import OnEpoch
from medicane.train.training import (
    TrainedDetector,
    remove_checkpoint,
    train_detector,
    training_facts,
)
from medicane.train.workers import WorkerLostError, join

__all__ = [
    "OnEpoch",
    "TrainedDetector",
    "WorkerLostError",
    "join",
    "remove_checkpoint",
    "train_detector",
    "training_facts",
]
