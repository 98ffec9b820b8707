"""Where detections are kept: a folder of this machine, or a place on an object store.

A folder holds ``detections.nc``; an object store ``detections.zarr``, because objects are only ever
put whole and a NetCDF file would be fetched whole for each look at it. Beside either are
``events.csv`` and ``tracks.csv``.

On the store a commit is one object replaced, as in `medicane.store.commits`: the root document,
whose consolidated metadata say under which of the two chunk key encodings of Zarr (``c/0`` and
``c.0``) the values are. A write puts its values under the other one, and the document last. Whoever
is reading goes on with the values that were there; a writer that is killed has changed nothing.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import zarr

from medicane import detections as series
from medicane import names
from medicane.errors import InputError, redacted
from medicane.remote import Remote, is_remote
from medicane.store.commits import writable_folder

_ROOT = "zarr.json"


class Folder:
    """A folder of this machine, made when something is written.

    Raises
    ------
    InputError
        If it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = writable_folder(path, where="--out")

    @property
    def detections(self) -> str:
        """Where the detections are."""
        return str(self._path / "detections.nc")

    @property
    def events(self) -> str:
        """Where the events are."""
        return str(self._path / "events.csv")

    def digest(self) -> str | None:
        """See `medicane.detections.detections_digest`."""
        return series.detections_digest(self._path)

    def read(self) -> tuple[xr.Dataset, xr.DataArray | None]:
        """See `medicane.detections.read_detections`."""
        return series.read_detections(Path(self.detections))

    def write(
        self, detections: xr.Dataset, *, step_hours: int, history: xr.DataArray, replaces: str
    ) -> pd.DataFrame:
        """See `medicane.detections.write_detections`."""
        return series.write_detections(
            self._path, detections, step_hours=step_hours, history=history, replaces=replaces
        )

    def write_events(self, detections: xr.Dataset, *, step_hours: int) -> pd.DataFrame:
        """See `medicane.detections.write_events`."""
        return series.write_events(self._path, detections, step_hours=step_hours)


class Bucket:
    """A place on an object store; its methods do what those of a `Folder` do.

    A digest that has changed since the detections were read is noticed. There is no lock: that no
    two writers meet between that look and the commit is up to whoever starts them.

    Raises
    ------
    InputError
        If the store is not known; from any method, if it cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._place, self._group = Remote(self._uri), Remote(f"{self._uri}/detections.zarr")

    @property
    def detections(self) -> str:
        return redacted(f"{self._uri}/detections.zarr")

    @property
    def events(self) -> str:
        return redacted(f"{self._uri}/events.csv")

    def digest(self) -> str | None:
        document = self._read(self._group, _ROOT)
        return None if document is None else hashlib.sha256(document).hexdigest()

    def read(self) -> tuple[xr.Dataset, xr.DataArray | None]:
        store: Any = self._group.zarr_store()
        try:
            detections = xr.open_zarr(store, consolidated=True, chunks=None).load()
            series.check_series(detections, where=self.detections)
            try:
                kept = xr.open_zarr(
                    store, group=series.HISTORY_GROUP, consolidated=True, chunks=None
                )
                history = kept["maps"].load()
            except KeyError:
                history = None
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(self.detections, series.WRITTEN_BY_MEDICANE, found=error) from error
        return detections, history

    def write(
        self, detections: xr.Dataset, *, step_hours: int, history: xr.DataArray, replaces: str
    ) -> pd.DataFrame:
        before = self._read(self._group, _ROOT)
        if (self.digest() or "") != replaces:
            raise InputError(
                self.detections,
                "must not change while maps are added; run again",
                found="other detections than those read",
            )
        objects = _objects(
            {"/": detections, series.HISTORY_GROUP: series.history_dataset(history)},
            separator="." if _separator(before) == "/" else "/",
        )
        documents = {key for key in objects if key.endswith(_ROOT)}
        for key in objects.keys() - documents:
            self._put(self._group, key, objects[key])
        table = self.write_events(detections, step_hours=step_hours)
        self._put(self._group, _ROOT, objects[_ROOT])
        for key in documents - {_ROOT}:  # of use to those who do not read the consolidated ones
            self._put(self._group, key, objects[key])
        return table

    def write_events(self, detections: xr.Dataset, *, step_hours: int) -> pd.DataFrame:
        table, files = series.event_files(detections, step_hours=step_hours)
        for name, text in files.items():
            if self._read(self._place, name) != text.encode():
                self._put(self._place, name, text.encode())
        return table

    def _read(self, place: Remote, path: str) -> bytes | None:
        """An object; None if there is none."""
        try:
            return place.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(self._uri, "must be readable", found=error) from error

    def _put(self, place: Remote, path: str, data: bytes) -> None:
        try:
            place.write(path, data)
        except OSError as error:
            raise InputError(self._uri, "must be writable", found=error) from error


def place_of(out: str | Path) -> Folder | Bucket:
    """Where detections are kept that go to a folder or a URI."""
    return Bucket(str(out)) if is_remote(out) else Folder(out)


def read_from(detections: str | Path) -> xr.Dataset:
    """Detections by the name that `Folder.detections` or `Bucket.detections` tells."""
    if is_remote(detections):
        return Bucket(str(detections).removesuffix("/detections.zarr")).read()[0]
    return series.read_detections(Path(detections))[0]


def _objects(groups: dict[str, xr.Dataset], *, separator: str) -> dict[str, bytes]:
    """Key and bytes of every object of a Zarr group; each array is one chunk."""
    held: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(held)
    for group, ds in groups.items():
        encoding: dict[str, Any] = {
            str(name): {
                "chunks": array.shape,
                "chunk_key_encoding": {"name": "default", "separator": separator},
            }
            for name, array in ds.variables.items()
        }
        encoding[names.TIME] |= series.TIME_ENCODING
        # Of strings Zarr 3 knows those of any length only.
        fixed = {n: c.astype(object) for n, c in ds.variables.items() if c.dtype.kind == "U"}
        bare = ds.drop_encoding().assign(fixed)
        bare.to_zarr(store, group=group, mode="a", encoding=encoding, consolidated=False)
    with warnings.catch_warnings():  # that others may not read the consolidated metadata
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store, zarr_format=3)
    return {key: value.to_bytes() for key, value in held.items()}


def _separator(document: bytes | None) -> str | None:
    """The chunk key encoding that a root document names; None without one."""
    if document is None:
        return None
    members = json.loads(document)["consolidated_metadata"]["metadata"].values()
    arrays = [member for member in members if member["node_type"] == "array"]
    return str(arrays[0]["chunk_key_encoding"]["configuration"]["separator"])
