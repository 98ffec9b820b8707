"""``medicane inspect``: what a source holds, what is missing, how it would be read."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import names, pipeline
from medicane.config import Sea, load_config, make_config
from medicane.errors import InputError
from tests import dialects
from tests.commands import Medicane
from tests.small_project import write_config
from tests.test_images import labelled

#: The channels that the golden files hold.
CHANNELS = ["msl", "u10", "v10", "thickness_900_600"]


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


def asked(*inputs, channels=CHANNELS, **data) -> pipeline.Inspected:
    values = {"grids": "none.nc", "channels": channels, **data}
    return pipeline.inspect(inputs, config=make_config({"schema_version": 1, "data": values}))


def of_field(found: pipeline.Inspected, field: str) -> pipeline.HeldVariable:
    return next(variable for variable in found.variables if variable.field == field)


def sea(folder: Path) -> Path:
    pipeline.synthesise(folder, Sea(years=0.05, base_rate=0.1, degrees=2.0))
    return folder / "grids"


# What it says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "name", "dialect"),
    [
        (dialects.today, "today.nc", "ERA5 of the Climate Data Store, the form of today"),
        (dialects.of_both_versions, "both.nc", "ERA5 of the Climate Data Store, the form before"),
        (dialects.in_a_zip, "era5.zip", "ERA5 of the Climate Data Store, the form of today"),
        (dialects.arco, "arco.zarr", "ARCO-ERA5"),
        (dialects.weatherbench, "wb2.zarr", "WeatherBench 2"),
        (dialects.coards, "coards.nc", "COARDS"),
        (dialects.cmip6, "cmip6", "CMIP6"),
        (dialects.cordex, "cordex", "CORDEX"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_dialects_are_told_and_can_be_used(write, name, dialect, tmp_path) -> None:
    found = asked(write(tmp_path / name, dialects.fields()))
    assert found.dialect.startswith(dialect)
    assert (found.missing, found.fault, found.usable) == ([], None, True)
    assert (found.first, found.last) == ("2020-09-17T00:00", "2020-09-17T18:00")
    assert (found.n_times, found.step_hours, found.gaps, found.n_repeated) == (4, 6, [], 0)
    assert found.levels == [900, 600, 300]
    known = {variable.name for variable in found.variables}
    assert {"msl", "u10", "v10", "zg"} <= known
    assert "regular" in found.grid
    assert "4 maps 6 h apart without a gap, too few for a sequence of 12" in found.sequences


@pytest.mark.parametrize("write", [dialects.gfs, dialects.open_data])
def test_forecasts_in_grib(write, tmp_path) -> None:
    pytest.importorskip("eccodes", exc_type=(ImportError, RuntimeError))
    found = asked(write(tmp_path / "grib", dialects.fields()))
    assert "GRIB of" in found.dialect
    assert found.usable
    assert found.n_files == 4
    assert any(field.startswith("u (heightAboveGround") for field in found.left_out)


def test_nothing_but_headers_and_coordinates_is_read(tmp_path) -> None:
    path = dialects.today(tmp_path / "today.nc", dialects.fields())

    def refuse(*args, **kwargs):
        raise AssertionError("computed while inspecting")

    with dask.config.set(scheduler=refuse):
        assert asked(path).usable


def test_variables_with_their_units_and_what_they_become(tmp_path) -> None:
    found = asked(dialects.coards(tmp_path / "coards.nc", dialects.fields()))
    slp, height = of_field(found, "slp"), of_field(found, "hgt")
    assert (slp.units, slp.name, slp.target_units) == ("Pascals", "msl", "Pa")
    assert slp.standard_name == "air_pressure_at_mean_sea_level"
    assert (height.name, height.levels) == ("zg", [900, 600, 300])
    today = asked(dialects.today(tmp_path / "today.nc", dialects.fields()))
    assert of_field(today, "z").name == "zg"
    assert "zg is z times 0.101972" in today.reading


def test_gaps_repetitions_and_disorder(tmp_path) -> None:
    ds = dialects.dataset(dialects.fields(8))[["msl"]]
    times = ds["time"].values.copy()
    times[6:] += np.timedelta64(2, "D")
    ds.assign_coords(time=times).to_netcdf(tmp_path / "gap.nc")
    found = asked(tmp_path / "gap.nc", channels=["msl"])
    assert found.gaps == [("2020-09-18T06:00", "2020-09-20T12:00")]
    assert found.usable
    times[1] = times[0]
    ds.assign_coords(time=times).to_netcdf(tmp_path / "twice.nc")
    found = asked(tmp_path / "twice.nc", channels=["msl"])
    assert found.n_repeated == 1
    assert "times must strictly increase" in str(found.fault)
    ds.assign_coords(time=times[::-1]).to_netcdf(tmp_path / "backward.nc")
    assert not asked(tmp_path / "backward.nc", channels=["msl"]).in_order


def test_both_versions_of_era5_are_counted(tmp_path) -> None:
    found = asked(dialects.of_both_versions(tmp_path / "both.nc", dialects.fields()))
    assert found.versions == {"ERA5": 3, "ERA5T": 1}


def test_other_calendars(tmp_path) -> None:
    grids = dialects.cmip6(tmp_path / "cmip6", dialects.fields(), calendar="360_day")
    found = asked(grids)
    assert (found.calendar, found.first) == ("360_day", "2020-09-17T00:00")
    assert found.usable


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        ("msl", ["msl"]),
        ("u10", ["u10"]),
        ("z", ["zg at 900, 600 hPa"]),
        ("u10 z", ["u10", "zg at 900, 600 hPa"]),
    ],
)
def test_what_is_missing(lacking, missing, tmp_path) -> None:
    values = {n: f for n, f in dialects.fields().items() if n not in lacking.split()}
    found = asked(dialects.today(tmp_path / "part.nc", values), channels=[*CHANNELS, "lsm"])
    assert found.missing == missing
    assert not found.usable


def test_a_level_that_is_missing_and_a_mask_that_never_is(tmp_path) -> None:
    path = dialects.today(tmp_path / "today.nc", dialects.fields())
    assert asked(path, channels=["lsm", "zg_500"]).missing == ["zg at 500 hPa"]
    assert asked(path, channels=["lsm", "msl"]).missing == []


def test_units_that_are_not_stated(tmp_path) -> None:
    ds = dialects.dataset(dialects.fields())[["msl"]]
    ds["msl"].attrs = {"long_name": "pressure at the sea [pa]"}
    ds.to_netcdf(tmp_path / "bare.nc")
    found = asked(tmp_path / "bare.nc", channels=["msl"])
    note = of_field(found, "msl").note
    assert note == "states no units; its long name says pa: declare them, --units.msl Pa"
    assert "units attribute is missing" in str(found.fault)
    declared = asked(tmp_path / "bare.nc", channels=["msl"], units={"msl": "Pa"})
    assert declared.usable
    ds["msl"].attrs["units"] = "K"
    ds.to_netcdf(tmp_path / "wrong.nc")
    assert "cannot be converted to Pa" in of_field(asked(tmp_path / "wrong.nc"), "msl").note


def test_how_it_would_be_read(tmp_path) -> None:
    path = dialects.today(tmp_path / "today.nc", dialects.fields())
    small = {"domain": {"north": 40, "south": 36, "west": 10, "east": 16}}
    reading = asked(path, **small).reading
    assert reading.startswith("9 x 13 points, 36 to 40 N, 10 to 16 E")
    assert "as they are" in reading
    assert "area means" in asked(path, degrees=1.0, **small).reading
    assert "interpolated linearly" in asked(path, degrees=0.3, **small).reading
    assert "a part of the domain 28 to 48 N" in asked(path).reading
    assert "a part of" not in asked(path, **small).reading


def test_a_rotated_grid(tmp_path) -> None:
    ds = dialects.dataset(dialects.fields())[["msl"]].rename(latitude="y", longitude="x")
    y, x = np.meshgrid(ds["y"].values, ds["x"].values, indexing="ij")
    ds = ds.drop_vars(["y", "x"]).assign_coords(
        lat=(("y", "x"), y + 0.1 * (x - 13)), lon=(("y", "x"), x - 0.1 * (y - 38))
    )
    ds.to_netcdf(tmp_path / "rotated.nc")
    found = asked(
        tmp_path / "rotated.nc",
        channels=["msl"],
        domain={"north": 39, "south": 37, "west": 11, "east": 15},
    )
    assert found.grid == "curvilinear, 9 x 13 points"
    assert "linear on triangles" in found.reading
    assert found.usable
    whole = asked(tmp_path / "rotated.nc", channels=["msl"])
    assert "must cover the domain" in str(whole.fault)


def test_pictures_are_read_by_their_own_channels(tmp_path) -> None:
    folder = labelled(tmp_path / "pictures", ["medicane", "not_medicane", "unknown"])
    found = pipeline.inspect([folder])
    assert found.dialect == "folder of colour map images, labelled"
    assert found.channels == ["red", "green", "blue"]
    assert found.grid == "pictures of 20 x 16 pixels"
    assert found.labelled
    assert found.usable
    assert "a part of the domain" not in found.reading


def test_what_is_no_grid_at_all(tmp_path) -> None:
    table = xr.Dataset({"msl": ("station", np.ones(3), {"units": "Pa"})})
    table.to_netcdf(tmp_path / "stations.nc")
    with pytest.raises(InputError, match="must hold maps: latitudes and longitudes"):
        pipeline.inspect([tmp_path / "stations.nc"])


# The command ------------------------------------------------------------------------------------


def test_the_command_on_grids_that_can_be_used(medicane, tmp_path) -> None:
    told = medicane.done("inspect", sea(tmp_path) / "*.nc")
    assert "dialect    idealised sea of this package" in told
    assert "missing    nothing" in told
    assert "z (m**2 s**-2) -> zg (m), geopotential_height, 7 levels" in told
    assert all(len(line) > 11 for line in told.splitlines())


def test_the_command_asks_what_a_configuration_asks(medicane, tmp_path) -> None:
    file = write_config(tmp_path)
    config = load_config(file)
    pipeline.synthesise(tmp_path / "sea", config.sea.model_copy(update={"years": 0.05}))
    told = json.loads(medicane.done("inspect", "--config", file, "--json"))
    assert told["channels"] == ["msl_local", "thickness_900_600_local"]
    assert told["usable"]
    assert told["n_times"] > 50
    assert told["where"].endswith("era5_2001-0[1-4].nc")


def test_grids_that_lack_something_are_told_of_and_refused(medicane, tmp_path) -> None:
    path = dialects.today(tmp_path / "part.nc", {"msl": dialects.fields()["msl"]})
    answer = medicane("inspect", path)
    assert "missing    u10; v10; zg at 900, 600, 300 hPa" in answer.out
    assert answer.line.startswith(f"medicane: {path}: must hold what the channels need")
    as_json = medicane("inspect", path, "--json")
    assert as_json.status == 2
    assert json.loads(as_json.out)["usable"] is False


def test_a_fault_is_the_line_that_preparing_would_give(medicane, tmp_path) -> None:
    ds = dialects.dataset(dialects.fields())
    members = xr.concat([ds, ds], pd.Index([0, 1], name="number"))
    members.to_netcdf(tmp_path / "members.nc")
    (tmp_path / "c.yaml").write_text(
        "schema_version: 1\ndata: {grids: members.nc, channels: [msl, thickness_900_600]}\n"
    )
    words = ("inspect", "--config", tmp_path / "c.yaml")
    answer = medicane(*words)
    assert "refused    number: select one value" in answer.out
    assert "number: select one value, e.g. data.select: {number: 0}" in answer.line
    assert "missing    nothing" in medicane.done(*words, "--select.number", 1)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n"])
def test_one_line_for_what_is_no_grid(medicane, content, tmp_path) -> None:
    path = tmp_path / "odd.nc"
    path.write_bytes(content)
    answer = medicane("inspect", path)
    assert answer.out == ""
    assert "odd.nc" in answer.line


def test_the_command_needs_something_to_look_at(medicane) -> None:
    assert "a file, glob, store or folder must be given" in medicane("inspect").line


def test_real_files(medicane, real_data) -> None:
    """What a meteorologist would say of them."""
    gfs = medicane("inspect", real_data / "gfs_central_med_20210902.nc")
    assert "dialect    COARDS" in gfs.out
    assert "its long name says pa: declare them, --units.msl Pa" in gfs.out
    ianos = medicane("inspect", real_data / "ianos_gfs_20200917.nc")
    assert "gh (gpm) -> zg (m), geopotential_height, 21 levels" in ianos.out
    assert "missing    u10; v10\n" in ianos.out
    gaps = medicane("inspect", real_data / "global_mslp_irregular_20220817.nc")
    assert "every 12 h; gaps: 2022-08-17T00:00 to 2022-08-18T00:00" in gaps.out
    polar = medicane("inspect", real_data / "dale_polar.nc")
    assert polar.out == ""
    assert "must hold maps" in polar.line


def test_real_grib_files(medicane, real_data) -> None:
    pytest.importorskip("eccodes", exc_type=(ImportError, RuntimeError))
    arpege = medicane("inspect", str(real_data / "arpege_*.grib"))
    assert "25, 2018-05-01T00:00 to 2018-05-02T00:00, every 1 h, no gap" in arpege.out
    assert "missing    zg at 900, 600, 300 hPa" in arpege.out
    members = medicane("inspect", real_data / "era5_members_global_201701.grib")
    assert "refused    number: select one value" in members.out
    assert "levels     850, 500 hPa" in members.out
    assert names.MEMBER in members.out
