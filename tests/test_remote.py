"""Files and stores behind URIs: read as from disk, through servers that fail, or one error."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import string
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.retries import io_fault
from medicane import remote
from medicane.config import load_config, make_config
from medicane.errors import InputError, redacted
from medicane.grids import open_grids
from medicane.remote import RangeFile, Remote, attempts, expand, is_remote
from tests import dialects
from tests.commands import Medicane
from tests.conftest import ROOT
from tests.servers import (
    S3_ACCOUNT,
    Faults,
    breaking,
    bucket,
    file_server,
    fill_bucket,
    object_store,
    s3_options,
)

FORMATS = ("today.nc", "before.nc", "both.zip", "maps.zarr")
SECRET = "planted-s3cret"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what it has broken itself."""
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.002)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same fields in every format, in several blocks and chunks."""
    folder = tmp_path_factory.mktemp("archive")
    values = dialects.fields(8)
    dialects.today(folder / "today.nc", values)
    dialects.today(folder / "later.nc", values, start="2020-10-01")
    surface = {name: values[name] for name in ("msl", "u10", "v10")}
    dialects.before(folder / "before.nc", surface)
    with zipfile.ZipFile(folder / "both.zip", "w") as packed:
        packed.write(folder / "today.nc", "data.nc")
    ds = open_grids(folder / "today.nc").load().drop_encoding()
    ds.attrs.clear()
    chunks = {n: {"chunks": (2, *a.shape[1:])} for n, a in ds.data_vars.items()}
    ds.to_zarr(folder / "maps.zarr", encoding=chunks, zarr_format=2)
    # Stored as they are: no codec would notice that a chunk is short.
    plain = {n: {"chunks": (2, *a.shape[1:]), "compressors": None} for n, a in ds.data_vars.items()}
    ds.to_zarr(folder / "plain.zarr", encoding=plain, zarr_format=2)
    (folder / "notes.txt").write_text("no grid at all")
    (folder / "empty.nc").write_bytes(b"")
    return folder


@dataclass(frozen=True)
class Door:
    """A way to the archive: what its URIs begin with, how it is reached, and what may fail."""

    base: str
    options: dict[str, dict[str, Any]]
    faults: Faults

    def open(self, name: str) -> xr.Dataset:
        return open_grids(f"{self.base}/{name}", storage_options=self.options)

    def place(self, name: str) -> Remote:
        return Remote(f"{self.base}/{name}", self.options)


@pytest.fixture(scope="module")
def s3(archive: Path) -> Iterator[str]:
    """An object store with the archive in its bucket ``maps``."""
    with object_store() as address:
        fill_bucket(address, "maps", archive)
        yield address


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3_ACCOUNT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def https(archive: Path) -> Iterator[Door]:
    with file_server(archive) as upstream, breaking(upstream) as (address, faults):
        yield Door(address, {}, faults)


@pytest.fixture
def bucket_of_s3(s3: str, account: None) -> Iterator[Door]:
    with breaking(s3) as (address, faults):
        yield Door("s3://maps", s3_options(address), faults)


@pytest.fixture(params=["https", "s3"])
def door(request: pytest.FixtureRequest) -> Door:
    name = {"https": "https", "s3": "bucket_of_s3"}[request.param]
    found: Door = request.getfixturevalue(name)
    return found


def refused(act: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value


def links(error: BaseException | None) -> list[BaseException]:
    """The error and all that a traceback would show behind it."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


# What is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_from_afar_is_what_is_on_disk(name: str, door: Door, archive: Path) -> None:
    here = open_grids(archive / name)
    xr.testing.assert_identical(
        door.open(name).drop_attrs(deep=False).load(), here.drop_attrs(deep=False).load()
    )


