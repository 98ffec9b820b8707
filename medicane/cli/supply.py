"""The command that brings data from elsewhere: ERA5, month by month."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from medicane.cli.terminal import ConfigFile, app, bar, say


@app.command
def fetch(
    *,
    config: ConfigFile,
    source: Literal["arco", "cds"],
    start: str | None = None,
    end: str | None = None,
    out: Path | None = None,
    uri: str | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Bring ERA5 month by month: the variables, area and step that the configuration needs.

    Goes on where it was stopped; a month that is there is not fetched again.

    Example: medicane fetch --config config/era5.yaml --source cds --start 2020-01 --end 2020-12

    Parameters
    ----------
    config
        The configuration, a YAML file.
    source
        cds: the Climate Data Store, with the key of ~/.cdsapirc; arco: the public ARCO-ERA5 store,
        without an account, but all of the globe passes the network.
    start
        The first year, month or day; by default that of the splits.
    end
        The last year, month or day.
    out
        A folder; by default that of data.grids, if it is one glob such as FOLDER/*.nc.
    uri
        Another Zarr store of the layout of ARCO-ERA5.
    dry_run
        Only say what would be asked.
    """
    from medicane import pipeline
    from medicane.config import load_config

    with bar("fetch") as progress:
        done = pipeline.fetch(
            load_config(config),
            source=source,
            start=start,
            end=end,
            out=out,
            uri=uri,
            dry_run=dry_run,
            progress=progress,
        )
    if dry_run:
        say("\n".join(done.asked))
    say(
        f"folder     {done.folder}\n"
        f"files      {done.n_files}, {done.n_new} {'missing' if dry_run else 'new'}\n"
        f"period     {done.first} to {done.last}"
    )
