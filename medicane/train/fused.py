"""Batch normalisation by the one kernel that TensorFlow has for it, while a network is trained.

Keras 3 composes it of a dozen operations, each of which goes over all maps: they are a third of a
training step. TensorFlow's fused kernel is the same function of the batch, its gradients and moving
statistics included, to what float32 sums of another order differ by. Layers are told to call it
while they train; what is saved, scored and exported is the layers of Keras as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def fuse_batch_normalisation(network: keras.Model) -> None:
    """Have all batch normalisation of maps in a network trained by the fused kernel, in place.

    On another backend than TensorFlow nothing changes. Nor does a layer's inference, its weights
    or its configuration, nor its training where the kernel has not what it needs: over several
    workers (`synchronized`), over another axis than the last, or with a mask.
    """
    if keras.backend.backend() != "tensorflow":
        return
    for layer in network._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = _fused(layer)


def _fused(layer: keras.layers.BatchNormalization) -> Callable[..., Any]:
    """What to call instead of `layer.call`."""
    import tensorflow as tf

    usual = type(layer).call

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        fits = (
            training
            and layer.trainable
            and mask is None
            and not (layer.synchronized or layer.renorm)
            and layer.scale
            and layer.center
            and len(inputs.shape) == 4
            and layer.axis in (-1, 3)
            and inputs.dtype != "float64"
        )
        if not fits:
            return usual(layer, inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=ops.cast(inputs, "float32"),
            scale=layer.gamma,
            offset=layer.beta,
            mean=[],
            variance=[],
            epsilon=layer.epsilon,
            is_training=True,
        )
        # The kernel's variance is that of the population (n - 1); Keras keeps that of the batch.
        n = ops.cast(tf.size(inputs) // inputs.shape[-1], "float32")
        for moving, batch in (
            (layer.moving_mean, mean),
            (layer.moving_variance, variance * ((n - 1) / n)),
        ):
            moving.assign(moving * layer.momentum + batch * (1 - layer.momentum))
        return ops.cast(outputs, layer.compute_dtype)

    return call