def test_grib_is_copied_and_read(https: Door, archive: Path) -> None:
    pytest.importorskip("cfgrib")
    with (archive / "one.grib2").open("wb") as file:
        about = {"centre": "ecmf", "dataDate": 20200917, "dataTime": 0}
        field = dialects.fields(1)["msl"][0]
        dialects.grib_message(file, field, about, short="msl", kind="meanSea", level=0)
    there, here = https.open("one.grib2"), open_grids(archive / "one.grib2")
    np.testing.assert_array_equal(there["msl"].values, here["msl"].values)


def test_globs_follow_one_another_in_time(door: Door, archive: Path) -> None:
    ds = open_grids([f"{door.base}/today.nc", f"{door.base}/l*r.nc"], storage_options=door.options)
    here = open_grids([archive / "today.nc", archive / "later.nc"])
    xr.testing.assert_equal(ds.load(), here.load())
    sources = json.loads(ds.attrs["source_files"])
    assert sources == [f"{door.base}/today.nc", f"{door.base}/later.nc"]


def test_a_glob_matches_what_is_there_now(door: Door, archive: Path) -> None:
    assert expand(f"{door.base}/*o*y.nc", door.options) == [f"{door.base}/today.nc"]
    told = str(refused(lambda: expand(f"{door.base}/1999*.nc", door.options)))
    assert told == f"{door.base}/1999*.nc: the glob must match at least one file; found none"


def test_a_listing_is_asked_for_anew(https: Door, archive: Path) -> None:
    before = expand(f"{https.base}/today*.nc")
    (archive / "today2.nc").write_bytes((archive / "today.nc").read_bytes())
    try:
        assert len(expand(f"{https.base}/today*.nc")) == len(before) + 1
    finally:
        (archive / "today2.nc").unlink()


def test_google_cloud_storage_is_read_without_an_account(archive: Path) -> None:
    with bucket(archive) as upstream, breaking(upstream) as (address, faults):
        options = {"gs": {"token": "anon", "endpoint_url": address}}
        here = open_grids(archive / "maps.zarr").load()
        ds = open_grids("gs://any/maps.zarr", storage_options=options)
        faults.inject("503", times=1, on="msl")
        faults.inject("cut", times=1, on="u10")
        xr.testing.assert_equal(ds.load(), here)
        assert faults.met == 2
        xr.testing.assert_equal(
            open_grids("gs://any/today.nc", storage_options=options).load(),
            open_grids(archive / "today.nc").load(),
        )


def test_an_object_store_is_read_without_an_account(s3: str, archive: Path) -> None:
    options = {"s3": {"anon": True, "endpoint_url": s3}}
    ds = open_grids("s3://maps/maps.zarr", storage_options=options)
    xr.testing.assert_equal(ds.load(), open_grids(archive / "maps.zarr").load())


def test_options_of_fsspec_itself_are_taken(
    s3: str, account: None, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", {"endpoint_url": s3})
    assert open_grids("s3://maps/today.nc")["msl"].shape == (8, 9, 13)
    # Options that are given go before them.
    nowhere = {"s3": {"endpoint_url": "http://127.0.0.1:9"}}
    assert "tried 5 times" in str(
        refused(lambda: open_grids("s3://maps/today.nc", storage_options=nowhere))
    )


def test_only_what_is_asked_for_is_read(
    https: Door, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    ds = https.open("maps.zarr")
    https.faults.requests.clear()
    ds["msl"].isel(valid_time=[0, 1]).load()
    read = {path for _, path in https.faults.requests}
    assert read == {f"/maps.zarr/msl/{n}.0.0" for n in range(4)}, "one block of one variable"

    size = (archive / "today.nc").stat().st_size
    assert size > 5 * 4096
    with https.place("today.nc").file() as file:
        https.faults.requests.clear()
        file.seek(-10, io.SEEK_END)
        assert file.read() == (archive / "today.nc").read_bytes()[-10:]
        assert len(https.faults.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_is_read_right(ranges: bool, archive: Path) -> None:
    with file_server(archive, ranges=ranges) as address:
        whole = (archive / "today.nc").read_bytes()
        place = Remote(f"{address}/today.nc")
        assert place.read(start=100, end=300) == whole[100:300]
        xr.testing.assert_equal(
            open_grids(f"{address}/today.nc").load(), open_grids(archive / "today.nc").load()
        )


def test_uris_are_told_from_paths() -> None:
    for uri in ("https://h/a.nc", "s3://b/*.nc", "simplecache::s3://b/a", "memory://x"):
        assert is_remote(uri)
    for path in ("a.nc", "/data/a.nc", "file:///data/a.nc", Path("x/y.nc"), "C:/x"):
        assert not is_remote(path)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 260), st.integers(0, 260)), max_size=12))
