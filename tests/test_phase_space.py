"""Phase space against analytic vortices, a reference implementation, real forecasts, and itself."""

from __future__ import annotations

import csv
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from medicane.config import Label
from medicane.errors import InputError
from medicane.phase_space import (
    distance_km,
    hold,
    phase_space,
    polar_phase_space,
    satisfies,
    thickness_slopes,
    warm_core_score,
)
from medicane.phase_space.sphere import bearing_deg

G0 = 9.80665
LEVELS = np.arange(900.0, 299.0, -50.0)
COARSE = np.array([900.0, 850.0, 700.0, 600.0, 500.0, 400.0, 300.0])


def core(z: NDArray, kind: str) -> NDArray:
    """How the depth of the vortex changes with height (m)."""
    if kind.startswith("warm"):
        return np.exp(-((z / (1000 * float(kind[4:]))) ** 2))
    return 1 + 1.5 * z / 10_000


def height(r_km: ArrayLike, levels: ArrayLike, kind: str, depth_hpa: float = 14.0) -> NDArray:
    """Height (m) of pressure levels in the vortex of Reed and Jablonowski (2011).

    Shape (level, *r). Solved for z by fixed-point iteration: p0 1015 hPa, T0 295 K, 7 K/km, and a
    pressure radius of 90 km.
    """
    r = np.asarray(r_km, float)
    p = np.asarray(levels, float).reshape((-1,) + (1,) * r.ndim)
    lapse, t0, gas = 0.007, 295.0, 287.04
    shape = np.exp(-((r / 90.0) ** 1.5))
    z = np.full(np.broadcast_shapes(p.shape, r.shape), 3000.0)
    for _ in range(60):
        surface = 1015.0 - depth_hpa * shape * core(z, kind)
        z = t0 / lapse * (1 - (p / surface) ** (gas * lapse / G0))
    return z


def gridded(kind: str, centre: tuple[float, float], degrees: float, levels: ArrayLike) -> tuple:
    lat, lon = np.arange(44, 30 - 1e-9, -degrees), np.arange(10, 30 + 1e-9, degrees)
    away = distance_km(*centre, lat[:, None], lon[None])
    return height(away, levels, kind), lat, lon


@pytest.mark.parametrize(
    ("kind", "vtl", "vtu"), [("warm7", 97, 82), ("warm9", 71, 76), ("cold", -101, -67)]
)
def test_profiles_of_the_design_are_met_within_five_per_cent(
    kind: str, vtl: float, vtu: float
) -> None:
    z = height(np.array([0.0, 200.0]), LEVELS, kind)
    found = thickness_slopes(z[:, 1] - z[:, 0], LEVELS)
    assert found == pytest.approx((vtl, vtu), rel=0.05)


@pytest.mark.parametrize("degrees", [0.25, 0.5])
@pytest.mark.parametrize("kind", ["warm7", "warm9", "cold"])
def test_a_grid_loses_little_and_never_the_sign(kind: str, degrees: float) -> None:
    """The lowest point of a coarse grid misses the centre: the slopes shrink, mostly little."""
    rng = np.random.default_rng(1)
    ratios = []
    exact = height(np.array([0.0, 200.0]), COARSE, kind)
    vtl, vtu = thickness_slopes(exact[:, 1] - exact[:, 0], COARSE)
    for _ in range(25):
        centre = (37 + rng.uniform(-0.5, 0.5), 20 + rng.uniform(-0.5, 0.5))
        z, lat, lon = gridded(kind, centre, degrees, COARSE)
        ps = phase_space(
            z, levels=COARSE, latitude=lat, longitude=lon, centre=centre, radius_km=200
        )
        ratios.append((ps.vtl / vtl, ps.vtu / vtu))
    ratios = np.array(ratios)
    least, mean = {0.25: (0.85, 0.94), 0.5: (0.65, 0.84)}[degrees]
    assert ratios.min() > least
    assert ratios.mean() > mean
    assert ratios.max() < 1.02


def test_slope_of_a_straight_profile_is_exact_on_any_levels() -> None:
    for levels in (COARSE, LEVELS, COARSE[::-1], np.array([1000, 900, 600, 300, 200.0])):
        profile = 50 * np.log(levels / 900) + np.where(levels < 600, -20 * np.log(levels / 600), 0)
        vtl, vtu = thickness_slopes(profile, levels)
        assert vtl == pytest.approx(50)
        assert vtu == pytest.approx(30)


