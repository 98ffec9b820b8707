"""Batch normalisation by the fused kernel: the function of Keras' own layer, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from medicane import model as detector
from medicane.train.fused import fuse_batch_normalisation
from tests.small_networks import build, standard_maps


def trained_once(network: Any, maps: np.ndarray) -> list[np.ndarray]:
    """Outputs in training, what they leave in the weights, and the gradients of a sum of them."""
    inputs = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = network(inputs, training=True)
        total = tf.reduce_sum(tf.sin(tf.cast(outputs, "float32") * 3))
    gradients = tape.gradient(total, [inputs, *network.trainable_variables])
    return [np.asarray(value) for value in (outputs, *network.weights, *gradients)]


def layer(name: str = "one", **options: Any) -> keras.Model:
    """A batch normalisation of three channels, as a network, with weights that are not trivial."""
    network = keras.Sequential([keras.layers.BatchNormalization(name=name, **options)])
    network.build((None, 4, 4, 3) if "axis" in options else (None, None, None, 3))
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.5, 2, w.shape) for w in network.get_weights()])
    return network


def both(maps: np.ndarray, **options: Any) -> list[list[np.ndarray]]:
    usual, fused = layer(**options), layer(**options)
    fuse_batch_normalisation(fused)
    return [trained_once(one, maps) for one in (usual, fused)]


def graph_operations(network: keras.Model, *, training: bool) -> set[str]:
    traced = tf.function(lambda maps: network(maps, training=training)).get_concrete_function(
        tf.TensorSpec((2, 4, 4, 3), tf.float32)
    )
    return {operation.type for operation in traced.graph.get_operations()}


@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (1, 1, 2, 3)])
def test_outputs_gradients_and_moving_statistics_are_those_of_keras(shape: tuple[int, ...]) -> None:
    """Two cells show whose variance it is: that of the population would be twice the batch's."""
    maps = (np.random.default_rng(1).normal(size=shape) * 3 + 5).astype(np.float32)
    usual, fused = both(maps, momentum=0.9, epsilon=1e-3)
    for one, other in zip(usual, fused, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)


def test_the_kernel_is_taken_in_training_alone() -> None:
    network = layer()
    fuse_batch_normalisation(network)
    assert "FusedBatchNormV3" in graph_operations(network, training=True)
    assert "FusedBatchNormV3" not in graph_operations(network, training=False)


@pytest.mark.parametrize(
    "change", [{"synchronized": True}, {"trainable": False}, {"axis": 1}, {"scale": False}]
)
def test_where_it_does_not_fit_keras_own_layer_trains(change: dict[str, Any]) -> None:
    network = layer(**({} if "trainable" in change else change))
    if "trainable" in change:
        network.layers[0].trainable = False
    fuse_batch_normalisation(network)
    assert "FusedBatchNormV3" not in graph_operations(network, training=True)


def test_a_detector_is_trained_alike_and_its_file_is_the_same(tmp_path: Path) -> None:
    maps = standard_maps(2, 10, 16, 24)
    found = []
    for fuse in (False, True):
        network = build(dropout=0.0)
        if fuse:
            fuse_batch_normalisation(network)
        path = tmp_path / f"{fuse}.keras"
        detector.save_detector(network, path)
        found.append((path.read_bytes(), trained_once(network, maps)))
    assert found[0][0] == found[1][0]
    largest = max(np.abs(value).max() for value in found[0][1])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * min(largest, 1))
