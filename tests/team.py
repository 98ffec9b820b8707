"""The servers of a team on loopback: what ``config/systemd`` starts, on PostgreSQL and S3.

The commands and the environment are those of the units, with free ports and a folder of the test's
own, so that what is told to a reader is what runs here.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests.conftest import ROOT
from tests.processes import answers, environment, free_port, running, wait_for
from tests.servers import S3_ACCOUNT, object_store

CONFIG = ROOT / "config"
UNITS = CONFIG / "systemd"


def absent(package: str) -> NoReturn:
    """Skip what needs a package of Debian; where the tests must be whole it is a failure."""
    told = f"needs Debian's {package}: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(told)
    pytest.skip(told)


# --- PostgreSQL -----------------------------------------------------------------------------------


def _postgresql_programs() -> Path:
    """The folder of initdb and postgres: Debian keeps them off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    folders = [folder for folder in folders if (folder / "initdb").is_file()]
    return folders[-1] if folders else absent("postgresql")


@contextmanager
def postgresql(port: int, password: str) -> Iterator[None]:
    """A new cluster on loopback with the role medicane and its databases; passwords are asked for.

    PostgreSQL refuses to run as root: root starts it as the user of Debian's package.
    """
    programs = _postgresql_programs()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        shutil.chown(folder, "postgres", "postgres")
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)  # the folder is closed to others
    try:
        told = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}"]
        subprocess.run(
            [*as_user, programs / "initdb", f"--pgdata={folder / 'data'}", *told, "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        flags = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [*as_user, str(programs / "postgres"), "-D", str(folder / "data"), *flags]
        command[0] = shutil.which(command[0]) or command[0]
        log = folder / "postgres.log"
        with running(*command, log=log, cwd=folder, env=environment()) as process:
            asked = [programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
            wait_for(
                "postgres",
                lambda: subprocess.run(asked).returncode == 0,
                process=process,
                log=log,
                seconds=30,
            )
            psql = [programs / "psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"]
            psql += ["--host=127.0.0.1", f"--port={port}", "--username=postgres"]
            role = f"CREATE ROLE medicane LOGIN PASSWORD '{password}'"
            for said in (f"--command={role}", f"--file={CONFIG / 'postgresql.sql'}"):
                subprocess.run([*psql, said], check=True, env=environment(PGPASSWORD=password))
            yield
    finally:
        shutil.rmtree(folder)


# --- the units ------------------------------------------------------------------------------------


def unit(name: str) -> list[tuple[str, str]]:
    """The settings of a unit of systemd, in their order; comments and sections are left out."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#["]
    return [(key, value) for key, _, value in pairs]


@dataclass
class Team:
    """Servers of a team, and what runs on them.

    Attributes
    ----------
    folder
        Takes the place of ``/var/lib/medicane``: workers run in it; logs lie in ``logs``.
    ports
        Those of the units, and those that take their places here.
    """

    folder: Path
    secrets: dict[str, str]
    store: str
    ports: dict[int, int] = field(
        default_factory=lambda: {port: free_port() for port in (4200, 5000, 5432)}
    )

    processes: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    @property
    def prefect(self) -> str:
        """Address of the Prefect server."""
        return f"http://127.0.0.1:{self.ports[4200]}"

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server."""
        return f"http://127.0.0.1:{self.ports[5000]}"

    @property
    def pages(self) -> dict[str, str]:
        """What answers when a server does, by its unit."""
        return {
            "medicane-prefect.service": f"{self.prefect}/api/health",
            "medicane-mlflow.service": f"{self.mlflow}/health",
        }

    def wait(self) -> None:
        """Wait until both servers answer."""
        for name, page in self.pages.items():
            process, log = self.processes[name]
            wait_for(name, lambda page=page: answers(page), process=process, log=log, seconds=180)

    def here(self, text: str) -> str:
        """The text of a unit with the folders and ports of this test."""
        places = {
            "/opt/medicane/.venv/bin": str(Path(sys.executable).parent),
            "/var/lib/medicane": str(self.folder),
            **{f"--port {old}": f"--port {new}" for old, new in self.ports.items()},
            **{f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in self.ports.items()},
        }
        for old, new in places.items():
            text = text.replace(old, new)
        return text

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """What a unit runs in; secrets only where it reads their file."""
        told: dict[str, str] = {}
        for key, value in unit(name):
            if key == "EnvironmentFile":
                told |= self.secrets
            elif key == "Environment":
                told |= dict(one.split("=", 1) for one in shlex.split(self.here(value)))
        return environment(**told | more)

    def make_bucket(self) -> None:
        """What compose.yaml makes the bucket with."""
        services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
        command = [
            word.replace("http://store:7070", self.store) for word in services["bucket"]["command"]
        ]
        subprocess.run([sys.executable, *command[1:]], check=True, env=environment(**self.secrets))

    @contextmanager
    def started(self, name: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """The process of a unit, and its log."""
        (command,) = (self.here(value) for key, value in unit(name) if key == "ExecStart")
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with running(
            *shlex.split(command), log=log, cwd=self.folder, env=self.environment(name, **more)
        ) as process:
            yield process, log


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """Both servers, on PostgreSQL, with artifacts on an object store; see `Team.wait`."""
    with ExitStack() as stack:
        store = stack.enter_context(object_store())
        known = {"PGPASSWORD": secrets.token_urlsafe(12), **S3_ACCOUNT}
        servers = Team(folder, {**known, "MLFLOW_S3_ENDPOINT_URL": store}, store)
        stack.enter_context(postgresql(servers.ports[5432], known["PGPASSWORD"]))
        # Both at once: each takes a while to make its tables.
        for name in servers.pages:
            servers.processes[name] = stack.enter_context(servers.started(name))
        servers.make_bucket()
        yield servers


def artifacts(client: Any, key: str) -> list[Any]:
    """The artifacts of a key that a Prefect server keeps."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    return list(client.read_artifacts(artifact_filter=chosen))
