"""The vortices: the table of phase-space values, and the balances they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medicane import names
from medicane.phase_space import polar_phase_space
from medicane.synthetic import vortex
from medicane.synthetic.vortex import Profile

LEVELS = np.arange(900.0, 299.0, -50.0)
RINGS = np.linspace(0, 200, 21)
AZIMUTH = (np.arange(24) + 0.5) * 15.0


def space_of(profile: Profile, *, tilt: float = 0.0, levels: np.ndarray = LEVELS):
    """B, −VTL, −VTU of the reference vortex (14 hPa, 90 km) within 200 km."""
    coefficients = vortex.height_coefficients(np.array([14.0]), levels, profile=profile)
    heights = vortex.disc_heights(
        coefficients,
        levels_hpa=levels,
        vortex_radius_km=90.0,
        r_km=RINGS,
        azimuth_deg=AZIMUTH,
        thickness_gradient=tilt,
    )
    space = polar_phase_space(
        heights,
        levels=levels,
        radius=RINGS,
        azimuth_deg=AZIMUTH,
        max_radius=200.0,
        heading_deg=np.zeros(1),
    )
    return tuple(float(part[0]) for part in space)


@pytest.mark.parametrize(
    ("profile", "vtl", "vtu"),
    [
        pytest.param(Profile(warm=1.0, warm_depth_km=7.0), 97, 82, id="medicane, 7 km"),
        pytest.param(Profile(warm=1.0, warm_depth_km=9.0), 71, 76, id="medicane, 9 km"),
        pytest.param(Profile(cold_slope=1.5), -101, -67, id="cold core"),
    ],
)
def test_the_reference_vortices_have_their_phase_space_values(profile, vtl, vtu):
    _, got_vtl, got_vtu = space_of(profile)
    assert got_vtl == pytest.approx(vtl, rel=0.05)
    assert got_vtu == pytest.approx(vtu, rel=0.05)


def test_a_seclusion_is_warm_below_and_cold_above_and_a_lee_low_the_reverse():
    _, vtl, vtu = space_of(Profile(curvature=-0.4))
    assert vtl > 0 > vtu
    _, vtl, vtu = space_of(Profile(curvature=0.3))
    assert vtl < 0 < vtu


def test_seven_levels_give_the_values_of_thirteen():
    for profile in (Profile(warm=1.0), Profile(cold_slope=1.5), Profile(curvature=-0.4)):
        few = space_of(profile, levels=np.array(names.PHASE_SPACE_LEVELS, float))
        np.testing.assert_allclose(few, space_of(profile), rtol=0.03, atol=1.0)


def test_the_reference_vortex_blows_22_5_m_s_at_80_km():
    r = np.arange(1.0, 400.0)
    gradient = vortex.pressure_gradient(r, depth_hpa=14.0, radius_km=90.0)
    wind = vortex.gradient_wind(r, gradient, density=1.18, f=vortex.coriolis(37.0))
    assert wind.max() == pytest.approx(22.5, rel=0.05)
    assert r[wind.argmax()] == pytest.approx(80, abs=5)


@given(
    latitude=st.floats(28, 48),
    depth=st.floats(2, 30),
    radius=st.floats(40, 250),
    r=st.floats(1, 800),
)
def test_the_gradient_wind_balances_pressure_coriolis_and_curvature(latitude, depth, radius, r):
    density, f = 1.2, vortex.coriolis(latitude)
    gradient = vortex.pressure_gradient(r, depth_hpa=depth, radius_km=radius)
    wind = vortex.gradient_wind(r, gradient, density=density, f=f)
    assert wind >= 0
    assert wind**2 / (r * 1e3) + f * wind == pytest.approx(gradient / density, rel=1e-6, abs=1e-9)


def test_the_pressure_gradient_is_the_derivative_of_the_pressure():
    r = np.linspace(5, 500, 200)
    vortex_of = {"depth_hpa": 15.0, "radius_km": 80.0}
    step = 1e-3
    either = [
        vortex.pressure(r + side, 0.0, profile=Profile(), **vortex_of) for side in (-step, step)
    ]
    numerical = (either[1] - either[0]) * 100 / (2 * step * 1e3)
    np.testing.assert_allclose(vortex.pressure_gradient(r, **vortex_of), numerical, atol=1e-6)


PROFILES = [
    Profile(warm=1.0, warm_depth_km=7.0),
    Profile(cold_slope=1.2),
    Profile(curvature=-0.4),
    Profile(warm=0.4, warm_depth_km=8.0, cold_slope=0.8, curvature=0.2),
]


@pytest.mark.parametrize("profile", PROFILES)
def test_pressure_and_temperature_are_in_hydrostatic_balance(profile):
    r, z = np.meshgrid([0.0, 60.0, 150.0, 400.0], np.linspace(0.1, 11, 60))
    air = {"depth_hpa": 16.0, "radius_km": 85.0, "profile": profile}
    step = 1e-4
    above, below = (np.log(vortex.pressure(r, z + side, **air)) for side in (step, -step))
    from_pressure = -names.G0 / vortex.GAS_CONSTANT / ((above - below) / (2 * step * 1e3))
    np.testing.assert_allclose(vortex.temperature(r, z, **air), from_pressure, rtol=1e-6)


def test_a_warm_core_is_warm_and_a_cold_core_cold():
    around = vortex.ENVIRONMENT.temperature - vortex.ENVIRONMENT.lapse_rate * 4.0
    air = {"depth_hpa": 14.0, "radius_km": 90.0}
    assert vortex.temperature(0.0, 4.0, profile=Profile(warm=1.0), **air) > around + 2
    assert vortex.temperature(0.0, 4.0, profile=Profile(cold_slope=1.5), **air) < around - 1
    assert vortex.temperature(2000.0, 4.0, profile=Profile(warm=1.0), **air) == pytest.approx(
        around
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_level_heights_invert_the_pressure(profile):
    anomaly = np.array([0.0, 3.0, 14.0, 25.0])
    z = vortex.height_on_levels(anomaly, LEVELS, profile=profile) / 1e3
    # At r = 0 the anomaly is the whole depth, so that p(0, z) must be the level again.
    got = np.stack(
        [
            vortex.pressure(0.0, z[i], depth_hpa=anomaly[i], radius_km=90.0, profile=profile)
            for i in range(anomaly.size)
        ]
    )
    np.testing.assert_allclose(got, np.broadcast_to(LEVELS, got.shape), rtol=1e-7)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_parabola_of_heights_is_exact_to_centimetres(profile):
    depth = 20.0
    a1, a2 = vortex.height_coefficients(depth, LEVELS, profile=profile)
    rest = vortex.height_on_levels(0.0, LEVELS, profile=profile)
    for s in (0.1, 0.3, 0.7, 0.9):
        exact = vortex.height_on_levels(depth * s, LEVELS, profile=profile) - rest
        np.testing.assert_allclose(a1 * s + a2 * s**2, exact, atol=0.02)


def test_profiles_broadcast_over_a_life():
    warm = np.linspace(0, 1, 5)
    coefficients = vortex.height_coefficients(
        np.full(5, 14.0), LEVELS, profile=Profile(warm, 7.0, 1.5 * np.ones(5), 0.0)
    )
    assert coefficients[0].shape == coefficients[1].shape == (5, LEVELS.size)
    alone = vortex.height_coefficients(14.0, LEVELS, profile=Profile(warm[3], 7.0, 1.5))
    np.testing.assert_allclose(coefficients[0][3], alone[0])


def test_the_profile_is_one_at_the_surface_whatever_the_core():
    for profile in PROFILES:
        assert profile(0.0) == pytest.approx(1.0)
        step = 1e-6
        numerical = (profile(5.0 + step) - profile(5.0 - step)) / (2 * step)
        assert profile.slope(5.0) == pytest.approx(numerical, abs=1e-6)


def test_a_shear_of_10_m_s_along_the_motion_gives_15_m_of_asymmetry():
    b = vortex.asymmetry_of_shear(10.0, latitude=37.0, radius_km=200.0)
    assert b == pytest.approx(15, rel=0.02)
    tilt = float(vortex.gradient_of_asymmetry(b, radius_km=200.0))
    # The thickness gradient is the thermal wind: f ΔV / g0.
    assert tilt == pytest.approx(vortex.coriolis(37.0) * 10 / names.G0 * 1e3, rel=1e-6)
    got, _, _ = space_of(Profile(warm=1.0), tilt=tilt)
    assert got == pytest.approx(float(b), rel=0.06)


def test_a_thickness_gradient_leaves_the_lowest_level_alone():
    np.testing.assert_allclose(vortex.shear_shape([1000, 900, 600, 300]), [0, 0, 1, 1])
    assert vortex.ends(200.0) > 0.95
    assert vortex.ends(900.0) < 1e-4


def test_the_wind_of_the_holland_family_balances_its_pressure() -> None:
    r, step = np.array([5.0, 40.0, 80.0, 150.0, 400.0, 600.0]), 1e-3
    told = vortex.pressure_gradient(r, depth_hpa=15.0, radius_km=70.0, family="holland")

    def pressure(at):
        return -1500.0 * vortex.radial_shape(at, 70.0, family="holland")

    steps = (pressure(r + step) - pressure(r - step)) / (2e3 * step)
    np.testing.assert_allclose(told, steps, rtol=1e-5, atol=1e-12)


def test_the_two_families_blow_strongest_at_the_same_radius() -> None:
    r = np.arange(1.0, 300.0)
    strongest = []
    for family in ("reed_jablonowski", "holland"):
        gradient = vortex.pressure_gradient(r, depth_hpa=14.0, radius_km=80.0, family=family)
        wind = vortex.gradient_wind(r, gradient, density=vortex.SEA_DENSITY, f=0.0)
        strongest.append(r[np.argmax(wind)])
    assert strongest[0] == pytest.approx(80, abs=1)
    assert strongest[1] == pytest.approx(80, abs=2)
    assert vortex.radial_shape(0.0, 80.0, family="holland") == 1
    assert vortex.radial_shape(800.0, 80.0, family="holland") < 1e-3
