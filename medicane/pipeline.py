"""The way of the data, one function a step: prepare, train, evaluate, detect, and the demo of all.

The command line and the Prefect flows call the same functions; what they exchange are paths, URIs
and the small summaries below, never datasets.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
import yaml
from pydantic import BaseModel, ConfigDict

from medicane import names
from medicane.config import ChannelFormula, Config, Domain, Label, Sea, load_config
from medicane.errors import InputError

LOG = logging.getLogger(__name__)

#: Called with (done, in all).
Progress = Callable[[int, int], None]

#: The recipes that travel with a clone.
RECIPES = Path(__file__).resolve().parent.parent / "config"

MODEL_NAME = "detector"  # the trained model's row in scores.json


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


class Evaluated(Summary):
    """Scores after `evaluate`."""

    scores: str
    report: str
    split: str
    run_id: str | None
    table: str


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

        def follow(epoch: int, scores: Any) -> None:
            run.log_metrics(scores, step=epoch)
            if progress is not None:
                progress(epoch, config.train.epochs)

        trained = train_detector(config, store, checkpoint=checkpoint, on_epoch=follow)
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


def detect(
    inputs: Sequence[str | Path],
    *,
    model: str,
    out: str | Path,
    mode: Literal["causal", "fused"] = "causal",
    threshold: float | None = None,
    allow_short: bool = False,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
    tracking: str | None = None,
    progress: Progress | None = None,
) -> Detected:
    """Label new grids; a second call with more recent grids adds only the new times.

    Parameters
    ----------
    inputs
        Files, globs or stores, merged on exactly equal coordinates.
    model
        A model URI or ``.keras`` file. It says the area, spacing, step, channels and threshold.
    out
        Folder of ``detections.nc``, ``events.csv`` and ``tracks.csv``.
    mode
        ``causal`` or ``fused``; see `medicane.predict`.
    threshold
        Instead of the model's own.
    allow_short
        Label periods shorter than one sequence with the history they have.
    units, select
        As ``data.units`` and ``data.select`` of the configuration.
    tracking
        Tracking URI for ``models:/`` and ``runs:/``.

    Raises
    ------
    InputError
        If the grids are not understood or lack what the model needs; `out` is untouched.
    """
    from medicane import channels, experiments, predict
    from medicane import model as detector
    from medicane.grids import open_grids
    from medicane.sequences import at_steps
    from medicane.standardise import standardise
    from medicane.store.commits import writable_folder

    if threshold is not None and not 0 < threshold < 1:
        raise InputError("--threshold", "must lie between 0 and 1", found=threshold)
    folder = writable_folder(out, where="--out")
    file = experiments.model_file(model, tracking=tracking)
    network = detector.load_detector(file.path)
    facts = detector.facts_of(network)
    step_hours, length = int(facts["step_hours"]), int(facts["length"])
    attributes = {
        "model_uri": file.uri,
        "model_version": file.version,
        "model_digest": _digest(file.path),
        "threshold": float(facts["threshold"] if threshold is None else threshold),
        "temperature": float(facts.get("temperature", 1.0)),
        "mode": mode,
        "step_hours": step_hours,
        "store_digest": facts["data_digest"],
        "label_definition": Label(**facts["label"]).model_dump_json(),
        "idealised_training_data": int(facts["idealised"]),
    }
    where = str(inputs[0]) + (f" and {len(inputs) - 1} more" if len(inputs) > 1 else "")
    formulas = tuple(
        ChannelFormula(**item) if isinstance(item, dict) else item for item in facts["formulas"]
    )
    raw = open_grids(inputs, select=select)
    standard = standardise(
        raw,
        domain=Domain(**facts["domain"]),
        degrees=float(facts["degrees"]),
        units=units or {},
        select=select or {},
        where=where,
        variables=channels.wanted_variables(raw, formulas),
    )
    maps = channels.derive(standard, formulas)
    detector.check_maps(
        network,
        channels=[str(name) for name in maps[names.CHANNEL].values],
        shape=(maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]),
        where=where,
    )
    before, history, read = None, None, predict.detections_digest(folder)
    times = maps.indexes[names.TIME]
    fresh = np.arange(len(times))
    if read is not None:
        before, history = predict.read_detections(folder / "detections.nc")
        predict.same_model(
            before,
            attributes,
            keys=("model_digest", "threshold", "mode"),
            where=folder / "detections.nc",
        )
        last = before.indexes[names.TIME][-1]
        if type(last) is not type(times[0]):
            raise InputError(where, "must be of the calendar of the detections", found=times[0])
        fresh = np.flatnonzero(times > last)
    on_step = fresh[
        at_steps(
            times[fresh],
            step_hours=step_hours,
            after=None if before is None else before[names.TIME].values[-1],
            where=where,
            holder="the model needs",
        )
    ]
    if on_step.size:
        standard, maps = standard.isel({names.TIME: on_step}), maps.isel({names.TIME: on_step})
        series = maps if history is None else _after(history, maps, step_hours, where=where)
        predicted = predict.predict(
            network,
            series,
            mode=mode,
            allow_short=allow_short,
            # A series that has begun goes on: a map that comes alone waits for its sequence.
            allow_none=before is not None,
            progress=progress,
            where=where,
        )
        lows, carried = _located(standard, history, Label(**facts["label"]))
        if before is not None:
            predicted = predict.continued(
                before, predicted, length=length, step_hours=step_hours, mode=mode
            )
            lows = xr.concat([_lows_of(before), lows], dim=names.TIME, join="exact")
        before = predict.label_maps(
            predicted,
            threshold=attributes["threshold"],
            lows=lows,
            attributes={**attributes, "source": ", ".join(map(str, inputs))},
        )
        kept = series.isel({names.TIME: slice(-(length - 1), None)}).load()
        kept.attrs["last_lows"] = carried
        predict.write_detections(
            folder, before, step_hours=step_hours, history=kept, replaces=read or ""
        )
        _warn_of_a_smaller_area(maps, Domain(**facts["domain"]), where=where)
    else:
        LOG.info("%s: no map is newer than the last detection", where)
    assert before is not None  # without detections, `at_steps` finds a map or raises
    table = predict.write_events(folder, before, step_hours=step_hours)
    return Detected(
        detections=str(folder / "detections.nc"),
        events=str(folder / "events.csv"),
        n_maps=before.sizes[names.TIME],
        n_new=on_step.size,
        n_skipped=len(times) - fresh.size,
        n_left_out=fresh.size - on_step.size,
        n_unlabelled=int((before["medicane"] == names.UNKNOWN).sum()),
        n_events=len(table),
        model_uri=file.uri,
    )


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


def probability_strip(path: Path, *, days: int = 60) -> str:
    """The last days of ``detections.nc`` as text: one mark a day, and the events among them.

    Each mark is the highest probability of its day, from ``▁`` (0) to ``█`` (1), ``·`` where there
    is none.
    """
    from medicane.predict import events, read_detections

    detections, _ = read_detections(path)
    daily = detections["probability"].to_series().resample("1D").max()[-days:]
    marks = "".join("·" if np.isnan(p) else "▁▂▃▄▅▆▇█"[min(int(p * 8), 7)] for p in daily)
    lines = [
        f"`{marks}`",
        "",
        f"{daily.index[0]:%Y-%m-%d} to {daily.index[-1]:%Y-%m-%d}, highest probability a day; "
        f"threshold {detections.attrs['threshold']:.3g}",
        "",
    ]
    table = events(detections, step_hours=int(detections.attrs["step_hours"]))
    if table.empty:
        return "\n".join([*lines, "No event."])
    lines += ["| start | end | maps | highest | at |", "|---|---|---|---|---|"]
    lines += [
        f"| {e.start} | {e.end} | {e.n_maps} | {e.max_probability:.2f} | {e.time_of_max} |"
        for e in table.tail(20).itertuples()
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Steps:
    """The steps of the demo. The flows put their own in: the same functions under Prefect."""

    prepare: Callable[[Path], Prepared] = lambda path: prepare(load_config(path))
    train: Callable[[Path], Trained] = lambda path: train(load_config(path))
    evaluate: Callable[[Path], Evaluated] = lambda path: evaluate(load_config(path))
    detect: Callable[[Path, list[str], str, Path], Detected] = lambda path, inputs, model, out: (
        detect(inputs, model=model, out=out, tracking=tracking_uri(load_config(path)))
    )


class Demonstrated(Summary):
    """What the demo made, and how long each step took."""

    config: str
    prepared: Prepared
    trained: Trained
    evaluated: Evaluated
    detected: Detected
    seconds: dict[str, float]


def demo(
    out: Path,
    *,
    seed: int = 0,
    steps: Steps | None = None,
    announce: Callable[[str], None] | None = None,
) -> Demonstrated:
    """The whole way on an idealised sea: synth → prepare → train → evaluate → detect.

    Parameters
    ----------
    out
        A folder of its own; one of an earlier demo is replaced.
    seed
        Seed of the sea and of the training.
    steps
        The steps to go through; by default the plain functions.
    announce
        Called with the name of each step as it begins.

    Raises
    ------
    InputError
        If `out` holds anything that a demo has not made.
    """
    steps, announce = steps or Steps(), announce or (lambda name: None)
    _empty_demo_folder(out)
    recipe = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    recipe["sea"]["seed"] = recipe["train"]["seed"] = seed
    config_file = out / "config.yaml"
    config_file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    config = load_config(config_file)
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        announce(name)
        started = time.monotonic()
        result = step()
        seconds[name] = round(time.monotonic() - started, 1)
        return result

    timed("synth", lambda: synthesise(out / "sea", config.sea, label=config.label))
    prepared = timed("prepare", lambda: steps.prepare(config_file))
    trained = timed("train", lambda: steps.train(config_file))
    evaluated = timed("evaluate", lambda: steps.evaluate(config_file))
    unseen = str(out / "sea" / "grids" / f"era5_{_unseen_year(config.sea)}-*.nc")
    detected = timed(
        "detect",
        lambda: steps.detect(config_file, [unseen], trained.model_uri, out / "detections"),
    )
    return Demonstrated(
        config=str(config_file),
        prepared=prepared,
        trained=trained,
        evaluated=evaluated,
        detected=detected,
        seconds=seconds,
    )


# --------------------------------------------------------------------------------------------------

_DEMO_MARK = ".medicane-demo"


def _empty_demo_folder(out: Path) -> None:
    from medicane.store.commits import writable_folder

    writable_folder(out, where="--out")
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / _DEMO_MARK).exists()):
            raise InputError(
                f"--out {out}",
                "must be a new folder or one of an earlier demo",
                found="other files",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / _DEMO_MARK).touch()


def _unseen_year(sea: Sea) -> int:
    """The last, partial year of the demo's sea: its configuration does not name it."""
    return sea.start_year + int(np.ceil(sea.years)) - 1


