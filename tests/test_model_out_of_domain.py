"""The autoencoder of the features: fitted after the detector, saved with it, a flag and no more."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.errors import InputError
from medicane.model.out_of_domain import OutOfDomain
from tests.small_networks import STATISTICS, answers, build, standard_maps


def features_of(network: keras.Model, maps: np.ndarray) -> np.ndarray:
    return np.asarray(detector.encoder_of(network)(maps, training=False))


def weather(n: int, *, seed: int = 2) -> np.ndarray:
    """Maps whose channels rise and fall as a whole: three numbers a map are worth keeping."""
    rise = 2 * np.random.default_rng(seed + 1).normal(size=(n, 1, 1, 3)) * STATISTICS.std
    return (standard_maps(n, 8, 8, seed=seed) + rise).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build(blocks=[1], out_of_domain=True)


@pytest.fixture(scope="module")
def training(network: keras.Model) -> np.ndarray:
    return features_of(network, weather(600))


@pytest.fixture(scope="module")
def fitted(network: keras.Model, training: np.ndarray) -> keras.Model:
    detector.fit_out_of_domain(network, training, seed=3, epochs=8)
    return network


def test_the_detector_stays_as_it_is(training: np.ndarray) -> None:
    network, plain = build(blocks=[1], out_of_domain=True), build(blocks=[1])
    maps = standard_maps(2, 10, 8, 8)
    before = answers(network, maps)
    np.testing.assert_array_equal(before, answers(plain, maps))
    sizes = [len(model.trainable_weights) for model in (network, plain)]
    assert sizes[0] == sizes[1]
    dead = training.copy()
    dead[:, 0] = 0  # a feature that never moves has no deviation to divide by
    detector.fit_out_of_domain(network, dead, epochs=1)
    np.testing.assert_array_equal(answers(network, maps), before)
    assert len(network.trainable_weights) == sizes[0]  # nothing is trained with the detector
    assert np.asarray(network.get_layer("out_of_domain").deviation)[0] == 1
    assert np.isfinite(detector.reconstruction_error(network, dead)).all()


def test_maps_unlike_the_training_stand_out(fitted: keras.Model, training: np.ndarray) -> None:
    known = detector.facts_of(fitted)["out_of_domain"]
    assert known["n_maps"] == 600
    errors = detector.reconstruction_error(fitted, training)
    assert errors.shape == (600,)
    assert errors.dtype == np.float32
    assert known["percentile_99"] == pytest.approx(np.percentile(errors, 99), rel=1e-6)
    alike = features_of(fitted, weather(200, seed=9))
    assert np.mean(detector.reconstruction_error(fitted, alike) > known["percentile_99"]) < 0.1
    strange = weather(50, seed=9) + (15 * STATISTICS.std).astype(np.float32)
    flagged = detector.reconstruction_error(fitted, features_of(fitted, strange))
    assert np.mean(flagged > known["percentile_99"]) > 0.9


def test_fitting_lowers_the_error(fitted: keras.Model, training: np.ndarray) -> None:
    unfit = build(blocks=[1], out_of_domain=True)
    detector.fit_out_of_domain(unfit, training, epochs=0)
    assert detector.reconstruction_error(unfit, training).mean() > 0.9
    assert detector.reconstruction_error(fitted, training).mean() < 0.5  # the mean would have 1


def test_one_seed_one_result(training: np.ndarray) -> None:
    found = []
    for seed in (3, 3, 4):
        network = build(blocks=[1], out_of_domain=True)
        detector.fit_out_of_domain(network, training, seed=seed, epochs=1)
        found.append(detector.reconstruction_error(network, training))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


def test_it_is_saved_with_the_detector(
    fitted: keras.Model, training: np.ndarray, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "detector.keras")
    loaded = detector.load_detector(tmp_path / "detector.keras")
    assert detector.knows_its_domain(loaded)
    assert detector.facts_of(loaded) == detector.facts_of(fitted)
    np.testing.assert_array_equal(
        detector.reconstruction_error(loaded, training),
        detector.reconstruction_error(fitted, training),
    )
    assert not loaded.get_layer("out_of_domain").trainable_weights


def test_the_error_is_that_of_standard_features(fitted: keras.Model, training: np.ndarray) -> None:
    layer = fitted.get_layer("out_of_domain")
    assert isinstance(layer, OutOfDomain)
    standard = (training - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(np.asarray(layer.mean), training.mean(0), atol=1e-5)
    back = np.asarray(layer.autoencoder(standard, training=False))
    np.testing.assert_allclose(
        detector.reconstruction_error(fitted, training),
        np.mean((back - standard) ** 2, axis=1),
        rtol=1e-3,
    )
    narrowest = min(dense.units for dense in layer.autoencoder.layers)
    assert narrowest == training.shape[1] // 8


def test_no_map_no_error(fitted: keras.Model, training: np.ndarray) -> None:
    assert detector.reconstruction_error(fitted, training[:0]).shape == (0,)


class TestRefusals:
    def test_no_autoencoder(self, training: np.ndarray) -> None:
        plain = build(blocks=[1])
        assert not detector.knows_its_domain(plain)
        with pytest.raises(InputError, match=r"must be built with model\.out_of_domain"):
            detector.fit_out_of_domain(plain, training)
        with pytest.raises(InputError, match=r"must be built with model\.out_of_domain"):
            detector.reconstruction_error(plain, training)

    def test_never_fitted(self, training: np.ndarray) -> None:
        fresh = build(blocks=[1], out_of_domain=True)
        assert not detector.knows_its_domain(fresh)
        with pytest.raises(InputError, match="its autoencoder must be fitted first"):
            detector.reconstruction_error(fresh, training)

    def test_features_of_another_width(self, network: keras.Model, training: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"features: must be \(maps, 18\), at least two"):
            detector.fit_out_of_domain(network, training[:, 1:])
        with pytest.raises(InputError, match="at least two"):
            detector.fit_out_of_domain(network, training[:1])

    def test_features_that_are_not_numbers(
        self, network: keras.Model, training: np.ndarray
    ) -> None:
        broken = training.copy()
        broken[4, 2] = np.nan
        with pytest.raises(InputError, match="features: must be finite"):
            detector.fit_out_of_domain(network, broken)
