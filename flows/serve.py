"""Serve the deployments of ``config/deployments.yaml``: ``python -m flows.serve [FILE]``.

One process that registers each deployment with the Prefect server of the profile (or of
``PREFECT_API_URL``) and runs what its schedule, or a person, starts.
"""

import importlib
import inspect
import zoneinfo
from pathlib import Path
from typing import Any, Literal

from cyclopts import App
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from medicane import cli
from medicane.config import Section, first_fault, read_yaml
from medicane.errors import InputError
from medicane.pipeline import RECIPES


class Deployment(Section):
    """One flow with a schedule and its parameters."""

    flow: Literal["fetch", "prepare", "train", "evaluate", "detect", "promote", "watch"]
    name: str = Field(pattern=r"^[^/%&<>]+$")
    cron: str | None = None
    timezone: str = "UTC"
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        from prefect.schedules import Cron

        try:
            if value is not None:
                Cron(value)
        except ValueError:
            raise ValueError("must be a cron expression: minute hour day month weekday") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError("must be an IANA time zone, as UTC or Europe/Rome")
        return value


class Deployments(Section):
    """The whole file."""

    schema_version: Literal[1]
    deployments: tuple[Deployment, ...]

    @field_validator("deployments")
    @classmethod
    def _some_and_distinct(cls, value: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
        if not value:
            raise ValueError("at least one is needed; found an empty list")
        listed = [f"{wanted.flow}/{wanted.name}" for wanted in value]
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            raise ValueError(f"a flow's deployments must differ in name; found {twice} twice")
        return value


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
        raise InputError(path, first_fault(error)) from None


def deployments_of(path: Path) -> list[Any]:
    """Prefect deployments, ready to be served.

    Raises
    ------
    InputError
        If the file is not what `Deployments` says, or a parameter not what its flow takes.
    """
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    ready = []
    for wanted in load_deployments(path).deployments:
        module = "train" if wanted.flow == "evaluate" else wanted.flow
        flow = getattr(importlib.import_module(f"flows.{module}"), wanted.flow)
        _check_parameters(flow, wanted, path=path)
        schedules = [Cron(wanted.cron, timezone=wanted.timezone)] if wanted.cron else []
        ready.append(
            flow.to_deployment(
                name=wanted.name,
                schedules=schedules,
                parameters=dict(wanted.parameters),
                # Found by import, so that it does not matter where the server is started.
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return ready


def _check_parameters(flow: Any, wanted: Deployment, *, path: Path) -> None:
    """Refuse now what the first scheduled run would refuse at night."""
    where = f"{path}: deployments.{wanted.name}.parameters"
    taken = inspect.signature(flow.fn).parameters
    unknown = sorted(set(wanted.parameters) - set(taken))
    if unknown:
        raise InputError(
            where, f"must be among those of the flow {wanted.flow}: {list(taken)}", found=unknown
        )
    for name, parameter in taken.items():
        if name in wanted.parameters:
            try:
                TypeAdapter(parameter.annotation).validate_python(wanted.parameters[name])
            except ValidationError as error:
                raise InputError(f"{where}.{name}", first_fault(error)) from None
        elif parameter.default is parameter.empty:
            raise InputError(f"{where}.{name}", f"the flow {wanted.flow} requires it")


def main(file: Path = RECIPES / "deployments.yaml") -> None:
    """Serve until interrupted; schedules go on when it is started again.

    Parameters
    ----------
    file
        The deployments, a YAML file.

    Raises
    ------
    InputError
        If the file is not understood, or no Prefect server answers.
    """
    from prefect import serve

    ready = deployments_of(file)
    _check_server()
    serve(*ready, pause_on_shutdown=False)


def _check_server() -> None:
    """Without an address Prefect starts a temporary server, whose schedules never fire."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise InputError(
            "PREFECT_API_URL",
            "must name a running Prefect server (`prefect server start`)",
            found="nothing",
        )
    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise InputError(f"PREFECT_API_URL: {url}", "the Prefect server must answer", found=fault)


if __name__ == "__main__":
    cli.run(App(name="serve", default_command=main))
