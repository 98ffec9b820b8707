"""The way of the data, one function a step: prepare, train, evaluate, detect, and the demo of all.

The command line and the Prefect flows call the same functions; what they exchange are paths, URIs
and the small summaries below, never datasets.
"""

from __future__ import annotations

from medicane.pipeline.comparison import compare
from medicane.pipeline.cross_validation import cross_validate
from medicane.pipeline.demonstration import RECIPES, Demonstrated, Steps, demo
from medicane.pipeline.detection import detect, probability_strip
from medicane.pipeline.evaluation import MODEL_NAME, evaluate
from medicane.pipeline.fetching import fetch
from medicane.pipeline.inspection import inspect
from medicane.pipeline.precision import check_precision
from medicane.pipeline.promotion import promote, rollback
from medicane.pipeline.steps import (
    prepare,
    synthesise,
    tracking_uri,
    train,
    train_along,
    worker_number,
)
from medicane.pipeline.study import skill
from medicane.pipeline.summaries import (
    Compared,
    CrossValidated,
    Decided,
    Detected,
    Evaluated,
    Fetched,
    HeldVariable,
    Inspected,
    Left,
    PrecisionChecked,
    Prepared,
    Progress,
    RolledBack,
    Summary,
    Told,
    Trained,
    Watched,
)
from medicane.pipeline.watch_status import status_text
from medicane.pipeline.watching import watch

__all__ = [
    "MODEL_NAME",
    "RECIPES",
    "Compared",
    "CrossValidated",
    "Decided",
    "Demonstrated",
    "Detected",
    "Evaluated",
    "Fetched",
    "HeldVariable",
    "Inspected",
    "Left",
    "PrecisionChecked",
    "Prepared",
    "Progress",
    "RolledBack",
    "Steps",
    "Summary",
    "Told",
    "Trained",
    "Watched",
    "check_precision",
    "compare",
    "cross_validate",
    "demo",
    "detect",
    "evaluate",
    "fetch",
    "inspect",
    "prepare",
    "probability_strip",
    "promote",
    "rollback",
    "skill",
    "status_text",
    "synthesise",
    "tracking_uri",
    "train",
    "train_along",
    "watch",
    "worker_number",
]
