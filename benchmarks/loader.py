"""Shuffled windows from disk for training, against windows cut from the same packed NetCDF.

    python -m benchmarks.loader [--small]

One record of hourly maps is written as packed NetCDF (int16, deflated, a map a chunk, which suits
windows best) and prepared as ever. Ours is an epoch of `SequenceBatches` on the store, which is
larger than the memory allowed, in blocks, as training takes it: each map once for all windows that
it stands in. The same epoch window by window, each copied on its own, stands beside it, and so do
maps in memory, where nothing is read. The others take fewer windows, and rates are compared. Files
of both sides were just written, and may well be in the memory of the system.

The last rows are the memory of it, and what training waits for it: an epoch of `fit` from the disk
against one of the same batches in memory; and both with maps that stay packed until the network
has them (``train.decode: device``), which on a processor saves the loader's work and no transfer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import xarray as xr
import xbatcher
from scipy.ndimage import gaussian_filter

from benchmarks.claims import Claim, main, resident_mb, side_by_side
from medicane import model as detector
from medicane.batches import SequenceBatches
from medicane.config import make_config
from medicane.normalise import Statistics
from medicane.sequences import windows
from medicane.store import open_store, write_store
from medicane.train.fused import fuse

CHANNELS = {"msl": ("Pa", 101_300, 900), "u10": ("m s-1", 2, 5), "v10": ("m s-1", -1, 5)} | {
    "t2m": ("K", 290, 4),
    "sst": ("K", 293, 2),
}
LENGTH, BATCH, BLOCK = 12, 16, 32
DIMENSIONS = ("time", "latitude", "longitude")


def measure(small: bool) -> Iterator[Claim]:
    """Shuffled windows of twelve maps a second, channels last in float32, and the memory of it."""
    n, degrees = (200, 1.0) if small else (1_460, 0.25)
    with tempfile.TemporaryDirectory() as folder:
        grids, store = Path(folder) / "era5.nc", Path(folder) / "maps.zarr"
        write_grids(grids, n, degrees)
        prepare(grids, store, degrees)
        ds = open_store(store, packed=True)
        maps = ds["maps"]
        map_bytes = 4 * maps.size // n
        # A third of the record may be in memory; where it is long, no more than by default.
        held = min(300_000_000, n * map_bytes // 3)
        blocks, alone = (Epochs(maps, memory=held, block=block) for block in (BLOCK, 1))
        several = 32 if small else 64
        about = f"{n} hourly maps of {maps.shape[2]} x {maps.shape[3]} cells, {len(CHANNELS)} "
        about += f"channels; {several} windows of the other side, on one core; ours reads ahead in "
        about += "threads; the files of both may be in the memory of the system"
        rounds = 1 if small else 3
        blocks(), alone()  # every epoch but the first finds its memory there
        with xr.open_dataset(grids) as packed:
            sliced(packed, BATCH)()
            yield side_by_side(
                blocks,
                sliced(packed, several),
                claim=f"shuffled windows from disk, in blocks of {BLOCK}",
                against="xarray isel on packed NetCDF, shuffled",
                unit="windows/s",
                target=80,
                rounds=rounds,
                note=about,
            )
            for epoch, target, how in (
                (blocks, 40, f"in blocks of {BLOCK}"),
                (alone, None, "each copied on its own"),
            ):
                yield side_by_side(
                    epoch,
                    batched(packed, several),
                    claim=f"shuffled windows from disk, {how}",
                    against="xbatcher on packed NetCDF, in order (it does not shuffle)",
                    unit="windows/s",
                    target=target,
                    rounds=rounds,
                    note=about,
                )
            packed_maps = Epochs(ds["packed"], memory=held, block=BLOCK)
            packed_maps()
            yield side_by_side(
                packed_maps,
                blocks,
                claim=f"shuffled windows from disk, in blocks of {BLOCK}, left packed",
                against="the same, unpacked on the host",
                unit="windows/s",
                rounds=rounds,
                note=f"{about}; as much memory for either",
            )
            # As one array, channels last already: the best that either can have.
            loaded = packed.load().to_array("channel").transpose(*DIMENSIONS, "channel")
        kept = Epochs(maps, memory=10**10, block=1)
        kept()  # reads them
        for against, other in (
            ("xarray isel, shuffled, in memory too", sliced(loaded, n)),
            ("xbatcher, in order, in memory too", batched(loaded, several)),
        ):
            yield side_by_side(
                kept,
                other,
                claim="the same windows of maps in memory, each copied on its own",
                against=against,
                unit="windows/s",
                rounds=rounds,
                note="nothing is read or inflated: what is left of the ratio is no matter of disks",
            )
        yield from waiting(ds, small)
    yield memory(small)


def write_grids(file: Path, n: int, degrees: float) -> None:
    """Hourly maps of the Mediterranean, as the Climate Data Store used to pack them."""
    rng = np.random.default_rng(0)
    shape = (round(20 / degrees) + 1, round(52 / degrees) + 1)
    smooth = gaussian_filter(rng.standard_normal((64, *shape)), (1, 3 / degrees, 3 / degrees))
    smooth /= smooth.std()
    variables, encoding = {}, {}
    for name, (units, mean, deviation) in CHANNELS.items():
        weights = rng.standard_normal((n, 64)) / 8
        values = mean + deviation * np.tensordot(weights, smooth, axes=1)
        variables[name] = (DIMENSIONS, values.astype(np.float32), {"units": units})
        encoding[name] = {
            "dtype": "int16",
            "scale_factor": 20 * deviation / 65_000,
            "add_offset": float(mean),
            "_FillValue": -32_767,
            "zlib": True,
            "complevel": 1,
            "chunksizes": (1, *shape),
        }
    coordinates = {
        "time": np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(1, "h"),
        "latitude": 48 - np.arange(shape[0]) * degrees,
        "longitude": np.arange(shape[1]) * degrees - 10,
    }
    xr.Dataset(variables, coordinates).to_netcdf(file, encoding=encoding)


def prepare(grids: Path, store: Path, degrees: float) -> None:
    """Write the map store, as `medicane prepare` does."""
    data = {"grids": str(grids), "store": str(store), "step_hours": 1, "degrees": degrees}
    data |= {"catalogue": None, "channels": list(CHANNELS)}
    write_store(make_config({"schema_version": 1, "data": data}))


class Epochs:
    """All windows of a record, shuffled; a new epoch at each call."""

    def __init__(self, maps: xr.DataArray, *, memory: int, block: int) -> None:
        n = maps.sizes["time"]
        rows = windows(np.arange(n).astype("datetime64[h]"), length=LENGTH, step_hours=1)
        labels = np.zeros(n, int)
        self.batches = SequenceBatches(
            maps, rows, labels=labels, batch_size=BATCH, memory=memory, block=block
        )

    def __call__(self) -> int:
        self.batches.on_epoch_begin()
        for i in range(len(self.batches)):
            _ = self.batches[i]
        self.batches.on_epoch_end()
        return self.batches.n_windows


def sliced(ds: xr.Dataset | xr.DataArray, n: int) -> Callable[[], int]:
    """Shuffled windows by `isel`, put together as a network takes them."""
    starts = np.random.default_rng(1).permutation(ds.sizes["time"] - LENGTH + 1)[:n]

    def work() -> int:
        for first in range(0, len(starts), BATCH):
            together(
                [
                    ds.isel(time=slice(start, start + LENGTH))
                    for start in starts[first : first + BATCH]
                ]
            )
        return len(starts)

    return work


def batched(ds: xr.Dataset | xr.DataArray, n: int) -> Callable[[], int]:
    """Windows by xbatcher's generator, put together as a network takes them."""

    def work() -> int:
        sizes = {str(name): size for name, size in ds.sizes.items()}
        generator = xbatcher.BatchGenerator(
            ds, {**sizes, "time": LENGTH}, {"time": LENGTH - 1}, preload_batch=False
        )
        found: list[xr.Dataset | xr.DataArray] = []
        count = 0
        for window, _ in zip(generator, range(n), strict=False):
            found.append(window)
            if len(found) == BATCH:
                together(found)
                found = []
            count += 1
        return count

    return work


