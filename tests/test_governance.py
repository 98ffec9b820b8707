"""Runs compared, challengers promoted, champions rolled back: on a tiny project, by commands."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml

from medicane import experiments, pipeline
from medicane.config import Config, load_config
from medicane.errors import InputError
from medicane.evaluate import read_forecasts, write_forecasts
from medicane.experiments import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION
from medicane.model import facts_of, load_detector
from tests.commands import Medicane
from tests.small_project import SmallProject

CALLS_ALL, CALLS_NONE = 1e-6, 1 - 1e-6  # thresholds: a CSI of the base rate, and of zero


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


class Registry:
    """A project with a registry of its own, and models in it that cost no training."""

    def __init__(self, folder: Path, project: SmallProject) -> None:
        self.folder, self.project = folder, project
        self.config_file = project.copy_data(folder)
        self.uri = experiments.tracking_uri(self.config)
        logged = experiments.model_file(project.model_uri, tracking=project.tracking_uri).path
        self._model = next(parent for parent in logged.parents if (parent / "MLmodel").is_file())
        self._keras = logged.relative_to(self._model)

    @property
    def config(self) -> Config:
        return load_config(self.config_file)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self.uri)

    def challenger(self, name: str, threshold: float, **facts: Any) -> str:
        """Register the small detector with another threshold or other facts; its run id."""
        experiments.use_tracking(self.uri, experiment="small")
        if not self.client.search_registered_models():
            self.client.create_registered_model(experiments.REGISTERED_NAME)
        network = load_detector(self.project.model_path)
        facts_of(network).update({"threshold": threshold, **facts})
        version_folder = self.folder / "models" / name
        shutil.copytree(self._model, version_folder)
        network.save(version_folder / self._keras)
        with experiments.training_run(self.config, name=name) as run:
            pass
        told = yaml.safe_load((version_folder / "MLmodel").read_text())
        told.pop("model_id")  # an id of the database that the model was copied from
        (version_folder / "MLmodel").write_text(yaml.safe_dump({**told, "run_id": run.run_id}))
        version = self.client.create_model_version(
            experiments.REGISTERED_NAME, source=version_folder.as_uri(), run_id=run.run_id
        )
        self.client.set_registered_model_alias(
            experiments.REGISTERED_NAME, CHALLENGER, version.version
        )
        return run.run_id

    def bearer(self, alias: str) -> int | None:
        found = experiments.aliased(alias, tracking=self.uri)
        return None if found is None else found.version


@pytest.fixture(scope="module")
def registry(small_project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("governed"), small_project)


# --- champion and challenger ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_life_of_champions(registry: Registry, medicane: Medicane) -> None:
    """The first is champion as it is, a better one follows, a worse one does not; one step back."""
    config = ("--config", registry.config_file)
    first = registry.challenger("silent", CALLS_NONE)
    told = medicane.done("promote", *config)
    assert "# Version 1 is promoted" in told
    assert "there is no champion yet" in told
    assert (registry.bearer(CHAMPION), registry.bearer(PREVIOUS_CHAMPION)) == (1, None)
    assert registry.client.get_run(first).data.tags["promotion"] == "promoted"

    assert (
        "must be another model than the champion; found version 1 is both"
        in medicane("promote", *config).line
    )

    second = registry.challenger("eager", CALLS_ALL)
    done = pipeline.promote(registry.config)
    assert (done.decision, done.champion, done.run_id) == ("promoted", "models:/medicane/1", second)
    assert (registry.bearer(CHAMPION), registry.bearer(PREVIOUS_CHAMPION)) == (2, 1)
    path = registry.client.download_artifacts(second, "promotion/decision.json")
    decision = json.loads(Path(path).read_text())
    assert next(iter(decision)) == "schema_version"
    assert decision["decision"] == "promoted"
    assert (decision["score"], decision["margin"]) == ("csi", 0.0)
    assert (decision["champion"]["version"], decision["challenger"]["version"]) == (1, 2)
    table = decision["comparison"]
    assert decision["difference"] == table["differences"]["challenger"]["csi"]
    assert decision["difference"]["low"] > 0
    assert decision["difference"]["value"] == pytest.approx(table["base_rate"])
    text = Path(registry.client.download_artifacts(second, "promotion/decision.md")).read_text()
    assert text == done.text
    assert "CSI differs by +0.1" in text
    version = registry.client.get_model_version("medicane", "2")
    assert version.tags["promotion"] == "promoted"
    assert version.tags["promotion_reason"] == done.reason == decision["reason"]

    third = registry.challenger("silent again", CALLS_NONE)
    told = medicane.done("promote", *config)
    assert "# Version 3 is not promoted" in told
    assert "does not lie above 0" in told
    assert (registry.bearer(CHAMPION), registry.bearer(PREVIOUS_CHAMPION)) == (2, 1)
    assert registry.client.get_run(third).data.tags["promotion"] == "kept"

    told = medicane.done("rollback", *config)
    assert "champion   models:/medicane/1 again, instead of models:/medicane/2" in told
    assert (registry.bearer(CHAMPION), registry.bearer(PREVIOUS_CHAMPION)) == (1, None)
    assert registry.client.get_run(second).data.tags["promotion"] == "rolled back"
    line = medicane("rollback", "--tracking-uri", registry.uri).line
    assert "must be a champion before this; found version 1 and none before it" in line
    assert registry.bearer(CHAMPION) == 1


@pytest.mark.slow
def test_the_margin_and_the_score_are_configured(registry: Registry, tmp_path: Path) -> None:
    """As good as the champion is not enough; with a margin below zero it is."""
    before = registry.bearer(CHAMPION)
    assert before is not None
    registry.challenger("equal", CALLS_NONE)
    for margin, decision in ((0.0, "kept"), (-0.1, "promoted")):
        config = registry.config.model_copy(
            update={
                "promotion": registry.config.promotion.model_copy(
                    update={"score": "auc_pr", "margin": margin}
                )
            }
        )
        done = pipeline.promote(config)
        assert done.decision == decision
        assert "AUC-PR differs by +0.000, 95 % interval [+0.000, +0.000]" in done.reason
    experiments.rollback(tracking=registry.uri)
    assert registry.bearer(CHAMPION) == before


@pytest.mark.slow
def test_models_that_cannot_take_each_others_place_are_refused(registry: Registry) -> None:
    champion = registry.bearer(CHAMPION)
    label = dict(facts_of(load_detector(registry.project.model_path))["label"])
    for facts, law in [
        ({"label": {**label, "version": "other-2"}}, r"small-1; found other-2"),
        ({"step_hours": 3}, r"same step_hours as the champion, 6; found 3"),
        ({"channels": ["msl_local"]}, r"same channels as the champion, .*; found \['msl_local'\]"),
    ]:
        registry.challenger(f"strange {next(iter(facts))}", CALLS_ALL, **facts)
        with pytest.raises(InputError, match=law) as told:
            pipeline.promote(registry.config)
        assert str(told.value).startswith("the challenger: ")
        assert "\n" not in str(told.value)
    assert registry.bearer(CHAMPION) == champion


@pytest.mark.slow
def test_a_model_of_other_maps_is_told_in_the_decision(registry: Registry) -> None:
    registry.challenger("elsewhere", CALLS_NONE, data_digest="of another store")
    done = pipeline.promote(registry.config)
    assert "beware: the challenger was trained on another state of the store" in done.text
    assert "beware: the champion" not in done.text


def test_only_registered_models_and_maps_with_medicanes_decide(
    registry: Registry, medicane: Medicane, tmp_path: Path
) -> None:
    config = ("--config", registry.config_file)
    registry.challenger("undecided", CALLS_NONE)
    line = medicane("promote", *config, "--model", registry.project.model_path).line
    assert "must be a registered model, as models:/medicane@challenger" in line
    assert "no such model" in medicane("promote", *config, "--model", "models:/medicane/99").line
    empty = registry.project.copy_data(
        tmp_path,
        tracking={"uri": registry.uri},
        splits={
            "train": ["2001-01-01", "2001-03-15"],
            "validation": ["2001-03-20", "2001-04-10"],
            "test": ["2001-04-14", "2001-04-15"],
        },
    )
    labels = pipeline.prepare(load_config(empty))
    assert labels.n_medicane > 0
    answer = medicane("promote", "--config", empty)
    assert "splits.test: must hold at least one medicane map to decide on" in answer.line


# --- runs side by side ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(registry: Registry) -> dict[str, tuple[str, Path]]:
    """Two models of one network: one evaluated, one with its forecast at another threshold."""
    quiet = registry.challenger("quiet", CALLS_NONE)
    pipeline.evaluate(registry.config, out=registry.folder / "quiet")
    loud = registry.challenger("loud", CALLS_ALL)
    scored = read_forecasts(registry.folder / "quiet" / "forecast.nc")
    all_called = dataclasses.replace(scored.forecasts["detector"], threshold=CALLS_ALL)
    file = write_forecasts(
        registry.folder / "loud" / "forecast.nc",
        dataclasses.replace(scored, forecasts={"detector": all_called}),
    )
    experiments.reopened_run(loud).log_file(file, folder="evaluation/test")
    return {"quiet": (quiet, registry.folder / "quiet"), "loud": (loud, registry.folder / "loud")}


def test_runs_are_compared_by_the_command(
    registry: Registry,
    evaluated: dict[str, tuple[str, Path]],
    medicane: Medicane,
    tmp_path: Path,
) -> None:
    (quiet, _), (loud, _) = evaluated["quiet"], evaluated["loud"]
    told = medicane.done(
        "compare", quiet, f"runs:/{loud}", "--config", registry.config_file,
        "--out", tmp_path / "new" / "table.json",
    )  # fmt: skip
    assert "| minus quiet | CSI" in told
    table = json.loads((tmp_path / "new" / "table.json").read_text())
    assert table["schema_version"] == 1
    assert (table["reference"], list(table["models"])) == ("quiet", ["quiet", "loud"])
    assert table["runs"]["loud"]["run_id"] == loud
    assert table["runs"]["loud"]["label_version"] == "small-1"
    gain = table["differences"]["loud"]
    assert gain["csi"]["value"] == pytest.approx(table["base_rate"])
    assert gain["csi"]["low"] > 0
    assert gain["auc_pr"]["value"] == gain["auc_pr"]["high"] == 0  # the same network
    kept = registry.client.download_artifacts(quiet, "comparison.json")
    assert json.loads(Path(kept).read_text()) == table


def test_the_scores_are_those_of_the_evaluation(
    evaluated: dict[str, tuple[str, Path]],
) -> None:
    folders = [str(folder) for _, folder in evaluated.values()]
    done = pipeline.compare(folders)
    assert done.out is None
    scores = json.loads((evaluated["quiet"][1] / "scores.json").read_text())["models"]["detector"]
    scores.pop("difference_from")
    assert done.comparison["models"]["quiet"] == scores


def test_a_run_compared_with_itself_keeps_two_rows(evaluated: dict[str, tuple[str, Path]]) -> None:
    folder = str(evaluated["loud"][1])
    done = pipeline.compare([folder, folder, folder])
    assert done.names == ("loud", "loud (2)", "loud (3)")
    assert done.comparison["differences"]["loud (3)"]["csi"]["value"] == 0


@pytest.fixture
def altered(evaluated: dict[str, tuple[str, Path]], tmp_path: Path) -> Callable[..., str]:
    """A folder whose forecast differs from that of the model `loud`."""

    def written(**changes: Any) -> str:
        scored = read_forecasts(evaluated["loud"][1] / "forecast.nc")
        if "keep" in changes:
            kept = changes.pop("keep")
            per_map = ("times", "medicane", "storm", "kind")
            changes |= {name: getattr(scored, name)[kept] for name in per_map}
            changes["forecasts"] = {k: f.at(kept) for k, f in scored.forecasts.items()}
        write_forecasts(tmp_path / "forecast.nc", dataclasses.replace(scored, **changes))
        return str(tmp_path)

    return written


def test_other_maps_and_other_labels_are_refused(
    evaluated: dict[str, tuple[str, Path]], altered: Callable[..., str], medicane: Medicane
) -> None:
    folder = evaluated["loud"][1]
    scored = read_forecasts(folder / "forecast.nc")
    labels = scored.medicane.copy()
    labels[7] = 1 - labels[7]
    for changes, told in [
        ({"keep": np.arange(scored.times.size - 3)}, "must be scored on the same maps as"),
        ({"times": scored.times + np.timedelta64(1, "h")}, "must be scored on the same maps as"),
        ({"medicane": labels}, f"with the same labels as {folder}; found medicane {labels[7]}"),
        ({"split": "validation"}, "must be an evaluation of test; found validation"),
        ({"forecasts": {"rule": scored.forecasts["detector"]}}, "must hold the forecast"),
    ]:
        line = medicane("compare", folder, altered(**changes)).line
        assert told in line


def test_what_cannot_be_compared_is_one_line(
    evaluated: dict[str, tuple[str, Path]], registry: Registry, medicane: Medicane, tmp_path: Path
) -> None:
    run, folder = evaluated["loud"]
    bare = registry.challenger("never evaluated", CALLS_ALL)
    uri = ("--tracking-uri", registry.uri)
    for words, told in [
        ((folder,), "RUN: at least two runs must be given; found 1"),
        ((folder, tmp_path), "must hold what 'medicane evaluate' wrote"),
        ((run, bare, *uri), "must be evaluated on the test split"),
        ((run, run, "--split", "train", *uri), "must be evaluated on the train split"),
        ((folder, "no-such-thing", *uri), "must be a folder, an MLflow run or a registered model"),
        ((folder, folder, "--out", tmp_path), "--out: must be a file"),
        ((folder, folder, *uri, "--config", registry.config_file), "must not be given with"),
    ]:
        assert told in medicane("compare", *words).line


def test_folds_that_cannot_be_made_are_one_line(registry: Registry, medicane: Medicane) -> None:
    config = ("--config", registry.config_file)
    for words, told in [
        (("--by", "year"), "--folds: must lie between 3 and the 1 years of the record; found 1"),
        (("--by", "storm", "--folds", "90"), "there must be at least 90 storms"),
        (("--by", "week"), "week"),
    ]:
        assert told in medicane("cross-validate", *config, *words).line
    with pytest.raises(InputError, match="storms: must be given by storm only; found by year"):
        pipeline.cross_validate(registry.config, by="year", storms=["x"])
