"""What a source is, by its first bytes, and its datasets: NetCDF, GRIB, Zarr, ZIP, map images."""

from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.grids import archives, grib, images
from medicane.grids.lazy import in_blocks, short
from medicane.remote import RangeFile, Remote, StorageOptions, is_remote, needs

if TYPE_CHECKING:
    from zarr.storage import FsspecStore

#: The first bytes of NetCDF 4.
HDF5 = b"\x89HDF"
#: How latitudes and longitudes are spelt.
HORIZONTAL = frozenset(
    spelt
    for axis in (names.LATITUDE, names.LONGITUDE)
    for spelt in (axis, *names.COORDINATE_ALIASES[axis])
)
#: What the law is where a library cannot read a source.
LAWS = {
    "netcdf": "must be a whole NetCDF file with a CF time axis",
    "grib": "must be a whole GRIB file",
    "zarr": "must be a Zarr store that can be read",
}


def open_source(
    source: str, *, storage_options: StorageOptions | None = None
) -> list[tuple[str, xr.Dataset]]:
    """The datasets of a source, each with the name to tell of it.

    Several where a GRIB file mixes kinds of level, or a ZIP holds several files. Data variables are
    dask arrays; coordinates are read. Of a URI, Zarr and NetCDF 4 are read where they are, as far
    as they are asked for; the other kinds are copied whole.

    Raises
    ------
    InputError
        If the source is of no known kind, or cannot be read.
    """
    if not is_remote(source):
        return _open_local(source, told=source)
    try:
        held = _held(Remote(source, storage_options))
    except OSError as error:
        raise InputError(source, "must be readable", found=short(error)) from error
    if isinstance(held, Path):
        return _open_local(str(held), told=source)
    kind = "netcdf" if isinstance(held, RangeFile) else "zarr"
    return [(source, ds) for ds in _open_file(held, kind, told=source)]


def _held(place: Remote) -> Path | RangeFile | FsspecStore:
    """A local copy, a file that is read by ranges, or a Zarr store."""
    try:
        start, fault = place.start(), None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        start, fault = b"", error
    if start.startswith(HDF5):
        needs("h5netcdf", place.uri)
        return place.file()
    if _kind_by_start(start) is not None:
        return place.local_copy()
    if place.is_zarr():
        return place.zarr_store()
    if fault is not None:
        raise fault
    found = "an empty file" if not start else f"a file that begins with {start[:16]!r}"
    raise InputError(place.uri, "must be NetCDF, GRIB or Zarr", found=found)


def _open_local(source: str, *, told: str) -> list[tuple[str, xr.Dataset]]:
    kind = kind_of(source, told=told)
    if kind == "images":
        return [(told, images.open_images(source))]
    if kind == "zip":
        found = []
        for member, path in archives.unpacked(source, told=told):
            inside = kind_of(path, told=member)
            if inside not in ("netcdf", "grib"):
                raise InputError(member, "must be NetCDF or GRIB: unpack it", found=inside)
            found += [(member, ds) for ds in _open_file(path, inside, told=member)]
        return found
    return [(told, ds) for ds in _open_file(source, kind, told=told)]