def together(batch: list[xr.Dataset | xr.DataArray]) -> np.ndarray:
    """(window, map, latitude, longitude, channel) float32."""
    arrays = [
        window.to_array("channel") if isinstance(window, xr.Dataset) else window for window in batch
    ]
    values = [array.transpose(*DIMENSIONS, "channel").values for array in arrays]
    return np.stack(values).astype(np.float32, copy=False)


# --- training -------------------------------------------------------------------------------------


def waiting(ds: xr.Dataset, small: bool) -> Iterator[Claim]:
    """An epoch of training in blocks, from the disk against from memory; and on packed maps."""
    ds = ds.isel(time=slice(0, 120 if small else 4 * (4 * BLOCK + LENGTH)))
    size = ds["maps"].size
    record = Epochs(ds["maps"], memory=2 * size, block=BLOCK).batches  # half of it in float32
    packed = Epochs(ds["packed"], memory=size, block=BLOCK).batches  # and half of it in int16
    kept = Kept([record[i] for i in range(len(record))])
    n = len(CHANNELS)
    means, deviations = (np.array([about[k] for about in CHANNELS.values()]) for k in (1, 2))
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "sequences": {"length": LENGTH},
            "model": {"attention": "none", "blocks": [1, 1] if small else [3, 6, 12]},
        }
    )
    one = detector.build_detector(config, Statistics(tuple(CHANNELS), means, deviations, n))
    model = detector.sliding(one, length=LENGTH)
    unpacking = detector.reading_packed(
        model, scale=ds["scale_factor"].values, offset=ds["add_offset"].values
    )
    for network in (model, unpacking):
        detector.compile_detector(network, config.train, steps=1000)
        fuse(network)  # as `train` does

    def epoch(network: keras.Model, batches: keras.utils.PyDataset) -> Callable[[], int]:
        def fit() -> int:
            network.fit(batches, epochs=1, shuffle=False, verbose=0)
            return record.n_windows

        return fit

    from_disk, unpacked_last = epoch(model, record), epoch(unpacking, packed)
    for first in (epoch(model, kept), unpacked_last):  # tracing
        first()
    yield side_by_side(
        from_disk,
        epoch(model, kept),
        claim=f"an epoch of training, from disk in blocks of {BLOCK}",
        against="the same batches, all in memory",
        unit="windows/s",
        target=0.95,
        rounds=1 if small else 3,
        note=f"{len(record)} steps of the compact encoder; what is short of 1 is waiting, and what "
        "reading takes from the processor",
    )
    yield side_by_side(
        unpacked_last,
        from_disk,
        claim="an epoch of training, maps unpacked by the network",
        against="unpacked on the host",
        unit="windows/s",
        rounds=1 if small else 3,
        note="the same steps and weights; both on the processor, so that no transfer is saved",
    )


