"""Maps computed on a cluster: the store of one process, byte by byte, whoever is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from medicane import pipeline
from medicane.config import load_config
from medicane.errors import InputError
from tests.clusters import Cluster, cluster
from tests.commands import Medicane, tree
from tests.small_project import SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with one worker process, which must outlive the tests."""
    with cluster(tmp_path_factory.mktemp("cluster"), workers=1) as made:
        yield made
        assert made.workers[0].poll() is None


@pytest.fixture
def sea(small_project: SmallProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a sea whose store has not been written yet, in many small parts."""
    monkeypatch.setattr("medicane.store.BLOCK", 24)
    file = small_project.copy_data(tmp_path)
    shutil.rmtree(tmp_path / "maps.zarr")
    return file


def prepared(file: Path, *, anew: bool = True, **options: Any) -> dict[str, bytes | None]:
    """Every byte of the store after `prepare`."""
    store = file.parent / "maps.zarr"
    if anew:
        shutil.rmtree(store, ignore_errors=True)
    pipeline.prepare(load_config(file), **options)
    return tree(store)


def test_what_is_stored_does_not_depend_on_who_computes(sea: Path, processes: Cluster) -> None:
    """One process, a worker, or two of which one is killed on the way."""
    told: list[tuple[int, int]] = []
    here = prepared(sea)
    there = prepared(
        sea, scheduler=processes.address, progress=lambda done, of: told.append((done, of))
    )
    assert there == here
    assert len(told) > 2
    assert told[-1] == (480, 480)
    second = processes.add_worker()
    processes.wait_for(2)
    had: list[int] = []

    def kill(done: int, of: int) -> None:
        if not had:
            had.append(processes.kill(second))

    assert prepared(sea, scheduler=processes.address, progress=kill) == here
    assert had[0] > 0  # it was killed with parts to do


def test_a_preparation_that_was_cut_goes_on_elsewhere(sea: Path, processes: Cluster) -> None:
    """Begun on a cluster and ended here, or the other way round, the store is the same."""
    here = prepared(sea)

    def cut(done: int, of: int) -> None:
        raise KeyboardInterrupt

    for first, then in ((processes.address, None), (None, processes.address)):
        with pytest.raises(KeyboardInterrupt):
            prepared(sea, scheduler=first, progress=cut)
        begun = xr.open_zarr(sea.parent / "maps.zarr").sizes["time"]
        assert 0 < begun < 480
        assert prepared(sea, anew=False, scheduler=then) == here


def test_a_missing_map_is_told_and_what_came_before_is_kept(sea: Path, processes: Cluster) -> None:
    april = sea.parent / "sea" / "grids" / "era5_2001-04.nc"
    maps = xr.open_dataset(april).load()
    april.unlink()
    maps["msl"][{"valid_time": 100}] = np.nan
    maps.to_netcdf(april)
    with pytest.raises(InputError, match=r"2001-04-26T00:00: "):
        prepared(sea, scheduler=processes.address)
    assert xr.open_zarr(sea.parent / "maps.zarr").sizes["time"] >= 360


def test_the_command_prepares_on_a_cluster(
    sea: Path, processes: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    told = Medicane(capfd).done("prepare", "--config", sea, "--scheduler", processes.address)
    assert "maps       480 (480 new)" in told
