"""New grids in, probabilities and events out: the step that runs every day."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.config import ChannelFormula, Domain, Label, Precision
from medicane.errors import InputError, redacted
from medicane.pipeline.summaries import Detected, Progress

if TYPE_CHECKING:
    import keras

    from medicane.phase_space.lows import LastMap
    from medicane.pipeline.cluster import Each
    from medicane.predict import Encode
    from medicane.remote import StorageOptions

LOG = logging.getLogger(__name__)

#: Maps read at once, see `medicane.predict.predict`.
BLOCK = 96


def detect(
    inputs: Sequence[str | Path],
    *,
    model: str,
    out: str | Path,
    mode: Literal["causal", "fused"] = "causal",
    precision: Precision = "float32",
    threshold: float | None = None,
    allow_short: bool = False,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
    storage_options: StorageOptions | None = None,
    times: NDArray[np.datetime64] | None = None,
    earlier: Path | None = None,
    tracking: str | None = None,
    scheduler: str | None = None,
    each: Each | None = None,
    progress: Progress | None = None,
) -> Detected:
    """Label new grids; a second call with more recent grids adds only the new times.

    Parameters
    ----------
    inputs
        Files, globs or stores, merged on exactly equal coordinates.
    model
        A model URI or ``.keras`` file. It says the area, spacing, step, channels and threshold.
    out
        Folder of ``detections.nc``, ``events.csv`` and ``tracks.csv``; or a URI of an object
        store, see `medicane.places`.
    mode
        ``causal`` or ``fused``; see `medicane.predict`.
    precision
        Of the encoder's arithmetic; see `medicane.runtime.open_encoder`.
    threshold
        Instead of the model's own.
    allow_short
        Label periods shorter than one sequence with the history they have.
    units, select, storage_options
        As the keys of ``data`` of the configuration.
    times
        The maps to label of those that are newer than the last detection, (map), whatever gaps are
        between them; by default all that lie at steps of the model.
    earlier
        A ``detections.nc`` of before: these are gone on from, and those in `out` replaced. Where
        there is no such file, all is labelled anew.
    tracking
        Tracking URI for ``models:/`` and ``runs:/``.
    scheduler
        Address of a dask scheduler whose workers do the work; see `docs/cluster.md`.
    each
        Who hands out the tasks of the workers, see `medicane.pipeline.cluster`.

    Raises
    ------
    InputError
        If the grids are not understood or lack what the model needs, or the cluster does not do
        what is asked of it; `out` is untouched.
    """
    from medicane import detections as found
    from medicane import experiments
    from medicane import model as detector
    from medicane.places import place_of
    from medicane.runtime import open_encoder
    from medicane.sequences import as_slice, at_steps, contiguous_periods
    from medicane.store.schema import lows_to_json

    if threshold is not None and not 0 < threshold < 1:
        raise InputError("--threshold", "must lie between 0 and 1", found=threshold)
    place = place_of(out)
    file = experiments.model_file(model, tracking=tracking)
    network = detector.load_detector(file.path)
    facts = detector.facts_of(network)
    step_hours, length = int(facts["step_hours"]), int(facts["length"])
    digest = file_digest(file.path)
    encode = open_encoder(detector.encoder_of(network), digest=digest, precision=precision)
    attributes = {
        "model_uri": file.uri,
        "model_version": file.version,
        "model_digest": digest,
        "threshold": float(facts["threshold"] if threshold is None else threshold),
        "temperature": float(facts.get("temperature", 1.0)),
        "mode": mode,
        "precision": precision,
        "step_hours": step_hours,
        "store_digest": facts["data_digest"],
        "label_definition": Label(**facts["label"]).model_dump_json(),
        "idealised_training_data": int(facts["idealised"]),
    }
    where = str(inputs[0]) + (f" and {len(inputs) - 1} more" if len(inputs) > 1 else "")
    standard, maps = open_maps(
        inputs, facts, units=units, select=select, storage_options=storage_options, where=where
    )
    detector.check_maps(
        network,
        channels=[str(name) for name in maps[names.CHANNEL].values],
        shape=(maps.sizes[names.LATITUDE], maps.sizes[names.LONGITUDE]),
        where=where,
    )
    before, history, read = None, None, place.digest()
    held = maps.indexes[names.TIME]
    fresh = np.arange(len(held))
    states = [] if read is None else [(place.detections, *place.read())]
    if earlier is not None and earlier.is_file():
        states.append((str(earlier), *found.read_detections(earlier)))
    for told, state, _ in states:
        state.attrs.setdefault("precision", "float32")  # before there was another one
        found.same_model(
            state,
            attributes,
            keys=("model_digest", "threshold", "mode", "precision"),
            where=told,
        )
    if states and (earlier is None or earlier.is_file()):
        _, before, history = states[-1]
    if before is not None:
        last = before.indexes[names.TIME][-1]
        if type(last) is not type(held[0]):
            raise InputError(where, "must be of the calendar of the detections", found=held[0])
        fresh = np.flatnonzero(held > last)
    if times is not None:
        on_step = fresh = fresh[np.isin(held[fresh], times)]
    else:
        on_step = fresh[
            at_steps(
                held[fresh],
                step_hours=step_hours,
                after=None if before is None else before[names.TIME].values[-1],
                where=where,
                holder="the model needs",
            )
        ]
    if on_step.size:
        taken = {names.TIME: as_slice(on_step)}
        standard, maps = standard.isel(taken), maps.isel(taken)
        series = maps if history is None else _after(history, maps, step_hours, where=where)
        labelling: dict[str, Any] = {
            "sea": _sea(standard),
            "previous": _last_lows(history, standard),
            "mode": mode,
            "allow_short": allow_short,
            "progress": progress,
            "where": where,
        }
        periods = contiguous_periods(series.indexes[names.TIME], step_hours=step_hours)
        longest = max(p.stop - p.start for p in periods)
        if scheduler is None or (longest < length and not allow_short):  # or no map gets a label
            predicted, lows, last_lows = label_series(
                network,
                series,
                standard,
                # A series that has begun goes on: a map that comes alone waits for its sequence.
                allow_none=before is not None,
                encode=encode,
                **labelling,
            )
        else:
            from medicane.pipeline.scale_out import label_on_workers

            predicted, lows, last_lows = label_on_workers(
                series,
                standard,
                scheduler=scheduler,
                each=each,
                model=file.path,
                digest=digest,
                precision=precision,
                length=length,
                step_hours=step_hours,
                positions=on_step,
                units=units,
                select=select,
                storage_options=storage_options,
                **labelling,
            )
        if before is not None:
            predicted = found.continued(
                before, predicted, length=length, step_hours=step_hours, mode=mode
            )
            lows = xr.concat([_lows_of(before), lows], dim=names.TIME, join="exact")
        before = found.label_maps(
            predicted,
            threshold=attributes["threshold"],
            lows=lows,
            attributes={**attributes, "source": redacted(", ".join(map(str, inputs)))},
        )
        kept = series.isel({names.TIME: slice(-(length - 1), None)}).load()
        datetimes = isinstance(held, pd.DatetimeIndex)
        kept.attrs["last_lows"] = lows_to_json(last_lows) if datetimes else ""
        table = place.write(before, step_hours=step_hours, history=kept, replaces=read or "")
        _warn_of_a_smaller_area(maps, Domain(**facts["domain"]), where=where)
    else:
        LOG.info("%s: no map is newer than the last detection", where)
        if before is None:
            law = "must hold a map of the times that are to be labelled"
            raise InputError(where, law, found="none")
        table = place.write_events(before, step_hours=step_hours)
    return Detected(
        detections=place.detections,
        events=place.events,
        n_maps=before.sizes[names.TIME],
        n_new=on_step.size,
        n_skipped=len(held) - fresh.size,
        n_left_out=fresh.size - on_step.size,
        n_unlabelled=int((before["medicane"] == names.UNKNOWN).sum()),
        n_events=len(table),
        model_uri=file.uri,
    )


def open_maps(
    inputs: Sequence[str | Path],
    facts: Mapping[str, Any],
    *,
    units: dict[str, str] | None,
    select: dict[str, float] | None,
    storage_options: StorageOptions | None = None,
    where: str,
) -> tuple[xr.Dataset, xr.DataArray]:
    """Open grids as the facts of a model ask for them, lazily.

    Returns
    -------
    xr.Dataset
        Standard fields on the area and spacing of the model.
    xr.DataArray
        Its channels, ``(time, channel, latitude, longitude)``.

    Raises
    ------
    InputError
        If the grids are not understood or lack what the model needs.
    """
    from medicane import channels
    from medicane.grids import open_grids
    from medicane.standardise import standardise

    formulas = _formulas(facts)
    raw = open_grids(inputs, select=select, storage_options=storage_options)
    standard = standardise(
        raw,
        domain=Domain(**facts["domain"]),
        degrees=facts["degrees"],
        units=units or {},
        select=select or {},
        where=where,
        variables=channels.wanted_variables(raw, formulas),
    )
    return standard, channels.derive(standard, formulas, where=where)


def label_series(
    network: keras.Model,
    series: xr.DataArray,
    standard: xr.Dataset,
    *,
    sea: NDArray[np.bool_],
    previous: LastMap | None,
    mode: Literal["causal", "fused"],
    allow_short: bool,
    allow_none: bool,
    encode: Encode | None = None,
    progress: Progress | None = None,
    where: str,
) -> tuple[xr.Dataset, xr.Dataset, LastMap | None]:
    """Probabilities of a series of maps, and where the storm of the new ones among them stands.

    Each block of new maps is read once, for both.

    Parameters
    ----------
    series
        Channels, ``(time, channel, latitude, longitude)``; see `medicane.predict.predict`.
    standard
        The fields of the new maps, consecutive ones of `series`.
    sea
        True over the sea, shape (latitude, longitude).
    previous
        The lows of the map before the first of `standard`.

    Returns
    -------
    xr.Dataset
        What `medicane.predict.predict` gives for `series`.
    xr.Dataset
        ``low_latitude(time)`` and ``low_longitude(time)`` of `standard`.
    LastMap or None
        The lows of the last map.
    """
    from medicane import channels
    from medicane import model as detector
    from medicane.grids.hdf5 import threads_at_most
    from medicane.phase_space.lows import lows_of_dataset
    from medicane.predict import AHEAD, Labels, cuts, read_ahead
    from medicane.store import read_block

    facts = detector.facts_of(network)
    formulas, definition = _formulas(facts), Label(**facts["label"])
    labels = Labels(
        network,
        series,
        mode=mode,
        allow_short=allow_short,
        allow_none=allow_none,
        encode=encode,
        where=where,
    )
    n, n_new = series.sizes[names.TIME], standard.sizes[names.TIME]
    known = series.indexes[names.TIME]
    first = int(known.get_loc(standard.indexes[names.TIME][0])) if n_new else n
    lows = {f"low_{name}": np.full(n_new, np.nan, np.float32) for name in ("latitude", "longitude")}

    def read(start: int, stop: int) -> tuple[NDArray[np.float32], xr.Dataset | None]:
        """Maps as the detector takes them, and the fields of the new ones, read once for both."""
        if not first <= start < first + n_new:
            return read_block(series, start, stop), None
        part = standard.isel({names.TIME: slice(start - first, stop - first)})
        # The thread that reads this block computes it; another one has the next block.
        part = part.compute(scheduler="synchronous")
        maps = channels.derive(part, formulas, where=where)
        return read_block(maps, 0, stop - start), part

    # Variables may be cut in different places: what is most to read is not read twice.
    largest = max(standard.data_vars.values(), key=lambda field: field.nbytes)
    blocks = [
        *((start, min(start + BLOCK, first)) for start in range(0, first, BLOCK)),
        *((first + start, first + stop) for start, stop in cuts(largest, block=BLOCK)),
        *((start, min(start + BLOCK, n)) for start in range(first + n_new, n, BLOCK)),
    ]
    last = previous
    for images, part in read_ahead(read, blocks, threads=threads_at_most(AHEAD)):
        if part is not None:
            found, last = lows_of_dataset(part, definition=definition, sea=sea, previous=last)
            new = slice(labels.taken - first, labels.taken - first + len(images))
            for name, values in lows.items():
                values[new] = found[name]
        labels.take(images)
        if progress is not None:
            progress(labels.taken, n)
    located = {name: (names.TIME, values) for name, values in lows.items()}
    return labels.dataset(), xr.Dataset(located, {names.TIME: standard[names.TIME]}), last


def _formulas(facts: Mapping[str, Any]) -> tuple[str | ChannelFormula, ...]:
    """The channels of a model, as `medicane.channels` takes them."""
    return tuple(
        ChannelFormula(**item) if isinstance(item, dict) else item for item in facts["formulas"]
    )


def file_digest(path: Path) -> str:
    """What tells a model file from every other: the attribute ``model_digest`` of detections."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def probability_strip(path: str | Path, *, days: int = 60) -> str:
    """The last days of detections as text: one mark a day, and the events among them.

    Each mark is the highest probability of its day, from ``▁`` (0) to ``█`` (1), ``·`` where there
    is none.
    """
    from medicane.detections import events
    from medicane.places import read_from

    detections = read_from(path)
    daily = detections["probability"].to_series().resample("1D").max()[-days:]
    marks = "".join("·" if np.isnan(p) else "▁▂▃▄▅▆▇█"[min(int(p * 8), 7)] for p in daily)
    lines = [
        f"`{marks}`",
        "",
        f"{daily.index[0]:%Y-%m-%d} to {daily.index[-1]:%Y-%m-%d}, highest probability a day; "
        f"threshold {detections.attrs['threshold']:.3g}",
        "",
    ]
    table = events(detections, step_hours=int(detections.attrs["step_hours"]))
    if table.empty:
        return "\n".join([*lines, "No event."])
    lines += ["| start | end | maps | highest | at |", "|---|---|---|---|---|"]
    lines += [
        f"| {e.start} | {e.end} | {e.n_maps} | {e.max_probability:.2f} | {e.time_of_max} |"
        for e in table.tail(20).itertuples()
    ]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------


