"""ERA5 to the folder that the configuration reads: what is asked, and asking it."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Literal

from medicane.config import Config
from medicane.errors import InputError
from medicane.pipeline.summaries import Fetched, Progress
from medicane.remote import is_remote


def fetch(
    config: Config,
    *,
    source: Literal["arco", "cds"],
    start: str | None = None,
    end: str | None = None,
    out: str | Path | None = None,
    uri: str | None = None,
    key: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Bring the months of ERA5 that the configuration needs and its folder has not.

    Parameters
    ----------
    source
        ``arco`` crops the public ARCO-ERA5 store, ``cds`` asks the Climate Data Store.
    start, end
        The first and the last year, month or day; by default those of the splits.
    out
        The folder; by default the one that ``data.grids`` reads, a glob such as ``FOLDER/*.nc``.
    uri
        Another Zarr store of the layout of ARCO-ERA5.
    key
        Of the Climate Data Store, instead of the one in the file of ``cdsapi``.
    dry_run
        Only tell what would be asked.

    Raises
    ------
    InputError
        See `medicane.fetch.fetch`; months that were written stay.
    """
    from medicane import fetch as era5

    if uri is not None and source != "arco":
        raise InputError("--uri", "is that of a Zarr store: it needs --source arco", found=source)
    folder = _folder(config) if out is None else Path(out)
    months = era5.planned_months(config, folder, start=start, end=end)
    if dry_run:
        new = era5.missing(months)
    else:
        options = config.data.storage_options
        new = era5.fetch(
            months, source=source, uri=uri, storage_options=options, key=key, progress=progress
        )
    return Fetched(
        folder=str(folder),
        n_files=len(months),
        n_new=len(new),
        first=str(months[0].times[0].astype("datetime64[m]")),
        last=str(months[-1].times[-1].astype("datetime64[m]")),
        asked=tuple(era5.asked(month, source=source, uri=uri) for month in new),
    )


def _folder(config: Config) -> Path:
    """Where the configuration looks for files."""
    globs = [Path(uri) for uri in config.data.grids if not is_remote(uri)]
    if (
        len(globs) != 1
        or globs[0].name not in ("*.nc", "*")
        or glob.has_magic(str(globs[0].parent))
    ):
        raise InputError(
            "data.grids",
            "must be one glob, FOLDER/*.nc, to say where months go; or give --out",
            found=list(config.data.grids),
        )
    return globs[0].parent
