"""Serve the deployments of ``config/deployments.yaml``: ``python -m flows.serve [FILE]``.

One process that registers each deployment with the Prefect server of the profile (or of
``PREFECT_API_URL``) and runs what its schedule, or a person, starts.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App
from pydantic import Field, ValidationError

from medicane import cli
from medicane.config import Section, read_yaml
from medicane.errors import InputError
from medicane.pipeline import RECIPES


class Deployment(Section):
    """One flow with a schedule and its parameters."""

    flow: Literal["prepare", "train", "evaluate", "detect"]
    name: str = Field(min_length=1)
    cron: str | None = None
    timezone: str = "UTC"
    parameters: dict[str, Any] = Field(default_factory=dict)


class Deployments(Section):
    """The whole file."""

    schema_version: Literal[1]
    deployments: Annotated[tuple[Deployment, ...], Field(min_length=1)]


def load_deployments(path: Path) -> Deployments:
    """Read the deployments.

    Raises
    ------
    InputError
        If the file is not what `Deployments` says.
    """
    try:
        return Deployments.model_validate(read_yaml(path))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise InputError(path, f"{key}: {fault['msg']}", found=repr(fault["input"])) from None


def deployments_of(path: Path) -> list[Any]:
    """Prefect deployments, ready to be served; parameters are checked against the flow."""
    from prefect.schedules import Cron

    ready = []
    for wanted in load_deployments(path).deployments:
        module = "train" if wanted.flow == "evaluate" else wanted.flow
        flow = getattr(importlib.import_module(f"flows.{module}"), wanted.flow)
        unknown = sorted(set(wanted.parameters) - set(flow.parameters.properties))
        if unknown:
            raise InputError(
                path,
                f"deployments.{wanted.name}.parameters: must be those of the flow {wanted.flow}",
                found=unknown,
            )
        schedules = [Cron(wanted.cron, timezone=wanted.timezone)] if wanted.cron else []
        ready.append(
            flow.to_deployment(
                name=wanted.name, schedules=schedules, parameters=dict(wanted.parameters)
            )
        )
    return ready


def main(file: Path = RECIPES / "deployments.yaml") -> None:
    """Serve until interrupted; schedules go on when it is started again.

    Parameters
    ----------
    file
        The deployments, a YAML file.
    """
    from prefect import serve

    serve(*deployments_of(file), pause_on_shutdown=False)


if __name__ == "__main__":
    cli.run(App(name="serve", default_command=main))
