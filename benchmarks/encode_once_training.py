"""Training on all windows of stride 1: each map encoded once, against window by window.

Both sides are one detector with one loss and one optimiser, on the same windows of maps in memory;
loading is no part of it. What the blocks leave as it is (loss and gradients) the tests show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from benchmarks.claims import Claim, main, side_by_side
from medicane import model as detector
from medicane.config import Config, make_config
from medicane.normalise import Statistics

CHANNELS = ("msl_local", "u10", "v10", "thickness_900_600_local", "thickness_600_300_local", "lsm")
LENGTH = 12
#: Cells of the maps: those of a quarter degree, about, and small ones to see that it works.
SHAPE, SMALL_SHAPE = (80, 160), (16, 24)


def measure(small: bool) -> Iterator[Claim]:
    """Windows of training a second, and a step and the first epoch against ``TimeDistributed``."""
    config = configuration(small)
    shape = SMALL_SHAPE if small else SHAPE
    maps = np.random.default_rng(0).normal(size=(80, *shape, len(CHANNELS))).astype(np.float32)
    sides = {block: trainer(config, maps, block) for block in (1, config.train.block)}
    for step in sides.values():
        step(), step()  # tracing, and again with the variables that the first step has made
    block = config.train.block
    yield side_by_side(
        sides[block],
        sides[1],
        claim=f"training on all windows of stride 1, blocks of {block}",
        against="the same network, loss and windows, window by window (time folded into the batch)",
        unit="windows/s",
        target=8,
        rounds=1 if small else 3,
        note=f"{shape[0]} x {shape[1]} cells, {len(CHANNELS)} channels, {LENGTH} maps a window; "
        f"{config.train.batch_size * LENGTH} maps a step at most on either side",
    )
    yield from _against_time_distributed(config, maps, small)


def configuration(small: bool) -> Config:
    """The compact encoder in the size whose figures are quoted, or a tiny one."""
    size = {"blocks": [1, 1], "growth_rate": 4} if small else {"blocks": [3, 6, 12]}
    return make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "sequences": {"length": LENGTH},
            "model": {"growth_rate": 16, "attention": "none", **size},
        }
    )


def trainer(config: Config, maps: np.ndarray, block: int, *, wrap: Any = None) -> Callable[[], int]:
    """One step of training; it returns how many windows that were.

    Parameters
    ----------
    maps
        (time, H, W, C), from which windows and blocks are taken in turn.
    block
        Windows in a block; 1: window by window.
    wrap
        What puts the encoder over time; by default as detectors do, folded.
    """
    keras.utils.set_random_seed(0)
    model = network(config, wrap)
    fitted = model if block == 1 else detector.sliding(model, length=LENGTH)
    detector.compile_detector(fitted, config.train, steps=1000)
    width = LENGTH + block - 1
    count = max(1, round(config.train.batch_size * LENGTH / width))
    starts = np.linspace(0, len(maps) - width, count).astype(int)
    inputs = np.stack([maps[start : start + width] for start in starts])
    shape = (count, LENGTH) if block == 1 else (count, block, LENGTH)
    labels = (np.random.default_rng(1).random((*shape, 1)) < 0.1).astype(np.float32)
    weights = np.ones(shape, np.float32)

    def step() -> int:
        loss = fitted.train_on_batch(inputs, labels, sample_weight=weights)
        assert np.isfinite(loss).all()
        return count * block

    return step


def network(config: Config, wrap: Any = None) -> keras.Model:
    """The detector, or the same one with another layer that takes the encoder over time."""
    n = len(CHANNELS)
    built = detector.build_detector(config, Statistics(CHANNELS, np.zeros(n), np.ones(n), 1))
    if wrap is None:
        return built
    maps = keras.Input((LENGTH, None, None, n))
    features = wrap(detector.encoder_of(built))(maps)
    probability = keras.layers.Activation("sigmoid")(detector.head_of(built)(features))
    return keras.Model(maps, probability)


def _against_time_distributed(config: Config, maps: np.ndarray, small: bool) -> Iterator[Claim]:
    """Warm-up and step of the folded form, window by window, and of Keras' own layer."""
    of = (LENGTH, *maps.shape[1:3], len(CHANNELS))
    about = f"one batch of {config.train.batch_size} windows of {' x '.join(map(str, of))}"
    folded, unrolled = None, None
    seconds = []
    for wrap in (None, keras.layers.TimeDistributed):
        begun = time.perf_counter()
        step = trainer(config, maps, 1, wrap=wrap)
        step(), step()
        seconds.append(time.perf_counter() - begun)
        folded, unrolled = (step, None) if wrap is None else (folded, step)
    yield Claim(
        claim="building, tracing and the first two steps of training, time folded into the batch",
        against="keras.layers.TimeDistributed",
        unit="s",
        ours=seconds[0],
        theirs=seconds[1],
        ratio=seconds[1] / seconds[0],
        low=seconds[1] / seconds[0],
        high=seconds[1] / seconds[0],
        target=5,
        note=f"{about}; measured once: a second time something would be warm",
    )
    assert folded is not None
    assert unrolled is not None
    folded(), unrolled()  # a new seed, that of the second network, empties TensorFlow's caches
    yield side_by_side(
        folded,
        unrolled,
        claim="a step of training after that, time folded into the batch",
        against="keras.layers.TimeDistributed",
        unit="windows/s",
        target=1.6,
        rounds=1 if small else 3,
        note=about,
    )


if __name__ == "__main__":
    main(measure)
