"""What a watch remembers from one run to the next: what it has read, and whom it has told of what.

``watch.json`` is replaced whole. Earlier states of ``detections.nc`` are kept under other names
(hard links: a file of detections is replaced, never changed), so that labels can be made again from
a map on exactly as if it had been there in time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from medicane import names
from medicane.config import first_fault
from medicane.errors import InputError, redacted
from medicane.remote import Remote, StorageOptions, is_remote
from medicane.sequences import as_slice
from medicane.store import Restart, thinned
from medicane.store.commits import replace_json

#: Maps whose digests are computed at once.
AT_ONCE = 24

Times = NDArray[np.datetime64]


class Onset(BaseModel):
    """An event that was told, or is to be, and the state of each channel."""

    start: str
    end: str
    channels: dict[str, Literal["sent", "waiting", "given up"]]


class Memory(BaseModel):
    """The content of ``watch.json``; times are ISO 8601.

    Attributes
    ----------
    sources
        What told each file from another one of its name when it was last looked into.
    maps
        Time → digest of the fields behind its label, as far back as maps are put right.
    redo_from
        The first map that is to be labelled again; set before that begins, cleared when it is done.
    restarts
        Where the map store can be cut.
    onsets
        By ``event_id``.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    sources: dict[str, str] = {}
    maps: dict[str, str] = {}
    redo_from: str | None = None
    restarts: list[Restart] = []
    onsets: dict[str, Onset] = {}

    @classmethod
    def read(cls, path: Path) -> Memory:
        """What is remembered in a file; nothing if there is none."""
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            law = f"must be what a watch wrote, or not exist ({first_fault(error)})"
            raise InputError(path, law) from None

    def write(self, path: Path) -> None:
        """Replace the file, if it says something else."""
        if not path.exists() or Memory.read(path) != self:
            replace_json(path, self.model_dump(mode="json"), flush=True)

    def forget_before(self, time: np.datetime64) -> None:
        """Digests before a time are of no use any more."""
        self.maps = {told: digest for told, digest in self.maps.items() if told >= iso(time)}

    def note_restart(self, restart: Restart | None) -> None:
        """Remember where the store ends; of one that was made anew nothing else is known."""
        if restart is not None and restart not in self.restarts:
            same = [one for one in self.restarts if one.born == restart.born]
            every = [*(one for one in same if one.n < restart.n), restart]
            self.restarts = [every[i] for i in thinned([one.n for one in every])]

    def forget_restarts_from(self, time: np.datetime64) -> None:
        """Forget the restarts that a map at this time would have changed."""
        self.restarts = [one for one in self.restarts if np.datetime64(one.time) < time]


# --- what was read ---------------------------------------------------------------------------


def stamps(sources: Sequence[str], options: StorageOptions | None) -> dict[str, str | None]:
    """What tells each source from another of its name, by the name that may be told.

    Of a file: length and time of change, or what its server says; of a folder: the same of all
    files in it. None where nothing tells.
    """
    return {redacted(source): _stamp(source, options) for source in sources}


def _stamp(source: str, options: StorageOptions | None) -> str | None:
    if is_remote(source):
        try:
            return Remote(source, options).stamp()
        except OSError:  # what is no file is looked into
            return None
    path = Path(source)
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if file.is_file())
        whole = hashlib.sha256()
        for file in every:
            about = file.stat()
            whole.update(f"{file.relative_to(path)} {about.st_size} {about.st_mtime_ns}\n".encode())
        return f"{len(every)} files {whole.hexdigest()[:16]}"
    about = path.stat()
    return f"{about.st_size} bytes {about.st_mtime_ns}"


def digests(standard: xr.Dataset, times: Times) -> dict[str, str]:
    """Time → digest of the fields of each map, as they go into its label; each map is read once."""
    fields = standard[sorted(str(n) for n, f in standard.items() if names.TIME in f.dims)]
    at = standard.indexes[names.TIME].get_indexer(pd.DatetimeIndex(times))
    found = {}
    for start in range(0, len(at), AT_ONCE):
        part = fields.isel({names.TIME: as_slice(at[start : start + AT_ONCE])})
        part = part.compute(scheduler="synchronous")
        for i, time in enumerate(part[names.TIME].values):
            digest = hashlib.blake2b(digest_size=8)
            for field in part.data_vars.values():
                values = field.transpose(names.TIME, ...).values[i]
                digest.update(np.ascontiguousarray(values, "<f4").data)
            found[iso(time)] = digest.hexdigest()
    return found


# --- earlier states of the detections --------------------------------------------------------


class Earlier:
    """Earlier states of ``detections.nc`` in a folder, each named by its last map."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, detections: Path, last: np.datetime64, *, step_hours: int) -> None:
        """Keep the detections as they are now, and of the earlier ones those worth keeping."""
        self._folder.mkdir(exist_ok=True)
        path = self._path(last)
        if path.exists() and path.samefile(detections):
            return
        temporary = self._folder / ".partial"
        temporary.unlink(missing_ok=True)
        try:
            os.link(detections, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(detections, temporary)
        os.replace(temporary, path)
        every = list(self._every())
        step = np.timedelta64(step_hours, "h")
        kept = set(thinned([int((time - every[0][0]) / step) for time, _ in every]))
        for i, (_, dispensable) in enumerate(every):
            if i not in kept:
                dispensable.unlink()

    def before(self, first: np.datetime64) -> tuple[np.datetime64 | None, Path]:
        """The last state before a time; where there is none, no time and a file that is not."""
        found = [one for one in self._every() if one[0] < first]
        return found[-1] if found else (None, self._folder / "nothing.nc")

    def drop_from(self, first: np.datetime64) -> None:
        """Forget the states that a map at this time would have changed."""
        for time, path in self._every():
            if time >= first:
                path.unlink()

    def forget_before(self, first: np.datetime64) -> None:
        """Forget the states before a time, but the last of them."""
        for _, path in [one for one in self._every() if one[0] < first][:-1]:
            path.unlink()

    def _path(self, time: np.datetime64) -> Path:
        return self._folder / f"{iso(time).replace(':', '')}.nc"

    def _every(self) -> Iterator[tuple[np.datetime64, Path]]:
        for path in sorted(self._folder.glob("[0-9]*.nc")):
            day, _, clock = path.stem.partition("T")
            yield np.datetime64(f"{day}T{clock[:2]}:{clock[2:4]}:{clock[4:]}", "ns"), path


def iso(time: Any) -> str:
    """A time as the watch tells it, to the second."""
    return str(np.datetime64(time, "s"))
