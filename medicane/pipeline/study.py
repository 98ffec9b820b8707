"""The benchmark: seas, rivals and training ideas, each trained alike and scored on the same maps.

A *study* (``config/skill.yaml``) names a recipe, further seas to be tried on, and rows that change
keys of the recipe. Every part is kept in the folder of the study and not made again: a sea, its
store, a trained row, its forecasts. A study that was cut goes on where it stood.

    OUT/seas/SEA   OUT/stores/SEA.zarr   OUT/rows/ROW/{trained.json, SEA/forecast.nc}
    OUT/mlflow.db: a run for each trained row, with its forecast of the test years

What the tables are made of lies together in ``OUT/results``: one ``forecasts_SEA.nc`` for each set
of maps, with which every score can be computed again, and ``results.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import Field, ValidationError, model_validator

from medicane import names
from medicane.config import Config, Sea, Section, Splits, first_fault, make_config, read_yaml
from medicane.errors import InputError
from medicane.normalise import Statistics, training_statistics
from medicane.pipeline.evaluation import MODEL_NAME
from medicane.pipeline.steps import prepare, refuse_workers, synthesise, train

LOG = logging.getLogger(__name__)

#: The row that all others are compared with, and the set it is trained and tested on.
REFERENCE, BENCHMARK = "detector", "benchmark"
BUDGET, HELD_BACK = "budget", "held_back"


class Row(Section):
    """One line of a table: what it changes of the recipe, and how its maps are labelled."""

    table: Literal["rivals", "ablations"]
    title: str
    change: dict[str, dict[str, Any]] = Field(default_factory=dict)
    #: Take the model of another row instead of training one.
    model_of: str | None = None
    #: Label each map from a window whose earlier maps stand in random order.
    shuffled: bool = False
    #: Forecast the maps of the further seas too.
    everywhere: bool = False


class Budget(Section):
    """The same recipe with another, smaller record to train on, tested on the same years."""

    sea: Sea
    splits: Splits
    test_years: float = Field(gt=0)


class Study(Section):
    """A study as its file says it."""

    schema_version: Literal[1]
    recipe: str
    #: Keys of the recipe that the study sets for all rows.
    change: dict[str, dict[str, Any]] = Field(default_factory=dict)
    #: Grids of the recipe's own sea that it does not name: years no choice was made on.
    held_back: tuple[str, ...] = ()
    seas: dict[str, Sea] = Field(default_factory=dict)
    budget: Budget | None = None
    rows: dict[str, Row]

    @model_validator(mode="after")
    def _whole(self) -> Study:
        first = next(iter(self.rows), None)
        if first != REFERENCE:
            raise ValueError(f"the first row must be {REFERENCE}; found {first!r}")
        for name, row in self.rows.items():
            if row.model_of is not None and row.model_of not in self.rows:
                raise ValueError(f"rows.{name}.model_of must be a row; found {row.model_of!r}")
        if taken := {BENCHMARK, BUDGET, HELD_BACK} & set(self.seas):
            raise ValueError(f"a further sea must have a name of its own; found {sorted(taken)}")
        return self


@dataclass(frozen=True)
class Placed:
    """A study with its folder: where everything lies, and the configuration of each row."""

    study: Study
    recipe: dict[str, Any]
    folder: Path

    def config(self, row: str | None = None, *, sea: str = BENCHMARK) -> Config:
        """The recipe with the changes of a row, on the maps of a sea."""
        values = _changed(self.recipe, self.study.change)
        if row is not None:
            values = _changed(values, self.study.rows[row].change)
        own: dict[str, dict[str, Any]] = {}
        if sea != BENCHMARK:
            held_back = sea == HELD_BACK
            own["data"] = {
                "grids": list(self.study.held_back) if held_back else f"seas/{sea}/grids/era5_*.nc",
                "catalogue": f"seas/{self.home(sea)}/storms.csv",
                "store": f"stores/{sea}.zarr",
            }
        if sea == BUDGET and self.study.budget is not None:
            own["splits"] = self.study.budget.splits.model_dump()
        if values.get("tracking", {}).get("uri") is None:
            own["tracking"] = {"uri": f"sqlite:///{self.folder.resolve() / 'mlflow.db'}"}
        where = f"row {row}" if row else "recipe"
        return make_config(_changed(values, own), where=where, folder=self.folder)

    def home(self, name: str) -> str:
        """The folder of a set's sea: the years held back lie among those of the benchmark."""
        return BENCHMARK if name == HELD_BACK else name

    def sea(self, name: str) -> Sea:
        """How the sea of a set is made."""
        if self.home(name) == BENCHMARK:
            return self.config().sea
        if name == BUDGET and self.study.budget is not None:
            return self.study.budget.sea
        return self.study.seas[name]

    def further(self) -> list[str]:
        """Sets of maps that nothing is trained on, besides the test years."""
        return [*([HELD_BACK] if self.study.held_back else []), *self.study.seas]

    def seas(self) -> list[str]:
        """All sets of the study, each with a store of its own."""
        return [BENCHMARK, *self.further(), *([BUDGET] if self.study.budget else [])]

    def row_folder(self, row: str) -> Path:
        """Where the parts of a row are kept."""
        return self.folder / "rows" / row

    def trained(self, row: str) -> dict[str, Any] | None:
        """What is told of a row's training, and its ``key``; None where it is not trained."""
        path = self.row_folder(row) / "trained.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def model(self, row: str) -> Any:
        """The detector of a trained row."""
        from medicane import experiments
        from medicane.model import load_detector

        trained = self.trained(row)
        if trained is None:
            raise InputError(f"row {row}", "must be trained first", found="no training")
        file = experiments.model_file(trained["model_uri"], tracking=trained["tracking_uri"])
        return load_detector(file.path)


