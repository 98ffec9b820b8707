"""The results of a study: all forecasts of a set of maps together, scored on the same resamples."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from medicane import __version__, names

if TYPE_CHECKING:
    from medicane.evaluate import Forecast, ScoredForecasts
    from medicane.pipeline.study import Placed

#: The row of the reconstruction error, which no training makes.
NOVELTY = "out_of_domain"
#: The physical rule, and the rows that are held against it with an interval.
PHYSICS = "phase_space"
AGAINST_PHYSICS = ("detector", "ensemble", "fused", "bidirectional", "budget")
#: Kept of a row's training.
TOLD = (
    "run_id",
    "best_epoch",
    "n_epochs",
    "val_auc_pr",
    "threshold",
    "temperature",
    "core_minutes",
    "n_parameters",
)


def gather(placed: Placed) -> Path:
    """Put the forecasts of all trained rows together, score them, and write ``results.json``.

    Returns
    -------
    Path
        ``OUT/results`` with ``forecasts_SET.nc`` for each set of maps and ``results.json``.
    """
    from medicane.evaluate import write_forecasts, write_scores
    from medicane.pipeline.acceptance import acceptance
    from medicane.pipeline.study import BENCHMARK

    out = placed.folder / "results"
    sets: dict[str, Any] = {}
    for name in placed.seas():
        scored, more = _collect(placed, name)
        if scored is None:
            continue
        write_forecasts(out / f"forecasts_{name}.nc", scored, more=more)
        sets[name] = score_set(scored)
        if name == BENCHMARK:
            _log_scores(placed, sets[name])
    results = {
        "schema_version": 1,
        "software_version": __version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "recipe": placed.config().model_dump(mode="json", exclude={"tracking"}),
        "rows": {name: told for name in placed.study.rows if (told := _row_told(placed, name))},
        "not_trained": [
            row.title for name, row in placed.study.rows.items() if not _row_told(placed, name)
        ],
        "sets": sets,
        "acceptance": acceptance(placed, sets),
    }
    write_scores(out / "results.json", results)
    return out


def publish(results: Path, page: Path, *, study: Path) -> Path:
    """Write the page of a study from its results, and the small files behind it beside the page.

    Parameters
    ----------
    results
        Folder that `gather` wrote.
    page
        The Markdown file.
    study
        The study's file, named in the page's command.
    """
    from medicane.evaluate import read_forecasts, read_scores, write_scores
    from medicane.pipeline.targets import targets
    from medicane.report.skill_page import write_skill_page

    found = read_scores(results / "results.json")
    forecasts = {name: read_forecasts(results / f"forecasts_{name}.nc") for name in found["sets"]}
    command = "make skill" if study.name == "skill.yaml" else f"medicane skill --study {study.name}"
    write_skill_page(
        page,
        found,
        forecasts=forecasts,
        targets={
            "The default detector": targets(found, row="detector"),
            "The ensemble": targets(found, row="ensemble"),
            "The default, late-fused: for archives": targets(found, row="fused"),
        },
        command=command,
    )
    write_scores(page.parent / page.stem / "results.json", found)
    return page


def score_set(scored: ScoredForecasts) -> dict[str, Any]:
    """Scores of all forecasts of a set, and their differences from the first one."""
    from medicane.evaluate import compare

    table = compare(
        scored.times,
        scored.medicane,
        scored.storm,
        forecasts=scored.forecasts,
        train_rate=scored.train_rate,
        kind=scored.kind,
    )
    if PHYSICS in scored.forecasts:
        # What is claimed against physics needs intervals of its own.
        against = [name for name in AGAINST_PHYSICS if name in scored.forecasts]
        paired = compare(
            scored.times,
            scored.medicane,
            scored.storm,
            forecasts={name: scored.forecasts[name] for name in (PHYSICS, *against)},
            train_rate=scored.train_rate,
        )
        table["differences_from_phase_space"] = paired["differences"]
    for entry in table["models"].values():
        # Storm by storm they can be had from the forecasts again.
        entry["events"] = {
            key: told for key, told in entry["events"].items() if not isinstance(told, list)
        }
    return table


def _log_scores(placed: Placed, table: dict[str, Any]) -> None:
    """The headline scores to each row's run, so that MLflow can show them side by side."""
    from medicane import experiments
    from medicane.pipeline.evaluation import MODEL_NAME, headline

    config = placed.config()
    experiments.use_tracking(
        experiments.tracking_uri(config), experiment=config.tracking.experiment
    )
    for name, row in placed.study.rows.items():
        told = _row_told(placed, name)
        if told is None or row.model_of is not None or name not in table["models"]:
            continue
        scores = {"models": {MODEL_NAME: table["models"][name]}}
        experiments.reopened_run(told["run_id"]).log_metrics(headline(scores, "test"))


