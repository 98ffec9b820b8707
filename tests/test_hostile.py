"""Hostile input: one clear error or a stated repair, never a silent wrong answer; safe defaults."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.config import Config, load_config, make_config
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.labels import read_catalogue
from medicane.standardise import standardise
from medicane.store import open_store
from tests import hostile
from tests.commands import Medicane
from tests.conftest import ROOT

#: More inputs than a run of all tests has time for: ``--hypothesis-profile=slow``.
settings.register_profile("slow", max_examples=2_000, deadline=None)


def few(examples: int) -> settings:
    """As many examples as fit a run of all tests, or those of the profile ``slow``."""
    more = settings.get_current_profile_name() == "slow"
    return settings(max_examples=2_000 if more else examples, deadline=None)


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, InputError | None]:
    """What a function gives, or its one line; anything else that it raises is a fault."""
    try:
        return function(*arguments), None
    except InputError as error:
        told = error
    assert "\n" not in str(told)
    return None, told


@pytest.fixture
def medicane(capfd: pytest.CaptureFixture[str]) -> Medicane:
    return Medicane(capfd)


# Grids, the whole way through the command --------------------------------------------------------


def configured(folder: Path, grids: object) -> Path:
    """A configuration that would prepare these grids."""
    uris = [str(uri) for uri in grids] if isinstance(grids, list) else str(grids)
    channels = ["msl", "zg_600", "t2m"] if "maps.nc" in str(grids) else ["msl"]
    data = {"grids": uris, "catalogue": None, "channels": channels, "store": "out/prepared.zarr"}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "data": data}, sort_keys=False))
    return path


def test_the_grids_that_are_damaged_below_are_good(medicane: Medicane, tmp_path: Path) -> None:
    """So that each is refused for what was done to it."""
    grids = hostile.written(hostile.good(), tmp_path)
    assert "8 (8 new)" in medicane.done("prepare", "--config", configured(tmp_path, grids))
    for zarr_format in (2, 3):
        folder = tmp_path / str(zarr_format)
        folder.mkdir()
        store = hostile.packed_store(folder, zarr_format)
        np.testing.assert_allclose(
            standardise(open_grids(store))["msl"], hostile.good()["msl"], rtol=1e-6
        )


@pytest.mark.parametrize(("make", "told"), hostile.BAD_GRIDS.values(), ids=list(hostile.BAD_GRIDS))
def test_a_bad_grid_is_one_line_and_no_store(
    make: hostile.Make, told: str, medicane: Medicane, tmp_path: Path
) -> None:
    folder = tmp_path / "grids"
    folder.mkdir()
    config = configured(tmp_path, make(folder))
    line = medicane("prepare", "--config", config).line
    if told not in line:
        assert re.search(told, line), line
    assert not (tmp_path / "out" / "prepared.zarr").exists()
    assert not (folder / "harm").exists()


def test_a_file_of_others_is_told(medicane: Medicane, tmp_path: Path) -> None:
    path = hostile.written(hostile.good(), tmp_path)
    config = configured(tmp_path, path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads whatever it likes")
    assert "maps.nc: the file must be readable" in medicane("prepare", "--config", config).line


def test_an_archive_larger_than_the_disk_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "maps.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("maps.nc", bytes(10_000_000))
    assert path.stat().st_size < 20_000
    whole = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: whole._replace(free=9_000_000))
    with pytest.raises(InputError, match=r"maps\.zip: needs 0\.0 GB of room .*; found 0\.0 GB"):
        open_grids(path)


def test_a_chunk_that_stands_for_missing_may_be_absent(tmp_path: Path) -> None:
    """As Zarr leaves out the sea surface temperature of the land; the store asks to fill it."""
    ds = hostile.good()[["msl"]].astype(np.float32)
    ds["msl"] = ds["msl"].where(ds["time"] != ds["time"][5]).assign_attrs(units="Pa")
    encoding: Any = {"msl": {"chunks": (1, *ds["msl"].shape[1:])}}
    ds.to_zarr(tmp_path / "maps.zarr", zarr_format=3, encoding=encoding)
    assert not (tmp_path / "maps.zarr" / "msl" / "c" / "5").exists()
    assert bool(standardise(open_grids(tmp_path / "maps.zarr"))["msl"][5].isnull().all())


# Configurations ----------------------------------------------------------------------------------

HEAD = "schema_version: 1\ndata: {grids: x.nc}\n"
BAD_CONFIGURATIONS = {
    "a range that is a number": (HEAD + "splits: {train: 5}\n", "splits.train"),
    "a range that is nothing": (HEAD + "splits: {train: null}\n", "splits.train"),
    "a range of numbers": (HEAD + "splits: {train: [1, 2]}\n", "times must be ISO 8601"),
    "a time that no year has": (
        HEAD + "splits: {train: ['9999-12-31T23:59:59-05:00', 2001-01-01]}\n",
        "years 1 to 9999",
    ),
    "an hour that no day has": (HEAD + "label: {version: 2001-01-01 25:00:00}\n", "label|YAML"),
    "infinite": (HEAD + "train: {learning_rate: .inf}\n", "train.learning_rate"),
    "not a number": (HEAD + "data: {grids: x.nc, degrees: .nan}\n", "'data' twice"),
    "a key that is a number": (HEAD + "train: {1: 2}\n", "train.1"),
    "a key that is a list": (HEAD + "train: {[1]: 2}\n", "must be YAML"),
    "a key twice in a section": (HEAD + "train: {seed: 1, seed: 2}\n", "'seed' twice"),
    "a number of 5000 figures": (HEAD + f"train: {{seed: {'9' * 5000}}}\n", "must be YAML"),
    "a bomb of aliases": (
        "schema_version: 1\na: &a [x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefg")
        ),
        "an alias (*)",
    ),
    "code": (HEAD + "train: !!python/object/apply:os.system ['true']\n", "must be YAML"),
    "a byte of nothing": (HEAD + "train: {seed: '\\0'}\n#\0", "must be YAML"),
    "two documents": (HEAD + "---\n" + HEAD, "must be YAML"),
    "a secret": (
        "schema_version: 1\ndata: {grids: x.nc, storage_options: {s3: {secret: hush}}}\n",
        "must hold no secret",
    ),
}


@pytest.mark.parametrize(
    ("text", "told"), BAD_CONFIGURATIONS.values(), ids=list(BAD_CONFIGURATIONS)
)
def test_a_bad_configuration_is_one_line(
    text: str, told: str, medicane: Medicane, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    line = medicane("prepare", "--config", path).line
    assert line.startswith(f"medicane: {path}: ")
    assert len(line) < 1_000
    assert "hush" not in line
    if told not in line:
        assert re.search(told, line), line


def test_a_configuration_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for path in (tmp_path, tmp_path / "loop.yaml"):
        with pytest.raises(InputError, match="must be a readable text file"):
            load_config(path)


FIELDS = {
    name: tuple(getattr(field.annotation, "model_fields", {}))
    for name, field in Config.model_fields.items()
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.datetimes(),
    st.sampled_from(["2001-01-01", "bundled", "gru", "densenet121", "none", "s3://a/b", "~"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Mappings that look like configurations: sections and keys that there are, and values."""
    values: dict[str, Any] = {"schema_version": 1, "data": {"grids": "x.nc"}}
    for section in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3)):
        keys = FIELDS[section] or ("x",)
        inside = st.dictionaries(st.sampled_from(keys), TREES, max_size=3)
        values[section] = draw(st.one_of(inside, TREES))
    return values


