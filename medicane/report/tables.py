"""Tables of scores, as Markdown for a terminal and as HTML for the report. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

#: Key in scores.json, heading, perfect value, what it is.
COLUMNS = (
    ("csi", "CSI", "1", "critical success index: hits / (hits + misses + false alarms)"),
    ("pod", "POD", "1", "probability of detection: hits / (hits + misses)"),
    ("far", "FAR", "0", "false alarm ratio: false alarms / detections"),
    ("auc_pr", "AUC-PR", "1", "area under the precision-recall curve; no skill is the base rate"),
    ("brier_skill", "Brier skill", "1", "against the base rate of the training split"),
    ("ets", "ETS", "1", "equitable threat score"),
    ("hss", "HSS", "1", "Heidke skill score"),
    ("sedi", "SEDI", "1", "symmetric extremal dependence index"),
    ("brier", "Brier", "0", "mean squared error of the probability"),
    ("ece", "ECE", "0", "expected calibration error"),
)
#: At most this many false alarms are listed.
MOST_EPISODES = 15


def score_table_markdown(scores: Mapping[str, Any]) -> str:
    """The score table as Markdown, for a terminal or a flow's artifact."""
    columns = COLUMNS[:5]
    lines = [
        "| forecast | "
        + " | ".join(heading for _, heading, *_ in columns)
        + " | events | false/yr |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, entry in scores["models"].items():
        cells = [cell_text(entry[key]) for key, *_ in columns]
        events = entry["events"]
        cells.append(f"{events['hits']}/{events['hits'] + events['misses']}")
        cells.append(decimal(events["false_alarms_per_year"], 1))
        lines.append(f"| {no_pipe(name)} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        f"{scores['split']}: {scores['n_maps']} maps, {scores['n_storms']} storms, base rate "
        f"{percent(scores['base_rate'])}, 95 % intervals by storm and week."
    )
    return "\n".join(lines)


def number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def decimal(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where it is undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        digits = 4  # small, but not 0.00
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def cell_text(entry: Mapping[str, Any], *, sign: bool = False) -> str:
    text = decimal(entry["value"])
    if sign and entry["value"] is not None and entry["value"] > 0:
        text = f"+{text}"
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" [{decimal(entry['low'])}, {decimal(entry['high'])}]"
    return text


def no_pipe(text: str) -> str:
    return text.replace("|", "\\|")


def left_out(scores: Mapping[str, Any]) -> str:
    left = scores.get("left_out", {})
    return (
        f"left out: {left.get('unknown_label', 0)} with unknown label, "
        f"{left.get('no_forecast', 0)} without a forecast"
    )


def cards(scores: Mapping[str, Any], main: str) -> str:
    """The headline numbers as cards."""
    entry = scores["models"][main]
    events = entry["events"]
    cards = [
        (heading, entry[key], what)
        for key, heading, _, what in COLUMNS
        if key in ("csi", "pod", "far", "auc_pr")
    ]
    html = "".join(
        f'<div class="card" title="{escape(what)}"><span>{heading}</span>'
        f"<b>{decimal(value['value'])}</b><small>{_range(value)}</small></div>"
        for heading, value, what in cards
    )
    total = events["hits"] + events["misses"]
    html += (
        '<div class="card"><span>storms found</span>'
        f"<b>{events['hits']} of {total}</b><small>{_range(events['pod'])}</small></div>"
        '<div class="card"><span>false alarms a year</span>'
        f"<b>{decimal(events['false_alarms_per_year'], 1)}</b><small>"
        + _range(
            {part: events[f"false_alarms_per_year_{part}"] for part in ("low", "high")}, digits=1
        )
        + "</small></div>"
    )
    return html


def _range(entry: Mapping[str, Any], *, digits: int = 2) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return escape(str(entry.get("note", "no interval")))
    return f"{decimal(entry['low'], digits)} to {decimal(entry['high'], digits)}"


def _score_cell(entry: Mapping[str, Any], *, mark: str = "") -> str:
    note = entry.get("note")
    hint = f' title="{escape(note)}"' if note else ""
    star = "<sup>*</sup>" if note else ""
    low, high = entry.get("low"), entry.get("high")
    interval = "" if low is None or high is None else f"{decimal(low)} to {decimal(high)}"
    return (
        f'<td{hint} class="{mark}"><b>{decimal(entry["value"])}</b>{star}'
        f"<small>{interval}</small></td>"
    )


def score_table(scores: Mapping[str, Any]) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(what)}">{heading}<small>best {best}</small></th>'
        for _, heading, best, what in COLUMNS
    )
    rows = []
    for name, entry in scores["models"].items():
        cells = "".join(_score_cell(entry[key]) for key, *_ in COLUMNS)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
        for reference, difference in entry.get("difference_from", {}).items():
            cells = "".join(
                _score_cell(difference[key], mark=_sign(difference[key], best))
                for key, _, best, _ in COLUMNS
            )
            rows.append(
                f'<tr class="difference"><th scope="row">minus {escape(reference)}</th>{cells}</tr>'
            )
    return (
        f'<table><thead><tr><th scope="col">forecast</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _sign(difference: Mapping[str, Any], best: str) -> str:
    """Whether an interval leaves out 0, and on which side."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (best == "1") else "worse"


def event_table(scores: Mapping[str, Any], order: Sequence[str]) -> str:
    rows = []
    for name in order:
        events = scores["models"][name]["events"]
        low, high = events["false_alarms_per_year_low"], events["false_alarms_per_year_high"]
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            f"<td>{events['hits']}</td><td>{events['hits_half']}</td><td>{events['misses']}</td>"
            f"<td><b>{decimal(events['pod']['value'])}</b><small>{_range(events['pod'])}</small></td>"
            f"<td>{events['false_alarms']}</td>"
            f"<td><b>{decimal(events['false_alarms_per_year'], 1)}</b>"
            f"<small>{decimal(low, 1)} to {decimal(high, 1)}</small></td>"
            f"<td>{decimal(events['onset_delay_hours'], 1)}</td>"
            f"<td>{decimal(events['centre_error_km'], 0)}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{text}</th>'
        for text in (
            "forecast",
            "hits",
            "hits, half of the maps",
            "misses",
            "POD of events",
            "false alarms",
            "false alarms a year",
            "onset delay (h)",
            "centre error (km)",
        )
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def storm_table(scores: Mapping[str, Any], order: Sequence[str]) -> str:
    columns = [scores["models"][name]["events"]["storms"] for name in order]
    if not columns[0]:
        return '<p class="none">This split holds no storm.</p>'
    head = "".join(
        f'<th scope="col">{escape(text)}</th>'
        for text in ("storm", "start", "end", "maps", "highest probability", *order)
    )
    rows = []
    for storm, *others in zip(*columns, strict=True):
        verdicts = ""
        for one in (storm, *others):
            if one["hit"] is None:
                verdicts += "<td>no forecast</td>"
            elif one["hit"]:
                delay = decimal(one["onset_delay_hours"], 0)
                verdicts += (
                    f'<td class="better">{one["n_detected"]} of {one["n_maps"]}'
                    f"<small>after {delay} h</small></td>"
                )
            else:
                verdicts += '<td class="worse">missed</td>'
        rows.append(
            f'<tr><th scope="row">{escape(storm["storm"])}</th><td>{escape(storm["start"])}</td>'
            f"<td>{escape(storm['end'])}</td><td>{storm['n_maps']}</td>"
            f"<td>{decimal(storm['max_probability'])}</td>{verdicts}</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def episode_table(episodes: Sequence[Mapping[str, Any]], main: str) -> str:
    false = [run for run in episodes if run["outcome"] == "false alarm"]
    if not false:
        return f'<p class="none">No false alarm of {escape(main)} in this split.</p>'
    shown = sorted(false, key=lambda run: -(run["max_probability"] or 0.0))[:MOST_EPISODES]
    rows = "".join(
        f'<tr><th scope="row">{escape(run["start"])}</th><td>{escape(run["end"])}</td>'
        f"<td>{run['n_maps']}</td><td>{decimal(run['max_probability'])}</td></tr>"
        for run in shown
    )
    return (
        f"<p>{len(shown)} of {len(false)} false-alarm episodes of {escape(main)}, "
        'the most confident first.</p><table><thead><tr><th scope="col">start</th>'
        '<th scope="col">end</th><th scope="col">maps</th>'
        '<th scope="col">highest probability</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def kind_table(scores: Mapping[str, Any], order: Sequence[str]) -> str:
    """False alarms by kind of storm, one column a forecast."""
    by_kind = [scores["models"][name].get("hard_negatives", {}).get("kinds") for name in order]
    if not by_kind or not by_kind[0]:
        return '<p class="none">The catalogue of this split names no kinds of storm.</p>'
    head = "".join(
        f'<th scope="col">{escape(text)}</th>' for text in ("kind", "storms", "maps", *order)
    )
    rows = []
    for kind, first in by_kind[0].items():
        cells = ""
        for kinds in by_kind:
            told = (kinds or {}).get(kind)
            if told is None:
                cells += "<td>–</td>"
                continue
            called, n_storms = told["storms_with_false_alarm"], told["n_storms"]
            storms = "" if n_storms is None else f"{called} of {n_storms} storms"
            cells += f"<td><b>{percent(told['false_alarm_rate'])}</b><small>{storms}</small></td>"
        n_storms = "–" if first["n_storms"] is None else first["n_storms"]
        rows.append(
            f'<tr><th scope="row">{escape(kind)}</th><td>{n_storms}</td>'
            f"<td>{first['n_maps']}</td>{cells}</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def comparison_table_markdown(table: Mapping[str, Any]) -> str:
    """What `evaluate.compare` found, as Markdown: the scores, then the differences."""
    columns = COLUMNS[:5]
    heading = " | ".join(heading for _, heading, *_ in columns)
    lines = [score_table_markdown(table), ""]
    lines.append(f"| minus {no_pipe(table['reference'])} | {heading} |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, scores in table["differences"].items():
        cells = [
            cell_text(scores[key], sign=True) + _star(_sign(scores[key], best))
            for key, _, best, _ in columns
        ]
        lines.append(f"| {no_pipe(name)} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        "Differences are paired over the same resamples; (+) better and (-) worse where the "
        "95 % interval leaves out 0."
    )
    return "\n".join(lines)


def _star(mark: str) -> str:
    return {"better": " (+)", "worse": " (-)"}.get(mark, "")


def notes(scores: Mapping[str, Any]) -> str:
    """Everything a reader has to know about the numbers."""
    told = list(scores.get("notes", []))
    for name, entry in scores["models"].items():
        if entry.get("note"):
            told.append(f"{name}: {entry['note']}")
        reasons: dict[str, list[str]] = {}
        for key, heading, *_ in COLUMNS:
            if entry[key].get("note"):
                reasons.setdefault(entry[key]["note"], []).append(heading)
        told.extend(f"{name}, {', '.join(which)}: {why}" for why, which in reasons.items())
        hard = entry.get("hard_negatives", {})
        if hard.get("n_maps"):
            rate = percent(hard["false_alarm_rate"])
            told.append(f"{name}: {rate} of {hard['n_maps']} {hard['note']} are detected")
    return "".join(f"<li>{escape(note)}</li>" for note in told)
