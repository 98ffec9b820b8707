"""The detector: shapes, equalities, what is saved with it, what it refuses."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.config import Config, make_config
from medicane.errors import InputError
from medicane.normalise import Statistics

CHANNELS = ("msl_local", "u10", "v10")


def configuration(**sections: dict) -> Config:
    values = {
        "schema_version": 1,
        "data": {"grids": "none.nc", "channels": list(CHANNELS)},
        "model": {"blocks": [1, 2], "growth_rate": 4, "units": 8},
    }
    return make_config({**values, **sections})


STATISTICS = Statistics(CHANNELS, np.array([10.0, -3.0, 0.5]), np.array([5.0, 2.0, 0.1]), 100)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    built = detector.build_detector(configuration(), STATISTICS, facts={"length": 12})
    # Moving statistics as after training, so that inference is not the trivial case.
    rng = np.random.default_rng(0)
    for layer in detector.encoder_of(built).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.2, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    return built


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    rng = np.random.default_rng(2)
    standard = rng.normal(size=(3, 12, 16, 20, 3))
    return (standard * STATISTICS.std + STATISTICS.mean).astype(np.float32)


def test_one_probability_a_map(network: keras.Model, maps: np.ndarray) -> None:
    probability = network.predict(maps, verbose=0)
    assert probability.shape == (3, 12, 1)
    assert probability.dtype == np.float32
    assert ((probability > 0) & (probability < 1)).all()
    assert probability.std() > 1e-4


@pytest.mark.parametrize(("length", "height", "width"), [(1, 8, 8), (3, 11, 16), (15, 9, 30)])
def test_any_length_and_any_grid(
    network: keras.Model, length: int, height: int, width: int
) -> None:
    assert network.predict(np.zeros((2, length, height, width, 3)), verbose=0).shape == (
        2,
        length,
        1,
    )


def test_folded_time_equals_time_distributed(network: keras.Model, maps: np.ndarray) -> None:
    encoder = detector.encoder_of(network)
    folded = detector.FoldedTime(encoder)(maps, training=False)
    distributed = keras.layers.TimeDistributed(encoder)(maps, training=False)
    difference = np.abs(np.asarray(folded) - np.asarray(distributed)).max()
    assert difference <= 1e-6 * max(1.0, float(np.abs(np.asarray(distributed)).max()))


def test_encoder_then_head_is_the_detector(network: keras.Model, maps: np.ndarray) -> None:
    features = detector.encoder_of(network).predict(maps.reshape(-1, 16, 20, 3), verbose=0)
    logit = detector.head_of(network).predict(features.reshape(3, 12, -1), verbose=0)
    whole = network.predict(maps, verbose=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), whole, atol=1e-6)


def test_causal_by_construction(network: keras.Model, maps: np.ndarray) -> None:
    """What comes after a map does not change its probability."""
    changed = maps.copy()
    changed[:, 7:] += 50
    before, after = network.predict(maps, verbose=0), network.predict(changed, verbose=0)
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


def test_normalisation_is_inside(network: keras.Model, maps: np.ndarray) -> None:
    """The first layer makes the training split standard: mean 0, deviation 1, a channel."""
    normalisation = detector.encoder_of(network).get_layer("normalisation")
    normal = np.asarray(normalisation(maps.reshape(-1, 16, 20, 3)))
    np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(normal.std((0, 1, 2)), 1, atol=0.05)


def test_keras_round_trip_is_exact(network: keras.Model, maps: np.ndarray, tmp_path: Path) -> None:
    detector.set_calibration(network, temperature=1.7, offset=0.4, threshold=0.31)
    path = tmp_path / "detector.keras"
    detector.save_detector(network, path)
    loaded = detector.load_detector(path)
    np.testing.assert_array_equal(network.predict(maps, verbose=0), loaded.predict(maps, verbose=0))
    assert detector.facts_of(loaded) == detector.facts_of(network)
    assert detector.facts_of(loaded)["threshold"] == 0.31
    assert detector.facts_of(loaded)["channels"] == list(CHANNELS)
    detector.set_calibration(network, temperature=1.0)


def test_the_same_detector_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the hour, and wherever it lies in memory."""
    kept = []
    for name in ("one.keras", "two.keras"):
        keras.utils.clear_session()  # of the names that were given
        keras.utils.set_random_seed(1)
        built = detector.build_detector(configuration(), STATISTICS, facts={"length": 12})
        kept.append(built)
        detector.save_detector(built, tmp_path / name)
    one, two = (tmp_path / name for name in ("one.keras", "two.keras"))
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert b"date_saved" not in archive.read("metadata.json")
        assert b"shared_object_id" in archive.read("config.json")
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.keras", "two.keras"]


