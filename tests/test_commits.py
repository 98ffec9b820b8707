"""A growing group: what is visible when, and what a kill or a second writer can do to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from medicane.errors import InputError
from medicane.store.commits import ArrayPlan, CommittedGroup, sole_writer

PLANS = {
    "time": ArrayPlan(
        ("time",),
        (),
        "int64",
        {"units": "hours since 2001-01-01", "calendar": "standard"},
        chunk=10,
    ),
    "x": ArrayPlan(("x",), (3,), "float64", {"units": "1"}, np.array([1.0, 2.0, 4.0])),
    "maps": ArrayPlan(("time", "x"), (3,), "float32", chunk=4, compressed=False),
    "label": ArrayPlan(("time",), (), "int8", chunk=10),
    "name": ArrayPlan(("time",), (), str, chunk=10),
}


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    hours = np.arange(start, stop)
    return {
        "time": hours,
        "maps": (hours[:, None] + np.array([0.1, 0.2, 0.3])).astype(np.float32),
        "label": (hours % 2).astype(np.int8),
        "name": np.array([f"h{h}" for h in hours], object),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "group.zarr"


@pytest.fixture
def group(path: Path) -> CommittedGroup:
    made = CommittedGroup.create(path, PLANS)
    made.append(rows(0, 6))
    made.commit({"digest": "a"})
    return made


def test_nothing_has_the_final_name_before_the_first_commit(path):
    made = CommittedGroup.create(path, PLANS)
    made.append(rows(0, 6))
    assert not path.exists()
    made.commit({})
    assert path.is_dir()
    assert [p.name for p in path.parent.iterdir()] == ["group.zarr"]


def test_one_line_of_xarray_opens_it(group, path):
    ds = xr.open_zarr(path)
    assert ds.time.values[-1] == np.datetime64("2001-01-01T05")
    np.testing.assert_array_equal(ds.maps, rows(0, 6)["maps"])
    assert ds.name.values.tolist() == [f"h{i}" for i in range(6)]
    assert ds.label.dtype == np.int8
    assert ds.x.values.tolist() == [1, 2, 4]
    assert ds.attrs == {"digest": "a"}


def test_it_is_plain_zarr_that_zarr_itself_reads_and_checks(group, path):
    read = zarr.open_group(path, mode="r", zarr_format=3)
    assert read.metadata.consolidated_metadata is not None
    assert read["maps"].shape == (6, 3)
    assert read["maps"].chunks == (4, 3)
    by_arrays = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
    np.testing.assert_array_equal(by_arrays["maps"][:], read["maps"][:])


def test_what_is_appended_is_invisible_until_the_commit(group, path):
    group.append(rows(6, 11))
    before = xr.open_zarr(path, chunks=None)
    assert before.sizes["time"] == 6
    np.testing.assert_array_equal(before.maps, rows(0, 6)["maps"])
    group.commit({"digest": "b"})
    # A reader that opened before keeps its six; a new one sees all, with their attributes.
    np.testing.assert_array_equal(before.maps, rows(0, 6)["maps"])
    after = xr.open_zarr(path)
    assert (after.sizes["time"], after.attrs["digest"]) == (11, "b")
    np.testing.assert_array_equal(after.maps, rows(0, 11)["maps"])


def test_appending_across_chunks_in_any_steps_gives_the_same_bytes(tmp_path):
    contents = []
    for steps in ([25], [1, 3, 4, 8, 9], [11, 14]):
        path = tmp_path / f"{len(steps)}.zarr"
        made = CommittedGroup.create(path, PLANS)
        start = 0
        for n in steps:
            made.append(rows(start, start + n))
            made.commit({"n": 25})
            made = CommittedGroup.open(path)
            start += n
        files = sorted(p for p in path.rglob("*") if p.is_file())
        contents.append({str(p.relative_to(path)): p.read_bytes() for p in files})
    assert contents[0] == contents[1] == contents[2]


def test_rewriting_keeps_the_old_values_for_old_readers(group, path):
    old = xr.open_zarr(path, chunks=None)
    for i in range(1, 4):
        now = CommittedGroup.open(path)
        now.rewrite("label", np.full(6, i, np.int8))
        uncommitted = xr.open_zarr(path, chunks=None).label.values
        assert (uncommitted == (rows(0, 6)["label"] if i == 1 else i - 1)).all()
        now.commit({})
        if i == 1:
            np.testing.assert_array_equal(old.label, rows(0, 6)["label"])
        assert (xr.open_zarr(path).label == i).all()


def test_rewriting_and_appending_commit_together(group, path):
    group.rewrite("name", np.array(["a"] * 6, object))
    group.append(rows(6, 8))
    assert xr.open_zarr(path).name.values.tolist() == [f"h{i}" for i in range(6)]
    group.commit({})
    assert xr.open_zarr(path).name.values.tolist() == ["a"] * 6 + ["h6", "h7"]


def test_what_a_dead_writer_left_does_not_show(group, path):
    group.append(rows(6, 11))  # and never commits
    (path / "name" / "c" / "7.0123.partial").write_text("half a chunk")
    again = CommittedGroup.open(path)
    assert again.length == again.written == 6
    assert not list(path.rglob("*.partial"))
    again.append({**rows(6, 9), "label": np.full(3, 9, np.int8)})
    again.commit({})
    assert xr.open_zarr(path).label.values.tolist() == [0, 1, 0, 1, 0, 1, 9, 9, 9]


def test_an_uncommitted_rewrite_of_a_dead_writer_does_not_show(group, path):
    group.append(rows(6, 9))
    group.rewrite("label", np.full(9, 7, np.int8))  # and never commits
    again = CommittedGroup.open(path)
    np.testing.assert_array_equal(again.read("label"), rows(0, 6)["label"])
    np.testing.assert_array_equal(again.read("time"), np.arange(6))
    again.append(rows(6, 8))
    again.commit({})
    np.testing.assert_array_equal(xr.open_zarr(path).label, rows(0, 8)["label"])


def test_converting_keeps_the_old_values_for_old_readers_until_the_commit_and_after(group, path):
    group.append(rows(6, 11))
    group.commit({})
    old = xr.open_zarr(path, chunks=None)
    was = rows(0, 11)["maps"]
    for times in (2, 20):
        now = CommittedGroup.open(path)
        now.convert("maps", lambda part, times=times: part * times, {"times": times})
        assert now.attributes_of("maps")["times"] == times
        uncommitted = xr.open_zarr(path, chunks=None)
        now.append(rows(10 + times // 2, 11 + times // 2))
        now.commit({})
        if times == 2:
            np.testing.assert_array_equal(old.maps, was)
            np.testing.assert_array_equal(uncommitted.maps, was)
    found = xr.open_zarr(path)
    np.testing.assert_array_equal(found.maps[:11], was * 2 * 20)
    np.testing.assert_array_equal(found.maps[12], rows(20, 21)["maps"][0])
    assert found.maps.attrs["times"] == 20


def test_an_unfinished_conversion_of_a_dead_writer_does_not_show(group, path):
    group.convert("maps", lambda part: part * 0, {"times": 0})  # and never commits
    again = CommittedGroup.open(path)
    np.testing.assert_array_equal(again.read("maps"), rows(0, 6)["maps"])
    again.append(rows(6, 9))
    again.commit({})
    np.testing.assert_array_equal(xr.open_zarr(path).maps, rows(0, 9)["maps"])


def test_arrays_know_of_the_last_commit_unless_more_follows(group, path):
    group.append(rows(6, 9))
    group.commit({}, more_follows=True)
    assert xr.open_zarr(path).sizes["time"] == 9
    assert zarr.open_group(path, use_consolidated=False)["maps"].shape == (6, 3)
    group.commit({})
    assert zarr.open_group(path, use_consolidated=False)["maps"].shape == (9, 3)


def test_metadata_of_an_array_cut_short_by_a_power_cut_are_written_again(group, path):
    (path / "label" / "zarr.json").write_text('{"shape": [')
    again = CommittedGroup.open(path)
    np.testing.assert_array_equal(again.read("label"), rows(0, 6)["label"])


def test_a_group_never_committed_is_begun_anew(path):
    CommittedGroup.create(path, PLANS).append(rows(0, 6))
    assert CommittedGroup.open(path) is None
    assert list(path.parent.iterdir()) == []


def test_all_growing_arrays_grow_together(group):
    with pytest.raises(ValueError, match="must grow together"):
        group.append({"time": np.arange(6, 8)})


def test_reading_back_what_is_written(group):
    np.testing.assert_array_equal(group.read("time"), np.arange(6))
    group.append(rows(6, 8))
    np.testing.assert_array_equal(group.read("time"), np.arange(8))


@pytest.mark.parametrize("kind", ["file", "folder", "zarr"])
def test_something_else_of_that_name_is_refused_and_untouched(path, kind):
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    else:
        zarr.create_group(path, zarr_format=2)
    before = sorted(p.name for p in path.rglob("*"))
    with pytest.raises(InputError, match="must be a map store, or not exist"):
        CommittedGroup.open(path)
    assert sorted(p.name for p in path.rglob("*")) == before
    assert path.exists()


def test_an_empty_folder_of_that_name_gives_way(path):
    path.mkdir()
    assert CommittedGroup.open(path) is None
    made = CommittedGroup.create(path, PLANS)
    made.append(rows(0, 2))
    made.commit({})
    assert xr.open_zarr(path).sizes["time"] == 2


def test_metadata_are_strict_json(group, path):
    for file in path.rglob("zarr.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)


# --- several processes -----------------------------------------------------------------------

HOLD = """
import sys, pathlib
from medicane.store.commits import sole_writer
with sole_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused(holder, path):
    with (
        pytest.raises(InputError, match=r"one process at a time writes a store; found .* is held"),
        sole_writer(path),
    ):
        pytest.fail("two writers")


def test_a_killed_writer_lets_go(holder, path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with sole_writer(path):
        pass


def test_the_lock_is_let_go_after_an_error(path):
    with pytest.raises(RuntimeError), sole_writer(path):
        raise RuntimeError
    with sole_writer(path):
        pass


GROW = """
import sys, pathlib
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_commits import rows
from medicane.store.commits import CommittedGroup
group = CommittedGroup.open(pathlib.Path(sys.argv[1]))
for start in range(6, 400, 5):
    group.append(rows(start, start + 5))
    group.commit({"n": start + 5})
"""


def test_readers_beside_a_writer_always_see_a_whole_beginning(group, path):
    tests = str(Path(__file__).parent)
    writer = subprocess.Popen([sys.executable, "-c", GROW, str(path), tests])
    seen = set()
    while writer.poll() is None:
        ds = xr.open_zarr(path, chunks=None)
        n = ds.sizes["time"]
        expected = rows(0, n)
        np.testing.assert_array_equal(ds.maps.values, expected["maps"])
        assert ds.name.values.tolist() == expected["name"].tolist()
        assert ds.attrs.get("n", 6) == n
        seen.add(n)
    assert writer.returncode == 0
    assert len(seen) > 3
