"""The configuration: frozen pydantic models, unknown keys refused, YAML in.

Every key has a default but the data. Relative paths are relative to the configuration file, so
that a command, a scheduled flow and a notebook read the same file the same way.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medicane import names
from medicane.errors import InputError

SCHEMA_VERSION = 1

#: What the names of secret options of fsspec's file systems contain.
_SECRET = ("auth", "connection_string", "credential", "headers", "key", "password", "sas", "secret")
#: Values of ``token`` that say where credentials come from and are none.
_OPEN_TOKENS = ("anon", "browser", "cache", "cloud", "google_default")

#: The name of the product's own catalogue, where a path of one is asked for.
BUNDLED = "bundled"

#: Arithmetic of an encoder when it detects.
Precision = Literal["float32", "bfloat16", "int8"]


class Section(BaseModel):
    """A part of the configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Domain(Section):
    """The area, degrees; the default is the Mediterranean."""

    north: float = Field(48.0, ge=-90, le=90)
    south: float = Field(28.0, ge=-90, le=90)
    west: float = Field(-10.0, ge=-180, lt=180)
    east: float = Field(42.0, ge=-180, lt=180)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.north <= self.south:
            raise ValueError(f"north must exceed south; found {self.north} and {self.south}")
        if self.east <= self.west:
            raise ValueError(f"east must exceed west; found {self.east} and {self.west}")
        return self


class ChannelFormula(Section):
    """A channel of the user's own: name, formula over standard variables, units."""

    name: str
    formula: str
    units: str
    long_name: str = ""


