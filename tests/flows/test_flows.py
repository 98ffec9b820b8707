"""The flows: what they take, when they try again, what they leave in Prefect, what is served."""

from __future__ import annotations

import copy
import errno
import importlib
import inspect
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
import yaml
from cyclopts import App
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from prefect.testing.utilities import prefect_test_harness

from flows import detect as detect_room
from flows import prepare as prepare_room
from flows import promote as promote_room
from flows import serve
from flows import train as train_room
from flows import watch as watch_room
from flows.demo import flow_steps
from flows.retries import DELAYS, ON_IO_FAULT, io_fault
from medicane import cli, experiments, pipeline
from medicane.config import load_config
from medicane.errors import InputError
from tests.servers import webhook
from tests.small_project import SETTINGS, SmallProject
from tests.test_governance import CALLS_NONE, Registry
from tests.watched_grids import Feed

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
FLOWS = {
    "prepare": prepare_room.prepare,
    "train": train_room.train,
    "evaluate": train_room.evaluate,
    "detect": detect_room.detect,
    "promote": promote_room.promote,
    "watch": watch_room.watch,
}
TASKS = [
    prepare_room.write_store,
    train_room.fit,
    train_room.score,
    detect_room.label_new_maps,
    detect_room.label_month,
    promote_room.decide,
    watch_room.catch_up,
]


# --- what a flow module is ------------------------------------------------------------------------


def test_no_flow_module_imports_what_is_heavy() -> None:
    """TensorFlow does not survive a fork, and a runner imports every flow it may start."""
    script = (
        "import importlib, json, sys\n"
        f"for room in {ROOMS}: importlib.import_module('flows.' + room)\n"
        "heavy = ('tensorflow', 'keras', 'mlflow', 'matplotlib')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    assert len(ROOMS) >= 5


@pytest.mark.parametrize("room", ROOMS)
def test_parameter_types_are_types_at_run_time(room: str) -> None:
    """Prefect cannot resolve annotations that are strings."""
    module = importlib.import_module(f"flows.{room}")
    assert not hasattr(module, "annotations")
    for flow in FLOWS.values():
        assert not any(
            isinstance(p.annotation, str) for p in inspect.signature(flow.fn).parameters.values()
        )


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_named_and_told_like_its_command(name: str) -> None:
    flow = FLOWS[name]
    assert flow.name == name
    assert set(flow.parameters.properties) == set(inspect.signature(flow.fn).parameters)
    for parameter in flow.parameters.properties:
        assert f"\n{parameter}\n" in inspect.getdoc(flow.fn), parameter
    assert hasattr(pipeline, name)
    assert not flow.retries  # the tasks do: a flow run again would repeat what succeeded


def test_the_schema_of_detect_is_what_a_form_can_show() -> None:
    schema = FLOWS["detect"].parameters
    assert schema.required == ["inputs"]
    shown = schema.properties
    assert shown["inputs"]["type"] == "array"
    assert shown["inputs"]["minItems"] == 1
    assert shown["inputs"]["items"] == {"type": "string"}
    assert shown["mode"]["enum"] == ["causal", "fused"]
    assert shown["mode"]["default"] == "causal"
    assert shown["threshold"]["anyOf"][0] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
    }
    assert shown["out"]["type"] == "string"  # a folder or a URI
    assert shown["model"]["default"] == "models:/medicane@champion"
    assert shown["allow_short"]["default"] is False


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "promote", "watch"])
def test_the_other_flows_take_a_configuration_file(name: str) -> None:
    schema = FLOWS[name].parameters
    assert schema.required == ["config"]
    assert schema.properties["config"]["format"] == "file-path"


