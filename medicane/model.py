"""The detector: a DenseNet over each map, a GRU over their order, one sigmoid a map.

Plain Keras 3 (``keras.ops``), so that any Keras backend can run it. Shapes: ``B`` sequences of
``T`` maps of ``H x W`` cells and ``C`` channels, channels last.

    maps (B, T, H, W, C)
      └ card       what the model was trained on, and the last gate before the network
      └ encoder    normalisation → DenseNet → mean and maximum over the map     (B, T, F)
      └ head       dropout → GRU returning sequences → dropout → one logit → calibration (B, T, 1)
      └ sigmoid    probability                                                    (B, T, 1)

There is one head and one loss, and neither is an option: a head and a loss that do not match cannot
be configured. Normalisation, calibration, threshold and the facts of training live inside the saved
file, so that a registered model is one file that cannot be fed with the wrong statistics.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops, regularizers

from medicane import config as configuration
from medicane.errors import InputError
from medicane.normalise import Statistics

#: Moving statistics of batch normalisation. Time is folded into the batch, so they move once a step
#: (``TimeDistributed`` would move them T times); 0.9 lets them follow within a short first epoch.
BATCH_NORM_MOMENTUM = 0.9

DENSENET121_STRIDE = 32


@keras.saving.register_keras_serializable(package="medicane")
class FoldedTime(layers.Wrapper):
    """Apply a layer to each map of a sequence by folding time into the batch.

    The same function as ``keras.layers.TimeDistributed`` at inference, at a fraction of its graph:
    ``TimeDistributed`` unrolls time in Python. While training, batch normalisation sees all maps of
    the batch at once instead of one time step after the other.

    Shapes: ``(B, T, ...) -> (B, T, F)`` for a layer ``(N, ...) -> (N, F)``.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if not self.layer.built:
            self.layer.build((None, *input_shape[2:]))
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        features = self.layer.compute_output_shape((None, *input_shape[2:]))
        return (*input_shape[:2], features[-1])

    def call(self, maps: Any, training: bool | None = None) -> Any:
        shape = ops.shape(maps)
        features = self.layer(ops.reshape(maps, (-1, *shape[2:])), training=training)
        return ops.reshape(features, (-1, shape[1], features.shape[-1]))


@keras.saving.register_keras_serializable(package="medicane")
class DetectorCard(layers.Layer):
    """The identity on maps; carries what the model was trained on inside the saved file.

    `facts` is a JSON object: channels (name, formula, units), grid spacing, step, domain, sequence
    length, label definition, threshold, data digest, software version.
    """

    def __init__(self, facts: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Through JSON and back: what is saved is what is held, tuples and all.
        self.facts: dict[str, Any] = json.loads(json.dumps(dict(facts)))

    def call(self, maps: Any) -> Any:
        return maps

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "facts": self.facts}


@keras.saving.register_keras_serializable(package="medicane")
class Calibration(layers.Layer):
    """Logit → (logit - offset) / temperature; both fitted after training and kept with the weights.

    The offset undoes the sampling of negatives (the prior), the temperature the over-confidence;
    they start as 0 and 1, the identity.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.offset = self.add_weight(name="offset", shape=(), initializer="zeros", trainable=False)
        self.temperature = self.add_weight(
            name="temperature", shape=(), initializer="ones", trainable=False
        )
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def call(self, logit: Any) -> Any:
        return (logit - self.offset) / self.temperature


def build_detector(
    config: configuration.Config, statistics: Statistics, *, facts: Mapping[str, Any] | None = None
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
    channels = list(statistics.channels)
    for name, deviation in zip(channels, statistics.std, strict=True):
        if not np.isfinite(deviation) or deviation <= 0:
            raise InputError(
                f"channel {name}",
                "its standard deviation over the training split must be positive",
                found=deviation,
            )
    encoder = _encoder(config, statistics)
    features = encoder.output_shape[-1]
    head = _head(config, features)
    maps = keras.Input((None, None, None, len(channels)), name="maps")
    checked = DetectorCard({"channels": channels, **(facts or {})}, name="card")(maps)
    sequence = FoldedTime(encoder, name="each_map")(checked)
    probability = layers.Activation("sigmoid", dtype="float32", name="probability")(head(sequence))
    return keras.Model(maps, probability, name="medicane_detector")


def compile_detector(model: keras.Model, config: configuration.Train, *, steps: int) -> None:
    """Give the detector its one loss (binary cross-entropy a map, weighted a map) and an optimiser.

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
        loss=keras.losses.BinaryCrossentropy(),
        weighted_metrics=[keras.metrics.AUC(curve="PR", name="auc_pr")],
        # XLA takes half a minute to compile and then trains more slowly on a CPU.
        jit_compile=False,
    )
    # Variables made inside the first step would have it traced twice.
    model.optimizer.build(model.trainable_variables)


