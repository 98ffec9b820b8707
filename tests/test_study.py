"""The study of `make skill`: its file, its parts, what it resumes, and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from medicane.config import Config
from medicane.errors import InputError
from medicane.evaluate import Forecast, ScoredForecasts, read_forecasts, read_scores
from medicane.pipeline.study import BENCHMARK, HELD_BACK, label_maps, place_study, scored_maps
from medicane.pipeline.study_results import score_set
from medicane.pipeline.targets import difference, targets
from medicane.report.skill_page import write_skill_page

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config"


def changed_study(folder: Path, **keys: Any) -> Path:
    """The small study with other keys, in a file of its own beside its recipe."""
    values = yaml.safe_load((CONFIG / "skill_small.yaml").read_text(encoding="utf-8"))
    values.update(keys)
    (folder / "benchmark.yaml").write_bytes((CONFIG / "benchmark.yaml").read_bytes())
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skill.yaml", "skill_small.yaml"])
def test_every_row_of_the_studies_is_a_configuration(name: str, tmp_path: Path) -> None:
    placed = place_study(CONFIG / name, tmp_path)
    for row in placed.study.rows:
        config = placed.config(row)
        assert Path(config.data.store).parent == tmp_path / "stores"
        assert (config.tracking.uri or "").startswith("sqlite:///")
    assert placed.config("single_map").model.rnn == "none"
    assert placed.config("single_map").train == placed.config("detector").train


def test_the_benchmark_is_what_was_promised(tmp_path: Path) -> None:
    """Whole years, contiguous, apart by more than a sequence, at the true base rate."""
    config = place_study(CONFIG / "skill.yaml", tmp_path).config()
    years = {
        name: sum((end - start).days / 365.25 for start, end in getattr(config.splits, name))
        for name in ("train", "validation", "test")
    }
    assert years["train"] >= 20 - 0.1
    assert years["validation"] >= 4 - 0.1
    assert years["test"] >= 10 - 0.1
    assert config.sea.base_rate == 0.008
    assert config.data.step_hours == 6
    gaps = [
        (config.splits.validation[0][0] - config.splits.train[-1][1]),
        (config.splits.test[0][0] - config.splits.validation[-1][1]),
    ]
    assert all(gap.total_seconds() / 3600 > config.gap_hours for gap in gaps)


def test_the_years_held_back_are_no_part_of_the_recipe(tmp_path: Path) -> None:
    placed = place_study(CONFIG / "skill.yaml", tmp_path)
    recipe, kept = placed.config(), placed.config(sea=HELD_BACK)
    months = [
        str(tmp_path / f"seas/benchmark/grids/era5_{year}-{month:02d}.nc")
        for year in range(recipe.sea.start_year, recipe.sea.start_year + int(recipe.sea.years))
        for month in range(1, 13)
    ]

    def named(config: Config) -> set[str]:
        return {m for m in months if any(fnmatch(m, str(grid)) for grid in config.data.grids)}

    assert not named(recipe) & named(kept)
    assert named(recipe) | named(kept) == set(months)
    assert min(named(kept)) > max(named(recipe))
    assert len(named(kept)) == 20 * 12
    assert kept.data.catalogue == recipe.data.catalogue
    assert kept.data.store != recipe.data.store
    assert placed.sea(HELD_BACK) == placed.sea(BENCHMARK)
    assert HELD_BACK in placed.further()
    assert HELD_BACK not in place_study(changed_study(tmp_path, held_back=[]), tmp_path).seas()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rows": {}}, "the first row must be detector; found None"),
        ({"rows": {"tcn": {"table": "rivals", "title": "x"}}}, "found 'tcn'"),
        (
            {
                "rows": {
                    "detector": {"table": "rivals", "title": "x"},
                    "late": {"table": "rivals", "title": "x", "model_of": "nobody"},
                }
            },
            "rows.late.model_of must be a row; found 'nobody'",
        ),
        (
            {"rows": {"detector": {"table": "best", "title": "x"}}},
            "rows.detector.table",
        ),
        (
            {
                "rows": {
                    "detector": {"table": "rivals", "title": "x", "change": {"model": {"a": 1}}}
                }
            },
            "row detector: model.a: unknown key",
        ),
        ({"seas": {"benchmark": {"years": 1}}}, "name of its own; found ['benchmark']"),
        ({"wind": 3}, "wind: unknown key"),
        (
            {"change": {"train": {"workers": 2}}},
            "row detector: train.workers: must be 1: only 'medicane train' is shared among workers"
            "; found 2",
        ),
    ],
)
def test_a_wrong_study_gets_one_clear_line(keys: Any, told: str, tmp_path: Path) -> None:
    file = changed_study(tmp_path, **keys)
    with pytest.raises(InputError) as refused:
        place_study(file, tmp_path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# --- what the maps of a set are -------------------------------------------------------------------


def test_the_budget_is_tested_on_the_first_years_of_the_test_split(tmp_path: Path) -> None:
    placed = place_study(CONFIG / "skill.yaml", tmp_path)
    times = xr.date_range("1931-01-01", "2000-12-31T18", freq="24h", use_cftime=False)
    n = len(times)
    store = xr.Dataset(
        {
            "medicane": ("time", np.zeros(n, np.int8)),
            "storm": ("time", np.full(n, "", dtype=object)),
        },
        coords={"time": times},
    )
    whole = scored_maps(placed, store, name="detector", sea=BENCHMARK)
    part = scored_maps(placed, store, name="budget", sea=BENCHMARK)
    assert times[whole][0] == times[part][0]
    assert whole.sum() == pytest.approx(20 * 365.25, abs=2)
    assert part.sum() == pytest.approx(12 * 365.25, abs=2)
    assert scored_maps(placed, store, name="detector", sea="holland").all()


# --- scores, targets and the page -----------------------------------------------------------------


def a_set(seed: int = 0, names: tuple[str, ...] = ("detector", "phase_space")) -> ScoredForecasts:
    """Two years of maps with storms of two days; the first forecast is the best."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2001-01-01", "ns") + np.arange(2920) * np.timedelta64(6, "h")
    medicane, storm = np.zeros(times.size, np.int8), np.full(times.size, "", dtype="U9")
    kind = np.full(times.size, "", dtype="U10")
    for k, start in enumerate(range(40, 2900, 190)):
        kept = slice(start, start + 8)
        storm[kept] = f"s{k}"
        kind[kept] = "medicane" if k % 2 else "seclusion"
        medicane[kept] = k % 2
    forecasts = {}
    for quality, name in zip((2.0, 1.0, 0.7), names, strict=False):
        logit = quality * (2 * medicane - 1.0) + rng.normal(size=times.size) - 0.5
        forecasts[name] = Forecast(1 / (1 + np.exp(-logit)), threshold=0.5)
    return ScoredForecasts(
        times=times,
        medicane=medicane,
        storm=storm,
        forecasts=forecasts,
        train_rate=0.02,
        kind=kind,
    )


