"""Scores per map: against textbooks, and against the ``scores`` library."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.categorical import ThresholdEventOperator
from scores.probability import brier_score
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score

from medicane.errors import InputError
from medicane.evaluate.intervals import resample_blocks
from medicane.evaluate.skill import (
    TABLE_SCORES,
    Forecast,
    contingency_scores,
    map_scores,
    paired_difference,
    precision_recall,
    reliability,
    with_interval,
)


def year(seed=0, n=1461, n_storms=12):
    """Times, labels, storms and a fair probability for a year of six-hourly maps."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2003-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    labels, storm = np.zeros(n, int), np.full(n, "", dtype="<U8")
    for k, first in enumerate(np.linspace(5, n - 30, n_storms).astype(int)):
        labels[first : first + 9] = 1
        storm[first : first + 9] = f"s{k}"
    probability = 1 / (1 + np.exp(-(rng.normal(-3, 1.2, n) + 3 * labels)))
    return times, labels, storm, probability


def test_finleys_tornadoes():
    # Finley 1884: 28 hits, 23 misses, 72 false alarms, 2680 correct negatives (Wilks, table 8.1).
    found = contingency_scores(28, 23, 72, 2680)
    assert float(found["pod"]) == pytest.approx(0.549, abs=5e-4)
    assert float(found["far"]) == pytest.approx(0.720, abs=5e-4)
    assert float(found["csi"]) == pytest.approx(0.228, abs=5e-4)
    assert float(found["ets"]) == pytest.approx(0.216, abs=5e-4)
    assert float(found["hss"]) == pytest.approx(0.355, abs=5e-4)


def test_balanced_accuracy_hides_what_csi_shows():
    # POD .958 and FAR .988 at a base rate of 0.21 %: CSI .012.
    positives, negatives = 210, 99_790
    hits = 0.958 * positives
    false = hits * 0.988 / 0.012
    found = contingency_scores(hits, positives - hits, false, negatives - false)
    assert float(found["csi"]) == pytest.approx(0.012, abs=5e-4)


def test_tables_are_scored_together_as_they_are_alone():
    tables = np.random.default_rng(0).integers(0, 20, (4, 50))
    together = contingency_scores(*tables)
    for k in range(50):
        alone = contingency_scores(*tables[:, k])
        for name in TABLE_SCORES:
            np.testing.assert_array_equal(together[name][k], alone[name])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_agreement_with_scores(data):
    n = data.draw(st.integers(1, 40))
    p = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    y = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=n, max_size=n)))
    threshold = data.draw(st.floats(0.01, 0.99))
    found = map_scores(Forecast(p, threshold=threshold), y, reference_rate=0.1).value

    fcst, obs = xr.DataArray(p, dims="time"), xr.DataArray(y.astype(float), dims="time")
    table = ThresholdEventOperator(
        default_event_threshold=0.5, default_op_fn=operator.ge
    ).make_contingency_manager((fcst >= threshold).astype(float), obs)
    with np.errstate(all="ignore"):
        for name in ("pod", "far", "csi", "ets", "hss", "sedi"):
            expected = float(TABLE_SCORES[name](table))
            expected = expected if np.isfinite(expected) else np.nan
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    assert found["brier"] == pytest.approx(float(brier_score(fcst, obs)))
    constant = float(brier_score(fcst * 0 + 0.1, obs))
    assert found["brier_skill"] == pytest.approx(1 - found["brier"] / constant)
    if y.any():
        assert found["auc_pr"] == pytest.approx(average_precision_score(y, p))
    else:
        assert np.isnan(found["auc_pr"])


@pytest.mark.parametrize(
    ("labels", "probability", "undefined"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], {"pod", "far", "csi", "ets", "hss", "sedi", "auc_pr"}),
        ([0, 0, 0], [0.1, 0.9, 0.3], {"pod", "sedi", "auc_pr"}),
        ([1, 1, 1], [0.1, 0.9, 0.3], {"sedi"}),
        ([1, 1, 1], [0.9, 0.9, 0.9], {"ets", "hss", "sedi"}),
        ([0, 1, 0], [0.1, 0.2, 0.1], {"far", "sedi"}),
        ([], [], None),
    ],
)
def test_degenerate_samples_are_undefined_not_errors(labels, probability, undefined):
    forecast = Forecast(np.array(probability), threshold=0.5)
    found = map_scores(forecast, np.array(labels, int), reference_rate=0.01).value
    expected = set(found) if undefined is None else undefined
    assert {name for name, value in found.items() if np.isnan(value)} == expected


