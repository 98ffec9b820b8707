"""ERA5 from where it is kept to files on disk, month by month: cropped, whole, never fetched twice.

A month of one kind of level is one file in the dialect of the Climate Data Store, whichever source
it comes from. It is written under another name first, so that whatever ends a fetch loses no more
than the file it was at, and the next one goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from medicane.errors import InputError, redacted
from medicane.fetch import arco, cds
from medicane.fetch.months import Month, holds, planned_months
from medicane.remote import StorageOptions
from medicane.store.commits import sole_writer, writable_folder

__all__ = ["Month", "Source", "asked", "fetch", "missing", "planned_months"]

LOG = logging.getLogger(__name__)

Source = Literal["arco", "cds"]
#: Called with the maps done and the maps to do.
Progress = Callable[[int, int], None]


def missing(months: Sequence[Month]) -> list[Month]:
    """The months that no file holds, or only in part.

    Raises
    ------
    InputError
        If a file that is there is of another area or of other variables.
    """
    return [month for month in months if not (month.path.exists() and holds(month))]


def asked(month: Month, *, source: Source, uri: str | None = None) -> str:
    """What is asked of a source for one month, to be read by a person."""
    if source == "cds":
        return f"{month.told()}\n  {cds.DATASETS[month.kind]} {json.dumps(cds.request(month))}"
    return f"{month.told()}\n  of {redacted(uri or arco.PUBLIC)}"


def fetch(
    months: Sequence[Month],
    *,
    source: Source,
    uri: str | None = None,
    storage_options: StorageOptions | None = None,
    key: str | None = None,
    progress: Progress | None = None,
) -> list[Month]:
    """Bring the months that are not on disk yet.

    Parameters
    ----------
    months
        From `planned_months`, all of one folder.
    source
        ``arco`` crops a Zarr store of the whole globe; ``cds`` asks the Climate Data Store to.
    uri
        Of the Zarr store, instead of the public one.
    storage_options
        How the store is reached; the public one needs none.
    key
        Of the Climate Data Store, instead of the one in the file of ``cdsapi``.
    progress
        Called with (maps done, maps to do).

    Returns
    -------
    list of Month
        Those that were brought.

    Raises
    ------
    InputError
        If a source cannot be reached, refuses, or has not all that is wanted; a file that is there
        is of another area or of other variables; or another process is fetching to the folder.
        The months that were written stay.
    """
    folder = months[0].path.parent
    writable_folder(folder, where="--out")
    with sole_writer(folder / "fetch"):
        for litter in folder.glob(".*.nc.part"):
            litter.unlink()
        wanted = missing(months)
        done, total = 0, sum(month.times.size for month in wanted)
        if wanted:
            bring = _from(source, uri=uri, storage_options=storage_options, key=key)
        for month in wanted:
            before = done

            def follow(n: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + n, total)

            part = month.path.with_name(f".{month.path.name}.part")
            try:
                bring(month, part, follow)
                if not holds(month, part):
                    raise InputError(
                        f"{source}: {month.path.name}",
                        "every map that was asked for must come; end the period before",
                        found=f"fewer than {month.times.size} maps",
                    )
                os.replace(part, month.path)
            finally:
                part.unlink(missing_ok=True)
            done += month.times.size
            follow(month.times.size)
            LOG.info("%s: %d maps", month.path, month.times.size)
    return wanted


def _from(
    source: Source, *, uri: str | None, storage_options: StorageOptions | None, key: str | None
) -> Callable[[Month, Path, Callable[[int], None]], None]:
    """What brings one month of a source to a file."""
    if source == "cds":
        return lambda month, path, follow: cds.download(month, path, key=key)
    store = arco.open_store(uri or arco.PUBLIC, storage_options=storage_options)
    return lambda month, path, follow: arco.crop(store, month, path, progress=follow)
