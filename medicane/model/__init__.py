"""The detector: an encoder of each map, a head that reads their order, one sigmoid a map.

Plain Keras 3 (``keras.ops``), so that any Keras backend can run it. Shapes: ``B`` sequences of
``T`` maps of ``H x W`` cells and ``C`` channels, channels last.

    maps (B, T, H, W, C)
      └ card       what the model was trained on, and the last gate before the network
      └ encoder    normalisation → DenseNet → mean and maximum over the map     (B, T, F)
      └ head       dropout → GRU returning sequences → dropout → one logit → calibration (B, T, 1)
      └ sigmoid    probability                                                    (B, T, 1)

The default is a small DenseNet and a GRU; its rivals (`docs/networks.md`) put something else in the
place of the one or the other and leave the rest as it is, so that everything that takes a detector
takes each of them.

There is one sigmoid and one family of losses, and neither is an option: a head and a loss that do
not match cannot be configured. Normalisation, calibration, threshold and the facts of training live
inside the saved file, so that a registered model is one file that cannot be fed with the wrong
statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from medicane import config as configuration
from medicane.errors import InputError
from medicane.model.attention import location_map
from medicane.model.carried import carried_head
from medicane.model.encoders import map_encoder
from medicane.model.ensemble import ensemble_of
from medicane.model.feedback import teacher_forced
from medicane.model.heads import sequence_head
from medicane.model.layers import Calibration, DetectorCard, FoldedTime
from medicane.model.out_of_domain import fit_out_of_domain, knows_its_domain, reconstruction_error
from medicane.model.packed import reading_packed
from medicane.model.parts import (
    assemble,
    check_maps,
    encoder_of,
    facts_of,
    head_of,
    load_detector,
    longest_sequence,
    looks_ahead,
    save_detector,
    set_calibration,
    temporal_reach,
)
from medicane.model.sliding import sliding
from medicane.model.temporal import sequence_encoder
from medicane.normalise import Statistics

__all__ = [
    "Calibration",
    "DetectorCard",
    "FoldedTime",
    "build_detector",
    "carried_head",
    "check_maps",
    "compile_detector",
    "encoder_of",
    "ensemble_of",
    "facts_of",
    "fit_out_of_domain",
    "head_of",
    "knows_its_domain",
    "load_detector",
    "location_map",
    "longest_sequence",
    "looks_ahead",
    "reading_packed",
    "reconstruction_error",
    "save_detector",
    "set_calibration",
    "sliding",
    "smallest_grid",
    "teacher_forced",
    "temporal_reach",
]

DENSENET121_STRIDE = 32


def build_detector(
    config: configuration.Config,
    statistics: Statistics,
    *,
    facts: Mapping[str, Any] | None = None,
    precision: str = "float32",
) -> keras.Model:
    """Build the detector, ready to be compiled by `compile_detector`.

    Parameters
    ----------
    config
        ``model``, ``train.l2`` and ``sequences`` are read.
    statistics
        Mean and standard deviation per channel over the *training* split; its channels are the last
        axis of the input, in order.
    facts
        What the saved file says of its training, see `DetectorCard`.
    precision
        Keras' dtype policy of the encoder; normalisation, head and all weights are float32.

    Returns
    -------
    keras.Model
        ``maps (B, T, H, W, C) float32 → probability (B, T, 1) float32``. T, H and W are free; H
        and W must be at least `smallest_grid`.

    Raises
    ------
    InputError
        If a channel's standard deviation is zero or not finite, or a weights file does not fit.
    """
    for name, deviation in zip(statistics.channels, statistics.std, strict=True):
        if not np.isfinite(deviation) or deviation <= 0:
            raise InputError(
                f"channel {name}",
                "its standard deviation over the training split must be positive",
                found=deviation,
            )
    over_time = config.model.encoder in ("c3d", "r2plus1d")
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        encoder = (sequence_encoder if over_time else map_encoder)(config, statistics)
    finally:
        keras.config.set_dtype_policy(usual)
    return assemble(
        encoder,
        sequence_head(config, encoder.output_shape[-1]),
        channels=statistics.channels,
        facts=facts or {},
        out_of_domain=config.model.out_of_domain,
    )


def compile_detector(model: keras.Model, config: configuration.Train, *, steps: int) -> None:
    """Give the detector its loss, weighted a map, and an optimiser.

    The loss is binary cross-entropy a map; with ``focal_gamma`` above 0 each map counts
    ``(1 - p)^gamma`` as much, p being the probability it gives the truth (Lin et al. 2017).

    Parameters
    ----------
    steps
        Optimiser steps of the whole training: the length of the cosine decay of the learning rate.
    """
    warmup = min(max(steps // 20, 1), steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=config.learning_rate / 10,
        warmup_target=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
        alpha=0.02,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(schedule, clipnorm=config.clipnorm),
        loss=(
            keras.losses.BinaryFocalCrossentropy(gamma=config.focal_gamma)
            if config.focal_gamma > 0
            else keras.losses.BinaryCrossentropy()
        ),
        weighted_metrics=[keras.metrics.AUC(curve="PR", name="auc_pr")],
        # XLA takes half a minute to compile and then trains more slowly on a CPU.
        jit_compile=config.jit_compile,
    )
    # Variables made inside the first step would have it traced twice.
    model.optimizer.build(model.trainable_variables)


def smallest_grid(config: configuration.Model) -> int:
    """Cells a side that the encoder needs, so that its last block still has one."""
    return DENSENET121_STRIDE if config.encoder == "densenet121" else 2 ** (len(config.blocks) + 1)
