"""A tiny trained project: the whole way on a few months of an idealised sea, in twenty seconds.

It proves that the rooms fit together, not that the detector is any good.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml

from medicane import experiments, pipeline
from medicane.config import Config, load_config

#: What the configuration says. January to April are trained and scored on; May is unseen.
SETTINGS: dict[str, Any] = {
    "schema_version": 1,
    "sea": {"years": 0.42, "start_year": 2001, "base_rate": 0.2, "degrees": 1.0, "seed": 0},
    "data": {
        "grids": ["sea/grids/era5_2001-0[1-4].nc"],
        "catalogue": "sea/storms.csv",
        "degrees": 1.0,
        "channels": ["msl_local", "thickness_900_600_local"],
        "store": "maps.zarr",
    },
    "sequences": {"length": 10, "stride": 10},
    "splits": {"fractions": [0.5, 0.25, 0.25]},
    "model": {"blocks": [1], "growth_rate": 4, "units": 4},
    "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01},
    "label": {"version": "small-1"},
    "tracking": {"experiment": "small"},
}


@dataclass(frozen=True)
class SmallProject:
    """Where the parts of the tiny project lie.

    Attributes
    ----------
    folder
        Holds ``config.yaml``, ``sea/``, ``maps.zarr``, ``mlflow.db``, ``detector.keras``; and
        ``empty.db``, what ``mlflow.db`` was before the first run.
    config_file
        `SETTINGS` as YAML; paths relative to it, ``tracking.uri`` not set.
    grids
        Glob of the four months that are in the store.
    new_grids
        One later month, six-hourly, which the store and the model have not seen.
    model_path
        The trained detector as a ``.keras`` file.
    model_uri
        The same one in the registry of `tracking_uri`: ``models:/medicane@challenger``.
    tracking_uri
        ``sqlite:///…/mlflow.db`` in the folder.
    run_id
        The finished MLflow run of the training.
    """

    folder: Path
    config_file: Path
    grids: str
    new_grids: str
    model_path: Path
    model_uri: str
    tracking_uri: str
    run_id: str

    @property
    def config(self) -> Config:
        """The configuration, loaded."""
        return load_config(self.config_file)

    def copy_data(self, folder: Path, **sections: dict[str, Any]) -> Path:
        """Copy sea and store into a folder of the test's own; return its configuration file.

        Runs of the copy go to its own ``mlflow.db``, or where ``MLFLOW_TRACKING_URI`` says. It is
        there, and empty: MLflow takes seconds to lay out a database.

        Parameters
        ----------
        folder
            A new folder, or an empty one.
        sections
            Keys that differ from `SETTINGS`, e.g. ``train={"epochs": 1}``.
        """
        shutil.copytree(self.folder / "sea", folder / "sea", dirs_exist_ok=True)
        shutil.copytree(self.folder / "maps.zarr", folder / "maps.zarr")
        shutil.copy(self.folder / "empty.db", folder / "mlflow.db")
        return write_config(folder, **sections)


def write_config(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write `SETTINGS`, with the changes of `sections`, as ``config.yaml`` in a folder."""
    values = dict(SETTINGS)
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


def make_small_sea(folder: Path) -> Path:
    """Synth and prepare in a folder (a few seconds); the configuration file."""
    config_file = write_config(folder)
    config = load_config(config_file)
    pipeline.synthesise(folder / "sea", config.sea, label=config.label)
    pipeline.prepare(config)
    return config_file


def make_small_project(folder: Path) -> SmallProject:
    """Synth, prepare and train in a folder (about 20 s, most of them TensorFlow's start)."""
    config_file = make_small_sea(folder)
    config = load_config(config_file)
    mlflow.MlflowClient(f"sqlite:///{folder / 'empty.db'}").search_experiments()
    shutil.copy(folder / "empty.db", folder / "mlflow.db")
    trained = pipeline.train(config)
    uri = f"models:/{experiments.REGISTERED_NAME}@{experiments.CHALLENGER}"
    logged = experiments.model_file(uri, tracking=trained.tracking_uri)
    model_path = folder / "detector.keras"
    shutil.copy(logged.path, model_path)
    return SmallProject(
        folder=folder,
        config_file=config_file,
        grids=str(folder / "sea" / "grids" / "era5_2001-0[1-4].nc"),
        new_grids=str(folder / "sea" / "grids" / "era5_2001-05.nc"),
        model_path=model_path,
        model_uri=uri,
        tracking_uri=trained.tracking_uri,
        run_id=trained.run_id,
    )
