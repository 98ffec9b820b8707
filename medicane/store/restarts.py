"""Where a record can be cut back to and written on from, so that revised maps find their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Restart(NamedTuple):
    """The end of a record as it once was: what the maps that follow need of those before.

    ``n`` maps up to ``time`` (ISO 8601); ``born`` tells the store from another one of its name,
    ``packed`` how the maps were packed then; ``chain`` is their digest, ``last_lows`` the lows of
    the last one.
    """

    born: int
    n: int
    time: str
    packed: str
    chain: str
    last_lows: str


class Revision(NamedTuple):
    """How maps that are stored are put right; see `write_store`.

    Attributes
    ----------
    changed_from
        The first time whose map is another one now; None if there is none.
    late_from
        Maps from then on that come late are put in their place, those before are left out.
    restarts
        Where the record can be cut, in order; without one it is written anew from its beginning.
    """

    changed_from: np.datetime64 | None
    late_from: np.datetime64
    restarts: Sequence[Restart] = ()


def restart_before(
    restarts: Sequence[Restart], times: NDArray[np.datetime64], first: np.datetime64
) -> Restart | None:
    """The last of some restarts that lies before a time, and on a record of these times."""
    for restart in reversed(restarts):
        at = np.datetime64(restart.time)
        if at < first and 0 < restart.n <= times.size and times[restart.n - 1] == at:
            return restart
    return None


def thinned(ends: Sequence[int], *, recent: int = 8, share: float = 0.25) -> list[int]:
    """Which of many restarts to keep: all recent ones, of earlier ones fewer and fewer.

    Parameters
    ----------
    ends
        Maps up to each, ascending.
    recent
        So many of the last ones are all kept.
    share
        Before those, two that are kept may lie further apart than this share of their age.

    Returns
    -------
    list of int
        Positions in `ends`. Thinned again, what is kept is kept.
    """
    kept: list[int] = []
    for i, end in enumerate(ends):
        dispensable = (
            bool(kept)
            and i < len(ends) - recent
            and ends[i + 1] - ends[kept[-1]] <= share * (ends[-1] - end)
        )
        if not dispensable:
            kept.append(i)
    return kept
