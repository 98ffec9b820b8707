"""Chunks of NetCDF 4 files read past the library: its values to the bit, or left to it."""

import pickle
import shutil

import netCDF4
import numpy as np
import pytest
import xarray as xr

from medicane.errors import InputError
from medicane.grids import hdf5, open_grids

SHAPE = (50, 3, 7, 11)
DIMENSIONS = ("time", "level", "latitude", "longitude")
PACKED = {"scale_factor": 0.0123, "add_offset": 101_325.7}
KINDS = {
    "packed": ("i2", PACKED | {"_FillValue": np.int16(-32_768)}),
    "packed, nothing missing": ("i2", PACKED),
    "packed in single precision": (
        "i2",
        {"scale_factor": np.float32(0.5), "add_offset": np.float32(3), "missing_value": 7},
    ),
    "scaled only": ("i4", {"scale_factor": 0.25, "_FillValue": np.int32(5)}),
    "unsigned": ("i1", {"_Unsigned": "true", "scale_factor": 0.1, "_FillValue": np.int8(-1)}),
    "two words for missing": (
        "i2",
        PACKED | {"_FillValue": np.int16(3), "missing_value": np.int16(4)},
    ),
    "single precision": ("f4", {"_FillValue": np.float32(np.nan)}),
    "double precision": ("f8", {}),
    "bytes": ("u1", {}),
}
KEYS = [
    (slice(None),) * 4,
    (slice(5, 23), slice(None), slice(2, 6), slice(3, 9)),
    (slice(49, 3, -7), slice(None, None, -1), slice(None, None, 2), slice(10, None, -3)),
    (17, slice(1, 2), slice(None), -1),
]


def write(path, kind="packed", **storage):
    """A file of one variable ``msl``; returns the variable as xarray opens it."""
    dtype, attributes = KINDS[kind]
    rng = np.random.default_rng(1)
    values = rng.integers(0, 100, SHAPE) if np.dtype(dtype).kind != "f" else rng.normal(size=SHAPE)
    fill = attributes.get("_FillValue")
    if fill is not None:
        values = np.where(rng.random(SHAPE) < 0.02, fill, values)
    with netCDF4.Dataset(path, "w") as file:
        for name, size in zip(DIMENSIONS, SHAPE, strict=True):
            file.createDimension(name, size)
        options = {"zlib": True, "chunksizes": (8, 2, 7, 11), "fill_value": fill} | storage
        made = file.createVariable("msl", dtype, DIMENSIONS, **options)
        made.set_auto_maskandscale(False)
        made.setncatts({k: v for k, v in attributes.items() if k != "_FillValue"})
        made[:] = values.astype(dtype)
    return opened(path)


def opened(path):
    return xr.open_dataset(path, engine="netcdf4", cache=False)["msl"].variable


@pytest.mark.parametrize("storage", [{}, {"shuffle": False, "chunksizes": (1, 3, 4, 5)}])
@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_of_the_library(tmp_path, kind, storage):
    variable = write(tmp_path / "x.nc", kind, **storage)
    chunks = hdf5.Chunks(str(tmp_path / "x.nc"), "msl", variable)
    for key in KEYS:
        ours, theirs = chunks.read(key), variable[key].values
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def test_blocks_are_cut_as_the_chunks_are(tmp_path, monkeypatch):
    variable = write(tmp_path / "x.nc")
    monkeypatch.setattr(hdf5, "AT_ONCE", 1)
    key = (slice(3, 37), *KEYS[0][1:])
    ours = hdf5.Chunks(str(tmp_path / "x.nc"), "msl", variable).read(key)
    np.testing.assert_array_equal(ours, variable[key].values)


@pytest.mark.parametrize(
    "storage",
    [
        {"zlib": False},
        {"fletcher32": True},
        {"endian": "big"},
        {"zlib": False, "compression": "zstd"},
        {"zlib": False, "chunksizes": None, "contiguous": True},
    ],
)
def test_other_storage_is_left_to_the_library(tmp_path, storage):
    with netCDF4.Dataset(tmp_path / "empty.nc", "w") as empty:
        if storage.get("compression") == "zstd" and not empty.has_zstd_filter():
            pytest.skip("the NetCDF library of this process has no zstd")
    variable = write(tmp_path / "x.nc", **storage)
    assert hdf5.Chunks(str(tmp_path / "x.nc"), "msl", variable).read(KEYS[0]) is None


def test_positions_that_follow_no_step_are_left_to_the_library(tmp_path):
    chunks = hdf5.Chunks(str(tmp_path / "x.nc"), "msl", write(tmp_path / "x.nc"))
    assert chunks.read((np.array([3, 1]), *KEYS[0][1:])) is None
    assert chunks.read((slice(0, 0), *KEYS[0][1:])) is None
    assert chunks.read((slice(None),)) is None


def test_a_chunk_that_was_never_written_is_left_to_the_library(tmp_path):
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as file:
        file.createDimension("time", None)
        made = file.createVariable("msl", "i2", ("time",), zlib=True, chunksizes=(4,))
        made[0:2] = 1
        made[16:18] = 1
    variable = opened(tmp_path / "x.nc")
    chunks = hdf5.Chunks(str(tmp_path / "x.nc"), "msl", variable)
    assert chunks.read((slice(None),)) is None


def test_another_file_of_that_name_is_left_to_the_library(tmp_path):
    path = tmp_path / "x.nc"
    chunks = hdf5.Chunks(str(path), "msl", write(path))
    assert chunks.read(KEYS[1]) is not None
    shutil.copy(path, tmp_path / "other.nc")
    (tmp_path / "other.nc").replace(path)
    assert chunks.read(KEYS[1]) is None
    path.unlink()
    assert chunks.read(KEYS[1]) is None


def test_they_travel_to_other_processes(tmp_path):
    variable = write(tmp_path / "x.nc")
    chunks = hdf5.Chunks(str(tmp_path / "x.nc"), "msl", variable)
    first = chunks.read(KEYS[1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(chunks)).read(KEYS[1]), first)


def test_the_library_tells_of_a_damaged_chunk(tmp_path):
    path = tmp_path / "x.nc"
    write(path)
    index = hdf5._index_of(str(path), "msl", SHAPE)
    place, size = index.at[(8, 0, 0, 0)]
    content = bytearray(path.read_bytes())
    content[place + size // 2] ^= 0xFF
    (tmp_path / "damaged.nc").write_bytes(content)
    ds = open_grids(tmp_path / "damaged.nc")
    with pytest.raises(InputError, match=r"damaged\.nc: msl: the data must be readable"):
        ds["msl"].compute()


def test_grids_are_read_so(tmp_path, monkeypatch):
    path = tmp_path / "x.nc"
    theirs = write(path).values

    def refused(*_):
        raise OSError("the library is not asked")

    ds = open_grids(path)
    monkeypatch.setattr("xarray.backends.netCDF4_.NetCDF4ArrayWrapper._getitem", refused)
    np.testing.assert_array_equal(ds["msl"].values, theirs)
