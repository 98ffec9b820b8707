"""The axes of a dataset of maps: pressure levels, latitude and longitude; `times` has the other.

Each function takes a dataset, brings one axis to the contract and returns a new dataset, lazily.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from medicane import config, names
from medicane.errors import InputError
from medicane.standardise import remap

ATTRIBUTES: dict[str, dict[str, str]] = {
    names.TIME: {"standard_name": "time", "axis": "T"},
    names.LATITUDE: {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    names.LONGITUDE: {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
    names.LEVEL: {"standard_name": "air_pressure", "units": "hPa", "axis": "Z", "positive": "down"},
}


def axis_name(ds: xr.Dataset | xr.DataArray, name: str) -> str | None:
    """How `ds` spells one of our axes, or None."""
    spelt = (name, *names.COORDINATE_ALIASES[name])
    return next((n for n in spelt if n in ds.coords or n in ds.dims), None)


def has_horizontal(ds: xr.Dataset | xr.DataArray) -> bool:
    """Whether both latitude and longitude are there, in whatever spelling."""
    return all(axis_name(ds, axis) is not None for axis in (names.LATITUDE, names.LONGITUDE))


# Levels ----------------------------------------------------------------------------------------


def level_units(values: np.ndarray, stated: str | None) -> str | None:
    """Units of pressure levels: as stated, else told by their size, else None.

    No pressure in the atmosphere exceeds 1100 hPa, and maps above 20 hPa hold no cyclone.
    """
    if stated or not values.size:
        return stated
    if values.size > 2 and np.array_equal(values, np.arange(values.size) + values[0]):
        return None  # 1, 2, 3 …: the numbers of model levels
    return "hPa" if values.max() <= 1100 else "Pa" if values.min() >= 2000 else None


def with_levels(ds: xr.Dataset, raw: str, hpa: np.ndarray, where: str) -> xr.Dataset:
    """The level axis `raw` as ``pressure_level`` with the values `hpa`, from the surface up."""
    if len(set(hpa.tolist())) != hpa.size:
        raise InputError(f"{where}: {raw}", "levels must not repeat", found=hpa.tolist())
    on_levels = [n for n in ds.data_vars if names.VARIABLES[str(n)].on_levels]
    if raw not in ds.dims:
        ds = ds.drop_vars(raw)
        level = xr.Variable(names.LEVEL, hpa, ATTRIBUTES[names.LEVEL])
        return ds.assign({n: ds[n].expand_dims({names.LEVEL: level}) for n in on_levels})
    flat = [n for n in ds.data_vars if raw in ds[n].dims and n not in on_levels]
    if flat and hpa.size > 1:
        raise InputError(f"{where}: {flat[0]}", "must not be on levels", found=f"{hpa.size} levels")
    ds = ds.assign({n: ds[n].isel({raw: 0}, drop=True) for n in flat})
    ds = ds.rename({raw: names.LEVEL}) if raw != names.LEVEL else ds
    ds = ds.assign_coords({names.LEVEL: (names.LEVEL, hpa, ATTRIBUTES[names.LEVEL])})
    if (np.diff(hpa) < 0).all():
        return ds
    upward = slice(None, None, -1) if (np.diff(hpa) > 0).all() else np.argsort(-hpa)
    return ds.isel({names.LEVEL: upward})


#: The area where none is given.
WORLD = config.Domain(north=90, south=-90, west=-180, east=179.999999)

# Latitude and longitude ------------------------------------------------------------------------


def placed(ds: xr.Dataset, domain: config.Domain | None, where: str) -> xr.Dataset:
    """Map images (row, column) on the area that they span: pixels are cells of the domain.

    Raises
    ------
    InputError
        If there is no domain: a picture does not say where it is.
    """
    if names.ROW not in ds.dims or names.COLUMN not in ds.dims or has_horizontal(ds):
        return ds
    if domain is None:
        raise InputError(where, "map images need the domain that they span", found="none")
    axes = {}
    for dimension, axis, start, stop in (
        (names.ROW, names.LATITUDE, domain.north, domain.south),
        (names.COLUMN, names.LONGITUDE, domain.west, domain.east),
    ):
        size = ds.sizes[dimension]
        centres = start + (np.arange(size) + 0.5) * (stop - start) / size
        axes[axis] = (axis, centres, {"units": "degrees"})
    return ds.rename({names.ROW: names.LATITUDE, names.COLUMN: names.LONGITUDE}).assign_coords(axes)


def is_scattered(ds: xr.Dataset) -> bool:
    """Whether the points do not form an evenly spaced grid, but say each where they are."""
    if not has_horizontal(ds):
        return False
    raw = [axis_name(ds, axis) for axis in (names.LATITUDE, names.LONGITUDE)]
    if any(n not in ds.coords or ds[n].dtype.kind not in "iuf" for n in raw):
        return False
    latitude, longitude = (ds[n] for n in raw)
    if latitude.ndim > 1 or longitude.ndim > 1 or latitude.dims == longitude.dims:
        return latitude.dims == longitude.dims and latitude.size > 1
    return any(_is_uneven(axis) for axis in (latitude, longitude))


def _is_uneven(coordinate: xr.DataArray) -> bool:
    """Degrees that run one way in steps of different length, as Gaussian latitudes do."""
    values = np.asarray(coordinate.values, np.float64)
    if coordinate.ndim != 1 or values.size < 3 or not np.isfinite(values).all():
        return False
    steps = np.diff(
        values if np.abs(np.diff(values)).max() < 180 else np.unwrap(values, period=360)
    )
    one_way = (steps > 0).all() or (steps < 0).all()
    drift = np.abs(np.cumsum(steps - steps.mean())).max()
    return bool(one_way and np.abs(values).max() <= 540 and drift > 0.01 * abs(steps.mean()))


def separated(ds: xr.Dataset) -> xr.Dataset:
    """Latitudes and longitudes of every point as two axes, where they are those of a rectangle."""
    raw = [axis_name(ds, axis) for axis in (names.LATITUDE, names.LONGITUDE)]
    if None in raw or any(n not in ds.coords or ds[n].ndim != 2 for n in raw):
        return ds
    latitude, longitude = (ds[n] for n in raw)
    if latitude.dims != longitude.dims or min(latitude.shape) < 2:
        return ds
    for down, along in (latitude.dims, latitude.dims[::-1]):
        rows = latitude.transpose(down, along).values
        columns = longitude.transpose(down, along).values
        if np.ptp(rows, axis=1).max() <= 1e-6 and np.ptp(columns, axis=0).max() <= 1e-6:
            points = ds.drop_vars([n for n in (*raw, down, along) if n in ds.coords])
            renamed = points.rename({down: names.LATITUDE, along: names.LONGITUDE})
            return renamed.assign_coords(
                {
                    names.LATITUDE: (names.LATITUDE, rows[:, 0], latitude.attrs),
                    names.LONGITUDE: (names.LONGITUDE, columns[0], longitude.attrs),
                }
            )
    return ds


def points_of(ds: xr.Dataset, where: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The horizontal dimensions of scattered points, and where each point is.

    Returns
    -------
    dimensions
        Their names.
    latitude, longitude
        Degrees, of the shape of these dimensions.

    Raises
    ------
    InputError
        If they are not degrees.
    """
    fields = []
    for axis in (names.LATITUDE, names.LONGITUDE):
        raw = axis_name(ds, axis)
        assert raw is not None
        units, limit = str(ds[raw].attrs.get("units", "degrees")), 90.0
        limit = limit if axis == names.LATITUDE else 540.0
        values = ds[raw].values
        if not units.startswith("degree") or np.nanmax(np.abs(values), initial=0) > limit + 1e-3:
            found = f"{np.nanmin(values):g} to {np.nanmax(values):g} {units}"
            raise InputError(f"{where}: {raw}", "must be in degrees", found=found)
        fields.append(ds[raw].reset_coords(drop=True))
    latitude, longitude = xr.broadcast(*fields)
    dimensions = tuple(map(str, latitude.dims))
    return (
        dimensions,
        np.asarray(latitude.values, np.float64),
        np.asarray(longitude.transpose(*dimensions).values, np.float64),
    )