def some_results(names: tuple[str, ...] = ("detector", "phase_space", "single_map")) -> Any:
    scored = a_set(names=names)
    row = {"table": "rivals", "model_of": None, "n_parameters": 1234, "core_minutes": 5.0}
    row["val_auc_pr"] = 0.432
    acceptance = {
        "time_helps": {"asks": "time helps", "found": None, "holds": None},
        "order_matters": {
            "asks": "order matters",
            "found": {"auc_pr": {"value": -0.2, "low": -0.3, "high": -0.1}},
            "holds": True,
        },
    }
    results = {
        "schema_version": 1,
        "software_version": "0",
        "machine": "a machine",
        "recipe": place_study(CONFIG / "skill.yaml", Path("x")).config().model_dump(mode="json"),
        "rows": {name: {**row, "title": f"the {name}"} for name in names if name != "phase_space"},
        "sets": {"benchmark": score_set(scored)},
        "acceptance": acceptance,
    }
    return results, scored


def test_targets_say_met_or_missed_from_the_scores() -> None:
    results, _ = some_results()
    found = {t.asks: t for t in targets(results, row="detector")}
    entry = results["sets"]["benchmark"]["models"]["detector"]
    assert found["CSI ≥ 0.70"].met == (entry["csi"]["value"] >= 0.7)
    assert found["FAR ≤ 0.25"].met == (entry["far"]["value"] <= 0.25)
    gap = found["AUC-PR minus that of phase space + hysteresis: interval above 0"]
    assert gap.met is True
    # A detector that is the worse of the two meets none of the comparisons.
    turned = results["sets"]["benchmark"]["models"]
    turned["detector"], turned["phase_space"] = turned["phase_space"], turned["detector"]
    told = results["sets"]["benchmark"]["differences_from_phase_space"]["detector"]
    for score in told.values():
        if score["low"] is not None:
            score["value"] = -score["value"]
            score["low"], score["high"] = -score["high"], -score["low"]
    found = {t.asks: t for t in targets(results, row="detector")}
    assert found["AUC-PR minus that of phase space + hysteresis: interval above 0"].met is False
    share = "share of the AUC-PR between that baseline and the clean oracle (1) closed: ≥ 0.5"
    assert found[share].met is False


def test_a_difference_is_turned_round_with_its_interval() -> None:
    results, _ = some_results()
    found = results["sets"]["benchmark"]
    forwards = difference(found, "phase_space", "detector", "csi")
    backwards = difference(found, "detector", "phase_space", "csi")
    assert forwards is not None
    assert backwards is not None
    assert backwards["value"] == pytest.approx(-forwards["value"])
    assert backwards["low"] == pytest.approx(-forwards["high"])
    assert backwards["high"] == pytest.approx(-forwards["low"])
    between = difference(found, "single_map", "phase_space", "csi")
    assert between is not None
    assert between["low"] is None


