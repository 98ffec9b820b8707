"""Encode once in training: blocks give what their windows give, and learn what they teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import model as detector
from medicane.errors import InputError
from tests.small_networks import VARIANTS, answers, build, configuration, standard_maps

#: Every network whose encoder reads maps one by one.
WINDOWED = sorted(name for name in VARIANTS if name not in ("c3d", "r2plus1d"))
HEIGHT, WIDTH = 8, 9


def windows_of(block: np.ndarray, *, length: int, stride: int) -> np.ndarray:
    """(B, L, ...) → (B · W, length, ...), by plain slices."""
    starts = range(0, block.shape[1] - length + 1, stride)
    windows = np.stack([block[:, start : start + length] for start in starts], axis=1)
    return windows.reshape(-1, length, *block.shape[2:])


def targets(n: int, windows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, W, T, 1) and weights (n, W, T) of all sizes, zeros among them."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, windows, length, 1)) < 0.4).astype(np.float32)
    weights = rng.random((n, windows, length)).astype(np.float32)
    return labels, np.where(weights < 0.2, 0, weights).astype(np.float32)


def loss_and_gradients(
    model: keras.Model, maps: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, training: bool
) -> tuple[float, list[np.ndarray]]:
    """The compiled loss, penalties included, and its gradient by each trainable weight."""
    with tf.GradientTape() as tape:
        found = model(maps, training=training)
        loss = model.compute_loss(maps, labels, found, sample_weight=weights, training=training)
    gradients = tape.gradient(loss, [w.value for w in model.trainable_variables])
    return float(loss), [np.asarray(g) for g in gradients]


def both_forms(
    model: keras.Model, block: np.ndarray, *, length: int, stride: int, training: bool
) -> list[tuple[float, list[np.ndarray]]]:
    """Loss and gradients of a block encoded once, and window by window."""
    count = (block.shape[1] - length) // stride + 1
    labels, weights = targets(len(block), count, length)
    slid = detector.sliding(model, length=length, stride=stride)
    for network in (slid, model):
        detector.compile_detector(network, configuration().train, steps=10)
    windows = windows_of(block, length=length, stride=stride)
    flat = labels.reshape(-1, length, 1), weights.reshape(-1, length)
    return [
        loss_and_gradients(slid, block, labels, weights, training=training),
        loss_and_gradients(model, windows, *flat, training=training),
    ]


def assert_same(
    one: tuple[float, list[np.ndarray]], two: tuple[float, list[np.ndarray]], rtol: float = 2e-5
) -> None:
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    assert len(one[1]) == len(two[1])
    largest = max(np.abs(g).max() for g in two[1])
    for a, b in zip(one[1], two[1], strict=True):
        # Float32 sums of other order: relative to the layer, and to the whole where it has hardly
        # any gradient.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=rtol * max(np.abs(b).max(), 0.1 * largest))


@pytest.mark.parametrize("variant", WINDOWED)
def test_a_block_is_labelled_as_its_windows_are(variant: str) -> None:
    network = build(**VARIANTS[variant])
    for length, stride, count in ((10, 1, 6), (12, 3, 2)):
        block = standard_maps(2, length + (count - 1) * stride, HEIGHT, WIDTH)
        found = answers(detector.sliding(network, length=length, stride=stride), block)
        assert found.shape == (2, count, length)
        expected = answers(network, windows_of(block, length=length, stride=stride))
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(3, 15),
    stride=st.integers(1, 6),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_features_stand_where_their_maps_do(length: int, stride: int, count: int, seed: int):
    from medicane.model.sliding import Windows

    features = (
        np.random.default_rng(seed)
        .normal(size=(2, length + (count - 1) * stride, 3))
        .astype(np.float32)
    )
    layer = Windows(length, stride)
    found = np.asarray(layer(features))
    assert found.shape == layer.compute_output_shape(features.shape)
    expected = windows_of(features, length=length, stride=stride)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("variant", "stride"), [("gru", 1), ("tcn", 3), ("bidirectional", 1), ("triple", 3)]
)
def test_loss_and_gradients_are_those_of_the_windows(variant: str, stride: int) -> None:
    """Batch normalisation in inference mode, all weights included."""
    network = build(**VARIANTS[variant], dropout=0.0)
    block = standard_maps(2, 10 + 4 * stride, HEIGHT, WIDTH)
    once, each = both_forms(network, block, length=10, stride=stride, training=False)
    assert_same(once, each)
    assert max(np.abs(g).max() for g in each[1]) > 1e-4


def test_focal_loss_too() -> None:
    network = build(dropout=0.0)
    block = standard_maps(1, 14, HEIGHT, WIDTH)
    labels, weights = targets(1, 5, 10)
    slid = detector.sliding(network, length=10)
    for one in (slid, network):
        detector.compile_detector(one, configuration({"focal_gamma": 2.0}).train, steps=10)
    once = loss_and_gradients(slid, block, labels, weights, training=False)
    windows = windows_of(block, length=10, stride=1)
    assert_same(once, loss_and_gradients(network, windows, labels[0], weights[0], training=False))


class TestTrainingMode:
    """The one difference: what batch normalisation takes its statistics of."""

    def test_windows_without_a_map_in_common_give_the_same(self) -> None:
        network = build(dropout=0.0)
        block = standard_maps(2, 30, HEIGHT, WIDTH)
        once, each = both_forms(network, block, length=10, stride=10, training=True)
        assert_same(once, each, rtol=2e-4)

    def test_maps_that_come_round_equally_often_give_the_same(self) -> None:
        """A period that divides window and block: counting once or as often as shown is alike."""
        network = build(dropout=0.0)
        block = np.tile(standard_maps(2, 5, HEIGHT, WIDTH), (1, 3, 1, 1, 1))
        once, each = both_forms(network, block, length=10, stride=1, training=True)
        assert_same(once, each, rtol=2e-4)

    def test_otherwise_a_map_counts_once_and_not_once_for_each_window(self) -> None:
        """The moving mean tells which mean was taken: of the maps, or of those in all windows."""
        network = build(dropout=0.0)
        block = standard_maps(1, 14, HEIGHT, WIDTH)
        block *= np.linspace(0.5, 4, 14)[:, None, None, None].astype(np.float32)
        encoder = detector.encoder_of(network)
        stem = keras.Model(encoder.input, encoder.get_layer("stem").output)
        each_map = np.asarray(stem(block[0])).mean(axis=(1, 2))
        often = np.bincount(np.concatenate([np.arange(i, i + 10) for i in range(5)]))
        norm = encoder.get_layer("stem_norm")
        before = norm.moving_mean.numpy().copy()
        slid = detector.sliding(network, length=10)

        def mean_taken(model: keras.Model, maps: np.ndarray) -> np.ndarray:
            norm.moving_mean.assign(before)
            model(maps, training=True)
            return (norm.moving_mean.numpy() - 0.9 * before) / 0.1

        np.testing.assert_allclose(mean_taken(slid, block), each_map.mean(0), rtol=2e-4, atol=1e-4)
        np.testing.assert_allclose(
            mean_taken(network, windows_of(block, length=10, stride=1)),
            np.average(each_map, axis=0, weights=often),
            rtol=2e-4,
            atol=1e-4,
        )
        assert np.abs(each_map.mean(0) - np.average(each_map, axis=0, weights=often)).max() > 0.01

    def test_dropout_has_a_mask_for_each_window(self) -> None:
        """The same map in two windows: the same features, two masks."""
        network = build(rnn="none", dropout=0.5)
        slid = detector.sliding(network, length=10)
        block = standard_maps(1, 14, HEIGHT, WIDTH)
        encoder = detector.encoder_of(network)
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # inference mode: only dropout is left of training
        noisy = np.asarray(slid(block, training=True))[0, ..., 0]
        at_map_9 = [noisy[window, 9 - window] for window in range(5)]
        assert len(set(at_map_9)) == 5
        quiet = np.asarray(slid(block, training=False))[0, ..., 0]
        assert np.ptp([quiet[window, 9 - window] for window in range(5)]) < 1e-6


def fitted_step(model: keras.Model, *batch: Any) -> list[float]:
    detector.compile_detector(model, configuration().train, steps=4)
    return [float(value) for value in model.train_on_batch(batch[0], batch[1], batch[2])]


def test_it_trains_the_detector_and_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    network = build(out_of_domain=True)
    slid = detector.sliding(network, length=10, stride=2)
    assert {w.path for w in slid.trainable_weights} == {w.path for w in network.trainable_weights}
    block = standard_maps(2, 16, HEIGHT, WIDTH)
    labels, weights = targets(2, 4, 10)
    before = [w.numpy().copy() for w in network.trainable_weights]
    names = [layer.name for layer in network.layers]
    fitted_step(slid, block, labels, weights)
    for weight, old in zip(network.trainable_weights, before, strict=True):
        if "out_of_domain" not in weight.path:  # fitted after the training
            assert np.abs(weight.numpy() - old).max() > 0, weight.path
    assert [layer.name for layer in network.layers] == names
    network.save(tmp_path / "detector.keras")
    loaded = detector.load_detector(tmp_path / "detector.keras")
    np.testing.assert_array_equal(answers(loaded, block), answers(network, block))
    assert not {"windows", "each_window"} & {layer.name for layer in loaded.layers}


def test_the_score_of_the_training_is_that_of_the_windows() -> None:
    """Loss and AUC-PR as Keras tells them, of the same weights."""
    block = standard_maps(2, 14, HEIGHT, WIDTH)
    labels, weights = targets(2, 5, 10)
    told = []
    for form in (True, False):
        network = build(dropout=0.0)
        for layer in detector.encoder_of(network).layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        if form:
            told.append(fitted_step(detector.sliding(network, length=10), block, labels, weights))
        else:
            windows = windows_of(block, length=10, stride=1)
            flat = labels.reshape(-1, 10, 1), weights.reshape(-1, 10)
            told.append(fitted_step(network, windows, *flat))
    np.testing.assert_allclose(told[0], told[1], rtol=1e-5)


@pytest.mark.parametrize("encoder", ["c3d", "r2plus1d"])
def test_encoders_over_time_are_refused(encoder: str) -> None:
    with pytest.raises(
        InputError, match="must encode each map alone to be trained in blocks of windows; found an"
    ):
        detector.sliding(build(**VARIANTS[encoder]), length=10)