def test_the_splits_of_evaluate_are_those_of_the_step() -> None:
    told = inspect.signature(pipeline.evaluate, eval_str=True).parameters["split"].annotation
    assert FLOWS["evaluate"].parameters.properties["split"]["enum"] == list(get_args(told))


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("detect", {"inputs": []}, r"- inputs: .* at least 1 item"),
        ("detect", {"inputs": ["a.nc"], "threshold": 1.0}, r"- threshold: .* less than 1"),
        ("detect", {"inputs": ["a.nc"], "threshold": "high"}, r"- threshold: .* valid number"),
        ("detect", {"inputs": ["a.nc"], "mode": "streaming"}, r"- mode: .* 'causal' or 'fused'"),
        ("detect", {"inputs": ["a.nc"], "allow_short": "perhaps"}, r"- allow_short: .* boolean"),
        ("prepare", {"config": "missing.yaml"}, r"- config: .* not point to a file"),
        ("train", {"config": "missing.yaml"}, r"- config: .* not point to a file"),
        ("evaluate", {"config": __file__, "split": "holdout"}, r"- split: .* 'test'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_the_run(
    name: str, parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(ParameterTypeError, match=told):
        FLOWS[name].validate_parameters(parameters)


# --- when a task is tried again -------------------------------------------------------------------


def raised(*chain: BaseException, during: bool = False) -> BaseException:
    """The last of these exceptions, raised from (or while handling) the one before it."""
    first, *rest = chain
    for error in rest:
        try:
            try:
                raise first
            except BaseException as cause:
                if during:
                    raise error  # noqa: B904
                raise error from cause
        except BaseException as told:
            first = told
    return first


def retried(error: BaseException) -> bool:
    return io_fault(None, None, Failed(message="failed", data=error))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
        requests.exceptions.ConnectionError("Max retries exceeded"),
        requests.exceptions.ReadTimeout("read timed out"),
        raised(requests.ConnectionError("refused"), MlflowException("API request"), during=True),
        raised(ConnectionRefusedError("refused"), InputError("tracking.uri", "must answer")),
        raised(
            raised(requests.ConnectionError("no"), MlflowException("API request"), during=True),
            InputError("tracking.uri", "must answer"),
        ),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:40],
)
def test_a_fault_of_reading_or_writing_is_tried_again(error: BaseException) -> None:
    assert retried(error)


def silenced() -> BaseException:
    """An input error that was raised `from None` while a connection was lost."""
    try:
        try:
            raise ConnectionError("lost")
        except ConnectionError:
            raise InputError("a.nc", "must be NetCDF") from None
    except InputError as told:
        return told


@pytest.mark.parametrize(
    "error",
    [
        InputError("a.nc", "units must be a pressure", found="'K'"),
        raised(OSError("NetCDF: HDF error"), InputError("a.nc", "must be whole")),
        silenced(),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        FileExistsError(errno.EEXIST, "File exists"),
        MlflowException("Registered Model with name=medicane not found"),
        ValueError("shapes do not match"),
        KeyError("msl"),
        MemoryError(),
        AssertionError(),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:40],
)
def test_bad_input_and_faults_of_the_program_are_not(error: BaseException) -> None:
    assert not retried(error)


def test_what_succeeded_is_not_tried_again() -> None:
    assert not io_fault(None, None, Completed(data=1))


def test_a_tracking_server_that_does_not_answer_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exception that MLflow's client really raises, on a port where nobody listens."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9: .* must answer") as told:
        experiments.use_tracking("http://127.0.0.1:9", experiment="small")
    assert retried(told.value)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_the_one_policy(task: Any) -> None:
    assert task.retries == len(DELAYS) == 3
    assert task.retry_delay_seconds == DELAYS == sorted(DELAYS)
    assert task.retry_condition_fn is io_fault


# --- the tasks, as plain functions ----------------------------------------------------------------


def test_a_second_prepare_adds_nothing(small_project: SmallProject, tmp_path: Path) -> None:
    config_file = small_project.copy_data(tmp_path)
    again = prepare_room.write_store.fn(config_file)
    assert again.n_new == 0
    assert again.n_maps == 120 * 4  # January to April 2001, four maps a day
    assert Path(again.store) == tmp_path / "maps.zarr"


