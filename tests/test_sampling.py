"""Sampling: the share of hard windows, their importance, and a prior that comes out right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from medicane.batches import SequenceBatches
from medicane.batches.sampling import Strata, stratify
from medicane.errors import InputError
from tests.test_batches import LENGTH, N, batches, first_maps, label_pattern, numbered, rows_of


def deep_pattern(n: int = N) -> np.ndarray:
    """Maps with a deep low: those of the storm, and one long before it."""
    deep = np.zeros(n, bool)
    deep[5:7] = True
    deep[19:25] = True
    return deep


def windows_that(mask: np.ndarray) -> set[int]:
    return {s for s in range(N - LENGTH + 1) if mask[s : s + LENGTH].any()}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_share_of_hard_windows_is_as_asked_and_the_rest_is_easy(share):
    data = batches(negatives_per_positive=1.0, hard=deep_pattern(), hard_share=share)
    positive = windows_that(label_pattern() == 1)
    hard = windows_that(deep_pattern()) - positive
    for epoch in range(3):
        chosen = set(data.order(epoch))
        assert positive <= chosen
        assert len(chosen & hard) == round(share * len(positive))
        assert len(chosen) == data.n_windows == 2 * len(positive)
    assert set(data.order(0)) != set(data.order(1))


@settings(max_examples=60, deadline=None)
@given(
    n_hard=st.integers(0, 30),
    n_easy=st.integers(0, 30),
    ratio=st.floats(0.1, 12),
    share=st.floats(0.01, 1),
)
def test_the_other_stratum_fills_up(n_hard, n_easy, ratio, share):
    has = np.array([True] * 3 + [False] * (n_hard + n_easy))
    hard = np.array([True] * (3 + n_hard) + [False] * n_easy)
    strata = stratify(has, hard, negatives_per_positive=ratio, hard_share=share)
    wanted = min(round(3 * ratio), n_hard + n_easy)
    drawn_hard, drawn_easy = strata.drawn
    assert drawn_hard + drawn_easy == wanted
    assert 0 <= drawn_hard <= n_hard
    assert 0 <= drawn_easy <= n_easy
    if n_hard >= wanted and n_easy >= wanted:
        assert drawn_hard == round(share * wanted)
    chosen = strata.draw(np.random.default_rng(0))
    assert len(set(chosen)) == chosen.size == strata.n_shown
    weight = strata.importance()[chosen]
    assert (weight[:3] == 1).all()
    if wanted:
        assert weight[3:].mean() == pytest.approx(1, rel=1e-5)


def test_hard_windows_count_less_as_they_are_drawn_more():
    has = np.repeat([True, False, False], [10, 20, 180])
    hard = np.repeat([True, True, False], [10, 20, 180])
    strata = stratify(has, hard, negatives_per_positive=2, hard_share=0.5)
    assert strata.drawn == (10, 10)
    weight = strata.importance()
    # Rates 10/20 and 10/180; both together 20/200.
    np.testing.assert_allclose(weight[[0, 10, 30]], [1, 0.1 / 0.5, 0.1 / (10 / 180)], rtol=1e-6)


def test_the_offset_is_that_of_an_even_draw_of_as_many():
    """With one known map a window, the even draw's offset is the logarithm of its rate."""
    has = np.repeat([True, False, False], [10, 20, 180])
    hard = np.repeat([False, True, False], [10, 20, 180])
    positive, negative = has.astype(float), (~has).astype(float)
    for share in (0.1, 0.5, 0.9):
        strata = stratify(has, hard, negatives_per_positive=2, hard_share=share)
        assert strata.prior_offset(positive, negative) == pytest.approx(np.log(200 / 20))
    everything = stratify(has, hard, negatives_per_positive=100, hard_share=0.5)
    assert everything.prior_offset(positive, negative) == 0
    assert everything.importance() == pytest.approx(1)


def test_a_stratum_that_is_never_drawn_from_is_left_out_of_the_odds():
    has = np.repeat([True, False, False], [10, 20, 180])
    hard = np.repeat([False, True, False], [10, 20, 180])
    strata = stratify(has, hard, negatives_per_positive=1, hard_share=1.0)
    assert strata.drawn == (10, 0)
    assert strata.prior_offset(has * 1.0, ~has * 1.0) == pytest.approx(np.log(20 / 10))
    np.testing.assert_array_equal(strata.importance()[:30], 1)


def test_the_offset_without_a_medicane_among_the_known_maps_is_zero():
    strata = Strata(4, np.array([0]), (np.array([1, 2, 3]),), (1,))
    assert strata.prior_offset(np.zeros(4), np.ones(4)) == 0


def test_a_regression_on_the_sample_is_right_for_hard_and_easy_maps_after_one_offset():
    """The proof of the correction: the slope and the level of the truth come back.

    One map a window; a map is hard or easy, its value tells more or less of a medicane. Without the
    importance of the strata the coefficient of "hard" is wrong by the logarithm of their rates.
    """
    rng = np.random.default_rng(4)
    n = 200_000
    hard = rng.random(n) < 0.2
    value = rng.normal(size=n)
    logit = -4.0 + 1.5 * hard + 1.0 * value
    medicane = rng.random(n) < 1 / (1 + np.exp(-logit))
    # A medicane is a deep low too: `hard` sorts only the windows without one.
    strata = stratify(medicane, hard, negatives_per_positive=2.0, hard_share=0.7)
    chosen = strata.draw(rng)
    design = np.column_stack([hard, value])[chosen]
    offset = strata.prior_offset(medicane.astype(float), (~medicane).astype(float))

    def fitted(weight):
        model = LogisticRegression(C=np.inf, max_iter=200)
        model.fit(design, medicane[chosen], sample_weight=weight)
        return np.array([model.intercept_[0] - offset, *model.coef_[0]])

    np.testing.assert_allclose(fitted(strata.importance()[chosen]), [-4, 1.5, 1.0], atol=0.1)
    wrong = fitted(np.ones(chosen.size))
    rates = [drawn / pool.size for pool, drawn in zip(strata.pools, strata.drawn, strict=True)]
    assert wrong[1] - 1.5 == pytest.approx(-np.log(rates[0] / rates[1]), abs=0.15)


def test_the_importance_reaches_the_weights_of_the_batch():
    data = batches(
        negatives_per_positive=2.0, hard=deep_pattern(), hard_share=0.5, batch_size=1000, seed=3
    )
    maps, _, weights = data[0]
    positive = windows_that(label_pattern() == 1)
    hard = windows_that(deep_pattern()) - positive
    easy = set(range(71)) - positive - hard
    drawn = set(first_maps(maps))
    rates = [len(drawn & hard) / len(hard), len(drawn & easy) / len(easy)]
    even = len(drawn - positive) / 58
    for start, weight in zip(first_maps(maps), weights, strict=True):
        known = label_pattern()[start : start + LENGTH] != -1
        expected = 1 if start in positive else even / rates[start not in hard]
        np.testing.assert_allclose(weight, known * expected, rtol=1e-5)


def test_hard_windows_need_their_maps_told():
    with pytest.raises(
        InputError,
        match=r"train.hard_negative_share: needs to know for each of 80 maps whether it holds",
    ):
        batches(negatives_per_positive=1.0, hard_share=0.5)
    with pytest.raises(InputError, match=r"hard_negative_share: .*; found \(79,\)"):
        SequenceBatches(
            numbered(),
            rows_of(numbered()),
            labels=label_pattern(),
            negatives_per_positive=1.0,
            hard=np.zeros(79, bool),
            hard_share=0.5,
        )
