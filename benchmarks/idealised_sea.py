"""How hard the idealised sea is: the figures of `docs/idealised_sea.md`.

    python benchmarks/idealised_sea.py [--years 12] [--base-rate 0.008] [--seed 1]

Two seas are drawn, of seeds N and N + 1: what is fitted on one is scored on the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medicane import config, names, phase_space, synthetic
from medicane.phase_space.lows import lows_of_maps
from medicane.standardise.land import land_sea_mask

LABEL = config.Label()
#: Half-width, in grid points, of the pressure map about a storm.
HALF = 8


def measure(sea: config.Sea, *, weather: float = 1.0) -> dict[str, np.ndarray]:
    """Truth, noisy phase space at the lows found, and pressure maps about the true storms."""
    planned = synthetic.plan_sea(sea, label=LABEL)
    truth = synthetic.truth_table(planned)
    over_sea = land_sea_mask(planned.latitude, planned.longitude).values < 0.5
    found, patches, last = [], [], None
    started = time.process_time()
    making = 0.0
    blocks = planned.maps(weather=weather)
    while True:
        at = time.process_time()
        try:
            block, maps = next(blocks)
        except StopIteration:
            break
        making += time.process_time() - at
        lows = lows_of_maps(
            maps.zg,
            maps.msl,
            over_sea,
            times=planned.times[block],
            levels=names.PHASE_SPACE_LEVELS,
            latitude=planned.latitude,
            longitude=planned.longitude,
            definition=LABEL,
            previous=last,
        )
        last = lows.last
        found.append(np.stack(lows[:6], axis=1))
        for i in range(len(maps.msl)):
            row, column = (
                np.abs(axis - truth[name][block][i]).argmin()
                for axis, name in (
                    (planned.latitude, "low_latitude"),
                    (planned.longitude, "low_longitude"),
                )
            )
            wide = np.pad(maps.msl[i], HALF, mode="edge") / 100
            patches.append(wide[row : row + 2 * HALF + 1, column : column + 2 * HALF + 1])
    print(
        f"{planned.times.size} maps, {len(planned.storms)} storms: "
        f"{planned.times.size / making:.0f} maps a CPU second made, "
        f"{planned.times.size / (time.process_time() - started):.0f} with their lows",
        file=sys.stderr,
    )
    names_ = ("latitude", "longitude", "msl", "b", "vtl", "vtu")
    noisy = dict(zip(names_, np.concatenate(found).T, strict=True))
    return (
        truth
        | {f"noisy_{k}": v for k, v in noisy.items()}
        | {
            "patch": np.stack(patches),
            "time": planned.times,
            "n_medicanes": np.array(sum(s.kind == "medicane" for s in planned.storms)),
            "n_storms": np.array(len(planned.storms)),
        }
    )


def held(got: dict[str, np.ndarray]) -> np.ndarray:
    """The phase-space rule with hysteresis on the lows found."""
    raw = phase_space.satisfies(
        *(got[f"noisy_{name}"] for name in ("b", "vtl", "vtu", "msl")), definition=LABEL
    )
    return phase_space.hold(raw, got["time"], min_hours=LABEL.min_hours, step_hours=6)


def oracle(got: dict[str, np.ndarray]) -> np.ndarray:
    """The same rule on the noise-free phase space, each storm by itself."""
    raw = phase_space.satisfies(
        *(got[name] for name in ("b", "vtl", "vtu", "low_msl")), definition=LABEL
    )
    out = np.zeros_like(raw)
    for storm in set(got["storm"][raw]):
        own = np.flatnonzero(got["storm"] == storm)
        out[own] = phase_space.hold(
            raw[own], got["time"][own], min_hours=LABEL.min_hours, step_hours=6
        )
    return out


def scores(forecast: np.ndarray, label: np.ndarray) -> dict[str, float]:
    hits = float((forecast & label).sum())
    return {
        "csi": hits / max(1, (forecast | label).sum()),
        "pod": hits / max(1, label.sum()),
        "far": 1 - hits / max(1, forecast.sum()),
    }


def d_prime(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2))


def beside_truth(got: dict[str, np.ndarray]) -> np.ndarray:
    """Maps whose low found is the truth's storm, over sea and below the pressure asked."""
    apart = phase_space.distance_km(
        got["noisy_latitude"], got["noisy_longitude"], got["low_latitude"], got["low_longitude"]
    )
    return (apart < 200) & np.isfinite(got["noisy_vtl"])