def _model_file(config: Config, model: str | None) -> Any:
    from medicane import experiments

    uri = model or f"models:/{experiments.REGISTERED_NAME}@{experiments.CHALLENGER}"
    return experiments.model_file(uri, tracking=experiments.tracking_uri(config))


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _after(
    history: xr.DataArray, maps: xr.DataArray, step_hours: int, *, where: str
) -> xr.DataArray:
    """The maps that lead up to the new ones without a gap, then those, on exactly one grid."""
    from medicane.sequences import contiguous_periods

    for axis in (names.LATITUDE, names.LONGITUDE):
        if not np.array_equal(history[axis].values, maps[axis].values):
            raise InputError(
                f"{where}: {axis}",
                "must equal that of the detections that are there "
                f"({history[axis].values[0]:g} to {history[axis].values[-1]:g})",
                found=f"{maps[axis].values[0]:g} to {maps[axis].values[-1]:g}",
            )
    bare = maps.drop_vars([c for c in maps.coords if c not in maps.dims])
    series = xr.concat(
        [history.astype(np.float32), bare],
        dim=names.TIME,
        join="exact",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
    known = history.sizes[names.TIME]
    periods = contiguous_periods(series.indexes[names.TIME], step_hours=step_hours)
    start = next(p.start for p in periods if p.stop > known)
    return series.isel({names.TIME: slice(start, None)})


def _located(
    standard: xr.Dataset, history: xr.DataArray | None, definition: Label
) -> tuple[xr.Dataset, str]:
    """The low of each new map, and what carries the motion of the lows on to the next call."""
    from medicane.phase_space.lows import lows_of_dataset
    from medicane.standardise import land_sea_mask
    from medicane.store.schema import lows_from_json, lows_to_json

    at = standard[names.LATITUDE].values, standard[names.LONGITUDE].values
    # As in the store: the data's own mask if they have one.
    mask = standard["lsm"] if "lsm" in standard else land_sea_mask(*at)
    if names.TIME in mask.dims:
        mask = mask.isel({names.TIME: 0})
    datetimes = isinstance(standard.indexes[names.TIME], pd.DatetimeIndex)
    previous = None
    if history is not None and datetimes:
        previous = lows_from_json(str(history.attrs.get("last_lows", "")))
    lows, last = lows_of_dataset(
        standard,
        definition=definition,
        sea=mask.transpose(names.LATITUDE, names.LONGITUDE).values < 0.5,
        previous=previous,
    )
    return lows, lows_to_json(last) if datetimes else ""


def _lows_of(detections: xr.Dataset) -> xr.Dataset:
    """The centres of detections under the names that `medicane.predict.label_maps` takes."""
    return xr.Dataset(
        {
            f"low_{name}": (names.TIME, detections[f"centre_{name}"].values)
            for name in (names.LATITUDE, names.LONGITUDE)
        },
        coords={names.TIME: detections[names.TIME].values},
    )


def _warn_of_a_smaller_area(maps: xr.DataArray, domain: Domain, *, where: str) -> None:
    """Maps may cover a part of the model's area; what the model was trained on was all of it."""
    latitude, longitude = maps[names.LATITUDE].values, maps[names.LONGITUDE].values
    has = (latitude[-1], latitude[0], longitude[0], longitude[-1])
    wants = (domain.south, domain.north, domain.west, domain.east)
    if np.abs(np.subtract(has, wants)).max() > 2 * abs(latitude[0] - latitude[1]):
        LOG.warning(
            "%s: the maps cover %g to %g N, %g to %g E, the model's area is %g to %g N, %g to %g E:"
            " its skill is not known for a part of it",
            where,
            *has,
            *wants,
        )


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
