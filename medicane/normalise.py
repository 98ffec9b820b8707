"""Statistics of the *training* split, in one pass: what `keras.layers.Normalization` is given."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError
from medicane.packing import read_block

#: Blocks that are read and counted at the same time.
THREADS = 2
#: Rows of a grid counted at once: what the processor's cache holds.
ROWS = 128


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel over maps and cells.

    Attributes
    ----------
    channels
        Names, in the order of the arrays.
    mean, std
        (channel) float64, in the channel's units; the population standard deviation. A channel that
        never varies has 1, so that it normalises to 0 rather than to rounding errors.
    n_maps
        Maps counted.
    """

    channels: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    n_maps: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives the same statistics back, to the bit."""
        return {
            "channels": list(self.channels),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "n_maps": self.n_maps,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Statistics:
        """The inverse of `to_dict`."""
        return cls(
            tuple(values["channels"]),
            np.asarray(values["mean"], np.float64),
            np.asarray(values["std"], np.float64),
            int(values["n_maps"]),
        )


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations per channel: mergeable in any order."""

    n: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, maps: ArrayLike) -> Moments:
        """Moments of one block (map, latitude, longitude, channel)."""
        block = np.asarray(maps)
        *_, columns, channels = block.shape
        # Away from a value near the mean, sums of squares lose no digits.
        about = block[0].mean(axis=(0, 1), dtype=np.float64)
        rows, shift = block.reshape(-1, columns * channels), np.tile(about, columns)
        total, squares = np.zeros(shift.size), np.zeros(shift.size)
        n = block.size // channels
        with np.errstate(invalid="ignore"):  # infinite cells are found, and told, by the caller
            for start in range(0, len(rows), ROWS):
                away = rows[start : start + ROWS] - shift
                total += away.sum(axis=0)
                squares += np.einsum("ij,ij->j", away, away)
            total, squares = (x.reshape(columns, channels).sum(axis=0) for x in (total, squares))
            return cls(n, about + total / n, np.maximum(squares - total**2 / n, 0.0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both together (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        return Moments(
            n,
            self.mean + apart * (other.n / n),
            self.squares + other.squares + apart**2 * (self.n * other.n / n),
        )


def training_statistics(maps: xr.DataArray, mask: ArrayLike, *, block: int = 96) -> Statistics:
    """Mean and standard deviation of each channel over the maps of the training split.

    One pass over the store, `block` maps in memory at a time for each of `THREADS`.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), lazy.
    mask
        (time) bool, True for the maps of the training split and for no others.
    block
        Maps read at once, at most.

    Raises
    ------
    InputError
        If the mask has another length or holds no map, or a value is not finite; the message names
        the time and the channel.
    """
    inside = np.asarray(mask, bool)
    if inside.shape != (maps.sizes[names.TIME],):
        raise InputError(
            "mask",
            f"must have one value for each of {maps.sizes[names.TIME]} maps",
            found=inside.shape,
        )
    if not inside.any():
        raise InputError("mask", "the training split must hold at least one map")
    channels = tuple(str(name) for name in maps[names.CHANNEL].values)
    total: Moments | None = None
    parts = _runs(np.flatnonzero(inside), block)

    def moments(part: slice) -> Moments:
        return Moments.of(read_block(maps, part.start, part.stop))

    with ThreadPoolExecutor(THREADS) as pool:
        for part, found in zip(parts, pool.map(moments, parts), strict=True):
            if not np.isfinite(found.squares).all():
                raise _not_finite(maps, part, channels)
            total = found if total is None else total.merge(found)
    assert total is not None
    std = np.sqrt(total.squares / total.n)
    # A constant channel's deviations are rounding errors of its mean: far below float32.
    std[std <= 1e-7 * np.abs(total.mean)] = 1.0
    return Statistics(channels, total.mean, std, int(inside.sum()))


def _runs(held: NDArray[np.int64], block: int) -> list[slice]:
    """Cut ascending indices into contiguous slices of at most `block`."""
    breaks = np.flatnonzero(np.diff(held) != 1) + 1
    return [
        slice(int(start), int(min(start + block, run[-1] + 1)))
        for run in np.split(held, breaks)
        for start in range(int(run[0]), int(run[-1]) + 1, block)
    ]


def _not_finite(maps: xr.DataArray, part: slice, channels: Sequence[str]) -> InputError:
    whole = np.isfinite(read_block(maps, part.start, part.stop)).all(axis=(1, 2))
    bad = np.argwhere(~whole)[0]
    time = maps[names.TIME].values[part][bad[0]]
    return InputError(
        f"maps: channel {channels[bad[1]]}",
        "must be finite in the training split",
        found=f"missing or infinite cells at {str(time)[:16]}",
    )
