"""What holds for every network behind `build_detector`, and what each adds of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from medicane import model as detector
from medicane.config import load_config, make_config
from medicane.errors import InputError
from medicane.model.encoders import compact_size
from medicane.model.heads import TCN_DILATIONS, TCN_KERNEL, recurrent_size
from medicane.model.temporal import TEMPORAL_REACH, fitted_width
from medicane.normalise import Statistics
from tests.conftest import ROOT
from tests.small_networks import (
    STATISTICS,
    VARIANTS,
    answers,
    build,
    configuration,
    standard_maps,
)

every_network = pytest.mark.parametrize("name", VARIANTS)
over_time = pytest.mark.parametrize("name", ["c3d", "r2plus1d"])
LOOKS_AHEAD = {"bidirectional"}
TABLE = ROOT / "docs" / "networks.md"


@pytest.fixture(scope="module")
def networks() -> dict[str, keras.Model]:
    return {name: build(**keys) for name, keys in VARIANTS.items()}


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return standard_maps(2, 12, 9, 11)


@every_network
def test_one_probability_a_map(
    networks: dict[str, keras.Model], maps: np.ndarray, name: str
) -> None:
    found = networks[name](maps, training=False)
    assert found.shape == (2, 12, 1)
    assert "float32" in str(found.dtype)
    probability = answers(networks[name], maps)
    assert ((probability > 0) & (probability < 1)).all()
    assert probability.std() > 1e-4
    assert networks[name].output_shape == (None, None, 1)


@every_network
def test_the_saved_file_is_the_same_function(
    networks: dict[str, keras.Model], maps: np.ndarray, name: str, tmp_path: Path
) -> None:
    network, path = networks[name], tmp_path / "detector.keras"
    detector.set_calibration(network, temperature=1.7, offset=0.4, threshold=0.31)
    network.save(path)
    loaded = detector.load_detector(path)
    np.testing.assert_array_equal(answers(loaded, maps), answers(network, maps))
    assert detector.facts_of(loaded) == detector.facts_of(network)
    assert detector.temporal_reach(loaded) == detector.temporal_reach(network)
    assert detector.looks_ahead(loaded) == detector.looks_ahead(network) == (name in LOOKS_AHEAD)
    detector.set_calibration(network, temperature=1.0)


@every_network
def test_encoder_then_head_is_the_detector(
    networks: dict[str, keras.Model], maps: np.ndarray, name: str
) -> None:
    network = networks[name]
    if detector.temporal_reach(network) > 1:
        features = detector.encoder_of(network)(maps, training=False)
    else:
        features = detector.encoder_of(network)(maps.reshape(-1, 9, 11, 3), training=False)
        features = np.asarray(features).reshape(2, 12, -1)
    logit = np.asarray(detector.head_of(network)(features, training=False))[..., 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), answers(network, maps), atol=1e-6)


@every_network
def test_only_a_backward_pass_looks_ahead(
    networks: dict[str, keras.Model], maps: np.ndarray, name: str
) -> None:
    changed = maps.copy()
    changed[:, 7:] += 5 * STATISTICS.std
    before, after = answers(networks[name], maps), answers(networks[name], changed)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3
    if name in LOOKS_AHEAD:
        assert np.abs(before[:, :7] - after[:, :7]).max() > 1e-5
    else:
        np.testing.assert_array_equal(before[:, :7], after[:, :7])


@every_network
def test_order_matters_to_all_but_the_single_map(
    networks: dict[str, keras.Model], maps: np.ndarray, name: str
) -> None:
    """The last map's answer when those before it change places."""
    shuffled = maps.copy()
    shuffled[:, 7:11] = maps[:, [10, 9, 8, 7]]
    difference = np.abs(answers(networks[name], maps) - answers(networks[name], shuffled))[:, -1]
    assert difference.max() == 0 if name == "single_map" else difference.max() > 1e-7


@pytest.mark.parametrize("name", ["tcn", "triple", "feedback_lstm", "r2plus1d"])
def test_gradients_reach_every_trainable_weight(maps: np.ndarray, name: str) -> None:
    config = configuration({"l2": 0, "clipnorm": None}, **VARIANTS[name])
    network = build(**VARIANTS[name])
    detector.compile_detector(network, config.train, steps=10)
    assert network.optimizer.clipnorm is None
    network.run_eagerly = True
    before = [w.numpy().copy() for w in network.trainable_weights]
    labels = (np.random.default_rng(0).random((2, 12, 1)) > 0.5).astype(np.float32)
    loss = network.train_on_batch(maps, labels, sample_weight=np.ones((2, 12), np.float32))
    assert np.isfinite(loss).all()
    unmoved = [
        w.path
        for w, old in zip(network.trainable_weights, before, strict=True)
        if np.array_equal(w.numpy(), old)
    ]
    assert not unmoved


