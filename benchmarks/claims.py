"""What a speed claim is: two sides measured in turn in one run, their ratio and its spread.

A benchmark is a module with ``measure(small: bool) -> Iterator[Claim | Curve]``; as a script it
prints one line of JSON for each. ``python -m benchmarks`` (``make bench``) runs all of them, each
in a process of its own, and writes ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One row of the page.

    Attributes
    ----------
    claim, against
        What was measured, and what it is measured against.
    ours, theirs
        Median of both sides, in `unit`; none where only one side exists.
    ratio, low, high
        How many times better ours is: median over the rounds, and their extremes.
    target
        What the project asks of the ratio (or of `ours`, where there is no other side).
    note
        What a reader must know to read the numbers right.
    """

    claim: str
    against: str
    unit: str
    ours: float | None
    theirs: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Cost against size: ``points`` are (size in `unit`, seconds), on so many `cores`.

    `gflop` is what the network computes for one item, in 10⁹ floating-point operations.
    """

    claim: str
    unit: str
    points: list[tuple[float, float]]
    cores: int
    gflop: float | None = None


def side_by_side(
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    claim: str,
    against: str,
    unit: str,
    target: float | None = None,
    rounds: int = 3,
    note: str = "",
) -> Claim:
    """Measure two sides in turn, `rounds` times.

    Parameters
    ----------
    ours, theirs
        Each does its work once and returns how many items that were; they are timed here. A side
        that takes long may do fewer items: rates are compared.
    unit
        Of a rate: ``maps/s``, ``windows/s``.
    """
    rates: list[tuple[float, float]] = [(rate(ours), rate(theirs)) for _ in range(rounds)]
    ratios = [a / b for a, b in rates]
    return Claim(
        claim=claim,
        against=against,
        unit=unit,
        ours=statistics.median(a for a, _ in rates),
        theirs=statistics.median(b for _, b in rates),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        target=target,
        note=note,
    )


def rate(work: Callable[[], float]) -> float:
    """Items a second of one go."""
    begun = time.perf_counter()
    items = work()
    return items / (time.perf_counter() - begun)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": cores(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def resident_mb(key: str = "VmHWM") -> float:
    """The most memory that this process has held (``VmRSS``: that it holds now), MB.

    Not getrusage: its maximum includes the process that this one was forked from.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main(measure: Callable[[bool], Iterator[Claim | Curve]]) -> None:
    """Run one benchmark as a script: one line of JSON a claim."""
    parser = argparse.ArgumentParser(description=(measure.__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds, to see that it works")
    small = parser.parse_args().small or os.environ.get("SMALL") == "1"
    for claim in measure(small):
        print(json.dumps(asdict(claim)), flush=True)