def test_calibration_acts_on_the_logit(network: keras.Model, maps: np.ndarray) -> None:
    detector.set_calibration(network, temperature=1.0)
    plain = network.predict(maps, verbose=0).astype(float)
    detector.set_calibration(network, temperature=2.0, offset=0.5)
    calibrated = network.predict(maps, verbose=0).astype(float)
    detector.set_calibration(network, temperature=1.0)
    expected = (np.log(plain / (1 - plain)) - 0.5) / 2
    np.testing.assert_allclose(np.log(calibrated / (1 - calibrated)), expected, atol=1e-4)
    with pytest.raises(ValueError, match="temperature must be positive; found 0"):
        detector.set_calibration(network, temperature=0)


def test_the_head_and_its_loss_are_no_options() -> None:
    """No configuration key names an activation or a loss, and the compiled pair is the one pair."""
    for key in ("loss", "activation", "head"):
        for section in ("model", "train"):
            with pytest.raises(InputError, match="unknown key"):
                configuration(**{section: {key: "softmax"}})
    built = detector.build_detector(configuration(), STATISTICS)
    detector.compile_detector(built, configuration().train, steps=10)
    assert built.layers[-1].activation is keras.activations.sigmoid
    assert built.output_shape == (None, None, 1)
    assert isinstance(built.loss, keras.losses.BinaryCrossentropy)
    assert not built.loss.get_config()["from_logits"]
    assert built.optimizer.clipnorm == 1.0


def test_weight_zero_means_no_influence(maps: np.ndarray) -> None:
    """A map of unknown label has no share in the loss, whatever its label says."""
    built = detector.build_detector(configuration(), STATISTICS)
    detector.compile_detector(built, configuration().train, steps=10)
    weights = np.ones((3, 12), np.float32)
    weights[:, 4] = 0
    labels = np.zeros((3, 12, 1), np.float32)
    other = labels.copy()
    other[:, 4] = 1
    losses = [
        built.test_on_batch(maps, y, sample_weight=weights, return_dict=True)["loss"]
        for y in (labels, other)
    ]
    assert losses[0] == losses[1]


def test_l2_on_kernels_not_on_biases() -> None:
    built = detector.build_detector(configuration(), STATISTICS)
    with_penalty, without = set(), set()

    def walk(layer: keras.layers.Layer) -> None:
        for inner in getattr(layer, "layers", []):
            walk(inner)
        if hasattr(layer, "cell"):
            layer = layer.cell
        if getattr(layer, "kernel_regularizer", None) is not None:
            with_penalty.add(layer.name)
        assert getattr(layer, "bias_regularizer", None) is None
        if getattr(layer, "kernel", None) is not None and layer.name not in with_penalty:
            without.add(layer.name)

    walk(detector.encoder_of(built))
    walk(detector.head_of(built))
    assert {"stem", "logit"} <= with_penalty
    assert not without


def test_recurrent_dropout_stays_zero_so_that_cudnn_can_run() -> None:
    for kind in ("gru", "lstm"):
        config = configuration(model={"rnn": kind, "blocks": [1], "growth_rate": 2, "units": 4})
        recurrent = detector.head_of(detector.build_detector(config, STATISTICS)).get_layer(kind)
        assert recurrent.recurrent_dropout == 0
        assert recurrent.return_sequences


def test_gradients_reach_every_trainable_weight(maps: np.ndarray) -> None:
    built = detector.build_detector(configuration(), STATISTICS)
    detector.compile_detector(built, configuration(train={"l2": 0}).train, steps=10)
    before = [w.numpy().copy() for w in built.trainable_weights]
    labels = (np.random.default_rng(0).random((3, 12, 1)) > 0.5).astype(np.float32)
    for _ in range(2):
        built.train_on_batch(maps, labels, sample_weight=np.ones((3, 12), np.float32))
    unmoved = [
        w.path
        for w, old in zip(built.trainable_weights, before, strict=True)
        if np.array_equal(w.numpy(), old)
    ]
    assert not unmoved


def test_smallest_grid() -> None:
    assert detector.smallest_grid(configuration().model) == 8
    assert detector.smallest_grid(configuration(model={"blocks": [3, 6, 12]}).model) == 16
    assert detector.smallest_grid(configuration(model={"encoder": "densenet121"}).model) == 32


