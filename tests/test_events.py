"""Events, episodes and their scores."""

from __future__ import annotations

import itertools

import cftime
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medicane.errors import InputError
from medicane.evaluate.events import (
    episodes,
    event_scores,
    hours_from_first,
    observed_events,
    poisson_interval,
    usual_step_hours,
    wilson_interval,
)


def six_hourly(n, start="2003-01-01"):
    return np.datetime64(start, "ns") + np.arange(n) * np.timedelta64(6, "h")


def test_hours_of_any_calendar():
    months = [cftime.Datetime360Day(2001, 2, 29), cftime.Datetime360Day(2001, 3, 1, 6)]
    np.testing.assert_array_equal(hours_from_first(months), [0, 54])
    np.testing.assert_array_equal(hours_from_first(six_hourly(3)), [0, 6, 12])
    assert hours_from_first([]).shape == (0,)


def test_times_must_increase():
    times = six_hourly(4)[[0, 1, 1, 2]]
    with pytest.raises(InputError, match="increase strictly; found 2003-01-01T06"):
        hours_from_first(times)


def test_usual_step_survives_gaps():
    times = np.delete(six_hourly(20), [3, 4, 5, 11])
    assert usual_step_hours(times) == 6
    assert np.isnan(usual_step_hours(six_hourly(1)))


def test_consecutive_detections_merge_and_gaps_split():
    times = np.delete(six_hourly(12), [8])
    detection = np.zeros(11, bool)
    detection[[1, 2, 3, 5, 7, 8]] = True  # between maps 7 and 8 the record has a gap
    assert episodes(times, detection) == [(1, 3), (5, 5), (7, 7), (8, 8)]
    assert episodes(times, detection, merge_hours=12) == [(1, 8)]
    assert episodes(times, ~detection & False) == []


@given(st.lists(st.booleans(), min_size=0, max_size=40))
def test_episodes_cover_each_detection_once(found):
    runs = episodes(six_hourly(len(found)), found)
    covered = [i for first, last in runs for i in range(first, last + 1)]
    assert covered == list(np.flatnonzero(found))
    assert all(b[0] - a[1] > 1 for a, b in itertools.pairwise(runs))


def test_events_are_runs_by_storm():
    #            0  1  2  3   4  5  6  7  8  9
    labels = np.array([0, 1, 1, -1, 1, 0, 1, 1, 1, 1])
    storm = np.array(["", "a", "a", "a", "a", "a", "a", "b", "b", ""])
    found = [(e.storm, list(e.maps)) for e in observed_events(six_hourly(10), labels, storm)]
    assert found == [
        ("a", [1, 2, 4]),  # unknown hours do not end an event …
        ("a", [6]),  # … hours that are no medicane do
        ("b", [7, 8]),
        ("unnamed 2003-01-03T06", [9]),
    ]


def test_events_without_names_are_runs_of_consecutive_maps():
    labels = np.array([1, 1, 0, 1, 1, 1])
    times = np.delete(six_hourly(7), [5])
    found = [list(e.maps) for e in observed_events(times, labels, None)]
    assert found == [[0, 1], [3, 4], [5]]


def test_wilson_of_the_textbook_and_of_a_handful():
    low, high = wilson_interval(14, 18)
    assert (round(low, 2), round(high, 2)) == (0.55, 0.91)
    low, high = wilson_interval(5, 5)
    assert high == 1
    assert low == pytest.approx(0.566, abs=0.001)
    assert np.isnan(wilson_interval(0, 0)).all()
    assert wilson_interval([1, 2], [3, 4]).shape == (2, 2)


def test_poisson_interval_is_garwoods():
    assert poisson_interval(0) == pytest.approx((0, 3.689), abs=0.001)
    assert poisson_interval(10) == pytest.approx((4.795, 18.390), abs=0.001)


@pytest.fixture
def year():
    """Three storms in a year of maps: a is caught late, b missed, c caught at once but briefly."""
    times = six_hourly(1461)
    labels = np.zeros(1461, int)
    storm = np.full(1461, "", dtype="<U8")
    for name, first, last in (("a", 100, 109), ("b", 500, 505), ("c", 900, 907)):
        labels[first : last + 1] = 1
        storm[first : last + 1] = name
    labels[908:911] = -1
    storm[908:911] = "c"
    detection = np.zeros(1461, bool)
    detection[103:112] = True  # runs on after the event: not false
    detection[900:902] = True
    detection[909:913] = True  # begins in unknown hours: not false
    detection[[300, 301, 302, 304]] = True  # two false alarms, one map apart
    return times, labels, storm, detection


