"""The curriculum: which lengths, when it goes on, and that it can be put away and taken up."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medicane.config import Train
from medicane.train.curriculum import PLATEAU_EPOCHS, STAGE_SHARE, Unroll, stage_lengths


@pytest.mark.parametrize(
    ("length", "stages"),
    [
        (10, (3, 5, 10)),
        (12, (3, 6, 12)),
        (15, (4, 8, 15)),
        (3, (3,)),
        (4, (4,)),
        (24, (3, 6, 12, 24)),
    ],
)
def test_lengths_double_up_to_the_whole_sequence(length, stages):
    assert stage_lengths(length) == stages


@given(st.integers(1, 200))
def test_no_stage_is_shorter_than_three_maps_or_grows_more_than_twofold(length):
    stages = stage_lengths(length)
    assert stages[-1] == length
    assert all(a >= 3 for a in stages[:-1])
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(stages))


def followed(scores: list[float], *, epochs: int = 100, length: int = 12) -> list[int]:
    """Length of the sequences in each epoch."""
    unroll = Unroll(stage_lengths(length), epochs)
    lengths = []
    for epoch, score in enumerate(scores, start=1):
        lengths.append(unroll.length)
        unroll.follow(epoch, score)
    return lengths


def test_a_plateau_doubles_the_length():
    scores = [0.1, 0.2, 0.3, 0.3, 0.25, 0.1, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1]
    # Best of the first stage in epoch 3, two without a better one; of the second in epoch 7.
    assert followed(scores) == [3] * 5 + [6] * 4 + [12] * 3


def test_each_stage_is_measured_by_its_own_best():
    scores = [0.5, 0.1, 0.1, 0.2, 0.3, 0.35, 0.3, 0.3]
    # 0.2 to 0.35 are below the first stage's best and progress all the same.
    assert followed(scores) == [3, 3, 3, 6, 6, 6, 6, 6]


def test_a_stage_that_keeps_improving_ends_after_its_share_of_the_epochs():
    rising = [i / 20 for i in range(20)]
    assert followed(rising, epochs=20) == [3] * 4 + [6] * 4 + [12] * 12
    assert STAGE_SHARE * 20 == 4
    # However few epochs there are, each stage has one.
    assert followed([0.1, 0.2, 0.3], epochs=3) == [3, 6, 12]


def test_a_stage_without_any_skill_ends_too():
    assert followed([float("-inf")] * 6)[: PLATEAU_EPOCHS + 1] == [3, 3, 6]


def test_the_last_stage_stays():
    unroll = Unroll((3,), 10)
    assert unroll.whole
    assert not any(unroll.follow(epoch, 0.0) for epoch in range(1, 30))
    assert unroll.length == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 29))
def test_put_away_and_taken_up_it_goes_on_alike(scores, cut):
    whole = Unroll(stage_lengths(12), 30)
    parted = Unroll(stage_lengths(12), 30)
    for epoch, score in enumerate(scores, start=1):
        assert whole.follow(epoch, score) == parted.follow(epoch, score)
        if epoch == cut:
            parted = Unroll.from_json(json.loads(json.dumps(parted.to_json())))
        assert whole == parted


def test_runs_of_many_lengths_cannot_be_cut_into_pieces_too():
    with pytest.raises(ValueError, match="curriculum unroll needs windows; found variable_length"):
        Train(curriculum="unroll", variable_length=True)
