"""Prediction: equal to the naive form, causal, silent nowhere; missing maps refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.array as da
import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from medicane import model as detector
from medicane.config import make_config
from medicane.detections import continued, label_maps, read_detections, write_detections
from medicane.errors import InputError
from medicane.normalise import Statistics
from medicane.predict import Labels, cuts, predict, read_ahead
from tests.conftest import ROOT

CHANNELS = ("msl_local", "u10")
LENGTH = 10


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {"blocks": [1], "growth_rate": 4, "units": 8},
        }
    )
    statistics = Statistics(CHANNELS, np.zeros(2), np.ones(2), 10)
    facts = {"length": LENGTH, "step_hours": 6, "smallest_grid": 2}
    return detector.build_detector(config, statistics, facts=facts)


def series(n: int, *, start: str = "2020-01-01", seed: int = 0) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    times = pd.date_range(start, periods=n, freq="6h").as_unit("ns")
    return xr.DataArray(
        rng.normal(size=(n, 2, 6, 8)).astype(np.float32),
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": times,
            "channel": list(CHANNELS),
            "latitude": np.linspace(40, 37.5, 6),
            "longitude": np.linspace(10, 13.5, 8),
        },
    )


def windows_of(network: keras.Model, maps: xr.DataArray, length: int = LENGTH) -> np.ndarray:
    """Logits of every window, each map encoded anew for each: (window, length)."""
    values = maps.transpose("time", "latitude", "longitude", "channel").values
    starts = range(len(values) - length + 1)
    windows = np.stack([values[start : start + length] for start in starts])
    p = np.asarray(network(windows, training=False))[..., 0].astype(float)
    return np.log(p / (1 - p))


@pytest.mark.parametrize("block", [3, 7, 10, 16, 96])
def test_causal_equals_window_by_window(network: keras.Model, block: int) -> None:
    maps = series(31)
    windows = windows_of(network, maps)
    expected = np.concatenate([windows[0], [w[-1] for w in windows[1:]]])
    found = predict(network, maps, mode="causal", block=block)
    np.testing.assert_allclose(found["logit"], expected, atol=1e-4)
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-expected)), atol=1e-5)
    assert (found["n_sequences"] == 1).all()


@pytest.mark.parametrize("block", [4, 10, 13, 96])
def test_fused_equals_the_mean_of_all_windows(network: keras.Model, block: int) -> None:
    maps = series(27)
    total, count = np.zeros(27), np.zeros(27)
    for start, logits in enumerate(windows_of(network, maps)):
        total[start : start + LENGTH] += logits
        count[start : start + LENGTH] += 1
    found = predict(network, maps, mode="fused", block=block)
    np.testing.assert_array_equal(found["n_sequences"], count)
    np.testing.assert_allclose(found["logit"], total / count, atol=1e-4)


def test_causal_does_not_look_ahead(network: keras.Model) -> None:
    maps = series(30)
    other = maps.copy(deep=True)
    other[20:] += 9
    np.testing.assert_array_equal(
        predict(network, maps)["logit"][:20], predict(network, other)["logit"][:20]
    )


def test_a_gap_begins_anew(network: keras.Model, caplog: pytest.LogCaptureFixture) -> None:
    """Periods on either side of a gap are labelled as if the other were not there; a short one is
    left without a label, and said so."""
    first, short, last = (
        series(12),
        series(4, start="2020-02-01", seed=1),
        series(15, start="2020-03-01", seed=2),
    )
    found = predict(network, xr.concat([first, short, last], "time"))
    np.testing.assert_allclose(found["logit"][:12], predict(network, first)["logit"], atol=1e-5)
    np.testing.assert_allclose(found["logit"][16:], predict(network, last)["logit"], atol=1e-5)
    assert np.isnan(found["probability"][12:16]).all()
    assert (found["n_sequences"][12:16] == 0).all()
    assert "4 maps from 2020-02-01 00:00:00 are fewer than one sequence of 10" in caplog.text


def test_too_few_maps(network: keras.Model) -> None:
    with pytest.raises(
        InputError, match=r"three\.nc: one sequence is 10 maps 6 h apart .* found 3 maps, at most 3"
    ):
        predict(network, series(3), where="three.nc")


def test_allow_short_gives_what_any_opening_gets(network: keras.Model) -> None:
    maps = series(14)
    short = predict(network, maps[:3], allow_short=True)
    np.testing.assert_allclose(short["logit"], predict(network, maps)["logit"][:3], atol=1e-5)
    fused = predict(network, maps[:3], allow_short=True, mode="fused")
    np.testing.assert_allclose(fused["logit"], short["logit"], atol=1e-5)


def test_other_channels_are_refused(network: keras.Model) -> None:
    maps = series(12).assign_coords(channel=["msl_local", "v10"])
    with pytest.raises(InputError, match="the model needs the channels"):
        predict(network, maps)


def test_lazy_maps_are_read_once_and_in_blocks(network: keras.Model) -> None:
    maps, read = series(60), []

    def load(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        if block_info:
            read.append(block_info[0]["array-location"][0])
        return block

    lazy = maps.chunk(time=10)
    lazy = lazy.copy(
        data=lazy.data.map_blocks(load, dtype=np.float32, meta=np.empty((0, 0, 0, 0), np.float32))
    )
    found = predict(network, lazy, block=20)
    assert sorted(read) == [(i, i + 10) for i in range(0, 60, 10)]
    np.testing.assert_allclose(found["logit"], predict(network, maps)["logit"], atol=1e-5)


@pytest.mark.parametrize("mode", ["causal", "fused"])
def test_the_runtime_of_the_encoder_is_the_callers(network: keras.Model, mode: str) -> None:
    """Each map goes through it once, whatever windows it stands in."""
    maps, seen = series(60), []

    def encode(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return detector.encoder_of(network)(images, training=False).numpy() + 1

    shifted = predict(network, maps, mode=mode, block=25, encode=encode)
    assert sum(seen) == 60
    assert np.abs(shifted["logit"] - predict(network, maps, mode=mode)["logit"]).min() > 1e-3


def test_labels_in_the_making(network: keras.Model) -> None:
    """Blocks of any length, also across a gap, give what one call gives."""
    maps = xr.concat(
        [series(14), series(3, start="2020-02-01"), series(25, start="2021-01-01")], "time"
    )
    images = maps.transpose("time", "latitude", "longitude", "channel").values
    labels = Labels(network, maps)
    for start, stop in itertools.pairwise([0, 1, 9, 16, 20, 41, 42]):
        labels.take(images[start:stop])
        assert labels.taken == stop
    xr.testing.assert_allclose(labels.dataset(), predict(network, maps), atol=1e-5)


class TestReading:
    @given(chunks=st.lists(st.integers(1, 40), min_size=1, max_size=12), block=st.integers(1, 50))
    def test_blocks_are_whole_chunks(self, chunks: list[int], block: int) -> None:
        n = sum(chunks)
        lazy = xr.DataArray(da.zeros((n, 2), chunks=(tuple(chunks), 2)), dims=("time", "x"))
        found = cuts(lazy, block=block)
        assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
        assert found[-1][1] == n
        ends = set(np.cumsum(chunks))
        assert all(stop in ends for _, stop in found)
        sizes = [stop - start for start, stop in found]
        assert all(size <= block or size in chunks for size in sizes)
        # As few as that allows: no two neighbours would fit one block.
        assert all(a + b > block for a, b in itertools.pairwise(sizes))
        assert cuts(lazy.compute(), block=block) == [
            (start, min(start + block, n)) for start in range(0, n, block)
        ]

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_in_order_and_not_far_ahead(self, threads: int) -> None:
        """However long each takes; no more blocks wait than there are threads."""
        begun, taken, farthest = [], 0, 0

        def read(start: int, stop: int) -> tuple[int, int]:
            begun.append(start)
            time.sleep(0.003 * (start % 3))
            return start, stop

        blocks = [(i, i + 1) for i in range(20)]
        for found in read_ahead(read, blocks, threads=threads):
            assert found == blocks[taken]
            taken += 1
            farthest = max(farthest, len(begun) - taken)
        assert taken == 20
        assert 1 <= farthest <= threads

    def test_a_fault_is_told_in_its_turn_and_ends_the_reading(self) -> None:
        begun: list[int] = []

        def read(start: int, stop: int) -> int:
            begun.append(start)
            if start == 2:
                raise InputError("third.nc", "must be readable")
            return start

        found = read_ahead(read, [(i, i + 1) for i in range(100)])
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(InputError, match="third"):
            next(found)
        assert len(begun) <= 5
        assert threading.active_count() < 50


LONG_SERIES = """
import resource, sys
import dask.array as da, numpy as np, pandas as pd, xarray as xr
from medicane.predict import predict
from tests.test_predict import CHANNELS, rival

