"""What a good idealised sea shows: the list of the benchmark, measured on the study's own seas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from medicane import names
from medicane.pipeline.targets import difference

if TYPE_CHECKING:
    from medicane.pipeline.study import Placed

#: Half-width, in cells, of the pressure patch that the single-map classifier sees: 4 degrees.
PATCH = 8


def acceptance(placed: Placed, sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure the list of the benchmark sea.

    Parameters
    ----------
    placed
        The study.
    sets
        Set of maps → its scores and differences, as ``results.json`` holds them.

    Returns
    -------
    dict
        For each property: ``asks`` (what a good sea shows), ``found`` (numbers), and ``holds``,
        None where a row that it needs is not trained.
    """
    asked = {
        "mslp_alone": (
            "pressure alone does not tell medicanes from other deep lows: ROC-AUC below 0.6",
            _pressure_alone(placed),
        ),
        "clean_oracle": ("the rule on the noise-free phase space scores 1", _clean_oracle(placed)),
        "time_helps": (
            "the sequence model beats the single map in AUC-PR, interval above 0",
            _difference(sets, "detector", "single_map", sign=1),
        ),
        "order_matters": (
            "with the order shuffled the detector loses AUC-PR, interval below 0",
            _difference(sets, "shuffled_maps", "detector", sign=-1),
        ),
        "baseline": (
            "the sequence model beats noisy phase space + hysteresis in AUC-PR, interval above 0",
            _difference(sets, "detector", "phase_space", sign=1),
        ),
        "base_rates": ("the base rate can be set: realised within a fifth", _base_rates(placed)),
        "other_family": (
            "on the unseen vortex family at least 90 % of the CSI on the known one",
            _other_family(sets),
        ),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (asks, told) in asked.items():
        holds = None if told is None else told.pop("holds")
        found[name] = {"asks": asks, "found": told, "holds": holds}
    return found


def _pressure_alone(placed: Placed) -> dict[str, Any]:
    """ROC-AUC of a logistic regression on MSLP around the deepest low, trained on other years."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from medicane.pipeline.study import split_masks
    from medicane.store import open_store

    config = placed.config()
    store = open_store(config.data.store)
    masks = split_masks(config, store)
    deep = store["low_msl"].values < config.label.msl_max_hpa
    known = store["medicane"].values != names.UNKNOWN
    parts = {}
    for split in ("train", "test"):
        at = np.flatnonzero(masks[split] & deep & known)
        # Enough to fit 289 weights on, and bounded memory.
        at = at[:: max(1, len(at) // 3000)]
        parts[split] = (_patches(store, at), store["medicane"].values[at] == names.MEDICANE)
    for _, label in parts.values():
        if label.all() or not label.any():
            return {"auc": None, "holds": None}
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    model.fit(*parts["train"])
    patches, label = parts["test"]
    auc = float(roc_auc_score(label, model.predict_proba(patches)[:, 1]))
    return {"auc": auc, "n_maps": len(label), "holds": auc < 0.6}


def _patches(store: xr.Dataset, at: np.ndarray) -> np.ndarray:
    """MSLP around the low of each map, (map, cell), edges repeated."""
    field = store["maps"].isel({names.CHANNEL: 0})
    if str(field[names.CHANNEL].values) not in ("msl", "msl_local"):
        field = store["maps"].sel({names.CHANNEL: "msl_local"})
    latitude, longitude = store[names.LATITUDE].values, store[names.LONGITUDE].values
    cells = np.arange(-PATCH, PATCH + 1)
    patches = np.empty((len(at), cells.size**2), np.float32)
    low_latitude = store["low_latitude"].values
    low_longitude = store["low_longitude"].values
    for row, k in enumerate(at):
        i = int(np.abs(latitude - low_latitude[k]).argmin())
        j = int(np.abs(longitude - low_longitude[k]).argmin())
        rows = np.clip(i + cells, 0, latitude.size - 1)
        columns = np.clip(j + cells, 0, longitude.size - 1)
        patches[row] = field[int(k)].values[np.ix_(rows, columns)].ravel()
    return patches


def _clean_oracle(placed: Placed) -> dict[str, Any]:
    """CSI of the rule on the truth file's noise-free phase space, over the whole benchmark sea.

    Held for each storm by itself: two short-lived warm cores of two storms are no lasting one.
    """
    from medicane.phase_space import hold, satisfies
    from medicane.pipeline.study import BENCHMARK

    config = placed.config()
    with xr.open_dataset(placed.folder / "seas" / BENCHMARK / "truth.nc") as file:
        truth = file.load()
    rule = satisfies(
        truth["b"].values,
        truth["vtl"].values,
        truth["vtu"].values,
        truth["low_msl"].values,
        definition=config.label,
    )
    step = config.data.step_hours
    times, storm = truth["time"].values, truth["storm"].values.astype(str)
    held = np.zeros(rule.shape, bool)
    for part in np.split(np.arange(rule.size), np.flatnonzero(storm[1:] != storm[:-1]) + 1):
        if rule[part].any():
            held[part] = hold(
                rule[part], times[part], min_hours=config.label.min_hours, step_hours=step
            )
    label = truth["medicane"].values == 1
    csi = float((held & label).sum() / max((held | label).sum(), 1))
    return {"csi": csi, "n_maps": int(label.size), "holds": csi > 0.99}


def _difference(sets: Mapping[str, Any], a: str, b: str, *, sign: int) -> dict[str, Any] | None:
    """Paired difference a − b in AUC-PR and CSI, as the benchmark's set was scored."""
    found = sets.get("benchmark")
    told = {score: found and difference(found, a, b, score) for score in ("auc_pr", "csi")}
    if told["auc_pr"] is None or told["csi"] is None:
        return None
    ends = [told["auc_pr"][end] for end in ("low", "high")]
    known = all(end is not None for end in ends)
    return {**told, "holds": bool(min(sign * end for end in ends) > 0) if known else None}


def _base_rates(placed: Placed) -> dict[str, Any]:
    rates, good = {}, True
    for name in dict.fromkeys(map(placed.home, placed.seas())):
        with xr.open_dataset(placed.folder / "seas" / name / "truth.nc") as truth:
            rate = float((truth["medicane"] == 1).mean())
        asked = placed.sea(name).base_rate
        rates[name] = {"asked": asked, "realised": rate}
        good &= abs(rate - asked) <= 0.2 * asked
    return {**rates, "holds": good}


def _other_family(sets: Mapping[str, Any]) -> dict[str, Any] | None:
    if not {"benchmark", "holland"} <= set(sets):
        return None
    csi = {
        name: sets[name]["models"]["detector"]["csi"]["value"] for name in ("benchmark", "holland")
    }
    if not csi["benchmark"] or csi["holland"] is None:
        return {"csi": csi, "ratio": None, "holds": None}
    ratio = csi["holland"] / csi["benchmark"]
    return {"csi": csi, "ratio": ratio, "holds": bool(ratio >= 0.9)}
