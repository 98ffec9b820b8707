"""The flow ``fetch``: ERA5 month by month to disk, and into the map store."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from pydantic import FilePath

from flows.prepare import write_store
from flows.retries import ON_IO_FAULT
from medicane import pipeline
from medicane.config import load_config


@task(**ON_IO_FAULT)
def bring_months(
    config: FilePath,
    source: Literal["arco", "cds"],
    start: str | None,
    end: str | None,
    out: Path | None,
    uri: str | None,
    credentials: str | None,
) -> pipeline.Fetched:
    """Bring the months that are missing; a retry goes on where the last try was cut."""
    return pipeline.fetch(
        load_config(config),
        source=source,
        start=start,
        end=end,
        out=out,
        uri=uri,
        key=_key(credentials),
    )


def _key(block: str | None) -> str | None:
    """The key in a block, read where it is used: what a task is given is kept by the server."""
    if block is None:
        return None
    from prefect.blocks.system import Secret

    secret: Any = Secret.load(block)
    return str(secret.get())


@flow(name="fetch")
def fetch(
    config: FilePath,
    source: Literal["arco", "cds"] = "cds",
    start: str | None = None,
    end: str | None = None,
    out: Path | None = None,
    uri: str | None = None,
    credentials: str | None = None,
    prepare: bool = True,
) -> pipeline.Fetched:
    """Bring ERA5 month by month, and extend the map store by it.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow.
    source
        cds, the Climate Data Store, or arco, the public ARCO-ERA5 store.
    start
        The first year, month or day; by default that of the splits.
    end
        The last one.
    out
        A folder; by default the one that the configuration reads.
    uri
        Another Zarr store of the layout of ARCO-ERA5.
    credentials
        Name of a Secret block with the key of the Climate Data Store; by default the key is the one
        in the file of its client.
    prepare
        Write what came into the map store.
    """
    fetched = bring_months(config, source, start, end, out, uri, credentials)
    create_markdown_artifact(
        key="fetched-months",
        markdown="\n".join([f"* {asked}" for asked in fetched.asked] or ["Nothing was missing."]),
        description=f"{fetched.n_new} of {fetched.n_files} files are new in {fetched.folder}",
    )
    if prepare:
        write_store(config)
    return fetched