def with_horizontal(ds: xr.Dataset, where: str) -> xr.Dataset:
    """The dimensions ``latitude`` (descending) and ``longitude`` (ascending as the data run).

    Raises
    ------
    InputError
        If the grid is not regular: evenly spaced 1-D latitudes and longitudes in degrees.
    """
    law = "the grid must have evenly spaced 1-D latitudes and longitudes in degrees"
    if not has_horizontal(ds):
        raise InputError(where, law, found=f"dimensions {', '.join(map(str, ds.dims))}")
    for axis in (names.LATITUDE, names.LONGITUDE):
        raw = axis_name(ds, axis)
        assert raw is not None
        if raw not in ds.coords or ds[raw].ndim != 1:
            shape = f"dimensions {ds[raw].dims}" if raw in ds.coords else "no coordinate"
            raise InputError(f"{where}: {raw}", law, found=shape)
        if raw not in ds.dims:
            ds = ds.swap_dims({ds[raw].dims[0]: raw})
        ds = ds.rename({raw: axis}) if raw != axis else ds
        values = _even(ds[axis], f"{where}: {raw}", law)
        if (axis == names.LATITUDE) == (values[1] > values[0]):
            ds, values = ds.isel({axis: slice(None, None, -1)}), values[::-1]
        ds = ds.assign_coords({axis: (axis, values, ATTRIBUTES[axis])})
    return ds


