"""Triple attention (after A3Net): which channel, which place, which scale.

* **channel**: squeeze-and-excitation (Hu et al. 2018) on the output of each dense block;
* **element**: a location map *A* in [0, 1] a block, multiplied into its features *S* before these
  are pooled; there is one class, so one map. It says *where*;
* **scale**: the pooled features of the blocks, brought to one width and added up with weights that
  a softmax gives them, map by map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops, regularizers
from numpy.typing import NDArray

from medicane.errors import InputError
from medicane.model.layers import Shape
from medicane.model.parts import encoder_of

#: The hidden layer of the channel attention is narrower than the channels by this factor.
SQUEEZE = 4


@keras.saving.register_keras_serializable(package="medicane")
class ScaleAttention(layers.Layer):
    """Features of S scales, each (N, F) → their weighted sum (N, F) and the weights (N, S)."""

    def __init__(self, kernel_regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape: Sequence[Shape]) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[0][-1], 1),
            initializer="glorot_uniform",
            regularizer=self.kernel_regularizer,
        )
        self.built = True

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> tuple[Shape, Shape]:
        return tuple(input_shape[0]), (input_shape[0][0], len(input_shape))

    def call(self, scales: Sequence[Any]) -> tuple[Any, Any]:
        stacked = ops.stack(scales, axis=1)
        weights = ops.softmax(ops.matmul(ops.tanh(stacked), self.kernel), axis=1)
        return ops.sum(stacked * weights, axis=1), ops.squeeze(weights, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
        }


def channel_attention(x: Any, name: str, *, l2: float) -> Any:
    """Squeeze-and-excitation: ``(N, h, w, c) → (N, h, w, c)``, each channel times 0 to 1."""
    channels = x.shape[-1]
    penalty = regularizers.L2(l2)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    hidden = layers.Dense(
        max(channels // SQUEEZE, 2),
        activation="relu",
        kernel_regularizer=penalty,
        name=f"{name}_hidden",
    )(squeezed)
    excited = layers.Dense(
        channels, activation="sigmoid", kernel_regularizer=penalty, name=f"{name}_excite"
    )(hidden)
    return layers.Multiply(name=f"{name}_channels")([x, excited])


def located_features(scales: Sequence[Any], *, width: int, l2: float) -> Any:
    """Element and scale attention: outputs of the blocks ``(N, h, w, c)`` → features (N, width)."""
    penalty = regularizers.L2(l2)
    pooled = []
    for number, x in enumerate(scales, start=1):
        place = layers.Conv2D(
            1, 1, activation="sigmoid", kernel_regularizer=penalty, name=f"location{number}"
        )(x)
        x = layers.Multiply(name=f"located{number}")([x, place])
        x = layers.Concatenate(name=f"features{number}")(
            [
                layers.GlobalAveragePooling2D(name=f"mean{number}")(x),
                layers.GlobalMaxPooling2D(name=f"maximum{number}")(x),
            ]
        )
        pooled.append(layers.Dense(width, kernel_regularizer=penalty, name=f"scale{number}")(x))
    features, _ = ScaleAttention(kernel_regularizer=penalty, name="scale_attention")(pooled)
    return features


def location_map(
    model: keras.Model, maps: NDArray[np.floating[Any]], *, batch: int = 32
) -> NDArray[np.float32]:
    """Where a detector with triple attention looks.

    The location maps of its blocks, brought to the grid of the first (bilinear) and averaged with
    the weights that the scale attention gives them.

    Parameters
    ----------
    model
        A detector of ``model.attention: triple``, or an ensemble of them (the mean of theirs).
    maps
        (N, H, W, C), as the model takes them.
    batch
        Maps at once.

    Returns
    -------
    ndarray
        (N, h, w) float32 in [0, 1]; h and w are a quarter of H and W, rounded up: 4 cells a side.

    Raises
    ------
    InputError
        If the model has no such attention.
    """
    encoder = encoder_of(model)
    nested = [layer for layer in encoder.layers if isinstance(layer, keras.Model)]
    lookers = [_looker(network) for network in ([encoder] if _attends(encoder) else nested)]
    if not lookers:
        raise InputError(
            "model", "must have attention triple to say where it looks", found="an encoder without"
        )
    parts = []
    for start in range(0, len(maps), batch):
        part = np.asarray(maps[start : start + batch], dtype=np.float32)
        parts.append(np.mean([_look(looker, part) for looker in lookers], axis=0))
    return np.concatenate(parts)


def _attends(encoder: keras.Model) -> bool:
    return any(isinstance(layer, ScaleAttention) for layer in encoder.layers)


def _looker(encoder: keras.Model) -> keras.Model:
    """Maps → the location map of each block and the weights of the scales."""
    if not _attends(encoder):
        raise InputError(
            "model", "must have attention triple to say where it looks", found="an encoder without"
        )
    places = [
        layer.output
        for layer in encoder.layers
        if layer.name.startswith("location") and isinstance(layer, layers.Conv2D)
    ]
    return keras.Model(encoder.input, [*places, encoder.get_layer("scale_attention").output[1]])


def _look(looker: keras.Model, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    *places, weights = looker.predict_on_batch(maps)
    size = places[0].shape[1:3]
    resized = [np.asarray(ops.image.resize(place, size))[..., 0] for place in places]
    return np.einsum("snhw,ns->nhw", np.stack(resized), np.asarray(weights)).astype(np.float32)
