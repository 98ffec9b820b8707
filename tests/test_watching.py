"""The watch: whatever comes when, and however it is cut, is what one run over all of it gives."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import notices
from medicane.detections import read_detections
from medicane.errors import InputError
from medicane.pipeline import status_text
from medicane.pipeline.watching import Run
from medicane.store import open_store, verify_store
from medicane.store.commits import sole_writer
from tests.conftest import ROOT
from tests.servers import webhook
from tests.small_project import SmallProject
from tests.watched_grids import Feed, contents


@pytest.fixture
def feed(small_project: SmallProject, tmp_path: Path) -> Feed:
    return Feed(tmp_path, small_project)


def same(one: Path, other: Path) -> None:
    """The same detections: all to the bit but the network's numbers.

    Those are rounded by how many maps it is given at once.
    """
    (series, kept), (whole, behind) = (read_detections(f / "detections.nc") for f in (one, other))
    xr.testing.assert_identical(kept, behind)
    for name in ("probability", "logit"):
        np.testing.assert_allclose(series[name], whole[name], rtol=0, atol=1e-5)
    numbers = ["probability", "logit"]
    xr.testing.assert_identical(series.drop_vars(numbers), whole.drop_vars(numbers))
    for name in ("events.csv", "tracks.csv"):
        tables = (pd.read_csv(folder / name) for folder in (one, other))
        pd.testing.assert_frame_equal(*tables, rtol=0, atol=1.5e-4)


def check_equals_one_run(feed: Feed) -> None:
    """Detections, and the store but for its packing, which its first maps have settled."""
    once = feed.at_once()
    same(feed.out, once / "found")
    verify_store(feed.folder / "maps.zarr")
    stored, anew = open_store(feed.folder / "maps.zarr"), open_store(once / "maps.zarr")
    xr.testing.assert_identical(
        stored.drop_vars("maps").drop_attrs(), anew.drop_vars("maps").drop_attrs()
    )
    error = 2e-3 * anew["maps"].std(("time", "latitude", "longitude")).values[:, None, None]
    assert (np.abs(stored["maps"].values - anew["maps"].values) <= error).all()


def days(times: tuple[str, ...]) -> list[str]:
    return sorted({time[:10] for time in times})


def test_what_comes_day_by_day_equals_one_run_and_a_rerun_changes_nothing(feed: Feed) -> None:
    feed.put(1, 2)
    first = feed.watch()
    assert (first.n_maps, first.n_new, first.n_store) == (0, 0, 8)
    assert "10 maps 6 h apart without a gap; the grids hold 8" in (first.waiting_for or "")
    assert not (feed.out / "detections.nc").exists()
    for day in (3, 4):
        feed.put(day)
        done = feed.watch()
        assert (done.n_new, done.n_again, done.n_store_new) == (12 if day == 3 else 4, 0, 4)
    before = contents(feed.folder)
    again = feed.watch()
    assert (again.n_new, again.n_store_new, again.n_maps) == (0, 0, 16)
    after = contents(feed.folder)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"found/status.json"}  # which says that nothing was new
    feed.watch()
    assert contents(feed.folder) == after
    check_equals_one_run(feed)


@pytest.mark.slow
def test_late_and_revised_maps_are_put_right_and_told(feed: Feed) -> None:
    feed.put(1, 2, 3)
    feed.watch()
    feed.put(4, 6, 7)
    gap = feed.watch()
    assert gap.missing == (("2001-05-05T00:00:00", "2001-05-05T18:00:00"),)
    assert "the last 8 maps follow a gap" in (gap.waiting_for or "")
    feed.put(5)  # late
    feed.put(4, higher=250.0)  # revised, as ERA5T by ERA5
    feed.put(6)  # written again, the same
    feed.put(8)
    done = feed.watch()
    assert days(done.late) == ["2001-05-05"]
    assert days(done.revised) == ["2001-05-04"]
    assert (done.n_new, done.n_again, done.missing) == (4, 12, ())
    assert (done.n_store_new, done.n_store_again) == (8, 12)
    check_equals_one_run(feed)
    feed.put(4, higher=250.0)
    after = contents(feed.out)
    unchanged = feed.watch()
    assert (unchanged.revised, unchanged.n_again) == ((), 0)
    assert {n for n, b in contents(feed.out).items() if after[n] != b} == {
        "status.json",
        "watch.json",  # another time of change of the file
    }


@pytest.mark.slow
def test_what_is_too_old_or_follows_on_nothing_is_left_and_reported(
    small_project: SmallProject, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, small_project, watch={"revise_days": 1.75})
    feed.put(2, 3, 4, 6, 7)
    feed.watch(start="2001-05-02T06:00")
    before = read_detections(feed.out / "detections.nc")[0]
    feed.put(8, 9)
    feed.put(1, 5)  # before the first detection; late by more than 42 hours
    feed.put(3, higher=100.0)  # revised before that
    done = feed.watch()
    assert (done.n_new, done.n_again, done.late, done.revised) == (8, 0, (), ())
    told = {one.why.split(":")[0]: (one.n_maps, one.first) for one in done.left}
    assert told == {
        "before the first detection or --start": (5, "2001-05-01T00:00:00"),
        "late by more than watch.revise_days": (4, "2001-05-05T00:00:00"),
        "their file has changed, older than watch.revise_days": (4, "2001-05-03T00:00:00"),
    }
    after = read_detections(feed.out / "detections.nc")[0]
    np.testing.assert_array_equal(after["probability"][:11], before["probability"][:11])
    # A folder that forgets: what follows a revised map must be there for it to be put right.
    feed.put(8, higher=100.0)
    feed.remove(9)
    rolled = feed.watch()
    assert rolled.left[-1].why == "the grids no longer hold all maps that follow"
    assert (rolled.left[-1].first, rolled.n_maps) == ("2001-05-08T00:00:00", after.sizes["time"])
    verify_store(feed.folder / "maps.zarr")


def events_of(feed: Feed, least: int) -> float:
    """A threshold by which the detections have some events."""
    probability = read_detections(feed.out / "detections.nc")[0]["probability"].values
    for threshold in np.quantile(probability, np.linspace(0.9, 0.3, 13)):
        above = np.concatenate([[False], probability >= threshold])
        if (np.diff(above.astype(int)) == 1).sum() >= least:
            return float(threshold)
    raise AssertionError("the model is too even for this test")


@pytest.mark.slow
def test_each_onset_is_told_once_whatever_the_server_does(
    small_project: SmallProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Down, then up, then a revision that moves nothing out of its event; and a planted secret."""
    monkeypatch.setattr(notices, "DELAYS", (0.0, 0.0))
    probe = Feed(tmp_path / "probe", small_project)
    probe.put(*range(1, 11))
    probe.watch(prepare=False)
    threshold = events_of(probe, least=2)
    monkeypatch.setenv("PLANTED_TOKEN", "planted-secret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PLANTED_HOOK", f"http://127.0.0.1:{port}/planted-secret")
    settings: dict[str, Any] = {"webhook": "PLANTED_HOOK", "webhook_token": "PLANTED_TOKEN"}
    feed = Feed(
        tmp_path / "feed",
        small_project,
        watch={**settings, "notify_days": 30, "piece": 12},
        detect={"threshold": threshold},
    )
    feed.put(*range(1, 11))
    down = feed.watch(prepare=False)
    assert down.n_events == len(down.onsets) >= 2
    assert [one.state for one in down.told] == ["waiting"] * len(down.onsets)
    with webhook(*[503] * 3) as (address, server):
        monkeypatch.setenv("PLANTED_HOOK", address.replace("/hook", "/planted-secret"))
        up = feed.watch(prepare=False)
        feed.put(10, higher=1.0)
        again = feed.watch(prepare=False)
        last = feed.watch(prepare=False)
    assert [one.state for one in up.told] == ["waiting"] + ["sent"] * (len(down.onsets) - 1)
    assert [(one.event_id, one.state) for one in again.told] == [(down.onsets[0], "sent")]
    assert (last.told, last.onsets) == ((), ())
    told = [body["id"] for status, _, body in server.posts if status == 204]
    assert sorted(told) == sorted(down.onsets)  # each once
    assert {headers["Authorization"] for _, headers, _ in server.posts} == {"Bearer planted-secret"}
    rows = read_detections(feed.out / "detections.nc")[0]
    assert rows.attrs["threshold"] == threshold
    for name, content in contents(feed.folder).items():
        assert b"planted-secret" not in content, name
    assert "planted-secret" not in caplog.text + status_text(down) + status_text(up)