@every_network
def test_l2_on_kernels_not_on_biases(networks: dict[str, keras.Model], name: str) -> None:
    """Each penalised weight is a kernel, each kernel is penalised (batch norm has none)."""
    for weight in networks[name].trainable_weights:
        is_kernel = "kernel" in weight.path.rsplit("/", 1)[-1]
        assert (weight.regularizer is not None) == is_kernel, weight.path


# Losses ------------------------------------------------------------------------------------------


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((4, 12, 1)) > 0.5).astype(np.float32)
    guess = rng.uniform(0.01, 0.99, (4, 12, 1)).astype(np.float32)
    weights = rng.random((4, 12)).astype(np.float32)
    plain = keras.losses.BinaryCrossentropy()(truth, guess, sample_weight=weights)
    focal = keras.losses.BinaryFocalCrossentropy(gamma=0.0)(truth, guess, sample_weight=weights)
    np.testing.assert_allclose(focal, plain, rtol=1e-6)


def test_focal_gamma_weighs_each_map_by_what_is_missing() -> None:
    network = build(rnn="none", blocks=[1], growth_rate=2)
    detector.compile_detector(network, configuration({"focal_gamma": 2.0}).train, steps=10)
    assert network.loss.gamma == 2.0
    assert not network.loss.get_config()["apply_class_balancing"]
    truth, guess = np.array([[[1.0], [0.0]]]), np.array([[[0.8], [0.3]]])
    expected = np.mean([-(0.2**2) * np.log(0.8), -(0.3**2) * np.log(0.7)])
    np.testing.assert_allclose(network.loss(truth, guess), expected, rtol=1e-5)
    detector.compile_detector(network, configuration({"focal_gamma": 0.0}).train, steps=10)
    assert type(network.loss) is keras.losses.BinaryCrossentropy


# Heads -------------------------------------------------------------------------------------------


def test_a_single_map_knows_no_other(networks: dict[str, keras.Model], maps: np.ndarray) -> None:
    alone = answers(networks["single_map"], maps[:, 4:5])
    np.testing.assert_allclose(alone, answers(networks["single_map"], maps)[:, 4:5], atol=1e-6)


def test_tcn_sees_each_of_the_last_maps_and_no_other(networks: dict[str, keras.Model]) -> None:
    reach = 1 + (TCN_KERNEL - 1) * sum(TCN_DILATIONS)
    assert reach == 11  # within a sequence of 12
    head = detector.head_of(networks["tcn"])
    features = np.random.default_rng(0).normal(size=(1, 15, head.input_shape[-1]))
    # One sequence a row: the first as it is, the others with one map changed.
    rows = np.repeat(features, 16, axis=0)
    rows[np.arange(1, 16), 14 - np.arange(15)] += 1
    last = np.asarray(head(rows, training=False))[:, -1, 0]
    np.testing.assert_array_equal(last[1:] != last[0], np.arange(15) < reach)


def test_both_ways_are_as_wide_as_one(networks: dict[str, keras.Model]) -> None:
    both = detector.head_of(networks["bidirectional"]).get_layer("both_ways")
    assert both.output.shape[-1] == 6
    assert detector.head_of(build(bidirectional=True, units=5)).count_params() > 0  # odd ones too


