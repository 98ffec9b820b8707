"""A model on a split of its map store: forecasts, scores, report, all logged to its run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.config import Config
from medicane.errors import InputError
from medicane.pipeline.cards import MODEL_CARD, card_text
from medicane.pipeline.detection import file_digest
from medicane.pipeline.summaries import Evaluated

if TYPE_CHECKING:
    import keras

    from medicane.evaluate import ScoredForecasts
    from medicane.predict import Encode

LOG = logging.getLogger(__name__)

MODEL_NAME = "detector"  # the trained model's row in scores.json

Split = Literal["train", "validation", "test"]


def evaluate(
    config: Config,
    *,
    model: str | None = None,
    split: Split = "test",
    out: Path | None = None,
    seed: int = 0,
) -> Evaluated:
    """Score a model on a split of its map store, against the physical rule and climatology.

    Parameters
    ----------
    model
        A model URI or ``.keras`` file; by default the registered ``challenger``.
    out
        Folder of ``scores.json``, ``report.html``, ``forecast.nc``, ``figures/`` and, of the test
        split, ``model_card.md``; by default the store's own folder.

    Raises
    ------
    InputError
        If the model was trained on other data than the store holds, or on other channels.
    """
    from medicane import evaluate as verification
    from medicane import experiments, report, runtime
    from medicane import model as detector
    from medicane.sequences import split_times
    from medicane.store import maps_where, open_store
    from medicane.store.commits import writable_folder

    out = Path(config.data.store).resolve().parent if out is None else out
    writable_folder(out, where="--out")
    store = open_store(config.data.store)
    file = registered_file(config, model)
    network = detector.load_detector(file.path)
    facts = detector.facts_of(network)
    masks = split_times(
        store.indexes[names.TIME], store["medicane"].values, store["storm"].values, config=config
    )
    chosen = maps_where(store, masks[split])
    encode = None
    if config.detect.precision != "float32":
        encode = runtime.open_encoder(
            detector.encoder_of(network),
            digest=file_digest(file.path),
            precision=config.detect.precision,
        )
    scored, predicted = forecast_split(
        config,
        store,
        network,
        masks=masks,
        split=split,
        baselines=True,
        encode=encode,
        model_uri=file.pinned,
    )
    scores = verification.verify(
        scored.times,
        scored.medicane,
        scored.storm,
        forecasts=scored.forecasts,
        train_medicane=store["medicane"].values[masks["train"]],
        split=split,
        kind=scored.kind,
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
        "Threshold": f"{scores['threshold']:.4g}",
        "Temperature": f"{facts.get('temperature', 1.0):.3g}",
        "Mode": f"{config.detect.mode}, {config.detect.precision}",
        "Software": f"medicane {facts['software_version']}",
    }
    page = report.write_report(
        out / "report.html",
        scores=scores,
        store=chosen,
        forecasts=scored.forecasts,
        facts=facts_shown,
        idealised=bool(store.attrs.get("idealised", 0)),
    )
    # The logits too, and whatever else the model says of each map.
    more = {
        str(n): predicted[n].values for n in predicted if n not in ("probability", "n_sequences")
    }
    verification.write_forecasts(out / "forecast.nc", scored, more=more)
    if run is not None:
        run.log_metrics(headline(scores, split))
        for path in (out / "scores.json", page, out / "forecast.nc"):
            run.log_file(path, folder=f"evaluation/{split}")
        run.log_file(out / "figures", folder=f"evaluation/{split}/figures")
    if split == "test":  # scores of another split are no promise
        card = card_text(
            config, store, network, masks, model=file.uri, run_id=file.run_id, scores=scores
        )
        (out / MODEL_CARD).write_text(card, encoding="utf-8")
        if run is not None:
            run.log_text(card, MODEL_CARD)
            for version in experiments.versions_of(run.run_id):
                experiments.describe_version(version, card)
    return Evaluated(
        scores=str(out / "scores.json"),
        report=str(page),
        split=split,
        run_id=file.run_id,
        table=report.score_table_markdown(scores),
    )


def forecast_split(
    config: Config,
    store: xr.Dataset,
    network: keras.Model,
    *,
    masks: Mapping[str, NDArray[np.bool_]],
    split: str,
    baselines: bool,
    encode: Encode | None = None,
    model_uri: str = "",
) -> tuple[ScoredForecasts, xr.Dataset]:
    """What a model says of the maps of a split, and the labels to score it with.

    Parameters
    ----------
    store
        The map store.
    network
        A loaded detector.
    masks
        From `split_times`.
    split
        The mask that is predicted.
    baselines
        Add the physical rule and climatology, fitted on the other two splits.
    encode
        What runs the encoder; by default Keras.
    model_uri
        Told by the file.

    Returns
    -------
    (ScoredForecasts, Dataset)
        The detector first, and what `predict` returned.

    Raises
    ------
    InputError
        If the model needs other channels than the store holds.
    """
    from medicane import evaluate as verification
    from medicane import model as detector
    from medicane.predict import predict
    from medicane.store import maps_where

    facts = detector.facts_of(network)
    chosen = maps_where(store, masks[split])
    predicted = predict(
        network, chosen["maps"], mode=config.detect.mode, encode=encode, where=config.data.store
    )
    located = "low_latitude" in chosen
    forecasts = {
        MODEL_NAME: verification.Forecast(
            probability=predicted["probability"].values,
            threshold=float(config.detect.threshold or facts["threshold"]),
            centre_latitude=chosen["low_latitude"].values if located else None,
            centre_longitude=chosen["low_longitude"].values if located else None,
        )
    }
    if baselines:
        forecasts |= verification.baseline_forecasts(
            store,
            train=masks["train"],
            validation=masks["validation"],
            test=masks[split],
            definition=config.label,
        )
    labels = store["medicane"].values[masks["train"]]
    labels = labels[labels != names.UNKNOWN]
    scored = verification.ScoredForecasts(
        times=chosen.indexes[names.TIME].to_numpy(),
        medicane=chosen["medicane"].values,
        storm=chosen["storm"].values.astype(object).astype(str),
        forecasts=forecasts,
        split=split,
        train_rate=float((labels == names.MEDICANE).mean()) if labels.size else float("nan"),
        kind=kinds_of_maps(config, chosen),
        attributes={
            "model_uri": model_uri,
            "mode": config.detect.mode,
            "precision": config.detect.precision,
            "step_hours": config.data.step_hours,
            "label_version": config.label.version,
            "data_digest": str(store.attrs.get("content_digest", "")),
            "idealised": np.int8(bool(store.attrs.get("idealised", 0))),
        },
    )
    return scored, predicted


def registered_file(config: Config, model: str | None) -> Any:
    """The `.keras` file of a model URI; by default the registered challenger's."""
    from medicane import experiments

    uri = model or f"models:/{experiments.REGISTERED_NAME}@{experiments.CHALLENGER}"
    return experiments.model_file(uri, tracking=experiments.tracking_uri(config))


def headline(scores: dict[str, Any], split: str) -> dict[str, float]:
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
        for kind, told in entry["hard_negatives"].get("kinds", {}).items():
            if told["false_alarm_rate"] is not None:
                key = f"{prefix}_false_alarm_rate_{_metric_name(kind)}"
                flat[key] = told["false_alarm_rate"]
    return flat


def _metric_name(kind: str) -> str:
    """A kind of the user's own in the letters that a metric may have."""
    return "".join(letter if letter.isalnum() or letter in "-_. /" else "_" for letter in kind)


def kinds_of_maps(config: Config, chosen: xr.Dataset) -> NDArray[np.str_] | None:
    """Kinds of storm by the catalogue as it is now; None, and told, where it is gone."""
    from medicane.labels import configured_catalogue, kind_of_times

    try:
        catalogue = configured_catalogue(config.data)
    except InputError as error:
        LOG.warning("no kinds of hard negatives: %s", error)
        return None
    if catalogue is None:
        return None
    return kind_of_times(chosen.indexes[names.TIME], catalogue, domain=config.data.domain)
