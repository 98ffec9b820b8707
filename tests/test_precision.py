"""The check of a lower precision: on validation, calibrated on training, asked for by `detect`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from medicane import experiments, names, pipeline, runtime
from medicane import model as detector
from medicane.config import load_config
from medicane.errors import InputError
from medicane.pipeline.detection import file_digest
from medicane.pipeline.precision import SCORES, calibration_maps, check_precision, differences
from medicane.sequences import split_times
from medicane.store import open_store
from tests.small_networks import VARIANTS, build
from tests.small_project import SmallProject

pytest.importorskip("nncf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without any check in it."""
    monkeypatch.setenv("MEDICANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def detected(small_project: SmallProject, out: Path, **options: Any) -> xr.Dataset:
    done = pipeline.detect(
        [small_project.new_grids], model=str(small_project.model_path), out=out, **options
    )
    return xr.load_dataset(done.detections)


def test_int8_is_refused_until_its_check_has_passed(
    small_project: SmallProject, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"int8 needs a check .* found no check"):
        detected(small_project, tmp_path / "none", precision="int8")
    assert not list((tmp_path / "none").glob("*"))
    done = check_precision(small_project.config, model=str(small_project.model_path))
    assert set(done.scores) == set(SCORES)
    assert done.passed
    assert all(score["difference"] < score["allowed"] for score in done.scores.values())
    told = json.loads(Path(done.verdict).read_text())
    assert told["digest"] == file_digest(small_project.model_path)
    assert told["scores"] == done.scores
    assert told["n_maps"] > 50
    exact = detected(small_project, tmp_path / "exact")
    coarse = detected(small_project, tmp_path / "coarse", precision="int8")
    moved = np.abs(exact["probability"] - coarse["probability"]).max()
    assert 1e-6 < moved < 0.1  # it is another arithmetic, and not another detector
    assert (exact.attrs["precision"], coarse.attrs["precision"]) == ("float32", "int8")
    with pytest.raises(InputError, match=r"detections of the same precision \(int8\)"):
        detected(small_project, tmp_path / "coarse")


def test_detections_of_before_were_in_float32(small_project: SmallProject, tmp_path: Path) -> None:
    """Those that do not tell their precision are added to as before."""
    first = detected(small_project, tmp_path)
    with xr.open_dataset(tmp_path / "detections.nc", group="history") as group:
        history = group.load()
    del first.attrs["precision"]
    first.to_netcdf(tmp_path / "detections.nc", mode="w")
    history.to_netcdf(tmp_path / "detections.nc", mode="a", group="history")
    again = detected(small_project, tmp_path)  # nothing is newer, and nothing is refused
    np.testing.assert_array_equal(again["probability"], first["probability"])


def test_bfloat16_is_checked_in_the_same_way_and_logged_to_the_run(
    small_project: SmallProject,
) -> None:
    """Of the registered model: its run has one file more, which no other test asks for."""
    import mlflow

    done = check_precision(
        small_project.config, model=small_project.model_uri, precision="bfloat16"
    )
    assert done.run_id == small_project.run_id
    assert done.precision == "bfloat16"
    client = mlflow.MlflowClient(small_project.tracking_uri)
    path = client.download_artifacts(small_project.run_id, "precision/bfloat16.json")
    assert json.loads(Path(path).read_text())["scores"] == done.scores
    digest = file_digest(
        experiments.model_file(small_project.model_uri, tracking=small_project.tracking_uri).path
    )
    assert runtime.verdict_of(digest, "bfloat16") is not None
    assert runtime.verdict_of(digest, "int8") is None


def test_evaluation_runs_in_the_configured_precision(
    small_project: SmallProject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = load_config(small_project.config_file)
    coarse = exact.model_copy(
        update={"detect": exact.detect.model_copy(update={"precision": "bfloat16"})}
    )
    found = []
    for config in (exact, coarse):
        out = tmp_path / config.detect.precision
        pipeline.evaluate(config, model=str(small_project.model_path), out=out)
        found.append(xr.load_dataset(out / "forecast.nc"))
    assert [one.attrs["precision"] for one in found] == ["float32", "bfloat16"]
    logits = [one["logit"].values for one in found]
    apart = np.nanmax(np.abs(logits[0] - logits[1]))
    if runtime.has_bfloat16():
        assert 1e-6 < apart < 0.5
    else:
        assert apart < 1e-5
        assert "this processor has no bfloat16" in caplog.text


def test_a_validation_split_without_a_medicane_says_nothing(
    small_project: SmallProject, tmp_path: Path
) -> None:
    config = load_config(small_project.copy_data(tmp_path))
    labels = zarr.open_group(config.data.store)["medicane"]
    labels[:] = np.zeros(labels.shape, labels.dtype)
    with pytest.raises(InputError, match="the validation split must have a medicane; found none"):
        check_precision(config, model=str(small_project.model_path))


class TestCalibrationMaps:
    def splits(self, small_project: SmallProject) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
        store = open_store(small_project.config.data.store)
        labels, storms = store["medicane"].values, store["storm"].values
        times = store.indexes[names.TIME]
        return store, split_times(times, labels, storms, config=small_project.config)

    def test_they_are_maps_of_the_training_and_of_all_its_parts(
        self, small_project: SmallProject
    ) -> None:
        store, masks = self.splits(small_project)
        network = detector.load_detector(small_project.model_path)
        parts = list(calibration_maps(network, store, masks["train"]))
        maps = store["maps"].transpose("time", "latitude", "longitude", "channel").values
        known = {one.tobytes(): i for i, one in enumerate(maps)}
        at = [known[np.ascontiguousarray(one).tobytes()] for part in parts for one in part]
        assert masks["train"][at].all()
        train = np.flatnonzero(masks["train"])
        assert len(set(at)) >= min(200, len(train) // 2)
        for third in np.array_split(train, 3):
            assert set(third) & set(at)
        for part in parts:  # maps that follow one another
            assert len(part) == detector.facts_of(network)["length"]

    def test_an_encoder_over_time_gets_sequences(self, small_project: SmallProject) -> None:
        store, masks = self.splits(small_project)
        network = build(**VARIANTS["c3d"])
        shapes = {part.shape[:2] for part in calibration_maps(network, store, masks["train"])}
        assert shapes == {(1, 10)}


class TestDifferences:
    scores = st.floats(0, 1)

    @given(st.lists(st.tuples(scores, scores, scores), min_size=3, max_size=3))
    def test_a_tenth_of_the_interval_is_allowed(self, told: list[tuple[float, ...]]) -> None:
        before, after = {}, {}
        for name, (value, width, now) in zip(SCORES, told, strict=True):
            before[name] = {"value": value, "low": value - width / 2, "high": value + width / 2}
            after[name] = {"value": now}
        for name, found in differences(before, after).items():
            assert found["difference"] == abs(after[name]["value"] - before[name]["value"])
            width = before[name]["high"] - before[name]["low"]
            assert math.isclose(found["allowed"], width / 10, abs_tol=1e-12)

    def test_a_score_that_is_not_defined_decides_nothing(self) -> None:
        whole = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in SCORES}
        broken = {**whole, "csi": {"value": None, "low": None, "high": None}}
        for before, after in ((broken, whole), (whole, broken)):
            with pytest.raises(InputError, match="the check of a precision: csi"):
                differences(before, after)
