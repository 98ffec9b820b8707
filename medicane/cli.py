"""The command ``medicane``: arguments in, one step of the pipeline, a short account out. No logic.

Exit status 0 on success; 2 on bad usage or bad input, with one line on standard error; 1 on a fault
of the program. ``--debug`` shows the traceback. Heavy libraries are imported by the command that
needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from medicane import __version__
from medicane.errors import InputError

if TYPE_CHECKING:
    from medicane.pipeline import Demonstrated, Detected, Progress, Steps

app = App(
    name="medicane",
    help="Find Mediterranean hurricanes in sequences of weather maps.",
    help_epilogue="With --debug, any command shows the traceback of what it fails with.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # told, and with a status of its own, in `_status`
)

ConfigFile = Annotated[Path, Parameter(name="--config")]


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
    with _bar("synth") as progress:
        files = pipeline.synthesise(out, sea, progress=progress)
    _say(f"grids      {files.grids_glob}\nstorms     {files.catalogue}\ntruth      {files.truth}")


@app.command
def prepare(*, config: ConfigFile) -> None:
    """Open, standardise, label and derive: write or extend the map store, in bounded memory.

    Resumes after a kill; a second run appends what is new.

    Example: medicane prepare --config config/era5.yaml

    Parameters
    ----------
    config
        The configuration, a YAML file.
    """
    from medicane import pipeline
    from medicane.config import load_config

    with _bar("prepare") as progress:
        done = pipeline.prepare(load_config(config), progress=progress)
    _say(
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
    _start_keras()
    with _bar("train") as progress:
        done = pipeline.train(settings, progress=progress)
    _say(
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
    _start_keras()
    done = pipeline.evaluate(settings, model=model, split=split, out=out)
    _say(f"{done.table}\n\nscores     {done.scores}\nreport     {done.report}")


@app.command
def detect(
    *inputs: str,
    model: str,
    out: str,
    mode: Literal["causal", "fused"] = "causal",
    threshold: float | None = None,
    allow_short: Annotated[bool, Parameter(negative=())] = False,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
    tracking_uri: str | None = None,
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
    """
    if not inputs:
        raise InputError("INPUT", "at least one file, glob or store must be given", found="none")
    _start_keras()
    from medicane import pipeline

    tracking = _tracking(None, tracking_uri)
    with _bar("detect") as progress:
        done = pipeline.detect(
            inputs,
            model=model,
            out=out,
            mode=mode,
            threshold=threshold,
            allow_short=allow_short,
            units=units,
            select=select,
            tracking=tracking,
            progress=progress,
        )
    _say(_account(done))


@app.command
def compare(
    *runs: str,
    split: Literal["train", "validation", "test", "cross_validation"] = "test",
    config: Annotated[Path | None, Parameter(name="--config")] = None,
    tracking_uri: str | None = None,
    out: Path | None = None,
) -> None:
    """Compare evaluated runs on the same maps: paired differences to the first, with intervals.

    Example: medicane compare models:/medicane@champion models:/medicane@challenger --out table.json

    Parameters
    ----------
    runs
        Two or more: the id of an MLflow run, runs:/…, a registered model, or a folder that
        `medicane evaluate` wrote. The first is the reference.
    split
        The split that was evaluated.
    config
        A configuration, for where the runs are tracked.
    tracking_uri
        Where the runs are tracked; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    out
        A JSON file for all scores and differences.
    """
    from medicane import pipeline

    done = pipeline.compare(runs, split=split, tracking=_tracking(config, tracking_uri), out=out)
    _say(done.table + (f"\n\nwritten    {done.out}" if done.out else ""))


@app.command
def cross_validate(
    *, config: ConfigFile, by: Literal["storm", "year"], folds: int | None = None
) -> None:
    """Train a model for each storm or year left out, and score all that they had not seen.

    Each fold is a run nested in the run of the whole; finished folds are not trained again.

    Example: medicane cross-validate --config config/era5.yaml --by year --folds 5

    Parameters
    ----------
    config
        The configuration, a YAML file.
    by
        storm: every storm with a medicane is left out once; year: every year, whole.
    folds
        So many storms, evenly over the record, or runs of years; by default all.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    _start_keras()
    with _bar("cross-validate") as progress:
        done = pipeline.cross_validate(settings, by=by, folds=folds, progress=progress)
    _say(
        f"{done.table}\n\n"
        f"folds      {len(done.folds)}, {done.n_trained} of them trained now\n"
        f"scores     {done.scores}\n"
        f"run        {done.run_id}"
    )


@app.command
def promote(*, config: ConfigFile, model: str | None = None) -> None:
    """Make the challenger champion where it is better on the test maps beyond chance.

    The first model becomes champion as it is. The decision and its reason are kept with the run.

    Example: medicane promote --config config/era5.yaml

    Parameters
    ----------
    config
        The configuration, a YAML file; its section `promotion` says what is better.
    model
        A registered model; by default the challenger.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    _start_keras()
    done = pipeline.promote(settings, model=model)
    _say(
        f"{done.text}\n"
        f"{done.decision:10} {done.challenger}: {done.reason}\n"
        f"decision   promotion/decision.json of run {done.run_id}"
    )