class Kept(keras.utils.PyDataset):
    """Batches in memory."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


# --- memory ---------------------------------------------------------------------------------------


def memory(small: bool) -> Claim:
    """Resident memory of the loader on a record far larger than it, in a process of its own."""
    n = 2_000 if small else 100_000
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "peak", str(n)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = (float(value) for value in done.stdout.split()[-2:])
    return Claim(
        claim=f"memory of the loader on {n:,} hourly maps, shuffled",
        against="the same process before it",
        unit="MB",
        ours=after - before,
        target=500,
        note="81 x 209 cells, 6 channels; maps are made as they are read; the first "
        f"{BATCHES_READ} batches, by when memory is full",
    )


BATCHES_READ = 150


def peak(n: int) -> None:
    """Print the peak resident memory before and after batches were drawn, MB."""
    Epochs(lazy_record(200), memory=10**6, block=1)()  # what is imported at first use
    before = resident_mb()
    batches = Epochs(lazy_record(n), memory=300_000_000, block=1).batches
    for i in range(min(BATCHES_READ, len(batches))):
        _ = batches[i]
    print(before, resident_mb())


def lazy_record(n: int) -> xr.DataArray:
    """Maps of their own number, made when they are read."""

    class Made(xr.backends.common.BackendArray):
        shape, dtype = (n, 6, 81, 209), np.dtype(np.float32)

        def __getitem__(self, key: Any) -> Any:
            return xr.core.indexing.explicit_indexing_adapter(
                key, self.shape, xr.core.indexing.IndexingSupport.BASIC, self.read
            )

        def read(self, key: Any) -> np.ndarray:
            number = np.arange(*key[0].indices(n), dtype=np.float32)
            return np.broadcast_to(number[:, None, None, None], (number.size, *self.shape[1:]))

    lazy = xr.core.indexing.LazilyIndexedArray(Made())
    return xr.DataArray(xr.Variable(("time", "channel", "latitude", "longitude"), lazy))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(int(sys.argv[2]))
    else:
        main(measure)
