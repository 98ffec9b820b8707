"""Events and episodes: what was observed, what was detected, and how the two meet.

An *event* is the medicane phase of one storm as labelled; an *episode* is a run of consecutive
detections. Everything here works on one timeline of maps and knows neither models nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medicane import names
from medicane.sequences import elapsed_seconds

HOURS_PER_YEAR = 24 * 365.2425


def hours_from_first(times: ArrayLike) -> NDArray[np.float64]:
    """Hours of each map since the first one, shape (time,).

    Parameters
    ----------
    times
        ``datetime64`` or cftime times (any calendar), strictly increasing.

    Raises
    ------
    InputError
        If the times do not increase strictly.
    """
    return elapsed_seconds(times) / 3600.0


def usual_step_hours(times: ArrayLike) -> float:
    """The most common time step, hours; NaN with fewer than two maps."""
    steps = np.diff(hours_from_first(times))
    if steps.size == 0:
        return float("nan")
    values, counts = np.unique(steps, return_counts=True)
    return float(values[np.argmax(counts)])


@dataclass(frozen=True)
class Event:
    """The medicane phase of one storm: the indices of its maps, in order."""

    storm: str
    maps: NDArray[np.intp]


def storm_of_positives(
    times: ArrayLike, medicane: ArrayLike, storm: ArrayLike | None
) -> NDArray[np.object_]:
    """The storm of every medicane map, "" elsewhere, shape (time,).

    Medicane maps without a storm id belong to their run: consecutive maps, no time gap.
    """
    clock = np.asarray(times)
    positive = np.asarray(medicane) == names.MEDICANE
    given = (
        np.full(positive.shape, "")
        if storm is None
        else np.asarray(storm).astype(object).astype(str)
    )
    named = np.where(positive, given, "").astype(object)
    for first, last in episodes(clock, positive & (given == "")):
        named[first : last + 1] = f"unnamed {str(clock[first])[:13]}"
    return named


def observed_events(times: ArrayLike, medicane: ArrayLike, storm: ArrayLike | None) -> list[Event]:
    """Observed events in order of time.

    An event is a run of medicane labels of one storm. Unknown hours and missing maps do not end
    it, a map labelled *not medicane* does: two mature phases of one storm are two events.

    Parameters
    ----------
    times, medicane, storm
        Shape (time,): strictly increasing times, labels 1, 0 or -1, and storm ids ("" for none).
    """
    labels = np.asarray(medicane)
    named = storm_of_positives(times, medicane, storm)
    phase = np.cumsum(labels == names.NOT_MEDICANE)
    runs: dict[tuple[str, int], list[int]] = {}
    for index in np.flatnonzero(labels == names.MEDICANE):
        runs.setdefault((str(named[index]), int(phase[index])), []).append(int(index))
    events = [Event(name, np.array(maps)) for (name, _), maps in runs.items()]
    return sorted(events, key=lambda event: int(event.maps[0]))


def episodes(
    times: ArrayLike, detection: ArrayLike, *, merge_hours: float | None = None
) -> list[tuple[int, int]]:
    """Runs of consecutive detections: (first, last) map index of each, both included.

    Parameters
    ----------
    times, detection
        Shape (time,): strictly increasing times; true where a medicane is detected.
    merge_hours
        Detections no further apart than this are one episode; by default the usual time step,
        so that a single quiet map, or a gap in the record, ends an episode.
    """
    found = np.flatnonzero(np.asarray(detection, bool))
    if found.size == 0:
        return []
    hours = hours_from_first(times)
    if merge_hours is None:
        step = usual_step_hours(times)
        merge_hours = 0.0 if np.isnan(step) else step
    breaks = np.flatnonzero(np.diff(hours[found]) > merge_hours * (1 + 1e-9))
    firsts = found[np.concatenate(([0], breaks + 1))]
    lasts = found[np.concatenate((breaks, [found.size - 1]))]
    return [(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]


def wilson_interval(
    hits: ArrayLike, trials: ArrayLike, *, level: float = 0.95
) -> NDArray[np.float64]:
    """Wilson's score interval of a proportion, shape (..., 2); NaN where there are no trials.

    It stays sensible for a handful of events, where a bootstrap of them collapses (all hit gives
    [1, 1]): 14 hits of 18 events is [0.55, 0.91]. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    hits, trials = np.asarray(hits, float), np.asarray(trials, float)
    z = stats.norm.ppf(0.5 + level / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = hits / trials
        width = 1 + z**2 / trials
        middle = (rate + z**2 / (2 * trials)) / width
        half = z * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / width
    return np.stack([np.maximum(middle - half, 0), np.minimum(middle + half, 1)], axis=-1)


def poisson_interval(count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a Poisson mean from one count. Garwood 1936, Biometrika 28, 437-442."""
    tail = (1 - level) / 2
    low = stats.chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return float(low), float(stats.chi2.ppf(1 - tail, 2 * count + 2) / 2)


def event_scores(
    times: ArrayLike,
    medicane: ArrayLike,
    storm: ArrayLike | None,
    detection: ArrayLike,
    *,
    available: ArrayLike | None = None,
    probability: ArrayLike | None = None,
    centre_error_km: ArrayLike | None = None,
) -> dict[str, Any]:
    """Event scores of one forecast.

    Parameters
    ----------
    times, medicane, storm, detection
        Shape (time,): times, labels (1, 0, -1), storm ids, detections.
    available
        True where there is a forecast at all. An event without a single one is left out and
        counted, not missed.
    probability
        Shape (time,), for the highest value of each event and episode.
    centre_error_km
        Shape (time,): distance between forecast and observed centre, NaN where either is unknown.

    Returns
    -------
    dict
        ``hits`` (at least one detection in the window), ``hits_half`` (in at least half of its
        maps), ``misses``, ``pod`` with Wilson's interval, ``false_alarms`` (episodes that touch
        neither an event nor unknown hours), ``false_alarms_per_year`` with an exact Poisson
        interval in ``false_alarms_per_year_low`` and ``_high``, ``onset_delay_hours`` (first
        detection in the window minus its start, mean over the hits), ``centre_error_km`` (mean
        over detected medicane maps), ``years``, ``unscored``, and ``storms`` and ``episodes``
        with one entry each. NaN where undefined.
    """
    clock, labels = np.asarray(times), np.asarray(medicane)
    usable = np.ones(labels.shape, bool) if available is None else np.asarray(available, bool)
    detected = np.asarray(detection, bool) & usable
    hours = hours_from_first(clock)
    error = np.full(labels.shape, np.nan)
    if centre_error_km is not None:
        error = np.asarray(centre_error_km, float)

    storms: list[dict[str, Any]] = []
    for event in observed_events(clock, labels, storm):
        maps = event.maps[usable[event.maps]]
        found = maps[detected[maps]]
        storms.append(
            {
                "storm": event.storm,
                "start": str(clock[event.maps[0]])[:16],
                "end": str(clock[event.maps[-1]])[:16],
                "n_maps": int(maps.size),
                "n_detected": int(found.size),
                "hit": bool(found.size) if maps.size else None,
                "max_probability": _highest(probability, maps),
                "onset_delay_hours": (
                    float(hours[found[0]] - hours[event.maps[0]]) if found.size else float("nan")
                ),
                "centre_error_km": _mean(error[found]),
            }
        )
    scored = [entry for entry in storms if entry["hit"] is not None]
    hits = sum(entry["hit"] for entry in scored)

    runs = []
    for first, last in episodes(clock, detected):
        met = labels[first : last + 1]
        outcome = (
            "event"
            if (met == names.MEDICANE).any()
            else "unknown"
            if (met == names.UNKNOWN).any()
            else "false alarm"
        )
        runs.append(
            {
                "start": str(clock[first])[:16],
                "end": str(clock[last])[:16],
                "n_maps": int(detected[first : last + 1].sum()),
                "max_probability": _highest(probability, np.arange(first, last + 1)),
                "outcome": outcome,
            }
        )
    false = sum(run["outcome"] == "false alarm" for run in runs)
    known = int((usable & (labels != names.UNKNOWN)).sum())
    years = known * usual_step_hours(clock) / HOURS_PER_YEAR
    low, high = poisson_interval(false)
    pod_low, pod_high = wilson_interval(hits, len(scored))
    per_year = 1 / years if years > 0 else float("nan")
    return {
        "hits": hits,
        "hits_half": sum(2 * entry["n_detected"] >= entry["n_maps"] for entry in scored),
        "misses": len(scored) - hits,
        "pod": {
            "value": hits / len(scored) if scored else float("nan"),
            "low": float(pod_low),
            "high": float(pod_high),
        },
        "false_alarms": false,
        "false_alarms_per_year": false * per_year,
        "false_alarms_per_year_low": low * per_year,
        "false_alarms_per_year_high": high * per_year,
        "onset_delay_hours": _mean([entry["onset_delay_hours"] for entry in scored]),
        "centre_error_km": _mean(error[detected & (labels == names.MEDICANE)]),
        "years": years,
        "unscored": len(storms) - len(scored),
        "storms": storms,
        "episodes": runs,
    }


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if kept.size else float("nan")


def _highest(probability: ArrayLike | None, maps: NDArray[np.intp]) -> float:
    if probability is None:
        return float("nan")
    kept = np.asarray(probability, float)[maps]
    kept = kept[np.isfinite(kept)]
    return float(kept.max()) if kept.size else float("nan")
