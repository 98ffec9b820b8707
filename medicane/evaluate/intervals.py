"""Block bootstrap: 95 % intervals by storm and by week, never by map.

Maps a few hours apart are all but the same map; resampling them one by one gives intervals that
are several times too narrow. Medicane maps are therefore drawn by the storm they belong to and
all other maps by the week they lie in, each kind as often as it occurs. Every resample is kept as
the number of times it drew each block, so a score of a thousand resamples is a score of
``weight @ (sums per block)``, and two forecasts scored on the same resamples are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.evaluate.events import hours_from_first, storm_of_positives

#: Hours in a block of maps without a medicane.
WEEK_HOURS = 168.0

#: Below this number of storms the percentile interval is known to be too narrow.
FEW_STORMS = 10


@dataclass(frozen=True)
class Resampling:
    """Which block every map belongs to, and how often each resample drew each block.

    Attributes
    ----------
    block
        Shape (map,): storms are blocks 0 … n_storms - 1, weeks come after.
    n_storms, n_weeks
        How many blocks there are of each kind.
    weight
        Shape (resample, block).
    """

    block: NDArray[np.intp]
    n_storms: int
    n_weeks: int
    weight: NDArray[np.float64]

    def sums(self, *values: ArrayLike) -> NDArray[np.float64]:
        """Sum over the maps of every resample, shape (resample, number of `values`)."""
        n_blocks = self.n_storms + self.n_weeks
        per_block = np.stack(
            [np.bincount(self.block, np.asarray(v, float), minlength=n_blocks) for v in values],
            axis=1,
        )
        return self.weight @ per_block


def resample_blocks(
    times: ArrayLike,
    medicane: ArrayLike,
    storm: ArrayLike | None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Resampling:
    """Draw the resamples for a sample of maps with known labels.

    Parameters
    ----------
    times, medicane, storm
        Shape (map,): strictly increasing times, labels 1 or 0, storm ids. Weeks are counted
        from the first map.
    n_resamples
        Number of resamples.
    seed
        The same seed and the same maps give the same resamples: that is what pairs two models.
    """
    medicane = np.asarray(medicane)
    positive = medicane == names.MEDICANE
    _, storms = np.unique(
        storm_of_positives(times, medicane, storm)[positive].astype(str), return_inverse=True
    )
    weeks_all = (hours_from_first(times) // WEEK_HOURS).astype(int)
    _, weeks = np.unique(weeks_all[~positive], return_inverse=True)
    n_storms = int(storms.max() + 1) if storms.size else 0
    n_weeks = int(weeks.max() + 1) if weeks.size else 0
    block = np.empty(medicane.shape, np.intp)
    block[positive] = storms
    block[~positive] = weeks + n_storms
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
        for n in (n_storms, n_weeks)
        if n > 0
    ]
    weight = np.concatenate(drawn, axis=1) if drawn else np.zeros((n_resamples, 0))
    return Resampling(block, n_storms, n_weeks, weight.astype(float))


def resampled_average_precision(
    score: ArrayLike, medicane: ArrayLike, resampling: Resampling
) -> NDArray[np.float64]:
    """Average precision (as scikit-learn's) of every resample, shape (resample,).

    Only thresholds that at least one medicane map reaches first contribute to it, so the maps
    are counted once per block and threshold and all resamples follow from one matrix product.
    NaN where a resample holds no medicane map.
    """
    score = np.asarray(score, float)
    positive = np.asarray(medicane) == names.MEDICANE
    levels = np.unique(score[positive])  # ascending
    if levels.size == 0:
        return np.full(len(resampling.weight), np.nan)
    reached = np.searchsorted(levels, score, side="right") - 1  # -1: below every medicane map
    kept = reached >= 0
    shape = (resampling.n_storms + resampling.n_weeks, levels.size)
    cell = resampling.block[kept] * levels.size + (levels.size - 1 - reached[kept])
    everything = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell, positive[kept], minlength=shape[0] * shape[1]).reshape(shape)
    # Medicane maps lie in storm blocks only: the other rows of `hits` are zero.
    n_storms = resampling.n_storms
    new_hits = resampling.weight[:, :n_storms] @ hits[:n_storms]
    detected = np.cumsum(resampling.weight @ everything.astype(float), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(detected > 0, np.cumsum(new_hits, axis=1) / detected, 0.0)
        return np.asarray((new_hits * precision).sum(axis=1) / new_hits.sum(axis=1))


def percentiles(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the resamples, those without a value left out; NaN if none has one."""
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    if kept.size == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return float(low), float(high)
