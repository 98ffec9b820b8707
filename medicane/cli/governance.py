"""The commands that judge: compare runs, cross-validate, promote and roll back, the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from medicane.cli.terminal import ConfigFile, app, bar, say, start_keras, tracked_at


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

    done = pipeline.compare(runs, split=split, tracking=tracked_at(config, tracking_uri), out=out)
    say(done.table + (f"\n\nwritten    {done.out}" if done.out else ""))


@app.command
def check_precision(
    *,
    config: ConfigFile,
    model: str | None = None,
    precision: Literal["bfloat16", "int8"] = "int8",
) -> None:
    """Make a model's encoder in a lower precision, and see whether its skill stays.

    int8 is calibrated on training maps. `medicane detect --precision int8` asks for this check.

    Example: medicane check-precision --config config/era5.yaml --model models:/medicane@champion

    Parameters
    ----------
    config
        The configuration, a YAML file, of the map store that the model was trained on.
    model
        A model URI or .keras file; by default the registered challenger.
    precision
        int8 or bfloat16.
    """
    from medicane import pipeline
    from medicane.config import load_config

    settings = load_config(config)
    start_keras()
    done = pipeline.check_precision(settings, model=model, precision=precision)
    moved = "\n".join(
        f"{name:10} {score['before']:.4f} in float32, {score['after']:.4f} in {done.precision}: "
        f"moved by {score['difference']:.2g} of {score['allowed']:.2g} allowed"
        for name, score in done.scores.items()
    )
    verdict = "passed" if done.passed else "failed: detect refuses it"
    say(f"{moved}\n{done.precision:10} {verdict}\nwritten    {done.verdict}")


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
    start_keras()
    with bar("cross-validate") as progress:
        done = pipeline.cross_validate(settings, by=by, folds=folds, progress=progress)
    say(
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
    start_keras()
    done = pipeline.promote(settings, model=model)
    say(
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

    done = pipeline.rollback(tracking=tracked_at(config, tracking_uri))
    say(f"champion   {done.champion} again, instead of {done.rolled_back}")


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
    start_keras()
    from medicane import pipeline

    written = pipeline.skill(
        study, out, page=page, only=list(row) or None, announce=lambda name: say(f"· {name}")
    )
    say(f"page       {written}")
