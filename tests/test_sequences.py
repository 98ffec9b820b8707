"""Periods, windows and splits: what no window may cross and no split may share."""

from __future__ import annotations

import datetime as dt
import itertools

import cftime
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.config import make_config
from medicane.errors import InputError
from medicane.sequences import (
    as_slice,
    at_steps,
    check_leakage,
    contiguous_periods,
    elapsed_seconds,
    split_times,
    split_windows,
    storm_spans,
    windows,
)

START = np.datetime64("2001-01-01", "ns")


def hours(*values: float) -> np.ndarray:
    return START + (np.array(values) * 3600).astype("timedelta64[s]")


def regular(n: int, step: int = 6) -> np.ndarray:
    return START + np.arange(n) * np.timedelta64(step, "h")


def configuration(length: int = 12, step: int = 6, gap: float | None = None, **splits: object):
    return make_config(
        {
            "schema_version": 1,
            "data": {"grids": "x.nc", "step_hours": step},
            "sequences": {"length": length, "gap_hours": gap},
            "splits": splits,
        }
    )


def storms(n: int, **spans: tuple[int, int]) -> np.ndarray:
    ids = np.full(n, "", dtype=object)
    for name, (first, last) in spans.items():
        ids[first : last + 1] = name
    return ids


#: Steps between maps: 1 is the step, all else a gap (2 = one map missing, 0.5 = too fine).
gaps = st.lists(st.sampled_from([1, 1, 1, 1, 1, 2, 7, 0.5]), max_size=80)


def times_of(spacing: list[float], step: int) -> np.ndarray:
    return hours(*(step * np.concatenate([[0.0], np.cumsum(spacing)])))


@given(st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted))
def test_positions_as_a_slice_choose_the_same(chosen: list[int]) -> None:
    positions, values = np.array(chosen, dtype=np.int64), np.arange(61) * 10
    found = as_slice(positions)
    np.testing.assert_array_equal(values[found], values[positions])
    even = len(chosen) > 0 and len(set(np.diff(positions))) <= 1
    assert isinstance(found, slice) == even


def test_positions_that_go_back_or_repeat_are_no_slice() -> None:
    for chosen in ([5, 4, 3], [2, 2, 2]):
        np.testing.assert_array_equal(as_slice(np.array(chosen)), chosen)


# --- periods ---------------------------------------------------------------------------------


def test_a_gap_and_a_short_step_both_end_a_period():
    times = hours(0, 6, 12, 24, 30, 33, 39)
    assert contiguous_periods(times, step_hours=6) == [slice(0, 3), slice(3, 5), slice(5, 7)]


def test_no_times_no_periods_and_one_time_one_period():
    assert contiguous_periods(np.array([], "datetime64[ns]"), step_hours=6) == []
    assert contiguous_periods(hours(0), step_hours=6) == [slice(0, 1)]


@given(spacing=gaps, step=st.sampled_from([1, 3, 6]))
def test_periods_cover_every_time_once_and_are_maximal(spacing, step):
    times = times_of(spacing, step)
    periods = contiguous_periods(times, step_hours=step)
    covered = np.concatenate([np.arange(p.start, p.stop) for p in periods])
    assert covered.tolist() == list(range(times.size))
    for period in periods:
        inside = np.diff(times[period]) / np.timedelta64(1, "h")
        assert (inside == step).all()
    for left, right in itertools.pairwise(periods):
        assert (times[right.start] - times[left.stop - 1]) / np.timedelta64(1, "h") != step


def test_a_360_day_calendar_has_its_30th_of_february():
    times = np.array([cftime.Datetime360Day(2000, 2, d, h) for d in (29, 30) for h in (0, 12)])
    assert contiguous_periods(times, step_hours=12) == [slice(0, 4)]
    later = np.append(times, cftime.Datetime360Day(2000, 3, 1, 0))
    assert contiguous_periods(later, step_hours=12) == [slice(0, 5)]


@pytest.mark.parametrize("bad", [hours(0, 6, 6, 12), hours(0, 12, 6)])
def test_duplicate_and_backward_times_are_named(bad):
    with pytest.raises(InputError, match=r"increase strictly; found 2001-01-01T06.* after"):
        elapsed_seconds(bad)


def test_a_step_of_nothing_is_refused():
    with pytest.raises(InputError, match="step_hours: must be greater than 0; found 0"):
        contiguous_periods(hours(0, 6), step_hours=0)


# --- windows ---------------------------------------------------------------------------------


