"""The command ``medicane`` as tests call it: in this process for speed, as a process for proof."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from medicane.cli import app, run
from tests.conftest import ROOT


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error of a command that was refused (status 2)."""
        assert self.status == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("medicane: ")
        assert "Traceback" not in self.err
        return lines[0]


class Medicane:
    """Calls commands in this process; what they print is caught from the file descriptors."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: object) -> Answer:
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(app, [str(word) for word in words])
        out, err = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    def done(self, *words: object) -> str:
        """What a command prints that must succeed."""
        answer = self(*words)
        assert answer.status == 0, answer.err
        return answer.out


def process(*words: object, folder: Path | None = None) -> Answer:
    """The same as a process of its own, in a folder."""
    ended = subprocess.run(
        [sys.executable, "-m", "medicane", *map(str, words)],
        cwd=folder or ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a path with its bytes; locks, which are empty, left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.suffix != ".lock"
    }


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Hold that the body changes nothing below a folder, not a byte and not a name."""
    before = tree(folder)
    yield
    after = tree(folder)
    assert after.keys() == before.keys()
    assert after == before
