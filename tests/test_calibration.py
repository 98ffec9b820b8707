"""Temperature, threshold and the calibration of a rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from medicane.errors import InputError
from medicane.evaluate.calibration import (
    TEMPERATURE_RANGE,
    calibrate,
    fit_rule,
    fit_score,
    fit_temperature,
    fit_threshold,
)


@pytest.fixture
def sharp():
    """Labels drawn from true logits, seen by a forecaster who triples them."""
    rng = np.random.default_rng(5)
    true = rng.normal(-2, 2, 40_000)
    return 3 * true, (rng.random(true.size) < expit(true)).astype(int)


def test_temperature_recovers_a_known_scaling(sharp):
    found = fit_temperature(*sharp)
    assert found.value == pytest.approx(3, rel=0.05)
    assert found.note == ""
    bare = fit_temperature(sharp[0] / found.value, sharp[1])
    assert bare.value == pytest.approx(1, rel=1e-3)
    assert bare.criterion == pytest.approx(found.criterion, rel=1e-6)


def test_prior_offset_comes_first(sharp):
    shifted = fit_temperature(sharp[0] + 2.5, sharp[1], prior_offset=2.5)
    assert shifted.value == pytest.approx(fit_temperature(*sharp).value, rel=1e-5)
    np.testing.assert_allclose(
        calibrate([2.5, 8.5], temperature=3, prior_offset=2.5), expit([0, 2.0])
    )


def test_prior_offset_restores_the_base_rate():
    # Trained where medicanes were seen ten times as often: the odds are ten times too high.
    true = logit(np.array([0.01, 0.3]))
    np.testing.assert_allclose(
        calibrate(true + np.log(10), temperature=1, prior_offset=np.log(10)), [0.01, 0.3]
    )


def test_unknown_and_missing_are_left_out(sharp):
    values, labels = sharp[0][:3000].copy(), sharp[1][:3000].copy()
    expected_t, expected_c = fit_temperature(values, labels), fit_threshold(expit(values), labels)
    values = np.concatenate([values, [80.0, np.nan]])
    labels = np.concatenate([labels, [-1, 0]])
    assert fit_temperature(values, labels) == expected_t
    assert fit_threshold(expit(values), labels) == expected_c


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [-1, -1, -1]])
def test_temperature_with_one_class_is_one(labels):
    found = fit_temperature([0.3, -2.0, 1.0], labels)
    assert found.value == 1
    assert "one class" in found.note


def test_perfect_separation_stops_at_the_end_of_the_range():
    found = fit_temperature([-1.0, -2.0, 3.0], [0, 0, 1])
    assert found.value == pytest.approx(TEMPERATURE_RANGE[0], rel=0.01)
    assert "hardly determined" in found.note


def test_extreme_logits_do_not_overflow():
    found = fit_temperature([-1e4, 1e4, -1e4, 1e4], [0, 1, 0, 0])
    assert np.isfinite(found.criterion)


def csi_at(threshold, probability, labels):
    detected, observed = probability >= threshold, labels == 1
    return (detected & observed).sum() / (detected | observed).sum()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_threshold_maximises_csi_by_brute_force(data):
    n = data.draw(st.integers(1, 30))
    # A coarse grid of probabilities makes ties common.
    p = np.array(data.draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))) / 10
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=n, max_size=n)))
    found = fit_threshold(p, labels)
    assert 0 < found.value < 1
    if not labels.any():
        assert found.value == 0.5
        assert "no medicane map" in found.note
        return
    candidates = np.concatenate([np.unique(p), [2.0]])
    best = max(csi_at(c, p, labels) for c in candidates)
    assert found.criterion == pytest.approx(best)
    if p.min() > 0 or found.note == "":
        assert csi_at(found.value, p, labels) == pytest.approx(best)
        # Of equal thresholds the highest: detecting less is worse.
        higher = candidates[candidates > found.value]
        assert all(csi_at(c, p, labels) < best for c in higher[1:])


def test_threshold_survives_rounding():
    p = np.array([0.1, 0.3, 0.30000001, 0.7])
    labels = np.array([0, 0, 0, 1])
    found = fit_threshold(p, labels)
    assert found.value == pytest.approx(0.5)
    np.testing.assert_array_equal(p.astype("float32") >= found.value, labels == 1)


def test_lengths_and_labels_are_checked():
    with pytest.raises(InputError, match="one label for each value; found 3 and 2"):
        fit_threshold([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(InputError, match="labels must be 1, 0 or -1; found 2"):
        fit_temperature([0.1, 0.2], [0, 2])


def test_a_rule_is_read_as_two_frequencies():
    detection = np.array([True] * 10 + [False] * 90 + [True])
    labels = np.array([1] * 6 + [0] * 4 + [1] * 2 + [0] * 88 + [-1])
    rule = fit_rule(detection, labels)
    assert rule.yes == pytest.approx(6.5 / 11)
    assert rule.no == pytest.approx(2.5 / 91)
    np.testing.assert_allclose(rule.probability([True, False]), rule)
    assert fit_rule([True], [-1]) == (0.5, 0.5)


def test_two_frequencies_beat_bare_certainty():
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.02).astype(int)
    detection = np.where(labels == 1, rng.random(4000) < 0.7, rng.random(4000) < 0.02)
    rule = fit_rule(detection[:2000], labels[:2000])
    test = labels[2000:]
    calibrated = np.mean((rule.probability(detection[2000:]) - test) ** 2)
    assert calibrated < np.mean((detection[2000:] - test) ** 2)


def test_a_score_becomes_a_probability_and_a_threshold():
    rng = np.random.default_rng(1)
    score = rng.normal(-60, 50, 20_000)
    labels = (rng.random(score.size) < expit(0.04 * score - 1.0)).astype(int)
    curve, threshold = fit_score(score, labels)
    assert curve.slope == pytest.approx(0.04, rel=0.05)
    assert curve.intercept == pytest.approx(-1.0, rel=0.1)
    p = curve.probability(score)
    assert p.mean() == pytest.approx(labels.mean(), rel=1e-3)
    assert threshold == fit_threshold(p, labels)


@pytest.mark.parametrize(
    ("score", "labels"),
    [
        ([1.0, 2.0], [0, 0]),
        ([1.0, 2.0], [1, 1]),
        ([1.0, 1.0], [0, 1]),
        ([2.0, 1.0], [0, 1]),
        ([], []),
    ],
)
def test_a_score_without_information_is_the_base_rate(score, labels):
    curve, _ = fit_score(score, labels)
    assert curve.slope == 0
    expected = (sum(labels) + 0.5) / (len(labels) + 1)
    assert curve.probability(3.0) == pytest.approx(expected)
