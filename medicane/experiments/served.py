"""The loader that MLflow calls when a registered detector is served or loaded as ``pyfunc``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


class _Served:
    """What ``mlflow.pyfunc.load_model`` returns: maps (B, T, H, W, C) → probability (B, T, 1)."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model

    def predict(self, data: Any, params: Any = None) -> np.ndarray:
        maps = data["maps"] if isinstance(data, Mapping) else data
        return np.asarray(self.model.predict_on_batch(np.asarray(maps, dtype=np.float32)))


def _load_pyfunc(path: str) -> _Served:
    from medicane.model import load_detector

    found = Path(path)
    return _Served(load_detector(found if found.is_file() else next(found.glob("*.keras"))))