def test_a_range_file_is_the_file(seeks: list[tuple[int, int]]) -> None:
    import fsspec

    data = bytes(range(251))
    fsspec.filesystem("memory").pipe_file("/range/file.bin", data)
    place, here = Remote("memory://range/file.bin"), io.BytesIO(data)
    file = place.file()
    assert isinstance(file, RangeFile)
    for at, length in seeks:
        file.seek(at)
        here.seek(at)
        assert file.read(length) == here.read(length)
        assert file.tell() == here.tell()


def test_places_and_files_travel_to_worker_processes(https: Door, archive: Path) -> None:
    file = pickle.loads(pickle.dumps(https.place("today.nc").file()))
    assert file.read(8) == (archive / "today.nc").read_bytes()[:8]
    ds = pickle.loads(pickle.dumps(https.open("maps.zarr")))
    xr.testing.assert_equal(ds.load(), open_grids(archive / "maps.zarr").load())


# What fails on the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["500", "503", "cut", "refused", "drip"])
@pytest.mark.parametrize("name", ["today.nc", "before.nc", "maps.zarr"])
def test_faults_that_pass_change_nothing(
    name: str, kind: str, https: Door, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 8192)
    monkeypatch.setattr(remote, "KEPT_BLOCKS", 1)
    here = open_grids(archive / name).load()
    https.faults.inject(kind, times=2)
    ds = https.open(name)
    opened = https.faults.met
    https.faults.inject(kind, times=2)
    xr.testing.assert_equal(ds.load(), here)
    assert opened == 2 or (kind == "drip" and opened == 1)  # a drip is slow, not tried again
    assert https.faults.met > opened or name == "before.nc"  # a copy has been made already


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [  # each fault and each format once: all pairs are tried on the web server above
        ("today.nc", "cut"),
        ("before.nc", "500"),
        ("maps.zarr", "503"),
        ("maps.zarr", "refused"),
        ("today.nc", "drip"),
    ],
)
def test_faults_of_an_object_store_that_pass_change_nothing(
    name: str, kind: str, bucket_of_s3: Door, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_faults_that_pass_change_nothing(name, kind, bucket_of_s3, archive, monkeypatch)


def test_a_server_that_falls_silent_is_given_up_and_asked_again(
    https: Door, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 0.4)
    https.faults.inject("stall", times=2)
    place = https.place("today.nc")
    assert place.read() == (archive / "today.nc").read_bytes()
    assert https.faults.met == 2


def test_a_slow_server_is_waited_for(
    https: Door, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 0.3)  # the drip takes longer, and never pauses so long
    https.faults.inject("drip")
    assert https.place("today.nc").read() == (archive / "today.nc").read_bytes()
    assert [path for _, path in https.faults.requests] == ["/today.nc"]


def test_faults_that_last_end_in_one_error_that_names_the_uri(door: Door) -> None:
    door.faults.inject("500", times=10**6, methods=("GET", "HEAD"))
    error = refused(lambda: door.open("today.nc"))
    assert str(error).startswith(f"{door.base}/today.nc: must be readable; found ConnectionError")
    assert "tried 5 times" in str(error)
    assert door.faults.met >= attempts.TRIES


@pytest.mark.parametrize("name", ["today.nc", "maps.zarr", "plain.zarr"])
def test_data_that_stay_cut_are_never_values(
    name: str, https: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 8192)
    monkeypatch.setattr(remote, "KEPT_BLOCKS", 1)
    ds = https.open(name)
    https.faults.inject("cut", times=10**6)
    error = refused(lambda: ds["msl"].load())
    assert str(error).startswith(f"{https.base}/{name}: msl: the data must be readable")
    assert "tried 5 times" in str(error)


class FailedState:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self) -> None:
        raise self.error


