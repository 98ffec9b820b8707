"""Two or more forecasts of the same maps side by side: paired differences to the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medicane.errors import InputError
from medicane.evaluate.skill import Forecast, paired_difference
from medicane.evaluate.verification import Sample, as_text, plain, score_all


def compare(
    times: ArrayLike,
    medicane: ArrayLike,
    storm: ArrayLike | None,
    *,
    forecasts: Mapping[str, Forecast],
    train_rate: float = math.nan,
    split: str = "test",
    kind: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score forecasts on the maps that all of them have, and every difference to the first.

    Parameters
    ----------
    times, medicane, storm
        The whole split in order, shape (time,): times, labels 1, 0, -1, storm ids ("" for none).
    forecasts
        Name → forecast of shape (time,), two or more; the first one is the reference.
    train_rate
        Base rate of the training split, the reference of the Brier skill; undefined without.
    split
        The split's name.
    kind
        Shape (time,): as for `verify`.
    n_resamples, seed
        Of the block bootstrap; every forecast is scored on the same resamples.

    Returns
    -------
    dict
        As ``scores.json`` (`verify`), without ``threshold`` and ``difference_from``, and with
        ``reference`` (the first name) and ``differences``: name → score → ``value``, ``low``,
        ``high`` of *that forecast minus the reference*. An interval that leaves out 0 says that the
        two differ on these storms and weeks. POD, CSI, AUC-PR and the skill scores gain above 0;
        FAR, Brier and ECE below.

    Raises
    ------
    InputError
        If there are fewer than two forecasts, shapes differ, or a label is not 1, 0 or -1.
    """
    if len(forecasts) < 2:
        raise InputError("compare", "needs at least two forecasts", found=len(forecasts))
    sample = Sample(
        times=np.asarray(times),
        medicane=np.asarray(medicane),
        storm=None if storm is None else as_text(storm),
        train_rate=train_rate,
        split=split,
        kind=None if kind is None else as_text(kind),
        n_resamples=n_resamples,
        seed=seed,
    )
    found = score_all(sample, forecasts)
    reference, *others = forecasts
    table = {name: part for name, part in found.scores.items() if name != "threshold"}
    models = table.pop("models")
    table |= {"reference": reference, "models": models}
    table["differences"] = {
        name: paired_difference(found.by_map[name], found.by_map[reference])
        for name in others
        if found.by_map[name].resamples and found.by_map[reference].resamples
    }
    return plain(table)