@few(60)
@given(configurations())
def test_any_tree_is_a_configuration_or_one_line(values: dict[str, Any]) -> None:
    found, error = outcome(make_config, values)
    assert error is not None or isinstance(found, Config)


@few(40)
@given(
    text=st.one_of(st.text(max_size=60), st.binary(max_size=40).map(lambda b: b.decode("latin-1")))
)
def test_any_text_is_a_configuration_or_one_line(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(f"schema_version: 1\n{text}", encoding="utf-8")
    with pytest.raises(InputError) as told:  # without data there is no configuration
        load_config(path)
    assert "\n" not in str(told.value)


# Catalogues --------------------------------------------------------------------------------------

BAD_CATALOGUES: dict[str, tuple[str | bytes, str]] = {
    "semicolons": ("storm;start;end\na;2001-01-01;2001-01-02\n", "columns must be"),
    "tabulators": ("storm\tstart\tend\na\t2001-01-01\t2001-01-02\n", "printable|columns"),
    "UTF-16": ("storm,start,end\n".encode("utf-16"), "readable text file"),
    "Latin-1": ("storm,start,end\nZé,2001-01-01,2001-01-02\n".encode("latin-1"), "readable text"),
    "a byte of nothing": ("storm,start,end\na\0,2001-01-01,2001-01-02\n", "printable|NUL"),
    "a formula for a name": ("storm,start,end\n=1+1,2001-01-01,2001-01-02\n", "like a formula"),
    "a command for a name": (
        "storm,start,end\n\"=cmd|' /C calc'!A0\",2001-01-01,2001-01-02\n",
        "like a formula",
    ),
    "a formula for a track": ("track_id,time,lat,lon\n@A1,2001-01-01,40,10\n", "like a formula"),
    "a formula for a kind": (
        "storm,start,end,kind\na,2001-01-01,2001-01-02,+A1\n",
        "like a formula",
    ),
    "two lines for a name": ('storm,start,end\n"a\nb",2001-01-01,2001-01-02\n', "printable"),
    "colours of a terminal": ("storm,start,end\n\x1b[2Ja,2001-01-01,2001-01-02\n", "printable"),
    "beyond the pole": ("track_id,time,lat,lon\na,2001-01-01,91,10\n", "a latitude must lie"),
    "endless": ("track_id,time,lat,lon\na,2001-01-01,inf,10\n", "a latitude must lie"),
    "nowhere": ("track_id,time,lat,lon\na,2001-01-01,nan,10\n", "a latitude must lie"),
    "a pressure in Pa": (
        "track_id,time,lat,lon,mslp_hpa\na,2001-01-01,40,10,98000\n",
        "a pressure must be a number of hPa",
    ),
}


@pytest.mark.parametrize(("content", "told"), BAD_CATALOGUES.values(), ids=list(BAD_CATALOGUES))
def test_a_bad_catalogue_is_one_line(content: str | bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "storms.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=told) as found:
        read_catalogue(path)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


def test_what_stands_for_nothing_is_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "storms.csv"
    path.write_text("storm,start,end,kind\n-7,2001-01-01,2001-01-02,-\n")
    assert read_catalogue(path)["storm"].tolist() == ["-7"]


CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["a", "2001-01-01", "2001-01-02T06:00Z", "40", "", "other"]),
)


