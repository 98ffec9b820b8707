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

from medicane import experiments, pipeline
from medicane.config import load_config
from medicane.evaluate import read_scores

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: What makes the demo's recipe quick to run; the notebooks need its files, not its skill.
SMALLER: dict[str, dict[str, Any]] = {
    "sea": {"years": 1.1, "degrees": 1.0, "base_rate": 0.2},
    "data": {"grids": ["sea/grids/era5_2001-*.nc"], "degrees": 1.0},
    "model": {"growth_rate": 4, "blocks": [1, 1], "units": 8, "attention": "triple"},
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
        patch.setattr("medicane.pipeline.demonstration.RECIPES", folder)
        pipeline.demo(folder / "demo")
    config = yaml.safe_load((folder / "demo" / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["units"] == SMALLER["model"]["units"]  # it was this recipe
    yield folder / "demo"


@pytest.fixture(scope="module")
def demo_of_two(demo: Path) -> Path:
    """The same folder with a second run in it, as the notebook says to make one.

    That of ``MEDICANE_DEMO`` must have one already: a developer's own folder is not written to.
    """
    if "MEDICANE_DEMO" in os.environ:
        if len(experiments.find_runs(load_config(demo / "config.yaml"))) < 2:
            pytest.skip("the demo of MEDICANE_DEMO has one run only")
        return demo
    values = yaml.safe_load((demo / "config.yaml").read_text(encoding="utf-8"))
    values["model"]["rnn"] = "none"
    (demo / "single_map.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    config = load_config(demo / "single_map.yaml")
    pipeline.train(config)
    pipeline.evaluate(config, out=demo / "single_map")
    return demo


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
    assert [path.name for path in NOTEBOOKS] == [
        "01_first_detection.ipynb",
        "02_explore_predictions.ipynb",
        "03_compare_models.ipynb",
    ]


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
def test_explore_predictions_runs(demo: Path) -> None:
    code = run(ROOT / "notebooks" / "02_explore_predictions.ipynb", demo=demo)

    # Maps, probability, phase space, where it looked, channels.
    assert sum(len(shown(cell, "image/png")) for cell in code) == 5
    said = "".join(text for cell in code for text in shown(cell, "stdout"))
    events = read_scores(demo / "scores.json")["models"]["detector"]["events"]
    surest = max(events["storms"], key=lambda storm: storm["max_probability"])
    assert f"{surest['storm']}: a medicane from {surest['start']} to {surest['end']}" in said
    # The model of the registry gives what the forecast holds, to four places.
    (again, before) = re.findall(r"p = (\d\.\d{4}), in forecast.nc (\d\.\d{4})", said)[0]
    assert float(again) == pytest.approx(float(before), abs=2e-4)
    assert float(before) == pytest.approx(surest["max_probability"], abs=1e-4)
    for way in ("hidden in the last map", "hidden in all 12 maps"):
        assert re.search(rf"{way}: \d+\.\d\d of the logit at most, \d+ km from", said)


@pytest.mark.slow
def test_compare_models_runs(demo_of_two: Path) -> None:
    code = run(ROOT / "notebooks" / "03_compare_models.ipynb", demo=demo_of_two)

    assert sum(len(shown(cell, "image/png")) for cell in code) == 2
    assert "reference: compact-gru" in "".join(t for cell in code for t in shown(cell, "stdout"))
    (table,) = [text for cell in code for text in shown(cell, "text/markdown")]
    for name in ("compact-gru", "compact-none"):
        assert f"| {name} |" in table
    tables = [text for cell in code for text in shown(cell, "text/html")]
    assert "model.rnn" in tables[1]  # what differs, and nothing else
    assert "model.units" not in tables[1]
    # The difference is that of the scores that the two evaluations wrote.
    single, first = (
        read_scores(demo_of_two / name / "scores.json")["models"]["detector"]["csi"]["value"]
        for name in ("single_map", ".")
    )
    assert f"<td>{round(single - first, 3):.3f}</td>" in tables[2]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_says_what_is_missing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="run `make demo` first, or set MEDICANE_DEMO"):
        run(path, demo=tmp_path)