@given(
    a=st.floats(-200, 200),
    b=st.floats(-200, 200),
    scale=st.floats(-5, 5),
    shift=st.floats(-500, 500),
)
def test_slopes_are_linear_and_blind_to_a_constant(
    a: float, b: float, scale: float, shift: float
) -> None:
    profile = a * np.log(COARSE / 300) + b * np.cos(COARSE / 100)
    vtl, vtu = thickness_slopes(np.stack([profile, scale * profile + shift]), COARSE)
    assert vtl[1] == pytest.approx(scale * vtl[0], abs=1e-6)
    assert vtu[1] == pytest.approx(scale * vtu[0], abs=1e-6)


@pytest.mark.parametrize("absent", [900, 600, 300])
def test_a_missing_bounding_level_is_named(absent: int) -> None:
    kept = np.array([p for p in COARSE if p != absent])
    with pytest.raises(InputError, match="900, 600 and 300 hPa"):
        thickness_slopes(np.zeros(kept.size), kept)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(InputError, match="7 levels"):
        thickness_slopes(np.zeros((7, 3)), COARSE)
    with pytest.raises(InputError, match=r"level, latitude, longitude \(7, 3, 4\)"):
        phase_space(
            np.zeros((7, 4, 3)),
            levels=COARSE,
            latitude=[3, 2, 1],
            longitude=[1, 2, 3, 4],
            centre=(2, 2),
            radius_km=200,
        )


# --- B ------------------------------------------------------------------------------------------


def sheared(shear_ms: float, toward_deg: float) -> tuple[NDArray, NDArray, NDArray]:
    """Heights whose 900-600 hPa thickness rises to the right of `toward_deg`: thermal wind."""
    lat, lon = np.arange(42, 31.9, -0.25), np.arange(14, 26.1, 0.25)
    away = distance_km(37, 20, lat[:, None], lon[None]) * 1000
    angle = np.radians(bearing_deg(37, 20, lat[:, None], lon[None]) - toward_deg)
    f = 2 * 7.2921e-5 * np.sin(np.radians(37))
    thickness = 3500 + f / G0 * shear_ms * away * np.sin(angle)
    z900 = np.full_like(thickness, 1000.0)
    return np.stack([z900, z900 + thickness, z900 + 2 * thickness]), lat, lon


@pytest.mark.parametrize("toward", [0, 45, 90, 200, 315])
def test_shear_along_the_motion_gives_the_b_of_the_design(toward: float) -> None:
    z, lat, lon = sheared(10.0, toward)
    space = {"levels": (900, 600, 300), "latitude": lat, "longitude": lon, "centre": (37, 20)}
    f = 2 * 7.2921e-5 * np.sin(np.radians(37))
    expected = 8 * 200_000 / (3 * np.pi) * f / G0 * 10.0
    assert expected == pytest.approx(15, abs=0.5)
    along = phase_space(z, **space, radius_km=200, heading_deg=toward).b
    assert along == pytest.approx(expected, rel=0.04)
    back = phase_space(z, **space, radius_km=200, heading_deg=toward + 180).b
    assert back == pytest.approx(-along, rel=1e-6)
    across = phase_space(z, **space, radius_km=200, heading_deg=toward + 90).b
    assert abs(across) < 1.0


def test_without_a_heading_b_is_the_worst_of_all() -> None:
    z, lat, lon = sheared(10.0, 70.0)
    space = {"levels": (900, 600, 300), "latitude": lat, "longitude": lon, "centre": (37, 20)}
    every = [phase_space(z, **space, radius_km=200, heading_deg=h).b for h in range(0, 360, 15)]
    assert phase_space(z, **space, radius_km=200).b == pytest.approx(max(every))


def test_b_changes_sign_in_the_southern_hemisphere() -> None:
    z, lat, lon = sheared(10.0, 0.0)
    space = {"levels": (900, 600, 300), "longitude": lon, "radius_km": 200, "heading_deg": 0.0}
    north = phase_space(z, latitude=lat, centre=(37, 20), **space).b
    south = phase_space(z[:, ::-1], latitude=-lat[::-1], centre=(-37, 20), **space).b
    assert south == pytest.approx(-north, rel=1e-6)


# --- the grid -----------------------------------------------------------------------------------


def test_orientation_level_order_and_leading_dimensions_do_not_matter() -> None:
    z, lat, lon = gridded("warm7", (37.1, 20.2), 0.25, COARSE)
    at = {"centre": (37.1, 20.2), "radius_km": 200, "heading_deg": 60.0}
    one = phase_space(z, levels=COARSE, latitude=lat, longitude=lon, **at)
    flipped = phase_space(
        z[::-1, ::-1], levels=COARSE[::-1], latitude=lat[::-1], longitude=lon, **at
    )
    many = phase_space(
        np.stack([[z, z + 5], [z, z]]), levels=COARSE, latitude=lat, longitude=lon, **at
    )
    assert one.b.shape == ()
    for a, b, c in zip(one, flipped, many, strict=True):
        assert a == pytest.approx(b, abs=1e-9)
        assert c.shape == (2, 2)
        assert c == pytest.approx(np.full((2, 2), a), abs=1e-6)


