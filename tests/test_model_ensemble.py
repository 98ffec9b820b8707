"""Several detectors as one: the mean of their logits, in one file."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.errors import InputError
from tests.small_networks import STATISTICS, answers, build, standard_maps


def logits(model: keras.Model, maps: np.ndarray) -> np.ndarray:
    p = answers(model, maps).astype(float)
    return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def members() -> list[keras.Model]:
    """Three seeds; each with a calibration of its own."""
    built = [build(seed=seed, blocks=[1], growth_rate=2) for seed in (1, 2, 3)]
    for i, member in enumerate(built):
        detector.set_calibration(member, temperature=1 + 0.3 * i, offset=0.2 * i, threshold=0.4)
    return built


@pytest.fixture(scope="module")
def ensemble(members: list[keras.Model]) -> keras.Model:
    return detector.ensemble_of(members)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return standard_maps(2, 11, 8, 9)


def test_the_logit_is_the_mean_of_the_members(
    ensemble: keras.Model, members: list[keras.Model], maps: np.ndarray
) -> None:
    expected = np.mean([logits(member, maps) for member in members], axis=0)
    np.testing.assert_allclose(logits(ensemble, maps), expected, atol=1e-4)
    assert np.abs(logits(members[0], maps) - expected).max() > 1e-2


def test_one_calibration_on_top(ensemble: keras.Model, maps: np.ndarray) -> None:
    plain = logits(ensemble, maps)
    detector.set_calibration(ensemble, temperature=2.0, offset=0.5, threshold=0.6)
    np.testing.assert_allclose(logits(ensemble, maps), (plain - 0.5) / 2, atol=1e-4)
    assert detector.facts_of(ensemble)["threshold"] == 0.6
    detector.set_calibration(ensemble, temperature=1.0)


def test_one_file_and_the_same_function(
    ensemble: keras.Model, maps: np.ndarray, tmp_path: Path
) -> None:
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = detector.load_detector(tmp_path / "ensemble.keras")
    np.testing.assert_array_equal(answers(loaded, maps), answers(ensemble, maps))
    assert detector.facts_of(loaded) == detector.facts_of(ensemble)


def test_encoder_then_head_is_the_ensemble(
    ensemble: keras.Model, members: list[keras.Model], maps: np.ndarray
) -> None:
    features = np.asarray(detector.encoder_of(ensemble)(maps.reshape(-1, 8, 9, 3)))
    single = detector.encoder_of(members[0]).output_shape[-1]
    assert features.shape == (22, 3 * single)
    logit = np.asarray(detector.head_of(ensemble)(features.reshape(2, 11, -1)))[..., 0]
    np.testing.assert_allclose(logit, logits(ensemble, maps), atol=1e-4)


def test_members_are_copied(maps: np.ndarray) -> None:
    member = build(blocks=[1], growth_rate=2)
    ensemble = detector.ensemble_of([member, member])
    before = answers(ensemble, maps)
    np.testing.assert_allclose(before, answers(member, maps), atol=1e-6)
    for weight in member.weights:
        weight.assign(weight * 0.5)
    np.testing.assert_array_equal(answers(ensemble, maps), before)


def test_facts_are_those_of_all(members: list[keras.Model]) -> None:
    facts = detector.facts_of(detector.ensemble_of(members))
    assert facts["members"] == 3
    assert facts["channels"] == detector.facts_of(members[0])["channels"]
    assert not {"temperature", "prior_offset", "threshold"} & set(facts)
    assert detector.facts_of(members[0])["threshold"] == 0.4  # the member keeps its own
    named = detector.ensemble_of(members[:2], facts={"length": 10, "seed": 7, "threshold": 0.9})
    assert detector.facts_of(named)["seed"] == 7
    assert "threshold" not in detector.facts_of(named)


def test_the_most_demanding_member_says_the_grid() -> None:
    small = build(blocks=[1], growth_rate=2, facts={"smallest_grid": 4})
    large = build(blocks=[1, 1], growth_rate=2, facts={"smallest_grid": 8})
    assert detector.facts_of(detector.ensemble_of([small, large]))["smallest_grid"] == 8


@pytest.mark.slow
def test_maps_encoders_and_encoders_over_time_together(maps: np.ndarray, tmp_path: Path) -> None:
    members = [
        build(blocks=[1], growth_rate=2),
        build(blocks=[1], growth_rate=2, encoder="r2plus1d", rnn="none"),
        build(blocks=[1], growth_rate=2, bidirectional=True),
    ]
    ensemble = detector.ensemble_of(members)
    expected = np.mean([logits(member, maps) for member in members], axis=0)
    np.testing.assert_allclose(logits(ensemble, maps), expected, atol=1e-4)
    assert detector.temporal_reach(ensemble) == detector.temporal_reach(members[1]) == 5
    assert detector.looks_ahead(ensemble)
    ensemble.save(tmp_path / "mixed.keras")
    loaded = detector.load_detector(tmp_path / "mixed.keras")
    np.testing.assert_array_equal(answers(loaded, maps), answers(ensemble, maps))
    assert detector.temporal_reach(loaded) == 5


def test_one_autoencoder_for_all() -> None:
    members = [build(seed=s, blocks=[1], growth_rate=2, out_of_domain=True) for s in (1, 2)]
    features = [
        np.asarray(detector.encoder_of(m)(standard_maps(50, 8, 8), training=False)) for m in members
    ]
    detector.fit_out_of_domain(members[0], features[0], epochs=1)
    ensemble = detector.ensemble_of(members)
    assert not detector.knows_its_domain(ensemble)  # its features are others: fitted anew
    detector.fit_out_of_domain(ensemble, np.concatenate(features, axis=1), epochs=1)
    assert detector.knows_its_domain(ensemble)


def test_members_must_belong_together(members: list[keras.Model]) -> None:
    with pytest.raises(InputError, match="at least two members; found 1"):
        detector.ensemble_of(members[:1])
    other = build(blocks=[1], growth_rate=2, facts={"length": 12})
    with pytest.raises(
        InputError, match="ensemble: member 2: must share length with the first: 10; found 12"
    ):
        detector.ensemble_of([members[0], other])


def test_statistics_stay_with_their_member(ensemble: keras.Model) -> None:
    for number in (1, 2, 3):
        normalisation = (
            detector.encoder_of(ensemble).get_layer(f"member{number}").get_layer("normalisation")
        )
        np.testing.assert_allclose(np.asarray(normalisation.mean).ravel(), STATISTICS.mean)
