"""The steps one after another, through the command; and detection that grows as maps arrive."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import pipeline
from medicane.cli import app, run
from medicane.errors import InputError
from medicane.evaluate import compare, read_forecasts
from tests.commands import Medicane, untouched
from tests.conftest import ROOT
from tests.small_project import SmallProject

LENGTH = 10  # maps in a sequence of the small project


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


# --- the whole way -------------------------------------------------------------------------------

#: What scores.json says of each model, and of its events.
MAP_SCORES = ("pod", "far", "csi", "ets", "hss", "auc_pr", "brier", "brier_skill")
EVENT_SCORES = ("hits", "misses", "false_alarms_per_year", "onset_delay_hours")


@dataclass(frozen=True)
class Travelled:
    """A folder that went the whole way by commands, and what each command printed."""

    folder: Path
    told: dict[str, str]


@pytest.fixture(scope="module")
def way(small_project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> Travelled:
    folder = tmp_path_factory.mktemp("travelled")
    small_project.copy_data(folder)
    shutil.rmtree(folder / "maps.zarr")
    config = ("--config", str(folder / "config.yaml"))
    model = ("--model", "models:/medicane@challenger", "--out", "found")
    told = {}
    with contextlib.chdir(folder):  # the default of --tracking-uri is mlflow.db here
        for name, words in {
            "prepare": config,
            "train": config,
            "evaluate": config,
            "detect": ("sea/grids/era5_2001-05.nc", *model),
        }.items():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
                run(app, [name, *words])
            assert ended.value.code == 0, name
            told[name] = printed.getvalue()
    return Travelled(folder, told)


@pytest.fixture(scope="module")
def travelled(way: Travelled) -> Path:
    return way.folder


def test_prepare_train_evaluate_detect_by_commands(way: Travelled) -> None:
    assert "480 (480 new), 2001-01-01T00:00 to 2001-04-30T18:00" in way.told["prepare"]
    assert "models:/medicane/1 (alias challenger)" in way.told["train"]
    assert "| detector |" in way.told["evaluate"]
    with xr.open_dataset(way.folder / "sea" / "grids" / "era5_2001-05.nc") as ds:
        n = ds.sizes["valid_time"]
    assert f"{n} maps ({n} new)" in way.told["detect"]
    written = ("scores.json", "report.html", "forecast.nc", "found/detections.nc")
    for name in written:
        assert (way.folder / name).stat().st_size > 1000
    assert len(list((way.folder / "figures").glob("*.png"))) >= 3
    names = {p.name for p in way.folder.rglob("*") if p.suffix != ".lock"}
    assert not [name for name in names if "partial" in name or "checkpoint" in name]


def test_the_scores_obey_their_schema(travelled: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (travelled / "scores.json").read_text()
    scores = json.loads(text, parse_constant=no_constant)
    assert next(iter(scores)) == "schema_version"
    assert scores["schema_version"] == 1
    assert scores["split"] == "test"
    assert 0 < scores["base_rate"] < 1
    assert scores["n_maps"] > 50
    assert scores["n_storms"] >= 1
    assert 0 < scores["threshold"] < 1
    assert {"detector", "phase_space", "climatology"} <= set(scores["models"])
    for entry in scores["models"].values():
        for name in MAP_SCORES:
            told = entry[name]
            assert {"value", "low", "high"} <= set(told)
            if told["value"] is None:
                assert told["note"]
            elif told["low"] is not None:
                assert told["low"] <= told["high"]
        assert set(EVENT_SCORES) <= set(entry["events"])


def test_the_report_needs_no_other_file_and_no_network(travelled: Path) -> None:
    page = (travelled / "report.html").read_text()
    assert "data:image/png;base64," in page
    for loads in ('src="http', "src='http", 'href="http', '<link rel="stylesheet"', "@import"):
        assert loads not in page
    assert "<script src" not in page


def test_the_run_holds_the_evaluation(travelled: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{travelled / 'mlflow.db'}")
    version = client.get_model_version_by_alias("medicane", "challenger")
    run = client.get_run(version.run_id)
    names = {f.path for f in client.list_artifacts(version.run_id, "evaluation/test")}
    assert {
        f"evaluation/test/{name}"
        for name in ("scores.json", "report.html", "forecast.nc", "figures")
    } <= names
    scores = json.loads((travelled / "scores.json").read_text())
    csi = scores["models"]["detector"]["csi"]["value"]
    assert run.data.metrics["test_csi"] == pytest.approx(csi)


def test_the_model_card_follows_the_model(travelled: Path) -> None:
    """The run and the version hold the card; the evaluation has put the scores in."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{travelled / 'mlflow.db'}")
    version = client.get_model_version_by_alias("medicane", "challenger")
    card = (travelled / "model_card.md").read_text()
    logged = client.download_artifacts(version.run_id, "model_card.md")
    assert Path(logged).read_text() == card == version.description
    assert "Synthetic only" in card
    assert "Not yet evaluated." not in card
    scores = json.loads((travelled / "scores.json").read_text())
    assert f"{scores['n_maps']} maps" in card
    assert "Label definition `small-1`" in card


