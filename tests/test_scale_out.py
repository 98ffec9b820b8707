"""Detection on a cluster: the labels of one process, whoever computes them and whoever is lost."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401  it brings its settings
import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import pipeline
from medicane.detections import read_detections
from medicane.errors import InputError
from medicane.pipeline import cluster as on_cluster
from medicane.pipeline import scale_out
from medicane.pipeline.detection import follow_on
from medicane.pipeline.scale_out import Block, blocks_of
from medicane.predict import Mode, predict
from medicane.sequences import contiguous_periods
from tests.clusters import Cluster, cluster
from tests.commands import Medicane, process, untouched
from tests.small_networks import CHANNELS, build, standard_maps
from tests.small_project import SmallProject

LENGTH = 10
SEA = np.ones((1, 1), bool)


# --- the cut --------------------------------------------------------------------------------------


def clock(*runs: int) -> pd.DatetimeIndex:
    """Runs of six-hourly times with a gap after each."""
    parts, start = [], pd.Timestamp("2020-01-01")
    for n in runs:
        parts.append(pd.date_range(start, periods=n, freq="6h"))
        start = parts[-1][-1] + pd.Timedelta("10D")
    return pd.DatetimeIndex(np.concatenate(parts)).as_unit("ns")


def bare(times: pd.DatetimeIndex) -> xr.DataArray:
    """A series whose one value is the number of its map."""
    return xr.DataArray(np.arange(len(times)), dims="time", coords={"time": times})


def read_by(block: Block, series: xr.DataArray, n_history: int) -> list[int]:
    """The maps that a task reads, counted on the whole series; the files hold the last of them."""
    from_files = np.asarray(series)[n_history:][block.positions].tolist()
    return [*([] if block.history is None else block.history.values.tolist()), *from_files]


def windows_of(at: int, periods: list[slice], mode: str) -> list[range]:
    """The windows that a map has a label from, in one process."""
    period = next(p for p in periods if p.start <= at < p.stop)
    least = min(LENGTH, period.stop - period.start)
    opening = range(period.start, period.start + least)
    if mode == "causal":
        return [opening if at in opening else range(at - LENGTH + 1, at + 1)]
    starts = range(max(period.start, at - LENGTH + 1), min(at, period.stop - least) + 1)
    return [range(start, start + least) for start in starts]


@given(
    runs=st.lists(st.integers(1, 45), min_size=1, max_size=5),
    n_history=st.integers(0, LENGTH - 1),
    mode=st.sampled_from(["causal", "fused"]),
    size=st.integers(LENGTH, 40),
)
@settings(deadline=None)
def test_a_block_holds_every_window_of_its_maps(
    runs: list[int], n_history: int, mode: Mode, size: int
) -> None:
    times = clock(*runs)
    n_history = min(n_history, runs[0] - 1)
    series, periods = bare(times), contiguous_periods(times, step_hours=6)
    blocks = blocks_of(
        series,
        np.arange(len(times) - n_history),
        sea=SEA,
        length=LENGTH,
        step_hours=6,
        mode=mode,
        size=size,
    )
    own: list[int] = []
    for block in blocks:
        read = read_by(block, series, n_history)
        assert read == list(range(read[0], read[-1] + 1))
        own += read[block.own]
        for at in read[block.own]:
            for window in windows_of(at, periods, mode):
                assert set(window) <= set(read)
        from_files = read if block.history is None else read[block.history.size :]
        assert from_files[block.new] == [at for at in read[block.own] if at >= n_history]
        assert block.times.equals(times[from_files])
    assert own == list(range(len(times)))


def test_thinned_maps_keep_their_positions_and_one_run_is_a_slice() -> None:
    cut: dict[str, Any] = {"sea": SEA, "length": LENGTH, "step_hours": 6, "mode": "causal"}
    every_other = blocks_of(bare(clock(30)), np.arange(3, 63, 2), **cut, size=20)
    assert [block.own for block in every_other] == [slice(0, 20), slice(9, 19)]
    np.testing.assert_array_equal(np.arange(63)[every_other[1].positions], np.arange(25, 63, 2))
    (whole,) = blocks_of(bare(clock(30)), np.arange(7, 37), **cut)
    assert whole.positions == slice(7, 37, 1)


def test_a_block_is_no_shorter_than_a_sequence() -> None:
    cut = blocks_of(
        bare(clock(30)), np.arange(30), sea=SEA, length=12, step_hours=6, mode="causal", size=1
    )
    assert [block.own.stop - block.own.start for block in cut] == [12, 12, 6]


@pytest.fixture(scope="module")
def networks() -> dict[str, keras.Model]:
    chosen: dict[str, dict[str, Any]] = {
        "gru": {},
        "both_ways": {"bidirectional": True},
        "over_time": {"encoder": "c3d", "rnn": "none", "out_of_domain": True},
    }
    return {name: build(**keys) for name, keys in chosen.items()}


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("name", ["gru", "both_ways", "over_time"])
@pytest.mark.parametrize("allow_short", [False, True])
def test_blocks_are_labelled_as_the_whole(
    networks: dict[str, keras.Model], name: str, mode: Mode, allow_short: bool
) -> None:
    """Over gaps, in periods shorter than a sequence, with maps that are in no file any more."""
    times = clock(23, 4, 17)
    maps = xr.DataArray(
        standard_maps(len(times), 8, 9).transpose(0, 3, 1, 2),
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": times,
            "channel": list(CHANNELS),
            "latitude": np.linspace(40, 36.5, 8),
            "longitude": np.linspace(10, 14, 9),
        },
    )
    how: dict[str, Any] = {"mode": mode, "allow_short": allow_short}
    expected = predict(networks[name], maps, **how)
    parts = []
    cut = blocks_of(
        maps, np.arange(len(times) - 5), sea=SEA, length=LENGTH, step_hours=6, mode=mode, size=15
    )
    assert len(cut) == 3
    assert cut[0].history is not None
    for block in cut:
        part = maps[5:].isel(time=block.positions)
        series = part if block.history is None else follow_on(block.history, part)
        parts.append(predict(networks[name], series, **how, allow_none=True).isel(time=block.own))
    found = xr.concat(parts, "time", join="exact")
    assert found["time"].equals(expected["time"])
    for variable in expected:
        np.testing.assert_allclose(found[variable], expected[variable], rtol=1e-5, atol=1e-6)


# --- on a cluster ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks short enough for a few months to have several."""
    monkeypatch.setattr(scale_out, "BLOCK", 50)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with one worker process, which must outlive the tests."""
    with cluster(tmp_path_factory.mktemp("cluster"), workers=1) as made:
        yield made
        assert made.workers[0].poll() is None


@pytest.fixture
def at_hand(processes: Cluster) -> str:
    """The address of a scheduler with a worker."""
    return processes.address


def same(found: str, expected: str) -> None:
    """Detections that differ in the last bits of a probability at most."""
    (one, kept), (other, also_kept) = (read_detections(Path(path)) for path in (found, expected))
    for name in ("logit", "probability"):
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6)
        one[name].values = other[name].values
    xr.testing.assert_equal(one, other)
    assert one.attrs | {"source": ""} == other.attrs | {"source": ""}
    assert [one[name].attrs.keys() for name in one] == [other[name].attrs.keys() for name in one]
    assert kept is not None
    assert also_kept is not None
    xr.testing.assert_identical(kept, also_kept)
    for table in ("events.csv", "tracks.csv"):
        rows = [pd.read_csv(Path(path).with_name(table)) for path in (found, expected)]
        pd.testing.assert_frame_equal(*rows, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["causal", "fused"])
def test_labels_are_those_of_one_process(
    small_project: SmallProject, at_hand: str, tmp_path: Path, mode: Any
) -> None:
    """In one call and in two: the second goes on from what the first has kept."""
    told: list[tuple[int, int]] = []
    how: dict[str, Any] = {"model": str(small_project.model_path), "mode": mode}
    months = [small_project.grids.replace("[1-4]", str(k)) for k in (1, 2)]
    here = pipeline.detect(months, out=tmp_path / "here", **how)
    assert here.n_maps == 59 * 4
    there = pipeline.detect(
        months,
        out=tmp_path / "there",
        scheduler=at_hand,
        progress=lambda done, of: told.append((done, of)),
        **how,
    )
    same(there.detections, here.detections)
    assert told == [(min(done, 236), 236) for done in (50, 100, 150, 200, 250)]
    pipeline.detect(months[:1], out=tmp_path / "grown", scheduler=at_hand, **how)
    grown = pipeline.detect(months[1:], out=tmp_path / "grown", scheduler=at_hand, **how)
    assert (grown.n_maps, grown.n_new) == (here.n_maps, 28 * 4)
    same(grown.detections, here.detections)


@pytest.mark.slow
def test_a_map_that_comes_alone_is_labelled_too(
    small_project: SmallProject, at_hand: str, tmp_path: Path
) -> None:
    month = xr.open_dataset(small_project.new_grids).load()
    how: dict[str, Any] = {"model": str(small_project.model_path)}
    for name, maps in (("before", month.isel(valid_time=slice(-2))), ("all", month)):
        maps.to_netcdf(tmp_path / f"{name}.nc")
        for out, scheduler in (("here", None), ("there", at_hand)):
            pipeline.detect(
                [str(tmp_path / f"{name}.nc")], out=tmp_path / out, scheduler=scheduler, **how
            )
    same(str(tmp_path / "there" / "detections.nc"), str(tmp_path / "here" / "detections.nc"))


@pytest.mark.slow
def test_too_few_maps_are_told_as_in_one_process(
    small_project: SmallProject, at_hand: str, tmp_path: Path
) -> None:
    xr.open_dataset(small_project.new_grids).isel(valid_time=slice(4)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"one sequence is 10 maps .* found 4 maps"):
        pipeline.detect(
            [tmp_path / "a.nc"],
            model=str(small_project.model_path),
            out=tmp_path / "out",
            scheduler=at_hand,
        )
    short = pipeline.detect(
        [tmp_path / "a.nc"],
        model=str(small_project.model_path),
        out=tmp_path / "out",
        scheduler=at_hand,
        allow_short=True,
    )
    assert (short.n_maps, short.n_unlabelled) == (4, 0)


@pytest.mark.slow
def test_a_missing_map_is_told_as_in_one_process(
    small_project: SmallProject, at_hand: str, tmp_path: Path
) -> None:
    """The first one in time, whichever block is done first."""
    month = xr.open_dataset(small_project.new_grids).load()
    month["msl"][{"valid_time": [70, 110]}] = np.nan
    month.to_netcdf(tmp_path / "a.nc")
    told = []
    for scheduler in (None, at_hand):
        with pytest.raises(InputError) as error:
            pipeline.detect(
                [tmp_path / "a.nc"],
                model=str(small_project.model_path),
                out=tmp_path / "out",
                scheduler=scheduler,
            )
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "2001-05-18T12:00" in told[0]
    assert not (tmp_path / "out" / "detections.nc").exists()


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


def words(project: SmallProject, out: Path, address: str) -> list[object]:
    grids, model = project.new_grids, project.model_path
    return ["detect", grids, "--model", model, "--out", out, "--scheduler", address]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("tcp://127.0.0.1:9", "Timed out"),
        ("nowhere", "nowhere"),
        ("carrier-pigeon://roof", "carrier-pigeon"),
    ],
)
def test_no_scheduler(
    small_project: SmallProject,
    medicane: Medicane,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    found: str,
) -> None:
    monkeypatch.setattr(on_cluster, "PATIENCE", 1)
    with untouched(tmp_path):
        line = medicane(*words(small_project, tmp_path, address)).line
    assert line.startswith(f"medicane: --scheduler {address}: a dask scheduler must answer there; ")
    assert found in line


def test_without_distributed(
    small_project: SmallProject, medicane: Medicane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = medicane(*words(small_project, tmp_path, "tcp://127.0.0.1:9")).line
    assert "--scheduler: needs dask.distributed: pip install 'medicane[cluster]'" in line


#: Page faults of an array of 8 MB, made forty times anew: 80,000, were it cleared each time.
FAULTS = """
import resource, sys
import numpy as np
from medicane.pipeline import cluster
if sys.argv[1] == "kept":
    cluster._keep_memory()
