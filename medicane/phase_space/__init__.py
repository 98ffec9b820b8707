"""Hart's cyclone phase space for any gridded low, and the physical rule that a medicane obeys.

Within a radius R of the centre, after Hart (2003, Mon. Wea. Rev. 131, 585-616):

* ΔZ(p) = Zmax - Zmin on the pressure level p;
* −VTL = dΔZ / d ln p over 900-600 hPa and −VTU the same over 600-300 hPa, least squares on every
  level there is: positive is a warm core (the height perturbation fades with height);
* B = h (mean of the right half - mean of the left half) of Z600 - Z900, right and left of the
  motion; h is +1 in the northern hemisphere and -1 in the southern.

The names ``vtl`` and ``vtu`` hold −VTL and −VTU, in metres. Choices, and the agreement with
reference values, are in `docs/phase_space.md`. Only numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import config
from medicane.errors import InputError
from medicane.phase_space.sphere import bearing_deg, cell_areas_km2, distance_km

__all__ = [
    "PhaseSpace",
    "distance_km",
    "hold",
    "hours_since_first",
    "phase_space",
    "phase_space_of_points",
    "polar_phase_space",
    "satisfies",
    "thickness_slopes",
    "warm_core_score",
]

#: Bottom, middle and top of the two layers, hPa: both are needed on the grid.
LAYER_LEVELS = (900.0, 600.0, 300.0)

#: At least this share of the disc must hold data, or there is no phase space.
LEAST_COVER = 0.5

FloatArray = NDArray[np.floating[Any]]


class PhaseSpace(NamedTuple):
    """B, −VTL and −VTU in metres, each of the leading shape of the input (a scalar: 0-d)."""

    b: FloatArray
    vtl: FloatArray
    vtu: FloatArray


def _layer(levels: FloatArray, bottom: float, top: float) -> tuple[NDArray[np.intp], FloatArray]:
    """Indices of a layer's levels, and the weights whose sum with ΔZ is the slope."""
    inside = np.flatnonzero((levels <= bottom + 1e-6) & (levels >= top - 1e-6))
    x = np.log(levels[inside])
    x = x - x.mean()
    return inside, x / (x @ x)


def _check_levels(levels: ArrayLike) -> FloatArray:
    p = np.asarray(levels, float)
    absent = [level for level in LAYER_LEVELS if not np.isclose(p, level).any()]
    if absent:
        raise InputError(
            "pressure_level",
            "the phase space needs 900, 600 and 300 hPa among the levels (hPa)",
            found=[float(level) for level in p],
        )
    return p


