"""Maps in memory as the detector takes them, whatever they come from."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from medicane import names

#: Dimensions of what `read_block` gives.
CHANNELS_LAST = (names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)


def read_block(maps: xr.DataArray, start: int, stop: int) -> NDArray[np.float32]:
    """Read maps `start` to `stop` (without it), channels last.

    Read first, transposed then: a lazy array that is transposed first is read cell by cell, and one
    indexed by an array of indices is read piece by piece.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude) in any order, lazy or not.
    start, stop
        Positions along time, 0 ≤ start ≤ stop ≤ number of maps.

    Returns
    -------
    NDArray
        (stop − start, latitude, longitude, channel) float32, contiguous; it may be the memory of
        `maps` itself, so do not write into it.

    Raises
    ------
    IndexError
        If there are no such maps.
    """
    if not 0 <= start <= stop <= maps.sizes[names.TIME]:
        raise IndexError(f"maps {start} to {stop} of {maps.sizes[names.TIME]}")
    # The variable alone: its coordinates need not be cut at each read.
    values = maps.variable.isel({names.TIME: slice(start, stop)}).values
    order = [maps.dims.index(name) for name in CHANNELS_LAST]
    return np.ascontiguousarray(values.transpose(order), np.float32)
