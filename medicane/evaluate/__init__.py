"""Verification: map and event scores with intervals, for every forecast on the same maps.

The scores of single maps are those of the ``scores`` library; events, intervals, calibration and
baselines have rooms of their own below this one and are offered here under one name. Accuracy is
left out on purpose: at a base rate below 1 % it says nothing.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import config, names
from medicane.errors import InputError
from medicane.evaluate.baselines import climatology, physical_rule
from medicane.evaluate.calibration import (
    calibrate,
    fit_rule,
    fit_score,
    fit_temperature,
    fit_threshold,
)
from medicane.evaluate.events import episodes, event_scores, observed_events
from medicane.evaluate.intervals import FEW_STORMS, resample_blocks
from medicane.evaluate.skill import (
    Forecast,
    MapScores,
    contingency_scores,
    map_scores,
    paired_difference,
    precision_recall,
    reliability,
    with_interval,
)
from medicane.phase_space.sphere import distance_km

__all__ = [
    "Forecast",
    "MapScores",
    "baseline_forecasts",
    "calibrate",
    "climatology",
    "contingency_scores",
    "episodes",
    "event_scores",
    "fit_rule",
    "fit_score",
    "fit_temperature",
    "fit_threshold",
    "map_scores",
    "observed_events",
    "paired_difference",
    "physical_rule",
    "precision_recall",
    "read_scores",
    "reliability",
    "resample_blocks",
    "verify",
    "write_scores",
]

SCHEMA_VERSION = 1


def baseline_forecasts(
    store: xr.Dataset,
    *,
    train: ArrayLike,
    validation: ArrayLike,
    test: ArrayLike,
    definition: config.Label,
) -> dict[str, Forecast]:
    """The forecasts to beat, for the maps of `test`.

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

    Returns
    -------
    dict
        The first two are missing where the store holds no phase space.
    """
    train, validation, test = (np.asarray(mask, bool) for mask in (train, validation, test))
    times, labels = store["time"].values, np.asarray(store["medicane"].values)
    monthly = climatology(times[train], labels[train], times[test])
    found: dict[str, Forecast] = {}
    if {"b", "vtl", "vtu", "low_msl"} <= set(store):
        score, detection = physical_rule(store, definition)
        rule = fit_rule(detection[validation], labels[validation])
        located = {
            f"centre_{axis}": store[f"low_{axis}"].values[test]
            for axis in ("latitude", "longitude")
            if f"low_{axis}" in store
        }
        found["phase_space"] = Forecast(
            rule.probability(detection[test]),
            detection=detection[test],
            score=score[test],
            note=(
                f"as a probability: {rule.yes:.3g} where the rule holds, {rule.no:.3g} where not, "
                "the frequencies of the validation split; AUC-PR ranks by the warm-core score"
            ),
            **located,
        )
        curve, threshold = fit_score(score[validation], labels[validation])
        found["phase_space_fitted"] = Forecast(
            curve.probability(score[test]),
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


def verify(
    times: ArrayLike,
    medicane: ArrayLike,
    storm: ArrayLike | None,
    *,
    forecasts: Mapping[str, Forecast],
    train_medicane: ArrayLike,
    split: str = "test",
    observed_centre: tuple[ArrayLike, ArrayLike] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score every forecast on the same maps: the content of ``scores.json``.

    Maps with an unknown label, and maps that any of the forecasts lacks, are left out of the map
    scores of all, and counted. (A forecast that lacks all maps does not count for that.)

    Parameters
    ----------
    times, medicane, storm
        The whole split in order, shape (time,): times, labels 1, 0, -1, storm ids ("" for none).
    forecasts
        Name → forecast of shape (time,). The first one is the trained model: its threshold
        stands at the head of the scores.
    train_medicane
        Labels of the training split: their base rate is the reference of the Brier skill.
    split
        The split's name.
    observed_centre
        (latitude, longitude), each of shape (time,), degrees, NaN where unknown.
    n_resamples, seed
        Of the block bootstrap. The same split and seed give the same resamples.

    Returns
    -------
    dict
        As ``scores.json``, None for what is undefined. Beyond the contract: ``n_medicane``,
        ``left_out``, ``train_base_rate``, ``notes``; for each model ``sedi``, ``ece``,
        ``counts``, ``threshold`` and ``hard_negatives``, and for the first one
        ``difference_from`` each of the others, paired over the same resamples.

    Raises
    ------
    InputError
        If shapes differ, or a label is not 1, 0 or -1.
    """
    times, labels = np.asarray(times), np.asarray(medicane)
    storm = None if storm is None else np.asarray(storm).astype(object).astype(str)
    if not forecasts:
        raise InputError("forecasts", "at least one forecast must be given", found="none")
    for name, forecast in forecasts.items():
        shape = np.shape(forecast.probability)
        if shape != times.shape or labels.shape != times.shape:
            law = f"there must be one forecast and one label per map, shape {times.shape}"
            raise InputError(name, law, found=f"{shape} and {labels.shape}")
    strange = ~np.isin(labels, (names.MEDICANE, names.NOT_MEDICANE, names.UNKNOWN))
    if strange.any():
        raise InputError("medicane", "labels must be 1, 0 or -1", found=labels[strange][0])

    finite = {
        name: np.isfinite(np.asarray(f.probability, float)) & np.isfinite(f.ranking())
        for name, f in forecasts.items()
    }
    in_use = [mask for mask in finite.values() if mask.any()]
    available = np.logical_and.reduce(in_use) if in_use else np.zeros(times.shape, bool)
    known = labels != names.UNKNOWN
    scored = available & known
    train_known = np.asarray(train_medicane)
    train_known = train_known[train_known != names.UNKNOWN]
    train_rate = float((train_known == names.MEDICANE).mean()) if train_known.size else math.nan
    resampling = resample_blocks(
        times[scored],
        labels[scored],
        None if storm is None else storm[scored],
        n_resamples=n_resamples,
        seed=seed,
    )
    scores_of = {
        name: map_scores(
            forecast.at(scored if finite[name].any() else np.zeros(times.shape, bool)),
            labels[scored] if finite[name].any() else labels[:0],
            reference_rate=train_rate,
            resampling=resampling,
        )
        for name, forecast in forecasts.items()
    }
    main = next(iter(forecasts))
    models = {}
    for name, forecast in forecasts.items():
        mine = scores_of[name]
        detection = forecast.detections() & available
        entry: dict[str, Any] = {
            key: with_interval(key, value, mine.resamples.get(key), mine.n_storms)
            for key, value in mine.value.items()
        }
        entry["events"] = event_scores(
            times,
            labels,
            storm,
            detection,
            available=available & finite[name],
            probability=forecast.probability,
            centre_error_km=_centre_error_km(forecast, observed_centre),
        )
        positive = labels == names.MEDICANE
        entry["counts"] = {
            "hits": int((detection & positive & scored).sum()),
            "misses": int((~detection & positive & scored).sum()),
            "false_alarms": int((detection & ~positive & scored).sum()),
            "correct_negatives": int((~detection & ~positive & scored).sum()),
        }
        hard = scored & ~positive & (storm != "") if storm is not None else np.zeros(0, bool)
        entry["hard_negatives"] = {
            "n_maps": int(hard.sum()),
            "false_alarm_rate": float(detection[hard].mean()) if hard.any() else math.nan,
            "note": "maps of catalogued storms at times when they are no medicane",
        }
        entry["threshold"] = forecast.threshold
        if forecast.note:
            entry["note"] = forecast.note
        if not finite[name].any():
            entry["note"] = "no forecast at all: every score is undefined"
        if name == main and mine.resamples:
            entry["difference_from"] = {
                other: paired_difference(mine, theirs)
                for other, theirs in scores_of.items()
                if other != main and theirs.resamples
            }
        models[name] = entry

    notes = []
    if resampling.n_storms < FEW_STORMS:
        notes.append(
            f"{resampling.n_storms} storm(s): with fewer than {FEW_STORMS} the bootstrap intervals "
            "are too narrow"
        )
    n_maps = int(scored.sum())
    return _without_nan(
        {
            "schema_version": SCHEMA_VERSION,
            "split": split,
            "n_maps": n_maps,
            "n_medicane": int((labels[scored] == names.MEDICANE).sum()),
            "n_storms": resampling.n_storms,
            "base_rate": float((labels[scored] == names.MEDICANE).mean()) if n_maps else math.nan,
            "train_base_rate": train_rate,
            "threshold": forecasts[main].threshold,
            "start": str(times[0])[:16] if times.size else None,
            "end": str(times[-1])[:16] if times.size else None,
            "left_out": {
                "unknown_label": int((~known).sum()),
                "no_forecast": int((known & ~available).sum()),
            },
            "intervals": {
                "level": 0.95,
                "method": "bootstrap by storm and by week",
                "n_resamples": n_resamples,
                "n_weeks": resampling.n_weeks,
                "seed": seed,
            },
            "notes": notes,
            "models": models,
        }
    )