@pytest.mark.slow
def test_a_killed_backfill_goes_on_and_two_at_once_do_no_harm(
    small_project: SmallProject, tmp_path: Path
) -> None:
    feed = Feed(tmp_path / "killed", small_project, watch={"piece": 12})
    feed.put(*range(1, 16))

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "medicane", *feed.command]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    detections, kills = feed.out / "detections.nc", 0
    for pieces in (0, 1, 2):  # killed at work on the store, then on a piece of the detections
        process = start()
        wanted = feed.folder / "maps.zarr" if pieces == 0 else detections
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if wanted.exists() and (not pieces or len(times_in(detections)) >= 12 * pieces):
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.communicate()
    assert kills >= 2
    both = [start(), start()]
    told = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert [line for text in told for line in text.splitlines() if "one watch at a time" in line]
    assert len(times_in(detections)) == 60
    check_equals_one_run(feed)
    undisturbed = Feed(tmp_path / "undisturbed", small_project, watch={"piece": 12})
    undisturbed.put(*range(1, 16))
    undisturbed.watch()
    for name in ("events.csv", "tracks.csv"):
        assert (feed.out / name).read_bytes() == (undisturbed.out / name).read_bytes(), name
    series, whole = (read_detections(one.out / "detections.nc")[0] for one in (feed, undisturbed))
    for one in (series, whole):
        del one.attrs["source"]  # another folder
    xr.testing.assert_identical(series, whole)  # in the same pieces, to the bit


