"""Tiny detectors of every kind, untrained but not trivial, for tests of what takes a detector."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from medicane import model as detector
from medicane.config import Config, make_config
from medicane.normalise import Statistics

CHANNELS = ("msl_local", "u10", "v10")
STATISTICS = Statistics(CHANNELS, np.array([10.0, -3.0, 0.5]), np.array([5.0, 2.0, 0.1]), 100)

#: Every network that the configuration can ask for, but the large one.
VARIANTS: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm": {"rnn": "lstm"},
    "single_map": {"rnn": "none"},
    "tcn": {"rnn": "tcn"},
    "bidirectional": {"bidirectional": True},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "triple": {"attention": "triple", "blocks": [1, 1], "growth_rate": 4},
    "feedback_gru": {"label_feedback": True},
    "feedback_lstm": {"label_feedback": True, "rnn": "lstm", "recurrent_dropout": 0.2},
    "c3d": {"encoder": "c3d", "rnn": "none"},
    "r2plus1d": {"encoder": "r2plus1d", "rnn": "none"},
    "out_of_domain": {"out_of_domain": True},
}


def configuration(train: dict[str, Any] | None = None, **model: Any) -> Config:
    """A configuration of a tiny network; keywords are keys of ``model``."""
    small = {"blocks": [1], "growth_rate": 3, "units": 6, "attention": "none"}
    return make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {**small, **model},
            "train": train or {},
        }
    )


def build(seed: int = 1, facts: dict[str, Any] | None = None, **model: Any) -> keras.Model:
    """A tiny detector with moving statistics as after training, so that inference is not trivial.

    Its biases and gates are not zero either: an order or a part left out would show.
    """
    keras.utils.set_random_seed(seed)
    told = {"length": 10, "step_hours": 6, "smallest_grid": 8, **(facts or {})}
    built = detector.build_detector(configuration(**model), STATISTICS, facts=told)
    rng = np.random.default_rng(seed)
    for layer in detector.encoder_of(built).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.2, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    for weight in detector.head_of(built).trainable_weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    return built


def standard_maps(*shape: int, seed: int = 2) -> np.ndarray:
    """Maps (..., H, W, 3) of the mean and deviation that the detectors were told of."""
    values = np.random.default_rng(seed).normal(size=(*shape, len(CHANNELS)))
    return (values * STATISTICS.std + STATISTICS.mean).astype(np.float32)


def answers(model: keras.Model, maps: Any) -> np.ndarray:
    """Probabilities, without tracing a graph: (B, T)."""
    return np.asarray(model(maps, training=False))[..., 0]
