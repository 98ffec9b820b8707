"""The targets of the benchmark, each beside what was found: met, missed, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medicane.report.tables import cell_text


class Target(NamedTuple):
    """One target: what is asked, what was found (in words), whether it is met (None: unknown)."""

    asks: str
    found: str
    met: bool | None


def targets(results: Mapping[str, Any], *, row: str) -> list[Target]:
    """Every target for one row of the study (the detector, or its ensemble).

    Parameters
    ----------
    results
        The content of ``results.json``.
    row
        The row that is held against them.
    """
    found = results["sets"].get("benchmark")
    if found is None or row not in found["models"]:
        return []
    mine = found["models"][row]
    return [
        *_against_physics(found, row),
        *_budget(results, row),
        *_levels(mine),
        *_time(results, row),
        *_family(results, row),
    ]


def difference(found: Mapping[str, Any], a: str, b: str, score: str) -> dict[str, Any] | None:
    """Paired difference a − b in a score, from what a set of maps was scored with.

    Only pairs with the reference, and rows against the physical rule, have an interval; of any
    other pair the value alone is told.
    """
    reference = found["reference"]
    physics = found.get("differences_from_phase_space", {})
    if b == "phase_space" and a in physics:
        return dict(physics[a][score])
    if b == reference and a in found["differences"]:
        return dict(found["differences"][a][score])
    if a == reference and b in found["differences"]:
        told = found["differences"][b][score]
        if told["value"] is None:
            return dict(told)
        turned = {"value": -told["value"], "low": None, "high": None}
        if told["low"] is not None:
            turned |= {"low": -told["high"], "high": -told["low"]}
        return turned
    values = [found["models"][name][score]["value"] for name in (a, b) if name in found["models"]]
    if len(values) < 2 or None in values:
        return None
    return {"value": values[0] - values[1], "low": None, "high": None}


def _above_zero(told: Mapping[str, Any] | None) -> bool | None:
    return None if told is None or told.get("low") is None else bool(told["low"] > 0)


def _against_physics(found: Mapping[str, Any], row: str) -> list[Target]:
    rows = []
    for score, name in (("auc_pr", "AUC-PR"), ("csi", "CSI")):
        told = difference(found, row, "phase_space", score)
        if told is not None:
            asks = f"{name} minus that of phase space + hysteresis: interval above 0"
            rows.append(Target(asks, cell_text(told), _above_zero(told)))
    mine = found["models"][row]["auc_pr"]["value"]
    rule = found["models"].get("phase_space", {}).get("auc_pr", {}).get("value")
    if mine is not None and rule is not None and rule < 1:
        share = (mine - rule) / (1 - rule)
        asks = "share of the AUC-PR between that baseline and the clean oracle (1) closed: ≥ 0.5"
        rows.append(Target(asks, f"{share:.2f}", share >= 0.5))
    return rows


def _budget(results: Mapping[str, Any], row: str) -> list[Target]:
    found = results["sets"].get("budget")
    if found is None or row != "detector":
        return []
    mine, rule = found["models"]["budget"], found["models"].get("phase_space")
    beside = "" if rule is None else f"; physical rule {cell_text(rule['auc_pr'])}"
    asks = "8 years at 3 %, tested on 12 at 0.8 %: AUC-PR above 0.57 (rule there 0.50)"
    value = mine["auc_pr"]["value"]
    return [
        Target(asks, cell_text(mine["auc_pr"]) + beside, None if value is None else value > 0.57)
    ]


def _levels(mine: Mapping[str, Any]) -> list[Target]:
    def level(name: str, score: str, good: Callable[[float], bool], asks: str) -> Target:
        value = mine[score]["value"]
        met = None if value is None else good(value)
        return Target(f"{name} {asks}", cell_text(mine[score]), met)

    events = mine["events"]
    alarms = events["false_alarms_per_year"]
    return [
        level("CSI", "csi", lambda v: v >= 0.70, "≥ 0.70"),
        level("POD", "pod", lambda v: v >= 0.90, "≥ 0.90"),
        level("FAR", "far", lambda v: v <= 0.25, "≤ 0.25"),
        Target(
            "events: POD ≥ 0.95",
            f"{events['hits']} of {events['hits'] + events['misses']}",
            events["hits"] >= 0.95 * (events["hits"] + events["misses"]),
        ),
        Target(
            "false-alarm episodes a year ≤ 1",
            "undefined" if alarms is None else f"{alarms:.1f}",
            None if alarms is None else alarms <= 1,
        ),
        level("expected calibration error", "ece", lambda v: v <= 0.02, "≤ 0.02"),
        level("Brier skill", "brier_skill", lambda v: v >= 0.6, "≥ 0.6"),
    ]


def _time(results: Mapping[str, Any], row: str) -> list[Target]:
    if row != "detector":
        return []
    rows = []
    for key, asks in (
        ("time_helps", "AUC-PR minus that of the single map: interval above 0"),
        ("order_matters", "with the order shuffled AUC-PR is lost: interval below 0"),
    ):
        told = results["acceptance"][key]
        if told["found"] is not None:
            rows.append(Target(asks, cell_text(told["found"]["auc_pr"]), told["holds"]))
    return rows


def _family(results: Mapping[str, Any], row: str) -> list[Target]:
    sets = results["sets"]
    if "holland" not in sets or row not in sets["holland"]["models"]:
        return []
    known, unseen = (sets[name]["models"][row]["csi"]["value"] for name in ("benchmark", "holland"))
    if not known or unseen is None:
        return []
    ratio = unseen / known
    told = f"{ratio:.2f} ({unseen:.2f} of {known:.2f})"
    return [Target("CSI on the unseen vortex family ≥ 0.9 of the known", told, ratio >= 0.9)]
