"""The life of one storm: its maps, its probability, its way through the phase space, and where a
detector looked. Arrays in, a matplotlib ``Figure`` out; draw them inside `figures.style`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError
from medicane.evaluate.events import hours_from_first, usual_step_hours
from medicane.report.figures import (
    COLOURS,
    FAINT,
    INK,
    STORM,
    THRESHOLD,
    UNKNOWN,
    new_figure,
    shade_labels,
    with_breaks,
)
from medicane.report.map_figures import draw_coast, first_channel, frame_degrees

#: Shaded: the warm core aloft, or the next best that the maps have.
SHADED = ("thickness_600_300_local", "thickness_900_600_local", "wind10", "msl_local")
#: Degrees around a storm's centres that its maps show.
AROUND = 4.5
#: Most panels beside each other.
MOST_PANELS = 6


def storm_maps(
    maps: xr.DataArray, *, centres: ArrayLike, titles: Sequence[str], path: ArrayLike | None = None
) -> Figure:
    """A storm at a few times: pressure contours every 4 hPa over the anomaly of thickness.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), physical units, at most `MOST_PANELS` times.
    centres
        (time, 2) degrees: latitude and longitude of the low in each map, NaN for none.
    titles
        One a map.
    path
        (n, 2): more centres, drawn as a line in every panel.

    Raises
    ------
    InputError
        If there are no maps, too many, or not as many centres and titles.
    """
    n = maps.sizes[names.TIME]
    at = np.asarray(centres, float).reshape(-1, 2)
    if not 1 <= n <= MOST_PANELS:
        raise InputError("storm_maps", f"draws 1 to {MOST_PANELS} maps", found=n)
    if len(at) != n or len(titles) != n:
        raise InputError(
            "storm_maps", f"needs {n} centres and titles", found=f"{len(at)} and {len(titles)}"
        )
    way = at if path is None else np.concatenate([at, np.asarray(path, float).reshape(-1, 2)])
    box = frame_around(maps, way)
    fig, axes = _panels(box, n)
    values = [first_channel(maps[k], SHADED) for k in range(n)]
    limit = max((_limit(found[1]) for found in values if found), default=1.0)
    for k, ax in enumerate(axes):
        found = values[k]
        if found is not None:
            filled = _shaded(ax, maps[k], found[1], limit=limit)
        _pressure(ax, maps[k])
        if path is not None:
            ax.plot(*np.asarray(path, float).T[::-1], color=INK, lw=0.9, alpha=0.7)
        _centre(ax, at[k])
        ax.set_title(titles[k], parse_math=False, fontsize=9)
        _framed(ax, maps, box)
    if values[0] is not None:
        _bar(fig, filled, axes, _channel_text(values[0][0]))
    return fig


def storm_line(
    times: ArrayLike,
    medicane: ArrayLike,
    *,
    probability: Mapping[str, ArrayLike],
    threshold: float | None,
    marked: ArrayLike = (),
) -> Figure:
    """Probability over the days of a storm against its label.

    Parameters
    ----------
    times, medicane
        Shape (time,): times in order, labels 1, 0, -1.
    probability
        Name → (time,), one line each.
    threshold
        Drawn as a line; None for none.
    marked
        Times marked by a small triangle below the axis: those of the maps that are shown.
    """
    clock, labels = np.asarray(times), np.asarray(medicane)
    days, step = hours_from_first(clock) / 24, usual_step_hours(clock) / 24
    fig = new_figure(11.0, 2.7)
    ax = fig.subplots()
    shade_labels(ax, labels, days, step)
    lines: list[Any] = []
    for k, (name, values) in enumerate(probability.items()):
        x, y = with_breaks(days, np.asarray(values, float), step)
        colour = COLOURS[k % len(COLOURS)]
        lines += ax.plot(x, y, color=colour, lw=1.6, marker=".", ms=4, label=name)
    if threshold is not None:
        label = f"threshold {threshold:.2f}"
        lines.append(ax.axhline(threshold, color=THRESHOLD, lw=0.9, ls="--", label=label))
    shown = days[np.isin(clock, np.asarray(marked, dtype=clock.dtype))]
    ax.plot(shown, np.full(shown.size, -0.05), "^", color=INK, ms=6, clip_on=False)
    ax.set(ylim=(-0.02, 1.03), xlim=(days[0], days[-1]), ylabel="probability")
    ax.set_xlabel(f"days from {str(clock[0])[:16].replace('T', ' ')} UTC", labelpad=8)
    ax.grid(axis="y", color=FAINT, lw=0.6)
    lines += [Patch(color=STORM, label="medicane in the catalogue")]
    if (labels == names.UNKNOWN).any():
        lines.append(Patch(color=UNKNOWN, alpha=0.6, label="unknown"))
    legend = fig.legend(handles=lines, ncols=5, loc="outside upper center", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def phase_space_paths(
    paths: Mapping[str, Mapping[str, ArrayLike]],
    *,
    medicane: ArrayLike,
    b_max: float | None = None,
) -> Figure:
    """Hart's two diagrams: −VTU against −VTL, and B against −VTL, the storm's way through both.

    Parameters
    ----------
    paths
        Name → ``b``, ``vtl``, ``vtu``, each (time,) in metres; NaN leaves a gap. The first is drawn
        in full, the others thinner.
    medicane
        (time,): maps of a medicane are filled dots.
    b_max
        The rule's limit of B, metres.
    """
    labels = np.asarray(medicane)
    fig = new_figure(10.5, 4.8)
    panels = fig.subplots(1, 2)
    handles = []
    for k, (name, path) in enumerate(paths.items()):
        colour = COLOURS[(0, 1, 3, 4)[k % 4]]
        vtl = np.asarray(path["vtl"], float)
        for ax, key in zip(panels, ("vtu", "b"), strict=True):
            y = np.asarray(path[key], float)
            ax.plot(vtl, y, color=colour, lw=1.4 if k == 0 else 0.9, alpha=0.75, zorder=2 - k / 10)
            for mask, fill in ((labels == names.MEDICANE, colour), (labels != 1, "white")):
                style = {"ms": 6 if k == 0 else 4, "mec": colour, "mfc": fill, "lw": 0}
                ax.plot(vtl[mask], y[mask], "o", zorder=3 - k / 10, **style)
            known = np.flatnonzero(np.isfinite(vtl) & np.isfinite(y))
            if known.size:
                for at, letter in ((known[0], "A"), (known[-1], "Z")):
                    ax.annotate(
                        letter,
                        (vtl[at], y[at]),
                        (6, 5),
                        textcoords="offset points",
                        color=colour,
                        weight="bold",
                    )
        handles.append(Line2D([], [], color=colour, marker="o", label=name))
    upper, lower = panels
    for ax in panels:
        ax.axvline(0, color=INK, lw=0.8)
        ax.grid(color=FAINT, lw=0.6)
        ax.set_xlabel("−VTL, 900–600 hPa (m): warm core below →")
    upper.axhline(0, color=INK, lw=0.8)
    upper.set(ylabel="−VTU, 600–300 hPa (m): warm core aloft →", title="Thermal winds")
    lower.set(ylabel="B (m): frontal →", title="Asymmetry")
    if b_max is not None:
        lower.axhline(b_max, color=THRESHOLD, lw=0.9, ls="--")
        handles.append(Line2D([], [], color=THRESHOLD, ls="--", label=f"B of the rule {b_max:g} m"))
    legend = fig.legend(
        handles=[
            *handles,
            Line2D([], [], color=INK, marker="o", lw=0, label="medicane in the catalogue"),
            Line2D([], [], color=INK, marker="o", mfc="white", lw=0, label="not, or unknown"),
        ],
        ncols=5,
        loc="outside upper center",
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def looked_at(
    maps: xr.DataArray, importance: Mapping[str, xr.DataArray], *, centre: tuple[float, float]
) -> Figure:
    """Where a detector looked, over the pressure of one map, one panel for each way to ask.

    Parameters
    ----------
    maps
        (channel, latitude, longitude), physical units.
    importance
        Title → (latitude, longitude), on any grid of degrees, e.g. of `attribution.occlusion`. One
        that has values below 0 is shaded in two colours.
    centre
        (latitude, longitude) of the low, NaN for none.
    """
    whole = frame_around(maps, np.zeros((0, 2)))
    fig, axes = _panels(whole, len(importance))
    for ax, (title, values) in zip(axes, importance.items(), strict=True):
        field = np.asarray(values, float)
        limit = max(float(np.nanmax(np.abs(field), initial=0)), 1e-9)
        filled = _shaded(ax, values, field, limit=limit)
        _pressure(ax, maps)
        _centre(ax, np.asarray(centre, float))
        ax.set_title(title, parse_math=False, fontsize=9)
        _framed(ax, maps, whole, every=10)
        _bar(fig, filled, [ax], str(values.attrs.get("long_name", "importance")))
    return fig


def frame_around(maps: xr.DataArray, centres: NDArray) -> tuple[float, float, float, float]:
    """South, north, west, east around centres (n, 2), inside the maps; all of them without any."""
    lat, lon = maps[names.LATITUDE].values, maps[names.LONGITUDE].values
    domain = float(lat.min()), float(lat.max()), float(lon.min()), float(lon.max())
    known = centres[np.isfinite(centres).all(axis=1)]
    if not len(known):
        return domain
    margin = np.array([AROUND, 1.25 * AROUND])
    south, west = known.min(axis=0) - margin
    north, east = known.max(axis=0) + margin
    return (
        max(float(south), domain[0]),
        min(float(north), domain[1]),
        max(float(west), domain[2]),
        min(float(east), domain[3]),
    )


# --------------------------------------------------------------------------------------------------


def _panels(box: tuple[float, float, float, float], n: int) -> tuple[Figure, list[Axes]]:
    ratio = (box[3] - box[2]) * math.cos(math.radians((box[0] + box[1]) / 2)) / (box[1] - box[0])
    columns = min(n, 3)
    rows = math.ceil(n / columns)
    fig = new_figure(11.5, min(11.5 / columns / ratio * rows + 0.45 * rows + 0.7, 11.0))
    axes = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.set_visible(False)
    return fig, axes[:n]


def _limit(values: NDArray) -> float:
    return max(float(np.nanquantile(np.abs(values), 0.998)), 1e-9)


def _shaded(ax: Axes, where: xr.DataArray, values: NDArray, *, limit: float) -> Any:
    signed = bool((values < 0).any())
    return ax.pcolormesh(
        where[names.LONGITUDE].values,
        where[names.LATITUDE].values,
        values,
        shading="nearest",
        cmap="RdBu_r" if signed else "YlOrRd",
        vmin=-limit if signed else 0,
        vmax=limit,
        rasterized=True,
    )


def _pressure(ax: Axes, maps: xr.DataArray) -> None:
    found = first_channel(maps, ("msl", "msl_local"))
    every = 4.0
    if found is not None:
        hpa = found[1] / 100
        low, high = np.nanmin(hpa), np.nanmax(hpa)
        levels = np.arange(math.floor(low / every) * every, high + every, every)
        if found[0] == "msl_local":
            levels = levels[levels < 0]  # lows: the highs of an anomaly only fill the map
        if levels.size > 1:
            lon, lat = maps[names.LONGITUDE].values, maps[names.LATITUDE].values
            ax.contour(lon, lat, hpa, levels=levels, colors="k", linewidths=0.6, linestyles="solid")


def _centre(ax: Axes, centre: NDArray) -> None:
    if np.isfinite(centre).all():
        ax.plot(centre[1], centre[0], "o", ms=13, mfc="none", mec="white", mew=3.2)
        ax.plot(centre[1], centre[0], "o", ms=13, mfc="none", mec="#111", mew=1.4)


def _framed(
    ax: Axes, maps: xr.DataArray, box: tuple[float, float, float, float], *, every: float = 4.0
) -> None:
    draw_coast(ax, maps[names.LATITUDE].values, maps[names.LONGITUDE].values)
    aspect = 1 / math.cos(math.radians((box[0] + box[1]) / 2))
    ax.set(xlim=box[2:], ylim=box[:2], aspect=aspect)
    frame_degrees(ax, every=every)


def _bar(fig: Figure, filled: Any, axes: Sequence[Axes], text: str) -> None:
    bar = fig.colorbar(
        filled, ax=list(axes), orientation="horizontal", aspect=50, shrink=0.6, pad=0.02
    )
    bar.set_label(text, fontsize=8.5, parse_math=False)


def _channel_text(name: str) -> str:
    known = names.CHANNELS.get(name)
    return f"{known.long_name} ({known.units})" if known else name
