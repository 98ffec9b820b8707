"""Which sequences an epoch shows, and what that does to the odds.

Sequences fall into strata. Those with a medicane are always shown. Those without are drawn anew for
each epoch, without replacement, from one stratum or from two: *hard* ones, which hold a deep low at
sea, and easy ones, which hold none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medicane.errors import InputError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Strata:
    """Sequences that are always shown, and strata with the number drawn from each in an epoch.

    Attributes
    ----------
    n
        Sequences in all.
    always
        Indices of the sequences with a medicane.
    pools
        Indices of those without, stratum by stratum; disjoint.
    drawn
        Sequences drawn from each of the pools, at most their size.
    """

    n: int
    always: Indices
    pools: tuple[Indices, ...]
    drawn: tuple[int, ...]

    @property
    def n_shown(self) -> int:
        """Sequences in one epoch."""
        return self.always.size + sum(self.drawn)

    def shown(self, values: NDArray[Any]) -> float:
        """Sum of a value of the sequences, (n), over an epoch, in expectation."""
        drawn = [values[pool].sum() * count / pool.size for pool, count in self._shown]
        return float(values[self.always].sum() + sum(drawn))

    @property
    def everything(self) -> bool:
        """Whether an epoch shows all there is."""
        return self.n_shown == self.n

    def draw(self, rng: np.random.Generator) -> Indices:
        """The sequences of an epoch, ascending."""
        parts = [
            pool if drawn == pool.size else rng.choice(pool, drawn, replace=False)
            for pool, drawn in zip(self.pools, self.drawn, strict=True)
        ]
        return np.sort(np.concatenate([self.always, *parts])).astype(np.int64)

    def importance(self) -> NDArray[np.float32]:
        """Weight of the maps of each sequence, (n): what a stratum is drawn too often, taken back.

        A stratum drawn at the rate s has the weight s̄ / s, s̄ being the rate over all strata that
        are drawn from. The weighted negatives of an epoch are then, in expectation, those of an
        even draw of the same number: hard ones are seen more often, each with less weight, and one
        offset of the logit is right for hard and easy maps alike. Without it a map with a deep low
        would be called too improbable, and every other map too probable, after any single offset.
        The weights average 1 over the drawn sequences; a medicane's sequence has 1.
        """
        weight = np.ones(self.n, np.float32)
        total = sum(pool.size for pool, drawn in self._shown)
        even = sum(self.drawn) / total if total else 1.0
        for pool, drawn in self._shown:
            weight[pool] = even * pool.size / drawn
        return weight

    def prior_offset(self, positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
        """log(odds in an epoch / odds in all sequences), in expectation over the epochs.

        Parameters
        ----------
        positive, negative
            (n) weight of the medicane maps, and of the other known maps, in each sequence.

        Returns
        -------
        float
            What the draw adds to the logit; 0 if all is shown. A stratum that is never drawn from
            is left out of both counts: of its maps a model learns nothing, and no offset helps it.
        """
        shown = [
            (negative[pool].sum(dtype=np.float64), drawn / pool.size) for pool, drawn in self._shown
        ]
        importance = self.importance()
        weights = [float(importance[pool[0]]) for pool, _ in self._shown]
        fixed = float(negative[self.always].sum(dtype=np.float64))
        everything = fixed + sum(count for count, _ in shown)
        kept = fixed + sum(
            count * rate * weight for (count, rate), weight in zip(shown, weights, strict=True)
        )
        if self.everything or positive.sum() == 0 or kept <= 0:
            return 0.0
        return float(np.log(everything / kept))

    @property
    def _shown(self) -> list[tuple[Indices, int]]:
        return [(p, d) for p, d in zip(self.pools, self.drawn, strict=True) if d > 0]


def stratify(
    has_medicane: NDArray[np.bool_],
    hard: NDArray[np.bool_] | None,
    *,
    negatives_per_positive: float | None,
    hard_share: float | None,
) -> Strata:
    """Sort sequences into strata and settle how many are drawn from each.

    Parameters
    ----------
    has_medicane
        (sequence) whether one of its maps is a medicane.
    hard
        (sequence) whether one of its maps has a deep low at sea; needed for `hard_share`.
    negatives_per_positive
        Sequences without a medicane for each one with; none: all of them.
    hard_share
        Share of the drawn ones that are hard. Where there are too few of either kind, the other
        fills up.

    Raises
    ------
    InputError
        If sampling is asked for and no sequence holds a medicane.
    """
    always, without = np.flatnonzero(has_medicane), np.flatnonzero(~has_medicane)
    wanted = without.size
    if negatives_per_positive is not None:
        if always.size == 0:
            raise InputError(
                "train.negatives_per_positive",
                "needs at least one sequence with a medicane",
                found=f"none among {has_medicane.size} sequences",
            )
        wanted = min(wanted, round(negatives_per_positive * always.size))
    if hard_share is None or hard is None:
        return Strata(has_medicane.size, always, (without,), (wanted,))
    pools = (without[hard[without]], without[~hard[without]])
    easy = min(wanted - min(round(hard_share * wanted), pools[0].size), pools[1].size)
    return Strata(has_medicane.size, always, pools, (wanted - easy, easy))
