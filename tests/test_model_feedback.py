"""Label feedback: the previous label as an input, the model's own where there is none."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.errors import InputError
from medicane.model.feedback import FeedbackGRUCell, FeedbackLSTMCell
from tests.small_networks import answers, build, configuration, standard_maps

both_cells = pytest.mark.parametrize("rnn", ["gru", "lstm"])


@pytest.fixture(scope="module")
def networks() -> dict[str, keras.Model]:
    return {
        rnn: build(blocks=[1], growth_rate=2, label_feedback=True, rnn=rnn)
        for rnn in ("gru", "lstm")
    }


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return standard_maps(3, 11, 8, 9)


def own(maps: np.ndarray) -> np.ndarray:
    return np.full((*maps.shape[:2], 1), np.nan, np.float32)


@both_cells
def test_without_a_teacher_it_is_the_detector(
    networks: dict[str, keras.Model], maps: np.ndarray, rnn: str
) -> None:
    taught = detector.teacher_forced(networks[rnn])
    found = answers(taught, {"maps": maps, "previous": own(maps)})
    np.testing.assert_array_equal(found, answers(networks[rnn], maps))


@both_cells
def test_its_own_labels_are_the_probabilities_of_the_map_before(
    networks: dict[str, keras.Model], maps: np.ndarray, rnn: str
) -> None:
    """Told what it would have said itself, it says the same: 0, p(1), p(2) …"""
    p = answers(networks[rnn], maps)
    before = np.concatenate([np.zeros((3, 1)), p[:, :-1]], axis=1)[..., None].astype(np.float32)
    taught = detector.teacher_forced(networks[rnn])
    np.testing.assert_allclose(answers(taught, {"maps": maps, "previous": before}), p, atol=1e-6)


@both_cells
def test_the_previous_label_counts_from_its_map_on(
    networks: dict[str, keras.Model], maps: np.ndarray, rnn: str
) -> None:
    taught = detector.teacher_forced(networks[rnn])
    plain = answers(taught, {"maps": maps, "previous": own(maps)})
    told = own(maps)
    told[:, 5] = 1
    found = answers(taught, {"maps": maps, "previous": told})
    np.testing.assert_array_equal(found[:, :5], plain[:, :5])
    assert np.abs(found[:, 5] - plain[:, 5]).min() > 1e-4
    assert np.abs(found[:, 6:] - plain[:, 6:]).max() > 1e-5  # and it is remembered


def test_known_and_unknown_labels_side_by_side(
    networks: dict[str, keras.Model], maps: np.ndarray
) -> None:
    """A sequence whose labels are known says nothing to one whose labels are not."""
    taught = detector.teacher_forced(networks["gru"])
    mixed = own(maps)
    mixed[0] = 0
    found = answers(taught, {"maps": maps, "previous": mixed})
    plain = answers(networks["gru"], maps)
    np.testing.assert_allclose(found[1:], plain[1:], atol=1e-6)
    assert np.abs(found[0] - plain[0]).max() > 1e-5


def test_the_calibration_is_not_fed_back(
    networks: dict[str, keras.Model], maps: np.ndarray
) -> None:
    """A temperature changes the probabilities, not what the network hears of itself."""
    network = networks["gru"]
    plain = answers(network, maps).astype(float)
    detector.set_calibration(network, temperature=3.0, offset=1.0)
    calibrated = answers(network, maps).astype(float)
    detector.set_calibration(network, temperature=1.0)
    expected = (np.log(plain / (1 - plain)) - 1) / 3
    np.testing.assert_allclose(np.log(calibrated / (1 - calibrated)), expected, atol=1e-4)


def test_training_with_a_teacher_trains_the_detector(maps: np.ndarray, tmp_path: Path) -> None:
    """Weights are shared; a batch of known and unknown labels leaves no NaN behind."""
    network = build(blocks=[1], growth_rate=2, label_feedback=True, recurrent_dropout=0.2)
    taught = detector.teacher_forced(network)
    assert {w.path for w in taught.trainable_weights} == {w.path for w in network.trainable_weights}
    detector.compile_detector(taught, configuration().train, steps=4)
    previous = own(maps)
    previous[:, ::2] = (np.random.default_rng(0).random((3, 6, 1)) > 0.5).astype(np.float32)
    labels = (np.random.default_rng(1).random((3, 11, 1)) > 0.5).astype(np.float32)
    before = [w.numpy().copy() for w in network.trainable_weights]
    for _ in range(2):
        loss = taught.train_on_batch(
            {"maps": maps, "previous": previous}, labels, sample_weight=np.ones((3, 11), np.float32)
        )
        assert np.isfinite(loss).all()
    for weight, old in zip(network.trainable_weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert np.abs(weight.numpy() - old).max() > 0, weight.path
    network.save(tmp_path / "detector.keras")  # after the teacher has used its layers
    loaded = detector.load_detector(tmp_path / "detector.keras")
    np.testing.assert_array_equal(answers(loaded, maps), answers(network, maps))


def test_it_keeps_its_domain_on_the_way(maps: np.ndarray) -> None:
    network = build(blocks=[1], growth_rate=2, label_feedback=True, out_of_domain=True)
    taught = detector.teacher_forced(network)
    found = answers(taught, {"maps": maps, "previous": own(maps)})
    np.testing.assert_array_equal(found, answers(network, maps))


@pytest.mark.parametrize("cell", [FeedbackGRUCell, FeedbackLSTMCell])
def test_a_cell_comes_back_from_its_configuration(cell: type) -> None:
    made = cell(5, output_dropout=0.25, recurrent_dropout=0.1, kernel_regularizer="l2")
    again = cell.from_config(made.get_config())
    assert again.output_dropout == 0.25
    assert again.recurrent_dropout == 0.1
    assert again.units == 5
    assert again.output_size == 1
    assert again.state_size == made.state_size
    assert made.state_size[-1] == 1  # its own probability
    states = made.get_initial_state(batch_size=3)
    assert [tuple(s.shape) for s in states] == [(3, n) for n in made.state_size]


def test_dropout_acts_on_the_output_of_the_cell() -> None:
    network = build(blocks=[1], growth_rate=2, label_feedback=True, dropout=0.5)
    recurrent = detector.head_of(network).get_layer("feedback")
    assert recurrent.cell.output_dropout == 0.5
    features = np.random.default_rng(0).normal(size=(4, 5, recurrent.input.shape[-1]))
    noisy = [np.asarray(recurrent(features, training=True)) for _ in range(2)]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-4
    quiet = [np.asarray(recurrent(features, training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*quiet)


def test_others_have_no_teacher() -> None:
    plain = build(blocks=[1], growth_rate=2)
    with pytest.raises(InputError, match="must have label_feedback to be told the previous label"):
        detector.teacher_forced(plain)
