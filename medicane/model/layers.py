"""The layers of the project's own that a saved detector is made of; all load in safe mode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers, ops

Shape = tuple[Any, ...]


@keras.saving.register_keras_serializable(package="medicane")
class FoldedTime(layers.Wrapper):
    """Apply a layer to each map of a sequence by folding time into the batch.

    The same function as ``keras.layers.TimeDistributed`` at inference, at a fraction of its graph:
    ``TimeDistributed`` unrolls time in Python. While training, batch normalisation sees all maps of
    the batch at once instead of one time step after the other.

    Shapes: ``(B, T, ...) -> (B, T, F)`` for a layer ``(N, ...) -> (N, F)``; in the same way
    ``(B, W, T, F) -> (B, W, T, 1)`` for a head and the windows of a block.
    """

    def build(self, input_shape: Shape) -> None:
        if not self.layer.built:
            self.layer.build((None, *input_shape[2:]))
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        one = self.layer.compute_output_shape((None, *input_shape[2:]))
        return (*input_shape[:2], *one[1:])

    def call(self, maps: Any, training: bool | None = None) -> Any:
        shape = ops.shape(maps)
        features = self.layer(ops.reshape(maps, (-1, *shape[2:])), training=training)
        return ops.reshape(features, (-1, shape[1], *ops.shape(features)[1:]))


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

    def build(self, input_shape: Shape) -> None:
        self.offset = self.add_weight(name="offset", shape=(), initializer="zeros", trainable=False)
        self.temperature = self.add_weight(
            name="temperature", shape=(), initializer="ones", trainable=False
        )
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def call(self, logit: Any) -> Any:
        return (logit - self.offset) / self.temperature


@keras.saving.register_keras_serializable(package="medicane")
class FeatureSlice(layers.Layer):
    """Features ``start`` to ``stop`` of the last axis: ``(..., F) → (..., stop - start)``."""

    def __init__(self, start: int, stop: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.stop = start, stop

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.stop - self.start)

    def call(self, features: Any) -> Any:
        return features[..., self.start : self.stop]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start, "stop": self.stop}
