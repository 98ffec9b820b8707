"""A plain Zarr v3 group that grows along time, each step visible at once or not at all.

The root ``zarr.json`` carries consolidated metadata: the shape of every array, and the attributes.
``xr.open_zarr(path)`` reads that one file and nothing else of the metadata, so replacing it
atomically is the commit. Chunks written beyond the committed length are invisible; a writer that
is killed leaves at most such chunks, and the next one writes over them.

* A chunk that straddles the committed length is extended in place, its committed part untouched; a
  compressed one is replaced whole (as Zarr does, atomically).
* An array whose *old* values change is written under the other of the two chunk key encodings that
  Zarr knows (``c/0`` and ``c.0``), so that readers of the old metadata still find the old values
  until the metadata are replaced, and for as long as they keep the old metadata.

See ``docs/decisions/0001-map-store-is-plain-zarr.md`` for why, and for what was measured.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import zarr
from numpy.typing import NDArray

from medicane import names
from medicane.errors import InputError
from medicane.store.chunks import ChunkFiles

_ROOT = "zarr.json"


@dataclass(frozen=True)
class ArrayPlan:
    """One array of a new group.

    Attributes
    ----------
    dims
        Names of the dimensions; an array whose first is ``time`` grows.
    shape
        Without ``time``.
    dtype
        A numpy dtype, or ``str``.
    values
        All of it, for arrays that do not grow.
    chunk
        Times in a chunk, for arrays that do.
    compressed
        Whether chunks pass through zstd. If not, they are written and read without Zarr.
    fill
        What an uncompressed chunk holds beyond the end; by default 0, or NaN.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: NDArray[Any] | None = None
    chunk: int = 1
    compressed: bool = True
    fill: int | None = None

    @property
    def grows(self) -> bool:
        """Whether the array gets longer with time."""
        return self.dims[:1] == (names.TIME,)