def thickness_slopes(delta_z: ArrayLike, levels: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """−VTL and −VTU from a profile of ΔZ.

    Parameters
    ----------
    delta_z
        Zmax - Zmin within the radius, m, shape (…, level).
    levels
        Pressure, hPa, shape (level,), in any order; 900, 600 and 300 among them. Levels between
        them join the least-squares fit, levels outside 900-300 are left out.

    Returns
    -------
    vtl, vtu
        Slope of ΔZ against ln p over 900-600 and 600-300 hPa, m, shape (…): positive = warm core.

    Raises
    ------
    InputError
        If 900, 600 or 300 hPa is not among the levels, or their number is not that of `delta_z`.
    """
    p = _check_levels(levels)
    profile = np.asarray(delta_z, float)
    if profile.shape[-1:] != p.shape:
        raise InputError(
            "delta_z", f"the last axis must be the {p.size} levels", found=f"shape {profile.shape}"
        )
    bottom, middle, top = LAYER_LEVELS
    lower, lower_weights = _layer(p, bottom, middle)
    upper, upper_weights = _layer(p, middle, top)
    return profile[..., lower] @ lower_weights, profile[..., upper] @ upper_weights


def phase_space_of_points(
    zg: FloatArray,
    *,
    levels: FloatArray,
    area: FloatArray,
    bearing: FloatArray,
    disc_area: float,
    heading: FloatArray,
    north: bool,
) -> PhaseSpace:
    """The mathematics shared by every kind of grid: n lows, each a set of points.

    Parameters
    ----------
    zg
        Geopotential height, m, shape (n, level, point); NaN is outside of the disc or the grid.
    levels
        Pressure, hPa, shape (level,).
    area
        Weight of each point in B and in the cover, shape (point,) or (n, point).
    bearing
        Degrees clockwise from north as seen from the centre, shape (point,) or (n, point); NaN at
        the centre itself.
    disc_area
        What `area` sums to over a whole disc.
    heading
        Direction of motion, shape (n,): degrees clockwise from north, NaN where unknown.
    north
        Northern hemisphere, for the sign of B.
    """
    valid = np.asarray(np.isfinite(zg).all(axis=1))  # (n, point)
    covered = np.where(valid, area, 0.0).sum(axis=1) >= LEAST_COVER * disc_area
    highest = np.where(valid[:, None], zg, -np.inf).max(axis=2, initial=-np.inf)
    lowest = np.where(valid[:, None], zg, np.inf).min(axis=2, initial=np.inf)
    with np.errstate(invalid="ignore"):
        vtl, vtu = thickness_slopes(np.where(covered[:, None], highest - lowest, np.nan), levels)
    lower, upper = (int(np.argmin(abs(levels - p))) for p in (900.0, 600.0))
    thickness = np.where(valid, zg[:, upper] - zg[:, lower], 0.0)
    weight = np.where(valid, area, 0.0)
    known = np.isfinite(heading)
    # Without a motion there is no right and left: every heading is tried, the worst one told.
    tried = np.where(known[:, None], heading[:, None], np.arange(0.0, 360.0, 15.0)[None])
    if known.all():
        tried = tried[:, :1]
    # (n, heading, point): the sine is positive to the right of the motion
    side = np.sin(np.radians(np.atleast_2d(bearing)[:, None] - tried[:, :, None]))
    # A point on the line of motion (the centre among them) is half on either side.
    share = np.heaviside(np.round(np.nan_to_num(side), 9), 0.5)
    right, left = weight[:, None] * share, weight[:, None] * (1 - share)
    with np.errstate(invalid="ignore", divide="ignore"):
        b = (right * thickness[:, None]).sum(2) / right.sum(2) - (left * thickness[:, None]).sum(
            2
        ) / left.sum(2)
    b = (b if north else -b).max(axis=1)
    return PhaseSpace(np.where(covered, b, np.nan), vtl, vtu)


def phase_space(
    zg: ArrayLike,
    *,
    levels: ArrayLike,
    latitude: ArrayLike,
    longitude: ArrayLike,
    centre: tuple[float, float],
    radius_km: float,
    heading_deg: float | None = None,
) -> PhaseSpace:
    """B, −VTL and −VTU of one low on a regular latitude-longitude grid.

    Parameters
    ----------
    zg
        Geopotential height, m, shape (…, level, latitude, longitude). A point that is NaN on any
        level is left out.
    levels
        Pressure, hPa, shape (level,), with 900, 600 and 300 among them.
    latitude, longitude
        Degrees, 1-D.
    centre
        Latitude and longitude of the low, degrees; it need not be a grid point.
    radius_km
        Radius of the disc, km (Hart 500; medicanes 100-200). Where the disc leaves the grid, the
        part inside is used if it is at least half of it.
    heading_deg
        Direction of motion, degrees clockwise from north. None: unknown, and B is the largest
        over all headings, an upper bound.

    Returns
    -------
    PhaseSpace
        Metres, each of shape (…): NaN where less than half of the disc holds data.

    Raises
    ------
    InputError
        If a level is missing or the shape of `zg` is not that of the coordinates.
    """
    p = _check_levels(levels)
    heights = np.asarray(zg, float)
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    if heights.shape[-3:] != (p.size, lat.size, lon.size):
        raise InputError(
            "zg",
            f"the last axes must be level, latitude, longitude {(p.size, lat.size, lon.size)}",
            found=f"shape {heights.shape}",
        )
    away = distance_km(centre[0], centre[1], lat[:, None], lon[None])
    inside = away <= radius_km
    cell_area = cell_areas_km2(lat, lon)
    leading = heights.shape[:-3]
    flat = heights[..., inside].reshape(int(np.prod(leading)), p.size, int(inside.sum()))
    bearing = bearing_deg(centre[0], centre[1], lat[:, None], lon[None])
    result = phase_space_of_points(
        flat,
        levels=p,
        area=np.broadcast_to(cell_area[:, None], inside.shape)[inside],
        bearing=np.where(away > 1e-6, bearing, np.nan)[inside],
        disc_area=float(np.pi * radius_km**2),
        heading=np.full(flat.shape[0], np.nan if heading_deg is None else heading_deg),
        north=centre[0] >= 0,
    )
    return PhaseSpace(*(np.asarray(part).reshape(leading) for part in result))


def polar_phase_space(
    zg: ArrayLike,
    *,
    levels: ArrayLike,
    radius: ArrayLike,
    azimuth_deg: ArrayLike,
    max_radius: float,
    heading_deg: ArrayLike | None = None,
    northern: bool = True,
) -> PhaseSpace:
    """B, −VTL and −VTU on storm-centred polar snapshots.

    Parameters
    ----------
    zg
        Geopotential height, m, shape (snapshot, level, radius, azimuth).
    levels
        Pressure, hPa, shape (level,), with 900, 600 and 300 among them.
    radius
        Distance from the centre, even spacing, km or degrees; rings beyond `max_radius` (same
        unit) are left out. Each ring weighs in B with its area.
    azimuth_deg
        Degrees clockwise from north (TempestExtremes counts anticlockwise from east: pass
        ``90 - az``).
    heading_deg
        Direction of motion, degrees clockwise from north, shape (snapshot,); None or NaN where
        unknown: B is then the largest over all headings.
    northern
        Hemisphere, for the sign of B.

    Returns
    -------
    PhaseSpace
        Metres, each of shape (snapshot,).
    """
    p = _check_levels(levels)
    heights = np.asarray(zg, float)
    rings = np.asarray(radius, float)
    kept = rings <= max_radius
    bearing = np.broadcast_to(np.asarray(azimuth_deg, float), (int(kept.sum()), heights.shape[-1]))
    area = np.broadcast_to(rings[kept][:, None], bearing.shape)
    n = heights.shape[0]
    heading = np.full(n, np.nan) if heading_deg is None else np.asarray(heading_deg, float)
    return phase_space_of_points(
        heights[:, :, kept].reshape(n, p.size, -1),
        levels=p,
        area=area.ravel(),
        bearing=bearing.ravel(),
        disc_area=float(area.sum()),
        heading=np.broadcast_to(heading, (n,)),
        north=northern,
    )


def satisfies(
    b: ArrayLike,
    vtl: ArrayLike,
    vtu: ArrayLike,
    msl_hpa: ArrayLike,
    *,
    definition: config.Label,
) -> NDArray[np.bool_]:
    """Whether the phase-space rule holds on each map by itself; NaN does not.

    Parameters
    ----------
    b, vtl, vtu
        Phase space, m; shapes broadcast.
    msl_hpa
        Pressure at the centre of the low (over sea), hPa.
    definition
        The thresholds: ``b < b_max_m``, ``vtl > vtl_min``, ``vtu > vtu_min``,
        ``msl < msl_max_hpa`` and, if ``lower_core_stronger``, ``vtl > vtu``.
    """
    b, vtl, vtu, msl = (np.asarray(a, float) for a in (b, vtl, vtu, msl_hpa))
    rule = (b < definition.b_max_m) & (vtl > definition.vtl_min) & (vtu > definition.vtu_min)
    rule = rule & (msl < definition.msl_max_hpa)
    if definition.lower_core_stronger:
        rule = rule & (vtl > vtu)
    return np.asarray(rule, bool)


def warm_core_score(
    vtl: ArrayLike, vtu: ArrayLike, b: ArrayLike | None = None, *, b_max_m: float = 20.0
) -> FloatArray:
    """How warm and symmetric a core is, m: the weaker of −VTL and −VTU, less the excess of B.

    A continuous form of the rule, to rank maps by. NaN where there is no low.
    """
    score = np.minimum(np.asarray(vtl, float), np.asarray(vtu, float))
    if b is not None:
        score = score - np.maximum(np.asarray(b, float) - b_max_m, 0.0)
    return np.asarray(score)


def hold(
    raw: ArrayLike, times: ArrayLike, *, min_hours: float, step_hours: float, causal: bool = False
) -> NDArray[np.bool_]:
    """Keep the runs that last: hysteresis in time.

    Parameters
    ----------
    raw
        Shape (time,): the rule on each map.
    times
        Shape (time,), strictly increasing, ``datetime64`` or objects of cftime.
    min_hours
        A run is kept if its last time minus its first is at least this.
    step_hours
        Usual distance of two maps; a longer one is a gap, and a gap ends a run.
    causal
        Keep a run only from the time it has lasted long enough, as a forecaster sees it, rather
        than whole, as an archive is labelled.

    Returns
    -------
    ndarray
        bool, shape (time,).

    Raises
    ------
    InputError
        If the shapes differ or the times do not increase.
    """
    flags = np.asarray(raw, bool)
    moments = np.asarray(times)
    if flags.ndim != 1 or flags.shape != moments.shape:
        raise InputError("raw", f"one value for each of {moments.size} times", found=flags.shape)
    if flags.size == 0:
        return flags.copy()
    hours = hours_since_first(moments)
    new_run = np.ones(flags.size, bool)
    step = np.diff(hours)
    if (step <= 0).any():
        at = moments[1:][step <= 0][0]
        raise InputError("time", "times must increase strictly", found=at)
    new_run[1:] = (flags[1:] != flags[:-1]) | (step > step_hours * 1.001)
    run = np.cumsum(new_run) - 1
    first = hours[new_run]
    last = hours[np.append(np.flatnonzero(new_run)[1:] - 1, flags.size - 1)]
    lasted = hours - first[run] if causal else (last - first)[run]
    return np.asarray(flags & (lasted >= min_hours - 1e-6))


def hours_since_first(times: ArrayLike | Sequence[Any]) -> FloatArray:
    """Hours since the first time, float64, for ``datetime64`` or objects of cftime."""
    moments = np.asarray(times)
    since = moments - moments[0]
    if since.dtype == object:
        return np.array([gap.total_seconds() / 3600 for gap in since], float)
    return np.asarray(since / np.timedelta64(1, "s"), float) / 3600
