"""From grids to a registered model: prepare and train, and the idealised sea before them."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medicane import __version__, names
from medicane.config import Config, Label, Sea
from medicane.errors import InputError
from medicane.pipeline.cards import MODEL_CARD, card_text
from medicane.pipeline.summaries import Prepared, Progress, Trained

if TYPE_CHECKING:
    import xarray as xr

    from medicane.experiments import Run
    from medicane.normalise import Statistics
    from medicane.store import Revision
    from medicane.train import TrainedDetector

LOG = logging.getLogger(__name__)


def synthesise(
    out: Path, sea: Sea, *, label: Label | None = None, progress: Progress | None = None
) -> Any:
    """Write an idealised sea in the ERA5 dialect; see `medicane.synthetic.build_sea`."""
    from medicane.store.commits import writable_folder
    from medicane.synthetic import build_sea

    writable_folder(out, where="OUT")
    return build_sea(out, sea, label=label or Label(), progress=progress)


def tracking_uri(config: Config) -> str:
    """Where the runs of a configuration are tracked; see `medicane.experiments`."""
    from medicane import experiments

    return experiments.tracking_uri(config)


def prepare(
    config: Config,
    *,
    scheduler: str | None = None,
    revision: Revision | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Open, standardise, label and derive: write or extend the map store, in bounded memory.

    Parameters
    ----------
    scheduler
        Address of a dask scheduler whose workers compute the maps; see `docs/cluster.md`.
    revision
        Which of the stored maps are put right; see `medicane.store.write_store`.

    Raises
    ------
    InputError
        For grids or a catalogue that are not understood, or a cluster that does not do what is
        asked of it; what was stored before is untouched.
    """
    from medicane.store import write_store

    if scheduler is None:
        summary = write_store(config, revision=revision, progress=progress)
    else:
        from medicane.pipeline.prepare_on_workers import on_workers

        compute = on_workers(config, scheduler=scheduler)
        summary = write_store(config, revision=revision, progress=progress, compute=compute)
    return Prepared(**summary._asdict())


