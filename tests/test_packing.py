"""Packing: its reach, and what it takes off a value; blocks of maps from whatever holds them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medicane.packing import (
    ALIGNED,
    FEW,
    LARGEST,
    MARGIN,
    SPARE,
    Packing,
    Reused,
    read_block,
    unpack_channels_last,
)

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
    packed = read_block((maps * 100).astype(np.int16), 7, 31, dtype=np.int16)
    assert packed.dtype == np.int16
    np.testing.assert_array_equal(packed, (expected * 100).astype(np.int16))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 51)])
def test_maps_that_are_not_there_are_told(maps, start, stop):
    with pytest.raises(IndexError, match="of 50"):
        read_block(maps, start, stop)


def test_no_maps_are_an_empty_block(maps):
    assert read_block(maps, 9, 9).shape == (0, 4, 5, 3)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    n=st.integers(1, 2 * FEW + 1),
    cells=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    channels=st.integers(1, 7),
)
def test_channels_unpacked_together_are_to_the_bit_what_each_is_alone(data, n, cells, channels):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    about = rng.normal(size=channels) * 10.0 ** rng.integers(-3, 6, channels)
    packings = [Packing.fit(mean - 1, mean + 3, about=mean) for mean in about]
    packed = rng.integers(-LARGEST, LARGEST + 1, (channels, n, *cells)).astype(np.int16)
    found = np.full((n, *cells, channels), np.nan, np.float32)
    unpack_channels_last(list(packed), packings, found)
    for i, packing in enumerate(packings):
        expected = packing.unpack(packed[i])
        np.testing.assert_array_equal(found[..., i].view(np.int32), expected.view(np.int32))


BIG = (4, 300, 300)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nothing_refers_to_it():
    memory = Reused()
    first = memory.empty(BIG)
    assert first.shape == BIG
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.flags.writeable
    where = address(first)
    assert where % ALIGNED == 0
    del first
    assert address(memory.empty((2 * BIG[0], *BIG[1:]), np.int16)) == where
    second = memory.empty(BIG)
    assert address(second) == where
    assert not np.shares_memory(second, memory.empty(BIG))


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[1:, ::2],
        lambda array: array.reshape(-1)[5:].view(np.int32)[:3],
        lambda array: np.moveaxis(array, 0, -1).T,
        lambda array: np.lib.stride_tricks.sliding_window_view(array, 2, axis=0),
        lambda array: memoryview(array),
        lambda array: xr.DataArray(array, dims=("a", "b", "c")).isel(a=1),
    ],
)
def test_memory_is_not_used_again_while_a_part_of_an_array_lives(part):
    memory = Reused()
    array = memory.empty(BIG)
    array[:] = 7
    kept, where = part(array), address(array)
    del array
    others = [memory.empty(BIG) for _ in range(3)]
    assert where not in [address(other) for other in others]
    for other in others:
        other[:] = 8
    values = np.asarray(kept)
    assert (values.view(np.float32) == 7).all() if values.dtype == np.int32 else (values == 7).all()


def test_memory_of_another_size_is_not_taken_and_little_is_kept():
    memory = Reused()
    large = memory.empty((8, 300, 300))
    where = address(large)
    del large
    assert address(memory.empty(BIG)) != where  # half of it would lie idle
    assert address(memory.empty((7, 300, 300))) == where
    many = [memory.empty(BIG) for _ in range(3 * SPARE)]
    del many
    assert len(memory._free) == SPARE
    assert memory.empty((0, 300)).shape == (0, 300)


def test_threads_never_share_memory():
    memory, rounds = Reused(), 200

    def work(number: int) -> bool:
        whole = True
        for _ in range(rounds):
            array = memory.empty((1, 512, 512))
            array[:] = number
            whole &= bool((array == number).all())
        return whole

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