def test_a_second_detection_adds_nothing(small_project: SmallProject, tmp_path: Path) -> None:
    def labelled(inputs: list[str]) -> pipeline.Detected:
        return detect_room.label_new_maps.fn(
            inputs, str(small_project.model_path), tmp_path, "causal", "float32", None, False, None
        )

    first = labelled([small_project.new_grids])
    assert first.n_new == first.n_maps > 90
    before = Path(first.detections).read_bytes()
    second = labelled([small_project.new_grids])
    assert (second.n_new, second.n_skipped, second.n_maps) == (0, first.n_maps, first.n_maps)
    assert Path(first.detections).read_bytes() == before


def test_a_task_hands_every_choice_on(small_project: SmallProject, tmp_path: Path) -> None:
    done = detect_room.label_new_maps.fn(
        [small_project.new_grids],
        small_project.model_uri,
        tmp_path,
        "fused",
        "bfloat16",
        0.999,
        True,
        small_project.tracking_uri,
    )
    detections, _ = _read(done.detections)
    assert detections.attrs["mode"] == "fused"
    assert detections.attrs["precision"] == "bfloat16"
    assert detections.attrs["threshold"] == 0.999
    assert detections.attrs["model_uri"] == small_project.model_uri
    assert done.n_events == 0


def _read(path: str) -> Any:
    from medicane.detections import read_detections

    return read_detections(Path(path))


# --- the flows, in Prefect ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefect() -> Iterator[SyncPrefectClient]:
    """Prefect with a database of its own in this process (15 s)."""
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        yield client


def newest(client: SyncPrefectClient, key: str) -> Any:
    found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return max(found, key=lambda artifact: artifact.created)


def test_the_engine_tries_a_lost_connection_again_and_bad_input_not(prefect: Any) -> None:
    tries: list[str] = []
    policy = {**ON_IO_FAULT, "retry_delay_seconds": 0}

    @task(**policy)
    def unlucky(kind: str) -> str:
        tries.append(kind)
        if kind == "input":
            raise InputError("a.nc", "must be whole")
        if tries.count(kind) < 3:
            raise ConnectionError("lost")
        return "done"

    assert unlucky("connection") == "done"
    with pytest.raises(InputError, match="must be whole"):
        unlucky("input")
    assert tries == ["connection"] * 3 + ["input"]