def test_the_page_tells_every_row_and_draws_its_figures(tmp_path: Path) -> None:
    results, scored = some_results()
    page = write_skill_page(
        tmp_path / "skill.md",
        results,
        forecasts={"benchmark": scored},
        targets={"The default": targets(results, row="detector")},
        command="make skill",
    )
    text = page.read_text(encoding="utf-8")
    for words in ("idealised sea", "make skill", "phase space + hysteresis", "the single_map"):
        assert words in text
    assert "| seclusion | 8 | 64 |" in text
    assert "| 0.43 | 1,234 | 2.5 |" in text
    assert "not measured" in text
    csi = results["sets"]["benchmark"]["models"]["detector"]["csi"]["value"]
    assert f"CSI {csi:.2f}" in text
    for picture in ("scores", "reliability", "precision_recall"):
        file = tmp_path / "skill" / f"{picture}.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        assert f"skill/{picture}.png" in text


def test_the_page_quotes_the_years_held_back_in_its_first_lines(tmp_path: Path) -> None:
    results, scored = some_results()
    kept = a_set(seed=1)
    results["sets"]["held_back"] = score_set(kept)
    page = write_skill_page(
        tmp_path / "skill.md",
        results,
        forecasts={"benchmark": scored, "held_back": kept},
        targets={},
        command="make skill",
    )
    text = page.read_text(encoding="utf-8")
    csi = results["sets"]["held_back"]["models"]["detector"]["csi"]["value"]
    quoted = next(line for line in text.splitlines() if line.startswith("**The default"))
    assert f"further years that no choice was made on: CSI {csi:.2f}" in quoted
    assert "### Held back" in text


# --- shuffled windows -----------------------------------------------------------------------------


def test_without_a_memory_the_order_of_the_maps_does_not_matter(
    small_project: Any, tmp_path: Path
) -> None:
    """Shuffled or not, a model that sees one map at a time answers alike; a GRU does not."""
    from medicane.model import build_detector, load_detector
    from medicane.normalise import training_statistics
    from medicane.store import open_store
    from medicane.train import training_facts

    config = small_project.config
    store = open_store(config.data.store)
    maps = store["maps"].isel(time=slice(0, 40))
    single = config.model_copy(update={"model": config.model.model_copy(update={"rnn": "none"})})
    statistics = training_statistics(store["maps"], np.arange(store.sizes["time"]) < 100)
    alone = build_detector(single, statistics, facts=training_facts(single, store))
    plain = label_maps(alone, maps, mode="causal")["logit"].values
    mixed = label_maps(alone, maps, mode="causal", shuffled=True)["logit"].values
    seen = np.isfinite(mixed)
    assert seen.sum() == 40 - config.sequences.length + 1
    np.testing.assert_allclose(mixed[seen], plain[seen], atol=1e-5)
    gru = load_detector(small_project.model_path)
    plain = label_maps(gru, maps, mode="causal")["logit"].values
    mixed = label_maps(gru, maps, mode="causal", shuffled=True)["logit"].values
    assert np.abs(mixed[seen] - plain[seen]).max() > 1e-5


# --- the whole small study ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_small_study_runs_resumes_and_tells(tmp_path: Path) -> None:
    """`make skill SMALL=1`, cut after its first row; then again, which trains nothing twice."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "medicane", "skill"),
                *("--study", str(CONFIG / "skill_small.yaml"), "--out", str(tmp_path / "skill")),
                *words,
            ],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    first = run("--row", "detector")
    assert "· train detector" in first
    assert "· train single_map" not in first
    second = run()
    assert "· train detector" not in second
    assert "· sea" not in second
    assert "· train single_map" in second
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "skill" / "rows").rglob("*")}
    third = run()
    assert "· train" not in third
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "skill" / "rows").rglob("*")} == kept

    results = read_scores(tmp_path / "skill" / "results" / "results.json")
    rows = list(place_study(CONFIG / "skill_small.yaml", tmp_path).study.rows)
    found = results["sets"]["benchmark"]["models"]
    assert set(found) == {
        *rows,
        "phase_space",
        "phase_space_fitted",
        "climatology",
        "out_of_domain",
    }
    assert set(results["sets"]) == {"benchmark", "held_back", "holland", "budget"}
    assert results["acceptance"]["clean_oracle"]["found"]["csi"] == pytest.approx(1)
    again = score_set(read_forecasts(tmp_path / "skill" / "results" / "forecasts_benchmark.nc"))
    assert again["models"]["detector"]["csi"] == found["detector"]["csi"]
    page = (tmp_path / "skill" / "skill.md").read_text(encoding="utf-8")
    for row in results["rows"].values():
        assert row["title"] in page
    beside = json.loads((tmp_path / "skill" / "skill" / "results.json").read_text())
    assert beside["sets"].keys() == results["sets"].keys()