n = int(sys.argv[1])
made = lambda block_info: np.full(
    (block_info[None]["chunk-shape"]), block_info[None]["chunk-location"][0] % 7, np.float32)
maps = xr.DataArray(
    da.map_blocks(made, chunks=((50,) * (n // 50), 2, 48, 64), dtype=np.float32),
    dims=("time", "channel", "latitude", "longitude"),
    coords={"time": pd.date_range("1900-01-01", periods=n, freq="6h", unit="ns"),
            "channel": list(CHANNELS)},
)
network = rival()
predict(network, maps[:200], block=50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = predict(network, maps, block=50)
assert found["n_sequences"].min() == 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_series() -> None:
    """10,000 maps are 246 MB; what is held on top of a series of 200 is a small part of that."""
    done = subprocess.run(
        [sys.executable, "-c", LONG_SERIES, "10000"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert float(done.stdout.split()[-1]) < 60


def test_history_continues_the_series(network: keras.Model) -> None:
    """The last maps of yesterday are all that today needs."""
    maps = series(40)
    whole = predict(network, maps)["logit"]
    today = predict(network, maps[25 - (LENGTH - 1) :])["logit"][LENGTH - 1 :]
    np.testing.assert_allclose(today, whole[25:], atol=1e-5)


@pytest.mark.parametrize("missing", ["a map", "a cell"])
def test_missing_values_are_refused_by_time_and_channel(network: keras.Model, missing: str) -> None:
    maps = series(14)
    maps[5, 1] = np.where(
        (np.arange(48).reshape(6, 8) == 7) | (missing == "a map"), np.nan, maps[5, 1]
    )
    found = "no value at all" if missing == "a map" else "1 of 48 cells"
    with pytest.raises(InputError, match=f"new.nc: channel u10 at 2020-01-02T06:00: .*{found}"):
        predict(network, maps, block=4, where="new.nc")


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("allow_short", [False, True])
def test_a_series_that_grows_gets_the_labels_of_one_call(
    network: keras.Model, mode: str, allow_short: bool
) -> None:
    """In pieces of one to many maps, across a gap, with a tail that waits for its sequence."""
    maps = xr.concat([series(14), series(25, start="2020-02-01", seed=2)], dim="time")
    expected = predict(network, maps, mode=mode, allow_short=allow_short)
    grown = predict(network, maps[:12], mode=mode, allow_short=allow_short)
    for start, stop in [(12, 14), (14, 15), (15, 19), (19, 20), (20, 37), (37, 39)]:
        gap = 14 if start >= 14 else 0
        history = max(start - (LENGTH - 1), gap)  # none of the maps before the gap
        new = predict(
            network, maps[history:stop], mode=mode, allow_short=allow_short, allow_none=True
        )
        before = grown
        grown = continued(before, new, length=LENGTH, step_hours=6, mode=mode)
        if mode == "causal":  # what was labelled is left alone
            labelled = (before["n_sequences"] > 0).values
            kept = grown["logit"].values[: len(labelled)][labelled]
            np.testing.assert_array_equal(kept, before["logit"].values[labelled])
    for name in ("probability", "logit", "n_sequences"):
        np.testing.assert_allclose(grown[name], expected[name], atol=1e-5)
    assert (grown["n_sequences"] > 0).all()


# Other networks ----------------------------------------------------------------------------------


def rival(**keys: object) -> keras.Model:
    """Untrained, but with biases and moving statistics that are not trivial."""
    keras.utils.set_random_seed(5)
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {"blocks": [1], "growth_rate": 2, "units": 4, **keys},
        }
    )
    statistics = Statistics(CHANNELS, np.zeros(2), np.ones(2), 10)
    facts = {"length": LENGTH, "step_hours": 6, "smallest_grid": 2}
    built = detector.build_detector(config, statistics, facts=facts)
    rng = np.random.default_rng(5)
    for weight in detector.head_of(built).trainable_weights:
        weight.assign(weight + rng.normal(0, 0.3, weight.shape))
    return built


@pytest.fixture(scope="module")
def rivals() -> dict[str, keras.Model]:
    found = {
        "r2plus1d": rival(encoder="r2plus1d", rnn="none"),
        "both_ways": rival(bidirectional=True),
        "feedback": rival(label_feedback=True),
    }
    members = [found["both_ways"], rival(encoder="c3d", rnn="none")]
    found["ensemble"] = detector.ensemble_of(members)
    return found


def by_windows(network: keras.Model, maps: xr.DataArray, mode: str) -> np.ndarray:
    """Labels from windows each run alone; in causal mode each map is the last of its own."""
    windows = windows_of(network, maps)
    if mode == "causal":
        short = [windows_of(network, maps[: t + 1], length=t + 1)[0, -1] for t in range(LENGTH - 1)]
        return np.concatenate([short, windows[:, -1]])
    n = maps.sizes["time"]
    total, count = np.zeros(n), np.zeros(n)
    for start, logits in enumerate(windows):
        total[start : start + LENGTH] += logits
        count[start : start + LENGTH] += 1
    return total / count


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("name", ["r2plus1d", "both_ways", "feedback", "ensemble"])
def test_rivals_are_labelled_as_window_by_window(
    rivals: dict[str, keras.Model], name: str, mode: str
) -> None:
    """However the maps arrive: blocks shorter and longer than a window and than the reach."""
    maps = series(24)
    expected = by_windows(rivals[name], maps, mode)
    for block in (4, 13, 96):
        found = predict(rivals[name], maps, mode=mode, block=block)
        np.testing.assert_allclose(found["logit"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["r2plus1d", "both_ways"])
def test_rivals_do_not_look_ahead_when_causal(rivals: dict[str, keras.Model], name: str) -> None:
    maps = series(22)
    other = maps.copy(deep=True)
    other[6:] += 9  # within the first window of the period
    before, after = (predict(rivals[name], m)["logit"].values for m in (maps, other))
    np.testing.assert_allclose(before[:6], after[:6], atol=1e-6)
    assert np.abs(before[6:] - after[6:]).max() > 1e-3


@pytest.mark.parametrize("mode", ["causal", "fused"])
@pytest.mark.parametrize("name", ["r2plus1d", "both_ways", "ensemble"])
def test_a_series_that_grows_under_a_rival(
    rivals: dict[str, keras.Model], name: str, mode: str
) -> None:
    """Today's maps behind yesterday's last ones are labelled as in one call for all of them."""
    maps = series(23)
    expected = predict(rivals[name], maps, mode=mode)
    grown = predict(rivals[name], maps[:6], mode=mode, allow_short=True)
    for start, stop in [(6, 7), (7, 18), (18, 23)]:
        history = max(start - (LENGTH - 1), 0)
        new = predict(rivals[name], maps[history:stop], mode=mode, allow_short=True)
        grown = continued(grown, new, length=LENGTH, step_hours=6, mode=mode)
    np.testing.assert_allclose(grown["logit"], expected["logit"], atol=1e-5)
    np.testing.assert_array_equal(grown["n_sequences"], expected["n_sequences"])


@pytest.fixture(scope="module")
def wary() -> keras.Model:
    """It knows its domain; and it convolves over time: the error depends on the maps before."""
    built = rival(encoder="c3d", rnn="none", out_of_domain=True)
    maps = series(300, seed=8).transpose("time", "latitude", "longitude", "channel").values
    features = np.asarray(detector.encoder_of(built)(maps[None], training=False))[0]
    detector.fit_out_of_domain(built, features, epochs=2)
    return built


class TestOutOfDomain:
    @pytest.mark.parametrize("mode", ["causal", "fused"])
    def test_every_map_says_how_unlike_the_training_it_is(
        self, wary: keras.Model, mode: str
    ) -> None:
        maps = series(26)
        maps[20:] += 30
        values = maps.transpose("time", "latitude", "longitude", "channel").values
        features = np.asarray(detector.encoder_of(wary)(values[None], training=False))[0]
        found = predict(wary, maps, mode=mode, block=7)["reconstruction_error"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, detector.reconstruction_error(wary, features), rtol=1e-3)
        known = detector.facts_of(wary)["out_of_domain"]["percentile_99"]
        assert found.attrs["training_percentile_99"] == known
        assert found.attrs["units"] == "1"
        assert (found[20:] > known).all()

    def test_none_where_a_period_is_too_short(self, wary: keras.Model) -> None:
        found = predict(wary, xr.concat([series(3), series(11, start="2020-02-01")], "time"))
        assert np.isnan(found["reconstruction_error"][:3]).all()
        assert np.isfinite(found["reconstruction_error"][3:]).all()

    @pytest.mark.parametrize("mode", ["causal", "fused"])
    def test_it_goes_with_a_series_that_grows(
        self, wary: keras.Model, mode: str, tmp_path: Path
    ) -> None:
        maps = series(24)
        expected = predict(wary, maps, mode=mode)
        grown = predict(wary, maps[:4], mode=mode, allow_none=True)  # waits for its sequence
        assert np.isnan(grown["reconstruction_error"]).all()
        for start, stop in [(4, 15), (15, 24)]:
            history = max(start - (LENGTH - 1), 0)
            new = predict(wary, maps[history:stop], mode=mode, allow_none=True)
            grown = continued(grown, new, length=LENGTH, step_hours=6, mode=mode)
            write_detections(tmp_path, label_maps(grown, threshold=0.5), step_hours=6)
            grown, _ = read_detections(tmp_path / "detections.nc")
        name = "reconstruction_error"
        np.testing.assert_allclose(grown[name], expected[name], rtol=1e-4)
        assert grown[name].attrs == expected[name].attrs  # the percentile is in the file

    def test_a_model_without_says_nothing(self, rivals: dict[str, keras.Model]) -> None:
        assert "reconstruction_error" not in predict(rivals["both_ways"], series(10))
        unfitted = rival(out_of_domain=True)
        assert "reconstruction_error" not in predict(unfitted, series(10))
