"""Channels: the grammar of formulas, what each function computes, and that nothing is loaded."""

from __future__ import annotations

import json

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import names
from medicane.channels import (
    EARTH_RADIUS_M,
    Grid,
    channel_of,
    derive,
    describe,
    fill,
    local,
    required_variables,
    speed,
    vorticity,
)
from medicane.config import ChannelFormula
from medicane.errors import InputError

LATITUDE = np.arange(48.0, 27.5, -0.5)
LONGITUDE = np.arange(-10.0, 42.5, 0.5)
GRID = Grid(LATITUDE, LONGITUDE)
LEVELS = (900, 850, 600, 300)


def own(formula: str, name: str = "mine", units: str = "1") -> ChannelFormula:
    return ChannelFormula(name=name, formula=formula, units=units)


@pytest.fixture
def maps() -> xr.Dataset:
    """Standard maps of noise: 7 times, 6 × 8 cells, 4 levels; chunked in time."""
    rng = np.random.default_rng(0)
    coords = {
        "time": np.datetime64("2020-09-17", "ns") + np.arange(7) * np.timedelta64(6, "h"),
        "pressure_level": np.array(LEVELS, float),
        "latitude": LATITUDE[20:26],
        "longitude": LONGITUDE[50:58],
    }
    flat, deep = (
        ("time", "latitude", "longitude"),
        ("time", "pressure_level", "latitude", "longitude"),
    )

    def noise(dims, mean, spread):
        shape = tuple(len(coords[d]) for d in dims)
        return dims, (mean + spread * rng.standard_normal(shape)).astype(np.float32)

    return xr.Dataset(
        {
            "msl": noise(flat, 101_000, 500),
            "u10": noise(flat, 0, 8),
            "v10": noise(flat, 0, 8),
            "zg": noise(deep, 5_000, 100),
            "u": noise(deep, 0, 10),
            "v": noise(deep, 0, 10),
            "lsm": (flat[1:], np.tile(np.float32([0, 1]), (6, 4))),
        },
        coords=coords,
    ).chunk(time=3)


# --- functions -------------------------------------------------------------------------------


def box_mean(x: np.ndarray, half_lat: int, half_lon: int) -> np.ndarray:
    """The definition, cell by cell."""
    out = np.empty_like(x, dtype=float)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            rows = slice(max(0, i - half_lat), i + half_lat + 1)
            out[i, j] = x[rows, max(0, j - half_lon) : j + half_lon + 1].mean()
    return out


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(1.0, 40.0), ny=st.integers(2, 12), nx=st.integers(2, 20))
def test_local_is_x_minus_the_mean_of_the_cells_in_the_box(degrees, ny, nx):
    grid = Grid(LATITUDE[:ny], LONGITUDE[:nx])
    x = np.random.default_rng(ny * nx).normal(101_000, 800, (2, ny, nx)).astype(np.float32)
    half = round(degrees)  # degrees / 2 / 0.5
    expected = np.stack([m.astype(float) - box_mean(m.astype(float), half, half) for m in x])
    np.testing.assert_allclose(local(x, degrees, grid), expected, atol=1e-6)


def test_local_takes_constants_off_and_keeps_a_small_low():
    assert np.abs(local(np.full((1, 41, 105), 5_500.0), 8, GRID)).max() < 1e-9
    low = np.zeros((41, 105))
    low[20, 50] = -1.0
    # One cell of 17 × 17 lowers the mean by 1/289.
    assert local(low, 8, GRID)[20, 50] == pytest.approx(-1 + 1 / 289)


def test_local_knows_spacings_that_differ():
    grid = Grid(np.arange(40.0, 30.0, -1.0), np.arange(0.0, 10.0, 0.5))
    x = np.random.default_rng(3).standard_normal((10, 20))
    np.testing.assert_allclose(local(x, 4, grid), x - box_mean(x, 2, 4), atol=1e-12)