@given(
    spacing=gaps,
    step=st.sampled_from([1, 6]),
    length=st.integers(1, 15),
    stride=st.integers(1, 5),
)
def test_windows_are_ordered_never_cross_a_gap_and_none_is_missing(spacing, step, length, stride):
    times = times_of(spacing, step)
    periods = contiguous_periods(times, step_hours=step)
    expected = sum(
        (p.stop - p.start - length) // stride + 1 for p in periods if p.stop - p.start >= length
    )
    if expected == 0:
        with pytest.raises(InputError, match=f"a sequence needs {length} maps"):
            windows(times, length=length, stride=stride, step_hours=step)
        return
    rows = windows(times, length=length, stride=stride, step_hours=step)
    assert rows.shape == (expected, length)
    assert rows.dtype == np.int64
    assert (np.diff(rows, axis=1) == 1).all()
    assert (np.diff(rows[:, 0]) >= 1).all()
    assert (np.diff(times[rows], axis=1) == np.timedelta64(step, "h")).all()


def test_a_period_of_exactly_one_length_is_one_window():
    times = np.concatenate([regular(12), regular(12) + np.timedelta64(30, "D")])
    rows = windows(times, length=12, step_hours=6)
    assert rows[:, 0].tolist() == [0, 12]


def test_too_short_a_record_tells_its_longest_period():
    times = hours(0, 6, 12, 100, 106)
    with pytest.raises(
        InputError,
        match=r"needs 12 maps, each 6 h after .*; found 3 maps in the longest gap-free period"
        r" \(2001-01-01T00:00 to 2001-01-01T12:00\)",
    ):
        windows(times, length=12, step_hours=6)


def test_no_maps_at_all_is_said():
    with pytest.raises(InputError, match="found no maps at all"):
        windows(np.array([], "datetime64[ns]"), length=10, step_hours=6)


@pytest.mark.parametrize("fault", [{"length": 0}, {"length": 10, "stride": 0}])
def test_lengths_and_strides_below_one_are_refused(fault):
    with pytest.raises(InputError, match="must be at least 1; found 0"):
        windows(regular(20), step_hours=6, **fault)


def test_windows_of_a_split_index_the_whole_record_and_stay_inside():
    times, mask = regular(60), np.zeros(60, bool)
    mask[5:20] = True
    mask[22:34] = True
    rows = split_windows(times, mask, length=12, step_hours=6)
    assert rows[:, 0].tolist() == [5, 6, 7, 8, 22]
    assert mask[rows].all()


# --- splits by fractions -----------------------------------------------------------------------

layouts = st.lists(
    st.tuples(st.integers(0, 399), st.integers(1, 25)), max_size=14
)  # (first map, maps)


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts,
    missing=st.sets(st.integers(0, 399), max_size=60),
    length=st.integers(10, 15),
    step=st.sampled_from([3, 6]),
)
def test_fractions_are_ordered_apart_and_share_no_storm(layout, missing, length, step):
    keep = np.setdiff1d(np.arange(400), list(missing))
    ids = np.full(400, "", dtype=object)
    for i, (first, n) in enumerate(layout):
        ids[first : first + n] = f"storm{i}"
    times, ids = regular(400, step)[keep], ids[keep]
    config = configuration(length, step)
    try:
        masks = split_times(times, np.where(ids != "", 1, 0), ids, config=config)
    except InputError:
        # Only storms that lie all over the record can leave a split empty.
        assert (ids != "").sum() > 40
        return
    used = sum(mask.astype(int) for mask in masks.values())
    assert used.max() == 1
    spans = {name: times[mask] for name, mask in masks.items()}
    for before, after in (("train", "validation"), ("validation", "test")):
        apart = (spans[after].min() - spans[before].max()) / np.timedelta64(1, "h")
        assert apart >= config.gap_hours
        assert apart > (length - 1) * step
    for name, mask in masks.items():
        rest = np.zeros(times.size, bool)
        for other in masks:
            rest |= masks[other] if other != name else False
        assert not (set(ids[mask]) - {""}) & set(ids[rest])
        held = np.flatnonzero(mask)
        assert (np.diff(held) == 1).all()  # contiguous


@settings(max_examples=80, deadline=None)
@given(layout=layouts)
def test_no_storm_is_cut_in_two_by_a_gap(layout):
    ids = np.full(400, "", dtype=object)
    for i, (first, n) in enumerate(layout):
        ids[first : first + n] = f"storm{i}"
    try:
        masks = split_times(regular(400), np.zeros(400), ids, config=configuration())
    except InputError:
        return
    used = np.logical_or.reduce(list(masks.values()))
    for storm in set(ids) - {""}:
        held = used[ids == storm]
        assert held.all() or not held.any()


