"""The notebooks: committed clean, and running from top to bottom on what the demo leaves behind."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml
from nbclient import NotebookClient

from medicane import pipeline

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: What makes the demo's recipe quick to run; the notebooks need its files, not its skill.
SMALLER: dict[str, dict[str, Any]] = {
    "sea": {"years": 1.1, "degrees": 1.0, "base_rate": 0.2},
    "data": {"grids": ["sea/grids/era5_2001-*.nc"], "degrees": 1.0},
    "model": {"growth_rate": 4, "blocks": [1, 1], "units": 8},
    "train": {"epochs": 1},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demo's folder: that of ``MEDICANE_DEMO``, else a small one made by the demo itself."""
    if "MEDICANE_DEMO" in os.environ:
        yield Path(os.environ["MEDICANE_DEMO"]).resolve()
        return
    folder = tmp_path_factory.mktemp("notebooks")
    recipe = yaml.safe_load((pipeline.RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    for section, values in SMALLER.items():
        recipe[section] |= values
    (folder / "demo.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "RECIPES", folder)
        pipeline.demo(folder / "demo")
    yield folder / "demo"


def cells(path: Path, kind: str) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def run(path: Path, *, demo: Path) -> list[Any]:
    """The code cells of a notebook after it ran in a kernel of its own, beside its file."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "MEDICANE_DEMO": str(demo)}
    environment.pop("MPLBACKEND", None)  # figures belong into the notebook, as for a reader
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env=environment)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any, kind: str) -> list[str]:
    """What a cell shows as `kind`, e.g. ``image/png``, or ``stdout``."""
    return [
        output["text"] if output.output_type == "stream" else output["data"][kind]
        for output in cell.outputs
        if kind in (output.get("name"), *output.get("data", {}))
    ]


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["01_first_detection.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCommitted:
    def test_no_outputs(self, path: Path) -> None:
        for cell in cells(path, "code"):
            assert cell.outputs == [], cell.source
            assert cell.execution_count is None, cell.source

    def test_no_paths_of_one_machine(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"/(?:home|root|tmp|work|Users|mnt)/", text) == []

    def test_plain_python_in_short_cells(self, path: Path) -> None:
        for cell in cells(path, "code"):
            ast.parse(cell.source)  # no magics: the cells can be pasted into a script
            assert len(cell.source.splitlines()) <= 40, cell.source

    def test_told_in_words(self, path: Path) -> None:
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# ")
        assert len(cells(path, "markdown")) >= len(cells(path, "code")) // 2

    def test_any_kernel_of_the_environment(self, path: Path) -> None:
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@pytest.mark.slow
def test_first_detection_runs(demo: Path) -> None:
    code = run(ROOT / "notebooks" / "01_first_detection.ipynb", demo=demo)

    assert sum(len(shown(cell, "image/png")) for cell in code) == 5
    said = "".join(text for cell in code for text in shown(cell, "stdout"))
    assert "the numbers agree" in said
    assert "base rate" in said
    # The tables hold what the files hold, not leftovers.
    tables = "".join(text for cell in code for text in shown(cell, "text/html"))
    events = pd.read_csv(demo / "detections" / "events.csv")
    assert f"{events['max_probability'].max():.4f}".rstrip("0") in tables
    assert "phase_space" in tables


@pytest.mark.slow
def test_first_detection_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="run `make demo` first, or set MEDICANE_DEMO"):
        run(ROOT / "notebooks" / "01_first_detection.ipynb", demo=tmp_path)
