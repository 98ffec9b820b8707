"""Weights that bring one axis of a regular grid to another spacing. Arrays in, arrays out.

A map on a regular latitude–longitude grid is remapped as ``W_lat @ map @ W_lon.T``: overlaps of
rectangular cells factor into one weight matrix per axis. Both are few cells wide, so that they are
applied as one sparse matrix.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.sparse import csr_array, eye_array, kron

Method = Literal["conservative", "linear"]

#: From this ratio on, target cells are means of source cells; below it, linear interpolation.
COARSENING_RATIO = 1.5
#: Coordinates closer than this fraction of the spacing are the same point.
SAME_POINT = 1e-3


def target_axis(source: np.ndarray, *, degrees: float, low: float, high: float) -> np.ndarray:
    """Multiples of `degrees` within [`low`, `high`] and within the points of `source`.

    Parameters
    ----------
    source
        Ascending axis, degrees, shape (n,).

    Returns
    -------
    numpy.ndarray
        Ascending, float64; the same numbers whatever the source, so that two sources give exactly
        equal grids. Empty where nothing is covered.
    """
    slack = SAME_POINT * degrees
    start = np.ceil((max(low, source[0]) - slack) / degrees)
    stop = np.floor((min(high, source[-1]) + slack) / degrees)
    return np.round(np.arange(start, stop + 1) * degrees, 6)


def matching(source: np.ndarray, target: np.ndarray) -> slice | None:
    """Where `target` is in `source`, if all its points are points of `source` in a row."""
    if target.size == 0:
        return None
    start = int(np.abs(source - target[0]).argmin())
    run = slice(start, start + target.size)
    if source[run].shape != target.shape:
        return None
    same = np.abs(source[run] - target) <= SAME_POINT * spacing(source)
    return run if same.all() else None


def axis_weights(
    source: np.ndarray, target: np.ndarray, *, degrees: float, on_sphere: bool
) -> tuple[Method, np.ndarray]:
    """The method and the weight matrix from one axis to another.

    Parameters
    ----------
    source, target
        Ascending, evenly spaced axes, degrees, shapes (n,) and (m,).
    degrees
        Spacing of the target.
    on_sphere
        True for latitudes: areas go with the difference of the sines of the cell edges.

    Returns
    -------
    method
        ``conservative`` where the target is at least `COARSENING_RATIO` times coarser, otherwise
        ``linear``.
    weights
        Shape (m, n), rows sum to 1. Conservative weights are the overlaps of cells whose edges lie
        midway between points. At the border of the source, where a target cell reaches beyond it,
        the mean is over the covered part (more than half of the cell).
    """
    if degrees >= COARSENING_RATIO * spacing(source):
        return "conservative", _overlaps(source, target, degrees=degrees, on_sphere=on_sphere)
    return "linear", _linear(source, target)


def spacing(axis: np.ndarray) -> float:
    """Distance between neighbouring points of an even axis; infinite for a single point."""
    return float(axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else np.inf


def cell_edges(axis: np.ndarray, *, degrees: float, on_sphere: bool) -> np.ndarray:
    """Edges of the cells around the points of an even axis, shape (n + 1,); sines for latitudes."""
    half = degrees / 2
    edges = np.concatenate([axis - half, [axis[-1] + half]])
    return np.sin(np.deg2rad(np.clip(edges, -90, 90))) if on_sphere else edges


def _overlaps(
    source: np.ndarray, target: np.ndarray, *, degrees: float, on_sphere: bool
) -> np.ndarray:
    have = cell_edges(source, degrees=spacing(source), on_sphere=on_sphere)
    want = cell_edges(target, degrees=degrees, on_sphere=on_sphere)
    low = np.maximum(want[:-1, None], have[None, :-1])
    high = np.minimum(want[1:, None], have[None, 1:])
    shared = np.clip(high - low, 0, None)
    return shared / shared.sum(axis=1, keepdims=True)


def _linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    inside = np.clip(target, source[0], source[-1])
    right = np.clip(np.searchsorted(source, inside), 1, source.size - 1)
    share = (inside - source[right - 1]) / (source[right] - source[right - 1])
    weights = np.zeros((target.size, source.size))
    rows = np.arange(target.size)
    weights[rows, right] = share
    weights[rows, right - 1] = 1 - share
    return weights


def map_weights(
    w_latitude: np.ndarray | None, w_longitude: np.ndarray | None, *, shape: tuple[int, int]
) -> csr_array:
    """One weight matrix for whole maps, from one for each axis.

    Sparse, since a cell of the target covers few of the source: as dense products, maps of a
    hundred rows take the time of ten, and longer still where BLAS divides them among busy cores.

    Parameters
    ----------
    w_latitude, w_longitude
        Shapes (m_lat, n_lat) and (m_lon, n_lon); None leaves the axis alone.
    shape
        (n_lat, n_lon) of the source.

    Returns
    -------
    csr_array
        Shape (m_lat · m_lon, n_lat · n_lon).
    """
    down, along = (
        eye_array(n) if weights is None else csr_array(weights)
        for weights, n in zip((w_latitude, w_longitude), shape, strict=True)
    )
    return csr_array(kron(down, along, format="csr"))


def apply_weights(maps: np.ndarray, matrix: csr_array, *, shape: tuple[int, ...]) -> np.ndarray:
    """Remap the last axes of `maps`, in float64; each map as if it were alone.

    Parameters
    ----------
    maps
        Shape (…, *space), where `space` has as many cells as `matrix` has columns. A missing value
        (NaN) takes no part: a target cell is the mean of its valid part, or NaN where less than
        half of its weight is valid.
    matrix
        (target cells, source cells), rows sum to 1.
    shape
        Of the result in place of `space`.
    """
    ahead, cells = maps.shape, 1
    while cells < matrix.shape[1]:
        cells *= ahead[-1]
        ahead = ahead[:-1]
    flat = np.asarray(maps, np.float64).reshape(-1, matrix.shape[1])
    valid = np.isfinite(flat)
    if valid.all():
        total = matrix @ flat.T
    else:
        share = matrix @ valid.T.astype(np.float64)
        enough = share >= 0.5 - 1e-9
        total = matrix @ np.where(valid, flat, 0.0).T
        total = np.where(enough, total / np.where(enough, share, 1.0), np.nan)
    return np.asarray(total.T.reshape(*ahead, *shape))
