"""The configuration: what is refused, with which words, and where paths lead."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
import yaml

from medicane import names
from medicane.config import Config, Splits, load_config, make_config
from medicane.errors import InputError

LEAST = {"schema_version": 1, "data": {"grids": "grids/*.nc"}}


def written(folder: Path, text: str) -> Path:
    path = folder / "medicane.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(section: str, **values: object) -> dict[str, object]:
    return {**LEAST, section: {**LEAST.get(section, {}), **values}}


def refused(values: dict[str, object]) -> str:
    with pytest.raises(InputError) as told:
        make_config(values)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_only_the_data_have_no_default(tmp_path):
    config = load_config(written(tmp_path, yaml.safe_dump(LEAST, sort_keys=False)))
    assert config.data.degrees == 0.5
    assert config.data.channel_names == names.DEFAULT_CHANNELS
    assert (config.data.domain.west, config.data.domain.east) == (-10, 42)


def test_the_configuration_is_immutable():
    config = make_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.data.degrees = 1.0


def test_relative_paths_start_at_the_configuration(tmp_path):
    text = yaml.safe_dump(
        {
            "schema_version": 1,
            "data": {
                "grids": ["grids/*.nc", "s3://bucket/era5.zarr", "/abs/one.nc"],
                "catalogue": "storms.csv",
            },
            "model": {"weights": "notop.h5"},
        },
        sort_keys=False,
    )
    folder = tmp_path / "here"
    folder.mkdir()
    config = load_config(written(folder, text))
    assert config.data.grids == (
        str(folder / "grids/*.nc"),
        "s3://bucket/era5.zarr",
        "/abs/one.nc",
    )
    assert config.data.catalogue == str(folder / "storms.csv")
    assert config.data.store == str(folder / "maps.zarr")
    assert config.model.weights == str(folder / "notop.h5")


def test_paths_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    path = written(tmp_path, yaml.safe_dump(LEAST, sort_keys=False))
    monkeypatch.chdir(tmp_path.parent)
    by_relative = load_config(os.path.relpath(path))
    assert by_relative == load_config(path)


def test_one_grid_is_a_list_of_one():
    assert make_config(LEAST).data.grids == ("grids/*.nc",)
    assert "empty list" in refused(changed("data", grids=[]))


def test_unknown_keys_are_named():
    assert "data.gridz: unknown key" in refused(changed("data", gridz="x"))
    assert "trainn: unknown key" in refused({**LEAST, "trainn": {}})


def test_missing_data_are_named():
    assert "data: this key is required" in refused({"schema_version": 1})
    assert "data.grids: this key is required" in refused({"schema_version": 1, "data": {}})


def test_several_faults_are_counted():
    told = refused({"schema_version": 1, "data": {}, "extra": 1, "more": 2})
    assert told.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sequences", "length", 9),
        ("sequences", "length", 16),
        ("sequences", "stride", 0),
        ("data", "step_hours", 0),
        ("data", "step_hours", 25),
        ("data", "degrees", 0),
        ("train", "learning_rate", 0),
        ("train", "epochs", 0),
        ("model", "dropout", 1),
        ("model", "rnn", "transformer"),
        ("model", "blocks", []),
        ("label", "radius_km", 0),
        ("detect", "threshold", 1.5),
        ("detect", "mode", "guess"),
        ("sea", "base_rate", 0.7),
    ],
)
def test_values_out_of_range_are_told_with_the_value(section, key, value):
    told = refused(changed(section, **{key: value}))
    assert f"{section}.{key}" in told
    assert "found" in told
    assert str(value) in told


def test_the_ends_of_a_range_are_allowed():
    assert make_config(changed("sequences", length=10)).sequences.length == 10
    assert make_config(changed("sequences", length=15)).sequences.length == 15


@pytest.mark.parametrize(
    ("box", "law"),
    [
        ({"north": 20, "south": 30}, "north must exceed south"),
        ({"west": 30, "east": 10}, "east must exceed west"),
        ({"north": 95}, "less than or equal to 90"),
        ({"east": 180}, "less than 180"),
    ],
)
def test_a_domain_is_a_box(box, law):
    assert law in refused(changed("data", domain=box))


def test_channels_are_named_once():
    assert "'msl'" in refused(changed("data", channels=["msl", "u10", "msl"]))
    formula = {"name": "msl", "formula": "msl - 100000", "units": "Pa"}
    assert "unique" in refused(changed("data", channels=["msl", formula]))
    config = make_config(changed("data", channels=["u10", formula]))
    assert config.data.channel_names == ("u10", "msl")


def test_the_gap_is_longer_than_a_sequence_unless_given():
    config = make_config(changed("sequences", length=12))
    assert config.gap_hours > 12 * config.data.step_hours
    assert make_config(changed("sequences", gap_hours=0)).gap_hours == 0


def test_date_ranges_are_utc_and_inclusive():
    splits = Splits(
        train=["2001-01-01", "2001-12-31"],
        validation=[["2002-01-01T00:00:00+02:00", "2002-06-30"]],
        test=[dt.date(2003, 1, 1), dt.date(2003, 12, 31)],
    )
    assert splits.train[0][0] == dt.datetime(2001, 1, 1)
    assert splits.train[0][1] > dt.datetime(2001, 12, 31, 23, 59)
    assert splits.validation[0][0] == dt.datetime(2001, 12, 31, 22)
    assert splits.test[0][1].date() == dt.date(2003, 12, 31)


@pytest.mark.parametrize(
    ("splits", "law"),
    [
        ({"train": ["2002-01-01", "2001-01-01"]}, "must not end before it starts"),
        ({"train": ["2001-01-01", "2002-01-01"]}, "for train, validation and test"),
        ({"train": ["the spring", "2002-01-01"]}, "ISO 8601"),
        ({"fractions": [0.5, 0.5, 0.5]}, "sum to 1"),
        ({"fractions": [1.0, 0.5, -0.5]}, "positive"),
    ],
)
def test_splits_that_make_no_sense(splits, law):
    assert law in refused({**LEAST, "splits": splits})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: .*must be a readable text file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("schema_version: 1\ndata: [unclosed", "must be YAML"),
        ("- a\n- list\n", "must be a mapping"),
        ("schema_version: 1\ndata: {grids: a.nc, grids: b.nc}\n", "found the key 'grids' twice"),
        ("schema_version: 1\ndata: {store: 2001-02-30}\n", "found day is out of range"),
        ("schema_version: 1\ndata: {step_hours: !!int six}\n", "must be YAML of plain values"),
        ("schema_version: 1\ndata: " + "[" * 5000, "too many values inside one another"),
        ("schema_version: 1\nsea: &sea {}\ndata: *sea\n", "found an alias (*)"),
        ("schema_version: 1\ndata: !!python/name:os.system\n", "could not determine a constr"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("data:\n  grids: x.nc\nschema_version: 1\n", "schema_version must be the first key"),
        ("data:\n  grids: x.nc\n", "schema_version must be the first key"),
        ("schema_version: 2\ndata:\n  grids: x.nc\n", "schema_version"),
        ("schema_version: 1\ndata: none\n", "data"),
    ],
)
def test_broken_files_give_one_line_with_their_name(tmp_path, text, law):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as told:
        load_config(path)
    message = str(told.value)
    assert message.startswith(str(path))
    assert law in message
    assert "\n" not in message


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "medicane.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="readable text file"):
        load_config(path)


def test_a_configuration_survives_its_own_writing():
    config = make_config(changed("data", units={"msl": "hPa"}, select={"number": 0}))
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again == config
