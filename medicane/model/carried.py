"""The head with its recurrent state as an input and an output: one map after the other.

A detector labels windows: its recurrent layer starts at zero with each of them. Here the state of
the maps so far goes in and that of the new ones comes out, so that a series can be read to its end
from one start. That is another function than the windowed one: what the two make of a map differs
from the first map on that a window has left behind.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, tree

from medicane.errors import InputError
from medicane.model.parts import head_of


def carried_head(model: keras.Model) -> keras.Model:
    """The head of a detector, its state carried; shares all weights.

    Returns
    -------
    keras.Model
        ``[features (B, T, F), *states (B, n)] → [calibrated logit (B, T, 1), *states (B, n)]``, for
        any T. States of zero are those before the first map: with them the logits are the head's.

    Raises
    ------
    InputError
        If something else than a GRU or LSTM reads the order of the maps, or reads it backwards too.
    """
    return _carrying(head_of(model))


def _carrying(head: keras.Model) -> keras.Model:
    sequence = keras.Input((None, head.input_shape[-1]), name="feature_sequence")
    logits, before, after = [], [], []
    members = [layer for layer in head.layers if isinstance(layer, keras.Model)]
    for member in members:  # of an ensemble
        network = _carrying(member)
        start = [keras.Input(state.shape[1:]) for state in network.inputs[1:]]
        logit, *end = network([head.get_layer(f"{member.name}_features")(sequence), *start])
        logits.append(logit)
        before += start
        after += end
    if members:
        logit = head.get_layer("calibration")(head.get_layer("mean_logit")(logits))
    else:
        logit, before, after = _carrying_one(head, sequence)
    return keras.Model([sequence, *before], [logit, *after], name=head.name)


def _carrying_one(head: keras.Model, x: Any) -> tuple[Any, list[Any], list[Any]]:
    """Logits of a head without members, and its states before and after."""
    if not any(isinstance(layer, layers.RNN) for layer in head.layers):
        raise InputError(
            "model",
            "a state can be carried where a GRU or LSTM reads the maps in their order",
            found=f"{head.layers[2].name} in its place",  # behind the input and its dropout
        )
    before, after = [], []
    for layer in head.layers[1:]:  # one after the other, the input apart
        if isinstance(layer, layers.RNN):
            before = [keras.Input((size,)) for size in tree.flatten(layer.cell.state_size)]
            stepping = layers.RNN(
                layer.cell, return_sequences=True, return_state=True, dtype=layer.dtype_policy
            )
            x, *after = stepping(x, initial_state=before)
        else:
            x = layer(x)
    return x, before, after