def kind_of(source: str, *, told: str | None = None) -> str:
    """What a source is: netcdf, grib, zarr, zip or images.

    Parameters
    ----------
    told
        What errors call it, if it is not by its path.

    Raises
    ------
    InputError
        If it is none of them.
    """
    path, told = Path(source), told or source
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        if images.holds_images(path):
            return "images"
        raise InputError(
            source,
            "a folder must be a Zarr store or hold map images (PNG, JPEG); for its files give a "
            "glob such as FOLDER/*.nc",
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(told, "the file must be readable", found=short(error)) from None
    known = _kind_by_start(start)
    if known is not None:
        return known
    if start.startswith(images.FIRST_BYTES):
        raise InputError(told, "map images are read by the folder: give the folder", found=path)
    found = "an empty file" if not start else f"a file that begins with {start[:16]!r}"
    raise InputError(told, "must be NetCDF, GRIB or Zarr", found=found)


def _kind_by_start(start: bytes) -> str | None:
    """What a file is that begins so; None if it is of no kind that is read."""
    if start.startswith((b"CDF", HDF5)):
        return "netcdf"
    if b"GRIB" in start:
        return "grib"
    return "zip" if start.startswith(b"PK\x03\x04") else None


def _open_file(source: str | RangeFile | FsspecStore, kind: str, *, told: str) -> list[xr.Dataset]:
    # ns: the one resolution in which dates of all dialects compare equal.
    options: dict[str, Any] = {
        "chunks": None,
        "cache": False,
        "decode_times": xr.coders.CFDatetimeCoder(time_unit="ns"),
        "decode_timedelta": False,
    }
    try:
        if isinstance(source, RangeFile):
            datasets = [xr.open_dataset(source, engine="h5netcdf", **options)]
        elif kind == "zarr":
            with warnings.catch_warnings():  # about speed, of stores that are not consolidated
                warnings.simplefilter("ignore", RuntimeWarning)
                datasets = [_open_zarr(source, options)]
        elif kind == "grib":
            datasets = grib.open_grib(str(source), options)
        else:
            assert isinstance(source, str)
            _check_classic_length(source, told)
            _check_hdf5_length(source, told)
            with warnings.catch_warnings():  # "hours since 1-1-1", as COARDS writes it
                warnings.filterwarnings("ignore", "Ambiguous reference date")
                datasets = [xr.open_dataset(source, engine="netcdf4", **options)]
        path = source if isinstance(source, str) else told
        hdf5 = kind == "netcdf" and isinstance(source, str)
        return [in_blocks(_with_coordinates(ds), path, told=told, hdf5=hdf5) for ds in datasets]
    except InputError:
        raise
    except Exception as error:
        raise InputError(told, LAWS[kind], found=short(error)) from error


def _open_zarr(source: str | FsspecStore, options: dict[str, Any]) -> xr.Dataset:
    from zarr.storage import LocalStore

    from medicane.grids.chunks import WholeStore

    store: Any = WholeStore(
        LocalStore(source, read_only=True) if isinstance(source, str) else source
    )  # xarray takes zarr's own stores, its annotations do not
    ds = xr.open_dataset(store, engine="zarr", **options)
    store.require_maps(ds)
    return ds


def _with_coordinates(ds: xr.Dataset) -> xr.Dataset:
    """Coordinates are small and every check needs them: read them now."""
    # Latitudes and longitudes of each point, which not every file calls coordinates.
    ds = ds.set_coords([n for n in ds.data_vars if str(n) in HORIZONTAL])
    read = {n: c.load() for n, c in ds.coords.items() if c.ndim <= 1 or str(n) in HORIZONTAL}
    return ds.assign_coords(read)


def _check_classic_length(source: str, told: str) -> None:
    """Refuse a classic NetCDF file that is cut short: the C library would read zeros."""
    with open(source, "rb") as file:
        if file.read(4) not in (b"CDF\x01", b"CDF\x02"):
            return  # HDF5 knows its own length
    from scipy.io import netcdf_file

    found = None
    with warnings.catch_warnings():  # scipy's, about what a failure leaves open
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            with netcdf_file(source, mmap=True):  # lays variables over the file, reads none
                pass
        except (TypeError, ValueError) as error:
            found = f"a file cut short ({short(error)})"
        if found is not None:
            gc.collect()
    if found is not None:
        raise InputError(told, "must be a whole NetCDF file", found=found)


def _check_hdf5_length(source: str, told: str) -> None:
    """Refuse an HDF5 file shorter than its superblock says, before the C library meets it."""
    with open(source, "rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x89HDF\r\n\x1a\n") or len(head) < 64:
        return
    # Where the end-of-file address stands, by superblock version; addresses of 8 bytes only.
    version = head[8]
    at, width = {0: (40, head[13]), 1: (44, head[13]), 2: (28, head[9]), 3: (28, head[9])}.get(
        version, (0, 0)
    )
    if width != 8:
        return
    size, held = int.from_bytes(head[at : at + 8], "little"), os.path.getsize(source)
    if size > held:
        found = f"a file cut short ({held} of {size} bytes)"
        raise InputError(told, "must be a whole NetCDF file", found=found)
