"""What detection costs against the number of maps and of grid cells, and the memory it takes.

    python -m benchmarks.scaling [--small]

Lazy maps of 1,000 to 100,000 times are labelled from one end to the other: each is encoded once,
whatever the length of the record. Reading is a copy from memory; what disk and file formats add is
measured in `benchmarks.detection`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.claims import Claim, Curve, cores, main, resident_mb
from benchmarks.peak import CHANNELS, on_openvino, operations
from medicane import model as detector
from medicane import names
from medicane.config import make_config
from medicane.normalise import Statistics
from medicane.predict import predict

#: Maps of a chunk; all chunks of a series are the same values, so that any length costs no memory.
CHUNK = 96


def series(n: int, shape: tuple[int, int]) -> xr.DataArray:
    """A lazy series of maps (time, channel, latitude, longitude), hourly."""
    import dask.array as da

    rng = np.random.default_rng(0)
    chunk = rng.normal(size=(CHUNK, len(CHANNELS), *shape)).astype(np.float32)
    parts = [da.from_array(chunk, chunks=chunk.shape)] * -(-n // CHUNK)
    return xr.DataArray(
        da.concatenate(parts)[:n],
        dims=(names.TIME, names.CHANNEL, names.LATITUDE, names.LONGITUDE),
        coords={
            names.TIME: np.datetime64("1940-01-01", "ns") + np.arange(n) * np.timedelta64(1, "h"),
            names.CHANNEL: list(CHANNELS),
        },
    )


def default_detector(*, small: bool) -> tuple[Any, Any]:
    """The default detector, untrained, and what runs its encoder."""
    size = {"blocks": [1, 1], "growth_rate": 4} if small else {}
    config = make_config(
        {"schema_version": 1, "data": {"grids": "none.nc", "channels": list(CHANNELS)}}
        | ({"model": size} if small else {})
    )
    facts = {"length": config.sequences.length, "step_hours": 1, "smallest_grid": 8}
    statistics = Statistics(CHANNELS, np.zeros(len(CHANNELS)), np.ones(len(CHANNELS)), 9)
    model = detector.build_detector(config, statistics, facts=facts)
    return model, on_openvino(model)


def seconds_for(model: Any, encode: Any, maps: xr.DataArray) -> float:
    begun = time.perf_counter()
    found = predict(model, maps, encode=encode)
    assert int(found["n_sequences"].min()) == 1
    return time.perf_counter() - begun


def measure(small: bool) -> Iterator[Claim | Curve]:
    """Seconds against maps and cells, and the memory of the longest series."""
    shape = (16, 24) if small else (80, 160)
    lengths = [96, 192] if small else [1000, 3000, 10_000, 30_000, 100_000]
    model, encode = default_detector(small=small)
    seconds_for(model, encode, series(2 * CHUNK, shape))
    before = resident_mb("VmRSS")
    points = [(float(n), seconds_for(model, encode, series(n, shape))) for n in lengths]
    gflop = operations(detector.encoder_of(model), shape) / 1e9
    claim = f"labelling, {shape[0]} x {shape[1]} cells"
    yield Curve(claim, "maps", points, cores(), gflop)
    yield Claim(
        claim=f"memory to label {lengths[-1]:,} maps, above that of the model",
        against="–",
        unit="MB",
        ours=resident_mb() - before,
        target=500,
        note="the greatest resident set while labelling, less the resident set before",
    )
    shapes = [(16, 24), (24, 32)] if small else [(41, 105), (80, 160), (120, 240), (160, 320)]
    n = 2 * CHUNK if small else 10 * CHUNK
    points = []
    for rows, columns in shapes:
        maps = series(n, (rows, columns))
        seconds_for(model, encode, maps.isel({names.TIME: slice(0, CHUNK)}))
        points.append((float(rows * columns), seconds_for(model, encode, maps)))
    yield Curve(f"labelling {n} maps", "cells", points, cores())


if __name__ == "__main__":
    main(measure)
