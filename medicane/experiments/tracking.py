"""Where runs are tracked, and runs: opened with all it takes to repeat them, and found again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import mlflow
import numpy as np
import pandas as pd
import requests
import yaml
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from medicane import __version__
from medicane.config import Config
from medicane.errors import InputError, redacted

_PARAMS_A_CALL = 100  # MLflow's limit for one batch
_LONGEST_PARAM = 500
#: How long another process may take to make a database.
_DATABASE_SECONDS = 300


class TrackingError(InputError):
    """The tracking store does not answer, or does not take what it is given."""


@contextmanager
def answering() -> Iterator[None]:
    """Whatever MLflow, its database or the way to its server raise, as a `TrackingError`."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise TrackingError(
            f"tracking.uri: {mlflow.get_tracking_uri()}",
            "the tracking store must answer",
            found=first_line(error),
        ) from error


def tracking_uri(config: Config) -> str:
    """The tracking URI: configured, else ``MLFLOW_TRACKING_URI``, else beside the store."""
    if config.tracking.uri is not None:
        return config.tracking.uri
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    return default_tracking_uri(Path(config.data.store).resolve().parent)


def default_tracking_uri(folder: Path) -> str:
    """``sqlite:///…/mlflow.db`` in a folder."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def use_tracking(uri: str, *, experiment: str) -> str:
    """Point MLflow at `uri` and return the id of the experiment, made if it is not there.

    Artifacts of a local database go to the folder ``mlartifacts`` beside it.

    Raises
    ------
    TrackingError
        If the tracking store cannot be reached.
    """
    point_at(uri)
    with answering():
        _make_database(uri)
        found = mlflow.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if uri.startswith("sqlite:///"):
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        return str(mlflow.create_experiment(experiment, artifact_location=location))


def _make_database(uri: str) -> None:
    """Make a local database that is not there under another name first.

    MLflow makes its tables one by one, and cannot go on where a kill has stopped that.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_DATABASE_SECONDS):
        if path.exists():
            return
        try:
            partial.unlink(missing_ok=True)
            mlflow.MlflowClient(f"sqlite:///{partial}").search_experiments()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


