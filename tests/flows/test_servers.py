"""The flows against real servers on loopback: a schedule that fires, a run that MLflow keeps.

These tests also hold the pins of fastapi and sqlalchemy in pyproject.toml: with later ones `import
prefect` passes all the same, but its server answers 422 or silently schedules nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from medicane import experiments
from medicane.config import Label, load_config, make_config
from medicane.pipeline import Trained
from medicane.store import open_store
from tests.small_project import SETTINGS, SmallProject

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


# --- servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with an empty database; the address of its API."""
    home = tmp_path_factory.mktemp("prefect")
    port, log = free_port(), home / "server.log"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(*command, log=log, env=environment(PREFECT_HOME=str(home))) as process:
        url = f"http://127.0.0.1:{port}/api"
        wait_for(
            "prefect server",
            lambda: answers(f"{url}/health"),
            process=process,
            log=log,
            seconds=90,
        )
        yield url


@pytest.fixture
def prefect(prefect_url: str) -> Iterator[Any]:
    """A client of the Prefect server."""
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(prefect_url) as client:
        yield client


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that keeps its artifacts itself; its address."""
    home = tmp_path_factory.mktemp("mlflow")
    port, log = free_port(), home / "server.log"
    command = [
        *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--artifacts-destination", str(home / "artifacts")),
    ]
    with running(*command, log=log, env=environment(), cwd=home) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(
            "mlflow server",
            lambda: answers(f"{url}/health"),
            process=process,
            log=log,
            seconds=90,
        )
        yield url


def artifacts(client: Any, key: str) -> list[Any]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    return list(client.read_artifacts(artifact_filter=chosen))


# --- a schedule fires -----------------------------------------------------------------------------


def test_a_scheduled_detection_runs_and_its_schedule_survives_the_stop(
    small_project: SmallProject, prefect_url: str, prefect: Any, tmp_path: Path
) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
    from prefect.exceptions import ObjectNotFound

    file, log = tmp_path / "deployments.yaml", tmp_path / "serve.log"
    wanted = {
        "flow": "detect",
        "name": "every-minute",
        "cron": "* * * * *",
        "parameters": {
            "inputs": [small_project.new_grids],
            "model": small_project.model_uri,
            "tracking_uri": small_project.tracking_uri,
            "out": "detections",
        },
    }
    file.write_text(yaml.safe_dump({"schema_version": 1, "deployments": [wanted]}, sort_keys=False))

    def deployed() -> Any:
        try:
            return prefect.read_deployment_by_name("detect/every-minute")
        except ObjectNotFound:
            return None

    def finished() -> Any:
        found = prefect.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id])
            )
        )
        ended = [run for run in found if run.state is not None and run.state.is_final()]
        for run in ended:
            assert run.state.is_completed(), f"{run.state}\n{log.read_text()[-6000:]}"
        return ended

    serve = environment(
        PREFECT_API_URL=prefect_url,
        PREFECT_HOME=str(tmp_path / "home"),
        PREFECT_RUNNER_POLL_FREQUENCY="2",
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    with running("-m", "flows.serve", str(file), log=log, env=serve, cwd=tmp_path) as process:
        deployment = wait_for("deployment", deployed, process=process, log=log, seconds=60)
        # At most a minute to the first tick, then TensorFlow's start.
        run = wait_for("scheduled run", finished, process=process, log=log, seconds=150)[0]
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)

    assert run.auto_scheduled
    assert run.expected_start_time.second == 0
    assert run.parameters["out"] == "detections"

    days = xr.open_dataset(tmp_path / "detections" / "detections.nc", decode_timedelta=False)
    with days, xr.open_mfdataset(small_project.new_grids) as grids:
        assert days.sizes["time"] == grids.sizes["valid_time"]
        assert np.isfinite(days["probability"].values).all()
        assert days.attrs["model_uri"] == small_project.model_uri
    assert (tmp_path / "detections" / "events.csv").exists()

    strips = [a for a in artifacts(prefect, "probability-strip") if a.flow_run_id == run.id]
    assert len(strips) == 1
    assert strips[0].type == "markdown"
    assert "2001-05-01 to 2001-05-" in strips[0].data
    events = pd.read_csv(tmp_path / "detections" / "events.csv")
    assert (
        strips[0].description
        == f"{grids.sizes['valid_time']} new maps, {len(events)} events in all"
    )

    left = prefect.read_deployment(deployment.id)
    assert not left.paused
    assert [schedule.active for schedule in left.schedules] == [True]
    assert left.schedules[0].schedule.cron == "* * * * *"
    assert left.schedules[0].schedule.timezone == "UTC"


# --- a run that MLflow keeps ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    small_project: SmallProject,
    prefect_url: str,
    mlflow_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Trained]:
    """The train flow, with its evaluation, in a process of its own against both servers."""
    folder = tmp_path_factory.mktemp("trained")
    config_file = small_project.copy_data(folder)
    script = (
        "import sys; from flows.train import train;"
        "print(train(sys.argv[1]).model_dump_json(), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(config_file)],
        env=environment(
            PREFECT_API_URL=prefect_url,
            PREFECT_HOME=str(folder / "home"),
            MLFLOW_TRACKING_URI=mlflow_url,
            TF_CPP_MIN_LOG_LEVEL="3",
            MPLBACKEND="Agg",
        ),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    summary = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return config_file, Trained.model_validate_json(summary)


@pytest.fixture
def mlflow(mlflow_url: str) -> Iterator[Any]:
    """MLflow's client of the server."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_url)


