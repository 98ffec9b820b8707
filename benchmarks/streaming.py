"""One map at a time: how long the answer takes, and how far a carried state drifts.

The time is that of `StreamingDetector.label` from bare values to the answer, checks included, each
kind in turn with a map of its own, beside encoding the whole window again. The drift is that of a
detector trained here on random runs of the idealised sea (``train.variable_length``), on its test
split: AUC-PR of carried state and window on the same maps, by the maps since the reset.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.claims import Claim, main
from medicane import model as detector
from medicane import names, pipeline, runtime
from medicane.config import Config, load_config, make_config
from medicane.normalise import Statistics
from medicane.store import open_store
from medicane.streaming import StreamingDetector, carried_drift
from medicane.train import train_detector

RECIPE = Path(__file__).resolve().parent.parent / "config" / "demo.yaml"
CHANNELS = names.DEFAULT_CHANNELS
#: Cells of the maps: those of a quarter degree, about, and small ones to see that it works.
SHAPE, SMALL_SHAPE = (80, 160), (16, 24)
STEP = np.timedelta64(6, "h")


def measure(small: bool) -> Iterator[Claim]:
    """Latency of one new map, and the drift of a carried state."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDICANE_CACHE"] = folder  # what is exported here is of no use later
        yield from _latency(small)
        yield from _drift(Path(folder), small)


# Latency -----------------------------------------------------------------------------------------


def _latency(small: bool) -> Iterator[Claim]:
    model = _compact(small)
    shape = SMALL_SHAPE if small else SHAPE
    length = int(detector.facts_of(model)["length"])
    maps = np.random.default_rng(0).normal(size=(64, len(CHANNELS), *shape)).astype(np.float32)
    window = np.moveaxis(maps[:length], 1, -1)[None]
    detectors = {
        "features of the window kept, Keras": StreamingDetector(model),
        "state carried, Keras": StreamingDetector(model, carry_state=True),
        **{
            f"features of the window kept, OpenVINO {precision}": StreamingDetector(
                model, encode=encode
            )
            for precision, encode in _encoders(model, maps)
        },
    }
    again = "the whole window encoded again, Keras"
    work: dict[str, Callable[[int], Any]] = {again: lambda i: model.predict_on_batch(window)}
    for name, stream in detectors.items():
        work[name] = lambda i, stream=stream: stream.label(
            maps[i % len(maps)], time=np.datetime64("2001-01-01") + STEP * i
        )
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in range(length + 5 + (20 if small else 300)):
        for name, label in work.items():
            begun = time.perf_counter()
            label(i)
            seconds[name].append(time.perf_counter() - begun)
    # The first window traces its graphs, and is shorter than one.
    milliseconds = {name: 1000 * np.array(found[length + 5 :]) for name, found in seconds.items()}
    theirs = milliseconds[again]
    cells = f"{shape[0]} x {shape[1]} cells, {len(CHANNELS)} channels"
    for name in detectors:
        ours = milliseconds[name]
        ratios = [
            np.median(b) / np.median(a) for a, b in zip(*map(_thirds, (ours, theirs)), strict=True)
        ]
        yield Claim(
            claim=f"latency of one new map: {name}",
            against=again,
            unit="ms",
            ours=float(np.median(ours)),
            theirs=float(np.median(theirs)),
            ratio=float(np.median(theirs) / np.median(ours)),
            low=float(min(ratios)),
            high=float(max(ratios)),
            note=f"p50, and p99 {np.quantile(ours, 0.99):.3g} ms against "
            f"{np.quantile(theirs, 0.99):.3g} ms; {ours.size} maps of {cells}",
        )


def _thirds(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, 3)


def _compact(small: bool) -> Any:
    """The compact detector with weights drawn at random: they cost what others do."""
    size = {"blocks": [1, 1], "growth_rate": 4} if small else {"blocks": [3, 6, 12]}
    config = make_config(
        {
            "schema_version": 1,
            "data": {"grids": "none.nc", "channels": list(CHANNELS)},
            "model": {"growth_rate": 16, "attention": "none", **size},
        }
    )
    n = len(CHANNELS)
    facts = {"length": 12, "step_hours": 6, "longest_sequence": 36}
    return detector.build_detector(
        config, Statistics(CHANNELS, np.zeros(n), np.ones(n), 1), facts=facts
    )


def _encoders(model: Any, maps: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Those of OpenVINO, where it is installed; int8 calibrated on the maps, its skill unseen."""
    encoder = detector.encoder_of(model)
    digest = hashlib.sha256(b"benchmark").hexdigest()
    for precision in ("float32", "bfloat16"):
        found = runtime.open_encoder(encoder, digest=digest, precision=precision, one_by_one=True)
        if found is None:
            return  # not installed
        yield precision, found
    runtime.quantised(encoder, digest=digest, maps=np.split(np.moveaxis(maps, 1, -1), 8))
    runtime.record_verdict(digest, "int8", {"passed": True})  # of its time alone
    yield "int8", runtime.open_encoder(encoder, digest=digest, precision="int8", one_by_one=True)


# Drift -------------------------------------------------------------------------------------------


def _drift(folder: Path, small: bool) -> Iterator[Claim]:
    config = _recipe(folder, small)
    pipeline.synthesise(folder / "sea", config.sea, label=config.label)
    pipeline.prepare(config)
    store = open_store(config.data.store)
    trained = train_detector(config, store)
    test = np.flatnonzero(trained.splits["test"])
    table = carried_drift(
        trained.model,
        store.isel({names.TIME: slice(test[0], test[-1] + 1)}),
        lengths=2 if small else 8,
    )
    print(_told(table), flush=True)
    for row in table.itertuples():
        yield Claim(
            claim=f"state carried, {row.maps_from} to {row.maps_to} maps after the reset",
            against="windows, on the same maps",
            unit="AUC-PR",
            ours=row.auc_pr_carried,
            theirs=row.auc_pr_windowed,
            note=f"carried minus windowed {row.auc_pr_difference:+.3f} "
            f"[{row.low:+.3f}, {row.high:+.3f}]; probabilities differ by {row.mean_difference:.3g} "
            f"on average, {row.largest_difference:.2g} at most; {row.n_maps} maps, "
            f"{row.n_medicanes} of them medicanes; trained on up to {table['maps_to'][0]} in a row",
        )


def _told(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.4g}")


def _recipe(folder: Path, small: bool) -> Config:
    """The demo's, trained on random runs; or a tiny one."""
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    recipe["train"]["variable_length"] = True
    if small:
        recipe["sea"] |= {"years": 0.42, "base_rate": 0.2, "degrees": 1.0}
        recipe["data"] |= {"degrees": 1.0, "grids": ["sea/grids/*.nc"]}
        recipe["model"] |= {"blocks": [1], "growth_rate": 4, "units": 4}
        recipe["train"] |= {"epochs": 1}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return load_config(path)


if __name__ == "__main__":
    main(measure)
