"""How much of the processor the encoder uses, at detection and in training.

    python -m benchmarks.peak [--small]

The peak is measured in the same run: a product of two large float32 matrices through OpenVINO for
detection, through TensorFlow for training. Operations are counted in the traced graph: two a
multiplication and addition of every convolution and matrix product; a training step is taken for
three times that (forward, and the gradients of inputs and of weights).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import Claim, main, side_by_side
from medicane import model as detector
from medicane.config import Config, make_config
from medicane.normalise import Statistics
from medicane.pipeline.detection import file_digest
from medicane.runtime import open_encoder
from medicane.train.fused import fuse

CHANNELS = ("msl", "u10", "v10", "thickness_900_600", "thickness_600_300", "lsm")
#: Cells of the maps: those of a quarter degree, about, and small ones to see that it works.
SHAPE, SMALL_SHAPE = (80, 160), (32, 64)
#: What the project asks: share of the peak in detection and in training.
ASKED = {"compact": (0.90, 0.45), "densenet121": (0.90, 0.55)}


def configuration(encoder: str) -> Config:
    return make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {"encoder": encoder, "attention": "none"},
        }
    )


def operations(encoder: Any, shape: tuple[int, int]) -> float:
    """Floating-point operations of one map of so many rows and columns."""
    import tensorflow as tf

    traced = tf.function(lambda maps: encoder(maps, training=False)).get_concrete_function(
        tf.TensorSpec((1, *shape, len(CHANNELS)), tf.float32)
    )
    total = 0.0
    for node in traced.graph.get_operations():
        if node.type in ("Conv2D", "MatMul"):
            kernel = node.inputs[1].shape.as_list()
            total += 2.0 * np.prod(node.outputs[0].shape.as_list()) * np.prod(kernel[:-1])
    return total


def on_openvino(model: Any) -> Any:
    """What runs the encoder of a detector that no file holds yet; none where Keras must."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        digest = file_digest(path)
    return open_encoder(detector.encoder_of(model), digest=digest)


def tensorflow_peak(size: int) -> Callable[[], float]:
    import tensorflow as tf

    a = tf.random.normal((size, size))
    product = tf.function(lambda b: tf.matmul(a, b))

    def work() -> float:
        product(a).numpy()
        return 2 * size**3 / 1e9

    work()
    return work


def openvino_peak(size: int) -> Callable[[], float]:
    import openvino
    from openvino import opset13 as ops

    a = ops.parameter([size, size], np.float32)
    b = ops.constant(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32))
    network = openvino.Model([ops.matmul(a, b, False, False)], [a])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(network, "CPU", settings)
    values = np.ones((size, size), np.float32)

    def work() -> float:
        compiled(values)
        return 2 * size**3 / 1e9

    work()
    return work


def repeated(work: Callable[[], float], times: int) -> Callable[[], float]:
    return lambda: sum(work() for _ in range(times))


def measure(small: bool) -> Iterator[Claim]:
    """Share of the float32 peak that detection and training reach."""
    size, n, rounds = (256, 32, 1) if small else (3072, 192, 5)
    rng = np.random.default_rng(0)
    shape = SMALL_SHAPE if small else SHAPE
    maps = rng.normal(size=(n, *shape, len(CHANNELS))).astype(np.float32)
    statistics = Statistics(CHANNELS, np.zeros(6), np.ones(6), 9)
    peaks = {
        "OpenVINO": repeated(openvino_peak(size), 1 if small else 8),
        "TensorFlow": repeated(tensorflow_peak(size), 1 if small else 8),
    }
    for name, (asked, asked_training) in ASKED.items():
        config = configuration(name)
        model = detector.build_detector(config, statistics)
        encoder = detector.encoder_of(model)
        flops = operations(encoder, shape) / 1e9
        about = f"{flops:.3g} GFLOP a map of {shape[0]} x {shape[1]} x {len(CHANNELS)}"
        fast = on_openvino(model)
        if fast is not None:
            fast(maps)

            def detection(fast: Any = fast, flops: float = flops) -> float:
                fast(maps)
                return n * flops

            yield side_by_side(
                detection,
                peaks["OpenVINO"],
                claim=f"encoder {name} on OpenVINO, float32",
                against="a matrix product of OpenVINO: the float32 peak",
                unit="GFLOP/s",
                target=asked,
                rounds=rounds,
                note=about,
            )
        train = config.train
        detector.compile_detector(model, train, steps=100)
        fuse(model)  # as `train` does
        length = 12
        count = 1 if small else (96 if name == "compact" else 48) // length
        windows = maps[: count * length].reshape(count, length, *maps.shape[1:])
        labels = rng.integers(0, 2, (count, length, 1)).astype(np.float32)
        model.train_on_batch(windows, labels)

        def training(model: Any = model, of: Any = (windows, labels), flops: float = flops) -> Any:
            model.train_on_batch(*of)
            return 3 * flops * of[0].shape[0] * of[0].shape[1]

        yield side_by_side(
            repeated(training, 1 if small else 3),
            peaks["TensorFlow"],
            claim=f"training step, {name}",
            against="a matrix product of TensorFlow: the float32 peak",
            unit="GFLOP/s",
            target=asked_training,
            rounds=rounds,
            note=about + "; a step is counted as three times that",
        )


if __name__ == "__main__":
    main(measure)
