"""The watch: whatever comes when, and however it is cut, is what one run over all of it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from medicane.detections import read_detections
from medicane.store import open_store, verify_store
from tests.small_project import SmallProject
from tests.watched_grids import Feed, contents


@pytest.fixture
def feed(small_project: SmallProject, tmp_path: Path) -> Feed:
    return Feed(tmp_path, small_project)


def check_equals_one_run(feed: Feed) -> None:
    """The same detections; the store but for its packing, which its first maps have settled."""
    once = feed.at_once()
    grown, whole = (read_detections(f / "detections.nc") for f in (feed.out, once / "found"))
    for one, other in zip(grown, whole, strict=True):  # the series, and the maps kept behind it
        xr.testing.assert_identical(one, other)
    for name in ("events.csv", "tracks.csv"):
        assert (feed.out / name).read_bytes() == (once / "found" / name).read_bytes(), name
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
    same = feed.watch()
    assert (same.revised, same.n_again) == ((), 0)
    assert {n for n, b in contents(feed.out).items() if after[n] != b} == {
        "status.json",
        "watch.json",  # another time of change of the file
    }
