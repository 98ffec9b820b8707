"""The detector that takes one map at a time, and the file of what it remembers."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cftime
import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from medicane import __version__, names
from medicane import model as detector
from medicane.channels import check_whole
from medicane.errors import InputError
from medicane.predict import Encode, Network
from medicane.sequences import elapsed_seconds
from medicane.store.commits import sole_writer

if TYPE_CHECKING:
    import keras

LOG = logging.getLogger(__name__)

#: What a file of `StreamingDetector.save` says that it is.
FORMAT = "medicane streaming state, version 1"
#: What stands for the calendar of numpy's times.
DATETIME64 = "datetime64"


class LabelledMap(NamedTuple):
    """What a detector says of one map.

    Attributes
    ----------
    time
        Of the map: ``datetime64``, or a cftime date.
    probability, logit
        Calibrated.
    n_sequences
        The sequences behind the label: one, the maps that came before and this one.
    maps_since_reset
        Maps since the series began, or began anew after a gap, this one included.
    reconstruction_error
        How unlike the maps of the training it is, where the model knows (see `predict`), else NaN.
    """

    time: Any
    probability: float
    logit: float
    n_sequences: int
    maps_since_reset: int
    reconstruction_error: float

    @property
    def begins_anew(self) -> bool:
        """Whether the label is of this map alone: it has no history, or none without a gap."""
        return self.maps_since_reset == 1


class StreamingDetector:
    """A detector that is given the maps of a series one by one and answers at once.

    Parameters
    ----------
    model
        A detector of `medicane.model`; its facts say the step and the length of a sequence.
    carry_state
        Carry the state of the recurrent layer on from map to map, instead of reading a window of
        features anew for each: another function, see `medicane.streaming`.
    encode
        What runs the encoder, as for `predict`; by default Keras. What it has made is part of what
        is kept: another one is for a new series.
    where
        What error messages call the series.

    Raises
    ------
    InputError
        If ``carry_state`` is asked of a network that has no such state, that reads backwards, or
        that was trained on windows alone.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        carry_state: bool = False,
        encode: Encode | None = None,
        where: object = "maps",
    ) -> None:
        facts = detector.facts_of(model)
        self._model, self._where = model, where
        self._channels: list[str] = facts["channels"]
        self._step_hours, self._length = int(facts["step_hours"]), int(facts["length"])
        self._head = _carried_head(model, where) if carry_state else None
        # With its state carried, the network needs nothing but the newest map.
        length = 1 if carry_state else self._length
        self._network = Network(model, length=length, mode="causal", batch=1, encode=encode)
        self._shape: tuple[int, ...] | None = None
        self._axes: dict[str, np.ndarray] = {}
        self._last: Any = None  # time of the last map
        self._since = 0
        self._state: list[np.ndarray] = []
        self._forget()

    def label(self, new: xr.DataArray | np.ndarray, *, time: Any = None) -> LabelledMap:
        """Label the next map of the series.

        A map that does not follow the last one at exactly one step has no history: the series
        begins anew with it, and the answer says so.

        Parameters
        ----------
        new
            One map with its time: dimensions ``channel``, ``latitude``, ``longitude`` in any order,
            and ``time`` of length one or a scalar coordinate. Or the bare values, (channel,
            latitude, longitude) in the order of the model's channels.
        time
            Of bare values: ``datetime64``, a datetime without a time zone (UTC), ISO 8601 text, or
            a cftime date.

        Raises
        ------
        InputError
            If the map is not later than the last one, is of another grid or calendar or of other
            channels than the model's, or if a part of it is missing. The detector is as before.
        """
        values, at, axes = self._opened(new, time)
        self._check(values, at, axes)
        if self._last is not None and not self._follows(at):
            LOG.warning(
                "%s: %s does not follow %s at one step of %d h: the history begins anew",
                *(self._where, _told(at), _told(self._last), self._step_hours),
            )
            self._forget()
        before = self._network.memory
        try:
            self._network.read(np.moveaxis(values, 0, -1)[None])
            error = self._network.errors()[0] if self._network.knows_its_domain else np.nan
            logit = float(self._network.newest() if self._head is None else self._carry_on())
        except BaseException:  # whoever tries the map again must not have it twice
            self._network.remember(before)
            raise
        self._shape, self._axes = values.shape[1:], self._axes or axes
        self._last = at
        self._since += 1
        probability = float(np.float32(expit(logit)))
        return LabelledMap(at, probability, logit, 1, self._since, float(error))

    def save(self, path: str | Path) -> None:
        """Write what the next map needs into one file (npz), whole or not at all.

        Raises
        ------
        InputError
            If the folder cannot be written, or another process is writing there.
        """
        path = Path(path)
        header = {
            "format": FORMAT,
            **self._identity(),
            "software_version": __version__,
            "time": None if self._last is None else _told(self._last),
            "calendar": _calendar(self._last),
            "maps_since_reset": self._since,
            "shape": self._shape,
        }
        arrays = {f"memory_{name}": part for name, part in self._network.memory.items()}
        arrays |= {f"state_{i}": state for i, state in enumerate(self._state)}
        arrays |= {f"axis_{name}": axis for name, axis in self._axes.items()}
        with sole_writer(path):
            temporary = path.with_name(f".{path.name}.partial")
            try:
                with temporary.open("wb") as file:
                    np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def restore(self, path: str | Path) -> None:
        """Go on where `save` left off: the next labels are those without the break, to the bit.

        Raises
        ------
        InputError
            If the file is broken or of something else, or was saved by a detector of another model
            or of the other kind (``carry_state``). The detector is as before.
        """
        header, arrays = _read_state(Path(path))
        for key, wanted in self._identity().items():
            if header.get(key) != wanted:
                raise InputError(
                    path,
                    f"must be a state of this detector: its {key} is {wanted}",
                    found=header.get(key),
                )
        self._last = _time_of(header["time"], header["calendar"])
        self._since = header["maps_since_reset"]
        self._shape = None if header["shape"] is None else tuple(header["shape"])
        self._axes = arrays["axis"]
        self._network.remember(arrays["memory"])
        self._state = list(arrays["state"].values())

    def _identity(self) -> dict[str, Any]:
        """What a state belongs to; the digest, which says it all, comes last."""
        return {
            "channels": self._channels,
            "step_hours": self._step_hours,
            "length": self._length,
            "carry_state": self._head is not None,
            "model_digest": _digest(self._model),
        }

    def _forget(self) -> None:
        self._last, self._since = None, 0
        self._network.begin()
        states = [] if self._head is None else self._head.inputs[1:]
        self._state = [np.zeros((1, state.shape[-1]), np.float32) for state in states]

    def _carry_on(self) -> np.float32:
        features = self._network.features[None]
        logit, *state = self._head.predict_on_batch([features, *self._state])  # type: ignore[union-attr]
        self._state = [np.asarray(part) for part in state]
        return np.float32(logit[0, -1, 0])

    def _follows(self, at: Any) -> bool:
        elapsed = elapsed_seconds(np.array([self._last, at]))[-1]
        return bool(elapsed == self._step_hours * 3600)

    def _opened(
        self, new: xr.DataArray | np.ndarray, time: Any
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        """Values (channel, latitude, longitude) float32, time, and the axes where they are told."""
        if isinstance(new, xr.DataArray):
            if time is not None:
                raise InputError(self._where, "a map with coordinates tells its time", found=time)
            return self._with_coordinates(new)
        values = np.asarray(new, dtype=np.float32)
        if values.ndim != 3 or len(values) != len(self._channels):
            raise InputError(
                self._where,
                f"a bare map must be of shape ({len(self._channels)}, latitude, longitude), "
                f"its channels {self._channels}",
                found=values.shape,
            )
        self._check_model(self._channels, values.shape)
        return values, _checked_time(time, self._where), {}

    def _with_coordinates(self, new: xr.DataArray) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        order = (names.CHANNEL, names.LATITUDE, names.LONGITUDE)
        if names.TIME not in new.coords or new[names.TIME].size != 1:
            raise InputError(
                self._where, "one map of one time is labelled at a time", found=dict(new.sizes)
            )
        one = new.squeeze(names.TIME) if names.TIME in new.dims else new
        if set(one.dims) != set(order):
            raise InputError(
                self._where, f"a map must be of the dimensions {', '.join(order)}", found=one.dims
            )
        self._check_model(
            [str(name) for name in one[names.CHANNEL].values], [one.sizes[name] for name in order]
        )
        # Read first, transposed then, as in `predict`.
        values = np.asarray(one.compute().transpose(*order).values, dtype=np.float32)
        at = _checked_time(new[names.TIME].values.reshape(-1)[0], self._where)
        return values, at, {name: one[name].values for name in order[1:] if name in one.coords}

    def _check_model(self, channels: Sequence[str], shape: Sequence[int]) -> None:
        _, height, width = shape
        detector.check_maps(
            self._model, channels=channels, shape=(height, width), where=self._where
        )

    def _check(self, values: np.ndarray, at: Any, axes: dict[str, np.ndarray]) -> None:
        """Whole, on the grid of the maps before, and later than they are."""
        told = [f"channel {name}" for name in self._channels]
        check_whole(values[None], np.array([at]), told, where=self._where)
        if self._shape is not None and values.shape[1:] != self._shape:
            raise InputError(
                f"{self._where}: grid",
                f"must be that of the maps before, {self._shape}",
                found=values.shape[1:],
            )
        for name in axes.keys() & self._axes.keys():
            known, found = self._axes[name], axes[name]
            if not np.array_equal(known, found):
                raise InputError(
                    f"{self._where}: {name}",
                    f"must equal that of the maps before ({known[0]:g} to {known[-1]:g})",
                    found=f"{found[0]:g} to {found[-1]:g}",
                )
        if self._last is None:
            return
        if _calendar(at) != _calendar(self._last):
            raise InputError(
                f"{self._where}: time",
                f"must be of the calendar of the maps before, {_calendar(self._last)}",
                found=_calendar(at),
            )
        if at <= self._last:
            raise InputError(
                f"{self._where}: time",
                f"a map must be later than the last one, {_told(self._last)}",
                found=_told(at),
            )


# --------------------------------------------------------------------------------------------------


def _carried_head(model: keras.Model, where: object) -> keras.Model:
    head = detector.carried_head(model)
    longest, length = detector.longest_sequence(model), detector.facts_of(model)["length"]
    if longest <= length:
        raise InputError(
            where,
            "carry_state needs a model trained on sequences longer than a window of "
            f"{length} maps (train.variable_length)",
            found=f"{longest} at most",
        )
    return head


def _checked_time(time: Any, where: object) -> Any:
    """As ``datetime64`` or a cftime date."""
    if isinstance(time, cftime.datetime):
        return time
    if isinstance(time, (str, dt.datetime, np.datetime64)):
        with contextlib.suppress(ValueError):
            stamp = pd.Timestamp(time)
            if stamp is not pd.NaT and stamp.tz is None:
                return stamp.to_datetime64()
    raise InputError(where, "a map must have a time, in UTC and without a zone", found=repr(time))


def _calendar(time: Any) -> str:
    return str(getattr(time, "calendar", DATETIME64))


def _told(time: Any) -> str:
    return str((pd.Timestamp(time) if isinstance(time, np.datetime64) else time).isoformat())


def _time_of(told: str | None, calendar: str) -> Any:
    """The inverse of `_told`."""
    if told is None or calendar == DATETIME64:
        return None if told is None else np.datetime64(told)
    pattern = "%Y-%m-%dT%H:%M:%S.%f" if "." in told else "%Y-%m-%dT%H:%M:%S"
    return cftime.datetime.strptime(told, pattern, calendar=calendar)


def _digest(model: keras.Model) -> str:
    """Of the weights and of what the file says; the same for a model and for its saved file."""
    digest = hashlib.sha256(json.dumps(detector.facts_of(model), sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(str((weight.shape, weight.dtype)).encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The header, and the arrays by kind and name."""
    arrays: dict[str, dict[str, np.ndarray]] = {"memory": {}, "state": {}, "axis": {}}
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            if header["format"] != FORMAT:
                raise ValueError(header["format"])
            for name in stored.files:
                kind, _, own = name.partition("_")
                if kind != "header":
                    arrays[kind][own] = stored[name]
    except Exception as error:  # of whatever kind the bytes of a foreign file may bring up
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            path, "must be a state that StreamingDetector.save wrote", found=lines[0]
        ) from None
    return header, arrays