def follow_on(history: xr.DataArray, maps: xr.DataArray) -> xr.DataArray:
    """One series of kept maps and those after them, on exactly one grid."""
    bare = maps.drop_vars([c for c in maps.coords if c not in maps.dims])
    return xr.concat(
        [history.astype(np.float32), bare],
        dim=names.TIME,
        join="exact",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )


def _after(
    history: xr.DataArray, maps: xr.DataArray, step_hours: int, *, where: str
) -> xr.DataArray:
    """The maps that lead up to the new ones without a gap, then those, on exactly one grid."""
    from medicane.sequences import contiguous_periods

    for axis in (names.LATITUDE, names.LONGITUDE):
        if not np.array_equal(history[axis].values, maps[axis].values):
            raise InputError(
                f"{where}: {axis}",
                "must equal that of the detections that are there "
                f"({history[axis].values[0]:g} to {history[axis].values[-1]:g})",
                found=f"{maps[axis].values[0]:g} to {maps[axis].values[-1]:g}",
            )
    series = follow_on(history, maps)
    known = history.sizes[names.TIME]
    periods = contiguous_periods(series.indexes[names.TIME], step_hours=step_hours)
    start = next(p.start for p in periods if p.stop > known)
    return series.isel({names.TIME: slice(start, None)})