def test_before_its_evaluation_a_model_has_a_card_too(small_project: SmallProject) -> None:
    client = mlflow.MlflowClient(tracking_uri=small_project.tracking_uri)
    card = Path(client.download_artifacts(small_project.run_id, "model_card.md")).read_text()
    version = client.get_model_version_by_alias("medicane", "challenger")
    assert card == version.description
    if "Not yet evaluated." not in card:  # a test before this one has evaluated it
        assert "| detector |" in card
    assert f"* MLflow run: `{small_project.run_id}`" in card


def test_the_forecast_holds_what_was_scored(travelled: Path) -> None:
    scores = json.loads((travelled / "scores.json").read_text())
    with xr.open_dataset(travelled / "forecast.nc") as forecast:
        known = forecast["medicane"].values >= 0
        assert known.sum() == scores["n_maps"]
        assert forecast["medicane"].values[known].mean() == pytest.approx(scores["base_rate"])
        for name in scores["models"]:
            values = forecast[name].values
            assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    assert pd.DatetimeIndex(forecast["time"]).is_monotonic_increasing


def test_the_scores_can_be_made_again_from_the_forecast(travelled: Path) -> None:
    told = json.loads((travelled / "scores.json").read_text())
    again = read_forecasts(travelled / "forecast.nc")
    assert again.train_rate == told["train_base_rate"]
    assert again.attributes["label_version"] == "small-1"
    assert again.attributes["idealised"] == 1
    assert again.forecasts["detector"].threshold == told["threshold"]
    table = compare(
        again.times,
        again.medicane,
        again.storm,
        forecasts=again.forecasts,
        train_rate=again.train_rate,
        kind=again.kind,
    )
    told["models"]["detector"].pop("difference_from")
    assert table["models"] == told["models"]


def test_hard_negatives_are_told_by_the_kinds_of_the_catalogue(travelled: Path) -> None:
    scores = json.loads((travelled / "scores.json").read_text())
    kinds = scores["models"]["detector"]["hard_negatives"]["kinds"]
    storms = pd.read_csv(travelled / "sea" / "storms.csv")
    assert set(kinds) <= {*storms["kind"], "several"}
    assert len(kinds) >= 3
    for told in kinds.values():
        assert 0 <= told["false_alarm_rate"] <= 1
        assert told["storms_with_false_alarm"] <= told["n_storms"] <= told["n_maps"]
    page = (travelled / "report.html").read_text()
    assert all(f'<th scope="row">{kind}</th>' in page for kind in kinds)


@pytest.mark.slow
def test_one_seed_gives_the_same_scores(
    medicane: Medicane, small_project: SmallProject, travelled: Path, tmp_path: Path
) -> None:
    config = small_project.copy_data(tmp_path)
    medicane.done("train", "--config", config)
    medicane.done("evaluate", "--config", config)
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again == json.loads((travelled / "scores.json").read_text())


# --- detection that grows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def months(small_project: SmallProject) -> xr.Dataset:
    """The end of April and the beginning of May, 60 maps across the files' boundary."""
    folder = small_project.folder / "sea" / "grids"
    parts = []
    for name, chosen in (("04", slice(-20, None)), ("05", slice(0, 40))):
        with xr.open_dataset(folder / f"era5_2001-{name}.nc", engine="netcdf4") as ds:
            parts.append(ds.isel(valid_time=chosen).load())
    return xr.concat(
        parts, dim="valid_time", data_vars="minimal", coords="minimal", compat="override",
        join="exact", combine_attrs="override",
    )  # fmt: skip


@pytest.fixture
def detect(
    small_project: SmallProject, months: xr.Dataset, tmp_path: Path
) -> Callable[..., pipeline.Detected]:
    """Detect on some of the months' maps, written to a file of their own."""

    def detected(chosen: Any, out: str = "found", **options: Any) -> pipeline.Detected:
        file = tmp_path / f"maps-{len(list(tmp_path.glob('maps-*.nc')))}.nc"
        months.isel(valid_time=chosen).to_netcdf(file)
        model = str(small_project.model_path)
        return pipeline.detect([file], **{"model": model, "out": tmp_path / out, **options})

    return detected


def read(folder: Path) -> xr.Dataset:
    with xr.open_dataset(folder / "detections.nc") as ds:
        return ds.load()


