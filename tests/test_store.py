"""The map store: the right maps, the same bytes however it came about, and nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane import names, store
from medicane.channels import derive
from medicane.config import Config, make_config
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.standardise import standardise
from medicane.store import (
    Revision,
    maps_where,
    open_store,
    read_block,
    stored_end,
    verify_store,
    write_store,
)
from medicane.store.chunks import ChunkFiles
from medicane.store.commits import CommittedGroup, sole_writer
from medicane.store.source import open_source, parts_of

LATITUDE = np.arange(44.0, 33.9, -0.5)
LONGITUDE = np.arange(0.0, 12.1, 0.5)
LEVELS = np.array([1000, 900, 850, 700, 600, 500, 400, 300.0])
START = np.datetime64("2001-01-01", "ns")
DIMS = ("time", "channel", "latitude", "longitude")
CATALOGUE = "storm,start,end,phase\nnuma,2001-01-05T00:00,2001-01-06T00:00,medicane\n"


def era5(first: int, last: int, *, step: int = 6, levels: bool = True) -> xr.Dataset:
    """Maps of the ERA5 dialect with one travelling low; a function of the hour alone."""
    hours = np.arange(first, last) * step
    rng = [np.random.default_rng(int(h)) for h in hours]
    lat, lon = LATITUDE[:, None], LONGITUDE
    msl, z, wind = [], [], []
    for h, random in zip(hours, rng, strict=True):
        away = np.hypot(lat - 39 - 2 * np.sin(h / 60), (lon - 2 - h / 24 % 8) * 0.78)
        core = np.exp(-((away / 1.2) ** 1.5))
        msl.append(101_000 - 1_400 * core + random.normal(0, 3, core.shape))
        warm = np.sin(h / 40)
        heights = 8_000 * np.log(1013 / LEVELS)[:, None, None]
        change = -110 + 40 * warm * np.log(1000 / LEVELS)[:, None, None]
        z.append((heights + change * core + random.normal(0, 0.5, (8, *core.shape))) * names.G0)
        wind.append(random.normal(0, 8, (2, *core.shape)))
    flat = ("valid_time", "latitude", "longitude")
    fields = {
        "msl": (flat, np.float32(msl), {"units": "Pa"}),
        "u10": (flat, np.float32(wind)[:, 0], {"units": "m s**-1"}),
        "v10": (flat, np.float32(wind)[:, 1], {"units": "m s**-1"}),
    }
    if levels:
        deep = ("valid_time", "pressure_level", *flat[1:])
        fields["z"] = (deep, np.float32(z), {"units": "m**2 s**-2"})
    return xr.Dataset(
        fields,
        {
            "valid_time": START + hours.astype("timedelta64[h]"),
            "pressure_level": ("pressure_level", LEVELS, {"units": "hPa"}),
            "latitude": ("latitude", LATITUDE, {"units": "degrees_north"}),
            "longitude": ("longitude", LONGITUDE, {"units": "degrees_east"}),
        },
    )


@pytest.fixture(scope="session")
def sea(tmp_path_factory) -> Path:
    """Three files of 60 maps, and a catalogue."""
    folder = tmp_path_factory.mktemp("sea")
    for i in range(3):
        era5(60 * i, 60 * (i + 1)).to_netcdf(folder / f"{i}.nc")
    (folder / "storms.csv").write_text(CATALOGUE)
    return folder


def recipe(folder: Path, out: Path, files: str = "*.nc", **options: object) -> Config:
    label = options.pop("label", {})
    data = {
        "grids": str(folder / files),
        "catalogue": str(folder / "storms.csv"),
        "store": str(out),
        **options,
    }
    return make_config({"schema_version": 1, "data": data, "label": label})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a short record: 24 maps and 36 for each file of 60."""
    monkeypatch.setattr(store, "BLOCK", 24)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "maps.zarr"


def content(path: Path) -> dict[str, bytes]:
    """Every file of a store but the root, and the root without what names files and folders."""
    files = {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p != path / "zarr.json"
    }
    root = json.loads((path / "zarr.json").read_text())
    for key in ("source_files", "catalogue"):
        del root["attributes"][key]
    return {**files, "root": json.dumps(root, sort_keys=True).encode()}


def within_packing(one: xr.DataArray, other: xr.DataArray, *stores: Path) -> bool:
    """Whether two arrays of maps differ by no more than the packing of these stores allows."""
    opened = [xr.open_zarr(path) for path in stores]
    errors = [
        sum(ds[str(name)].attrs["packing_error"] for ds in opened) for name in one.channel.values
    ]
    # The maps themselves are float32.
    slack = np.array(errors)[:, None, None] + 1e-6 * np.abs(other.values)
    return bool((np.abs(one.values - other.values) <= slack).all())


