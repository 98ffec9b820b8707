"""Packed NetCDF to the map store, and training statistics from it, against what inflating allows.

    python -m benchmarks.prepare [--small]

One record is written as the archives deliver it: a file a month, int16 with scale and offset,
deflated, several maps a chunk. Preparing has to inflate it all, so that nothing can be faster than
inflating the same bytes once; what standardising, deriving, finding the lows and storing add is
the rest. Statistics are the mean and standard deviation of each variable, which people take of the
files themselves with dask.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import netCDF4
import numpy as np
import xarray as xr

from benchmarks.claims import Claim, main, side_by_side
from medicane.config import Config, Sea, make_config
from medicane.normalise import training_statistics
from medicane.store import open_store, write_store
from medicane.synthetic import build_sea

CHANNELS = ("msl", "u10", "v10", "zg_900", "zg_600", "zg_300")
VARIABLES = ("msl", "u10", "v10", "z")


def measure(small: bool) -> Iterator[Claim]:
    """Maps a second into the store, and through the statistics."""
    months = 1 if small else 6
    rounds = 1 if small else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = packed_files(folder, months)
        with xr.open_dataset(files[0]) as one:
            sizes = f"{one.sizes['latitude']} x {one.sizes['longitude']} cells"
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        about = f"{sizes}, 6-hourly, {months} months, 10 fields, {megabytes:.0f} MB packed"

        yield side_by_side(
            preparing(folder),
            lambda: inflated(files),
            claim="prepare: packed NetCDF to the store",
            against="inflating the same bytes, and no more",
            unit="maps/s",
            target=0.9,
            rounds=rounds,
            note=about + "; default channels, lows and their phase space",
        )
        yield from _hourly(folder, rounds=rounds, small=small)
        write_store(config(folder, folder / "fields.zarr", channels=list(CHANNELS)))
        maps = open_store(folder / "fields.zarr")["maps"]

        def from_the_store() -> float:
            return training_statistics(maps, np.ones(maps.sizes["time"], bool)).n_maps

        yield side_by_side(
            from_the_store,
            lambda: with_dask(files),
            claim="training statistics, from the store",
            against="dask over the packed NetCDF",
            unit="maps/s",
            target=10,
            rounds=rounds,
            note=f"{about}; mean and standard deviation of {len(CHANNELS)} fields",
        )


def preparing(folder: Path, **data: object) -> Callable[[], float]:
    """Prepare the files of a folder, each time into a store of its own; how many maps that were."""
    stores = itertools.count()

    def work() -> float:
        # Removing the last store is no part of preparing.
        store = folder / f"maps-{next(stores)}.zarr"
        return write_store(config(folder, store, **data)).n_maps

    return work


def _hourly(folder: Path, *, rounds: int, small: bool) -> Iterator[Claim]:
    """The same at the resolution of ERA5, where opening files is a small part of the whole."""
    folder = folder / "hourly"
    degrees, months = (0.5, 1) if small else (0.25, 2)
    files = packed_files(folder, months, step_hours=1, degrees=degrees)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    yield side_by_side(
        preparing(folder, step_hours=1, degrees=degrees),
        lambda: inflated(files),
        claim=f"prepare, hourly at {degrees}°: packed NetCDF to the store",
        against="inflating the same bytes, and no more",
        unit="maps/s",
        target=0.9,
        rounds=rounds,
        note=f"{months} months, 10 fields, {megabytes:.0f} MB packed; the rest as above",
    )


def packed_files(folder: Path, months: int, **sea: Any) -> list[Path]:
    """The idealised sea, each month packed into 16 bits as the Climate Data Store did."""
    build_sea(folder / "sea", Sea(years=max(months, 1) / 12, start_year=2001, seed=1, **sea))
    files = []
    for source in sorted((folder / "sea" / "grids").glob("*.nc")):
        files.append(folder / source.name)
        with xr.open_dataset(source) as ds:
            encoding = {}
            for name in VARIABLES:
                least, most = float(ds[name].min()), float(ds[name].max())
                encoding[name] = {
                    "dtype": "int16",
                    "scale_factor": (most - least) / 65_000,
                    "add_offset": (most + least) / 2,
                    "_FillValue": -32_768,
                    "zlib": True,
                    "complevel": 1,
                    "shuffle": True,
                    "chunksizes": (min(16, len(ds[name])), *ds[name].shape[1:]),
                }
                ds[name].encoding.clear()
            ds.to_netcdf(files[-1], encoding=encoding)
    return files


def config(folder: Path, store: Path, **data: object) -> Config:
    """A preparation of these files."""
    values = {
        "grids": str(folder / "*.nc"),
        "catalogue": str(folder / "sea" / "storms.csv"),
        "store": str(store),
        **data,
    }
    return make_config({"schema_version": 1, "data": values})


def inflated(files: list[Path]) -> float:
    """Read all fields as they are packed; how many maps that were."""
    n = 0
    for file in files:
        with netCDF4.Dataset(file) as ds:
            ds.set_auto_maskandscale(False)
            for name in VARIABLES:
                for start in range(0, len(ds[name]), 96):
                    ds[name][start : start + 96]
            n += len(ds["msl"])
    return n


def with_dask(files: list[Path]) -> float:
    """Mean and standard deviation of each field as people take them; how many maps that were."""
    with xr.open_mfdataset(files, chunks={}, combine="nested", concat_dim="valid_time") as ds:
        fields = {name: ds[name] for name in ("msl", "u10", "v10")}
        fields |= {f"z{p}": ds["z"].sel(pressure_level=p) for p in (900, 600, 300)}
        chosen = xr.Dataset(
            {n: f.drop_vars("pressure_level", errors="ignore") for n, f in fields.items()}
        )
        dask.compute(chosen.mean(), chosen.std())
        return int(ds.sizes["valid_time"])


if __name__ == "__main__":
    main(measure)
