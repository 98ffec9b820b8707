"""Statistics of the *training* split, in one pass: what `keras.layers.Normalization` is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError


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
        """Moments of one block (map, channel, latitude, longitude)."""
        block = np.asarray(maps)
        cells = (0, 2, 3)
        mean = block.mean(axis=cells, dtype=np.float64)
        # Channel by channel: one double copy of a sixth of the block, not of the block.
        with np.errstate(invalid="ignore"):  # infinite cells are found, and told, by the caller
            squares = np.array(
                [np.square(block[:, i] - mean[i], dtype=np.float64).sum() for i in range(mean.size)]
            )
        return cls(block.size // mean.size, mean, squares)

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

    One pass over the store, `block` maps in memory at a time.

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
    maps = maps.transpose(names.TIME, names.CHANNEL, names.LATITUDE, names.LONGITUDE)
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
    for part in _runs(np.flatnonzero(inside), block):
        values = maps[part].values
        found = Moments.of(values)
        if not np.isfinite(found.squares).all():
            raise _not_finite(values, maps, part, channels)
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


def _not_finite(
    values: NDArray[Any], maps: xr.DataArray, part: slice, channels: Sequence[str]
) -> InputError:
    bad = np.argwhere(~np.isfinite(values).all(axis=(2, 3)))[0]
    time = maps[names.TIME].values[part][bad[0]]
    return InputError(
        f"maps: channel {channels[bad[1]]}",
        "must be finite in the training split",
        found=f"missing or infinite cells at {str(time)[:16]}",
    )
