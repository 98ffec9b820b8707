"""Training on all windows of stride 1: each map encoded once, against window by window.

Both sides are one detector with one loss and one optimiser, on the same windows of maps in memory;
loading is no part of it. What the blocks leave as it is (loss and gradients) the tests show.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from benchmarks.claims import Claim, main, side_by_side
from medicane import model as detector
from medicane.config import Config, make_config
from medicane.normalise import Statistics
from medicane.train.fused import fuse

CHANNELS = ("msl_local", "u10", "v10", "thickness_900_600_local", "thickness_600_300_local", "lsm")
LENGTH = 12
#: Cells of the maps: those of a quarter degree, about, and small ones to see that it works.
SHAPE, SMALL_SHAPE = (80, 160), (16, 24)
#: What takes the encoder over time: the project's own layer, and Keras'.
FORMS: dict[str, Any] = {"folded": None, "TimeDistributed": keras.layers.TimeDistributed}
#: As the first argument: print what a form takes until it is warm.
WARM_UP = "warm-up"


def measure(small: bool) -> Iterator[Claim]:
    """Windows of training a second, and a step and the first epoch against ``TimeDistributed``."""
    config, maps = configuration(small), noise(small)
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
        note=f"{maps.shape[1]} x {maps.shape[2]} cells, {len(CHANNELS)} channels, "
        f"{LENGTH} maps a window; {config.train.batch_size * LENGTH} maps a step at most "
        "on either side",
    )
    yield from _against_time_distributed(config, maps, sides[block], small)


def noise(small: bool) -> np.ndarray:
    """Maps (time, H, W, C) that windows and blocks are taken of."""
    shape = (80, *(SMALL_SHAPE if small else SHAPE), len(CHANNELS))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


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
    if wrap is None:
        fuse(fitted)  # as `train` does
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


def _against_time_distributed(
    config: Config, maps: np.ndarray, blocks: Callable[[], int], small: bool
) -> Iterator[Claim]:
    """Warm-up and step of the folded form, window by window, and of Keras' own layer."""
    of = (LENGTH, *maps.shape[1:3], len(CHANNELS))
    about = f"one batch of {config.train.batch_size} windows of {' x '.join(map(str, of))}; "
    about += "batch normalisation by the fused kernel, as `train` does, and by Keras"
    theirs = "keras.layers.TimeDistributed"
    rounds = 1 if small else 3
    seconds = [[_in_a_process(form, small) for form in FORMS] for _ in range(rounds)]
    ratios = [unrolled / folded for folded, unrolled in seconds]
    yield Claim(
        claim="building, tracing and the first two steps of training, time folded into the batch",
        against=theirs,
        unit="s",
        ours=statistics.median(folded for folded, _ in seconds),
        theirs=statistics.median(unrolled for _, unrolled in seconds),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        target=5,
        note=f"{about}; each time a new process, after its imports",
    )
    folded, unrolled = (trainer(config, maps, 1, wrap=wrap) for wrap in FORMS.values())
    for step in (folded, unrolled):
        step(), step()
    folded(), unrolled()  # a new seed, that of the second network, empties TensorFlow's caches
    yield side_by_side(
        folded,
        unrolled,
        claim="a step of training after that, time folded into the batch",
        against=theirs,
        unit="windows/s",
        target=1.6,
        rounds=rounds,
        note=about,
    )
    blocks()
    yield side_by_side(
        blocks,
        unrolled,
        claim=f"a step of training as `train` takes it, blocks of {config.train.block} windows",
        against=theirs,
        unit="windows/s",
        rounds=rounds,
        note=f"{about}, and as many maps in blocks",
    )


def _in_a_process(form: str, small: bool) -> float:
    """What `warm_up` tells of a form in a process where nothing is warm."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.encode_once_training", WARM_UP, form, str(int(small))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def warm_up(form: str, small: bool) -> float:
    """Seconds until a network has been built and traced and has taken two steps."""
    config, maps = configuration(small), noise(small)
    begun = time.perf_counter()
    step = trainer(config, maps, 1, wrap=FORMS[form])
    step(), step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    if sys.argv[1:2] == [WARM_UP]:
        print(warm_up(sys.argv[2], sys.argv[3] == "1"))
    else:
        main(measure)
