"""Runs and registered models in a real MLflow database."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from medicane import experiments
from medicane.config import Config, make_config
from medicane.errors import InputError
from medicane.experiments import CHAMPION, PREVIOUS_CHAMPION, Registered


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An empty project with a database of its own."""
    folder = tmp_path_factory.mktemp("tracked")
    return make_config(
        {
            "schema_version": 1,
            "data": {"grids": "x.nc", "store": str(folder / "maps.zarr")},
            "tracking": {"experiment": "governed"},
        }
    )


def versions(config: Config, n: int) -> list[Registered]:
    """Versions of the registry without a model behind them: aliases and tags need none."""
    experiments.use_tracking(experiments.tracking_uri(config), experiment="governed")
    client = mlflow.MlflowClient()
    if not client.search_registered_models():
        client.create_registered_model(experiments.REGISTERED_NAME)
    made = []
    for k in range(n):
        with experiments.training_run(config, name=f"version {k}") as run:
            pass
        version = client.create_model_version(
            experiments.REGISTERED_NAME, source=f"runs:/{run.run_id}/model", run_id=run.run_id
        )
        made.append(
            Registered(
                version.name,
                int(version.version),
                f"models:/medicane/{version.version}",
                run.run_id,
            )
        )
    return made


def forget(*aliases: str) -> None:
    for alias in aliases:
        mlflow.MlflowClient().delete_registered_model_alias(experiments.REGISTERED_NAME, alias)


# --- runs ----------------------------------------------------------------------------------------


def test_runs_are_found_by_name_and_tags(config: Config) -> None:
    for row, table in (("gru", "rivals"), ("lstm", "rivals"), ("gru", "ablations")):
        with experiments.training_run(config, name=row, tags={"row": row, "table": table}) as run:
            run.log_metrics({"test_csi": 0.5})
    found = experiments.find_runs(config, tags={"row": "gru", "table": "rivals"})
    assert [(one.name, one.tags["table"], one.status) for one in found] == [
        ("gru", "rivals", "FINISHED")
    ]
    assert found[0].metrics == {"test_csi": 0.5}
    assert found[0].params["model.rnn"] == config.model.rnn
    tables = [one.tags["table"] for one in experiments.find_runs(config, name="gru")]
    assert tables == ["ablations", "rivals"]  # the newest first
    assert experiments.find_runs(config, name="nobody") == []
    with pytest.raises(InputError, match="must hold no quote; found o'clock"):
        experiments.find_runs(config, tags={"row": "o'clock"})


def test_a_fold_is_nested_in_its_parent_and_a_run_is_taken_up_again(config: Config) -> None:
    with (
        experiments.training_run(config, name="parent", tags={"folds": "2"}) as parent,
        experiments.training_run(config, name="fold", parent=parent) as fold,
    ):
        fold.log_metrics({"loss": 1.0})
    (found,) = experiments.find_runs(config, name="fold")
    assert found.tags["mlflow.parentRunId"] == parent.run_id
    assert "git_commit" in found.tags or experiments.git_commit() is None
    with experiments.training_run(config, name="parent", resume=parent.run_id) as again:
        again.log_metrics({"csi": 0.25})
    (whole,) = experiments.find_runs(config, name="parent")
    assert (whole.run_id, whole.metrics, whole.tags["folds"]) == (parent.run_id, {"csi": 0.25}, "2")
    assert experiments.run_name(parent.run_id) == "parent"


def test_a_cut_run_is_found_and_ends_as_one(config: Config) -> None:
    tags = {"training": "0123"}
    assert experiments.cut_run(config, tags=tags) is None
    with experiments.training_run(config, name="cut", tags=tags) as run:
        run.log_metrics({"loss": 1.0}, step=1)
    mlflow.MlflowClient().set_terminated(run.run_id, "FAILED")
    cut = experiments.cut_run(config, tags=tags)
    assert cut is not None
    with experiments.training_run(config, name="cut", tags=tags, resume=cut.run_id) as again:
        assert again.steps("loss") == {1}
        again.log_metrics({"loss": 0.5}, step=2)
    assert experiments.cut_run(config, tags=tags) is None
    (whole,) = experiments.find_runs(config, name="cut")
    assert (whole.status, whole.metrics) == ("FINISHED", {"loss": 0.5})


def test_a_database_half_made_by_a_kill_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.partial").write_bytes(b"SQLite format 3\x00 and no more")
    uri = experiments.default_tracking_uri(tmp_path)
    assert experiments.use_tracking(uri, experiment="small") == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_run_that_breaks_is_marked_failed(config: Config) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        experiments.training_run(config, name="broken"),
    ):
        raise ZeroDivisionError
    (found,) = experiments.find_runs(config, name="broken")
    assert found.status == "FAILED"


# --- champion and rollback -----------------------------------------------------------------------


