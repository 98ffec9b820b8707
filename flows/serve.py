"""Serve the deployments of ``config/deployments.yaml``: ``python -m flows.serve [FILE]``.

One process that registers each deployment with the Prefect server of the profile (or of
``PREFECT_API_URL``) and runs what its schedule, or a person, starts. With ``--pool NAME`` they are
registered in a work pool instead, for the workers of a team to run.
"""

import importlib
import inspect
import re
import zoneinfo
from pathlib import Path
from typing import Any, Literal

import docstring_parser
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
        flow, summary = _described(flow)
        ready.append(
            flow.to_deployment(
                name=wanted.name,
                description=summary,
                schedules=schedules,
                parameters=dict(wanted.parameters),
                # Found by import, so that it does not matter where the server is started.
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return ready


def _described(flow: Any) -> tuple[Any, str]:
    """The flow with its parameters told as Prefect reads them, for its form; and what it does.

    Prefect finds descriptions in docstrings of Google's style alone.
    """
    told = docstring_parser.parse(
        inspect.getdoc(flow) or "", docstring_parser.DocstringStyle.NUMPYDOC
    )
    described = flow.with_options()
    described.__doc__ = docstring_parser.compose(told, docstring_parser.DocstringStyle.GOOGLE)
    return described, told.short_description or ""


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


def main(file: Path = RECIPES / "deployments.yaml", *, pool: str | None = None) -> None:
    """Serve until interrupted; schedules go on when it is started again.

    Parameters
    ----------
    file
        The deployments, a YAML file.
    pool
        Register them in this process work pool, made if it is not there, and end. What runs them is
        `prefect worker start --pool NAME --type process`; their paths are relative to the folder in
        which they were registered.

    Raises
    ------
    InputError
        If the file is not understood, no Prefect server answers, or the pool is of another type.
    """
    from prefect import serve

    ready = deployments_of(file)
    _check_server()
    if pool is None:
        serve(*ready, pause_on_shutdown=False)
        return
    _make_pool(pool)
    for deployment in ready:
        # Without it a worker would run each in an empty folder of its own.
        deployment.job_variables = {"working_dir": str(Path.cwd())}
        deployment.apply(work_pool_name=pool)
        print(f"{deployment.full_name} runs in {Path.cwd()} on workers of the pool {pool}")


def _make_pool(name: str) -> None:
    """A process work pool of this name, made if it is not there."""
    where = f"--pool {name}"
    if not re.fullmatch(r"(?!prefect)[^/%&<>]+", name, re.IGNORECASE):
        law = "the name of a pool must not start with prefect, nor hold any of / % & < >"
        raise InputError(where, law)

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template)
            )
            return
    if found.type != "process":
        raise InputError(
            f"--pool {name}", "the work pool must be of type process", found=found.type
        )


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
