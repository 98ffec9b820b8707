"""Packed maps unpacked by the network: the bits of the host, in every form that is trained."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import model as detector
from medicane.model.packed import Unpacking
from medicane.packing import LARGEST, Packing
from tests.small_networks import STATISTICS, answers, build, standard_maps

#: Of a pressure in Pa, a geopotential, a wind, a humidity, an anomaly.
MEANS = st.sampled_from([101_325.0, 54_000.0, -3.0, 2e-3, 0.0])


@settings(max_examples=40, deadline=None)
@given(
    channels=st.lists(
        st.tuples(MEANS, st.floats(1e-4, 1e4), st.floats(1, 300)), min_size=1, max_size=4
    ),
    graph=st.booleans(),
)
def test_the_layer_gives_the_bits_of_the_host(channels, graph):
    """Of channels as they were fitted, and of those widened for an extreme afterwards."""
    fitted = [Packing.fit(m - spread, m + 2 * spread, about=m) for m, spread, _ in channels]
    wide = [
        packing.widened(m, m + far * spread)
        for packing, (m, spread, far) in zip(fitted, channels, strict=True)
    ]
    packings = fitted + wide
    shape = (2, 3, 5, 7, len(packings))
    packed = np.random.default_rng(0).integers(-LARGEST, LARGEST + 1, shape).astype(np.int16)
    packed[0, 0, 0, 0], packed[0, 0, 0, 1] = -LARGEST, LARGEST
    layer = Unpacking([p.scale for p in packings], [p.offset for p in packings])
    found = np.asarray((tf.function(layer) if graph else layer)(tf.constant(packed)))
    assert found.dtype == np.float32
    for i, packing in enumerate(packings):
        expected = packing.unpack(packed[..., i])
        np.testing.assert_array_equal(found[..., i].view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("form", ["window", "block", "previous label"])
def test_a_form_for_packed_maps_is_the_same_network(form: str, tmp_path: Path) -> None:
    base = build(label_feedback=form == "previous label")
    network = {
        "window": lambda: base,
        "block": lambda: detector.sliding(base, length=10),
        "previous label": lambda: detector.teacher_forced(base),
    }[form]()
    maps = standard_maps(2, 12, 8, 9)
    packings = [
        Packing.fit(float(channel.min()), float(channel.max()), about=mean)
        for channel, mean in zip(np.moveaxis(maps, -1, 0), STATISTICS.mean, strict=True)
    ]
    packed = np.stack([p.pack(maps[..., i]) for i, p in enumerate(packings)], axis=-1)
    unpacked = np.stack([p.unpack(packed[..., i]) for i, p in enumerate(packings)], axis=-1)
    scale, offset = [p.scale for p in packings], [p.offset for p in packings]
    found = detector.reading_packed(network, scale=scale, offset=offset)

    def given_to(maps: np.ndarray) -> dict[str, np.ndarray] | np.ndarray:
        previous = np.full((2, 12, 1), np.nan, np.float32)
        return {"maps": maps, "previous": previous} if form == "previous label" else maps

    expected = answers(network, given_to(unpacked))
    np.testing.assert_array_equal(answers(found, given_to(packed)), expected)
    # In order: the optimiser's state, and with it a checkpoint, is that of the network itself.
    assert [id(v) for v in found.variables] == [id(v) for v in network.variables]
    if form == "window":
        found.save(tmp_path / "packed.keras")
        kept = keras.saving.load_model(tmp_path / "packed.keras", compile=False, safe_mode=True)
        np.testing.assert_array_equal(answers(kept, packed), expected)
