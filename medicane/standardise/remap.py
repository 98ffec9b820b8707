"""Weights that bring one axis of a regular grid to another spacing. Arrays in, arrays out.

A map on a regular latitude–longitude grid is remapped as ``W_lat @ map @ W_lon.T``: overlaps of
rectangular cells factor into one weight matrix per axis.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

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


def apply_weights(
    maps: np.ndarray, w_latitude: np.ndarray | None, w_longitude: np.ndarray | None
) -> np.ndarray:
    """Remap the last two axes of `maps`, in float64.

    Parameters
    ----------
    maps
        Shape (…, n_lat, n_lon). A missing value (NaN) takes no part: a target cell is the mean of
        its valid part, or NaN where less than half of its weight is valid.
    w_latitude, w_longitude
        Shapes (m_lat, n_lat) and (m_lon, n_lon); None leaves the axis alone.

    Returns
    -------
    numpy.ndarray
        Shape (…, m_lat, m_lon), float64.
    """
    maps = np.asarray(maps, dtype=np.float64)
    valid = np.isfinite(maps)
    if valid.all():
        return _product(maps, w_latitude, w_longitude)
    share = _product(valid.astype(np.float64), w_latitude, w_longitude)
    total = _product(np.where(valid, maps, 0.0), w_latitude, w_longitude)
    enough = share >= 0.5 - 1e-9
    return np.where(enough, total / np.where(enough, share, 1.0), np.nan)


def _product(
    maps: np.ndarray, w_latitude: np.ndarray | None, w_longitude: np.ndarray | None
) -> np.ndarray:
    if w_latitude is not None:
        maps = np.matmul(w_latitude, maps)
    if w_longitude is not None:
        maps = np.matmul(maps, w_longitude.T)
    return maps
