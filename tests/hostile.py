"""Grids that are damaged, mislabelled or made to do harm: each is written by a function here.

``BAD_GRIDS`` has a name, what writes it into a folder and gives the path, and what must be told.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from tests import dialects

Make = Callable[[Path], object]


def good() -> xr.Dataset:
    """Two days of MSLP, wind, geopotential and temperature: what each case does something to."""
    ds = dialects.dataset(dialects.fields(8))
    warm = (15 + ds["u10"] / 10).assign_attrs(units="degC")
    return ds.assign(t2m=warm)


def written(ds: xr.Dataset, folder: Path, name: str = "maps.nc") -> Path:
    ds.to_netcdf(folder / name)
    return folder / name


def changed(name: str, change: Callable[[xr.DataArray], Any], **attributes: str) -> Make:
    """A file of which one variable is changed, its attributes kept but for those given."""

    def make(folder: Path) -> Path:
        ds = good()
        ds[name] = change(ds[name]).assign_attrs(ds[name].attrs | attributes)
        return written(ds, folder)

    return make


def moved(name: str, change: Callable[[np.ndarray], Any], **attributes: str) -> Make:
    """A file of which one coordinate is changed."""

    def make(folder: Path) -> Path:
        ds = good()
        values = change(ds[name].values)
        return written(ds.assign_coords({name: (name, values, attributes)}), folder)

    return make


def at(index: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index] = value
        return values

    return change


def one_cell(value: float) -> Callable[[xr.DataArray], xr.DataArray]:
    def change(array: xr.DataArray) -> xr.DataArray:
        array = array.copy()
        array[5, 3, 3] = value
        return array

    return change


def swapped(folder: Path) -> Path:
    turned = good().rename(latitude="x", longitude="latitude").rename(x="longitude")
    return written(turned, folder)


def calendars(folder: Path) -> list[str]:
    first = good()[["msl"]]
    second = first.assign_coords(time=first["time"] + np.timedelta64(30, "D"))
    second = second.convert_calendar("noleap", dim="time")
    return [str(written(first, folder, "a.nc")), str(written(second, folder, "b.nc"))]


def resolutions(folder: Path) -> list[str]:
    first = good()[["msl"]]
    second = first.assign_coords(time=first["time"] + np.timedelta64(30, "D"))
    second = second.isel(latitude=slice(None, None, 2))
    return [str(written(first, folder, "a.nc")), str(written(second, folder, "b.nc"))]


# Files -------------------------------------------------------------------------------------------


def cut(share: float, kind: str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "maps.nc"
        good().to_netcdf(path, format=kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return make


def more_records_than_there_are(folder: Path) -> Path:
    path = folder / "maps.nc"
    good()[["msl"]].to_netcdf(path, format="NETCDF3_64BIT", unlimited_dims=["time"])
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack(">i", 2_000_000_000)
    path.write_bytes(content)
    return path


def a_hundred_million_million_times(folder: Path) -> Path:
    with netCDF4.Dataset(folder / "maps.nc", "w") as file:
        for name, size in (("time", 10**14), ("latitude", 3), ("longitude", 3)):
            file.createDimension(name, size)
        time = file.createVariable("time", "f8", ("time",), chunksizes=(1000,))
        time.units = "hours since 1900-01-01"
        shape = ("time", "latitude", "longitude")
        file.createVariable("msl", "f4", shape, chunksizes=(1, 3, 3))
    return folder / "maps.nc"


def a_link_to_itself(folder: Path) -> Path:
    (folder / "maps.nc").symlink_to(folder / "maps.nc")
    return folder / "maps.nc"


def a_folder_in_itself(folder: Path) -> Path:
    (folder / "inside").symlink_to(folder)
    return folder / "**" / "*.nc"


def grib_of_nonsense(folder: Path) -> Path:
    (folder / "maps.grib").write_bytes(b"GRIB" + bytes(range(200)))
    return folder / "maps.grib"


def content(name: str, text: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(text)
        return folder / name

    return make


# ZIP ---------------------------------------------------------------------------------------------


def flipped_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "maps.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(written(good(), folder), "maps.nc")
    return flipped(folder / "maps.zip", range(60, 90))


def flipped(path: Path, places: Any) -> Path:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 255
    path.write_bytes(content)
    return path


def zip_that_understates_itself(folder: Path) -> Path:
    """As a bomb would, to pass for small."""
    with zipfile.ZipFile(folder / "maps.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(written(good(), folder), "maps.nc")
        size = archive.infolist()[0].file_size
    content = (folder / "maps.zip").read_bytes()
    assert content.count(struct.pack("<I", size)) == 2
    content = content.replace(struct.pack("<I", size), struct.pack("<I", 10))
    (folder / "maps.zip").write_bytes(content)
    return folder / "maps.zip"


def zip_with(name: str) -> Make:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "maps.zip", "w") as archive:
            archive.writestr(name, b"CDF\x01")
        return folder / "maps.zip"

    return make


# Zarr --------------------------------------------------------------------------------------------


def packed_store(folder: Path, zarr_format: int) -> Path:
    """MSLP in int16, one map a chunk, as archives keep it: no value of it stands for missing."""
    path = folder / "maps.zarr"
    packing = {"dtype": "i2", "scale_factor": 4.0, "add_offset": 101_000.0}
    chunks = {"chunks": (1, dialects.LATITUDE.size, dialects.LONGITUDE.size)}
    encoding: Any = {"msl": packing | chunks}
    good()[["msl"]].to_zarr(path, zarr_format=zarr_format, encoding=encoding)  # type: ignore[call-overload]
    return path


def chunk_of(path: Path, zarr_format: int, i: int) -> Path:
    return path / "msl" / (f"{i}.0.0" if zarr_format == 2 else f"c/{i}/0/0")


def store_with(change: Callable[[Path], None], zarr_format: int) -> Make:
    def make(folder: Path) -> Path:
        path = packed_store(folder, zarr_format)
        change(chunk_of(path, zarr_format, 5))
        return path

    return make


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def metadata(zarr_format: int, change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> Path:
        path = packed_store(folder, zarr_format)
        told = [p for p in path.rglob("*") if p.name in ("zarr.json", ".zmetadata", ".zarray")]
        for file in told:
            file.write_bytes(change(file.read_bytes()))
        return path

    return make


class Harm:
    """What touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def pickle_in_zarr(folder: Path) -> Path:
    """A coordinate whose chunk is to be unpickled."""
    path = folder / "maps.zarr"
    good()[["msl"]].to_zarr(path, zarr_format=2, consolidated=False)
    told = json.loads((path / "latitude" / ".zarray").read_text())
    told |= {"dtype": "|O", "compressor": None, "fill_value": None}
    told["filters"] = [{"id": "vlen-utf8"}, {"id": "pickle"}]
    (path / "latitude" / ".zarray").write_text(json.dumps(told))
    (path / "latitude" / "0").write_bytes(pickle.dumps(Harm(folder / "harm")))
    return path