def _centre_error_km(
    forecast: Forecast, observed: tuple[ArrayLike, ArrayLike] | None
) -> NDArray[np.float64] | None:
    """Distance between forecast and observed centre, shape (time,), NaN where either is unknown."""
    if observed is None or forecast.centre_latitude is None or forecast.centre_longitude is None:
        return None
    centres = (*observed, forecast.centre_latitude, forecast.centre_longitude)
    return np.asarray(distance_km(*(np.asarray(values, float) for values in centres)), float)


def _without_nan(value: Any) -> Any:
    """The same with None for NaN and infinity, and plain Python numbers throughout."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_scores(path: str | Path, scores: Mapping[str, Any]) -> Path:
    """Write ``scores.json`` in one step: a reader finds the old file or the new one, whole.

    NaN and infinity become null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan(scores), indent=2, allow_nan=False, ensure_ascii=False)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        # mkstemp makes it private; a result is as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(scratch, 0o666 & ~mask)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return path


def read_scores(path: str | Path) -> dict[str, Any]:
    """Read ``scores.json``.

    Raises
    ------
    InputError
        If the file is missing, is not JSON, or has another schema version.
    """
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, "scores must be a readable JSON file", found=error) from None
    version = scores.get("schema_version") if isinstance(scores, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(path, f"schema_version must be {SCHEMA_VERSION}", found=repr(version))
    return scores
