"""Scores per map: those of the ``scores`` library, with intervals from the block bootstrap.

Nothing here knows storms, splits or files: forecasts and labels of the same maps go in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scores.categorical import BasicContingencyManager
from scores.probability import brier_score
from sklearn.metrics import average_precision_score, precision_recall_curve

from medicane import names
from medicane.errors import InputError
from medicane.evaluate.events import wilson_interval
from medicane.evaluate.intervals import Resampling, percentiles, resampled_average_precision

#: Name in scores.json → method of the contingency table in the ``scores`` library.
TABLE_SCORES: dict[str, Callable[[BasicContingencyManager], xr.DataArray]] = {
    "pod": BasicContingencyManager.probability_of_detection,
    "far": BasicContingencyManager.false_alarm_ratio,
    "csi": BasicContingencyManager.critical_success_index,
    "ets": BasicContingencyManager.equitable_threat_score,
    "hss": BasicContingencyManager.heidke_skill_score,
    "sedi": BasicContingencyManager.symmetric_extremal_dependence_index,
}

#: Edges of the reliability bins: finer where a rare event has its probabilities.
RELIABILITY_EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Why a score may be undefined.
UNDEFINED = {
    "pod": "no medicane maps",
    "far": "no detections",
    "csi": "neither medicane maps nor detections",
    "ets": "the forecast or the observation never changes",
    "hss": "the forecast or the observation never changes",
    "sedi": "the hit rate or the false alarm rate is 0 or 1",
    "auc_pr": "no medicane maps",
    "brier": "no maps",
    "brier_skill": "no reference, or a reference without error",
    "ece": "no maps",
}


@dataclass(frozen=True)
class Forecast:
    """One forecast of the same maps as all others.

    Attributes
    ----------
    probability
        Shape (time,), in [0, 1]; NaN where there is no forecast.
    threshold
        Detection where probability ≥ threshold, fitted on validation; None for a rule.
    detection
        Shape (time,), for a rule with a mind of its own; otherwise from the threshold.
    score
        Shape (time,): what AUC-PR ranks by, if not the probability.
    centre_latitude, centre_longitude
        Shape (time,), degrees, NaN where not located.
    note
        What a reader has to know, e.g. how a rule's probability came about.
    """

    probability: ArrayLike
    threshold: float | None = None
    detection: ArrayLike | None = None
    score: ArrayLike | None = None
    centre_latitude: ArrayLike | None = None
    centre_longitude: ArrayLike | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.detection is None and self.threshold is None:
            raise InputError("forecast", "either a threshold or detections must be given")
        probability = np.asarray(self.probability, float)
        with np.errstate(invalid="ignore"):
            outside = (probability < 0) | (probability > 1)
        if outside.any():
            raise InputError(
                "forecast", "probabilities must lie in [0, 1]", found=probability[outside][0]
            )

    def detections(self) -> NDArray[np.bool_]:
        """True where a medicane is detected, shape (time,); false where there is no forecast."""
        probability = np.asarray(self.probability, float)
        if self.detection is not None:
            return np.asarray(self.detection, bool) & np.isfinite(probability)
        with np.errstate(invalid="ignore"):
            return np.asarray(probability >= self.threshold)

    def ranking(self) -> NDArray[np.float64]:
        """What AUC-PR ranks by, shape (time,)."""
        return np.asarray(self.probability if self.score is None else self.score, float)

    def at(self, mask: NDArray[np.bool_]) -> Forecast:
        """The same forecast of the maps in `mask`, shape (time,)."""
        arrays = ("probability", "detection", "score", "centre_latitude", "centre_longitude")
        given: dict[str, Any] = {
            name: np.asarray(getattr(self, name))[mask]
            for name in arrays
            if getattr(self, name) is not None
        }
        return replace(self, **given)


@dataclass(frozen=True)
class MapScores:
    """Scores of one forecast, and the same scores on every resample (shape (resample,) each)."""

    value: dict[str, float]
    resamples: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    n_storms: int = 0


def contingency_scores(
    hits: ArrayLike, misses: ArrayLike, false_alarms: ArrayLike, correct_negatives: ArrayLike
) -> dict[str, NDArray[np.float64]]:
    """POD, FAR, CSI, ETS, HSS and SEDI of 2×2 tables, by the ``scores`` library.

    Parameters
    ----------
    hits, misses, false_alarms, correct_negatives
        Counts (or weighted counts), all of one shape.

    Returns
    -------
    dict
        Each of the shape of the counts; NaN where undefined (`UNDEFINED` says why).
    """
    counts = {
        "tp_count": hits,
        "fn_count": misses,
        "fp_count": false_alarms,
        "tn_count": correct_negatives,
    }
    arrays = {key: np.asarray(value, float) for key, value in counts.items()}
    arrays["total_count"] = np.asarray(sum(arrays.values()))
    dims = [f"dim_{i}" for i in range(arrays["tp_count"].ndim)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        table = BasicContingencyManager({k: xr.DataArray(v, dims=dims) for k, v in arrays.items()})
        values = {name: np.asarray(method(table)) for name, method in TABLE_SCORES.items()}
    return {name: np.where(np.isfinite(value), value, np.nan) for name, value in values.items()}


def map_scores(
    forecast: Forecast,
    medicane: ArrayLike,
    *,
    reference_rate: float,
    resampling: Resampling | None = None,
    edges: Sequence[float] = RELIABILITY_EDGES,
) -> MapScores:
    """Scores per map, and the same on every resample.

    Parameters
    ----------
    forecast
        Of shape (map,), finite.
    medicane
        Labels of the same maps, 1 or 0: unknown ones are to be left out before (`verify` does).
    reference_rate
        The constant forecast that the Brier skill is measured against: the base rate of the
        *training* split.
    resampling
        From `resample_blocks` for the same maps.
    edges
        Probability bins of the expected calibration error.
    """
    observed = np.asarray(medicane) == names.MEDICANE
    probability = np.asarray(forecast.probability, float)
    detected = forecast.detections()
    y = observed.astype(float)
    n = y.size
    cells = (detected & observed, ~detected & observed, detected & ~observed, ~detected & ~observed)
    table = contingency_scores(*(int(cell.sum()) for cell in cells))
    value = {name: float(score) for name, score in table.items()}

    value["auc_pr"] = (
        float(average_precision_score(observed, forecast.ranking())) if observed.any() else math.nan
    )
    value["brier"] = (
        float(brier_score(xr.DataArray(probability, dims="map"), xr.DataArray(y, dims="map")))
        if n
        else math.nan
    )
    reference = float(np.mean((reference_rate - y) ** 2)) if n else math.nan
    value["brier_skill"] = 1 - value["brier"] / reference if reference > 0 else math.nan
    which = np.digitize(probability, np.asarray(edges)[1:-1])
    # |Σp − Σy| of a bin is its count times the distance of its mean probability and frequency.
    bins = [which == k for k in range(len(edges) - 1)]
    value["ece"] = sum(abs(float((probability - y)[k].sum())) for k in bins) / n if n else math.nan
    if resampling is None or n == 0:
        return MapScores(value)

    sums = resampling.sums(
        *cells,
        np.ones(n),
        (probability - y) ** 2,
        (reference_rate - y) ** 2,
        *((probability - y) * k for k in bins),
    )
    resamples = contingency_scores(*sums[:, :4].T)
    with np.errstate(invalid="ignore", divide="ignore"):
        resamples["auc_pr"] = resampled_average_precision(forecast.ranking(), observed, resampling)
        resamples["brier"] = sums[:, 5] / sums[:, 4]
        skill = 1 - sums[:, 5] / sums[:, 6]
        resamples["brier_skill"] = np.where(np.isfinite(skill), skill, np.nan)
        resamples["ece"] = np.abs(sums[:, 7:]).sum(axis=1) / sums[:, 4]
    return MapScores(value, resamples, resampling.n_storms)


def with_interval(
    name: str, value: float, resamples: NDArray | None, n_storms: int
) -> dict[str, Any]:
    """A score as scores.json has it; a value or interval that is missing comes with its reason."""
    low, high = (math.nan, math.nan) if resamples is None else percentiles(resamples)
    entry: dict[str, Any] = {"value": value, "low": low, "high": high}
    if math.isnan(value):
        entry |= {"low": math.nan, "high": math.nan}
        entry["note"] = f"undefined: {UNDEFINED.get(name, 'undefined for one of the two')}"
    elif n_storms < 2:
        entry |= {"low": math.nan, "high": math.nan}
        entry["note"] = f"no interval: {n_storms} storm(s) to resample"
    elif resamples is not None and np.isnan(resamples).mean() > 0.025:
        entry["note"] = f"undefined in {np.isnan(resamples).mean():.0%} of the resamples"
    elif low == high:
        entry["note"] = "the same in every resample: the blocks do not determine an interval"
    return entry


def paired_difference(scores_a: MapScores, scores_b: MapScores) -> dict[str, dict[str, Any]]:
    """Score differences a - b with intervals, over the same resamples.

    Returns
    -------
    dict
        Score name → ``value``, ``low``, ``high`` (and ``note``). An interval that leaves out 0
        says that the two differ on these storms and weeks.

    Raises
    ------
    ValueError
        If the two were not resampled alike.
    """
    lengths = {len(r) for s in (scores_a, scores_b) for r in s.resamples.values()}
    if len(lengths) > 1 or scores_a.n_storms != scores_b.n_storms:
        raise ValueError("paired differences need two forecasts on the same resamples")
    return {
        name: with_interval(
            name,
            scores_a.value[name] - scores_b.value[name],
            scores_a.resamples[name] - scores_b.resamples[name]
            if name in scores_a.resamples and name in scores_b.resamples
            else None,
            scores_a.n_storms,
        )
        for name in scores_a.value
    }


def reliability(
    probability: ArrayLike,
    medicane: ArrayLike,
    *,
    resampling: Resampling | None = None,
    edges: Sequence[float] = RELIABILITY_EDGES,
) -> dict[str, NDArray[np.float64]]:
    """Reliability curve: how often it came true, by forecast probability.

    Unknown labels and NaN are left out (only possible without a `resampling`).

    Returns
    -------
    dict
        ``probability`` (mean of the bin), ``frequency``, ``low``, ``high``, ``count``, each of
        shape (bin,), NaN in empty bins. The interval is the block bootstrap's, or Wilson's
        (which takes maps for independent) without a resampling.
    """
    p, labels = np.asarray(probability, float), np.asarray(medicane)
    if resampling is None:
        kept = np.isfinite(p) & (labels != names.UNKNOWN)
        p, labels = p[kept], labels[kept]
    y = labels == names.MEDICANE
    n_bins = len(edges) - 1
    which = np.digitize(p, np.asarray(edges)[1:-1])
    count, total, hits = (
        np.bincount(which, weights, minlength=n_bins).astype(float) for weights in (None, p, y)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, frequency = total / count, hits / count
    if resampling is None:
        low, high = wilson_interval(hits, count).T
    else:
        masks = [which == k for k in range(n_bins)]
        sums = resampling.sums(*masks, *(mask & y for mask in masks))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = sums[:, n_bins:] / sums[:, :n_bins]
        low, high = np.array([percentiles(column) for column in ratio.T]).T
    return {
        "probability": mean,
        "frequency": frequency,
        "low": np.where(count > 0, low, np.nan),
        "high": np.where(count > 0, high, np.nan),
        "count": count,
    }


def precision_recall(score: ArrayLike, medicane: ArrayLike) -> dict[str, Any]:
    """Precision (1 - FAR) against recall (POD) at every threshold, and the no-skill level.

    Unknown labels and NaN are left out. Without a medicane map the curve is empty.
    """
    score, labels = np.asarray(score, float), np.asarray(medicane)
    kept = np.isfinite(score) & (labels != names.UNKNOWN)
    observed = labels[kept] == names.MEDICANE
    if not observed.any():
        empty = np.zeros(0)
        return {"precision": empty, "recall": empty, "threshold": empty, "no_skill": math.nan}
    precision, recall, threshold = precision_recall_curve(observed, score[kept])
    return {
        "precision": precision,
        "recall": recall,
        "threshold": threshold,
        "no_skill": float(observed.mean()),
    }
