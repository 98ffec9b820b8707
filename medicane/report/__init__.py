"""The report: one self-contained HTML page, and its figures beside it as PNG.

The page asks nothing of the network and can be mailed, archived or logged as it is. Everything
that comes from files is escaped. Scores are shown, never computed: they come from ``scores.json``.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import io
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from medicane import __version__, names
from medicane.evaluate.intervals import resample_blocks
from medicane.evaluate.skill import Forecast, precision_recall, reliability
from medicane.report import figures, map_figures, tables
from medicane.report.model_card import SplitFacts, model_card
from medicane.report.tables import comparison_table_markdown, score_table_markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "Case",
    "SplitFacts",
    "comparison_table_markdown",
    "figure_folder",
    "model_card",
    "score_table_markdown",
    "telling_maps",
    "training_curves",
    "write_report",
]

#: The figures a report may have.
FIGURES = (
    "scores",
    "probability",
    "storms",
    "reliability",
    "precision_recall",
    "best_hit",
    "worst_miss",
    "worst_false_alarm",
)
#: Scores in the figure with the intervals.
DRAWN = (
    ("csi", "CSI"),
    ("pod", "POD"),
    ("far", "FAR"),
    ("auc_pr", "AUC-PR"),
    ("brier_skill", "BSS"),
)
DPI = 150


class Case(NamedTuple):
    """A map worth looking at: its place in time, or None and the reason why there is none."""

    kind: str
    map: int | None
    text: str


def telling_maps(
    times: Any, medicane: Any, forecast: Forecast, events: Mapping[str, Any]
) -> list[Case]:
    """The best hit, the worst miss and the worst false alarm, one map each.

    The best hit is the medicane map with the highest probability among those detected. The worst
    miss is a map of the missed storm that came closest to being overlooked altogether (the lowest
    peak), or else the least probable medicane map that was not detected. The worst false alarm is
    the peak of the most confident false-alarm episode.

    Parameters
    ----------
    times, medicane
        Shape (time,).
    forecast
        Of the same maps.
    events
        The forecast's entry ``events`` in ``scores.json``.
    """
    labels = np.asarray(medicane)
    p = np.asarray(forecast.probability, float)
    rank = np.where(np.isfinite(p), forecast.ranking(), np.nan)
    detected = forecast.detections()
    positive = (labels == names.MEDICANE) & np.isfinite(rank)
    stamps = np.array([str(time)[:16] for time in np.asarray(times)])

    def told(index: int) -> str:
        return f"{stamps[index].replace('T', ' ')} UTC, probability {p[index]:.2f}"

    cases = []
    hits = np.flatnonzero(positive & detected)
    if hits.size:
        best = int(hits[np.argmax(rank[hits])])
        cases.append(Case("Best hit", best, told(best)))
    else:
        cases.append(Case("Best hit", None, "No medicane map of this split was detected."))

    missed = [storm for storm in events["storms"] if storm["hit"] is False]
    if missed:
        worst_storm = min(missed, key=lambda storm: storm["max_probability"] or 0.0)
        inside = (stamps >= worst_storm["start"]) & (stamps <= worst_storm["end"]) & positive
        at = np.flatnonzero(inside)
        worst = int(at[np.argmax(rank[at])])
        text = f"storm {worst_storm['storm']}, missed altogether; its most probable map: "
        cases.append(Case("Worst miss", worst, text + told(worst)))
    elif (positive & ~detected).any():
        at = np.flatnonzero(positive & ~detected)
        worst = int(at[np.argmin(rank[at])])
        text = "no storm was missed; the least probable of its maps that were: "
        cases.append(Case("Worst miss", worst, text + told(worst)))
    else:
        law = (
            "No miss: every medicane map was detected."
            if positive.any()
            else ("No miss: this split holds no medicane map.")
        )
        cases.append(Case("Worst miss", None, law))

    false = [run for run in events["episodes"] if run["outcome"] == "false alarm"]
    if false:
        run = max(false, key=lambda run: run["max_probability"] or 0.0)
        at = np.flatnonzero((stamps >= run["start"]) & (stamps <= run["end"]) & np.isfinite(rank))
        worst = int(at[np.argmax(rank[at])])
        text = f"{run['n_maps']} map(s) from {run['start'].replace('T', ' ')}; its peak: "
        cases.append(Case("Worst false alarm", worst, text + told(worst)))
    else:
        cases.append(
            Case("Worst false alarm", None, "No false alarm: no episode stood alone in this split.")
        )
    return cases


def write_report(
    path: str | Path,
    *,
    scores: Mapping[str, Any],
    store: xr.Dataset,
    forecasts: Mapping[str, Forecast],
    facts: Mapping[str, object],
    idealised: bool = False,
    title: str = "Medicane detection: verification report",
) -> Path:
    """Write ``report.html``, and its figures as PNG into ``figures/`` beside it.

    Parameters
    ----------
    path
        The page; replaced in one step.
    scores
        From `medicane.evaluate.verify` or ``scores.json``.
    store
        The maps of the split, in order: ``medicane(time)``, ``storm(time)`` and, for the maps,
        ``maps(time, channel, latitude, longitude)`` in physical units.
    forecasts
        The forecasts that were scored; the first is the trained model.
    facts
        What a reader needs to repeat the run, shown in this order.
    idealised
        The maps are synthetic: the page says so before anything else.
    title
        Of the page.

    Returns
    -------
    Path
        The page.
    """
    path = Path(path)
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for key in FIGURES:
        (folder / f"{key}.png").unlink(missing_ok=True)  # an earlier report may have had more
    times = store.indexes[names.TIME].to_numpy()
    labels = store["medicane"].values
    main, forecast = next(iter(forecasts.items()))
    entry = scores["models"][main]
    page = _Page(folder)

    with figures.style():
        page.figure(
            "scores",
            figures.score_intervals(scores["models"], scores=DRAWN),
            alt="Scores of all forecasts with 95 % intervals",
            caption="Scores per map with their 95 % intervals (storms and weeks resampled). Look "
            "for intervals of the model that stay clear of the rule's; FAR is better to the left, "
            "all others to the right.",
        )
        page.figure(
            "probability",
            figures.probability_strip(
                times,
                forecast.probability,
                labels,
                threshold=forecast.threshold,
                detection=forecast.detections(),
            ),
            alt="Probability of a medicane along the split, with observed medicanes shaded",
            caption="The whole split at its true base rate. A good detector is flat and low "
            "between the shaded storms and reaches the threshold inside them; crosses mark "
            "episodes that stand alone.",
        )
        storms = sorted(entry["events"]["storms"], key=lambda storm: storm["hit"] is not False)
        if storms:
            n = min(len(storms), figures.MOST_ZOOMS)
            page.figure(
                "storms",
                figures.storm_zooms(
                    times,
                    labels,
                    forecasts={k: (f.probability, f.detections()) for k, f in forecasts.items()},
                    threshold=forecast.threshold,
                    storms=storms,
                ),
                alt=f"Probability around {n} storms",
                caption=f"{n} of {len(storms)} storms, missed ones first. Shaded: the observed "
                "medicane (grey: unknown). Bars below: when each forecast detects. Look for bars "
                "that start late, break, or outlast the storm.",
            )
        known = labels != names.UNKNOWN
        page.figure(
            "reliability",
            figures.reliability_diagram(
                _reliability(forecast, times, labels, store["storm"].values),
                base_rate=tables.number(scores["base_rate"]),
            ),
            alt="Reliability diagram of the trained model",
            caption="Reliability. On the diagonal a probability means what it says; below it the "
            "model is overconfident. Bars: 95 % intervals, storms and weeks resampled. Below: how "
            "many maps lie in each bin.",
        )
        curves = {
            name: precision_recall(f.ranking(), labels)
            for name, f in forecasts.items()
            if np.isfinite(np.asarray(f.probability, float)[known]).any()
        }
        page.figure(
            "precision_recall",
            figures.precision_recall_figure(
                curves, points={name: _point(scores["models"][name]) for name in curves}
            ),
            alt="Precision-recall curves of all forecasts",
            caption="Precision against recall at every threshold; the dot is the one in use. "
            "Further up and right is better; grey curves join points of equal CSI.",
        )
        cases = telling_maps(times, labels, forecast, entry["events"])
        for case in cases:
            if case.map is None or "maps" not in store:
                continue
            key = case.kind.lower().replace(" ", "_")
            centre = _centre(forecast, case.map)
            page.figure(
                key,
                map_figures.case_map(
                    store["maps"].isel({names.TIME: case.map}),
                    centre=centre,
                    title=f"{case.kind}: {case.text}",
                ),
                alt=f"{case.kind}: map of {case.text}",
                caption=f"{case.kind}: {case.text}. Contours: mean sea level pressure (hPa, less "
                "its surroundings where only that is a channel); shading as the bar says; the "
                f"circle: {'the low the forecast points at' if centre else 'the deepest low'}. A "
                "medicane is a warm (red) spot right over a tight, round low.",
            )

    facts_shown = {
        "Split": f"{scores['split']}, {_spaced(scores['start'])} to {_spaced(scores['end'])}",
        "Maps scored": f"{scores['n_maps']} ({tables.left_out(scores)})",
        "Storms": scores["n_storms"],
        "Base rate": tables.percent(scores["base_rate"]),
        **{key: value for key, value in facts.items() if value is not None},
    }
    if not any(key.lower() == "software" for key in facts_shown):
        facts_shown["Software"] = f"medicane {__version__}"
    text = _template().format(
        title=escape(title),
        banner=_BANNER if idealised else "",
        lead=tables.cards(scores, main),
        facts="".join(
            f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>"
            for k, v in facts_shown.items()
        ),
        scores=tables.score_table(scores),
        events=tables.event_table(scores, list(forecasts)),
        storms=tables.storm_table(scores, list(forecasts)),
        kinds=tables.kind_table(scores, list(forecasts)),
        false_alarms=tables.episode_table(entry["events"]["episodes"], main),
        cases="".join(
            page.shown.get(
                case.kind.lower().replace(" ", "_"),
                f'<p class="none"><b>{case.kind}.</b> {escape(case.text)}</p>',
            )
            for case in cases
        ),
        notes=tables.notes(scores),
        written=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=escape(__version__),
        **{
            f"figure_{key}": page.shown.get(key, '<p class="none">This split holds no storm.</p>')
            for key in FIGURES[:5]
        },
    )
    _write_whole(path, text.encode())
    return path


def training_curves(history: pd.DataFrame, path: str | Path) -> Path:
    """Draw loss and validation scores of every epoch into a PNG; see `figures.training_curves`."""
    with figures.style():
        _write_whole(Path(path), _png(figures.training_curves(history)))
    return Path(path)


@contextlib.contextmanager
def figure_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, for figures on their way to a run."""
    with tempfile.TemporaryDirectory(prefix="medicane-figures-") as folder:
        yield Path(folder)