def logged_text(client: Any, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text(encoding="utf-8")


def test_the_run_says_how_to_repeat_it(trained, mlflow, mlflow_url, tmp_path) -> None:
    config_file, summary = trained
    config = load_config(config_file)
    digest = open_store(config.data.store).attrs["content_digest"]
    run = mlflow.get_run(summary.run_id)
    assert summary.tracking_uri == mlflow_url
    assert run.info.status == "FINISHED"
    assert mlflow.get_experiment(run.info.experiment_id).name == "small"

    assert run.data.params["model.growth_rate"] == "4"
    assert run.data.params["train.seed"] == "0"
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.params["label.version"] == "small-1"
    whole = yaml.safe_load(logged_text(mlflow, summary.run_id, "config.yaml", tmp_path))
    assert make_config(whole) == config
    packages = logged_text(mlflow, summary.run_id, "environment.txt", tmp_path).splitlines()
    assert any(line.startswith("keras==") for line in packages)
    assert len(packages) > 50

    assert run.data.tags["data_digest"] == digest
    assert run.data.tags["label_version"] == "small-1"
    assert run.data.tags["idealised_sea"] == "true"
    assert run.data.tags["software_version"]
    if experiments.git_commit() is None:  # a copy without its history
        assert "git_commit" not in run.data.tags
    else:
        assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", run.data.tags["git_commit"])
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == digest[:36]
    assert config.data.store in used.dataset.source
    definition = logged_text(mlflow, summary.run_id, "label_definition.json", tmp_path)
    assert Label.model_validate_json(definition) == config.label


def test_the_run_keeps_curves_and_figures(trained, mlflow, tmp_path) -> None:
    _, summary = trained
    epochs = list(range(1, SETTINGS["train"]["epochs"] + 1))
    for name in ("loss", "val_loss", "val_auc_pr", "learning_rate"):
        curve = mlflow.get_metric_history(summary.run_id, name)
        assert [point.step for point in curve] == epochs, name
    metrics = mlflow.get_run(summary.run_id).data.metrics
    assert metrics["threshold"] == pytest.approx(summary.threshold)
    assert metrics["temperature"] == pytest.approx(summary.temperature)
    figure = Path(mlflow.download_artifacts(summary.run_id, "figures", str(tmp_path)))
    assert (figure / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_evaluation_is_logged_to_the_run_of_the_training(trained, mlflow, tmp_path) -> None:
    config_file, summary = trained
    folder = Path(mlflow.download_artifacts(summary.run_id, "evaluation/test", str(tmp_path)))
    assert {path.name for path in folder.iterdir()} == {
        "figures",
        "forecast.nc",
        "report.html",
        "scores.json",
    }
    assert list((folder / "figures").glob("*.png"))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores == json.loads((config_file.parent / "scores.json").read_text())
    metrics = mlflow.get_run(summary.run_id).data.metrics
    assert metrics["test_csi"] == pytest.approx(scores["models"]["detector"]["csi"]["value"])
    assert mlflow.get_run(summary.run_id).info.status == "FINISHED"


def test_the_registered_model_carries_its_definition(
    trained, mlflow, mlflow_url, monkeypatch
) -> None:
    import mlflow as library

    # MLflow writes the address into the environment, where flows of later tests would find a
    # server that is gone by then.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)

    config_file, summary = trained
    version = mlflow.get_model_version_by_alias("medicane", "challenger")
    assert summary.model_uri == f"models:/medicane/{version.version}"
    assert version.run_id == summary.run_id
    label = load_config(config_file).label
    assert Label.model_validate_json(version.tags["label_definition"]) == label
    assert version.tags["label_version"] == "small-1"
    assert version.tags["data_digest"] == mlflow.get_run(summary.run_id).data.tags["data_digest"]
    assert float(version.tags["threshold"]) == pytest.approx(summary.threshold)

    library.set_tracking_uri(mlflow_url)
    described = library.models.get_model_info(summary.model_uri)
    (maps,) = described.signature.inputs.inputs
    assert (maps.name, maps.type) == ("maps", np.dtype("float32"))
    assert maps.shape == (-1, -1, -1, -1, len(SETTINGS["data"]["channels"]))
    (probability,) = described.signature.outputs.inputs
    assert probability.shape == (-1, -1, 1)
    assert described.saved_input_example_info is not None


def test_a_fresh_process_loads_the_model_and_predicts(trained, mlflow_url, tmp_path) -> None:
    script = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/medicane@challenger")
example = model.input_example
answer = np.asarray(model.predict(example))
import medicane
print(json.dumps({"maps": np.shape(example["maps"]), "probability": answer[..., 0].tolist(),
                  "shape": answer.shape, "code": medicane.__file__}))
"""
    # No PYTHONPATH: the code that loads the model came with it.
    bare = {k: v for k, v in environment(TF_CPP_MIN_LOG_LEVEL="3").items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, mlflow_url],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    length = SETTINGS["sequences"]["length"]
    assert answer["maps"][:2] == [1, length]
    assert answer["shape"] == [1, length, 1]
    assert all(0 < p < 1 for p in answer["probability"][0])
    assert not Path(answer["code"]).is_relative_to(ROOT)


def test_the_flow_run_links_to_the_mlflow_run_and_shows_the_scores(trained, prefect) -> None:
    _, summary = trained
    (link,) = artifacts(prefect, "mlflow-run")
    assert summary.run_page is not None
    assert summary.run_page.endswith(f"/runs/{summary.run_id}")
    assert summary.run_page in link.data
    assert answers(summary.run_page)
    (table,) = artifacts(prefect, "score-table")
    assert "| detector |" in table.data
    assert "CSI" in table.data
    assert all(
        run.state.is_completed()
        for run in prefect.read_flow_runs()
        if run.id in (link.flow_run_id, table.flow_run_id)
    )
