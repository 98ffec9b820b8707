"""Detection on files that other people wrote: a regional forecast in GRIB, and medicane Ianos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from medicane import experiments, pipeline
from medicane import model as detector
from medicane.config import load_config, make_config
from medicane.normalise import Statistics
from medicane.train import training_facts
from tests.commands import Medicane, untouched

SURFACE = ("msl_local", "u10", "v10")


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


@pytest.fixture
def grib_data(real_data: Path) -> Path:
    """The real files where GRIB can be read, which needs a library beyond Python's."""
    try:
        import cfgrib  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no GRIB here: {error}")
    return real_data


@pytest.fixture(scope="module")
def hourly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of surface channels, trained on six weeks of an hourly idealised sea."""
    folder = tmp_path_factory.mktemp("hourly")
    sea = {"years": 0.12, "step_hours": 1, "base_rate": 0.2, "degrees": 1.0, "seed": 0}
    config_file = folder / "config.yaml"
    config_file.write_text(
        yaml.safe_dump(
            {
                "schema_version": 1,
                "sea": sea,
                "data": {
                    "grids": "sea/grids/*.nc",
                    "catalogue": "sea/storms.csv",
                    "step_hours": 1,
                    "degrees": 0.5,
                    "channels": list(SURFACE),
                },
                "sequences": {"length": 12, "stride": 12},
                "splits": {"fractions": [0.5, 0.25, 0.25]},
                "model": {"blocks": [1], "growth_rate": 4, "units": 4, "out_of_domain": True},
                "train": {"epochs": 1, "batch_size": 4},
            },
            sort_keys=False,
        )
    )
    config = load_config(config_file)
    pipeline.synthesise(folder / "sea", config.sea, label=config.label)
    pipeline.prepare(config)
    trained = pipeline.train(config)
    return experiments.model_file(trained.model_uri, tracking=trained.tracking_uri).path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Detectors as they come from the drawer, for any channels and step: what they say is noise."""

    def built(*channels: str, step_hours: int) -> Path:
        data = {"grids": "none.nc", "channels": list(channels), "step_hours": step_hours}
        model = {"blocks": [1], "growth_rate": 4, "units": 4}
        config = make_config({"schema_version": 1, "data": data, "model": model})
        count = len(channels)
        statistics = Statistics(channels, np.zeros(count), np.full(count, 100.0), 10)
        facts = training_facts(config, xr.Dataset())
        network = detector.build_detector(config, statistics, facts=facts)
        detector.set_calibration(network, temperature=1.0, threshold=0.5)
        path = tmp_path_factory.mktemp("untrained") / "detector.keras"
        network.save(path)
        return path

    return built


def read(folder: Path) -> xr.Dataset:
    with xr.open_dataset(folder / "detections.nc") as ds:
        return ds.load()


# --- ARPEGE, hourly, two GRIB files ---------------------------------------------------------------


def test_a_forecast_in_grib_gets_a_probability_for_each_of_its_hours(
    medicane: Medicane, grib_data: Path, hourly: Path, tmp_path: Path
) -> None:
    told = medicane.done(
        "detect",
        grib_data / "arpege_mslp_gulf_of_lion_20180501.grib",
        grib_data / "arpege_wind10m_gulf_of_lion_20180501.grib",
        "--model",
        hourly,
        "--out",
        tmp_path / "found",
    )
    assert "25 maps (25 new)" in told
    found = read(tmp_path / "found")
    expected = pd.date_range("2018-05-01T00", periods=25, freq="1h")
    assert list(found.indexes["time"]) == list(expected)
    assert ((found["probability"] > 0) & (found["probability"] < 1)).all()
    assert set(np.unique(found["medicane"])) <= {0, 1}
    centres = found["centre_latitude"].values, found["centre_longitude"].values
    for values, low, high in zip(centres, (41, 2), (46, 10), strict=True):
        assert (np.isnan(values) | ((values >= low) & (values <= high))).all()


def test_real_maps_are_told_to_be_unlike_the_idealised_sea(
    grib_data: Path, hourly: Path, tmp_path: Path
) -> None:
    """Another area, another grid, a real atmosphere: the autoencoder has never seen the like."""
    files = [grib_data / f"arpege_{n}_gulf_of_lion_20180501.grib" for n in ("mslp", "wind10m")]
    pipeline.detect(files, model=str(hourly), out=tmp_path / "found")
    error = read(tmp_path / "found")["reconstruction_error"]
    level = detector.facts_of(detector.load_detector(hourly))["out_of_domain"]["percentile_99"]
    assert np.isfinite(error).all()
    assert level > 0
    flagged = float((error > level).mean())
    # One map in a hundred of the training sea is flagged.
    assert flagged > 0.1, f"{flagged:.0%} of the real maps are flagged"


def test_one_grib_file_lacks_the_wind(
    medicane: Medicane, grib_data: Path, hourly: Path, tmp_path: Path
) -> None:
    pressure = grib_data / "arpege_mslp_gulf_of_lion_20180501.grib"
    line = medicane("detect", pressure, "--model", hourly, "--out", tmp_path / "found").line
    assert f"{pressure}: u10, v10: the variable must be in the data; found msl" in line
    assert not (tmp_path / "found").exists()


