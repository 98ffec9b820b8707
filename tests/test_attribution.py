"""Where a detector looked: what is hidden where it looks is missed, and nothing elsewhere."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import xarray as xr
from scipy.special import logit as logit_of

from medicane import model as detector
from medicane.attribution import element_attention, occlusion, training_mean
from medicane.errors import InputError
from medicane.model.parts import assemble
from tests.small_networks import CHANNELS, STATISTICS, answers, build, standard_maps

SIDES = (12, 16)  # cells of one degree
#: The corner that `corner_looker` sees: the first rows and columns.
CORNER = (4, 5)


def window(n: int = 10, *, sides: tuple[int, int] = SIDES, seed: int = 2) -> xr.DataArray:
    """Maps six hours apart, one degree, as a store holds them."""
    values = standard_maps(n, *sides, seed=seed)
    return xr.DataArray(
        values,
        coords={
            "time": np.datetime64("2020-09-15", "ns") + 6 * np.arange(n) * np.timedelta64(1, "h"),
            "latitude": 44.0 - np.arange(sides[0]),
            "longitude": 5.0 + np.arange(sides[1]),
            "channel": list(CHANNELS),
        },
        dims=("time", "latitude", "longitude", "channel"),
    ).transpose("time", "channel", "latitude", "longitude")


def corner_looker(weights: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> keras.Model:
    """A detector whose logit is the mean of its normalised channels over one corner.

    Of the last map it takes all, of the one before it a half.
    """
    maps = keras.Input((*SIDES, 3))
    x = keras.layers.Normalization(mean=STATISTICS.mean, variance=np.square(STATISTICS.std))(maps)
    cut = ((0, SIDES[0] - CORNER[0]), (0, SIDES[1] - CORNER[1]))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Cropping2D(cut)(x))
    total = keras.layers.Dense(1, use_bias=False)
    encoder = keras.Model(maps, total(x), name="encoder")
    total.kernel.assign(np.array(weights)[:, None])
    sequence = keras.Input((None, 1))
    past = keras.layers.Conv1D(1, 2, padding="causal", use_bias=False)
    head = keras.Model(sequence, past(sequence), name="head")
    past.kernel.assign(np.array([0.5, 1.0])[:, None, None])
    facts = {"length": 10, "step_hours": 6}
    return assemble(encoder, head, channels=CHANNELS, facts=facts, out_of_domain=False)


def hidden(maps: xr.DataArray, *, lat: float, lon: float, half: float, steps: Any) -> np.ndarray:
    """The window with a box at the training mean, (1, T, H, W, C), made another way."""
    inside = (abs(maps.latitude - lat) <= half) & (abs(maps.longitude - lon) <= half)
    when = xr.zeros_like(maps.time, dtype=bool)
    when[steps] = True
    mean = xr.DataArray(STATISTICS.mean, dims="channel")
    covered = maps.where(~(inside & when), mean)
    return covered.transpose("time", "latitude", "longitude", "channel").values[None]


def test_it_peaks_where_the_network_looks() -> None:
    maps = window()
    maps[-1, 0, 1, 2] += 100 * STATISTICS.std[0]  # a storm in the corner that it sees
    maps[-1, 0, 8, 12] += 500 * STATISTICS.std[0]  # a greater one where it is blind
    found = occlusion(corner_looker(), maps, box_degrees=3, every_degrees=1)

    assert found.dims == ("latitude", "longitude")
    assert found.shape == SIDES
    best = found.where(found > 0.99 * found.max(), drop=True)
    assert set(best.latitude.values) <= {44.0, 43.0, 42.0}  # boxes that hold the storm at 43 N
    assert set(best.longitude.values) <= {6.0, 7.0, 8.0}  # 7 E
    assert found.max() == pytest.approx(100 / 20, rel=0.1)  # a cell of the twenty
    # A box reaches one cell beyond its centre: from the corner's edge on it hides nothing seen.
    assert (found[CORNER[0] + 1 :] == 0).all()
    assert (found[:, CORNER[1] + 1 :] == 0).all()


@pytest.mark.parametrize("occluded", ["last", "all"])
def test_it_is_the_share_of_the_box(occluded: Any) -> None:
    """For a sum over cells, the importance is the sum over the box, worked out by hand."""
    maps = window()
    found = occlusion(
        corner_looker((1.0, 0.0, -2.0)), maps, box_degrees=3, every_degrees=2, occluded=occluded
    )
    standard = (maps.transpose(..., "channel") - STATISTICS.mean) / STATISTICS.std
    of_cells = standard[..., 0] - 2 * standard[..., 2]
    of_cells = of_cells[-1] + (0.5 * of_cells[-2] if occluded == "all" else 0)
    seen = of_cells.values[: CORNER[0], : CORNER[1]] / (CORNER[0] * CORNER[1])
    for i, row in enumerate(range(0, SIDES[0], 2)):
        for j, column in enumerate(range(0, SIDES[1], 2)):
            box = seen[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert found[i, j] == pytest.approx(box.sum(), abs=1e-5), (row, column)


@pytest.mark.parametrize(
    ("variant", "occluded"),
    [
        ({}, "last"),
        ({}, "all"),
        ({"bidirectional": True}, "last"),
        ({"label_feedback": True}, "all"),
        ({"encoder": "r2plus1d", "rnn": "none"}, "last"),
        ({"encoder": "c3d", "rnn": "none"}, "all"),
        ({"attention": "triple", "blocks": [1, 1]}, "last"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "gru",
)
def test_it_is_the_window_run_again(variant: dict[str, Any], occluded: Any) -> None:
    """Every network, against the plain way: hide, run the whole detector, take the difference."""
    network, maps = build(**variant), window(6)
    found = occlusion(network, maps, box_degrees=5, every_degrees=5, occluded=occluded, batch=16)
    assert found.shape == (3, 4)
    steps = [-1] if occluded == "last" else slice(None)
    centres = [(lat, lon) for lat in found.latitude.values for lon in found.longitude.values]
    runs = [hidden(maps, lat=lat, lon=lon, half=2, steps=steps) for lat, lon in centres]
    whole = maps.transpose("time", "latitude", "longitude", "channel").values[None]
    logits = logit_of(answers(network, np.concatenate([whole, *runs]))[:, -1].astype(float))
    assert found.attrs["logit"] == pytest.approx(logits[0], abs=1e-4)
    np.testing.assert_allclose(found.values.ravel(), logits[0] - logits[1:], atol=2e-4)
    assert found.std() > 1e-3  # it says something


def test_an_ensemble_misses_what_its_members_miss() -> None:
    members, maps = [build(seed=1), build(seed=5)], window(4)
    both = detector.ensemble_of(members)
    of_each = [occlusion(member, maps, every_degrees=5) for member in members]
    xr.testing.assert_allclose(
        occlusion(both, maps, every_degrees=5), (of_each[0] + of_each[1]) / 2, atol=1e-4
    )
    np.testing.assert_allclose(training_mean(both), STATISTICS.mean, rtol=1e-6)


def test_the_past_counts_only_where_it_is_hidden() -> None:
    """A network of single maps does not care; one with a memory does."""
    maps = window(5)
    for rnn, same in (("none", True), ("gru", False)):
        network = build(rnn=rnn)
        last, every = (
            occlusion(network, maps, every_degrees=4, occluded=which) for which in ("last", "all")
        )
        assert np.allclose(last, every, atol=1e-5) == same


def test_of_one_channel() -> None:
    network, maps = corner_looker((1.0, 1.0, 0.0)), window(3)
    parts = [occlusion(network, maps, box_degrees=3, channels=[name]).values for name in CHANNELS]
    assert (parts[2] == 0).all()
    assert np.abs(parts[0]).max() > 0.01
    whole = occlusion(network, maps, box_degrees=3).values
    np.testing.assert_allclose(parts[0] + parts[1], whole, atol=1e-5)


def test_it_says_where_and_how() -> None:
    maps = window(2, sides=(12, 16))
    before = maps.copy(deep=True)
    found = occlusion(corner_looker(), maps, box_degrees=3.6, every_degrees=3)
    np.testing.assert_array_equal(found.latitude, [44, 41, 38, 35])
    np.testing.assert_array_equal(found.longitude, [5, 8, 11, 14, 17, 20])
    assert found.dtype == np.float32
    assert found.attrs["box_degrees"] == 3  # an odd number of cells
    assert found.attrs["occluded"] == "last"
    xr.testing.assert_identical(maps, before)
    small = occlusion(corner_looker(), maps, box_degrees=0.2, every_degrees=0.2)
    assert small.attrs["box_degrees"] == 1
    assert small.shape == SIDES  # never less than a cell


def test_the_size_of_the_batch_changes_nothing() -> None:
    maps = window(4)
    for variant in ({}, {"encoder": "c3d", "rnn": "none"}):
        network = build(**variant)
        few, many = (occlusion(network, maps, every_degrees=4, batch=n) for n in (5, 64))
        xr.testing.assert_allclose(few, many, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "options", "law"),
    [
        (lambda m: m.isel(channel=[1, 0, 2]), {}, r"needs the channels \['msl_local', 'u10'"),
        (lambda m: m.isel(latitude=slice(3)), {}, "grid of at least 8 x 8 cells; found 3 x 16"),
        (lambda m: m.isel(time=[0, 1, 3]), {}, "without a gap; found 3 maps in 2 periods"),
        (lambda m: m.isel(time=slice(0)), {}, "one window is 1 to 10 maps 6 h apart"),
        (lambda m: m, {"box_degrees": 0.0}, "box_degrees: must be a positive number"),
        (lambda m: m, {"every_degrees": np.nan}, "every_degrees: must be a positive number"),
        (lambda m: m, {"box_degrees": 16}, "box_degrees: must leave some of a map of 12 x 16"),
        (lambda m: m, {"channels": ["sst"]}, r"channels: must be some of \['msl_local'"),
        (lambda m: m, {"channels": []}, "channels: must be some of"),
        (lambda m: m, {"occluded": "first"}, "occluded: must be last or all; found 'first'"),
        (lambda m: m.where(m.time != m.time[4]), {}, "channel msl_local"),
    ],
)
def test_what_cannot_be_asked(spoil: Any, options: dict[str, Any], law: str) -> None:
    with pytest.raises(InputError, match=law):
        occlusion(build(), spoil(window()), **options)


def test_one_sequence_at_most() -> None:
    with pytest.raises(InputError, match=r"one window is 1 to 10 maps 6 h apart.*found 11 maps"):
        occlusion(corner_looker(), window(11))


def test_a_network_without_a_mean_has_nothing_to_put_in_place() -> None:
    maps = keras.Input((None, None, 3))
    encoder = keras.Model(maps, keras.layers.GlobalAveragePooling2D()(maps), name="encoder")
    sequence = keras.Input((None, 3))
    head = keras.Model(sequence, keras.layers.Dense(1)(sequence), name="head")
    facts = {"length": 10, "step_hours": 6}
    bare = assemble(encoder, head, channels=CHANNELS, facts=facts, out_of_domain=False)
    with pytest.raises(InputError, match="model: must normalise its maps; found no such layer"):
        occlusion(bare, window(2))


def test_the_place_of_attention_on_the_map() -> None:
    network, maps = build(attention="triple", blocks=[1, 1], growth_rate=4), window(3)[..., :14]
    found = element_attention(network, maps)
    assert found.dims == ("time", "latitude", "longitude")
    np.testing.assert_array_equal(found.latitude, [42.5, 38.5, 34.5])  # of four rows each
    np.testing.assert_array_equal(found.longitude, [6.5, 10.5, 14.5, 17.5])  # two are left over
    images = maps.transpose("time", "latitude", "longitude", "channel").values
    np.testing.assert_array_equal(found, detector.location_map(network, images))
    with pytest.raises(InputError, match="must have attention triple"):
        element_attention(build(), maps)
    with pytest.raises(InputError, match="needs the channels"):
        element_attention(network, maps[:, ::-1])
