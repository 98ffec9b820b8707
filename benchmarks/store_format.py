"""Plain Zarr or Icechunk, compressed or not, and how many maps a chunk: what the store is made of.

    python benchmarks/store_format.py [--maps 2920] [--windows 400]

Writes the same maps (41 × 105, 6 channels, float32, smooth fields with full mantissas, which is
the worst case for a compressor) block by block with one commit for every 8 blocks, then reads
windows of 12 maps in order and shuffled, 16 a batch, as `medicane.batches` does. Everything lies in
one temporary folder; the page cache is warm, so the figures are the cost of the format and not of
the disk. One line of JSON per layout.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from scipy.ndimage import gaussian_filter
from zarr.codecs import BloscCodec, ZstdCodec

SHAPE = (6, 41, 105)
LENGTH, BATCH, BLOCK, COMMIT = 12, 16, 96, 8


def smooth_maps(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    pool = gaussian_filter(rng.standard_normal((64, *SHAPE)), (1, 0, 3, 3)).astype(np.float32)
    weights = rng.standard_normal((n, 64)).astype(np.float32)
    return np.tensordot(weights, pool, axes=1)


def create(group: zarr.Group, *, chunk: int, compressors: Any) -> zarr.Array:
    return group.create_array(
        "maps",
        shape=(0, *SHAPE),
        chunks=(chunk, *SHAPE),
        dtype="float32",
        compressors=compressors,
        dimension_names=("time", "channel", "latitude", "longitude"),
    )


def write(maps: np.ndarray, array: zarr.Array, start: int) -> None:
    array.resize((start + len(maps), *SHAPE))
    array[start:] = maps


def write_plain(folder: Path, maps: np.ndarray, **layout: Any) -> None:
    array = create(zarr.open_group(folder, mode="w", zarr_format=3), **layout)
    for i, start in enumerate(range(0, len(maps), BLOCK)):
        write(maps[start : start + BLOCK], array, start)
        if i % COMMIT == COMMIT - 1:
            zarr.consolidate_metadata(folder)
    zarr.consolidate_metadata(folder)


def write_icechunk(folder: Path, maps: np.ndarray, **layout: Any) -> None:
    import icechunk

    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)))
    session = repo.writable_session("main")
    create(zarr.open_group(session.store, mode="a"), **layout)
    for i, start in enumerate(range(0, len(maps), BLOCK)):
        array = zarr.open_group(session.store)["maps"]
        assert isinstance(array, zarr.Array)
        write(maps[start : start + BLOCK], array, start)
        if i % COMMIT == COMMIT - 1:
            session.commit("block")
            session = repo.writable_session("main")
    if session.has_uncommitted_changes:
        session.commit("end")


def open_plain(folder: Path) -> xr.Dataset:
    return xr.open_zarr(folder, chunks=None)


def open_icechunk(folder: Path) -> xr.Dataset:
    import icechunk

    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder)))
    return xr.open_zarr(repo.readonly_session("main").store, chunks=None, consolidated=False)


def windows_per_second(ds: xr.Dataset, starts: np.ndarray) -> float:
    begun = time.perf_counter()
    total = 0.0
    for i in range(0, len(starts), BATCH):
        batch = np.stack(
            [ds["maps"][s : s + LENGTH].values for s in np.sort(starts[i : i + BATCH])]
        )
        total += float(np.ascontiguousarray(batch.transpose(0, 1, 3, 4, 2))[0, 0, 0, 0, 0])
    assert np.isfinite(total)
    return len(starts) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=2920)
    parser.add_argument("--windows", type=int, default=400)
    options = parser.parse_args()
    maps = smooth_maps(options.maps)
    rng = np.random.default_rng(1)
    starts = rng.integers(0, options.maps - LENGTH, options.windows)
    lz4 = BloscCodec(cname="lz4", clevel=3, shuffle="shuffle")
    zstd = ZstdCodec(level=1)
    layouts = [
        ("zarr", 24, "none", None),
        ("zarr", 12, "none", None),
        ("zarr", 8, "none", None),
        ("zarr", 24, "zstd-1", zstd),
        ("zarr", 24, "blosc-lz4", lz4),
        ("icechunk", 24, "none", None),
        ("icechunk", 24, "blosc-lz4", lz4),
    ]
    for kind, chunk, name, codec in layouts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            begun = time.perf_counter()
            writer = write_plain if kind == "zarr" else write_icechunk
            writer(path, maps, chunk=chunk, compressors=codec)
            wrote = time.perf_counter() - begun
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            begun = time.perf_counter()
            ds = open_plain(path) if kind == "zarr" else open_icechunk(path)
            opened = time.perf_counter() - begun
            assert np.array_equal(ds["maps"][-1].values, maps[-1])
            result = {
                "format": kind,
                "maps_a_chunk": chunk,
                "compressor": name,
                "write_maps_per_s": round(len(maps) / wrote),
                "megabytes": round(size / 1e6, 1),
                "open_ms": round(opened * 1e3, 1),
                "ordered_windows_per_s": round(windows_per_second(ds, np.sort(starts))),
                "shuffled_windows_per_s": round(windows_per_second(ds, starts)),
            }
            print(json.dumps(result))


if __name__ == "__main__":
    main()