@few(50)
@given(
    header=st.sampled_from(["storm,start,end,phase", "track_id,time,lat,lon"]),
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=4), max_size=3),
)
def test_any_table_is_a_catalogue_or_one_line(
    header: str, rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8")
    found, error = outcome(read_catalogue, path)
    if error is not None:
        return
    assert (found["start"] <= found["end"]).all()
    text = found.to_csv(index=False)
    assert not re.search(r"(^|,)\"?[=@]\w", text, re.MULTILINE)


# Times -------------------------------------------------------------------------------------------


@few(15)
@given(
    hours=st.lists(st.integers(-48, 48), min_size=1, max_size=6),
    units=st.sampled_from(["hours since 2001-02-28", "days since 1850-01-01", "hours", "K"]),
    calendar=st.sampled_from(["standard", "noleap", "360_day", "julian", "nonsense"]),
)
def test_any_time_axis_increases_or_is_told(
    hours: list[int], units: str, calendar: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "times.nc"
    path.unlink(missing_ok=True)
    ds = hostile.good()[["msl"]].isel(time=np.zeros(len(hours), int))
    ds = ds.assign_coords(time=("time", hours, {"units": units, "calendar": calendar}))
    ds.to_netcdf(path)
    right = " since " in units and calendar != "nonsense" and hours == sorted(set(hours))
    times, error = outcome(lambda: standardise(open_grids(path))["time"].values)
    assert right is (error is None), error
    if error is not None:
        return
    assert len(times) == len(hours)
    assert (times[1:] > times[:-1]).all()


# Models and stores -------------------------------------------------------------------------------


def keras_file(path: Path, config: dict[str, Any], **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config))
        for name, content in others.items():
            archive.writestr(name, content)
    return path


def calling(module: str, name: str, mark: Path) -> dict[str, Any]:
    inside = {"command": f"touch '{mark}'", "args": [f"touch '{mark}'"]}
    return {"module": module, "class_name": name, "config": inside, "registered_name": None}


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen")]
)
def test_a_model_file_runs_nothing(module: str, name: str, tmp_path: Path) -> None:
    import pickle

    from medicane.model import load_detector

    harm = pickle.dumps(hostile.Harm(tmp_path / "harm"))
    told = calling(module, name, tmp_path / "harm")
    path = keras_file(tmp_path / "model.keras", told, **{"model.pkl": harm, "data.pickle": harm})
    with pytest.raises(
        InputError, match=r"model\.keras: must be a \.keras model that loads in safe"
    ):
        load_detector(path)
    path.write_bytes(harm)
    with pytest.raises(InputError, match=r"model\.keras: must be a \.keras model"):
        load_detector(path)
    assert not (tmp_path / "harm").exists()


