"""Encode once, in training: windows that share maps are read from a block of maps encoded once.

Windows of T maps that begin one map apart show each map T times. Here a block of maps goes through
the encoder once, and the head reads all windows of its features. It is the same function of the
windows, with the same loss and gradients, but for two things that only training knows:

* The batch statistics of batch normalisation count each map of a block once. Window by window they
  count it once for each window that it stands in, those in the middle of a block most.
* Dropout is the same in both forms: each window of features has a mask of its own.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from medicane.errors import InputError
from medicane.model.layers import FoldedTime, Shape
from medicane.model.parts import temporal_reach


class Windows(layers.Layer):
    """The windows of a block: ``(B, L, F) → (B, W, T, F)``, ``L = T + (W - 1) · stride``."""

    def __init__(self, length: int, stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.stride = length, stride

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, maps, features = input_shape
        count = None if maps is None else (maps - self.length) // self.stride + 1
        return (batch, count, self.length, features)

    def call(self, features: Any) -> Any:
        # One slice for each place in a window: its gradient is a sum, that of `take` a scatter.
        ends: list[int | None] = [*range(1 - self.length, 0), None]
        slices = [features[:, place : ends[place] : self.stride] for place in range(self.length)]
        return ops.stack(slices, axis=2)


def sliding(model: keras.Model, *, length: int, stride: int = 1) -> keras.Model:
    """The detector for blocks of windows: for training, sharing all weights.

    Parameters
    ----------
    model
        A detector whose encoder reads maps one by one.
    length, stride
        Maps of a window (T), and from the begin of one to that of the next.

    Returns
    -------
    keras.Model
        ``maps (B, L, H, W, C) → probability (B, W, T, 1)`` with W windows, ``L = T + (W - 1) ·
        stride``: what `model` gives for each of the windows.

    Raises
    ------
    InputError
        If the encoder convolves over time: a map's features then depend on the window.
    """
    if temporal_reach(model) > 1:
        raise InputError(
            "model",
            "must encode each map alone to be trained in blocks of windows",
            found=f"an encoder that sees {temporal_reach(model)} maps",
        )
    x = model.input
    for layer in model.layers:  # the detector's own path up to the head, in order
        if layer.name not in ("maps", "head", "probability"):
            x = layer(x)
    x = Windows(length, stride, name="windows")(x)
    x = FoldedTime(model.get_layer("head"), name="each_window")(x)
    return keras.Model(model.input, model.get_layer("probability")(x), name="medicane_sliding")
