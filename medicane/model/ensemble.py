"""Several detectors as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from medicane.errors import InputError
from medicane.model.layers import Calibration, FeatureSlice, FoldedTime
from medicane.model.out_of_domain import FACT, OutOfDomain
from medicane.model.parts import assemble, encoder_of, facts_of, head_of, longest_sequence

#: Facts that belong to one member alone.
_OF_A_MEMBER = ("temperature", "prior_offset", "threshold", FACT)
#: Facts that members must share.
_SHARED = ("channels", "length", "step_hours", "degrees", "domain", "formulas", "label")


def ensemble_of(
    models: Sequence[keras.Model], *, facts: Mapping[str, Any] | None = None
) -> keras.Model:
    """ONE detector whose logit is the mean of its members' logits.

    The encoder makes the features of all members, the head gives each member its own; so whatever
    takes a detector takes an ensemble: one file, encoded once a map, calibrated as a whole. The
    members' own calibrations act inside. The members are copied and may change afterwards. If
    any carries an autoencoder, the ensemble gets one over all features, to be fitted.

    Parameters
    ----------
    models
        At least two detectors of the same channels, step, length and label definition.
    facts
        What the file says of its training; by default what the first member says, without what
        was fitted to it alone.

    Raises
    ------
    InputError
        If there are fewer than two, or they do not belong together (the message names the fact).
    """
    if len(models) < 2:
        raise InputError("ensemble", "needs at least two members", found=len(models))
    first = facts_of(models[0])
    for number, model in enumerate(models[1:], start=2):
        for key in _SHARED:
            if facts_of(model).get(key) != first.get(key):
                raise InputError(
                    f"ensemble: member {number}",
                    f"must share {key} with the first: {first.get(key)}",
                    found=facts_of(model).get(key),
                )
    told = dict(first if facts is None else facts)
    for key in _OF_A_MEMBER:
        told.pop(key, None)
    # The ensemble needs the grid of the most demanding of them.
    told["smallest_grid"] = max(int(facts_of(model).get("smallest_grid", 1)) for model in models)
    # A state is carried no further than all of them have learnt to.
    told["longest_sequence"] = min(longest_sequence(model) for model in models)
    encoders = [_copy(encoder_of(model), f"member{i}") for i, model in enumerate(models, start=1)]
    heads = [_copy(head_of(model), f"member{i}") for i, model in enumerate(models, start=1)]
    return assemble(
        _joined_encoder(encoders),
        _joined_head(heads),
        channels=first["channels"],
        facts={**told, "members": len(models)},
        out_of_domain=any(
            isinstance(layer, OutOfDomain) for model in models for layer in model.layers
        ),
    )


def _joined_encoder(encoders: Sequence[keras.Model]) -> keras.Model:
    over_time = any(len(encoder.input_shape) == 5 for encoder in encoders)
    channels = encoders[0].input_shape[-1]
    maps = keras.Input((None,) * (3 if over_time else 2) + (channels,), name="map")
    features = [
        FoldedTime(encoder, name=f"{encoder.name}_each_map")(maps)
        if over_time and len(encoder.input_shape) == 4
        else encoder(maps)
        for encoder in encoders
    ]
    return keras.Model(maps, layers.Concatenate(name="features")(features), name="encoder")


def _joined_head(heads: Sequence[keras.Model]) -> keras.Model:
    widths = [head.input_shape[-1] for head in heads]
    sequence = keras.Input((None, sum(widths)), name="feature_sequence")
    logits, start = [], 0
    for head, width in zip(heads, widths, strict=True):
        own = FeatureSlice(start, start + width, name=f"{head.name}_features")(sequence)
        logits.append(head(own))
        start += width
    mean = layers.Average(dtype="float32", name="mean_logit")(logits)
    calibrated = Calibration(dtype="float32", name="calibration")(mean)
    return keras.Model(sequence, calibrated, name="head")


def _copy(network: keras.Model, name: str) -> keras.Model:
    copied = type(network).from_config({**network.get_config(), "name": name})
    copied.set_weights(network.get_weights())
    return copied
