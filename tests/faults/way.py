"""The whole way of a tiny project, step by step: what is killed, and what it must come to."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medicane import pipeline
from medicane.config import load_config
from tests.conftest import ROOT
from tests.servers import Quiet, serving
from tests.small_project import write_config

#: Registered by the step `train`.
MODEL = "models:/medicane@challenger"


@dataclass(frozen=True)
class Step:
    """A command, after months of maps have come in; what it leaves for a person to keep."""

    name: str
    months: tuple[int, ...]
    words: tuple[str, ...]
    results: tuple[str, ...] = ()


def _month(number: int) -> str:
    return f"era5_2001-{number:02}.nc"


def _detect(month: int) -> tuple[str, ...]:
    return ("detect", f"sea/grids/{_month(month)}", "--model", MODEL, "--out", "found")


PREPARE = ("prepare", "--config", "config.yaml")
TRAIN = ("train", "--config", "config.yaml")
WATCH = ("watch", "--config", "config.yaml", "--model", MODEL, "--out", "watched")
DETECTIONS = ("detections.nc", "events.csv", "tracks.csv")
FOUND = tuple(f"found/{name}" for name in DETECTIONS)
WATCHED = ("maps.zarr", *(f"watched/{name}" for name in DETECTIONS))
WAY = (
    Step("prepare", (1, 2, 3), PREPARE, ("maps.zarr",)),
    Step("prepare, more maps", (4,), PREPARE, ("maps.zarr",)),
    Step("train", (), TRAIN),
    Step("detect", (), _detect(4), FOUND),
    Step("detect, more maps", (), _detect(5), FOUND),
    Step("watch", (), (*WATCH, "--start", "2001-04-01"), WATCHED),
    Step("watch, more maps", (5,), WATCH, WATCHED),
)


class Webhook(Quiet):
    """Takes notices, and remembers under which names they came."""

    def do_POST(self) -> None:  # noqa: N802
        server: Any = self.server
        server.notices.append((self.headers["Idempotency-Key"], self.body()))
        self.answer(204)


@dataclass
class Ended:
    """How a process ended: its status (negative: the signal), processor seconds, what it told."""

    status: int
    seconds: float
    told: str
    log: str


class Forks:
    """A process with everything imported, which forks another one for each command.

    Parameters
    ----------
    folder
        Keeps what commands say.
    project
        Where they work.
    """

    def __init__(self, folder: Path, project: Path, **environment: str) -> None:
        self._folder, self._project = folder, project
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it; it is waiting for an order."""
        self._process.kill()
        self._process.communicate()

    def order(
        self,
        words: Sequence[str],
        *,
        fatal: int | None = None,
        kill_at: float | None = None,
    ) -> Ended:
        """Do a command in a process of its own, and wait for its end.

        Parameters
        ----------
        fatal
            It is killed before this change of a file, counted from 1.
        kill_at
            It is killed after this many seconds of processor time.
        """
        log, told = self._folder / "log", self._folder / "told"
        for file in (log, told):
            file.unlink(missing_ok=True)
        order = {
            "folder": str(self._project),
            "environment": {"MEDICANE_CACHE": str(self._project / "cache")},
            "log": str(log),
            "told": str(told),
            "fatal": fatal,
            "words": list(words),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = json.loads(self._process.stdout.readline())
        if kill_at is not None:
            _kill_after(pid, kill_at)
        status, seconds = json.loads(self._process.stdout.readline())
        return Ended(
            status,
            seconds,
            told.read_text() if told.exists() else "",
            log.read_text(errors="replace") if log.exists() else "",
        )


@dataclass
class Way:
    """A project in a folder, what it is after each step, and the process that forks its commands.

    Attributes
    ----------
    project
        Where every command works: always this folder, for its name is in what is written.
    seconds, operations
        Of each step undisturbed: processor time, and changes of files.
    notices
        Name and body of each that came to the webhook; of each step undisturbed, `told`.
    forks
        Does the commands.
    """

    folder: Path
    seconds: list[float] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    told: list[dict[str, bytes]] = field(default_factory=list)
    notices: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.project = self.folder / "project"
        self._stack = ExitStack()
        self._address, _ = self._stack.enter_context(serving(Webhook, notices=self.notices))
        self.forks = self.new_forks()

    def new_forks(self, **environment: str) -> Forks:
        """A process that forks commands, ended with the way."""
        forks = Forks(self.folder, self.project, **environment)
        self._stack.callback(forks.close)
        return forks

    def close(self) -> None:
        """End what runs beside."""
        self._stack.close()

    def state(self, step: int) -> Path:
        """The project before a step, its months not yet in; `len(WAY)`: at the end."""
        return self.folder / f"state{step}"

    def build(self) -> None:
        """Make the sea, and go the whole way undisturbed."""
        sea = self.folder / "sea"
        self.project.mkdir()
        file = write_config(
            self.project,
            data={"grids": ["incoming/*.nc"]},
            train={"epochs": 4},
            watch={"webhook": f"{self._address}/onsets", "notify_days": 40},
        )
        config = load_config(file)
        pipeline.synthesise(sea, config.sea, label=config.label)
        (self.project / "incoming").mkdir()
        shutil.copytree(sea, self.project / "sea")
        for number, step in enumerate(WAY):
            shutil.copytree(self.project, self.state(number))
            self.receive(step)
            self.notices.clear()
            ended = self.forks.order(step.words)
            assert ended.status == 0, ended.log
            self.told.append(dict(self.notices))
            assert len(self.told[-1]) == len(self.notices)
            self.seconds.append(ended.seconds)
            self.operations.append(int(ended.told))
        shutil.copytree(self.project, self.state(len(WAY)))

    def place(self, number: int) -> None:
        """Bring the project to where it is before a step, its months in."""
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.copytree(self.state(number), self.project, dirs_exist_ok=True)
        self.receive(WAY[number])

    def receive(self, step: Step) -> None:
        """Let a step's months come in."""
        for month in step.months:
            file = self.folder / "sea" / "grids" / _month(month)
            shutil.copy2(file, self.project / "incoming")

    def is_as_undisturbed(self, number: int) -> bool:
        """Whether a step has left what it leaves undisturbed, byte for byte."""
        names = WAY[number].results
        return content(self.project, *names) == content(self.state(number + 1), *names)


def _kill_after(pid: int, seconds: float) -> None:
    """Kill a process group when its leader has used so much processor time, if it comes to that."""
    while True:
        used = _processor_seconds(pid)
        if used is None:
            return
        if used >= seconds:
            break
        time.sleep(0.002)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _processor_seconds(pid: int) -> float | None:
    """Processor time of a process and its threads; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def content(folder: Path, *names: str) -> dict[str, bytes]:
    """Every file of some parts of a folder with its bytes; locks, which are empty, left out."""
    files = itertools.chain.from_iterable(
        sorted((folder / name).rglob("*")) if (folder / name).is_dir() else [folder / name]
        for name in names
    )
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.is_file() and path.suffix != ".lock"
    }


def listing(folder: Path) -> set[str]:
    """What lies in a project, but for what has names of chance or is not the product's."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix != ".lock"
        and path.relative_to(folder).parts[0] not in ("mlartifacts", "cache", "sea", "incoming")
    }
