"""What every test can ask for."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports them: no telemetry, quiet TensorFlow, figures without a screen.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# A test says itself where its runs go; the developer's own servers are not written to.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("PREFECT_API_URL", None)

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.small_project import SmallProject

ROOT = Path(__file__).resolve().parent.parent

#: Files whose slow tests take minutes, the longest first. A worker takes whole files, in this
#: order: one that was taken last would keep all others waiting.
LONGEST = (
    "tests/test_benchmarks.py",
    "tests/flows/test_team.py",
    "tests/flows/test_flows.py",
    "tests/faults/test_kills.py",
    "tests/test_study.py",
    "tests/test_notebooks.py",
    "tests/test_watching.py",
    "tests/test_scale_out.py",
    "tests/test_train_ideas.py",
    "tests/faults/test_tracking_lost.py",
    "tests/test_images.py",
    "tests/test_pipeline.py",
    "tests/test_workers.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports make next to no garbage; looking for it would take a sixth of the collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The `LONGEST` files first, the others as they were; tests of a file keep their order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """What is there when a module starts stays: the collections of its tests need not look at it.

    Opening grids collects garbage, which takes half a second among all that the tests import.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def exported_encoders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoders that tests export are kept in a folder of theirs, by what they start as well."""
    os.environ["MEDICANE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real files; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MEDICANE_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MEDICANE_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """A tiny trained project (see `small_project.SmallProject`), made in 20 s by the first worker
    that needs it, for all.

    It is shared: read it, and write elsewhere. Whoever trains, evaluates with the default ``out``
    or extends the store works on a ``small_project.copy_data(tmp_path)``.
    """
    from tests.small_project import make_small_project

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the whole run
    made = folder / "small_project.pickle"
    with FileLock(folder / ".small_project.lock"):
        if not made.exists():
            project = make_small_project(tmp_path_factory.mktemp("small_project"))
            made.write_bytes(pickle.dumps(project))
        return pickle.loads(made.read_bytes())