def test_a_flow_tries_a_lost_connection_again_and_a_missing_file_not(https: Door) -> None:
    ds = https.open("maps.zarr")
    https.faults.inject("refused", times=10**6)
    lost = refused(lambda: ds["msl"].load())
    assert io_fault(None, None, FailedState(lost))
    https.faults.plan.clear()
    missing = refused(lambda: https.open("missing.nc"))
    assert not io_fault(None, None, FailedState(missing))


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("missing.nc", "must be readable; found FileNotFoundError"),
        ("missing.zarr", "must be readable; found FileNotFoundError"),
        ("notes.txt", "must be NetCDF, GRIB or Zarr; found a file that begins with b'no grid"),
        ("empty.nc", "must be NetCDF, GRIB or Zarr; found an empty file"),
    ],
)
def test_what_is_no_grid_is_told_at_once(name: str, law: str, door: Door) -> None:
    error = refused(lambda: door.open(name))
    assert str(error).startswith(f"{door.base}/{name}: {law}")
    asked = [path for method, path in door.faults.requests if method == "GET"]
    assert len(asked) <= 4, "tried again, though nothing could come of it"


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(door: Door) -> None:
    door.faults.inject("500", times=10**6, methods=("GET", "HEAD"))
    error = refused(lambda: expand(f"{door.base}/*.nc", door.options))
    assert "its folder must be one that can be listed" in str(error)


def test_a_door_that_is_closed_is_told_at_once(archive: Path) -> None:
    with (
        file_server(archive, password=f"Basic {basic('me', 'pass')}") as upstream,
        breaking(upstream) as (address, faults),
    ):
        told = str(refused(lambda: open_grids(f"{address}/today.nc")))
        assert "PermissionError: 401" in told
        assert "docs/remote.md" in told
        assert len(faults.requests) <= 4
        inside = address.replace("//", "//me:pass@")
        assert open_grids(f"{inside}/today.nc")["msl"].shape == (8, 9, 13)


