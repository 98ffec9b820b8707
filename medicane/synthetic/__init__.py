"""The idealised sea: months of ERA5-like NetCDF with storms whose labels are known exactly.

Random weather (`background`) with storms in it (`storms`, drawn and placed by `storm_plan`),
written month by month in bounded memory. Storms and weather draw from separate streams of one
seed: the same seed gives the same data, and another map interval samples the same storms.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medicane import config, names
from medicane.errors import InputError
from medicane.standardise.land import land_sea_mask
from medicane.synthetic import background, storm_plan, storms, vortex
from medicane.synthetic import files as sea_files

_log = logging.getLogger(__name__)

#: Changes whenever the same configuration would give other data.
RECIPE = 1
DOMAIN = config.Domain()
#: Maps made and written at a time.
BLOCK = 64
#: Degrees of the mask that decides whether a storm's centre is over sea, whatever the grid.
MASK_DEGREES = 0.1
#: Half-width (km) of the window on which a storm is felt: beyond it less than a millimetre is left.
REACH_KM = 800.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SeaFiles:
    """What `build_sea` wrote: a glob of monthly grids, the catalogue, the tracks and the truth."""

    grids_glob: str
    catalogue: Path
    tracks: Path
    truth: Path


@dataclass(frozen=True)
class IdealisedSea:
    """A planned sea: its grid, times and storms. Maps are made by `maps`, in order."""

    sea: config.Sea
    label: config.Label
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    times: NDArray[np.datetime64]
    hours: NDArray[np.int64]
    storms: list[storms.Storm]
    background_seed: np.random.SeedSequence

    def maps(self, *, weather: float = 1.0) -> Iterator[tuple[slice, background.Maps]]:
        """Blocks of consecutive maps with all storms added.

        Parameters
        ----------
        weather
            Factor on the random weather: 1 for the sea itself, 0 for its noise-free twin, which
            has neither random waves nor a jet.

        Yields
        ------
        slice of `times`, and the `background.Maps` of those times.
        """
        calm = background.Climate(jet=0.0, jet_season=0.0)
        weather_now = background.Background(
            self.latitude,
            self.longitude,
            step_hours=self.sea.step_hours,
            rng=np.random.default_rng(self.background_seed),
            strength=weather,
            climate=calm if weather == 0 else None,
        )
        month = self.times.astype("datetime64[M]")
        starts = np.flatnonzero(np.append(True, month[1:] != month[:-1]))
        for first, end in zip(starts, np.append(starts[1:], self.times.size), strict=True):
            for at in range(first, end, BLOCK):
                block = slice(int(at), int(min(at + BLOCK, end)))
                maps = weather_now.maps(_day_of_year(self.times[block]))
                self._add_storms(maps, self.hours[block])
                yield block, maps

    def _add_storms(self, maps: background.Maps, hours: NDArray[np.int64]) -> None:
        for storm in self.storms:
            if storm.start > hours[-1] or storm.start + storm.hours <= hours[0]:
                continue
            for i in np.flatnonzero((hours >= storm.start) & (hours < storm.start + storm.hours)):
                add_storm(
                    maps,
                    int(i),
                    storm,
                    int(hours[i] - storm.start),
                    latitude=self.latitude,
                    longitude=self.longitude,
                )


def add_storm(
    maps: background.Maps,
    index: int,
    storm: storms.Storm,
    age: int,
    *,
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
) -> None:
    """Add a storm of an age (h) to the map at `index`, in place.

    Pressure and heights follow the vortex; the 10 m wind is its gradient wind, slowed and turned
    inwards by friction as the background's is.
    """
    lat0, lon0 = storm.latitude[age], storm.longitude[age]
    km = background.DEGREE_KM
    south_north = (latitude - lat0) * km
    rows = np.flatnonzero(np.abs(south_north) < REACH_KM)
    columns = np.flatnonzero(
        np.abs(longitude - lon0) * km * np.cos(np.deg2rad(abs(lat0))) < REACH_KM
    )
    if not rows.size or not columns.size:
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    y = south_north[window[0], None]
    middle = np.cos(np.deg2rad((latitude[window[0], None] + lat0) / 2))
    x = (longitude[None, window[1]] - lon0) * km * middle
    r = np.hypot(x, y)
    s = vortex.radial_shape(r, storm.radius_km, family=storm.family)
    maps.msl[index][window] -= (storm.depth_hpa[age] * 100 * s).astype(np.float32)

    heading = np.deg2rad(storm.heading_deg[age])
    right = x * np.cos(heading) - y * np.sin(heading)
    front = storm.tilt[age] * right * vortex.ends(r)
    parts = np.stack([s, s * s, front]).astype(np.float32)
    mix = np.stack(
        [storm.a1[age], storm.a2[age], vortex.shear_shape(names.PHASE_SPACE_LEVELS)], axis=1
    ).astype(np.float32)
    maps.zg[index][(slice(None), *window)] += np.tensordot(mix, parts, axes=1)

    gradient = vortex.pressure_gradient(
        r, depth_hpa=storm.depth_hpa[age], radius_km=storm.radius_km, family=storm.family
    )
    speed = background.FRICTION * vortex.gradient_wind(
        r, gradient, density=vortex.SEA_DENSITY, f=vortex.coriolis(lat0)
    )
    inflow = np.deg2rad(background.INFLOW_DEG)
    away = np.maximum(r, 1e-6)
    tangential, inward = speed * np.cos(inflow) / away, speed * np.sin(inflow) / away
    maps.u10[index][window] += (-tangential * y - inward * x).astype(np.float32)
    maps.v10[index][window] += (tangential * x - inward * y).astype(np.float32)


def plan_sea(sea: config.Sea, *, label: config.Label) -> IdealisedSea:
    """Draw the storms of a sea and lay out its grid and times; nothing is written.

    Parameters
    ----------
    sea
        Length, map interval, seed, base rate and grid.
    label
        The definition that the labels obey and the base rate counts.

    Raises
    ------
    InputError
        If the record leaves the calendar of the files, or storms cannot obey the definition.
    """
    if not 1700 <= sea.start_year <= 2200 - sea.years:
        law = "the record must lie between the years 1700 and 2200"
        raise InputError("sea.start_year", law, found=f"{sea.start_year} and {sea.years:g} years")
    storm_seed, background_seed = np.random.SeedSequence(sea.seed).spawn(2)
    n_hours = 24 * max(1, round(sea.years * 365.25))
    hours = np.arange(0, n_hours, sea.step_hours)
    first = np.datetime64(f"{sea.start_year:04d}-01-01T00", "ns")
    planned = storm_plan.plan_storms(
        np.random.default_rng(storm_seed),
        sea=sea,
        hours=n_hours,
        is_land=land_lookup(),
        definition=label,
    )
    latitude, longitude = _grid(sea.degrees)
    return IdealisedSea(
        sea=sea,
        label=label,
        latitude=latitude,
        longitude=longitude,
        times=first + hours.astype("timedelta64[h]"),
        hours=hours,
        storms=planned,
        background_seed=background_seed,
    )


def _grid(degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitude descending and longitude ascending: the multiples of `degrees` in the domain."""

    def multiples(low: float, high: float) -> NDArray[np.float64]:
        first, last = np.ceil(low / degrees - 1e-9), np.floor(high / degrees + 1e-9)
        return np.arange(first, last + 1) * degrees

    return multiples(DOMAIN.south, DOMAIN.north)[::-1].copy(), multiples(DOMAIN.west, DOMAIN.east)


