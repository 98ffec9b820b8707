"""Killed at random moments and run again: as if nothing had been, not a byte.

Half of the kills come after a random share of the processor time that a step takes, half before a
random one of its changes of files, where a moment's chance would hardly ever fall. The step, which
of the two and when follow from the number of the kill.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medicane.errors import InputError
from medicane.store import open_store, verify_store
from tests.faults.record import read
from tests.faults.way import WAY, Way, content, listing

pytestmark = pytest.mark.slow

#: How many; `make faults` says sixty. The first of them are one of each command.
KILLS = int(os.environ.get("FAULTS_KILLS", "4"))
#: The longest of the others are left to `make faults` too.
whole = pytest.mark.skipif("FAULTS_KILLS" not in os.environ, reason="run by make faults")
#: Steps of `WAY` in the order in which they are killed; training has the most to lose.
ORDER = (0, 2, 3, 5, 1, 2, 4, 6)
#: A victim that has ended before it was killed is placed again, so often.
TRIES = 20


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    made = Way(tmp_path_factory.mktemp("way"))
    try:
        made.build()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_step_run_again_leaves_what_an_undisturbed_one_does(way: Way, kill: int) -> None:
    if kill in {survived["kill"] for survived in recorded()}:
        pytest.skip("survived already: RESUME=1")
    number = ORDER[kill % len(ORDER)]
    step = WAY[number]
    hit = {"kill": kill, "step": step.name, **killed(way, number, np.random.default_rng([2, kill]))}
    nothing_is_half_written(way, number)
    number = run_again(way, number)
    assert way.is_as_undisturbed(number), hit
    assert listing(way.project) == listing(way.state(number + 1)), hit
    verify_store(way.project / "maps.zarr")
    if step.name == "train":
        assert one_training(way.project / "mlflow.db") == (["FINISHED"], 1), hit
    heard = Counter(way.notices)
    assert set(heard) == set(way.told[number].items()), hit
    assert max(heard.values(), default=1) <= 2, hit
    record({**hit, "told_twice": sum(n - 1 for n in heard.values())})


def killed(way: Way, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Kill a step, placed anew until the kill comes before its end; how and where it was hit."""
    step = WAY[number]
    for tries in range(1, TRIES + 1):
        way.place(number)
        way.notices.clear()
        if rng.random() < 0.5:
            of, moment = way.seconds[number], rng.random() * way.seconds[number]
            about = {"kind": "time", "moment": round(moment, 3), "of": round(of, 3)}
            ended = way.forks.order(step.words, kill_at=moment)
        else:
            change = int(rng.integers(way.operations[number])) + 1
            about = {"kind": "change", "moment": change, "of": way.operations[number]}
            ended = way.forks.order(step.words, fatal=change)
        if ended.status == -signal.SIGKILL:
            new = sorted(listing(way.project) - listing(way.state(number)))
            return {**about, "tries": tries, "before": ended.told, "new": new[:8]}
        assert ended.status == 0, ended.log  # it was through before its time had come
    pytest.fail(f"{step.name}: ended before each of {TRIES} kills")


def run_again(way: Way, number: int) -> int:
    """Do a step again; of a training, known by its detections, the next one too. The last step."""
    while True:
        ended = way.forks.order(WAY[number].words)
        assert ended.status == 0, ended.log
        if WAY[number].results:
            return number
        number += 1


def nothing_is_half_written(way: Way, number: int) -> None:
    """What has its final name after a kill is whole: what was there before, or what should be."""
    store = way.project / "maps.zarr"
    if store.exists():
        open_store(store, incomplete=True)
        verify_store(store)
    else:
        assert number == 0
    for folder in ("found", "watched"):
        for name in ("detections.nc", "events.csv", "tracks.csv"):
            file = f"{folder}/{name}"
            now = content(way.project, file)
            assert now in [content(way.state(n), file) for n in (number, number + 1)], file
    with (
        contextlib.suppress(FileNotFoundError),
        zipfile.ZipFile(way.project / "training.keras") as f,
    ):
        assert f.testzip() is None


