"""The arithmetic of a training step by the kernels that TensorFlow has for it.

Keras 3 composes batch normalisation of a dozen operations, each of which goes over all maps: they
are a third of a step. It composes clipping and Adam of some fifty for each weight array: they are
half of what is traced before the first step. TensorFlow's kernels are the same functions, gradients
and moving statistics included, to what float32 sums of another order differ by. Layers and
optimiser are told to call them while they train; what is saved, scored and exported is Keras' own
as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def fuse(model: keras.Model) -> None:
    """Have a model, and its optimiser if it is compiled, trained by the fused kernels, in place.

    On another backend than TensorFlow nothing changes. Nor does inference, a weight or a
    configuration, nor what the kernels do not fit: batch normalisation over several workers
    (`synchronized`), over another axis than the last, or with a mask; another optimiser than
    Adam, one that is called inside a strategy of `tf.distribute`, or sparse gradients.
    """
    if keras.backend.backend() != "tensorflow":
        return
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = _normalisation(layer)
    optimizer: Any = getattr(model, "optimizer", None)
    if type(optimizer) is keras.optimizers.Adam and not optimizer.amsgrad:
        optimizer.apply = _clipped_adam(optimizer)


def _clipped_adam(optimizer: keras.optimizers.Adam) -> Callable[..., None]:
    """What to call instead of `optimizer.apply`."""
    import tensorflow as tf

    usual = type(optimizer).apply
    usual_step, clipnorm = optimizer.update_step, optimizer.clipnorm

    def apply(gradients: Sequence[Any], variables: Sequence[Any] | None = None) -> None:
        fits = not tf.distribute.has_strategy() and all(
            isinstance(gradient, tf.Tensor) and gradient.dtype == "float32"
            for gradient in gradients
        )
        if not fits:
            usual(optimizer, gradients, variables)
            return
        if clipnorm:
            norms = tf.sqrt(2 * tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients]))
            excess = tf.unstack(tf.maximum(norms / clipnorm, 1))
            gradients = [g / e for g, e in zip(gradients, excess, strict=True)]
        step = ops.cast(optimizer.iterations + 1, "float32")
        # Once for all weights: each number written out in a call is an operation of its own.
        beta_1, beta_2, epsilon = map(
            tf.constant, (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon)
        )
        beta_1_power, beta_2_power = tf.pow(beta_1, step), tf.pow(beta_2, step)

        def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
            index = optimizer._get_variable_index(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=optimizer._momentums[index].value.handle,
                v=optimizer._velocities[index].value.handle,
                beta1_power=beta_1_power,
                beta2_power=beta_2_power,
                lr=ops.cast(learning_rate, "float32"),
                beta1=beta_1,
                beta2=beta_2,
                epsilon=epsilon,
                grad=gradient,
            )

        optimizer.update_step, optimizer.clipnorm = update_step, None
        try:
            usual(optimizer, gradients, variables)
        finally:
            optimizer.update_step, optimizer.clipnorm = usual_step, clipnorm

    return apply


def _normalisation(layer: keras.layers.BatchNormalization) -> Callable[..., Any]:
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