def smallest_grid(config: configuration.Model) -> int:
    """Cells a side that the encoder needs, so that its last block still has one."""
    return DENSENET121_STRIDE if config.encoder == "densenet121" else 2 ** (len(config.blocks) + 1)


def encoder_of(model: keras.Model) -> keras.Model:
    """The map encoder inside a detector: ``(N, H, W, C) → (N, F)``."""
    return model.get_layer("each_map").layer


def head_of(model: keras.Model) -> keras.Model:
    """The sequence head inside a detector: ``(B, T, F) → calibrated logit (B, T, 1)``."""
    return model.get_layer("head")


def facts_of(model: keras.Model) -> dict[str, Any]:
    """What the saved file says of its training (the live dictionary: a change is saved)."""
    return model.get_layer("card").facts


def set_calibration(
    model: keras.Model, *, temperature: float, offset: float = 0.0, threshold: float | None = None
) -> None:
    """Write temperature, prior offset and decision threshold into the model.

    Raises
    ------
    ValueError
        If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; found {temperature}")
    calibration = head_of(model).get_layer("calibration")
    calibration.temperature.assign(temperature)
    calibration.offset.assign(offset)
    facts = facts_of(model)
    facts["temperature"] = float(temperature)
    facts["prior_offset"] = float(offset)
    if threshold is not None:
        facts["threshold"] = float(threshold)


def load_detector(path: str | Path) -> keras.Model:
    """Load a ``.keras`` file in Keras' safe mode (no pickled code is ever run).

    Raises
    ------
    InputError
        If the file is missing, is not a Keras archive, or is not a detector of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "the model file must exist", found="nothing there")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise InputError(
            path, "must be a .keras model that loads in safe mode", found=first_line
        ) from error
    if not any(isinstance(layer, DetectorCard) for layer in model.layers):
        raise InputError(
            path, "must be a medicane detector", found=f"a Keras model named {model.name!r}"
        )
    return model


def check_maps(
    model: keras.Model, *, channels: Sequence[str], shape: tuple[int, int], where: object
) -> None:
    """Refuse maps that the model was not trained on.

    Raises
    ------
    InputError
        If the channels or their order differ, or the grid is smaller than the encoder can take.
    """
    facts = facts_of(model)
    if list(channels) != facts["channels"]:
        raise InputError(
            where,
            f"the model needs the channels {facts['channels']} in this order",
            found=list(channels),
        )
    least = int(facts.get("smallest_grid", 1))
    if min(shape) < least:
        raise InputError(
            where,
            f"the model needs a grid of at least {least} x {least} cells",
            found=f"{shape[0]} x {shape[1]}",
        )


# --------------------------------------------------------------------------------------------------


