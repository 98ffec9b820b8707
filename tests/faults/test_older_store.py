"""A map store that an older version has half-written: one line says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

from medicane import names
from medicane.store import open_store
from medicane.store.commits import ArrayPlan, CommittedGroup
from tests.commands import Medicane, tree, untouched
from tests.small_project import SmallProject

#: Maps that the older version had written and committed of those it was to write.
COMMITTED, WRITTEN = 96, 130


def write_schema_1(path: Path, store: xr.Dataset) -> CommittedGroup:
    """Begin a store as it was before maps were packed: one float32 array of all channels.

    Chunks beyond the commit and a half-written file are left, as by a kill.
    """
    latitude, longitude = (store[name].values for name in (names.LATITUDE, names.LONGITUDE))
    grid = (latitude.size, longitude.size)
    channels = store[names.CHANNEL].values.astype(object)

    def along_time(dtype: Any) -> ArrayPlan:
        return ArrayPlan((names.TIME,), (), dtype, chunk=16384)

    def fixed(name: str, values: np.ndarray, dtype: Any) -> ArrayPlan:
        return ArrayPlan((name,), values.shape, dtype, values=values)

    group = CommittedGroup.create(
        path,
        {
            names.TIME: along_time("int64"),
            names.CHANNEL: fixed(names.CHANNEL, channels, str),
            names.LATITUDE: fixed(names.LATITUDE, latitude, "float64"),
            names.LONGITUDE: fixed(names.LONGITUDE, longitude, "float64"),
            "lsm": ArrayPlan(
                (names.LATITUDE, names.LONGITUDE), grid, "float32", values=np.zeros(grid, "f4")
            ),
            "maps": ArrayPlan(
                (names.TIME, names.CHANNEL, names.LATITUDE, names.LONGITUDE),
                (channels.size, *grid),
                "float32",
                chunk=24,
                compressed=False,
            ),
            "medicane": along_time("int8"),
            "storm": along_time(str),
        },
    )

    def rows(start: int, stop: int) -> dict[str, Any]:
        part = store.isel({names.TIME: slice(start, stop)})
        return {
            names.TIME: part[names.TIME].values.astype("datetime64[s]").astype(np.int64),
            "maps": part["maps"].values,
            "medicane": part["medicane"].values,
            "storm": part["storm"].values.astype(object),
        }

    recipe = json.loads(store.attrs["recipe"]) | {"schema_version": 1}
    group.append(rows(0, COMMITTED))
    group.commit(
        {**store.attrs, "schema_version": 1, "recipe": json.dumps(recipe), "complete": 0},
        more_follows=True,
    )
    group.append(rows(COMMITTED, WRITTEN))
    (path / "maps" / "zarr.json.partial").write_text('{"shape": [')
    return group


def maps_of(path: Path) -> tuple[dict[str, bytes | None], str]:
    """All files of a store but the root document, which names the sources; and its digest."""
    files = tree(path)
    root = json.loads(files.pop("zarr.json") or b"")
    return files, root["attributes"]["content_digest"]


class Older(NamedTuple):
    """Configuration, store, and what today's version makes of the same maps."""

    config: Path
    path: Path
    new: tuple[dict[str, bytes | None], str]


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


@pytest.fixture
def older(small_project: SmallProject, tmp_path: Path) -> Older:
    """A project whose store a version with schema 1 has half written."""
    config = small_project.copy_data(tmp_path / "project")
    path = tmp_path / "project" / "maps.zarr"
    new = maps_of(path)
    store = open_store(path).load()
    shutil.rmtree(path)
    write_schema_1(path, store)
    return Older(config, path, new)


def test_a_half_written_store_of_schema_1_is_told_and_prepared_anew(
    older: Older, medicane: Medicane
) -> None:
    config, path, new = older
    # It is what that version has left: plain Zarr, open to all.
    assert xr.open_zarr(path).sizes[names.TIME] == COMMITTED
    with untouched(path):
        told = medicane("prepare", "--config", config).line
        assert "schema_version: 1" in told
        assert "give data.store another path or remove the store" in told
        for command in ("train", "evaluate"):
            assert (
                "must be a map store of schema 2: remove it and run 'medicane prepare'; "
                "found schema 1" in medicane(command, "--config", config).line
            )
    shutil.rmtree(path)
    medicane.done("prepare", "--config", config)
    assert maps_of(path) == new


def test_what_an_older_version_had_not_committed_is_begun_anew(
    older: Older, medicane: Medicane
) -> None:
    config, path, new = older
    path.rename(path.with_name(".maps.zarr.partial"))
    medicane.done("prepare", "--config", config)
    assert maps_of(path) == new
    assert not path.with_name(".maps.zarr.partial").exists()
