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


class HeldVariable(Summary):
    """A field of a source: what the file says of it, and what it would become.

    ``name``, ``standard_name`` and ``target_units`` are ours, empty where it is not known;
    ``levels`` are in hPa; ``note`` says what stands in the way.
    """

    field: str
    units: str
    long_name: str
    name: str | None
    standard_name: str
    target_units: str
    levels: list[float]
    note: str


class Inspected(Summary):
    """What a source holds and how it would be read, after `inspect`.

    Times are valid times, ISO 8601; ``gaps`` pairs of neighbours further apart than the step; area
    and spacing in degrees as the file counts them, levels in hPa. ``missing`` is what the channels
    need and the source lacks, ``fault`` the one line with which it would be refused.
    """

    where: str
    n_files: int
    dialect: str
    dimensions: dict[str, int]
    n_times: int
    first: str | None = None
    last: str | None = None
    step_hours: float | None = None
    gaps: list[tuple[str, str]] = []
    n_repeated: int = 0
    in_order: bool = True
    calendar: str | None = None
    sequences: str
    grid: str
    area: dict[str, float] | None = None
    spacing: tuple[float, float] | None = None
    levels: list[float]
    variables: list[HeldVariable]
    versions: dict[str, int]
    labelled: bool
    left_out: list[str]
    channels: list[str]
    missing: list[str]
    reading: str
    fault: str | None
    usable: bool


class Prepared(Summary):
    """A map store after `prepare`."""

    store: str
    n_maps: int
    n_new: int
    n_again: int = 0
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


class Told(Summary):
    """What was told of the onset of an event, and over which channel.

    ``state`` is ``sent``, ``waiting`` (tried again at the next run) or ``given up``; ``fault`` says
    why it is not sent.
    """

    event_id: str
    channel: Literal["webhook", "email"]
    state: Literal["sent", "waiting", "given up"]
    fault: str | None = None


class Left(Summary):
    """Maps that a watch left as they were: how many, from when to when, and why."""

    n_maps: int
    first: str
    last: str
    why: str


class Watched(Summary):
    """Detections after a run of `watch`: what ``status.json`` holds. Times are ISO 8601, UTC.

    Of ``n_maps`` detections ``n_new`` are new and ``n_again`` were labelled again, because maps are
    ``late`` or ``revised``; ``missing`` pairs the first and the last time of each stretch that no
    map has come for, as far back as one could still be put in its place; ``left`` is what was
    skipped; ``waiting_for`` says what stands between the newest maps and their labels. ``onsets``
    are new events, ``told`` is what was told of these and earlier ones, or tried; ``withdrawn`` are
    events that were told and are none any more.
    """

    detections: str
    events: str
    status: str
    model_uri: str
    store: str | None = None
    n_store: int = 0
    n_store_new: int = 0
    n_store_again: int = 0
    n_maps: int = 0
    n_new: int = 0
    n_again: int = 0
    first: str | None = None
    last: str | None = None
    late: tuple[str, ...] = ()
    revised: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    left: tuple[Left, ...] = ()
    waiting_for: str | None = None
    n_events: int = 0
    onsets: tuple[str, ...] = ()
    told: tuple[Told, ...] = ()
    withdrawn: tuple[str, ...] = ()


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
