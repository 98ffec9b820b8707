"""Is this map like the maps of the training? An autoencoder over the features of maps.

Features of the training maps are squeezed through a bottleneck and brought back; a map whose
features come back badly is unlike them. It is a warning, not a classifier: it says nothing of
medicanes. The autoencoder rides on the feature path of the detector as a layer that changes
nothing, so that it is saved with it, and is fitted after the detector, which it leaves as it is.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from medicane.errors import InputError
from medicane.model.layers import Shape

#: The fact that holds the result of the fit.
FACT = "out_of_domain"

#: Batches are of so many maps, smaller for few maps: twenty steps an epoch at least, if it can be.
BATCH, STEPS, LEARNING_RATE = 128, 20, 2e-3


@keras.saving.register_keras_serializable(package="medicane")
class OutOfDomain(layers.Layer):
    """The identity on features (..., F); carries an autoencoder of them.

    Standardised features → F/2, ReLU → F/8 → F/2, ReLU → F. Its weights are not trained with the
    detector but by `fit_out_of_domain`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trainable = False

    def build(self, input_shape: Shape) -> None:
        features = int(input_shape[-1] or 0)
        self.mean = self.add_weight(
            name="mean", shape=(features,), initializer="zeros", trainable=False
        )
        self.deviation = self.add_weight(
            name="deviation", shape=(features,), initializer="ones", trainable=False
        )
        self.autoencoder = _autoencoder(features, seed=0)
        self.autoencoder.trainable = False
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def call(self, features: Any) -> Any:
        return features

    def error(self, features: Any) -> Any:
        """Mean squared error of the standardised features: (N, F) → (N,)."""
        standard = (features - self.mean) / self.deviation
        return ops.mean(ops.square(self.autoencoder(standard, training=False) - standard), axis=-1)


def fit_out_of_domain(
    model: keras.Model, features: NDArray[np.floating[Any]], *, seed: int = 0, epochs: int = 30
) -> None:
    """Fit the autoencoder of a trained detector to the features of its training maps.

    The detector's own weights stay as they are. The 99th percentile of the error over these maps
    is kept among the facts, ``out_of_domain: {percentile_99, n_maps}``.

    Parameters
    ----------
    features
        (N, F), what ``encoder_of(model)`` makes of the training maps.

    Raises
    ------
    InputError
        If the model carries no autoencoder, or the features are not F finite numbers a map.
    """
    layer = _layer(model)
    values = np.asarray(features, dtype=np.float32)
    width = layer.mean.shape[0]
    if values.ndim != 2 or values.shape[1] != width or len(values) < 2:
        raise InputError("features", f"must be (maps, {width}), at least two", found=values.shape)
    if not np.isfinite(values).all():
        raise InputError("features", "must be finite", found="NaN or infinity")
    deviation = values.std(axis=0)
    # A feature that never moves in training (a dead unit) says nothing: left in its own units.
    layer.mean.assign(values.mean(axis=0))
    layer.deviation.assign(np.where(deviation > 1e-6, deviation, 1.0))
    standard = (values - np.asarray(layer.mean)) / np.asarray(layer.deviation)
    fitted = _autoencoder(width, seed=seed)
    fitted.compile(keras.optimizers.Adam(LEARNING_RATE), loss="mse", jit_compile=False)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(standard))
        # Batches of one size; the few maps left over have their turn in another epoch.
        size = max(1, min(BATCH, len(standard) // STEPS))
        for start in range(0, len(order) - size + 1, size):
            part = standard[order[start : start + size]]
            fitted.train_on_batch(part, part)
    layer.autoencoder.set_weights(fitted.get_weights())
    errors = _errors(layer, values)
    model.get_layer("card").facts[FACT] = {
        "percentile_99": float(np.percentile(errors, 99)),
        "n_maps": len(values),
    }


def knows_its_domain(model: keras.Model) -> bool:
    """Whether the model carries an autoencoder that has been fitted."""
    return FACT in model.get_layer("card").facts


def reconstruction_error(
    model: keras.Model, features: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """How unlike the training maps a map is: features (N, F) → mean squared error (N,).

    About 1 for features that the bottleneck cannot tell from the mean of the training; compare it
    with ``facts_of(model)["out_of_domain"]["percentile_99"]``.

    Raises
    ------
    InputError
        If the model carries no autoencoder, or one that was never fitted.
    """
    layer = _layer(model)
    if not knows_its_domain(model):
        raise InputError("model", "its autoencoder must be fitted first", found="first weights")
    return _errors(layer, np.asarray(features, dtype=np.float32))


def _errors(layer: OutOfDomain, values: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [
        np.asarray(layer.error(values[start : start + 4096]))
        for start in range(0, len(values), 4096)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _layer(model: keras.Model) -> OutOfDomain:
    for layer in model.layers:
        if isinstance(layer, OutOfDomain):
            return layer
    raise InputError("model", "must be built with model.out_of_domain", found="no autoencoder")


def _autoencoder(features: int, *, seed: int) -> keras.Sequential:
    hidden, bottleneck = max(features // 2, 2), max(features // 8, 1)
    sizes = ((hidden, "relu"), (bottleneck, None), (hidden, "relu"), (features, None))
    return keras.Sequential(
        [
            keras.Input((features,)),
            *(
                layers.Dense(
                    size,
                    activation=activation,
                    kernel_initializer=keras.initializers.GlorotUniform(seed=seed + i),
                )
                for i, (size, activation) in enumerate(sizes)
            ),
        ],
        name="autoencoder",
    )
