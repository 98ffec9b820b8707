"""The command line: help at once, exit status, one clear line for bad input, nothing harmed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cyclopts import App

from medicane import __version__
from medicane.cli import app, run
from medicane.labels import bundled_catalogue
from medicane.labels.catalogue import read_catalogue
from medicane.store.commits import sole_writer
from tests.commands import Answer, Medicane, process, tree, untouched
from tests.conftest import ROOT
from tests.small_project import SmallProject, write_config

COMMANDS = (
    "catalogue",
    "check-precision",
    "compare",
    "cross-validate",
    "demo",
    "detect",
    "evaluate",
    "fetch",
    "inspect",
    "prepare",
    "promote",
    "rollback",
    "skill",
    "synth",
    "train",
    "watch",
)


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


# --- help, status, traceback ---------------------------------------------------------------------


def test_the_commands_are_those_that_are_tested() -> None:
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(medicane: Medicane, command: str) -> None:
    told = medicane.done(command, "--help")
    assert f"Example: medicane {command}" in told
    assert "Usage: medicane" in told


def test_help_and_version(medicane: Medicane) -> None:
    told = medicane.done("--help")
    for command in COMMANDS:
        assert command in told
    assert "--debug" in told
    assert medicane.done("--version").strip() == __version__
    assert process("--version").out.strip() == __version__


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from medicane.cli import app, run\n"
        "try:\n    run(app, ['--help'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'prefect', 'xarray', 'dask', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nonsense",), "nonsense"),
        (("detect", "x.nc", "--out", "found"), "--model"),
        (("detect", "--model", "m.keras", "--out", "found"), "INPUT: at least one file"),
        (("detect", "x.nc", "--model", "m", "--out", "o", "--mode", "best"), "best"),
        (("evaluate", "--config", "c.yaml", "--split", "half"), "half"),
        (("prepare", "--config"), "--config"),
        (("prepare", "--config", "c.yaml", "--fast"), "--fast"),
        (("train", "--config", "nowhere.yaml"), "nowhere.yaml: must be a readable text file"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    medicane: Medicane, words: tuple[str, ...], told: str
) -> None:
    assert told in medicane(*words).line


def test_bad_usage_as_a_process() -> None:
    answer = process("prepare", "--config", "nowhere.yaml")
    assert "nowhere.yaml: must be a readable text file" in answer.line
    assert answer.out == ""


def test_debug_shows_the_traceback_and_keeps_the_status() -> None:
    answer = process("prepare", "--config", "nowhere.yaml", "--debug")
    assert answer.status == 2
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-1].startswith("medicane: nowhere.yaml")


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_the_program_is_status_1(capfd: pytest.CaptureFixture[str], debug: bool) -> None:
    broken = App(name="medicane")

    @broken.command
    def fail() -> None:
        raise ZeroDivisionError("over\nand out")

    with pytest.raises(SystemExit) as ended:
        run(broken, ["fail", *(["--debug"] if debug else [])])
    assert ended.value.code == 1
    err = capfd.readouterr().err
    assert ("Traceback" in err) is debug
    assert err.splitlines()[-1] == (
        "medicane: internal failure: ZeroDivisionError: over (--debug shows where)"
    )


def test_an_interruption_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    stopped = App(name="medicane", suppress_keyboard_interrupt=False)
    assert app.suppress_keyboard_interrupt is False

    @stopped.command
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(stopped, ["stop"])
    assert ended.value.code == 130
    assert "run again to go on" in capfd.readouterr().err


# --- synth and catalogue -------------------------------------------------------------------------


def test_one_seed_gives_one_sea_byte_by_byte(medicane: Medicane, tmp_path: Path) -> None:
    sizes = ("--years", "0.05", "--grid-degrees", "2", "--base-rate", "0.2")
    told = medicane.done("synth", tmp_path / "a", *sizes, "--seed", 3)
    medicane.done("synth", tmp_path / "b", *sizes, "--seed", 3)
    medicane.done("synth", tmp_path / "c", *sizes, "--seed", 4)
    one, again, other = (tree(tmp_path / name) for name in "abc")
    assert one == again
    assert one["grids/era5_2001-01.nc"] != other["grids/era5_2001-01.nc"]
    assert {"grids/era5_2001-01.nc", "storms.csv", "truth.nc"} <= set(one)
    assert str(tmp_path / "a" / "storms.csv") in told


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--years", "0"),
        ("--years", "-1"),
        ("--years", "nan"),
        ("--years", "inf"),
        ("--years", "many"),
        ("--step-hours", "0"),
        ("--step-hours", "25"),
        ("--base-rate", "0.7"),
        ("--base-rate", "0"),
        ("--grid-degrees", "0"),
        ("--grid-degrees", "9"),
        ("--seed", "-1"),
    ],
)
def test_bad_options_of_synth(medicane: Medicane, tmp_path: Path, option: str, value: str) -> None:
    line = medicane("synth", tmp_path / "sea", option, value).line
    assert option in line
    assert value in line
    assert not (tmp_path / "sea").exists()


def test_the_catalogue_prints_every_storm_with_its_source(
    medicane: Medicane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    told = medicane.done("catalogue")
    storms = bundled_catalogue()
    assert len(storms) > 5
    for row in storms.itertuples():
        assert row.storm in told
        assert row.source in told


def test_the_catalogue_fits_a_narrow_terminal(
    medicane: Medicane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns a row folds; the names of the storms stay whole."""
    monkeypatch.setenv("COLUMNS", "80")
    told = medicane.done("catalogue")
    assert all(len(line) <= 80 for line in told.splitlines())
    for storm in bundled_catalogue()["storm"]:
        assert storm in told


