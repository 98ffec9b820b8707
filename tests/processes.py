"""Processes of a test's own: started, waited for, and gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This environment without what would lead a flow to somebody's own servers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **more,
    }


@contextmanager
def running(*command: str, log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, all of which is gone afterwards: a program by its path, or
    the words that follow `python`."""
    program = () if command[0].startswith("/") else (sys.executable,)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*program, *command],
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue


def wait_for(
    what: str,
    ready: Callable[[], Any],
    *,
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float,
) -> Any:
    """Ask until the answer is true; fail with the end of the log when time or the process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = ready()
        if answer:
            return answer
        if process.poll() is not None:
            break
        time.sleep(0.5)
    told = f"ended with {process.returncode}" if process.poll() is not None else f"not in {seconds}"
    pytest.fail(f"{what}: {told}\n{log.read_text(errors='replace')[-6000:]}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
