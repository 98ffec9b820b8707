"""Maps as the store keeps them, 16-bit integers, unpacked by the network itself.

Half the bytes go to the device that trains, and it does the arithmetic. Scales are powers of two
and offsets multiples of them (`medicane.packing`), so that float32 gives the same bits there as on
the host, and the network is the same function of the same maps.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import ArrayLike


@keras.saving.register_keras_serializable(package="medicane")
class Unpacking(layers.Layer):
    """Integer · scale + offset, channel by channel: ``(…, C) int16 → (…, C) float32``."""

    def __init__(self, scale: ArrayLike, offset: ArrayLike, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # As lists: what is saved is what is held, and JSON keeps every bit of a float.
        self.scale, self.offset = np.asarray(scale).tolist(), np.asarray(offset).tolist()

    def compute_output_spec(self, packed: Any) -> Any:
        return keras.KerasTensor(packed.shape, "float32")

    def call(self, packed: Any) -> Any:
        scale, offset = (np.array(values, np.float32) for values in (self.scale, self.offset))
        return ops.cast(packed, "float32") * scale + offset

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale, "offset": self.offset}


def reading_packed(model: keras.Model, *, scale: ArrayLike, offset: ArrayLike) -> keras.Model:
    """A detector, or a form of it for training, that takes packed maps; all weights are shared.

    Parameters
    ----------
    model
        Takes maps (B, T, H, W, C) float32, alone or in a mapping with other inputs.
    scale, offset
        (channel) in the units of the channel, those of the map store.

    Returns
    -------
    keras.Model
        The same network of maps (B, T, H, W, C) int16.
    """
    several = isinstance(model.input, dict)
    inputs = dict(model.input) if several else {"maps": model.input}
    packed = keras.Input(inputs["maps"].shape[1:], dtype="int16", name="maps")
    values = Unpacking(scale, offset, dtype="float32", name="unpacking")(packed)
    if several:
        output = model({**inputs, "maps": values})
        return keras.Model({**inputs, "maps": packed}, output, name=f"{model.name}_packed")
    return keras.Model(packed, model(values), name=f"{model.name}_packed")