def land_lookup() -> storms.IsLand:
    """Whether points are on land: the real coast at a tenth of a degree, land outside."""
    latitude, longitude = _grid(MASK_DEGREES)
    land = land_sea_mask(latitude, longitude).values > 0.5

    def is_land(lat: storms.Array, lon: storms.Array) -> storms.Mask:
        row = np.round((latitude[0] - np.asarray(lat)) / MASK_DEGREES).astype(int)
        column = np.round((np.asarray(lon) - longitude[0]) / MASK_DEGREES).astype(int)
        inside = (row >= 0) & (row < land.shape[0]) & (column >= 0) & (column < land.shape[1])
        return np.where(inside, land[row % land.shape[0], column % land.shape[1]], True)

    return is_land


def _day_of_year(times: NDArray[np.datetime64]) -> NDArray[np.float64]:
    return np.asarray((times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D"), float)


def truth_table(planned: IdealisedSea) -> dict[str, NDArray]:
    """The label of every map, and the noise-free phase space behind it.

    Returns
    -------
    dict of arrays of shape (time,)
        ``medicane`` (int8), ``storm`` and ``kind`` (str, empty without a storm over sea), and
        of that storm ``b``, ``vtl``, ``vtu`` (m), ``low_msl`` (hPa), ``low_latitude`` and
        ``low_longitude`` (NaN without one). Of several storms it is the medicane, else the one
        with the warmest core.
    """
    n = planned.times.size
    table: dict[str, NDArray] = {
        "medicane": np.zeros(n, np.int8),
        "storm": np.full(n, "", dtype=object),
        "kind": np.full(n, "", dtype=object),
    }
    numbers = ("b", "vtl", "vtu", "low_msl", "low_latitude", "low_longitude")
    table |= {name: np.full(n, np.nan, np.float32) for name in numbers}
    rank = np.full(n, -np.inf)
    for storm in planned.storms:
        at = np.flatnonzero(
            (planned.hours >= storm.start) & (planned.hours < storm.start + storm.hours)
        )
        age = planned.hours[at] - storm.start
        warmth = np.minimum(storm.vtl, storm.vtu) + np.where(storm.medicane, 1e6, 0.0)
        better = storm.over_sea[age] & (warmth[age] > rank[at])
        at, age = at[better], age[better]
        rank[at] = warmth[age]
        table["medicane"][at] = storm.medicane[age]
        table["storm"][at], table["kind"][at] = storm.name, storm.kind
        values = (storm.b, storm.vtl, storm.vtu, storm.msl_hpa, storm.latitude, storm.longitude)
        for name, value in zip(numbers, values, strict=True):
            table[name][at] = value[age]
    return table


def build_sea(
    out: str | Path,
    sea: config.Sea,
    *,
    label: config.Label | None = None,
    progress: Progress | None = None,
) -> SeaFiles:
    """Write an idealised sea: monthly grids in the ERA5 dialect, catalogue, tracks and truth.

    Parameters
    ----------
    out
        Folder; made if need be. A sea that is already there whole and from the same configuration
        is left as it is; another sea of ours is replaced.
    sea
        Length, map interval, seed, base rate and grid.
    label
        The definition that the labels obey (the default one if none).
    progress
        Called with the number of maps done and the number of all.

    Returns
    -------
    SeaFiles
        ``out/grids/era5_YYYY-MM.nc`` (as a glob), ``out/storms.csv``, ``out/tracks.csv``,
        ``out/truth.nc``.

    Raises
    ------
    InputError
        If ``out`` holds grids that no idealised sea wrote, or is not a folder.
    """
    out = Path(out)
    label = config.Label() if label is None else label
    files = SeaFiles(
        grids_glob=str(out / "grids" / "era5_*.nc"),
        catalogue=out / "storms.csv",
        tracks=out / "tracks.csv",
        truth=out / "truth.nc",
    )
    identity = {"recipe": RECIPE, "sea": sea.model_dump(), "label": label.model_dump()}
    if not _claim(out, identity):
        _log.info("%s already holds this sea", out)
        return files
    planned = plan_sea(sea, label=label)
    table = truth_table(planned)
    realised = float(table["medicane"].mean())
    if abs(realised - sea.base_rate) > 0.2 * sea.base_rate:
        _log.warning(
            "%.2f %% of maps hold a medicane: the record is too short or too crowded for %.2f %%",
            100 * realised,
            100 * sea.base_rate,
        )
    sea_files.write_grids(
        out / "grids",
        planned.maps(),
        times=planned.times,
        latitude=planned.latitude,
        longitude=planned.longitude,
        history=f"recipe {RECIPE}, seed {sea.seed}",
        progress=progress,
    )
    sea_files.write_truth(files.truth, table, times=planned.times, label=label)
    sea_files.write_catalogue(files.catalogue, planned.storms, first=planned.times[0])
    sea_files.write_tracks(files.tracks, planned.storms, first=planned.times[0])
    sea_files.write_identity(out / "sea.json", identity | {"complete": True})
    _log.info(
        "idealised sea: %d maps, %d storms, %.2f %% of maps with a medicane",
        planned.times.size,
        len(planned.storms),
        100 * realised,
    )
    return files


def _claim(out: Path, identity: dict[str, object]) -> bool:
    """Make the folder ours; False if the very sea is there already."""
    grids, marker = out / "grids", out / "sea.json"
    if out.exists() and not out.is_dir():
        raise InputError(out, "the sea needs a folder to write to", found="a file")
    present = sorted(grids.glob("*.nc"))
    if marker.exists():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found == json.loads(json.dumps(identity | {"complete": True})):
            return False
    elif present:
        raise InputError(
            grids, "only grids of an idealised sea may be replaced", found=present[0].name
        )
    grids.mkdir(parents=True, exist_ok=True)
    sea_files.write_identity(marker, identity | {"complete": False})
    for path in grids.glob("era5_*.nc"):
        path.unlink()
    for name in ("storms.csv", "tracks.csv", "truth.nc"):
        (out / name).unlink(missing_ok=True)
    return True
