"""What is fitted after the network: temperature and threshold, and the autoencoder.

Temperature and threshold on the validation split, and only there; the autoencoder on the features
of the training split.
"""

from __future__ import annotations

import logging

import keras
import numpy as np
import xarray as xr

from medicane import model as detector
from medicane import names
from medicane.config import Config
from medicane.evaluate.calibration import fit_temperature, fit_threshold
from medicane.packing import read_block
from medicane.sequences import split_windows
from medicane.train.progress import validation_logits

LOG = logging.getLogger(__name__)

#: Maps that the autoencoder is fitted to, at most.
MOST_MAPS = 20_000
#: Its passes over them.
AUTOENCODER_EPOCHS = 30
#: Sequences encoded at once.
BATCH = 32
#: Maps this close to each other are read with those between them.
NEAR = 24


def calibrate(
    config: Config,
    model: keras.Model,
    store: xr.Dataset,
    mask: np.ndarray,
    *,
    prior_offset: float,
) -> tuple[float, float, tuple[str, ...]]:
    """Fit temperature and threshold on validation and write them into the model.

    Parameters
    ----------
    mask
        (time) the maps of the validation split.
    prior_offset
        What the sampling added to the logits; taken off first.

    Returns
    -------
    threshold, temperature, notes
        The threshold is ``detect.threshold`` where that is set.
    """
    logits, labels = validation_logits(model, config, store, mask)
    temperature = fit_temperature(logits, labels, prior_offset=prior_offset)
    calibrated = (logits - prior_offset) / temperature.value
    threshold = fit_threshold(1 / (1 + np.exp(-calibrated)), labels)
    chosen = threshold.value if config.detect.threshold is None else config.detect.threshold
    detector.set_calibration(
        model, temperature=temperature.value, offset=prior_offset, threshold=chosen
    )
    notes = tuple(fitted.note for fitted in (temperature, threshold) if fitted.note)
    for note in notes:
        LOG.warning("calibration: %s", note)
    return chosen, temperature.value, notes


def learn_domain(config: Config, model: keras.Model, store: xr.Dataset, mask: np.ndarray) -> None:
    """Fit the detector's autoencoder to the features of the training maps.

    Parameters
    ----------
    mask
        (time) the maps of the training split; at most `MOST_MAPS` of them are drawn, seeded.
    """
    features = training_features(config, model, store, mask)
    detector.fit_out_of_domain(model, features, seed=config.train.seed, epochs=AUTOENCODER_EPOCHS)


def training_features(
    config: Config, model: keras.Model, store: xr.Dataset, mask: np.ndarray
) -> np.ndarray:
    """What the encoder makes of maps drawn from a split: (map, feature) float32.

    An encoder that reads several maps sees a drawn map with those before it, and fewer are drawn
    in turn, so that the cost is the same.
    """
    reach, encoder = detector.temporal_reach(model), detector.encoder_of(model)
    rows = split_windows(
        store.indexes[names.TIME],
        mask,
        length=reach,
        step_hours=config.data.step_hours,
        where="splits.train",
    )
    rng = np.random.default_rng(config.train.seed)
    most = max(MOST_MAPS // reach, 1)
    if len(rows) > most:
        rows = rows[np.sort(rng.choice(len(rows), most, replace=False))]
    maps = store["maps"]
    over_time = len(encoder.input_shape) == 5
    parts = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        used, where = np.unique(part, return_inverse=True)
        # Maps close together are read as one slice; what lies between two years is not.
        runs = np.split(used, np.flatnonzero(np.diff(used) > NEAR) + 1)
        read = [read_block(maps, int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        values = np.concatenate(read)[where.reshape(part.shape)]
        found = np.asarray(encoder.predict_on_batch(values if over_time else values[:, -1]))
        parts.append(found[:, -1] if over_time else found)
    return np.concatenate(parts)
