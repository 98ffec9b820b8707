"""The head with its state carried: in pieces of any length it is the head read in one go."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from medicane import model as detector
from medicane.errors import InputError
from tests.small_networks import VARIANTS, build

CARRIED = ("gru", "lstm", "feedback_gru", "feedback_lstm", "recurrent_dropout")
NOT_CARRIED = {"single_map": "each_alone", "tcn": "tcn", "bidirectional": "both_ways"}


def features_for(model: keras.Model, *shape: int) -> np.ndarray:
    width = detector.head_of(model).input_shape[-1]
    return np.random.default_rng(4).normal(size=(*shape, width)).astype(np.float32)


def start(head: keras.Model, n: int) -> list[np.ndarray]:
    return [np.zeros((n, state.shape[-1]), np.float32) for state in head.inputs[1:]]


def in_pieces(head: keras.Model, features: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Logits (B, T) of a sequence read piece by piece, the state carried."""
    states: list[Any] = start(head, len(features))
    found = []
    for piece in np.split(features, np.cumsum(lengths)[:-1], axis=1):
        logit, *states = head([keras.ops.array(part) for part in (piece, *states)], training=False)
        found.append(np.asarray(logit)[..., 0])
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", CARRIED)
def test_in_pieces_it_is_the_head_in_one_go(name: str) -> None:
    model = build(**VARIANTS[name])
    detector.set_calibration(model, temperature=1.5, offset=0.3)
    features = features_for(model, 3, 14)
    expected = np.asarray(detector.head_of(model)(features, training=False))[..., 0]
    head = detector.carried_head(model)
    for lengths in ([14], [1] * 14, [5, 1, 8]):
        np.testing.assert_allclose(in_pieces(head, features, lengths), expected, atol=2e-6)
    # The state counts: begun anew in the middle, the second half is another.
    anew = in_pieces(head, features[:, 7:], [7])
    assert np.abs(anew - expected[:, 7:]).max() > 1e-3


def test_the_members_of_an_ensemble_carry_theirs() -> None:
    models = [build(seed=1), build(seed=2, rnn="lstm"), build(seed=3, label_feedback=True)]
    together = detector.ensemble_of(models)
    detector.set_calibration(together, temperature=2.0, offset=-0.4)
    features = features_for(together, 2, 9)
    head = detector.carried_head(together)
    # GRU: one state; LSTM: two; feedback: that of its GRU and the last probability.
    assert [state.shape[-1] for state in head.inputs[1:]] == [6, 6, 6, 6, 1]
    expected = np.asarray(detector.head_of(together)(features, training=False))[..., 0]
    np.testing.assert_allclose(in_pieces(head, features, [4, 1, 4]), expected, atol=2e-6)


@pytest.mark.parametrize("name", CARRIED)
def test_the_weights_are_the_detectors_own(name: str) -> None:
    model = build(**VARIANTS[name])
    head = detector.carried_head(model)
    assert {id(w) for w in head.weights} == {id(w) for w in detector.head_of(model).weights}


@pytest.mark.parametrize("name", NOT_CARRIED)
def test_what_has_no_state_to_carry_is_refused(name: str) -> None:
    with pytest.raises(
        InputError, match=f"a GRU or LSTM reads the maps in their order; found {NOT_CARRIED[name]}"
    ):
        detector.carried_head(build(**VARIANTS[name]))


def test_one_member_without_a_state_is_enough_to_refuse() -> None:
    with pytest.raises(InputError, match="found tcn"):
        detector.carried_head(detector.ensemble_of([build(seed=1), build(seed=2, rnn="tcn")]))


def test_a_sequence_is_as_long_as_the_facts_say() -> None:
    assert detector.longest_sequence(build()) == 10  # one window, where a file does not say
    long = [build(seed=s, facts={"longest_sequence": n}) for s, n in ((1, 30), (2, 20))]
    assert detector.longest_sequence(long[0]) == 30
    assert detector.longest_sequence(detector.ensemble_of(long)) == 20
    assert detector.longest_sequence(detector.ensemble_of([*long, build(seed=3)])) == 10
