"""The parts of a detector, whatever it was built of, and what its saved file says of it."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import layers

from medicane.errors import InputError
from medicane.model.layers import DetectorCard, FoldedTime
from medicane.model.out_of_domain import OutOfDomain


def assemble(
    encoder: keras.Model,
    head: keras.Model,
    *,
    channels: Sequence[str],
    facts: Mapping[str, Any],
    out_of_domain: bool,
) -> keras.Model:
    """Card, encoder, head and sigmoid as one detector.

    Parameters
    ----------
    encoder
        ``(N, H, W, C) → (N, F)``, or over time as well: ``(N, T, H, W, C) → (N, T, F)``.
    head
        ``(B, T, F) → logit (B, T, 1)``.
    out_of_domain
        Carry an autoencoder of the features too, see `medicane.model.out_of_domain`.

    Returns
    -------
    keras.Model
        ``maps (B, T, H, W, C) → probability (B, T, 1)``.
    """
    maps = keras.Input((None, None, None, len(channels)), name="maps")
    checked = DetectorCard({**facts, "channels": list(channels)}, name="card")(maps)
    over_time = len(encoder.input_shape) == 5
    sequence = (encoder if over_time else FoldedTime(encoder, name="each_map"))(checked)
    if out_of_domain:
        sequence = OutOfDomain(name="out_of_domain")(sequence)
    probability = layers.Activation("sigmoid", dtype="float32", name="probability")(head(sequence))
    return keras.Model(maps, probability, name="medicane_detector")


def encoder_of(model: keras.Model) -> keras.Model:
    """The encoder inside a detector: ``(N, H, W, C) → (N, F)``.

    One that convolves over time (`temporal_reach` above 1): ``(N, T, H, W, C) → (N, T, F)``.
    """
    for layer in model.layers:
        if layer.name == "each_map":
            return layer.layer
    return model.get_layer("encoder")


def head_of(model: keras.Model) -> keras.Model:
    """The sequence head inside a detector: ``(B, T, F) → calibrated logit (B, T, 1)``."""
    return model.get_layer("head")


def facts_of(model: keras.Model) -> dict[str, Any]:
    """What the saved file says of its training (the live dictionary: a change is saved)."""
    return model.get_layer("card").facts


def longest_sequence(model: keras.Model) -> int:
    """Maps in the longest sequence that it was trained on: a window's, where it does not say."""
    facts = facts_of(model)
    return int(facts.get("longest_sequence", facts["length"]))


def temporal_reach(model: keras.Model) -> int:
    """Maps that one output of the *encoder* sees: itself and those before it; 1 for a map encoder.

    Read off the convolutions themselves. The head's reach is no part of it: a head runs over
    windows of features, whatever it looks back to.
    """
    return _reach(encoder_of(model))


def looks_ahead(model: keras.Model) -> bool:
    """Whether an output of a window depends on later maps of that window (a backward pass does)."""
    return any(isinstance(layer, layers.Bidirectional) for layer in _walk(head_of(model)))


def set_calibration(
    model: keras.Model, *, temperature: float, offset: float = 0.0, threshold: float | None = None
) -> None:
    """Write temperature, prior offset and decision threshold into the model.

    Raises
    ------
    ValueError
        If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; found {temperature}")
    calibration = head_of(model).get_layer("calibration")
    calibration.temperature.assign(temperature)
    calibration.offset.assign(offset)
    facts = facts_of(model)
    facts["temperature"] = float(temperature)
    facts["prior_offset"] = float(offset)
    if threshold is not None:
        facts["threshold"] = float(threshold)


def save_detector(model: keras.Model, path: Path) -> None:
    """Save as a ``.keras`` file, whole or not at all; the same detector gives the same bytes.

    Keras writes the hour and addresses in memory into the file. Without them the digest of the file
    (the attribute ``model_digest`` of detections) is that of a training that was not cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            model.save(Path(scratch) / path.name)
            with (
                zipfile.ZipFile(Path(scratch) / path.name) as saved,
                zipfile.ZipFile(partial, "w") as written,
            ):
                for name in saved.namelist():
                    content = saved.read(name)
                    if name.endswith(".json"):
                        content = _timeless(content)
                    written.writestr(zipfile.ZipInfo(name), content)  # of 1980, as without a date
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _timeless(document: bytes) -> bytes:
    """The JSON of a Keras archive with objects numbered as they come, and without the hour."""
    numbers: dict[int, int] = {}

    def numbered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        found.pop("date_saved", None)
        shared = found.get("shared_object_id")
        if shared is not None:
            found["shared_object_id"] = numbers.setdefault(shared, len(numbers))
        return found

    return json.dumps(json.loads(document, object_pairs_hook=numbered)).encode()


def load_detector(path: str | Path) -> keras.Model:
    """Load a ``.keras`` file in Keras' safe mode (no pickled code is ever run).

    Raises
    ------
    InputError
        If the file is missing, is not a Keras archive, or is not a detector of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "the model file must exist", found="nothing there")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise InputError(
            path, "must be a .keras model that loads in safe mode", found=first_line
        ) from error
    if not any(isinstance(layer, DetectorCard) for layer in model.layers):
        raise InputError(
            path, "must be a medicane detector", found=f"a Keras model named {model.name!r}"
        )
    return model


def check_maps(
    model: keras.Model, *, channels: Sequence[str], shape: tuple[int, int], where: object
) -> None:
    """Refuse maps that the model was not trained on.

    Raises
    ------
    InputError
        If the channels or their order differ, or the grid is smaller than the encoder can take.
    """
    facts = facts_of(model)
    if list(channels) != facts["channels"]:
        raise InputError(
            where,
            f"the model needs the channels {facts['channels']} in this order",
            found=list(channels),
        )
    least = int(facts.get("smallest_grid", 1))
    if min(shape) < least:
        raise InputError(
            where,
            f"the model needs a grid of at least {least} x {least} cells",
            found=f"{shape[0]} x {shape[1]}",
        )


# --------------------------------------------------------------------------------------------------


def _walk(layer: Any) -> Iterator[Any]:
    yield layer
    for inner in getattr(layer, "layers", []):
        yield from _walk(inner)


def _reach(encoder: keras.Model) -> int:
    """Members of an ensemble stand side by side, convolutions of one network behind each other."""
    members = [_reach(layer) for layer in encoder.layers if isinstance(layer, keras.Model)]
    taps = sum(
        (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        for layer in encoder.layers
        if isinstance(layer, layers.Conv3D)
    )
    return max([1 + taps, *members])