def test_without_storms_the_boundaries_stand_at_the_fractions():
    times = regular(1000)
    masks = split_times(times, np.zeros(1000), storms(1000), config=configuration())
    assert [int(mask.sum()) for mask in masks.values()] == [594, 188, 194]
    first = {name: int(np.flatnonzero(mask)[0]) for name, mask in masks.items()}
    assert first["train"] == 0
    assert abs(first["validation"] - 600) <= 7
    assert abs(first["test"] - 800) <= 7
    assert masks["test"][-1]


def test_a_boundary_moves_off_a_storm():
    ids = storms(1000, numa=(590, 620))
    masks = split_times(regular(1000), np.zeros(1000), ids, config=configuration())
    where = [name for name, mask in masks.items() if mask[590:621].any()]
    assert len(where) == 1
    assert masks[where[0]][590:621].all()


def test_a_storm_of_unknown_hours_is_not_cut_either():
    labels = np.zeros(1000)
    labels[590:600], labels[600:621] = -1, 1
    masks = split_times(
        regular(1000), labels, storms(1000, zorbas=(590, 620)), config=configuration()
    )
    assert sum(mask[590:621].any() for mask in masks.values()) == 1


def test_a_storm_across_missing_maps_is_not_cut():
    # 20 days are missing in the middle of a storm: the gap would fit between two of its maps.
    keep = np.r_[0:600, 680:1080]
    ids = storms(1080, qendresa=(595, 684))[keep]
    masks = split_times(regular(1080)[keep], np.zeros(1000), ids, config=configuration())
    assert sum(bool((ids[mask] == "qendresa").any()) for mask in masks.values()) <= 1


def test_when_storms_lie_everywhere_the_gap_swallows_whole_ones(caplog):
    ids = np.array([f"s{i // 10:03d}" for i in range(1000)], dtype=object)
    masks = split_times(regular(1000), np.ones(1000), ids, config=configuration())
    used = np.logical_or.reduce(list(masks.values()))
    assert used.sum() >= 940
    for storm in set(ids):
        held = used[ids == storm]
        assert held.all() or not held.any()
    assert "no storm-free gap" in caplog.text


def test_one_storm_over_the_whole_record_leaves_no_splits():
    with pytest.raises(InputError, match="must hold at least one map"):
        split_times(regular(400), np.ones(400), storms(400, rolf=(0, 399)), config=configuration())


def test_a_split_without_a_medicane_is_warned_of(caplog):
    labels = np.zeros(1000)
    labels[100:110] = 1
    split_times(regular(1000), labels, storms(1000, a=(100, 109)), config=configuration())
    assert "the test split holds no medicane" in caplog.text
    assert "the train split" not in caplog.text


@pytest.mark.parametrize("gap", [0, 65, 66])
def test_a_gap_no_longer_than_a_sequence_is_refused(gap):
    with pytest.raises(InputError, match=rf"gap_hours: must be longer .* \(66 h\); found {gap}"):
        split_times(regular(400), np.zeros(400), storms(400), config=configuration(gap=gap))


def test_labels_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"storm: must have one value for each of 400 times"):
        split_times(regular(400), np.zeros(400), storms(399), config=configuration())


# --- splits by dates ---------------------------------------------------------------------------

YEARS = {
    "train": ["2001-01-01", "2002-12-31"],
    "validation": ["2003-01-01", "2003-12-31"],
    "test": ["2004-01-01", "2004-12-31"],
}


def four_years() -> np.ndarray:
    return np.arange(
        np.datetime64("2001-01-01", "ns"), np.datetime64("2005-01-01"), np.timedelta64(6, "h")
    )


def test_whole_years_side_by_side_lose_their_gap_before_the_boundary():
    times = four_years()
    masks = split_times(
        times, np.zeros(times.size), storms(times.size), config=configuration(**YEARS)
    )
    assert masks["test"].sum() == 366 * 4  # test years stay whole
    assert times[masks["validation"]].min() == np.datetime64("2003-01-01")
    assert times[masks["validation"]].max() == np.datetime64("2003-12-28T18")
    assert times[masks["train"]].max() == np.datetime64("2002-12-28T18")


def test_the_last_day_of_a_range_is_in_it():
    times = four_years()
    masks = split_times(
        times, np.zeros(times.size), storms(times.size), config=configuration(**YEARS)
    )
    assert times[masks["test"]].max() == np.datetime64("2004-12-31T18")


