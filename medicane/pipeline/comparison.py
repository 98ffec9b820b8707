"""Runs side by side: the forecasts of two or more evaluations over the same resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medicane.errors import InputError
from medicane.pipeline.evaluation import MODEL_NAME
from medicane.pipeline.summaries import Compared

if TYPE_CHECKING:
    from medicane.evaluate import ScoredForecasts


def compare(
    runs: Sequence[str],
    *,
    split: str = "test",
    tracking: str | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> Compared:
    """Score evaluated runs on the same maps, and every paired difference to the first.

    Parameters
    ----------
    runs
        Two or more: a folder that ``medicane evaluate`` wrote, the id of an MLflow run, ``runs:/…``
        or the URI of a registered model. The first is the reference.
    split
        The split that was evaluated.
    tracking
        Tracking URI of the runs; by default what MLflow is pointed at.
    out
        The JSON file; none is written without. The first run gets it as ``comparison.json``.
    seed
        Of the block bootstrap.

    Returns
    -------
    Compared
        With ``comparison``: what `medicane.evaluate.compare` returns.

    Raises
    ------
    InputError
        If a run is not there or not evaluated on this split, if two were evaluated on other maps
        or labels, or the file cannot be written.
    """
    from medicane import evaluate as verification
    from medicane import experiments, report
    from medicane.store.commits import writable_folder

    if len(runs) < 2:
        raise InputError("RUN", "at least two runs must be given", found=len(runs))
    if out is not None:
        if out.is_dir():
            raise InputError("--out", "must be a file", found=f"the folder {out}")
        writable_folder(out.resolve().parent, where="--out")
    folders = [experiments.evaluation_folder(run, split=split, tracking=tracking) for run in runs]
    read = [verification.read_forecasts(folder.path / "forecast.nc") for folder in folders]
    for run, scored in zip(runs, read, strict=True):
        if scored.split != split:
            raise InputError(run, f"must be an evaluation of {split}", found=scored.split)
        if MODEL_NAME not in scored.forecasts:
            raise InputError(run, f"must hold the forecast {MODEL_NAME!r}")
    first = read[0]
    for run, other in zip(runs[1:], read[1:], strict=True):
        same_maps(first, other, where=run, reference=runs[0])
    shown = _distinct([(folder.name, folder.run_id) for folder in folders])
    table = verification.compare(
        first.times,
        first.medicane,
        first.storm,
        forecasts={
            name: scored.forecasts[MODEL_NAME] for name, scored in zip(shown, read, strict=True)
        },
        train_rate=first.train_rate,
        split=split,
        kind=first.kind,
        seed=seed,
    )
    table["runs"] = {
        name: {"run": run, "run_id": folder.run_id, **_told(scored.attributes)}
        for name, run, folder, scored in zip(shown, runs, folders, read, strict=True)
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        verification.write_scores(out, table)
    if folders[0].run_id is not None:
        with report.figure_folder() as scratch:
            file = verification.write_scores(scratch / "comparison.json", table)
            experiments.reopened_run(folders[0].run_id).log_file(file)
    return Compared(
        reference=shown[0],
        names=tuple(shown),
        comparison=table,
        table=report.comparison_table_markdown(table),
        out=None if out is None else str(out),
    )


def same_maps(
    first: ScoredForecasts, other: ScoredForecasts, *, where: str, reference: str
) -> None:
    """Refuse to compare what was scored on other maps or other labels.

    Raises
    ------
    InputError
        Naming what differs first.
    """
    law = f"must be scored on the same maps as {reference}"
    if first.times.shape != other.times.shape or (first.times != other.times).any():
        found, wanted = (_span(scored) for scored in (other, first))
        raise InputError(where, f"{law} ({wanted})", found=found)
    law = f"must be scored with the same labels as {reference}"
    for name in ("medicane", "storm"):
        mine, theirs = getattr(first, name), getattr(other, name)
        differ = np.flatnonzero(mine != theirs)
        if differ.size:
            at = int(differ[0])
            found = (
                f"{name} {theirs[at]} instead of {mine[at]} at {str(first.times[at])[:16]}"
                f" ({differ.size} maps differ)"
            )
            raise InputError(where, law, found=found)


def _span(scored: ScoredForecasts) -> str:
    if not scored.times.size:
        return "no maps"
    return f"{scored.times.size} maps, {str(scored.times[0])[:16]} to {str(scored.times[-1])[:16]}"


def _distinct(named: Sequence[tuple[str, str | None]]) -> list[str]:
    """Names for the table: those of the runs, told apart by the run's id, or else by a number."""
    shown: list[str] = []
    names = [name for name, _ in named]
    for name, run_id in named:
        text = name if names.count(name) == 1 or run_id is None else f"{name} {run_id[:6]}"
        unique, k = text, 2
        while unique in shown:
            unique, k = f"{text} ({k})", k + 1
        shown.append(unique)
    return shown


def _told(attributes: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("model_uri", "mode", "label_version", "data_digest")
    return {key: str(attributes[key]) for key in kept if key in attributes}