def test_champions_follow_one_another_and_one_rollback_is_possible(config: Config) -> None:
    first, second, third = versions(config, 3)
    assert experiments.aliased(CHAMPION) is None
    assert experiments.set_champion(first) is None
    assert experiments.aliased(PREVIOUS_CHAMPION) is None
    assert experiments.set_champion(second) == first
    assert experiments.set_champion(third) == second
    assert experiments.aliased(CHAMPION) == third
    assert experiments.aliased(PREVIOUS_CHAMPION) == second

    assert experiments.rollback() == (second, third)
    assert experiments.aliased(CHAMPION) == second
    client = mlflow.MlflowClient()
    told = client.get_model_version("medicane", str(third.version)).tags
    assert told["promotion"] == "rolled back"
    assert told["promotion_reason"] == f"version {second.version} was restored as champion"
    assert client.get_run(third.run_id).data.tags["promotion"] == "rolled back"
    assert client.get_run(second.run_id).data.tags["promotion"] == "restored"

    with pytest.raises(InputError, match=rf"found version {second.version} and none before it"):
        experiments.rollback()
    assert experiments.aliased(CHAMPION) == second
    forget(CHAMPION)


def test_the_same_champion_twice_forgets_nothing(config: Config) -> None:
    first, second = versions(config, 2)
    experiments.set_champion(first)
    experiments.set_champion(second)
    assert experiments.set_champion(second) == second  # as after a kill between the two aliases
    assert experiments.aliased(PREVIOUS_CHAMPION) == first
    assert experiments.rollback() == (first, second)
    forget(CHAMPION)


def test_no_champion_no_rollback(config: Config, tmp_path: Path) -> None:
    uri = experiments.tracking_uri(config)
    with pytest.raises(InputError, match=r"a champion before this; found no champion"):
        experiments.rollback(tracking=uri)
    absent = f"sqlite:///{tmp_path / 'absent.db'}"
    with pytest.raises(InputError, match="no such database"):
        experiments.rollback(tracking=absent)
    assert not (tmp_path / "absent.db").exists()
    empty = make_config(
        {"schema_version": 1, "data": {"grids": "x.nc", "store": str(tmp_path / "maps.zarr")}}
    )
    where = experiments.tracking_uri(empty)
    experiments.use_tracking(where, experiment="empty")
    assert experiments.aliased(CHAMPION, tracking=where) is None
    experiments.use_tracking(uri, experiment="governed")


def test_versions_are_found_tagged_and_described(config: Config) -> None:
    one, two = versions(config, 2)
    uri = experiments.tracking_uri(config)
    assert experiments.registered_model(one.uri, tracking=uri) == one
    assert experiments.registered_model(f"runs:/{two.run_id}") == two
    experiments.set_champion(two)
    assert experiments.registered_model("models:/medicane@champion") == two
    forget(CHAMPION)
    experiments.tag_version(one, {"promotion": "kept"})
    experiments.describe_version(one, "# A card")
    version = mlflow.MlflowClient().get_model_version("medicane", str(one.version))
    assert version.tags["promotion"] == "kept"
    assert version.description == "# A card"


@pytest.mark.parametrize(
    ("uri", "law"),
    [
        ("detector.keras", "must be a registered model"),
        ("models:/medicane/99", "no such model in sqlite"),
        ("models:/medicane@nobody", "no such model in sqlite"),
        ("models:/nothing/1", "no such model in sqlite"),
        (f"runs:/{'0' * 32}", "the run must have a registered model; found none"),
    ],
)
def test_a_model_that_is_not_registered_is_refused(config: Config, uri: str, law: str) -> None:
    versions(config, 1)
    with pytest.raises(InputError, match=law) as told:
        experiments.registered_model(uri)
    assert "\n" not in str(told.value)


# --- evaluations ---------------------------------------------------------------------------------


def test_an_evaluation_is_found_by_run_model_and_folder(config: Config, tmp_path: Path) -> None:
    (model,) = versions(config, 1)
    (tmp_path / "forecast.nc").write_bytes(b"forecast")
    experiments.reopened_run(model.run_id).log_file(
        tmp_path / "forecast.nc", folder="evaluation/test"
    )
    uri = experiments.tracking_uri(config)
    for run in (model.run_id, f"runs:/{model.run_id}", f"runs:/{model.run_id}/model", model.uri):
        found = experiments.evaluation_folder(run, split="test", tracking=uri)
        assert (found.path / "forecast.nc").read_bytes() == b"forecast"
        assert (found.name, found.run_id) == ("version 0", model.run_id)
    here = experiments.evaluation_folder(str(tmp_path), split="test")
    assert here == (tmp_path, tmp_path.name, None)


def test_what_was_not_evaluated_is_told(config: Config, tmp_path: Path) -> None:
    (model,) = versions(config, 1)
    for run, law in [
        (model.run_id, r"must be evaluated on the test split \('medicane evaluate'\); found no"),
        ("0" * 32, "no such run in sqlite"),
        ("nowhere", "must be a folder, an MLflow run or a registered model; found no such"),
        (str(tmp_path), "must hold what 'medicane evaluate' wrote; found no forecast.nc"),
    ]:
        with pytest.raises(InputError, match=law) as told:
            experiments.evaluation_folder(run, split="test")
        assert "\n" not in str(told.value)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "version", "pinned"),
    [
        ("models:/medicane@challenger", "3", "models:/medicane/3"),
        ("models:/medicane/2", "2", "models:/medicane/2"),
        ("runs:/0a1b/model", "run", "runs:/0a1b/model"),
        ("file:///data/me@home/detector.keras", "file", "file:///data/me@home/detector.keras"),
    ],
)
def test_a_uri_that_outlives_its_alias(uri: str, version: str, pinned: str) -> None:
    assert experiments.ModelFile(Path("detector.keras"), uri, version, None).pinned == pinned
