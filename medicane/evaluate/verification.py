"""Every forecast scored on the same maps: the content of ``scores.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError
from medicane.evaluate.events import event_scores
from medicane.evaluate.intervals import FEW_STORMS, Resampling, resample_blocks
from medicane.evaluate.skill import (
    Forecast,
    MapScores,
    map_scores,
    paired_difference,
    with_interval,
)
from medicane.phase_space.sphere import distance_km

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """The maps that forecasts are scored on, and what is known of them.

    Attributes
    ----------
    times, medicane, storm
        The whole split in order, shape (time,): strictly increasing times, labels 1, 0 or -1,
        storm ids ("" for none, or None where nobody knows).
    train_rate
        Base rate of the training split, the reference of the Brier skill; NaN if unknown.
    split
        The split's name.
    kind
        Kind of storm about at each time ("" for none), or None; see `labels.kind_of_times`.
    observed_centre
        (latitude, longitude), each of shape (time,), degrees, NaN where unknown.
    n_resamples, seed
        Of the block bootstrap. The same maps and seed give the same resamples.
    """

    times: NDArray[Any]
    medicane: NDArray[Any]
    storm: NDArray[np.str_] | None
    train_rate: float
    split: str = "test"
    kind: NDArray[np.str_] | None = None
    observed_centre: tuple[ArrayLike, ArrayLike] | None = None
    n_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Verified:
    """The scores, ready for a file, and the resamples behind them for paired differences."""

    scores: dict[str, Any]
    by_map: dict[str, MapScores]


def verify(
    times: ArrayLike,
    medicane: ArrayLike,
    storm: ArrayLike | None,
    *,
    forecasts: Mapping[str, Forecast],
    train_medicane: ArrayLike,
    split: str = "test",
    kind: ArrayLike | None = None,
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
    kind
        Shape (time,): the kind of storm about, "" for none (`labels.kind_of_times`); None where
        no catalogue says so.
    observed_centre
        (latitude, longitude), each of shape (time,), degrees, NaN where unknown.
    n_resamples, seed
        Of the block bootstrap. The same split and seed give the same resamples.

    Returns
    -------
    dict
        As ``scores.json``, None for what is undefined. Beyond the contract: ``n_medicane``,
        ``left_out``, ``train_base_rate``, ``notes``; for each model ``sedi``, ``ece``,
        ``counts``, ``threshold`` and ``hard_negatives`` (with ``kinds``: what the maps of each
        kind of storm that are no medicane gave), and for the first one ``difference_from`` each of
        the others, paired over the same resamples.

    Raises
    ------
    InputError
        If shapes differ, or a label is not 1, 0 or -1.
    """
    train_known = np.asarray(train_medicane)
    train_known = train_known[train_known != names.UNKNOWN]
    sample = Sample(
        times=np.asarray(times),
        medicane=np.asarray(medicane),
        storm=None if storm is None else as_text(storm),
        train_rate=(
            float((train_known == names.MEDICANE).mean()) if train_known.size else math.nan
        ),
        split=split,
        kind=None if kind is None else as_text(kind),
        observed_centre=observed_centre,
        n_resamples=n_resamples,
        seed=seed,
    )
    found = score_all(sample, forecasts)
    main, *others = forecasts
    mine = found.by_map[main]
    if mine.resamples:
        found.scores["models"][main]["difference_from"] = {
            other: paired_difference(mine, found.by_map[other])
            for other in others
            if found.by_map[other].resamples
        }
    return plain(found.scores)


def score_all(sample: Sample, forecasts: Mapping[str, Forecast]) -> Verified:
    """Scores of every forecast on the maps that all of them have; see `verify`.

    Raises
    ------
    InputError
        If shapes differ, or a label is not 1, 0 or -1.
    """
    times, labels, storm = sample.times, sample.medicane, sample.storm
    _check(sample, forecasts)
    finite = {
        name: np.isfinite(np.asarray(f.probability, float)) & np.isfinite(f.ranking())
        for name, f in forecasts.items()
    }
    in_use = [mask for mask in finite.values() if mask.any()]
    available = np.logical_and.reduce(in_use) if in_use else np.zeros(times.shape, bool)
    known = labels != names.UNKNOWN
    scored = available & known
    resampling = resample_blocks(
        times[scored],
        labels[scored],
        None if storm is None else storm[scored],
        n_resamples=sample.n_resamples,
        seed=sample.seed,
    )
    by_map = {
        name: map_scores(
            forecast.at(scored if finite[name].any() else np.zeros(times.shape, bool)),
            labels[scored] if finite[name].any() else labels[:0],
            reference_rate=sample.train_rate,
            resampling=resampling,
        )
        for name, forecast in forecasts.items()
    }
    models = {
        name: _entry(sample, forecast, by_map[name], available=available & finite[name])
        for name, forecast in forecasts.items()
    }
    return Verified(_head(sample, forecasts, available, resampling) | {"models": models}, by_map)


