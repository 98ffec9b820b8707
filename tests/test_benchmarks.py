"""The page of the speed claims: its numbers, its verdicts, and that every benchmark runs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import modules
from benchmarks.claims import Claim, machine, side_by_side
from benchmarks.page import slope, write_page

ROOT = Path(__file__).resolve().parent.parent
MACHINE = {"processor": "a processor", "cores": 2, "memory_gib": 23.4, "python": "3.11.7"}


def claim(**keys: Any) -> dict[str, Any]:
    told = {"claim": "ours", "against": "theirs", "unit": "maps/s", "ours": 50.0, "theirs": 10.0}
    told |= {"ratio": 5.0, "low": 4.0, "high": 6.0, "target": None, "note": ""}
    return told | keys


def page_of(folder: Path, claims: list[dict[str, Any]]) -> str:
    results = {"one": {"machine": MACHINE, "claims": claims}}
    return write_page(folder / "performance.md", results).read_text("utf-8")


def test_both_sides_are_measured_in_turn_and_compared_round_by_round() -> None:
    calls = []

    def ours() -> float:
        calls.append("ours")
        return 1000.0

    def theirs() -> float:
        calls.append("theirs")
        sum(range(200_000))
        return 1.0

    found = side_by_side(ours, theirs, claim="a", against="b", unit="maps/s", rounds=3)
    assert calls == ["ours", "theirs"] * 3
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio <= found.high
    assert found.ratio > 1000


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"target": 5}, "| 5 | yes |"),
        ({"target": 5.1}, "| 5.1 | **no** |"),
        ({}, "|  |  |"),
        # Of memory less is better.
        ({"unit": "MiB", "ratio": None, "low": None, "target": 500}, "| 500 | yes |"),
        ({"unit": "MiB", "ratio": None, "low": None, "target": 49}, "| 49 | **no** |"),
        ({"unit": "MB", "ratio": None, "low": None, "target": 500}, "| 500 | yes |"),
    ],
)
def test_the_page_says_what_was_asked_and_whether_it_is_met(
    keys: dict[str, Any], verdict: str, tmp_path: Path
) -> None:
    text = page_of(tmp_path, [claim(**keys)])
    row = next(line for line in text.splitlines() if line.startswith("| ours"))
    assert row.endswith(verdict)


def test_a_claim_with_one_side_shows_one_and_a_note_is_told(tmp_path: Path) -> None:
    keys = {"theirs": None, "ratio": None, "low": None, "high": None, "note": "half of it sleeps"}
    text = page_of(tmp_path, [claim(unit="ms", ours=12.34, **keys)])
    assert "| ours | theirs | 12.3 ms |  |  |  |  |" in text
    assert "* *ours*: half of it sleeps" in text


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    points = [[n, 3 * n**exponent] for n in (1e3, 1e4, 1e5)]
    assert slope(points) == pytest.approx(exponent)


def test_a_curve_is_drawn_and_an_archive_estimated(tmp_path: Path) -> None:
    points = [[1000, 1.0], [10_000, 10.0]]
    curve = {"claim": "detection", "unit": "maps", "points": points, "gflop": 0.2}
    text = page_of(tmp_path, [claim(), curve])
    assert (tmp_path / "performance" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "| detection | 1,000 maps | 10,000 | 1 to 10 | 1.00 |" in text
    # 745,000 maps at 1 ms: 745 s on two cores, a thirty-second of it on sixty-four; 149 TFLOP.
    assert "| detection | 0.21 h | 0.39 min | 0.38 min |" in text
    assert "estimates" in text


def test_machines_are_told_apart(tmp_path: Path) -> None:
    other = MACHINE | {"cores": 16}
    results = {
        "one": {"machine": MACHINE, "claims": [claim()]},
        "two": {"machine": other, "claims": [claim()]},
    }
    text = write_page(tmp_path / "performance.md", results).read_text("utf-8")
    assert "* one: a processor, 2 cores" in text
    assert "* two: a processor, 16 cores" in text


def test_the_machine_is_this_one() -> None:
    told = machine()
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert told["memory_gib"] > 0
    assert json.dumps(told)


def test_a_claim_is_what_the_page_reads(tmp_path: Path) -> None:
    from dataclasses import asdict

    made = asdict(Claim(claim="a", against="b", unit="maps/s", ours=1.0))
    assert set(made) == set(claim())
    assert "| a | b | 1 maps/s |" in page_of(tmp_path, [made])


def test_every_benchmark_says_what_it_measures() -> None:
    """Each module that takes part has ``measure``, and a first line that says what it is."""
    found = modules()
    assert {"detection", "encode_once_training", "loader", "prepare", "scaling"} <= set(found)
    for name in found:
        tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text("utf-8"))
        assert ast.get_docstring(tree), name
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert [one.arg for one in functions["measure"].args.args] == ["small"], name
        assert ast.get_docstring(functions["measure"]), name


@pytest.mark.slow
@pytest.mark.timeout(1500)  # beside other tests it may take twice its four minutes
def test_all_benchmarks_run_small_and_fill_the_page(tmp_path: Path) -> None:
    """What `make bench SMALL=1` does; that it works, not how fast anything is."""
    out = tmp_path / "performance"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--small", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert list(results) == modules()
    page = out.with_suffix(".md").read_text("utf-8")
    for name, found in results.items():
        assert found["claims"], name
        for told in found["claims"]:
            assert f"| {told['claim']} |" in page, name
            numbers = [told.get("ours"), *(seconds for _, seconds in told.get("points", []))]
            # int8 that its check has refused is told without a number.
            refused = "CHANGED by check-precision" in told.get("note", "")
            assert refused or any(number is not None for number in numbers), told["claim"]
    assert (out / "cost.png").is_file()
