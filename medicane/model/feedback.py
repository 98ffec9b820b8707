"""Label feedback: the label of the previous map is an input of the next one.

One recurrent cell reads ``[features of the map, label of the map before]`` and gives a logit. Where
the label is NaN it takes its own: the sigmoid of its logit at the map before, 0 at the first map.
A detector always runs on its own; `teacher_forced` opens the second input for training.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops, regularizers

from medicane import config as configuration
from medicane.errors import InputError
from medicane.model.layers import Shape

#: The name of the recurrent layer inside the head.
FEEDBACK = "feedback"


class _Feedback:
    """What the two cells share: a logit out, and its sigmoid among the states.

    Inputs a step: (B, F + 1), the last one the previous label or NaN. Output: logit (B, 1).
    States: those of the cell, and the probability of the step before (B, 1).
    """

    def __init__(self, units: int, output_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)  # type: ignore[call-arg]
        self.output_dropout = output_dropout
        self._dropout_out = layers.Dropout(output_dropout)
        inner: Any = getattr(self, "state_size")  # noqa: B009 - the cell's own
        self.state_size = [*(inner if isinstance(inner, (list, tuple)) else [inner]), 1]
        self.output_size = 1

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)  # type: ignore[misc]
        self.logit_kernel = self.add_weight(  # type: ignore[attr-defined]
            name="logit_kernel",
            shape=(self.units, 1),  # type: ignore[attr-defined]
            initializer="glorot_uniform",
            regularizer=self.kernel_regularizer,  # type: ignore[attr-defined]
        )
        self.logit_bias = self.add_weight(  # type: ignore[attr-defined]
            name="logit_bias", shape=(1,), initializer="zeros"
        )

    def call(self, inputs: Any, states: Any, training: bool | None = None) -> tuple[Any, Any]:
        *inner, own = states
        given = inputs[:, -1:]
        previous = ops.where(ops.isnan(given), own, given)
        x = ops.concatenate([inputs[:, :-1], previous], axis=-1)
        hidden, inner = super().call(x, inner, training=training)  # type: ignore[misc]
        hidden = self._dropout_out(hidden, training=training)
        logit = ops.matmul(hidden, self.logit_kernel) + self.logit_bias
        return logit, [*inner, ops.sigmoid(logit)]

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        return [ops.zeros((batch_size, size), dtype="float32") for size in self.state_size]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "output_dropout": self.output_dropout}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="medicane")
class FeedbackGRUCell(_Feedback, layers.GRUCell):
    """A GRU cell that is given the previous label, see `_Feedback`."""


@keras.saving.register_keras_serializable(package="medicane")
class FeedbackLSTMCell(_Feedback, layers.LSTMCell):
    """An LSTM cell that is given the previous label, see `_Feedback`."""


@keras.saving.register_keras_serializable(package="medicane")
class NoLabel(layers.Layer):
    """Append one NaN to the features of each map: ``(B, T, F) → (B, T, F + 1)``."""

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], input_shape[-1] + 1)

    def call(self, features: Any) -> Any:
        return ops.concatenate([features, ops.full_like(features[..., :1], float("nan"))], axis=-1)


def feedback_layers(
    x: Any, chosen: configuration.Model, *, regularizer: regularizers.Regularizer
) -> Any:
    """Features (B, T, F) → logits (B, T, 1) of a cell that hears its own labels."""
    kind = FeedbackLSTMCell if chosen.rnn == "lstm" else FeedbackGRUCell
    cell = kind(
        chosen.units,
        output_dropout=chosen.dropout,
        kernel_regularizer=regularizer,
        recurrent_regularizer=regularizer,
        recurrent_dropout=chosen.recurrent_dropout,
    )
    recurrent = layers.RNN(cell, return_sequences=True, dtype="float32", name=FEEDBACK)
    return recurrent(NoLabel(name="no_label")(x))


def teacher_forced(model: keras.Model) -> keras.Model:
    """The detector with a second input, the previous label: for training, sharing all weights.

    Parameters
    ----------
    model
        A detector of ``model.label_feedback: true``.

    Returns
    -------
    keras.Model
        ``{"maps": (B, T, H, W, C), "previous": (B, T, 1)} → probability (B, T, 1)``. ``previous``
        is the label of the map before, 0 or 1 (0 for the first map); NaN stands for the model's own
        output, so that NaN throughout gives what `model` gives.

    Raises
    ------
    InputError
        If the model has no label feedback.
    """
    head = model.get_layer("head")
    if not any(layer.name == FEEDBACK for layer in head.layers):
        raise InputError(
            "model", "must have label_feedback to be told the previous label", found=model.name
        )
    maps, previous = model.input, keras.Input((None, 1), name="previous")
    x = maps
    for layer in model.layers:  # the detector's own path up to the head, in order
        if layer.name not in ("maps", "head", "probability"):
            x = layer(x)
    x = head.get_layer("dropout_in")(x)
    x = layers.Concatenate(name="with_label")([x, previous])
    logit = head.get_layer("calibration")(head.get_layer(FEEDBACK)(x))
    probability = model.get_layer("probability")(logit)
    return keras.Model(
        {"maps": maps, "previous": previous}, probability, name="medicane_teacher_forced"
    )
