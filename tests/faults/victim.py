"""A process with everything imported that forks another one for each command: ``python -m`` this.

It reads one JSON order a line and answers with two: the process number at once, and how it ended.
Forked before TensorFlow is used, so that each command is a process of its own without the seconds
that imports take.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

#: What commands import when they need it.
IMPORTED = (
    "keras",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "openvino",
    "sklearn.metrics",
    "tensorflow",
    *(f"medicane.{room}" for room in ("cli", "evaluate", "experiments", "pipeline", "report")),
    *("medicane.pipeline.watching", "medicane.runtime", "medicane.train"),
)
#: Audit events of Python that change what is on the disk.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Counts what the process does to files below a folder; kills its group before one of them."""

    def __init__(self, folder: Path, fatal: int | None, log: Path) -> None:
        self.folder, self.fatal, self.log = f"{folder}{os.sep}", fatal, log
        self.count = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & WRITING:
                return
        elif event not in CHANGES:
            return
        path = args[1] if event in ("os.rename", "os.link") else args[0]
        if not isinstance(path, (str, os.PathLike)):
            return
        full = os.path.abspath(path)
        if not full.startswith(self.folder):
            return
        self.count += 1
        if self.count == self.fatal:
            self.log.write_text(f"{event} {full.removeprefix(self.folder)}")
            os.killpg(0, signal.SIGKILL)


def obey(order: dict[str, Any]) -> int:
    """Do the command of an order in this process; its exit status."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    with open(order["log"], "ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    from medicane.cli import app, run

    told = Path(order["told"])
    operations = Operations(Path(order["folder"]), order["fatal"], told)
    try:
        run(app, order["words"])
    except SystemExit as ended:
        status = int(ended.code or 0)
    if order["fatal"] is None:
        told.write_text(str(operations.count))
    return status


def main() -> None:
    """Serve orders until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = obey(json.loads(line))
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(json.dumps(pid), flush=True)
        _, status, used = os.wait4(pid, 0)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)


if __name__ == "__main__":
    main()
