"""Triple attention: channels, places and scales, and the map that says where."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.errors import InputError
from medicane.model.attention import ScaleAttention
from tests.small_networks import STATISTICS, build, standard_maps


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build(attention="triple", blocks=[1, 1], growth_rate=4)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return standard_maps(5, 17, 22)


def test_a_place_for_each_map(network: keras.Model, maps: np.ndarray) -> None:
    where = detector.location_map(network, maps, batch=2)
    assert where.shape == (5, 5, 6)  # a quarter, rounded up
    assert where.dtype == np.float32
    assert ((where >= 0) & (where <= 1)).all()
    assert where.std() > 1e-3
    np.testing.assert_allclose(where, detector.location_map(network, maps), atol=1e-6)


def test_it_follows_what_it_looks_at(network: keras.Model) -> None:
    """What stands out in one corner changes the answer there, and next to nothing far away."""
    calm = np.broadcast_to(STATISTICS.mean, (1, 64, 64, 3)).astype(np.float32).copy()
    storm = calm.copy()
    storm[0, 8:14, 8:14] += 4 * STATISTICS.std
    encoder = detector.encoder_of(network)
    finest = keras.Model(encoder.input, encoder.get_layer("location1").output)
    change = np.abs(np.asarray(finest(storm)) - np.asarray(finest(calm)))[0, ..., 0]
    peak = np.unravel_index(change.argmax(), change.shape)
    assert np.hypot(peak[0] - 2.5, peak[1] - 2.5) <= 2  # in cells of the location map
    # Far away only the channel attention, which has seen the whole map, is different.
    assert change[10:, 10:].max() < 0.5 * change.max()


def test_the_scales_share_one_weight(network: keras.Model, maps: np.ndarray) -> None:
    encoder = detector.encoder_of(network)
    looker = keras.Model(encoder.input, encoder.get_layer("scale_attention").output)
    features, weights = looker(maps)
    assert features.shape == (5, 16)  # four times the growth rate
    assert weights.shape == (5, 2)  # one a block
    np.testing.assert_allclose(np.asarray(weights).sum(axis=1), 1, atol=1e-6)
    assert (np.asarray(weights) > 0).all()


def test_scale_attention_is_the_weighted_sum() -> None:
    layer = ScaleAttention()
    rng = np.random.default_rng(0)
    scales = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3)]
    features, weights = (np.asarray(found) for found in layer(scales))
    scores = np.tanh(np.stack(scales, axis=1)) @ np.asarray(layer.kernel)[:, 0]
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(features, np.einsum("sbf,bs->bf", scales, expected), atol=1e-5)
    assert layer.compute_output_shape([(None, 3)] * 3) == ((None, 3), (None, 3))


def test_channel_attention_only_dampens(network: keras.Model, maps: np.ndarray) -> None:
    encoder = detector.encoder_of(network)
    for number, before in ((1, "transition1_relu"), (2, "last_relu")):
        excited = encoder.get_layer(f"block{number}_excite").output
        product = encoder.get_layer(f"block{number}_channels").output
        looker = keras.Model(encoder.input, [encoder.get_layer(before).output, excited, product])
        x, factor, found = (np.asarray(value) for value in looker(maps))
        assert factor.shape == (5, 1, 1, x.shape[-1])
        assert ((factor > 0) & (factor < 1)).all()
        np.testing.assert_allclose(found, x * factor, rtol=1e-5)


def test_an_ensemble_looks_where_its_members_look(
    network: keras.Model, maps: np.ndarray, tmp_path: Path
) -> None:
    other = build(seed=5, attention="triple", blocks=[1, 1], growth_rate=4)
    both = detector.ensemble_of([network, other])
    expected = [detector.location_map(member, maps) for member in (network, other)]
    np.testing.assert_allclose(
        detector.location_map(both, maps), np.mean(expected, axis=0), atol=1e-6
    )
    both.save(tmp_path / "both.keras")
    loaded = detector.load_detector(tmp_path / "both.keras")
    np.testing.assert_allclose(
        detector.location_map(loaded, maps[:1]), np.mean(expected, axis=0)[:1], atol=1e-6
    )


def test_other_networks_cannot_say_where(maps: np.ndarray) -> None:
    plain = build(blocks=[1])
    with pytest.raises(InputError, match="must have attention triple to say where it looks"):
        detector.location_map(plain, maps)
    with pytest.raises(InputError, match="must have attention triple"):
        detector.location_map(detector.ensemble_of([plain, plain]), maps)
