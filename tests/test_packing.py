"""Packing: its reach, and what it takes off a value; blocks of maps from whatever holds them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medicane.packing import LARGEST, MARGIN, Packing, read_block

DIMS = ("time", "channel", "latitude", "longitude")


#: Means from none to pressure in Pa, and deviations from those of vorticity to those of heights.
MEANS = st.floats(-2e5, 2e5)
DEVIATIONS = st.floats(1e-6, 1e4)


def sample(mean: float, deviation: float, seed: int = 0) -> np.ndarray:
    """Values as a channel has them: float32, most near the mean and a few far off."""
    noise = np.random.default_rng(seed).standard_t(3, 400)
    return (mean + deviation * noise).astype(np.float32)


def fitted(values: np.ndarray) -> Packing:
    return Packing.fit(
        float(values.min()), float(values.max()), about=float(values.mean(dtype=float))
    )


@settings(max_examples=60, deadline=None)
@given(mean=MEANS, deviation=DEVIATIONS, seed=st.integers(0, 50), wider=st.floats(0, 0.9))
def test_the_error_is_at_most_half_a_step_as_far_as_the_packing_reaches(
    mean, deviation, seed, wider
):
    values = sample(mean, deviation, seed)
    packing = fitted(values)
    # Values of later maps lie further out than those that the packing was fitted to.
    later = (mean + (values.astype(float) - mean) * (1 + wider * MARGIN)).astype(np.float32)
    for some in (values, later):
        assume(packing.holds(float(some.min()), float(some.max())))
        packed = packing.pack(some)
        assert packed.dtype == np.int16
        assert np.abs(packed.astype(int)).max() <= LARGEST
        error = np.abs(packing.unpack(packed).astype(float) - some.astype(float)).max()
        assert error <= packing.error == packing.scale / 2


@settings(max_examples=60, deadline=None)
@given(mean=MEANS, deviation=DEVIATIONS)
def test_a_packing_reaches_far_beyond_its_sample_and_is_fine_enough(mean, deviation):
    values = sample(mean, deviation)
    packing = fitted(values)
    centre = values.mean(dtype=float)
    far = np.abs(values - centre).max()
    # The offset may lie a few thousand steps beside the mean.
    assert packing.holds(centre - 0.9 * MARGIN * far, centre + 0.9 * MARGIN * far)
    finest = np.spacing(np.float32(np.abs(values).max()))
    assert packing.scale <= max(2 * MARGIN * far / LARGEST, 2 * finest)


@settings(max_examples=60, deadline=None)
@given(mean=MEANS, deviation=DEVIATIONS, packed=st.lists(st.integers(-LARGEST, LARGEST)))
def test_every_reader_finds_the_same_value_to_the_bit(mean, deviation, packed):
    packing = fitted(sample(mean, deviation))
    integers = np.array(packed, np.int16)
    here = packing.unpack(integers)
    assert here.dtype == np.float32
    # As CF says it, in double precision, and in the other order of operations.
    np.testing.assert_array_equal(here, integers * packing.scale + packing.offset)
    np.testing.assert_array_equal(here, (integers + packing.offset / packing.scale) * packing.scale)
    assert math.frexp(packing.scale)[0] == 0.5  # a power of two
    np.testing.assert_array_equal(packing.pack(here), integers)  # and back


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -7.25, 101_325.03, 1e-5])
def test_a_constant_keeps_all_but_its_last_bit(value):
    values = np.full((3, 4), value, np.float32)
    packing = fitted(values)
    found = packing.unpack(packing.pack(values))
    assert np.abs(found - values).max() <= np.spacing(np.float32(abs(value)))


def test_a_land_sea_mask_keeps_its_zeros_and_ones():
    mask = np.float32([0, 1, 1, 0, 0.25, 0.7])
    packing = fitted(mask)
    found = packing.unpack(packing.pack(mask))
    np.testing.assert_array_equal(found[:5], mask[:5])
    assert found[5] == pytest.approx(0.7, abs=2e-4)


@settings(max_examples=60, deadline=None)
@given(mean=MEANS, deviation=DEVIATIONS, beyond=st.floats(1.01, 1e6), sign=st.sampled_from([-1, 1]))
def test_a_wider_packing_holds_what_the_old_one_held_and_the_new(mean, deviation, beyond, sign):
    values = sample(mean, deviation)
    old = fitted(values)
    far = float(np.float32(old.offset + sign * beyond * LARGEST * old.scale))
    assume(np.isfinite(np.float32(far)) and not old.holds(far, far))
    new = old.widened(far, far)
    reach = LARGEST * old.scale
    assert new.holds(far, far)
    assert new.holds(old.offset - reach, old.offset + reach)
    again = new.pack(old.unpack(old.pack(values)))
    assert np.abs(new.unpack(again).astype(float) - values).max() <= new.error <= new.scale
    assert abs(float(new.unpack(new.pack(np.float32([far])))[0]) - far) <= new.scale / 2


@pytest.fixture
def maps() -> xr.DataArray:
    values = np.random.default_rng(0).normal(size=(50, 3, 4, 5)).astype(np.float32)
    return xr.DataArray(values, dims=DIMS, coords={"channel": ["a", "b", "c"]}, name="maps")


@pytest.mark.parametrize("kind", ["memory", "dask", "zarr", "float64", "other order", "indexed"])
def test_a_block_is_the_maps_channels_last(maps, tmp_path, kind):
    expected = maps.values[7:31].transpose(0, 2, 3, 1)
    if kind == "dask":
        maps = maps.chunk(time=12)
    elif kind == "zarr":
        maps.to_dataset().to_zarr(tmp_path / "a.zarr", zarr_format=3)
        maps = xr.open_zarr(tmp_path / "a.zarr", chunks=None)["maps"]
    elif kind == "float64":
        maps = maps.astype(float)
    elif kind == "other order":
        maps = maps.transpose("latitude", "time", "longitude", "channel")
    elif kind == "indexed":
        maps = maps.isel(time=np.arange(50)[::-1]).isel(time=np.arange(50)[::-1])
    found = read_block(maps, 7, 31)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 51)])
def test_maps_that_are_not_there_are_told(maps, start, stop):
    with pytest.raises(IndexError, match="of 50"):
        read_block(maps, start, stop)


def test_no_maps_are_an_empty_block(maps):
    assert read_block(maps, 9, 9).shape == (0, 4, 5, 3)
