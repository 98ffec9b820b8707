"""Calibration and threshold: the few numbers fitted on the validation split, and only there.

Each fit is one scalar. With about ten storms to fit on, more freedom (isotonic regression, a
curve per season) follows the storms rather than the atmosphere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from medicane import names
from medicane.errors import InputError

#: Temperatures outside this range mean that there was nothing to fit.
TEMPERATURE_RANGE = (0.05, 20.0)


class Fitted(NamedTuple):
    """A fitted scalar, the value of its criterion, and a note where the fit is degenerate."""

    value: float
    criterion: float
    note: str


def _known(values: ArrayLike, labels: ArrayLike, *, what: str) -> tuple[NDArray, NDArray]:
    """Finite values with known labels, flattened; labels as booleans."""
    values, labels = np.asarray(values, float).ravel(), np.asarray(labels).ravel()
    if values.shape != labels.shape:
        raise InputError(
            what, "there must be one label for each value", found=f"{values.size} and {labels.size}"
        )
    strange = ~np.isin(labels, (names.MEDICANE, names.NOT_MEDICANE, names.UNKNOWN))
    if strange.any():
        raise InputError("labels", "labels must be 1, 0 or -1", found=labels[strange][0])
    kept = (labels != names.UNKNOWN) & np.isfinite(values)
    return values[kept], labels[kept] == names.MEDICANE


def calibrate(
    logit: ArrayLike, *, temperature: float, prior_offset: float = 0.0
) -> NDArray[np.float64]:
    """Probability of a logit: ``sigmoid((logit - prior_offset) / temperature)``.

    `prior_offset` undoes the sampling or weighting of the classes in training, log(w⁺/w⁻); it
    comes first, the temperature then acts on the logit at the true base rate.
    """
    return expit((np.asarray(logit, float) - prior_offset) / temperature)


def fit_temperature(logit: ArrayLike, labels: ArrayLike, *, prior_offset: float = 0.0) -> Fitted:
    """One temperature that minimises the binary cross-entropy. On the validation split only.

    Parameters
    ----------
    logit, labels
        Any equal shape: logits, and labels 1, 0 or -1. Unknown labels and NaN are left out.
    prior_offset
        Taken from the logit first; see `calibrate`.

    Returns
    -------
    Fitted
        The temperature, the mean cross-entropy (nat) it reaches, and a note if there was nothing
        to fit: with one class only the temperature is 1; at an end of `TEMPERATURE_RANGE` the
        validation split is separated perfectly, or not at all.

    References
    ----------
    Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    logit, positive = _known(logit, labels, what="logit")
    logit = logit - prior_offset
    # log(1 + e^x) - y x is the cross-entropy of a logit x, safe for large |x|.
    sign = np.where(positive, -1.0, 1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, sign * logit * np.exp(-log_temperature)).mean())

    if positive.size == 0 or positive.all() or not positive.any():
        value = loss(0.0) if positive.size else float("nan")
        return Fitted(1.0, value, "one class only in the validation split: temperature 1")
    low, high = np.log(TEMPERATURE_RANGE)
    # The loss is convex in 1/T, hence it has one minimum in log T.
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    note = ""
    if min(found.x - low, high - found.x) < 1e-3:
        note = f"temperature at the end of its range {TEMPERATURE_RANGE}: hardly determined"
    return Fitted(float(np.exp(found.x)), float(found.fun), note)


def fit_threshold(probability: ArrayLike, labels: ArrayLike) -> Fitted:
    """The threshold with the highest CSI; a map is detected where probability ≥ threshold.

    On the validation split only. The threshold stands midway between two neighbouring
    probabilities, so that rounding them to float32 changes no detection. Of several thresholds
    with the same CSI the highest is taken: the fewest false alarms.

    Parameters
    ----------
    probability, labels
        Any equal shape: probabilities, and labels 1, 0 or -1. Unknown and NaN are left out.

    Returns
    -------
    Fitted
        The threshold in (0, 1), the CSI it reaches (NaN without medicane maps), and a note: with
        no medicane map in the validation split it is 0.5.
    """
    probability, positive = _known(probability, labels, what="probability")
    if not positive.any():
        return Fitted(0.5, float("nan"), "no medicane map in the validation split: threshold 0.5")
    levels, group = np.unique(probability, return_inverse=True)
    # Detections at or above each level, from the highest level down.
    hits = np.cumsum(np.bincount(group, positive)[::-1])[::-1]
    detected = np.cumsum(np.bincount(group)[::-1])[::-1]
    csi = hits / (detected + positive.sum() - hits)
    best = int(np.flatnonzero(csi >= csi.max() - 1e-12)[-1])
    below = levels[best - 1] if best else 0.0
    threshold = float(np.clip((levels[best] + below) / 2, 1e-9, 1 - 1e-9))
    note = "" if best else "the best threshold detects every map"
    return Fitted(threshold, float(csi[best]), note)


class RuleCalibration(NamedTuple):
    """Probability of a medicane where a yes/no rule says yes, and where it says no."""

    yes: float
    no: float

    def probability(self, detection: ArrayLike) -> NDArray[np.float64]:
        """The rule's answers as probabilities, shape of `detection`."""
        return np.where(np.asarray(detection, bool), self.yes, self.no)


def fit_rule(detection: ArrayLike, labels: ArrayLike) -> RuleCalibration:
    """Frequencies of a medicane given a rule's yes and no. On the validation split only.

    A rule that says 1 or 0 is punished by the Brier score for a certainty it does not claim; two
    frequencies are the fairest reading of it. Half a map is added to either side (Jeffreys), so
    that neither is exactly 0 or 1. Without any known label both are 0.5.
    """
    said, positive = _known(np.asarray(detection, float), labels, what="detection")
    yes = said > 0

    def frequency(among: NDArray) -> float:
        return float((positive[among].sum() + 0.5) / (among.sum() + 1))

    return RuleCalibration(frequency(yes), frequency(~yes))


class ScoreCalibration(NamedTuple):
    """Probability as a logistic curve of a score: ``sigmoid(slope · score + intercept)``."""

    slope: float
    intercept: float

    def probability(self, score: ArrayLike) -> NDArray[np.float64]:
        """The score as probability, shape of `score`."""
        return expit(self.slope * np.asarray(score, float) + self.intercept)


def fit_score(score: ArrayLike, labels: ArrayLike) -> tuple[ScoreCalibration, Fitted]:
    """A rising logistic curve for a score, then the threshold on it with the highest CSI.

    On the validation split only. Two numbers suffice for a score that ranks well. Without both
    classes, or where the score runs the wrong way, the curve is flat at the base rate.

    Parameters
    ----------
    score, labels
        Any equal shape: a score, larger for more likely, and labels 1, 0 or -1.
    """
    known, positive = _known(score, labels, what="score")
    rate = (positive.sum() + 0.5) / (positive.size + 1)
    curve = ScoreCalibration(0.0, float(np.log(rate / (1 - rate))))
    if positive.any() and not positive.all() and np.ptp(known) > 0:
        # In units of its spread the score suits the solver; C is so large that it does not bind.
        middle, spread = known.mean(), known.std()
        model = LogisticRegression(C=1e6, max_iter=1000)
        model.fit(((known - middle) / spread)[:, None], positive)
        slope = float(model.coef_[0, 0]) / spread
        if slope > 0:
            curve = ScoreCalibration(slope, float(model.intercept_[0]) - slope * middle)
    return curve, fit_threshold(curve.probability(score), labels)
