"""A team's servers, and what people see on their pages: train → promote → watch through them.

Prefect and MLflow servers on PostgreSQL, artifacts on an object store, a process worker that runs
what is deployed: all of it as ``config/systemd`` starts it, on loopback. A browser looks at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import xarray as xr
import yaml

from medicane import experiments
from medicane.config import Label, load_config, make_config
from medicane.store import open_store
from tests.browser import Browser, browser
from tests.conftest import ROOT
from tests.processes import answers, environment, wait_for
from tests.servers import S3_ACCOUNT
from tests.small_project import SETTINGS, make_small_sea, write_config
from tests.team import Team, absent, artifacts, team

# Everything is started and run once, before the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

#: Half a day from now: planned, and not due while the tests run.
LATER = f"30 {(time.gmtime().tm_hour + 12) % 24} * * *"

#: What the team deploys. The challenger trains longer than the first model.
DEPLOYMENTS: list[dict[str, Any]] = [
    {"flow": "train", "name": "on-demand", "parameters": {"config": "config.yaml"}},
    {"flow": "promote", "name": "on-demand", "parameters": {"config": "longer.yaml"}},
    {
        "flow": "watch",
        "name": "daily",
        "cron": LATER,
        "parameters": {"config": "watch.yaml", "start": "2001-05-01"},
    },
    {"flow": "detect", "name": "on-demand", "parameters": {"inputs": ["sea/grids/*-05.nc"]}},
]
#: Those that are run, one after the other; the form of the last one is looked at alone.
RUN = ("train/on-demand", "promote/on-demand", "watch/daily")


# --- the servers, and what ran on them ------------------------------------------------------------


class Ran(NamedTuple):
    """Servers, runs of the flows behind them, the worker, the digest of what was trained on."""

    servers: Team
    runs: dict[str, Any]
    worker: psutil.Process
    digest: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Registered in a work pool, and run by a worker one after the other."""
    folder = tmp_path_factory.mktemp("team")
    longer = {"epochs": SETTINGS["train"]["epochs"] + 1}
    write_config(folder, train=longer).rename(folder / "longer.yaml")
    write_config(folder, data={"grids": ["sea/grids/era5_2001-0[1-5].nc"]}).rename(
        folder / "watch.yaml"
    )
    file = folder / "deployments.yaml"
    wanted = {"schema_version": 1, "deployments": DEPLOYMENTS}
    file.write_text(yaml.safe_dump(wanted, sort_keys=False))
    with team(folder) as servers:
        config = load_config(make_small_sea(folder))
        digest = open_store(config.data.store).attrs["content_digest"]
        servers.wait()
        done = subprocess.run(
            [sys.executable, "-m", "flows.serve", file.name, "--pool", "medicane"],
            env=environment(
                PREFECT_API_URL=f"{servers.prefect}/api", PREFECT_HOME=str(folder / "deploy")
            ),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(DEPLOYMENTS)
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_PREFETCH_SECONDS": "1"}
        with servers.started("medicane-worker.service", **quick) as (worker, log):
            runs = {
                name.partition("/")[0]: run_deployed(servers, name, worker, log) for name in RUN
            }
            yield Ran(servers, runs, psutil.Process(worker.pid), digest)


def run_deployed(servers: Team, name: str, worker: subprocess.Popen[bytes], log: Path) -> Any:
    """Ask for a run, as a person does on the page of the deployment; the run, completed."""
    with prefect_client(servers) as client:
        deployment = client.read_deployment_by_name(name)
        asked = client.create_flow_run_from_deployment(deployment.id)

        def ended() -> Any:
            run = client.read_flow_run(asked.id)
            return run if run.state is not None and run.state.is_final() else None

        run = wait_for(name, ended, process=worker, log=log, seconds=300)
        assert run.state.is_completed(), f"{run.state}\n{log.read_text()[-6000:]}"
        return run


def prefect_client(servers: Team) -> Any:
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(f"{servers.prefect}/api")


@pytest.fixture
def prefect(ran: Ran) -> Iterator[Any]:
    """A client of the Prefect server."""
    with prefect_client(ran.servers) as client:
        yield client


@pytest.fixture
def mlflow(ran: Ran) -> Any:
    """A client of the MLflow server."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=ran.servers.mlflow)


@pytest.fixture
def trained(ran: Ran, prefect: Any) -> str:
    """The id of the MLflow run of the train flow, found by the link that the flow leaves."""
    (link,) = (a for a in artifacts(prefect, "mlflow-run") if a.flow_run_id == ran.runs["train"].id)
    (address,) = re.findall(r"\((http[^)]*)\)", link.data)
    assert address.startswith(ran.servers.mlflow)
    assert answers(address)
    return str(address.rpartition("/")[2])


@pytest.fixture
def champion(mlflow: Any) -> Any:
    """The registered version that was promoted."""
    return mlflow.get_model_version_by_alias("medicane", "champion")


# --- a pool, a worker, a database, a store --------------------------------------------------------


def test_the_worker_ran_what_was_deployed(ran: Ran, prefect: Any) -> None:
    for run, one in zip(ran.runs.values(), DEPLOYMENTS, strict=False):
        assert run.work_pool_name == "medicane"
        assert run.parameters == one["parameters"]
        deployment = prefect.read_deployment(run.deployment_id)
        assert deployment.job_variables == {"working_dir": str(ran.servers.folder)}
        crons = [schedule.schedule.cron for schedule in deployment.schedules if schedule.active]
        assert crons == ([one["cron"]] if "cron" in one else [])
    assert prefect.read_work_pool("medicane").type == "process"
    # The scheduler has planned the coming mornings, on PostgreSQL too.
    assert any(run.auto_scheduled for run in prefect.read_flow_runs())


def test_the_longer_training_is_promoted_and_labels_the_new_month(
    ran: Ran, champion: Any, prefect: Any, mlflow: Any
) -> None:
    assert champion.version == mlflow.get_model_version_by_alias("medicane", "challenger").version
    assert mlflow.get_run(champion.run_id).data.params["train.epochs"] == "3"
    assert champion.tags["promotion"] == "promoted"
    (told,) = artifacts(prefect, "promotion")
    assert told.flow_run_id == ran.runs["promote"].id
    assert champion.version in told.description

    found = xr.open_dataset(ran.servers.folder / "detections" / "detections.nc")
    with found, xr.open_dataset(ran.servers.folder / "sea/grids/era5_2001-05.nc") as grids:
        assert np.array_equal(found["time"], grids["valid_time"])
        assert np.isfinite(found["probability"]).all()
        assert found.attrs["model_version"] == champion.version
        n_new = grids.sizes["valid_time"]
    (status,) = artifacts(prefect, "watch-status")
    assert status.flow_run_id == ran.runs["watch"].id
    assert status.description.startswith(f"{n_new} new maps, 0 labelled again")
    assert ran.digest != open_store(ran.servers.folder / "maps.zarr").attrs["content_digest"]


def test_runs_are_in_the_database_and_their_files_in_the_store(ran: Ran, trained: str) -> None:
    import boto3
    import psycopg2

    def ask(database: str, question: str) -> set[str]:
        password, port = ran.servers.secrets["PGPASSWORD"], ran.servers.ports[5432]
        told = {"host": "127.0.0.1", "user": "medicane", "password": password, "port": port}
        with contextlib.closing(psycopg2.connect(dbname=database, **told)) as connection:
            cursor = connection.cursor()
            cursor.execute(question)
            return {str(row[0]) for row in cursor.fetchall()}

    assert {str(run.id) for run in ran.runs.values()} <= ask("prefect", "SELECT id FROM flow_run")
    assert trained in ask("mlflow", "SELECT run_uuid FROM runs")
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(
            host="127.0.0.1",
            port=ran.servers.ports[5432],
            user="medicane",
            password="another",
            dbname="mlflow",
        )
    store = boto3.client(
        "s3",
        endpoint_url=ran.servers.store,
        region_name=S3_ACCOUNT["AWS_DEFAULT_REGION"],
        aws_access_key_id=S3_ACCOUNT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_ACCOUNT["AWS_SECRET_ACCESS_KEY"],
    )
    keys = [one["Key"] for one in store.list_objects_v2(Bucket="medicane")["Contents"]]
    assert all(key.startswith("mlflow/") for key in keys)
    assert any(key.endswith(f"{trained}/artifacts/config.yaml") for key in keys)
    assert any(key.endswith("detector.keras") for key in keys)
    kept = {path.name for path in ran.servers.folder.iterdir()}
    assert not kept & {"mlflow.db", "mlruns", "mlartifacts"}


def test_the_servers_listen_on_loopback_and_tell_no_secret(ran: Ran) -> None:
    listening = {
        one.laddr.port: one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    assert {listening[port] for port in ran.servers.ports.values()} == {"127.0.0.1"}
    secret = {v for k, v in ran.servers.secrets.items() if k in ("PGPASSWORD", *S3_ACCOUNT)}
    secret -= {S3_ACCOUNT["AWS_DEFAULT_REGION"]}
    # The worker has none, so that no run can tell one; and none is in a command or a log.
    assert not secret & set(ran.worker.environ().values())
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            assert not any(word in " ".join(process.cmdline()) for word in secret), process.name()
    for log in (ran.servers.folder / "logs").iterdir():
        assert not any(word in log.read_text(errors="replace") for word in secret), log.name


# --- a run that MLflow keeps ----------------------------------------------------------------------


def logged_text(client: Any, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text(encoding="utf-8")


def test_the_run_says_how_to_repeat_it(ran: Ran, trained: str, mlflow: Any, tmp_path: Path) -> None:
    config = load_config(ran.servers.folder / "config.yaml")
    digest = ran.digest
    run = mlflow.get_run(trained)
    assert run.info.status == "FINISHED"
    assert mlflow.get_experiment(run.info.experiment_id).name == "small"

    assert run.data.params["model.growth_rate"] == "4"
    assert run.data.params["train.seed"] == "0"
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.params["label.version"] == "small-1"
    whole = yaml.safe_load(logged_text(mlflow, trained, "config.yaml", tmp_path))
    assert make_config(whole) == config
    packages = logged_text(mlflow, trained, "environment.txt", tmp_path).splitlines()
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
    definition = logged_text(mlflow, trained, "label_definition.json", tmp_path)
    assert Label.model_validate_json(definition) == config.label


def test_the_run_keeps_curves_and_figures(trained: str, mlflow: Any, tmp_path: Path) -> None:
    epochs = list(range(1, SETTINGS["train"]["epochs"] + 1))
    for name in ("loss", "val_loss", "val_auc_pr", "learning_rate"):
        curve = mlflow.get_metric_history(trained, name)
        assert [point.step for point in curve] == epochs, name
    assert {"threshold", "temperature"} <= set(mlflow.get_run(trained).data.metrics)
    figure = Path(mlflow.download_artifacts(trained, "figures", str(tmp_path)))
    assert (figure / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_evaluation_is_logged_to_the_run_of_the_training(
    ran: Ran, champion: Any, mlflow: Any, tmp_path: Path
) -> None:
    folder = Path(mlflow.download_artifacts(champion.run_id, "evaluation/test", str(tmp_path)))
    assert {path.name for path in folder.iterdir()} == {
        "figures",
        "forecast.nc",
        "report.html",
        "scores.json",
    }
    assert list((folder / "figures").glob("*.png"))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores == json.loads((ran.servers.folder / "scores.json").read_text())
    metrics = mlflow.get_run(champion.run_id).data.metrics
    assert metrics["test_csi"] == pytest.approx(scores["models"]["detector"]["csi"]["value"])
    assert mlflow.get_run(champion.run_id).info.status == "FINISHED"


def test_the_registered_model_carries_its_definition(
    ran: Ran, champion: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow as library

    # MLflow writes the address into the environment, where flows of later tests would find a
    # server that is gone by then.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ran.servers.mlflow)

    version, metrics = champion, mlflow.get_run(champion.run_id).data.metrics
    label = load_config(ran.servers.folder / "longer.yaml").label
    assert Label.model_validate_json(version.tags["label_definition"]) == label
    assert version.tags["label_version"] == "small-1"
    assert version.tags["data_digest"] == mlflow.get_run(version.run_id).data.tags["data_digest"]
    assert float(version.tags["threshold"]) == pytest.approx(metrics["threshold"])

    library.set_tracking_uri(ran.servers.mlflow)
    described = library.models.get_model_info("models:/medicane@champion")
    (maps,) = described.signature.inputs.inputs
    assert (maps.name, maps.type) == ("maps", np.dtype("float32"))
    assert maps.shape == (-1, -1, -1, -1, len(SETTINGS["data"]["channels"]))
    (probability,) = described.signature.outputs.inputs
    assert probability.shape == (-1, -1, 1)
    assert described.saved_input_example_info is not None


def test_a_fresh_process_loads_the_model_and_predicts(ran: Ran, tmp_path: Path) -> None:
    script = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/medicane@champion")
example = model.input_example
answer = np.asarray(model.predict(example))
import medicane
print(json.dumps({"maps": np.shape(example["maps"]), "probability": answer[..., 0].tolist(),
                  "shape": answer.shape, "code": medicane.__file__}))
"""
    # No PYTHONPATH: the code that loads the model came with it.
    bare = {k: v for k, v in environment(TF_CPP_MIN_LOG_LEVEL="3").items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, ran.servers.mlflow],
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


# --- what a person sees ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        absent("chromium chromium-driver")
    with browser(tmp_path_factory.mktemp("browser"), program=program, driver=driver) as opened:
        yield opened


def test_the_page_of_a_run_says_how_it_ended_and_what_it_left(
    ran: Ran, prefect: Any, page: Browser
) -> None:
    run = ran.runs["promote"]
    page.open(f"{ran.servers.prefect}/runs/flow-run/{run.id}")
    page.sees(run.name, "Completed", "promote", "on-demand", "medicane", "1 Task run")
    page.click("Artifacts")
    (told,) = artifacts(prefect, "promotion")
    page.sees("promotion", told.description)
    page.open(f"{ran.servers.prefect}/artifacts/artifact/{told.id}")
    page.sees("promotion", "champion", "CSI")


def test_the_form_of_a_deployment_says_what_each_parameter_is(
    ran: Ran, prefect: Any, page: Browser
) -> None:
    deployment = prefect.read_deployment_by_name("detect/on-demand")
    page.open(f"{ran.servers.prefect}/deployments/deployment/{deployment.id}/run")
    parameters = deployment.parameter_openapi_schema["properties"]
    page.sees("Parameters", *parameters)
    told = (" ".join(one["description"].replace("`", "").split()) for one in parameters.values())
    page.sees(*told)
    # What it takes if nothing is changed: the deployment's own values, and the flow's.
    assert {"sea/grids/*-05.nc", "models:/medicane@champion"} <= page.filled_in()
    page.sees("causal", "fused", "float32", "bfloat16", "int8")


def test_mlflow_shows_two_runs_side_by_side(
    ran: Ran, trained: str, champion: Any, mlflow: Any, page: Browser
) -> None:
    runs = [mlflow.get_run(run_id) for run_id in (trained, champion.run_id)]
    experiment = runs[0].info.experiment_id
    asked = f"runs={json.dumps([run.info.run_id for run in runs])}&experiments=[%22{experiment}%22]"
    page.open(f"{ran.servers.mlflow}/#/compare-runs?{asked}")
    page.sees("Comparing 2 Runs", "Run details", "Parameters", "Metrics")
    page.sees(*(run.info.run_id for run in runs), *(run.info.run_name for run in runs))
    page.sees("train.epochs 2 3", "best_val_auc_pr", "test_auc_pr")
    page.sees(*(f"{round(run.data.metrics['test_auc_pr'], 3):g}" for run in runs))


def test_the_report_shows_scores_with_intervals_and_every_figure(ran: Ran, page: Browser) -> None:
    page.open((ran.servers.folder / "report.html").as_uri())
    scores = json.loads((ran.servers.folder / "scores.json").read_text())
    page.sees("verification report", "Synthetic data only", "Scores per map", "Scores per event")
    for score in ("csi", "pod", "far"):
        value = scores["models"]["detector"][score]
        page.sees(f"{value['value']:.2f}", f"{value['low']:.2f} to {value['high']:.2f}")
    page.sees(*scores["models"], "AUC-PR", "Brier skill", "false alarms a year")
    figures = page.figures()
    assert len(figures) >= 5
    assert all(width > 200 for width in figures), figures
    assert page.faults() == []
