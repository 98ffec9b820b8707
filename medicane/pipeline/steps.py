"""From grids to a scored model: prepare, train and evaluate, and the idealised sea before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from medicane import names
from medicane.config import Config, Label, Sea
from medicane.pipeline.summaries import Evaluated, Prepared, Progress, Trained

MODEL_NAME = "detector"  # the trained model's row in scores.json


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


def prepare(config: Config, *, progress: Progress | None = None) -> Prepared:
    """Open, standardise, label and derive: write or extend the map store, in bounded memory.

    Raises
    ------
    InputError
        For grids or a catalogue that are not understood; what was stored before is untouched.
    """
    from medicane.store import write_store

    summary = write_store(config, progress=progress)
    return Prepared(**summary._asdict())


def train(config: Config, *, progress: Progress | None = None) -> Trained:
    """Train on the map store, track the run in MLflow, register the model as ``challenger``.

    Raises
    ------
    InputError
        If there is no map store, its splits hold no medicane, or tracking does not answer.
    """
    from medicane import experiments, report
    from medicane.store import open_store
    from medicane.train import train_detector

    store = open_store(config.data.store)
    digest = str(store.attrs["content_digest"])
    checkpoint = Path(config.data.store).resolve().parent / "training.checkpoint.npz"
    tags = {
        "data_digest": digest,
        "label_version": config.label.version,
        "idealised_sea": str(bool(store.attrs.get("idealised", 0))).lower(),
    }
    with experiments.training_run(
        config, name=f"{config.model.encoder}-{config.model.rnn}", tags=tags
    ) as run:
        logged = set()

        def follow(epoch: int, scores: Any) -> None:
            run.log_metrics(scores, step=epoch)
            logged.add(epoch)
            if progress is not None:
                progress(epoch, config.train.epochs)

        trained = train_detector(config, store, checkpoint=checkpoint, on_epoch=follow)
        # A training that was resumed has epochs of an earlier, broken run: this one tells them all.
        for row in trained.history.to_dict("records"):
            if row["epoch"] not in logged:
                run.log_metrics({str(k): v for k, v in row.items()}, step=int(row["epoch"]))
        chosen = trained.splits["train"]
        experiments.log_dataset(
            store=str(config.data.store),
            digest=digest,
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
        first = np.flatnonzero(chosen)[: config.sequences.length]
        example = (
            store["maps"]
            .isel({names.TIME: first})
            .transpose(names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)
        )
        registered = experiments.register_model(
            run,
            trained.model,
            example=example.values[None],
            tags={
                **tags,
                "label_definition": config.label.model_dump_json(),
                "threshold": str(trained.threshold),
            },
        )
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
        )


def evaluate(
    config: Config,
    *,
    model: str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    out: Path | None = None,
    seed: int = 0,
) -> Evaluated:
    """Score a model on a split of its map store, against the physical rule and climatology.

    Parameters
    ----------
    model
        A model URI or ``.keras`` file; by default the registered ``challenger``.
    out
        Folder of ``scores.json``, ``report.html``, ``forecast.nc`` and ``figures/``; by default the
        store's own folder.

    Raises
    ------
    InputError
        If the model was trained on other data than the store holds, or on other channels.
    """
    from medicane import evaluate as verification
    from medicane import experiments, report
    from medicane import model as detector
    from medicane.predict import predict
    from medicane.sequences import split_times
    from medicane.store import open_store
    from medicane.store.commits import writable_folder

    out = Path(config.data.store).resolve().parent if out is None else out
    writable_folder(out, where="--out")
    store = open_store(config.data.store)
    file = _model_file(config, model)
    network = detector.load_detector(file.path)
    facts = detector.facts_of(network)
    masks = split_times(
        store.indexes[names.TIME], store["medicane"].values, store["storm"].values, config=config
    )
    chosen = store.isel({names.TIME: np.flatnonzero(masks[split])})
    predicted = predict(network, chosen["maps"], mode=config.detect.mode, where=config.data.store)
    threshold = float(config.detect.threshold or facts["threshold"])
    located = "low_latitude" in chosen
    forecasts = {
        MODEL_NAME: verification.Forecast(
            probability=predicted["probability"].values,
            threshold=threshold,
            centre_latitude=chosen["low_latitude"].values if located else None,
            centre_longitude=chosen["low_longitude"].values if located else None,
        ),
        **verification.baseline_forecasts(
            store,
            train=masks["train"],
            validation=masks["validation"],
            test=masks[split],
            definition=config.label,
        ),
    }
    scores = verification.verify(
        chosen.indexes[names.TIME],
        chosen["medicane"].values,
        chosen["storm"].values,
        forecasts=forecasts,
        train_medicane=store["medicane"].values[masks["train"]],
        split=split,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    verification.write_scores(out / "scores.json", scores)
    run = None if file.run_id is None else experiments.reopened_run(file.run_id)
    facts_shown = {
        "Model": file.uri,
        "MLflow run": file.run_id or "none",
        "Map store": config.data.store,
        "Data digest": str(store.attrs["content_digest"]),
        "Label definition": config.label.version,
        "Threshold": f"{threshold:.4g}",
        "Temperature": f"{facts.get('temperature', 1.0):.3g}",
        "Mode": config.detect.mode,
        "Software": f"medicane {facts['software_version']}",
    }
    page = report.write_report(
        out / "report.html",
        scores=scores,
        store=chosen,
        forecasts=forecasts,
        facts=facts_shown,
        idealised=bool(store.attrs.get("idealised", 0)),
    )
    _write_forecast(out / "forecast.nc", chosen, predicted, forecasts)
    if run is not None:
        run.log_metrics(_headline(scores, split))
        for path in (out / "scores.json", page, out / "forecast.nc"):
            run.log_file(path, folder=f"evaluation/{split}")
        run.log_file(out / "figures", folder=f"evaluation/{split}/figures")
    return Evaluated(
        scores=str(out / "scores.json"),
        report=str(page),
        split=split,
        run_id=file.run_id,
        table=report.score_table_markdown(scores),
    )


# --------------------------------------------------------------------------------------------------


def _model_file(config: Config, model: str | None) -> Any:
    from medicane import experiments

    uri = model or f"models:/{experiments.REGISTERED_NAME}@{experiments.CHALLENGER}"
    return experiments.model_file(uri, tracking=experiments.tracking_uri(config))


def _headline(scores: dict[str, Any], split: str) -> dict[str, float]:
    """Scores of all models as flat metrics: ``test_csi``, ``test_phase_space_csi`` …"""
    flat: dict[str, float] = {}
    for name, entry in scores["models"].items():
        prefix = split if name == MODEL_NAME else f"{split}_{name}"
        for score, told in entry.items():
            if isinstance(told, dict) and isinstance(told.get("value"), (int, float)):
                flat[f"{prefix}_{score}"] = told["value"]
        for score, told in entry.get("events", {}).items():
            value = told.get("value") if isinstance(told, dict) else told
            if isinstance(value, (int, float)):
                flat[f"{prefix}_events_{score}"] = value
    return flat


def _write_forecast(
    path: Path, chosen: xr.Dataset, predicted: xr.Dataset, forecasts: dict[str, Any]
) -> None:
    """The probabilities behind the scores, so that runs can be compared map by map."""
    data = {
        MODEL_NAME: predicted["probability"],
        "logit": predicted["logit"],
        "medicane": chosen["medicane"],
        "storm": chosen["storm"].astype(str),
        **{
            name: (names.TIME, np.asarray(forecast.probability, dtype=np.float32))
            for name, forecast in forecasts.items()
            if name != MODEL_NAME
        },
    }
    partial = path.with_name(f".{path.name}.partial")
    xr.Dataset(data, coords={names.TIME: chosen[names.TIME]}).to_netcdf(partial)
    partial.replace(path)
