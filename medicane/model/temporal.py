"""Encoders that convolve over time too, C3D and R(2+1)D: ``(N, T, H, W, C) → (N, T, F)``.

Causal: time is padded with zeros before the first map and never pooled, so that there is an output
for each map, which sees that map and those before it, `TEMPORAL_REACH` in all at most. A map with
fewer before it (the first of a window, or of a period) sees zeros there: after batch normalisation
and ReLU, "nothing". No sequence is shorter than the reach, so that the last output of a window is
the same number whether the window is read alone or the whole series at once.

Space is halved where the compact encoder halves it. The width is chosen so that the detector has
as many weights as one of compact encoder and GRU with the same ``growth_rate``, ``blocks`` and
``units``; each (2+1)-D pair has as many as the 3-D convolution it stands for (Tran et al. 2018).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, regularizers

from medicane import config as configuration
from medicane.model.encoders import BATCH_NORM_MOMENTUM, compact_size, normalised
from medicane.model.heads import recurrent_size
from medicane.model.layers import FoldedTime
from medicane.normalise import Statistics

#: Maps that a convolution over time takes in, and how many of them stand behind each other at most.
TAPS = 3
TEMPORAL_CONVOLUTIONS = 4
#: Maps that one output sees at most; never more than the shortest sequence (10) holds.
TEMPORAL_REACH = 1 + TEMPORAL_CONVOLUTIONS * (TAPS - 1)


def sequence_encoder(config: configuration.Config, statistics: Statistics) -> keras.Model:
    """``model.encoder: c3d`` or ``r2plus1d``."""
    chosen = config.model
    channels = len(statistics.channels)
    width = fitted_width(chosen, channels=channels)
    factored = chosen.encoder == "r2plus1d"
    maps = keras.Input((None, None, None, channels), name="map_sequence")
    x = normalised(maps, statistics)
    for number, (size, wanted) in enumerate(_plan(chosen, width)):
        taps = TAPS if number < TEMPORAL_CONVOLUTIONS else 1
        name, strides = ("stem", 2) if number == 0 else (f"block{number}", 1)
        if factored and taps > 1:
            between = _between(x.shape[-1], wanted, size=size)
            x = _convolution(x, between, 1, size, f"{name}_space", strides, l2=config.train.l2)
            x = _activated(x, f"{name}_space")
            x = _convolution(x, wanted, taps, 1, f"{name}_time", 1, l2=config.train.l2)
        else:
            x = _convolution(x, wanted, taps, size, name, strides, l2=config.train.l2)
        x = _activated(x, name)
        if number == 0:
            x = layers.MaxPooling3D((1, 3, 3), (1, 2, 2), padding="same", name="stem_pool")(x)
        elif number < len(chosen.blocks):
            x = layers.AveragePooling3D((1, 2, 2), name=f"{name}_pool")(x)
    features = layers.Concatenate(name="features")(
        [
            FoldedTime(layers.GlobalAveragePooling2D(), name="mean")(x),
            FoldedTime(layers.GlobalMaxPooling2D(), name="maximum")(x),
        ]
    )
    return keras.Model(maps, features, name="encoder")


def fitted_width(chosen: configuration.Model, *, channels: int) -> int:
    """Filters of the stem with which C3D comes nearest to the size of compact encoder and GRU."""
    compact, features = compact_size(chosen, channels=channels)
    budget = compact + recurrent_size(features, chosen.units)

    def size(width: int) -> int:
        total, before = 0, channels
        for number, (kernel, wanted) in enumerate(_plan(chosen, width)):
            taps = TAPS if number < TEMPORAL_CONVOLUTIONS else 1
            total += taps * kernel**2 * before * wanted + 2 * wanted
            before = wanted
        return total + (2 * before + 1) * chosen.units  # the hidden layer of the head

    width = 2
    while size(width) < budget:
        width += 1
    return width if size(width) - budget < budget - size(width - 1) else width - 1


def _plan(chosen: configuration.Model, width: int) -> list[tuple[int, int]]:
    """(cells a side, filters) of each convolution: the stem, and one for each block."""
    return [(5, width)] + [(3, 2 * width)] * len(chosen.blocks)


def _between(before: int, wanted: int, *, size: int) -> int:
    """Filters between the halves of a (2+1)-D convolution, for the weights of the 3-D one."""
    return max(TAPS * size**2 * before * wanted // (size**2 * before + TAPS * wanted), 1)


def _convolution(
    x: Any, filters: int, taps: int, size: int, name: str, strides: int, *, l2: float
) -> Any:
    if taps > 1 or size > 1:
        # In space as padding "same" would be, in time the past alone.
        x = layers.ZeroPadding3D(
            ((taps - 1, 0), (size // 2, size // 2), (size // 2, size // 2)), name=f"{name}_pad"
        )(x)
    return layers.Conv3D(
        filters,
        (taps, size, size),
        strides=(1, strides, strides),
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizers.L2(l2),
        name=name,
    )(x)


def _activated(x: Any, name: str) -> Any:
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)