def test_a_store_without_an_account_says_where_one_goes(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in S3_ACCOUNT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    told = str(refused(lambda: open_grids("s3://maps/today.nc", storage_options=s3_options(s3))))
    assert "docs/remote.md says how access is configured" in told


def test_protocols_that_nobody_knows(archive: Path) -> None:
    told = str(refused(lambda: open_grids("gopher://host/maps.zarr")))
    assert told.startswith("gopher://host/maps.zarr: must be a URI that fsspec understands")


# Trying again ------------------------------------------------------------------------------------


def tried(faults: list[Exception], monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], Any]:
    """The waits between tries that meet these faults, and what comes of them."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(attempts.asyncio, "sleep", sleep)
    left = list(faults)

    async def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    try:
        return waits, asyncio.run(attempts.again(operation, "msl/0.0"))
    except OSError as error:
        return waits, error


def test_each_wait_is_twice_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.5)
    reset = ConnectionResetError("reset")
    assert tried([reset], monkeypatch) == ([0.5], "done")
    assert tried([reset] * 4, monkeypatch) == ([0.5, 1.0, 2.0, 4.0], "done")
    waits, error = tried([reset] * 5, monkeypatch)
    assert waits == [0.5, 1.0, 2.0, 4.0]
    assert isinstance(error, ConnectionError)
    assert str(error) == "msl/0.0: tried 5 times, at last: reset"


class HttpStatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://me:{SECRET}@host/a?sig={SECRET}'")
        self.status = status


class ClientPayloadError(Exception):
    pass


def hidden(cause: Exception) -> Exception:
    """How fsspec tells of a file that it could not ask for."""
    error = FileNotFoundError("https://host/a")
    error.__cause__ = cause
    return error


PASSING = [
    ConnectionRefusedError(), TimeoutError(), OSError("short"),
    OSError(errno.EIO, "I/O"), HttpStatusError(500), HttpStatusError(503), HttpStatusError(429),
    HttpStatusError(408), ClientPayloadError("half"), hidden(HttpStatusError(502)),
]  # fmt: skip
LASTING = [
    FileNotFoundError("a"), PermissionError("b"), IsADirectoryError("c"), HttpStatusError(403),
    HttpStatusError(404), HttpStatusError(416), OSError(errno.ENOSPC, "full"),
    OSError(errno.EINVAL, "range"), ValueError("bad"), hidden(HttpStatusError(404)),
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_faults_worth_another_try(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, found = tried([fault], monkeypatch)
    assert (len(waits), found) == (1, "done")
    waits, found = tried([fault] * 9, monkeypatch)
    assert len(waits) == attempts.TRIES - 1
    assert type(found) is ConnectionError


@pytest.mark.parametrize("fault", LASTING, ids=repr)
def test_faults_that_would_be_met_again(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, found = tried([fault], monkeypatch)
    assert waits == []
    assert isinstance(found, OSError)
    assert not isinstance(found, ConnectionError)


@pytest.mark.parametrize("fault", [*PASSING, *LASTING], ids=repr)
def test_no_error_keeps_what_its_library_knew(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = tried([fault] * 9, monkeypatch)
    shown = links(found)
    assert [type(link).__module__ for link in shown] == ["builtins"]
    assert SECRET not in "".join(map(str, shown))


# Copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["simplecache", "filecache"])
@pytest.mark.parametrize("name", ["today.nc", "before.nc", "maps.zarr"])
def test_a_copy_that_was_cut_is_made_again(
    cache: str, name: str, https: Door, archive: Path, tmp_path: Path
) -> None:
    here = open_grids(archive / name).load()
    options = {cache: {"cache_storage": str(tmp_path / "kept")}}
    uri = f"{cache}::{https.base}/{name}"
    https.faults.inject("cut", times=3)
    xr.testing.assert_equal(open_grids(uri, storage_options=options).load(), here)
    assert https.faults.met == 3
    # A kill in the middle of copying leaves a part under the final name.
    for copy in (tmp_path / "kept").iterdir():
        if copy.name != "cache":
            copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    xr.testing.assert_equal(open_grids(uri, storage_options=options).load(), here)


def test_kept_copies_are_read_again_without_the_network(
    https: Door, archive: Path, tmp_path: Path
) -> None:
    options = {"simplecache": {"cache_storage": str(tmp_path)}}
    uri = f"simplecache::{https.base}/today.nc"
    open_grids(uri, storage_options=options).load()
    https.faults.requests.clear()
    ds = open_grids(uri, storage_options=options).load()
    xr.testing.assert_equal(ds, open_grids(archive / "today.nc").load())
    assert [method for method, _ in https.faults.requests if method == "GET"] == []


def test_copies_go_when_the_process_ends(https: Door, tmp_path: Path) -> None:
    code = (
        "import sys, os; from medicane.grids import open_grids\n"
        "ds = open_grids(sys.argv[1]); ds.load()\n"
        "print(len(os.listdir(os.environ['TMPDIR'])))"
    )
    (tmp_path / "tmp").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code, f"{https.base}/before.nc"],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended.stdout) == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_file_that_has_changed_is_copied_anew(https: Door, archive: Path) -> None:
    (archive / "growing.nc").write_bytes((archive / "before.nc").read_bytes())
    first = https.place("growing.nc").local_copy()
    assert https.place("growing.nc").local_copy() == first
    (archive / "growing.nc").write_bytes((archive / "before.nc").read_bytes() + b"more")
    assert https.place("growing.nc").local_copy().read_bytes().endswith(b"more")
    (archive / "growing.nc").unlink()


# Writing -----------------------------------------------------------------------------------------


def test_a_file_is_put_in_its_place_through_faults(s3: str, account: None) -> None:
    with breaking(s3) as (address, faults):
        place = Remote("s3://maps/written", s3_options(address))
        faults.inject("500", times=2, methods=("PUT",))
        faults.inject("refused", times=1, methods=("PUT",))
        place.write("a/b.txt", b"one")
        assert faults.met == 3
        assert place.read("a/b.txt") == b"one"
        place.write("a/b.txt", b"two")
        assert place.read("a/b.txt") == b"two"
        with pytest.raises(FileNotFoundError):
            place.read("a/c.txt")


# Secrets -----------------------------------------------------------------------------------------

SAFE = string.ascii_letters + string.digits + "-._~%+/="


@given(
    user=st.text(string.ascii_letters + string.digits + ":@!$&*+.,_-", min_size=1, max_size=20),
    value=st.text(SAFE, min_size=1, max_size=40),
    before=st.sampled_from(["", "could not read ", "url='", '["', "(", "simplecache::"]),
    after=st.sampled_from(["", ": no such file", "'", '"]', ")", ", found", "; x", " and"]),
)
def test_users_and_queries_are_left_out(user: str, value: str, before: str, after: str) -> None:
    secret, signature = f"u{user}u", f"s{value}s"
    text = f"{before}https://{secret}@host/a.nc?X-Amz-Signature={signature}{after}"
    told = redacted(text)
    assert told == f"{before}https://***@host/a.nc?***{after}"
    assert redacted(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/era5_20??-0[1-4].nc",
        "models:/medicane@champion and runs:/0a1b/model",
        "must not be empty? found: nothing",
        "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3",
        "sqlite:///data/mlflow.db",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_an_error_tells_no_secret() -> None:
    error = InputError(f"https://me:{SECRET}@host/a.nc?sig={SECRET}", "must be readable", found="x")
    assert str(error) == "https://***@host/a.nc?***: must be readable; found x"
    assert SECRET not in str(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize(
    "options",
    [
        {"s3": {"key": SECRET}},
        {"s3": {"secret": SECRET}},
        {"s3": {"client_kwargs": {"aws_session_token": SECRET}}},
        {"gs": {"token": {"private_key": SECRET}}},
        {"gs": {"token": SECRET}},
        {"https": {"headers": {"Authorization": SECRET}}},
        {"abfs": {"account_key": SECRET}},
        {"abfs": {"connection_string": SECRET}},
        {"ftp": {"password": SECRET}},
    ],
)
def test_a_configuration_holds_no_secret(options: dict[str, Any]) -> None:
    values = {"schema_version": 1, "data": {"grids": "x.nc", "storage_options": options}}
    told = str(refused(lambda: make_config(values)))
    assert "data.storage_options: must hold no secret" in told
    assert SECRET not in told


def test_a_configuration_says_how_stores_are_reached() -> None:
    options = {"s3": {"anon": True, "endpoint_url": "https://host"}, "gs": {"token": "anon"}}
    values = {"schema_version": 1, "data": {"grids": "x.nc", "storage_options": options}}
    assert make_config(values).data.storage_options == options


def everything_in(folder: Path) -> str:
    """All bytes of all files below a folder, as text."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return "".join(path.read_bytes().decode("latin-1") for path in files)


