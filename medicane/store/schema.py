"""What a map store holds and says of itself: its arrays, attributes, recipe and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from medicane import __version__, names
from medicane.channels import describe
from medicane.config import Config
from medicane.errors import InputError, redacted
from medicane.packing import MISSING, Packing
from medicane.phase_space.lows import LastMap, Track
from medicane.store.commits import ArrayPlan

SCHEMA_VERSION = 2
#: Maps in a chunk of a channel: a window of 12 touches at most two.
CHUNK = 24
#: Times in a chunk of the small arrays.
SMALL_CHUNK = 16384

#: The land-sea mask of the store; ``lsm`` is a channel.
LAND = "land_sea_mask"
#: Attributes of a packed array that make its `Packing`.
PACKING = ("scale_factor", "add_offset", "packing_error")

#: Fields of the lows, with units and meaning; written where the data hold heights on levels.
LOWS = {
    "low_latitude": ("degrees_north", "latitude of the low that is most like a medicane"),
    "low_longitude": ("degrees_east", "longitude of that low"),
    "low_msl": ("hPa", "mean sea level pressure at its centre"),
    "b": ("m", "its thermal asymmetry B (Hart 2003)"),
    "vtl": ("m", "its lower thermal wind -VTL, positive = warm core (Hart 2003)"),
    "vtu": ("m", "its upper thermal wind -VTU, positive = warm core (Hart 2003)"),
}


def recipe_of(config: Config, maps: xr.DataArray, levels: Sequence[int]) -> dict[str, Any]:
    """All that decides what a map of the store holds, besides the grids: JSON values.

    Parameters
    ----------
    config
        ``data`` and ``label`` are used.
    maps
        (time, channel, latitude, longitude), for the grid.
    levels
        hPa, of the phase space; none if it is not computed.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "channels": describe(config.data.channels),
        "step_hours": config.data.step_hours,
        "degrees": config.data.degrees,
        "domain": config.data.domain.model_dump(),
        "select": config.data.select,
        "label": config.label.model_dump(),
        "latitude": np.asarray(maps[names.LATITUDE], float).tolist(),
        "longitude": np.asarray(maps[names.LONGITUDE], float).tolist(),
        "phase_space_levels": list(levels),
    }


def store_attributes(
    recipe: Mapping[str, Any], *, files: Sequence[str], catalogue: str | None, idealised: bool
) -> dict[str, Any]:
    """Attributes of the root that follow from the recipe and the sources."""
    return {
        "Conventions": "CF-1.11",
        "title": "prepared maps for medicane detection",
        "schema_version": SCHEMA_VERSION,
        "software_version": __version__,
        "source_files": json.dumps(list(dict.fromkeys(map(redacted, files)))),
        "catalogue": redacted(catalogue or ""),
        "label_definition": json.dumps(recipe["label"]),
        "channels": json.dumps(recipe["channels"]),
        "step_hours": recipe["step_hours"],
        "degrees": recipe["degrees"],
        "domain": json.dumps(recipe["domain"]),
        "phase_space_levels": list(recipe["phase_space_levels"]),
        "idealised": int(idealised),
        "recipe": json.dumps(recipe),
    }


def array_plans(
    maps: xr.DataArray,
    channels: Sequence[Mapping[str, str]],
    packings: Sequence[Packing],
    *,
    lsm: NDArray[np.float32],
    levels: Sequence[int],
) -> dict[str, ArrayPlan]:
    """The arrays of a new store.

    Parameters
    ----------
    maps
        (time, channel, latitude, longitude), for the coordinates.
    channels
        Name, formula, units and long name of each channel: `medicane.channels.describe`.
    packings
        One for each channel.
    lsm
        (latitude, longitude), 1 = land.
    levels
        hPa, of the phase space; without any, the store has no lows.

    Raises
    ------
    InputError
        If a channel has the name of another array of the store.
    """
    latitude = np.asarray(maps[names.LATITUDE], np.float64)
    longitude = np.asarray(maps[names.LONGITUDE], np.float64)
    space, grid = (names.LATITUDE, names.LONGITUDE), (latitude.size, longitude.size)

    def along_time(dtype: Any, **attributes: Any) -> ArrayPlan:
        # Zarr compresses text only: numbers are few, and plain chunks are written faster.
        is_text = dtype is str
        return ArrayPlan((names.TIME,), (), dtype, attributes, None, SMALL_CHUNK, is_text)

    def fixed(dims: tuple[str, ...], values: NDArray[Any], dtype: Any, **about: Any) -> ArrayPlan:
        return ArrayPlan(dims, values.shape, dtype, about, values)

    plans = {
        names.TIME: along_time(
            "int64",
            standard_name="time",
            units="seconds since 1970-01-01",
            calendar="proleptic_gregorian",
        ),
        names.CHANNEL: fixed(
            (names.CHANNEL,),
            np.array([about["name"] for about in channels], object),
            str,
            long_name="channel",
        ),
        names.LATITUDE: fixed(
            space[:1], latitude, "float64", standard_name="latitude", units="degrees_north"
        ),
        names.LONGITUDE: fixed(
            space[1:], longitude, "float64", standard_name="longitude", units="degrees_east"
        ),
        LAND: fixed(space, lsm, "float32", standard_name="land_binary_mask", units="1"),
        "medicane": along_time(
            "int8",
            long_name="whether the map shows a medicane",
            flag_values=[names.NOT_MEDICANE, names.MEDICANE, names.UNKNOWN],
            flag_meanings="not_medicane medicane unknown",
        ),
        "storm": along_time(str, long_name="storm of the catalogue, or empty"),
    }
    if levels:
        for name, (units, long_name) in LOWS.items():
            plans[name] = along_time("float32", units=units, long_name=long_name)
    for about, packing in zip(channels, packings, strict=True):
        if about["name"] in plans:
            raise InputError(
                f"data.channels: {about['name']}",
                f"a channel needs a name of its own ({', '.join(plans)} are in the store already)",
                found=about["formula"],
            )
        plans[about["name"]] = ArrayPlan(
            (names.TIME, *space),
            grid,
            "int16",
            {key: about[key] for key in ("long_name", "units", "formula")}
            | packing_attributes(packing)
            | {"_FillValue": MISSING},
            chunk=CHUNK,
            compressed=False,
            fill=MISSING,
        )
    return plans


