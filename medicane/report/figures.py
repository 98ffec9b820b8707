"""The figures of the report, one function each: arrays in, a matplotlib ``Figure`` out.

Only the object interface is used, so that figures can be drawn in any thread and none outlives
its page. Text that comes from files (storm names) is never read as mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.evaluate.events import episodes, hours_from_first, usual_step_hours

if TYPE_CHECKING:
    import pandas as pd

INK, FAINT = "#1d2b36", "#dfe5ea"
STORM, UNKNOWN, THRESHOLD = "#f4c95d", "#c9d1d8", "#b3261e"
#: Colours of the forecasts in order: the trained model, the rule, the climatology, others.
COLOURS = ("#0b6e99", "#d1603d", "#7d8790", "#5b8e3e", "#7a5195", "#a67c00")
#: At most this many storms and years are drawn one by one.
MOST_ZOOMS, MOST_ROWS = 12, 12

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#8795a1",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the report's hand, inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style() -> Any:
    """The report's look, as a context: ``with style(): …`` around drawing and saving."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _spans(mask: NDArray[np.bool_], days: NDArray, step: float) -> list[tuple[float, float]]:
    """Runs of true maps as (start, width) in days, each map as wide as one step."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    return [(days[a], days[b - 1] - days[a] + step) for a, b in edges.reshape(-1, 2)]


def shade_labels(ax: Axes, labels: NDArray, days: NDArray, step: float) -> None:
    """Observed medicanes and unknown maps along an axis of days, each a step wide."""
    ax.broken_barh(
        _spans(labels == names.UNKNOWN, days, step), (0, 1), color=UNKNOWN, alpha=0.6, lw=0
    )
    ax.broken_barh(_spans(labels == names.MEDICANE, days, step), (0, 1), color=STORM, lw=0.8)


def with_breaks(days: NDArray, values: NDArray, step: float) -> tuple[NDArray, NDArray]:
    """The series with a NaN in every time gap, so that no line bridges it."""
    gaps = np.flatnonzero(np.diff(days) > 1.5 * step) + 1
    return np.insert(days, gaps, days[gaps] - step / 2), np.insert(values, gaps, np.nan)


def _month_ticks(times: NDArray, days: NDArray) -> tuple[list[float], list[str]]:
    """Where a new month begins, any calendar."""
    stamp = [str(time)[:7] for time in times]
    starts = [i for i in range(len(stamp)) if i == 0 or stamp[i] != stamp[i - 1]]
    every = max(1, math.ceil(len(starts) / 14))
    months = "JanFebMarAprMayJunJulAugSepOctNovDec"
    ticks: list[float] = []
    texts: list[str] = []
    for i in starts[::every]:
        year, month = stamp[i].split("-")
        name = months[3 * int(month) - 3 : 3 * int(month)]
        ticks.append(float(days[i]))
        texts.append(f"{name}\n{year}" if not texts or name == "Jan" else name)
    # A row that begins in the last days of a month has no room for that month's name.
    if len(ticks) > 1 and ticks[1] - ticks[0] < (days[-1] - days[0]) / 25:
        texts[1] = f"{texts[1].split()[0]}\n{stamp[starts[every]][:4]}"
        del ticks[0], texts[0]
    return ticks, texts


def probability_strip(
    times: ArrayLike,
    probability: ArrayLike,
    medicane: ArrayLike,
    *,
    threshold: float | None,
    detection: ArrayLike,
) -> Figure:
    """Probability along the whole split, a row for each year, observed medicanes shaded.

    Parameters
    ----------
    times, probability, medicane, detection
        Shape (time,); NaN probabilities leave a gap.
    threshold
        Drawn as a line; None for a rule.
    """
    clock, p, labels = np.asarray(times), np.asarray(probability, float), np.asarray(medicane)
    days, step = hours_from_first(clock) / 24, usual_step_hours(clock) / 24
    span = float(days[-1] + step) if days.size else 1.0
    n_rows = min(MOST_ROWS, max(1, round(span / 365.25)))
    length = span / n_rows
    false = [
        (first, last)
        for first, last in episodes(clock, detection)
        if (labels[first : last + 1] == names.NOT_MEDICANE).all()
    ]
    fig = new_figure(11.5, 0.9 + 1.15 * n_rows)
    axes = fig.subplots(n_rows, 1, squeeze=False)[:, 0]
    for row, ax in enumerate(axes):
        inside = (days >= row * length) & (days < (row + 1) * length)
        ax.set(ylim=(0, 1.12), yticks=[0, 0.5, 1], xlim=(row * length, (row + 1) * length))
        ax.grid(axis="y", color=FAINT, lw=0.6)
        ax.set_axisbelow(True)
        if not inside.any():
            continue
        x, y = with_breaks(days[inside], p[inside], step)
        shade_labels(ax, labels[inside], days[inside], step)
        ax.fill_between(x, 0, y, color=COLOURS[0], alpha=0.35, lw=0)
        ax.plot(x, y, color=COLOURS[0], lw=0.9)
        if threshold is not None:
            ax.axhline(threshold, color=THRESHOLD, lw=0.8, ls=(0, (4, 3)))
        middle = [(days[a] + days[b]) / 2 for a, b in false if inside[a]]
        ax.plot(middle, [1.05] * len(middle), "x", color=THRESHOLD, ms=5, mew=1.4, clip_on=False)
        ticks, texts = _month_ticks(clock[inside], days[inside])
        ax.set_xticks(ticks, texts)
    fig.supylabel("probability", fontsize=9.5)
    handles: list[Any] = [
        axes[0].plot([], [], color=COLOURS[0], lw=2, label="probability")[0],
        Patch(color=STORM, label="observed medicane"),
        Patch(color=UNKNOWN, alpha=0.6, label="unknown"),
        axes[0].plot([], [], "x", color=THRESHOLD, mew=1.4, label="false alarm")[0],
    ]
    if threshold is not None:
        handles.append(
            axes[0].plot([], [], color=THRESHOLD, ls="--", label=f"threshold {threshold:.2f}")[0]
        )
    fig.legend(handles=handles, ncols=5, loc="outside upper center", frameon=False)
    return fig


def storm_zooms(
    times: ArrayLike,
    medicane: ArrayLike,
    *,
    forecasts: Mapping[str, tuple[ArrayLike, ArrayLike]],
    threshold: float | None,
    storms: Sequence[Mapping[str, Any]],
    days_around: float = 3.0,
) -> Figure:
    """Each storm's days, one small panel each, at most `MOST_ZOOMS`.

    Parameters
    ----------
    times, medicane
        Shape (time,).
    forecasts
        Name → (probability, detection); the first is drawn as a line, the detections of all
        as bars below.
    threshold
        Of the first.
    storms
        Entries of ``events.storms``: ``storm``, ``start``, ``end``, ``hit``.
    days_around
        Days shown before and after.
    """
    clock, labels = np.asarray(times), np.asarray(medicane)
    days, step = hours_from_first(clock) / 24, usual_step_hours(clock) / 24
    stamps = np.array([str(time)[:16] for time in clock])
    shown = list(storms)[:MOST_ZOOMS]
    n_columns = min(4, max(1, len(shown)))
    n_rows = math.ceil(len(shown) / n_columns)
    fig = new_figure(max(11.5 * n_columns / 4, 5.5), 0.7 + 2.0 * max(n_rows, 1))
    panels = fig.subplots(max(n_rows, 1), n_columns, squeeze=False, sharey=True).ravel()
    n_bars = len(forecasts)
    for ax in panels[len(shown) :]:
        ax.set_visible(False)
    for ax, storm in zip(panels, shown, strict=False):
        first = int(np.flatnonzero(stamps == storm["start"])[0])
        last = int(np.flatnonzero(stamps == storm["end"])[0])
        window = (days >= days[first] - days_around) & (days <= days[last] + days_around)
        here = days[window] - days[first]
        shade_labels(ax, labels[window], here, step)
        for k, (name, (probability, detection)) in enumerate(forecasts.items()):
            colour = COLOURS[k % len(COLOURS)]
            if k == 0:
                x, y = with_breaks(here, np.asarray(probability, float)[window], step)
                ax.plot(x, y, color=colour, lw=1.6, marker=".", ms=3.5, label=name)
            found = np.asarray(detection, bool)[window]
            ax.broken_barh(_spans(found, here, step), (-0.1 * (k + 1) - 0.02, 0.07), color=colour)
        if threshold is not None:
            ax.axhline(threshold, color=THRESHOLD, lw=0.8, ls=(0, (4, 3)))
        verdict = {True: "hit", False: "MISSED", None: "no forecast"}[storm["hit"]]
        name = storm["storm"] if len(storm["storm"]) <= 22 else storm["storm"][:21] + "…"
        ax.set_title(f"{name}: {verdict}", parse_math=False)
        ax.set(ylim=(-0.1 * n_bars - 0.06, 1.04), yticks=[0, 0.5, 1])
        ax.set_xlabel(f"days from {storm['start'].replace('T', ' ')}", fontsize=8.5)
    handles = [
        Patch(color=COLOURS[k % len(COLOURS)], label=f"detected by {name}")
        for k, name in enumerate(forecasts)
    ]
    legend = fig.legend(handles=handles, ncols=4, loc="outside upper center", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def reliability_diagram(curve: Mapping[str, ArrayLike], *, base_rate: float) -> Figure:
    """How often it came true, by forecast probability, with intervals and counts.

    Parameters
    ----------
    curve
        From `medicane.evaluate.skill.reliability`.
    base_rate
        Of the split: the horizontal line of a forecast that resolves nothing.
    """
    p, frequency, low, high, count = (
        np.asarray(curve[key], float)
        for key in ("probability", "frequency", "low", "high", "count")
    )
    kept = count > 0
    fig = new_figure(5.6, 5.8)
    ax, below = fig.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    ax.plot([0, 1], [0, 1], color="#8795a1", lw=1, ls="--", label="perfectly reliable")
    if math.isfinite(base_rate):
        ax.axhline(base_rate, color="#8795a1", lw=0.8, ls=":", label=f"base rate {base_rate:.3f}")
    ax.vlines(p[kept], low[kept], high[kept], color=COLOURS[0], lw=5, alpha=0.25)
    ax.plot(p[kept], frequency[kept], "o-", color=COLOURS[0], ms=5, lw=1.3, label="forecast")
    ax.set(ylabel="observed frequency", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
    ax.grid(color=FAINT, lw=0.6)
    ax.legend(frameon=False, loc="upper left")
    below.bar(p[kept], count[kept], width=0.022, color=COLOURS[0])
    last = -1.0
    for x, n in zip(p[kept], count[kept], strict=True):
        if x - last < 0.035:
            continue  # the numbers of neighbours would run into each other
        last = x
        below.annotate(
            f"{n:.0f}", (x, n), (0, 2), textcoords="offset points", ha="center", fontsize=7
        )
    below.set(xlabel="forecast probability", ylabel="maps", yscale="log")
    below.set_ylim(0.7, max(count.max(initial=1) * 8, 10))
    return fig


def precision_recall_figure(
    curves: Mapping[str, Mapping[str, Any]], *, points: Mapping[str, tuple[float, float]]
) -> Figure:
    """Precision against recall for every forecast, and the level without skill.

    Parameters
    ----------
    curves
        Name → curve from `medicane.evaluate.skill.precision_recall`.
    points
        Name → (recall, precision) at the threshold in use; NaN where undefined.
    """
    fig = new_figure(5.6, 5.8)
    ax = fig.subplots()
    r = np.linspace(0.01, 1, 100)
    for level in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 1 / (1 / level + 1 - 1 / r)
        p[(p < 0) | (p > 1)] = np.nan
        ax.plot(r, p, color=FAINT, lw=0.9, zorder=0)
        ax.annotate(f"CSI {level}", (1.0, level), color="#8795a1", fontsize=7.5, va="center")
    no_skill = math.nan
    for k, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        recall, precision = np.asarray(curve["recall"]), np.asarray(curve["precision"])
        ax.step(recall, precision, where="post", color=colour, lw=1.6, label=name)
        if name in points and all(map(math.isfinite, points[name])):
            ax.plot(*points[name], "o", color=colour, ms=8, mec="white", mew=1.2, zorder=5)
        no_skill = curve["no_skill"]
    if math.isfinite(no_skill):
        ax.axhline(no_skill, color=INK, lw=0.9, ls=":", label=f"no skill ({no_skill:.3f})")
    ax.set(xlabel="recall = POD", ylabel="precision = 1 − FAR", xlim=(0, 1.12), ylim=(0, 1.04))
    ax.set_xticks(np.arange(0, 1.01, 0.2))
    if ax.get_legend_handles_labels()[0]:
        legend = fig.legend(ncols=2, loc="outside upper center", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return fig


def score_intervals(
    models: Mapping[str, Mapping[str, Any]], *, scores: Sequence[tuple[str, str]]
) -> Figure:
    """Values and 95 % intervals of some scores, side by side.

    Parameters
    ----------
    models
        Name → entry of ``scores.json``.
    scores
        (key, label) in the order from the top.
    """
    fig = new_figure(11.5, 0.7 + 0.52 * len(scores))
    ax = fig.subplots()
    n = len(models)
    lowest = 0.0
    for k, (name, entry) in enumerate(models.items()):
        colour = COLOURS[k % len(COLOURS)]
        ax.plot([], [], "o-", color=colour, label=name, lw=2.5)
        for row, (key, _) in enumerate(scores):
            value, low, high = (entry[key].get(part) for part in ("value", "low", "high"))
            if value is None:
                continue
            y = row + (k - (n - 1) / 2) * 0.62 / max(n - 1, 1)
            if low is not None and high is not None:
                ax.plot([low, high], [y, y], color=colour, lw=2.5, alpha=0.45)
                lowest = min(lowest, low)
            lowest = min(lowest, value)
            ax.plot(value, y, "o", color=colour, ms=6, mec="white", mew=0.8)
    ax.set_yticks(range(len(scores)), [label for _, label in scores])
    ax.set(ylim=(len(scores) - 0.5, -0.5), xlim=(max(lowest - 0.03, -1.03), 1.03))
    ax.grid(axis="x", color=FAINT, lw=0.7)
    ax.tick_params(axis="y", length=0)
    for row in range(1, len(scores)):
        ax.axhline(row - 0.5, color=FAINT, lw=0.7)
    legend = fig.legend(ncols=6, loc="outside upper center", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def score_forest(
    models: Mapping[str, Mapping[str, Any]], *, scores: Sequence[tuple[str, str]]
) -> Figure:
    """Values and 95 % intervals of many forecasts, one line each, one panel a score.

    Parameters
    ----------
    models
        Name → entry of ``scores.json``, in the order from the top.
    scores
        (key, label), from the left.
    """
    fig = new_figure(11.0, 0.9 + 0.27 * len(models))
    panels = fig.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for ax, (key, label) in zip(panels, scores, strict=True):
        for row, entry in enumerate(models.values()):
            value, low, high = (entry[key].get(part) for part in ("value", "low", "high"))
            if value is None:
                continue
            if low is not None and high is not None:
                ax.plot([low, high], [row, row], color=COLOURS[0], lw=3, alpha=0.35)
            ax.plot(value, row, "o", color=COLOURS[0], ms=5.5, mec="white", mew=0.8)
        ax.set(title=label, xlim=(-0.03, 1.03), ylim=(len(models) - 0.5, -0.5))
        ax.grid(axis="x", color=FAINT, lw=0.7)
        ax.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(models)), list(models))
    for text in panels[0].get_yticklabels():
        text.set_parse_math(False)
    return fig


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss and scores of every epoch; the epoch that was kept is the best on validation.

    Parameters
    ----------
    history
        A row for each epoch: ``epoch``, ``loss``, ``val_loss`` and any other ``val_…`` score.
    """
    fig = new_figure(9.0, 3.4)
    left, right = fig.subplots(1, 2)
    for key, colour in (("loss", COLOURS[0]), ("val_loss", COLOURS[1])):
        if key in history:
            label = "validation" if key.startswith("val_") else "training"
            left.plot(history["epoch"], history[key], "o-", ms=3, color=colour, label=label)
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    scores = [key for key in map(str, history) if key.startswith("val_") and key != "val_loss"]
    for k, key in enumerate(scores):
        colour = COLOURS[k % len(COLOURS)]
        label = key.removeprefix("val_").replace("_", " ")
        right.plot(history["epoch"], history[key], "o-", ms=3, color=colour, label=label)
    right.set(xlabel="epoch", ylim=(0, 1.02), title="Scores on validation")
    for ax in (left, right):
        ax.grid(color=FAINT, lw=0.6)
        if ax.lines:
            ax.legend(frameon=False)
    return fig
