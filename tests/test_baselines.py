"""The climatology and the physical rule."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import xarray as xr

from medicane.config import Label
from medicane.errors import InputError
from medicane.evaluate.baselines import climatology, physical_rule


def years(n, start="2001-01-01"):
    first = np.datetime64(start, "ns")
    return first + np.arange(n * 1461) * np.timedelta64(6, "h")


def month_of(times):
    return times.astype("datetime64[M]").astype(int) % 12 + 1


def test_climatology_follows_the_season_and_keeps_the_base_rate():
    times = years(6)
    labels = ((month_of(times) == 11) & (np.arange(times.size) % 20 == 0)).astype(int)
    rate = climatology(times, labels, times)
    assert rate.mean() == pytest.approx(labels.mean(), rel=0.02)
    by_month = [rate[month_of(times) == m].mean() for m in range(1, 13)]
    assert np.argmax(by_month) == 10
    assert by_month[10] > 3 * by_month[5]
    assert by_month[9] == pytest.approx(by_month[11], rel=0.1)  # the two beside it, alike
    assert min(by_month) > 0  # no month is called impossible
    assert np.ptp(rate[month_of(times) == 3]) == 0


def test_climatology_is_of_the_training_split_alone():
    train = years(2)
    labels = np.zeros(train.size, int)
    labels[100:120] = 1
    first = climatology(train, labels, years(1, "2010-01-01"))
    # Unknown maps teach nothing.
    labels[500:1400] = -1
    assert climatology(train, labels, years(1))[0] != first[0]
    assert climatology(train, labels * 0, years(1)).max() == 0
    assert np.isnan(climatology(train, labels * 0 - 1, years(1))).all()
    assert np.isnan(climatology(train[:0], [], years(1))).all()


def test_climatology_of_another_calendar():
    train = [cftime.Datetime360Day(2001, m, 30) for m in range(1, 13)]
    labels = [0] * 9 + [1] + [0] * 2
    rate = climatology(train, labels, train)
    assert np.argmax(rate) == 9
    assert rate.mean() == pytest.approx(1 / 12)


def test_climatology_checks_its_lengths():
    with pytest.raises(InputError, match="one label for each time"):
        climatology(years(1), [0, 1], years(1))


@pytest.fixture
def lows():
    """Forty maps: a held deep warm core (10–14), a brief one (20), a shallow one (25–30)."""
    n = 40
    vtl, vtu = np.full(n, -80.0), np.full(n, -60.0)
    vtl[10:15], vtu[10:15] = 90.0, 80.0
    vtl[20], vtu[20] = 120.0, 110.0
    vtl[25:31], vtu[25:31] = 70.0, -20.0
    b, low_msl = np.full(n, 5.0), np.full(n, 995.0)
    for name in (vtl, vtu, b, low_msl):
        name[35:] = np.nan  # no low over the sea
    columns = {"b": b, "vtl": vtl, "vtu": vtu, "low_msl": low_msl}
    return xr.Dataset(
        {name: ("time", values) for name, values in columns.items()}, {"time": years(1)[:n]}
    )


def test_the_rule_holds_for_hours_or_not_at_all(lows):
    score, detection = physical_rule(lows, Label(min_hours=12))
    np.testing.assert_array_equal(np.flatnonzero(detection), range(10, 15))
    assert np.isfinite(score).all()
    assert score[20] > score[12] > score[27] > score[0] > score[36]


def test_the_rule_follows_the_definition(lows):
    assert not physical_rule(lows, Label(msl_max_hpa=990))[1].any()
    assert not physical_rule(lows, Label(b_max_m=2))[1].any()
    assert not physical_rule(lows, Label(min_hours=48))[1].any()
    assert physical_rule(lows, Label(vtu_min=-50, min_hours=6))[1][25:31].all()


def test_no_lows_at_all(lows):
    score, detection = physical_rule(lows * np.nan, Label())
    assert np.ptp(score) == 0
    assert not detection.any()


def test_a_store_without_phase_space_is_refused(lows):
    with pytest.raises(InputError, match="the physical rule needs vtl, vtu; found"):
        physical_rule(lows.drop_vars(["vtl", "vtu"]), Label())