def test_a_store_of_another_schema_is_told(tmp_path: Path) -> None:
    ds = xr.Dataset(coords={"channel": ["msl"]}, attrs={"schema_version": 1, "complete": True})
    ds.to_zarr(tmp_path / "maps.zarr", zarr_format=3)
    with pytest.raises(InputError, match=r"must be a map store of schema .*; found schema 1"):
        open_store(tmp_path / "maps.zarr")
    (tmp_path / "maps.zarr" / "zarr.json").write_text('{"zarr_format": 3')
    with pytest.raises(InputError, match="must be a map store"):
        open_store(tmp_path / "maps.zarr")


# Safe by default ---------------------------------------------------------------------------------


def sources() -> Iterator[Path]:
    for folder in ("medicane", "flows", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_nothing_unpickles_evaluates_or_calls_a_shell() -> None:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & modules, where
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] not in modules, where
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "os.system", "os.popen"}, where
                assert called != "yaml.load" or "_PlainLoader" in ast.unparse(node), where
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("shell", "False") == "False", where
                assert given.get("allow_pickle", "False") == "False", where
                assert given.get("safe_mode", "True") == "True", where
                assert called != "np.load" or "allow_pickle" in given, where


def test_nothing_listens_to_other_machines() -> None:
    """Servers bind to this machine unless told: nothing here names all addresses."""
    for path in [*sources(), *(ROOT / "config").glob("*.yaml"), ROOT / "Makefile"]:
        assert not re.search(r"0\.0\.0\.0|host=['\"]['\"]", path.read_text(encoding="utf-8")), path


# Licences ----------------------------------------------------------------------------------------


def allowed() -> tuple[set[str], dict[str, str]]:
    """Licences that any package may have, and packages that were looked at one by one."""
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    licences, packages = text.split("## Looked at one by one")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", packages, re.MULTILINE)
    return set(re.findall(r"^\* `([^`]+)`", licences, re.MULTILINE)), dict(rows)


def licence_of(package: str) -> str:
    """What a package says: the SPDX expression, else its classifiers, else the first line."""
    told = metadata.metadata(package)
    expression = told.get("License-Expression")
    classifiers = [
        text.split(" :: ")[-1]
        for text in told.get_all("Classifier") or []
        if text.startswith("License :: ") and not text.endswith(("OSI Approved", "DFSG approved"))
    ]
    words = (told.get("License") or "").strip().splitlines()
    return expression or " AND ".join(classifiers) or (words[0] if words else "")


def locked() -> list[str]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)))


def is_allowed(licence: str, licences: set[str]) -> bool:
    """All of what is joined by AND, and one of what is joined by OR."""
    parts = re.split(r" AND ", licence.replace("(", "").replace(")", ""))
    if licence in licences:
        return True
    return all(any(one in licences for one in part.split(" OR ")) for part in parts)


def test_every_locked_package_has_a_licence_that_is_allowed() -> None:
    licences, looked_at = allowed()
    installed = {re.sub(r"[-_.]+", "-", d.name).lower() for d in metadata.distributions()}
    there = [name for name in locked() if re.sub(r"[-_.]+", "-", name).lower() in installed]
    assert len(there) > 100
    unknown = {
        name: licence_of(name)
        for name in there
        if name not in looked_at and not is_allowed(licence_of(name), licences)
    }
    assert not unknown, f"licences to look at (docs/licences.md): {unknown}"
    assert set(looked_at) <= set(locked()), "packages that are gone from the lock"


@pytest.mark.parametrize(
    ("licence", "right"),
    [
        ("MIT", True),
        ("MIT AND Apache-2.0", True),
        ("MIT OR Proprietary", True),
        ("MIT AND Proprietary", False),
        ("AGPL-3.0-only", False),
        ("", False),
    ],
)
def test_what_is_not_on_the_list_is_not_allowed(licence: str, right: bool) -> None:
    assert is_allowed(licence, allowed()[0]) is right