def test_check_maps_names_what_differs() -> None:
    built = detector.build_detector(configuration(), STATISTICS, facts={"smallest_grid": 8})
    detector.check_maps(built, channels=CHANNELS, shape=(8, 9), where="x.nc")
    with pytest.raises(InputError, match=r"x\.nc: the model needs the channels .* found \['u10'\]"):
        detector.check_maps(built, channels=["u10"], shape=(8, 9), where="x.nc")
    with pytest.raises(InputError, match="in this order"):
        detector.check_maps(built, channels=CHANNELS[::-1], shape=(8, 9), where="x.nc")
    with pytest.raises(InputError, match="at least 8 x 8 cells; found 7 x 9"):
        detector.check_maps(built, channels=CHANNELS, shape=(7, 9), where="x.nc")


def test_a_channel_without_spread_is_refused() -> None:
    flat = Statistics(CHANNELS, np.zeros(3), np.array([1.0, np.nan, 1.0]), 5)
    with pytest.raises(InputError, match="channel u10: its standard deviation"):
        detector.build_detector(configuration(), flat)


class TestLoading:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the model file must exist"):
            detector.load_detector(tmp_path / "none.keras")

    def test_text_named_keras(self, tmp_path: Path) -> None:
        path = tmp_path / "text.keras"
        path.write_text("not a model")
        with pytest.raises(InputError, match=r"text\.keras: must be a \.keras model"):
            detector.load_detector(path)

    def test_another_keras_model(self, tmp_path: Path) -> None:
        path = tmp_path / "other.keras"
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)], name="other").save(path)
        with pytest.raises(
            InputError, match="must be a medicane detector; found a Keras model named 'other'"
        ):
            detector.load_detector(path)

    def test_code_inside_a_model_is_not_run(self, tmp_path: Path) -> None:
        path = tmp_path / "lambda.keras"
        inputs = keras.Input((3,))
        outputs = keras.layers.Lambda(lambda x: x * 2)(inputs)
        keras.Model(inputs, outputs).save(path)
        with pytest.raises(InputError, match="safe mode"):
            detector.load_detector(path)

    def test_nothing_pickled_in_the_file(self, network: keras.Model, tmp_path: Path) -> None:
        path = tmp_path / "detector.keras"
        network.save(path)
        with zipfile.ZipFile(path) as archive:
            assert sorted(archive.namelist()) == [
                "config.json",
                "metadata.json",
                "model.weights.h5",
            ]
            json.loads(archive.read("config.json"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local weights file of the published network, as Keras distributes it (*notop*)."""
    path = tmp_path_factory.mktemp("weights") / "densenet121_notop.weights.h5"
    keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(None, None, 3)
    ).save_weights(path)
    return path


class TestDenseNet121:
    def test_frozen_up_to_conv4(self, weights: Path) -> None:
        config = configuration(
            model={"encoder": "densenet121", "weights": str(weights), "units": 8}
        )
        built = detector.build_detector(config, STATISTICS)
        backbone = detector.encoder_of(built).get_layer("densenet121")
        loaded = keras.applications.DenseNet121(
            include_top=False, weights=None, input_shape=(None, None, 3)
        )
        loaded.load_weights(weights)
        np.testing.assert_array_equal(
            backbone.get_layer("conv1_conv").kernel, loaded.get_layer("conv1_conv").kernel
        )
        trainable = {
            layer.name.split("_")[0]
            for layer in backbone.layers
            if layer.trainable and layer.weights
        }
        assert trainable == {"conv5", "bn"}  # "bn" is the network's last normalisation
        adapter = detector.encoder_of(built).get_layer("channel_adapter")
        assert adapter.kernel.shape == (1, 1, 3, 3)
        assert built.predict(np.zeros((1, 2, 32, 33, 3), np.float32), verbose=0).shape == (1, 2, 1)

    def test_without_weights_nothing_is_frozen(self) -> None:
        config = configuration(model={"encoder": "densenet121", "units": 8})
        backbone = detector.encoder_of(detector.build_detector(config, STATISTICS)).get_layer(
            "densenet121"
        )
        assert all(layer.trainable for layer in backbone.layers)

    def test_a_file_that_does_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "small.weights.h5"
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]).save_weights(path)
        config = configuration(model={"encoder": "densenet121", "weights": str(path)})
        with pytest.raises(
            InputError, match=r"model\.weights: .*small\.weights\.h5: must fit densenet121"
        ):
            detector.build_detector(config, STATISTICS)

    def test_a_file_that_is_not_there(self) -> None:
        config = configuration(model={"encoder": "densenet121", "weights": "nowhere.h5"})
        with pytest.raises(
            InputError, match=r"model\.weights: must be a local weights file; found nowhere\.h5"
        ):
            detector.build_detector(config, STATISTICS)
