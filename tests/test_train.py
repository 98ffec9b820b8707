"""Training: it learns, it repeats itself, it resumes, it refuses what cannot be trained on."""

from __future__ import annotations

import shutil
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
from medicane.train import TrainedDetector, remove_checkpoint, train_detector
from medicane.train.members import training_batches, windows_per_block
from tests.conftest import ROOT

CHANNELS = ("msl_local", "u10")


def configuration(**sections: Any) -> Config:
    values: dict[str, Any] = {
        "schema_version": 1,
        "data": {"grids": "none.nc", "channels": list(CHANNELS)},
        "sequences": {"length": 10, "stride": 2},
        "model": {"blocks": [1], "growth_rate": 4, "units": 8, "dropout": 0.1},
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


@pytest.fixture(scope="module")
def undisturbed(store: xr.Dataset) -> TrainedDetector:
    """A training from the first epoch to the last; read it only."""
    return train_detector(configuration(), store)


class PowerCutError(Exception):
    """The power fails."""


def cut_after(epoch: int, config: Config, store: xr.Dataset, checkpoint: Path) -> list[Any]:
    """Train until the power fails at the end of an epoch; the scores of each epoch."""
    seen: list[Any] = []

    def on_epoch(number: int, scores: Any) -> None:
        seen.append(dict(scores))
        if number == epoch:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train_detector(config, store, checkpoint=checkpoint, on_epoch=on_epoch)
    return seen


@pytest.fixture(scope="module")
def cut(store: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the undisturbed training, cut after its second epoch; copy it."""
    checkpoint = tmp_path_factory.mktemp("cut") / "training.npz"
    cut_after(2, configuration(), store, checkpoint)
    return checkpoint


def first_epoch(config: Config, store: xr.Dataset, checkpoint: Path) -> int:
    """Where a training would begin that finds a checkpoint (from 1); nothing is fitted."""
    begun: list[int] = []

    def fit(model: keras.Model, *_: Any, initial_epoch: int, **__: Any) -> None:
        begun.append(initial_epoch + 1)
        raise PowerCutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", fit)
        with pytest.raises(PowerCutError):
            train_detector(config, store, checkpoint=checkpoint)
    return begun[0]


def assert_same(one: TrainedDetector, two: TrainedDetector) -> None:
    """To the bit."""
    pd.testing.assert_frame_equal(one.history, two.history)
    assert one.threshold == two.threshold
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_prior_is_undone(trained: TrainedDetector, config: Config, store: xr.Dataset) -> None:
    """What the sampling of negatives added to the logits is taken off by the detector."""
    offset = detector.facts_of(trained.model)["prior_offset"]
    assert offset > 0
    assert offset == training_batches(config, store, trained.splits["train"]).prior_offset


def test_it_learns_calibrates_and_keeps_the_best(store: xr.Dataset) -> None:
    epochs = []
    trained = train_detector(
        configuration(train={"epochs": 60, "patience": 4}),
        store,
        on_epoch=lambda n, s: epochs.append((n, dict(s))),
    )
    assert len(trained.history) < 60
    assert trained.best_epoch == len(trained.history) - 4
    assert trained.history["val_auc_pr"].max() > 0.8  # no skill: the base rate, about 0.2
    assert [n for n, _ in epochs] == trained.history["epoch"].tolist()
    assert {"loss", "val_loss", "val_auc_pr", "learning_rate"} <= set(epochs[0][1])
    facts = detector.facts_of(trained.model)
    assert facts["threshold"] == trained.threshold
    assert facts["temperature"] == pytest.approx(trained.temperature)
    assert facts["label"]["version"] == "medicane-1"
    assert facts["data_digest"] == "sha256:0123"
    assert facts["idealised"] is True
    assert facts["smallest_grid"] == 4
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


def test_statistics_are_those_of_the_training_split(
    store: xr.Dataset, undisturbed: TrainedDetector
) -> None:
    values = store["maps"].values[undisturbed.splits["train"]]
    np.testing.assert_allclose(undisturbed.statistics.mean, values.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(undisturbed.statistics.std, values.std((0, 2, 3)), atol=1e-6)
    normalisation = detector.encoder_of(undisturbed.model).get_layer("normalisation")
    np.testing.assert_allclose(np.ravel(normalisation.mean), values.mean((0, 2, 3)), atol=1e-6)


def test_a_cut_training_goes_on_as_if_nothing_had_been(
    store: xr.Dataset, undisturbed: TrainedDetector, cut: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copy(cut, tmp_path))
    resumed = []
    again = train_detector(
        configuration(), store, checkpoint=checkpoint, on_epoch=lambda n, s: resumed.append(n)
    )
    assert resumed == [3]
    assert_same(again, undisturbed)
    assert checkpoint.exists()
    remove_checkpoint(checkpoint)
    assert not list(tmp_path.iterdir())


def test_so_does_one_of_an_lstm_on_sampled_windows_one_by_one(
    store: xr.Dataset, tmp_path: Path
) -> None:
    config = configuration(
        model={"rnn": "lstm"}, train={"epochs": 2, "block": 1, "negatives_per_positive": 0.1}
    )
    whole = train_detector(config, store)
    assert_prior_is_undone(whole, config, store)
    assert np.isfinite(whole.history["loss"]).all()
    checkpoint = tmp_path / "training.npz"
    cut_after(1, config, store, checkpoint)
    assert_same(train_detector(config, store, checkpoint=checkpoint), whole)


def test_a_checkpoint_of_another_recipe_is_not_resumed(
    store: xr.Dataset, undisturbed: TrainedDetector, cut: Path, tmp_path: Path, caplog: Any
) -> None:
    assert first_epoch(configuration(), store, cut) == 3
    assert "not resumed" not in caplog.text
    for sections in ({"train": {"l2": 0.5}}, {"model": {"units": 9}}, {"sequences": {"stride": 5}}):
        assert first_epoch(configuration(**sections), store, cut) == 1
        assert "of another recipe or other data, not resumed" in caplog.text
        caplog.clear()
    assert first_epoch(configuration(), store.assign_attrs(content_digest="sha256:4"), cut) == 1
    # Another seed is another recipe, and another training.
    checkpoint = Path(shutil.copy(cut, tmp_path))
    (scores,) = cut_after(1, configuration(train={"seed": 6}), store, checkpoint)
    assert scores["loss"] != undisturbed.history["loss"][0]


def test_a_damaged_checkpoint_is_told_and_training_begins_anew(
    store: xr.Dataset, undisturbed: TrainedDetector, cut: Path, tmp_path: Path, caplog: Any
) -> None:
    """One seed, one result: the training that begins anew is the undisturbed one."""
    content = cut.read_bytes()
    with np.load(cut) as held:
        largest = max((held[name].tobytes() for name in held.files), key=len)
    at = content.index(largest) + len(largest) // 2
    flipped = content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
    checkpoint = tmp_path / "training.npz"
    for damaged in (content[: len(content) // 2], b"epoch 1", flipped):
        caplog.clear()
        checkpoint.write_bytes(damaged)
        assert first_epoch(configuration(), store, checkpoint) == 1
        assert "not a whole checkpoint, training begins anew" in caplog.text
    assert_same(train_detector(configuration(), store, checkpoint=checkpoint), undisturbed)


def test_sampled_negatives_are_undone_by_the_prior_and_a_configured_threshold_stands(
    store: xr.Dataset,
) -> None:
    config = configuration(
        train={"negatives_per_positive": 0.1, "epochs": 1, "block": 4},
        detect={"threshold": 0.123},
    )
    trained = train_detector(config, store)
    assert_prior_is_undone(trained, config, store)
    assert trained.threshold == detector.facts_of(trained.model)["threshold"] == 0.123


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
