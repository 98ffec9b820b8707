"""Is a detector as good in a lower precision? Asked of the validation split, and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from medicane import names
from medicane.config import Config
from medicane.errors import InputError
from medicane.pipeline.detection import file_digest
from medicane.pipeline.evaluation import MODEL_NAME, forecast_split, registered_file
from medicane.pipeline.summaries import PrecisionChecked

if TYPE_CHECKING:
    import keras

LOG = logging.getLogger(__name__)

#: The scores that must stay, and the part of their 95 % interval by which they may move.
SCORES = ("auc_pr", "csi", "brier")
ALLOWED = 0.1

#: Training maps that int8 is calibrated on, spread over the whole split.
CALIBRATION_MAPS = 256


def check_precision(
    config: Config,
    *,
    model: str | None = None,
    precision: Literal["bfloat16", "int8"] = "int8",
    seed: int = 0,
) -> PrecisionChecked:
    """Make a detector's encoder in a lower precision and compare its scores on validation.

    It passes if AUC-PR, CSI and Brier score each move by less than a tenth of their 95 % interval.
    int8 is calibrated on training maps. The verdict is kept beside the encoder in the cache, where
    `medicane.pipeline.detect` asks for it, and logged to the model's run as
    ``precision/<precision>.json``.

    Parameters
    ----------
    model
        A model URI or ``.keras`` file; by default the registered ``challenger``.
    precision
        ``int8``, which is refused without this check, or ``bfloat16``.
    seed
        Of the block bootstrap behind the intervals.

    Raises
    ------
    InputError
        If the extra ``fast`` is not installed, OpenVINO cannot run the encoder, the model needs
        other channels than the store holds, or the validation split has no medicane.
    """
    from medicane import evaluate as verification
    from medicane import experiments, runtime
    from medicane import model as detector
    from medicane.sequences import split_times
    from medicane.store import open_store

    store = open_store(config.data.store)
    file = registered_file(config, model)
    network = detector.load_detector(file.path)
    digest = file_digest(file.path)
    masks = split_times(
        store.indexes[names.TIME], store["medicane"].values, store["storm"].values, config=config
    )
    validation = store["medicane"].values[masks["validation"]]
    if not (validation == names.MEDICANE).any():
        raise InputError(
            config.data.store, "the validation split must have a medicane", found="none"
        )
    encoder = detector.encoder_of(network)
    encode = (
        runtime.quantised(
            encoder, digest=digest, maps=calibration_maps(network, store, masks["train"])
        )
        if precision == "int8"
        else runtime.open_encoder(encoder, digest=digest, precision=precision)
    )
    scored = [
        forecast_split(
            config, store, network, masks=masks, split="validation", baselines=False, encode=one
        )[0]
        for one in (None, encode)
    ]
    forecasts = {
        name: one.forecasts[MODEL_NAME]
        for name, one in zip(("float32", precision), scored, strict=True)
    }
    table = verification.compare(
        scored[0].times,
        scored[0].medicane,
        scored[0].storm,
        forecasts=forecasts,
        train_rate=scored[0].train_rate,
        split="validation",
        seed=seed,
    )
    scores = differences(table["models"]["float32"], table["models"][precision])
    both = [np.asarray(forecast.probability) for forecast in forecasts.values()]
    verdict: dict[str, Any] = {
        "passed": all(one["difference"] < one["allowed"] for one in scores.values()),
        "scores": scores,
        "largest_difference_of_probability": float(np.nanmax(np.abs(both[1] - both[0]))),
        "n_maps": len(validation),
        "model_uri": file.pinned,
        "data_digest": str(store.attrs["content_digest"]),
    }
    path = runtime.record_verdict(digest, precision, verdict)
    if file.run_id is not None:
        experiments.reopened_run(file.run_id).log_text(
            path.read_text(encoding="utf-8"), f"precision/{precision}.json"
        )
    return PrecisionChecked(
        model_uri=file.uri,
        precision=precision,
        passed=verdict["passed"],
        scores=scores,
        verdict=str(path),
        run_id=file.run_id,
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What each of `SCORES` was, is, how far it has moved, and how far it may move.

    Parameters
    ----------
    before, after
        Score → ``value``, ``low``, ``high``, as in ``scores.json``.

    Raises
    ------
    InputError
        If a score or its interval is undefined.
    """
    found = {}
    for name in SCORES:
        was, now = before[name], after[name]
        if None in (was["value"], was["low"], was["high"], now["value"]):
            law = "needs a validation split whose scores and intervals are defined"
            raise InputError(f"the check of a precision: {name}", law, found="none")
        found[name] = {
            "before": was["value"],
            "after": now["value"],
            "difference": abs(now["value"] - was["value"]),
            "allowed": ALLOWED * (was["high"] - was["low"]),
        }
    return found


def calibration_maps(
    network: keras.Model, store: xr.Dataset, train: NDArray[np.bool_]
) -> Iterator[NDArray[np.float32]]:
    """Training maps as the encoder takes them, in short runs spread over the whole split.

    Yields
    ------
    NDArray
        (n, H, W, C), or (1, n, H, W, C) for an encoder over time; n is the length of a sequence.
    """
    from medicane import model as detector
    from medicane.sequences import contiguous_periods
    from medicane.store import read_block

    facts = detector.facts_of(network)
    length, over_time = int(facts["length"]), len(detector.encoder_of(network).input_shape) == 5
    positions = np.flatnonzero(train)
    times = store.indexes[names.TIME][positions]
    starts = np.concatenate(
        [
            positions[period.start : period.stop - length + 1]
            for period in contiguous_periods(times, step_hours=int(facts["step_hours"]))
        ]
    )
    count = min(max(CALIBRATION_MAPS // length, 1), len(starts))
    for start in starts[np.linspace(0, len(starts) - 1, count).astype(int)]:
        maps = read_block(store["maps"], int(start), int(start) + length)
        yield maps[None] if over_time else maps
