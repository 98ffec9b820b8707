"""Peak memory and speed of `prepare` for 1, 5 and 20 years of 6-hourly maps.

    python benchmarks/prepare_memory.py [--years 1 5 20] [--keep DIR]

One month of the idealised sea is generated (0.5°, ERA5 dialect, eight levels) and written again
under the dates of every month, so that the times really advance and each month is a file of its
own; only the weather repeats. Each record is then prepared by a process of its own, whose peak
resident set is read from the kernel. One line of JSON a record: years, files, maps, megabytes of
sources and store, seconds, maps a second, peak MiB, and how much of it importing medicane.store
does not account for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from medicane.config import Sea
from medicane.synthetic import build_sea

FIRST_YEAR = 2001

PREPARE = """
import json, sys, time
from medicane.config import make_config
from medicane.store import write_store

def peak_mib():
    # Not getrusage: its maximum includes the process that this one was forked from.
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

imported = peak_mib()
begun = time.perf_counter()
done = write_store(make_config(json.loads(sys.argv[1])))
seconds = time.perf_counter() - begun
print(json.dumps({"maps": done.n_maps, "seconds": round(seconds, 1),
                  "maps_per_s": round(done.n_maps / seconds),
                  "peak_mib": round(peak_mib()),
                  "above_imports_mib": round(peak_mib() - imported)}))
"""


def month_files(folder: Path, years: int, pattern: xr.Dataset) -> list[Path]:
    """Write the pattern under the dates of every month that is not there yet."""
    time = "valid_time" if "valid_time" in pattern.dims else "time"
    files = []
    for month in np.arange(f"{FIRST_YEAR}-01", f"{FIRST_YEAR + years}-01", dtype="datetime64[M]"):
        file = folder / f"{month}.nc"
        files.append(file)
        if file.exists():
            continue
        times = np.arange(month, month + 1, dtype="datetime64[6h]").astype("datetime64[ns]")
        dated = pattern.isel({time: np.arange(times.size) % pattern.sizes[time]})
        dated = dated.assign_coords({time: (time, times, pattern[time].attrs)})
        dated.to_netcdf(file)
    return files


def megabytes(paths: list[Path]) -> int:
    files = [f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
    return round(sum(f.stat().st_size for f in files) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--years", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument(
        "--keep", type=Path, help="folder for the files; by default a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sea = build_sea(folder / "sea", Sea(years=1 / 12, start_year=FIRST_YEAR, seed=1))
        source = sorted((folder / "sea" / "grids").glob("*.nc"))[0]
        with xr.open_dataset(source) as opened:
            pattern = opened.load()
        for years in options.years:
            grids = folder / f"grids-{years}"
            grids.mkdir(exist_ok=True)
            files = month_files(grids, years, pattern)
            store = folder / f"maps-{years}.zarr"
            values = {
                "schema_version": 1,
                "data": {
                    "grids": str(grids / "*.nc"),
                    "catalogue": str(sea.catalogue),
                    "store": str(store),
                },
            }
            done = subprocess.run(
                [sys.executable, "-c", PREPARE, json.dumps(values)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            record = {
                "years": years,
                "files": len(files),
                **json.loads(done.stdout),
                "source_megabytes": megabytes(files),
                "store_megabytes": megabytes([store]),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