def test_a_box_of_one_cell_is_refused():
    with pytest.raises(InputError, match=r"at least two cells of 0.5 degrees; found 0.4"):
        local(np.zeros((41, 105)), 0.4, GRID)


def test_speed_is_the_length_of_the_wind():
    assert speed(np.array([3.0]), np.array([-4.0]), GRID) == 5.0


def test_vorticity_of_solid_rotation_is_twice_its_rate_times_sin_latitude():
    rate = 7.292e-5
    u = rate * EARTH_RADIUS_M * np.cos(np.deg2rad(LATITUDE))[:, None] * np.ones(LONGITUDE.size)
    expected = 2 * rate * np.sin(np.deg2rad(LATITUDE))[:, None] * np.ones(LONGITUDE.size)
    np.testing.assert_allclose(vorticity(u, np.zeros_like(u), GRID), expected, rtol=2e-4)


def test_vorticity_of_a_northward_jet_and_its_sign():
    # v grows eastward by 1 m/s a degree: cyclonic (positive) in the northern hemisphere.
    v = np.ones(LATITUDE.size)[:, None] * LONGITUDE
    expected = np.rad2deg(1) / (EARTH_RADIUS_M * np.cos(np.deg2rad(LATITUDE)))
    got = vorticity(np.zeros_like(v), v, GRID)
    np.testing.assert_allclose(got, expected[:, None] * np.ones(LONGITUDE.size), rtol=1e-9)
    assert (got > 0).all()


def test_vorticity_does_not_care_which_way_latitude_runs():
    rng = np.random.default_rng(1)
    u, v = rng.standard_normal((2, 41, 105))
    flipped = vorticity(u[::-1], v[::-1], Grid(LATITUDE[::-1], LONGITUDE))
    np.testing.assert_allclose(flipped[::-1], vorticity(u, v, GRID), rtol=1e-10, atol=1e-18)


def test_vorticity_needs_three_cells():
    with pytest.raises(InputError, match=r"vorticity: needs at least 3 × 3 cells; found 2 × 105"):
        vorticity(np.zeros((2, 105)), np.zeros((2, 105)), Grid(LATITUDE[:2], LONGITUDE))


def test_fill_takes_the_mean_of_each_map_and_leaves_empty_maps_empty():
    x = np.array([[[1.0, np.nan], [3.0, 5.0]], [[np.nan] * 2] * 2])
    assert fill(x, GRID)[0].tolist() == [[1, 3], [3, 5]]
    assert np.isnan(fill(x, GRID)[1]).all()


# --- names and grammar -----------------------------------------------------------------------


def test_every_built_in_channel_parses_and_needs_known_variables():
    for variable, level in required_variables(tuple(names.CHANNELS)):
        assert names.VARIABLES[variable].on_levels == (level is not None)


def test_default_channels_need_what_the_contract_calls_minimal():
    assert required_variables(names.DEFAULT_CHANNELS) == {
        ("msl", None),
        ("u10", None),
        ("v10", None),
        ("zg", 900.0),
        ("zg", 600.0),
        ("zg", 300.0),
        ("lsm", None),
    }


def test_a_variable_is_the_channel_of_its_own_name():
    name, what = channel_of("t_500")
    assert (name, what.formula, what.units) == ("t_500", "t_500", "K")
    assert what.long_name == "air temperature at 500 hPa"
    assert channel_of("msl")[1].units == "Pa"


def test_description_is_what_a_store_records():
    described = describe(["msl", own("speed(u_850, v_850)", "wind850", "m s-1")])
    assert described[0] == {
        "name": "msl",
        "formula": "msl",
        "units": "Pa",
        "long_name": "mean sea level pressure",
    }
    assert described[1]["formula"] == "speed(u_850, v_850)"
    json.dumps(described)


