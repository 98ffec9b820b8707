"""Run every benchmark, each in a process of its own, and write ``docs/performance.md``.

    python -m benchmarks [--small] [--out docs/performance] [--only NAME …]

A module of this folder takes part if it has ``measure(small: bool)``. What is measured is kept in
``OUT/results.json`` module by module, so that a run that was cut, or ``--only``, adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.claims import machine
from benchmarks.page import write_page

HERE = Path(__file__).parent


def modules() -> list[str]:
    """Names of the benchmarks, as the page lists them."""
    return sorted(
        path.stem
        for path in HERE.glob("*.py")
        if "\ndef measure(small: bool)" in path.read_text("utf-8")
    )


def run(name: str, *, small: bool) -> list[dict[str, Any]]:
    """The claims of one benchmark; what it prints besides goes to the terminal."""
    # OPENBLAS_CORETYPE may name a lesser processor than this one, and halve its peak.
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "SMALL": "1" if small else "0"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=HERE.parent,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="minutes, to see that it works")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "performance")
    parser.add_argument("--only", nargs="+", choices=modules(), default=modules())
    options = parser.parse_args()
    file = options.out / "results.json"
    options.out.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name in options.only:
        print(f"· {name}", flush=True)
        about = machine()
        kept[name] = {"machine": about, "claims": run(name, small=options.small)}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        partial.replace(file)
    page = write_page(options.out.with_suffix(".md"), kept)
    print(f"→ {page}")


if __name__ == "__main__":
    main()
