"""The lows of a map: pressure minima over the sea, their motion, and their phase space.

Everything is causal: what is said of a map depends on it and on the maps before it, never on
later ones, so that a record prepared in pieces equals one prepared at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import config, names
from medicane.errors import InputError
from medicane.phase_space import (
    PhaseSpace,
    hours_since_first,
    phase_space_of_points,
    satisfies,
)
from medicane.phase_space.sphere import FloatArray, bearing_deg, distance_km, gather, grid_discs

#: Two minima closer than this are one low, km.
SEPARATION_KM = 200.0

#: A low is at least this much deeper than the mean within `SEPARATION_KM`, hPa: keeps plateaus,
#: noise and the flanks of other lows out. A medicane of 8 hPa is about 5 hPa deeper.
LEAST_DEPTH_HPA = 0.5

#: A low moves no faster than this from one map to the next, m/s; Mediterranean cyclones rarely
#: exceed 20.
FASTEST_MS = 20.0

#: Slack of the link for the grid and for a jumping minimum, km.
LINK_SLACK_KM = 75.0

#: Lows are not linked across a longer time than this, hours.
LONGEST_LINK_HOURS = 12.0

#: The motion is taken over this time (or one step of the maps if longer): on hourly maps a low
#: moves by less than a grid cell a step, and its heading would be the grid's.
MOTION_HOURS = 6.0

#: A low that has moved less than this keeps its heading, km.
LEAST_MOTION_KM = 20.0


class Centres(NamedTuple):
    """Lows, each array of shape (low,), ordered by map and within a map by pressure."""

    map_index: NDArray[np.intp]
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    latitude: FloatArray
    longitude: FloatArray
    msl_hpa: FloatArray


class Track(NamedTuple):
    """A low's recent past: positions (hours before the last map, latitude, longitude)."""

    positions: tuple[tuple[float, float, float], ...]
    heading_deg: float


class LastMap(NamedTuple):
    """What the next piece of a record needs of this one: the last time and its lows."""

    time: Any
    tracks: tuple[Track, ...]


class Lows(NamedTuple):
    """One low for each map: float32 arrays of shape (time,), NaN where there is none."""

    low_latitude: NDArray[np.float32]
    low_longitude: NDArray[np.float32]
    low_msl: NDArray[np.float32]
    b: NDArray[np.float32]
    vtl: NDArray[np.float32]
    vtu: NDArray[np.float32]
    last: LastMap | None


def find_lows(
    msl: ArrayLike,
    sea: ArrayLike,
    *,
    latitude: ArrayLike,
    longitude: ArrayLike,
    max_hpa: float,
    separation_km: float = SEPARATION_KM,
    least_depth_hpa: float = LEAST_DEPTH_HPA,
) -> Centres:
    """Pressure minima over the sea.

    A low is a grid point over the sea, not on the rim of the grid, whose pressure is below
    `max_hpa`, the lowest within `separation_km` (land included) and at least `least_depth_hpa`
    below the mean there. A flat bottom counts once. The position is refined below the grid
    spacing by a parabola through the neighbours.

    Parameters
    ----------
    msl
        Mean sea level pressure, Pa, shape (latitude, longitude) or (time, latitude, longitude);
        NaN and its neighbours are never a minimum.
    sea
        True over the sea, shape (latitude, longitude).
    latitude, longitude
        Degrees, 1-D, evenly spaced.
    max_hpa
        Highest central pressure, hPa.
    separation_km, least_depth_hpa
        See above.

    Returns
    -------
    Centres

    Raises
    ------
    InputError
        If the shapes disagree, or the pressure is not in Pa.
    """
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    pressure = np.asarray(msl)
    if pressure.shape[-2:] != (lat.size, lon.size) or np.shape(sea) != (lat.size, lon.size):
        law = f"msl and sea must have the grid's shape {(lat.size, lon.size)}"
        raise InputError("msl", law, found=f"{pressure.shape} and {np.shape(sea)}")
    pressure = pressure.reshape(-1, lat.size, lon.size)
    highest = float(np.fmax.reduce(pressure, axis=None, initial=-np.inf))
    if -np.inf < highest < 2000:
        law = "mean sea level pressure must be in Pa"
        raise InputError("msl", law, found=f"at most {highest:g}")
    inner = pressure[:, 1:-1, 1:-1]
    lowest = (inner < max_hpa * 100) & np.asarray(sea, bool)[None, 1:-1, 1:-1]
    for north in (0, 1, 2):
        for west in (0, 1, 2):
            if (north, west) != (1, 1):
                beside = pressure[:, north : lat.size - 2 + north, west : lon.size - 2 + west]
                lowest &= inner <= beside
    maps, rows, columns = np.nonzero(lowest)
    rows, columns = rows + 1, columns + 1
    centre = pressure[maps, rows, columns].astype(float)
    depth = np.full(maps.size, np.nan)
    discs = grid_discs(lat, lon, separation_km)
    for row in np.unique(rows):
        here = np.flatnonzero(rows == row)
        around = gather(pressure, discs[row], maps=maps[here], row=int(row), columns=columns[here])
        area = np.where(np.isfinite(around), discs[row].area_km2, 0.0)
        mean = np.nansum(around * area, axis=1) / area.sum(axis=1)
        is_lowest = np.nanmin(around, axis=1) >= centre[here]
        depth[here] = np.where(is_lowest, mean - centre[here], np.nan) / 100
    kept = np.flatnonzero(depth >= least_depth_hpa)
    # The middle of a flat bottom has the lowest surroundings: it comes first and stands for it.
    kept = kept[np.lexsort((depth[kept], centre[kept], maps[kept]))]
    at = (lat[rows[kept]], lon[columns[kept]])
    kept = kept[_first_of_each_flat(maps[kept], centre[kept], *at, separation_km)]
    maps, rows, columns = maps[kept], rows[kept], columns[kept]
    south_north = _vertex(*(pressure[maps, rows + k, columns].astype(float) for k in (-1, 0, 1)))
    west_east = _vertex(*(pressure[maps, rows, columns + k].astype(float) for k in (-1, 0, 1)))
    return Centres(
        maps,
        rows,
        columns,
        lat[rows] + south_north * (lat[1] - lat[0]),
        lon[columns] + west_east * (lon[1] - lon[0]),
        centre[kept] / 100,
    )


