"""What a team starts its servers with, read: the units of systemd, compose.yaml, the image.

That they run is shown by ``tests/flows/test_team.py``, which starts the units' commands.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.team import CONFIG, UNITS, absent, unit

SERVERS = {"medicane-prefect.service": "prefect", "medicane-mlflow.service": "mlflow"}
SERVICES = SERVERS | {"medicane-worker.service": "worker"}
#: Units that read the file of secrets, and what of it.
SECRETS = {
    "prefect": {"PGPASSWORD"},
    "mlflow": {"PGPASSWORD", "AWS_ACCESS_KEY_ID"},
    "worker": set(),
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8")))


def settings(name: str, key: str) -> list[str]:
    return [value for told, value in unit(name) if told == key]


def told_to(name: str) -> dict[str, str]:
    """The environment that a unit sets itself."""
    words = [word for line in settings(name, "Environment") for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


# --- systemd --------------------------------------------------------------------------------------


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or absent("systemd")
    copies = []
    for file in sorted(UNITS.iterdir()):
        copies.append(tmp_path / file.name)
        here = file.read_text().replace("/opt/medicane/.venv/bin", str(Path(sys.executable).parent))
        copies[-1].write_text(here)
    done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True)
    # What the machine itself has is not ours to say.
    told = [line for line in done.stderr.splitlines() if "medicane" in line]
    assert (done.returncode, told) == (0, [])
    assert len(copies) == len(SERVICES) + 2


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_is_not_root_and_writes_to_its_own_folder_alone(name: str) -> None:
    assert settings(name, "User") == ["medicane"]
    assert settings(name, "ProtectSystem") == ["strict"]
    assert settings(name, "StateDirectory") == ["medicane"]
    assert settings(name, "NoNewPrivileges") == ["yes"]
    assert settings(name, "Restart") == ["on-failure"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_binds_to_loopback(name: str) -> None:
    (command,) = settings(name, "ExecStart")
    assert " --host 127.0.0.1 " in command


# --- secrets --------------------------------------------------------------------------------------


def test_no_file_holds_the_value_of_a_secret(compose: dict[str, Any]) -> None:
    example = (CONFIG / "team.env.example").read_text(encoding="utf-8")
    names = [line.removesuffix("=") for line in example.splitlines() if line[:1] not in ("#", "")]
    assert names == ["PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    for file in [*UNITS.iterdir(), ROOT / "Dockerfile"]:
        assert not re.search(rf"\b({'|'.join(names)})=", file.read_text(encoding="utf-8")), file
        assert not re.search(r"://[^/\s]*:[^/\s]*@", file.read_text(encoding="utf-8")), file
    for service in compose["services"].values():
        for key, value in service.get("environment", {}).items():
            if re.search("KEY|SECRET|PASSWORD", key):
                assert re.fullmatch(rf"\$\{{({'|'.join(names)}):\?set it in \.env\}}", value), key
            assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), key
    for ignored in (".gitignore", ".dockerignore"):
        assert {".env", ".*"} & set((ROOT / ignored).read_text().splitlines()), ignored


@pytest.mark.parametrize("name", SERVICES)
def test_the_worker_knows_no_secret(name: str, compose: dict[str, Any]) -> None:
    service = SERVICES[name]
    known = SECRETS[service]
    assert bool(settings(name, "EnvironmentFile")) is bool(known)
    given = {
        key for key in compose["services"][service]["environment"] if "KEY" in key or "PG" in key
    }
    assert given >= known
    assert bool(given) is bool(known)


# --- compose.yaml and the image -------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_compose_starts_what_the_units_start(name: str, compose: dict[str, Any]) -> None:
    service = compose["services"][SERVICES[name]]
    (command,) = settings(name, "ExecStart")
    inside = command.removeprefix("/opt/medicane/.venv/bin/").replace("127.0.0.1", "0.0.0.0")
    assert service["command"] == inside
    for key, value in told_to(name).items():
        if "127.0.0.1" not in value and key != "PREFECT_HOME":
            assert service["environment"][key] == value, key
    # Inside it listens to its neighbours, and outside to this machine alone.
    port = re.search(r"--port (\d+)", inside)
    assert service.get("ports", []) == ([f"127.0.0.1:{port[1]}:{port[1]}"] if port else [])


def test_images_have_versions_and_services_are_waited_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert re.fullmatch(r"[\w/.-]+:v?\d+(\.\d+)+", service["image"]), name
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"][0] == "CMD"
            else:
                assert (needed, how["condition"]) == ("bucket", "service_completed_successfully")
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert set(compose["volumes"]) == {"postgres", "store"}


def test_compose_mounts_what_is_there(compose: dict[str, Any]) -> None:
    mounts = [mount for one in compose["services"].values() for mount in one.get("volumes", [])]
    for source, _, _ in (mount.partition(":") for mount in mounts if mount.startswith("./")):
        assert (ROOT / source).exists(), source


def test_the_image_is_what_the_lock_says() -> None:
    import medicane

    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "--require-hashes --requirement requirements.lock" in text
    assert re.search(r"^FROM python:3\.11\.\d+-\S+$", text, re.MULTILINE)
    assert re.search(r"^USER medicane$", text, re.MULTILINE)
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert f"image: medicane:{medicane.__version__}\n" in compose
