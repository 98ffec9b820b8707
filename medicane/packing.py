"""Maps as 16-bit integers on disk, and in memory as the detector takes them: channels last."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from medicane import names

#: Dimensions of what `read_block` gives.
CHANNELS_LAST = (names.TIME, names.LATITUDE, names.LONGITUDE, names.CHANNEL)

#: Integers used are ± this: symmetrical, and −32768 is left over.
LARGEST = 32_767
#: What −32768 means; no map holds it, for maps are whole.
MISSING = -32_768
#: A packing reaches at least this many times as far as the values that it was fitted to.
MARGIN = 8
#: Offsets are multiples of this many steps, so that samples of one record mostly agree on one.
COARSE = 4_096

#: Maps unpacked together.
FEW = 4
#: Bytes of an array whose memory is used again: less is not worth it, more is too much to keep.
WORTH_KEEPING = (2**20, 2**27)
#: Pieces of memory that are kept while nobody uses them, at most.
SPARE = 4
#: Arrays begin at multiples of so many bytes: TensorFlow then takes them over without a copy.
ALIGNED = 64


@dataclass(frozen=True)
class Packing:
    """Value = integer · scale + offset, as CF has it.

    The scale is a power of two (as in GRIB) and the offset a multiple of it, so that unpacking is
    exact in float32: every reader finds the same value, to the bit.

    Attributes
    ----------
    scale, offset
        In the units of the channel.
    error
        Largest difference between a value and what is unpacked of it: half the scale, and up to
        one scale after maps were packed anew, with a wider reach.
    """

    scale: float
    offset: float
    error: float

    @classmethod
    def fit(cls, least: float, most: float, *, about: float) -> Packing:
        """A packing that reaches `MARGIN` to twice `MARGIN` times as far as these values.

        Never finer than float32 itself; so a channel of one value is packed to its last bit or
        the one before.

        Parameters
        ----------
        least, most
            Of some of the values.
        about
            Their mean: the offset is near it.
        """
        largest = max(abs(least), abs(most), abs(about))
        far = max(most - about, about - least)
        # 2^exponent > |value| needs 24 bits of that size, one of them for the integer's own reach.
        exponent = math.frexp(largest)[1] - 23
        if far > 0:
            fraction, wanted = math.frexp(MARGIN * far / LARGEST)
            exponent = max(exponent, wanted - (fraction == 0.5))
        scale = math.ldexp(1.0, exponent)
        return cls(scale, round(about / scale / COARSE) * COARSE * scale, scale / 2)

    def holds(self, least: float, most: float) -> bool:
        """Whether values from `least` to `most` can be packed."""
        reach = LARGEST * self.scale
        return self.offset - reach <= least and most <= self.offset + reach

    def widened(self, least: float, most: float) -> Packing:
        """A packing for these values and for all that this one holds, with the error of both."""
        wide = Packing.fit(least, most, about=self.offset)
        return Packing(wide.scale, wide.offset, self.error + wide.error)

    def pack(self, values: NDArray[np.floating]) -> NDArray[np.int16]:
        """The nearest integers to values that it `holds`, any shape."""
        found = np.empty(np.shape(values), np.int16)
        rows, out = np.atleast_1d(values), np.atleast_1d(found)  # views
        steps = np.empty(rows[:1].shape)
        for i in range(len(rows)):  # a map at a time: it stays in the processor's cache
            np.subtract(rows[i : i + 1], self.offset, out=steps, dtype=np.float64)
            steps *= 1 / self.scale
            out[i : i + 1] = np.rint(steps, out=steps)
        return found

    def unpack(self, packed: NDArray[np.int16]) -> NDArray[np.float32]:
        """The values, any shape."""
        values = np.multiply(packed, np.float32(self.scale), dtype=np.float32)
        return np.add(values, np.float32(self.offset), out=values)


def place_channels_last(
    channels: Sequence[NDArray[np.int16]],
    out: NDArray[np.int16],
) -> None:
    """Put maps of several channels, as they are packed, into one array, a few maps at a time.

    Parameters
    ----------
    channels
        (map, latitude, longitude) of each.
    out
        (map, latitude, longitude, channel): where the integers go.
    """
    for start in range(0, len(out), FEW):
        part = slice(start, start + FEW)
        for i, channel in enumerate(channels):
            out[part, ..., i] = channel[part]


def unpack_channels_last(
    channels: Sequence[NDArray[np.int16]],
    packings: Sequence[Packing],
    out: NDArray[np.float32],
) -> None:
    """Unpack maps of several channels into one array, a few maps at a time.

    The integers are put in their places first, which are half as many bytes to move about, and
    what is done to them stays in the processor's cache.

    Parameters
    ----------
    channels
        (map, latitude, longitude) of each.
    packings
        Of each.
    out
        (map, latitude, longitude, channel), contiguous: where the values go.
    """
    n, *cells, _ = out.shape
    if not channels:
        return
    scale, offset = (
        np.tile(np.array(values, np.float32), math.prod(cells))
        for values in zip(*((packing.scale, packing.offset) for packing in packings), strict=True)
    )
    placed = np.empty((FEW, *out.shape[1:]), np.int16)
    for start in range(0, n, FEW):
        part = slice(start, min(start + FEW, n))
        integers = placed[: part.stop - start]
        place_channels_last([channel[part] for channel in channels], integers)
        values = out[part].reshape(len(integers), -1)
        values[:] = integers.reshape(values.shape)
        np.multiply(values, scale, out=values)
        np.add(values, offset, out=values)


class Reused:
    """Memory for maps, given out again once no array refers to it any more.

    Tens of megabytes fresh from the system cost several times what filling them costs, for it
    finds and clears them page by page. Who reads or hands out maps again and again keeps theirs.
    """

    def __init__(self) -> None:
        # Only what is done in one step without a lock: an array may be let go anywhere, even here.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=SPARE)

    def __reduce__(self) -> tuple[Any, ...]:
        return Reused, ()  # memory stays where it is

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array of any values; it and what is cut from it may be kept as long as one likes."""
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if not WORTH_KEEPING[0] <= size <= WORTH_KEEPING[1]:
            return np.empty(shape, dtype)
        piece = self._piece(size + ALIGNED)
        begin = -piece.ctypes.data % ALIGNED
        # Views of this array refer to it and not to the piece, since what it was made of is no
        # array. So it lives as long as the last of them.
        flat = np.frombuffer(piece.data[begin : begin + size], dtype)
        weakref.finalize(flat, self._free.append, piece).atexit = False
        return flat.reshape(shape)

    def _piece(self, size: int) -> NDArray[np.uint8]:
        with contextlib.suppress(IndexError):  # another thread took the last one
            for _ in range(len(self._free)):
                piece = self._free.popleft()
                if size <= piece.size <= 1.25 * size:
                    return piece
                self._free.append(piece)
        return np.empty(size, np.uint8)


def read_block(
    maps: xr.DataArray, start: int, stop: int, *, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Read maps `start` to `stop` (without it), channels last.

    Read first, transposed then: a lazy array that is transposed first is read cell by cell. Maps
    of the store come channels last as they are, and nothing is copied.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude) in any order, lazy or not.
    start, stop
        Positions along time, 0 ≤ start ≤ stop ≤ number of maps.
    dtype
        Of the values: int16 for maps that stay packed.

    Returns
    -------
    NDArray
        (stop − start, latitude, longitude, channel) of `dtype`, contiguous; it may be the memory of
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
    return np.ascontiguousarray(values.transpose(order), dtype)