def assert_same(one: Path, other: Path) -> None:
    """Two folders tell the same: times, probabilities, labels, centres, events, tracks."""
    a, b = read(one), read(other)
    assert a.indexes["time"].equals(b.indexes["time"])
    np.testing.assert_allclose(a["probability"], b["probability"], atol=1e-5)
    np.testing.assert_allclose(a["logit"], b["logit"], atol=1e-4)
    for name in ("medicane", "n_sequences", "centre_latitude", "centre_longitude"):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("events.csv", "tracks.csv"):
        left, right = pd.read_csv(one / name), pd.read_csv(other / name)
        pd.testing.assert_frame_equal(left, right, atol=1e-4)


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("overlap", [0, 7])
def test_later_grids_add_only_the_new_times(
    detect: Callable[..., pipeline.Detected], tmp_path: Path, mode: str, overlap: int
) -> None:
    """The second input holds the new maps alone, or some that are known already."""
    first = detect(slice(0, 25), mode=mode)
    before = read(tmp_path / "found")
    second = detect(slice(25 - overlap, 60), mode=mode)
    assert (first.n_new, first.n_maps, first.n_skipped) == (25, 25, 0)
    assert (second.n_new, second.n_maps, second.n_skipped) == (35, 60, overlap)
    detect(slice(0, 60), out="at once", mode=mode)
    assert_same(tmp_path / "found", tmp_path / "at once")
    settled = slice(None) if mode == "causal" else slice(0, 25 - LENGTH + 1)
    after = read(tmp_path / "found").isel(time=slice(0, 25))
    for name in before:  # what was told is not told otherwise
        np.testing.assert_array_equal(before[name][settled], after[name][settled])


@pytest.mark.slow
def test_map_by_map_equals_one_call(
    detect: Callable[..., pipeline.Detected], tmp_path: Path
) -> None:
    """As a feed brings them, with a gap after which the first maps wait for their sequence."""
    arrived = [*range(0, 12), *range(20, 34)]
    detect(arrived[:12])
    for i in arrived[12:]:
        detected = detect([i])
        assert detected.n_new == 1
        waiting = 0 if i >= 20 + LENGTH - 1 else i - 19
        assert detected.n_unlabelled == waiting
    detect(arrived, out="at once")
    assert_same(tmp_path / "found", tmp_path / "at once")


def test_the_same_input_changes_nothing(
    detect: Callable[..., pipeline.Detected], tmp_path: Path
) -> None:
    detect(slice(0, 25))
    with untouched(tmp_path / "found"):
        again = detect(slice(0, 25))
    assert (again.n_new, again.n_skipped, again.n_maps) == (0, 25, 25)


def test_older_times_are_told_and_left(
    medicane: Medicane,
    small_project: SmallProject,
    detect: Callable[..., pipeline.Detected],
    months: xr.Dataset,
    tmp_path: Path,
) -> None:
    detect(slice(20, 40))
    months.isel(valid_time=slice(0, 45)).to_netcdf(tmp_path / "all.nc")
    told = medicane.done(
        "detect", tmp_path / "all.nc", "--model", small_project.model_path,
        "--out", tmp_path / "found",
    )  # fmt: skip
    assert "25 maps (5 new, 40 not later than the last detection and left as they were)" in told


def test_maps_between_the_steps_are_told_and_left_out(
    medicane: Medicane, small_project: SmallProject, months: xr.Dataset, tmp_path: Path
) -> None:
    """A three-hourly forecast for a six-hourly model; then files that bring one map each."""
    times = months["valid_time"].values
    between = months.isel(valid_time=slice(0, 30)).copy()
    between = between.assign_coords(valid_time=times[:30] + np.timedelta64(3, "h"))
    fine = xr.concat(
        [months.isel(valid_time=slice(0, 30)), between], dim="valid_time", data_vars="minimal",
        coords="minimal", compat="override", join="exact", combine_attrs="override",
    ).sortby("valid_time")  # fmt: skip
    fine.to_netcdf(tmp_path / "fine.nc")
    months.isel(valid_time=slice(0, 30)).to_netcdf(tmp_path / "steps.nc")
    model = ("--model", small_project.model_path, "--out")
    told = medicane.done("detect", tmp_path / "fine.nc", *model, tmp_path / "found")
    assert "30 maps (30 new, 30 between the steps left out)" in told
    medicane.done("detect", tmp_path / "steps.nc", *model, tmp_path / "steps")
    assert_same(tmp_path / "found", tmp_path / "steps")
    alone = months.isel(valid_time=[30])
    for hours, new, left_out in ((3, 0, 1), (0, 1, 0)):
        shifted = alone.assign_coords(valid_time=times[[30]] + np.timedelta64(hours, "h"))
        shifted.to_netcdf(tmp_path / f"alone-{hours}.nc")
        done = pipeline.detect(
            [tmp_path / f"alone-{hours}.nc"],
            model=str(small_project.model_path),
            out=tmp_path / "found",
        )
        assert (done.n_new, done.n_left_out) == (new, left_out)