def test_a_disc_partly_outside_is_used_up_to_half() -> None:
    z, lat, lon = gridded("warm7", (37, 20), 0.25, COARSE)
    at = {"levels": COARSE, "longitude": lon, "centre": (37, 20), "radius_km": 200}
    known = phase_space(z, latitude=lat, **at)
    for cut, usable in ((36.0, True), (37.0, True), (37.5, False), (40.0, False)):
        kept = lat >= cut
        ps = phase_space(z[:, kept], latitude=lat[kept], **at)
        assert np.isfinite(ps.vtl) == np.isfinite(ps.b) == usable
        if usable:
            assert ps.vtl == pytest.approx(known.vtl, rel=0.05)


def test_missing_values_are_left_out_on_every_level() -> None:
    z, lat, lon = gridded("warm7", (37, 20), 0.25, COARSE)
    at = {"latitude": lat, "longitude": lon, "centre": (37, 20), "radius_km": 200}
    z[0, lat > 38] = np.nan
    z[0, lat > 38.5] = 1e6  # nonsense beside the gap must not pass once a level is missing
    z[1, lat > 38.5] = np.nan
    ps = phase_space(z, levels=COARSE, **at)
    assert 85 < ps.vtl < 105
    z[3, lat > 36.5] = np.nan
    assert np.isnan(phase_space(z, levels=COARSE, **at)).all()


# --- the reference ------------------------------------------------------------------------------


def dale(folder: Path) -> tuple[xr.Dataset, dict[str, NDArray]]:
    with (folder / "dale_cps.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("lat", "lon", "B", "VTL", "VTU")
    return xr.open_dataset(folder / "dale_polar.nc", engine="netcdf4"), {
        name: np.array([float(row[name]) for row in rows]) for name in names
    }


def test_typhoon_dale_agrees_with_an_independent_implementation(real_data: Path) -> None:
    """See docs/phase_space.md for what is left: two levels and dp/p there, least squares here."""
    snapshots, reference = dale(real_data)
    lat, lon = reference["lat"], reference["lon"]
    heading = bearing_deg(lat[:-1], lon[:-1], lat[1:], lon[1:])
    heading = np.append(heading, heading[-1])
    ps = polar_phase_space(
        snapshots["snap_zg"].values,
        levels=snapshots["level"].values / 100,
        radius=snapshots["r"].values,
        azimuth_deg=90 - snapshots["az"].values,
        max_radius=10.0,
        heading_deg=heading,
    )
    # The reference is in m2 s-2, and its B is left minus right.
    for found, wanted, correlation, median_m, relative in (
        (ps.vtl, reference["VTL"] / G0, 0.997, 10.0, 0.06),
        (ps.vtu, reference["VTU"] / G0, 0.999, 7.0, 0.035),
        (ps.b, -reference["B"] / G0, 0.999, 1.5, 0.10),
    ):
        assert np.corrcoef(found, wanted)[0, 1] > correlation
        assert np.median(abs(found - wanted)) < median_m
        assert np.median(abs(found - wanted) / abs(wanted)) < relative
    assert (np.sign(ps.vtl) == np.sign(reference["VTL"])).all()
    assert (np.sign(ps.vtu) == np.sign(reference["VTU"])).all()


def test_the_extratropical_transition_of_dale_is_asymmetric_and_cold(real_data: Path) -> None:
    """The sign of B is Hart's: warm air to the right of a storm that turns extratropical."""
    snapshots, _ = dale(real_data)
    ps = polar_phase_space(
        snapshots["snap_zg"].values[[20, 34]],
        levels=snapshots["level"].values / 100,
        radius=snapshots["r"].values,
        azimuth_deg=90 - snapshots["az"].values,
        max_radius=5.0,
        heading_deg=[316.0, 53.0],
    )
    assert abs(ps.b[0]) < 10 < 100 < ps.b[1]
    assert ps.vtl[0] > 0 > ps.vtl[1]
    assert ps.vtu[0] > 0 > ps.vtu[1]


# --- the rule -----------------------------------------------------------------------------------


def test_rule_is_strict_at_every_threshold_and_nan_fails() -> None:
    definition = Label()
    good = {"b": 19.9, "vtl": 0.1, "vtu": 0.1, "msl_hpa": 1004.9}
    assert satisfies(**good, definition=definition)
    for name, edge in (("b", 20.0), ("vtl", 0.0), ("vtu", 0.0), ("msl_hpa", 1005.0)):
        assert not satisfies(**(good | {name: edge}), definition=definition)
        assert not satisfies(**(good | {name: np.nan}), definition=definition)
    deep = good | {"vtl": 71.0, "vtu": 76.0}
    assert satisfies(**deep, definition=definition)
    assert not satisfies(**deep, definition=Label(lower_core_stronger=True))


def test_score_orders_maps_as_the_rule_does() -> None:
    score = warm_core_score([80, 80, 80, -5, np.nan], [60, 60, -20, 40, 1], [0, 45, 0, 0, 0])
    assert score[:4].tolist() == [60, 35, -20, -5]
    assert np.isnan(score[4])
    assert warm_core_score(30.0, 40.0) == 30.0


def clock(n: int, hours: int = 6) -> NDArray:
    return np.datetime64("2020-01-01T00", "ns") + np.arange(n) * np.timedelta64(hours, "h")


def test_hold_keeps_runs_that_last() -> None:
    raw = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], bool)
    held = hold(raw, clock(10), min_hours=6, step_hours=6)
    assert held.astype(int).tolist() == [0, 0, 1, 1, 0, 1, 1, 1, 0, 0]
    held = hold(raw, clock(10), min_hours=12, step_hours=6)
    assert held.astype(int).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    seen = hold(raw, clock(10), min_hours=6, step_hours=6, causal=True)
    assert seen.astype(int).tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 0, 0]


