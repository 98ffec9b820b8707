"""The score table: every forecast on the same maps, and its file."""

from __future__ import annotations

import json
import os
import stat
import time

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.categorical import BinaryContingencyManager
from scores.probability import brier_score
from sklearn.metrics import average_precision_score

from medicane import evaluate
from medicane.config import Label
from medicane.errors import InputError
from medicane.evaluate import (
    Forecast,
    ScoredForecasts,
    read_forecasts,
    read_scores,
    verify,
    write_forecasts,
    write_scores,
)
from medicane.evaluate.skill import TABLE_SCORES


def sea(n=2922, n_storms=14, seed=0):
    """Two years of six-hourly maps: labels with transition hours, storms, two bystanders."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2003-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    labels, storm = np.zeros(n, int), np.full(n, "", dtype="<U12")
    for k, first in enumerate(np.linspace(20, n - 60, n_storms).astype(int)):
        labels[first - 2 : first + 11] = -1
        labels[first : first + 9] = 1
        storm[first - 4 : first + 13] = f"storm-{k:02d}"
    storm[n // 3 : n // 3 + 8] = "bystander"
    probability = 1 / (1 + np.exp(-(rng.normal(-4, 1.2, n) + 4.5 * (labels == 1))))
    return times, labels, storm, probability


def two_forecasts(labels, probability, seed=1):
    rng = np.random.default_rng(seed)
    said = np.where(labels == 1, rng.random(labels.size) < 0.6, rng.random(labels.size) < 0.02)
    return {
        "densenet-gru": Forecast(probability, threshold=0.4),
        "phase_space": Forecast(np.where(said, 0.3, 0.005), detection=said, note="a rule"),
        "climatology": Forecast(np.full(labels.size, 0.03), detection=np.zeros(labels.size, bool)),
    }


@pytest.fixture(scope="module")
def verified():
    times, labels, storm, probability = sea()
    return verify(
        times,
        labels,
        storm,
        forecasts=two_forecasts(labels, probability),
        train_medicane=np.array([1] * 3 + [0] * 97 + [-1] * 5),
        n_resamples=300,
    )


def test_the_contract(verified):
    assert list(verified)[:2] == ["schema_version", "split"]
    assert verified["schema_version"] == 1
    assert verified["split"] == "test"
    _, labels, _, _ = sea()
    known = labels >= 0
    assert verified["n_maps"] == known.sum()
    assert verified["n_storms"] == 14
    assert verified["base_rate"] == pytest.approx((labels[known] == 1).mean())
    assert verified["threshold"] == 0.4
    assert list(verified["models"]) == ["densenet-gru", "phase_space", "climatology"]
    for model in verified["models"].values():
        for name in ("pod", "far", "csi", "ets", "hss", "auc_pr", "brier", "brier_skill"):
            entry = model[name]
            assert {"value", "low", "high"} <= set(entry)
            if entry["value"] is None or entry["low"] is None:
                assert entry["note"]
            else:
                assert entry["low"] <= entry["value"] <= entry["high"]
        events = model["events"]
        assert events["hits"] + events["misses"] == 14
        assert {"false_alarms_per_year", "onset_delay_hours"} <= set(events)


def test_the_values_are_those_of_the_known_maps(verified):
    _, labels, _, probability = sea()
    known = labels >= 0
    y, p = labels[known] == 1, probability[known]
    found = verified["models"]["densenet-gru"]
    hits, false = (y & (p >= 0.4)).sum(), (~y & (p >= 0.4)).sum()
    assert found["counts"] == {
        "hits": hits,
        "misses": y.sum() - hits,
        "false_alarms": false,
        "correct_negatives": (~y).sum() - false,
    }
    assert found["csi"]["value"] == pytest.approx(hits / (y.sum() + false))
    assert found["auc_pr"]["value"] == pytest.approx(average_precision_score(y, p))
    reference = np.mean((0.03 - y) ** 2)
    assert found["brier_skill"]["value"] == pytest.approx(1 - np.mean((p - y) ** 2) / reference)
    assert verified["train_base_rate"] == pytest.approx(0.03)
    assert verified["left_out"] == {"unknown_label": int((labels < 0).sum()), "no_forecast": 0}


def test_climatology_never_detects_and_says_so(verified):
    found = verified["models"]["climatology"]
    assert found["pod"]["value"] == 0
    assert found["far"] == {
        "value": None,
        "low": None,
        "high": None,
        "note": "undefined: no detections",
    }
    assert found["events"]["misses"] == 14
    assert found["events"]["onset_delay_hours"] is None
    assert found["brier_skill"]["value"] == pytest.approx(0, abs=1e-12)


def test_differences_are_paired_with_the_rule(verified):
    found = verified["models"]["densenet-gru"]["difference_from"]["phase_space"]
    models = verified["models"]
    assert found["csi"]["value"] == pytest.approx(
        models["densenet-gru"]["csi"]["value"] - models["phase_space"]["csi"]["value"]
    )
    assert found["csi"]["low"] < found["csi"]["value"] < found["csi"]["high"]
    assert set(models["densenet-gru"]["difference_from"]) == {"phase_space", "climatology"}
    assert "difference_from" not in models["phase_space"]


def test_hard_negatives_are_shown_apart(verified):
    _, labels, storm, probability = sea()
    hard = (labels == 0) & (storm != "")
    found = verified["models"]["densenet-gru"]["hard_negatives"]
    assert found["n_maps"] == hard.sum() > 8
    assert found["false_alarm_rate"] == pytest.approx((probability[hard] >= 0.4).mean())


def kinds(labels, storm):
    """Every second storm a seclusion before its medicane phase; the bystander a heat low."""
    kind = np.full(labels.shape, "", dtype="<U12")
    kind[np.isin(storm, [f"storm-{k:02d}" for k in range(0, 14, 2)])] = "seclusion"
    kind[storm == "bystander"] = "heat_low"
    return kind


def test_hard_negatives_are_told_by_kind():
    times, labels, storm, probability = sea()
    kind = kinds(labels, storm)
    probability = probability.copy()
    heat = np.flatnonzero(kind == "heat_low")
    probability[heat] = 0.01
    probability[heat[:3]] = 0.9
    found = verify(
        times,
        labels,
        storm,
        kind=kind,
        forecasts=two_forecasts(labels, probability),
        train_medicane=labels,
        n_resamples=20,
    )
    for name, entry in found["models"].items():
        told = entry["hard_negatives"]["kinds"]
        assert list(told) == ["heat_low", "seclusion"], name
        assert told["heat_low"]["n_maps"] == 8
        assert told["heat_low"]["n_storms"] == 1
        assert told["seclusion"]["n_storms"] == 7
        assert told["seclusion"]["n_maps"] == (labels[kind == "seclusion"] == 0).sum()
    heat_low = found["models"]["densenet-gru"]["hard_negatives"]["kinds"]["heat_low"]
    assert heat_low["false_alarm_rate"] == pytest.approx(3 / 8)
    assert heat_low["storms_with_false_alarm"] == 1
    seclusion = found["models"]["densenet-gru"]["hard_negatives"]["kinds"]["seclusion"]
    hard = (kind == "seclusion") & (labels == 0)
    assert seclusion["false_alarm_rate"] == pytest.approx((probability[hard] >= 0.4).mean())
    called = set(storm[hard & (probability >= 0.4)])
    assert seclusion["storms_with_false_alarm"] == len(called)
    # Nobody said a kind, nobody is told of one; nor of storms where none are named.
    plain = verify(
        times,
        labels,
        None,
        kind=np.where(kind == "heat_low", kind, ""),
        forecasts={"m": Forecast(probability, threshold=0.4)},
        train_medicane=labels,
        n_resamples=20,
    )["models"]["m"]["hard_negatives"]
    assert plain["n_maps"] == 0
    assert plain["kinds"]["heat_low"]["n_storms"] is None
    assert plain["kinds"]["heat_low"]["n_maps"] == 8


def test_the_shape_of_kinds_is_checked():
    times, labels, storm, probability = sea(n=400, n_storms=3)
    forecasts = {"m": Forecast(probability, threshold=0.4)}
    for wrong in ({"kind": ["lee"]}, {"storm": ["a", "b"]}):
        given = {"storm": storm, "kind": storm, **wrong}
        law = rf"{next(iter(wrong))}: must have the shape of the maps, \(400,\); found"
        with pytest.raises(InputError, match=law):
            verify(times, labels, **given, forecasts=forecasts, train_medicane=labels)


def test_the_forecast_file_gives_the_same_scores(tmp_path):
    times, labels, storm, probability = sea(n=700, n_storms=5)
    forecasts = two_forecasts(labels, probability)
    rank = np.random.default_rng(3).normal(size=700)
    forecasts["phase_space"] = Forecast(
        forecasts["phase_space"].probability,
        detection=forecasts["phase_space"].detection,
        score=rank,
        note="a rule",
        centre_latitude=np.where(storm != "", 36.0, np.nan),
        centre_longitude=np.full(700, 18.0),
    )
    scored = ScoredForecasts(
        times=times,
        medicane=labels,
        storm=storm,
        kind=kinds(labels, storm),
        forecasts=forecasts,
        split="validation",
        train_rate=0.03,
        attributes={"label_version": "idealised-1"},
    )
    path = write_forecasts(tmp_path / "new" / "forecast.nc", scored, more={"logit": rank})
    assert os.listdir(path.parent) == ["forecast.nc"]
    back = read_forecasts(path)
    assert (back.split, back.train_rate) == ("validation", 0.03)
    assert back.attributes["label_version"] == "idealised-1"
    assert list(back.forecasts) == list(forecasts)

    def scores(of):
        return verify(
            of.times, of.medicane, of.storm, kind=of.kind, forecasts=of.forecasts,
            train_medicane=[1] * 3 + [0] * 97, split=of.split, n_resamples=30,
        )  # fmt: skip

    assert scores(back) == scores(scored)
    with xr.open_dataset(path) as file:
        assert file["densenet-gru"].attrs["threshold"] == 0.4
        np.testing.assert_array_equal(file["logit"], rank)


def test_other_files_are_no_forecasts(tmp_path):
    law = "must be forecasts that 'medicane evaluate' wrote"
    with pytest.raises(InputError, match=law):
        read_forecasts(tmp_path / "absent.nc")
    xr.Dataset({"probability": ("time", [0.5])}).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(InputError, match=law):
        read_forecasts(tmp_path / "other.nc")
    (tmp_path / "text.nc").write_text("no NetCDF at all, but longer than a signature")
    with pytest.raises(InputError, match=law):
        read_forecasts(tmp_path / "text.nc")


def test_all_forecasts_are_scored_on_the_same_maps():
    times, labels, storm, probability = sea()
    forecasts = two_forecasts(labels, probability)
    gap = probability.copy()
    gap[:40] = np.nan  # the first storm's maps among them
    forecasts["densenet-gru"] = Forecast(gap, threshold=0.4)
    found = verify(times, labels, storm, forecasts=forecasts, train_medicane=labels, n_resamples=50)
    assert found["left_out"]["no_forecast"] == (labels[:40] >= 0).sum()
    assert found["n_maps"] == (labels[40:] >= 0).sum()
    assert found["n_storms"] == 13
    for model in found["models"].values():
        assert sum(model["counts"].values()) == found["n_maps"]
        assert model["events"]["unscored"] == 1
    rest = verify(
        times[40:],
        labels[40:],
        storm[40:],
        forecasts={name: f.at(np.arange(40, labels.size)) for name, f in forecasts.items()},
        train_medicane=labels,
        n_resamples=50,
    )
    for name in forecasts:
        assert found["models"][name]["csi"]["value"] == rest["models"][name]["csi"]["value"]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_verify_agrees_with_scores_on_any_sample(data):
    """Gaps in the forecast, unknown labels, ties, one class alone: what remains is as in scores."""
    n = data.draw(st.integers(2, 40))
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 0, 1, -1]), min_size=n, max_size=n)))
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan])
    p = np.array(data.draw(st.lists(level, min_size=n, max_size=n)))
    times = np.datetime64("2003-01-01", "ns") + np.arange(n) * np.timedelta64(6, "h")
    found = verify(
        times,
        labels,
        None,
        forecasts={"m": Forecast(p, threshold=0.5)},
        train_medicane=[0, 0, 0, 1],
        n_resamples=5,
    )
    mine = found["models"]["m"]
    fcst = xr.DataArray(p, dims="time")
    obs = xr.DataArray(np.where(labels < 0, np.nan, labels), dims="time")
    kept = np.isfinite(p) & (labels >= 0)
    assert found["n_maps"] == kept.sum()
    with np.errstate(all="ignore"):
        table = BinaryContingencyManager((fcst >= 0.5).where(fcst.notnull()), obs)
        for name, method in TABLE_SCORES.items():
            expected = float(method(table)) if kept.any() else np.nan
            if np.isfinite(expected):
                assert mine[name]["value"] == pytest.approx(expected), name
            else:
                assert mine[name]["value"] is None, name
                assert mine[name]["note"].startswith(("undefined", "no forecast"))
        brier = float(brier_score(fcst, obs)) if kept.any() else np.nan
        constant = float(brier_score(fcst * 0 + 0.25, obs)) if kept.any() else np.nan
    if kept.any():
        assert mine["brier"]["value"] == pytest.approx(brier)
        assert mine["brier_skill"]["value"] == pytest.approx(1 - brier / constant)
    else:
        assert mine["brier"]["value"] is None
    if (labels[kept] == 1).any():
        expected = average_precision_score(labels[kept], p[kept])
        assert mine["auc_pr"]["value"] == pytest.approx(expected)
    else:
        assert mine["auc_pr"]["value"] is None


def test_a_forecast_of_nothing_spoils_no_other():
    times, labels, storm, probability = sea()
    forecasts = two_forecasts(labels, probability)
    forecasts["climatology"] = Forecast(np.full(labels.size, np.nan), threshold=0.5)
    found = verify(times, labels, storm, forecasts=forecasts, train_medicane=[], n_resamples=20)
    assert found["n_maps"] == (labels >= 0).sum()
    assert found["models"]["densenet-gru"]["csi"]["value"] > 0.3
    empty = found["models"]["climatology"]
    assert all(empty[name]["value"] is None for name in ("csi", "brier", "auc_pr"))
    assert "no forecast at all" in empty["note"]
    assert empty["events"]["unscored"] == 14
    # Without a training split there is no reference either.
    assert found["models"]["densenet-gru"]["brier_skill"]["value"] is None


@pytest.mark.parametrize("value", [0, 1, -1])
def test_one_label_only(value, tmp_path):
    times, labels, storm, probability = sea(n=400, n_storms=3)
    labels = np.full(labels.size, value)
    found = verify(
        times,
        labels,
        storm,
        forecasts=two_forecasts(labels, probability),
        train_medicane=labels,
        n_resamples=20,
    )
    write_scores(tmp_path / "scores.json", found)
    assert read_scores(tmp_path / "scores.json") == found
    if value == 0:
        assert found["models"]["densenet-gru"]["pod"]["note"] == "undefined: no medicane maps"


def test_one_storm_has_no_interval():
    times, labels, storm, probability = sea(n=400, n_storms=1)
    found = verify(
        times,
        labels,
        storm,
        forecasts=two_forecasts(labels, probability),
        train_medicane=labels,
        n_resamples=20,
    )
    entry = found["models"]["densenet-gru"]["csi"]
    assert entry["value"] > 0
    assert entry["low"] is None
    assert "1 storm(s)" in entry["note"]
    assert "too narrow" in found["notes"][0]


def test_centre_error_where_both_are_known():
    times, labels, storm, probability = sea(n=400, n_storms=3)
    lat, lon = np.full(400, 36.0), np.full(400, 19.0)
    probability = np.where(labels == 1, 0.9, 0.1)
    found = verify(
        times,
        labels,
        storm,
        forecasts={
            "m": Forecast(probability, threshold=0.5, centre_latitude=lat + 1, centre_longitude=lon)
        },
        train_medicane=labels,
        observed_centre=(np.where(labels == 1, lat, np.nan), lon),
        n_resamples=20,
    )
    assert found["models"]["m"]["events"]["centre_error_km"] == pytest.approx(111.2, abs=0.3)


def test_the_same_seed_gives_the_same_file(verified, tmp_path):
    times, labels, storm, probability = sea()
    again = verify(
        times,
        labels,
        storm,
        forecasts=two_forecasts(labels, probability),
        train_medicane=np.array([1] * 3 + [0] * 97 + [-1] * 5),
        n_resamples=300,
    )
    assert json.dumps(again) == json.dumps(verified)


def test_storm_ids_of_any_string_type(verified):
    times, labels, storm, probability = sea()
    for kind in (object, np.dtypes.StringDType()):  # a Zarr store decodes to the latter
        found = verify(
            times,
            labels,
            storm.astype(kind),
            forecasts=two_forecasts(labels, probability),
            train_medicane=np.array([1] * 3 + [0] * 97 + [-1] * 5),
            n_resamples=300,
        )
        assert found == verified


def test_verification_is_quick():
    times, labels, storm, probability = sea(n=5000, n_storms=30)
    start = time.perf_counter()
    verify(
        times,
        labels,
        storm,
        forecasts=two_forecasts(labels, probability),
        train_medicane=labels,
    )
    assert time.perf_counter() - start < 6  # three forecasts, a thousand resamples each


def test_bad_input_is_named():
    times, labels, storm, probability = sea(n=400, n_storms=3)
    with pytest.raises(InputError, match=r"short: .* found \(399,\)"):
        verify(
            times,
            labels,
            storm,
            forecasts={"short": Forecast(probability[1:], threshold=0.5)},
            train_medicane=labels,
        )
    with pytest.raises(InputError, match="labels must be 1, 0 or -1; found 2"):
        verify(
            times,
            labels + 1,
            storm,
            forecasts={"m": Forecast(probability, threshold=0.5)},
            train_medicane=labels,
        )
    with pytest.raises(InputError, match="at least one forecast"):
        verify(times, labels, storm, forecasts={}, train_medicane=labels)


def test_baselines_from_a_store():
    times, labels, storm, _ = sea()
    warm = np.where(np.isin(np.arange(labels.size), np.flatnonzero(labels == 1)[::2]), -50.0, 0.0)
    vtl = np.where(labels == 1, 90.0, -60.0) + warm
    columns = {
        "vtl": vtl,
        "vtu": vtl,
        "b": vtl * 0 + 5,
        "low_msl": vtl * 0 + 995,
        "low_latitude": vtl * 0 + 36,
        "low_longitude": vtl * 0 + 19,
        "medicane": labels,
        "storm": storm,
    }
    store = xr.Dataset({k: ("time", v) for k, v in columns.items()}, {"time": times})
    index = np.arange(times.size)
    split = {
        "train": index < 1500,
        "validation": (index >= 1520) & (index < 2200),
        "test": index >= 2220,
    }
    found = evaluate.baseline_forecasts(store, **split, definition=Label(min_hours=6))
    assert set(found) == {"phase_space", "phase_space_fitted", "climatology"}
    fitted = found["phase_space_fitted"]
    rule = found["phase_space"]
    n_test = split["test"].sum()
    assert np.shape(rule.probability) == np.shape(rule.score) == (n_test,)
    assert np.shape(rule.centre_latitude) == (n_test,)
    # The rule's probabilities are the frequencies of the validation split.
    validation = split["validation"] & (labels >= 0)
    assert len(np.unique(rule.probability)) == 2
    assert np.max(rule.probability) > 0.9
    assert f"{np.max(rule.probability):.3g}" in rule.note
    assert np.mean(labels[validation] == 1) > np.min(rule.probability)
    # The fitted rule ranks as the rule does, and has a threshold of its own.
    order = np.argsort(rule.score, kind="stable")
    assert (np.diff(fitted.probability[order]) >= 0).all()
    assert 0 < fitted.threshold < 1
    scores = verify(
        times[split["test"]],
        labels[split["test"]],
        storm[split["test"]],
        forecasts=found,
        train_medicane=labels[split["train"]],
        n_resamples=50,
    )
    assert scores["models"]["phase_space"]["pod"]["value"] == 1
    assert scores["models"]["climatology"]["pod"]["value"] == 0
    bare = evaluate.baseline_forecasts(store.drop_vars("vtl"), **split, definition=Label())
    assert set(bare) == {"climatology"}


def test_the_file_holds_no_nan_and_comes_whole(tmp_path):
    path = tmp_path / "results" / "scores.json"
    write_scores(path, {"schema_version": 1, "a": float("nan"), "b": [np.float32(2), np.inf]})
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {"schema_version": 1, "a": None, "b": [2.0, None]}
    before = path.read_text()
    with pytest.raises(TypeError):
        write_scores(path, {"schema_version": 1, "a": object()})
    assert path.read_text() == before
    assert os.listdir(path.parent) == ["scores.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("text", "law"),
    [
        (None, "readable JSON"),
        ("{", "readable JSON"),
        ("[]", "schema_version must be 1; found None"),
        ('{"schema_version": 2}', "schema_version must be 1; found 2"),
    ],
)
def test_other_files_are_refused(tmp_path, text, law):
    path = tmp_path / "scores.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=law):
        read_scores(path)