PLAIN = "must be evenly spaced|evenly spaced 1-D latitudes and longitudes in degrees"
WITHIN = "values must lie within"
NO_OVERLAP = "the data must overlap the domain"
LEVELS = "is it geopotential or its height, and are the levels in hPa?"
NETCDF = "must be a whole NetCDF file"
ZARR = "must be a Zarr store that can be read"

BAD_GRIDS: dict[str, tuple[Make, str]] = {
    # Values
    "infinite": (changed("msl", one_cell(np.inf)), WITHIN),
    "minus infinity": (changed("msl", one_cell(-np.inf)), WITHIN),
    "not a number": (changed("msl", one_cell(np.nan)), "missing or infinite"),
    "a whole map missing": (
        changed("msl", lambda a: a.where(a["time"] != a["time"][5])),
        "missing",
    ),
    "hPa called Pa": (changed("msl", lambda a: a / 100), WITHIN),
    "Pa called hPa": (changed("msl", lambda a: a, units="hPa"), WITHIN),
    "Celsius called kelvin": (changed("t2m", lambda a: a, units="K"), WITHIN),
    "kelvin called Celsius": (changed("t2m", lambda a: a + 273.15), WITHIN),
    "pressure in metres": (changed("msl", lambda a: a, units="m"), "units"),
    "words for values": (changed("msl", lambda a: a.astype("U8")), "values must be numbers"),
    "geopotential called height": (changed("z", lambda a: a, units="gpm"), "zg: "),
    "height called geopotential": (changed("z", lambda a: a / 9.80665), LEVELS),
    # Axes
    "levels in Pa called hPa": (moved("level", lambda v: v * 100, units="hPa"), "zg"),
    "levels in hPa called Pa": (moved("level", lambda v: v, units="Pa"), "zg"),
    "latitude in radians": (moved("latitude", np.deg2rad), NO_OVERLAP),
    "latitude in stated radians": (moved("latitude", np.deg2rad, units="radians"), "in degrees"),
    "latitude beyond the pole": (moved("latitude", lambda v: v + 60), "in degrees"),
    "latitude and longitude swapped": (swapped, NO_OVERLAP),
    "a latitude twice": (moved("latitude", lambda v: np.repeat(v[::2], 2)[: v.size]), PLAIN),
    "latitudes in disorder": (moved("latitude", lambda v: np.roll(v, 3)), PLAIN),
    "a latitude missing": (moved("latitude", at(3, np.nan)), PLAIN),
    "latitude endless": (moved("latitude", at(0, np.inf)), PLAIN),
    "words for longitudes": (moved("longitude", lambda v: v.astype("U5")), PLAIN),
    # Times
    "a day twice": (
        lambda folder: written(good().isel(time=[0, 1, 2, 3, 0, 1, 2, 3]), folder),
        "times must strictly increase",
    ),
    "a time twice": (moved("time", lambda v: v[[0, 1, 1, 3, 4, 5, 6, 7]]), "a repeated"),
    "times backward": (moved("time", lambda v: v[::-1]), "a step backward"),
    "no time": (moved("time", at(3, np.datetime64("NaT"))), "every map must have a time"),
    "times that are numbers": (moved("time", lambda v: np.arange(v.size)), "a CF time axis"),
    "calendars that change": (calendars, "all files must use one calendar"),
    "resolutions that change": (resolutions, "coordinates must be exactly equal"),
    # Files
    "NetCDF 4 cut at 20 %": (cut(0.2, "NETCDF4"), NETCDF),
    "NetCDF 4 cut at 90 %": (cut(0.9, "NETCDF4"), NETCDF),
    "NetCDF 3 cut at 20 %": (cut(0.2, "NETCDF3_CLASSIC"), NETCDF),
    "NetCDF 3 cut at 90 %": (cut(0.9, "NETCDF3_CLASSIC"), NETCDF),
    "more records than there are": (more_records_than_there_are, NETCDF),
    "10^14 times": (a_hundred_million_million_times, NETCDF),
    "NetCDF of nonsense": (content("maps.nc", b"\x89HDF\r\n\x1a\n" + bytes(500)), NETCDF),
    "classic of nonsense": (content("maps.nc", b"CDF\x01" + bytes(range(200))), NETCDF),
    "GRIB of nonsense": (grib_of_nonsense, "maps.grib"),
    "an empty file": (content("maps.nc", b""), "found an empty file"),
    "a page instead of a file": (content("maps.nc", b"<!DOCTYPE html>"), "must be NetCDF"),
    "a link to itself": (a_link_to_itself, "the file must exist"),
    "a folder in itself": (a_folder_in_itself, "must match at least one file"),
    "an empty folder": (lambda folder: folder, "a folder must be a Zarr store"),
    "a glob of nothing": (lambda folder: folder / "era5_*.nc", "must match at least one file"),
    # ZIP
    "ZIP with flipped bits": (flipped_zip, "must be a whole ZIP archive"),
    "ZIP that understates itself": (zip_that_understates_itself, "must be a whole ZIP archive"),
    "ZIP that leads out": (zip_with("../../maps.nc"), "no member may lead out"),
    "ZIP that leads to the root": (zip_with("/etc/maps.nc"), "no member may lead out"),
    "ZIP that leads to a drive": (zip_with("C:\\maps.nc"), "no member may lead out"),
    "ZIP in a ZIP": (zip_with("maps.zip"), "must hold NetCDF or GRIB files only"),
    # Zarr
    "Zarr 2 without a chunk": (store_with(Path.unlink, 2), "the chunk must be there"),
    "Zarr 3 without a chunk": (store_with(Path.unlink, 3), "the chunk must be there"),
    "Zarr 2 with half a chunk": (store_with(halved, 2), "the chunk must have the .* bytes"),
    "Zarr 3 with half a chunk": (store_with(halved, 3), "the data must be readable"),
    "Zarr 2, metadata cut": (metadata(2, lambda text: text[:40]), ZARR),
    "Zarr 3, metadata cut": (metadata(3, lambda text: text[:40]), ZARR),
    "Zarr 2, metadata a list": (metadata(2, lambda text: b"[]"), ZARR),
    "Zarr 3, metadata a list": (metadata(3, lambda text: b"[]"), ZARR),
    "Zarr that is to be unpickled": (pickle_in_zarr, ZARR),
}
