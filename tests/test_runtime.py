"""Encoders on OpenVINO: the numbers of Keras, whatever the network and grid; a cache to trust."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane import runtime
from medicane.errors import InputError
from medicane.predict import predict
from medicane.runtime import open_encoder, quantised, record_verdict, verdict_of
from tests.small_networks import VARIANTS, build, standard_maps
from tests.test_predict import series

pytest.importorskip("openvino")

#: One network for each kind of encoder, and the least grid that it takes.
ENCODERS: dict[str, tuple[dict[str, Any], int]] = {
    "compact": ({"attention": "none"}, 9),
    "triple": (VARIANTS["triple"], 13),
    "densenet121": ({"encoder": "densenet121"}, 33),
    "c3d": (VARIANTS["c3d"], 9),
    "r2plus1d": (VARIANTS["r2plus1d"], 9),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("MEDICANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return detector.encoder_of(build(**VARIANTS["triple"]))


def inputs(encoder: keras.Model, *, n: int, side: int) -> np.ndarray:
    """n maps, or as many sequences of seven, not square."""
    return standard_maps(*((n, 7) if len(encoder.input_shape) == 5 else (n,)), side, side + 5)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class TestNumbers:
    @pytest.mark.parametrize("name", ENCODERS)
    def test_every_encoder_gives_what_keras_gives(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """On grids of two sizes, and for numbers of maps that no batch divides."""
        keys, side = ENCODERS[name]
        encoder = detector.encoder_of(build(**keys))
        with caplog.at_level(logging.INFO):
            encode = open_encoder(encoder, digest="sha256:" + name)
        assert encode is not None
        assert "the encoder runs on OpenVINO" in caplog.text
        for n, more in ((runtime.BATCH + 3, 0), (2, 6), (1, 6)):
            maps = inputs(encoder, n=n, side=side + more)
            expected = np.asarray(encoder(maps, training=False))  # no graph for each of the sizes
            found = encode(maps)
            assert (found.shape, found.dtype) == (expected.shape, np.float32)
            assert relative(found, expected) < 2e-6
        np.testing.assert_allclose(encode(maps), found, rtol=1e-6)  # called again: the same

    def test_an_ensemble_of_encoders_of_both_kinds(self) -> None:
        members = [build(1, **VARIANTS["triple"]), build(2, **VARIANTS["r2plus1d"])]
        encoder = detector.encoder_of(detector.ensemble_of(members))
        encode = open_encoder(encoder, digest="sha256:both")
        assert encode is not None
        maps = standard_maps(2, 7, 16, 20)
        assert relative(encode(maps), encoder.predict_on_batch(maps)) < 2e-6

    @pytest.mark.parametrize("mode", ["causal", "fused"])
    @pytest.mark.parametrize("name", ["gru", "triple", "c3d"])
    def test_labels_are_those_of_keras(self, name: str, mode: Any) -> None:
        model = build(**VARIANTS[name])
        maps = series(29).isel(channel=[0, 1, 1]).pad(latitude=3, longitude=3, mode="wrap")
        maps = maps.assign_coords(channel=list(detector.facts_of(model)["channels"]))
        maps = maps.assign_coords(latitude=range(12), longitude=range(14))
        encode = open_encoder(detector.encoder_of(model), digest="sha256:" + name)
        expected = predict(model, maps, mode=mode, block=13)
        found = predict(model, maps, mode=mode, block=13, encode=encode)
        assert expected["probability"].std() > 1e-4
        np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)
        np.testing.assert_array_equal(found["n_sequences"], expected["n_sequences"])

    def test_bfloat16_is_near_and_int8_tells_maps_apart(self, small: keras.Model) -> None:
        """Channels of far apart units share one scale in eight bits, were they not kept out."""
        maps = inputs(small, n=40, side=24)
        expected = small.predict_on_batch(maps)
        near = open_encoder(small, digest="sha256:a", precision="bfloat16")
        assert near is not None
        assert 0 < relative(near(maps), expected) < 0.03
        coarse = quantised(small, digest="sha256:a", maps=[maps[:20], maps[20:]])
        found = coarse(maps)
        assert relative(found, expected) > 1e-4  # it is another arithmetic
        apart = expected - expected.mean(axis=0)
        assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(apart**2)) < 0.15

    def test_one_map_at_a_time(self, small: keras.Model) -> None:
        encode = open_encoder(small, digest="sha256:a", one_by_one=True)
        assert encode is not None
        maps = inputs(small, n=3, side=13)
        one_by_one = np.concatenate([encode(maps[i : i + 1]) for i in range(3)])
        assert relative(one_by_one, small.predict_on_batch(maps)) < 2e-6

    def test_no_more_threads_than_told(
        self, small: keras.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As dask tells its workers, so that two on a machine do not take all cores each."""
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        encode = open_encoder(small, digest="sha256:a")
        assert encode is not None
        assert encode._settings["INFERENCE_NUM_THREADS"] == 1
        encode(inputs(small, n=3, side=13))
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        encode = open_encoder(small, digest="sha256:a")
        assert encode is not None
        assert "INFERENCE_NUM_THREADS" not in encode._settings