class Run:
    """An open MLflow run; every call names its id, so that a worker thread logs to the same run.

    Every method raises `TrackingError` where the tracking store does not answer.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = mlflow.MlflowClient()

    @answering()
    def steps(self, metric: str) -> set[int]:
        """The steps for which the run has a metric."""
        return {one.step for one in self._client.get_metric_history(self.run_id, metric)}

    @answering()
    def log_metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log finite values in one call."""
        now = int(pd.Timestamp.now("UTC").timestamp() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for name, value in values.items()
            if value is not None and np.isfinite(value)
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    @answering()
    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a long value is cut here and whole in the configuration artifact."""
        told = {name: redacted(str(value)) for name, value in values.items()}
        params = [Param(name, value[:_LONGEST_PARAM]) for name, value in told.items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_CALL])

    @answering()
    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Tag the run."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, value)

    @answering()
    def log_text(self, text: str, name: str) -> None:
        """Log a text artifact."""
        self._client.log_text(self.run_id, redacted(text), name)

    @answering()
    def log_file(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, as artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)


@dataclass(frozen=True)
class FoundRun:
    """A run of the tracking store: its name, tags, parameters, scores, and how it ended."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


@contextmanager
def training_run(
    config: Config,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    parent: Run | None = None,
    resume: str | None = None,
) -> Iterator[Run]:
    """Open a run that says how to repeat it; closed as failed when the body raises.

    Parameters
    ----------
    config
        Logged whole; says where the run is tracked.
    name, tags
        Of the run.
    parent
        An open run that this one is a part of: the MLflow UI shows it nested.
    resume
        The id of a run that is taken up again instead of a new one.

    Raises
    ------
    TrackingError
        If the tracking store does not answer, at the beginning or at the end.
    """
    experiment = use_tracking(tracking_uri(config), experiment=config.tracking.experiment)
    with answering():
        active = mlflow.start_run(
            run_id=resume,
            experiment_id=experiment,
            run_name=name,
            nested=parent is not None,
            parent_run_id=None if parent is None else parent.run_id,
            tags={**_provenance(), **(tags or {})},  # at once: a cut run is found by its tags
        )
    try:
        run = Run(active.info.run_id)
        values = config.model_dump(mode="json")
        run.log_text(yaml.safe_dump(values, sort_keys=False), "config.yaml")
        run.log_text(_environment(), "environment.txt")
        run.log_params(_flat(values))
        yield run
    except BaseException:
        with suppress(TrackingError), answering():  # of two faults, the first is worth telling
            mlflow.end_run("FAILED")
        raise
    with answering():
        mlflow.end_run()


def reopened_run(run_id: str) -> Run:
    """A finished run of the current tracking store, to add scores to."""
    return Run(run_id)


def run_name(run_id: str) -> str:
    """The name of a run of the current tracking store."""
    return mlflow.MlflowClient().get_run(run_id).info.run_name or run_id


def cut_run(config: Config, *, tags: Mapping[str, str]) -> FoundRun | None:
    """A run with these tags that was not brought to its end: killed, or failed; None if all were.

    The caller knows that it is not alive.
    """
    found = find_runs(config, tags=tags)
    return next((run for run in found if run.status != "FINISHED"), None)


def end_cut_runs(config: Config, *, tags: Mapping[str, str]) -> list[str]:
    """Say of runs that a kill has left open that they were killed; their ids.

    Parameters
    ----------
    config, tags
        Which ones, as for `find_runs`. The caller knows that none of them is alive.
    """
    cut = [run.run_id for run in find_runs(config, tags=tags) if run.status == "RUNNING"]
    with answering():
        for run_id in cut:
            mlflow.MlflowClient().set_terminated(run_id, "KILLED")
    return cut


def find_runs(
    config: Config, *, name: str | None = None, tags: Mapping[str, str] | None = None
) -> list[FoundRun]:
    """Runs of the configured experiment, the newest first.

    Parameters
    ----------
    config
        ``tracking`` says where.
    name
        Only runs of this name.
    tags
        Only runs with all of these tags, e.g. ``{"table": "rivals", "row": "gru"}``.
    """
    experiment = use_tracking(tracking_uri(config), experiment=config.tracking.experiment)
    wanted = dict(tags or {}) | ({} if name is None else {"mlflow.runName": name})
    found: list[FoundRun] = []
    page = None
    while True:
        filter_string = " and ".join(
            f"tags.`{key}` = '{_quoted(value)}'" for key, value in wanted.items()
        )
        with answering():
            runs = mlflow.MlflowClient().search_runs(
                [experiment],
                filter_string=filter_string,
                order_by=["attributes.start_time DESC"],
                page_token=page,
            )
        found += [
            FoundRun(
                run_id=run.info.run_id,
                name=run.info.run_name or run.info.run_id,
                status=run.info.status,
                tags=dict(run.data.tags),
                params=dict(run.data.params),
                metrics=dict(run.data.metrics),
            )
            for run in runs
        ]
        page = runs.token
        if not page:
            return found


def _quoted(value: str) -> str:
    if "'" in value:
        raise InputError("tags", "a tag to search for must hold no quote", found=value)
    return value


@answering()
def log_dataset(*, store: str, digest: str, times: pd.DatetimeIndex, labels: np.ndarray) -> None:
    """Log the map store as the dataset of the open run: its digest, and the labels trained on."""
    frame = pd.DataFrame({"time": times.astype(str), "medicane": labels.astype(float)})
    with warnings.catch_warnings():
        # Two of MLflow's own classes claim a local folder; it takes the first of the two equals.
        warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
        dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
            frame, source=store, name="maps", targets="medicane", digest=digest[:36]
        )
    mlflow.log_input(dataset, context="training")


def run_page(run_id: str, *, uri: str) -> str | None:
    """The address of a run in the MLflow UI; none where tracking is a local database."""
    if not uri.startswith("http"):
        return None
    with answering():
        found = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    return f"{uri.rstrip('/')}/#/experiments/{found.info.experiment_id}/runs/{run_id}"


def point_at(uri: str) -> None:
    """Point MLflow at a tracking store, for this process alone.

    MLflow would write the URI into the environment too, where `tracking_uri` of the next
    configuration would take it for the user's wish.
    """
    wished = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if wished is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = wished


def _provenance() -> dict[str, str]:
    tags = {
        "software_version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    commit = git_commit()
    if commit is not None:
        tags["git_commit"] = commit
        tags["mlflow.source.git.commit"] = commit.split("+")[0]
    return tags


def git_commit() -> str | None:
    """The commit of the source tree, ``+changes`` if some are uncommitted; None outside git."""

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def _environment() -> str:
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return (
        "\n".join(f"{name}=={version}" for name, version in sorted(packages.items()) if name) + "\n"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return flat


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
