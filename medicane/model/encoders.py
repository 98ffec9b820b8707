"""Encoders of one map: a small DenseNet, and the ImageNet one; ``(N, H, W, C) → (N, F)``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, regularizers

from medicane import config as configuration
from medicane.errors import InputError
from medicane.model.attention import channel_attention, located_features
from medicane.normalise import Statistics

#: Moving statistics of batch normalisation. Time is folded into the batch, so they move once a step
#: (``TimeDistributed`` would move them T times); 0.9 lets them follow within a short first epoch.
BATCH_NORM_MOMENTUM = 0.9


def normalised(maps: Any, statistics: Statistics) -> Any:
    """The first layer of every encoder: each channel with mean 0 and deviation 1 in training."""
    return layers.Normalization(
        axis=-1,
        mean=statistics.mean,
        variance=np.square(statistics.std),
        dtype="float32",  # in 16 bits a pressure would be known to 512 Pa
        name="normalisation",
    )(maps)


def map_encoder(config: configuration.Config, statistics: Statistics) -> keras.Model:
    """Normalisation, network, and the features of the map: mean and maximum, or by attention.

    Raises
    ------
    InputError
        If a weights file does not fit.
    """
    chosen = config.model
    image = keras.Input((None, None, len(statistics.channels)), name="map")
    x = normalised(image, statistics)
    if chosen.encoder == "densenet121":
        features = _pooled(_densenet121(x, chosen))
    else:
        scales = _compact_densenet(x, chosen, l2=config.train.l2)
        if chosen.attention == "triple":
            features = located_features(scales, width=4 * chosen.growth_rate, l2=config.train.l2)
        else:
            features = _pooled(scales[-1])
    encoder = keras.Model(image, features, name="encoder")
    if chosen.weights is not None and chosen.encoder == "compact":
        _load_weights(encoder, chosen.weights)
    return encoder


def compact_size(chosen: configuration.Model, *, channels: int) -> tuple[int, int]:
    """Trainable weights of the compact encoder and the number of its features, without building it.

    What the convolutions over time are given to spend, so that the rivals are of one size.
    """
    growth, width = chosen.growth_rate, 2 * chosen.growth_rate
    weights = 25 * channels * width + 2 * width
    for number, depth in enumerate(chosen.blocks, start=1):
        for _ in range(depth):
            weights += 2 * width + width * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth
            width += growth
        if number < len(chosen.blocks):
            weights += 2 * width + width * (width // 2)
            width //= 2
    return weights + 2 * width, 2 * width


def _pooled(x: Any) -> Any:
    # The mean alone dilutes a storm of a few cells; the maximum keeps it visible.
    return layers.Concatenate(name="features")(
        [
            layers.GlobalAveragePooling2D(name="mean")(x),
            layers.GlobalMaxPooling2D(name="maximum")(x),
        ]
    )


def _compact_densenet(x: Any, chosen: configuration.Model, *, l2: float) -> list[Any]:
    """DenseNet-BC (Huang et al. 2017): bottlenecks of 4 k, transitions that halve channels.

    Returns the activated output of each block, ``(N, h, w, c)``; the last is the network's.
    """
    growth, triple = chosen.growth_rate, chosen.attention == "triple"

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

    def finished(x: Any, number: int, name: str) -> Any:
        x = activated(x, name)
        return channel_attention(x, f"block{number}", l2=l2) if triple else x

    scales = []
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
            scales.append(finished(x, number, name))
            x = convolution(scales[-1], x.shape[-1] // 2, 1, f"{name}_conv")
            x = layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return [*scales, finished(x, len(chosen.blocks), "last")]


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
