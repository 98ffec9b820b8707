"""The random weather: its spectrum, its memory, its season."""

from __future__ import annotations

import numpy as np
import pytest

from medicane import names
from medicane.synthetic import background, vortex
from medicane.synthetic.background import Background

LATITUDE = np.arange(48.0, 27.9, -0.5)
LONGITUDE = np.arange(-10.0, 42.1, 0.5)


def weather(seed: int = 0, step_hours: float = 6.0, **options) -> Background:
    rng = np.random.default_rng(seed)
    return Background(LATITUDE, LONGITUDE, step_hours=step_hours, rng=rng, **options)


@pytest.fixture(scope="module")
def waves() -> np.ndarray:
    """400 maps, three days apart: almost independent."""
    return weather(step_hours=72.0).waves(400)


@pytest.mark.parametrize(
    ("longest", "shortest", "slope"),
    [pytest.param(3000, 700, -3.0, id="synoptic"), pytest.param(400, 200, -5 / 3, id="mesoscale")],
)
@pytest.mark.parametrize("of", ["wind", "scalar"])
def test_amplitudes_have_the_slopes_of_the_observed_spectrum(of, longest, shortest, slope):
    k = 2 * np.pi / np.geomspace(longest, shortest, 30)
    power = background.amplitudes(k, one_dimensional_slope_of=of) ** 2
    # One-dimensional: a ring of the k-plane has a circumference of 2πk; wind energy is k²|ψ|².
    spectrum = power * k * (k**2 if of == "wind" else 1)
    fitted = np.polyfit(np.log(k), np.log(spectrum), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.15)


def _zonal_slope(fields: np.ndarray, km: tuple[float, float]) -> float:
    """Log-log slope of the mean zonal power spectrum between two wavelengths."""
    n = fields.shape[-1]
    taper = np.hanning(n)
    power = (np.abs(np.fft.rfft((fields - fields.mean(-1, keepdims=True)) * taper)) ** 2).mean(
        axis=tuple(range(fields.ndim - 1))
    )
    dx = 0.5 * background.DEGREE_KM * np.cos(np.deg2rad(38))
    k = 2 * np.pi * np.fft.rfftfreq(n, dx)
    kept = (k > 2 * np.pi / km[0]) & (k < 2 * np.pi / km[1])
    return float(np.polyfit(np.log(k[kept]), np.log(power[kept]), 1)[0])


def test_thickness_maps_fall_as_k_minus_3_and_then_as_k_minus_5_thirds(waves):
    thickness = waves[:, 1]
    steep, shallow = _zonal_slope(thickness, (1600, 650)), _zonal_slope(thickness, (380, 200))
    # A cut through the plane mixes a little of the other branch into each.
    assert steep == pytest.approx(-3, abs=0.4)
    assert shallow == pytest.approx(-5 / 3, abs=0.5)
    assert steep < shallow - 0.8


def test_waves_have_their_standard_deviations_and_correlation(waves):
    got = waves.std(axis=(0, 2, 3))
    wanted = (background.HEIGHT_STD, background.LOWER_STD, background.UPPER_STD)
    np.testing.assert_allclose(got, wanted, rtol=0.08)
    together = np.corrcoef(waves[:, 1].ravel(), waves[:, 2].ravel())[0, 1]
    assert together == pytest.approx(background.LAYER_CORRELATION, abs=0.1)


def _small(field: np.ndarray) -> np.ndarray:
    """What is left of waves below about 500 km: the field minus a running mean of 4 degrees."""
    from scipy.ndimage import uniform_filter

    return field - uniform_filter(field, size=(0, 9, 9))


