"""The commands along the way of the data, from the idealised sea to detections; and the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from medicane.cli.terminal import ConfigFile, app, bar, end_at_once, say, start_keras, tracked_at
from medicane.errors import InputError

if TYPE_CHECKING:
    from medicane.pipeline import Demonstrated, Detected, Steps


@app.command
def demo(*, out: Path = Path("demo"), seed: int = 0) -> None:
    """The whole way on an idealised sea: synth, prepare, train, evaluate, detect.

    Needs no network and no server.

    Example: medicane demo --out demo --seed 0

    Parameters
    ----------
    out
        A folder of its own; one of an earlier demo is replaced.
    seed
        Seed of the sea and of the training.
    """
    run_demo(out, seed=seed)


@app.command
def synth(
    out: Path,
    *,
    years: float = 3.0,
    step_hours: int = 6,
    seed: int = 0,
    base_rate: float = 0.008,
    grid_degrees: float = 0.5,
) -> None:
    """Write an idealised sea: monthly files in the ERA5 NetCDF dialect, storms.csv and truth.nc.

    Example: medicane synth sea --years 2 --base-rate 0.02

    Parameters
    ----------
    out
        Folder of grids/, storms.csv and truth.nc.
    years
        Length of the record.
    step_hours
        Hours from one map to the next.
    seed
        The same seed writes the same bytes.
    base_rate
        Share of the maps that show a medicane.
    grid_degrees
        Grid spacing in degrees.
    """
    from pydantic import ValidationError

    from medicane import pipeline
    from medicane.config import Sea

    values = {
        "years": years,
        "step_hours": step_hours,
        "seed": seed,
        "base_rate": base_rate,
        "degrees": grid_degrees,
    }
    try:
        sea = Sea.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        option = {"degrees": "grid-degrees"}.get(str(fault["loc"][0]), str(fault["loc"][0]))
        raise InputError(
            f"--{option.replace('_', '-')}", fault["msg"], found=fault["input"]
        ) from None
    with bar("synth") as progress:
        files = pipeline.synthesise(out, sea, progress=progress)
    say(f"grids      {files.grids_glob}\nstorms     {files.catalogue}\ntruth      {files.truth}")


@app.command
def prepare(*, config: ConfigFile, scheduler: str | None = None) -> None:
    """Open, standardise, label and derive: write or extend the map store, in bounded memory.

    Resumes after a kill; a second run appends what is new.

    Example: medicane prepare --config config/era5.yaml

    Parameters
    ----------
    config
        The configuration, a YAML file.
    scheduler
        Address of a dask scheduler whose workers compute the maps: tcp://10.0.0.1:8786
    """
    from medicane import pipeline
    from medicane.config import load_config

    with bar("prepare") as progress:
        done = pipeline.prepare(load_config(config), scheduler=scheduler, progress=progress)
    say(
        f"store      {done.store}\n"
        f"maps       {done.n_maps} ({done.n_new} new{_between(done.n_left_out)}), "
        f"{done.first} to {done.last}\n"
        f"medicane   {done.n_medicane} maps, {done.n_medicane / max(done.n_maps, 1):.2%}\n"
        f"digest     {done.digest}"
    )


@app.command
def train(*, config: ConfigFile) -> None:
    """Train on the map store, track the run in MLflow, register the model as `challenger`.

    Example: medicane train --config config/era5.yaml

    Parameters
    ----------
    config
        The configuration, a YAML file.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    number = pipeline.worker_number(settings)
    if settings.train.workers == 1:
        start_keras()
    else:  # they meet before any device is looked for
        end_at_once()
    if number > 0:
        pipeline.train_along(settings)
        say(f"trained    as worker {number}; worker 0 has registered the model")
        return
    with bar("train") as progress:
        done = pipeline.train(settings, progress=progress)
    say(
        f"model      {done.model_uri} (alias challenger)\n"
        f"run        {done.run_page or done.run_id}\n"
        f"tracking   {done.tracking_uri}\n"
        f"epochs     {done.n_epochs}, the best is {done.best_epoch}: "
        f"validation AUC-PR {done.val_auc_pr:.3f}\n"
        f"threshold  {done.threshold:.4g}, temperature {done.temperature:.3g}"
    )


