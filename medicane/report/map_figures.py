"""Maps for the report: pressure contours over a shaded channel, coastlines without a download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from medicane import names
from medicane.standardise.land import land_sea_mask

INK = "#1d2b36"
COAST_DEGREES = 0.05


def draw_coast(ax: Axes, latitude: NDArray, longitude: NDArray) -> None:
    """Coastlines of the domain at 0.05 degrees, from the land mask: nothing is downloaded."""
    lat = np.arange(latitude.min(), latitude.max() + COAST_DEGREES, COAST_DEGREES)
    lon = np.arange(longitude.min(), longitude.max() + COAST_DEGREES, COAST_DEGREES)
    land = land_sea_mask(np.clip(lat, -90, 90).round(6), lon.round(6)).values
    ax.contour(lon, lat, land, levels=[0.5], colors=INK, linewidths=0.6, alpha=0.75)


def first_channel(maps: xr.DataArray, wanted: Sequence[str]) -> tuple[str, NDArray] | None:
    """The first of the wanted channels that the map has: its name and its values."""
    channels = [str(name) for name in maps[names.CHANNEL].values]
    for name in wanted:
        if name in channels:
            return name, np.asarray(maps.isel({names.CHANNEL: channels.index(name)}), float)
    return None


def frame_degrees(ax: Axes, *, every: float) -> None:
    """Degrees east and north along a map, so many apart, and a frame around it."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(every))
    ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}°{'W' if x < 0 else 'E'}")
    ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):g}°{'S' if y < 0 else 'N'}")
    for spine in ax.spines.values():
        spine.set_visible(True)


def case_map(
    maps: xr.DataArray, *, centre: tuple[float, float] | None, title: str, zoom_degrees: float = 5.0
) -> Figure:
    """One map: pressure contours over a shaded channel, the whole domain and the storm's corner.

    Parameters
    ----------
    maps
        Shape (channel, latitude, longitude), physical units.
    centre
        (latitude, longitude) of the marker and the zoom, degrees; None: where the pressure is
        lowest against its surroundings.
    title
        Above the map.
    zoom_degrees
        Half the width of the zoom.
    """
    lat, lon = maps[names.LATITUDE].values, maps[names.LONGITUDE].values
    pressure = first_channel(maps, ("msl", "msl_local"))
    shading = first_channel(
        maps,
        ("thickness_600_300_local", "thickness_900_600_local", "wind10", "msl_local"),
    )
    wind = [first_channel(maps, (name,)) for name in ("u10", "v10")]
    speed = None
    if wind[0] is not None and wind[1] is not None:
        speed = np.hypot(wind[0][1], wind[1][1])
    if shading is None and speed is not None:
        shading = ("wind10", speed)
    lowest = first_channel(maps, ("msl_local", "msl"))
    if centre is not None and not all(map(math.isfinite, centre)):
        centre = None
    if centre is None and lowest is not None:
        at = np.unravel_index(np.nanargmin(lowest[1]), lowest[1].shape)
        centre = (float(lat[at[0]]), float(lon[at[1]]))

    half = abs(float(lat[0] - lat[-1])) / 2, abs(float(lon[-1] - lon[0])) / 2
    middle = (float(lat.mean()), float(lon.mean()))
    boxes = [(middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1])]
    if centre is not None and min(half) > zoom_degrees:
        z = zoom_degrees
        # The zoom stays inside the domain.
        south = float(np.clip(centre[0] - z, boxes[0][0], boxes[0][1] - 2 * z))
        west = float(np.clip(centre[1] - z, boxes[0][2], boxes[0][3] - 2 * z))
        boxes.append((south, south + 2 * z, west, west + 2 * z))
    aspect = 1 / math.cos(math.radians(middle[0]))
    ratios = [(box[3] - box[2]) / (aspect * (box[1] - box[0])) for box in boxes]
    fig = Figure(
        figsize=(11.5, min(11.5 / sum(ratios) + 0.7, 9.0)), layout="constrained", facecolor="white"
    )
    axes = fig.subplots(1, len(boxes), width_ratios=ratios, squeeze=False)[0]
    filled = None
    for k, (ax, box) in enumerate(zip(axes, boxes, strict=True)):
        if shading is not None:
            limit = max(float(np.nanquantile(np.abs(shading[1]), 0.998)), 1e-9)
            signed = bool((shading[1] < 0).any())
            filled = ax.pcolormesh(
                lon,
                lat,
                shading[1],
                shading="nearest",
                cmap="RdBu_r" if signed else "YlGnBu",
                norm=TwoSlopeNorm(0, -limit, limit) if signed else None,
                rasterized=True,
                alpha=0.9,
            )
        draw_coast(ax, lat, lon)
        if pressure is not None:
            hpa = pressure[1] / 100
            every = 2.0 if k else 4.0
            levels = np.arange(
                math.floor(np.nanmin(hpa) / every) * every, np.nanmax(hpa) + every, every
            )
            if levels.size > 1:
                lines = ax.contour(lon, lat, hpa, levels=levels, colors="k", linewidths=0.7)
                ax.clabel(lines, fontsize=7, fmt="%.0f")
        if k and speed is not None:
            keep = max(1, round(0.75 / abs(float(lat[0] - lat[1]))))
            ax.quiver(
                lon[::keep],
                lat[::keep],
                wind[0][1][::keep, ::keep],  # type: ignore[index]
                wind[1][1][::keep, ::keep],  # type: ignore[index]
                color=INK,
                alpha=0.75,
                scale=180,
                width=0.004,
            )
        if centre is not None:
            ax.plot(centre[1], centre[0], "o", ms=13 if k else 9, mfc="none", mec="white", mew=3.4)
            ax.plot(centre[1], centre[0], "o", ms=13 if k else 9, mfc="none", mec="#111", mew=1.5)
        if not k and len(boxes) > 1:
            south, north, west, east = boxes[1]
            corners = [west, east, east, west, west], [south, south, north, north, south]
            ax.plot(*corners, color="k", lw=0.9)
        ax.set(xlim=box[2:], ylim=box[:2], aspect=aspect)
        frame_degrees(ax, every=2 if k else 5)
    axes[0].set_title(title, parse_math=False)
    if filled is not None and shading is not None:
        known = names.CHANNELS.get(shading[0])
        text = f"{known.long_name} ({known.units})" if known else shading[0]
        bar = fig.colorbar(
            filled, ax=list(axes), orientation="horizontal", aspect=60, shrink=0.6, pad=0.02
        )
        bar.set_label(text, fontsize=8.5, parse_math=False)
    return fig