def _first_of_each_flat(
    maps: NDArray[np.intp], msl: FloatArray, lat: FloatArray, lon: FloatArray, separation_km: float
) -> NDArray[np.bool_]:
    """True for the first of equally deep neighbours; sorted by map and pressure, ties are rare."""
    keep = np.ones(maps.size, bool)
    tied = np.flatnonzero((maps[1:] == maps[:-1]) & (msl[1:] == msl[:-1])) + 1
    for k in tied:
        same = np.flatnonzero((maps[:k] == maps[k]) & (msl[:k] == msl[k]) & keep[:k])
        keep[k] = not (distance_km(lat[same], lon[same], lat[k], lon[k]) <= separation_km).any()
    return keep


def _vertex(before: FloatArray, here: FloatArray, after: FloatArray) -> FloatArray:
    """Where the parabola through three points is lowest, in steps from the middle one."""
    bend = before - 2 * here + after
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bend > 0, np.clip(0.5 * (before - after) / bend, -0.5, 0.5), 0.0)


def _link(
    tracks: tuple[Track, ...], hours: float, latitude: FloatArray, longitude: FloatArray
) -> tuple[Track, ...]:
    """The tracks of this map's lows: the nearest pairs first, each low and each track once."""
    taken: dict[int, Track] = {}
    if tracks and latitude.size and hours <= LONGEST_LINK_HOURS:
        old = np.array([track.positions[-1][1:] for track in tracks])
        away = distance_km(old[:, :1], old[:, 1:], latitude[None], longitude[None])
        reach = FASTEST_MS * 3.6 * hours + LINK_SLACK_KM
        used: set[int] = set()
        for pair in np.argsort(away, axis=None, kind="stable"):
            before, now = divmod(int(pair), latitude.size)
            if away[before, now] > reach:
                break
            if before not in used and now not in taken:
                used.add(before)
                taken[now] = tracks[before]
    return tuple(
        _extended(taken.get(k), hours, float(latitude[k]), float(longitude[k]))
        for k in range(latitude.size)
    )


def _extended(track: Track | None, hours: float, latitude: float, longitude: float) -> Track:
    """A track with one more position, and its heading over the last `MOTION_HOURS`."""
    now = (0.0, latitude, longitude)
    if track is None:
        return Track((now,), np.nan)
    aged = tuple((age + hours, lat, lon) for age, lat, lon in track.positions)
    recent = tuple(p for p in aged if p[0] <= MOTION_HOURS + 1e-6) or aged[-1:]
    _, lat, lon = recent[0]
    heading = track.heading_deg
    if distance_km(lat, lon, latitude, longitude) >= LEAST_MOTION_KM:
        heading = float(bearing_deg(lat, lon, latitude, longitude))
    return Track((*recent, now), heading)


