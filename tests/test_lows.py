"""Lows: which pressure minima count, how they move, and that pieces equal the whole."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medicane.config import Label
from medicane.errors import InputError
from medicane.phase_space import phase_space, satisfies
from medicane.phase_space.lows import Lows, find_lows, follow_lows, lows_of_maps
from medicane.phase_space.sphere import distance_km

LAT, LON = np.arange(48, 27.9, -0.5), np.arange(-10, 42.1, 0.5)
SEA = np.ones((LAT.size, LON.size), bool)
GRID = {"latitude": LAT, "longitude": LON}
LEVELS = np.array([900.0, 850.0, 700.0, 600.0, 500.0, 400.0, 300.0])
FADING = np.array([110.0, 104.0, 84.0, 70.0, 55.0, 35.0, 15.0])  # depth of Z by level, m


def pressure(*vortices: tuple[float, float, float], base: float = 1015.0) -> NDArray:
    """MSLP (Pa) with Gaussian lows (latitude, longitude, depth hPa)."""
    msl = np.full((LAT.size, LON.size), base * 100)
    for lat, lon, depth in vortices:
        msl -= depth * 100 * np.exp(-((distance_km(lat, lon, LAT[:, None], LON[None]) / 120) ** 2))
    return msl


def heights(lat: float, lon: float, depth: NDArray = FADING) -> NDArray:
    shape = np.exp(-((distance_km(lat, lon, LAT[:, None], LON[None]) / 120) ** 2))
    standard = 44_330 * (1 - (LEVELS / 1013.25) ** 0.1903)
    return standard[:, None, None] - depth[:, None, None] * shape


def clock(n: int, hours: float = 6) -> NDArray:
    step = np.timedelta64(round(hours * 60), "m")
    return np.datetime64("2020-09-01T00", "ns") + np.arange(n) * step


def moving(n: int, hours: float = 6, speed_ms: float = 6.0) -> tuple[NDArray, NDArray, NDArray]:
    """Maps of a warm low that goes east along 36°N: positions, heights, pressure."""
    degrees = speed_ms * 3.6 * hours / (111.2 * np.cos(np.radians(36)))
    track = np.array([(36.1, 5.2 + k * degrees) for k in range(n)])
    return (
        track,
        np.stack([heights(*at) for at in track]),
        np.stack([pressure((*at, 18.0)) for at in track]),
    )


def lows(zg: NDArray, msl: NDArray, times: NDArray, **options: object) -> Lows:
    settings_ = {"levels": LEVELS, "definition": Label(), "sea": SEA, **GRID} | options
    return lows_of_maps(zg, msl, times=times, **settings_)


# --- which minima count -------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 7), st.floats(-0.24, 0.24), st.floats(12, 25)),
        min_size=1,
        max_size=6,
        unique_by=lambda place: place[:2],
    )
)
@settings(max_examples=40, deadline=None)
def test_lows_far_apart_are_all_found_where_they_are(places: list) -> None:
    vortices = [(32 + 6 * j + shift, -6 + 6.5 * i + shift, d) for j, i, shift, d in places]
    found = find_lows(pressure(*vortices), SEA, **GRID, max_hpa=1005)
    assert found.row.size == len(vortices)
    for lat, lon, depth in vortices:
        k = int(np.argmin(distance_km(found.latitude, found.longitude, lat, lon)))
        assert distance_km(found.latitude[k], found.longitude[k], lat, lon) < 8
        assert 1015 - depth - 1e-6 <= found.msl_hpa[k] < 1015 - 0.9 * depth


def test_a_minimum_must_be_low_at_sea_and_inside() -> None:
    assert find_lows(pressure((38, 10, 9)), SEA, **GRID, max_hpa=1005).row.size == 0
    assert find_lows(pressure((38, 10, 11)), SEA, **GRID, max_hpa=1005).row.size == 1
    land = SEA.copy()
    land[distance_km(38, 10, LAT[:, None], LON[None]) < 60] = False
    assert find_lows(pressure((38, 10, 20)), land, **GRID, max_hpa=1005).row.size == 0
    rim = pressure((48, 10, 30), (38, 42, 30))
    assert find_lows(rim, SEA, **GRID, max_hpa=1005).row.size == 0


def test_neighbours_within_the_separation_are_one_low() -> None:
    msl = pressure((38, 10, 20), (38, 30, 20))
    msl[20, 44] -= 900  # a dent in the flank, 175 km from the deeper low
    assert msl[20, 44] < np.delete(msl[19:22, 43:46].ravel(), 4).min()
    assert find_lows(msl, SEA, **GRID, max_hpa=1005).row.size == 2
    assert find_lows(msl, SEA, **GRID, max_hpa=1005, separation_km=60).row.size == 3


def test_plateaus_and_ripples_are_no_lows_and_a_flat_bottom_is_one() -> None:
    flat = np.full((LAT.size, LON.size), 99_000.0)
    assert find_lows(flat, SEA, **GRID, max_hpa=1005).row.size == 0
    ripple = flat + np.random.default_rng(0).normal(0, 10, flat.shape)
    assert find_lows(ripple, SEA, **GRID, max_hpa=1005).row.size == 0
    bowl = np.maximum(pressure((38, 10, 20)), 99_900.0)
    assert (bowl == 99_900.0).sum() > 4
    found = find_lows(bowl, SEA, **GRID, max_hpa=1005)
    assert found.row.size == 1
    assert distance_km(found.latitude[0], found.longitude[0], 38, 10) < 45


def test_missing_values_are_never_minima() -> None:
    msl = pressure((38, 10, 20), (36, 25, 20))
    msl[:, 60:] = np.nan
    assert find_lows(msl, SEA, **GRID, max_hpa=1005).row.size == 1
    msl[:] = np.nan
    assert find_lows(msl, SEA, **GRID, max_hpa=1005).row.size == 0


def test_units_and_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="must be in Pa"):
        find_lows(pressure((38, 10, 20)) / 100, SEA, **GRID, max_hpa=1005)
    with pytest.raises(InputError, match="grid's shape"):
        find_lows(pressure((38, 10, 20))[1:], SEA, **GRID, max_hpa=1005)
    for uneven in ({"latitude": LAT, "longitude": LON**3}, {"latitude": LAT**2, "longitude": LON}):
        with pytest.raises(InputError, match="even spacing"):
            find_lows(pressure((38, 10, 20)), SEA, **uneven, max_hpa=1005)


# --- phase space of a map's low -----------------------------------------------------------------


@given(st.floats(31, 45), st.floats(-6, 38))
@settings(max_examples=25, deadline=None)
def test_the_fast_way_equals_the_plain_one(lat: float, lon: float) -> None:
    zg, msl = heights(lat, lon), pressure((lat, lon, 18))
    found = lows(zg[None], msl[None], clock(1))
    centre = (float(found.low_latitude[0]), float(found.low_longitude[0]))
    exact = find_lows(msl, SEA, **GRID, max_hpa=1005)
    plain = phase_space(
        zg,
        levels=LEVELS,
        **GRID,
        centre=(float(exact.latitude[0]), float(exact.longitude[0])),
        radius_km=200,
    )
    assert distance_km(*centre, lat, lon) < 8
    # Cell areas differ in the last digits: a disc knows the rows beyond the grid.
    assert (found.vtl[0], found.vtu[0]) == pytest.approx(
        (float(plain.vtl), float(plain.vtu)), rel=1e-4
    )
    assert found.b[0] == pytest.approx(plain.b, abs=0.05)
    assert found.vtl[0] > 0 < found.vtu[0]


def test_maps_without_a_low_are_nan() -> None:
    zg = np.stack([heights(38, 10)] * 3)
    msl = np.stack([pressure(), pressure((38, 10, 20)), np.full_like(pressure(), np.nan)])
    found = lows(zg, msl, clock(3))
    for values in found[:6]:
        assert values.dtype == np.float32
        assert np.isfinite(values).tolist() == [False, True, False]
    assert found.last is not None
    assert found.last.tracks == ()


def test_a_low_without_heights_keeps_its_place() -> None:
    zg = heights(38, 10)[None]
    zg[:, 0] = np.nan
    found = lows(zg, pressure((38, 10, 20))[None], clock(1))
    assert found.low_msl[0] == pytest.approx(995, abs=0.5)
    assert np.isnan([found.b[0], found.vtl[0], found.vtu[0]]).all()


def test_the_warmer_low_is_told_even_if_shallower() -> None:
    warm, cold = heights(38, 10), heights(36, 28, FADING[::-1])
    standard = heights(0, 0, 0 * FADING)
    msl = pressure((38, 10, 14), (36, 28, 25))
    found = lows((warm + cold - standard)[None], msl[None], clock(1))
    assert found.low_longitude[0] == pytest.approx(10, abs=0.2)
    found = lows(cold[None], pressure((36, 28, 25))[None], clock(1))
    assert found.vtl[0] < 0 > found.vtu[0]


def test_a_low_that_satisfies_the_rule_comes_before_a_warmer_one_that_does_not() -> None:
    standard = heights(0, 0, 0 * FADING)
    zg = heights(38, 10) + heights(36, 28, 2 * FADING) - standard
    near = distance_km(36, 28, LAT[:, None], LON[None]) < 600
    zg[0] -= np.where(near, 20 * (LON[None] - 28), 0)  # a strong asymmetry around the warmer low
    found = lows(zg[None], pressure((38, 10, 14), (36, 28, 14))[None], clock(1))
    assert found.low_longitude[0] == pytest.approx(10, abs=0.2)
    loose = Label(b_max_m=1e4)
    found = lows(zg[None], pressure((38, 10, 14), (36, 28, 14))[None], clock(1), definition=loose)
    assert found.low_longitude[0] == pytest.approx(28, abs=0.2)


# --- motion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "n"), [(6, 5), (1, 14), (3, 8)])
def test_a_moving_low_knows_its_heading(hours: float, n: int) -> None:
    track, zg, msl = moving(n, hours)
    found = lows(zg, msl, clock(n, hours))
    assert found.last is not None
    assert len(found.last.tracks) == 1
    assert found.last.tracks[0].heading_deg == pytest.approx(90, abs=8)
    assert distance_km(found.low_latitude, found.low_longitude, *track.T).max() < 8


def test_b_is_signed_once_the_motion_is_known() -> None:
    """Warm air on the left of the motion: B is negative, but its bound without motion positive."""
    _, zg, msl = moving(4)
    zg[:, LEVELS <= 600] += 8 * (LAT[:, None] - 36)  # thicker in the north, left of eastward
    found = lows(zg, msl, clock(4))
    assert found.b[0] > 5
    assert (found.b[1:] < -5).all()


def test_a_gap_or_a_leap_starts_a_new_track() -> None:
    _, zg, msl = moving(4)
    times = clock(4)
    times[3:] += np.timedelta64(24, "h")
    assert np.isfinite(lows(zg, msl, clock(4)).last.tracks[0].heading_deg)
    assert np.isnan(lows(zg, msl, times).last.tracks[0].heading_deg)
    leap = np.stack([pressure((38, 0, 20)), pressure((38, 30, 20))])
    assert np.isnan(lows(zg[:2], leap, clock(2)).last.tracks[0].heading_deg)


@given(st.lists(st.integers(1, 11), max_size=4), st.sampled_from([1.0, 6.0]))
@settings(max_examples=15, deadline=None)
def test_pieces_equal_the_whole(cuts: list[int], hours: float) -> None:
    _, zg, msl = moving(12, hours)
    msl = np.minimum(msl, pressure((40, 12, 15)))  # a second low to pass by
    times = clock(12, hours)
    whole = lows(zg, msl, times)
    previous, parts = None, []
    bounds = [0, *sorted(set(cuts)), 12]
    for first, last in itertools.pairwise(bounds):
        part = lows(zg[first:last], msl[first:last], times[first:last], previous=previous)
        previous = part.last
        parts.append(part)
    for k in range(6):
        joined = np.concatenate([part[k] for part in parts])
        assert np.array_equal(joined, whole[k], equal_nan=True)


@given(st.integers(1, 11), st.sampled_from([1.0, 6.0]))
@settings(max_examples=10, deadline=None)
def test_the_later_piece_can_be_first(cut: int, hours: float) -> None:
    """The pressure of the earlier maps alone says all that the later ones need of them."""
    _, zg, msl = moving(12, hours)
    times = clock(12, hours)
    whole = lows(zg, msl, times)
    centres = find_lows(msl[:cut], SEA, **GRID, max_hpa=Label().msl_max_hpa)
    heading, previous = follow_lows(centres, times[:cut], previous=None)
    assert heading.shape == centres.row.shape == (cut,)
    later = lows(zg[cut:], msl[cut:], times[cut:], previous=previous)
    for k in range(6):
        assert np.array_equal(later[k], whole[k][cut:], equal_nan=True)
    assert repr(later.last) == repr(whole.last)  # NaN is equal to NaN


def test_order_of_times_and_shapes_are_checked() -> None:
    _, zg, msl = moving(3)
    with pytest.raises(InputError, match="increase strictly"):
        lows(zg, msl, clock(3)[::-1])
    last = lows(zg, msl, clock(3)).last
    with pytest.raises(InputError, match="increase strictly"):
        lows(zg, msl, clock(3), previous=last)
    with pytest.raises(InputError, match="time, level, latitude, longitude"):
        lows(zg[:, 1:], msl, clock(3))
    with pytest.raises(InputError, match="900, 600 and 300"):
        lows(zg[:, 1:], msl, clock(3), levels=LEVELS[1:])
    empty = lows(zg[:0], msl[:0], clock(0), previous=last)
    assert empty.b.shape == (0,)
    assert empty.last is last
    none = find_lows(msl[:0], SEA, **GRID, max_hpa=1005)
    assert follow_lows(none, clock(0), previous=last)[1] is last


def test_other_calendars_pass() -> None:
    _, zg, msl = moving(2)
    times = np.array([cftime.Datetime360Day(2001, 2, 30, h) for h in (0, 6)], object)
    found = lows(zg, msl, times)
    assert found.last.tracks[0].heading_deg == pytest.approx(90, abs=8)
    again = lows(zg[1:], msl[1:], times[1:], previous=lows(zg[:1], msl[:1], times[:1]).last)
    assert again.b[0] == found.b[1]


# --- speed and the real thing -------------------------------------------------------------------


def test_five_milliseconds_a_map_are_not_exceeded() -> None:
    """Twelve lows a map, several times what nature has."""
    rng = np.random.default_rng(0)
    n = 100
    noise = rng.standard_normal((n, 12, 2))
    vortices = [
        [(31 + 6 * (k // 4) + a, -4 + 13 * (k % 4) + b, 15) for k, (a, b) in enumerate(one)]
        for one in noise
    ]
    msl = np.stack([pressure(*one) for one in vortices]).astype(np.float32)
    zg = rng.standard_normal((n, LEVELS.size, *SEA.shape)).astype(np.float32)
    lows(zg[:1], msl[:1], clock(1))  # fill the cache of discs
    start = time.process_time()
    found = lows(zg, msl, clock(n))
    spent = time.process_time() - start
    assert np.isfinite(found.vtl).all()
    assert spent / n < 0.005, f"{spent / n * 1e3:.2f} ms a map"


def test_ianos_as_forecast_stands_where_it_stood_and_is_not_deep(real_data: Path) -> None:
    """The forecast of 15 September has a shallow warm core: the rule says no."""
    data = xr.open_dataset(real_data / "ianos_gfs_20200917.nc", engine="netcdf4")
    data = data.sel(level=LEVELS, latitude=slice(40, 32), longitude=slice(14, 25))
    lat, lon = data["latitude"].values, data["longitude"].values
    for radius in (100, 150, 200, 300):
        definition = Label(msl_max_hpa=1010, radius_km=radius)
        found = lows_of_maps(
            data["gh"].values,
            data["msl"].values,
            np.ones((lat.size, lon.size), bool),
            times=data["time"].values,
            levels=LEVELS,
            latitude=lat,
            longitude=lon,
            definition=definition,
        )
        assert distance_km(found.low_latitude, found.low_longitude, 36, 19.5).max() < 100
        assert found.low_msl == pytest.approx([1007.6, 1008.9, 1007.9], abs=0.1)
        rule = satisfies(found.b, found.vtl, found.vtu, found.low_msl, definition=definition)
        assert np.isfinite(found.vtu).all()
        assert not rule.any()
