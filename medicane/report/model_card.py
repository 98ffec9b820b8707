"""The model card: what a detector is, what it was made of, how good it is, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medicane.report.tables import decimal, no_pipe, percent, score_table_markdown

#: What every detector of this kind must not be used for.
_NOT_FOR = (
    "Warnings, or any decision on which lives or property depend, without a forecaster.",
    "Maps unlike those it was trained on: another area, spacing, time step, model or reanalysis, "
    "or a climate other than that of its training years. It refuses other channels and a grid that "
    "is too small, and nothing else.",
    "Counting or comparing medicanes between periods without correcting for its misses and false "
    "alarms, whose rates are below.",
    "Intensity, track or rain: it says whether, not how strong; a centre in the detections is that "
    "of the pressure field.",
)
_NOT_FOR_SYNTHETIC = (
    "Anything at all concerning real storms: it has seen vortices from formulas in random weather, "
    "never the atmosphere.",
)
_SHOWN = (
    ("Detector", "model"),
    ("MLflow run", "run_id"),
    ("Network", "network"),
    ("Sequence", "sequence"),
    ("Area and spacing", "area"),
    ("Channels", "channels"),
    ("Data digest", "data_digest"),
    ("Software", "software"),
    ("Seed", "seed"),
)


@dataclass(frozen=True)
class SplitFacts:
    """One split: its maps, its span and its base rate (None where no label is known)."""

    n_maps: int
    start: str
    end: str
    base_rate: float | None


def model_card(
    *,
    model: str,
    facts: Mapping[str, Any],
    network: str,
    splits: Mapping[str, SplitFacts],
    run_id: str | None = None,
    scores: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown.

    Parameters
    ----------
    model
        The detector's URI or file.
    facts
        What the model's file says of its training (`medicane.model.facts_of`).
    network
        Encoder and head in words.
    splits
        Split → its facts.
    run_id
        The MLflow run of its training.
    scores
        ``scores.json`` of the test split; without, the card says that it was not evaluated.
    """
    told = {
        "model": f"`{model}`",
        "run_id": f"`{run_id}`" if run_id else None,
        "network": network,
        "sequence": f"{facts['length']} maps, {facts['step_hours']} h apart",
        "area": _area(facts),
        "channels": ", ".join(f"`{name}`" for name in facts["channels"]),
        "data_digest": f"`{facts.get('data_digest')}`",
        "software": f"medicane {facts.get('software_version')}",
        "seed": facts.get("seed"),
    }
    idealised = bool(facts.get("idealised"))
    lines = ["# Model card", ""]
    if idealised:
        lines += [
            "> **Synthetic only.** Trained on an idealised sea. Its scores say that the method "
            "works there; they say nothing about real storms.",
            "",
        ]
    lines += [f"* {name}: {told[key]}" for name, key in _SHOWN if told[key] is not None]
    lines += ["", "## Data", "", *_split_table(splits)]
    lines += ["", "## What it calls a medicane", "", *_label(facts.get("label") or {})]
    lines += ["", "## How good it is", ""]
    lines += ["Not yet evaluated."] if scores is None else _scores(scores, facts)
    lines += ["", "## What it must not be used for", ""]
    lines += [f"* {text}" for text in (*(_NOT_FOR_SYNTHETIC if idealised else ()), *_NOT_FOR)]
    return "\n".join(lines) + "\n"


def _area(facts: Mapping[str, Any]) -> str:
    degrees, box = facts.get("degrees"), facts.get("domain") or {}
    spacing = "the points of the data" if degrees is None else f"{degrees}°"
    if not box:
        return spacing
    return (
        f"{box['south']:g} to {box['north']:g}°N, {box['west']:g} to {box['east']:g}°E, {spacing}"
    )


def _split_table(splits: Mapping[str, SplitFacts]) -> list[str]:
    lines = ["| split | maps | from | to | base rate |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {one.n_maps} | {one.start} | {one.end} | {percent(one.base_rate)} |"
        for name, one in splits.items()
    ]
    return [
        *lines,
        "",
        "Threshold and temperature were fitted on validation; test was not touched.",
    ]


def _label(label: Mapping[str, Any]) -> list[str]:
    version = label.get("version", "unknown")
    lines = [f"Label definition `{version}`:", "", "| | |", "|---|---|"]
    return lines + [
        f"| `{key}` | {no_pipe(str(value))} |" for key, value in label.items() if key != "version"
    ]


def _scores(scores: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    entry = next(iter(scores["models"].values()))
    events = entry["events"]
    low, high = (events[f"false_alarms_per_year_{end}"] for end in ("low", "high"))
    lines = [
        f"On the {scores['split']} split, {scores['start']} to {scores['end']}, whole and at its "
        f"base rate of {percent(scores['base_rate'])} ({percent(scores['train_base_rate'])} in "
        "training):",
        "",
        score_table_markdown(scores),
        "",
        f"* Threshold: {scores['threshold']:.4g}, temperature {facts.get('temperature', 1.0):.3g}. "
        f"It costs {decimal(events['false_alarms_per_year'], 1)} false alarms a year "
        f"({decimal(low, 1)} to {decimal(high, 1)}), and finds {events['hits']} of "
        f"{events['hits'] + events['misses']} storms"
        f" ({decimal(events['pod']['low'])} to {decimal(events['pod']['high'])} of all), on the "
        f"mean {decimal(events['onset_delay_hours'], 1)} h after their begin.",
        f"* Expected calibration error: {decimal(entry['ece']['value'], 3)}.",
    ]
    hard = entry.get("hard_negatives", {})
    if hard.get("n_maps"):
        lines.append(
            f"* Of {hard['n_maps']} maps of storms that are no medicane it calls "
            f"{percent(hard['false_alarm_rate'])} one"
            + "".join(
                f"; {kind}: {percent(kind_told['false_alarm_rate'])} of {kind_told['n_maps']}"
                for kind, kind_told in hard.get("kinds", {}).items()
            )
            + "."
        )
    for note in scores.get("notes", []):
        lines.append(f"* Beware: {note}.")
    return lines