@pytest.mark.parametrize(
    ("channel", "law"),
    [
        ("mls", r"found 'mls' \(closest: msl"),
        ("thickness_900_60", r"closest: thickness_900_600"),
        ("zg", r"'zg' needs its level in hPa, such as zg_850"),
        ("msl_850", r"must name a channel or variable that is known; found 'msl_850'"),
        (own("zq_850"), r"channel mine: .* found 'zq_850' \(closest: .*zg_850"),
        (own("blur(msl, 8)"), r"the functions are local\(x, degrees\), .* found 'blur'"),
        (own("locale(msl, 8)"), r"found 'locale' \(closest: local\)"),
        (own("local(msl)"), r"local is used as local\(x, degrees\); found 'local\(msl\)'"),
        (own("local(msl, u10)"), r"local is used as"),
        (own("local(msl, -8)"), r"local is used as"),
        (own("local(msl, degrees=8)"), r"local is used as"),
        (own("speed(u10, v10, 1)"), r"speed is used as speed\(u, v\)"),
        (own("fill(8)"), r"fill works on a field, not a number"),
        (own("msl -"), r"the formula must be an expression; found 'msl -'"),
        (own(""), r"the formula must be an expression"),
        (own("3 + 4"), r"the formula must hold a variable"),
        (own("msl ** 2"), r"a formula holds variables, numbers, \+ - \* /"),
        (own("msl // 2"), r"a formula holds"),
        (own("msl > 2"), r"a formula holds"),
        (own("msl + True"), r"a formula holds .* found 'True'"),
        (own("msl + 'Pa'"), r"a formula holds"),
        (own("msl.values"), r"a formula holds"),
        (own("__import__('os').system('true')"), r"a formula holds"),
        (own("(lambda: msl)()"), r"a formula holds"),
        (own("[msl]"), r"a formula holds"),
        (own("-" * 5_000 + "msl"), r"at most 1000 characters; found 5003"),
        (own("(" * 450 + "msl" + ")" * 450), r"the formula must be an expression"),
    ],
)
def test_what_the_grammar_refuses(channel, law):
    with pytest.raises(InputError, match=law):
        required_variables([channel])


# --- derive ----------------------------------------------------------------------------------


def test_channels_come_in_order_lazily_in_float32(maps):
    got = derive(maps, ["v10", "msl", "thickness_900_600", "lsm"])
    assert got.dims == ("time", "channel", "latitude", "longitude")
    assert got.channel.values.tolist() == ["v10", "msl", "thickness_900_600", "lsm"]
    assert got.dtype == np.float32
    assert isinstance(got.data, da.Array)
    assert got.chunks[0] == (3, 3, 1)
    assert got.chunks[2:] == ((6,), (8,))
    loaded = got.compute()
    np.testing.assert_array_equal(loaded.sel(channel="v10"), maps.v10)
    np.testing.assert_array_equal(loaded.sel(channel="msl"), maps.msl)
    thickness = maps.zg.sel(pressure_level=600) - maps.zg.sel(pressure_level=900)
    np.testing.assert_array_equal(loaded.sel(channel="thickness_900_600"), thickness)
    np.testing.assert_array_equal(loaded.sel(channel="lsm"), np.broadcast_to(maps.lsm, (7, 6, 8)))
    assert json.loads(got.attrs["channels"])[2]["formula"] == "zg_600 - zg_900"


def test_arithmetic_follows_the_usual_precedence(maps):
    got = derive(maps, [own("-(u10 + 2 * v10) / 4 - +1.5")]).isel(channel=0)
    expected = -(maps.u10 + 2 * maps.v10) / 4 - 1.5
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_formulas_may_use_built_in_channels_by_name(maps):
    both = derive(maps, [own("local(thickness_900_600, 2)"), own("local(zg_600 - zg_900, 2)", "b")])
    np.testing.assert_array_equal(both[:, 0], both[:, 1])


def test_functions_see_the_grid_of_the_maps(maps):
    got = derive(maps, ["vorticity_850", own("local(msl, 2)", units="Pa")]).compute()
    grid = Grid(maps.latitude.values, maps.longitude.values)
    at_850 = maps.sel(pressure_level=850)
    expected = vorticity(at_850.u.values, at_850.v.values, grid)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(got[:, 1], local(maps.msl.values, 2, grid), rtol=1e-6)


