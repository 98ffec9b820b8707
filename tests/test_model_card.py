"""The model card: what it says before and after an evaluation, and of synthetic data."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from medicane.config import Domain, Label
from medicane.report import SplitFacts, model_card
from tests.test_report import EVIL, scored, sea

FACTS: dict[str, Any] = {
    "software_version": "0.2.0",
    "length": 12,
    "step_hours": 6,
    "degrees": 0.5,
    "domain": Domain().model_dump(),
    "channels": ["msl_local", "u10"],
    "label": Label(version="medicane-era5-1", radius_km=150).model_dump(),
    "data_digest": "abc123",
    "idealised": False,
    "seed": 3,
    "temperature": 1.25,
    "threshold": 0.4,
}
SPLITS = {
    "train": SplitFacts(1000, "2001-01-01 00:00", "2001-09-08 00:00", 0.031),
    "validation": SplitFacts(200, "2001-09-20 00:00", "2001-11-09 00:00", None),
}


def card(**changes: Any) -> str:
    facts = {**FACTS, **changes.pop("facts", {})}
    given = {"model": "models:/medicane/3", "network": "compact, gru, 12345 weights"}
    return model_card(**{**given, "facts": facts, "splits": SPLITS, "run_id": "f00", **changes})


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    return scored(*sea(n=900))


def test_before_an_evaluation_it_promises_nothing() -> None:
    text = card()
    assert "Not yet evaluated." in text
    assert "CSI" not in text
    assert "* Detector: `models:/medicane/3`" in text
    assert "* MLflow run: `f00`" in text
    assert "* Network: compact, gru, 12345 weights" in text
    assert "* Sequence: 12 maps, 6 h apart" in text
    assert "28 to 48°N, -10 to 42°E, 0.5°" in text
    assert "`msl_local`, `u10`" in text
    assert "| train | 1000 | 2001-01-01 00:00 | 2001-09-08 00:00 | 3.10 % |" in text
    assert "| validation | 200 | 2001-09-20 00:00 | 2001-11-09 00:00 | – |" in text
    assert "MLflow run" not in card(run_id=None)


def test_the_whole_label_definition_is_in_it() -> None:
    text = card()
    assert "Label definition `medicane-era5-1`" in text
    for key, value in FACTS["label"].items():
        if key != "version":
            assert f"| `{key}` | {value} |" in text


def test_scores_come_with_intervals_threshold_and_false_alarms(scores: dict[str, Any]) -> None:
    text = card(scores=scores)
    assert "Not yet evaluated." not in text
    entry = scores["models"]["detector"]
    csi, events = entry["csi"], entry["events"]
    assert f"{csi['value']:.2f} [{csi['low']:.2f}, {csi['high']:.2f}]" in text
    assert f"base rate of {100 * scores['base_rate']:.2f} %" in text
    assert "Threshold: 0.4, temperature 1.25" in text
    assert f"costs {events['false_alarms_per_year']:.1f} false alarms a year" in text
    assert f"finds {events['hits']} of {events['hits'] + events['misses']} storms" in text
    assert "| phase_space |" in text
    assert "| climatology |" in text
    assert "Beware: 5 storm(s)" in text


def test_hard_negatives_are_told_by_kind(scores: dict[str, Any]) -> None:
    changed = copy.deepcopy(scores)
    changed["models"]["detector"]["hard_negatives"] = {
        "n_maps": 40,
        "false_alarm_rate": 0.1,
        "kinds": {
            "seclusion": {"n_maps": 30, "false_alarm_rate": 0.125},
            "heat_low": {"n_maps": 0, "false_alarm_rate": None},
        },
    }
    text = card(scores=changed)
    assert "Of 40 maps of storms that are no medicane it calls 10.00 % one" in text
    assert "seclusion: 12.50 % of 30; heat_low: – of 0." in text


def test_undefined_scores_are_dashes(scores: dict[str, Any]) -> None:
    changed = copy.deepcopy(scores)
    entry = changed["models"]["detector"]
    entry["ece"]["value"] = entry["events"]["onset_delay_hours"] = None
    entry["events"]["pod"] = {"value": None, "low": None, "high": None}
    text = card(scores=changed)
    assert "calibration error: –." in text
    assert "(– to – of all)" in text


@pytest.mark.parametrize("idealised", [True, False])
def test_synthetic_only_is_said_first_and_last(idealised: bool) -> None:
    text = card(facts={"idealised": idealised})
    assert ("**Synthetic only.**" in text) is idealised
    assert ("never the atmosphere" in text) is idealised
    uses = text[text.index("## What it must not be used for") :]
    assert "Warnings" in uses
    assert uses.count("\n* ") == (5 if idealised else 4)
    if idealised:
        assert text.index("Synthetic only") < text.index("* Detector")


def test_texts_of_the_users_own_break_no_table() -> None:
    label = Label(source="a|b").model_dump()
    assert "| `source` | a\\|b |" in card(facts={"label": label})
    assert EVIL in card(network=EVIL)  # Markdown, not HTML: shown by what renders it
    old = {key: value for key, value in FACTS.items() if key not in ("domain", "label")}
    text = model_card(model="m.keras", facts=old, network="gru", splits={})
    assert "Label definition `unknown`" in text
    assert "* Area and spacing: 0.5°" in text
