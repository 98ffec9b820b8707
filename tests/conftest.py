"""What every test can ask for."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports them: no telemetry, quiet TensorFlow, figures without a screen.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real files; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MEDICANE_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MEDICANE_REAL_DATA)")
    return folder
