"""The kills of the last whole `make faults`, as the table of ``docs/reliability.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

RECORD = ROOT / "docs" / "reliability_kills.jsonl"
#: Kills of a whole run.
ALL = 60


def read(path: Path = RECORD) -> list[dict[str, Any]]:
    """The kills of a record, each once, in order."""
    kills = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {kill["kill"]: kill for kill in kills}[number]
        for number in sorted({k["kill"] for k in kills})
    ]


def table(kills: list[dict[str, Any]]) -> str:
    """One row a step: how often it was killed, and how; every kill of a record was survived."""
    rows = [
        "| killed | kills | at a moment | before a change | had left something | lost |",
        "|---|---|---|---|---|---|",
    ]
    for step in [*sorted({kill["step"] for kill in kills}), "all"]:
        mine = [kill for kill in kills if step in (kill["step"], "all")]
        timed = sum(kill["kind"] == "time" for kill in mine)
        new = sum(bool(kill["new"]) for kill in mine)
        rows.append(f"| {step} | {len(mine)} | {timed} | {len(mine) - timed} | {new} | 0 |")
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    print(table(read()))


if __name__ == "__main__":
    main()
