"""Where a detector looked: parts of its maps are hidden, and what is lost is the importance.

Occlusion (Zeiler & Fergus 2014) asks nothing of a network but that it runs again, so it works for
every detector, an ensemble or one over time too, on any Keras backend, and needs no gradient. It
says what the answer *rests on*, which is not why, and not everything the network knows: of two
places that say the same, either can be hidden without a loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from medicane import model as detector
from medicane import names
from medicane.channels import check_whole
from medicane.errors import InputError
from medicane.sequences import contiguous_periods

Occluded = Literal["last", "all"]

#: A box of the map: rows and columns.
Box = tuple[slice, slice]

_NOWHERE: Box = (slice(0, 0), slice(0, 0))


def occlusion(
    model: keras.Model,
    maps: xr.DataArray,
    *,
    box_degrees: float = 4.0,
    every_degrees: float = 1.0,
    occluded: Occluded = "last",
    channels: Sequence[str] | None = None,
    batch: int = 64,
    where: object = "maps",
) -> xr.DataArray:
    """How much of the last map's logit rests on each place.

    A box is moved over the map. What it covers is replaced by the mean of the training split,
    channel by channel, and the network runs again: the importance of the box's centre is the logit
    of the whole window minus that of the window with the box. At the edges the box is cut.

    Parameters
    ----------
    model
        Any detector of `medicane.model`.
    maps
        One window, ``(time, channel, latitude, longitude)`` in any order: the map that is asked
        about is the last one, before it stand those that the network may look back to.
    box_degrees
        Side of the box, brought to an odd number of cells. About the size of what is looked for: a
        smaller one leaves enough of it to be recognised.
    every_degrees
        Distance between the centres of the boxes, at least a cell.
    occluded
        Hide the place in the ``last`` map only, or in ``all`` maps of the window: what has stood
        there for days is remembered from the maps before.
    channels
        Hide these channels only; by default all.
    batch
        Maps in memory at once.

    Returns
    -------
    xr.DataArray
        ``(latitude, longitude)`` of the boxes' centres, float32, in units of the logit: above 0
        where the maps speak for a medicane, below 0 where they speak against one. Attributes:
        ``logit`` of the whole window, ``box_degrees`` as it was used, ``occluded``.

    Raises
    ------
    InputError
        If the maps are not the model's (channels, grid, step, a value missing), are more than one
        sequence, or the box is not positive or covers the whole map.
    """
    facts = detector.facts_of(model)
    known = [str(name) for name in maps[names.CHANNEL].values]
    shape = maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]
    detector.check_maps(model, channels=known, shape=shape, where=where)
    _check_window(maps, length=int(facts["length"]), step_hours=int(facts["step_hours"]), at=where)
    if occluded not in ("last", "all"):
        raise InputError("occluded", "must be last or all", found=repr(occluded))
    hidden = known if channels is None else list(channels)
    if not hidden or set(hidden) - set(known):
        raise InputError("channels", f"must be some of {known}", found=hidden)
    ordered = maps.transpose(names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)
    images = np.asarray(ordered.values, dtype=np.float32)
    check_whole(
        images.transpose(0, 3, 1, 2),
        maps[names.TIME].values,
        [f"channel {name}" for name in known],
        where=where,
    )
    latitude, longitude = maps[names.LATITUDE], maps[names.LONGITUDE]
    spacing = float(abs(latitude[1] - latitude[0]))
    half, stride = _cells(box_degrees, every_degrees, spacing=spacing, shape=shape)
    rows, columns = (range(0, n, stride) for n in shape)
    boxes = [
        (slice(max(i - half, 0), i + half + 1), slice(max(j - half, 0), j + half + 1))
        for i, j in itertools.product(rows, columns)
    ]
    window = _Window(
        model,
        images,
        hidden_maps=range(len(images)) if occluded == "all" else [len(images) - 1],
        hidden_channels=[known.index(name) for name in hidden],
        batch=batch,
    )
    whole, *without = window.logits([_NOWHERE, *boxes])
    importance = whole - np.array(without, np.float32).reshape(len(rows), len(columns))
    return xr.DataArray(
        importance,
        coords={names.LATITUDE: latitude[::stride], names.LONGITUDE: longitude[::stride]},
        dims=(names.LATITUDE, names.LONGITUDE),
        name="importance",
        attrs={
            "long_name": "loss of logit where a box of the map is hidden",
            "units": "1",
            "logit": float(whole),
            "box_degrees": (2 * half + 1) * spacing,
            "occluded": occluded,
        },
    )


def element_attention(
    model: keras.Model, maps: xr.DataArray, *, where: object = "maps"
) -> xr.DataArray:
    """Where a detector with triple attention looks in each map; see `location_map`.

    Parameters
    ----------
    model
        A detector of ``model.attention: triple``, or an ensemble of them.
    maps
        ``(time, channel, latitude, longitude)`` in any order.

    Returns
    -------
    xr.DataArray
        ``(time, latitude, longitude)`` float32 in [0, 1], on a grid four times as coarse. What the
        network multiplies its features with: a high value lets a place through, and says not yet
        that anything there spoke for a medicane.

    Raises
    ------
    InputError
        If the model has no such attention, or the maps are not the model's.
    """
    known = [str(name) for name in maps[names.CHANNEL].values]
    shape = maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]
    detector.check_maps(model, channels=known, shape=shape, where=where)
    ordered = maps.transpose(names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)
    places = detector.location_map(model, np.asarray(ordered.values, dtype=np.float32))
    coords: dict[str, Any] = {names.TIME: maps[names.TIME]}
    for name, n in zip((names.LATITUDE, names.LONGITUDE), places.shape[1:], strict=True):
        # Each place stands for four cells, the last one for those that are left.
        coords[name] = [float(maps[name][4 * k : 4 * k + 4].mean()) for k in range(n)]
    return xr.DataArray(
        places,
        coords=coords,
        dims=(names.TIME, names.LATITUDE, names.LONGITUDE),
        name="location",
        attrs={"long_name": "share of the features that is let through", "units": "1"},
    )


def training_mean(model: keras.Model) -> NDArray[np.float32]:
    """Mean of each channel over the training split, (C,), as the detector carries it.

    Raises
    ------
    InputError
        If the encoder does not normalise.
    """
    found = [
        np.asarray(layer.mean, np.float32).reshape(-1)
        for layer in _layers(detector.encoder_of(model))
        if isinstance(layer, keras.layers.Normalization)
    ]
    if not found:
        raise InputError("model", "must normalise its maps", found="no such layer")
    # The members of an ensemble have one each, the same where they share a training split.
    return np.mean(found, axis=0, dtype=np.float32)


# --------------------------------------------------------------------------------------------------


class _Window:
    """One window of maps, run again with boxes hidden.

    Where the encoder takes single maps, those that stay as they are are encoded once.
    """

    def __init__(
        self,
        model: keras.Model,
        images: NDArray[np.float32],
        *,
        hidden_maps: Sequence[int],
        hidden_channels: Sequence[int],
        batch: int,
    ) -> None:
        self._encoder, self._head = detector.encoder_of(model), detector.head_of(model)
        self._images, self._maps, self._channels = images, hidden_maps, list(hidden_channels)
        self._fill = training_mean(model)[self._channels]
        self._over_time = len(self._encoder.input_shape) == 5
        self._at_once = max(batch // len(images), 1) if self._over_time else batch
        if not self._over_time:
            self._features = np.asarray(self._encoder.predict_on_batch(images))

    def logits(self, boxes: Sequence[Box]) -> list[float]:
        """Logit of the last map for each box that is hidden."""
        found: list[float] = []
        for start in range(0, len(boxes), self._at_once):
            some = list(boxes[start : start + self._at_once])
            # Batches of one shape, so that nothing is traced again for the tail.
            padded = some + [_NOWHERE] * (self._at_once - len(some))
            logit = np.asarray(self._head.predict_on_batch(self._encoded(padded)))
            found.extend(logit[: len(some), -1, 0])
        return found

    def _encoded(self, boxes: Sequence[Box]) -> NDArray[np.float32]:
        """Features (box, time, F)."""
        if self._over_time:
            windows = np.repeat(self._images[None], len(boxes), axis=0)
            for step in self._maps:
                self._hide(windows[:, step], boxes)
            return np.asarray(self._encoder.predict_on_batch(windows))
        features = np.repeat(self._features[None], len(boxes), axis=0)
        for step in self._maps:
            images = np.repeat(self._images[step][None], len(boxes), axis=0)
            self._hide(images, boxes)
            features[:, step] = np.asarray(self._encoder.predict_on_batch(images))
        return features

    def _hide(self, images: NDArray[np.float32], boxes: Sequence[Box]) -> None:
        """Put the mean into one box of each of the images, in place."""
        for image, (rows, columns) in zip(images, boxes, strict=True):
            image[rows, columns, self._channels] = self._fill


def _layers(layer: Any) -> Iterator[Any]:
    yield layer
    for inner in getattr(layer, "layers", []):
        yield from _layers(inner)


def _check_window(maps: xr.DataArray, *, length: int, step_hours: int, at: object) -> None:
    times = maps.indexes[names.TIME]
    runs = contiguous_periods(times, step_hours=step_hours)
    if len(runs) != 1 or not 1 <= len(times) <= length:
        raise InputError(
            at,
            f"one window is 1 to {length} maps {step_hours} h apart without a gap",
            found=f"{len(times)} maps in {len(runs)} periods",
        )


def _cells(
    box_degrees: float, every_degrees: float, *, spacing: float, shape: tuple[int, int]
) -> tuple[int, int]:
    """Cells on either side of a box's centre, and cells between centres."""
    for name, value in (("box_degrees", box_degrees), ("every_degrees", every_degrees)):
        if not 0 < value < np.inf:
            raise InputError(name, "must be a positive number of degrees", found=value)
    half = max(round((box_degrees / spacing - 1) / 2), 0)
    if 2 * half + 1 >= max(shape):
        raise InputError(
            "box_degrees",
            f"must leave some of a map of {shape[0]} x {shape[1]} cells of {spacing:g} degrees",
            found=box_degrees,
        )
    return half, max(round(every_degrees / spacing), 1)
