"""The idealised sea: its files, its truth, and how hard it is."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medicane import config, names, phase_space, synthetic
from medicane.errors import InputError
from medicane.grids import open_grids
from medicane.labels import label_times, read_catalogue
from medicane.phase_space.lows import lows_of_maps
from medicane.standardise import standardise
from medicane.standardise.land import land_sea_mask
from medicane.synthetic import files as sea_files
from medicane.synthetic import storms

LABEL = config.Label()
#: Three months of a coarse sea with storms enough.
SMALL = config.Sea(years=0.25, start_year=2003, seed=7, base_rate=0.05, degrees=1.0)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> synthetic.SeaFiles:
    return synthetic.build_sea(tmp_path_factory.mktemp("sea"), SMALL, label=LABEL)


@pytest.fixture(scope="module")
def truth(built) -> xr.Dataset:
    with xr.open_dataset(built.truth) as ds:
        return ds.load()


@pytest.fixture(scope="module")
def grids(built) -> xr.Dataset:
    return standardise(open_grids(built.grids_glob), domain=config.Domain(), degrees=1.0).load()


# -- the files ------------------------------------------------------------------------------------


def test_there_is_one_file_a_month_and_nothing_half_written(built):
    folder = Path(built.grids_glob).parent
    assert sorted(p.name for p in folder.iterdir()) == [
        "era5_2003-01.nc",
        "era5_2003-02.nc",
        "era5_2003-03.nc",
        "era5_2003-04.nc",
    ]
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        "grids",
        "sea.json",
        "storms.csv",
        "tracks.csv",
        "truth.nc",
    ]


def test_the_grids_speak_the_dialect_of_the_climate_data_store(built):
    with xr.open_dataset(built.grids_glob.replace("*", "2003-01")) as ds:
        assert set(ds.data_vars) == {"msl", "u10", "v10", "z"}
        assert ds["z"].dims == ("valid_time", "pressure_level", "latitude", "longitude")
        assert ds["msl"].dims == ("valid_time", "latitude", "longitude")
        assert {"number", "expver"} <= set(ds.coords)
        assert ds["expver"].dims == ("valid_time",)
        assert ds["number"].ndim == 0
        assert (np.diff(ds["latitude"]) < 0).all()
        assert (np.diff(ds["longitude"]) > 0).all()
        assert tuple(ds["pressure_level"].values) == names.PHASE_SPACE_LEVELS
        assert {n: v.attrs["units"] for n, v in ds.data_vars.items()} == {
            "msl": "Pa",
            "u10": "m s**-1",
            "v10": "m s**-1",
            "z": "m**2 s**-2",
        }
        assert all(v.dtype == np.float32 for v in ds.data_vars.values())
        assert "synthetic" in ds.attrs["source"]
        expected = pd.date_range("2003-01-01", "2003-01-31 18:00", freq="6h")
        np.testing.assert_array_equal(ds["valid_time"].values, expected.values)


def test_the_front_door_accepts_the_sea(grids, truth):
    assert set(grids.data_vars) == {"msl", "u10", "v10", "zg"}
    np.testing.assert_array_equal(grids["time"].values, truth["time"].values)
    assert all(np.isfinite(grids[name]).all() for name in grids.data_vars)
    assert 950e2 < float(grids["msl"].min()) < 1005e2
    assert 1014e2 < float(grids["msl"].mean()) + 200 < 1018e2
    assert 15 < float(np.hypot(grids["u10"], grids["v10"]).max()) < 45


def test_the_catalogue_gives_the_labels_of_the_truth(built, truth):
    catalogue = read_catalogue(built.catalogue)
    labels = label_times(truth["time"].values, catalogue, definition=LABEL)
    np.testing.assert_array_equal(labels["medicane"].values, truth["medicane"].values)
    assert truth["medicane"].values.sum() > 5
    of_medicanes = truth["medicane"].values == 1
    np.testing.assert_array_equal(
        labels["storm"].values[of_medicanes], truth["storm"].values[of_medicanes]
    )


def test_every_catalogued_storm_tells_its_kind(built):
    catalogue = pd.read_csv(built.catalogue)
    assert list(catalogue.columns[:5]) == ["storm", "start", "end", "phase", "kind"]
    assert set(catalogue["kind"]) <= {storms.MEDICANE, *storms.NEGATIVES}
    phases = catalogue.groupby("storm")["phase"].agg(set)
    kinds = catalogue.groupby("storm")["kind"].first()
    for storm, kind in kinds.items():
        assert phases[storm] == ({"other", "medicane"} if kind == "medicane" else {"other"})
    assert (catalogue["kind"] != "medicane").sum() >= 8


def test_the_tracks_hold_every_storm_hour_by_hour(built):
    tracks = pd.read_csv(built.tracks, parse_dates=["time"])
    assert list(tracks.columns[:4]) == ["track_id", "time", "lon", "lat"]
    assert set(tracks["track_id"]) == set(pd.read_csv(built.catalogue)["storm"])
    steps = tracks.groupby("track_id")["time"].diff().dropna()
    assert (steps == pd.Timedelta("1h")).all()
    assert tracks["lat"].between(28, 48).all()
    assert tracks["lon"].between(-10, 42).all()


def test_huracanpy_loads_the_tracks(built):
    # In a process of its own: its units must not meet those of another library.
    code = "import huracanpy, sys; t = huracanpy.load(sys.argv[1]); print(t.track_id.size)"
    if importlib.util.find_spec("huracanpy") is None:
        pytest.skip("huracanpy is not installed")
    run = subprocess.run(
        [sys.executable, "-c", code, str(built.tracks)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with built.tracks.open() as file:
        assert int(run.stdout) == sum(1 for _ in csv.reader(file)) - 1


def test_the_truth_says_what_the_storm_of_each_map_is(truth):
    assert truth["medicane"].dtype == np.int8
    assert json.loads(truth.attrs["label_definition"]) == json.loads(LABEL.model_dump_json())
    storm = truth["storm"].values != ""
    for name in ("b", "vtl", "vtu", "low_msl", "low_latitude", "low_longitude"):
        np.testing.assert_array_equal(np.isfinite(truth[name].values), storm)
    np.testing.assert_array_equal(truth["kind"].values != "", storm)
    assert set(truth["kind"].values[truth["medicane"].values == 1]) == {"medicane"}


def test_the_low_is_where_the_truth_says(grids, truth):
    for i in np.flatnonzero(truth["medicane"].values == 1):
        here = (
            grids["msl"]
            .isel(time=i)
            .sel(
                latitude=truth["low_latitude"].values[i],
                longitude=truth["low_longitude"].values[i],
                method="nearest",
            )
        )
        around = grids["msl"].isel(time=i).mean()
        assert float(here) < float(around) - 400


# -- seeds, intervals, folders --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_data_and_another_seed_other(tmp_path, built):
    again = synthetic.build_sea(tmp_path / "again", SMALL, label=LABEL)
    other = synthetic.build_sea(
        tmp_path / "other", SMALL.model_copy(update={"seed": 8}), label=LABEL
    )
    for name in ("storms.csv", "tracks.csv"):
        one, two, three = (Path(f.catalogue).with_name(name) for f in (built, again, other))
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes() != three.read_bytes()
    for month in ("2003-01", "2003-03"):
        with (
            xr.open_dataset(built.grids_glob.replace("*", month)) as a,
            xr.open_dataset(again.grids_glob.replace("*", month)) as b,
            xr.open_dataset(other.grids_glob.replace("*", month)) as c,
        ):
            xr.testing.assert_identical(a, b)
            assert not np.array_equal(a["z"], c["z"])


def test_hourly_maps_hold_the_same_storms():
    hourly, six = (
        synthetic.plan_sea(SMALL.model_copy(update={"step_hours": step}), label=LABEL)
        for step in (1, 6)
    )
    assert [(s.name, s.start, s.kind) for s in hourly.storms] == [
        (s.name, s.start, s.kind) for s in six.storms
    ]
    np.testing.assert_array_equal(hourly.times[::6], six.times)
    fine, coarse = synthetic.truth_table(hourly), synthetic.truth_table(six)
    for name in ("medicane", "storm", "vtl", "low_longitude"):
        np.testing.assert_array_equal(fine[name][::6], coarse[name])


def test_calm_hourly_maps_are_the_calm_six_hourly_ones_in_between():
    label = LABEL
    maps = {}
    for step in (1, 6):
        planned = synthetic.plan_sea(SMALL.model_copy(update={"step_hours": step}), label=label)
        whole = [m.msl for _, m in planned.maps(weather=0.0)]
        maps[step] = np.concatenate(whole)
    np.testing.assert_array_equal(maps[1][::6], maps[6])


def test_a_finished_sea_is_left_alone_and_another_one_replaced(tmp_path):
    tiny = config.Sea(years=0.03, degrees=2.0, base_rate=0.05)
    files = synthetic.build_sea(tmp_path, tiny)
    month = Path(files.grids_glob.replace("*", "2001-01"))
    before = month.stat().st_mtime_ns
    synthetic.build_sea(tmp_path, tiny)
    assert month.stat().st_mtime_ns == before
    synthetic.build_sea(tmp_path, tiny.model_copy(update={"start_year": 2010}))
    assert [p.name for p in month.parent.iterdir()] == ["era5_2010-01.nc"]


def test_an_interrupted_sea_is_built_anew(tmp_path):
    tiny = config.Sea(years=0.2, degrees=2.0, base_rate=0.05)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.build_sea(tmp_path, tiny, progress=stop)
    assert not (tmp_path / "truth.nc").exists()
    assert [p.name for p in (tmp_path / "grids").iterdir() if p.name.startswith(".")] == []
    files = synthetic.build_sea(tmp_path, tiny)
    with xr.open_dataset(files.truth) as ds:
        assert ds.sizes["time"] == open_grids(files.grids_glob).sizes["valid_time"]


def test_grids_of_others_are_never_replaced(tmp_path):
    (tmp_path / "grids").mkdir()
    theirs = tmp_path / "grids" / "era5_2020-09.nc"
    theirs.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"era5_2020-09\.nc"):
        synthetic.build_sea(tmp_path, SMALL)
    assert theirs.read_bytes() == b"precious"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "sea").write_text("")
    with pytest.raises(InputError, match="folder"):
        synthetic.build_sea(tmp_path / "sea", SMALL)


@pytest.mark.parametrize("year", [1, 1699, 2200])
def test_years_that_no_file_can_hold_are_refused(year):
    with pytest.raises(InputError, match=r"sea\.start_year"):
        synthetic.plan_sea(SMALL.model_copy(update={"start_year": year}), label=LABEL)


def test_progress_counts_maps_to_the_end(tmp_path):
    seen: list[tuple[int, int]] = []
    synthetic.build_sea(
        tmp_path,
        config.Sea(years=0.1, degrees=2.0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert seen[-1][0] == seen[-1][1] == 37 * 4


def test_a_record_too_short_for_its_base_rate_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        synthetic.build_sea(tmp_path, config.Sea(years=0.02, degrees=2.0))
    assert "too short" in caplog.text


def test_a_file_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with sea_files.whole(tmp_path / "x.csv") as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


# -- how hard it is -------------------------------------------------------------------------------

SIDE = 17


@pytest.fixture(scope="module")
def seen() -> list[dict[str, np.ndarray]]:
    """Two independent seas: their truth, what the noisy maps show, and pressure about the lows."""
    return [_see(seed) for seed in (21, 22)]


def _see(seed: int, *, weather: float = 1.0, years: float = 1.5) -> dict[str, np.ndarray]:
    sea = config.Sea(years=years, seed=seed, base_rate=0.06)
    planned = synthetic.plan_sea(sea, label=LABEL)
    got = synthetic.truth_table(planned)
    over_sea = land_sea_mask(planned.latitude, planned.longitude).values < 0.5
    rows = np.nan_to_num(np.round((48 - got["low_latitude"]) / 0.5)).astype(int)
    columns = np.nan_to_num(np.round((got["low_longitude"] + 10) / 0.5)).astype(int)
    found, patches, last = [], [], None
    for block, maps in planned.maps(weather=weather):
        lows = lows_of_maps(
            maps.zg,
            maps.msl,
            over_sea,
            times=planned.times[block],
            levels=names.PHASE_SPACE_LEVELS,
            latitude=planned.latitude,
            longitude=planned.longitude,
            definition=LABEL,
            previous=last,
        )
        last = lows.last
        found.append(np.stack(lows[:6]))
        wide = np.pad(maps.msl, ((0, 0), (SIDE // 2,) * 2, (SIDE // 2,) * 2), mode="edge") / 100
        patches += [
            wide[i, r : r + SIDE, c : c + SIDE].ravel()
            for i, (r, c) in enumerate(zip(rows[block], columns[block], strict=True))
        ]
    keys = ("latitude", "longitude", "msl", "b", "vtl", "vtu")
    got |= {f"noisy_{k}": v for k, v in zip(keys, np.concatenate(found, axis=1), strict=True)}
    return got | {"patch": np.stack(patches), "time": planned.times}


def _held(b, vtl, vtu, msl, times) -> np.ndarray:
    raw = phase_space.satisfies(b, vtl, vtu, msl, definition=LABEL)
    return phase_space.hold(raw, times, min_hours=LABEL.min_hours, step_hours=6)


def _csi(forecast: np.ndarray, label: np.ndarray) -> float:
    return float((forecast & label).sum() / (forecast | label).sum())


def _near(got: dict[str, np.ndarray]) -> np.ndarray:
    apart = phase_space.distance_km(
        got["noisy_latitude"], got["noisy_longitude"], got["low_latitude"], got["low_longitude"]
    )
    return (apart < 200) & np.isfinite(got["noisy_vtl"])


def test_the_clean_oracle_scores_one(seen):
    for got in seen:
        label = got["medicane"] == 1
        oracle = np.zeros_like(label)
        for storm in set(got["storm"]) - {""}:
            own = np.flatnonzero(got["storm"] == storm)
            oracle[own] = _held(*(got[k][own] for k in ("b", "vtl", "vtu", "low_msl", "time")))
        assert _csi(oracle, label) == 1


def test_without_weather_the_rule_finds_the_storms_on_the_grid():
    got = _see(23, weather=0.0, years=0.7)
    label = got["medicane"] == 1
    rule = _held(*(got[f"noisy_{k}"] for k in ("b", "vtl", "vtu", "msl")), got["time"])
    # Half a degree is coarse for a disc of 200 km: the edges of a spell may differ by a map.
    assert _csi(rule, label) > 0.85


def test_with_weather_the_rule_is_a_baseline_to_beat(seen):
    label = np.concatenate([got["medicane"] == 1 for got in seen])
    rule = np.concatenate(
        [
            _held(*(got[f"noisy_{k}"] for k in ("b", "vtl", "vtu", "msl")), got["time"])
            for got in seen
        ]
    )
    assert 0.2 < _csi(rule, label) < 0.65


def test_one_map_is_not_enough_and_time_helps(seen):
    labels, single, mean = [], [], []
    for got in seen:
        near = _near(got)
        warmth = np.minimum(got["noisy_vtl"], got["noisy_vtu"])
        for i in np.flatnonzero(near):
            window = np.arange(max(0, i - 3), min(near.size, i + 4))
            window = window[near[window] & (got["storm"][window] == got["storm"][i])]
            labels.append(got["medicane"][i] == 1)
            single.append(warmth[i])
            mean.append(warmth[window].mean())
    label, one, several = (np.array(v) for v in (labels, single, mean))

    def d_prime(x: np.ndarray) -> float:
        a, b = x[label], x[~label]
        return float((a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2))

    assert 1.0 < d_prime(one) < 2.1
    assert d_prime(several) > d_prime(one) + 0.15


def test_pressure_alone_does_not_tell_medicanes_from_other_lows(seen):
    fit, test = seen
    deep = [got["low_msl"] < LABEL.msl_max_hpa for got in seen]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    model.fit(fit["patch"][deep[0]], fit["medicane"][deep[0]])
    guess = model.predict_proba(test["patch"][deep[1]])[:, 1]
    label = test["medicane"][deep[1]]
    assert label.sum() > 50
    assert roc_auc_score(label, guess) < 0.6
    depth = -test["patch"][deep[1]].min(axis=1)
    assert roc_auc_score(label, depth) < 0.6


def test_surface_wind_alone_does_not_either():
    """Δp/√r_p stands for it: the wind is made from the surface pressure, whatever the core."""
    rng, is_land = np.random.default_rng(1), synthetic.land_lookup()
    others = [kind for kind in storms.NEGATIVES if kind != "heat_low"]
    strength: dict[bool, list[float]] = {True: [], False: []}
    for i in range(200):
        for kind in (storms.MEDICANE, others[i % len(others)]):
            storm = storms.draw_storm(rng, kind, is_land=is_land, definition=LABEL)
            deep = storm.over_sea & (storm.msl_hpa < LABEL.msl_max_hpa)
            chosen = storm.medicane if kind == storms.MEDICANE else deep
            wind = storm.depth_hpa[chosen] / np.sqrt(storm.radius_km)
            strength[kind == storms.MEDICANE] += list(wind)
    label = np.repeat([1, 0], [len(strength[True]), len(strength[False])])
    auc = roc_auc_score(label, strength[True] + strength[False])
    assert max(auc, 1 - auc) < 0.6