@app.command
def evaluate(
    *,
    config: ConfigFile,
    model: str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    out: Path | None = None,
) -> None:
    """Score a model by map and by event, with intervals, against the baselines.

    Example: medicane evaluate --config config/era5.yaml --model models:/medicane@challenger

    Parameters
    ----------
    config
        The configuration, a YAML file.
    model
        A model URI or .keras file; by default the registered challenger.
    split
        The split that is scored.
    out
        Folder of scores.json, report.html and figures/; by default that of the store.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    start_keras()
    done = pipeline.evaluate(settings, model=model, split=split, out=out)
    say(f"{done.table}\n\nscores     {done.scores}\nreport     {done.report}")


@app.command
def detect(
    *inputs: str,
    model: str,
    out: str,
    mode: Literal["causal", "fused"] = "causal",
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    threshold: float | None = None,
    allow_short: Annotated[bool, Parameter(negative=())] = False,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
    tracking_uri: str | None = None,
    scheduler: str | None = None,
) -> None:
    """Label new grids: detections.nc and events.csv. Later calls add only the new times.

    Example: medicane detect msl.grib wind.grib --model models:/medicane@champion --out found

    Parameters
    ----------
    inputs
        Files, globs or stores; several are merged on exactly equal coordinates.
    model
        models:/medicane@champion, runs:/…, or a .keras file.
    out
        Folder of the detections.
    mode
        causal: the label of a map uses earlier maps only; fused: all windows vote, for archives.
    precision
        Of the encoder. Other than float32 needs the extra fast; int8 'medicane check-precision'.
    threshold
        Probability from which a map is a detection; by default the model's own.
    allow_short
        Label fewer maps than one sequence with the shorter history they have.
    units
        Units that the files do not state: --units.msl hPa
    select
        One value of an extra dimension: --select.number 0
    tracking_uri
        Where the model is registered; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    scheduler
        Address of a dask scheduler whose workers do the work: tcp://10.0.0.1:8786
    """
    if not inputs:
        raise InputError("INPUT", "at least one file, glob or store must be given", found="none")
    start_keras()
    from medicane import pipeline

    tracking = tracked_at(None, tracking_uri)
    with bar("detect") as progress:
        done = pipeline.detect(
            inputs,
            model=model,
            out=out,
            mode=mode,
            precision=precision,
            threshold=threshold,
            allow_short=allow_short,
            units=units,
            select=select,
            tracking=tracking,
            scheduler=scheduler,
            progress=progress,
        )
    say(_account(done))


@app.command
def watch(
    *,
    config: ConfigFile,
    model: str = "models:/medicane@champion",
    out: str = "detections",
    start: str | None = None,
    prepare: bool = True,
) -> None:
    """Every day: find new maps, extend the map store, label them, tell of the onset of an event.

    Run it as often as you like: what is done stays, late and revised maps are put right.

    Example: medicane watch --config config/era5.yaml --out detections

    Parameters
    ----------
    config
        The configuration, a YAML file: data.grids is what is watched, detect how it is labelled,
        watch what happens to late and revised maps and who is told.
    model
        models:/medicane@champion, runs:/…, or a .keras file.
    out
        Folder of the detections, of status.json and of what the watch remembers.
    start
        The first day to label; by default that of the first map.
    prepare
        Extend the map store as well.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    start_keras()
    with bar("watch") as progress:
        done = pipeline.watch(
            settings, model=model, out=out, start=start, prepare=prepare, progress=progress
        )
    say(pipeline.status_text(done))


@app.command
def catalogue(*, csv: Annotated[bool, Parameter(negative=())] = False) -> None:
    """List the bundled storms with their certainty and sources.

    Example: medicane catalogue --csv > medicanes.csv

    Parameters
    ----------
    csv
        As CSV, readable as a catalogue.
    """
    from medicane.labels import bundled_catalogue

    storms = bundled_catalogue()
    if csv:
        sys.stdout.write(storms.to_csv(index=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("storm", "phase", "start", "end"):
        table.add_column(name, no_wrap=True)
    table.add_column("certainty, source")
    for row in storms.fillna("").to_dict("records"):
        hours = (f"{row[end]:%Y-%m-%dT%H}" for end in ("start", "end"))
        table.add_row(row["storm"], row["phase"], *hours, f"{row['certainty']}; {row['source']}")
    Console().print(table)


def run_demo(out: Path, *, seed: int, steps: Steps | None = None) -> Demonstrated:
    """Run the demo and tell what it made; the Prefect flows bring their own steps."""
    start_keras()
    from medicane import pipeline

    done = pipeline.demo(out, seed=seed, steps=steps, announce=lambda name: say(f"· {name}"))
    told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in done.seconds.items())
    say(
        f"\n{done.evaluated.table}\n\n"
        f"seconds    {told}; in all {sum(done.seconds.values()):.0f}\n"
        f"model      {done.trained.model_uri} (alias challenger)\n"
        f"MLflow run {done.trained.run_page or done.trained.run_id}\n"
        f"           mlflow ui --backend-store-uri {done.trained.tracking_uri}\n"
        f"{_account(done.detected)}\n"
        f"report     {done.evaluated.report}"
    )
    return done


def _account(done: Detected) -> str:
    skipped = (
        f", {done.n_skipped} not later than the last detection and left as they were"
        if done.n_skipped
        else ""
    )
    waiting = (
        f"\nunlabelled {done.n_unlabelled} maps are too few in a row for a sequence"
        if done.n_unlabelled
        else ""
    )
    return (
        f"detections {done.detections}: {done.n_maps} maps "
        f"({done.n_new} new{skipped}{_between(done.n_left_out)}){waiting}\n"
        f"events     {done.events}: {done.n_events}"
    )


def _between(n_left_out: int) -> str:
    return f", {n_left_out} between the steps left out" if n_left_out else ""
