"""``docs/performance.md``: each claim beside what it is measured against; cost against size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Hourly maps of 85 years, as ERA5 has them.
ARCHIVE = 745_000
#: What a GPU is taken to keep up, in 10⁹ operations a second: a third of the float32 peak of an
#: NVIDIA A100. Assumed, not measured.
GPU_GFLOPS = 6_500

HEAD = """# How fast it is

Everything here is made by `make bench`, on the machine named below. Only ratios are claims: both
sides were run in turn in one process, a few rounds; the brackets hold the least and the greatest
ratio of the rounds. *asked* is what the project set out for. `make bench SMALL=1` runs all of it in
minutes, to see that it works; its numbers mean nothing. The numbers behind the page are in
[performance/results.json](performance/results.json)."""


def write_page(path: Path, results: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the page, and its picture in the folder beside it.

    Parameters
    ----------
    path
        The Markdown file; replaced.
    results
        Benchmark → its ``machine`` and ``claims``, as ``results.json`` holds them. A claim with
        ``points`` is a curve: cost against size.
    """
    parts = [HEAD, _machines(results)]
    rows = [claim for claim in _claims(results) if "points" not in claim]
    curves = [claim for claim in _claims(results) if "points" in claim]
    parts.append(_table(rows))
    notes = [f"* *{claim['claim']}*: {claim['note']}" for claim in rows if claim.get("note")]
    if notes:
        parts.append("What to know of them:\n\n" + "\n".join(notes))
    if curves:
        folder = path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        _draw(folder / "cost.png", curves)
        parts += ["## Cost against size", _curve_table(curves)]
        parts.append(f"![Cost against size]({folder.name}/cost.png)")
        parts += ["## A whole archive", _archive(curves)]
    partial = path.with_suffix(".partial")
    partial.write_text("\n\n".join(parts) + "\n", "utf-8")
    partial.replace(path)
    return path


def _claims(results: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in results.values():
        yield from found["claims"]


def _machines(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The machine in words; benchmarks that ran on another one are named apart."""
    told: dict[str, list[str]] = {}
    for name, found in results.items():
        about = found["machine"]
        words = (
            f"{about['processor']}, {about['cores']} cores, {about['memory_gib']:.0f} GiB, "
            f"Python {about['python']}"
        )
        told.setdefault(words, []).append(name)
    if len(told) == 1:
        return f"Machine: {next(iter(told))}."
    return "\n".join(f"* {', '.join(names)}: {words}." for words, names in told.items())


def _table(claims: list[dict[str, Any]]) -> str:
    lines = [
        "| claim | against | ours | theirs | ratio | asked | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in claims:
        unit = claim["unit"]
        reached = claim["ratio"] if claim["ratio"] is not None else claim["ours"]
        asked, met = claim["target"], ""
        if asked is not None and reached is not None:
            # Of memory and of time less is better; of all else more is.
            less = unit in ("MB", "MiB", "ms", "s") and claim["ratio"] is None
            met = "yes" if (reached <= asked if less else reached >= asked) else "**no**"
        spread = "" if claim["low"] is None else f" [{claim['low']:.3g}, {claim['high']:.3g}]"
        times = "" if claim["ratio"] is None else f"{claim['ratio']:.3g} ×{spread}"
        cells = [
            claim["claim"],
            claim["against"],
            _number(claim["ours"], unit),
            _number(claim["theirs"], unit),
            times,
            "" if asked is None else f"{asked:g}",
            met,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


# --- cost against size ----------------------------------------------------------------------------


def slope(points: list[list[float]]) -> float:
    """Exponent of cost against size: 1 is proportional. Least squares of the logarithms."""
    size, seconds = np.log(np.array(points, float)).T
    return float(np.polyfit(size, seconds, 1)[0])


def _curve_table(curves: list[dict[str, Any]]) -> str:
    lines = ["| | from | to | seconds | exponent |", "|---|---|---|---|---|"]
    for curve in curves:
        (small, least), *_, (large, most) = curve["points"]
        lines.append(
            f"| {curve['claim']} | {small:,.0f} {curve['unit']} | {large:,.0f} | "
            f"{least:.3g} to {most:.3g} | {slope(curve['points']):.2f} |"
        )
    return "\n".join(lines)


def _archive(curves: list[dict[str, Any]]) -> str:
    """Hours for 85 years of hourly maps: estimates, and from what they follow."""
    lines = [
        f"Time for {ARCHIVE:,} maps (85 years, hourly): *estimates* from the last points of the "
        "curves above, this machine's cores taken for the others'; reading is counted where the "
        "curve counts it, the network between machines is not. No GPU was measured: its column "
        f"divides the operations of the network by {GPU_GFLOPS / 1000:g} TFLOP/s, a third of the "
        "float32 peak of an NVIDIA A100, and counts no reading, which will be what it waits for.",
        "",
        "| | 2 cores | 64 cores | one GPU |",
        "|---|---|---|---|",
    ]
    for curve in curves:
        if curve["unit"] != "maps":
            continue
        size, seconds = curve["points"][-1]
        hours = ARCHIVE * seconds / size / 3600 * curve.get("cores", 2) / 2
        gflop = curve.get("gflop")
        gpu = "" if gflop is None else f"{ARCHIVE * gflop / GPU_GFLOPS / 60:.2g} min"
        lines.append(f"| {curve['claim']} | {hours:.2g} h | {hours / 32 * 60:.2g} min | {gpu} |")
    return "\n".join(lines)


def _draw(path: Path, curves: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    units = list(dict.fromkeys(curve["unit"] for curve in curves))
    figure, axes = plt.subplots(1, len(units), figsize=(5.2 * len(units), 4), squeeze=False)
    for axis, unit in zip(axes[0], units, strict=True):
        for curve in curves:
            if curve["unit"] != unit:
                continue
            size, seconds = np.array(curve["points"], float).T
            label = f"{curve['claim']}, exponent {slope(curve['points']):.2f}"
            axis.loglog(size, seconds, marker="o", label=label)
        axis.set_xlabel(unit)
        axis.set_ylabel("seconds")
        axis.grid(visible=True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