def _sea(standard: xr.Dataset) -> NDArray[np.bool_]:
    """Where the sea is: as in the store, by the data's own mask if they have one."""
    from medicane.standardise import land_sea_mask

    at = standard[names.LATITUDE].values, standard[names.LONGITUDE].values
    mask = standard["lsm"] if "lsm" in standard else land_sea_mask(*at)
    if names.TIME in mask.dims:
        mask = mask.isel({names.TIME: 0})
    sea: NDArray[np.bool_] = mask.transpose(names.LATITUDE, names.LONGITUDE).values < 0.5
    return sea


def _last_lows(history: xr.DataArray | None, standard: xr.Dataset) -> LastMap | None:
    """The lows of the last map of the call before, to carry their motion on."""
    from medicane.store.schema import lows_from_json

    if history is None or not isinstance(standard.indexes[names.TIME], pd.DatetimeIndex):
        return None
    return lows_from_json(str(history.attrs.get("last_lows", "")))


def _lows_of(detections: xr.Dataset) -> xr.Dataset:
    """The centres of detections under the names that `medicane.detections.label_maps` takes."""
    return xr.Dataset(
        {
            f"low_{name}": (names.TIME, detections[f"centre_{name}"].values)
            for name in (names.LATITUDE, names.LONGITUDE)
        },
        coords={names.TIME: detections[names.TIME].values},
    )


def _warn_of_a_smaller_area(maps: xr.DataArray, domain: Domain, *, where: str) -> None:
    """Maps may cover a part of the model's area; what the model was trained on was all of it."""
    latitude, longitude = maps[names.LATITUDE].values, maps[names.LONGITUDE].values
    has = (latitude[-1], latitude[0], longitude[0], longitude[-1])
    wants = (domain.south, domain.north, domain.west, domain.east)
    if np.abs(np.subtract(has, wants)).max() > 2 * abs(latitude[0] - latitude[1]):
        LOG.warning(
            "%s: the maps cover %g to %g N, %g to %g E, the model's area is %g to %g N, %g to %g E:"
            " its skill is not known for a part of it",
            where,
            *has,
            *wants,
        )
