"""Registered detectors: their versions, aliases, tags and files; champion and challenger."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from medicane.errors import InputError
from medicane.experiments.tracking import Run, answering, first_line, point_at, run_name

#: Name under which every detector is registered.
REGISTERED_NAME = "medicane"
CHALLENGER = "challenger"
CHAMPION = "champion"
#: The champion before, which a rollback restores.
PREVIOUS_CHAMPION = "previous_champion"

#: What a loaded model needs; pinned to what it was trained with.
_MODEL_REQUIREMENTS = ("keras", "tensorflow", "numpy", "pandas", "xarray", "pydantic", "pyyaml")


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

    @property
    def pinned(self) -> str:
        """A URI that means this version still, when its alias has moved on."""
        name, alias, _ = self.uri.partition("@")
        registered = self.uri.startswith("models:/") and alias
        return f"{name}/{self.version}" if registered else self.uri


class RunFolder(NamedTuple):
    """A folder of artifacts on this machine, and the run that they are of (None: a folder)."""

    path: Path
    name: str
    run_id: str | None


@answering()
def register_model(
    run: Run, detector: Path, *, example: np.ndarray, tags: Mapping[str, str]
) -> Registered:
    """In the open run, log the detector with signature and example; register it as challenger.

    The logged model is the ``.keras`` file with the code that loads it: no pickle, and it loads
    where the package is not installed. A run that was cut and taken up again registers one version.

    Parameters
    ----------
    detector
        The ``.keras`` file.
    example
        Maps ``(1, T, H, W, C)`` float32.
    tags
        Tags of the model version: label definition, data digest …

    Raises
    ------
    TrackingError
        If the registry does not answer.
    """
    earlier = versions_of(run.run_id)
    if earlier:
        registered = max(earlier, key=lambda one: one.version)
    else:
        _log_model(detector, example)
        (registered,) = versions_of(run.run_id)
    version = str(registered.version)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(REGISTERED_NAME, CHALLENGER, version)
    for key, value in tags.items():
        client.set_model_version_tag(REGISTERED_NAME, version, key, value)
    return registered


def _log_model(detector: Path, example: np.ndarray) -> None:
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
        shutil.copyfile(detector, path)
        mlflow.pyfunc.log_model(
            name="model",
            loader_module="medicane.experiments",
            data_path=str(path),
            code_paths=[str(Path(__file__).parents[1])],
            signature=signature,
            input_example={"maps": example.astype(np.float32)},
            pip_requirements=pinned,
            registered_model_name=REGISTERED_NAME,
        )


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
    tracking = existing_tracking(tracking, wanted=uri, law="no such model in")
    try:
        source = uri
        if uri.startswith("runs:/") and uri.count("/") == 1:
            source = f"{uri}/model"
        information = mlflow.models.get_model_info(source)
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source))
        version = _version_of(uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(uri, f"no such model in {tracking}", found=first_line(error)) from error
    found = sorted(folder.rglob("*.keras"))
    if len(found) != 1:
        raise InputError(uri, "the logged model must hold one .keras file", found=len(found))
    return ModelFile(found[0], uri, version, information.run_id)


def registered_model(uri: str, *, tracking: str | None = None) -> Registered:
    """The registered version behind ``models:/…`` or ``runs:/…``.

    Raises
    ------
    InputError
        If it is a file, or a run whose model is not registered, or there is no such model.
    """
    if not uri.startswith(("models:/", "runs:/")):
        raise InputError(uri, "must be a registered model, as models:/medicane@challenger")
    where = existing_tracking(tracking, wanted=uri, law="no such model in")
    client = mlflow.MlflowClient()
    with _answered(uri, f"no such model in {where}"):
        if uri.startswith("models:/"):
            name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
            found = client.get_model_version(name, _version_of(uri))
        else:
            run_id = uri.removeprefix("runs:/").partition("/")[0]
            versions = versions_of(run_id)
            if not versions:
                raise InputError(uri, "the run must have a registered model", found="none")
            return max(versions, key=lambda version: version.version)
    return _registered(found)


def aliased(alias: str, *, tracking: str | None = None) -> Registered | None:
    """The version that bears an alias; None where there is none."""
    where = existing_tracking(tracking, wanted=alias, law="no such model in")
    client = mlflow.MlflowClient()
    with _answered(alias, f"the registry must answer at {where}"):
        try:
            found = client.get_registered_model(REGISTERED_NAME)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        version = found.aliases.get(alias)
        return (
            None
            if version is None
            else _registered(client.get_model_version(REGISTERED_NAME, str(version)))
        )


def set_champion(model: Registered) -> Registered | None:
    """Move the alias ``champion``; the champion before becomes ``previous_champion``.

    The earlier one is noted first, so that a process that is killed between loses neither.

    Returns
    -------
    Registered or None
        The champion before.
    """
    before = aliased(CHAMPION)
    client = mlflow.MlflowClient()
    if before is not None and before.version != model.version:
        client.set_registered_model_alias(REGISTERED_NAME, PREVIOUS_CHAMPION, str(before.version))
    client.set_registered_model_alias(REGISTERED_NAME, CHAMPION, str(model.version))
    return before


def rollback(*, tracking: str | None = None) -> tuple[Registered, Registered]:
    """Give the alias ``champion`` back to the champion before; both versions are tagged.

    Returns
    -------
    (Registered, Registered)
        The champion now, and the one that was rolled back.

    Raises
    ------
    InputError
        If there is no champion, or none before it.
    """
    where = existing_tracking(tracking, wanted="rollback", law="no registry in")
    now, before = aliased(CHAMPION), aliased(PREVIOUS_CHAMPION)
    if now is None or before is None or before.version == now.version:
        found = "no champion" if now is None else f"version {now.version} and none before it"
        raise InputError(
            f"rollback in {where}", "there must be a champion before this", found=found
        )
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(REGISTERED_NAME, CHAMPION, str(before.version))
    client.delete_registered_model_alias(REGISTERED_NAME, PREVIOUS_CHAMPION)
    tag_version(
        now,
        {
            "promotion": "rolled back",
            "promotion_reason": f"version {before.version} was restored as champion",
        },
    )
    tag_version(
        before,
        {
            "promotion": "restored",
            "promotion_reason": f"version {now.version} was rolled back",
        },
    )
    return before, now


def tag_version(model: Registered, tags: Mapping[str, str]) -> None:
    """Tag a registered version, and the run behind it."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(model.name, str(model.version), key, value)
        if model.run_id:
            client.set_tag(model.run_id, key, value)