np.ones(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    np.ones(2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_worker_keeps_the_memory_of_an_array_for_the_next_one() -> None:
    """As dask starts its workers, each array would be cleared a page at a time."""
    told = dask.config.get("distributed.nanny.pre-spawn-environ")
    env = os.environ | {name: str(value) for name, value in told.items()}
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], env=env, stdout=subprocess.PIPE, check=True
            ).stdout
        )
        for how in ("kept", "returned")
    }
    assert faults["returned"] > 20_000
    assert faults["kept"] < faults["returned"] / 10


#: What stands first on the path of a worker that is not as it should be.
AMISS = {
    "without": (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'medicane':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
    ),
    "another": "import medicane\nmedicane.__version__ = '0.0.1'\n",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("amiss", "law"),
    [
        (
            "without",
            r"worker tcp://.*: must have medicane [\d.]+; found No module named 'medicane'",
        ),
        ("another", r"worker tcp://.*: must have medicane [\d.]+; found 0\.0\.1"),
    ],
)
def test_a_worker_without_this_medicane(
    small_project: SmallProject, medicane: Medicane, tmp_path: Path, amiss: str, law: str
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(AMISS[amiss], encoding="utf-8")
    with cluster(tmp_path, workers=0) as made:
        made.add_worker(path=tmp_path / "path")
        made.wait_for(1)
        line = medicane(*words(small_project, tmp_path / "out", made.address)).line
    assert re.match(f"medicane: {law}", line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_that_a_worker_does_not_see(
    small_project: SmallProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This path names another folder for each process; and a worker may come late."""
    shutil.copy(small_project.new_grids, tmp_path / "a.nc")
    monkeypatch.chdir(tmp_path)
    grids = "/proc/self/cwd/a.nc"
    if not os.path.exists(grids):
        pytest.skip("no /proc on this system")
    with cluster(tmp_path, workers=0) as made:
        later = threading.Timer(3, made.add_worker)
        later.start()
        with pytest.raises(
            InputError, match=r"worker tcp://.*: /proc/self/cwd/a\.nc: each worker must see"
        ):
            pipeline.detect(
                [grids],
                model=str(small_project.model_path),
                out=tmp_path / "out",
                scheduler=made.address,
            )
        later.join()


# --- processes that are lost ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_worker_changes_nothing(
    small_project: SmallProject, processes: Cluster, tmp_path: Path
) -> None:
    """Not a byte, whether one does the work, two do, or one of the two is killed on the way."""

    def labelled(name: str, progress: Any = None) -> bytes:
        done = pipeline.detect(
            [small_project.grids, small_project.new_grids],
            model=str(small_project.model_path),
            out=tmp_path / name,
            scheduler=processes.address,
            progress=progress,
        )
        return Path(done.detections).read_bytes()

    by_one = labelled("one")
    second = processes.add_worker()
    processes.wait_for(2)
    assert labelled("two") == by_one
    had: list[int] = []

    def kill(done: int, of: int) -> None:
        if not had:
            had.append(processes.kill(second))

    assert labelled("one_lost", kill) == by_one
    assert had[0] > 0  # it was killed with blocks to do


@pytest.mark.slow
def test_a_lost_scheduler_is_told(small_project: SmallProject, tmp_path: Path) -> None:
    """It ends while the command waits for a first worker, of which it says so."""

    class Ending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert "there is no worker yet" in record.getMessage()
            made.scheduler.kill()

    out, log = tmp_path / "out", logging.getLogger(on_cluster.__name__)
    with cluster(tmp_path, workers=0) as made:
        log.addHandler(ending := Ending())
        try:
            with pytest.raises(InputError, match=r"--scheduler tcp://.*: .* must not end"):
                pipeline.detect(
                    [small_project.new_grids],
                    model=str(small_project.model_path),
                    out=out,
                    scheduler=made.address,
                )
        finally:
            log.removeHandler(ending)
    assert not (out / "detections.nc").exists()


@pytest.mark.slow
def test_the_command_labels_on_a_cluster(
    small_project: SmallProject, at_hand: str, tmp_path: Path
) -> None:
    """As a person would: relative paths, from a folder that is not the workers'."""
    ended = process(
        "detect",
        "sea/grids/era5_2001-05.nc",
        "--model",
        "detector.keras",
        "--out",
        tmp_path / "out",
        "--scheduler",
        at_hand,
        folder=small_project.folder,
    )
    assert ended.status == 0, ended.err
    assert "distributed" not in ended.err
    assert str(tmp_path / "out" / "detections.nc") in ended.out
    here = pipeline.detect(
        [small_project.new_grids], model=str(small_project.model_path), out=tmp_path / "here"
    )
    found, _ = read_detections(tmp_path / "out" / "detections.nc")
    assert found.attrs["model_digest"].startswith("sha256:")
    expected, _ = read_detections(Path(here.detections))
    np.testing.assert_allclose(found["logit"], expected["logit"], rtol=0, atol=1e-6)