def follow_lows(
    centres: Centres, times: ArrayLike, *, previous: LastMap | None
) -> tuple[FloatArray, LastMap | None]:
    """Where each low is heading, from where it stood on the maps before.

    The one part of the lows that goes from map to map: the rest of a record can be computed in any
    order once this is known.

    Parameters
    ----------
    centres
        From `find_lows`.
    times
        Of the maps, shape (time,), strictly increasing, ``datetime64`` or objects of cftime.
    previous
        As for `lows_of_maps`.

    Returns
    -------
    ndarray
        Degrees clockwise from north, shape (low,); NaN where the low has not moved yet.
    LastMap or None
        For the maps that follow.

    Raises
    ------
    InputError
        If the times do not increase.
    """
    moments = np.asarray(times)
    if moments.size == 0:
        return np.empty(0), previous
    first = moments[:1] if previous is None else np.asarray([previous.time], moments.dtype)
    steps = np.diff(hours_since_first(np.concatenate([first, moments])))
    if (steps[1:] <= 0).any() or (previous is not None and steps[0] <= 0):
        raise InputError("time", "times must increase strictly", found=f"steps of {steps.min()} h")
    heading = np.full(centres.row.size, np.nan)
    tracks = () if previous is None else previous.tracks
    bounds = np.searchsorted(centres.map_index, np.arange(moments.size + 1))
    for k in range(moments.size):
        here = slice(bounds[k], bounds[k + 1])
        tracks = _link(tracks, float(steps[k]), centres.latitude[here], centres.longitude[here])
        heading[here] = [track.heading_deg for track in tracks]
    return heading, LastMap(moments[-1], tracks)


def lows_of_maps(
    zg: ArrayLike,
    msl: ArrayLike,
    sea: ArrayLike,
    *,
    times: ArrayLike,
    levels: ArrayLike,
    latitude: ArrayLike,
    longitude: ArrayLike,
    definition: config.Label,
    previous: LastMap | None = None,
) -> Lows:
    """The most medicane-like low of each map, with its phase space.

    Of a map's lows over the sea below ``definition.msl_max_hpa``, one that satisfies the rule
    comes before one that does not; then the larger min(−VTL, −VTU) counts, then the pressure.

    Parameters
    ----------
    zg
        Geopotential height, m, shape (time, level, latitude, longitude).
    msl
        Mean sea level pressure, Pa, shape (time, latitude, longitude).
    sea
        True over the sea, shape (latitude, longitude).
    times
        Shape (time,), strictly increasing, ``datetime64`` or objects of cftime.
    levels
        Pressure, hPa, shape (level,), with 900, 600 and 300 among them.
    latitude, longitude
        Degrees, 1-D, evenly spaced.
    definition
        Radius and thresholds.
    previous
        ``last`` of the maps before these, to carry the lows' motion on: the result is then the
        same as in one call for all. None at the beginning, or after a gap.

    Returns
    -------
    Lows
        A low whose disc is mostly outside of the data keeps its place and has no phase space.
        B is the largest over all headings where the motion is not (yet) known.

    Raises
    ------
    InputError
        If shapes, levels, units or the order of the times are wrong.
    """
    pressure, heights = np.asarray(msl), np.asarray(zg)
    moments = np.asarray(times)
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    n = moments.size
    wanted = (n, np.asarray(levels).size, lat.size, lon.size)
    if heights.shape != wanted or pressure.shape != (n, lat.size, lon.size):
        law = f"zg must have shape (time, level, latitude, longitude) {wanted}, msl without level"
        raise InputError("zg", law, found=f"{heights.shape} and {pressure.shape}")
    if n == 0:
        none = np.empty(0, np.float32)
        return Lows(none, none, none, none, none, none, previous)
    centres = find_lows(pressure, sea, latitude=lat, longitude=lon, max_hpa=definition.msl_max_hpa)
    heading, last = follow_lows(centres, moments, previous=previous)
    space = _phase_space_of_lows(
        heights, np.asarray(levels, float), lat, lon, centres, heading, definition.radius_km
    )
    passes = satisfies(*space, centres.msl_hpa, definition=definition)
    warm = np.nan_to_num(np.minimum(space.vtl, space.vtu), nan=-np.inf)
    order = np.lexsort((centres.msl_hpa, -warm, ~passes, centres.map_index))
    maps, best = np.unique(centres.map_index[order], return_index=True)
    chosen = order[best]

    def on_maps(values: FloatArray) -> NDArray[np.float32]:
        column = np.full(n, np.nan, np.float32)
        column[maps] = values[chosen]
        return column

    return Lows(
        on_maps(centres.latitude),
        on_maps(centres.longitude),
        on_maps(centres.msl_hpa),
        on_maps(space.b),
        on_maps(space.vtl),
        on_maps(space.vtu),
        last,
    )