@app.command
def rollback(
    *,
    config: Annotated[Path | None, Parameter(name="--config")] = None,
    tracking_uri: str | None = None,
) -> None:
    """Give the alias champion back to the champion before.

    Example: medicane rollback --config config/era5.yaml

    Parameters
    ----------
    config
        A configuration, for where the models are registered.
    tracking_uri
        Where the models are registered; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    """
    from medicane import pipeline

    done = pipeline.rollback(tracking=_tracking(config, tracking_uri))
    _say(f"champion   {done.champion} again, instead of {done.rolled_back}")


@app.command
def skill(
    *,
    study: Path = Path("config/skill.yaml"),
    out: Path = Path("skill"),
    page: Path | None = None,
    row: tuple[str, ...] = (),
) -> None:
    """Answer whether the detector is worth using: rivals, ideas and other seas on one page.

    Example: medicane skill --row single_map --row tcn

    Parameters
    ----------
    study
        What is measured: a recipe, further seas, a row for each rival and idea.
    out
        Folder of the study; what it holds is not made again.
    page
        The Markdown page; by default skill.md in the folder.
    row
        Train these rows only; the page tells all that are trained.
    """
    _start_keras()
    from medicane import pipeline

    written = pipeline.skill(
        study, out, page=page, only=list(row) or None, announce=lambda name: _say(f"· {name}")
    )
    _say(f"page       {written}")


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
    _start_keras()
    from medicane import pipeline

    done = pipeline.demo(out, seed=seed, steps=steps, announce=lambda name: _say(f"· {name}"))
    told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in done.seconds.items())
    _say(
        f"\n{done.evaluated.table}\n\n"
        f"seconds    {told}; in all {sum(done.seconds.values()):.0f}\n"
        f"model      {done.trained.model_uri} (alias challenger)\n"
        f"MLflow run {done.trained.run_page or done.trained.run_id}\n"
        f"           mlflow ui --backend-store-uri {done.trained.tracking_uri}\n"
        f"{_account(done.detected)}\n"
        f"report     {done.evaluated.report}"
    )
    return done


def main() -> None:
    """The command ``medicane``."""
    run(app)


def run(application: App, argv: Sequence[str] | None = None) -> None:
    """Run one command of an application and exit with its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words

    def command() -> object:
        return application(
            [word for word in words if word != "--debug"],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )

    sys.exit(_status(command, debug=debug))


def _status(command: Callable[[], object], *, debug: bool) -> int:
    """Run a command; bad input becomes one line and 2, anything else one line and 1."""
    for name, value in (
        ("TF_CPP_MIN_LOG_LEVEL", "2"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Its only message at this level is of retracing: a period's opening has a length of its own.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("medicane: interrupted; what was committed stays, run again to go on\n")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, InputError):
            sys.stderr.write(f"medicane: {error}\n")
            return 2
        if isinstance(error, CycloptsError):
            sys.stderr.write(f"medicane: {' '.join(str(error).split())} (see --help)\n")
            return 2
        told = (str(error).strip().splitlines() or [""])[0]
        sys.stderr.write(
            f"medicane: internal failure: {type(error).__name__}: {told} (--debug shows where)\n"
        )
        return 1
    return 0


@contextmanager
def _hushed() -> Iterator[None]:
    """Hold back what native code writes to standard error; give it out if the body raises.

    TensorFlow tells of the CPU and of missing GPUs while it is imported, whatever its log level
    says; an error of the user's would drown in that.
    """
    if "--debug" in sys.argv:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        shown = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(shown, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def _tracking(config: Path | None, uri: str | None) -> str:
    """Where runs are tracked: as said, as configured, as the environment says, or here."""
    from medicane import experiments
    from medicane.config import load_config

    if uri is not None and config is not None:
        raise InputError("--tracking-uri", "must not be given with --config", found=uri)
    if config is not None:
        return experiments.tracking_uri(load_config(config))
    here = experiments.default_tracking_uri(Path())
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or here


def _start_keras() -> None:
    with _hushed():
        import keras

        keras.ops.zeros(1)  # devices are looked for when the first of them is used


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


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _bar(name: str) -> Iterator[Progress | None]:
    """A progress bar on a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn(name),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
