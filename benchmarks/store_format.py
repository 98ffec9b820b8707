"""What packing is worth: the store's maps against the same maps as float32, through Zarr.

    python -m benchmarks.store_format [--small]

The other side is what the store was before: one array of float32, 24 whole maps an uncompressed
chunk, read by xarray and Zarr. Maps are smooth fields with full mantissas; the page cache is warm,
so the figures are the cost of the format and not of the disk. Both sides give blocks channels last,
as the detector takes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter

from benchmarks.claims import Claim, main, side_by_side
from medicane.channels import describe
from medicane.packing import Packing, read_block
from medicane.store import open_store
from medicane.store.commits import CommittedGroup
from medicane.store.schema import array_plans

CHANNELS = ("msl", "u10", "v10", "t2m", "sst", "tcwv")
DIMENSIONS = ("time", "channel", "latitude", "longitude")
LENGTH = 12


def measure(small: bool) -> Iterator[Claim]:
    """Maps a second from disk, in order and as random windows; bytes."""
    n, grid = (192, (11, 16)) if small else (1_440, (81, 209))
    maps = smooth_maps(n, grid)
    with tempfile.TemporaryDirectory() as folder:
        packed, plain = Path(folder) / "packed.zarr", Path(folder) / "plain.zarr"
        write_packed(packed, maps)
        write_plain(plain, maps)
        ours, theirs = open_store(packed)["maps"], xr.open_zarr(plain, chunks=None)["maps"]
        sizes = [size(path) / 1e6 for path in (packed, plain)]
        about = f"{n} maps of {grid[0]} x {grid[1]} cells, {len(CHANNELS)} channels; "
        about += f"{sizes[0]:.0f} MB against {sizes[1]:.0f} MB"
        starts = np.random.default_rng(1).integers(0, n - LENGTH, 32 if small else 400)
        orders: list[tuple[str, list[tuple[int, int]]]] = [
            ("maps from disk, in order", [(i, i + 96) for i in range(0, n - 95, 96)]),
            ("windows of 12 maps from disk, at random", [(s, s + LENGTH) for s in starts.tolist()]),
        ]
        for claim, blocks in orders:
            yield side_by_side(
                reading(ours, blocks),
                reading(theirs, blocks),
                claim=claim,
                against="the same maps as float32, through Zarr",
                unit="maps/s",
                rounds=1 if small else 5,
                note=about,
            )


def smooth_maps(n: int, grid: tuple[int, int]) -> xr.DataArray:
    """Maps (time, channel, latitude, longitude) that change slowly in space."""
    rng = np.random.default_rng(0)
    shape = (64, len(CHANNELS), *grid)
    pool = gaussian_filter(rng.standard_normal(shape), (1, 0, 3, 3)).astype(np.float32)
    weights = rng.standard_normal((n, 64)).astype(np.float32)
    times = np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    coordinates = {
        "time": times,
        "channel": list(CHANNELS),
        "latitude": np.linspace(48, 28, grid[0]),
        "longitude": np.linspace(-10, 42, grid[1]),
    }
    values = np.tensordot(weights, pool, axes=1)
    return xr.DataArray(values, coordinates, DIMENSIONS, name="maps")


def write_packed(path: Path, maps: xr.DataArray) -> None:
    """A map store of these maps, without labels and lows."""
    values = maps.values
    packings = [
        Packing.fit(float(x.min()), float(x.max()), about=float(x.mean()))
        for x in values.swapaxes(0, 1)
    ]
    lsm = np.zeros(values.shape[2:], np.float32)
    plans = array_plans(maps, describe(CHANNELS), packings, lsm=lsm, levels=())
    group = CommittedGroup.create(path, plans)
    for start in range(0, len(values), 96):
        block = values[start : start + 96]
        packed = zip(CHANNELS, packings, block.swapaxes(0, 1), strict=True)
        group.append(
            {
                "time": maps["time"].values[start : start + 96].astype("datetime64[s]").astype(int),
                "medicane": np.zeros(len(block), np.int8),
                "storm": np.full(len(block), "", object),
                **{name: packing.pack(one) for name, packing, one in packed},
            }
        )
    group.commit({"schema_version": 2, "complete": 1, "content_digest": ""})


def write_plain(path: Path, maps: xr.DataArray) -> None:
    """The same maps as one array of float32."""
    encoding = {"maps": {"chunks": (24, *maps.shape[1:]), "compressors": None}}
    maps.drop_vars("channel").to_dataset().to_zarr(path, zarr_format=3, encoding=encoding)


def size(path: Path) -> int:
    """Bytes of the maps of a store."""
    arrays = [path / name for name in (*CHANNELS, "maps")]
    return sum(f.stat().st_size for a in arrays for f in a.rglob("*") if f.is_file())


def reading(maps: xr.DataArray, blocks: list[tuple[int, int]]) -> Callable[[], float]:
    """A side: reads these blocks, channels last; how many maps that were."""

    def side() -> float:
        return sum(len(read_block(maps, start, stop)) for start, stop in blocks)

    return side


if __name__ == "__main__":
    main(measure)
