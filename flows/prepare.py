"""The flow ``prepare``: grids and a catalogue into the map store."""

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from pydantic import FilePath

from flows.retries import ON_IO_FAULT
from medicane import pipeline
from medicane.config import load_config


@task(**ON_IO_FAULT)
def write_store(config: FilePath, scheduler: str | None = None) -> pipeline.Prepared:
    """Write or extend the store; a retry goes on where the last try was cut."""
    return pipeline.prepare(load_config(config), scheduler=scheduler)


@flow(name="prepare")
def prepare(config: FilePath, scheduler: str | None = None) -> pipeline.Prepared:
    """Open, standardise, label and derive: write or extend the map store.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow.
    scheduler
        Address of a dask scheduler whose workers compute the maps; by default they are computed
        here.
    """
    prepared = write_store(config, scheduler)
    create_table_artifact(
        key="map-store",
        table=[{"what": key, "value": str(value)} for key, value in prepared.model_dump().items()],
        description=f"Map store {prepared.store}",
    )
    return prepared
