"""Heads: features of the maps in their order → one calibrated logit a map, (B, T, F) → (B, T, 1).

All end in the same way: dropout, one logit, calibration. What reads the order differs.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, regularizers

from medicane import config as configuration
from medicane.model.feedback import feedback_layers
from medicane.model.layers import Calibration

#: Kernel and dilations of the temporal convolutions; together they see the last 11 maps, each of
#: them, which is less than a sequence of 12.
TCN_KERNEL = 3
TCN_DILATIONS = (1, 2, 2)


def sequence_head(config: configuration.Config, features: int) -> keras.Model:
    """The head of ``model.rnn`` for so many features a map."""
    chosen, l2 = config.model, regularizers.L2(config.train.l2)
    sequence = keras.Input((None, features), name="feature_sequence")
    # Dropout stands outside the cell: a recurrent dropout keeps cuDNN away.
    x = layers.Dropout(chosen.dropout, name="dropout_in")(sequence)
    if chosen.label_feedback:
        logit = feedback_layers(x, chosen, regularizer=l2)
    else:
        x = _in_order(x, chosen, l2, jit_compile=config.train.jit_compile)
        x = layers.Dropout(chosen.dropout, name="dropout_out")(x)
        logit = layers.Dense(1, kernel_regularizer=l2, dtype="float32", name="logit")(x)
    calibrated = Calibration(dtype="float32", name="calibration")(logit)
    return keras.Model(sequence, calibrated, name="head")


def recurrent_size(features: int, units: int) -> int:
    """Trainable weights of a GRU of so many units."""
    return 3 * units * (features + units + 2)


def _in_order(
    x: Any, chosen: configuration.Model, l2: regularizers.Regularizer, *, jit_compile: bool
) -> Any:
    if chosen.rnn == "none":
        # A layer of the same width, so that the single map is no weaker than it has to be.
        return layers.Dense(
            chosen.units, activation="relu", kernel_regularizer=l2, name="each_alone"
        )(x)
    if chosen.rnn == "tcn":
        return _temporal_convolutions(x, chosen, l2)
    # Both directions together are as wide as the one direction would be.
    units = (chosen.units + 1) // 2 if chosen.bidirectional else chosen.units
    recurrent = (layers.LSTM if chosen.rnn == "lstm" else layers.GRU)(
        units,
        return_sequences=True,
        kernel_regularizer=l2,
        recurrent_regularizer=l2,
        recurrent_dropout=chosen.recurrent_dropout,
        # XLA cannot compile cuDNN's cells.
        use_cudnn=False if jit_compile else "auto",
        name=chosen.rnn,
    )
    if chosen.bidirectional:
        return layers.Bidirectional(recurrent, name="both_ways")(x)
    return recurrent(x)


def _temporal_convolutions(x: Any, chosen: configuration.Model, l2: Any) -> Any:
    """Residual blocks of causal dilated convolutions over the features (Bai et al. 2018)."""
    for number, dilation in enumerate(TCN_DILATIONS, start=1):
        new = layers.Conv1D(
            chosen.units,
            TCN_KERNEL,
            padding="causal",
            dilation_rate=dilation,
            activation="relu",
            kernel_initializer="he_normal",
            kernel_regularizer=l2,
            name=f"tcn{number}",
        )(x)
        if number == 1:
            x = layers.Dense(chosen.units, kernel_regularizer=l2, name="tcn_width")(x)
        else:
            new = layers.Dropout(chosen.dropout, name=f"tcn{number}_dropout")(new)
        x = layers.Add(name=f"tcn{number}_add")([x, new])
    return x