def _encoder(config: configuration.Config, statistics: Statistics) -> keras.Model:
    chosen = config.model
    image = keras.Input((None, None, len(statistics.channels)), name="map")
    normalised = layers.Normalization(
        axis=-1, mean=statistics.mean, variance=np.square(statistics.std), name="normalisation"
    )(image)
    if chosen.encoder == "densenet121":
        x = _densenet121(normalised, chosen)
    else:
        x = _compact_densenet(normalised, chosen, l2=config.train.l2)
    # The mean alone dilutes a storm of a few cells; the maximum keeps it visible.
    pooled = layers.Concatenate(name="features")(
        [
            layers.GlobalAveragePooling2D(name="mean")(x),
            layers.GlobalMaxPooling2D(name="maximum")(x),
        ]
    )
    encoder = keras.Model(image, pooled, name="encoder")
    if chosen.weights is not None and chosen.encoder == "compact":
        _load_weights(encoder, chosen.weights)
    return encoder


def _compact_densenet(x: Any, chosen: configuration.Model, *, l2: float) -> Any:
    """DenseNet-BC (Huang et al. 2017): bottlenecks of 4 k, transitions that halve channels."""
    growth = chosen.growth_rate

    def convolution(x: Any, filters: int, size: int, name: str, strides: int = 1) -> Any:
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=regularizers.L2(l2),
            name=name,
        )(x)

    def activated(x: Any, name: str) -> Any:
        x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    x = convolution(x, 2 * growth, 5, "stem", strides=2)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(activated(x, "stem"))
    for number, depth in enumerate(chosen.blocks, start=1):
        for step in range(1, depth + 1):
            name = f"block{number}_{step}"
            new = convolution(activated(x, f"{name}a"), 4 * growth, 1, f"{name}_bottleneck")
            new = convolution(activated(new, f"{name}b"), growth, 3, f"{name}_conv")
            x = layers.Concatenate(name=f"{name}_join")([x, new])
        if number < len(chosen.blocks):
            name = f"transition{number}"
            x = convolution(activated(x, name), x.shape[-1] // 2, 1, f"{name}_conv")
            x = layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return activated(x, "last")


def _densenet121(x: Any, chosen: configuration.Model) -> Any:
    """The ImageNet network, frozen up to conv4, behind a 1x1 adapter to its three channels."""
    adapted = layers.Conv2D(3, 1, name="channel_adapter")(x)
    backbone = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(None, None, 3), name="densenet121"
    )
    if chosen.weights is not None:
        _load_weights(backbone, chosen.weights)
        # Without weights from elsewhere there is nothing worth freezing.
        for layer in backbone.layers:
            if layer.name.startswith("conv5"):
                break
            layer.trainable = False
    return backbone(adapted)


def _load_weights(network: keras.Model, path: str) -> None:
    if not Path(path).is_file():
        raise InputError("model.weights", "must be a local weights file", found=path)
    try:
        with warnings.catch_warnings():
            # Keras only warns where a file lacks some of the weights; half a network is no network.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(path)
    except Exception as error:
        raise InputError(
            f"model.weights: {path}", f"must fit {network.name}", found=str(error).splitlines()[0]
        ) from error


def _head(config: configuration.Config, features: int) -> keras.Model:
    chosen, l2 = config.model, regularizers.L2(config.train.l2)
    sequence = keras.Input((None, features), name="feature_sequence")
    # Dropout stands outside the cell: a recurrent dropout would keep cuDNN away.
    x = layers.Dropout(chosen.dropout, name="dropout_in")(sequence)
    cell = layers.LSTM if chosen.rnn == "lstm" else layers.GRU
    x = cell(
        chosen.units,
        return_sequences=True,
        kernel_regularizer=l2,
        recurrent_regularizer=l2,
        name=chosen.rnn,
    )(x)
    x = layers.Dropout(chosen.dropout, name="dropout_out")(x)
    logit = layers.Dense(1, kernel_regularizer=l2, dtype="float32", name="logit")(x)
    calibrated = Calibration(dtype="float32", name="calibration")(logit)
    return keras.Model(sequence, calibrated, name="head")
