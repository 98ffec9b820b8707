"""Which storms a record of the idealised sea holds, and when: base rate, season, distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from medicane import config
from medicane.phase_space.sphere import distance_km
from medicane.synthetic.storms import MEDICANE, NEGATIVES, Array, IsLand, Storm, draw_storm

#: Share of storms born in each month; heat lows have their own.
SEASON = np.array([14, 8, 7, 5, 4, 2, 1, 3, 13, 16, 15, 12]) / 100
HEAT_SEASON = np.array([0, 0, 2, 8, 16, 20, 20, 18, 12, 4, 0, 0]) / 100
#: Fewest negatives a year (1.5 medicanes among them are 3–4 % of all), and per medicane.
NEGATIVES_PER_YEAR, NEGATIVES_PER_MEDICANE = 42.0, 2.8
#: Two storms at the same time keep this distance (km).
APART_KM = 1000.0


def plan_storms(
    rng: np.random.Generator,
    *,
    sea: config.Sea,
    hours: int,
    is_land: IsLand,
    definition: config.Label,
) -> list[Storm]:
    """All storms of a record, in order of birth, named; their labels realise the base rate.

    Parameters
    ----------
    hours
        Length of the record; every storm lives wholly within it.

    Returns
    -------
    list of Storm
    """
    draw = partial(draw_storm, is_land=is_land, definition=definition, family=sea.vortex)
    medicanes = _medicanes_to_rate(rng, sea.base_rate * hours, draw=draw)
    years = hours / 8766
    n_negatives = round(max(NEGATIVES_PER_YEAR * years, NEGATIVES_PER_MEDICANE * len(medicanes)))
    placed = _Calendar(hours)
    for i, storm in enumerate(medicanes):
        # One draw in each part of the season-weighted record: every split gets its share.
        placed.add(rng, storm, low=i / len(medicanes), high=(i + 1) / len(medicanes), sea=sea)
    # Where every instant counts, no excursion is too short.
    kinds = [k for k in NEGATIVES if k != "excursion" or definition.min_hours >= 2]
    shares = np.array([NEGATIVES[k] for k in kinds])
    for kind in rng.choice(kinds, size=n_negatives, p=shares / shares.sum()):
        storm = draw(rng, str(kind))
        placed.add(rng, storm, low=0.0, high=1.0, sea=sea)
    ordered = sorted(placed.storms, key=lambda s: (s.start, s.kind))
    return [replace(storm, name=f"sea{i + 1:05d}") for i, storm in enumerate(ordered)]


def _medicanes_to_rate(
    rng: np.random.Generator, wanted: float, *, draw: Callable[..., Storm]
) -> list[Storm]:
    """Medicanes whose labelled hours sum to `wanted`, as nearly as the last one allows."""
    chosen: list[Storm] = []
    total = 0.0
    while True:
        candidates = [
            draw(rng, MEDICANE)
            # Near the end, look for the storm that fits.
            for _ in range(1 if wanted - total > 150 else 12)
        ]
        hours = np.array([c.medicane.sum() for c in candidates])
        best = int(np.argmin(np.abs(wanted - total - hours)))
        if wanted - total > 150:
            best = 0
        elif abs(wanted - total - hours[best]) >= abs(wanted - total):
            return chosen
        chosen.append(candidates[best])
        total += hours[best]


class _Calendar:
    """Storms already placed in time, and the law that two at once keep their distance."""

    def __init__(self, hours: int) -> None:
        self.hours = hours
        self.storms: list[Storm] = []
        self._by_week: dict[int, list[Storm]] = {}

    def add(
        self, rng: np.random.Generator, storm: Storm, *, low: float, high: float, sea: config.Sea
    ) -> None:
        """Place a storm at a season-weighted time, or drop it where the record is too crowded."""
        season = HEAT_SEASON if storm.kind == "heat_low" else SEASON
        cumulative = _season_cumulative(season, sea.start_year, self.hours)
        if not cumulative.any():
            return
        for _ in range(60):
            day = int(np.searchsorted(cumulative, rng.uniform(low, high)))
            born = replace(storm, start=24 * day + int(rng.integers(24)))
            if born.start + born.hours <= self.hours and self._is_clear(born):
                self.storms.append(born)
                for week in self._weeks(born):
                    self._by_week.setdefault(week, []).append(born)
                return

    @staticmethod
    def _weeks(storm: Storm) -> range:
        return range(storm.start // 168, (storm.start + storm.hours) // 168 + 1)

    def _is_clear(self, storm: Storm) -> bool:
        others = {id(o): o for week in self._weeks(storm) for o in self._by_week.get(week, [])}
        for other in others.values():
            first = max(storm.start, other.start)
            last = min(storm.start + storm.hours, other.start + other.hours)
            if first >= last:
                continue
            a, b = (
                slice(first - storm.start, last - storm.start),
                slice(first - other.start, last - other.start),
            )
            apart = distance_km(
                storm.latitude[a], storm.longitude[a], other.latitude[b], other.longitude[b]
            )
            if apart.min() < APART_KM:
                return False
        return True


def _season_cumulative(season: Array, start_year: int, hours: int) -> Array:
    """Cumulative season-weighted probability at the end of each day; 0 if out of season."""
    first = np.datetime64(f"{start_year:04d}-01-01")
    days = first + np.arange(max(1, hours // 24))
    month = days.astype("datetime64[M]").astype(int) % 12
    cumulative = np.cumsum(season[month])
    return np.asarray(cumulative / max(float(cumulative[-1]), 1e-12))