def test_another_model_threshold_or_mode_is_refused(
    detect: Callable[..., pipeline.Detected], small_project: SmallProject, tmp_path: Path
) -> None:
    from medicane import model as detector

    detect(slice(0, 25))
    other = detector.load_detector(small_project.model_path)
    detector.set_calibration(other, temperature=3.0)
    other.save(tmp_path / "other.keras")
    for options, told in [
        ({"model": str(tmp_path / "other.keras")}, "the same model_digest"),
        ({"threshold": 0.123}, r"the same threshold .* found 0\.123"),
        ({"mode": "fused"}, r"the same mode \(causal\); .* found fused"),
    ]:
        with untouched(tmp_path / "found"), pytest.raises(InputError, match=told):
            detect(slice(25, 40), **options)


def test_a_threshold_of_ones_own(detect: Callable[..., pipeline.Detected], tmp_path: Path) -> None:
    detect(slice(0, 25), threshold=0.999999)
    assert (read(tmp_path / "found")["medicane"] == 0).all()
    detect(slice(0, 25), threshold=1e-6, out="all")
    found = read(tmp_path / "all")
    assert (found["medicane"] == 1).all()
    assert found.attrs["threshold"] == 1e-6
    events = pd.read_csv(tmp_path / "all" / "events.csv")
    assert events["n_maps"].tolist() == [25]


#: Kills the process for good when a file is about to get its final name for the n-th time.
KILLED = """
import os, signal, sys
from medicane import pipeline
replace, left = os.replace, int(sys.argv[4])
def counted(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = counted
pipeline.detect([sys.argv[1]], model=sys.argv[2], out=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_killed_run_adds_nothing_and_the_next_one_all(
    detect: Callable[..., pipeline.Detected],
    small_project: SmallProject,
    months: xr.Dataset,
    tmp_path: Path,
    nth: int,
) -> None:
    """Events, tracks and detections get their names one after another; killed before each."""
    options = {"threshold": 1e-6}  # so that the events change with every map
    detect(slice(0, 20), **options)
    held = (tmp_path / "found" / "detections.nc").read_bytes()
    months.isel(valid_time=slice(20, 40)).to_netcdf(tmp_path / "new.nc")
    script = KILLED.replace("out=sys.argv[3]", "out=sys.argv[3], threshold=1e-6")
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "new.nc", small_project.model_path,
         tmp_path / "found", str(nth)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "found" / "detections.nc").read_bytes() == held
    detect(slice(20, 40), **options)
    detect(slice(0, 40), out="at once", **options)
    assert_same(tmp_path / "found", tmp_path / "at once")
    left = {p.name for p in (tmp_path / "found").iterdir()} - {".detections.nc.lock"}
    assert left == {"detections.nc", "events.csv", "tracks.csv"}


def test_lost_events_come_back(detect: Callable[..., pipeline.Detected], tmp_path: Path) -> None:
    detect(slice(0, 25), threshold=1e-6)
    whole = (tmp_path / "found" / "events.csv").read_bytes()
    (tmp_path / "found" / "events.csv").unlink()
    detect(slice(0, 25), threshold=1e-6)
    assert (tmp_path / "found" / "events.csv").read_bytes() == whole


def test_detections_say_how_they_were_made(
    detect: Callable[..., pipeline.Detected], small_project: SmallProject, tmp_path: Path
) -> None:
    detect(slice(0, 25))
    found = read(tmp_path / "found")
    assert found["probability"].dtype == np.float32
    assert found["probability"].attrs["units"] == "1"
    assert found["medicane"].dtype == np.int8
    assert found["medicane"].attrs["flag_meanings"].split() == [
        "unknown",
        "no_medicane",
        "medicane",
    ]
    assert list(found["medicane"].attrs["flag_values"]) == [-1, 0, 1]
    attributes = found.attrs
    assert attributes["Conventions"].startswith("CF-")
    assert attributes["model_uri"] == small_project.model_path.as_uri()
    assert attributes["mode"] == "causal"
    store = xr.open_zarr(small_project.folder / "maps.zarr")
    assert attributes["store_digest"] == store.attrs["content_digest"]
    for name in ("model_version", "threshold", "temperature", "software_version"):
        assert name in attributes
    columns = (
        "event_id,start,end,n_maps,max_probability,time_of_max,centre_latitude,centre_longitude"
    )
    assert (tmp_path / "found" / "events.csv").read_text().splitlines()[0] == columns
