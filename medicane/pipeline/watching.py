"""Every day: new maps are found, stored, labelled and told of; late and revised ones put right.

What stands in `out` afterwards is what one run over all maps would have written, however often and
in whatever pieces it was run: labels are made from a map on as if it had always been there, or it
is left and reported. Each step is committed, so that a run that is killed is taken up by the next.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medicane import names
from medicane.config import Config
from medicane.errors import InputError, redacted
from medicane.pipeline.summaries import Left, Progress, Watched
from medicane.pipeline.watch_memory import Earlier, Memory, Times, digests, iso, stamps
from medicane.pipeline.watch_status import account

if TYPE_CHECKING:
    import xarray as xr

    from medicane.notices import Secret
    from medicane.pipeline.summaries import Prepared

LOG = logging.getLogger(__name__)


def watch(
    config: Config,
    *,
    model: str,
    out: str | Path,
    start: str | None = None,
    prepare: bool = True,
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> Watched:
    """Bring detections up to the maps that ``data.grids`` holds now, and tell of new events.

    Parameters
    ----------
    config
        ``data`` says what is watched, ``detect`` how it is labelled, ``watch`` what happens to late
        and revised maps and who is told.
    model
        A model URI or ``.keras`` file.
    out
        Folder of ``detections.nc``, ``events.csv``, ``tracks.csv``, ``status.json``, and of
        ``watch.json`` and ``.watch``, which are the watch's own.
    start
        The first day or time to label; by default that of the first map.
    prepare
        Extend the map store as well.
    secret
        Gives the secret of a name; by default the environment variable of that name.
    progress
        Called with (maps labelled, maps to label).

    Raises
    ------
    InputError
        If another watch is at it, a secret is not there, or for what `prepare` and `detect` raise.
        What was committed stays.
    """
    from medicane.notices import channels_of
    from medicane.store.commits import sole_writer, writable_folder

    folder = writable_folder(out, where="--out")
    channels = channels_of(config.watch, secret or os.environ.get)
    law = "one watch at a time keeps a folder of detections; this one has changed nothing"
    with sole_writer(folder / "watch.json", law=law):
        run = Run(config, folder, model, prepare=prepare, progress=progress)
        run.look(start)
        run.choose()
        run.extend_store()
        run.label()
        return account(run, channels)


@dataclass
class Run:
    """One run of the watch, a step a method."""

    config: Config
    folder: Path
    model: str
    prepare: bool
    progress: Progress | None
    left: list[Left] = field(default_factory=list)
    late: Times = field(default_factory=lambda: _none())
    revised: Times = field(default_factory=lambda: _none())
    #: The first map that is labelled again, and the state that is gone on from.
    first: np.datetime64 | None = None
    n_again: int = 0
    #: The map store, where it was extended.
    store: Prepared | None = None

    # Looking ---------------------------------------------------------------------------------

    def look(self, start: str | None) -> None:
        """Which maps there are, and which of them are new, late, revised or left."""
        from medicane import experiments
        from medicane import model as detector
        from medicane.grids import sources_of
        from medicane.pipeline.detection import open_maps
        from medicane.pipeline.steps import tracking_uri

        data = self.config.data
        self.tracking = tracking_uri(self.config)
        self.memory = Memory.read(self.folder / "watch.json")
        self.earlier = Earlier(self.folder / ".watch")
        file = experiments.model_file(self.model, tracking=self.tracking)
        self.model_uri = file.uri
        facts = detector.facts_of(detector.load_detector(file.path))
        self.step_hours, self.length = int(facts["step_hours"]), int(facts["length"])
        self.step = np.timedelta64(self.step_hours, "h")
        self.sources = sources_of(list(data.grids), data.storage_options)
        # Before they are opened: what changes afterwards is looked into by the next run.
        self.stamps = stamps(self.sources, data.storage_options)
        self.known = self._known()
        # One source after the other: the NetCDF library takes a file that is opened twice amiss.
        changed = self._times_of_changed()
        standard, _ = open_maps(
            data.grids,
            facts,
            units=data.units,
            select=data.select,
            storage_options=data.storage_options,
            where="data.grids",
        )
        if not self.known.size:  # whoever removes the detections begins anew
            self.earlier.drop_from(np.datetime64(0, "s"))
            self.memory.maps, self.memory.redo_from = {}, None
        self.times = self._on_step(standard, start)
        self.horizon = (self.known if self.known.size else self.times)[-1] - self._far_back()
        if self.known.size:
            late = (self.times <= self.known[-1]) & ~np.isin(self.times, self.known)
            self.late = self.times[late]
        self._find_revised(standard, changed)
        # Before they are labelled: should a map change meanwhile, the next run will see it.
        new = ~np.isin(self.times, self.known) & (self.times >= self.times[-1] - self._far_back())
        self.memory.maps |= digests(standard, self.times[new])

    def _known(self) -> Times:
        """Times of the detections so far."""
        from medicane.detections import read_detections

        path = self.folder / "detections.nc"
        if not path.exists():
            return _none()
        times = read_detections(path)[0].indexes[names.TIME]
        return _datetimes(times, where=path)

    def _on_step(self, standard: xr.Dataset, start: str | None) -> Times:
        """Times of the maps that belong to the series."""
        from medicane.sequences import at_steps

        self.held = held = _datetimes(standard.indexes[names.TIME], where="data.grids")
        chosen = held if start is None else held[held >= _moment(start)]
        if not chosen.size and not self.known.size:
            raise InputError("--start", f"the last map is of {iso(held[-1])}", found=start)
        if self.known.size:
            chosen = held[held >= self.known[0]]
            on = (chosen - self.known[0]) % self.step == np.timedelta64(0)
        else:
            where, holder = "data.grids", "the model needs"
            on = np.zeros(chosen.size, bool)
            on[at_steps(chosen, step_hours=self.step_hours, where=where, holder=holder)] = True
        begun = chosen[0] if chosen.size else held[-1] + self.step
        self._leave(held[held < begun], "before the first detection or --start")
        self._leave(chosen[~on], f"not at a step of {self.step_hours} h")
        return chosen[on]

    def _times_of_changed(self) -> Times:
        """Times of the maps whose source is another one than when it was last looked into."""
        from medicane.grids import open_grids
        from medicane.standardise.times import valid_times

        data, found = self.config.data, [_none()]
        self.changed = [s for s in self.sources if not self._as_before(s)]
        if not self.known.size or len(self.changed) == len(self.sources):
            return self.known
        for source in self.changed:
            raw = open_grids(
                source, select=data.select or None, storage_options=data.storage_options
            )
            try:
                times = np.ravel(valid_times(raw, source).values)
            except InputError:  # alone it has no times: that it changed may concern every map
                return self.known
            found.append(times.astype("datetime64[ns]"))
        return np.concatenate(found)

    def _as_before(self, source: str) -> bool:
        now = self.stamps[redacted(source)]
        return now is not None and self.memory.sources.get(redacted(source)) == now

    def _find_revised(self, standard: xr.Dataset, changed: Times) -> None:
        """Detected maps that other fields are behind now, looked for where a source has changed."""
        there = self.known[np.isin(self.known, self.times) & np.isin(self.known, changed)]
        if self.memory.sources and all(os.path.isfile(source) for source in self.changed):
            old = there[there < self.horizon]
            self._leave(old, "their file has changed, older than watch.revise_days: not looked at")
        there = there[there >= self.horizon]
        was, now = self.memory.maps, digests(standard, there)
        other = [was.get(told, digest) != digest for told, digest in now.items()]
        self.revised = there[np.array(other, bool)]
        self.memory.maps |= now

    # Doing -----------------------------------------------------------------------------------

    def choose(self) -> None:
        """Choose the map from which on labels are made again, and remember that they are to be."""
        pending = self.memory.redo_from
        again = _none() if pending is None else np.array([pending], "datetime64[ns]")
        wrong = np.unique(np.concatenate([self.late, self.revised, again]))
        wrong = wrong[wrong >= self.horizon]
        stored = self._stored()
        self.first = next((time for time in wrong if self._can_be_redone(time, stored)), None)
        # What lies behind the state that is gone on from is read again, however old it is.
        last = self.earlier.before(self.first)[0] if self.first is not None else self.times[-1]
        begun = self.times[0] if last is None else last + self.step
        left, stuck = self.late[self.late < begun], self.revised[self.revised < begun]
        self._leave(left[left < self.horizon], "late by more than watch.revise_days")
        stuck = np.union1d(left[left >= self.horizon], stuck)
        self._leave(stuck, "the grids no longer hold all maps that follow")
        self.late, self.revised = (t[t >= begun] for t in (self.late, self.revised))
        self.late_from = max([self.horizon, *(left[-1:] + self.step)])
        self.memory.redo_from = None if self.first is None else iso(self.first)
        self.memory.sources = {s: stamp for s, stamp in self.stamps.items() if stamp is not None}
        if self.first is not None:
            self.earlier.drop_from(self.first)
            self.memory.forget_restarts_from(self.first)
        self._remember()

    def _stored(self) -> Times:
        """Times in the store, none if it is not to be touched. Where it ends is noted."""
        from medicane.store import open_store, stored_end

        path = Path(self.config.data.store)
        if not self.prepare or not path.exists():
            return _none()
        self.memory.note_restart(stored_end(path))
        times = open_store(path, incomplete=True)[names.TIME].values
        return times.astype("datetime64[ns]")

    def _can_be_redone(self, first: np.datetime64, stored: Times) -> bool:
        """Whether the grids hold what is behind the labels, and the store, from a map on."""
        from medicane.store import restart_before

        last, _ = self.earlier.before(first)
        behind = self.known if last is None else self.known[self.known > last]
        if stored.size and stored[-1] >= first:
            restart = restart_before(self.memory.restarts, stored, first)
            behind = np.union1d(behind, stored[0 if restart is None else restart.n :])
        return bool(np.isin(behind, self.held).all())

    def extend_store(self) -> None:
        """Bring the map store up to the grids, and remember where it can be cut."""
        from medicane.pipeline.steps import prepare
        from medicane.store import Revision, stored_end

        if not self.prepare:
            return
        path, memory = self.config.data.store, self.memory
        recent = self.config.watch.revise_days * 24 / self.step_hours

        def committed(done: int, total: int) -> None:
            if total - done <= recent:
                memory.note_restart(stored_end(path))

        revision = Revision(self.first, self.late_from, tuple(memory.restarts))
        self.store = prepare(self.config, revision=revision, progress=committed)
        memory.note_restart(stored_end(path))
        self._remember()

    def label(self) -> None:
        """Label again from the first map that is late or revised on, then what is new."""
        if self.first is not None:
            last, state = self.earlier.before(self.first)
            again = self.times[self.times <= self.known[-1]]
            again = again if last is None else again[again > last]
            self._detect(again, earlier=state)
            self.n_again = int(np.isin(again, self.known).sum())
            self.memory.redo_from = None
            self._remember()
        elif self.known.size:
            self._keep(self.known[-1])
        new = self.times[self.times > self.known[-1]] if self.known.size else self.times
        for piece in self._pieces(new):
            self._detect(piece)
        self.memory.forget_before(self.times[-1] - self._far_back())

    def _pieces(self, new: Times) -> list[Times]:
        """New maps in pieces that are committed one by one; the first label needs a sequence."""
        from medicane.sequences import contiguous_periods

        most, first = self.config.watch.piece, 0
        if not self.known.size:
            periods = contiguous_periods(new, step_hours=self.step_hours)
            long = [p for p in periods if p.stop - p.start >= self.length]
            if not long:
                return []
            first = max(most, long[0].start + self.length)
        cuts = [*([first] if 0 < first < new.size else []), *range(first + most, new.size, most)]
        return [piece for piece in np.split(new, cuts) if piece.size]

    def _detect(self, times: Times, *, earlier: Path | None = None) -> None:
        from medicane.pipeline.detection import detect

        data, wanted = self.config.data, self.config.detect
        detect(
            list(data.grids),
            model=self.model,
            out=self.folder,
            mode=wanted.mode,
            precision=wanted.precision,
            threshold=wanted.threshold,
            units=data.units,
            select=data.select,
            storage_options=data.storage_options,
            times=times,
            earlier=earlier,
            tracking=self.tracking,
            progress=self.progress,
        )
        self._keep(times[-1])

    def _keep(self, last: np.datetime64) -> None:
        self.earlier.keep(self.folder / "detections.nc", last, step_hours=self.step_hours)
        self.earlier.forget_before(last - self._far_back())

    def _leave(self, times: Times, why: str) -> None:
        if times.size:
            one = Left(n_maps=times.size, first=iso(times[0]), last=iso(times[-1]), why=why)
            self.left.append(one)

    def _far_back(self) -> np.timedelta64:
        return np.timedelta64(round(self.config.watch.revise_days * 86400), "s")

    def _remember(self) -> None:
        self.memory.write(self.folder / "watch.json")


def _none() -> Times:
    return np.zeros(0, "datetime64[ns]")


def _datetimes(index: pd.Index, *, where: object) -> Times:
    if not isinstance(index, pd.DatetimeIndex):
        found = str(getattr(index, "calendar", type(index).__name__))
        raise InputError(where, "maps that are watched need the standard calendar", found=found)
    return index.to_numpy().astype("datetime64[ns]")


def _moment(start: str) -> np.datetime64:
    try:
        moment = pd.Timestamp(start)
        return (moment.tz_convert(None) if moment.tzinfo else moment).to_datetime64()
    except (ValueError, TypeError):
        raise InputError("--start", "must be a day or a time, ISO 8601", found=start) from None