class _Page:
    """The figures drawn so far: saved as PNG, and as HTML that holds the same picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: dict[str, str] = {}

    def figure(self, key: str, figure: Figure, *, alt: str, caption: str) -> None:
        picture = _png(figure)
        _write_whole(self.folder / f"{key}.png", picture)
        data = base64.b64encode(picture).decode()
        width = int(figure.get_figwidth() * 96)
        self.shown[key] = (
            f'<figure id="figure-{key}"><img alt="{escape(alt)}" width="{width}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
        )


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _template() -> str:
    return files("medicane.data").joinpath("report.html").read_text(encoding="utf-8")


_BANNER = (
    '<p class="banner"><b>Synthetic data only.</b> This detector was trained and scored on an '
    "idealised sea. The scores say that the method works there; they say nothing about real "
    "storms.</p>"
)


def _reliability(forecast: Forecast, times: Any, labels: Any, storm: Any) -> dict[str, Any]:
    """The reliability curve with intervals by storm and week."""
    p = np.asarray(forecast.probability, float)
    kept = np.isfinite(p) & (labels != names.UNKNOWN)
    resampling = resample_blocks(times[kept], labels[kept], storm[kept])
    return reliability(p[kept], labels[kept], resampling=resampling)


def _spaced(stamp: str | None) -> str:
    return "–" if stamp is None else stamp.replace("T", " ")


def _point(entry: Mapping[str, Any]) -> tuple[float, float]:
    return tables.number(entry["pod"]["value"]), 1 - tables.number(entry["far"]["value"])


def _centre(forecast: Forecast, index: int) -> tuple[float, float] | None:
    if forecast.centre_latitude is None or forecast.centre_longitude is None:
        return None
    centre = tuple(
        float(np.asarray(axis, float)[index])
        for axis in (forecast.centre_latitude, forecast.centre_longitude)
    )
    return (centre[0], centre[1]) if all(map(math.isfinite, centre)) else None
