"""Forecasts of the same maps side by side."""

from __future__ import annotations

import numpy as np
import pytest

from medicane.errors import InputError
from medicane.evaluate import Forecast, compare, verify
from tests.test_evaluate import kinds, sea, two_forecasts

TRAIN = np.array([1] * 3 + [0] * 97)


@pytest.fixture(scope="module")
def three():
    times, labels, storm, probability = sea()
    rng = np.random.default_rng(5)
    better = np.clip(probability + 0.1 * (labels == 1) + rng.normal(0, 0.01, labels.size), 0, 1)
    forecasts = {
        "champion": Forecast(probability, threshold=0.4),
        "challenger": Forecast(better, threshold=0.4),
        "blind": Forecast(rng.permutation(probability), threshold=0.4),
    }
    found = compare(
        times, labels, storm, forecasts=forecasts, train_rate=0.03, n_resamples=300,
        kind=kinds(labels, storm),
    )  # fmt: skip
    return (times, labels, storm), forecasts, found


def test_the_table_says_what_was_compared(three):
    (_, labels, _), forecasts, found = three
    assert next(iter(found)) == "schema_version"
    assert found["schema_version"] == 1
    assert found["reference"] == "champion"
    assert list(found["models"]) == list(forecasts)
    assert list(found["differences"]) == ["challenger", "blind"]
    assert "threshold" not in found
    assert found["models"]["blind"]["threshold"] == 0.4
    assert found["n_maps"] == (labels >= 0).sum()
    assert "heat_low" in found["models"]["challenger"]["hard_negatives"]["kinds"]


def test_every_forecast_has_the_scores_of_verify(three):
    (times, labels, storm), forecasts, found = three
    alone = verify(
        times, labels, storm, forecasts=forecasts, train_medicane=TRAIN, n_resamples=300,
        kind=kinds(labels, storm),
    )  # fmt: skip
    assert "difference_from" in alone["models"]["champion"]
    alone["models"]["champion"].pop("difference_from")
    assert found["models"] == alone["models"]


def test_differences_are_other_minus_first_over_the_same_resamples(three):
    (times, labels, storm), forecasts, found = three
    for name in ("challenger", "blind"):
        for score, told in found["differences"][name].items():
            mine, theirs = (found["models"][who][score]["value"] for who in (name, "champion"))
            assert told["value"] == pytest.approx(mine - theirs), score
    # The other way round verify says the same with the other sign.
    turned = verify(
        times,
        labels,
        storm,
        forecasts={k: forecasts[k] for k in ("champion", "challenger")},
        train_medicane=TRAIN,
        n_resamples=300,
    )["models"]["champion"]["difference_from"]["challenger"]
    for score, told in found["differences"]["challenger"].items():
        assert told["low"] == pytest.approx(-turned[score]["high"]), score
        assert told["high"] == pytest.approx(-turned[score]["low"]), score


def test_a_gain_and_a_loss_are_seen(three):
    _, _, found = three
    assert found["differences"]["challenger"]["pod"]["low"] > 0
    assert found["differences"]["blind"]["auc_pr"]["high"] < 0
    gain = found["differences"]["challenger"]["csi"]
    own = found["models"]["challenger"]["csi"]
    assert gain["high"] - gain["low"] < own["high"] - own["low"]  # pairing pays


def test_the_same_forecast_twice_differs_by_nothing():
    times, labels, storm, probability = sea(n=900, n_storms=6)
    one = Forecast(probability, threshold=0.4)
    found = compare(times, labels, storm, forecasts={"a": one, "b": one}, n_resamples=40)
    for score, told in found["differences"]["b"].items():
        if told["value"] is not None:
            assert (told["value"], told["low"], told["high"]) == (0, 0, 0), score
    assert found["models"]["a"]["brier_skill"]["value"] is None  # no training base rate was given


def test_rules_and_gaps_are_compared_on_what_all_have():
    times, labels, storm, probability = sea(n=900, n_storms=6)
    forecasts = two_forecasts(labels, probability)
    gap = probability.copy()
    gap[100:300] = np.nan
    forecasts["densenet-gru"] = Forecast(gap, threshold=0.4)
    found = compare(times, labels, storm, forecasts=forecasts, n_resamples=20)
    assert found["left_out"]["no_forecast"] == (labels[100:300] >= 0).sum()
    for entry in found["models"].values():
        assert sum(entry["counts"].values()) == found["n_maps"]


@pytest.mark.parametrize("value", [0, 1, -1])
def test_one_label_only(value):
    times, labels, storm, probability = sea(n=400, n_storms=3)
    labels = np.full(labels.size, value)
    forecasts = two_forecasts(labels, probability)
    found = compare(times, labels, storm, forecasts=forecasts, n_resamples=20)
    assert found["n_maps"] == (0 if value < 0 else 400)
    for told in found["differences"].values():
        for score in told.values():
            assert score["value"] is None or np.isfinite(score["value"])
            assert score["low"] is None or score["low"] <= score["high"]


def test_one_alone_cannot_be_compared():
    times, labels, storm, probability = sea(n=400, n_storms=3)
    only = {"m": Forecast(probability, threshold=0.5)}
    with pytest.raises(InputError, match="compare: needs at least two forecasts; found 1"):
        compare(times, labels, storm, forecasts=only)
    with pytest.raises(InputError, match=r"short: .* found \(399,\)"):
        compare(
            times,
            labels,
            storm,
            forecasts=only | {"short": Forecast(probability[1:], threshold=0.5)},
        )
