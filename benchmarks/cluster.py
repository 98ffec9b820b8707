"""Detection on two dask workers against one: disk to ``detections.nc``.

    python -m benchmarks.cluster [--small]

Each worker is a process of one thread, held to one core: it would read ahead on another one, and
the two would share what one had. Where other programs want the cores too, or there are fewer than
two, the ratio says nothing of the cluster.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from benchmarks.claims import Claim, main, side_by_side
from medicane import model as detector
from medicane import pipeline
from medicane.config import Config, make_config
from medicane.normalise import Statistics
from medicane.pipeline import scale_out
from medicane.train.training import training_facts

if TYPE_CHECKING:
    from distributed import LocalCluster

CHANNELS = ("msl_local", "thickness_900_600_local", "thickness_600_300_local")


def configuration(small: bool) -> Config:
    """Three years of an hourly idealised sea and the compact network, or weeks and a tiny one."""
    grid = {"degrees": 1.0 if small else 0.5, "step_hours": 1}
    size = {"blocks": [1], "growth_rate": 2} if small else {"blocks": [3, 6, 12]}
    return make_config(
        {
            "schema_version": 1,
            "sea": {"years": 0.05 if small else 3, "seed": 0, **grid},
            "data": {"grids": "none.nc", "channels": list(CHANNELS), **grid},
            "model": {"growth_rate": 16, **size},
        }
    )


def untrained(config: Config, path: Path) -> None:
    """What a detector answers costs the same whatever it has learnt."""
    statistics = Statistics(CHANNELS, np.zeros(len(CHANNELS)), np.full(len(CHANNELS), 100.0), 1)
    network = detector.build_detector(
        config, statistics, facts=training_facts(config, xr.Dataset())
    )
    detector.set_calibration(network, temperature=1.0, threshold=0.9)
    network.save(path)


def a_core_each(cluster: LocalCluster) -> str:
    """Hold the workers of a cluster to a core each, from the first; the scheduler's address."""
    cores = sorted(os.sched_getaffinity(0))
    with cluster.get_client() as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        for number, worker in enumerate(workers):
            client.run(hold_to, cores[number % len(cores)], workers=[worker])
    return str(cluster.scheduler_address)


def hold_to(core: int) -> None:
    """This process, with the threads that it has and all that they will start."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def measure(small: bool) -> Iterator[Claim]:
    """Two workers against one, one thread each."""
    from distributed import LocalCluster

    if small:
        scale_out.BLOCK = 50
    config = configuration(small)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sea = pipeline.synthesise(folder / "sea", config.sea)
        untrained(config, folder / "detector.keras")

        def on(address: str) -> Callable[[], float]:
            def work() -> float:
                out = folder / "out"
                shutil.rmtree(out, ignore_errors=True)
                done = pipeline.detect(
                    [sea.grids_glob],
                    model=str(folder / "detector.keras"),
                    out=out,
                    scheduler=address,
                )
                return done.n_maps

            work()  # the workers start TensorFlow and trace the network
            return work

        processes = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with (
            LocalCluster(n_workers=2, **processes) as two,
            LocalCluster(n_workers=1, **processes) as one,
        ):
            yield side_by_side(
                on(a_core_each(two)),
                on(a_core_each(one)),
                claim="detection on two dask workers of a core each, disk to detections.nc",
                against="the same on one worker",
                unit="maps/s",
                target=1.8,
                rounds=1 if small else 3,
                note="processes on this machine; hourly maps in monthly files, blocks of "
                f"{scale_out.BLOCK} maps, compact network; opening the files, which each worker "
                "does, is in it",
            )


if __name__ == "__main__":
    main(measure)
