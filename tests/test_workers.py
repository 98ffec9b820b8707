"""Several workers: the losses of one, one clear line where something is missing, and 16 bits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

from medicane import model as detector
from medicane import pipeline
from medicane.batches import SequenceBatches
from medicane.config import load_config
from medicane.errors import InputError
from medicane.train.workers import WorkerLostError, meet, named_workers
from tests.conftest import ROOT
from tests.small_networks import STATISTICS, answers, configuration, standard_maps
from tests.small_project import SmallProject


def addresses(count: int) -> list[str]:
    """Addresses on this machine that are free."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [f"127.0.0.1:{door.getsockname()[1]}" for door in held]
    for door in held:
        door.close()
    return found


def told(workers: list[str], rank: int) -> str:
    """``TF_CONFIG`` of a worker."""
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})


def start(config: Path, workers: list[str], rank: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "medicane", "train", "--config", str(config)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CONFIG": told(workers, rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(config: Path) -> dict[str, list[float]]:
    """What the only run of a project tells of its epochs."""
    settings = load_config(config)
    client = mlflow.MlflowClient(pipeline.tracking_uri(settings))
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        name: [m.value for m in client.get_metric_history(run.info.run_id, name)]
        for name in ("loss", "val_loss")
    }


@pytest.mark.slow
def test_two_workers_give_the_losses_of_one(small_project: SmallProject, tmp_path: Path) -> None:
    """With dropout off, up to the order of sums; the optimiser makes 1e-6 of them 1e-4.

    Each unpacks its maps itself, which changes nothing.
    """
    same: dict[str, Any] = {"model": {"dropout": 0.0}}
    one = small_project.copy_data(tmp_path / "one", **same)
    pipeline.train(load_config(one))
    several = {"workers": 2, "decode": "device"}
    two = small_project.copy_data(tmp_path / "two", train=several, **same)
    named = addresses(2)
    both = [start(two, named, rank) for rank in (0, 1)]
    ended = [worker.communicate(timeout=500) for worker in both]
    assert [worker.returncode for worker in both] == [0, 0], ended
    assert "models:/medicane/" in ended[0][0]
    assert "as worker 1" in ended[1][0]
    alone, together = losses(one), losses(two)
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-3, err_msg=name)
    assert not (tmp_path / "two" / "training.checkpoint.npz").exists()


@pytest.mark.slow
def test_a_lost_worker_ends_the_other_with_one_line(
    small_project: SmallProject, tmp_path: Path
) -> None:
    long = {"workers": 2, "epochs": 500, "patience": 500}
    config = small_project.copy_data(tmp_path, train=long)
    named = addresses(2)
    first, second = (start(config, named, rank) for rank in (0, 1))
    checkpoint = tmp_path / "training.checkpoint.npz"
    while not checkpoint.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=300)
    assert first.returncode == 1, err
    assert "WorkerLostError: a worker ended or cannot be reached; start all of them again" in err
    assert checkpoint.exists()


def test_workers_that_do_not_come_are_named() -> None:
    named = addresses(3)
    with pytest.raises(WorkerLostError, match=rf"not there: 1 \({named[1]}\), 2 \({named[2]}\)$"):
        meet(named, 0, patience=0.2)
    with pytest.raises(WorkerLostError, match=rf"0 \({named[0]}\), or it still waits for others"):
        meet(named, 1, patience=0.2)
    with (
        socket.create_server(("127.0.0.1", int(named[0].split(":")[1]))),
        pytest.raises(InputError, match=r"must be an address of this machine, and free"),
    ):
        meet(named, 0, patience=0.2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "not set"),
        ("worker 1 of 2", "worker 1 of 2"),
        (told(["a:1", "b:2", "c:3"], 0), "3 of them"),
        (told(["a:1", "a:1"], 0), "1 of them"),
        (told(["a:1", "b:2"], 2), '"index": 2'),
        (told(["a:1", "b"], 0), '"b"'),
    ],
)
def test_the_cluster_must_be_told(
    text: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=r"train\.workers: TF_CONFIG: must name 2 workers") as said:
        named_workers(2)
    assert found in str(said.value)


def test_the_cluster_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", told(["a:1", "b:2"], 1))
    assert named_workers(2) == (["a:1", "b:2"], 1)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_shares_make_up_the_batch(workers: int) -> None:
    """Mean over workers of each share's weighted mean is that of the batch, whatever its size."""
    import xarray as xr

    n, length = 26, 10
    maps = xr.DataArray(
        np.random.default_rng(1).normal(size=(n, 1, 2, 3)).astype(np.float32),
        dims=("time", "channel", "latitude", "longitude"),
    )
    rows = np.arange(n - length + 1)[:, None] + np.arange(length)
    about: dict[str, Any] = {"labels": np.arange(n) % 3 - 1, "batch_size": 7, "seed": 3}
    whole = SequenceBatches(maps, rows, **about)
    shares = [
        SequenceBatches(maps, rows, share=(number, workers), **about) for number in range(workers)
    ]
    assert len(whole[2][1]) == 3  # fewer than five workers
    for index in range(len(whole)):
        means = [
            np.mean(weights[..., None] * (labels - 0.3) ** 2)
            for _, labels, weights in (share[index] for share in shares)
        ]
        inputs, labels, weights = whole[index]
        assert np.mean(means) == pytest.approx(np.mean(weights[..., None] * (labels - 0.3) ** 2))
        if len(labels) >= workers:
            np.testing.assert_array_equal(
                np.concatenate([share[index][0] for share in shares]), inputs
            )


@pytest.mark.parametrize("model", [{}, {"attention": "triple", "blocks": [1, 1]}])
def test_an_encoder_of_16_bits_has_the_weights_and_the_door_of_32(model: dict[str, Any]) -> None:
    usual = keras.config.dtype_policy().name
    built = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(4)
        built[precision] = detector.build_detector(
            configuration(**model), STATISTICS, precision=precision
        )
    whole, short = built["float32"], built["mixed_bfloat16"]
    assert keras.config.dtype_policy().name == usual
    for a, b in zip(whole.get_weights(), short.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    maps = standard_maps(2, 10, 8, 9)
    difference = np.abs(answers(short, maps) - answers(whole, maps))
    assert 0 < difference.max() < 0.02
    assert short(maps).dtype == "float32"
    # A pressure far from zero: 16 bits at the door would lose it.
    encoder = detector.encoder_of(short)
    door = keras.Model(encoder.input, encoder.get_layer("normalisation").output)
    far = maps[0] + 1e5
    expected = (far - STATISTICS.mean) / STATISTICS.std
    np.testing.assert_allclose(np.asarray(door(far)), expected, rtol=1e-5)