def test_the_forecast_in_two_runs_equals_one(grib_data: Path, hourly: Path, tmp_path: Path) -> None:
    """The second run gets a file of the later hours alone, in another format."""
    files = [grib_data / f"arpege_{n}_gulf_of_lion_20180501.grib" for n in ("mslp", "wind10m")]
    model = str(hourly)
    pipeline.detect(files, model=model, out=tmp_path / "at once")
    from medicane.grids import open_grids

    whole = open_grids(files).load()
    valid = whole["valid_time"].values
    whole = whole.drop_vars(["time", "valid_time"]).rename(step="time")
    whole = whole.assign_coords(time=valid)
    whole.attrs.clear()
    for name, hours in (("early", slice(0, 16)), ("late", slice(16, None))):
        whole.isel(time=hours).to_netcdf(tmp_path / f"{name}.nc")
        pipeline.detect([tmp_path / f"{name}.nc"], model=model, out=tmp_path / "found")
    one, two = read(tmp_path / "at once"), read(tmp_path / "found")
    np.testing.assert_array_equal(one["time"], two["time"])
    np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-5)


def test_an_hourly_forecast_for_a_model_of_coarser_steps(
    medicane: Medicane, untrained: Callable[..., Path], grib_data: Path, tmp_path: Path
) -> None:
    """Two-hourly: 13 of the 25 maps are taken. Six-hourly: the five there are too few."""
    pressure = grib_data / "arpege_mslp_gulf_of_lion_20180501.grib"
    words = ("detect", pressure, "--out", tmp_path / "found", "--model")
    told = medicane.done(*words, untrained("msl_local", step_hours=2))
    assert "13 maps (13 new, 12 between the steps left out)" in told
    assert list(np.unique(read(tmp_path / "found").indexes["time"].hour % 2)) == [0]
    line = medicane(
        *words[:2], "--out", tmp_path / "six", "--model", untrained("msl_local", step_hours=6)
    ).line
    assert "one sequence is 12 maps 6 h apart" in line
    assert "found 5 maps, at most 5 in a row" in line


# --- Ianos, three maps three hours apart ----------------------------------------------------------

HEIGHTS = ("msl_local", "thickness_900_600_local", "thickness_600_300_local")


def test_three_maps_of_ianos_are_too_few_and_say_so(
    medicane: Medicane, untrained: Callable[..., Path], real_data: Path, tmp_path: Path
) -> None:
    ianos = real_data / "ianos_gfs_20200917.nc"
    model = untrained(*HEIGHTS, step_hours=3)
    words = ("detect", ianos, "--model", model, "--out", tmp_path / "found")
    line = medicane(*words).line
    assert "ianos_gfs_20200917.nc: one sequence is 12 maps 3 h apart without a gap" in line
    assert "--allow-short" in line
    assert "found 3 maps, at most 3 in a row" in line
    assert not (tmp_path / "found").exists()
    assert "3 maps (3 new)" in medicane.done(*words, "--allow-short")
    found = read(tmp_path / "found")
    hours = ["2020-09-17T06", "2020-09-17T09", "2020-09-17T12"]
    assert list(found.indexes["time"]) == [pd.Timestamp(hour) for hour in hours]
    assert found["probability"].notnull().all()
    # The low stands near 36N 19.5E on that day, at 1008 hPa: too shallow for the physical rule,
    # and located all the same.
    np.testing.assert_allclose(found["centre_latitude"], 36.5, atol=1.5)
    np.testing.assert_allclose(found["centre_longitude"], 19.5, atol=1.5)


def test_a_six_hourly_model_takes_two_of_them(
    medicane: Medicane, untrained: Callable[..., Path], real_data: Path, tmp_path: Path
) -> None:
    ianos = real_data / "ianos_gfs_20200917.nc"
    model = untrained(*HEIGHTS, step_hours=6)
    words = ("detect", ianos, "--model", model, "--out", tmp_path / "found")
    line = medicane(*words).line
    assert "one sequence is 12 maps 6 h apart" in line
    assert "found 2 maps, at most 2 in a row" in line
    told = medicane.done(*words, "--allow-short")
    assert "2 maps (2 new, 1 between the steps left out)" in told
    assert list(read(tmp_path / "found").indexes["time"].hour) == [6, 12]


def test_an_hourly_model_refuses_them(
    medicane: Medicane, untrained: Callable[..., Path], real_data: Path, tmp_path: Path
) -> None:
    """Nothing is interpolated in time, whatever is allowed."""
    tmp_path.joinpath("found").mkdir()
    with untouched(tmp_path):
        line = medicane(
            "detect",
            real_data / "ianos_gfs_20200917.nc",
            "--model",
            untrained("msl_local", step_hours=1),
            "--out",
            tmp_path / "found",
            "--allow-short",
        ).line
    assert "ianos_gfs_20200917.nc: the model needs maps every 1 h; found 3 h" in line


def test_an_ensemble_is_never_averaged(
    medicane: Medicane, untrained: Callable[..., Path], grib_data: Path, tmp_path: Path
) -> None:
    members = grib_data / "era5_members_global_201701.grib"
    words = ("detect", members, "--out", tmp_path / "found", "--allow-short", "--model")
    model = untrained("zg_500", step_hours=12)
    line = medicane(*words, model).line
    assert "number: select one value" in line
    assert "found 10 values" in line
    assert "4 maps (4 new)" in medicane.done(*words, model, "--select.number", 0)
    found = read(tmp_path / "found")
    assert found["centre_latitude"].isnull().all()  # without pressure nothing is located