@pytest.fixture(scope="session")
def whole(sea, tmp_path_factory) -> Path:
    """The store of all three files, prepared undisturbed; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "maps.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK", 24)
        write_store(recipe(sea, path))
    return path


@pytest.fixture(scope="session")
def truth(whole) -> xr.Dataset:
    """What the store of all three files holds, in memory."""
    return open_store(whole).load()


# --- what it holds -----------------------------------------------------------------------------


def test_one_line_of_xarray_opens_what_the_contract_says(whole, sea):
    ds = xr.open_zarr(whole)
    for name, units in (("msl_local", "Pa"), ("u10", "m s-1"), ("lsm", "1")):
        assert ds[name].dims == ("time", "latitude", "longitude")
        assert ds[name].attrs["units"] == units
        assert ds[name].encoding["dtype"] == np.int16
    assert ds["medicane"].dtype == np.int8
    assert ds.latitude.values.tolist() == LATITUDE.tolist()
    assert ds.longitude.values.tolist() == LONGITUDE.tolist()
    assert (np.diff(ds.time.values) == np.timedelta64(6, "h")).all()
    assert ds.sizes["time"] == 180
    assert [str(c) for c in ds.channel.values] == list(names.DEFAULT_CHANNELS)
    attrs = ds.attrs
    assert attrs["schema_version"] == 2
    assert json.loads(attrs["source_files"]) == [str(sea / f"{i}.nc") for i in range(3)]
    assert len(attrs["content_digest"]) == 64
    assert json.loads(attrs["label_definition"])["radius_km"] == 200
    assert json.loads(attrs["channels"])[0]["formula"] == "local(msl, 8)"
    assert attrs["software_version"]
    assert (attrs["step_hours"], attrs["degrees"], attrs["complete"]) == (6, 0.5, 1)
    assert ds["medicane"].attrs["flag_meanings"] == "not_medicane medicane unknown"


def test_maps_are_the_channels_of_the_standard_maps(whole, sea):
    config = recipe(sea, whole)
    raw = open_grids(str(sea / "*.nc"))
    ds = standardise(raw, domain=config.data.domain, degrees=0.5)
    expected = derive(ds, config.data.channels).compute()
    got = open_store(whole)["maps"]
    assert got.dims == ("time", "channel", "latitude", "longitude")
    assert got.dtype == np.float32
    plain = xr.open_zarr(whole)
    for name in names.DEFAULT_CHANNELS:
        error = plain[name].attrs["packing_error"]
        assert error < 2e-3 * float(expected.sel(channel=name).std())
        difference = np.abs(got.sel(channel=name) - expected.sel(channel=name)).max()
        assert float(difference) <= error * (1 + 1e-5)
        # Every reader finds the same value, to the bit.
        np.testing.assert_array_equal(plain[name].values, got.sel(channel=name).values)
    np.testing.assert_array_equal(got.time.values, expected.time.values)


def test_labels_follow_the_catalogue(whole):
    ds = open_store(whole)
    inside = (ds.time >= np.datetime64("2001-01-05")) & (ds.time <= np.datetime64("2001-01-06"))
    np.testing.assert_array_equal(ds.medicane.values, inside.astype(int))
    np.testing.assert_array_equal(ds.storm.values == "numa", inside)


def test_lows_follow_the_travelling_low(whole):
    ds = open_store(whole).load()
    hours = (ds.time.values - START) / np.timedelta64(1, "h")
    assert np.isfinite(ds.low_msl).mean() > 0.5
    found = np.isfinite(ds.low_latitude.values)
    east = 2 + hours / 24 % 8
    assert np.abs(ds.low_longitude.values - east)[found].max() < 0.6
    assert 985 < float(ds.low_msl.min()) < float(ds.low_msl.max()) < 1005
    warm = np.sin(hours / 40)[found]
    held = np.isfinite(ds.vtl.values[found])
    assert np.corrcoef(warm[held], ds.vtl.values[found][held])[0, 1] > 0.9


def test_without_heights_there_are_no_lows(tmp_path, out, caplog):
    era5(0, 20, levels=False).to_netcdf(tmp_path / "a.nc")
    (tmp_path / "storms.csv").write_text(CATALOGUE)
    summary = write_store(recipe(tmp_path, out, channels=["msl", "u10"]))
    assert not summary.has_lows
    assert "vtl" not in open_store(out)
    assert "no phase space" in caplog.text
    verify_store(out)


def test_without_a_catalogue_every_label_is_unknown(sea, out):
    summary = write_store(recipe(sea, out, "0.nc", catalogue=None))
    assert summary.n_unknown == 60
    assert (open_store(out).medicane == -1).all()


def test_the_summary_tells_what_was_done(sea, out):
    calls = []
    summary = write_store(recipe(sea, out, "0.nc"), progress=lambda *call: calls.append(call))
    assert summary.store == str(out)
    assert (summary.n_maps, summary.n_new, summary.n_medicane) == (60, 60, 5)
    assert (summary.first, summary.last) == ("2001-01-01T00:00", "2001-01-15T18:00")
    assert summary.digest == open_store(out).attrs["content_digest"]
    assert calls == [(24, 60), (60, 60)]


def test_an_own_channel_and_a_coarser_grid(sea, out):
    own = {"name": "gale", "formula": "speed(u10, v10) - 17", "units": "m s-1"}
    write_store(recipe(sea, out, "0.nc", channels=["msl", own], degrees=1.0))
    ds = open_store(out)
    assert ds.sizes["channel"] == 2
    assert np.allclose(np.diff(ds.latitude), -1)
    assert json.loads(ds.attrs["channels"])[1]["units"] == "m s-1"


# --- resuming and appending --------------------------------------------------------------------


def test_the_blocks_leave_no_trace(sea, whole, tmp_path, monkeypatch):
    for block in (7, 500):
        monkeypatch.setattr(store, "BLOCK", block)
        path = tmp_path / f"{block}.zarr"
        write_store(recipe(sea, path))
        assert content(path) == content(whole)


def test_appending_in_parts_equals_one_go(sea, whole, out):
    write_store(recipe(sea, out, "0.nc"))
    second = write_store(recipe(sea, out, "[01].nc"))
    assert (second.n_maps, second.n_new) == (120, 60)
    write_store(recipe(sea, out))
    assert content(out) == content(whole)


def test_appending_the_new_file_alone_equals_one_go(sea, whole, out):
    for i in range(3):
        write_store(recipe(sea, out, f"{i}.nc"))
    assert content(out) == content(whole)
    assert json.loads(open_store(out).attrs["source_files"]) == [
        str(sea / f"{i}.nc") for i in range(3)
    ]


def test_one_map_at_a_time_equals_one_go(tmp_path):
    (tmp_path / "storms.csv").write_text(CATALOGUE)
    for i in range(4):
        era5(i, i + 1).to_netcdf(tmp_path / f"{i}.nc")
        write_store(recipe(tmp_path, tmp_path / "grown.zarr", f"{i}.nc"))
    write_store(recipe(tmp_path, tmp_path / "once.zarr", "*.nc"))
    grown, once = (open_store(tmp_path / f"{name}.zarr") for name in ("grown", "once"))
    xr.testing.assert_identical(
        grown.drop_vars("maps").drop_attrs(), once.drop_vars("maps").drop_attrs()
    )
    # The packings are settled by the maps there were at first: by one here, by four there.
    assert within_packing(
        grown["maps"], once["maps"], tmp_path / "grown.zarr", tmp_path / "once.zarr"
    )
    verify_store(tmp_path / "grown.zarr")


def test_a_rerun_changes_nothing(sea, whole, tmp_path):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    summary = write_store(recipe(sea, path))
    assert (summary.n_new, summary.n_maps, summary.relabelled) == (0, 180, False)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


#: Processes of their own, forked from one that has imported all there is to import.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_store"])


def prepare(config: Config, told: Connection, waits_at: Collection[int]) -> None:
    def tell(n: int, _: int) -> None:
        told.send(n)
        if n in waits_at:
            told.recv()

    store.BLOCK = 24
    write_store(config, progress=tell)


def start(config: Config, waits_at: Collection[int]) -> tuple[BaseProcess, Connection]:
    """A process that prepares some 24 maps at a time, and where it tells how many there are.

    With as many as ``waits_at`` it goes on when it is answered: what a test must see or do
    before it ends does not depend on how fast it is.
    """
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=prepare, args=(config, there, waits_at), daemon=True)
    process.start()
    there.close()
    return process, here


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05])
def test_killed_and_run_again_equals_undisturbed(sea, whole, truth, out, moment):
    process, told = start(recipe(sea, out), {144})
    assert told.recv() == 24
    time.sleep(moment)  # into the computing, or the writing, of a later block
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(InputError, match=r"its preparation must have ended: .* maps so far"):
        open_store(out)
    partial = open_store(out, incomplete=True)
    n = partial.sizes["time"]
    assert 24 <= n < 180
    np.testing.assert_array_equal(partial["maps"].values, truth["maps"][:n].values)
    verify_store(out)
    summary = write_store(recipe(sea, out))
    assert summary.n_new == 180 - n
    assert content(out) == content(whole)


def test_killed_before_the_first_commit_leaves_nothing_of_that_name(sea, out, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medicane.store.commits.CommittedGroup.commit", stop)
    with pytest.raises(KeyboardInterrupt):
        write_store(recipe(sea, out, "0.nc"))
    assert not out.exists()
    monkeypatch.undo()
    write_store(recipe(sea, out, "0.nc"))
    assert sorted(p.name for p in out.parent.iterdir()) == [".maps.zarr.lock", "maps.zarr"]


def test_a_reader_beside_the_writer_sees_a_whole_beginning(sea, truth, out):
    steps = [24, 60, 84, 120, 144, 180]  # files of 60 maps, by 24
    process, told = start(recipe(sea, out), steps)
    lengths = []
    while process.is_alive():
        if not out.exists():
            time.sleep(0.01)
            continue
        # Where it has told, the writer waits; else it is at work while this reads.
        committed = len(lengths) < len(steps) and told.poll()
        ds = open_store(out, incomplete=True)
        n = ds.sizes["time"]
        if committed:
            assert n == told.recv()
            lengths.append(n)
            told.send(n)
        np.testing.assert_array_equal(ds["maps"][n - 3 :].values, truth["maps"][n - 3 : n].values)
        np.testing.assert_array_equal(ds["medicane"].values, truth["medicane"][:n].values)
    assert process.exitcode == 0
    assert lengths == steps


def test_a_second_writer_is_refused_and_the_first_goes_on(sea, out):
    config = recipe(sea, out, "0.nc")
    with sole_writer(out), pytest.raises(InputError, match="one process at a time writes a store"):
        write_store(config)
    assert write_store(config).n_maps == 60


# --- packing -----------------------------------------------------------------------------------


@pytest.fixture
def extreme(tmp_path) -> Path:
    """Sixty quiet maps, then sixty with a storm far beyond all of them."""
    (tmp_path / "storms.csv").write_text(CATALOGUE)
    quiet, after = era5(0, 60), era5(60, 120)
    after["u10"][30, 5:8, 5:8] += 900.0 / 9  # within what a wind can be
    quiet["u10"] = quiet["u10"] / 20
    quiet.to_netcdf(tmp_path / "0.nc")
    after.to_netcdf(tmp_path / "1.nc")
    return tmp_path


def test_an_extreme_beyond_the_packing_is_stored_whole_and_the_old_maps_stay(extreme, out, caplog):
    write_store(recipe(extreme, out, "0.nc"))
    before = open_store(out)
    old = before["maps"].values
    verify_store(out)
    summary = write_store(recipe(extreme, out, "*.nc"))
    assert summary.n_new == 60
    assert "channel u10" in caplog.text
    assert "60 stored maps are packed anew" in caplog.text
    now, plain = open_store(out), xr.open_zarr(out)
    assert now.attrs["content_digest"] == summary.digest
    verify_store(out)
    fresh = extreme / "fresh.zarr"
    write_store(recipe(extreme, fresh, "*.nc"))
    truth = derive(
        standardise(open_grids(str(extreme / "*.nc")), domain=recipe(extreme, out).data.domain),
        ["u10"],
    ).values[:, 0]
    assert truth.max() > 90
    for path in (out, fresh):
        wind = open_store(path)["maps"].sel(channel="u10").values
        error = xr.open_zarr(path)["u10"].attrs["packing_error"]
        assert np.abs(wind - truth).max() <= error < 0.02
    # Twice rounded, by no more than one step; the channels that were not widened are as they were.
    assert plain["u10"].attrs["packing_error"] <= plain["u10"].encoding["scale_factor"]
    others = [str(c) for c in now.channel.values if c != "u10"]
    np.testing.assert_array_equal(
        now["maps"][:60].sel(channel=others),
        xr.DataArray(old, before["maps"].coords).sel(channel=others),
    )
    assert_packed_maps_are_the_maps(out)
    # Who opened the store before still reads what was there then.
    np.testing.assert_array_equal(before["maps"].values, old)
    assert write_store(recipe(extreme, out, "*.nc")).n_new == 0


def assert_packed_maps_are_the_maps(path):
    ds = open_store(path, packed=True)
    packed, maps = ds["packed"], ds["maps"].values
    assert packed.dtype == np.int16
    assert not packed._in_memory
    block = read_block(packed, 5, 50, dtype=np.int16)
    assert block.flags.c_contiguous
    scale, offset = (ds[name].values.astype(np.float32) for name in ("scale_factor", "add_offset"))
    found = block * scale + offset
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.moveaxis(maps[5:50], 1, -1))
    # However they are chosen: a part of them comes with its own scales.
    part = packed.isel(time=[7, 3, 4], channel=[2, 0], latitude=slice(1, 5), longitude=3)
    found = (part * part["scale_factor"] + part["add_offset"]).astype(np.float32)
    np.testing.assert_array_equal(found, maps[[7, 3, 4]][:, [2, 0]][:, :, 1:5, 3])


def test_killed_while_it_packs_anew_leaves_what_was_committed(extreme, out, monkeypatch):
    write_store(recipe(extreme, out, "0.nc"))
    truth, digest = open_store(out).load(), open_store(out).attrs["content_digest"]

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CommittedGroup, "append", die)
    with pytest.raises(KeyboardInterrupt):
        write_store(recipe(extreme, out, "1.nc"))
    monkeypatch.undo()
    assert (out / "u10" / "c" / "0" / "0" / "0").exists()  # it was at it
    xr.testing.assert_identical(open_store(out).load(), truth)
    verify_store(out)
    again = write_store(recipe(extreme, out, "1.nc"))
    assert (again.n_new, again.digest != digest) == (60, True)
    verify_store(out)


def test_missing_maps_do_not_spoil_the_packing(tmp_path, out):
    ds = era5(0, 60)
    ds["u10"][:10] = np.nan  # in what is sampled
    ds.to_netcdf(tmp_path / "0.nc")
    with pytest.raises(InputError, match="channel u10 at 2001-01-01T00:00: the map must not be"):
        write_store(recipe(tmp_path, out, catalogue=None))
    assert not out.exists()


def test_a_static_channel_is_packed_to_the_bit(sea, out):
    write_store(recipe(sea, out, "0.nc", channels=["lsm"], catalogue=None))
    ds = open_store(out)
    mask = xr.open_zarr(out)["land_sea_mask"].values
    found = ds["maps"].values[:, 0]
    sharp = (mask == 0) | (mask == 1)
    assert 0.1 < mask.mean() < 0.9
    np.testing.assert_array_equal(found[:, sharp], np.broadcast_to(mask[sharp], (60, sharp.sum())))
    assert np.abs(found - mask).max() < 2e-4


@pytest.mark.parametrize("name", ["storm", "time", "low_msl", "land_sea_mask"])
def test_a_channel_may_not_have_the_name_of_another_array(sea, out, name):
    own = {"name": name, "formula": "u10 * 2", "units": "m s-1"}
    with pytest.raises(InputError, match=f"channels: {name}: a channel needs a name of its own"):
        write_store(recipe(sea, out, "0.nc", channels=["msl", own]))
    assert not out.exists()


def test_parts_end_where_pieces_of_the_source_do(sea, out):
    source = open_source(recipe(sea, out))
    assert source.maps.chunksizes["time"] == (60, 60, 60)
    wanted = np.delete(np.arange(180), [3, 70])
    for most, sizes in (
        (60, [59, 59, 60]),
        (45, [59, 59, 60]),
        (80, [118, 60]),
        (30, [29, 30] * 2),
    ):
        parts = parts_of(source, wanted, most=most)
        np.testing.assert_array_equal(np.concatenate(parts), wanted)
        assert [part.size for part in parts][: len(sizes)] == sizes


# --- labels ------------------------------------------------------------------------------------


def test_a_new_catalogue_relabels_the_old_maps(sea, whole, tmp_path):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    reader = xr.open_zarr(path, chunks=None)
    other = tmp_path / "other.csv"
    other.write_text(CATALOGUE + "rolf,2001-01-10T00:00,2001-01-10T12:00,unknown\n")
    summary = write_store(recipe(sea, path, catalogue=str(other)))
    assert summary.relabelled
    assert (summary.n_new, summary.n_unknown) == (0, 3)
    assert summary.digest != open_store(whole).attrs["content_digest"]
    now = open_store(path)
    assert set(now.storm.values[now.medicane.values == -1]) == {"rolf"}
    assert (reader.medicane.values != -1).all()  # opened before: sees what was then
    assert now.attrs["maps_digest"] == open_store(whole).attrs["maps_digest"]
    verify_store(path)
    back = write_store(recipe(sea, path))
    assert back.digest == open_store(whole).attrs["content_digest"]


def test_new_maps_and_new_labels_come_together(sea, whole, out, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("storm,start,end\nrolf,2001-01-10,2001-01-10\n")
    write_store(recipe(sea, out, "0.nc", catalogue=str(other)))
    summary = write_store(recipe(sea, out))
    assert summary.relabelled
    assert summary.digest == open_store(whole).attrs["content_digest"]


# --- digest ------------------------------------------------------------------------------------


def test_the_digest_tells_content_and_not_place(sea, whole, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(sea, moved)
    summary = write_store(recipe(moved, tmp_path / "maps.zarr"))
    assert summary.digest == open_store(whole).attrs["content_digest"]


def test_the_digest_knows_the_label_definition(sea, out, tmp_path):
    one = write_store(recipe(sea, out, "0.nc"))
    two = write_store(recipe(sea, tmp_path / "b.zarr", "0.nc", label={"vtl_min": 1.0}))
    assert one.digest != two.digest


def test_verify_finds_one_changed_bit(whole, tmp_path):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    verify_store(path)
    chunk = path / "u10" / "c.2.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[1000] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(InputError, match="must have the digest"):
        verify_store(path)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"channels": ["msl", "u10"]}, r'another recipe \(channels: \["msl_local", .*; found chan'),
        ({"degrees": 1.0}, r"another recipe \(degrees: 0.5\); .* found degrees: 1.0"),
        ({"domain": {"north": 43}}, r'\(domain: {"north": 48.0}\); .* found domain: {"north": 43'),
        ({"step_hours": 12}, r"another recipe \(step_hours: 6\)"),
        ({"label": {"b_max_m": 10}}, r'\(label: {"b_max_m": 20.0}\)'),
    ],
)
def test_another_recipe_is_refused_and_the_store_untouched(sea, whole, tmp_path, options, law):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    with pytest.raises(InputError, match=law):
        write_store(recipe(sea, path, **options))
    assert content(path) == content(whole)


def test_a_smaller_area_of_the_data_is_another_recipe(sea, whole, tmp_path):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    era5(180, 190).isel(latitude=slice(2, None)).to_netcdf(tmp_path / "3.nc")
    config = recipe(tmp_path, path, "3.nc", catalogue=str(sea / "storms.csv"))
    with pytest.raises(InputError, match=r"latitude: 21 values\); .* found latitude: 19 values"):
        write_store(config)


def test_a_map_before_the_last_is_refused(sea, out, tmp_path):
    write_store(recipe(sea, out, "1.nc"))
    with pytest.raises(
        InputError,
        match=r"after the last one stored \(2001-01-30T18:00\); .* found a map at 2001-01-01",
    ):
        write_store(recipe(sea, out))
    assert open_store(out).sizes["time"] == 60


def test_changed_grids_are_refused(sea, out, tmp_path):
    for i in range(2):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    config = recipe(tmp_path, out, "*.nc", catalogue=str(sea / "storms.csv"))
    write_store(config)
    changed = era5(60, 120)
    changed["u10"] = changed["u10"] + 1
    changed.to_netcdf(tmp_path / "1.nc")
    with pytest.raises(InputError, match=r"found another map of channel u10 at 2001-01-30T18:00"):
        write_store(config)


def test_revised_and_late_maps_are_put_in_their_place(sea, whole, out, tmp_path):
    """Killed after the cut as well; the restart is where the record once ended."""
    for i in (0, 2):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    config = recipe(tmp_path, out, "*.nc", catalogue=str(sea / "storms.csv"))
    other = era5(0, 60)
    other["msl"][40:] += 100
    other.to_netcdf(tmp_path / "0.nc")
    ends = []
    write_store(config, progress=lambda *_: ends.append(stored_end(out)))
    assert [end.n for end in ends] == [24, 60, 84, 120]
    for i in (0, 1):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    changed = START + np.timedelta64(40 * 6, "h")
    with pytest.raises(InputError, match="maps are only added after the last one stored"):
        write_store(config)

    def stopped(*_: object, **__: object):
        raise KeyboardInterrupt
        yield

    revision = Revision(changed, changed, ends)
    with pytest.raises(KeyboardInterrupt):
        write_store(config, revision=revision, compute=stopped)
    partial = open_store(out, incomplete=True)
    assert partial.sizes["time"] == 24
    verify_store(out)
    done = write_store(config, revision=revision)
    assert (done.n_maps, done.n_new, done.n_again) == (180, 156, 0)
    verify_store(out)
    now, once = open_store(out), open_store(whole)
    xr.testing.assert_identical(
        now.drop_vars("maps").drop_attrs(), once.drop_vars("maps").drop_attrs()
    )
    assert within_packing(now["maps"], once["maps"], out, whole)
    # The restart carries the digest; without one the record is written anew, and comes to the same.
    digest = now.attrs["content_digest"]
    again = write_store(config, revision=Revision(changed, changed, [stored_end(out), *ends[:1]]))
    assert (again.n_new, again.n_again, again.digest) == (0, 156, digest)
    assert write_store(config, revision=Revision(changed, changed)).n_again == 180
    assert open_store(out).attrs["content_digest"] == digest


def test_maps_that_the_grids_no_longer_hold_are_not_given_up(sea, out, tmp_path):
    for i in range(2):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    config = recipe(tmp_path, out, "*.nc", catalogue=str(sea / "storms.csv"))
    write_store(config)
    before = content(out)
    (tmp_path / "0.nc").unlink()
    with pytest.raises(InputError, match=r"written anew, from 2001-01-01T00:00; found none at"):
        write_store(config, revision=Revision(START, START))
    assert content(out) == before


def spoilt(folder: Path, field: str, **where: object) -> None:
    ds = era5(0, 60)
    ds[field].loc[where] = np.nan
    ds.to_netcdf(folder / "0.nc")
    (folder / "storms.csv").write_text(CATALOGUE)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("u10", "channel u10"),
        ("msl", "channel msl_local"),
        ("z", "channel thickness_900_600_local"),
    ],
)
def test_a_missing_map_is_named_by_time_and_channel(tmp_path, out, field, told):
    spoilt(tmp_path, field, valid_time="2001-01-14T06:00")  # in the second block
    with pytest.raises(
        InputError, match=f"{told} at 2001-01-14T06:00: the map must not be missing; found no value"
    ):
        write_store(recipe(tmp_path, out))
    assert open_store(out, incomplete=True).sizes["time"] == 24  # what was committed stays


def test_a_level_of_the_phase_space_alone_may_not_be_missing_either(tmp_path, out):
    spoilt(tmp_path, "z", valid_time="2001-01-03T00:00", pressure_level=700)
    with pytest.raises(InputError, match="zg at 700 hPa at 2001-01-03T00:00: the map must not"):
        write_store(recipe(tmp_path, out))
    assert not out.exists()


def test_missing_cells_are_told_how_to_fill(tmp_path, out):
    spoilt(tmp_path, "u10", latitude=40.0)
    with pytest.raises(
        InputError, match=r"channel u10 at 2001-01-01.* fill\(sst\)\); found 25 of 525"
    ):
        write_store(recipe(tmp_path, out))
    filled = {"name": "u", "formula": "fill(u10)", "units": "m s-1"}
    assert write_store(recipe(tmp_path, out, channels=["msl_local", filled])).n_maps == 60


def test_a_file_that_breaks_while_it_is_read_is_named(sea, out, tmp_path):
    for i in range(3):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    config = recipe(tmp_path, out, "*.nc", catalogue=str(sea / "storms.csv"))
    packed = {name: {"zlib": True, "complevel": 1} for name in ("msl", "u10", "v10", "z")}
    era5(120, 180).to_netcdf(tmp_path / "2.nc", encoding=packed)
    whole_file = (tmp_path / "2.nc").read_bytes()
    middle = len(whole_file) // 2
    broken = whole_file[:middle] + bytes(60_000) + whole_file[middle + 60_000 :]
    (tmp_path / "2.nc").write_bytes(broken)  # the header opens, the data do not inflate
    with pytest.raises(InputError, match=r"2\.nc.*the data must be readable"):
        write_store(config)
    assert open_store(out, incomplete=True).sizes["time"] == 120  # what was committed stays
    (tmp_path / "2.nc").write_bytes(whole_file)
    assert write_store(config).n_new == 60


def test_a_truncated_file_is_named_before_anything_is_written(sea, out, tmp_path):
    for i in range(2):
        shutil.copy(sea / f"{i}.nc", tmp_path)
    raw = (tmp_path / "1.nc").read_bytes()
    (tmp_path / "1.nc").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"1\.nc"):
        write_store(recipe(tmp_path, out, catalogue=str(sea / "storms.csv")))
    assert not out.exists()


def test_a_bad_catalogue_leaves_no_trace(sea, out, tmp_path):
    (tmp_path / "bad.csv").write_text("storm,start,end\nx,2001-01-05,2001-01-04\n")
    with pytest.raises(InputError, match=r"bad\.csv: line 2"):
        write_store(recipe(sea, out, catalogue=str(tmp_path / "bad.csv")))
    assert list(out.parent.iterdir()) == [tmp_path / "bad.csv"]


def test_an_unknown_channel_leaves_no_trace(sea, out):
    with pytest.raises(InputError, match="closest: msl_local"):
        write_store(recipe(sea, out, channels=["msl_locl"]))
    assert not list(out.parent.iterdir())


def test_something_else_of_that_name_is_untouched(sea, out):
    out.write_text("mine")
    with pytest.raises(InputError, match="must be a map store, or not exist"):
        write_store(recipe(sea, out, "0.nc"))
    assert out.read_text() == "mine"


def test_a_remote_store_is_told_to_be_local(sea):
    with pytest.raises(InputError, match=r"data\.store: must be a path on this machine"):
        write_store(
            recipe(sea, Path("x")).model_copy(
                update={
                    "data": recipe(sea, Path("x")).data.model_copy(update={"store": "s3://b/m"})
                }
            )
        )


def test_the_360_day_calendar_has_no_labels(tmp_path, out):
    ds = era5(0, 20).drop_vars("valid_time")
    times = xr.date_range("2001-01-01", periods=20, freq="6h", calendar="360_day", use_cftime=True)
    ds.assign_coords(valid_time=times).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="need the standard calendar; found 360_day"):
        write_store(recipe(tmp_path, out, catalogue=None))


# --- real files --------------------------------------------------------------------------------


def test_a_real_forecast_of_ianos_has_its_low_and_its_label(real_data, out, tmp_path):
    (tmp_path / "storms.csv").write_text("storm,start,end\nianos,2020-09-17,2020-09-18\n")
    channels = ["msl_local", "thickness_900_600_local", "thickness_600_300_local", "lsm"]
    config = recipe(
        real_data,
        out,
        "ianos_gfs_20200917.nc",
        catalogue=str(tmp_path / "storms.csv"),
        channels=channels,
        step_hours=3,
        degrees=0.25,
        domain={"west": 10, "east": 25},
        label={"msl_max_hpa": 1012},  # this forecast's low is only 1008 hPa deep
    )
    assert write_store(config).n_medicane == 3
    ds = open_store(out)
    assert ds.sizes == {"time": 3, "channel": 4, "latitude": 81, "longitude": 61}
    assert np.abs(ds.low_latitude - 36).max() < 1.5
    assert np.abs(ds.low_longitude - 19.5).max() < 1.5
    assert (np.minimum(ds.vtl, ds.vtu) <= 0).all()  # no deep warm core in this forecast
    low = ds["maps"][0, 0].sel(latitude=36, longitude=19.5, method="nearest")
    assert float(low) < -300  # Pa below its surroundings


def test_a_real_forecast_in_two_grib_files(real_data, out):
    pytest.importorskip("cfgrib")
    config = recipe(
        real_data,
        out,
        "arpege_*.grib",
        catalogue=None,
        channels=["msl_local", "wind10"],
        step_hours=1,
    )
    assert write_store(config).n_maps == 25
    ds = open_store(out)
    assert np.allclose(np.diff(ds.latitude), -0.5)
    wind = ds["maps"][:, 1]
    assert 0 <= float(wind.min()) < float(wind.max()) < 40


# --- steps and gaps ----------------------------------------------------------------------------


def test_hourly_maps_give_the_six_hourly_ones(tmp_path, out):
    era5(0, 121, step=1).to_netcdf(tmp_path / "hourly.nc")
    summary = write_store(recipe(tmp_path, out, catalogue=None))
    assert (summary.n_maps, summary.n_left_out) == (21, 100)
    hours = open_store(out).time.dt.hour.values
    assert set(hours) == {0, 6, 12, 18}


def test_gaps_stay_gaps(tmp_path, out):
    era5(0, 40).isel(valid_time=np.r_[0:15, 18:40]).to_netcdf(tmp_path / "a.nc")
    assert write_store(recipe(tmp_path, out, catalogue=None)).n_maps == 37
    steps = np.diff(open_store(out).time.values) / np.timedelta64(1, "h")
    assert sorted(set(steps)) == [6, 24]


def test_maps_at_other_hours_keep_them(tmp_path, out):
    ds = era5(0, 20)
    ds.assign_coords(valid_time=ds.valid_time + np.timedelta64(3, "h")).to_netcdf(tmp_path / "a.nc")
    write_store(recipe(tmp_path, out, catalogue=None))
    assert set(open_store(out).time.dt.hour.values) == {3, 9, 15, 21}


def test_coarser_maps_are_refused(tmp_path, out):
    era5(0, 20, step=12).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"data.step_hours: .* maps every 6 h; found 12 h"):
        write_store(recipe(tmp_path, out, catalogue=None))


# --- opening -----------------------------------------------------------------------------------


def test_opening_reads_no_maps(whole, monkeypatch):
    monkeypatch.setattr(ChunkFiles, "read", lambda *_: pytest.fail("maps were read"))
    ds = open_store(whole)
    assert not ds["maps"]._in_memory
    assert ds["maps"].isel(time=slice(3, 40)).shape == (37, 6, 21, 25)
    assert ds.chunk(time=96)["maps"].chunks[0] == (96, 84)


INDEXERS = st.one_of(
    st.integers(-4, 3),
    st.builds(slice, st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 3)),
    st.just(slice(None, None, -1)),
    st.lists(st.integers(-4, 3), max_size=6).map(lambda found: np.array(found, int)),
)


@settings(max_examples=60, deadline=None)
@given(index=st.fixed_dictionaries({}, optional=dict.fromkeys(DIMS, INDEXERS)))
def test_any_part_of_the_maps_is_what_all_of_them_hold_there(whole, truth, index):
    maps = open_store(whole)["maps"]
    steps = {"time": 40, "channel": 1, "latitude": 5, "longitude": 6}  # indexers are for four
    few = {name: slice(None, 4 * step, step) for name, step in steps.items()}
    some = maps.isel(few)
    assert some.shape == (4, 4, 4, 4)
    expected = truth["maps"].isel(few)
    xr.testing.assert_identical(some.isel(index).compute(), expected.isel(index))


@pytest.mark.parametrize("how", ["slice", "mask", "gap", "dask", "pickled", "copied"])
def test_maps_are_read_however_they_are_chosen(whole, truth, how):
    ds = open_store(whole)
    maps = truth["maps"].values
    wanted = np.arange(30, 90)
    if how == "slice":
        found = ds["maps"].isel(time=slice(30, 90))
    elif how == "mask":
        found = maps_where(ds, np.isin(np.arange(180), wanted))["maps"]
    elif how == "gap":
        wanted = np.delete(wanted, [5, 6, 40])
        found = maps_where(ds, np.isin(np.arange(180), wanted))["maps"]
    elif how == "dask":
        found = ds.chunk(time=24)["maps"].isel(time=slice(30, 90))
    elif how == "pickled":
        found = pickle.loads(pickle.dumps(ds))["maps"].isel(time=slice(30, 90))
    else:
        found = ds.copy(deep=True)["maps"].isel(time=slice(30, 90))
    np.testing.assert_array_equal(found.values, maps[wanted])
    block = read_block(found, 7, 31)
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block, maps[wanted][7:31].transpose(0, 2, 3, 1))


def test_a_store_that_is_no_folder_is_read_through_zarr(whole, monkeypatch):
    monkeypatch.setattr(ChunkFiles, "plain", lambda _: False)
    through = open_store(whole)["maps"].isel(time=slice(20, 50)).values
    verify_store(whole)
    monkeypatch.undo()
    np.testing.assert_array_equal(through, open_store(whole)["maps"][20:50].values)


@pytest.mark.parametrize("kind", ["absent", "other"])
def test_what_is_no_map_store_is_told(tmp_path, kind):
    path = tmp_path / "x.zarr"
    if kind == "other":
        xr.Dataset({"a": ("x", [1.0])}).to_zarr(path, zarr_format=3)
    with pytest.raises(InputError, match="must be a map store"):
        open_store(path)


def test_a_store_of_before_is_to_be_prepared_again(sea, whole, tmp_path):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    root = (path / "zarr.json").read_text()
    assert '"schema_version": 2' in root
    # In the attributes, and in the recipe, which is JSON inside.
    old = root.replace('"schema_version": 2', '"schema_version": 1')
    (path / "zarr.json").write_text(
        old.replace('\\"schema_version\\": 2', '\\"schema_version\\": 1')
    )
    with pytest.raises(InputError, match="schema 2: remove it and run 'medicane prepare'; found"):
        open_store(path)
    with pytest.raises(
        InputError, match=r"another recipe \(schema_version: 1\).* remove the store"
    ):
        write_store(recipe(sea, path))


@pytest.mark.parametrize("spoil", ["gone", "cut short"])
def test_a_chunk_that_is_not_whole_is_named(whole, tmp_path, spoil):
    path = tmp_path / "maps.zarr"
    shutil.copytree(whole, path)
    chunk = path / "v10" / "c.3.0.0"
    chunk.unlink() if spoil == "gone" else chunk.write_bytes(chunk.read_bytes()[:2000])
    maps = open_store(path)["maps"]
    assert np.isfinite(maps[:72].values).all()
    with pytest.raises(InputError, match=r"v10/c\.3\.0\.0: the chunk of the store must be whole"):
        maps[70:80].load()
    # Other tools find no value rather than a wrong one.
    if spoil == "gone":
        assert xr.open_zarr(path)["v10"][72:96].isnull().all()


# --- memory ------------------------------------------------------------------------------------

PEAK = """
import sys, json
from medicane.store import write_store
from medicane.config import make_config
write_store(make_config(json.loads(sys.argv[1])))
# Not getrusage: its maximum includes the process that this one was forked from.
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_record(tmp_path):
    (tmp_path / "storms.csv").write_text(CATALOGUE)
    peak = {}
    for n_files in (2, 12):
        folder = tmp_path / str(n_files)
        folder.mkdir()
        shutil.copy(tmp_path / "storms.csv", folder)
        for i in range(n_files):
            era5(124 * i, 124 * (i + 1)).to_netcdf(folder / f"{i:02d}.nc")
        values = recipe(folder, folder / "maps.zarr").model_dump(mode="json", exclude_unset=True)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, json.dumps(values)],
            check=True,
            capture_output=True,
            text=True,
        )
        peak[n_files] = int(done.stdout.split()[-1]) / 1024
    size = sum(f.stat().st_size for f in (tmp_path / "12" / "maps.zarr").rglob("*") if f.is_file())
    assert peak[12] - peak[2] < 40  # MiB
    assert 2 * size / 2**20 > 15  # as they are computed: in the store they are packed to half