def _phase_space_of_lows(
    zg: NDArray[Any],
    levels: FloatArray,
    lat: FloatArray,
    lon: FloatArray,
    centres: Centres,
    heading: FloatArray,
    radius_km: float,
) -> PhaseSpace:
    """Phase space of every low, one latitude row at a time."""
    cell_km = float(distance_km(0.0, 0.0, lat[1] - lat[0], lon[1] - lon[0]))
    # A low lies up to half a cell diagonal beside its grid point: gather more, cut at the radius.
    discs = grid_discs(lat, lon, radius_km + 0.75 * cell_km)
    parts = [np.full(centres.row.size, np.nan) for _ in range(3)]
    for row in np.unique(centres.row):
        here = np.flatnonzero(centres.row == row)
        disc = discs[row]
        maps, columns = centres.map_index[here], centres.column[here]
        values = gather(zg, disc, maps=maps, row=int(row), columns=columns)
        at = (centres.latitude[here, None], centres.longitude[here, None])
        point_lat = lat[row] + disc.rows[None] * (lat[1] - lat[0])
        point_lon = lon[columns][:, None] + disc.columns[None] * (lon[1] - lon[0])
        away = distance_km(*at, point_lat, point_lon)
        values[np.broadcast_to((away > radius_km)[:, None], values.shape)] = np.nan
        space = phase_space_of_points(
            values,
            levels=levels,
            area=disc.area_km2,
            bearing=np.where(away > 1e-6, bearing_deg(*at, point_lat, point_lon), np.nan),
            disc_area=float(np.pi * radius_km**2),
            heading=heading[here],
            north=bool(lat[row] >= 0),
        )
        for part, found in zip(parts, space, strict=True):
            part[here] = found
    return PhaseSpace(*parts)


def phase_space_levels(standard: xr.Dataset) -> list[int]:
    """The levels, hPa, on which a dataset has what the phase space needs; none if it has not."""
    if "msl" not in standard or "zg" not in standard:
        return []
    held = standard[names.LEVEL].values
    levels = [p for p in names.PHASE_SPACE_LEVELS if p in held]
    return levels if {900, 600, 300} <= set(levels) else []


def lows_of_dataset(
    standard: xr.Dataset,
    *,
    definition: config.Label,
    sea: ArrayLike,
    previous: LastMap | None = None,
    block: int = 96,
) -> tuple[xr.Dataset, LastMap | None]:
    """Where the storm of each map would stand, `block` maps in memory at a time.

    With geopotential height on the levels of the phase space it is the most medicane-like low of
    `lows_of_maps`. With surface fields only, and where no low is below the pressure that the rule
    asks for, it is the deepest low over the sea; without pressure, none.

    Parameters
    ----------
    standard
        From `medicane.standardise`: ``msl`` in Pa and, if there, ``zg`` in m.
    definition
        Radius and thresholds; without ``zg`` the limit of pressure is not asked.
    sea
        True over the sea, shape (latitude, longitude).
    previous
        What this function returned for the maps before these; see `lows_of_maps`.

    Returns
    -------
    xr.Dataset
        ``low_latitude(time)`` and ``low_longitude(time)``, degrees, NaN where there is no low.
    LastMap or None
        For the maps that follow.
    """
    latitude, longitude = standard[names.LATITUDE].values, standard[names.LONGITUDE].values
    times = standard.indexes[names.TIME]
    levels = phase_space_levels(standard)
    has_phase_space = bool(levels)
    found = {n: np.full(len(times), np.nan, np.float32) for n in ("latitude", "longitude")}
    last = previous if has_phase_space else None
    blocks = range(0, len(times), block) if "msl" in standard else ()
    for start in blocks:
        part = slice(start, min(start + block, len(times)))
        maps = standard.isel({names.TIME: part})
        msl = maps["msl"].values
        if has_phase_space:
            zg = maps["zg"].sel({names.LEVEL: levels})
            order = (names.TIME, names.LEVEL, names.LATITUDE, names.LONGITUDE)
            lows = lows_of_maps(
                zg.transpose(*order).values,
                msl,
                sea,
                times=times[part],
                levels=levels,
                definition=definition,
                previous=last,
                latitude=latitude,
                longitude=longitude,
            )
            last = lows.last
            found["latitude"][part] = lows.low_latitude
            found["longitude"][part] = lows.low_longitude
        centres = find_lows(msl, sea, latitude=latitude, longitude=longitude, max_hpa=1100.0)
        # Ordered by pressure inside a map: the first of each is its deepest.
        of_map, first = np.unique(centres.map_index, return_index=True)
        open_still = np.isnan(found["latitude"][start + of_map])
        at, deepest = start + of_map[open_still], first[open_still]
        found["latitude"][at] = centres.latitude[deepest]
        found["longitude"][at] = centres.longitude[deepest]
    centres_of_maps = xr.Dataset(
        {f"low_{name}": (names.TIME, values) for name, values in found.items()},
        coords={names.TIME: standard[names.TIME]},
    )
    return centres_of_maps, last