class Data(Section):
    """Where the maps come from and what is kept of them."""

    grids: tuple[str, ...]
    #: A catalogue or tracks (CSV); ``bundled`` is the product's own; none leaves labels unknown.
    catalogue: str | None = "bundled"
    domain: Domain = Domain()
    step_hours: int = Field(6, ge=1, le=24)
    #: Spacing of the prepared maps; none keeps the points of the data (the pixels of pictures).
    degrees: float | None = Field(0.5, gt=0, le=5)
    channels: tuple[str | ChannelFormula, ...] = Field(names.DEFAULT_CHANNELS, min_length=1)
    store: str = "maps.zarr"
    #: Units of variables whose files do not state them, e.g. ``{msl: hPa}``.
    units: dict[str, str] = {}
    #: One value of an extra dimension, e.g. ``{number: 0}``; members are never averaged.
    select: dict[str, float] = {}
    #: How URIs are reached, by protocol: options of fsspec; see `docs/remote.md`. Never a secret.
    storage_options: dict[str, dict[str, Any]] = {}

    @field_validator("grids", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("grids")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one file, glob or URI is needed; found an empty list")
        return value

    @field_validator("channels")
    @classmethod
    def _unique(cls, value: tuple[str | ChannelFormula, ...]) -> tuple[str | ChannelFormula, ...]:
        listed = [c if isinstance(c, str) else c.name for c in value]
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            raise ValueError(f"channel names must be unique; found {twice} twice")
        return value

    @field_validator("storage_options", mode="before")
    @classmethod
    def _no_secret(cls, value: Any) -> Any:
        for key in _secret_keys(value):
            raise ValueError(
                "must hold no secret, because runs keep their configuration: leave it to the "
                f"environment or to the file of its library; found the key {key!r}"
            )
        return value

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the model's last axis."""
        return tuple(c if isinstance(c, str) else c.name for c in self.channels)


def _secret_keys(options: Any) -> Iterator[str]:
    """Keys of a mapping, and of those in it, whose values would be secrets."""
    for key, value in options.items() if isinstance(options, dict) else ():
        name = str(key).lower()
        if isinstance(value, dict) and "token" not in name:
            yield from _secret_keys(value)
        elif any(word in name for word in _SECRET) or (
            "token" in name and value not in _OPEN_TOKENS
        ):
            yield str(key)


class Sequences(Section):
    """Ordered windows of maps; ``gap_hours`` is the least distance between two splits."""

    length: int = Field(12, ge=10, le=15)
    stride: int = Field(1, ge=1)
    gap_hours: float | None = Field(None, ge=0)


Range = tuple[dt.datetime, dt.datetime]


class Splits(Section):
    """Train, validation and test: date ranges, or fractions of the record in order.

    Date ranges are inclusive at both ends. ``leave_storm_out`` makes that storm's block the test
    split, whatever else is said of ``test``.
    """

    train: tuple[Range, ...] = ()
    validation: tuple[Range, ...] = ()
    test: tuple[Range, ...] = ()
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    leave_storm_out: str | None = None

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _naive_utc(cls, value: Any) -> Any:
        if (
            isinstance(value, (list, tuple))
            and len(value) == 2
            and not isinstance(value[0], (list, tuple))
        ):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return value
        return [
            [_as_utc(moment, last=i == 1) for i, moment in enumerate(pair)]
            if isinstance(pair, (list, tuple))
            else pair
            for pair in value
        ]

    @field_validator("train", "validation", "test")
    @classmethod
    def _forward(cls, value: tuple[Range, ...]) -> tuple[Range, ...]:
        for start, end in value:
            if end < start:
                raise ValueError(f"a range must not end before it starts; found {start} to {end}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = [bool(self.train), bool(self.validation), bool(self.test)]
        if any(given) and not all(given) and not (self.leave_storm_out and all(given[:2])):
            raise ValueError("give date ranges for train, validation and test, or for none of them")
        if any(f <= 0 for f in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(
                f"fractions must be positive and sum to 1; found {list(self.fractions)}"
            )
        return self


def _as_utc(moment: Any, *, last: bool) -> dt.datetime:
    """A date or time in UTC, naive; a bare date as the end of a range means its last moment."""
    if isinstance(moment, str):
        try:
            parsed = dt.datetime.fromisoformat(moment)
        except ValueError as error:
            raise ValueError(f"times must be ISO 8601; found {moment!r}") from error
        moment = parsed.date() if len(moment) <= 10 else parsed
    if isinstance(moment, dt.datetime):
        if moment.tzinfo is not None:
            try:
                moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
            except OverflowError:
                raise ValueError(f"times must be of years 1 to 9999; found {moment}") from None
        return moment
    if isinstance(moment, dt.date):
        day_time = dt.time.max if last else dt.time.min
        return dt.datetime.combine(moment, day_time)
    raise ValueError(f"times must be ISO 8601; found {moment!r}")


class Model(Section):
    """The detector: an encoder of maps, and a head that reads their order; one sigmoid a map."""

    #: ``c3d`` and ``r2plus1d`` convolve over time as well, and then nothing reads the order after.
    encoder: Literal["compact", "densenet121", "c3d", "r2plus1d"] = "compact"
    growth_rate: int = Field(16, ge=1)
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field((3, 6, 12), min_length=1, max_length=5)
    #: A local file with encoder weights (``densenet121``: the Keras *notop* file), or none.
    weights: str | None = None
    #: What reads the order of the maps; ``tcn`` is a causal convolution, ``none`` a single map.
    rnn: Literal["gru", "lstm", "tcn", "none"] = "gru"
    #: Read the order backwards too: for archives, with ``detect.mode: fused``.
    bidirectional: bool = False
    units: int = Field(64, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    #: Inside the recurrent cell; keeps cuDNN away.
    recurrent_dropout: float = Field(0.0, ge=0, lt=1)
    #: To channels, places and scales. The other encoders have none, and that is their default.
    attention: Literal["none", "triple"] = "triple"
    #: Feed the label of the previous map to the next one: the true one in part of the training,
    #: the model's own afterwards.
    label_feedback: bool = False
    #: An autoencoder over the features of the training maps: its error flags maps unlike them.
    out_of_domain: bool = False

    @model_validator(mode="before")
    @classmethod
    def _attention_of_the_encoder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("encoder", "compact") != "compact":
            return {"attention": "none", **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        recurrent = self.rnn in ("gru", "lstm")
        if self.encoder in ("c3d", "r2plus1d") and self.rnn != "none":
            raise ValueError(
                f"the encoder {self.encoder} reads the order itself: rnn must be none; "
                f"found {self.rnn!r}"
            )
        for key in ("bidirectional", "recurrent_dropout", "label_feedback"):
            if getattr(self, key) and not recurrent:
                raise ValueError(f"{key} needs rnn gru or lstm; found {self.rnn!r}")
        if self.bidirectional and self.label_feedback:
            raise ValueError("label_feedback runs forwards only; found bidirectional: true")
        if self.attention == "triple" and self.encoder != "compact":
            raise ValueError(f"attention needs the compact encoder; found {self.encoder!r}")
        return self


class Train(Section):
    """How the detector is fitted."""

    epochs: int = Field(30, ge=1)
    patience: int = Field(6, ge=1)
    batch_size: int = Field(16, ge=1)
    #: Neighbouring windows whose maps are encoded once for all of them; 1: window by window.
    block: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    clipnorm: float | None = Field(1.0, gt=0)
    l2: float = Field(1e-5, ge=0)
    seed: int = Field(0, ge=0)
    #: Windows without a medicane kept per epoch for each window with one (none: all of them).
    negatives_per_positive: float | None = Field(None, gt=0)
    #: Share of those windows that hold a deep low at sea, where there are enough (none: as drawn).
    hard_negative_share: float | None = Field(None, gt=0, le=1)
    #: Focusing of the focal loss; 0 is binary cross-entropy.
    focal_gamma: float = Field(0.0, ge=0)
    #: ``unroll``: short sequences in large batches first, doubled in length at each plateau.
    curriculum: Literal["none", "unroll"] = "none"
    #: Train on runs of many lengths instead of windows of one.
    variable_length: bool = False
    #: The control of the benchmark: the maps of a training window in random order.
    shuffled_order: bool = False
    #: Detectors of consecutive seeds whose logits are averaged.
    ensemble: int = Field(1, ge=1, le=10)
    #: Processes that train together, each with its share of every batch; ``TF_CONFIG`` names them.
    workers: int = Field(1, ge=1)
    #: Arithmetic of the encoder while it is trained; weights and what is saved are float32.
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    #: Compile the training step by XLA; keeps cuDNN's recurrent cells away.
    jit_compile: bool = False
    #: Threads that make batches ready; with one, TensorFlow reads ahead as it sees fit.
    loaders: int = Field(1, ge=1)
    #: Of two threads and more: memory of the batches that wait; two wait in any case, ten at most.
    prefetch_mb: int = Field(60, ge=1)
    #: Where maps are unpacked from 16 bits: before they are handed to the device, or on it.
    decode: Literal["host", "device"] = "host"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hard_negative_share is not None and self.negatives_per_positive is None:
            raise ValueError("hard_negative_share needs negatives_per_positive; found none")
        if self.curriculum == "unroll" and self.variable_length:
            raise ValueError("curriculum unroll needs windows; found variable_length: true")
        if self.jit_compile and self.workers > 1:
            raise ValueError(f"jit_compile needs workers: 1; found workers: {self.workers}")
        if self.workers > self.batch_size:
            raise ValueError(
                f"workers must not exceed batch_size ({self.batch_size}); found {self.workers}"
            )
        return self


class Label(Section):
    """The label definition: it travels with every store, model and result.

    The thresholds are those of the phase-space rule (Hart 2003, with a medicane's radius); the
    physical baseline uses the same ones.
    """

    version: str = "medicane-1"
    source: str = "catalogue"
    radius_km: float = Field(200.0, gt=0)
    b_max_m: float = 20.0
    vtl_min: float = 0.0
    vtu_min: float = 0.0
    msl_max_hpa: float = 1005.0
    min_hours: float = Field(6.0, ge=0)
    #: Ask −VTL > −VTU as well. Off: a deep warm core would fail it.
    lower_core_stronger: bool = False
    #: Hours on either side of a catalogued window that are neither medicane nor not.
    transition_hours: float = Field(0.0, ge=0)


class Detect(Section):
    """How probabilities become detections. Threshold none: the one fitted on validation."""

    threshold: float | None = Field(None, gt=0, lt=1)
    mode: Literal["causal", "fused"] = "causal"
    #: Of the encoder's arithmetic; other than float32 needs the extra ``fast``.
    precision: Precision = "float32"


class Promotion(Section):
    """When a challenger becomes champion: its paired difference must stand above a margin."""

    score: Literal["csi", "auc_pr", "pod", "brier_skill"] = "csi"
    #: The lower end of the 95 % interval of challenger minus champion must be above this.
    margin: float = 0.0


class Email(Section):
    """Mail on the onset of an event; none without a recipient."""

    to: tuple[str, ...] = ()
    sender: str = "medicane@localhost"
    host: str = "localhost"
    port: int = Field(587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    #: Name of the secret, never the secret: see `Watch`.
    password: str | None = None

    @field_validator("password")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        return _name_of_a_secret(value)

    @field_validator("to", "sender")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        for address in (value,) if isinstance(value, str) else value:
            if not re.fullmatch(r"[^@\s<>,;:\\\"]+@[^@\s<>,;:\\\"]+", address):
                raise ValueError(f"must be addresses, name@host; found {address!r}")
        return value

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together; found one of them")
        if self.password is not None and self.security == "none" and not is_loopback(self.host):
            raise ValueError("a password needs security tls or starttls; found none")
        return self


class Watch(Section):
    """What `medicane watch` does with maps that change, and whom it tells of an event.

    Secrets stand in no file: a key names an environment variable, or in the flow a Secret block of
    Prefect, that holds one.
    """

    #: Late and revised maps are labelled again up to so many days before the last detection.
    revise_days: float = Field(100.0, ge=0)
    #: Maps labelled and committed at once, about: what a killed backfill loses at most.
    piece: int = Field(2000, ge=1)
    #: An onset more than so many days before the newest map is history, and rings no bell.
    notify_days: float = Field(7.0, ge=0)
    #: An address, or the name of the secret that is one.
    webhook: str | None = None
    #: Name of the secret that is sent as ``Authorization: Bearer …``.
    webhook_token: str | None = None
    email: Email = Email()

    @field_validator("webhook")
    @classmethod
    def _open_address(cls, value: str | None) -> str | None:
        if value is None or "://" not in value:
            return _name_of_a_secret(value)
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address http(s)://host/…; found another one")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "must hold no user, password or query: name the environment variable that holds "
                "such an address; found one of them"
            )
        return value

    @field_validator("webhook_token")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        return _name_of_a_secret(value)


def _name_of_a_secret(value: str | None) -> str | None:
    """The name, unless it looks like the secret itself, which then enters no message."""
    if value is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*|[a-z][a-z0-9-]*", value):
        raise ValueError(
            "must be the name of an environment variable (or of a Secret block of Prefect) that "
            "holds the secret; found something else"
        )
    return value


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, over which nothing passes a network."""
    return host in ("localhost", "127.0.0.1", "::1")


class Tracking(Section):
    """Where runs are logged. None: ``MLFLOW_TRACKING_URI``, else a database beside the store."""

    uri: str | None = None
    experiment: str = "medicane"


class Sea(Section):
    """The idealised sea that the demo (and benchmarks) train on; see ``medicane.synthetic``."""

    years: float = Field(3.0, gt=0)
    start_year: int = Field(2001, ge=1)
    step_hours: int = Field(6, ge=1, le=24)
    seed: int = Field(0, ge=0)
    base_rate: float = Field(0.008, gt=0, lt=0.5)
    degrees: float = Field(0.5, gt=0, le=2)
    #: Radial form of its storms; a detector trained on one is tried on the other.
    vortex: Literal["reed_jablonowski", "holland"] = "reed_jablonowski"


class Config(Section):
    """The whole configuration; see `docs/configuration.md`."""

    schema_version: Literal[1]
    data: Data
    sequences: Sequences = Sequences()
    splits: Splits = Splits()
    model: Model = Model()
    train: Train = Train()
    label: Label = Label()
    detect: Detect = Detect()
    tracking: Tracking = Tracking()
    promotion: Promotion = Promotion()
    watch: Watch = Watch()
    sea: Sea = Sea()

    @property
    def gap_hours(self) -> float:
        """Least distance between two splits: by default longer than one sequence."""
        if self.sequences.gap_hours is not None:
            return self.sequences.gap_hours
        return float((self.sequences.length + 1) * self.data.step_hours)


class _PlainLoader(yaml.SafeLoader):
    """Plain values alone: no tags of Python, no key twice, and no aliases.

    A few lines of aliases stand for gigabytes, and of a key given twice the first would be lost.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias (*); write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep=deep)
        if len(values) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[0])
            raise yaml.MarkedYAMLError(
                problem=f"the key {twice!r} twice", problem_mark=node.start_mark
            )
        return values


def load_config(path: str | Path) -> Config:
    """Read a YAML configuration.

    Parameters
    ----------
    path
        A YAML file with ``schema_version: 1`` as its first key.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, has an unknown or missing key, or a value that its
        key does not allow; the message names the file and the key.
    """
    path = Path(path)
    values = read_yaml(path)
    return make_config(values, where=str(path), folder=path.resolve().parent)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping whose first key is ``schema_version``.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or is not such a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise InputError(path, "must be a readable text file", found=told) from None
    try:
        values = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 30 February, a number too long
        raise InputError(path, "must be YAML of plain values", found=error) from None
    except RecursionError:
        law = "must be YAML of plain values"
        raise InputError(path, law, found="too many values inside one another") from None
    if not isinstance(values, dict):
        raise InputError(path, "must be a mapping of sections", found=type(values).__name__)
    if next(iter(values), None) != "schema_version":
        raise InputError(
            path, "schema_version must be the first key", found=repr(next(iter(values), None))
        )
    return values


def make_config(
    values: dict[str, Any], *, where: str = "configuration", folder: Path | None = None
) -> Config:
    """Check a mapping and make it a `Config`; relative paths are taken from `folder`."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise InputError(where, first_fault(error)) from None
    return config if folder is None else _anchor(config, folder)


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation in one line, and how many more there are."""
    faults = error.errors(include_url=False)
    first = faults[0]
    key = ".".join(str(part) for part in first["loc"] if part != "function-after")
    if first["type"] == "extra_forbidden":
        told = f"{key}: unknown key"
    elif first["type"] == "missing":
        told = f"{key}: this key is required"
    else:
        law = first["msg"].removeprefix("Value error, ")
        told = f"{key}: {law}" if key else law
        if "; found" not in law:
            told += f"; found {first['input']!r:.200}"
    return told + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")


def _anchor(config: Config, folder: Path) -> Config:
    def anchored(uri: str | None) -> str | None:
        if uri in (None, BUNDLED) or "://" in uri or "::" in uri or Path(uri).is_absolute():
            return uri
        return str(folder / uri)

    data = config.data.model_copy(
        update={
            "grids": tuple(anchored(uri) for uri in config.data.grids),
            "catalogue": anchored(config.data.catalogue),
            "store": anchored(config.data.store),
        }
    )
    model = config.model.model_copy(update={"weights": anchored(config.model.weights)})
    return config.model_copy(update={"data": data, "model": model})