def one_training(database: Path) -> tuple[list[str], int]:
    """How the runs of a database have ended, and how many versions of a model it has."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("SELECT status FROM runs").fetchall()
        (versions,) = connection.execute("SELECT COUNT(*) FROM model_versions").fetchone()
    return [status for (status,) in runs], versions


def recorded() -> list[dict[str, Any]]:
    """The kills that were survived, if a record is kept."""
    path = Path(os.environ.get("FAULTS_RECORD", ""))
    return read(path) if path.is_file() else []


def record(hit: dict[str, Any]) -> None:
    """Note a kill that was survived, if a record is kept."""
    if "FAULTS_RECORD" in os.environ:
        with Path(os.environ["FAULTS_RECORD"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(hit) + "\n")


def test_a_store_that_is_not_whole_is_not_taken_for_one(way: Way) -> None:
    """The check itself: one changed byte of a chunk is found."""
    way.place(3)
    chunk = next((way.project / "maps.zarr" / "msl_local").glob("c*"))
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(InputError, match="must have the digest"):
        verify_store(way.project / "maps.zarr")


# --- disks and clocks ----------------------------------------------------------------------------


@pytest.fixture
def disk(way: Way) -> Iterator[Disk]:
    """A disk of its own under the project, if this machine lets us mount one."""
    shutil.rmtree(way.project, ignore_errors=True)
    way.project.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(way.project)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield Disk(way.project)
    finally:
        subprocess.run(["umount", "--lazy", str(way.project)], check=True)


class Disk:
    """A small disk that can be filled, and made read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount_again(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def leave(self, free: int) -> None:
        """Leave so many bytes free."""
        found = os.statvfs(self.path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.mount_again(f"size={used + free}")


def size(folder: Path) -> int:
    """Bytes of a folder on a disk of pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "number", [0, 3, pytest.param(2, marks=whole), pytest.param(6, marks=whole)]
)
def test_a_disk_that_is_full_or_read_only_is_one_line_and_nothing_lost(
    way: Way, disk: Disk, number: int
) -> None:
    step = WAY[number]
    way.place(number)
    room = size(way.state(number + 1)) - size(way.project)
    for options in (f"full {room // 20}", f"full {room // 2}", "read-only"):
        if options == "read-only":
            disk.mount_again("size=1g,ro")
        else:
            disk.leave(int(options.split()[1]))
        ended = way.forks.order(step.words)
        disk.mount_again("size=1g,rw")
        told = [line for line in ended.log.splitlines() if line.startswith("medicane: ")]
        assert ended.status in (1, 2), (options, ended.log)
        assert len(told) == 1, (options, ended.log)
        assert re.search("No space left|disk is full|Read-only", told[0]), (options, told)
        assert "Traceback" not in ended.log
        nothing_is_half_written(way, number)
    number = run_again(way, number)
    assert way.is_as_undisturbed(number)
    assert listing(way.project) == listing(way.state(number + 1))
    verify_store(way.project / "maps.zarr")


#: How far from the true time the clock stands, in turn.
JUMPS = ("+0", "-3650d", "+40d", "-1h", "+7300d")


@pytest.fixture
def jumping_clock(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What makes the clock of a process jump back and forth all the time, decades and hours."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("Debian's faketime is not installed")
    file, stop = tmp_path / "clock", threading.Event()
    file.write_text(JUMPS[0])

    def jump() -> None:
        for jump in itertools.cycle(JUMPS):
            (tmp_path / "next").write_text(jump)
            os.replace(tmp_path / "next", file)
            if stop.wait(0.2):
                return

    thread = threading.Thread(target=jump)
    thread.start()
    try:
        yield {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as where a time server sets the clock
            "NO_FAKE_STAT": "1",
        }
    finally:
        stop.set()
        thread.join()


@whole
def test_a_clock_that_jumps_changes_nothing(way: Way, jumping_clock: dict[str, str]) -> None:
    forks = way.new_forks(**jumping_clock)
    way.place(0)
    file = way.project / "config.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    # No notices: faketime breaks what waits for a socket, or sleeps until a time.
    del values["watch"]["webhook"]
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    for number, step in enumerate(WAY):
        if number:
            way.receive(step)
        ended = forks.order(step.words)
        assert ended.status == 0, (step.name, ended.log)
        assert way.is_as_undisturbed(number), step.name
    assert listing(way.project) == listing(way.state(len(WAY)))
    assert one_training(way.project / "mlflow.db") == (["FINISHED"], 1)
