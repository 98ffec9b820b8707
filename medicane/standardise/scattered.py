"""From points that lie anyhow to a regular grid: rotated, curvilinear, reduced, Gaussian grids.

Between the points a field is linear on each triangle of their Delaunay triangulation, in the plane
of latitude and of longitude times the cosine of the middle latitude. Where the target is coarser
than the points, its values are means over its cells, each sampled at several points. The weights
are computed once a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import Delaunay

from medicane.errors import InputError
from medicane.standardise import remap

#: A triangle with an edge longer than this many spacings of the points spans a gap between them.
LONGEST_EDGE = 4.0
#: How far outside of a triangle a point still counts as within it, in barycentric coordinates.
EDGE = 1e-7


@dataclass(frozen=True)
class ScatteredWeights:
    """Weights from scattered points to a regular grid.

    Attributes
    ----------
    used
        Slices of the horizontal dimensions of the source that hold all the points that count.
    matrix
        (target points, points of that part), rows sum to 1.
    shape
        (latitude, longitude) of the target; both axes ascend.
    method
        In words.
    """

    used: tuple[slice, ...]
    matrix: csr_array
    shape: tuple[int, int]
    method: str

    def apply(self, maps: np.ndarray) -> np.ndarray:
        """Remap (…, *part) to (…, latitude, longitude), latitude *descending*, in float64.

        A missing value (NaN) takes no part: a target point is the mean of its valid part, or NaN
        where less than half of its weight is valid.
        """
        return remap.apply_weights(maps, self.matrix, shape=self.shape)[..., ::-1, :]


def scattered_weights(
    latitude: np.ndarray,
    longitude: np.ndarray,
    *,
    wanted_latitude: np.ndarray,
    wanted_longitude: np.ndarray,
    degrees: float,
    where: str,
) -> ScatteredWeights:
    """Weights from points to a regular grid that they cover.

    Parameters
    ----------
    latitude, longitude
        Degrees, of one shape (any number of dimensions); longitudes count anyhow.
    wanted_latitude, wanted_longitude
        Axes of the target, ascending, evenly spaced by `degrees`; longitudes in [−180, 180).
    where
        What errors call the data.

    Raises
    ------
    InputError
        If a point of the target lies outside of the points, or in a gap between them.
    """
    box = (wanted_latitude[0], wanted_latitude[-1], wanted_longitude[0], wanted_longitude[-1])
    squeeze = float(np.cos(np.deg2rad((box[0] + box[1]) / 2)))
    middle = (box[2] + box[3]) / 2
    with np.errstate(invalid="ignore"):
        east = (longitude - middle + 180) % 360 - 180 + middle
    spacing = _spacing(latitude, east, box, squeeze, degrees)
    margin = degrees / 2 + LONGEST_EDGE * spacing
    near = (
        (latitude >= box[0] - margin)
        & (latitude <= box[1] + margin)
        & (east >= box[2] - margin / squeeze)
        & (east <= box[3] + margin / squeeze)
    )
    at = np.nonzero(near)
    if at[0].size < 4:
        raise _uncovered(where, box, "no points there")
    points = np.stack([east[at] * squeeze, latitude[at]], axis=1)
    triangles = Delaunay(points)
    corners = points[triangles.simplices]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    usable = edges <= LONGEST_EDGE * spacing
    centres = _plane(wanted_latitude, wanted_longitude, squeeze)
    inside, _, _ = _located(triangles, usable, centres)
    if not inside.all():
        lost = centres[np.flatnonzero(~inside)[0]]
        count = f"{int((~inside).sum())} of {inside.size} points outside of the data"
        raise _uncovered(where, box, f"{count}, one at {lost[1]:g} N {lost[0] / squeeze:g} E")
    ratio = degrees / spacing
    fold = int(np.ceil(ratio)) if ratio >= remap.COARSENING_RATIO else 1
    matrix = _matrix(
        triangles, usable, wanted_latitude, wanted_longitude, squeeze, degrees=degrees, fold=fold
    )
    counted = np.unique(matrix.indices)
    lows = [int(axis[counted].min()) for axis in at]
    highs = [int(axis[counted].max()) + 1 for axis in at]
    part = tuple(high - low for low, high in zip(lows, highs, strict=True))
    column = np.ravel_multi_index(
        tuple(axis[counted] - low for axis, low in zip(at, lows, strict=True)), part
    )
    place = np.zeros(at[0].size, np.intp)
    place[counted] = column
    size = int(np.prod(part))
    method = "linear on triangles" + (f", means of {fold} x {fold} points" if fold > 1 else "")
    return ScatteredWeights(
        used=tuple(slice(low, high) for low, high in zip(lows, highs, strict=True)),
        matrix=csr_array(
            (matrix.data, place[matrix.indices], matrix.indptr), shape=(matrix.shape[0], size)
        ),
        shape=(wanted_latitude.size, wanted_longitude.size),
        method=method,
    )


def _uncovered(where: str, box: tuple[float, ...], found: str) -> InputError:
    return InputError(
        where,
        f"a grid that is not regular must cover the domain, {box[0]:g} to {box[1]:g} N, {box[2]:g} "
        f"to {box[3]:g} E: give a smaller data.domain",
        found=found,
    )


def _spacing(
    latitude: np.ndarray,
    east: np.ndarray,
    box: tuple[float, ...],
    squeeze: float,
    degrees: float,
) -> float:
    """Mean distance of the points in the box, degrees of latitude: the root of an area a point."""
    with np.errstate(invalid="ignore"):
        within = (
            (latitude >= box[0] - degrees / 2)
            & (latitude <= box[1] + degrees / 2)
            & (east >= box[2] - degrees / 2)
            & (east <= box[3] + degrees / 2)
        )
    if not within.any():
        return degrees
    rows, columns = latitude[within], east[within]
    # The area that the points take up, not that of the box, which they may cover in part.
    height = max(float(np.ptp(rows)), degrees)
    width = max(float(np.ptp(columns)) * squeeze, degrees * squeeze)
    return float(np.sqrt(height * width / within.sum()))


def _plane(latitude: np.ndarray, longitude: np.ndarray, squeeze: float) -> np.ndarray:
    """All pairs of two axes as points of the plane, shape (n, 2), latitude varying slowest."""
    rows, columns = np.meshgrid(latitude, longitude * squeeze, indexing="ij")
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


def _located(
    triangles: Delaunay, usable: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each point is in a usable triangle; corners (n, 3) and barycentric weights (n, 3)."""
    simplex = triangles.find_simplex(points, tol=EDGE)
    inside = (simplex >= 0) & usable[simplex]
    transform = triangles.transform[simplex]
    two = np.einsum("nij,nj->ni", transform[:, :2], points - transform[:, 2])
    inside &= np.isfinite(two).all(axis=1)
    weights = np.clip(np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1), 0, 1)
    return inside, triangles.simplices[simplex], weights / weights.sum(axis=1, keepdims=True)


def _matrix(
    triangles: Delaunay,
    usable: np.ndarray,
    latitude: np.ndarray,
    longitude: np.ndarray,
    squeeze: float,
    *,
    degrees: float,
    fold: int,
) -> csr_array:
    """Sparse weights: the mean over `fold` × `fold` points of each cell, by area."""
    n = latitude.size * longitude.size
    rows, columns, values = [], [], []
    offsets = ((np.arange(fold) + 0.5) / fold - 0.5) * degrees
    for down in offsets:
        area = np.repeat(np.cos(np.deg2rad(latitude + down)), longitude.size)
        for along in offsets:
            points = _plane(latitude + down, longitude + along, squeeze)
            inside, corners, weights = _located(triangles, usable, points)
            at = np.flatnonzero(inside)
            rows.append(np.repeat(at, 3))
            columns.append(corners[at].ravel())
            values.append((weights[at] * area[at, None]).ravel())
    size = (n, triangles.points.shape[0])
    matrix = csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=size
    )
    matrix.sum_duplicates()
    total = np.asarray(matrix.sum(axis=1)).ravel()
    matrix.data /= np.repeat(total, np.diff(matrix.indptr))
    matrix.eliminate_zeros()
    return matrix