def test_the_catalogue_as_csv_is_a_catalogue(medicane: Medicane, tmp_path: Path) -> None:
    text = medicane.done("catalogue", "--csv")
    path = tmp_path / "medicanes.csv"
    path.write_text(text)
    again, bundled = read_catalogue(path), bundled_catalogue()
    for column in ("storm", "start", "end", "phase"):
        assert again[column].tolist() == bundled[column].tolist()
    assert pd.read_csv(io.StringIO(text))["source"].notna().all()


# --- bad input -----------------------------------------------------------------------------------

Bad = Callable[[xr.Dataset, Path], object]


def written(ds: xr.Dataset, path: Path) -> Path:
    ds.to_netcdf(path, engine="netcdf4")
    return path


def retimed(ds: xr.Dataset, change: Callable[[np.ndarray], object]) -> xr.Dataset:
    times = ds["valid_time"].values.copy()
    change(times)
    encoding = ds["valid_time"].encoding
    ds = ds.assign_coords(valid_time=("valid_time", times, ds["valid_time"].attrs))
    ds["valid_time"].encoding = {k: encoding[k] for k in ("units", "calendar") if k in encoding}
    return ds


def truncated(ds: xr.Dataset, path: Path) -> None:
    whole = written(ds, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def text(ds: xr.Dataset, path: Path) -> None:
    path.write_text("time,msl\n2001-05-01,101325\n")


def empty(ds: xr.Dataset, path: Path) -> None:
    path.touch()


def without_heights(ds: xr.Dataset, path: Path) -> None:
    written(ds.drop_vars("z"), path)


def without_a_level(ds: xr.Dataset, path: Path) -> None:
    written(ds.sel(pressure_level=[p for p in ds["pressure_level"].values if p != 900]), path)


def wrong_units(ds: xr.Dataset, path: Path) -> None:
    written(ds.assign(msl=ds["msl"].assign_attrs(units="K")), path)


def wrong_values(ds: xr.Dataset, path: Path) -> None:
    written(ds.assign(msl=(ds["msl"] / 100).assign_attrs(ds["msl"].attrs)), path)


def without_units(ds: xr.Dataset, path: Path) -> None:
    bare = ds["msl"].copy()
    del bare.attrs["units"]
    written(ds.assign(msl=bare), path)


def duplicate_times(ds: xr.Dataset, path: Path) -> None:
    written(retimed(ds, lambda t: t.__setitem__(4, t[3])), path)


def backward_times(ds: xr.Dataset, path: Path) -> None:
    written(retimed(ds, lambda t: t.__setitem__(4, t[1] + np.timedelta64(1, "h"))), path)


def missing_map(ds: xr.Dataset, path: Path) -> None:
    msl = ds["msl"].copy()
    msl[9] = np.nan
    written(ds.assign(msl=msl), path)


def missing_cell(ds: xr.Dataset, path: Path) -> None:
    z = ds["z"].copy()
    z[9, :, 5, 5] = np.nan
    written(ds.assign(z=z), path)


def small_area(ds: xr.Dataset, path: Path) -> None:
    written(ds.sel(latitude=slice(40, 38), longitude=slice(10, 12)), path)


def elsewhere(ds: xr.Dataset, path: Path) -> None:
    written(ds.assign_coords(latitude=ds["latitude"] - 90 + 20), path)


def coarse(ds: xr.Dataset, path: Path) -> None:
    written(ds.isel(valid_time=slice(None, None, 2)), path)


#: What breaks a file, and what must be told of it: which variable, which law, what was found.
BAD_GRIDS: list[tuple[Bad, tuple[str, ...]]] = [
    (truncated, ("new.nc", "must be a whole NetCDF file")),
    (text, ("new.nc", "must be NetCDF, GRIB or Zarr", "time,msl")),
    (empty, ("new.nc", "must be NetCDF, GRIB or Zarr", "empty file")),
    (wrong_units, ("msl", "units must be convertible to Pa", "'K'")),
    (wrong_values, ("msl", "85000 to 110000 Pa", "are the units right")),
    (without_units, ("msl", "units attribute is missing", "data.units: {msl: Pa}")),
    (duplicate_times, ("time", "must strictly increase", "2001-05-01T18:00:00")),
    (backward_times, ("time", "must strictly increase", "backward", "2001-05-01T07:00:00")),
    (missing_map, ("channel msl_local at 2001-05-03T06:00", "must not be missing", "no value")),
]


@pytest.fixture(scope="module")
def may(small_project: SmallProject) -> xr.Dataset:
    """Twenty maps that the store and the model of the small project have not seen."""
    with xr.open_dataset(small_project.new_grids, engine="netcdf4") as ds:
        return ds.isel(valid_time=slice(0, 20)).load()


@pytest.fixture(scope="module")
def detected(small_project: SmallProject, may: xr.Dataset, tmp_path_factory: object) -> Path:
    """Detections of April, to which May would be added."""
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    folder = tmp_path_factory.mktemp("detected")
    from medicane import pipeline

    april = small_project.new_grids.replace("-05.nc", "-04.nc")
    pipeline.detect([april], model=str(small_project.model_path), out=folder / "found")
    return folder / "found"


class Detect:
    """``medicane detect`` of one bad input into a folder that holds something."""

    def __init__(self, medicane: Medicane, model: Path, out: Path) -> None:
        self.medicane, self.model, self.out = medicane, model, out

    def refused(self, *inputs: object, **options: object) -> str:
        words = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", v)]
        with untouched(self.out):
            answer = self.medicane(
                "detect", *inputs, "--model", self.model, "--out", self.out, *words
            )
        return answer.line


@pytest.fixture
def detect(
    medicane: Medicane, small_project: SmallProject, detected: Path, tmp_path: Path
) -> Detect:
    shutil.copytree(detected, tmp_path / "found")
    return Detect(medicane, small_project.model_path, tmp_path / "found")


BAD_FOR_DETECT: list[tuple[Bad, tuple[str, ...]]] = [
    *BAD_GRIDS,
    (without_heights, ("zg", "must be in the data", "msl, u10, v10")),
    (without_a_level, ("zg at 900 hPa", "the levels 850, 700")),
    (missing_cell, ("thickness_900_600_local at 2001-05-03T06:00", "missing or infinite")),
    (small_area, ("new.nc", "at least 4 x 4 cells", "3 x 3")),
    (elsewhere, ("must overlap the domain", "28 to 48 N")),
    (coarse, ("the model needs maps every 6 h", "found 12 h")),
]


@pytest.mark.parametrize(("bad", "told"), BAD_FOR_DETECT, ids=lambda v: getattr(v, "__name__", ""))
def test_detect_refuses_bad_grids_and_leaves_what_was_detected(
    detect: Detect, may: xr.Dataset, tmp_path: Path, bad: Bad, told: tuple[str, ...]
) -> None:
    bad(may, tmp_path / "new.nc")
    line = detect.refused(tmp_path / "new.nc")
    for part in ("new.nc", *told):
        assert part in line


def test_detect_needs_a_whole_sequence(
    medicane: Medicane, small_project: SmallProject, may: xr.Dataset, tmp_path: Path
) -> None:
    new = written(may.drop_isel(valid_time=[6, 14]), tmp_path / "new.nc")
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("of my own")
    words = ("detect", new, "--model", small_project.model_path, "--out", out)
    with untouched(out):
        line = medicane(*words).line
    assert "new.nc: one sequence is 10 maps 6 h apart without a gap" in line
    assert "found 18 maps, at most 7 in a row" in line
    assert "--allow-short" in line
    assert "18 maps (18 new)" in medicane.done(*words, "--allow-short")


def test_detect_refuses_an_empty_glob_and_a_missing_file(detect: Detect, tmp_path: Path) -> None:
    line = detect.refused(tmp_path / "*.nc")
    assert f"{tmp_path}/*.nc: the glob must match at least one file" in line
    assert "nothing.nc: the file must exist" in detect.refused(tmp_path / "nothing.nc")


def test_detect_refuses_grids_beside_those_it_knows(
    detect: Detect, may: xr.Dataset, tmp_path: Path
) -> None:
    part = written(may.sel(latitude=slice(44, 30)), tmp_path / "part.nc")
    line = detect.refused(part)
    assert "part.nc: latitude: must equal that of the detections that are there (48 to 28)" in line
    assert "found 44 to 30" in line


def test_detect_refuses_what_is_no_model(
    detect: Detect, may: xr.Dataset, tmp_path: Path, small_project: SmallProject
) -> None:
    import keras

    new = written(may, tmp_path / "new.nc")
    detect.model = tmp_path / "nothing.keras"
    assert "nothing.keras: the model must be a .keras file or an MLflow" in detect.refused(new)
    detect.model = tmp_path / "text.keras"
    detect.model.write_text("weights")
    assert "text.keras: must be a .keras model" in detect.refused(new)
    detect.model = tmp_path / "other.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(detect.model)
    assert "other.keras: must be a medicane detector" in detect.refused(new)
    tracking = {"tracking_uri": small_project.tracking_uri}
    for uri, found in [
        ("models:/medicane@nobody", "alias nobody not found"),
        ("models:/nothing@champion", "name=nothing not found"),
        ("models:/medicane/99", "99"),
        ("runs:/0123456789abcdef", "id=0123456789abcdef not found"),
    ]:
        detect.model = uri  # type: ignore[assignment]
        line = detect.refused(new, **tracking)
        assert f"{uri}: no such model in {small_project.tracking_uri}" in line
        assert found in line


def test_detect_does_not_make_a_tracking_database_by_asking(
    detect: Detect, may: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = written(may, tmp_path / "new.nc")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    detect.model = "models:/medicane@champion"  # type: ignore[assignment]
    assert "found no such database" in detect.refused(new)
    assert not list((tmp_path / "here").iterdir())
    (tmp_path / "here" / "mlflow.db").write_text("not a database")
    assert "file is not a database" in detect.refused(new)


@pytest.mark.parametrize("threshold", ["0", "1", "1.5", "-0.1", "nan"])
def test_detect_refuses_a_threshold_that_is_no_probability(detect: Detect, threshold: str) -> None:
    line = detect.refused("new.nc", threshold=threshold)
    assert "--threshold: must lie between 0 and 1; found" in line


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that its process cannot write; root lets go of its power for as long."""
    folder = Path(tempfile.mkdtemp(prefix="medicane-read-only-"))
    (folder / "inside").mkdir()
    folder.chmod(0o755)
    (folder / "inside").chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder / "inside"
    finally:
        if root:
            os.seteuid(0)
        (folder / "inside").chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["detect", "synth", "demo"])
def test_output_that_cannot_be_written(
    medicane: Medicane, tmp_path: Path, command: str, read_only: Path
) -> None:
    line = written_to(medicane, command, read_only / "found").line
    assert "must be a folder that can be written" in line
    assert f"{read_only}: Permission denied" in line
    assert not list(read_only.iterdir())


@pytest.mark.parametrize("command", ["detect", "synth", "demo"])
@pytest.mark.parametrize("out", ["file.txt", "file.txt/found"])
def test_output_that_is_a_file(medicane: Medicane, tmp_path: Path, command: str, out: str) -> None:
    (tmp_path / "file.txt").write_text("of my own")
    with untouched(tmp_path):
        line = written_to(medicane, command, tmp_path / out).line
    assert "must be a folder; found a file" in line
    assert "file.txt" in line


@pytest.mark.parametrize("command", ["synth", "demo"])
def test_output_on_an_object_store(
    medicane: Medicane, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = written_to(medicane, command, "s3://bucket/found").line
    assert "must be a folder on this machine; found s3:/" in line
    assert not list(tmp_path.iterdir())


def written_to(medicane: Medicane, command: str, out: object) -> Answer:
    """A command that would write to `out`; the output is looked at before anything else."""
    words = {
        "detect": ("detect", "new.nc", "--model", "none.keras", "--out", out),
        "synth": ("synth", out, "--years", "0.01"),
        "demo": ("demo", "--out", out),
    }
    return medicane(*words[command])


def test_the_demo_leaves_a_folder_of_others_alone(medicane: Medicane, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("of my own")
    with untouched(tmp_path):
        line = medicane("demo", "--out", tmp_path).line
    assert "must be a new folder or one of an earlier demo; found other files" in line


# --- prepare -------------------------------------------------------------------------------------


@pytest.fixture
def extended(small_project: SmallProject, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the small project's store, and a configuration that would add ``new.nc``."""
    shutil.copytree(small_project.folder / "maps.zarr", tmp_path / "maps.zarr")

    def configured(**data: object) -> Path:
        grids = {"grids": [small_project.grids, str(tmp_path / "new.nc")]}
        catalogue = {"catalogue": str(small_project.folder / "sea" / "storms.csv")}
        return write_config(tmp_path, data={**grids, **catalogue, **data})

    return configured


BAD_FOR_PREPARE: list[tuple[Bad, tuple[str, ...]]] = [
    *((bad, told) for bad, told in BAD_GRIDS if bad not in (wrong_units, without_units)),
    (without_heights, ("new.nc and", "none may be in both", "['z'] in one")),
    (wrong_units, ("new.nc: msl", "units must be those of", "('Pa'); found 'K'")),
    (without_units, ("new.nc: msl", "units must be those of", "('Pa'); found None")),
    (small_area, ("new.nc", "latitude", "coordinates must be exactly equal")),
    (missing_cell, ("thickness_900_600_local at 2001-05-03T06:00", "missing or infinite")),
]


@pytest.mark.parametrize(("bad", "told"), BAD_FOR_PREPARE, ids=lambda v: getattr(v, "__name__", ""))
def test_prepare_refuses_bad_grids_and_leaves_the_store(
    medicane: Medicane,
    may: xr.Dataset,
    extended: Callable[..., Path],
    tmp_path: Path,
    bad: Bad,
    told: tuple[str, ...],
) -> None:
    bad(may, tmp_path / "new.nc")
    config = extended()
    with untouched(tmp_path / "maps.zarr"):
        line = medicane("prepare", "--config", config).line
    for part in told:
        assert part in line


def test_prepare_adds_what_is_good(
    medicane: Medicane, may: xr.Dataset, extended: Callable[..., Path], tmp_path: Path
) -> None:
    """The same configuration and a whole file: the refusals above are for their reasons alone."""
    written(may, tmp_path / "new.nc")
    config = extended()
    assert "(20 new), 2001-01-01T00:00 to 2001-05-05T18:00" in medicane.done(
        "prepare", "--config", config
    )
    with untouched(tmp_path / "maps.zarr"):
        assert "(0 new)" in medicane.done("prepare", "--config", config)


def test_prepare_tells_what_lies_between_the_steps(
    medicane: Medicane, may: xr.Dataset, extended: Callable[..., Path], tmp_path: Path
) -> None:
    written(may, tmp_path / "new.nc")
    config = extended(grids=str(tmp_path / "new.nc"), step_hours=12, store="coarse.zarr")
    told = medicane.done("prepare", "--config", config)
    assert "10 (10 new, 10 between the steps left out)" in told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"grids": "nothing-*.nc"}, ("nothing-*.nc", "must match at least one file")),
        ({"chanels": ["msl"]}, ("config.yaml", "data.chanels: unknown key")),
        ({"channels": ["mls_local"]}, ("'mls_local'", "closest: msl_local")),
        ({"channels": ["msl"]}, ("maps.zarr", "another recipe", "channel")),
        ({"degrees": 2.0}, ("maps.zarr", "another recipe")),
        ({"store": "file.txt"}, ("file.txt", "must be a map store, or not exist")),
        ({"store": "file.txt/maps.zarr"}, ("file.txt", "must be a folder; found a file")),
        ({"store": "s3://bucket/maps.zarr"}, ("data.store", "path on this machine", "s3://")),
        ({"catalogue": "nothing.csv"}, ("nothing.csv",)),
        ({"domain": {"north": 20.0, "south": 30.0}}, ("data.domain", "north must exceed south")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_prepare_refuses_a_bad_configuration(
    medicane: Medicane,
    may: xr.Dataset,
    extended: Callable[..., Path],
    tmp_path: Path,
    data: dict[str, object],
    told: tuple[str, ...],
) -> None:
    written(may, tmp_path / "new.nc")
    (tmp_path / "file.txt").write_text("of my own")
    config = extended(**data)
    with untouched(tmp_path):
        line = medicane("prepare", "--config", config).line
    for part in told:
        assert part in line


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("a,2001-01-02,2001-01-03\nb,2001-02-02,2001-02-01\n", ("line 3", "2001-02-01")),
        ("a,2001-01-02,yesterday\n", ("line 2", "yesterday")),
        ("a,2001-01-02T00:00+02:00,2001-01-03\n", ("line 2", "+02:00")),
    ],
    ids=["end before start", "no time", "not UTC"],
)
def test_prepare_names_the_line_of_a_bad_catalogue(
    medicane: Medicane,
    may: xr.Dataset,
    extended: Callable[..., Path],
    tmp_path: Path,
    rows: str,
    told: tuple[str, ...],
) -> None:
    written(may, tmp_path / "new.nc")
    (tmp_path / "storms.csv").write_text("storm,start,end\n" + rows)
    config = extended(catalogue="storms.csv")
    with untouched(tmp_path):
        line = medicane("prepare", "--config", config).line
    for part in ("storms.csv", *told):
        assert part in line


