"""Grids that come day by day, and change, before a watch with the tiny trained project's model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from medicane import pipeline
from medicane.config import load_config
from tests.small_project import SETTINGS, SmallProject


class Feed:
    """A folder ``latest/`` of daily files of May 2001, and a configuration that watches it.

    Parameters
    ----------
    folder
        A new folder, or an empty one.
    sections
        Keys of the configuration that differ, e.g. ``watch={"piece": 8}``.
    """

    def __init__(self, folder: Path, project: SmallProject, **sections: dict[str, Any]) -> None:
        self.folder, self.project, self.out = folder, project, folder / "found"
        self.latest = folder / "latest"
        self.latest.mkdir(parents=True)
        values = {
            **SETTINGS,
            "data": {
                **SETTINGS["data"],
                "grids": ["latest/*.nc"],
                "catalogue": str(project.folder / "sea" / "storms.csv"),
            },
            "tracking": {"uri": project.tracking_uri},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        self.config_file = folder / "config.yaml"
        self.config_file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def put(self, *days: int, higher: float = 0.0) -> None:
        """Write the files of some days of May; `higher` Pa are added to pressures in the north."""
        with xr.open_dataset(self.project.new_grids) as month:
            for day in days:
                maps = month.sel(valid_time=f"2001-05-{day:02d}").load()
                maps["msl"].values += higher * (maps["msl"].latitude.values > 40)[:, None]
                part = self.latest / f"{day:02d}.part"
                maps.to_netcdf(part)
                part.replace(part.with_suffix(".nc"))

    def remove(self, *days: int) -> None:
        for day in days:
            (self.latest / f"{day:02d}.nc").unlink()

    def watch(self, **options: Any) -> pipeline.Watched:
        """Run the watch."""
        options = {"model": str(self.project.model_path), "out": self.out, **options}
        return pipeline.watch(load_config(self.config_file), **options)

    def at_once(self) -> Path:
        """The folder of one run over the files there are now, with a store of its own."""
        once = self.folder / "once"
        shutil.rmtree(once, ignore_errors=True)
        values = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        values["data"]["store"] = str(once / "maps.zarr")
        values.pop("watch", None)
        once.mkdir()
        file = self.folder / "once.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        model = str(self.project.model_path)
        pipeline.watch(load_config(file), model=model, out=once / "found")
        return once

    @property
    def command(self) -> list[str]:
        """The arguments of ``medicane`` that watch."""
        model = str(self.project.model_path)
        out = str(self.out)
        return ["watch", "--config", str(self.config_file), "--model", model, "--out", out]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
