"""Which variable of a file is which of `medicane.names`, whatever the file calls it."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping

import xarray as xr

from medicane import names
from medicane.errors import InputError
from medicane.standardise import axes
from medicane.standardise.units import factor

#: Geopotential and geopotential height stand for each other.
TWINS = {"zg": "z", "z": "zg"}
LEVEL_NAMES = (names.LEVEL, *names.COORDINATE_ALIASES[names.LEVEL])


def holds(ds: xr.Dataset, variable: str) -> bool:
    """Whether opened grids have a variable of `names.VARIABLES`, by its name or an alias.

    For variables that are of use but not required; `standardise` raises for the others.
    """
    known = names.VARIABLES[variable]
    spelt = _spellings(variable)
    return any(
        _told_levels(name, spelt) is not None
        or (str(name).lower() in spelt and known.on_levels == _on_levels(array, known.on_levels))
        for name, array in ds.data_vars.items()
    )


def _on_levels(array: xr.DataArray, scalar_too: bool) -> bool:
    # A level of its own may have been left on a surface field by the file it was merged with.
    held = {str(c) for c in (*array.dims, *(array.coords if scalar_too else ()))}
    return bool(set(LEVEL_NAMES) & held)


def _spellings(variable: str) -> set[str]:
    return {name.lower() for name in (variable, *names.VARIABLES[variable].aliases)}


def _told_levels(raw: Hashable, spelt: Collection[str]) -> float | None:
    """The level (hPa) in a name such as ``zg500``, if it is of one of these variables."""
    match = re.fullmatch(names.LEVEL_IN_NAME, str(raw))
    return float(match[2]) if match and match[1] in spelt else None


def known_name(ds: xr.Dataset, raw: Hashable) -> str | None:
    """Our name of a variable: by its name or alias, else by a standard name that is unambiguous."""
    array = ds[raw]
    spelt = str(raw).lower()
    on_levels = axes.axis_name(array, names.LEVEL) is not None
    for name, known in names.VARIABLES.items():
        if spelt not in _spellings(name):
            continue
        if known.on_levels and not on_levels:
            return None  # ERA5 calls the geopotential of the surface (orography) z as well
        if name in TWINS:  # some files call the one by the name of the other: the units tell
            stated = str(array.attrs.get("units", ""))
            if factor(stated, names.VARIABLES[TWINS[name]].units) is not None:
                return TWINS[name]
        return name
    standard = array.attrs.get("standard_name")
    matches = [n for n, known in names.VARIABLES.items() if known.standard_name == standard]
    if len(matches) == 1 and names.VARIABLES[matches[0]].on_levels == on_levels:
        return matches[0]
    return None


def chosen(
    ds: xr.Dataset, variables: Collection[str] | None, where: str
) -> tuple[xr.Dataset, dict[str, str], list[str]]:
    """Known variables under our names, what the file calls them, and the names to return.

    Raises
    ------
    InputError
        If one is required that is not there, two are the same, or none is known.
    """
    there = ", ".join(map(str, ds.data_vars)) or "no variables"
    ds = _with_named_levels(ds, variables, where)
    found: dict[str, str] = {}
    for raw in ds.data_vars:
        name = known_name(ds, raw)
        if name in found:
            raise InputError(
                where, f"only one variable may be {name}", found=f"{found[name]} and {raw}"
            )
        if name is not None:
            found[name] = str(raw)
    if variables is None:
        if not found:
            law = f"at least one known variable is needed ({', '.join(names.VARIABLES)})"
            raise InputError(where, law, found=there)
        wanted = list(dict.fromkeys("zg" if name == "z" else name for name in found))
    else:
        wanted = list(dict.fromkeys(variables))
        unknown = [name for name in wanted if name not in names.VARIABLES]
        if unknown:
            law = f"variables must be among {', '.join(names.VARIABLES)}"
            raise InputError(where, law, found=unknown)
        missing = [n for n in wanted if n not in found and TWINS.get(n) not in found]
        if missing:
            law = "the variable must be in the data"
            raise InputError(f"{where}: {', '.join(missing)}", law, found=there)
    sources = {source_of(name, found) for name in wanted}
    ds = ds[[found[name] for name in found if name in sources]]
    ds = ds.rename({found[n]: n for n in found if n in sources and found[n] != n})
    return ds, found, wanted


def source_of(name: str, found: Collection[str]) -> str:
    """The variable that gives `name`: itself or its twin."""
    return name if name in found else TWINS[name]


def named_levels(ds: xr.Dataset) -> dict[str, dict[float, str]]:
    """Fields whose names say their levels: our name → level (hPa) → what the file calls it."""
    found: dict[str, dict[float, str]] = {}
    for raw in ds.data_vars:
        for name, known in names.VARIABLES.items():
            level = _told_levels(raw, _spellings(name)) if known.on_levels else None
            if level is not None:
                found.setdefault(name, {})[level] = str(raw)
    return found


def _with_named_levels(ds: xr.Dataset, variables: Collection[str] | None, where: str) -> xr.Dataset:
    """``zg500`` and ``zg850`` as ``zg`` on two levels, the ones that all wanted variables have."""
    named = named_levels(ds)
    if not named:
        return ds
    wanted = {
        name: levels
        for name, levels in named.items()
        if variables is None or {name, TWINS.get(name)} & set(variables)
    }
    rest = ds.drop_vars([raw for levels in named.values() for raw in levels.values()])
    if not wanted:
        return rest
    shared = sorted(set.intersection(*(set(levels) for levels in wanted.values())), reverse=True)
    if not shared:
        told = "; ".join(f"{n} at {_listed(levels)} hPa" for n, levels in wanted.items())
        raise InputError(where, "variables must have levels in common", found=told)
    stacked = {}
    for name, levels in wanted.items():
        fields = [ds[levels[p]].rename(name) for p in shared]
        if len({str(field.attrs.get("units")) for field in fields}) > 1:
            law = f"all levels of {name} must be of one unit"
            raise InputError(where, law, found=[f.attrs.get("units") for f in fields])
        if name in rest:
            found = f"{name} and {levels[shared[0]]}"
            raise InputError(where, f"only one variable may be {name}", found=found)
        stacked[name] = xr.concat(
            fields,
            dim=xr.Variable(names.LEVEL, shared, {"units": "hPa"}),
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
    return rest.assign(stacked)


def _listed(levels: Mapping[float, str]) -> str:
    return ", ".join(f"{p:g}" for p in sorted(levels, reverse=True))


def check_directions(ds: xr.Dataset, raw_names: Mapping[str, str], where: str) -> None:
    """Refuse winds along the axes of a grid that does not run east and north.

    Raises
    ------
    InputError
        Naming the variable.
    """
    for name in ("u10", "v10", "u", "v"):
        if name not in ds:
            continue
        standard = str(ds[name].attrs.get("standard_name", ""))
        by_name = standard.startswith("grid_") or standard in ("x_wind", "y_wind")
        if by_name or ds[name].attrs.get("GRIB_uvRelativeToGrid") == 1:
            raise InputError(
                f"{where}: {raw_names[name]}",
                "winds on a rotated or projected grid must be eastward and northward: turn them "
                "first",
                found=standard or "components along the grid",
            )