class TestCache:
    def entries(self, cache: Path) -> list[Path]:
        return sorted((cache / "encoders").iterdir())

    def test_exported_once(self, small: keras.Model, cache: Path) -> None:
        open_encoder(small, digest="sha256:a")
        (entry,) = self.entries(cache)  # and nothing half-made beside it
        before = (entry / "encoder.bin").stat().st_mtime_ns
        open_encoder(small, digest="sha256:a", precision="bfloat16")
        assert self.entries(cache) == [entry]
        assert (entry / "encoder.bin").stat().st_mtime_ns == before

    def test_an_entry_of_another_model_is_never_read(self, cache: Path) -> None:
        """Not even where it has been put under the name of this one."""
        first, second = (detector.encoder_of(build(seed, **VARIANTS["gru"])) for seed in (1, 2))
        maps = inputs(first, n=4, side=12)
        for encoder, digest in ((first, "sha256:1"), (second, "sha256:2")):
            encode = open_encoder(encoder, digest=digest)
            assert encode is not None
            assert relative(encode(maps), encoder.predict_on_batch(maps)) < 2e-6
        one, two = self.entries(cache)
        shutil.rmtree(two)
        shutil.copytree(one, two)
        encode = open_encoder(second, digest="sha256:2")
        assert encode is not None
        assert relative(encode(maps), second.predict_on_batch(maps)) < 2e-6

    @pytest.mark.parametrize("damage", ["weights", "graph", "entry", "half", "version"])
    def test_a_damaged_entry_is_made_again(
        self, small: keras.Model, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        open_encoder(small, digest="sha256:a")
        (entry,) = self.entries(cache)
        if damage == "weights":
            values = bytearray((entry / "encoder.bin").read_bytes())
            values[100] ^= 255
            (entry / "encoder.bin").write_bytes(values)
        elif damage == "graph":
            (entry / "encoder.xml").write_text("<net>")
        elif damage == "entry":
            (entry / "entry.json").write_text("{")
        elif damage == "half":
            (entry / "encoder.bin").unlink()
        else:
            told = json.loads((entry / "entry.json").read_text())
            (entry / "entry.json").write_text(json.dumps({**told, "openvino": "2020.1"}))
        encode = open_encoder(small, digest="sha256:a")
        assert encode is not None
        assert "made again" in caplog.text
        maps = inputs(small, n=3, side=13)
        assert relative(encode(maps), small.predict_on_batch(maps)) < 2e-6
        assert self.entries(cache) == [entry]

    def test_by_default_in_the_home_of_the_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MEDICANE_CACHE")
        monkeypatch.setenv("HOME", "/home/someone")
        assert runtime.cache_folder() == Path("/home/someone/.cache/medicane")


class TestVerdict:
    """int8 runs where a check of this very encoder has passed."""

    @pytest.fixture
    def made(self, small: keras.Model) -> keras.Model:
        quantised(small, digest="sha256:a", maps=[inputs(small, n=8, side=13)])
        return small

    def test_int8_without_a_check_is_refused(self, made: keras.Model) -> None:
        with pytest.raises(InputError, match=r"check-precision.*found no check of this model"):
            open_encoder(made, digest="sha256:a", precision="int8")

    def test_a_failed_one_too(self, made: keras.Model) -> None:
        record_verdict("sha256:a", "int8", {"passed": False})
        with pytest.raises(InputError, match="found a check that failed"):
            open_encoder(made, digest="sha256:a", precision="int8")

    def test_a_passed_one_opens_it(self, made: keras.Model) -> None:
        path = record_verdict("sha256:a", "int8", {"passed": True, "scores": {"csi": 0.5}})
        assert json.loads(path.read_text())["scores"] == {"csi": 0.5}
        encode = open_encoder(made, digest="sha256:a", precision="int8")
        assert encode is not None
        assert encode.precision == "int8"
        assert verdict_of("sha256:a", "bfloat16") is None  # each precision for itself

    @pytest.mark.parametrize("change", ["again", "weights", "digest", "copied"])
    def test_it_goes_with_what_was_checked(self, made: keras.Model, change: str) -> None:
        path = record_verdict("sha256:a", "int8", {"passed": True})
        digest = "sha256:a"
        if change == "again":  # calibrated on other maps: another network
            quantised(made, digest=digest, maps=[3 * inputs(made, n=8, side=13)])
        elif change == "weights":
            (path.parent / "encoder.bin").write_bytes(b"others")
        elif change == "digest":
            path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "sha256:b"}))
        else:
            digest = "sha256:b"
            shutil.copytree(path.parent, runtime._entry(digest, quantised=True))
        assert verdict_of(digest, "int8") is None


