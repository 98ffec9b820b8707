"""GRIB through cfgrib: one file may hold hundreds of fields on a dozen kinds of level."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.grids.lazy import short

#: Coordinates of single levels: their heights (2 m, 10 m) are in the variables' names.
SINGLE_LEVELS = (
    "heightAboveGround", "meanSea", "surface", "entireAtmosphere", "atmosphere",
    "atmosphereSingleLayer",
)  # fmt: skip
PRESSURE_LEVELS = "isobaricInhPa"


def open_grib(source: str, options: Mapping[str, Any]) -> list[xr.Dataset]:
    """The fields of a GRIB file: all of them, or those of use where they do not fit together.

    A forecast centre's file mixes levels of pressure, height, potential vorticity and more, with
    the same names on each. Of such a file the variables that `medicane.names` knows are kept, on
    pressure levels or single levels as it says, each kind of level a dataset of its own. The
    attribute ``left_out`` of the first, JSON, lists what was not kept.

    Raises
    ------
    InputError
        If cfgrib is not installed, or nothing of use is in a file of many kinds.
    """
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:  # RuntimeError: no ecCodes library
        raise InputError(
            source, "reading GRIB needs cfgrib: pip install 'medicane[grib]'", found=short(error)
        ) from None
    # No index file beside the data; and never skip a field, as cfgrib does by default.
    arguments: dict[str, Any] = {"indexpath": "", "errors": "raise"}
    try:
        return [xr.open_dataset(source, engine="cfgrib", backend_kwargs=arguments, **options)]
    except cfgrib.DatasetBuildError:
        with warnings.catch_warnings():  # cfgrib's, of its own use of xarray
            warnings.simplefilter("ignore", FutureWarning)
            datasets = cfgrib.open_datasets(source, backend_kwargs={"indexpath": ""}, **options)
    kept, left_out = [], []
    for ds in datasets:
        useful = [name for name in ds.data_vars if _of_use(ds[name])]
        left_out += [f"{n} ({_level_type(ds[n])})" for n in ds.data_vars if n not in useful]
        if useful:
            single = [name for name in SINGLE_LEVELS if name in ds.coords]
            kept.append(ds[useful].drop_vars(single, errors="ignore"))
    if not kept:
        law = "must hold at least one known variable"
        raise InputError(source, law, found=", ".join(sorted(set(left_out))))
    kept[0].attrs["left_out"] = json.dumps(sorted(set(left_out)))
    return kept


def _level_type(array: xr.DataArray) -> str:
    return str(array.attrs.get("GRIB_typeOfLevel", "unknown"))


def _of_use(array: xr.DataArray) -> bool:
    """Whether a field is a known variable, on the kind of level that it is known on."""
    spelt, levels = str(array.name).lower(), _level_type(array)
    for name, known in names.VARIABLES.items():
        if spelt == name or spelt in (alias.lower() for alias in known.aliases):
            if known.on_levels:
                return levels == PRESSURE_LEVELS
            return levels in SINGLE_LEVELS and not set(map(str, array.dims)) & set(SINGLE_LEVELS)
    return False
