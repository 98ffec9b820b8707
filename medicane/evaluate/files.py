"""The files of verification: ``scores.json``, and ``forecast.nc``, from which it can be made."""

from __future__ import annotations

import json
import math
import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from medicane import names
from medicane.errors import InputError
from medicane.evaluate.skill import Forecast
from medicane.evaluate.verification import SCHEMA_VERSION, as_text, plain

#: What a forecast may have beside its probability, and the ending of its variable.
_PARTS = ("detection", "score", "centre_latitude", "centre_longitude")


@dataclass(frozen=True)
class ScoredForecasts:
    """The maps of a split and what was forecast for them: the content of ``forecast.nc``.

    Attributes
    ----------
    times, medicane, storm, kind
        Shape (time,): times, labels 1, 0 or -1, storm ids, kinds of storm (None if unknown).
    forecasts
        Name → forecast; the first one is the trained model.
    split
        The split's name.
    train_rate
        Base rate of the training split; NaN if unknown.
    attributes
        What else the file says: model, data digest, label version …
    """

    times: NDArray[Any]
    medicane: NDArray[Any]
    storm: NDArray[np.str_]
    forecasts: Mapping[str, Forecast]
    split: str = "test"
    train_rate: float = math.nan
    kind: NDArray[np.str_] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def write_forecasts(
    path: str | Path, scored: ScoredForecasts, *, more: Mapping[str, ArrayLike] | None = None
) -> Path:
    """Write ``forecast.nc`` in one step.

    Parameters
    ----------
    path
        Replaced whole.
    scored
        What is written: for each forecast a variable of its name (the probability) with the
        attributes ``threshold`` and ``note``, and what it has beside it as ``NAME_detection``,
        ``NAME_score`` …
    more
        Further variables of shape (time,).
    """
    path = Path(path)
    data: dict[str, Any] = {
        "medicane": (names.TIME, np.asarray(scored.medicane, np.int8)),
        "storm": (names.TIME, scored.storm.astype(object)),
    }
    if scored.kind is not None:
        data["kind"] = (names.TIME, scored.kind.astype(object), {"long_name": "kind of storm"})
    for name, forecast in scored.forecasts.items():
        told: dict[str, Any] = {"units": "1", "long_name": f"probability by {name}"}
        if forecast.threshold is not None:
            told["threshold"] = float(forecast.threshold)
        if forecast.note:
            told["note"] = forecast.note
        data[name] = (names.TIME, np.asarray(forecast.probability), told)
        for part in _PARTS:
            values = getattr(forecast, part)
            if values is not None:
                kept = np.int8 if part == "detection" else float
                data[f"{name}_{part}"] = (names.TIME, np.asarray(values).astype(kept))
    data |= {name: (names.TIME, np.asarray(values)) for name, values in (more or {}).items()}
    file = xr.Dataset(data, {names.TIME: scored.times})
    file.attrs = {
        "title": "Forecasts of one split, as they were scored",
        "forecasts": list(scored.forecasts),
        "split": scored.split,
        "train_base_rate": float(scored.train_rate),
        **scored.attributes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        file.to_netcdf(partial, engine="netcdf4")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_forecasts(path: str | Path) -> ScoredForecasts:
    """Read ``forecast.nc``; scored again with the same seed it gives the same ``scores.json``.

    Raises
    ------
    InputError
        If the file is not one that `write_forecasts` wrote.
    """
    try:
        with xr.open_dataset(path, engine="netcdf4") as stored:
            file = stored.load()
        listed = file.attrs["forecasts"]
        forecasts = {
            str(name): Forecast(
                file[name].values,
                threshold=file[name].attrs.get("threshold"),
                note=file[name].attrs.get("note", ""),
                **{
                    part: file[f"{name}_{part}"].values
                    for part in _PARTS
                    if f"{name}_{part}" in file
                },
            )
            for name in ([listed] if isinstance(listed, str) else listed)
        }
        own = {"title", "forecasts", "split", "train_base_rate"}
        return ScoredForecasts(
            times=file.indexes[names.TIME].to_numpy(),
            medicane=file["medicane"].values,
            storm=as_text(file["storm"].values),
            forecasts=forecasts,
            split=str(file.attrs["split"]),
            train_rate=float(file.attrs["train_base_rate"]),
            kind=as_text(file["kind"].values) if "kind" in file else None,
            attributes={k: v for k, v in file.attrs.items() if k not in own},
        )
    except (OSError, KeyError, ValueError) as error:
        law = "must be forecasts that 'medicane evaluate' wrote"
        raise InputError(path, law, found=error) from None


def write_scores(path: str | Path, scores: Mapping[str, Any]) -> Path:
    """Write ``scores.json`` in one step: a reader finds the old file or the new one, whole.

    NaN and infinity become null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(scores), indent=2, allow_nan=False, ensure_ascii=False)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        # mkstemp makes it private; a result is as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(scratch, 0o666 & ~mask)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return path


def read_scores(path: str | Path) -> dict[str, Any]:
    """Read ``scores.json``.

    Raises
    ------
    InputError
        If the file is missing, is not JSON, or has another schema version.
    """
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, "scores must be a readable JSON file", found=error) from None
    version = scores.get("schema_version") if isinstance(scores, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(path, f"schema_version must be {SCHEMA_VERSION}", found=repr(version))
    return scores