WITHOUT_OPENVINO = """
import builtins, logging, sys
sys.modules["openvino"] = None  # an import of it fails, as where it is not installed
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from medicane.errors import InputError
from medicane.runtime import open_encoder, quantised
assert open_encoder(None, digest="sha256:a") is None
for call in (lambda: open_encoder(None, digest="sha256:a", precision="bfloat16"),
             lambda: quantised(None, digest="sha256:a", maps=[])):
    try:
        call()
    except InputError as error:
        print(error)
"""


class TestWithout:
    def test_keras_runs_what_is_asked_in_float32_and_nothing_else(self) -> None:
        found = subprocess.run(
            [sys.executable, "-c", WITHOUT_OPENVINO], capture_output=True, text=True, check=True
        )
        log, bfloat16, *_, int8 = found.stdout.splitlines()
        assert "the encoder runs on Keras: the extra fast is not installed" in log
        assert "bfloat16 needs the extra fast: pip install 'medicane[fast]'" in bfloat16
        assert "int8 needs the extra fast" in int8

    def test_an_encoder_that_openvino_does_not_know(
        self, caplog: pytest.LogCaptureFixture, cache: Path
    ) -> None:
        """A recurrent cell in the encoder: its converter has no rule for the list behind it."""
        maps = keras.Input((None, 6))
        strange = keras.Model(maps, keras.layers.GRU(3)(maps))
        assert open_encoder(strange, digest="sha256:strange") is None
        assert "the encoder runs on Keras: OpenVINO cannot convert it" in caplog.text
        assert list((cache / "encoders").iterdir()) == []
        logging.getLogger("medicane").warning("still heard")  # the converter does not restore it
        assert "still heard" in caplog.text
        with pytest.raises(InputError, match="bfloat16 needs an encoder that OpenVINO can run"):
            open_encoder(strange, digest="sha256:strange", precision="bfloat16")

    def test_its_makers_are_told_nothing(self, small: keras.Model) -> None:
        """Its converter tells of each model, unless it believes that it runs in a CI."""
        before = os.environ.get("CI")
        open_encoder(small, digest="sha256:a")
        from openvino_telemetry import Telemetry

        assert not Telemetry().consent
        assert os.environ.get("CI") == before