def test_no_reference_no_skill():
    found = map_scores(
        Forecast(np.array([0.1, 0.9]), threshold=0.5), np.array([0, 1]), reference_rate=np.nan
    )
    assert np.isnan(found.value["brier_skill"])
    assert found.value["brier"] == pytest.approx(0.01)


def test_all_tied_is_the_base_rate():
    y = np.array([1] * 3 + [0] * 97)
    found = map_scores(Forecast(np.full(100, 0.03), threshold=0.5), y, reference_rate=0.03).value
    assert found["auc_pr"] == pytest.approx(0.03)
    assert found["brier_skill"] == pytest.approx(0)
    assert found["ece"] == pytest.approx(0)


def test_calibration_error_by_hand():
    p = np.array([0.25, 0.25, 0.75, 0.75])
    found = map_scores(Forecast(p, threshold=0.5), np.array([0, 0, 1, 0]), reference_rate=0.1)
    assert found.value["ece"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.25)


def test_each_resample_is_scored_as_its_maps_would_be():
    times, labels, storm, probability = year()
    forecast = Forecast(probability, threshold=0.4)
    resampling = resample_blocks(times, labels, storm, n_resamples=6)
    found = map_scores(forecast, labels, reference_rate=0.02, resampling=resampling)
    assert set(found.resamples) == set(found.value)
    for r in range(6):
        times_drawn = resampling.weight[r, resampling.block].astype(int)
        drawn = np.repeat(np.arange(labels.size), times_drawn)
        alone = map_scores(forecast.at(drawn), labels[drawn], reference_rate=0.02).value
        for name, value in alone.items():
            assert found.resamples[name][r] == pytest.approx(value, nan_ok=True), name


def test_rules_rank_by_their_score_and_detect_by_themselves():
    y = np.array([0, 0, 1, 1])
    rule = Forecast(
        np.full(4, 0.2), detection=[False, True, True, False], score=[-3.0, 1.0, 5.0, 4.0]
    )
    found = map_scores(rule, y, reference_rate=0.1).value
    assert found["auc_pr"] == 1
    assert found["csi"] == pytest.approx(1 / 3)


def test_forecasts_are_checked():
    with pytest.raises(InputError, match="threshold or detections"):
        Forecast(np.array([0.1]))
    with pytest.raises(InputError, match=r"in \[0, 1\]; found 1.5"):
        Forecast(np.array([0.1, 1.5]), threshold=0.5)
    missing = Forecast(np.array([np.nan, 0.9, 0.5]), threshold=0.5)
    np.testing.assert_array_equal(missing.detections(), [False, True, True])
    rule = Forecast(np.array([np.nan, 0.9]), detection=[True, True])
    np.testing.assert_array_equal(rule.detections(), [False, True])


def test_a_forecast_of_some_maps():
    forecast = Forecast(
        np.array([0.1, 0.2, 0.3]), threshold=0.2, score=[1, 2, 3], centre_latitude=[30, 35, 40]
    )
    part = forecast.at(np.array([True, False, True]))
    np.testing.assert_array_equal(part.probability, [0.1, 0.3])
    np.testing.assert_array_equal(part.score, [1, 3])
    np.testing.assert_array_equal(part.centre_latitude, [30, 40])
    assert part.threshold == 0.2
    assert part.detection is None


