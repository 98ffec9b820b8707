"""Read once: each stretch of a record once an epoch, in bounded memory, whatever its size."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from medicane.batches import RandomRuns, SequenceBatches
from medicane.batches.reading import SPAN, Spans
from medicane.packing import WORTH_KEEPING
from medicane.sequences import windows
from tests.test_batches import times_of

CHUNK, LENGTH, SHAPE = 24, 12, (2, 6, 8)
MAP_BYTES = 4 * int(np.prod(SHAPE))


class Record(xr.backends.common.BackendArray):
    """A lazy record of any length that makes its maps when they are read, and counts that.

    `chunks` counts how often each chunk of 24 maps was touched, `maps` how often each map was read.
    """

    dtype = np.dtype("float32")

    def __init__(self, n: int) -> None:
        self.shape = (n, *SHAPE)
        self.chunks = np.zeros(-(-n // CHUNK), int)
        self.maps = np.zeros(n, int)

    def __getitem__(self, key: Any) -> np.ndarray:
        return xr.core.indexing.explicit_indexing_adapter(
            key, self.shape, xr.core.indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: Any) -> np.ndarray:
        assert isinstance(key[0], slice), "not read in one go"
        at = np.arange(*key[0].indices(self.shape[0]))
        self.maps[at] += 1
        self.chunks[np.unique(at // CHUNK)] += 1
        values = np.empty((at.size, *SHAPE), np.float32)
        values[:] = at[:, None, None, None] * 1000
        return values[(slice(None), *key[1:])]

    def opened(self) -> xr.DataArray:
        lazy = xr.core.indexing.LazilyIndexedArray(self)
        dims = ("time", "channel", "latitude", "longitude")
        return xr.DataArray(xr.Variable(dims, lazy))


def record(n: int, **options: Any) -> tuple[Record, SequenceBatches]:
    """A record of n maps without a gap, and all its windows in batches."""
    held = Record(n)
    hours = np.datetime64("1940-01-01", "ns") + np.arange(n) * np.timedelta64(1, "h")
    rows = options.pop("rows", None)
    if rows is None:
        stride = options.pop("stride", 1)
        rows = windows(hours, length=LENGTH, stride=stride, step_hours=1)
    labels = options.pop("labels", np.zeros(n, np.int8))
    return held, SequenceBatches(held.opened(), rows, labels=labels, **options)


def run_through(data: SequenceBatches, epoch: int = 0) -> list[np.ndarray]:
    """All batches of an epoch, as the maps that stand where: a list of (batch, length)."""
    data.take_up(epoch)
    return [times_of(data[i][0]) for i in range(len(data))]


FORMS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "ordered": {"shuffle": False},
    "blocks": {"block": 16},
    "strided": {"stride": 5},
    "shuffled order": {"shuffled_order": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_chunk_is_read_once_an_epoch_and_a_halo(form):
    """A record of forty times the memory: no map more than twice, and few of them twice."""
    n = 9600
    held, data = record(n, memory=n // 20 * MAP_BYTES, seed=1, **FORMS[form])
    assert not held.chunks.any()  # nothing before the first batch
    for epoch in (0, 1):
        held.chunks[:] = 0
        held.maps[:] = 0
        run_through(data, epoch)
        assert held.maps.min() >= (0 if form == "strided" else 1)
        assert held.maps.max() <= 2
        again = int((held.maps == 2).sum())
        halo = LENGTH - 1 if form != "strided" else LENGTH - 5
        assert again <= n // SPAN * halo
        # The halo touches one chunk more than the four of a span.
        assert held.chunks.max() <= 2
        assert held.chunks.sum() <= n // CHUNK * (1 + CHUNK / SPAN)


def test_packed_maps_are_handed_out_as_they_are_and_take_half_the_memory():
    """So twice as many may be mixed: a batch has windows of more spans."""
    n = 9600
    memory = n // 20 * MAP_BYTES
    apart, held = {}, {}
    for dtype in (np.float32, np.int16):
        maps = np.broadcast_to(np.arange(n, dtype=dtype)[:, None, None, None], (n, *SHAPE))
        array = xr.DataArray(maps, dims=("time", "channel", "latitude", "longitude"))
        rows = windows(np.arange(n).astype("datetime64[h]"), length=LENGTH, step_hours=1)
        data = SequenceBatches(array, rows, labels=np.zeros(n), memory=memory, seed=1)
        middle = len(data) // 2
        batch = data[middle][0]
        assert batch.dtype == dtype
        np.testing.assert_array_equal(batch[..., 0, 0, 0], data._current(0)[middle].rows)
        apart[dtype] = np.unique(data._current(0)[middle].span).size
        held[dtype] = sum(span.result().nbytes for span in data._held._held.values())
        assert held[dtype] <= memory
    assert apart[np.int16] > 1.5 * apart[np.float32]


def test_random_runs_are_read_once_too():
    n = 9600
    runs = RandomRuns((np.arange(n),), length=LENGTH, maps_per_epoch=6 * n)
    held, data = record(n, rows=runs, memory=n // 8 * MAP_BYTES)
    shown = np.zeros(n, int)
    for at in run_through(data):
        np.add.at(shown, at, 1)
    assert (shown >= 6).all()
    assert held.maps.max() <= 2
    assert (held.maps == 2).sum() <= n // SPAN * (runs.longest - 1)


def test_a_record_that_fits_is_read_once_and_kept():
    held, data = record(600)
    first = run_through(data, 0)
    second = run_through(data, 1)
    assert held.maps.max() <= 2
    assert held.chunks.sum() <= 600 // CHUNK * (1 + CHUNK / SPAN)
    # And is shuffled through and through, as if there were nothing to be read.
    order = [at[0] for batch in first for at in batch.tolist()]
    assert order == data.order(0).tolist()
    rng = np.random.default_rng([0, 0])
    everything = np.arange(600 - LENGTH + 1)
    rng.shuffle(everything)
    assert order == everything.tolist()
    assert order != [at[0] for batch in second for at in batch.tolist()]


def test_only_what_is_drawn_is_read():
    n = 9600
    labels = np.zeros(n, np.int8)
    labels[5000:5010] = 1
    held, data = record(
        n, labels=labels, negatives_per_positive=0.5, memory=1000 * MAP_BYTES, block=8
    )
    run_through(data)
    assert 0 < (held.maps > 0).sum() < 8 * SPAN


@pytest.mark.parametrize("form", FORMS)
def test_how_maps_are_read_changes_nothing_of_an_epoch_but_its_order(form):
    some, all_at_once = (
        record(2400, memory=memory, seed=4, **FORMS[form])[1] for memory in (400 * MAP_BYTES, 10**9)
    )
    windows_of = [
        sorted(tuple(sorted(at)) for batch in run_through(data, 2) for at in batch.tolist())
        for data in (some, all_at_once)
    ]
    assert windows_of[0] == windows_of[1]


def test_an_epoch_follows_from_its_number_wherever_it_is_taken_up():
    _, whole = record(4800, memory=500 * MAP_BYTES, seed=2, block=8)
    held, again = record(4800, memory=500 * MAP_BYTES, seed=2, block=8)
    batches = run_through(whole, 3)
    at = len(batches) // 2
    again.take_up(3, at)
    assert len(again) == len(batches) - at
    for i in range(len(again)):
        np.testing.assert_array_equal(times_of(again[i][0]), batches[at + i])
    assert held.maps.max() <= 2  # what was shown before is not read
    assert (held.maps > 0).sum() < 0.7 * 4800


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2_000, 20_000),
    room=st.integers(4, 12),
    stride=st.integers(1, 12),
    block=st.integers(1, 24),
    seed=st.integers(0, 9),
)
def test_no_more_is_in_memory_than_allowed(n, room, stride, block, seed):
    """What is in use around each batch, in maps; room is counted in the largest batches."""
    _, data = record(n, stride=stride, block=block, seed=seed, batch_size=8)
    plan_maps = data._plan.maps_per_batch
    memory = room * max(plan_maps, 2 * SPAN)
    _, data = record(
        n, stride=stride, block=block, seed=seed, batch_size=8, memory=memory * MAP_BYTES
    )
    spans: Spans = data._plan.spans
    if spans.all_fit:
        return
    epoch = data._plan.parts(0)
    size = spans.stop - spans.start
    most = max(int(size[epoch.needed(i)].sum()) for i in range(len(epoch)))
    assert most <= memory + 2 * plan_maps


def test_sequences_of_a_batch_come_from_all_that_is_in_memory():
    """Shuffled among those that are there; and over an epoch there is no trend."""
    n, room = 48_000, 30
    _, data = record(n, memory=room * (SPAN + LENGTH) * MAP_BYTES, seed=1)
    first = np.concatenate([at[:, 0] for at in run_through(data)])
    batches = np.array_split(first // SPAN, len(data))
    several = np.array([len(set(batch.tolist())) for batch in batches])
    assert several.mean() > 10  # of 16; of 30 spans at random: 12.6
    assert several[:20].mean() > 10  # the epoch does not begin with a few of them
    assert several[-20:].mean() > 6  # at its end nothing new comes to be mixed in
    assert abs(np.corrcoef(first, np.arange(first.size))[0, 1]) < 0.2


def test_reading_comes_evenly():
    """No batch waits for much more than the maps that it uses up itself."""
    n = 48_000
    held, data = record(n, memory=30 * (SPAN + LENGTH) * MAP_BYTES, block=16, batch_size=16)
    data.take_up(0)
    read = []
    for i in range(len(data)):
        before = held.maps.sum()
        _ = data[i]
        wait(data._held._held.values())  # what is read ahead, too
        read.append(held.maps.sum() - before)
    assert max(read[:3]) > 5 * SPAN  # memory is filled at the beginning
    assert max(read[20:]) <= 6 * (SPAN + 15)
    assert np.mean(read[20:]) < 3 * SPAN


@pytest.mark.parametrize("block", [1, 16])
def test_memory_does_not_grow_with_the_record(block):
    """The peak of what is allocated while batches are made, of two records far larger."""
    memory = 1_000_000
    for n in (12_000, 96_000):
        _, data = record(n, memory=memory, stride=4, block=block)
        data.take_up(0)
        plan = data._current(0)
        assert plan.needed(0).any()  # the indices, which are counted apart
        tracemalloc.start()
        for i in range(min(len(data), 200)):
            _ = data[i]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(plan) == len(data)
        # What is held, and twice a batch of 16 windows or 4 blocks: one made, one let go.
        assert 0.5 * memory < peak < memory + 2 * data[0][0].nbytes + 200_000
        assert memory < n * MAP_BYTES / 4


@pytest.mark.timeout(60)
def test_the_next_batch_is_read_while_this_one_is_used(monkeypatch):
    _, data = record(2400, memory=500 * MAP_BYTES, block=16)
    expected = run_through(data)
    held, data = record(2400, memory=500 * MAP_BYTES, block=16)
    read, may_read = held._read, threading.Event()
    monkeypatch.setattr(held, "_read", lambda key: may_read.wait() and read(key))
    may_read.set()
    data.take_up(0)
    assert 2 * len(data) < len(np.unique(data._current(0).span)) * 3  # each has something to read
    for i in range(len(data)):
        np.testing.assert_array_equal(times_of(data[i][0]), expected[i])
        wait(data._held._held.values())
        may_read.clear()  # the disk does not answer: the next batch is there all the same
        if i + 1 < len(data):
            np.testing.assert_array_equal(times_of(data[i + 1][0]), expected[i + 1])
        may_read.set()


def test_what_could_not_be_read_is_an_error_of_its_batch_and_tried_again(monkeypatch):
    held, data = record(2400, memory=500 * MAP_BYTES, shuffle=False)
    read, broken = held._read, [True]

    def once_broken(key: Any) -> np.ndarray:
        if broken[0] and key[0].start >= 4 * SPAN:
            raise OSError("no such disk")
        return read(key)

    monkeypatch.setattr(held, "_read", once_broken)
    data.take_up(0)
    last = 4 * SPAN // data.batch_size
    seen = [times_of(data[i][0]) for i in range(last)]  # reading ahead tells nothing
    with pytest.raises(OSError, match="no such disk"):
        data[last]
    broken[0] = False
    seen += [times_of(data[i][0]) for i in range(last, len(data))]
    assert np.concatenate(seen)[:, 0].tolist() == list(range(2400 - LENGTH + 1))


@pytest.mark.parametrize("block", [1, 8])
def test_a_batch_stays_as_it_is_as_long_as_anyone_has_it(block):
    """Its memory is used again, but not before."""
    maps = np.random.default_rng(0).normal(size=(480, 2, 30, 40)).astype(np.float32)
    array = xr.DataArray(maps, dims=("time", "channel", "latitude", "longitude"))
    rows = windows(np.arange(480).astype("datetime64[h]"), length=LENGTH, step_hours=1)
    data = SequenceBatches(
        array, rows, labels=np.zeros(480), memory=maps.nbytes // 3, block=block, batch_size=64
    )
    data.take_up(0)
    kept = [data[i][0] for i in range(len(data))]
    assert kept[0].nbytes > WORTH_KEEPING[0]
    truth = np.moveaxis(maps, 1, -1)
    for i, found in enumerate(kept):
        np.testing.assert_array_equal(found, truth[data._current(0)[i].rows])
    where = [batch.__array_interface__["data"][0] for batch in kept]
    assert len(set(where)) == len(where)
    del kept, found
    assert data[0][0].__array_interface__["data"][0] in where


def test_large_batches_do_not_pile_up_before_keras():
    small, large = record(600, batch_size=4, max_queue_size=8)[1], None
    assert small.max_queue_size == 8
    held = Record(600)
    held.shape = (600, 6, 161, 209)
    rows = windows(np.arange(600).astype("datetime64[h]"), length=LENGTH, step_hours=1)
    large = SequenceBatches(held.opened(), rows, labels=np.zeros(600), max_queue_size=8)
    assert large.max_queue_size == 2
