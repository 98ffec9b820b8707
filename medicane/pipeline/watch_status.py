"""What a run of the watch has done: told to those who are to know, to a file, and to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medicane import names
from medicane.pipeline.onsets import forget_onsets, note_onsets, tell, withdrawn
from medicane.pipeline.summaries import Told, Watched
from medicane.pipeline.watch_memory import Times, iso

if TYPE_CHECKING:
    import xarray as xr

    from medicane.notices import Channel
    from medicane.pipeline.watching import Run


def account(run: Run, channels: Sequence[Channel]) -> Watched:
    """Tell of new events, and write what a run has done to ``status.json``."""
    from medicane.store.commits import replace_json

    status = run.folder / "status.json"
    done = {
        "detections": str(run.folder / "detections.nc"),
        "events": str(run.folder / "events.csv"),
        "status": str(status),
        "model_uri": run.model_uri,
        "late": tuple(map(iso, run.late)),
        "revised": tuple(map(iso, run.revised)),
        "n_again": run.n_again,
        "left": tuple(run.left),
    }
    if run.store is not None:
        done |= {
            "store": run.store.store,
            "n_store": run.store.n_maps,
            "n_store_new": run.store.n_new,
            "n_store_again": run.store.n_again,
        }
    if (run.folder / "detections.nc").exists():
        done |= _detected(run, channels)
    else:
        done["waiting_for"] = (
            f"a first sequence: {run.length} maps {run.step_hours} h apart without a gap; "
            f"the grids hold {run.times.size} so far"
        )
    watched = Watched(**done)
    replace_json(status, watched.model_dump(mode="json"), indent=2)
    return watched


def _detected(run: Run, channels: Sequence[Channel]) -> dict[str, Any]:
    from medicane.detections import read_detections, write_events

    detections, _ = read_detections(run.folder / "detections.nc")
    table = write_events(run.folder, detections, step_hours=run.step_hours)
    events = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    times = detections[names.TIME].values.astype("datetime64[ns]")
    day, watch = np.timedelta64(86400, "s"), run.config.watch
    horizon, oldest = (times[-1] - days * day for days in (watch.revise_days, watch.notify_days))
    memory, file = run.memory, run.folder / "watch.json"
    onsets = note_onsets(memory, events, channels, oldest=oldest)
    memory.write(file)
    told: list[Told] = []
    for one in tell(memory, events, channels, about=detections.attrs, oldest=oldest):
        memory.write(file)
        told.append(one)
    gone = withdrawn(memory, events)
    forget_onsets(memory, before=min(horizon, oldest))
    memory.write(file)
    return {
        "n_maps": times.size,
        "n_new": times.size - run.known.size - int(run.late.size),
        "first": iso(times[0]),
        "last": iso(times[-1]),
        "missing": _missing(times, step=run.step, oldest=horizon),
        "n_events": len(events),
        "onsets": tuple(onsets),
        "told": tuple(told),
        "withdrawn": tuple(gone),
        "waiting_for": _waiting_for_a_sequence(run, detections),
    }


def _waiting_for_a_sequence(run: Run, detections: xr.Dataset) -> str | None:
    labelled = np.flatnonzero(detections["medicane"].values != names.UNKNOWN)
    n = detections.sizes[names.TIME] - (int(labelled[-1]) + 1 if labelled.size else 0)
    if not n:
        return None
    return f"a sequence of {run.length}: the last {n} maps follow a gap and have no label yet"


def _missing(
    times: Times, *, step: np.timedelta64, oldest: np.datetime64
) -> tuple[tuple[str, str], ...]:
    """First and last time of each gap that begins after a time."""
    gaps = np.flatnonzero((np.diff(times) > step) & (times[1:] > oldest))
    return tuple((iso(times[i] + step), iso(times[i + 1] - step)) for i in gaps)


def status_text(done: Watched) -> str:
    """The status of a run as Markdown."""
    lines = [f"**Detections** `{done.detections}` by `{done.model_uri}`"]
    if done.n_maps:
        lines[0] += f": {done.n_maps} maps, {done.first} to {done.last}, {done.n_events} events"
    lines += ["", "| what | maps | which |", "|---|---|---|"]
    rows: list[tuple[str, int | str, str]] = [("new", done.n_new, "")]
    if done.late:
        rows.append(("late, put in their place", len(done.late), _span(done.late)))
    if done.revised:
        rows.append(("revised", len(done.revised), _span(done.revised)))
    if done.n_again:
        rows.append(("labelled again", done.n_again, ""))
    rows += [("missing", "", f"{first} to {last}") for first, last in done.missing]
    rows += [(f"left: {one.why}", one.n_maps, f"{one.first} to {one.last}") for one in done.left]
    if done.store is not None:
        again = f", {done.n_store_again} written again" if done.n_store_again else ""
        told = f"`{done.store}`: {done.n_store_new} new{again}"
        rows.append(("in the map store", done.n_store, told))
    lines += [f"| {what} | {n} | {which} |" for what, n, which in rows]
    if done.waiting_for:
        lines += ["", f"Waiting for {done.waiting_for}."]
    lines += ["", f"**Onsets** {', '.join(done.onsets) or 'none'}"]
    lines += [
        f"* {one.event_id}, {one.channel}: {one.state}" + (f" ({one.fault})" if one.fault else "")
        for one in done.told
    ]
    if done.withdrawn:
        lines.append(f"* told, and no longer an event: {', '.join(done.withdrawn)}")
    return "\n".join(lines)


def _span(times: Sequence[str]) -> str:
    return times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