def test_event_scores_of_a_known_year(year):
    found = event_scores(*year)
    assert (found["hits"], found["misses"], found["hits_half"]) == (2, 1, 1)
    assert found["pod"]["value"] == pytest.approx(2 / 3)
    assert found["pod"]["low"] < 2 / 3 < found["pod"]["high"]
    assert found["false_alarms"] == 2
    assert found["years"] == pytest.approx(1, rel=0.01)
    assert found["false_alarms_per_year"] == pytest.approx(2, rel=0.01)
    assert found["false_alarms_per_year_low"] < 2 < found["false_alarms_per_year_high"]
    assert found["onset_delay_hours"] == pytest.approx((18 + 0) / 2)
    assert [s["hit"] for s in found["storms"]] == [True, False, True]
    assert found["storms"][0] | {"max_probability": None, "centre_error_km": None} == {
        "storm": "a",
        "start": "2003-01-26T00:00",
        "end": "2003-01-28T06:00",
        "n_maps": 10,
        "n_detected": 7,
        "hit": True,
        "max_probability": None,
        "onset_delay_hours": 18,
        "centre_error_km": None,
    }
    outcomes = [e["outcome"] for e in found["episodes"]]
    assert outcomes == ["event", "false alarm", "false alarm", "event", "unknown"]


def test_events_without_a_forecast_are_left_out_not_missed(year):
    times, labels, storm, detection = year
    available = np.ones(labels.shape, bool)
    available[490:520] = False
    available[100:104] = False
    found = event_scores(times, labels, storm, detection, available=available)
    assert (found["hits"], found["misses"], found["unscored"]) == (2, 0, 1)
    assert found["storms"][1]["hit"] is None
    assert found["storms"][0]["n_maps"] == 6
    assert found["years"] < event_scores(*year)["years"]


def test_probability_and_centre_of_events(year):
    times, labels, storm, detection = year
    probability = np.linspace(0, 1, labels.size)
    error = np.full(labels.size, np.nan)
    error[100:110] = 50.0
    error[105] = 70.0
    found = event_scores(
        times, labels, storm, detection, probability=probability, centre_error_km=error
    )
    assert found["centre_error_km"] == pytest.approx((6 * 50 + 70) / 7)
    assert found["storms"][0]["max_probability"] == pytest.approx(probability[109])
    assert np.isnan(found["storms"][1]["centre_error_km"])
    assert found["episodes"][1]["max_probability"] == pytest.approx(probability[302])


def test_nothing_observed_nothing_detected():
    none = np.zeros(20, int)
    found = event_scores(six_hourly(20), none, None, none)
    assert (found["hits"], found["misses"], found["false_alarms"]) == (0, 0, 0)
    assert np.isnan(found["pod"]["value"])
    assert np.isnan(found["onset_delay_hours"])
    assert found["false_alarms_per_year"] == 0
    assert found["false_alarms_per_year_high"] > 100  # five days say little about a year


def test_no_maps_at_all():
    found = event_scores([], [], None, [])
    assert found["hits"] == 0
    assert np.isnan(found["false_alarms_per_year"])


@given(st.data())
def test_events_and_episodes_add_up(data):
    n = data.draw(st.integers(2, 60))
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 0, 1, -1]), min_size=n, max_size=n)))
    detection = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    storm = np.array(data.draw(st.lists(st.sampled_from(["", "a"]), min_size=n, max_size=n)))
    found = event_scores(six_hourly(n), labels, storm, detection)
    assert sum(s["n_maps"] for s in found["storms"]) == (labels == 1).sum()
    assert sum(s["n_detected"] for s in found["storms"]) == (detection & (labels == 1)).sum()
    assert found["hits"] + found["misses"] == len(found["storms"])
    assert found["hits_half"] <= found["hits"]
    assert sum(e["n_maps"] for e in found["episodes"]) == detection.sum()
    assert found["false_alarms"] <= (detection & (labels == 0)).sum()