def versions_of(run_id: str) -> list[Registered]:
    """The registered versions that a run of the current tracking store has made."""
    found = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    return [_registered(version) for version in found]


@answering()
def describe_version(model: Registered, text: str) -> None:
    """The text that the MLflow UI shows with a registered version, Markdown."""
    mlflow.MlflowClient().update_model_version(model.name, str(model.version), description=text)


def evaluation_folder(run: str, *, split: str, tracking: str | None = None) -> RunFolder:
    """The folder with ``forecast.nc`` and ``scores.json`` of an evaluation.

    Parameters
    ----------
    run
        A folder on this machine, the id of a run, ``runs:/…`` or the URI of a registered model.
    split
        The split that was evaluated.
    tracking
        Tracking URI for all but the first; by default what MLflow is pointed at.

    Raises
    ------
    InputError
        If there is no such folder or run, or it was not evaluated on this split.
    """
    if Path(run).is_dir():
        if not (Path(run) / "forecast.nc").is_file():
            raise InputError(
                run, "must hold what 'medicane evaluate' wrote", found="no forecast.nc"
            )
        return RunFolder(Path(run), Path(run).resolve().name, None)
    law = "must be a folder, an MLflow run or a registered model"
    if run.startswith("models:/"):
        run_id = registered_model(run, tracking=tracking).run_id
    else:
        run_id = run.removeprefix("runs:/").partition("/")[0]
        if not re.fullmatch(r"[0-9a-f]{32}", run_id):
            raise InputError(run, law, found="no such folder, and no id of a run")
    where = existing_tracking(tracking, wanted=run, law="no such run in")
    client = mlflow.MlflowClient()
    with _answered(run, f"no such run in {where}"):
        listed = {f.path for f in client.list_artifacts(run_id, f"evaluation/{split}")}
        name = f"evaluation/{split}/forecast.nc"
        if name not in listed:
            raise InputError(
                run,
                f"must be evaluated on the {split} split ('medicane evaluate')",
                found=f"no {name}",
            )
        # Only what is read: an evaluation's figures are megabytes.
        folder = Path(client.download_artifacts(run_id, name)).parent
        return RunFolder(folder, run_name(run_id), run_id)


def existing_tracking(tracking: str | None, *, wanted: str, law: str) -> str:
    """Point MLflow at a tracking store that is there; a local database is never made.

    Raises
    ------
    InputError
        If it is a local database that is not there.
    """
    if tracking is not None:
        point_at(tracking)
    tracking = mlflow.get_tracking_uri()
    database = Path(tracking.removeprefix("sqlite:///").partition("?")[0])
    if tracking.startswith("sqlite:///") and not database.is_file():
        # MLflow would make an empty one.
        raise InputError(wanted, f"{law} {tracking}", found="no such database")
    return tracking


@contextmanager
def _answered(where: str, law: str) -> Iterator[None]:
    """A fault of MLflow as one clear line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(where, law, found=first_line(error)) from error


def _registered(version: mlflow.entities.model_registry.ModelVersion) -> Registered:
    return Registered(
        version.name,
        int(version.version),
        f"models:/{version.name}/{version.version}",
        version.run_id or "",
    )


def _version_of(uri: str) -> str:
    if not uri.startswith("models:/"):
        return "run"
    name = uri.removeprefix("models:/")
    if "@" in name:
        name, alias = name.split("@", 1)
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    return name.rpartition("/")[2]
