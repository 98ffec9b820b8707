"""MLflow: runs, registered models, aliases. The only room that imports it.

Everything that a stranger needs to repeat a run is logged with it: the configuration, the seed, the
digest of the data, the label definition, the environment and the commit; and what it gave: curves,
figures, scores and the model, registered with an alias.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

# Without a network the telemetry of a first call only costs time.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is not there is told after a quarter of a minute; by default it takes four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from medicane import __version__
from medicane.config import Config
from medicane.errors import InputError

if TYPE_CHECKING:
    import keras

#: Name under which every detector is registered.
REGISTERED_NAME = "medicane"
CHALLENGER = "challenger"

#: What a loaded model needs; pinned to what it was trained with.
_MODEL_REQUIREMENTS = ("keras", "tensorflow", "numpy", "pandas", "xarray", "pydantic", "pyyaml")

_PARAMS_A_CALL = 100  # MLflow's limit for one batch
_LONGEST_PARAM = 500


@dataclass(frozen=True)
class Registered:
    """A model in the registry: its version, its URI, and the run behind it."""

    name: str
    version: int
    uri: str
    run_id: str


@dataclass(frozen=True)
class ModelFile:
    """A ``.keras`` file on this machine, and what is known of where it came from."""

    path: Path
    uri: str
    version: str
    run_id: str | None


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
    InputError
        If the tracking store cannot be reached.
    """
    _point_at(uri)
    try:
        found = mlflow.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if uri.startswith("sqlite:///"):
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        return str(mlflow.create_experiment(experiment, artifact_location=location))
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(
            f"tracking.uri: {uri}", "the tracking store must answer", found=_first_line(error)
        ) from error


class Run:
    """An open MLflow run; every call names its id, so that a worker thread logs to the same run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = mlflow.MlflowClient()

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

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a long value is cut here and whole in the configuration artifact."""
        params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in values.items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_CALL])

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Tag the run."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, value)

    def log_text(self, text: str, name: str) -> None:
        """Log a text artifact."""
        self._client.log_text(self.run_id, text, name)

    def log_file(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, as artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)


@contextmanager
def training_run(
    config: Config, *, name: str, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open a run that says how to repeat it; closed as failed when the body raises."""
    experiment = use_tracking(tracking_uri(config), experiment=config.tracking.experiment)
    with mlflow.start_run(experiment_id=experiment, run_name=name) as active:
        run = Run(active.info.run_id)
        run.set_tags({**_provenance(), **(tags or {})})
        values = config.model_dump(mode="json")
        run.log_text(yaml.safe_dump(values, sort_keys=False), "config.yaml")
        run.log_text(_environment(), "environment.txt")
        run.log_params(_flat(values))
        yield run


def reopened_run(run_id: str) -> Run:
    """A finished run of the current tracking store, to add scores to."""
    return Run(run_id)


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


def register_model(
    run: Run, model: keras.Model, *, example: np.ndarray, tags: Mapping[str, str]
) -> Registered:
    """In the open run, log the detector with signature and example; register it as challenger.

    The logged model is the ``.keras`` file with the code that loads it: no pickle, and it loads
    where the package is not installed.

    Parameters
    ----------
    example
        Maps ``(1, T, H, W, C)`` float32.
    tags
        Tags of the model version: label definition, data digest …
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    channels = example.shape[-1]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, -1, channels), "maps")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, 1), "probability")]),
    )
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in _MODEL_REQUIREMENTS]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "detector.keras"
        model.save(path)
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module="medicane.experiments",
            data_path=str(path),
            code_paths=[str(Path(__file__).parent)],
            signature=signature,
            input_example={"maps": example.astype(np.float32)},
            pip_requirements=pinned,
            registered_model_name=REGISTERED_NAME,
        )
    client = mlflow.MlflowClient()
    version = int(logged.registered_model_version)
    client.set_registered_model_alias(REGISTERED_NAME, CHALLENGER, str(version))
    for key, value in tags.items():
        client.set_model_version_tag(REGISTERED_NAME, str(version), key, value)
    return Registered(REGISTERED_NAME, version, f"models:/{REGISTERED_NAME}/{version}", run.run_id)


def model_file(uri: str, *, tracking: str | None = None) -> ModelFile:
    """Find the ``.keras`` file behind a model URI.

    Parameters
    ----------
    uri
        ``models:/medicane@champion``, ``models:/medicane/3``, ``runs:/…`` or a path.
    tracking
        Tracking URI for the first forms; by default what MLflow is pointed at.

    Raises
    ------
    InputError
        If there is no such model, naming the URI.
    """
    if not uri.startswith(("models:/", "runs:/")):
        path = Path(uri)
        if not path.is_file():
            raise InputError(
                uri, "the model must be a .keras file or an MLflow model URI", found="no such file"
            )
        return ModelFile(path, path.resolve().as_uri(), "file", None)
    if tracking is not None:
        _point_at(tracking)
    tracking = mlflow.get_tracking_uri()
    database = Path(tracking.removeprefix("sqlite:///").partition("?")[0])
    if tracking.startswith("sqlite:///") and not database.is_file():
        # MLflow would make an empty one.
        raise InputError(uri, f"no such model in {tracking}", found="no such database")
    try:
        source = uri
        if uri.startswith("runs:/") and uri.count("/") == 1:
            source = f"{uri}/model"
        information = mlflow.models.get_model_info(source)
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source))
        version = _version_of(uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(uri, f"no such model in {tracking}", found=_first_line(error)) from error
    found = sorted(folder.rglob("*.keras"))
    if len(found) != 1:
        raise InputError(uri, "the logged model must hold one .keras file", found=len(found))
    return ModelFile(found[0], uri, version, information.run_id)


def run_page(run_id: str, *, uri: str) -> str | None:
    """The address of a run in the MLflow UI; none where tracking is a local database."""
    if not uri.startswith("http"):
        return None
    found = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    return f"{uri.rstrip('/')}/#/experiments/{found.info.experiment_id}/runs/{run_id}"


# --- the loader that MLflow calls -----------------------------------------------------------------


class _Served:
    """What ``mlflow.pyfunc.load_model`` returns: maps (B, T, H, W, C) → probability (B, T, 1)."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model

    def predict(self, data: Any, params: Any = None) -> np.ndarray:
        maps = data["maps"] if isinstance(data, Mapping) else data
        return np.asarray(self.model.predict_on_batch(np.asarray(maps, dtype=np.float32)))


def _load_pyfunc(path: str) -> _Served:
    from medicane.model import load_detector

    found = Path(path)
    return _Served(load_detector(found if found.is_file() else next(found.glob("*.keras"))))


# --------------------------------------------------------------------------------------------------


def _point_at(uri: str) -> None:
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


def _version_of(uri: str) -> str:
    if not uri.startswith("models:/"):
        return "run"
    name = uri.removeprefix("models:/")
    if "@" in name:
        name, alias = name.split("@", 1)
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    return name.rpartition("/")[2]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
