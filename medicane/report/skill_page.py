"""The page of the benchmark: tables, figures, and the command behind every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medicane import names
from medicane.report import figures
from medicane.report.tables import cell_text, decimal, no_pipe, percent

if TYPE_CHECKING:
    from medicane.evaluate import ScoredForecasts

#: Forecasts that no row makes, and how the tables call them.
UNTRAINED = {
    "phase_space": "phase space + hysteresis",
    "phase_space_fitted": "phase space, thresholds fitted on validation",
    "climatology": "climatology (month of the year)",
    "out_of_domain": "autoencoder, reconstruction error",
}
#: Said of a row below the tables.
REMARKS = {
    "densenet121": "DenseNet121 started from random weights and with nothing frozen: ImageNet's "
    "were not within reach (`model.weights` takes a local file). It costs twenty times the "
    "default a map, so that the same minutes show it fewer epochs.",
    "out_of_domain": "The autoencoder has seen no label: its error flags what is unlike the "
    "training maps, and is listed to show that this is not the same as a medicane.",
}
_SCORES = (("auc_pr", "AUC-PR"), ("csi", "CSI"), ("pod", "POD"), ("far", "FAR"))
_MARK = {True: "yes", False: "**no**", None: "not measured"}

#: What is asked and found, and whether it holds.
Asked = Sequence[tuple[str, str, bool | None]]


def write_skill_page(
    path: Path,
    results: Mapping[str, Any],
    *,
    forecasts: Mapping[str, ScoredForecasts],
    targets: Mapping[str, Asked],
    command: str,
) -> Path:
    """Write the page and its figures (in a folder beside it, named as the page).

    Parameters
    ----------
    path
        A Markdown file; replaced.
    results
        The content of ``results.json``.
    forecasts
        Set of maps → what was forecast for them.
    targets
        Title of a table → its rows.
    command
        What makes the page again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = path.parent / path.stem
    pictures.mkdir(exist_ok=True)
    main = results["sets"]["benchmark"]
    drawn = _figures(pictures, results, forecasts["benchmark"])
    parts = [
        "# Is it worth using? The benchmark on the idealised sea",
        _headline(results),
        f"Everything here is made by `{command}`; what is trained already is not trained again. "
        "A row of a table is trained or recomputed alone by `medicane skill --row NAME`; the "
        "forecasts behind every score are kept in `forecasts_SET.nc`, the scores in "
        "`results.json`, the trainings as MLflow runs tagged with the row's name.",
        "Intervals are 95 %, bootstrapped by storm and by week; differences are paired over the "
        "same resamples. Threshold and temperature were chosen on validation; no network has seen "
        "the test years. *Synthetic data only: nothing here says how it does on reanalyses.*",
        _missing(results),
        "## Targets",
        *(f"### {title}\n\n{_asked_table(rows)}" for title, rows in targets.items() if rows),
        "## Rivals",
        _about(main, "the benchmark's test years"),
        _score_table(results, main, "rivals"),
        f"![Scores with intervals]({pictures.name}/{drawn['scores']})",
        "*Validation* is the AUC-PR of the best epoch on the validation years: what a choice "
        "between rows may look at. Minutes are processor time over all cores, validation included, "
        "divided by two: minutes on two free cores. *Archives*: the forecast looks ahead, as the "
        "physical rule does. "
        + " ".join(told for name, told in REMARKS.items() if name in main["models"]),
        "## Training ideas",
        "Each row changes one thing of the default; Δ is the row minus the default.",
        _score_table(results, main, "ablations"),
        "## By event",
        _event_table(results, main),
        "## The hard negatives apart",
        "Maps on which a storm that is no medicane is about, by its kind: the share of them that "
        "is called a medicane, and in how many of the storms that happens at all.",
        _kinds_table(results, main),
        "## Reliability, precision and recall",
        f"![Reliability]({pictures.name}/{drawn['reliability']})\n"
        f"![Precision and recall]({pictures.name}/{drawn['precision_recall']})",
        "## Other years and other seas",
        *(
            f"### {name.replace('_', ' ').capitalize()}\n\n{_about(found, _sea_words(name))}\n\n"
            f"{_score_table(results, found, None)}"
            for name, found in results["sets"].items()
            if name != "benchmark"
        ),
        "## What a good sea shows",
        _asked_table([_property(told) for told in results["acceptance"].values()]),
        "## The recipe",
        _recipe(results),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def headline(results: Mapping[str, Any], row: str = "detector") -> str:
    """The one sentence that may be quoted."""
    found = results["sets"]["benchmark"]
    told = (
        f"on an *idealised sea* at a base rate of {percent(found['base_rate'])}, "
        f"{_years(found):.3g} unseen years, {found['n_storms']} storms: {_scores_of(found, row)}"
    )
    if "phase_space" in found["models"]:
        told += f"; phase space + hysteresis: {_scores_of(found, 'phase_space')}"
    return told


def _scores_of(found: Mapping[str, Any], row: str) -> str:
    mine = found["models"][row]
    return f"CSI {cell_text(mine['csi'])}, AUC-PR {cell_text(mine['auc_pr'])}"


# --------------------------------------------------------------------------------------------------


def _headline(results: Mapping[str, Any]) -> str:
    found, kept = (results["sets"].get(name) for name in ("benchmark", "held_back"))
    lines = [f"**The default detector** {headline(results)}."]
    if "ensemble" in found["models"]:
        title = _title(results, "ensemble").capitalize()
        lines.append(f"{title}: {_scores_of(found, 'ensemble')}.")
    if kept is not None:
        lines.append(
            f"On {_years(kept):.3g} further years that no choice was made on: "
            f"{_scores_of(kept, 'detector')}; phase space + hysteresis: "
            f"{_scores_of(kept, 'phase_space')}."
        )
    return " ".join(lines)


def _missing(results: Mapping[str, Any]) -> str:
    titles = results.get("not_trained")
    return f"Rows of the study that are not trained yet: {', '.join(titles)}." if titles else ""


def _years(found: Mapping[str, Any]) -> float:
    start, end = (np.datetime64(found[end]) for end in ("start", "end"))
    return float((end - start) / np.timedelta64(1, "h")) / 8766


def _about(found: Mapping[str, Any], what: str) -> str:
    return (
        f"{what[0].upper()}{what[1:]}, {found['start'][:10]} to {found['end'][:10]}: "
        f"{found['n_maps']:,} maps, {found['n_storms']} storms, base rate "
        f"{percent(found['base_rate'])} (the AUC-PR of no skill)."
    )


def _sea_words(name: str) -> str:
    return {
        "held_back": "years of the benchmark's own sea that no choice was made on",
        "holland": "a vortex family that training never saw (Holland 1980)",
        "budget": "8 training years at 3 %, tested on the first 12 test years at 0.8 %",
    }.get(name, f"the same sea at another base rate ({name.replace('_', ' ')})")


def _title(results: Mapping[str, Any], name: str) -> str:
    if name == "budget":
        return "the default, trained on 8 years at 3 %"
    row = results["rows"].get(name)
    return no_pipe(row["title"] if row else UNTRAINED.get(name, name))


def _members(results: Mapping[str, Any], found: Mapping[str, Any], table: str | None) -> list[str]:
    """Forecasts of a table: those of its rows, the reference and the untrained ones, best first."""
    rows = results["rows"]
    chosen = [
        name
        for name in found["models"]
        if table is None
        or name == found["reference"]
        or rows.get(name, {}).get("table") == table
        or (table == "rivals" and name in UNTRAINED)
    ]
    return sorted(chosen, key=lambda name: -(found["models"][name]["auc_pr"]["value"] or 0))


def _score_table(results: Mapping[str, Any], found: Mapping[str, Any], table: str | None) -> str:
    heads = ["", *(head for _, head in _SCORES), "Δ AUC-PR", "Δ CSI", "Brier skill", "ECE"]
    trained = table is not None
    heads += ["validation", "weights", "minutes"] if trained else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in _members(results, found, table):
        entry = found["models"][name]
        cells = [_title(results, name)]
        if name == found["reference"]:
            cells[0] = f"**{cells[0]}**"
        cells += [cell_text(entry[key]) for key, _ in _SCORES]
        gap = found["differences"].get(name)
        cells += [
            "" if gap is None else cell_text(gap[key], sign=True) for key in ("auc_pr", "csi")
        ]
        cells += [decimal(entry["brier_skill"]["value"]), decimal(entry["ece"]["value"], 4)]
        if trained:
            row = results["rows"].get(name, {})
            own = row.get("model_of") is None
            weights = row.get("n_parameters") if own else None
            minutes = row.get("core_minutes") if own else None
            cells += [decimal(row.get("val_auc_pr")) if own else ""]
            cells += ["" if weights is None else f"{weights:,}"]
            cells += ["" if minutes is None else f"{minutes / 2:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _event_table(results: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    lines = [
        "| | storms found | … half of their maps | false alarms a year | onset delay (h) |",
        "|---|---|---|---|---|",
    ]
    for name in _members(results, found, None):
        events = found["models"][name]["events"]
        total = events["hits"] + events["misses"]
        pod = events.get("pod") or {}
        span = "" if pod.get("low") is None else f" [{pod['low']:.2f}, {pod['high']:.2f}]"
        lines.append(
            f"| {_title(results, name)} | {events['hits']} of {total}{span} | "
            f"{events.get('hits_half', '')} | {decimal(events['false_alarms_per_year'], 1)} | "
            f"{decimal(events['onset_delay_hours'], 1)} |"
        )
    return "\n".join(lines)


def _kinds_table(results: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    shown = [
        name
        for name in ("detector", "ensemble", "single_map", "phase_space", "phase_space_fitted")
        if name in found["models"]
    ]
    kinds = found["models"][shown[0]]["hard_negatives"].get("kinds")
    if not kinds:
        return "The catalogue does not say kinds."
    heads = ["kind", "storms", "maps", *(_title(results, name) for name in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind, told in kinds.items():
        cells = [kind.replace("_", " "), str(told["n_storms"]), f"{told['n_maps']:,}"]
        for name in shown:
            mine = found["models"][name]["hard_negatives"]["kinds"][kind]
            cells.append(f"{percent(mine['false_alarm_rate'])} ({mine['storms_with_false_alarm']})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _asked_table(rows: Asked) -> str:
    lines = ["| asked | found | met |", "|---|---|---|"]
    lines += [f"| {no_pipe(a)} | {no_pipe(f)} | {_MARK[met]} |" for a, f, met in rows]
    return "\n".join(lines)


def _property(told: Mapping[str, Any]) -> tuple[str, str, bool | None]:
    found = told["found"]
    return told["asks"], "–" if found is None else _words(found), told["holds"]


def _words(found: Any) -> str:
    if isinstance(found, Mapping):
        if "low" in found:
            return cell_text(found)
        return ", ".join(
            f"{key.replace('_', ' ')} {_words(value)}" for key, value in found.items()
        ).strip()
    if isinstance(found, float):
        return decimal(found, 3)
    return str(found)


def _recipe(results: Mapping[str, Any]) -> str:
    recipe = results["recipe"]
    sea, train, sequences = recipe["sea"], recipe["train"], recipe["sequences"]
    channels = [c if isinstance(c, str) else c["name"] for c in recipe["data"]["channels"]]
    splits = {
        name: f"{recipe['splits'][name][0][0][:10]} to {recipe['splits'][name][0][1][:10]}"
        for name in ("train", "validation", "test")
        if recipe["splits"][name]
    }
    lines = [
        "| | |",
        "|---|---|",
        f"| sea | {sea['years']:g} years, {sea['step_hours']}-hourly, {sea['degrees']}°, "
        f"base rate {percent(sea['base_rate'])}, seed {sea['seed']} |",
        *(f"| {name} | {span} |" for name, span in splits.items()),
        f"| channels | {', '.join(channels)} |",
        f"| sequences | {sequences['length']} maps, stride {sequences['stride']} |",
        f"| training | {train['epochs']} epochs at most, {train['negatives_per_positive']} windows "
        f"without a medicane for each with one, batches of {train['batch_size']} |",
        f"| software | medicane {results['software_version']}; {results['machine']} |",
    ]
    return "\n".join(lines)


def _figures(folder: Path, results: Mapping[str, Any], scored: ScoredForecasts) -> dict[str, str]:
    """Draw the page's figures; what each file is called."""
    from medicane.evaluate import precision_recall, reliability, resample_blocks

    main = results["sets"]["benchmark"]
    known = scored.medicane != names.UNKNOWN
    for forecast in scored.forecasts.values():
        known = known & np.isfinite(np.asarray(forecast.probability, float))
    labels = scored.medicane[known]
    shown = [
        name
        for name in ("detector", "phase_space", "climatology", "single_map", "ensemble")
        if name in scored.forecasts
    ]
    with figures.style():
        order = [n for n in _members(results, main, None) if n != "climatology"]
        drawn = {
            "scores": figures.score_forest(
                {_title(results, name): main["models"][name] for name in order},
                scores=[("auc_pr", "AUC-PR"), ("csi", "CSI")],
            ),
            "reliability": figures.reliability_diagram(
                reliability(
                    np.asarray(scored.forecasts["detector"].probability, float)[known],
                    labels,
                    resampling=resample_blocks(scored.times[known], labels, scored.storm[known]),
                ),
                base_rate=main["base_rate"],
            ),
            "precision_recall": figures.precision_recall_figure(
                {
                    _title(results, name): precision_recall(
                        scored.forecasts[name].ranking()[known], labels
                    )
                    for name in shown
                },
                points={
                    _title(results, name): (
                        main["models"][name]["pod"]["value"],
                        1 - main["models"][name]["far"]["value"],
                    )
                    for name in shown
                    if main["models"][name]["far"]["value"] is not None
                },
            ),
        }
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", dpi=110)
    return {name: f"{name}.png" for name in drawn}
