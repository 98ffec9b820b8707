"""Chunk files: what is written without Zarr is what Zarr reads, and the other way round."""

from __future__ import annotations

import itertools
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.errors import InputError
from medicane.store.chunks import ChunkFiles


def create(folder: Path, *, separator: str = ".", length: int = 30, **options: object) -> Path:
    """An array of 30 rows of 2 × 3 numbers, five rows a chunk."""
    zarr.create_array(
        folder,
        shape=(length, 2, 3),
        chunks=options.pop("chunks", (5, 2, 3)),
        dtype="int16",
        compressors=options.pop("compressors", None),
        fill_value=-1,
        chunk_key_encoding={"name": "default", "separator": separator},
        zarr_format=3,
        overwrite=True,
        **options,
    )
    return folder


def metadata(folder: Path) -> dict:
    return json.loads((folder / "zarr.json").read_text())


def files(folder: Path) -> ChunkFiles:
    return ChunkFiles(folder, metadata(folder))


VALUES = np.arange(180, dtype=np.int16).reshape(30, 2, 3)


@pytest.mark.parametrize("separator", [".", "/"])
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 29), max_size=6), reads=st.lists(st.integers(0, 30), min_size=2)
)
def test_whatever_the_steps_zarr_and_we_read_the_same(tmp_path_factory, separator, cuts, reads):
    folder = create(tmp_path_factory.mktemp("a") / "array", separator=separator)
    edges = sorted({0, *cuts, 30})
    for start, stop in itertools.pairwise(edges):
        files(folder).write(start, VALUES[start:stop])
        # What was written before is still there, and the rest of the chunk is no one's yet.
        np.testing.assert_array_equal(files(folder).read(0, stop), VALUES[:stop])
    np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[...], VALUES)
    for start, stop in itertools.pairwise(reads):
        found = files(folder).read(*sorted((start, stop)))
        np.testing.assert_array_equal(found, VALUES[slice(*sorted((start, stop)))])


@pytest.mark.parametrize("separator", [".", "/"])
def test_what_zarr_wrote_is_read(tmp_path, separator):
    folder = create(tmp_path / "array", separator=separator)
    zarr.open_array(folder, mode="r+")[...] = VALUES
    np.testing.assert_array_equal(files(folder).read(3, 28), VALUES[3:28])
    assert files(folder).read(7, 7).shape == (0, 2, 3)


def test_rows_go_into_the_file_where_zarr_looks_and_no_other_byte_changes(tmp_path):
    folder = create(tmp_path / "array")
    files(folder).write(0, VALUES[:7])
    chunk = folder / "c.1.0.0"
    before = chunk.read_bytes()
    assert len(before) == 5 * 6 * 2
    files(folder).write(7, VALUES[7:8].astype(np.int64))  # of another type, as numpy makes them
    after = chunk.read_bytes()
    assert (after[:24], after[36:]) == (before[:24], before[36:])
    assert np.frombuffer(after, "<i2")[12:18].tolist() == VALUES[7].ravel().tolist()


@pytest.mark.parametrize("left", [None, 0, 30])
def test_a_chunk_that_is_not_whole_is_named(tmp_path, left):
    folder = create(tmp_path / "array")
    files(folder).write(0, VALUES)
    chunk = folder / "c.2.0.0"
    chunk.unlink() if left is None else chunk.write_bytes(chunk.read_bytes()[:left])
    np.testing.assert_array_equal(files(folder).read(0, 10), VALUES[:10])
    with pytest.raises(
        InputError, match=rf"c\.2\.0\.0: .* must be whole; .* found {left or 0} of 60"
    ):
        files(folder).read(8, 20)


@pytest.mark.parametrize(
    "options", [{}, {"compressors": "auto"}, {"chunks": (5, 1, 3)}, {"shards": (10, 2, 3)}]
)
def test_only_what_zarr_leaves_as_it_is_is_plain(tmp_path, options):
    folder = create(tmp_path / "array", **options)
    assert ChunkFiles.plain(metadata(folder)) == (not options)
    # And as zarr itself tells of an opened array.
    assert ChunkFiles.plain(zarr.open_array(folder).metadata.to_dict()) == (not options)


def test_a_file_that_takes_only_a_part_is_an_error(tmp_path: Path) -> None:
    """As a disk that is about to be full: the first bytes go in, and no error tells of the rest."""
    rows = np.arange(30, dtype="int16").reshape(5, 2, 3)
    chunks = files(create(tmp_path / "array"))
    chunks.write(0, rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            chunks.write(0, rows + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    chunks.write(0, rows + 1)
    np.testing.assert_array_equal(chunks.read(0, 5), rows + 1)
