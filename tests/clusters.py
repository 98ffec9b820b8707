"""Real dask clusters for tests: a scheduler and its workers, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distributed import Client

from tests.conftest import ROOT


class Cluster:
    """Processes of ``dask scheduler`` and ``dask worker`` in a folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        told = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", told
        )
        self.address = _told_in(told)
        self.workers: list[subprocess.Popen[bytes]] = []

    def add_worker(self, *, path: Path | None = None) -> subprocess.Popen[bytes]:
        """One more worker of one thread; `path` comes first in what it imports from."""
        folder = self.folder / f"worker{len(self.workers)}"
        folder.mkdir()
        words = [self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard"]
        self.workers.append(self._start("worker", *words, folder=folder, path=path))
        return self.workers[-1]

    def wait_for(self, n: int) -> None:
        """Wait until the scheduler knows of so many workers."""
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(n)

    def kill(self, worker: subprocess.Popen[bytes]) -> int:
        """Kill a worker without a word: how many tasks it had to do."""
        with Client(self.address, set_as_default=False) as client:
            (at,) = (at for at, pid in client.run(os.getpid).items() if pid == worker.pid)
            tasks = len(client.processing()[at])
            _end(worker)
        return tasks

    def _start(
        self, *words: object, folder: Path | None = None, path: Path | None = None
    ) -> subprocess.Popen[bytes]:
        sources = [str(one) for one in (path, ROOT) if one is not None]
        log = self._stack.enter_context((self.folder / f"{words[0]}.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, words)],
            cwd=folder or self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sources)},
            stdout=log,
            stderr=log,
        )
        self._stack.callback(_end, process)
        return process


@contextmanager
def cluster(folder: Path, *, workers: int) -> Iterator[Cluster]:
    """A scheduler with some workers, ended with the context."""
    with ExitStack() as stack:
        made = Cluster(folder, stack)
        for _ in range(workers):
            made.add_worker()
        yield made


def _told_in(file: Path) -> str:
    for _ in range(600):
        if file.is_file() and file.stat().st_size:
            return str(json.loads(file.read_text(encoding="utf-8"))["address"])
        time.sleep(0.1)
    raise TimeoutError(f"no scheduler in {file}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