def test_no_secret_of_a_uri_or_the_environment_reaches_anything(
    small_project: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    medicane, project = Medicane(capfd), small_project
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with file_server(project.folder / "sea", password=f"Basic {basic('me', SECRET)}") as upstream:
        address = upstream.replace("//", f"//me:{SECRET}@")
        grids = [f"{address}/grids/era5_2001-0{n}.nc?sig={SECRET}" for n in (1, 2, 3, 4)]
        settings = yaml.safe_load(project.config_file.read_text())
        settings["data"] |= {"grids": grids, "catalogue": str(project.folder / "sea/storms.csv")}
        work = tmp_path / "work"
        work.mkdir()
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        settings["data"]["store"] = str(work / "maps.zarr")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        config = tmp_path / "config.yaml"

        told = [medicane("--debug", "prepare", "--config", config)]
        inputs = [f"{address}/grids/era5_2001-05.nc?sig={SECRET}"]
        found = work / "found"
        told.append(medicane("detect", *inputs, "--model", project.model_path, "--out", found))
        assert [answer.status for answer in told] == [0, 0], told
        gone = [f"{address}/gone.nc?sig={SECRET}", f"{address}/gone*.nc?sig={SECRET}"]
        for uri in gone:
            answer = medicane(
                "--debug", "detect", uri, "--model", project.model_path, "--out", found
            )
            assert answer.status == 2
            assert "***" in answer.err
            told.append(answer)

    from medicane import experiments

    shutil.copy(project.folder / "empty.db", work / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work / 'mlflow.db'}")
    with experiments.training_run(load_config(config), name="planted"):
        pass
    assert SECRET not in "".join(answer.out + answer.err for answer in told)
    assert SECRET not in everything_in(work)
    with sqlite3.connect(work / "mlflow.db") as database:
        params = dict(database.execute("SELECT key, value FROM params"))
    assert "era5_2001-01.nc?***" in params["data.grids"]
    stored = json.loads(xr.open_zarr(work / "maps.zarr").attrs["source_files"])
    assert [re.sub(r".*/", "", uri) for uri in stored] == [
        f"era5_2001-0{n}.nc?***" for n in (1, 2, 3, 4)
    ]


def basic(user: str, password: str) -> str:
    import base64

    return base64.b64encode(f"{user}:{password}".encode()).decode()


# The whole way -----------------------------------------------------------------------------------


def test_a_store_prepared_from_afar_is_the_one_prepared_from_disk(
    small_project: Any, https: Door, archive: Path, tmp_path: Path
) -> None:
    from medicane import pipeline

    grids = small_project.folder / "sea" / "grids"
    with file_server(grids) as upstream, breaking(upstream) as (address, faults):
        faults.inject("500", times=3, on="-01.nc")
        faults.inject("cut", times=3, on="-02.nc")
        faults.inject("refused", times=3, on="-03.nc")
        values = small_project.config.model_dump()
        values["data"] |= {
            "grids": [f"{address}/era5_2001-0{n}.nc" for n in (1, 2, 3, 4)],
            "store": str(tmp_path / "maps.zarr"),
        }
        prepared = pipeline.prepare(make_config(values))
        assert faults.met == 9
    here = xr.open_zarr(small_project.folder / "maps.zarr")
    assert prepared.digest == here.attrs["content_digest"]


WITHOUT = """
import sys
from medicane.errors import InputError
from medicane.grids import open_grids
for uri in sys.argv[1:]:
    try:
        open_grids(uri)
    except InputError as error:
        print(error)
"""


def test_without_the_extra_one_line_names_it(tmp_path: Path) -> None:
    uris = {
        "s3fs": "s3://bucket/maps.zarr",
        "gcsfs": "gs://bucket/maps.zarr",
        "aiohttp": "https://host/maps.zarr",
    }
    # A folder before the installed packages, where the libraries cannot be imported.
    for package in uris:
        (tmp_path / f"{package}.py").write_text('raise ImportError("not installed")')
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *uris.values()],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    for uri, line in zip(uris.values(), ended.stdout.splitlines(), strict=True):
        assert f"{uri}: needs a library that is not installed" in line
        assert "pip install 'medicane[cloud]'" in line
