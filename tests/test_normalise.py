"""Statistics: those of the training split, exact in float64, one bounded pass."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.errors import InputError
from medicane.normalise import Moments, Statistics, training_statistics


def maps_of(values: np.ndarray) -> xr.DataArray:
    """(time, channel, latitude, longitude) with coordinates."""
    n, channels = values.shape[:2]
    return xr.DataArray(
        values,
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h"),
            "channel": [f"c{i}" for i in range(channels)],
        },
        name="maps",
    )


@pytest.fixture
def noise() -> np.ndarray:
    """Three channels of very different size, as MSLP in Pa, a wind and a fraction are."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 3, 5, 7))
    values *= np.array([600.0, 8.0, 0.3])[:, None, None]
    values += np.array([101_300.0, -1.0, 0.4])[:, None, None]
    return values.astype(np.float32)


def test_mean_and_std_are_those_of_the_training_maps_alone(noise):
    mask = np.zeros(50, bool)
    mask[3:20] = mask[31:40] = True
    poisoned = noise.copy()
    poisoned[~mask] = 1e9
    got = training_statistics(maps_of(poisoned), mask, block=4)
    truth = noise[mask].astype(np.float64)
    np.testing.assert_allclose(got.mean, truth.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(got.std, truth.std(axis=(0, 2, 3)), rtol=1e-10)
    assert got.channels == ("c0", "c1", "c2")
    assert got.n_maps == 26
    assert got.mean.dtype == got.std.dtype == np.float64


@settings(max_examples=40, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=30, max_size=30).filter(any), block=st.integers(1, 40))
def test_the_block_does_not_matter(mask, block):
    values = np.random.default_rng(1).normal(5_000, 50, (30, 2, 3, 4)).astype(np.float32)
    got = training_statistics(maps_of(values), mask, block=block)
    truth = values[np.array(mask)].astype(np.float64)
    np.testing.assert_allclose(got.mean, truth.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(got.std, truth.std(axis=(0, 2, 3)), rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_moments_merge_in_any_order(sizes, seed):
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(100, 3, (n, 2, 2, 3)) for n in sizes]
    moments = [Moments.of(b) for b in blocks]
    left = moments[0]
    for other in moments[1:]:
        left = left.merge(other)
    right = moments[-1]
    for other in moments[-2::-1]:
        right = right.merge(other)
    whole = Moments.of(np.concatenate(blocks))
    for merged in (left, right):
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9)


def test_large_means_do_not_drown_small_deviations():
    # In float32 sums, 100 000 Pa squared leaves nothing of a deviation of 1 Pa.
    values = (100_000 + np.random.default_rng(2).standard_normal((200, 1, 9, 9))).astype(np.float32)
    got = training_statistics(maps_of(values), np.ones(200, bool))
    assert got.std[0] == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 101_325.0])
def test_a_constant_channel_normalises_to_zero(value):
    values = np.full((10, 1, 4, 4), value, np.float32)
    got = training_statistics(maps_of(values), np.ones(10, bool))
    assert got.std[0] == 1.0
    assert np.abs((values - got.mean) / got.std).max() < 1e-6 * max(value, 1)


def test_a_channel_constant_in_time_but_not_in_space_varies():
    lsm = np.broadcast_to(np.float32([0, 1, 1, 0]), (6, 1, 3, 4)).copy()
    assert training_statistics(maps_of(lsm), np.ones(6, bool)).std[0] == pytest.approx(0.5)


def test_only_the_training_maps_are_read_and_never_more_than_a_block(noise):
    seen = []

    def watch(block, block_info=None):
        if block_info:
            seen.append(block_info[0]["array-location"][0])
        return block

    lazy = da.from_array(noise, chunks=(1, 3, 5, 7)).map_blocks(watch, dtype=np.float32)
    mask = np.zeros(50, bool)
    mask[10:20] = True
    training_statistics(maps_of(noise).copy(data=lazy), mask, block=4)
    assert sorted(seen) == [(i, i + 1) for i in range(10, 20)]


def test_json_and_back_is_exact(noise):
    got = training_statistics(maps_of(noise), np.ones(50, bool))
    back = Statistics.from_dict(json.loads(json.dumps(got.to_dict())))
    np.testing.assert_array_equal(back.mean, got.mean)
    np.testing.assert_array_equal(back.std, got.std)
    assert (back.channels, back.n_maps) == (got.channels, got.n_maps)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_cell_is_named_by_time_and_channel(noise, bad):
    noise[7, 1, 2, 2] = bad
    with pytest.raises(InputError, match=r"channel c1: must be finite .* at 2001-01-02T18:00"):
        training_statistics(maps_of(noise), np.ones(50, bool))


def test_a_missing_cell_outside_the_training_split_is_no_matter(noise):
    noise[7, 1, 2, 2] = np.nan
    mask = np.ones(50, bool)
    mask[7] = False
    assert training_statistics(maps_of(noise), mask).n_maps == 49


@pytest.mark.parametrize(
    ("mask", "law"),
    [
        (np.zeros(50, bool), "at least one map"),
        (np.ones(49, bool), "one value for each of 50 maps"),
    ],
)
def test_bad_masks_are_refused(noise, mask, law):
    with pytest.raises(InputError, match=law):
        training_statistics(maps_of(noise), mask)
