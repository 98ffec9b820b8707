"""Forecasts of several folds as one: every map forecast by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medicane.errors import InputError
from medicane.evaluate.files import ScoredForecasts
from medicane.evaluate.skill import Forecast

#: What a pooled forecast keeps where every part has it.
_OPTIONAL = ("score", "centre_latitude", "centre_longitude")


def pool(parts: Sequence[ScoredForecasts], *, split: str) -> ScoredForecasts:
    """Join the test splits of folds in order of time.

    Each fold has a threshold of its own, so what is kept is what it detected. A map that several
    folds hold is taken from the first of them: it was out of training in all.

    Parameters
    ----------
    parts
        One for each fold, with the same forecasts.
    split
        A name for the whole.

    Raises
    ------
    InputError
        If there is none, or one has other forecasts than the first.
    """
    if not parts:
        raise InputError("folds", "at least one must be given", found="none")
    listed = list(parts[0].forecasts)
    for part in parts:
        if list(part.forecasts) != listed:
            law = f"every fold must hold the forecasts {listed}"
            raise InputError("folds", law, found=list(part.forecasts))
    times = np.concatenate([part.times for part in parts])
    # Of equal times unique gives the first in the order of the parts.
    order = np.unique(times, return_index=True)[1]

    def joined(values: Sequence[Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(one) for one in values])[order]

    forecasts = {}
    for name in listed:
        mine = [part.forecasts[name] for part in parts]
        kept: dict[str, Any] = {
            key: joined([getattr(one, key) for one in mine])
            for key in _OPTIONAL
            if all(getattr(one, key) is not None for one in mine)
        }
        forecasts[name] = Forecast(
            joined([one.probability for one in mine]),
            detection=joined([one.detections() for one in mine]),
            note=f"out of fold, {len(parts)} folds",
            **kept,
        )
    kinds = [part.kind for part in parts]
    sizes = [part.times.size for part in parts]
    return ScoredForecasts(
        times=times[order],
        medicane=joined([part.medicane for part in parts]),
        storm=joined([part.storm for part in parts]),
        kind=joined(kinds) if all(kind is not None for kind in kinds) else None,
        forecasts=forecasts,
        split=split,
        train_rate=float(np.average([part.train_rate for part in parts], weights=sizes)),
    )