def _entry(
    sample: Sample, forecast: Forecast, by_map: MapScores, *, available: NDArray[np.bool_]
) -> dict[str, Any]:
    """All that ``scores.json`` says of one forecast."""
    labels = sample.medicane
    positive = labels == names.MEDICANE
    scored = available & (labels != names.UNKNOWN)
    detection = forecast.detections() & available
    entry: dict[str, Any] = {
        key: with_interval(key, value, by_map.resamples.get(key), by_map.n_storms)
        for key, value in by_map.value.items()
    }
    entry["events"] = event_scores(
        sample.times,
        labels,
        sample.storm,
        detection,
        available=available,
        probability=forecast.probability,
        centre_error_km=_centre_error_km(forecast, sample.observed_centre),
    )
    entry["counts"] = {
        "hits": int((detection & positive & scored).sum()),
        "misses": int((~detection & positive & scored).sum()),
        "false_alarms": int((detection & ~positive & scored).sum()),
        "correct_negatives": int((~detection & ~positive & scored).sum()),
    }
    entry["hard_negatives"] = _hard_negatives(sample, detection, scored & ~positive)
    entry["threshold"] = forecast.threshold
    if forecast.note:
        entry["note"] = forecast.note
    if not available.any():
        entry["note"] = "no forecast at all: every score is undefined"
    return entry


def _hard_negatives(
    sample: Sample, detection: NDArray[np.bool_], negative: NDArray[np.bool_]
) -> dict[str, Any]:
    """How often a storm that is no medicane is called one, in all and by kind."""
    storm, kind = sample.storm, sample.kind
    hard = negative & (storm != "") if storm is not None else np.zeros(negative.shape, bool)
    entry: dict[str, Any] = {
        "n_maps": int(hard.sum()),
        "false_alarm_rate": _rate(detection[hard]),
        "note": "maps of catalogued storms at times when they are no medicane",
    }
    if kind is None:
        return entry
    entry["kinds"] = {}
    for name in np.unique(kind[negative & (kind != "")]):
        maps = negative & (kind == name)
        called = maps & detection
        entry["kinds"][str(name)] = {
            "n_storms": math.nan if storm is None else np.unique(storm[maps]).size,
            "n_maps": int(maps.sum()),
            "false_alarm_rate": _rate(detection[maps]),
            "storms_with_false_alarm": (
                math.nan if storm is None else np.unique(storm[called]).size
            ),
        }
    return entry


def _rate(detection: NDArray[np.bool_]) -> float:
    return float(detection.mean()) if detection.size else math.nan


def _head(
    sample: Sample,
    forecasts: Mapping[str, Forecast],
    available: NDArray[np.bool_],
    resampling: Resampling,
) -> dict[str, Any]:
    """What stands above the models in ``scores.json``: the maps, the base rates, the intervals."""
    times, labels = sample.times, sample.medicane
    known = labels != names.UNKNOWN
    positive = labels[available & known] == names.MEDICANE
    notes = []
    if resampling.n_storms < FEW_STORMS:
        notes.append(
            f"{resampling.n_storms} storm(s): with fewer than {FEW_STORMS} the bootstrap intervals "
            "are too narrow"
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "split": sample.split,
        "n_maps": int(positive.size),
        "n_medicane": int(positive.sum()),
        "n_storms": resampling.n_storms,
        "base_rate": _rate(positive),
        "train_base_rate": sample.train_rate,
        "threshold": next(iter(forecasts.values())).threshold,
        "start": str(times[0])[:16] if times.size else None,
        "end": str(times[-1])[:16] if times.size else None,
        "left_out": {
            "unknown_label": int((~known).sum()),
            "no_forecast": int((known & ~available).sum()),
        },
        "intervals": {
            "level": 0.95,
            "method": "bootstrap by storm and by week",
            "n_resamples": sample.n_resamples,
            "n_weeks": resampling.n_weeks,
            "seed": sample.seed,
        },
        "notes": notes,
    }


def _check(sample: Sample, forecasts: Mapping[str, Forecast]) -> None:
    shape, labels = sample.times.shape, sample.medicane
    if not forecasts:
        raise InputError("forecasts", "at least one forecast must be given", found="none")
    for name, forecast in forecasts.items():
        found = np.shape(forecast.probability)
        if found != shape or labels.shape != shape:
            law = f"there must be one forecast and one label per map, shape {shape}"
            raise InputError(name, law, found=f"{found} and {labels.shape}")
    for name, given in (("storm", sample.storm), ("kind", sample.kind)):
        if given is not None and given.shape != shape:
            raise InputError(name, f"must have the shape of the maps, {shape}", found=given.shape)
    strange = ~np.isin(labels, (names.MEDICANE, names.NOT_MEDICANE, names.UNKNOWN))
    if strange.any():
        raise InputError("medicane", "labels must be 1, 0 or -1", found=labels[strange][0])


def _centre_error_km(
    forecast: Forecast, observed: tuple[ArrayLike, ArrayLike] | None
) -> NDArray[np.float64] | None:
    """Distance between forecast and observed centre, shape (time,), NaN where either is unknown."""
    if observed is None or forecast.centre_latitude is None or forecast.centre_longitude is None:
        return None
    centres = (*observed, forecast.centre_latitude, forecast.centre_longitude)
    return np.asarray(distance_km(*(np.asarray(values, float) for values in centres)), float)


def as_text(values: ArrayLike) -> NDArray[np.str_]:
    """Strings of any type (a Zarr store decodes to one of its own) as numpy's."""
    return np.asarray(values).astype(object).astype(str)


def plain(value: Any) -> Any:
    """The same with None for NaN and infinity, and plain Python numbers throughout."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
