"""The training ideas, trained for real: each does what it says, is resumed, is counted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from medicane import model as detector
from medicane.config import Config
from medicane.errors import InputError
from medicane.packing import Packing
from medicane.predict import predict
from medicane.train import TrainedDetector, remove_checkpoint, train_detector, training_facts
from medicane.train.calibration import training_features
from medicane.train.members import scheduled_sampling, training_batches
from medicane.train.progress import Progress
from tests.test_train import PowerCutError, assert_same, configuration, store  # noqa: F401

TINY: dict[str, Any] = {"blocks": [1], "growth_rate": 2, "units": 4}


def tiny(**sections: Any) -> Config:
    return configuration(
        **{
            **sections,
            "model": {**TINY, **sections.get("model", {})},
            "sequences": {"stride": 5, **sections.get("sequences", {})},
        }
    )


@pytest.fixture(scope="module")
def with_lows(store: xr.Dataset) -> xr.Dataset:  # noqa: F811
    """The store, with a deep low in every storm and in a fifth of the other maps."""
    rng = np.random.default_rng(3)
    low = np.where(rng.random(400) < 0.2, 995.0, 1012.0).astype(np.float32)
    low[store["medicane"].values == 1] = 990.0
    low[::7] = np.nan  # no low at all
    return store.assign(low_msl=("time", low))


def trained_in_two_parts(
    config: Config, maps: xr.Dataset, folder: Path, *, cut: int
) -> tuple[TrainedDetector, list[int]]:
    """Train, cut after an epoch, train again; the result, and the epochs of the second part."""
    checkpoint = folder / "training.npz"
    seen: list[int] = []

    def on_epoch(number: int, scores: Any) -> None:
        seen.append(number)
        if seen == list(range(1, cut + 1)):
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train_detector(config, maps, checkpoint=checkpoint, on_epoch=on_epoch)
    again = train_detector(config, maps, checkpoint=checkpoint, on_epoch=on_epoch)
    resumed = seen[cut:]
    remove_checkpoint(checkpoint)
    assert list(folder.iterdir()) == []
    return again, resumed


@pytest.mark.slow
def test_curriculum_feedback_and_hard_negatives_resume_bit_for_bit(
    with_lows: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        model={"label_feedback": True},
        train={
            "epochs": 4,
            "curriculum": "unroll",
            "negatives_per_positive": 0.5,
            "hard_negative_share": 0.5,
            "focal_gamma": 1.0,
            "clipnorm": None,
        },
    )
    whole = train_detector(config, with_lows)
    assert whole.history["sequence_length"].tolist() == [3, 5, 10, 10]
    assert detector.facts_of(whole.model)["prior_offset"] > 0
    assert 0 < whole.core_minutes < 5
    # The second epoch ends its stage: the checkpoint holds the next one. A clock that runs ten
    # minutes ahead in each epoch tells that the processor time of both parts is summed.
    ahead, real = [0.0], time.process_time
    monkeypatch.setattr(time, "process_time", lambda: real() + ahead[0])
    scored = Progress._scores

    def slowly(self: Progress) -> dict[str, float]:
        ahead[0] += 600
        return scored(self)

    monkeypatch.setattr(Progress, "_scores", slowly)
    again, resumed = trained_in_two_parts(config, with_lows, tmp_path, cut=2)
    assert resumed == [3, 4]
    assert_same(again, whole)
    assert 40 < again.core_minutes < 45
    # Trained with labels fed in, used without: one input, a probability for each map.
    assert [tuple(i.shape) for i in whole.model.inputs] == [(None, None, None, None, 2)]
    found = predict(whole.model, with_lows["maps"].isel(time=slice(0, 40)))
    assert np.isfinite(found["probability"]).all()


@pytest.mark.slow
def test_an_ensemble_is_one_detector_and_trains_no_member_twice(
    store: xr.Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = tiny(model={"out_of_domain": True}, train={"epochs": 2, "ensemble": 2})
    # The power fails after the first epoch of the second member.
    trained, resumed = trained_in_two_parts(config, store, tmp_path, cut=3)
    assert resumed == [4]
    assert trained.history["member"].tolist() == [1, 1, 2, 2]
    assert trained.history["epoch"].tolist() == [1, 2, 3, 4]
    assert trained.best_epoch == 1 + int(trained.history["val_auc_pr"].argmax())

    # Each member is what its seed alone gives, cut or not; the logit is the mean of theirs.
    alone = [train_detector(tiny(train={"epochs": 2, "seed": seed}), store) for seed in (5, 6)]
    scores = ["loss", "val_loss", "val_auc_pr"]
    own = pd.concat([one.history for one in alone], ignore_index=True)
    pd.testing.assert_frame_equal(trained.history[scores], own[scores])
    some = store["maps"].isel(time=slice(0, 30))
    raw = [predict(one.model, some)["logit"] * one.temperature for one in alone]
    np.testing.assert_allclose(
        predict(trained.model, some)["logit"] * trained.temperature, sum(raw) / 2, atol=2e-4
    )
    assert detector.facts_of(trained.model)["members"] == 2
    # The weights of both, and an autoencoder.
    assert trained.n_parameters > sum(one.n_parameters for one in alone)

    told = detector.facts_of(trained.model)["out_of_domain"]
    assert told["n_maps"] == trained.splits["train"].sum()
    features = training_features(config, trained.model, store, trained.splits["train"])
    error = detector.reconstruction_error(trained.model, features)
    assert np.percentile(error, 99) == pytest.approx(told["percentile_99"], rel=1e-3)


def test_variable_lengths_in_shuffled_order_with_labels_fed_in_are_trained_on(
    with_lows: xr.Dataset,
) -> None:
    config = tiny(
        model={"label_feedback": True},
        train={"epochs": 2, "variable_length": True, "shuffled_order": True, "batch_size": 4},
    )
    began = time.process_time()
    trained = train_detector(config, with_lows)
    took = (time.process_time() - began) / 60
    assert np.isfinite(trained.history[["loss", "val_auc_pr"]]).all(axis=None)
    assert detector.facts_of(trained.model)["length"] == 10  # what detection reads
    assert 0.5 * took < trained.core_minutes <= took
    assert trained.n_parameters == sum(w.size for w in trained.model.get_weights())


def with_packed(plain: xr.Dataset) -> xr.Dataset:
    """The maps as they are once they were packed, and packed; the first in Pa, far from zero."""
    maps = plain["maps"].values.astype(float)
    maps[:, 0] = 101_325 + 300 * maps[:, 0]
    channels = np.moveaxis(maps, 1, 0)
    packings = [Packing.fit(one.min(), one.max(), about=one.mean()) for one in channels]
    packed = [packing.pack(one) for packing, one in zip(packings, channels, strict=True)]
    unpacked = [packing.unpack(one) for packing, one in zip(packings, packed, strict=True)]
    dims = plain["maps"].dims
    return plain.assign(
        maps=(dims, np.stack(unpacked, axis=1)), packed=(dims, np.stack(packed, axis=1))
    ).assign_coords(
        scale_factor=("channel", [packing.scale for packing in packings]),
        add_offset=("channel", [packing.offset for packing in packings]),
    )


def on_both(**sections: Any) -> list[Config]:
    """A configuration that unpacks the maps on the host, and one that does on the device."""
    return [
        tiny(**{**sections, "train": {"epochs": 2, **sections.get("train", {}), "decode": where}})
        for where in ("host", "device")
    ]


def test_where_maps_are_unpacked_changes_no_bit(store: xr.Dataset) -> None:  # noqa: F811
    maps = with_packed(store)
    host, device = (train_detector(config, maps) for config in on_both(model={"attention": "none"}))
    assert_same(device, host)
    assert [i.dtype for i in device.model.inputs] == ["float32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"precision": "mixed_bfloat16", "variable_length": True, "loaders": 2}},
        {"model": {"label_feedback": True}, "train": {"epochs": 3, "curriculum": "unroll"}},
    ],
    ids=["16 bits", "labels fed back"],
)
def test_nor_does_a_cut_of_a_training_on_packed_maps(
    store: xr.Dataset,  # noqa: F811
    tmp_path: Path,
    sections: dict[str, Any],
) -> None:
    maps = with_packed(store)
    host, device = on_both(**sections)
    assert_same(trained_in_two_parts(device, maps, tmp_path, cut=1)[0], train_detector(host, maps))


def test_a_training_that_diverges_ends_and_is_told(store: xr.Dataset) -> None:  # noqa: F811
    config = tiny(train={"learning_rate": 1e30, "clipnorm": None, "curriculum": "unroll"})
    with pytest.raises(ArithmeticError, match="diverged in its first epoch"):
        train_detector(config, store)


class TestBatchesOfTheTrainingSplit:
    """What the configuration makes of the batches; nothing is trained."""

    def test_windows_and_runs_show_as_many_maps(self, store: xr.Dataset) -> None:  # noqa: F811
        mask = np.arange(400) < 240
        shown = {}
        for ratio in (None, 0.5):
            for variable in (False, True):
                train = {"variable_length": variable, "negatives_per_positive": ratio, "block": 1}
                config = tiny(train=train, sequences={"stride": 1})
                data = training_batches(config, store, mask)
                shown[variable] = sum((p.shown > 0).sum() for p in data._plan.parts(0))
            assert shown[True] == pytest.approx(shown[False], rel=0.1)
        lengths = {p.rows.shape[1] for p in data._plan.parts(0)}
        assert max(lengths) > 20
        assert max(lengths) <= 31

    def test_runs_never_cross_a_gap_or_leave_the_split(
        self,
        store: xr.Dataset,  # noqa: F811
    ) -> None:
        times = store["time"].values.copy()
        times[100:] += np.timedelta64(30, "D")
        mask = np.arange(400) < 240
        mask[150:170] = False
        config = tiny(train={"variable_length": True})
        data = training_batches(config, store.assign_coords(time=times), mask)
        longest = training_facts(config, store)["longest_sequence"]
        assert longest == 30
        for part in data._plan.parts(0):
            for rows, shown in zip(part.rows, part.shown, strict=True):
                held = rows[shown > 0]
                assert len(held) <= longest
                assert mask[held].all()
                assert not (held[0] < 100 <= held[-1])
                assert (np.diff(held) == 1).all()

    def test_hard_windows_are_those_with_a_deep_low(self, with_lows: xr.Dataset) -> None:
        mask = np.arange(400) < 240
        config = tiny(
            train={"negatives_per_positive": 0.5, "hard_negative_share": 1.0},
            label={"msl_max_hpa": 1000.0},
            sequences={"stride": 1},
        )
        data = training_batches(config, with_lows, mask)
        deep = with_lows["low_msl"].values < 1000
        assert all(deep[row].any() for part in data._plan.parts(0) for row in part.rows)
        # With a lower limit no map is deep: easy ones fill up.
        deeper = config.model_copy(
            update={"label": config.label.model_copy(update={"msl_max_hpa": 900.0})}
        )
        assert training_batches(deeper, with_lows, mask).n_windows == data.n_windows

    def test_hard_windows_need_the_lows_in_the_store(
        self,
        store: xr.Dataset,  # noqa: F811
    ) -> None:
        config = tiny(train={"negatives_per_positive": 1, "hard_negative_share": 0.5})
        with pytest.raises(
            InputError,
            match=r"train\.hard_negative_share: needs the lows .*; found no low_msl in the store",
        ):
            training_batches(config, store, np.ones(400, bool))

    def test_labels_are_fed_in_less_and_less(self, store: xr.Dataset) -> None:  # noqa: F811
        assert [scheduled_sampling(5)(epoch) for epoch in range(5)] == [1, 0.75, 0.5, 0.25, 0]
        assert scheduled_sampling(1)(0) == 1
        config = tiny(model={"label_feedback": True}, train={"epochs": 2})
        data = training_batches(config, store, np.arange(400) < 240)
        inputs, labels, weights = data[0]
        known = weights[:, :-1] > 0
        previous = inputs["previous"][:, 1:, 0]
        np.testing.assert_array_equal(previous[known], labels[:, :-1, 0][known])
        data.take_up(1)
        assert np.isnan(data[0][0]["previous"][:, 1:]).all()


def test_drawn_features_are_seeded_and_bounded(
    store: xr.Dataset,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medicane.normalise import training_statistics
    from medicane.train import calibration

    monkeypatch.setattr(calibration, "MOST_MAPS", 50)
    mask = np.arange(400) < 240
    for encoder in ("compact", "r2plus1d"):
        chosen = {"encoder": encoder, "rnn": "none" if encoder != "compact" else "gru"}
        config = tiny(model=chosen)
        model = detector.build_detector(config, training_statistics(store["maps"], mask))
        first, second = (training_features(config, model, store, mask) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert len(first) == 50 // detector.temporal_reach(model)
        other = tiny(model=chosen, train={"seed": 9})
        assert (training_features(other, model, store, mask) != first).any()