# --------------------------------------------------------------------------------------------------


def _row_told(placed: Placed, name: str) -> dict[str, Any] | None:
    row = placed.study.rows[name]
    trained = placed.trained(row.model_of or name)
    if trained is None:
        return None
    return {
        **row.model_dump(exclude={"everywhere"}),
        **{key: trained[key] for key in TOLD if key in trained},
    }


def _collect(
    placed: Placed, sea: str
) -> tuple[ScoredForecasts | None, dict[str, np.ndarray] | None]:
    from medicane.evaluate import ScoredForecasts, baseline_forecasts, read_forecasts
    from medicane.pipeline.evaluation import MODEL_NAME, kinds_of_maps
    from medicane.pipeline.study import (
        BENCHMARK,
        BUDGET,
        REFERENCE,
        forecast_file,
        scored_maps,
        split_masks,
    )
    from medicane.store import maps_where, open_store

    target = BENCHMARK if sea == BUDGET else sea
    store = open_store(placed.config(sea=target).data.store)
    mask = scored_maps(placed, store, name=sea, sea=target)
    chosen = maps_where(store[[*_LOWS, "medicane", "storm"]], mask).load()
    rows = [BUDGET, REFERENCE] if sea == BUDGET else list(placed.study.rows)
    forecasts: dict[str, Forecast] = {}
    more: dict[str, np.ndarray] = {}
    for name in rows:
        path = forecast_file(placed, name, target)
        if not path.exists():
            continue
        kept = read_forecasts(path).forecasts[MODEL_NAME]
        with xr.open_dataset(path) as file:
            at = np.isin(file[names.TIME].values, chosen[names.TIME].values)
            if sea != BUDGET and name == REFERENCE and "reconstruction_error" in file:
                more["reconstruction_error"] = file["reconstruction_error"].values
        forecasts[name] = kept.at(at)
    if next(iter(forecasts), None) != (BUDGET if sea == BUDGET else REFERENCE):
        return None, None
    fitted = placed.config(sea=BUDGET if sea == BUDGET else BENCHMARK)
    kept_store = open_store(fitted.data.store)
    masks = split_masks(fitted, kept_store)
    learned = kept_store[[*_LOWS, "medicane"]].load()
    forecasts |= baseline_forecasts(learned, **masks, definition=fitted.label, on=chosen)
    if more:
        forecasts[NOVELTY] = _novelty(placed, more["reconstruction_error"], learned, masks)
    times = chosen.indexes[names.TIME]
    labels = learned["medicane"].values[masks["train"]]
    return (
        ScoredForecasts(
            times=times.to_numpy(),
            medicane=chosen["medicane"].values,
            storm=chosen["storm"].values.astype(str),
            forecasts=forecasts,
            train_rate=float((labels == names.MEDICANE).mean()),
            kind=kinds_of_maps(placed.config(sea=target), chosen),
        ),
        more,
    )


_LOWS = ("b", "vtl", "vtu", "low_msl", "low_latitude", "low_longitude")


def _novelty(
    placed: Placed, error: np.ndarray, learned: xr.Dataset, masks: dict[str, np.ndarray]
) -> Forecast:
    """The reconstruction error taken for a detector: it flags what is unlike the training maps."""
    from medicane.evaluate import Forecast

    labels = learned["medicane"].values[masks["train"]]
    rate = float((labels == names.MEDICANE).mean())
    return Forecast(
        np.full(error.shape, rate),
        detection=error > flag_level(placed),
        score=error,
        note="the autoencoder's error; a map is flagged above the 99th percentile of training",
    )


def flag_level(placed: Placed) -> float:
    """The reconstruction error above which a map is flagged."""
    from medicane.model import facts_of
    from medicane.pipeline.study import REFERENCE

    return float(facts_of(placed.model(REFERENCE))["out_of_domain"]["percentile_99"])
