"""What the steps hand on: small, frozen, made of paths, URIs and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

#: Called with (done, in all).
Progress = Callable[[int, int], None]


class Summary(BaseModel):
    """What a step has done, in a form that a flow can hand on."""

    model_config = ConfigDict(frozen=True)


class Prepared(Summary):
    """A map store after `prepare`."""

    store: str
    n_maps: int
    n_new: int
    n_left_out: int
    n_medicane: int
    first: str
    last: str
    digest: str


class Trained(Summary):
    """A model after `train`."""

    run_id: str
    model_uri: str
    tracking_uri: str
    run_page: str | None
    best_epoch: int
    n_epochs: int
    val_auc_pr: float
    threshold: float
    temperature: float
    seconds: float
    #: Processor time over all cores, minutes, summed over everything it was cut into.
    core_minutes: float
    n_parameters: int


class Evaluated(Summary):
    """Scores after `evaluate`."""

    scores: str
    report: str
    split: str
    run_id: str | None
    table: str


class Fetched(Summary):
    """Months of ERA5 after `fetch`: ``n_new`` of ``n_files`` files were brought, or would be.

    ``asked`` tells, for each of those, what of whom.
    """

    folder: str
    n_files: int
    n_new: int
    first: str
    last: str
    asked: tuple[str, ...]


class Detected(Summary):
    """Detections after `detect`.

    ``n_skipped`` maps are not later than the last detection, ``n_left_out`` lie between the steps
    of the model, ``n_unlabelled`` of all are too few in a row for a sequence.
    """

    detections: str
    events: str
    n_maps: int
    n_new: int
    n_skipped: int
    n_left_out: int = 0
    n_unlabelled: int = 0
    n_events: int
    model_uri: str


class Compared(Summary):
    """Runs side by side after `compare`: ``comparison`` is the content of the JSON file."""

    reference: str
    names: tuple[str, ...]
    comparison: dict[str, Any]
    table: str
    out: str | None


class PrecisionChecked(Summary):
    """Whether the scores of a model stay in a lower precision; ``verdict`` is the JSON file."""

    model_uri: str
    precision: str
    passed: bool
    scores: dict[str, dict[str, float]]
    verdict: str
    run_id: str | None


class Decided(Summary):
    """Whether a challenger became champion, and why."""

    decision: Literal["promoted", "kept"]
    reason: str
    challenger: str
    champion: str | None
    run_id: str
    tracking_uri: str
    text: str


class RolledBack(Summary):
    """The champion after `rollback`, and the one before it."""

    champion: str
    rolled_back: str


class CrossValidated(Summary):
    """The pooled scores of all folds after `cross_validate`."""

    run_id: str
    folder: str
    scores: str
    folds: tuple[str, ...]
    n_trained: int
    table: str