def test_a_storm_over_new_year_is_an_error_that_names_it():
    times = four_years()
    ids = np.where(
        np.abs(times - np.datetime64("2003-01-01")) < np.timedelta64(2, "D"), "trixie", ""
    )
    with pytest.raises(
        InputError,
        match=r"splits.train and validation: a storm must belong to one split only; found 'trixie'"
        r" \(2002-12-30T06:00 to 2003-01-02T18:00\) in both",
    ):
        split_times(times, np.zeros(times.size), ids, config=configuration(**YEARS))


def test_overlapping_ranges_are_refused():
    times = four_years()
    ranges = {**YEARS, "validation": ["2002-12-01", "2003-12-31"]}
    with pytest.raises(InputError, match="one split only; found 2002-12-01T00:00 in both"):
        split_times(times, np.zeros(times.size), storms(times.size), config=configuration(**ranges))


def test_a_range_outside_the_record_tells_the_record():
    times = four_years()
    ranges = {**YEARS, "test": ["2010-01-01", "2010-12-31"]}
    with pytest.raises(
        InputError, match=r"splits.test: .* from 2001-01-01T00:00 to 2004-12-31T18:00"
    ):
        split_times(times, np.zeros(times.size), storms(times.size), config=configuration(**ranges))


def test_train_may_lie_on_both_sides_of_test():
    times = four_years()
    ranges = {
        "train": [["2001-01-01", "2001-12-31"], ["2004-01-01", "2004-12-31"]],
        "validation": ["2002-01-01", "2002-12-31"],
        "test": ["2003-01-01", "2003-12-31"],
    }
    masks = split_times(
        times, np.zeros(times.size), storms(times.size), config=configuration(**ranges)
    )
    assert masks["test"].sum() == 365 * 4
    late = times[masks["train"] & (times > np.datetime64("2003-06-01"))]
    assert late.min() == np.datetime64("2004-01-04T00")


# --- one storm left out ------------------------------------------------------------------------


def test_the_storm_left_out_is_the_test_split_with_a_sequence_around_it():
    n, ids = 1200, storms(1200, ianos=(600, 607), numa=(100, 110), rolf=(1000, 1010))
    config = configuration(leave_storm_out="ianos")
    masks = split_times(regular(n), np.where(ids != "", 1, 0), ids, config=config)
    assert np.flatnonzero(masks["test"]).tolist() == list(range(589, 619))
    rows = split_windows(regular(n), masks["test"], length=12, step_hours=6)
    touching = ((rows >= 600) & (rows <= 607)).any(axis=1)
    assert touching.sum() == 19  # every window that sees the storm
    assert masks["train"][:570].all()  # before the block …
    assert masks["train"][640]  # … and after it
    assert masks["validation"][-1]


def test_a_neighbour_of_the_storm_left_out_goes_with_it():
    ids = storms(1200, ianos=(600, 607), udine=(612, 630))
    masks = split_times(
        regular(1200), np.zeros(1200), ids, config=configuration(leave_storm_out="ianos")
    )
    assert masks["test"][600:631].all()
    assert not (ids[masks["train"] | masks["validation"]] != "").any()


def test_leaving_a_storm_out_of_date_ranges_overrides_test():
    times = four_years()
    days = times.astype("datetime64[D]")
    ids = np.where(days == np.datetime64("2001-09-15"), "zeo", "").astype(object)
    config = configuration(leave_storm_out="zeo", **YEARS)
    masks = split_times(times, np.zeros(times.size), ids, config=config)
    assert set(ids[masks["test"]]) == {"zeo", ""}
    assert times[masks["test"]].max() < np.datetime64("2001-10-01")
    assert times[masks["train"]].max() == np.datetime64("2002-12-28T18")


def test_an_unknown_storm_is_told_what_there_is():
    ids = storms(400, ianos=(10, 20))
    with pytest.raises(InputError, match=r"found 'zorbas' \(there are: ianos\)"):
        split_times(
            regular(400), np.zeros(400), ids, config=configuration(leave_storm_out="zorbas")
        )


# --- leakage -----------------------------------------------------------------------------------


def two_masks(n: int = 100, end: int = 40, start: int = 60) -> dict[str, np.ndarray]:
    train, test = np.zeros(n, bool), np.zeros(n, bool)
    train[:end], test[start:] = True, True
    return {"train": train, "test": test}


