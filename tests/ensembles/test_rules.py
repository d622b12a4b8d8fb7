"""Soft and hard votes against loops in Python, with ties of every kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choral.ensembles.rules import Combiner, hard_vote, probabilities_from_scores, soft_vote


def stack(*members: list[list[float]]) -> np.ndarray:
    return np.array(members, dtype=np.float32)


def test_soft_is_the_mean() -> None:
    votes = soft_vote(stack([[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]]))
    assert votes.dtype == np.float32
    np.testing.assert_allclose(votes, [[0.7, 0.3], [0.3, 0.7]], rtol=1e-6)


def test_an_ensemble_of_one_equals_its_member() -> None:
    member = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype(np.float32)[None]
    np.testing.assert_array_equal(soft_vote(member), member[0])
    votes = hard_vote(member)
    np.testing.assert_array_equal(votes.predictions, member[0].argmax(1))
    assert not votes.tied.any()


@pytest.mark.parametrize(
    ("members", "prediction", "tied"),
    [
        # Two of three: the majority wins against the larger mean of the other class.
        (([0.6, 0.4], [0.6, 0.4], [0.0, 1.0]), 0, False),
        # One against one: the more confident one wins.
        (([0.6, 0.4], [0.1, 0.9]), 1, True),
        # Only among the tied: class 2 has the largest mean, but no vote.
        (([0.5, 0.05, 0.45], [0.04, 0.5, 0.46]), 1, True),
        # Equal votes and equal means: the first class.
        (([0.25, 0.75], [0.75, 0.25]), 0, True),
        # Ties within a member: it votes for the first class.
        (([0.5, 0.5], [0.5, 0.5]), 0, False),
    ],
)
def test_hard(members: tuple[list[float], ...], prediction: int, tied: bool) -> None:
    votes = hard_vote(stack(*([row] for row in members)))
    assert votes.predictions.tolist() == [prediction]
    assert votes.tied.tolist() == [tied]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_hard_equals_a_loop(members: int, count: int, classes: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 5, (members, count, classes)).astype(np.float32)
    values /= 4
    votes = hard_vote(values)
    for sample in range(count):
        ballots = Counter(int(values[member, sample].argmax()) for member in range(members))
        most = max(ballots.values())
        leading = [name for name in range(classes) if ballots[name] == most]
        winner = max(leading, key=lambda name: (values[:, sample, name].astype(float).mean(), -name))
        assert votes.predictions[sample] == winner
        assert votes.tied[sample] == (len(leading) > 1)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_geometric_mean_is_the_mean_of_logits(task: str) -> None:
    logits = np.random.default_rng(3).normal(0, 2, (4, 50, 3)).astype(np.float32)
    stack = np.stack([probabilities_from_scores(values.copy(), task) for values in logits])
    expected = probabilities_from_scores(logits.mean(axis=0), task)
    found = Combiner("geometric", task)(stack).predictions
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - Combiner("soft", task)(stack).predictions).max() > 0.02
    if task == "multiclass":
        by_hand = np.prod(stack.astype(np.float64), axis=0) ** 0.25
        np.testing.assert_allclose(found, by_hand / by_hand.sum(axis=1, keepdims=True), atol=1e-5)
