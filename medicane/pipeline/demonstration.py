"""The demo: the whole way on an idealised sea, through the plain functions or through flows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medicane.config import Sea, load_config
from medicane.errors import InputError
from medicane.pipeline.detection import detect
from medicane.pipeline.evaluation import evaluate
from medicane.pipeline.steps import prepare, synthesise, tracking_uri, train
from medicane.pipeline.summaries import Detected, Evaluated, Prepared, Summary, Trained

#: The recipes that travel with a clone.
RECIPES = Path(__file__).resolve().parents[2] / "config"


@dataclass(frozen=True)
class Steps:
    """The steps of the demo. The flows put their own in: the same functions under Prefect."""

    prepare: Callable[[Path], Prepared] = lambda path: prepare(load_config(path))
    train: Callable[[Path], Trained] = lambda path: train(load_config(path))
    evaluate: Callable[[Path], Evaluated] = lambda path: evaluate(load_config(path))
    detect: Callable[[Path, list[str], str, Path], Detected] = lambda path, inputs, model, out: (
        detect(inputs, model=model, out=out, tracking=tracking_uri(load_config(path)))
    )


class Demonstrated(Summary):
    """What the demo made, and how long each step took."""

    config: str
    prepared: Prepared
    trained: Trained
    evaluated: Evaluated
    detected: Detected
    seconds: dict[str, float]


def demo(
    out: Path,
    *,
    seed: int = 0,
    steps: Steps | None = None,
    announce: Callable[[str], None] | None = None,
) -> Demonstrated:
    """The whole way on an idealised sea: synth → prepare → train → evaluate → detect.

    Parameters
    ----------
    out
        A folder of its own; one of an earlier demo is replaced.
    seed
        Seed of the sea and of the training.
    steps
        The steps to go through; by default the plain functions.
    announce
        Called with the name of each step as it begins.

    Raises
    ------
    InputError
        If `out` holds anything that a demo has not made.
    """
    steps, announce = steps or Steps(), announce or (lambda name: None)
    _empty_demo_folder(out)
    recipe = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    recipe["sea"]["seed"] = recipe["train"]["seed"] = seed
    config_file = out / "config.yaml"
    config_file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    config = load_config(config_file)
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        announce(name)
        started = time.monotonic()
        result = step()
        seconds[name] = round(time.monotonic() - started, 1)
        return result

    timed("synth", lambda: synthesise(out / "sea", config.sea, label=config.label))
    prepared = timed("prepare", lambda: steps.prepare(config_file))
    trained = timed("train", lambda: steps.train(config_file))
    evaluated = timed("evaluate", lambda: steps.evaluate(config_file))
    unseen = str(out / "sea" / "grids" / f"era5_{_unseen_year(config.sea)}-*.nc")
    detected = timed(
        "detect",
        lambda: steps.detect(config_file, [unseen], trained.model_uri, out / "detections"),
    )
    return Demonstrated(
        config=str(config_file),
        prepared=prepared,
        trained=trained,
        evaluated=evaluated,
        detected=detected,
        seconds=seconds,
    )


# --------------------------------------------------------------------------------------------------

_DEMO_MARK = ".medicane-demo"


def _empty_demo_folder(out: Path) -> None:
    from medicane.store.commits import writable_folder

    writable_folder(out, where="--out")
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / _DEMO_MARK).exists()):
            raise InputError(
                f"--out {out}",
                "must be a new folder or one of an earlier demo",
                found="other files",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / _DEMO_MARK).touch()


def _unseen_year(sea: Sea) -> int:
    """The last, partial year of the demo's sea: its configuration does not name it."""
    return sea.start_year + int(np.ceil(sea.years)) - 1
