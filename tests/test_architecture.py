"""The floors of the house: imports go down only, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "medicane"

#: As in ARCHITECTURE.md; a room may import rooms of lower floors.
FLOORS = {
    0: ("errors", "names", "config", "remote"),
    1: ("grids", "standardise", "labels", "packing", "phase_space"),
    2: ("synthetic", "sequences", "channels", "normalise"),
    3: ("store", "batches", "model", "runtime", "folds"),
    4: ("fetch", "predict", "evaluate", "attribution"),
    5: ("detections", "streaming", "train", "report"),
    6: ("places", "notices", "experiments"),
    7: ("pipeline",),
    8: ("cli",),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
#: Among themselves, the rooms of floor 0 stand in this order.
GROUND = ("errors", "names", "config", "remote")


def sources() -> list[tuple[str, Path]]:
    """(room, file) of every module of the package, the doors of the package itself left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__", "data"):
            found.append((parts[0], path))
    return found


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names of all modules that a file imports, ``from a import b`` as ``a.b``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _at_import_time(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not inside functions or TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def rooms_imported(path: Path) -> set[str]:
    return {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("medicane.") and not name.startswith("medicane.__")
    }


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in sources()} == set(FLOOR)


@pytest.mark.parametrize(
    ("room", "path"), sources(), ids=lambda value: value if isinstance(value, str) else value.stem
)
def test_imports_go_down(room: str, path: Path) -> None:
    for other in rooms_imported(path) - {room}:
        assert other in FLOOR, f"{path.name} imports {other}, which is no room"
        if FLOOR[room] == FLOOR[other] == 0:
            assert GROUND.index(other) < GROUND.index(room), f"{room} imports {other}"
        else:
            assert FLOOR[other] < FLOOR[room], (
                f"{room} (floor {FLOOR[room]}) imports {other} ({FLOOR[other]})"
            )


def test_only_flows_import_prefect_and_only_experiments_mlflow() -> None:
    for room, path in sources():
        used = {name.split(".")[0] for name in imports(path)}
        assert "prefect" not in used, path
        assert "mlflow" not in used or room == "experiments", path
        # Several workers train together through tf.distribute, and batch normalisation has a kernel
        # of its own; everything else is plain Keras.
        knows = path.parent.name == "train" and path.name in ("workers.py", "fused.py")
        assert "tensorflow" not in used or knows, path


def test_low_floors_know_no_keras() -> None:
    for room, path in sources():
        if FLOOR[room] <= 2:
            used = {name.split(".")[0] for name in imports(path)}
            assert not used & {"keras", "mlflow", "prefect"}, path


def test_nothing_imports_flows_or_notebooks() -> None:
    for _, path in sources():
        assert not {n.split(".")[0] for n in imports(path)} & {"flows", "notebooks", "tests"}, path


def test_flows_hold_no_science() -> None:
    """Flows know the pipeline, the configuration and the command line, and no array library."""
    for path in (ROOT / "flows").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "\nfrom __future__ import annotations" not in text, path
        for name in imports(path):
            assert name.split(".")[0] not in {"numpy", "xarray", "keras", "tensorflow", "mlflow"}, (
                path
            )
            if name.startswith("medicane."):
                assert name.split(".")[1] in {"pipeline", "config", "cli", "errors"}, (path, name)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("medicane", "tensorflow keras mlflow prefect xarray numpy"),
        ("medicane.cli", "tensorflow keras mlflow prefect xarray numpy matplotlib"),
        ("medicane.pipeline", "tensorflow keras mlflow prefect matplotlib"),
        ("medicane.store", "tensorflow keras mlflow prefect matplotlib"),
        ("medicane.synthetic", "tensorflow keras mlflow prefect matplotlib"),
        ("medicane.evaluate", "tensorflow keras mlflow prefect"),
        ("flows.detect", "tensorflow keras mlflow"),
    ],
)
def test_importing_a_room_leaves_the_heavy_ones_alone(module: str, absent: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {absent.split()} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == ""


def test_the_page_on_architecture_names_every_room_and_its_floor() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for room, floor in FLOOR.items():
        assert f"| {floor} | `{room}` |" in page, f"{room} on floor {floor}"
