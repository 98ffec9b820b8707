"""Channels: what the model sees, as formulas over standard variables, computed lazily.

A formula is a small expression: ``+ - * /``, numbers, parentheses, variables (``msl``; on levels
with the level in hPa, ``zg_850``), built-in channels by name, and the functions of `FUNCTIONS`.
It is parsed, never executed as Python.
"""

from __future__ import annotations

import ast
import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from medicane import names
from medicane.config import ChannelFormula
from medicane.errors import InputError
from medicane.standardise import CELLS_AT_ONCE, holds, land_sea_mask

Fields = NDArray[np.floating[Any]]

#: Mean radius of the Earth, m (IUGG), as used for the derivatives on the sphere.
EARTH_RADIUS_M = 6_371_008.8


@dataclass(frozen=True)
class Grid:
    """Coordinates of the maps, degrees; both evenly spaced."""

    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


def local(x: Fields, degrees: float, grid: Grid) -> Fields:
    """`x` minus its mean over a box.

    The box spans ``degrees`` in latitude and longitude, rounded to an odd number of cells so that
    it is centred, and is clipped at the edges of the map: the mean is over the cells there are,
    unweighted. It takes the season and the synoptic waves (hundreds of metres) off a signal of
    tens.

    Parameters
    ----------
    x
        (…, latitude, longitude).
    degrees
        Width of the box, at least two cells.
    """
    mean = np.asarray(x, np.float64)
    for axis, coordinate in ((-2, grid.latitude), (-1, grid.longitude)):
        n = coordinate.size
        spacing = abs(float(coordinate[1] - coordinate[0])) if n > 1 else np.inf
        half = round(degrees / 2 / spacing)
        if half < 1:
            raise InputError(
                f"local(…, {degrees:g})",
                f"the box must span at least two cells of {spacing:g} degrees",
                found=f"{degrees:g}",
            )
        size = 2 * min(half, n - 1) + 1
        cells = _cells(n, size)
        mean = uniform_filter1d(mean, size, axis=axis, mode="constant")
        mean *= size
        mean /= cells[:, None] if axis == -2 else cells
    return np.asarray(np.subtract(x, mean, out=mean))


@functools.lru_cache(maxsize=8)
def _cells(n: int, size: int) -> NDArray[np.float64]:
    """Cells that there are, of `size`, around each of `n`: fewer at the edges."""
    return np.asarray(np.rint(uniform_filter1d(np.ones(n), size, mode="constant") * size))


def speed(u: Fields, v: Fields, grid: Grid) -> Fields:
    """Wind speed from its components, in their units."""
    return np.hypot(u, v)


def vorticity(u: Fields, v: Fields, grid: Grid) -> Fields:
    """Relative vorticity on the sphere, s-1.

    ζ = [∂v/∂λ − ∂(u cos φ)/∂φ] / (a cos φ), by differences of second order, one-sided at the edges.

    Parameters
    ----------
    u, v
        (…, latitude, longitude), m s-1; at least 3 × 3 cells.
    """
    phi, lam = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    if min(phi.size, lam.size) < 3:
        raise InputError(
            "vorticity", "needs at least 3 × 3 cells", found=f"{phi.size} × {lam.size}"
        )
    cos = np.cos(phi)[:, None]
    dv = np.gradient(v, lam, axis=-1, edge_order=2)
    du = np.gradient(u * cos, phi, axis=-2, edge_order=2)
    return np.asarray((dv - du) / (EARTH_RADIUS_M * cos))


def fill(x: Fields, grid: Grid) -> Fields:
    """`x` with its missing cells set to the mean of the others in the same map.

    For fields that exist over sea only (sea surface temperature). A map without any value stays
    without: that is missing data, and is told as such.
    """
    missing = np.isnan(x)
    if not missing.any():
        return x
    count = (~missing).sum(axis=(-2, -1), keepdims=True)
    total = np.where(missing, 0.0, x).sum(axis=(-2, -1), keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean = total / count
    return np.where(missing, mean, x)


@dataclass(frozen=True)
class Function:
    """A function of the grammar: how many fields, then how many numbers it takes."""

    apply: Callable[..., Fields]
    fields: int
    numbers: int
    usage: str


#: Every function that a formula may use.
FUNCTIONS: dict[str, Function] = {
    "local": Function(local, 1, 1, "local(x, degrees)"),
    "speed": Function(speed, 2, 0, "speed(u, v)"),
    "vorticity": Function(vorticity, 2, 0, "vorticity(u, v)"),
    "fill": Function(fill, 1, 0, "fill(x)"),
}

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}