def test_recurrent_dropout_acts_in_training_alone(
    networks: dict[str, keras.Model], maps: np.ndarray
) -> None:
    recurrent = detector.head_of(networks["recurrent_dropout"]).get_layer("gru")
    assert recurrent.cell.recurrent_dropout == 0.3
    features = np.random.default_rng(0).normal(size=(2, 5, recurrent.input.shape[-1]))
    quiet = [np.asarray(recurrent(features, training=False)) for _ in range(2)]
    noisy = [np.asarray(recurrent(features, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3


# Over time ---------------------------------------------------------------------------------------


@over_time
@pytest.mark.parametrize(("blocks", "reach"), [([1], 5), ([1, 1, 1, 1], 9)])
def test_an_encoder_over_time_sees_its_reach_and_no_more(
    name: str, blocks: list[int], reach: int
) -> None:
    network = build(**{**VARIANTS[name], "blocks": blocks, "growth_rate": 2})
    assert detector.temporal_reach(network) == reach <= TEMPORAL_REACH <= 10
    side = detector.smallest_grid(configuration(blocks=blocks, **VARIANTS[name]).model)
    encoder, maps = detector.encoder_of(network), standard_maps(1, 12, side, side)
    last = np.asarray(encoder(maps, training=False))[0, -1]
    for back in (reach - 1, reach):
        changed = maps.copy()
        changed[0, 11 - back] += 20 * STATISTICS.std
        moved = np.abs(np.asarray(encoder(changed, training=False))[0, -1] - last).max()
        assert (moved > 0) == (back < reach), back


@over_time
def test_the_last_map_of_a_window_is_that_of_the_series(
    networks: dict[str, keras.Model], name: str
) -> None:
    maps = standard_maps(1, 16, 8, 8)
    window = answers(networks[name], maps[:, 6:])[:, -1]  # 10 maps, the shortest sequence
    np.testing.assert_allclose(window, answers(networks[name], maps)[:, -1], atol=1e-6)


def test_map_encoders_see_one_map(networks: dict[str, keras.Model]) -> None:
    for name, network in networks.items():
        assert (detector.temporal_reach(network) == 1) == (name not in ("c3d", "r2plus1d"))


@over_time
def test_the_smallest_grid_is_enough_over_time(name: str) -> None:
    config = configuration(blocks=[1, 1, 1], **VARIANTS[name])
    side = detector.smallest_grid(config.model)
    network = build(blocks=[1, 1, 1], **VARIANTS[name])
    assert np.isfinite(answers(network, standard_maps(1, 3, side, side + 1))).all()


def size_of(weights: list[Any]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


@pytest.mark.parametrize(
    ("growth_rate", "blocks", "units"),
    [(12, [1, 2, 2], 48), pytest.param(16, [3, 6, 12], 64, marks=pytest.mark.slow)],
)
def test_rivals_are_of_one_size(growth_rate: int, blocks: list[int], units: int) -> None:
    """C3D and R(2+1)D against compact and GRU; the sum that fits them is that of the networks."""
    keys = {"growth_rate": growth_rate, "blocks": blocks, "units": units}
    sizes = {
        name: size_of(
            detector.build_detector(
                configuration(**keys, **VARIANTS[name]), STATISTICS
            ).trainable_weights
        )
        for name in ("gru", "c3d", "r2plus1d")
    }
    assert abs(sizes["r2plus1d"] / sizes["c3d"] - 1) < 0.05
    assert abs(sizes["c3d"] / sizes["gru"] - 1) < 0.15
    chosen = configuration(**keys).model
    compact, features = compact_size(chosen, channels=3)
    assert sizes["gru"] == compact + recurrent_size(features, units) + units + 1
    assert fitted_width(chosen, channels=3) >= 2


# Configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "law"),
    [
        ({"encoder": "c3d"}, "rnn must be none"),
        ({"rnn": "none", "bidirectional": True}, "bidirectional needs rnn gru or lstm"),
        ({"rnn": "tcn", "recurrent_dropout": 0.1}, "recurrent_dropout needs rnn gru or lstm"),
        ({"bidirectional": True, "label_feedback": True}, "runs forwards only"),
        ({"encoder": "densenet121", "attention": "triple"}, "attention needs the compact encoder"),
    ],
)
def test_parts_that_do_not_fit_together(keys: dict[str, Any], law: str) -> None:
    with pytest.raises(InputError, match=law):
        configuration(**keys)


@over_time
def test_statistics_are_asked_of_every_encoder(name: str) -> None:
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": ["u10"]},
            "model": {"blocks": [1], "growth_rate": 2, "units": 2, **VARIANTS[name]},
        }
    )
    flat = Statistics(("u10",), np.zeros(1), np.zeros(1), 5)
    with pytest.raises(InputError, match="channel u10: its standard deviation"):
        detector.build_detector(config, flat)
    normalisation = detector.encoder_of(build(**VARIANTS[name])).get_layer("normalisation")
    normal = np.asarray(normalisation(standard_maps(4, 5, 16, 16)))
    np.testing.assert_allclose(normal.mean((0, 1, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(normal.std((0, 1, 2, 3)), 1, atol=0.05)


@pytest.mark.slow
def test_the_documented_sizes_are_those_of_the_demo() -> None:
    """Every row of the table in docs/networks.md, built from its ``model:`` cell."""
    table = re.findall(r"^\| ([^|]+) \| ([^|]*)\| ([\d,]+) \|", TABLE.read_text(), re.MULTILINE)
    assert len(table) == 11
    demo = load_config(ROOT / "config" / "demo.yaml")
    channels = demo.data.channel_names
    statistics = Statistics(channels, np.zeros(len(channels)), np.ones(len(channels)), 9)
    for name, keys, told in table:
        changed = yaml.safe_load("{" + keys.replace("`", "") + "}")
        model = demo.model.model_dump(exclude_unset=True) | changed
        config = make_config({**demo.model_dump(), "model": model})
        built = detector.build_detector(config, statistics)
        assert size_of(built.trainable_weights) == int(told.replace(",", "")), name
