"""Verification: map and event scores with intervals, for every forecast on the same maps.

The scores of single maps are those of the ``scores`` library; events, intervals, calibration,
baselines, the comparison of runs and the files have rooms of their own below this one and are
offered here under one name. Accuracy is left out on purpose: at a base rate below 1 % it says
nothing.
"""

from __future__ import annotations

from medicane.evaluate.baselines import baseline_forecasts, climatology, physical_rule
from medicane.evaluate.calibration import (
    calibrate,
    fit_rule,
    fit_score,
    fit_temperature,
    fit_threshold,
)
from medicane.evaluate.comparison import compare
from medicane.evaluate.events import episodes, event_scores, observed_events
from medicane.evaluate.files import (
    ScoredForecasts,
    read_forecasts,
    read_scores,
    write_forecasts,
    write_scores,
)
from medicane.evaluate.intervals import resample_blocks
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
from medicane.evaluate.verification import SCHEMA_VERSION, verify

__all__ = [
    "SCHEMA_VERSION",
    "Forecast",
    "MapScores",
    "ScoredForecasts",
    "baseline_forecasts",
    "calibrate",
    "climatology",
    "compare",
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
    "read_forecasts",
    "read_scores",
    "reliability",
    "resample_blocks",
    "verify",
    "with_interval",
    "write_forecasts",
    "write_scores",
]