def test_train_and_evaluate_need_a_store(
    medicane: Medicane, extended: Callable[..., Path], tmp_path: Path
) -> None:
    config = extended(store="nothing.zarr")
    for command in ("train", "evaluate"):
        line = medicane(command, "--config", config).line
        assert "nothing.zarr: must be a map store; 'medicane prepare' writes one" in line


def test_a_second_training_on_a_store_is_refused(
    medicane: Medicane, small_project: SmallProject
) -> None:
    with (
        sole_writer(small_project.folder / "training.checkpoint.npz"),
        untouched(small_project.folder),
    ):
        line = medicane("train", "--config", small_project.config_file).line
    assert "training.checkpoint.npz: one process at a time trains on a store; found " in line


def test_evaluate_refuses_a_model_of_other_channels(
    medicane: Medicane, small_project: SmallProject, extended: Callable[..., Path], tmp_path: Path
) -> None:
    config = extended(
        grids=small_project.grids, channels=["msl_local"], store="other.zarr", degrees=2.0
    )
    medicane.done("prepare", "--config", config)
    with untouched(tmp_path):
        answer = medicane("evaluate", "--config", config, "--model", small_project.model_path)
    assert "other.zarr: the model needs the channels ['msl_local', 'thickness" in answer.line
    assert "found ['msl_local']" in answer.line


def test_bad_input_as_a_process_is_one_line(
    small_project: SmallProject, may: xr.Dataset, detected: Path, tmp_path: Path
) -> None:
    """With TensorFlow started for the model: nothing of its own chatter reaches the user."""
    missing_map(may, tmp_path / "new.nc")
    with untouched(detected):
        answer = process(
            "detect", tmp_path / "new.nc", "--model", small_project.model_path, "--out", detected
        )
    assert "channel msl_local at 2001-05-03T06:00: the map must not be missing" in answer.line