def report(fit: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> dict[str, float]:
    """All figures of one sea; the pressure-only classifiers learn on the other."""
    label = test["medicane"].astype(bool)
    near = beside_truth(test)
    warmth = np.minimum(test["noisy_vtl"], test["noisy_vtu"])
    out = {
        "base_rate": label.mean(),
        "medicanes": test["n_medicanes"],
        "storms": test["n_storms"],
        "maps_with_a_low": near.sum(),
        "d_prime": d_prime(warmth[near & label], warmth[near & ~label]),
        "auc_single_map": roc_auc_score(label[near], warmth[near]),
        "noise_vtl": (test["noisy_vtl"] - test["vtl"])[near].std(),
        "noise_vtu": (test["noisy_vtu"] - test["vtu"])[near].std(),
        "bias_vtl": (test["noisy_vtl"] - test["vtl"])[near].mean(),
        "bias_vtu": (test["noisy_vtu"] - test["vtu"])[near].mean(),
    }
    mean = np.full(label.size, np.nan)
    for i in np.flatnonzero(near):
        window = np.arange(max(0, i - 4), min(label.size, i + 5))
        window = window[near[window] & (test["storm"][window] == test["storm"][i])]
        mean[i] = warmth[window].mean()
    out["d_prime_mean_of_9"] = d_prime(mean[near & label], mean[near & ~label])
    out["auc_pr_single_map_lows"] = average_precision_score(label[near], warmth[near])
    out["auc_pr_mean_of_9_lows"] = average_precision_score(label[near], mean[near])
    score = phase_space.warm_core_score(test["noisy_vtl"], test["noisy_vtu"], test["noisy_b"])
    score = np.where(np.isfinite(score), score, -1e3)
    out["rule_auc_pr"] = average_precision_score(label, score)
    raw = phase_space.satisfies(
        *(test[f"noisy_{name}"] for name in ("b", "vtl", "vtu", "msl")), definition=LABEL
    )
    out |= {f"rule_single_{k}": v for k, v in scores(raw, label).items()}
    out |= {f"rule_held_{k}": v for k, v in scores(held(test), label).items()}
    out["oracle_csi"] = scores(oracle(test), label)["csi"]
    deep = {
        id(s): np.isfinite(s["low_msl"]) & (s["low_msl"] < LABEL.msl_max_hpa) for s in (fit, test)
    }
    x, y = (s["patch"][deep[id(s)]].reshape(int(deep[id(s)].sum()), -1) for s in (fit, test))
    truth = fit["medicane"][deep[id(fit)]]
    for name, model in (
        ("logistic", make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))),
        ("trees", HistGradientBoostingClassifier(max_depth=3, max_iter=60)),
    ):
        guess = model.fit(x, truth).predict_proba(y)[:, 1]
        out[f"msl_only_auc_{name}"] = roc_auc_score(label[deep[id(test)]], guess)
    out["msl_only_auc_depth"] = roc_auc_score(label[deep[id(test)]], -y.min(axis=1))
    return {k: round(float(v), 4) for k, v in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--years", type=float, default=12)
    parser.add_argument("--base-rate", type=float, default=0.008)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    fit, test = (
        measure(config.Sea(years=given.years, base_rate=given.base_rate, seed=given.seed + i))
        for i in (0, 1)
    )
    print(json.dumps(report(fit, test), indent=1))
    quiet = measure(config.Sea(years=2, base_rate=given.base_rate, seed=given.seed), weather=0.0)
    label = quiet["medicane"].astype(bool)
    print(
        json.dumps({f"noise_free_{k}": round(v, 3) for k, v in scores(held(quiet), label).items()})
    )


if __name__ == "__main__":
    main()
