"""Training by the fused kernels: the functions of Keras' layers and optimiser, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from medicane import model as detector
from medicane.train.fused import fuse
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
    fuse(fused)
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
    fuse(network)
    assert "FusedBatchNormV3" in graph_operations(network, training=True)
    assert "FusedBatchNormV3" not in graph_operations(network, training=False)


@pytest.mark.parametrize(
    "change", [{"synchronized": True}, {"trainable": False}, {"axis": 1}, {"scale": False}]
)
def test_where_it_does_not_fit_keras_own_layer_trains(change: dict[str, Any]) -> None:
    network = layer(**({} if "trainable" in change else change))
    if "trainable" in change:
        network.layers[0].trainable = False
    fuse(network)
    assert "FusedBatchNormV3" not in graph_operations(network, training=True)


def test_a_detector_is_trained_alike_and_its_file_is_the_same(tmp_path: Path) -> None:
    maps = standard_maps(2, 10, 16, 24)
    found = []
    for fused in (False, True):
        network = build(dropout=0.0)
        if fused:
            fuse(network)
        path = tmp_path / f"{fused}.keras"
        detector.save_detector(network, path)
        found.append((path.read_bytes(), trained_once(network, maps)))
    assert found[0][0] == found[1][0]
    largest = max(np.abs(value).max() for value in found[0][1])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * min(largest, 1))


# --- the optimiser --------------------------------------------------------------------------------


def compiled(optimizer: keras.optimizers.Optimizer, *, fused: bool) -> keras.Model:
    """A small network that learns four numbers of five, compiled."""
    keras.utils.set_random_seed(3)
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(7, "tanh"), keras.layers.Dense(4)]
    )
    network.compile(optimizer, loss="mse")
    if fused:
        fuse(network)
    return network


def after_steps(network: keras.Model, steps: int = 20) -> list[np.ndarray]:
    """Weights and the optimiser's variables after some steps on gradients of every size."""
    rng = np.random.default_rng(4)
    for step in range(steps):
        inputs = rng.normal(size=(6, 5)).astype(np.float32)
        targets = (10.0 ** (step % 5 - 2) * rng.normal(size=(6, 4))).astype(np.float32)
        network.train_on_batch(inputs, targets)
    variables = [*network.variables, *network.optimizer.variables]
    return [np.asarray(variable) for variable in variables]


def kernels_of_step(network: keras.Model) -> set[str]:
    """The operations of a step as it is traced."""
    variables = network.trainable_variables
    network.optimizer.build(variables)
    gradients = [np.ones(variable.shape, np.float32) for variable in variables]

    def step() -> None:
        network.optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)

    strategy = tf.distribute.get_strategy()
    traced = tf.function(lambda: strategy.run(step)).get_concrete_function()
    return {operation.type for operation in traced.graph.get_operations()}


@pytest.mark.parametrize("clipnorm", [None, 0.3, 1.0])
def test_clipping_and_adam_are_those_of_keras(clipnorm: float | None) -> None:
    def optimizer() -> keras.optimizers.Adam:
        schedule = keras.optimizers.schedules.CosineDecay(0.01, 30)
        return keras.optimizers.Adam(schedule, clipnorm=clipnorm, beta_1=0.8, name="adam")

    usual, fused = compiled(optimizer(), fused=False), compiled(optimizer(), fused=True)
    for one, other in zip(after_steps(usual), after_steps(fused), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert "ResourceApplyAdam" in kernels_of_step(fused)
    assert "ResourceApplyAdam" not in kernels_of_step(usual)
    assert fused.optimizer.get_config() == usual.optimizer.get_config()


def test_a_gradient_that_is_not_finite_is_not_made_finite() -> None:
    network = compiled(keras.optimizers.Adam(clipnorm=1.0), fused=True)
    network.train_on_batch(np.ones((2, 5), np.float32), np.full((2, 4), np.nan, np.float32))
    assert all(np.isnan(weight).any() for weight in network.get_weights())


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(clipnorm=1.0),
        keras.optimizers.AdamW(),
        keras.optimizers.Adam(amsgrad=True),
    ],
    ids=["SGD", "AdamW", "amsgrad"],
)
def test_another_optimiser_stays_as_it_is(optimizer: keras.optimizers.Optimizer) -> None:
    network = compiled(optimizer, fused=True)
    assert "ResourceApplyAdam" not in kernels_of_step(network)


def test_inside_a_strategy_keras_own_optimiser_trains() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        network = compiled(keras.optimizers.Adam(clipnorm=1.0), fused=True)
        assert "ResourceApplyAdam" not in kernels_of_step(network)
    assert np.isfinite(after_steps(network, 1)[0]).all()


def test_what_the_kernel_cannot_take_keras_own_optimiser_does() -> None:
    """Gradients of rows alone, as an embedding has them."""
    network = compiled(keras.optimizers.Adam(clipnorm=1.0), fused=True)
    kernel, *others = network.trainable_variables
    before = kernel.numpy()
    rows = tf.IndexedSlices(tf.ones((1, 7)), tf.constant([2]), tf.constant([5, 7]))
    network.optimizer.apply([rows, *(tf.ones(v.shape) for v in others)], [kernel, *others])
    changed = np.flatnonzero((kernel.numpy() != before).any(axis=1))
    np.testing.assert_array_equal(changed, [2])