def test_a_gap_ends_a_run() -> None:
    times = clock(6)
    times[3:] += np.timedelta64(6, "h")
    raw = np.ones(6, bool)
    assert hold(raw, times, min_hours=12, step_hours=6).all()
    assert not hold(raw, times, min_hours=18, step_hours=6).any()


def test_hold_reads_other_calendars_and_refuses_disorder() -> None:
    times = np.array([cftime.Datetime360Day(2001, 2, 29, h) for h in (0, 6, 12, 18)], object)
    held = hold([1, 1, 0, 1], times, min_hours=6, step_hours=6)
    assert held.tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="increase strictly"):
        hold([1, 1], clock(2)[::-1], min_hours=6, step_hours=6)
    with pytest.raises(InputError, match="one value for each of 3"):
        hold([1, 1], clock(3), min_hours=6, step_hours=6)
    assert hold([], clock(0), min_hours=6, step_hours=6).shape == (0,)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 30))
def test_holding_removes_only_and_twice_is_once(flags: list[bool], min_hours: int) -> None:
    raw = np.array(flags, bool)
    held = hold(raw, clock(raw.size), min_hours=min_hours, step_hours=6)
    assert not (held & ~raw).any()
    again = hold(held, clock(raw.size), min_hours=min_hours, step_hours=6)
    assert (again == held).all()
    causal = hold(raw, clock(raw.size), min_hours=min_hours, step_hours=6, causal=True)
    assert not (causal & ~held).any()


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.data())
@settings(max_examples=50)
def test_a_causal_hold_never_looks_ahead(flags: list[bool], data: st.DataObject) -> None:
    raw = np.array(flags, bool)
    k = data.draw(st.integers(1, raw.size))
    whole = hold(raw, clock(raw.size), min_hours=12, step_hours=6, causal=True)
    known = hold(raw[:k], clock(k), min_hours=12, step_hours=6, causal=True)
    assert (whole[:k] == known).all()


# --- distances ----------------------------------------------------------------------------------


@given(st.floats(-89, 89), st.floats(-180, 180), st.floats(-89, 89), st.floats(-180, 180))
def test_distance_is_symmetric_and_crosses_the_date_line(
    lat1: float, lon1: float, lat2: float, lon2: float
) -> None:
    there = distance_km(lat1, lon1, lat2, lon2)
    assert there == pytest.approx(distance_km(lat2, lon2, lat1, lon1), abs=1e-6)
    assert there == pytest.approx(distance_km(lat1, lon1 + 360, lat2, lon2), abs=1e-3)
    assert 0 <= there <= 20_016


def test_distance_and_bearing_of_known_places() -> None:
    assert distance_km(38.12, 13.36, 36.44, 28.22) == pytest.approx(1325, abs=10)  # Palermo-Rhodes
    assert bearing_deg(37, 20, [38, 37, 36, 37], [20, 21, 20, 19]) == pytest.approx(
        [0, 89.7, 180, 270.3], abs=0.1
    )
    assert np.isnan(distance_km(np.nan, 0, 0, 0))
