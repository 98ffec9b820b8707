"""Maps read a block at a time, from whatever holds them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from medicane.packing import read_block

DIMS = ("time", "channel", "latitude", "longitude")


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
