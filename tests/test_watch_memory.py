"""What the watch remembers: stamps of sources, digests of maps, earlier states, restarts."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from medicane.errors import InputError
from medicane.pipeline.watch_memory import Earlier, Memory, digests, iso, stamps
from medicane.store import Restart, restart_before, thinned
from tests.servers import file_server

TIMES = np.datetime64("2001-05-01", "ns") + np.arange(60) * np.timedelta64(6, "h")


def maps(seed: int = 0) -> xr.Dataset:
    field = np.random.default_rng(seed).normal(size=(60, 4, 5)).astype(np.float32)
    dims = ("time", "latitude", "longitude")
    return xr.Dataset({"msl": (dims, field), "lsm": (dims[1:], field[0])}, {"time": TIMES})


@given(st.lists(st.integers(1, 40), min_size=1, max_size=120), st.integers(0, 20))
def test_thinned_restarts_stay_dense_near_the_end_and_stay_thinned(
    steps: list[int], more: int
) -> None:
    ends = np.cumsum(steps).tolist()
    kept = thinned(ends)
    assert kept[0] == 0
    assert kept[-8:] == list(range(len(ends)))[-8:]
    for one, other in itertools.pairwise(kept):
        if other - one > 1:
            assert ends[other] - ends[one] <= 0.25 * (ends[-1] - ends[one + 1])
    assert thinned([ends[i] for i in kept]) == list(range(len(kept)))
    later = [ends[i] for i in kept]
    for _ in range(more):  # as they come: what was dropped is gone
        later.append(later[-1] + 1)
        later = [later[i] for i in thinned(later)]
    for one, other in itertools.pairwise(later):
        assert other - one <= max(*steps, 0.25 * (later[-1] - one))


def test_a_century_of_daily_restarts_is_thinned_to_some_dozens() -> None:
    kept: list[int] = []
    for day in range(1, 36500):
        kept.append(4 * day)
        kept = [kept[i] for i in thinned(kept)]
    assert len(kept) < 60


def test_a_digest_is_that_of_the_fields_however_they_are_cut(tmp_path: Path) -> None:
    whole = digests(maps().chunk(time=60), TIMES)
    assert list(whole) == [iso(time) for time in TIMES]
    assert digests(maps().chunk(time=7), TIMES[3:50:2]) == {
        iso(time): whole[iso(time)] for time in TIMES[3:50:2]
    }
    changed = maps()
    changed["msl"][30, 2, 2] += 1e-6
    other = digests(changed, TIMES)
    assert [time for time in whole if whole[time] != other[time]] == [iso(TIMES[30])]


def test_a_stamp_changes_with_the_source(tmp_path: Path) -> None:
    file, store = tmp_path / "a.nc", tmp_path / "a.zarr"
    maps().to_netcdf(file)
    maps().to_zarr(store, consolidated=False)
    sources = [str(file), str(store)]
    before = stamps(sources, None)
    assert stamps(sources, None) == before
    os.utime(file, ns=(0, 0))
    chunk = next(path for path in (store / "msl" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes())
    after = stamps(sources, None)
    assert all(after[source] != before[source] for source in sources)
    with file_server(tmp_path) as address:  # which tells the length alone
        remote = f"{address.replace('://', '://me:planted@')}/a.nc"
        told = stamps([remote], None)
        assert list(told.values()) == [None]
        assert "planted" not in str(told)


def test_earlier_states_are_found_dropped_and_thinned(tmp_path: Path) -> None:
    detections, earlier = tmp_path / "detections.nc", Earlier(tmp_path / ".watch")
    assert earlier.before(TIMES[5]) == (None, tmp_path / ".watch" / "nothing.nc")
    for i in range(0, 60, 2):
        new = tmp_path / "new"
        new.write_text(str(i))
        new.replace(detections)  # as detections are written
        earlier.keep(detections, TIMES[i], step_hours=6)
        earlier.keep(detections, TIMES[i], step_hours=6)
    last, path = earlier.before(TIMES[57])
    assert (last, path.read_text()) == (TIMES[56], "56")
    assert earlier.before(TIMES[56])[0] == TIMES[54]
    assert 12 < len(list((tmp_path / ".watch").iterdir())) < 30
    earlier.drop_from(TIMES[55])
    assert earlier.before(TIMES[59])[0] == TIMES[54]
    earlier.forget_before(TIMES[53])
    assert earlier.before(TIMES[53])[0] == TIMES[52]
    assert earlier.before(TIMES[52])[0] is None


def test_a_restart_is_used_on_the_record_that_it_was_made_on() -> None:
    ends = [Restart(1, n, iso(TIMES[n - 1]), "", "", "") for n in (10, 20, 40)]
    assert restart_before(ends, TIMES, TIMES[39]) == ends[1]
    assert restart_before(ends, TIMES, TIMES[40]) == ends[2]
    assert restart_before(ends, TIMES[1:], TIMES[40]) is None  # a map is missing before
    assert restart_before(ends, TIMES[:15], TIMES[40]) == ends[0]


def test_the_memory_is_read_back_and_damage_is_told(tmp_path: Path) -> None:
    file = tmp_path / "watch.json"
    assert Memory.read(file) == Memory()
    memory = Memory(maps={"2001-05-01T00:00:00": "ab"}, redo_from="2001-05-01T00:00:00")
    for n in (3, 4, 4):
        memory.note_restart(Restart(1, n, f"2001-05-0{n}T00:00:00", "p", "c", "{}"))
    memory.write(file)
    written = file.stat().st_mtime_ns
    memory.write(file)
    assert file.stat().st_mtime_ns == written
    assert Memory.read(file) == memory
    assert [restart.n for restart in memory.restarts] == [3, 4]
    memory.note_restart(Restart(2, 5, "2001-05-05T00:00:00", "p", "c", "{}"))  # another store
    assert [restart.n for restart in memory.restarts] == [5]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"watch\.json: must be what a watch wrote"):
        Memory.read(file)