def test_paired_difference_is_narrower_than_unpaired():
    times, labels, storm, probability = year()
    resampling = resample_blocks(times, labels, storm, n_resamples=400)
    noisy = np.clip(probability + np.random.default_rng(1).normal(0, 0.02, labels.size), 0, 1)
    a, b = (
        map_scores(Forecast(p, threshold=0.4), labels, reference_rate=0.02, resampling=resampling)
        for p in (probability, noisy)
    )
    found = paired_difference(a, b)
    assert set(found) == set(a.value)
    for name in ("csi", "auc_pr", "brier"):
        assert found[name]["value"] == pytest.approx(a.value[name] - b.value[name])
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        own = np.quantile(a.resamples[name], [0.025, 0.975])
        assert found[name]["high"] - found[name]["low"] < own[1] - own[0]
    same = paired_difference(a, a)
    assert same["csi"]["value"] == same["csi"]["low"] == same["csi"]["high"] == 0


def test_a_real_gain_is_seen():
    times, labels, storm, probability = year()
    resampling = resample_blocks(times, labels, storm, n_resamples=300)
    blind = np.random.default_rng(3).permutation(probability)
    a, b = (
        map_scores(Forecast(p, threshold=0.3), labels, reference_rate=0.02, resampling=resampling)
        for p in (probability, blind)
    )
    assert paired_difference(a, b)["auc_pr"]["low"] > 0


def test_unpaired_scores_are_refused():
    times, labels, storm, probability = year()
    a, b = (
        map_scores(
            Forecast(probability, threshold=0.4),
            labels,
            reference_rate=0.02,
            resampling=resample_blocks(times, labels, storm, n_resamples=n),
        )
        for n in (10, 11)
    )
    with pytest.raises(ValueError, match="same resamples"):
        paired_difference(a, b)


def test_intervals_say_why_they_are_missing():
    values = np.linspace(0, 1, 201)
    assert "note" not in with_interval("pod", 0.5, values, 12)
    assert with_interval("pod", np.nan, values, 12)["note"] == "undefined: no medicane maps"
    assert "1 storm(s)" in with_interval("pod", 0.5, values, 1)["note"]
    assert np.isnan(with_interval("pod", 0.5, values, 1)["low"])
    assert "same in every resample" in with_interval("pod", 1.0, np.ones(9), 12)["note"]
    holes = np.where(np.arange(201) % 4 == 0, np.nan, values)
    assert "25% of the resamples" in with_interval("far", 0.5, holes, 12)["note"]


def test_reliability_agrees_with_scikit_learn():
    _, labels, _, probability = year()
    found = reliability(probability, labels, edges=np.linspace(0, 1, 11))
    kept = found["count"] > 0
    frequency, mean = calibration_curve(labels, probability, n_bins=10)
    np.testing.assert_allclose(found["frequency"][kept], frequency)
    np.testing.assert_allclose(found["probability"][kept], mean)
    assert found["count"].sum() == labels.size
    assert (found["low"][kept] <= found["frequency"][kept]).all()


def test_reliability_leaves_out_unknown_and_missing():
    found = reliability([0.05, 0.95, 0.95, np.nan, 1.0], [0, 1, -1, 1, 1])
    assert found["count"].sum() == 3
    assert found["count"][-1] == 2
    assert np.isnan(found["frequency"][6])


def test_reliability_by_storm_is_wider():
    times, labels, storm, _ = year()
    # A probability that is right on average, but by whole storms.
    sure = np.isin(storm, ["s0", "s1", "s2", "s3", "s4", "s5"])
    probability = np.where(sure, 0.55, 0.02)
    probability[20:74] = 0.55
    resampling = resample_blocks(times, labels, storm)
    block, single = (reliability(probability, labels, resampling=r) for r in (resampling, None))
    k = int(np.argmax(np.nan_to_num(block["probability"]) > 0.5))
    assert block["frequency"][k] == single["frequency"][k]
    assert block["high"][k] - block["low"][k] > single["high"][k] - single["low"][k]


def test_precision_recall_curve():
    _, labels, _, probability = year()
    found = precision_recall(np.append(probability, np.nan), np.append(labels, 1))
    assert found["no_skill"] == pytest.approx(labels.mean())
    area = -np.sum(np.diff(found["recall"]) * found["precision"][:-1])
    assert area == pytest.approx(average_precision_score(labels, probability))
    assert precision_recall([0.5, 0.6], [0, -1])["recall"].size == 0
