"""Chunk files of an uncompressed Zarr v3 array on this machine, read and written in part.

Zarr's own reading and writing of a chunk costs about a millisecond, many times what moving its
bytes does. An uncompressed chunk is a file of numbers in C order, and no more is used here. Every
other tool reads the same files through Zarr.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medicane.errors import InputError


class ChunkFiles:
    """The chunks of one array whose chunks are cut along the first dimension only.

    Parameters
    ----------
    folder
        Of the array.
    metadata
        What its ``zarr.json`` holds; of a `plain` array.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        self._folder = folder
        self.chunk, *shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.shape = tuple(shape)
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        self._separator = metadata["chunk_key_encoding"]["configuration"]["separator"]
        self._row = int(np.prod(shape)) * self.dtype.itemsize

    @staticmethod
    def plain(metadata: Mapping[str, Any]) -> bool:
        """Whether an array's chunks are plain numbers, low byte first, whole but for time."""
        grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = [
            (codec["name"], codec.get("configuration", {}).get("endian"))
            for codec in metadata["codecs"]
        ]
        return (
            codecs == [("bytes", "little")]
            and metadata["chunk_key_encoding"]["name"] == "default"
            and list(grid[1:]) == list(metadata["shape"][1:])
        )

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, shape (stop − start, …).

        Raises
        ------
        InputError
            If a chunk is missing or cut short.
        """
        out = np.empty((stop - start, *self.shape), self.dtype)
        for path, first, last, offset in self._parts(start, stop):
            wanted = out[first:last]
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                found = 0
            else:
                try:
                    found = os.preadv(file, [wanted.data], offset)
                finally:
                    os.close(file)
            if found != wanted.nbytes:
                raise InputError(
                    path,
                    "the chunk of the store must be whole; remove the store and prepare it anew",
                    found=f"{found} of {wanted.nbytes} bytes",
                )
        return out

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Rows from `start` on. No byte of the rows before is touched, so they may be read."""
        values = np.ascontiguousarray(values, self.dtype)
        for path, first, last, offset in self._parts(start, start + len(values)):
            if self._separator == "/":
                path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _write_whole(file, values[first:last], offset)
                if os.fstat(file).st_size < self.chunk * self._row:  # Zarr wants it whole
                    os.ftruncate(file, self.chunk * self._row)
            finally:
                os.close(file)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Path, int, int, int]]:
        """File, first and last (without it) of the rows asked for, and where the file has them."""
        for chunk in range(start // self.chunk, -(-stop // self.chunk)):
            begin = chunk * self.chunk
            first, last = max(start, begin), min(stop, begin + self.chunk)
            key = self._separator.join(["c", str(chunk), *("0" for _ in self.shape)])
            yield self._folder / key, first - start, last - start, (first - begin) * self._row


def _write_whole(file: int, values: NDArray[Any], offset: int) -> None:
    """Write all bytes, or raise: a disk that is about to be full takes some of them in silence."""
    left = values.data.cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
