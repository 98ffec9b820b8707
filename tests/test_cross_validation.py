"""Cross-validation on a tiny project: nested runs, a pooled forecast, nothing trained twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

from medicane import experiments, pipeline
from medicane.config import Config, load_config
from medicane.evaluate import read_forecasts
from medicane.store import open_store
from tests.small_project import SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(small_project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("folds")
    return load_config(small_project.copy_data(folder, train={"epochs": 1}))


@pytest.fixture(scope="module")
def first(config: Config) -> pipeline.CrossValidated:
    return pipeline.cross_validate(config, by="storm", folds=3)


def client(config: Config) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=pipeline.tracking_uri(config))


def test_each_fold_is_a_run_nested_in_the_whole(
    config: Config, first: pipeline.CrossValidated
) -> None:
    assert 2 <= len(first.folds) <= 3
    assert first.n_trained == len(first.folds)
    folds = experiments.find_runs(config, tags={"mlflow.parentRunId": first.run_id})
    assert sorted(run.name for run in folds) == sorted(first.folds)
    for run in folds:
        assert run.status == "FINISHED"
        assert "test_brier" in run.metrics
        assert run.metrics["n_maps_test"] > 0
    names = {file.path for file in client(config).list_artifacts(folds[0].run_id)}
    assert {"training", "figures", "evaluation", "config.yaml"} <= names
    assert client(config).search_registered_models() == []


def test_the_pooled_forecast_is_out_of_fold_and_scored(
    config: Config, first: pipeline.CrossValidated
) -> None:
    folder = Path(first.folder)
    pooled = read_forecasts(folder / "forecast.nc")
    assert (np.diff(pooled.times) > np.timedelta64(0)).all()
    store = open_store(config.data.store)
    at = store.indexes["time"].get_indexer(pooled.times)
    np.testing.assert_array_equal(store["medicane"].values[at], pooled.medicane)
    for name in first.folds:
        fold = read_forecasts(folder / f"{name}.nc")
        here = np.isin(pooled.times, fold.times)
        assert here.sum() == fold.times.size
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["split"] == "cross_validation"
    assert scores["n_storms"] >= len(first.folds)
    assert {"detector", "phase_space", "climatology"} <= set(scores["models"])
    assert any("not those of whole years" in note for note in scores["notes"])
    run = client(config).get_run(first.run_id)
    assert run.data.metrics["n_folds"] == len(first.folds)
    assert run.data.metrics["cross_validation_brier"] == pytest.approx(
        scores["models"]["detector"]["brier"]["value"]
    )
    compared = pipeline.compare(
        [first.run_id, first.folder],
        split="cross_validation",
        tracking=pipeline.tracking_uri(config),
    )
    assert compared.comparison["differences"][compared.names[1]]["brier"]["value"] == 0


def test_finished_folds_are_not_trained_again(
    config: Config, first: pipeline.CrossValidated
) -> None:
    before = json.loads(Path(first.scores).read_text())
    again = pipeline.cross_validate(config, by="storm", folds=3)
    assert (again.n_trained, again.run_id, again.folds) == (0, first.run_id, first.folds)
    assert json.loads(Path(again.scores).read_text()) == before

    # As after a kill in the middle: the lost fold alone is trained, and comes out the same.
    lost = Path(first.folder) / f"{first.folds[-1]}.nc"
    kept = lost.with_suffix(".kept")
    shutil.move(lost, kept)
    again = pipeline.cross_validate(config, by="storm", folds=3)
    assert (again.n_trained, again.run_id) == (1, first.run_id)
    one, other = read_forecasts(lost), read_forecasts(kept)
    np.testing.assert_array_equal(
        one.forecasts["detector"].probability, other.forecasts["detector"].probability
    )
    assert json.loads(Path(again.scores).read_text()) == before


def test_another_recipe_is_another_validation(
    config: Config, first: pipeline.CrossValidated
) -> None:
    changed = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": 0.02})}
    )
    storm = first.folds[0].removeprefix("storm-")
    other = pipeline.cross_validate(changed, by="storm", storms=[storm])
    assert other.n_trained == 1
    assert other.run_id != first.run_id
    assert other.folds == (f"storm-{storm}",)
