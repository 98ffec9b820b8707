"""Forecasts of folds as one."""

from __future__ import annotations

import numpy as np
import pytest

from medicane.errors import InputError
from medicane.evaluate import Forecast, ScoredForecasts, compare
from medicane.evaluate.pooling import pool
from tests.test_evaluate import kinds, sea, two_forecasts


def parts(*, n=900):
    """Three folds of one record, out of order, the first two with maps in common."""
    times, labels, storm, probability = sea(n=n, n_storms=6)
    kind = kinds(labels, storm)
    forecasts = two_forecasts(labels, probability)
    found = []
    for threshold, chosen in ((0.3, slice(500, 900)), (0.6, slice(280, 520)), (0.4, slice(0, 280))):
        mine = {k: f.at(np.arange(n)[chosen]) for k, f in forecasts.items()}
        mine["densenet-gru"] = Forecast(probability[chosen], threshold=threshold)
        found.append(
            ScoredForecasts(
                times=times[chosen],
                medicane=labels[chosen],
                storm=storm[chosen],
                kind=kind[chosen],
                forecasts=mine,
                train_rate=threshold / 10,
            )
        )
    return found, (times, labels, storm, probability)


def test_every_map_is_there_once_in_order_with_its_folds_detections():
    folds, (times, labels, storm, probability) = parts()
    whole = pool(folds, split="cross_validation")
    np.testing.assert_array_equal(whole.times, times)
    np.testing.assert_array_equal(whole.medicane, labels)
    np.testing.assert_array_equal(whole.storm, storm)
    np.testing.assert_array_equal(whole.kind, kinds(labels, storm))
    mine = whole.forecasts["densenet-gru"]
    np.testing.assert_array_equal(mine.probability, probability)
    threshold = np.repeat([0.4, 0.6, 0.3], [280, 220, 400])  # the first fold holds 500 … 519
    np.testing.assert_array_equal(mine.detections(), probability >= threshold)
    assert "3 folds" in mine.note
    assert whole.split == "cross_validation"
    assert whole.train_rate == pytest.approx((400 * 0.03 + 240 * 0.06 + 280 * 0.04) / 920)


def test_the_whole_can_be_scored():
    folds, _ = parts()
    whole = pool(folds, split="cross_validation")
    found = compare(
        whole.times, whole.medicane, whole.storm, forecasts=whole.forecasts, kind=whole.kind,
        n_resamples=20,
    )  # fmt: skip
    assert found["n_storms"] == 6
    assert found["models"]["densenet-gru"]["threshold"] is None
    counts = [
        compare(f.times, f.medicane, f.storm, forecasts=f.forecasts, n_resamples=5)["models"]
        for f in (folds[0], folds[2])
    ]
    hits = sum(one["phase_space"]["counts"]["hits"] for one in counts)
    assert hits <= found["models"]["phase_space"]["counts"]["hits"]


def test_what_one_fold_lacks_the_whole_lacks():
    folds, _ = parts()
    rule = folds[0].forecasts["phase_space"]
    ranked = Forecast(rule.probability, detection=rule.detection, score=np.zeros(400))
    some = {**folds[0].forecasts, "phase_space": ranked}
    first = ScoredForecasts(**{**folds[0].__dict__, "forecasts": some, "kind": None})
    whole = pool([first, *folds[1:]], split="cross_validation")
    assert whole.kind is None
    assert whole.forecasts["phase_space"].score is None


def test_folds_of_other_forecasts_are_refused():
    folds, _ = parts()
    fewer = {"densenet-gru": folds[1].forecasts["densenet-gru"]}
    other = ScoredForecasts(**{**folds[1].__dict__, "forecasts": fewer})
    with pytest.raises(InputError, match=r"must hold the forecasts .* found \['densenet-gru'\]"):
        pool([folds[0], other], split="x")
    with pytest.raises(InputError, match="at least one must be given"):
        pool([], split="x")
