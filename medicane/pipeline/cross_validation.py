"""Cross-validation by storm or by year: a nested run a fold, one pooled out-of-fold forecast."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medicane import __version__, names
from medicane.config import Config
from medicane.errors import InputError
from medicane.pipeline.evaluation import forecast_split, headline
from medicane.pipeline.steps import log_training, refuse_workers
from medicane.pipeline.summaries import CrossValidated, Progress

if TYPE_CHECKING:
    import xarray as xr

    from medicane.evaluate import ScoredForecasts
    from medicane.experiments import Run
    from medicane.folds import Fold

LOG = logging.getLogger(__name__)

SPLIT = "cross_validation"

#: What a fold's forecast depends on, beside its splits.
_RECIPE = ("data", "sequences", "model", "train", "label", "detect")


def cross_validate(
    config: Config,
    *,
    by: Literal["storm", "year"],
    folds: int | None = None,
    storms: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossValidated:
    """Train a model for each fold and score the pooled forecast of maps that each has not seen.

    A fold is a run nested in the run of the whole. Its forecast is kept in a folder beside the
    store, so that a fold that is finished is not trained again; one that was cut goes on from its
    checkpoint. No model is registered.

    Parameters
    ----------
    config
        Everything but ``splits.train``, ``validation`` and ``test`` is read.
    by
        ``storm``: every storm with a medicane is left out once. The pooled maps are those around
        the storms, so its base rate and its false alarms a year are not those of the sea.
        ``year``: every year, or run of years, is the test split once, whole.
    folds
        So many folds only (storms evenly over the record), or runs of years.
    storms
        Of ``by="storm"``: these only.
    seed
        Of the block bootstrap.
    progress
        Called with (folds done, folds in all).

    Raises
    ------
    InputError
        If folds cannot be made of this record, or a fold cannot be trained.
    """
    from medicane import evaluate as verification
    from medicane import experiments, report
    from medicane.evaluate.pooling import pool
    from medicane.folds import storm_folds, year_folds
    from medicane.store import open_store

    refuse_workers(config)
    if storms is not None and by != "storm":
        raise InputError("storms", "must be given by storm only", found=f"by {by}")
    store = open_store(config.data.store, packed=config.train.decode == "device")
    times, labels = store.indexes[names.TIME], store["medicane"].values
    ids = store["storm"].values
    if by == "storm":
        planned = storm_folds(labels, ids, splits=config.splits, n_folds=folds, storms=storms)
    else:
        planned = year_folds(times.to_numpy(), labels, ids, n_folds=folds)
    folder = Path(config.data.store).resolve().parent / f"cross-validation-{by}"
    folder.mkdir(parents=True, exist_ok=True)
    whole = _digest([config.model_dump(mode="json"), _state(store), [f.name for f in planned]])
    earlier = experiments.find_runs(config, tags={"cross_validation": whole})
    parts: list[ScoredForecasts] = []
    done: list[str] = []
    n_trained = 0
    with experiments.training_run(
        config,
        name=f"cross-validation by {by}",
        tags={"cross_validation": whole, "by": by, "label_version": config.label.version},
        resume=earlier[0].run_id if earlier else None,
    ) as parent:
        for number, fold in enumerate(planned):
            if by == "storm" and _tested(str(fold.splits.leave_storm_out), store, parts):
                LOG.info("%s: tested with an earlier storm of the same days", fold.name)
                continue
            scored, trained = _fold(config, store, fold, parent, folder=folder, seed=seed)
            n_trained += trained
            parts.append(scored)
            done.append(fold.name)
            if progress is not None:
                progress(number + 1, len(planned))
        pooled = dataclasses.replace(
            pool(parts, split=SPLIT),
            attributes={"by": by, "folds": done, "label_version": config.label.version},
        )
        scores = verification.verify(
            pooled.times,
            pooled.medicane,
            pooled.storm,
            forecasts=pooled.forecasts,
            train_medicane=labels,
            split=SPLIT,
            kind=pooled.kind,
            seed=seed,
        )
        if by == "storm":
            scores["notes"].append(
                "by storm: the maps are those around the storms, so base rate, false alarms a year "
                "and what depends on them are not those of whole years"
            )
        written = verification.write_scores(folder / "scores.json", scores)
        forecast = verification.write_forecasts(folder / "forecast.nc", pooled)
        table = report.score_table_markdown(scores)
        parent.log_metrics({**headline(scores, SPLIT), "n_folds": len(parts)})
        for file in (written, forecast):
            parent.log_file(file, folder=f"evaluation/{SPLIT}")
        parent.log_text(table + "\n", f"evaluation/{SPLIT}/table.md")
    return CrossValidated(
        run_id=parent.run_id,
        folder=str(folder),
        scores=str(written),
        folds=tuple(done),
        n_trained=n_trained,
        table=table,
    )


def _fold(
    config: Config, store: xr.Dataset, fold: Fold, parent: Run, *, folder: Path, seed: int
) -> tuple[ScoredForecasts, bool]:
    """The forecast of a fold's test split, and whether it had to be trained for it."""
    from medicane import evaluate as verification
    from medicane import experiments
    from medicane.train import remove_checkpoint, train_detector

    mine = config.model_copy(update={"splits": fold.splits})
    recipe = [getattr(mine, part).model_dump(mode="json") for part in (*_RECIPE, "splits")]
    key = _digest([recipe, _state(store), __version__])
    path = folder / f"{fold.name}.nc"
    if path.exists():
        kept = verification.read_forecasts(path)
        if kept.attributes.get("key") == key:
            return kept, False
    tags = {"fold": fold.name, "data_digest": str(store.attrs.get("content_digest", ""))}
    with experiments.training_run(mine, name=fold.name, tags=tags, parent=parent) as run:
        logged: set[int] = set()

        def follow(epoch: int, scores: Mapping[str, float]) -> None:
            run.log_metrics(scores, step=epoch)
            logged.add(epoch)

        checkpoint = folder / f"{fold.name}.checkpoint.npz"
        trained = train_detector(mine, store, checkpoint=checkpoint, on_epoch=follow)
        _hold_apart(mine, store, trained.splits)
        log_training(run, mine, store, trained, logged=logged)
        scored, _ = forecast_split(
            mine, store, trained.model, masks=trained.splits, split="test", baselines=True,
            model_uri=f"runs:/{run.run_id}",
        )  # fmt: skip
        scores = verification.verify(
            scored.times,
            scored.medicane,
            scored.storm,
            forecasts=scored.forecasts,
            train_medicane=store["medicane"].values[trained.splits["train"]],
            kind=scored.kind,
            seed=seed,
        )
        run.log_metrics(headline(scores, "test"))
        scored = dataclasses.replace(
            scored, attributes={**scored.attributes, "key": key, "run_id": run.run_id}
        )
        verification.write_forecasts(path, scored)
        remove_checkpoint(checkpoint)
        run.log_file(path, folder="evaluation/test")
    return verification.read_forecasts(path), True


def _hold_apart(config: Config, store: xr.Dataset, masks: dict[str, np.ndarray]) -> None:
    """Fail where a storm or a sequence of the fold straddles two splits."""
    from medicane.sequences import check_leakage, split_windows

    times = store.indexes[names.TIME]
    check_leakage(
        masks,
        times,
        store["storm"].values,
        gap_hours=config.gap_hours,
        windows={
            name: split_windows(
                times,
                mask,
                length=config.sequences.length,
                step_hours=config.data.step_hours,
                where=f"splits.{name}",
            )
            for name, mask in masks.items()
        },
    )


def _tested(storm: str, store: xr.Dataset, parts: Sequence[ScoredForecasts]) -> bool:
    """Whether all medicane maps of a storm lie in the test splits of earlier folds."""
    mine = (store["storm"].values.astype(object).astype(str) == storm) & (
        store["medicane"].values == names.MEDICANE
    )
    wanted = store.indexes[names.TIME].to_numpy()[mine]
    return bool(parts) and bool(np.isin(wanted, np.concatenate([p.times for p in parts])).all())


def _state(store: xr.Dataset) -> str:
    return str(store.attrs.get("content_digest", ""))


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
