"""Folders of map images: ordered by the times in their names, labelled, and taken the whole way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medicane import config, pipeline
from medicane.config import load_config
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.grids.images import time_of
from medicane.labels import label_times, storms_of_labels
from medicane.standardise import standardise

AREA = config.Domain(north=44, south=36, west=6, east=16)
SHAPE = (16, 20)


def pixels(seed: int, *, colours: int = 3) -> np.ndarray:
    shape = SHAPE if colours == 1 else (*SHAPE, colours)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, values: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def folder_of(folder: Path, n: int = 4, **options) -> Path:
    for i, time in enumerate(pd.date_range("2020-09-17", periods=n, freq="6h")):
        write(folder / f"map_{time:%Y%m%d_%H%M}.png", pixels(i, **options))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as told:
        open_grids(folder).compute()
    assert "\n" not in str(told.value)
    return str(told.value)


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("2020091706", "2020-09-17T06:00"),
        ("202009170630", "2020-09-17T06:30"),
        ("ir_20200917_06", "2020-09-17T06:00"),
        ("msl-2020-09-17T06-30-15Z", "2020-09-17T06:30:15"),
        ("2020-09-17 06h30", "2020-09-17T06:30"),
        ("2020_09_17_06_30", "2020-09-17T06:30"),
        ("run0001_2020.09.17.06", "2020-09-17T06:00"),
        ("20200917T06_20200917T06Z", "2020-09-17T06:00"),
    ],
)
def test_times_in_names(name, time) -> None:
    assert time_of(Path(f"{name}.png")) == np.datetime64(time)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("map", "none"),
        ("20200917", "none"),  # a day without its hour
        ("2020-09-17", "none"),
        ("2020091725", "none"),
        ("20201317_06", "none"),
        ("1234567890123", "none"),
        ("20200231_06", "found"),
        ("2020091700_2020091706", "2020-09-17T00:00:00 and 2020-09-17T06:00:00"),
    ],
)
def test_times_that_are_missing_or_ambiguous(name, found) -> None:
    with pytest.raises(InputError, match="must hold one time with its hour") as told:
        time_of(Path(f"folder/{name}.png"))
    assert found in str(told.value)
    assert f"{name}.png" in str(told.value)


@given(
    moment=st.datetimes(
        min_value=pd.Timestamp("1901-01-01").to_pydatetime(),
        max_value=pd.Timestamp("2099-12-31").to_pydatetime(),
    ),
    form=st.sampled_from(["%Y%m%d%H%M", "%Y%m%d_%H%M", "%Y-%m-%dT%H-%M", "%Y_%m_%d_%H_%M"]),
    around=st.sampled_from([("", ""), ("map_", ""), ("v2-", "_crop"), ("", ".final")]),
)
def test_any_moment_is_read_back(moment, form, around) -> None:
    stem = around[0] + moment.strftime(form) + around[1]
    found = time_of(Path(f"{stem}.png"))
    assert found == np.datetime64(moment.replace(second=0, microsecond=0))


# Pixels -----------------------------------------------------------------------------------------


def test_pictures_in_order_of_time_and_lazily(tmp_path) -> None:
    times = pd.date_range("2020-09-17", periods=3, freq="6h")
    for name, i in (("z_2020091700", 0), ("a_2020091712", 2), ("m_2020091706", 1)):
        write(tmp_path / f"{name}.png", pixels(i))
    ds = open_grids(tmp_path)
    assert list(ds.indexes["time"]) == list(times)
    assert ds.sizes == {"time": 3, "row": 16, "column": 20}
    for i, colour in enumerate(("red", "green", "blue")):
        assert ds[colour].chunks is not None
        expected = np.stack([pixels(k)[..., i] for k in range(3)]) / np.float32(255)
        np.testing.assert_array_equal(ds[colour], expected)
    assert "medicane" not in ds.coords


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_pictures(mode, tmp_path) -> None:
    values = pixels(0, colours=1)
    picture = {
        "L": lambda: Image.fromarray(values),
        "LA": lambda: Image.fromarray(values).convert("LA"),
        "1": lambda: Image.fromarray(values).convert("1", dither=Image.Dither.NONE),
        "I;16": lambda: Image.fromarray(values.astype(np.uint16) * 257),
    }[mode]()
    assert picture.mode == mode
    picture.save(tmp_path / "2020091700.png")
    expected = (values >= 128) * 1.0 if mode == "1" else values / 255
    np.testing.assert_allclose(open_grids(tmp_path)["grey"][0], expected, atol=1e-6)


def test_pictures_with_a_palette_or_an_opaque_layer_are_colours(tmp_path) -> None:
    values = pixels(0) // 128 * 255
    Image.fromarray(values).convert("P").save(tmp_path / "2020091700.png")
    Image.fromarray(values).convert("RGBA").save(tmp_path / "2020091706.png")
    ds = open_grids(tmp_path)
    for i, colour in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(ds[colour][1], values[..., i] / 255, atol=1e-6)
        np.testing.assert_allclose(ds[colour][0], values[..., i] / 255, atol=0.2)


def test_jpeg_and_png_may_be_mixed(tmp_path) -> None:
    even = np.full((*SHAPE, 3), 100, np.uint8)
    write(tmp_path / "2020091700.png", even)
    write(tmp_path / "2020091706.JPG", even, quality=95)
    np.testing.assert_allclose(open_grids(tmp_path)["green"], 100 / 255, atol=0.02)


def test_pictures_that_are_refused(tmp_path) -> None:
    folder_of(tmp_path / "sizes", 2)
    write(tmp_path / "sizes" / "2020092000.png", pixels(0)[:8])
    told = refused(tmp_path / "sizes")
    assert "2020092000.png: all pictures must be alike" in told
    assert "20 x 16 pixels, colour" in told
    assert "found 20 x 8 pixels, colour" in told
    folder_of(tmp_path / "kinds", 2)
    write(tmp_path / "kinds" / "2020092000.png", pixels(0, colours=1))
    assert "found 20 x 16 pixels, grey" in refused(tmp_path / "kinds")
    folder_of(tmp_path / "twice", 2)
    write(tmp_path / "twice" / "20200917T06Z.png", pixels(0))
    assert "no two pictures may be of one time" in refused(tmp_path / "twice")
    clear = pixels(0, colours=4)
    write(tmp_path / "clear" / "2020091700.png", clear)
    assert "no pixel may be transparent" in refused(tmp_path / "clear")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "2020091700.png").write_text("no picture")
    assert "2020091700.png: must be a PNG or JPEG" in refused(tmp_path / "text")
    Image.fromarray(pixels(0)).convert("CMYK").save(tmp_path / "text" / "2020091700.jpg")
    (tmp_path / "text" / "2020091700.png").unlink()
    assert "must be grey or of red, green and blue; found the kind CMYK" in refused(
        tmp_path / "text"
    )


def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path) -> None:
    folder_of(tmp_path, 3)
    cut = tmp_path / "map_20200917_0600.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    ds = open_grids(tmp_path)
    with pytest.raises(InputError, match=r"map_20200917_0600\.png: the picture must be whole"):
        ds["red"].compute()


def test_one_picture_alone_or_an_empty_folder(tmp_path) -> None:
    path = write(tmp_path / "some" / "2020091700.png", pixels(0))
    with pytest.raises(InputError, match="give the folder"):
        open_grids(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must be a Zarr store or hold map images"):
        open_grids(tmp_path / "empty")


# Labels -----------------------------------------------------------------------------------------


def labelled(folder: Path, labels: list[str]) -> Path:
    for i, time in enumerate(pd.date_range("2020-09-17", periods=len(labels), freq="6h")):
        write(folder / labels[i] / f"{time:%Y%m%d%H}.png", pixels(i))
    return folder


def test_class_folders_label(tmp_path) -> None:
    labels = ["not_medicane", "medicane", "medicane", "unknown", "not_medicane"]
    ds = open_grids(labelled(tmp_path, labels))
    assert ds["medicane"].values.tolist() == [0, 1, 1, -1, 0]
    np.testing.assert_array_equal(ds["red"][3], pixels(3)[..., 0] / np.float32(255))


def test_a_table_labels(tmp_path) -> None:
    folder_of(tmp_path, 3)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    table = tmp_path / "labels.csv"
    table.write_text(f"file,label\n{names[2]},medicane\n{names[0]},0\n{names[1]},unknown\n")
    assert open_grids(tmp_path)["medicane"].values.tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("name,label\n", "must have the columns file,label"),
        ("file,label\nA,perhaps\n", "line 2: label must be one of medicane"),
        ("file,label\nA,1\nA,0\n", "line 3: each picture must be named once; found A"),
        ("file,label\nother.png,1\n", "must name pictures of its folder; found other.png"),
        ("file,label\nA,1\n", "must label B (unknown is a label)"),
        ("", "must have the columns file,label"),
    ],
)
def test_tables_that_are_refused(table, found, tmp_path) -> None:
    folder_of(tmp_path, 2)
    a, b = sorted(path.name for path in tmp_path.glob("*.png"))
    (tmp_path / "labels.csv").write_text(table.replace("A", a).replace("B", b))
    assert found.replace("B", b).replace(" A", f" {a}") in refused(tmp_path)


def test_labels_that_contradict_one_another(tmp_path) -> None:
    labelled(tmp_path / "odd", ["medicane", "storm"])
    told = refused(tmp_path / "odd")
    assert "sub-folders must be named medicane, not_medicane, unknown; found storm/" in told
    labelled(tmp_path / "both", ["medicane"])
    write(tmp_path / "both" / "2020092000.png", pixels(0))
    assert "class sub-folders or beside them" in refused(tmp_path / "both")
    labelled(tmp_path / "table", ["medicane"])
    (tmp_path / "table" / "labels.csv").write_text("file,label\n")
    assert "class sub-folders label the pictures already" in refused(tmp_path / "table")
    labelled(tmp_path / "twice", ["medicane", "not_medicane"])
    write(tmp_path / "twice" / "medicane" / "2020091706.png", pixels(0))
    assert "no two pictures may be of one time" in refused(tmp_path / "twice")


@given(st.lists(st.sampled_from([1, 0, -1]), min_size=1, max_size=40), st.integers(0, 39))
def test_labels_of_maps_make_the_catalogue_that_makes_them(labels, gap) -> None:
    """Whatever the labels, and wherever the maps have a gap of days."""
    times = pd.date_range("2020-01-01", periods=len(labels), freq="6h").to_numpy().copy()
    times[gap:] += np.timedelta64(5, "D")
    index, told = pd.DatetimeIndex(times), np.array(labels, np.int8)
    storms = storms_of_labels(index, told, step_hours=6)
    again = label_times(index, storms, definition=config.Label())
    np.testing.assert_array_equal(again["medicane"], told)
    of_storms = storms[storms["phase"] == "medicane"]
    assert of_storms["storm"].is_unique
    if 0 < gap < len(labels):  # no storm spans the gap
        assert not ((of_storms["start"] < times[gap]) & (of_storms["end"] >= times[gap])).any()


# On the way -------------------------------------------------------------------------------------


def test_a_picture_spans_the_domain(tmp_path) -> None:
    ds = open_grids(folder_of(tmp_path, 2))
    with pytest.raises(InputError, match="need the domain that they span"):
        standardise(ds)
    out = standardise(ds, domain=AREA)
    np.testing.assert_allclose(out["latitude"], np.arange(43.75, 36, -0.5))
    np.testing.assert_allclose(out["longitude"], np.arange(6.25, 16, 0.5))
    np.testing.assert_array_equal(out["red"][0], pixels(0)[..., 0] / np.float32(255))
    assert out["red"].attrs == {"units": "1", "long_name": "red of a map image"}


def test_pictures_can_be_made_coarser(tmp_path) -> None:
    out = standardise(open_grids(folder_of(tmp_path, 2)), domain=AREA, degrees=2.0)
    assert out["red"].shape == (2, 3, 4)
    assert 0.3 < float(out["red"].mean()) < 0.7


def settings(root: Path, **data) -> Path:
    values = {
        "schema_version": 1,
        "data": {
            "grids": "pictures",
            "degrees": None,
            "domain": AREA.model_dump(),
            "channels": ["red", "green", "blue"],
            **data,
        },
        "sequences": {"length": 10, "stride": 5},
        "splits": {"fractions": [0.5, 0.25, 0.25]},
        "model": {"blocks": [1], "growth_rate": 4, "units": 4},
        "train": {"epochs": 1, "batch_size": 8},
    }
    file = root / "config.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def storms_in(folder: Path, n: int = 96) -> Path:
    """Noise, and a white spot where there is a medicane: six maps of every twenty-four."""
    for i, time in enumerate(pd.date_range("2001-01-01", periods=n, freq="6h")):
        there = i % 24 >= 18
        values = pixels(i) // 3
        if there:
            values[4:9, 6:11] = 255
        name = "medicane" if there else "not_medicane"
        write(folder / name / f"map_{time:%Y%m%d_%H}.png", values)
    return folder


def test_pictures_are_prepared_with_their_own_labels(tmp_path) -> None:
    storms_in(tmp_path / "pictures", 48)
    done = pipeline.prepare(load_config(settings(tmp_path)))
    assert (done.n_maps, done.n_medicane) == (48, 12)
    with xr.open_zarr(tmp_path / "maps.zarr") as store:
        stored = store.load()
    assert stored["medicane"].values.tolist() == ([0] * 18 + [1] * 6) * 2
    assert sorted({str(s) for s in stored["storm"].values} - {""}) == [
        "2001-01-05T12:00",
        "2001-01-11T12:00",
    ]
    assert stored.attrs["catalogue"] == "that of the maps"
    again = pipeline.prepare(load_config(settings(tmp_path)))
    assert (again.n_new, again.digest) == (0, done.digest)


def test_later_pictures_leave_the_labels_of_earlier_ones(tmp_path) -> None:
    """The folder of the new month no longer holds the old one."""
    storms_in(tmp_path / "pictures", 48)
    pipeline.prepare(load_config(settings(tmp_path)))
    os.rename(tmp_path / "pictures", tmp_path / "old")
    for i, time in enumerate(pd.date_range("2001-01-13", periods=4, freq="6h")):
        write(tmp_path / "pictures" / "medicane" / f"{time:%Y%m%d%H}.png", pixels(i))
    done = pipeline.prepare(load_config(settings(tmp_path)))
    assert (done.n_maps, done.n_new, done.n_medicane) == (52, 4, 16)


def test_labelled_pictures_and_another_catalogue_are_one_too_many(tmp_path) -> None:
    storms_in(tmp_path / "pictures", 24)
    (tmp_path / "storms.csv").write_text("storm,start,end\na,2001-01-01,2001-01-02\n")
    file = settings(tmp_path, catalogue="storms.csv")
    with pytest.raises(InputError, match="take no other catalogue"):
        pipeline.prepare(load_config(file))
    assert not (tmp_path / "maps.zarr").exists()


def test_pictures_without_labels_take_those_of_the_catalogue(tmp_path) -> None:
    folder_of(tmp_path / "pictures", 12)  # 17 to 19 September 2020: Ianos
    done = pipeline.prepare(load_config(settings(tmp_path)))
    assert done.n_medicane > 0


@pytest.mark.slow
def test_the_whole_way_with_pictures(tmp_path) -> None:
    """Prepare, train one epoch, detect: every later picture gets a probability."""
    storms_in(tmp_path / "pictures")
    configured = load_config(settings(tmp_path))
    pipeline.prepare(configured)
    trained = pipeline.train(configured)
    new = tmp_path / "new"
    for i, time in enumerate(pd.date_range("2002-01-01", periods=12, freq="6h")):
        write(new / f"{time:%Y%m%d%H}.png", pixels(i) // 3)
    found = pipeline.detect(
        [new], model=trained.model_uri, tracking=trained.tracking_uri, out=tmp_path / "found"
    )
    assert (found.n_maps, found.n_new) == (12, 12)
    with xr.open_dataset(tmp_path / "found" / "detections.nc") as ds:
        assert ds["probability"].notnull().all()
    write(new / "2002010400.png", pixels(0)[:8])
    with pytest.raises(InputError, match="all pictures must be alike"):
        pipeline.detect(
            [new], model=trained.model_uri, tracking=trained.tracking_uri, out=tmp_path / "found"
        )


@pytest.mark.slow
def test_densenet121_learns_from_pictures_with_local_weights(tmp_path) -> None:
    """Transfer learning: conv5 and the head are trained, the rest keeps the weights of the file."""
    import keras

    from medicane import model as detector

    source = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    source.save_weights(tmp_path / "densenet121.weights.h5")
    for i, time in enumerate(pd.date_range("2001-01-01", periods=120, freq="6h")):
        there = i % 12 >= 9
        values = np.random.default_rng(i).integers(0, 80, (32, 32, 3), dtype=np.uint8)
        values[8:16, 8:16] = 255 if there else values[8:16, 8:16]
        name = "medicane" if there else "not_medicane"
        write(tmp_path / "pictures" / name / f"map_{time:%Y%m%d_%H}.png", values)
    file = settings(tmp_path)
    values = yaml.safe_load(file.read_text())
    values["model"] = {
        "encoder": "densenet121",
        "weights": str(tmp_path / "densenet121.weights.h5"),
        "attention": "none",
        "units": 4,
    }
    values["sequences"]["stride"] = 10
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    configured = load_config(file)
    pipeline.prepare(configured)
    trained = pipeline.train(configured)
    from medicane import experiments

    path = experiments.model_file(trained.model_uri, tracking=trained.tracking_uri).path
    network = detector.load_detector(path)
    backbone = detector.encoder_of(network).get_layer("densenet121")
    before = source.get_layer("conv2_block1_1_conv").get_weights()[0]
    np.testing.assert_array_equal(
        backbone.get_layer("conv2_block1_1_conv").get_weights()[0], before
    )
    moved = backbone.get_layer("conv5_block16_2_conv").get_weights()[0]
    assert np.abs(moved - source.get_layer("conv5_block16_2_conv").get_weights()[0]).max() > 0
