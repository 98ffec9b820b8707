"""Grids that are not regular: rotated, curvilinear, Gaussian and reduced ones become regular."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import config
from medicane.errors import InputError
from medicane.standardise import axes, scattered, standardise
from medicane.standardise.scattered import scattered_weights

AREA = config.Domain(north=42, south=36, west=8, east=18)


def rotated(
    *, spacing: float = 0.44, half: float = 12.0, twist: float = 30.0
) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of a grid that is regular around 0 N 0 E, turned by `twist` degrees
    and brought to 39 N 13 E: what a rotated pole does.
    """
    axis = np.deg2rad(np.arange(-half, half + 1e-9, spacing))
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    points = np.stack(
        [np.cos(rows) * np.cos(columns), np.cos(rows) * np.sin(columns), np.sin(rows)], axis=-1
    )
    x, y, z = np.moveaxis(points @ _turn(0, twist).T @ _turn(1, -39).T @ _turn(2, 13).T, -1, 0)
    return np.rad2deg(np.arcsin(z)), np.rad2deg(np.arctan2(y, x))


def _turn(axis: int, degrees: float) -> np.ndarray:
    """Rotation about one axis of space."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix


def plane(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return 101_000 + 40.0 * (latitude - 39) - 25.0 * (longitude - 13)


def maps_at(
    latitude: np.ndarray, longitude: np.ndarray, values: np.ndarray | None = None, *, n: int = 2
) -> xr.Dataset:
    """MSLP at points of any shape, with the coordinates of CORDEX."""
    dims = ("rlat", "rlon")[-latitude.ndim :] if latitude.ndim > 1 else ("values",)
    values = plane(latitude, longitude) if values is None else values
    return xr.Dataset(
        {"psl": (("time", *dims), np.broadcast_to(values, (n, *latitude.shape)), {"units": "Pa"})},
        coords={
            "time": pd.date_range("2001-01-01", periods=n, freq="6h"),
            "lat": (dims, latitude, {"units": "degrees_north"}),
            "lon": (dims, longitude, {"units": "degrees_east"}),
        },
    )


def refused(ds: xr.Dataset, **options) -> str:
    with pytest.raises(InputError) as told:
        standardise(ds, **{"domain": AREA, "degrees": 0.5, **options})
    assert "\n" not in str(told.value)
    return str(told.value)


def expected(out: xr.Dataset) -> np.ndarray:
    return plane(out["latitude"].values[:, None], out["longitude"].values)


# Kinds of grid ----------------------------------------------------------------------------------


def test_the_rotated_grid_of_these_tests_is_one() -> None:
    latitude, longitude = rotated()
    middle = latitude.shape[0] // 2, latitude.shape[1] // 2
    assert abs(latitude[middle] - 39) < 0.5
    assert abs(longitude[middle] - 13) < 0.7
    assert np.ptp(latitude, axis=1).max() > 0.5  # its rows are no parallels


@pytest.mark.parametrize("spacing", [0.11, 0.3, 0.44, 0.7])
def test_a_rotated_grid_becomes_regular(spacing) -> None:
    """Interpolation on triangles is exact for a plane, finer and coarser."""
    out = standardise(maps_at(*rotated(spacing=spacing)), domain=AREA, degrees=0.5)
    np.testing.assert_array_equal(out["latitude"], np.arange(42, 35.9, -0.5))
    np.testing.assert_array_equal(out["longitude"], np.arange(8, 18.1, 0.5))
    assert out["msl"].dims == ("time", "latitude", "longitude")
    assert out["msl"].dtype == np.float32
    np.testing.assert_allclose(out["msl"][1], expected(out), atol=0.05)
    assert out.attrs["remapping"].startswith("linear on triangles")
    assert ("means of" in out.attrs["remapping"]) == (spacing < 0.34)


def test_points_in_a_row_and_in_any_order() -> None:
    """A reduced Gaussian grid: one dimension for latitude and longitude."""
    latitude, longitude = (axis.ravel() for axis in rotated())
    order = np.random.default_rng(0).permutation(latitude.size)
    out = standardise(maps_at(latitude[order], longitude[order]), domain=AREA, degrees=0.5)
    np.testing.assert_allclose(out["msl"][0], expected(out), atol=0.05)


def test_gaussian_latitudes() -> None:
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(160)[0]))
    assert axes.is_scattered(xr.Dataset(coords={"lat": latitude, "lon": np.arange(0, 360, 1.125)}))
    rows, columns = np.meshgrid(latitude, np.arange(0, 360, 1.125), indexing="ij")
    ds = maps_at(rows, columns).drop_vars(["lat", "lon"]).rename(rlat="lat", rlon="lon")
    ds = ds.assign_coords(lat=latitude, lon=columns[0])
    out = standardise(ds, domain=AREA, degrees=0.5)
    np.testing.assert_allclose(out["msl"][0], expected(out), atol=0.05)


def test_longitudes_from_0_to_360_around_greenwich() -> None:
    latitude, longitude = rotated()
    west = config.Domain(north=42, south=36, west=-5, east=5)
    ds = maps_at(latitude, (longitude - 13) % 360, plane(latitude, longitude))
    out = standardise(ds, domain=west, degrees=0.5)
    truth = plane(out["latitude"].values[:, None], out["longitude"].values + 13)
    np.testing.assert_allclose(out["msl"][0], truth, atol=0.05)


@pytest.mark.parametrize("turned", [False, True])
def test_latitudes_of_every_point_of_a_rectangle_are_axes(turned) -> None:
    """Nothing is interpolated where the points are those of a regular grid."""
    latitude, longitude = np.arange(36, 42.1, 0.5), np.arange(8, 18.1, 0.5)
    rows, columns = np.meshgrid(latitude, longitude, indexing="ij")
    noise = 101_000 + 100 * np.random.default_rng(0).standard_normal(rows.shape)
    ds = maps_at(rows, columns, noise)
    if turned:
        ds = ds.transpose("time", "rlon", "rlat")
        ds = ds.assign_coords(lat=ds["lat"].transpose(), lon=ds["lon"].transpose())
    out = standardise(ds)
    np.testing.assert_array_equal(out["msl"][0], noise[::-1].astype("f4"))
    assert out.attrs["remapping"] == "none"


def test_longitudes_that_pass_the_date_origin_are_even() -> None:
    ds = maps_at(*np.meshgrid([40.0, 39.0, 38.0], [358.0, 359.0, 0.0, 1.0], indexing="ij"))
    ds = ds.drop_vars(["lat", "lon"]).rename(rlat="lat", rlon="lon")
    ds = ds.assign_coords(lat=[40.0, 39.0, 38.0], lon=[358.0, 359.0, 0.0, 1.0])
    out = standardise(ds)
    np.testing.assert_array_equal(out["longitude"], [-2, -1, 0, 1])
    np.testing.assert_array_equal(out["msl"], ds["psl"].astype("f4"))


# What must be covered ---------------------------------------------------------------------------


def test_a_domain_that_is_not_covered_is_refused() -> None:
    told = refused(maps_at(*rotated(half=3.0)))
    assert "must cover the domain, 36 to 42 N, 8 to 18 E" in told
    assert "points outside of the data" in told
    small = config.Domain(north=40, south=38, west=12, east=14)
    assert standardise(maps_at(*rotated(half=3.0)), domain=small, degrees=0.5)["msl"].size
    far = config.Domain(north=10, south=0, west=100, east=110)
    assert "no points there" in refused(maps_at(*rotated()), domain=far)


def test_a_gap_in_the_points_is_not_bridged() -> None:
    latitude, longitude = (axis.ravel() for axis in rotated())
    kept = np.hypot(latitude - 39, longitude - 13) > 2
    assert "points outside of the data" in refused(maps_at(latitude[kept], longitude[kept]))


def test_the_spacing_and_the_domain_must_be_given() -> None:
    ds = maps_at(*rotated())
    assert "give a spacing (data.degrees)" in refused(ds, degrees=None)
    assert "must cover a domain: give one" in refused(ds, domain=None)


def test_degrees_are_degrees() -> None:
    latitude, longitude = rotated()
    assert "must be in degrees" in refused(maps_at(latitude * 1000, longitude))
    radians = maps_at(np.deg2rad(latitude), np.deg2rad(longitude))
    radians["lat"].attrs["units"] = "radians"
    assert "must be in degrees" in refused(radians)


@pytest.mark.parametrize(
    "about", [{"standard_name": "grid_eastward_wind"}, {"GRIB_uvRelativeToGrid": 1}]
)
def test_winds_along_the_axes_of_the_grid_are_refused(about) -> None:
    ds = maps_at(*rotated()).rename(psl="uas")
    ds["uas"] = (ds["uas"] * 0).assign_attrs(units="m s-1", standard_name="eastward_wind")
    assert float(standardise(ds, domain=AREA, degrees=0.5)["u10"].max()) == 0
    ds["uas"].attrs |= about
    assert "uas: winds on a rotated or projected grid must be eastward" in refused(ds)


# Values -----------------------------------------------------------------------------------------


def test_means_over_coarse_cells_keep_the_flux() -> None:
    """Noise of fine points: the mean over the area stays, single points do not carry a cell."""
    latitude, longitude = rotated(spacing=0.1)
    values = plane(latitude, longitude)
    values = values + 300 * np.random.default_rng(1).standard_normal(values.shape)
    out = standardise(maps_at(latitude, longitude, values, n=1), domain=AREA, degrees=1.0)
    inside = (latitude > 35.5) & (latitude < 42.5) & (longitude > 7.5) & (longitude < 18.5)
    area = np.cos(np.deg2rad(latitude[inside]))
    weights = np.broadcast_to(np.cos(np.deg2rad(out["latitude"].values))[:, None], (7, 11))
    got = np.average(out["msl"][0], weights=weights)
    assert got == pytest.approx(np.average(values[inside], weights=area), abs=15)
    # 100 points a cell: the noise of a cell is a tenth of that of a point, a bit more as weighted.
    assert float((out["msl"][0] - expected(out)).std()) < 60


def test_missing_values_stay_where_they_are() -> None:
    latitude, longitude = rotated(spacing=0.25)
    values = np.where(np.hypot(latitude - 39, longitude - 13) < 1.5, np.nan, 101_000.0)
    out = standardise(maps_at(latitude, longitude, values), domain=AREA, degrees=0.5)["msl"][0]
    away = np.hypot(out["latitude"] - 39, out["longitude"] - 13)
    assert np.isnan(out.values[(away < 1).values]).all()
    assert (out.values[(away > 2).values] == 101_000).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(60, 400),
    degrees=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_weights_of_any_points(seed, n, degrees) -> None:
    """Rows sum to 1 and are not negative; planes are kept wherever the cells are inside."""
    draw = np.random.default_rng(seed)
    edge = np.array([[35.0, 5.0], [35.0, 21.0], [43.0, 5.0], [43.0, 21.0]])
    points = np.concatenate([edge, draw.uniform([35, 5], [43, 21], (n, 2))])
    target = np.arange(38, 40.01, degrees), np.arange(11, 15.01, degrees)
    try:
        weights = scattered_weights(
            points[:, 0],
            points[:, 1],
            wanted_latitude=target[0],
            wanted_longitude=target[1],
            degrees=degrees,
            where="points",
        )
    except InputError as error:  # a gap that is too wide for so few points
        assert "must cover the domain" in str(error)  # noqa: PT017
        return
    assert (weights.matrix.data >= 0).all()
    np.testing.assert_allclose(weights.matrix.sum(axis=1), 1)
    part = tuple(axis[weights.used] for axis in (points[:, 0], points[:, 1]))
    out = weights.apply(plane(*part)[None])[0]
    if "means" not in weights.method:
        np.testing.assert_allclose(out, plane(target[0][::-1, None], target[1]), atol=1e-3)
    assert out.min() >= plane(*part).min() - 1e-6
    assert out.max() <= plane(*part).max() + 1e-6


# How much is read and computed ------------------------------------------------------------------


def test_weights_are_computed_once_a_grid(monkeypatch) -> None:
    calls = []

    def counted(*args, **options):
        calls.append(1)
        return scattered_weights(*args, **options)

    monkeypatch.setattr("medicane.standardise.placement.scattered_weights", counted)
    ds = maps_at(*rotated(), n=40).chunk(time=2)
    for name in ("uas", "vas"):
        ds[name] = (ds["psl"] * 0).assign_attrs(units="m s-1")
    standardise(ds, domain=AREA, degrees=0.5).compute()
    assert len(calls) == 1


def test_only_the_part_that_counts_is_read() -> None:
    latitude, longitude = rotated(half=20.0)
    weights = scattered_weights(
        latitude,
        longitude,
        wanted_latitude=np.arange(38, 40.1, 0.5),
        wanted_longitude=np.arange(12, 14.1, 0.5),
        degrees=0.5,
        where="points",
    )
    sizes = [part.stop - part.start for part in weights.used]
    assert max(sizes) < latitude.shape[0] / 4
    assert weights.matrix.shape == (25, int(np.prod(sizes)))


def test_maps_are_lazy_and_every_block_is_its_own() -> None:
    out = standardise(maps_at(*rotated(), n=12).chunk(time=3), domain=AREA, degrees=0.5)
    assert out["msl"].data.numblocks[0] == 4
    with dask.config.set(scheduler="synchronous"):
        one = out["msl"].isel(time=slice(3, 6)).compute()
    np.testing.assert_allclose(one[0], expected(out), atol=0.05)


def test_a_triangle_over_a_gap_is_measured_in_spacings() -> None:
    assert scattered.LONGEST_EDGE > 2**0.5  # the diagonal of a cell is no gap