#: Variable, and its level in hPa if it is on levels.
Need = tuple[str, float | None]


def channel_of(channel: str | ChannelFormula) -> tuple[str, names.Channel]:
    """Name, formula, units and long name of a channel as the configuration gives it.

    Raises
    ------
    InputError
        If it is neither a built-in channel nor a variable; the message names the closest ones.
    """
    if isinstance(channel, ChannelFormula):
        long_name = channel.long_name or channel.name
        return channel.name, names.Channel(channel.formula, channel.units, long_name)
    if channel in names.CHANNELS:
        return channel, names.CHANNELS[channel]
    variable, level = _variable(channel, where="data.channels")
    known = names.VARIABLES[variable]
    at = "" if level is None else f" at {level:g} hPa"
    return channel, names.Channel(channel, known.units, known.long_name + at)


def describe(channels: Sequence[str | ChannelFormula]) -> list[dict[str, str]]:
    """Channels in order, each with name, formula, units and long name: what a store records."""
    described = []
    for channel in channels:
        name, what = channel_of(channel)
        _checked(what.formula, where=name)
        described.append({"name": name, **what._asdict()})
    return described


def required_variables(channels: Sequence[str | ChannelFormula]) -> set[Need]:
    """What the channels are made of.

    Returns
    -------
    set of (variable, level)
        Level in hPa, or None for a variable without levels.

    Raises
    ------
    InputError
        If a formula is outside the grammar or names something unknown.
    """
    needs: set[Need] = set()
    for channel in channels:
        name, what = channel_of(channel)
        needs |= _checked(what.formula, where=name)[1]
    return needs


def wanted_variables(raw: xr.Dataset, channels: Sequence[str | ChannelFormula]) -> list[str]:
    """What to standardise of opened grids: what the channels need, and what locates the lows.

    Parameters
    ----------
    raw
        What `medicane.grids.open_grids` returned.

    Returns
    -------
    list of str
        Names of `names.VARIABLES`. Pressure and heights, if the data have them, locate the lows;
        the land-sea mask is the data's own only if they have one.
    """
    wanted = {"zg" if variable == "z" else variable for variable, _ in required_variables(channels)}
    if holds(raw, "msl"):
        wanted.add("msl")
        if holds(raw, "zg") or holds(raw, "z"):
            wanted.add("zg")
    wanted.discard("lsm")
    if holds(raw, "lsm"):
        wanted.add("lsm")
    return sorted(wanted)