def test_small_waves_are_forgotten_sooner_than_large_ones():
    maps = weather(3).waves(120)[:, 1]

    def memory(field: np.ndarray) -> float:
        # Followed along the steering flow, else drift would pass for forgetting.
        shift = background.STEERING[0] * 6 * 3.6 / (0.5 * background.DEGREE_KM * np.cos(0.66))
        columns = round(shift)
        return float(
            np.corrcoef(field[1:, :, columns:].ravel(), field[:-1, :, :-columns].ravel())[0, 1]
        )

    large, small = memory(maps - _small(maps)), memory(_small(maps))
    assert 0.1 < small < 0.55
    assert large > small + 0.15


def test_statistics_do_not_depend_on_the_map_interval():
    six = weather(4, step_hours=6.0).waves(160)
    one = weather(5, step_hours=1.0).waves(960)[::6]
    np.testing.assert_allclose(one.std((0, 2, 3)), six.std((0, 2, 3)), rtol=0.15)

    def lag(field: np.ndarray) -> float:
        return float(np.corrcoef(field[1:, 1].ravel(), field[:-1, 1].ravel())[0, 1])

    assert lag(one) == pytest.approx(lag(six), abs=0.08)


def test_blocks_of_maps_join_seamlessly():
    whole = weather(6).waves(10)
    parts = weather(6)
    np.testing.assert_array_equal(whole, np.concatenate([parts.waves(3), parts.waves(7)]))


def test_opposite_edges_are_strangers(waves):
    west, east = waves[:, 1, :, 0].ravel(), waves[:, 1, :, -1].ravel()
    assert abs(np.corrcoef(west, east)[0, 1]) < 0.5
    north, south = waves[:, 1, 0].ravel(), waves[:, 1, -1].ravel()
    assert abs(np.corrcoef(north, south)[0, 1]) < 0.5


def test_season_and_jet_without_waves():
    calm = weather(strength=0.0).maps(np.array([15.0, 225.0]))
    assert calm.msl.shape == (2, LATITUDE.size, LONGITUDE.size)
    assert calm.zg.shape == (2, len(names.PHASE_SPACE_LEVELS), LATITUDE.size, LONGITUDE.size)
    np.testing.assert_array_equal(calm.msl, np.float32(vortex.SEA_PRESSURE * 100))
    thickness = calm.zg[:, -1] - calm.zg[:, 0]
    # Summer is warmer than winter by hundreds of metres of thickness, the south than the north.
    assert 200 < (thickness[1] - thickness[0]).mean() < 800
    assert (np.diff(thickness[0], axis=0) > 0).all()
    assert np.ptp(thickness[0], axis=1).max() == 0


def test_mean_heights_are_hydrostatic():
    heights = background.Climate().heights(np.float32([288.0]))[0]
    p = np.array(names.PHASE_SPACE_LEVELS, float)
    mean_temperature = 288.0 - 6.5e-3 * (heights[1:] + heights[:-1]) / 2
    hypsometric = vortex.GAS_CONSTANT / names.G0 * mean_temperature * np.log(p[:-1] / p[1:])
    np.testing.assert_allclose(np.diff(heights), hypsometric, rtol=2e-3)


def test_the_wind_blows_round_highs_clockwise_and_towards_low_pressure():
    sea = weather(7)
    maps = sea.maps(np.linspace(0, 50, 60))
    south = np.gradient(maps.msl, axis=1)
    east = np.gradient(maps.msl, axis=2)
    u = maps.u10 - maps.u10.mean()
    # Low to the north (pressure rising southwards) gives westerlies; low to the west, southerlies.
    assert np.corrcoef(u.ravel(), south.ravel())[0, 1] > 0.7
    assert np.corrcoef(maps.v10.ravel(), east.ravel())[0, 1] > 0.7
    across = u * east / sea.dx - maps.v10 * south / sea.dy
    assert across.mean() < 0
    assert 1 < np.hypot(maps.u10, maps.v10).mean() < 12


def test_the_same_seed_gives_the_same_maps_and_another_seed_others():
    first, again, other = (weather(seed).maps(np.arange(3.0)) for seed in (8, 8, 9))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
