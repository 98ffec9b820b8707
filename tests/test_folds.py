"""Folds by storm and by year: everything is tested once, nothing leaks."""

from __future__ import annotations

import itertools

import cftime
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medicane.config import Config, Splits, make_config
from medicane.errors import InputError
from medicane.folds import storm_folds, year_folds
from medicane.sequences import check_leakage, split_times, split_windows

STEP = np.timedelta64(6, "h")


def config(splits: Splits) -> Config:
    whole = make_config(
        {"schema_version": 1, "data": {"grids": "x.nc"}, "sequences": {"length": 10}}
    )
    return whole.model_copy(update={"splits": splits})


def record(
    years: int, storms: dict[str, tuple[int, int]], *, medicane: set[str] | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """Times, labels and ids of six-hourly years from 2001; storms as (first, last) map."""
    times = np.arange("2001-01-01", f"{2001 + years}-01-01", STEP, dtype="datetime64[ns]")
    labels, ids = np.zeros(times.size, np.int8), np.full(times.size, "", dtype="<U12")
    for name, (first, last) in storms.items():
        ids[first : last + 1] = name
        if medicane is None or name in medicane:
            labels[first + 2 : last] = 1
    return times, labels, ids


def spread(years: int, a_year: int = 2) -> dict[str, tuple[int, int]]:
    n = years * a_year
    firsts = (np.arange(n) * 1461 / a_year + 200).astype(int)
    return {f"s{k}": (int(first), int(first) + 12) for k, first in enumerate(firsts)}


# --- by year -------------------------------------------------------------------------------------


def test_every_year_is_the_test_split_once() -> None:
    times, labels, ids = record(5, spread(5))
    folds = year_folds(times, labels, ids)
    assert [fold.name for fold in folds] == [f"years-{year}" for year in range(2001, 2006)]
    tested = np.zeros(times.size, int)
    for fold in folds:
        masks = split_times(times, labels, ids, config=config(fold.splits))
        tested += masks["test"]
        years = np.unique(times[masks["test"]].astype("datetime64[Y]").astype(int) + 1970)
        assert years.tolist() == [int(fold.name[-4:])]
    assert (tested == 1).all()


def test_validation_is_the_year_before_and_training_the_rest() -> None:
    times, labels, ids = record(5, spread(5))
    folds = year_folds(times, labels, ids)
    first, third = folds[0].splits, folds[2].splits
    assert [start.year for start, _ in first.validation] == [2002]  # none is before
    assert [start.year for start, _ in third.validation] == [2002]
    assert [(a.year, b.year) for a, b in third.train] == [(2001, 2001), (2004, 2005)]


def test_years_can_be_taken_together() -> None:
    times, labels, ids = record(7, spread(7))
    folds = year_folds(times, labels, ids, n_folds=3)
    assert [fold.name for fold in folds] == [
        "years-2001-2003",
        "years-2004-2005",
        "years-2006-2007",
    ]


def test_a_storm_at_new_year_moves_the_boundary() -> None:
    new_year = 1460  # the first map of 2002
    storms = {**spread(3), "silvester": (new_year - 3, new_year + 20)}
    times, labels, ids = record(3, storms)
    folds = year_folds(times, labels, ids)
    assert times[new_year - 3] == np.datetime64(folds[1].splits.test[0][0])
    for fold in folds:
        masks = split_times(times, labels, ids, config=config(fold.splits))
        holders = [name for name, mask in masks.items() if (ids[mask] == "silvester").any()]
        assert len(holders) <= 1


def test_validation_grows_until_it_holds_a_medicane() -> None:
    storms = {"a": (200, 212), "b": (3 * 1461 + 200, 3 * 1461 + 212), "c": (4 * 1461, 4 * 1461 + 9)}
    times, labels, ids = record(6, storms)
    folds = {fold.name: fold.splits for fold in year_folds(times, labels, ids, n_folds=6)}
    # 2003: neither 2002 nor 2004 holds one … 2002, then 2004 (b).
    chosen = folds["years-2003"].validation
    assert [(a.year, b.year) for a, b in chosen] == [(2002, 2002), (2004, 2004)]


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_no_fold_of_any_record_leaks(data: st.DataObject) -> None:
    years = data.draw(st.integers(4, 6))
    n = years * 1460
    firsts = data.draw(st.lists(st.integers(0, n - 60), min_size=12, max_size=40, unique=True))
    apart = [a for a, b in itertools.pairwise([*sorted(firsts), n]) if b - a > 30]
    lasts = [first + data.draw(st.integers(3, 25)) for first in apart]
    storms = {f"s{k}": span for k, span in enumerate(zip(apart, lasts, strict=True))}
    times, labels, ids = record(years, storms)
    try:
        folds = year_folds(times, labels, ids)
    except InputError as error:
        if "medicanes enough" not in str(error):
            raise
        return
    tested = np.zeros(times.size, int)
    for fold in folds:
        settings_ = config(fold.splits)
        masks = split_times(times, labels, ids, config=settings_)
        windows = {
            name: split_windows(times, mask, length=10, step_hours=6)
            for name, mask in masks.items()
        }
        check_leakage(masks, times, ids, gap_hours=settings_.gap_hours, windows=windows)
        tested += masks["test"]
    assert (tested == 1).all()


def test_what_cannot_be_folded_by_year_is_told() -> None:
    times, labels, ids = record(4, spread(4))
    for n_folds in (2, 5, 0):
        law = rf"--folds: must lie between 3 and the 4 years of the record; found {n_folds}"
        with pytest.raises(InputError, match=law):
            year_folds(times, labels, ids, n_folds=n_folds)
    with pytest.raises(InputError, match="medicanes enough to train and to validate on"):
        year_folds(times, labels * 0, ids)
    only = np.where(ids == "s0", labels, 0)
    with pytest.raises(InputError, match="found none left beside 2001"):
        year_folds(times, only, ids)
    with pytest.raises(InputError, match="a block of years must not lie within one storm"):
        year_folds(times, labels, np.full(times.size, "endless"))
    model_year = [cftime.Datetime360Day(2001, 1, 1)]
    with pytest.raises(InputError, match="times of the standard calendar"):
        year_folds(model_year, [0], [""])


# --- by storm ------------------------------------------------------------------------------------


def test_every_storm_with_a_medicane_is_left_out_once() -> None:
    storms = spread(4)
    times, labels, ids = record(4, storms, medicane=set(storms) - {"s3"})
    given_splits = Splits(fractions=(0.5, 0.3, 0.2))
    folds = storm_folds(labels, ids, splits=given_splits)
    assert [fold.splits.leave_storm_out for fold in folds] == [s for s in storms if s != "s3"]
    assert {fold.splits.fractions for fold in folds} == {(0.5, 0.3, 0.2)}
    for fold in folds:
        settings_ = config(fold.splits)
        masks = split_times(times, labels, ids, config=settings_)
        assert set(ids[masks["test"]]) == {"", fold.splits.leave_storm_out}
        check_leakage(masks, times, ids, gap_hours=settings_.gap_hours)


def test_date_ranges_do_not_bind_the_folds() -> None:
    _, labels, ids = record(4, spread(4))
    ranged = Splits(
        train=["2001-01-01", "2002-12-31"],  # type: ignore[arg-type]
        validation=["2003-01-01", "2003-12-31"],  # type: ignore[arg-type]
        test=["2004-01-01", "2004-12-31"],  # type: ignore[arg-type]
    )
    assert storm_folds(labels, ids, splits=ranged)[0].splits.train == ()


def test_some_storms_only() -> None:
    _, labels, ids = record(5, spread(5))
    few = storm_folds(labels, ids, splits=Splits(), n_folds=3)
    assert [fold.name for fold in few] == ["storm-s0", "storm-s4", "storm-s9"]
    named = storm_folds(labels, ids, splits=Splits(), storms=["s7", "s2"])
    assert [fold.name for fold in named] == ["storm-s2", "storm-s7"]
    for kwargs, law in [
        ({"storms": ["s2", "Ianos"]}, r"storms: .* medicane map; found \['Ianos'\]"),
        ({"n_folds": 11}, r"--folds: there must be at least 11 storms .* found 10"),
        ({"n_folds": 0}, "--folds: there must be at least 1 storm"),
    ]:
        with pytest.raises(InputError, match=law):
            storm_folds(labels, ids, splits=Splits(), **kwargs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2 storms with medicane maps"):
        storm_folds(labels * 0, ids, splits=Splits())


def test_the_name_of_a_fold_is_good_for_a_file() -> None:
    _, labels, ids = record(3, {"Ianos/2020 (b)": (100, 120), "Rolf": (900, 920)})
    ids = ids.astype(np.dtypes.StringDType())  # as a store decodes it
    names = [fold.name for fold in storm_folds(labels, ids, splits=Splits())]
    assert names == ["storm-Ianos_2020_", "storm-Rolf"] or names[0].startswith("storm-Ianos_2020")
    assert not any(set("/ ()") & set(name) for name in names)


# --- the check itself ----------------------------------------------------------------------------


def test_one_storm_or_one_sequence_across_two_splits_is_found() -> None:
    """What the folds are held to: the check fails where it must."""
    times, _, ids = record(3, spread(3))
    masks = {
        "train": np.arange(times.size) < 205,
        "test": np.arange(times.size) >= 260,
    }
    ids[200:262] = "across"
    with pytest.raises(InputError, match=r"one split only; found 'across'"):
        check_leakage(masks, times, ids, gap_hours=60)
    ids[:] = ""
    straddling = {"train": np.arange(198, 208)[None]}
    with pytest.raises(InputError, match="a sequence must lie wholly inside its split"):
        check_leakage(masks, times, ids, gap_hours=60, windows=straddling)
    with pytest.raises(InputError, match="must lie at least 400 h apart"):
        check_leakage(masks, times, ids, gap_hours=400)
    check_leakage(masks, times, ids, gap_hours=60, windows={"train": np.arange(10)[None]})