def check_whole(
    fields: NDArray[Any], times: NDArray[Any], told: Sequence[str], *, where: object = None
) -> None:
    """Refuse missing maps and missing cells.

    Parameters
    ----------
    fields
        (time, field, latitude, longitude).
    times
        (time), of any calendar.
    told
        What each field is called, e.g. ``channel msl_local``.
    where
        What comes before it in the message, e.g. a file.

    Raises
    ------
    InputError
        Naming the first time and field with a value that is missing or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(fields.sum()):  # one pass, nothing kept: a cell that is not would tell
            return
    whole = np.isfinite(fields).all(axis=(2, 3))
    if whole.all():
        return
    t, c = np.argwhere(~whole)[0]
    bad = ~np.isfinite(fields[t, c])
    at = f"{told[c]} at {_minute(times[t])}"
    at = at if where is None else f"{where}: {at}"
    if bad.all():
        raise InputError(at, "the map must not be missing", found="no value at all")
    raise InputError(
        at,
        "every cell must have a value (a field that exists over sea only is written fill(sst))",
        found=f"{int(bad.sum())} of {bad.size} cells missing or infinite",
    )


def _minute(time: Any) -> str:
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="m"))
    return str(time.isoformat())[:16]


def derive(
    ds: xr.Dataset, channels: Sequence[str | ChannelFormula], *, where: object = None
) -> xr.DataArray:
    """Compute the channels of standard maps, block by block in time.

    Parameters
    ----------
    ds
        As `medicane.standardise.standardise` returns it: (time[, pressure_level], latitude,
        longitude). Chunked along time only, if at all.
    channels
        Names or formulas; their order is the order of the result. ``lsm`` comes from the data if
        they hold it, else from the global land mask.
    where
        What comes before the channel in messages, e.g. a file.

    Returns
    -------
    (time, channel, latitude, longitude) float32
        Lazy where `ds` is. ``channel`` holds the names; the attribute ``channels`` is JSON with the
        formula and units of each.

    Raises
    ------
    InputError
        If a variable or level that a formula needs is absent: the message says what there is.
    """
    described = describe(channels)
    formulas: dict[str, ast.expr] = {}
    fields: dict[Need, xr.DataArray] = {}
    for name, formula in ((c["name"], c["formula"]) for c in described):
        formulas[name], needs = _checked(formula, where=name)
        for need in sorted(needs - fields.keys(), key=lambda n: (n[0], n[1] or 0)):
            at = f"channel {name}" if where is None else f"{where}: channel {name}"
            fields[need] = _field(ds, need, where=at)
    if not any(names.TIME in field.dims for field in fields.values()):
        # A static channel alone still has one map for every time.
        first = next(iter(fields))
        fields[first] = fields[first].expand_dims({names.TIME: ds[names.TIME]})
    grid = Grid(
        np.asarray(ds[names.LATITUDE], np.float64), np.asarray(ds[names.LONGITUDE], np.float64)
    )

    def stacked(*blocks: Fields) -> Fields:
        shape = np.broadcast_shapes(*(block.shape for block in blocks))
        out = np.empty((*shape[:-2], len(formulas), *shape[-2:]), np.float32)
        at_once = max(CELLS_AT_ONCE // (shape[-2] * shape[-1]), 1)
        for start in range(0, shape[0], at_once):
            part = slice(start, start + at_once)
            parts = (block[part] if block.ndim == len(shape) else block for block in blocks)
            held = dict(zip(fields, parts, strict=True))
            for i, (name, tree) in enumerate(formulas.items()):
                # A division by a field that is zero somewhere gives inf, which the store refuses.
                with np.errstate(divide="ignore", invalid="ignore"):
                    out[part, i] = _value(tree, held, grid, where=name)
        return out

    held = xr.align(*fields.values(), join="exact", copy=False)
    space = (names.LATITUDE, names.LONGITUDE)
    dims = (names.TIME, names.CHANNEL, *space)
    ordered = [field.transpose(..., *space) for field in held]
    coords = {n: c for field in held for n, c in field.coords.items() if n in dims}
    if any(field.chunks for field in held):
        # As `xr.apply_ufunc` would, but that copies each block that it is given.
        blocks = itertools.chain(*((field.data, field.dims) for field in ordered))
        data = da.blockwise(
            stacked,
            dims,
            *blocks,
            new_axes={names.CHANNEL: len(formulas)},
            dtype=np.float32,
            meta=np.empty((0,) * 4, np.float32),
        )
    else:
        data = stacked(*(field.data for field in ordered))
    maps = xr.DataArray(data, coords, dims)
    maps = maps.assign_coords({names.CHANNEL: np.array(list(formulas), dtype=object)})
    maps.name = "maps"
    maps.attrs = {"long_name": "channels of the maps", "channels": json.dumps(described)}
    return maps.drop_vars([c for c in maps.coords if c not in maps.dims])


def _field(ds: xr.Dataset, need: Need, *, where: str) -> xr.DataArray:
    variable, level = need
    if variable == "lsm" and "lsm" not in ds:
        return land_sea_mask(ds[names.LATITUDE].values, ds[names.LONGITUDE].values)
    # Standard data hold geopotential as height, whatever the file held.
    factor = names.G0 if variable == "z" and "z" not in ds else 1.0
    source = "zg" if factor != 1.0 else variable
    if source not in ds:
        raise InputError(
            where,
            f"needs the variable {source!r}",
            found=", ".join(sorted(str(v) for v in ds.data_vars)) or "no variables",
        )
    field = ds[source]
    if level is not None:
        levels = np.atleast_1d(ds[names.LEVEL]).astype(float) if names.LEVEL in ds else np.zeros(0)
        at = np.flatnonzero(np.isclose(levels, level))
        if not len(at):
            listed = ", ".join(f"{p:g}" for p in levels) or "none"
            raise InputError(
                where, f"needs {source} at {level:g} hPa", found=f"the levels {listed}"
            )
        if names.LEVEL in field.dims:
            field = field.isel({names.LEVEL: int(at[0])}, drop=True)
    return field * np.float32(factor) if factor != 1.0 else field


def _variable(name: str, *, where: str) -> Need:
    """Split ``zg_850`` into variable and level, or raise with the closest names."""
    match = re.fullmatch(r"([a-z]+)_(\d+(?:\.\d+)?)", name)
    if match and match[1] in names.VARIABLES and names.VARIABLES[match[1]].on_levels:
        return match[1], float(match[2])
    known = names.VARIABLES.get(name)
    if known and not known.on_levels:
        return name, None
    if known:
        raise InputError(
            where, f"{name!r} needs its level in hPa, such as {name}_850", found=repr(name)
        )
    surface = [v for v, what in names.VARIABLES.items() if not what.on_levels]
    levels = [f"{v}_{match[2]}" for v, what in names.VARIABLES.items() if what.on_levels and match]
    close = difflib.get_close_matches(name, [*names.CHANNELS, *surface, *levels, *FUNCTIONS], n=3)
    hint = f" (closest: {', '.join(close)})" if close else f" (there are: {', '.join(surface)}, …)"
    raise InputError(
        where, "must name a channel or variable that is known", found=repr(name) + hint
    )


def _parse(formula: str, *, where: str) -> ast.expr:
    if len(formula) > 1000:  # far from what a recursive walk can take
        raise InputError(
            f"channel {where}", "the formula must be at most 1000 characters", found=len(formula)
        )
    try:
        return ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"channel {where}", "the formula must be an expression", found=repr(formula)
        ) from None


def _checked(formula: str, *, where: str) -> tuple[ast.expr, set[Need]]:
    tree = _parse(formula, where=where)
    needs = _needs(tree, where=where)
    if not needs:
        raise InputError(
            f"channel {where}", "the formula must hold a variable", found=repr(formula)
        )
    return tree, needs


def _needs(node: ast.expr, *, where: str) -> set[Need]:
    """Variables of a formula; every rule of the grammar is enforced here, before any data."""
    at = f"channel {where}"
    match node:
        case ast.Constant(value=bool() | complex()):
            pass
        case ast.Constant(value=int() | float()):
            return set()
        case ast.Name(id=name) if name in names.CHANNELS:
            return _needs(_parse(names.CHANNELS[name].formula, where=name), where=name)
        case ast.Name(id=name):
            return {_variable(name, where=at)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _needs(operand, where=where)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _needs(left, where=where) | _needs(right, where=where)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            if name not in FUNCTIONS:
                close = difflib.get_close_matches(name, FUNCTIONS, n=1)
                listed = ", ".join(f.usage for f in FUNCTIONS.values())
                hint = f" (closest: {close[0]})" if close else ""
                raise InputError(at, f"the functions are {listed}", found=repr(name) + hint)
            known = FUNCTIONS[name]
            numbers = args[known.fields :]
            if (
                keywords
                or len(args) != known.fields + known.numbers
                or any(_number(n) is None for n in numbers)
            ):
                raise InputError(
                    at, f"{name} is used as {known.usage}", found=repr(ast.unparse(node))
                )
            inner = [_needs(arg, where=where) for arg in args[: known.fields]]
            if any(not needs for needs in inner):
                raise InputError(
                    at, f"{name} works on a field, not a number", found=repr(ast.unparse(node))
                )
            return set().union(*inner)
    raise InputError(
        at,
        "a formula holds variables, numbers, + - * / and "
        + ", ".join(f.usage for f in FUNCTIONS.values()),
        found=repr(ast.unparse(node)),
    )


def _number(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=(int() | float()) as value) if value > 0:
            return float(value)
    return None


def _value(node: ast.expr, fields: Mapping[Need, Fields], grid: Grid, *, where: str) -> Any:
    """Evaluate a formula that `_needs` has passed."""
    match node:
        case ast.Constant(value=(int() | float()) as value):
            return np.float32(value)
        case ast.Name(id=name) if name in names.CHANNELS:
            return _value(
                _parse(names.CHANNELS[name].formula, where=name), fields, grid, where=name
            )
        case ast.Name(id=name):
            return fields[_variable(name, where=where)]
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, fields, grid, where=where)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](
                _value(left, fields, grid, where=where), _value(right, fields, grid, where=where)
            )
        case ast.Call(func=ast.Name(id=name), args=args):
            known = FUNCTIONS[name]
            inner = [_value(arg, fields, grid, where=where) for arg in args[: known.fields]]
            return known.apply(*inner, *(_number(n) for n in args[known.fields :]), grid)
    raise AssertionError(f"unchecked formula {ast.unparse(node)!r}")