def test_the_flow_prepare_tells_of_the_store(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    config_file = small_project.copy_data(tmp_path)
    prepared = prepare_room.prepare(config_file)
    assert isinstance(prepared, pipeline.Prepared)
    artifact = newest(prefect, "map-store")
    assert artifact.type == "table"
    rows = {row["what"]: row["value"] for row in json.loads(artifact.data)}
    assert rows == {key: str(value) for key, value in prepared.model_dump().items()}
    assert rows["digest"] == prepared.digest


def test_the_flow_evaluate_shows_the_scores(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    done = train_room.evaluate(
        small_project.config_file, model=str(small_project.model_path), out=tmp_path / "scores"
    )
    artifact = newest(prefect, "score-table")
    assert artifact.type == "markdown"
    assert artifact.data.startswith(done.table)
    assert "| detector |" in artifact.data
    assert artifact.description == "Scores on the test split"
    assert (tmp_path / "scores" / "scores.json").exists()
    assert done.report == str(tmp_path / "scores" / "report.html")


def test_the_flow_detect_shows_the_probabilities(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    done = detect_room.detect(
        inputs=[small_project.new_grids],
        model=small_project.model_uri,
        out=tmp_path,
        tracking_uri=small_project.tracking_uri,
    )
    artifact = newest(prefect, "probability-strip")
    assert artifact.data == pipeline.probability_strip(tmp_path / "detections.nc")
    strip = artifact.data.splitlines()[0].strip("`")
    assert len(strip) == len(set(_read(done.detections)[0]["time"].dt.date.values))
    assert set(strip) <= set("▁▂▃▄▅▆▇█·")
    assert artifact.description == f"{done.n_new} new maps, {done.n_events} events in all"


def test_the_flow_watch_leaves_its_status_and_tells_with_the_secret_of_a_block(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    Secret(value="planted-secret").save("planted-token", overwrite=True)
    with webhook() as (address, server):
        feed = Feed(
            tmp_path,
            small_project,
            watch={"webhook": address, "webhook_token": "planted-token"},
            detect={"threshold": 1e-6},  # every map is a detection
        )
        feed.put(1, 2, 3)
        model = str(small_project.model_path)
        done = watch_room.watch(feed.config_file, model=model, out=str(feed.out))
        again = watch_room.watch(feed.config_file, model=model, out=str(feed.out))
    assert (done.n_new, again.n_new, done.n_store) == (12, 0, 12)
    ((_, headers, body),) = server.posts
    assert headers["Authorization"] == "Bearer planted-secret"
    assert (body["id"], body["n_maps"]) == ("medicane_20010501T00", 12)
    artifact = newest(prefect, "watch-status")
    assert artifact.data == pipeline.status_text(again)
    assert artifact.description == "0 new maps, 0 labelled again, 0 onsets"
    assert json.loads((feed.out / "status.json").read_text()) == again.model_dump(mode="json")
    for run in prefect.read_flow_runs():
        assert "planted-secret" not in str(run.model_dump())
    absent = Feed(tmp_path / "absent", small_project, watch={"webhook": "absent-block"})
    with pytest.raises(InputError, match=r"watch\.webhook: .* Secret block"):
        watch_room.catch_up.fn(absent.config_file, model, str(absent.out), None, True)


def test_the_flow_promote_shows_the_decision(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    """The first model becomes champion, in a registry of its own."""
    registry = Registry(tmp_path, small_project)
    registry.challenger("first", CALLS_NONE)
    done = promote_room.promote(registry.config_file, model="models:/medicane/1")
    assert (done.decision, done.champion) == ("promoted", None)
    artifact = newest(prefect, "promotion")
    assert artifact.type == "markdown"
    assert artifact.data == done.text
    assert artifact.description.endswith("promoted: there is no champion yet")
    assert registry.bearer("champion") == 1


@pytest.mark.slow
def test_the_flow_promote_trains_first(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    config_file = small_project.copy_data(tmp_path)
    done = promote_room.promote(config_file)
    assert (done.decision, done.challenger) == ("promoted", "models:/medicane/1")
    assert (tmp_path / "scores.json").exists()  # the challenger was evaluated on the way
    with pytest.raises(InputError, match="version 1 is both"):
        promote_room.promote(config_file, and_train=False)


def test_bad_input_fails_the_run_and_leaves_nothing(
    small_project: SmallProject, prefect: Any, tmp_path: Path
) -> None:
    out = tmp_path / "detections"
    with pytest.raises(InputError, match=r"absent\.nc"):
        detect_room.detect(
            inputs=[str(tmp_path / "absent.nc")], model=str(small_project.model_path), out=out
        )
    assert not out.exists()
    latest = max(prefect.read_flow_runs(), key=lambda run: run.created)
    assert latest.state.is_failed()
    assert "absent.nc" in latest.state.message


@pytest.mark.slow
def test_the_demo_goes_through_the_flows(
    prefect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo with a smaller recipe; `make demo` runs these very steps."""
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "demo.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr("medicane.pipeline.demonstration.RECIPES", recipe.parent)
    known = {run.id for run in prefect.read_flow_runs()}
    done = pipeline.demo(tmp_path / "demo", seed=0, steps=flow_steps())
    assert (
        load_config(tmp_path / "demo" / "config.yaml").train.epochs == SETTINGS["train"]["epochs"]
    )
    runs = [run for run in prefect.read_flow_runs() if run.id not in known]
    assert len(runs) == 4
    assert all(run.state.is_completed() for run in runs)
    linked = newest(prefect, "mlflow-run").data
    assert done.trained.run_id in linked
    assert done.trained.model_uri in linked
    assert f"mlflow ui --backend-store-uri {done.trained.tracking_uri}" in linked
    assert newest(prefect, "score-table").data.startswith(done.evaluated.table)
    assert str(done.prepared.n_maps) in newest(prefect, "map-store").data
    assert newest(prefect, "probability-strip").description.startswith(str(done.detected.n_new))
    assert done.evaluated.run_id == done.trained.run_id
    assert done.trained.tracking_uri == f"sqlite:///{tmp_path / 'demo' / 'mlflow.db'}"


def test_two_projects_of_one_process_keep_their_runs_apart(
    small_project: SmallProject, tmp_path: Path
) -> None:
    """MLflow writes the URI that it is pointed at into the environment, which we also read."""
    experiments.model_file(small_project.model_uri, tracking=small_project.tracking_uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    other = load_config(small_project.copy_data(tmp_path))
    experiments.use_tracking(pipeline.tracking_uri(other), experiment="other")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert ("other",) in database.execute("select name from experiments").fetchall()
    assert pipeline.tracking_uri(small_project.config) == small_project.tracking_uri


def test_the_users_own_server_is_left_in_the_environment(
    small_project: SmallProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wished = f"sqlite:///{tmp_path / 'wished.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wished)
    experiments.model_file(small_project.model_uri, tracking=small_project.tracking_uri)
    assert pipeline.tracking_uri(small_project.config) == wished
    assert os.environ["MLFLOW_TRACKING_URI"] == wished


# --- what is served -------------------------------------------------------------------------------


def deployments_file(folder: Path, *deployments: dict[str, Any], **more: Any) -> Path:
    file = folder / "deployments.yaml"
    # Copies: what stands in the file twice would be written as an alias.
    copies = [copy.deepcopy(one) for one in deployments]
    values = {"schema_version": 1, "deployments": copies, **more}
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


DETECT = {"flow": "detect", "name": "daily", "parameters": {"inputs": ["latest/*.nc"]}}


def test_the_deployments_of_a_clone_can_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the paths in it start
    ready = serve.deployments_of(ROOT / "config" / "deployments.yaml")
    found = {f"{one.flow_name}/{one.name}": one for one in ready}
    assert len(found) == len(ready)
    daily = found["watch/daily"]
    written = serve.load_deployments(ROOT / "config" / "deployments.yaml").deployments[0]
    assert [s.schedule.cron for s in daily.schedules] == [written.cron] == ["30 7 * * *"]
    assert [s.schedule.timezone for s in daily.schedules] == ["UTC"]
    assert all(s.active is not False for s in daily.schedules)
    assert daily.parameters == written.parameters
    assert daily.enforce_parameter_schema
    assert found["train/on-demand"].schedules == []


@pytest.mark.parametrize("name", FLOWS)
def test_each_flow_can_be_served_from_any_folder_with_a_form_that_explains_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's own parser reads docstrings of another style, and would leave the form bare."""
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").touch()
    parameters = {"inputs": ["a.nc"]} if name == "detect" else {"config": "config.yaml"}
    file = deployments_file(tmp_path, {"flow": name, "name": "one", "parameters": parameters})
    (one,) = serve.deployments_of(file)
    assert one.parameters == parameters
    assert load_flow_from_entrypoint(one.entrypoint).name == name
    assert one.description
    assert "\n" not in one.description
    schema = one._parameter_openapi_schema
    assert schema.required == list(parameters)
    for parameter, field in schema.properties.items():
        assert len(field.get("description", "")) > 10, parameter
    if name == "detect":
        assert schema.properties["mode"]["enum"] == ["causal", "fused"]
        assert schema.properties["mode"]["default"] == "causal"
        assert schema.properties["precision"]["enum"] == ["float32", "bfloat16", "int8"]
        assert schema.properties["threshold"]["anyOf"][0]["exclusiveMaximum"] == 1


def test_a_schedule_has_the_time_zone_that_it_names(tmp_path: Path) -> None:
    file = deployments_file(tmp_path, {**DETECT, "cron": "0 6 * * 1-5", "timezone": "Europe/Rome"})
    ((schedule,),) = (one.schedules for one in serve.deployments_of(file))
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 6 * * 1-5", "Europe/Rome")


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"flow": "forget"}, r"deployments\.0\.flow: .*'watch'; found 'forget'"),
        ({"name": ""}, r"deployments\.0\.name: .*; found ''"),
        ({"name": "a/b"}, r"deployments\.0\.name: .*; found 'a/b'"),
        ({"cron": "61 * * * *"}, r"deployments\.0\.cron: must be a cron .* found '61 \* \* \* \*'"),
        ({"cron": "daily"}, r"deployments\.0\.cron: must be a cron expression: .* found 'daily'"),
        ({"timezone": "Mars/Base"}, r"deployments\.0\.timezone: .*; found 'Mars/Base'"),
        ({"every": "day"}, r"deployments\.0\.every: unknown key"),
        ({"parameters": ["a.nc"]}, r"deployments\.0\.parameters: .*dict"),
        ({"parameters": {"bogus": 1}}, r"daily\.parameters: .*'inputs', .*; found \['bogus'\]"),
        ({"parameters": {}}, r"daily\.parameters\.inputs: the flow detect requires it"),
        ({"parameters": {"inputs": []}}, r"daily\.parameters\.inputs: .* at least 1 item"),
        (
            {"parameters": {"inputs": ["a.nc"], "threshold": 2}},
            r"daily\.parameters\.threshold: .* less than 1; found 2",
        ),
        (
            {"flow": "prepare", "parameters": {"config": "absent.yaml"}},
            r"daily\.parameters\.config: .*not point to a file; found 'absent\.yaml'",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_would_fail_at_night_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], law: str
) -> None:
    file = deployments_file(tmp_path, {**DETECT, **change})
    with pytest.raises(InputError, match=law) as told:
        serve.deployments_of(file)
    assert str(told.value).startswith(str(file))
    assert "\n" not in str(told.value)
    assert "and 1 more" not in str(told.value)


def test_an_empty_list_and_a_name_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deployments: at least one is needed; found an empty"):
        serve.load_deployments(deployments_file(tmp_path))
    with pytest.raises(InputError, match=r"must differ in name; found \['detect/daily'\] twice"):
        serve.load_deployments(deployments_file(tmp_path, DETECT, DETECT))
    other = {**DETECT, "name": "weekly"}
    assert len(serve.load_deployments(deployments_file(tmp_path, DETECT, other)).deployments) == 2


def test_another_schema_and_no_file_are_refused(tmp_path: Path) -> None:
    file = deployments_file(tmp_path, DETECT)
    file.write_text(file.read_text().replace("schema_version: 1", "schema_version: 2"))
    with pytest.raises(InputError, match=r"schema_version: .*; found 2"):
        serve.load_deployments(file)
    with pytest.raises(InputError, match=r"absent\.yaml: must be a readable text file"):
        serve.load_deployments(tmp_path / "absent.yaml")


@pytest.mark.parametrize("pool", ["prefect-managed", "Prefect", "a/b", "a&b", ""])
def test_a_pool_that_no_server_would_make_is_refused_before_it_is_asked(pool: str) -> None:
    with pytest.raises(InputError, match=r"--pool .*: the name of a pool must not start with"):
        serve._make_pool(pool)


def test_serving_without_a_server_ends_with_one_line(tmp_path: Path) -> None:
    """Without an address Prefect would start a temporary server, which fires no schedule."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    file = deployments_file(tmp_path, {**DETECT, "cron": "* * * * *"})
    done = subprocess.run(
        [sys.executable, "-m", "flows.serve", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("medicane: PREFECT_API_URL: must name a running Prefect server")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("* * * * *", "http://127.0.0.1:9/api: the Prefect server must answer"),
        ("never", "deployments.0.cron: must be a cron expression"),
    ],
    ids=["no server there", "no cron"],
)
def test_serving_what_cannot_be_served_ends_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], cron: str, told: str
) -> None:
    """The deployments are looked at before the server."""
    file = deployments_file(tmp_path, {**DETECT, "cron": cron})
    command = App(name="serve", default_command=serve.main)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(SystemExit) as ended,
    ):
        cli.run(command, [str(file)])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("medicane: ")
    assert told in line
