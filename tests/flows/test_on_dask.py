"""Flows on a dask cluster: tasks of a month on worker processes, the result of one process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.testing.utilities import prefect_test_harness

from flows import detect as detect_room
from flows import prepare as prepare_room
from medicane import pipeline
from medicane.detections import read_detections
from medicane.errors import InputError
from medicane.pipeline import scale_out
from tests.clusters import cluster
from tests.small_project import SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prefect() -> Iterator[SyncPrefectClient]:
    """Prefect with a database of its own in this process."""
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two worker processes."""
    with cluster(tmp_path_factory.mktemp("cluster"), workers=2) as made:
        yield made.address


def test_an_archive_is_labelled_month_by_month(
    small_project: SmallProject,
    prefect: SyncPrefectClient,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale_out, "BLOCK", 120)  # a month of six-hourly maps
    grids, model = [small_project.grids], str(small_project.model_path)
    known = {run.id for run in prefect.read_task_runs()}
    done = detect_room.detect(grids, model, str(tmp_path / "there"), scheduler=scheduler)
    runs = [run for run in prefect.read_task_runs() if run.id not in known]
    assert all(run.state is not None and run.state.is_completed() for run in runs)
    told = [run.name.rpartition("-")[0] for run in runs]
    assert told.count("label_block") == done.n_maps // 120 == 4
    assert told.count("find_lows_of_block") == 3  # nothing comes after the last one
    here = pipeline.detect(grids, model=model, out=tmp_path / "here")
    one, other = (read_detections(Path(found.detections))[0] for found in (done, here))
    np.testing.assert_allclose(one["logit"], other["logit"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(one["centre_latitude"], other["centre_latitude"])
    assert (tmp_path / "there" / "events.csv").read_text() == Path(here.events).read_text()


def test_a_store_is_prepared_by_workers(
    small_project: SmallProject, prefect: SyncPrefectClient, scheduler: str, tmp_path: Path
) -> None:
    digests = []
    for name, address in (("here", None), ("there", scheduler)):
        file = small_project.copy_data(tmp_path / name)
        shutil.rmtree(tmp_path / name / "maps.zarr")
        done = prepare_room.prepare(file, scheduler=address)
        assert done.n_new == done.n_maps == 480
        digests.append(done.digest)
    assert digests[0] == digests[1]


def test_bad_input_fails_the_run_and_leaves_nothing(
    small_project: SmallProject, prefect: Any, scheduler: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"absent\.nc"):
        detect_room.detect(
            [str(tmp_path / "absent.nc")],
            str(small_project.model_path),
            str(tmp_path / "out"),
            scheduler=scheduler,
        )
    assert not (tmp_path / "out").exists()