def writable_folder(path: str | Path, *, where: object) -> Path:
    """The path of a folder that results can be written to; nothing is made yet.

    Parameters
    ----------
    path
        A folder, or one that can be made.
    where
        What the message calls it: the option or the key.

    Raises
    ------
    InputError
        If the path is a URI or a file, or if the folder (or the one that is there above it) cannot
        be written.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # of s3://a, Path makes s3:/a
        raise InputError(where, "must be a folder on this machine", found=path)
    path = Path(path)
    above = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not above.is_dir():
        raise InputError(where, "must be a folder", found=f"a file, {above}")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(
            where, "must be a folder that can be written", found=f"{above}: {error.strerror}"
        ) from None
    return path


@contextmanager
def sole_writer(path: Path, *, law: str = "one process at a time writes a store") -> Iterator[None]:
    """Hold the lock beside `path`; a killed process lets go of it by itself.

    Raises
    ------
    InputError
        If another process is writing there.
    """
    writable_folder(path.parent, where=path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(path, law, found=f"{lock.lock_file} is held") from None
    try:
        yield
    finally:
        lock.release()


class CommittedGroup:
    """Append to a group, then commit. Make one with `create` or `open`, under `sole_writer`.

    Attributes
    ----------
    path
        Final folder of the group; it exists from the first commit on.
    length
        Committed times.
    attributes
        Committed attributes.
    """

    def __init__(self, path: Path, root: dict[str, Any], folder: Path) -> None:
        self.path = path
        self._folder = folder
        self._metadata: dict[str, dict[str, Any]] = root["consolidated_metadata"]["metadata"]
        self.attributes: dict[str, Any] = root["attributes"]
        time = self._metadata[names.TIME]
        self.length = int(time["shape"][0])
        self._end = self.length
        self._foreseen: set[str] = set()

    @property
    def written(self) -> int:
        """Times written so far, committed or not."""
        return self._end

    @classmethod
    def open(
        cls, path: Path, *, accept: Callable[[CommittedGroup], None] | None = None
    ) -> CommittedGroup | None:
        """The group at `path`, or None if there is none; what a killed writer left is cleared.

        Parameters
        ----------
        accept
            Raises where the group is not the caller's to write, before anything in it is touched.
        """
        shutil.rmtree(_unborn(path), ignore_errors=True)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return None
        try:
            root = json.loads((path / _ROOT).read_text(encoding="utf-8"))
            group = cls(path, root, path)
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                path, "must be a map store, or not exist", found="something else of that name"
            ) from None
        if accept is not None:
            accept(group)
        for litter in path.rglob("*.partial"):
            litter.unlink()
        for name, committed in group._metadata.items():
            # Arrays have metadata of their own: a killed writer's may be ahead of the commit.
            if not _holds(path / name / _ROOT, committed):
                group._place(name)
        return group

    @classmethod
    def create(cls, path: Path, arrays: Mapping[str, ArrayPlan]) -> CommittedGroup:
        """A new group of length 0, hidden beside `path` until its first commit."""
        folder = _unborn(path)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        metadata: dict[str, Any] = {}
        for name, plan in arrays.items():
            metadata[name] = _array_metadata(plan)
        group = cls(path, _root_document({}, metadata), folder)
        for name, plan in arrays.items():
            group._place(name)
            if plan.values is not None and plan.values.size:
                group._through_zarr(name)[...] = plan.values
        return group

    def append(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the next maps of every growing array; nobody sees them yet.

        Parameters
        ----------
        values
            Name → (time, …), all equally long, one entry for each array that grows, but for those
            that were foreseen.
        """
        (count,) = {len(block) for block in values.values()}
        growing = {n for n, m in self._metadata.items() if m["dimension_names"][0] == names.TIME}
        if growing - self._foreseen != set(values):
            raise ValueError(f"{sorted(growing)} must grow together; found {sorted(values)}")
        start, self._end = self._end, self._end + count
        for name in growing:
            self._metadata[name]["shape"][0] = self._end
        for name, block in values.items():
            self._write(name, start, block)

    def foresee(self, name: str, values: NDArray[Any]) -> None:
        """Write a small array for all times that are yet to be appended; nobody sees them yet.

        For text, which passes through Zarr: what that costs a block is paid once.
        """
        metadata = self._metadata[name]
        metadata["shape"][0] = self._end + len(values)
        self._write(name, self._end, values)
        metadata["shape"][0] = self._end
        self._foreseen.add(name)

    def cut(self, length: int) -> None:
        """Forget the maps from `length` on; nobody sees it yet.

        What is appended after it is written in their place: who has opened the group before and
        goes on reading finds the new maps among the old ones.
        """
        self._end = length
        for name, metadata in self._metadata.items():
            if metadata["dimension_names"][0] == names.TIME:
                metadata["shape"][0] = length
                if not self._is_plain(name):
                    self._place(name)  # Zarr looks there

    def attributes_of(self, name: str) -> dict[str, Any]:
        """Attributes of an array, as written so far."""
        return dict(self._metadata[name]["attributes"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """An array as written so far, or a part of one that grows."""
        if stop is None and self._metadata[name]["dimension_names"][0] == names.TIME:
            stop = self._end
        if self._is_plain(name):
            return self._files(name).read(start, self._end if stop is None else stop)
        return np.asarray(self._through_zarr(name)[slice(start, stop) if start or stop else ...])

    def rewrite(self, name: str, values: NDArray[Any]) -> None:
        """Replace every value of a small array at the next commit; readers keep the old ones."""
        self._turn(name)
        self._write(name, 0, values)

    def convert(
        self,
        name: str,
        convert: Callable[[NDArray[Any]], NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Replace a large array by a function of it, a chunk at a time, as `rewrite` does.

        Parameters
        ----------
        name
            Of an uncompressed array that grows.
        convert
            Rows → rows.
        attributes
            Those of its attributes that change.
        """
        old = self._files(name)
        self._turn(name)
        new = self._files(name)
        self._metadata[name]["attributes"] |= attributes
        for start in range(0, self._end, old.chunk):
            stop = min(start + old.chunk, self._end)
            new.write(start, convert(old.read(start, stop)))

    def commit(self, attributes: Mapping[str, Any], *, more_follows: bool = False) -> None:
        """Make everything written so far visible, with these attributes, in one step.

        Parameters
        ----------
        attributes
            Of the group.
        more_follows
            Leave the metadata that arrays have of their own for the next commit: readers look at
            the root's, and writing them all takes longer than a block of maps does.
        """
        self.attributes = dict(attributes)
        for name in () if more_follows else self._metadata:
            self._place(name)
        document = _root_document(self.attributes, self._metadata)
        replace_json(self._folder / _ROOT, document, flush=True)
        if self._folder != self.path:
            # An empty folder of the final name gives way; anything else was refused by `open`.
            os.replace(self._folder, self.path)
            self._folder = self.path
        self.length = self._end

    def _place(self, name: str) -> None:
        (self._folder / name).mkdir(exist_ok=True)
        if not _holds(self._folder / name / _ROOT, self._metadata[name]):
            replace_json(self._folder / name / _ROOT, self._metadata[name])

    def _turn(self, name: str) -> None:
        """Change to the other chunk key encoding."""
        encoding = self._metadata[name]["chunk_key_encoding"]["configuration"]
        encoding["separator"] = "." if encoding["separator"] == "/" else "/"

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        if self._is_plain(name):
            self._files(name).write(start, values)
        else:
            self._place(name)
            self._through_zarr(name)[start:] = values

    def _is_plain(self, name: str) -> bool:
        metadata = self._metadata[name]
        return metadata["dimension_names"][0] == names.TIME and ChunkFiles.plain(metadata)

    def _files(self, name: str) -> ChunkFiles:
        return ChunkFiles(self._folder / name, self._metadata[name])

    def _through_zarr(self, name: str) -> Any:
        return zarr.open_array(self._folder / name, mode="r+", zarr_format=3)


def _unborn(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _array_metadata(plan: ArrayPlan) -> dict[str, Any]:
    """The ``zarr.json`` that zarr itself writes for such an array, of length 0 if it grows."""
    written: dict[str, Any] = {}
    lead = (0,) if plan.grows else ()
    chunks = ((plan.chunk,) if plan.grows else ()) + tuple(max(1, n) for n in plan.shape)
    floating = plan.dtype is not str and np.dtype(plan.dtype).kind == "f"
    fill = np.nan if floating else plan.fill
    zarr.create_array(
        zarr.storage.MemoryStore(store_dict=written),
        name="array",
        shape=lead + plan.shape,
        chunks=chunks,
        dtype=plan.dtype,
        compressors="auto" if plan.compressed else None,
        fill_value=fill,
        # Files in one folder, where there are many: a folder for each chunk is slow to make.
        chunk_key_encoding={"name": "default", "separator": "/" if plan.compressed else "."},
        attributes=dict(plan.attributes),
        dimension_names=plan.dims,
        zarr_format=3,
    )
    return dict(json.loads(written[f"array/{_ROOT}"].to_bytes()))


def _root_document(attributes: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attributes": dict(attributes),
        "zarr_format": 3,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(metadata),
        },
        "node_type": "group",
    }


def _holds(path: Path, document: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == document)
    except (OSError, ValueError):  # not there yet, or cut short by a power cut
        return False


def replace_json(
    path: Path, document: Mapping[str, Any], *, flush: bool = False, indent: int | None = None
) -> None:
    """Write JSON so that `path` holds either all of the old or all of the new."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        # `dump` is many times slower.
        file.write(json.dumps(document, sort_keys=indent is None, indent=indent))
        if flush:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
