"""The tracking server is gone in mid-training: the model is on disk, the run is completed later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest

from medicane import experiments, pipeline
from medicane.model import load_detector
from tests.conftest import ROOT
from tests.flows.test_servers import answers, environment, free_port, running, wait_for
from tests.small_project import SmallProject

pytestmark = pytest.mark.slow


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A tracking server that keeps runs and artifacts in a folder."""
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = [
        *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with running(*command, log=log, env=environment(), cwd=folder) as process:
        wait_for("mlflow", lambda: answers(f"{url}/health"), process=process, log=log, seconds=120)
        yield process


def test_a_server_lost_in_mid_training_costs_nothing(
    small_project: SmallProject, tmp_path: Path
) -> None:
    config = small_project.copy_data(tmp_path / "project")
    kept, checkpoint = (config.with_name(f"training.{end}") for end in ("keras", "checkpoint.npz"))
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "medicane", "train", "--config", str(config)]
    own = environment(MLFLOW_TRACKING_URI=url, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    about = {"cwd": ROOT, "env": own, "text": True}

    with mlflow_server(folder, port) as server:
        training = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **about
        )
        while not checkpoint.exists():
            assert training.poll() is None, training.communicate()
            time.sleep(0.01)
        os.killpg(server.pid, signal.SIGKILL)  # asked, it would go on for seconds
    _, told = training.communicate(timeout=300)
    assert training.returncode == 2, told
    lines = told.splitlines()
    assert any("epoch 2 is not logged yet, the training goes on" in line for line in lines), told
    (line,) = (line for line in lines if line.startswith("medicane: "))
    assert f"tracking.uri: {url}: the tracking store must answer" in line
    assert f"the trained detector is in {kept}: run again when the tracking store answers" in line

    # The detector is that of a training that nothing has befallen, and does its work.
    undisturbed = load_detector(small_project.model_path).get_weights()
    for a, b in zip(load_detector(kept).get_weights(), undisturbed, strict=True):
        np.testing.assert_array_equal(a, b)
    found = pipeline.detect([small_project.new_grids], model=str(kept), out=tmp_path / "found")
    assert found.n_new > 100
    saved = kept.read_bytes()

    # Still no server: told before anything is done, and nothing is lost by asking.
    again = subprocess.run(command, capture_output=True, timeout=300, check=False, **about)
    assert again.returncode == 2, again.stderr
    assert kept.read_bytes() == saved

    with mlflow_server(folder, port):
        synced = subprocess.run(command, capture_output=True, timeout=300, check=False, **about)
        assert synced.returncode == 0, synced.stderr
        client = mlflow.MlflowClient(url)
        experiment = client.get_experiment_by_name("small")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        for metric in ("loss", "val_auc_pr"):
            steps = [one.step for one in client.get_metric_history(run.info.run_id, metric)]
            assert sorted(steps) == [1, 2]
        model = experiments.model_file("models:/medicane@challenger", tracking=url)
        assert (model.version, model.run_id) == ("1", run.info.run_id)
        assert model.path.read_bytes() == saved
    assert not kept.exists()
    assert not checkpoint.exists()