def test_the_result_does_not_depend_on_the_chunks(maps):
    channels = ["msl_local", "vorticity_850", "thickness_600_300_local", "wind10"]
    whole = derive(maps.compute(), channels)
    for chunk in (1, 2, 7):
        np.testing.assert_array_equal(derive(maps.chunk(time=chunk), channels).values, whole.values)


def test_geopotential_is_asked_for_as_height(maps):
    got = derive(maps, ["z_850"]).isel(channel=0)
    np.testing.assert_allclose(got, names.G0 * maps.zg.sel(pressure_level=850), rtol=1e-6)


def test_a_static_channel_alone_has_every_time(maps):
    got = derive(maps, ["lsm"])
    assert got.shape == (7, 1, 6, 8)


def test_without_lsm_in_the_data_the_global_mask_serves(maps):
    got = derive(maps.drop_vars("lsm"), ["msl", "lsm"]).compute()
    mask = got.sel(channel="lsm").values
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert (mask == mask[0]).all()
    wide = xr.Dataset(
        {"msl": (("time", "latitude", "longitude"), np.ones((1, 41, 105), np.float32))},
        {"time": maps.time[:1], "latitude": LATITUDE, "longitude": LONGITUDE},
    )
    mask = derive(wide, ["lsm"]).isel(time=0, channel=0)
    assert mask.sel(latitude=40, longitude=5) == 0  # between the Balearics and Sardinia
    assert mask.sel(latitude=30, longitude=10) == 1  # the Sahara


@pytest.mark.parametrize(
    ("channel", "law"),
    [
        ("tcwv", r"channel tcwv: needs the variable 'tcwv'; found lsm, msl, u, u10, v, v10, zg"),
        ("zg_500", r"needs zg at 500 hPa; found the levels 900, 850, 600, 300"),
        (own("t_850 - t_500", "lapse"), r"channel lapse: needs the variable 't'"),
    ],
)
def test_what_the_data_lack_is_named(maps, channel, law):
    with pytest.raises(InputError, match=law):
        derive(maps, [channel])


def test_data_without_levels_say_so(maps):
    with pytest.raises(InputError, match="needs the variable 'zg'; found msl"):
        derive(maps[["msl"]], ["thickness_900_600"])


def test_nothing_is_computed_before_it_is_asked_for(maps):
    def never(block):
        raise AssertionError("a block was computed")

    poisoned = maps.assign(
        {
            v: maps[v].copy(
                data=maps[v].data.map_blocks(never, dtype=np.float32, meta=np.empty(0, np.float32))
            )
            for v in ("msl", "u10", "v10", "zg")
        }
    )
    got = derive(poisoned, ["msl_local", "u10", "thickness_900_600_local"])
    with (
        pytest.raises(AssertionError, match="a block was computed"),
        dask.config.set(scheduler="synchronous"),
    ):
        got.compute()


def test_one_map_needs_one_block(maps):
    seen = []

    def watch(block):
        if block.size:
            seen.append(block.shape)
        return block

    watched = maps.assign(
        msl=maps.msl.copy(
            data=maps.msl.data.map_blocks(
                watch, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
            )
        )
    )
    with dask.config.set(scheduler="synchronous"):
        derive(watched, ["msl_local", "u10"]).isel(time=4).compute()
    assert len(seen) == 1


def test_missing_cells_stay_missing_unless_filled(maps):
    holes = maps.compute()
    holes.msl[2, 0, 0] = np.nan
    got = derive(holes, ["msl", own("fill(msl)", "filled")])
    assert np.isnan(got[2, 0, 0, 0])
    assert not np.isnan(got[2, 1]).any()


def test_division_by_zero_is_infinite_and_silent(maps, recwarn):
    got = derive(maps, [own("u10 / (v10 - v10)")]).compute()
    assert np.isinf(got).any()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