def _even(coordinate: xr.DataArray, where: str, law: str) -> np.ndarray:
    """Evenly spaced degrees, without the noise of single precision."""
    raw = np.asarray(coordinate.values)
    if raw.size < 2 or raw.dtype.kind not in "iuf" or not np.isfinite(raw).all():
        raise InputError(where, law, found=f"{raw.size} values of type {raw.dtype}")
    units = str(coordinate.attrs.get("units", "degrees"))
    limit = 90.0 if coordinate.name == names.LATITUDE else 540.0
    if not units.startswith("degree") or np.abs(raw).max() > limit + 1e-3:
        raise InputError(where, law, found=f"{raw[0]:g} to {raw[-1]:g} {units}")
    values = np.round(raw.astype(np.float64), 4 if raw.dtype == np.float32 else 6)
    if coordinate.name == names.LONGITUDE and np.abs(np.diff(values)).max() > 180:
        values = np.unwrap(values, period=360)  # 359.5, 0, 0.5
    step = np.diff(values).mean()
    uneven = np.abs(values - np.linspace(values[0], values[-1], values.size)) > 0.01 * abs(step)
    if step == 0 or uneven.any():
        i = int(uneven.argmax())
        raise InputError(where, law, found=f"uneven spacing near {values[i]:g}")
    return values


def around(
    ds: xr.Dataset, domain: config.Domain | None, *, margin: float, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions along latitude and longitude within `domain` and `margin` degrees around it.

    Longitudes count in [−180, 180): the positions jump where the domain holds the date origin of
    the data (0–360). Reads nothing.

    Returns
    -------
    rows, columns
        Integer positions, in the order of descending latitude and ascending longitude.
    """
    slack = 1e-3
    box = domain or WORLD
    latitude, unwrapped = ds[names.LATITUDE].values, ds[names.LONGITUDE].values
    rows = _inside(latitude, box.south - margin - slack, box.north + margin + slack)
    step = remap.spacing(unwrapped)
    count = min(unwrapped.size, round(360 / step))  # a closing 360 repeats 0
    wrapped = wrap(unwrapped[:count])
    order = np.argsort(wrapped)
    columns = order[_inside(wrapped[order], box.west - margin - slack, box.east + margin + slack)]
    if not rows.size or not columns.size:
        raise InputError(
            where,
            f"the data must overlap the domain {box.south:g} to {box.north:g} N, "
            f"{box.west:g} to {box.east:g} E",
            found=f"{latitude[-1]:g} to {latitude[0]:g} N, {unwrapped[0]:g} to {unwrapped[-1]:g} E",
        )
    if (np.diff(wrapped[columns]) > 1.01 * step).any():
        raise InputError(
            f"{where}: longitude",
            "the area must not cross 180 degrees: give a domain on one side of it",
            found=f"{unwrapped[0]:g} to {unwrapped[-1]:g}",
        )
    return rows, columns


def wrap(longitude: np.ndarray) -> np.ndarray:
    """Longitudes in [−180, 180), without the noise of the subtraction."""
    return np.round((longitude + 180) % 360 - 180, 6)


def taken(ds: xr.Dataset, rows: np.ndarray, columns: np.ndarray, **others: slice) -> xr.Dataset:
    """The part of `ds` at these positions, as slices: one where nothing jumps.

    All axes are cut at once, because dask then reads no more than the part.
    """
    runs = np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)
    pieces = [
        ds.isel(
            {names.LATITUDE: _slice(rows), names.LONGITUDE: _slice(run), **others},
            missing_dims="ignore",
        )
        for run in runs
    ]
    if len(pieces) > 1:
        ds = xr.concat(
            pieces,
            dim=names.LONGITUDE,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
    else:
        ds = pieces[0]
    longitude = wrap(ds[names.LONGITUDE].values)
    ds = ds.chunk({names.LATITUDE: -1, names.LONGITUDE: -1})
    return ds.assign_coords(
        {names.LONGITUDE: (names.LONGITUDE, longitude, ATTRIBUTES[names.LONGITUDE])}
    )


def _slice(run: np.ndarray) -> slice:
    return slice(int(run[0]), int(run[-1]) + 1)


def _inside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.flatnonzero((values >= low) & (values <= high))
