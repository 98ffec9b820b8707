"""The storms: alike at the surface, told apart by their cores, labelled by the noise-free rule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from medicane import config, synthetic
from medicane.errors import InputError
from medicane.phase_space import hold, satisfies
from medicane.phase_space.sphere import distance_km
from medicane.synthetic import storm_plan, storms, vortex

LABEL = config.Label()
SEA_KINDS = [storms.MEDICANE, *(k for k in storms.NEGATIVES if k != "heat_low")]


@pytest.fixture(scope="module")
def is_land():
    return synthetic.land_lookup()


@pytest.fixture(scope="module")
def drawn(is_land) -> dict[str, list[storms.Storm]]:
    """Thirty storms of every kind."""
    rng = np.random.default_rng(11)
    return {
        kind: [storms.draw_storm(rng, kind, is_land=is_land, definition=LABEL) for _ in range(30)]
        for kind in (storms.MEDICANE, *storms.NEGATIVES)
    }


def plan(is_land, *, seed: int = 1, years: int = 3, **sea) -> list[storms.Storm]:
    return storm_plan.plan_storms(
        np.random.default_rng(seed),
        sea=config.Sea(years=years, **sea),
        hours=years * 8766,
        is_land=is_land,
        definition=LABEL,
    )


def test_the_land_lookup_knows_the_coast(is_land):
    latitude = np.array([39.5, 48.0, 35.0, 30.0, 37.5, 80.0])
    longitude = np.array([12.0, 10.0, 18.0, 10.0, 14.2, 5.0])
    # Tyrrhenian Sea, Germany, Ionian Sea, Algeria, Sicily, far outside.
    np.testing.assert_array_equal(
        is_land(latitude, longitude), [False, True, False, True, True, True]
    )


def test_only_medicanes_are_medicanes(drawn):
    for kind, many in drawn.items():
        for storm in many:
            assert storm.medicane.any() == (kind == storms.MEDICANE)


def test_the_label_is_the_rule_over_sea_held_for_its_least_duration(drawn):
    for many in drawn.values():
        for storm in many:
            rule = satisfies(storm.b, storm.vtl, storm.vtu, storm.msl_hpa, definition=LABEL)
            np.testing.assert_array_equal(storm.rule, rule & storm.over_sea)
            hours = np.datetime64("2001-01-01") + np.arange(storm.hours).astype("timedelta64[h]")
            lasting = hold(storm.rule, hours, min_hours=LABEL.min_hours, step_hours=1)
            np.testing.assert_array_equal(storm.medicane, lasting)


def test_every_medicane_lasts_on_six_hourly_maps_whatever_hour_they_begin(drawn):
    for storm in drawn[storms.MEDICANE]:
        for first, last in storm.spells():
            assert last - first >= storms.LEAST_MEDICANE_HOURS
            assert storm.medicane[first : last + 1].all()


def test_an_excursion_satisfies_the_rule_again_and_again_but_never_for_long(drawn):
    for storm in drawn["excursion"]:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], storm.rule.astype(int), [0]])))
        spells = edges[1::2] - edges[::2]
        assert spells.size >= 1
        assert spells.max() <= LABEL.min_hours
        for start in range(6):  # no two six-hourly maps in a row
            seen = storm.rule[start::6]
            assert not (seen[1:] & seen[:-1]).any()
    assert np.mean([s.rule.sum() for s in drawn["excursion"]]) > 4


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        pytest.param("baroclinic", lambda b, vtl, vtu: (vtl < 5) | (vtu < 5), id="cold core"),
        pytest.param("seclusion", lambda b, vtl, vtu: vtu < 5, id="cold aloft"),
        pytest.param("lee", lambda b, vtl, vtu: vtl < 0, id="cold below"),
        pytest.param("hybrid", lambda b, vtl, vtu: b > LABEL.b_max_m, id="asymmetric"),
    ],
)
def test_a_kind_is_what_its_name_says(drawn, kind, law):
    for storm in drawn[kind]:
        deep = storm.depth_hpa > 9
        assert law(storm.b[deep], storm.vtl[deep], storm.vtu[deep]).mean() > 0.75


def test_heat_lows_stand_over_hot_land(drawn, is_land):
    for storm in drawn["heat_low"]:
        assert not storm.over_sea.any()
        assert 28 < storm.latitude.min() <= storm.latitude.max() < 37
        deep = storm.depth_hpa > 5
        assert (storm.vtl[deep] > 10).all()
        assert np.abs(storm.vtu[deep]).max() < 40
    summer = [s for s in plan(is_land, years=3) if s.kind == "heat_low"]
    months = [(s.start / 24 % 365.25) / 30.44 for s in summer]
    assert np.mean([3 <= m < 10 for m in months]) > 0.85


def test_medicanes_begin_and_end_as_something_else(drawn):
    before = [s.vtl[: s.spells()[0][0]].min() for s in drawn[storms.MEDICANE]]
    after = [s.vtl[s.spells()[-1][1] + 1 :].min() for s in drawn[storms.MEDICANE]]
    assert np.median(before) < 0
    assert np.median(after) < 0


@pytest.mark.parametrize("kind", [k for k in SEA_KINDS if k != storms.MEDICANE])
def test_every_kind_over_sea_is_alike_at_the_surface(drawn, kind):
    def surface(many):
        return {
            "depth": [s.depth_hpa.max() for s in many],
            "radius": [s.radius_km for s in many],
            "life": [s.hours for s in many],
            "latitude": [s.latitude.mean() for s in many],
            "longitude": [s.longitude.mean() for s in many],
            "speed": [
                distance_km(
                    s.latitude[1:], s.longitude[1:], s.latitude[:-1], s.longitude[:-1]
                ).mean()
                for s in many
            ],
            "deep hours": [(s.msl_hpa < 1005).mean() for s in many],
        }

    ours, theirs = surface(drawn[storms.MEDICANE]), surface(drawn[kind])
    for name, values in ours.items():
        # Seven comparisons for each of five kinds: one in a thousand by chance is not remarkable.
        assert ks_2samp(values, theirs[name]).pvalue > 1e-3, name


def test_the_surface_of_a_storm_stays_within_the_recipe(drawn):
    for kind in SEA_KINDS:
        for storm in drawn[kind]:
            assert 60 <= storm.radius_km <= 110
            assert 8 <= storm.depth_hpa.max() <= 20
            assert storm.depth_hpa.min() >= 0
            assert 31 <= storm.latitude.min() <= storm.latitude.max() <= 45.5
            np.testing.assert_allclose(storm.msl_hpa, vortex.SEA_PRESSURE - storm.depth_hpa)
            assert 48 <= storm.hours <= 145


def test_storms_decay_over_land(drawn):
    landed = 0
    for kind in SEA_KINDS:
        for storm in drawn[kind]:
            ashore = np.flatnonzero(~storm.over_sea)
            landed += ashore.size > 5
            most = 20 * np.exp(-np.arange(1, ashore.size + 1) / storms.LANDFALL_HOURS)
            assert (storm.depth_hpa[ashore] <= most).all()
    assert landed > 3


def test_tracks_move_in_their_heading(drawn):
    storm = drawn[storms.MEDICANE][0]
    north = np.diff(storm.latitude)
    np.testing.assert_array_equal(
        np.sign(north), np.sign(np.cos(np.deg2rad(storm.heading_deg[1:])))
    )
    steps = distance_km(
        storm.latitude[1:], storm.longitude[1:], storm.latitude[:-1], storm.longitude[:-1]
    )
    assert steps.max() / steps.min() == pytest.approx(1, abs=0.02)
    assert 2 < steps.mean() < 60


def test_the_clean_phase_space_is_that_of_the_reference_vortex():
    a1, a2 = vortex.height_coefficients(
        np.array([14.0]), storms.LEVELS, profile=vortex.Profile(warm=1.0, warm_depth_km=7.0)
    )
    b, vtl, vtu = storms.clean_phase_space(
        a1, a2, tilt=np.zeros(1), vortex_radius_km=90.0, radius_km=200.0
    )
    assert b[0] == pytest.approx(0, abs=1e-9)
    assert vtl[0] == pytest.approx(97, rel=0.05)
    assert vtu[0] == pytest.approx(82, rel=0.05)


@pytest.mark.parametrize(
    ("base_rate", "years"), [(0.08, 2), (0.02, 5), (0.008, 9)], ids=["8 %", "2 %", "0.8 %"]
)
def test_the_base_rate_is_realised(is_land, base_rate, years):
    planned = plan(is_land, years=years, base_rate=base_rate)
    labels = np.zeros(years * 8766, bool)
    for storm in planned:
        labels[storm.start : storm.start + storm.hours] |= storm.medicane
    assert labels.mean() == pytest.approx(base_rate, rel=0.1)


def test_the_other_lows_abound(is_land):
    rare = plan(is_land, years=8, base_rate=0.008)
    medicanes = sum(s.kind == storms.MEDICANE for s in rare)
    assert 0.025 < medicanes / len(rare) < 0.055
    often = plan(is_land, years=2, base_rate=0.05)
    kinds = [s.kind for s in often]
    assert len(often) >= 3 * kinds.count(storms.MEDICANE)
    assert set(kinds) == {storms.MEDICANE, *storms.NEGATIVES}


def test_medicanes_spread_over_the_record_and_prefer_autumn(is_land):
    planned = [s for s in plan(is_land, years=4, base_rate=0.03) if s.kind == storms.MEDICANE]
    year = np.array([s.start // 8766 for s in planned])
    counts = np.bincount(year, minlength=4)
    assert counts.min() >= counts.max() - 3
    month = np.array([int((s.start / 24 % 365.25) / 30.44) for s in planned])
    assert np.isin(month, [8, 9, 10, 11, 0]).mean() > 0.5


def test_negatives_over_sea_share_the_season_of_medicanes(is_land):
    planned = plan(is_land, years=5, base_rate=0.05)
    day = {
        kind: [
            s.start / 24 % 365.25
            for s in planned
            if (s.kind == storms.MEDICANE) == kind and s.kind != "heat_low"
        ]
        for kind in (True, False)
    }
    assert ks_2samp(day[True], day[False]).pvalue > 1e-3


def test_storms_keep_their_distance_and_stay_inside_the_record(is_land):
    planned = plan(is_land, years=2, base_rate=0.05)
    assert [s.name for s in planned] == sorted({s.name for s in planned})
    assert [s.start for s in planned] == sorted(s.start for s in planned)
    for i, a in enumerate(planned):
        assert a.start >= 0
        assert a.start + a.hours <= 2 * 8766
        for b in planned[i + 1 :]:
            first, last = b.start, min(a.start + a.hours, b.start + b.hours)
            if first < last:
                apart = distance_km(
                    a.latitude[first - a.start : last - a.start],
                    a.longitude[first - a.start : last - a.start],
                    b.latitude[: last - first],
                    b.longitude[: last - first],
                )
                assert apart.min() >= storm_plan.APART_KM


@pytest.mark.parametrize(
    "changes",
    [
        {"min_hours": 12.0},
        {"min_hours": 0.0},
        {"b_max_m": 10.0},
        {"radius_km": 150.0},
        {"msl_max_hpa": 1000.0},
    ],
    ids=str,
)
def test_other_label_definitions_are_obeyed(is_land, changes):
    label = LABEL.model_copy(update=changes)
    planned = storm_plan.plan_storms(
        np.random.default_rng(5),
        sea=config.Sea(years=1, base_rate=0.03),
        hours=8766,
        is_land=is_land,
        definition=label,
    )
    hours = sum(int(s.medicane.sum()) for s in planned)
    assert hours == pytest.approx(0.03 * 8766, rel=0.2)
    for storm in planned:
        assert all(last - first >= label.min_hours for first, last in storm.spells())
        deep = storm.msl_hpa[storm.medicane]
        assert (deep < label.msl_max_hpa).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"msl_max_hpa": 960.0}, "label.msl_max_hpa"), ({"min_hours": 400.0}, "medicane")],
)
def test_an_impossible_definition_is_refused_in_one_line(is_land, changes, said):
    label = LABEL.model_copy(update=changes)
    with pytest.raises(InputError, match=said) as error:
        storms.draw_storm(
            np.random.default_rng(0), storms.MEDICANE, is_land=is_land, definition=label
        )
    assert "\n" not in str(error.value)


def test_an_unknown_kind_is_refused(is_land):
    with pytest.raises(ValueError, match="typhoon"):
        storms.draw_storm(np.random.default_rng(0), "typhoon", is_land=is_land, definition=LABEL)


def test_the_plan_follows_the_seed(is_land):
    one, same, other = (plan(is_land, seed=seed, years=1) for seed in (1, 1, 2))
    assert [(s.kind, s.start) for s in one] == [(s.kind, s.start) for s in same]
    np.testing.assert_array_equal(one[0].vtl, same[0].vtl)
    assert [(s.kind, s.start) for s in one] != [(s.kind, s.start) for s in other]