def train(
    config: Config,
    *,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    checkpoint: Path | None = None,
    statistics: Statistics | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train on the map store, track the run in MLflow, register the model as ``challenger``.

    Run again after a cut, it goes on after the last whole epoch, in the same MLflow run. Where the
    tracking store is lost on the way, the training goes on, the detector is kept in
    ``training.keras`` beside the checkpoint, and run again it is registered without being trained.

    Of several workers (``train.workers``) this is worker 0; the others call `train_along`.

    Parameters
    ----------
    name
        Of the MLflow run; by default encoder and head.
    tags
        Of the run and the model version, beside the data digest and the label version.
    checkpoint
        File for the state of the training; by default beside the store.
    statistics
        Of the training split, where they are known already.

    Raises
    ------
    InputError
        If there is no map store, its splits hold no medicane, another process is training here,
        tracking does not answer, or the workers are not those of ``TF_CONFIG``.
    WorkerLostError
        If another worker ended or did not come.
    """
    from medicane import experiments
    from medicane.store import open_store
    from medicane.store.commits import sole_writer
    from medicane.train import join, remove_checkpoint

    store = open_store(config.data.store, packed=config.train.decode == "device")
    team = join(config.train.workers)
    if not team.first:
        law = "worker 0 alone registers the model; start the others with 'medicane train'"
        raise InputError("train.workers", law, found=f"worker {team.rank}")
    if checkpoint is None:
        checkpoint = Path(config.data.store).resolve().parent / "training.checkpoint.npz"
    kept = checkpoint.with_name("training.keras")
    tags = {
        **(tags or {}),
        "data_digest": str(store.attrs["content_digest"]),
        "label_version": config.label.version,
        "idealised_sea": str(bool(store.attrs.get("idealised", 0))).lower(),
    }
    name = name or f"{config.model.encoder}-{config.model.rnn}"
    with sole_writer(checkpoint, law="one process at a time trains on a store"):
        training = {**tags, "training": _training_id(config, tags, name, checkpoint)}
        cut = experiments.cut_run(config, tags={"training": training["training"]})
        kept.unlink(missing_ok=True)  # the checkpoint has all of it
        try:
            with experiments.training_run(
                config, name=name, tags=training, resume=None if cut is None else cut.run_id
            ) as run:
                trained = _train_in(
                    run, config, store, tags,
                    kept=kept, checkpoint=checkpoint, statistics=statistics, progress=progress,
                )  # fmt: skip
                remove_checkpoint(checkpoint)
                team.total(0)  # the others leave when the model is registered
        except experiments.TrackingError as error:
            if not kept.exists():
                raise
            raise InputError(
                f"{error}; the trained detector is in {kept}",
                "run again when the tracking store answers: it is registered, not trained again",
            ) from error
        kept.unlink(missing_ok=True)
    return trained


def _training_id(config: Config, tags: Mapping[str, str], name: str, checkpoint: Path) -> str:
    """What a run must agree on to be taken up again: what is trained on which data, and where."""
    told = [config.model_dump(mode="json"), dict(tags), name, __version__]
    where = [platform.node(), str(checkpoint.resolve())]
    return hashlib.sha256(json.dumps([told, where], sort_keys=True).encode()).hexdigest()[:32]


def _train_in(
    run: Run,
    config: Config,
    store: xr.Dataset,
    tags: Mapping[str, str],
    *,
    kept: Path,
    checkpoint: Path,
    statistics: Statistics | None,
    progress: Progress | None,
) -> Trained:
    """Train in an open run; keep the detector in a file, log it, and register it."""
    from medicane import experiments
    from medicane import model as detector
    from medicane.train import train_detector

    logged = run.steps("loss")

    def follow(epoch: int, scores: Any) -> None:
        try:
            run.log_metrics(scores, step=epoch)
            logged.add(epoch)
        except experiments.TrackingError as error:
            LOG.warning("epoch %d is not logged yet, the training goes on: %s", epoch, error)
        if progress is not None:
            progress(epoch, config.train.epochs * config.train.ensemble)

    trained = train_detector(
        config, store, statistics=statistics, checkpoint=checkpoint, on_epoch=follow
    )
    detector.save_detector(trained.model, kept)
    best = log_training(run, config, store, trained, logged=logged)
    chosen = trained.splits["train"]
    first = np.flatnonzero(chosen)[: config.sequences.length]
    example = (
        store["maps"]
        .isel({names.TIME: first})
        .transpose(names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)
    )
    registered = experiments.register_model(
        run,
        kept,
        example=example.values[None],
        tags={
            **tags,
            "label_definition": config.label.model_dump_json(),
            "threshold": str(trained.threshold),
        },
    )
    card = card_text(config, store, trained.model, trained.splits, model=registered)
    run.log_text(card, MODEL_CARD)
    experiments.describe_version(registered, card)
    uri = experiments.tracking_uri(config)
    return Trained(
        run_id=run.run_id,
        model_uri=registered.uri,
        tracking_uri=uri,
        run_page=experiments.run_page(run.run_id, uri=uri),
        best_epoch=trained.best_epoch,
        n_epochs=len(trained.history),
        val_auc_pr=best,
        threshold=trained.threshold,
        temperature=trained.temperature,
        seconds=trained.seconds,
        core_minutes=trained.core_minutes,
        n_parameters=trained.n_parameters,
    )


def worker_number(config: Config) -> int:
    """Which of the workers that train together this process is, from 0.

    Raises
    ------
    InputError
        If ``train.workers`` is more than 1 and ``TF_CONFIG`` does not name so many.
    """
    if config.train.workers == 1:
        return 0
    from medicane.train.workers import named_workers

    return named_workers(config.train.workers)[1]


def refuse_workers(config: Config, *, where: str = "train.workers") -> None:
    """Refuse to train with several workers where there is more to do than `train` does.

    Raises
    ------
    InputError
        If ``train.workers`` is more than 1.
    """
    if config.train.workers > 1:
        law = "must be 1: only 'medicane train' is shared among workers"
        raise InputError(where, law, found=config.train.workers)


def train_along(config: Config) -> None:
    """Train as a worker other than the first, which tracks, registers and keeps the checkpoint.

    Raises
    ------
    InputError
        As `train` does, and if configuration or store are not those of worker 0.
    WorkerLostError
        If another worker ended or did not come.
    """
    from medicane.store import open_store
    from medicane.train import join, train_detector

    store = open_store(config.data.store, packed=config.train.decode == "device")
    team = join(config.train.workers)
    train_detector(config, store)
    team.total(0)


def log_training(
    run: Run,
    config: Config,
    store: xr.Dataset,
    trained: TrainedDetector,
    *,
    logged: Collection[int] = (),
) -> float:
    """Log what a training gave: its history, dataset, statistics and curves.

    Parameters
    ----------
    run
        The open run.
    logged
        Epochs whose scores it has already.

    Returns
    -------
    float
        The best AUC-PR on validation.
    """
    from medicane import experiments, report

    # A training that was resumed has epochs of an earlier, broken run: this one tells them all.
    for row in trained.history.to_dict("records"):
        if row["epoch"] not in logged:
            run.log_metrics({str(k): v for k, v in row.items()}, step=int(row["epoch"]))
    chosen = trained.splits["train"]
    experiments.log_dataset(
        store=str(config.data.store),
        digest=str(store.attrs["content_digest"]),
        times=pd.DatetimeIndex(store.indexes[names.TIME][chosen]),
        labels=store["medicane"].values[chosen],
    )
    best = float(trained.history.set_index("epoch")["val_auc_pr"].max())
    run.log_metrics(
        {
            "best_epoch": trained.best_epoch,
            "best_val_auc_pr": best,
            "threshold": trained.threshold,
            "temperature": trained.temperature,
            "training_seconds": trained.seconds,
            "training_core_minutes": trained.core_minutes,
            "n_parameters": trained.n_parameters,
            **{f"n_maps_{name}": int(mask.sum()) for name, mask in trained.splits.items()},
        }
    )
    run.log_text(config.label.model_dump_json(indent=2), "label_definition.json")
    run.log_text(trained.history.to_csv(index=False), "training/history.csv")
    run.log_text(
        json.dumps(trained.statistics.to_dict(), indent=2), "training/channel_statistics.json"
    )
    with report.figure_folder() as folder:
        report.training_curves(trained.history, folder / "training_curves.png")
        run.log_file(folder, folder="figures")
    return best