def packing_attributes(packing: Packing) -> dict[str, float]:
    """What a packed array says of its packing: two words of CF, and the error bound."""
    return dict(zip(PACKING, (packing.scale, packing.offset, packing.error), strict=True))


def packing_of(attributes: Mapping[str, Any]) -> Packing:
    """The inverse of `packing_attributes`."""
    return Packing(*(float(attributes[key]) for key in PACKING))


def difference(was: Any, now: Any) -> tuple[str, str]:
    """Two values of a recipe as text; of two lists or mappings only what differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [k for k in {**was, **now} if was.get(k) != now.get(k)]
        was, now = ({k: side.get(k) for k in keys} for side in (was, now))
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) == len(now):
            return difference(*next((a, b) for a, b in zip(was, now, strict=True) if a != b))
        if max(len(was), len(now)) > 12:
            return f"{len(was)} values", f"{len(now)} values"
        was, now = ([v["name"] if isinstance(v, dict) else v for v in side] for side in (was, now))
    return json.dumps(was), json.dumps(now)


# --- digests ---------------------------------------------------------------------------------


def first_digest(recipe: Mapping[str, Any], packings: Sequence[Packing]) -> str:
    """Where the chain of maps begins: what integers mean."""
    steps = [[packing.scale, packing.offset] for packing in packings]
    return hashlib.sha256(json.dumps([recipe, steps], sort_keys=True).encode()).hexdigest()


def chained_digest(
    chain: str,
    times: NDArray[Any],
    packed: Sequence[NDArray[np.int16]],
    lows: Mapping[str, NDArray[Any]],
) -> str:
    """Digest of a record that is these maps longer; map by map, so that blocks leave no trace.

    Parameters
    ----------
    chain
        Digest of the record so far, or `first_digest`.
    times, packed, lows
        (time), (time, latitude, longitude) for each channel, and name → (time).
    """
    seconds = times.astype("datetime64[s]").astype("<i8")
    rows = np.stack([lows[name] for name in LOWS], axis=1).astype("<f4") if lows else None
    channels = [np.ascontiguousarray(values, "<i2") for values in packed]
    for i in range(len(seconds)):
        link = hashlib.sha256(chain.encode())
        link.update(seconds[i].tobytes())
        for values in channels:
            link.update(values[i].data)
        if rows is not None:
            link.update(rows[i].tobytes())
        chain = link.hexdigest()
    return chain


def content_digest(chain: str, medicane: NDArray[Any], storm: NDArray[Any]) -> str:
    """Digest of maps, lows and labels."""
    whole = hashlib.sha256(chain.encode())
    whole.update(np.asarray(medicane, np.int8).tobytes())
    whole.update("\n".join(map(str, storm)).encode())
    return whole.hexdigest()


# --- the lows' recent past ---------------------------------------------------------------------


def lows_to_json(last: LastMap | None) -> str:
    """What carries the motion of the lows over to the maps that are appended later, exactly."""
    if last is None:
        return ""
    tracks = [
        {
            "positions": [[float(value) for value in position] for position in track.positions],
            "heading": None if np.isnan(track.heading_deg) else float(track.heading_deg),
        }
        for track in last.tracks
    ]
    return json.dumps({"time": str(np.datetime64(last.time, "ns")), "tracks": tracks})


def lows_from_json(text: str) -> LastMap | None:
    """The inverse of `lows_to_json`."""
    if not text:
        return None
    kept = json.loads(text)
    tracks = (
        Track(
            tuple((age, latitude, longitude) for age, latitude, longitude in track["positions"]),
            np.nan if track["heading"] is None else track["heading"],
        )
        for track in kept["tracks"]
    )
    return LastMap(np.datetime64(kept["time"], "ns"), tuple(tracks))
