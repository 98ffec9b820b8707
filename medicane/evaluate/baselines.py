"""The forecasts to beat: a climatology and the physical rule. Neither is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import config, names, phase_space
from medicane.errors import InputError
from medicane.evaluate.calibration import fit_rule, fit_score
from medicane.evaluate.events import usual_step_hours
from medicane.evaluate.skill import Forecast

if TYPE_CHECKING:
    import xarray as xr


def _months(times: ArrayLike) -> NDArray[np.intp]:
    """Month 0 … 11 of each time, for any calendar."""
    times = np.asarray(times)
    if np.issubdtype(times.dtype, np.datetime64):
        return times.astype("datetime64[M]").astype(int) % 12
    return np.array([time.month - 1 for time in times], np.intp)


def climatology(
    train_times: ArrayLike, train_medicane: ArrayLike, times: ArrayLike
) -> NDArray[np.float64]:
    """Frequency of medicane maps by month of the year, from the training split.

    The counts of each month are smoothed with the two beside it (weights ¼, ½, ¼ around the
    year) and drawn to the annual base rate with the weight of one average month: with one or two
    storms a year the bare monthly rates are mostly 0, and a medicane in such a month would be
    called impossible.

    Parameters
    ----------
    train_times, train_medicane
        Shape (map,): times and labels of the training split; unknown labels are left out.
    times
        Shape (time,): the times wanted.

    Returns
    -------
    ndarray
        Probability, shape (time,); NaN if the training split has no known label.
    """
    labels = np.asarray(train_medicane)
    if labels.shape != np.shape(train_times):
        raise InputError(
            "train_medicane", "there must be one label for each time", found=f"shape {labels.shape}"
        )
    known = labels != names.UNKNOWN
    if not known.any():
        return np.full(np.shape(times), np.nan)
    month = _months(train_times)[known]
    n_maps = np.bincount(month, minlength=12).astype(float)
    n_medicane = np.bincount(month, labels[known] == names.MEDICANE, minlength=12)

    def around(count: NDArray) -> NDArray:
        return (np.roll(count, 1) + 2 * count + np.roll(count, -1)) / 4

    base_rate = n_medicane.sum() / n_maps.sum()
    prior = n_maps.sum() / 12
    rate = (around(n_medicane) + base_rate * prior) / (around(n_maps) + prior)
    return np.asarray(rate[_months(times)], float)


def physical_rule(
    store: xr.Dataset, definition: config.Label
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The phase-space rule on the lows of a map store: a score to rank by, and its detections.

    Parameters
    ----------
    store
        ``b``, ``vtl``, ``vtu`` (m) and ``low_msl`` (hPa), each of shape (time,), NaN where a map
        has no low over the sea; ``time`` strictly increasing.
    definition
        Thresholds and the least duration.

    Returns
    -------
    score
        Shape (time,): how warm the core is. Maps without a low rank below all others; never NaN.
    detection
        Shape (time,): true where the rule holds for at least ``definition.min_hours``.

    Raises
    ------
    InputError
        If the store holds no phase space (geopotential heights were not among its variables).
    """
    absent = [name for name in ("b", "vtl", "vtu", "low_msl") if name not in store]
    if absent:
        law = f"the physical rule needs {', '.join(absent)}"
        raise InputError("map store", law, found=sorted(map(str, store)))
    b, vtl, vtu, low_msl = (
        np.asarray(store[name].values, float) for name in ("b", "vtl", "vtu", "low_msl")
    )
    times = store["time"].values
    raw = phase_space.satisfies(b, vtl, vtu, low_msl, definition=definition)
    detection = phase_space.hold(
        raw, times, min_hours=definition.min_hours, step_hours=usual_step_hours(times)
    )
    score = np.asarray(phase_space.warm_core_score(vtl, vtu, b, b_max_m=definition.b_max_m), float)
    finite = np.isfinite(score)
    lowest = score[finite].min() - 1 if finite.any() else 0.0
    return np.where(finite, score, lowest), np.asarray(detection, bool)


def baseline_forecasts(
    store: xr.Dataset,
    *,
    train: ArrayLike,
    validation: ArrayLike,
    test: ArrayLike,
    definition: config.Label,
    on: xr.Dataset | None = None,
) -> dict[str, Forecast]:
    """The forecasts to beat, for the maps of `test`, or for other maps.

    ``phase_space`` is the rule as the definition states it; ``phase_space_fitted`` is its
    warm-core score with calibration and threshold fitted on validation, as the model's are: a
    model that beats only the former has beaten the choice of thresholds. ``climatology`` is the
    season alone.

    Parameters
    ----------
    store
        A map store: ``time``, ``medicane`` and the phase space of its lows.
    train, validation, test
        Boolean masks of shape (time,).
    definition
        The label definition, whose thresholds are the rule's.
    on
        Maps of another store to forecast instead of those of `test`: what is fitted is fitted on
        `store` all the same.

    Returns
    -------
    dict
        The first two are missing where the store holds no phase space.
    """
    train, validation, test = (np.asarray(mask, bool) for mask in (train, validation, test))
    times, labels = store["time"].values, np.asarray(store["medicane"].values)
    source, at = (store, test) if on is None else (on, np.ones(on.sizes["time"], bool))
    monthly = climatology(times[train], labels[train], source["time"].values[at])
    found: dict[str, Forecast] = {}
    if {"b", "vtl", "vtu", "low_msl"} <= set(store):
        score, detection = physical_rule(store, definition)
        rule = fit_rule(detection[validation], labels[validation])
        curve, threshold = fit_score(score[validation], labels[validation])
        if on is not None:
            score, detection = physical_rule(on, definition)
        located = {
            f"centre_{axis}": source[f"low_{axis}"].values[at]
            for axis in ("latitude", "longitude")
            if f"low_{axis}" in source
        }
        found["phase_space"] = Forecast(
            rule.probability(detection[at]),
            detection=detection[at],
            score=score[at],
            note=(
                f"as a probability: {rule.yes:.3g} where the rule holds, {rule.no:.3g} where not, "
                "the frequencies of the validation split; AUC-PR ranks by the warm-core score"
            ),
            **located,
        )
        found["phase_space_fitted"] = Forecast(
            curve.probability(score[at]),
            threshold=threshold.value,
            note="the warm-core score; calibration and threshold are those of the validation split",
            **located,
        )
    found["climatology"] = Forecast(
        monthly,
        detection=np.zeros(monthly.shape, bool),
        note="monthly frequency of the training split; it never detects",
    )
    return found
