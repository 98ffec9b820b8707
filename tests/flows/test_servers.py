"""The flows on a laptop, against a real Prefect server on loopback: a schedule that fires.

These tests also hold the pins of fastapi and sqlalchemy in pyproject.toml: with later ones `import
prefect` passes all the same, but its server answers 422 or silently schedules nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from tests.processes import answers, environment, free_port, running, wait_for
from tests.small_project import SmallProject
from tests.team import artifacts

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