def place_study(file: Path, folder: Path) -> Placed:
    """Read a study and its recipe, and check every row's configuration.

    Raises
    ------
    InputError
        For an unknown or wrong key in either file or in what a row changes, naming it; several
        workers are wrong in a study.
    """
    values = read_yaml(file)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise InputError(file, first_fault(error)) from None
    placed = Placed(study, read_yaml(file.parent / study.recipe), folder)
    for row in study.rows:
        refuse_workers(placed.config(row), where=f"row {row}: train.workers")
    return placed


def skill(
    file: Path,
    folder: Path,
    *,
    page: Path | None = None,
    only: list[str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Make what is missing of a study, score it, and write its page.

    Parameters
    ----------
    file, folder, only, announce
        As for `run_study`.
    page
        The Markdown file; by default ``folder/skill.md``. Its figures and the small files behind
        its numbers go to a folder beside it, named as the page.

    Raises
    ------
    InputError
        If the study or its recipe is wrong, or a row is unknown.
    """
    from medicane.pipeline.study_results import publish

    results = run_study(file, folder, only=only, announce=announce)
    return publish(results, folder / "skill.md" if page is None else page, study=file)


def run_study(
    file: Path,
    folder: Path,
    *,
    only: list[str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Make what is missing of a study; gather its forecasts and results.

    Parameters
    ----------
    file
        The study, e.g. ``config/skill.yaml``.
    folder
        Its folder; what it holds of the same study is kept.
    only
        Rows to train now (all by default); the results hold every row that is trained.
    announce
        Called with the name of each part that is made.

    Returns
    -------
    Path
        ``folder/results``.
    """
    announce = announce or (lambda name: None)
    placed = place_study(file, folder)
    for name in only or ():
        if name not in placed.study.rows and name != BUDGET:
            law = f"must be one of {[*placed.study.rows, BUDGET]}"
            raise InputError("--row", law, found=name)
    for sea in placed.seas():
        _make_store(placed, sea, announce)
    wanted = [name for name in placed.study.rows if only is None or name in only]
    for name in wanted:
        if placed.study.rows[name].model_of is None:
            _train_row(placed, name, announce, sea=BENCHMARK)
    if placed.study.budget is not None and (only is None or BUDGET in only):
        _train_row(placed, BUDGET, announce, sea=BUDGET)
    for name in wanted:
        for target in _targets(placed, name):
            _forecast_row(placed, name, target, announce)
    if placed.trained(BUDGET) is not None:
        _forecast_row(placed, BUDGET, BENCHMARK, announce)
    from medicane.pipeline.study_results import gather

    announce("results")
    return gather(placed)


# --- parts ----------------------------------------------------------------------------------------


def _make_store(placed: Placed, sea: str, announce: Callable[[str], None]) -> None:
    config = placed.config(sea=sea)
    # Both steps leave alone what is whole, but to see that they read every file of the sea.
    done = placed.folder / "stores" / f"{sea}.json"
    made: dict[str, Any] = {
        "sea": placed.sea(sea).model_dump(),
        "data": config.data.model_dump(mode="json"),
    }
    made |= {"label": config.label.model_dump(), "store": config.data.store}
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == _plain(made):
        return
    announce(f"sea {sea}")
    synthesise(placed.folder / "seas" / placed.home(sea), placed.sea(sea), label=config.label)
    announce(f"store {sea}")
    prepare(config)
    _write_json(done, made)


def _train_row(placed: Placed, name: str, announce: Callable[[str], None], *, sea: str) -> None:
    from medicane import experiments

    row = None if name == BUDGET else name
    config = placed.config(row, sea=sea)
    folder = placed.row_folder(name)
    key = _key(config)
    before = placed.trained(name)
    if before is not None and before["key"] == key:
        return
    announce(f"train {name}")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*/forecast.nc"):
        stale.unlink()
    experiments.end_cut_runs(config, tags={"row": name})
    table = "budget" if row is None else placed.study.rows[name].table
    trained = train(
        config,
        name=name,
        tags={"row": name, "table": table},
        checkpoint=folder / "training.checkpoint.npz",
        statistics=_statistics(placed, config, sea),
    )
    _write_json(folder / "trained.json", {"key": key, **trained.model_dump()})


def _statistics(placed: Placed, config: Config, sea: str) -> Statistics:
    """Of the training split: the same for every row of a store, so computed once."""
    from medicane.store import open_store

    file = placed.folder / "stores" / f"{sea}.statistics.json"
    store = open_store(config.data.store)
    mask = split_masks(config, store)["train"]
    digest = hashlib.sha256(mask.tobytes()).hexdigest()
    key = [str(store.attrs["content_digest"]), digest]
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Statistics.from_dict(kept["statistics"])
    found = training_statistics(store["maps"], mask)
    _write_json(file, {"key": key, "statistics": found.to_dict()})
    return found


def _targets(placed: Placed, name: str) -> list[str]:
    row = placed.study.rows[name]
    return [BENCHMARK, *(placed.further() if row.everywhere else ())]


def _forecast_row(placed: Placed, name: str, sea: str, announce: Callable[[str], None]) -> None:
    """The probabilities of one row for one set of maps, kept in the row's folder."""
    from medicane import experiments
    from medicane.evaluate import Forecast, ScoredForecasts, calibrate, write_forecasts
    from medicane.model import facts_of
    from medicane.store import maps_where, open_store

    row = placed.study.rows.get(name, Row(table="rivals", title=name))
    origin = row.model_of or name
    trained = placed.trained(origin)
    if trained is None:
        return
    path = forecast_file(placed, name, sea)
    if path.exists() and _same_model(path, trained["key"]):
        return
    announce(f"forecast {name} on {sea}")
    config = placed.config(None if name == BUDGET else name)
    model = placed.model(origin)
    temperature, threshold = 1.0, float(facts_of(model)["threshold"])
    if row.model_of is not None:
        # Another use of a model is another forecast: calibrated for itself, on validation.
        temperature, threshold = _recalibrated(placed, model, config, row)
    store = open_store(placed.config(sea=sea).data.store)
    mask = scored_maps(placed, store, name=name, sea=sea)
    chosen = maps_where(store, mask)
    found = label_maps(model, chosen["maps"], mode=config.detect.mode, shuffled=row.shuffled)
    logit = found["logit"].values / temperature
    probability = calibrate(found["logit"].values, temperature=temperature)
    more = {"logit": logit.astype(np.float32)}
    if "reconstruction_error" in found:
        more["reconstruction_error"] = found["reconstruction_error"].values
    write_forecasts(
        path,
        ScoredForecasts(
            times=chosen.indexes[names.TIME].to_numpy(),
            medicane=chosen["medicane"].values,
            storm=chosen["storm"].values.astype(str),
            forecasts={MODEL_NAME: Forecast(probability, threshold=threshold)},
            attributes={"model_key": trained["key"]},
        ),
        more=more,
    )
    if sea == BENCHMARK and row.model_of is None:
        # Where `medicane compare` and the MLflow page look for it.
        experiments.reopened_run(trained["run_id"]).log_file(path, folder="evaluation/test")


def forecast_file(placed: Placed, row: str, sea: str) -> Path:
    """Where the probabilities of a row for the maps of a sea are kept."""
    return placed.row_folder(row) / sea / "forecast.nc"


def label_maps(
    model: Any, maps: xr.DataArray, *, mode: Literal["causal", "fused"], shuffled: bool = False
) -> xr.Dataset:
    """As `medicane.predict.predict`; or each map from a window whose earlier maps are shuffled.

    The map that is labelled stays the last one of its window: all that is taken from the detector
    is the order of what came before.
    """
    from medicane.packing import read_block
    from medicane.predict import predict
    from medicane.sequences import contiguous_periods

    if not shuffled:
        return predict(model, maps, mode=mode)
    from medicane.model import encoder_of, facts_of, head_of

    length = int(facts_of(model)["length"])
    encoder, head = encoder_of(model), head_of(model)
    rng = np.random.default_rng(0)
    logit = np.full(maps.sizes[names.TIME], np.nan, np.float32)
    step = int(facts_of(model)["step_hours"])
    for period in contiguous_periods(maps.indexes[names.TIME], step_hours=step):
        features = np.concatenate(
            [
                np.asarray(
                    encoder.predict_on_batch(read_block(maps, at, min(at + 96, period.stop)))
                )
                for at in range(period.start, period.stop, 96)
            ]
        )
        for ends in _blocks(np.arange(length - 1, len(features)), 256):
            order = np.argsort(rng.random((len(ends), length - 1)), axis=1)
            members = np.concatenate([order, np.full((len(ends), 1), length - 1)], axis=1)
            windows = features[ends[:, None] - (length - 1) + members]
            logit[period.start + ends] = np.asarray(head.predict_on_batch(windows))[:, -1, 0]
    return xr.Dataset({"logit": (names.TIME, logit)}, coords={names.TIME: maps[names.TIME]})


def _blocks(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _recalibrated(placed: Placed, model: Any, config: Config, row: Row) -> tuple[float, float]:
    from medicane.evaluate import calibrate, fit_temperature, fit_threshold
    from medicane.store import maps_where, open_store

    store = open_store(config.data.store)
    mask = split_masks(config, store)["validation"]
    chosen = maps_where(store, mask)
    found = label_maps(model, chosen["maps"], mode=config.detect.mode, shuffled=row.shuffled)
    logit, labels = found["logit"].values, chosen["medicane"].values
    temperature = fit_temperature(logit, labels).value
    probability = calibrate(logit, temperature=temperature)
    return temperature, fit_threshold(probability, labels).value


# --- which maps -----------------------------------------------------------------------------------


def split_masks(config: Config, store: xr.Dataset) -> dict[str, np.ndarray]:
    """The splits of a store, checked for leakage."""
    from medicane.sequences import split_times

    return split_times(
        store.indexes[names.TIME], store["medicane"].values, store["storm"].values, config=config
    )


def scored_maps(placed: Placed, store: xr.Dataset, *, name: str, sea: str) -> np.ndarray:
    """The maps that a row is tested on, bool (time): whole years nobody trained on."""
    if sea != BENCHMARK:
        return np.ones(store.sizes[names.TIME], bool)
    mask = split_masks(placed.config(), store)["test"]
    if name == BUDGET and placed.study.budget is not None:
        times = store.indexes[names.TIME]
        hours = (times - times[mask][0]).total_seconds().to_numpy() / 3600
        mask &= hours < placed.study.budget.test_years * 8766
    return np.asarray(mask)


# --- small things ---------------------------------------------------------------------------------


def _key(config: Config) -> str:
    """What makes a training the same: the configuration without its places, and the maps."""
    from medicane.store import open_store

    values = config.model_dump(mode="json", exclude={"tracking", "sea", "detect", "promotion"})
    for place in ("grids", "catalogue", "store"):
        values["data"].pop(place)
    digest = str(open_store(config.data.store).attrs["content_digest"])
    text = json.dumps([values, digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _same_model(path: Path, key: str) -> bool:
    with xr.open_dataset(path) as kept:
        return bool(kept.attrs.get("model_key") == key)


def _changed(values: dict[str, Any], change: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return values | {name: {**values.get(name, {}), **keys} for name, keys in change.items()}


def _plain(values: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(values, default=str))


def _write_json(path: Path, values: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)