def times_in(detections: Path) -> Any:
    return read_detections(detections)[0]["time"].values if detections.exists() else ()


@pytest.mark.slow
def test_a_run_that_died_before_it_labelled_again_is_taken_up(feed: Feed) -> None:
    """The revised map is known by then, and would not be found a second time."""
    feed.put(1, 2, 3, 4)
    feed.watch(prepare=False)
    feed.put(3, higher=200.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "label", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            feed.watch(prepare=False)
    done = feed.watch(prepare=False)
    assert (done.n_again, done.n_new) == (16, 0)
    once = feed.at_once()
    same(feed.out, once / "found")


def test_what_the_watch_cannot_do_is_told_in_one_line(feed: Feed) -> None:
    with pytest.raises(InputError, match=r"data\.grids|latest/\*\.nc: the glob must match"):
        feed.watch()
    feed.put(1)
    for options, told in (
        ({"start": "yesterday"}, "--start: must be a day or a time"),
        ({"start": "2001-06-01"}, "--start: the last map is of 2001-05-01T18:00:00"),
        ({"out": "s3://bucket/found"}, "--out: must be a folder on this machine"),
    ):
        with pytest.raises(InputError, match=told):
            feed.watch(**options)
    feed.out.mkdir(exist_ok=True)
    (feed.out / "watch.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match=r"watch\.json: must be what a watch wrote"):
        feed.watch()
    with sole_writer(feed.out / "watch.json"), pytest.raises(InputError, match="one watch at a"):
        feed.watch()