def test_good_splits_pass():
    masks, times = two_masks(), regular(100)
    rows = {name: split_windows(times, m, length=12, step_hours=6) for name, m in masks.items()}
    check_leakage(masks, times, storms(100, a=(3, 9), b=(70, 80)), gap_hours=78, windows=rows)


def test_a_storm_in_two_splits_is_leakage():
    with pytest.raises(InputError, match=r"one split only; found 'a'"):
        check_leakage(two_masks(), regular(100), storms(100, a=(35, 65)), gap_hours=78)


def test_a_map_in_two_splits_is_leakage():
    with pytest.raises(InputError, match=r"a map must belong to one split only"):
        check_leakage(two_masks(end=70), regular(100), storms(100), gap_hours=78)


@pytest.mark.parametrize(("gap", "passes"), [(126, True), (126.1, False)])
def test_the_gap_counts_from_last_map_to_first_map(gap, passes):
    masks = two_masks()  # maps 39 and 60: 21 steps of 6 h
    if passes:
        check_leakage(masks, regular(100), storms(100), gap_hours=gap)
    else:
        with pytest.raises(InputError, match=r"must lie at least 126.1 h apart; found 126 h from"):
            check_leakage(masks, regular(100), storms(100), gap_hours=gap)


def test_a_sequence_reaching_out_of_its_split_is_leakage():
    rows = {"train": windows(regular(100), length=12, step_hours=6)[:40]}
    with pytest.raises(InputError, match=r"splits.train: a sequence must lie wholly inside"):
        check_leakage(two_masks(), regular(100), storms(100), gap_hours=78, windows=rows)


def test_storm_spans_are_first_and_last_in_order():
    ids = storms(50, zorbas=(3, 9), akis=(20, 20))
    assert storm_spans(ids) == {"zorbas": (3, 9), "akis": (20, 20)}
    assert list(storm_spans(ids)) == ["zorbas", "akis"]
    assert storm_spans(np.full(5, "")) == {}


def test_times_may_be_python_datetimes():
    moments = np.array([dt.datetime(2001, 1, 1) + dt.timedelta(hours=6 * i) for i in range(15)])
    assert windows(moments, length=10, step_hours=6).shape == (6, 10)


# Steps -----------------------------------------------------------------------------------------


def test_maps_at_the_step_are_all_taken_whatever_their_phase_and_gaps() -> None:
    for times in (regular(5), regular(5) + np.timedelta64(3, "h"), hours(0, 6, 30, 36), hours(7)):
        np.testing.assert_array_equal(at_steps(times, step_hours=6), np.arange(times.size))


def test_of_finer_maps_those_at_multiples_of_the_step_are_taken() -> None:
    np.testing.assert_array_equal(at_steps(regular(9, 3), step_hours=6), [0, 2, 4, 6, 8])
    late = regular(9, 3)[1:]
    np.testing.assert_array_equal(late[at_steps(late, step_hours=6)], regular(9, 3)[2::2])
    # One pair that is closer than a step tells that the series is finer.
    np.testing.assert_array_equal(at_steps(hours(0, 6, 9, 12), step_hours=6), [0, 1, 3])


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (regular(4, 12), "found 12 h"),
        (hours(1, 2, 3), "found none"),
        (np.array([], "datetime64[ns]"), "found none"),
    ],
)
def test_maps_too_far_apart_are_refused(times: np.ndarray, found: str) -> None:
    with pytest.raises(InputError, match=f"new.nc: the model needs maps every 6 h; {found}"):
        at_steps(times, step_hours=6, where="new.nc", holder="the model needs")


def test_a_series_is_continued_in_its_own_phase() -> None:
    last = hours(3)[0]
    chosen = at_steps(hours(6, 9, 12, 15), step_hours=6, after=last)
    np.testing.assert_array_equal(chosen, [1, 3])
    assert at_steps(hours(6), step_hours=6, after=last).size == 0
    assert at_steps(hours(), step_hours=6, after=last).size == 0
    with pytest.raises(InputError, match="maps every 6 h; found 12 h"):
        at_steps(hours(9, 21, 33), step_hours=6, after=last)


def test_steps_of_another_calendar() -> None:
    times = np.array(
        [cftime.Datetime360Day(2001, 2, 29 + h // 24, h % 24) for h in range(0, 48, 3)]
    )
    chosen = times[at_steps(times, step_hours=6)]
    assert [t.hour for t in chosen] == [0, 6, 12, 18] * 2
    after = times[at_steps(times[3:], step_hours=6, after=times[1]) + 3]
    assert [t.hour for t in after][:2] == [9, 15]
