"""Training: it learns, it repeats itself, it resumes, it refuses what cannot be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import model as detector
from medicane.config import Config, make_config
from medicane.errors import InputError
from medicane.predict import predict
from medicane.train import remove_checkpoint, train_detector
from medicane.train.members import training_batches, windows_per_block
from tests.conftest import ROOT

CHANNELS = ("msl_local", "u10")


def configuration(**sections: Any) -> Config:
    values: dict[str, Any] = {
        "schema_version": 1,
        "data": {"grids": "none.nc", "channels": list(CHANNELS)},
        "sequences": {"length": 10, "stride": 2},
        "model": {"blocks": [1, 1], "growth_rate": 4, "units": 8, "dropout": 0.1},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "seed": 5},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return make_config(values)


@pytest.fixture(scope="module")
def store() -> xr.Dataset:
    """400 maps of noise; in 16 storms of six maps each a warm blob stands somewhere."""
    rng = np.random.default_rng(7)
    n, height, width = 400, 8, 10
    maps = rng.normal(size=(n, 2, height, width)).astype(np.float32)
    medicane, storm = np.zeros(n, np.int8), np.full(n, "", dtype="<U8")
    for number, start in enumerate(range(12, n - 10, 25)):
        life = slice(start, start + 6)
        medicane[life], storm[life] = 1, f"storm{number}"
        y, x = rng.integers(1, height - 2), rng.integers(1, width - 2)
        maps[life, 0, y : y + 2, x : x + 2] -= 6
    medicane[18] = -1  # an hour that is neither
    return xr.Dataset(
        {
            "maps": (("time", "channel", "latitude", "longitude"), maps),
            "medicane": ("time", medicane),
            "storm": ("time", storm),
        },
        coords={
            "time": pd.date_range("2001-01-01", periods=n, freq="6h").as_unit("ns"),
            "channel": list(CHANNELS),
            "latitude": np.linspace(40, 36.5, height),
            "longitude": np.linspace(10, 14.5, width),
        },
        attrs={"content_digest": "sha256:0123", "idealised": 1},
    )


def test_it_learns_and_calibrates(store: xr.Dataset) -> None:
    epochs = []
    trained = train_detector(
        configuration(train={"epochs": 12}),
        store,
        on_epoch=lambda n, s: epochs.append((n, dict(s))),
    )
    assert trained.history["val_auc_pr"].max() > 0.8  # no skill: the base rate, about 0.2
    assert [n for n, _ in epochs] == trained.history["epoch"].tolist()
    assert {"loss", "val_loss", "val_auc_pr", "learning_rate"} <= set(epochs[0][1])
    facts = detector.facts_of(trained.model)
    assert facts["threshold"] == trained.threshold
    assert facts["temperature"] == pytest.approx(trained.temperature)
    assert facts["label"]["version"] == "medicane-1"
    assert facts["data_digest"] == "sha256:0123"
    assert facts["idealised"] is True
    assert facts["smallest_grid"] == 8
    assert facts["longest_sequence"] == facts["length"] == 10
    # The model that comes back is the one of the best epoch, calibrated.
    validation = store.isel(time=np.flatnonzero(trained.splits["validation"]))
    found = predict(trained.model, validation["maps"])
    known = validation["medicane"].values >= 0
    from sklearn.metrics import average_precision_score

    score = average_precision_score(validation["medicane"].values[known], found["logit"][known])
    best = trained.history.set_index("epoch")["val_auc_pr"]
    assert score == pytest.approx(best.loc[trained.best_epoch], abs=1e-6)
    assert best.loc[trained.best_epoch] == best.max()


def test_statistics_are_those_of_the_training_split(store: xr.Dataset) -> None:
    trained = train_detector(configuration(train={"epochs": 1}), store)
    values = store["maps"].values[trained.splits["train"]]
    np.testing.assert_allclose(trained.statistics.mean, values.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(trained.statistics.std, values.std((0, 2, 3)), atol=1e-6)
    normalisation = detector.encoder_of(trained.model).get_layer("normalisation")
    np.testing.assert_allclose(np.ravel(normalisation.mean), values.mean((0, 2, 3)), atol=1e-6)


def test_one_seed_one_result(store: xr.Dataset) -> None:
    first, second = (train_detector(configuration(), store) for _ in range(2))
    pd.testing.assert_frame_equal(first.history, second.history)
    for a, b in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = train_detector(configuration(train={"seed": 6}), store)
    assert not first.history["loss"].equals(other.history["loss"])


class PowerCutError(Exception):
    """The power fails."""


@pytest.mark.parametrize("block", [1, 6])
def test_a_cut_training_goes_on_as_if_nothing_had_been(
    store: xr.Dataset, tmp_path: Path, block: int
) -> None:
    config = configuration(train={"epochs": 4, "block": block})
    whole = train_detector(config, store)
    checkpoint = tmp_path / "training.npz"

    def cut(epoch: int, scores: Any) -> None:
        if epoch == 2:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train_detector(config, store, checkpoint=checkpoint, on_epoch=cut)
    assert checkpoint.exists()
    resumed = []
    again = train_detector(
        config, store, checkpoint=checkpoint, on_epoch=lambda n, s: resumed.append(n)
    )
    assert resumed == [3, 4]
    pd.testing.assert_frame_equal(again.history, whole.history)
    for a, b in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    remove_checkpoint(checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_recipe_is_not_resumed(
    store: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "training.npz"

    def cut(epoch: int, scores: Any) -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        train_detector(configuration(), store, checkpoint=checkpoint, on_epoch=cut)
    epochs: list[int] = []
    train_detector(
        configuration(train={"l2": 0.5, "epochs": 2}),
        store,
        checkpoint=checkpoint,
        on_epoch=lambda n, s: epochs.append(n),
    )
    assert epochs == [1, 2]
    assert "of another recipe or other data, not resumed" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_checkpoint_is_told_and_training_begins_anew(
    store: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    checkpoint = tmp_path / "training.npz"

    def cut(epoch: int, scores: Any) -> None:
        raise PowerCutError

    config = configuration(train={"epochs": 2})
    with pytest.raises(PowerCutError):
        train_detector(config, store, checkpoint=checkpoint, on_epoch=cut)
    content = bytearray(checkpoint.read_bytes())
    half = len(content) // 2
    content[half] ^= 255
    damaged = {"cut": content[:half], "flipped": content, "text": b"epoch 1"}
    checkpoint.write_bytes(damaged[damage])
    epochs: list[int] = []
    train_detector(config, store, checkpoint=checkpoint, on_epoch=lambda n, s: epochs.append(n))
    assert epochs == [1, 2]
    assert "not a whole checkpoint, training begins anew" in caplog.text


def test_early_stopping_keeps_the_best(store: xr.Dataset) -> None:
    config = configuration(train={"epochs": 30, "patience": 2, "learning_rate": 0.02})
    trained = train_detector(config, store)
    assert len(trained.history) < 30
    assert trained.best_epoch == len(trained.history) - 2


def test_sampled_negatives_are_undone_by_the_prior(store: xr.Dataset) -> None:
    for block in (1, 4):
        sampled = {"negatives_per_positive": 0.1, "epochs": 1, "block": block}
        config = configuration(train=sampled)
        trained = train_detector(config, store)
        offset = detector.facts_of(trained.model)["prior_offset"]
        assert offset > 0
        assert offset == training_batches(config, store, trained.splits["train"]).prior_offset


def test_a_configured_threshold_stands(store: xr.Dataset) -> None:
    trained = train_detector(configuration(detect={"threshold": 0.123}, train={"epochs": 1}), store)
    assert trained.threshold == 0.123


def test_lstm_and_sequence_mode(store: xr.Dataset) -> None:
    trained = train_detector(configuration(model={"rnn": "lstm"}, train={"epochs": 1}), store)
    assert np.isfinite(trained.history["loss"]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": {"stride": 10}},
        {"model": {"encoder": "c3d", "rnn": "none"}},
        {"model": {"encoder": "r2plus1d", "rnn": "none"}},
        {"model": {"label_feedback": True}},
        {"train": {"shuffled_order": True}},
        {"train": {"variable_length": True}},
        {"train": {"curriculum": "unroll"}},
        {"train": {"block": 1}},
    ],
)
def test_where_windows_are_trained_on_one_by_one(change: Any, store: xr.Dataset) -> None:
    config = configuration(**change)
    assert windows_per_block(config) == 1
    inputs, labels, _ = training_batches(config, store, np.arange(400) < 240)[0]
    maps = inputs["maps"] if isinstance(inputs, dict) else inputs
    assert maps.shape[:2] == labels.shape[:2]


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"rnn": "tcn"},
        {"rnn": "none"},
        {"bidirectional": True},
        {"attention": "triple"},
        {"encoder": "densenet121"},
    ],
)
def test_where_maps_are_encoded_once_for_all_windows(model: Any, store: xr.Dataset) -> None:
    config = configuration(model=model)
    assert windows_per_block(config) == configuration().train.block == 32
    maps, labels, weights = training_batches(config, store, np.arange(400) < 240)[0]
    assert maps.shape[1] == 10 + 31 * 2
    assert labels.shape[1:] == (32, 10, 1)
    assert weights.shape[1:] == (32, 10)


class TestRefusals:
    def test_no_medicane_to_learn_from(self, store: xr.Dataset) -> None:
        empty = store.assign(
            medicane=("time", np.zeros(400, np.int8)), storm=("time", np.full(400, ""))
        )
        with pytest.raises(
            InputError,
            match=r"splits\.train: must hold at least one medicane map; found none among",
        ):
            train_detector(configuration(), empty)

    def test_other_channels_than_configured(self, store: xr.Dataset) -> None:
        config = configuration(data={"grids": "x.nc", "channels": ["msl_local", "v10"]})
        with pytest.raises(InputError, match=r"channels: must be those of data\.channels"):
            train_detector(config, store)

    def test_grid_smaller_than_the_encoder(self, store: xr.Dataset) -> None:
        config = configuration(model={"blocks": [1, 1, 1, 1]})
        with pytest.raises(
            InputError, match="needs a grid of at least 32 x 32 cells; found 8 x 10"
        ):
            train_detector(config, store)
        with pytest.raises(
            InputError, match="densenet121 encoder needs a grid of at least 32 x 32"
        ):
            train_detector(configuration(model={"encoder": "densenet121"}), store)

    def test_packed_maps_that_are_not_there(self, store: xr.Dataset) -> None:
        config = configuration(train={"decode": "device"})
        with pytest.raises(
            InputError, match=r"train\.decode: device needs the packed maps of a map"
        ):
            train_detector(config, store)

    def test_not_one_whole_sequence(self, store: xr.Dataset) -> None:
        # A gap after every eighth map: no window of ten.
        shift = np.repeat(np.arange(50), 8) * np.timedelta64(10, "D")
        broken = store.assign_coords(time=store["time"].values + shift)
        with pytest.raises(InputError, match=r"splits\.train.*10"):
            train_detector(configuration(), broken)

    def test_diverging_training_is_told(self, store: xr.Dataset) -> None:
        bad = store.copy(deep=True)
        bad["maps"].values[50:60] = np.inf
        with pytest.raises((InputError, ArithmeticError)):
            train_detector(configuration(), bad)


def test_keras_backend_is_not_imported_by_the_package() -> None:
    """TensorFlow stays behind Keras: for the sums of several workers, and one fused kernel."""
    naming = [
        source.name
        for source in sorted((ROOT / "medicane").rglob("*.py"))
        if "import tensorflow" in source.read_text(encoding="utf-8")
    ]
    assert naming == ["fused.py", "workers.py"]
    assert keras.backend.backend() in {"tensorflow", "jax", "torch"}
