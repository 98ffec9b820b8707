"""The flow ``watch``: what runs every day, from new maps to the notice of an event."""

import os
import re
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from pydantic import BeforeValidator, FilePath

from flows.retries import ON_IO_FAULT
from medicane import pipeline
from medicane.config import load_config


@task(**ON_IO_FAULT)
def catch_up(
    config: FilePath, model: str, out: str, start: str | None, prepare: bool
) -> pipeline.Watched:
    """Bring detections up to the maps there are; a retry goes on where the last try was cut."""
    return pipeline.watch(
        load_config(config), model=model, out=out, start=start, prepare=prepare, secret=_secret
    )


def _secret(name: str) -> str | None:
    """What the environment holds under a name, or a Secret block where the name is one of Prefect.

    It is read where it is used: what a task is given is kept by the server.
    """
    if not re.fullmatch("[a-z0-9-]+", name):
        return os.environ.get(name)
    from prefect.blocks.system import Secret

    try:
        block: Any = Secret.load(name)
    except ValueError:  # there is none of that name
        return None
    return str(block.get())


@flow(name="watch")
def watch(
    config: FilePath,
    model: str = "models:/medicane@champion",
    out: Annotated[str, BeforeValidator(str)] = "detections",
    start: str | None = None,
    prepare: bool = True,
) -> pipeline.Watched:
    """Find new maps, extend the map store, label them, and tell of the onset of an event.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow. `data.grids` is what is
        watched, `detect` how it is labelled, `watch` what happens to late and revised maps and who
        is told.
    model
        A model URI.
    out
        Folder of the detections.
    start
        The first day to label; by default that of the first map.
    prepare
        Extend the map store as well.
    """
    done = catch_up(config, model, out, start, prepare)
    create_markdown_artifact(
        key="watch-status",
        markdown=pipeline.status_text(done),
        description=f"{done.n_new} new maps, {done.n_again} labelled again, "
        f"{len(done.onsets)} onsets",
    )
    return done
