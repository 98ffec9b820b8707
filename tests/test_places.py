"""Detections in a folder and on an object store: the same, continued, and never half of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import s3fs
import xarray as xr

from medicane.detections import label_maps
from medicane.errors import InputError
from medicane.places import Bucket, Folder, place_of, read_from
from medicane.remote import Remote, attempts
from tests.servers import S3_ACCOUNT, Faults, breaking, object_store

STEP = 6


def series(n: int) -> xr.Dataset:
    """Detections of the first `n` maps of a record."""
    draw = np.random.default_rng(7)
    times = pd.date_range("2020-01-01", periods=n, freq=f"{STEP}h")
    logit = draw.normal(size=100).astype(np.float32)[:n]
    predicted = xr.Dataset(
        {
            "logit": ("time", logit),
            "probability": ("time", 1 / (1 + np.exp(-logit))),
            "n_sequences": ("time", np.ones(n, np.int32)),
        },
        {"time": times},
    )
    lows = xr.Dataset(
        {f"low_{axis}": ("time", draw.uniform(30, 40, n)) for axis in ("latitude", "longitude")},
        {"time": times},
    )
    return label_maps(predicted, threshold=0.6, lows=lows, attributes={"step_hours": STEP})


def history(n: int) -> xr.DataArray:
    """The last maps before the end of `series(n)`."""
    shape, times = (9, 2, 4, 5), series(n)["time"].values[-9:]
    return xr.DataArray(
        np.random.default_rng(n).normal(size=shape).astype(np.float32),
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": times,
            "channel": ["msl", "u10"],
            "latitude": np.arange(4.0),
            "longitude": np.arange(5.0),
        },
        attrs={"last_lows": "[]"},
    )


def write(place: Folder | Bucket, n: int) -> None:
    replaces = place.digest() or ""
    place.write(series(n), step_hours=STEP, history=history(n), replaces=replaces)


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with object_store() as address:
        yield address


@pytest.fixture
def faults(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """An object store with an empty bucket, and what may fail on the way to it."""
    from fsspec.config import conf

    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.002)
    for name, value in S3_ACCOUNT.items():
        monkeypatch.setenv(name, value)
    with breaking(store) as (address, faults):
        monkeypatch.setitem(conf, "s3", {"endpoint_url": address})
        yield faults


_numbers = itertools.count()


@pytest.fixture
def uri(faults: Faults, store: str) -> str:
    name = f"found-{next(_numbers)}"
    s3fs.S3FileSystem(endpoint_url=store).mkdir(name)
    return f"s3://{name}/daily"


def test_a_uri_is_a_bucket_and_a_path_a_folder(uri: str, tmp_path: Path) -> None:
    assert isinstance(place_of(uri), Bucket)
    assert isinstance(place_of(tmp_path / "found"), Folder)
    assert place_of(uri).detections == f"{uri}/detections.zarr"
    assert place_of(tmp_path).events == str(tmp_path / "events.csv")


def test_both_keep_the_same(uri: str, tmp_path: Path) -> None:
    bucket, folder = place_of(uri), place_of(tmp_path)
    assert bucket.digest() is folder.digest() is None
    for n in (20, 31, 44):
        for place in (bucket, folder):
            write(place, n)
        (one, before), (other, maps) = bucket.read(), folder.read()
        xr.testing.assert_equal(one, other)
        xr.testing.assert_equal(before, maps)
        assert before is not None
        assert before.attrs["last_lows"] == "[]"
        assert one.sizes["time"] == n
        assert one.attrs.keys() == other.attrs.keys()
        xr.testing.assert_equal(read_from(bucket.detections), one)
        xr.testing.assert_equal(read_from(folder.detections), one)
        for name in ("events.csv", "tracks.csv"):
            assert Remote(uri).read(name) == (tmp_path / name).read_bytes()


def test_one_line_of_xarray_opens_them(uri: str, faults: Faults) -> None:
    write(place_of(uri), 20)
    from fsspec.config import conf

    ds = xr.open_zarr(f"{uri}/detections.zarr", storage_options=dict(conf["s3"]))
    np.testing.assert_array_equal(ds["medicane"].values, series(20)["medicane"].values)


def test_a_writer_that_is_cut_anywhere_changes_nothing(uri: str, faults: Faults) -> None:
    """From some object on none can be put any more: the first, any other, the document itself."""
    bucket = place_of(uri)
    write(bucket, 20)
    faults.requests.clear()
    write(bucket, 31)
    puts = [path for method, path in faults.requests if method == "PUT"]
    document = next(i for i, p in enumerate(puts) if p.endswith("detections.zarr/zarr.json"))
    assert document > 10
    written, digest = bucket.read()[0], bucket.digest()
    for skip in (0, 1, document // 2, document - 2, document):
        faults.inject("500", times=10**6, skip=skip, methods=("PUT",))
        with pytest.raises(InputError, match="must be writable"):
            write(bucket, 44)
        faults.plan.clear()
        assert bucket.digest() == digest, skip
        xr.testing.assert_identical(bucket.read()[0], written)
    write(bucket, 44)
    assert bucket.read()[0].sizes["time"] == 44


def test_a_reader_goes_on_with_what_was_there(uri: str, faults: Faults) -> None:
    bucket = place_of(uri)
    write(bucket, 20)
    store: Any = Remote(f"{uri}/detections.zarr").zarr_store()
    open_before = xr.open_zarr(store, chunks=None)
    write(bucket, 31)
    xr.testing.assert_equal(open_before.load(), series(20))


def test_faults_that_pass_lose_nothing(uri: str, faults: Faults) -> None:
    bucket = place_of(uri)
    for kind in ("500", "refused"):
        faults.inject(kind, times=3, methods=("PUT",))
    write(bucket, 20)
    assert faults.met == 6
    faults.inject("cut", times=3)
    xr.testing.assert_equal(bucket.read()[0], series(20))


def test_a_second_writer_is_noticed(uri: str, tmp_path: Path) -> None:
    for place in (place_of(uri), place_of(tmp_path)):
        write(place, 20)
        read = place.digest() or ""
        write(place, 31)
        with pytest.raises(InputError, match="must not change while maps are added"):
            place.write(series(44), step_hours=STEP, history=history(44), replaces=read)
        assert place.read()[0].sizes["time"] == 31


def test_what_medicane_did_not_write_is_left_alone(uri: str) -> None:
    Remote(f"{uri}/detections.zarr").write("zarr.json", b'{"zarr_format": 3}')
    with pytest.raises(InputError, match="must be detections that medicane wrote, or not exist"):
        place_of(uri).read()


def test_a_store_that_does_not_answer_is_one_error(uri: str, faults: Faults) -> None:
    faults.inject("500", times=10**6, methods=("GET", "HEAD"))
    with pytest.raises(InputError, match="tried 5 times") as caught:
        place_of(uri).digest()
    assert str(caught.value).startswith(f"{uri}: must be readable")


@pytest.mark.slow
def test_detect_writes_to_an_object_store_and_goes_on(
    uri: str, small_project: Any, tmp_path: Path
) -> None:
    from medicane import pipeline

    half = tmp_path / "first.nc"
    with xr.open_dataset(small_project.new_grids) as ds:
        ds.isel(valid_time=slice(0, 60)).to_netcdf(half)
    model = str(small_project.model_path)
    for out in (uri, tmp_path / "found"):
        first = pipeline.detect([str(half)], model=model, out=out)
        second = pipeline.detect([small_project.new_grids], model=model, out=out)
        assert first.n_new == 60
        assert second.n_new == second.n_maps - 60 > 0
    one, other = read_from(f"{uri}/detections.zarr"), read_from(tmp_path / "found/detections.nc")
    xr.testing.assert_equal(one, other)
    strip = pipeline.probability_strip(f"{uri}/detections.zarr")
    assert strip == pipeline.probability_strip(tmp_path / "found" / "detections.nc")
