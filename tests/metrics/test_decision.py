"""Thresholds against an exhaustive search, expected costs worked by hand, and confidence thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from choral.core.errors import ConfigError
from choral.metrics.decision import (
    apply_threshold,
    choose_confidence_threshold,
    choose_threshold,
    minimize_expected_cost,
)


@pytest.fixture(name="scored")
def labels_and_probabilities() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = np.round(rng.random(200), 2).astype(np.float32)  # with ties
    return rng.random(200) < 0.2 + 0.6 * probabilities, probabilities


@pytest.mark.parametrize("rule", ["f1", "recall>=0.9", "precision>=0.7"])
def test_thresholds_match_an_exhaustive_search(rule: str, scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scored
    found = choose_threshold(labels, probabilities, rule)
    predicted = probabilities >= found.value
    expected = [score(labels, predicted) for score in (precision_score, recall_score, f1_score)]
    assert [found.precision, found.recall, found.f1] == pytest.approx(expected)
    assert found.value not in probabilities
    every = probabilities[:, None] >= np.unique(probabilities)  # a column a threshold
    hits = (every & labels[:, None]).sum(axis=0)
    precision, recall = hits / every.sum(axis=0), hits / labels.sum()
    f1 = 2 * hits / (every.sum(axis=0) + labels.sum())
    if rule == "f1":
        assert found.f1 == pytest.approx(f1.max())
    elif rule.startswith("recall"):
        assert found.recall >= 0.9 and found.precision == pytest.approx(precision[recall >= 0.9].max())
    else:
        assert found.precision >= 0.7 and found.recall == pytest.approx(recall[precision >= 0.7].max())


def test_invalid_rules_are_rejected(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scored
    with pytest.raises(ConfigError, match="precision>=1: no threshold reaches it on validation; the highest precision"):
        choose_threshold(~labels, probabilities, "precision>=1")
    with pytest.raises(ConfigError, match="no validation sample has this class"):
        choose_threshold(np.zeros(200, bool), probabilities, "f1")
    for rule in ("f2", "recall>0.9", "recall>=1.5", "precision>=0", "recall>=0.9.1"):
        with pytest.raises(ConfigError, match="invalid rule .*: expected f1, recall>=R or precision>=P"):
            choose_threshold(labels, probabilities, rule)


def test_threshold_of_one_class() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.6, 0.1, 0.3]], np.float32)
    assert apply_threshold(probabilities, 0, 0.15).tolist() == [0, 2, 0]
    assert apply_threshold(probabilities, 0, 0.7).tolist() == [1, 2, 2]


def test_least_expected_cost() -> None:
    probabilities = np.array([[0.95, 0.05], [0.85, 0.15], [0.5, 0.5]], np.float32)
    equal_costs = np.array([[0.0, 1], [1, 0]])
    assert minimize_expected_cost(probabilities, equal_costs).tolist() == [0, 0, 0]
    # Missing the second class costs ten: it is predicted from a probability of 1/11 on.
    assert minimize_expected_cost(probabilities, np.array([[0.0, 1], [10, 0]])).tolist() == [0, 1, 1]
    assert minimize_expected_cost(probabilities, np.zeros((2, 2))).tolist() == [0, 0, 0]


def test_unsure_below() -> None:
    confidence = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    is_correct = np.array([False, True, False, True, True])
    assert choose_confidence_threshold(confidence, is_correct, "0.77") == 0.77
    assert choose_confidence_threshold(confidence, is_correct, "accuracy>=0.75") == pytest.approx(
        0.55
    )  # three of four are correct
    assert choose_confidence_threshold(confidence, is_correct, "accuracy>=0.9") == pytest.approx(0.75)
    assert choose_confidence_threshold(confidence, is_correct, "coverage>=0.6") == pytest.approx(0.65)
    assert choose_confidence_threshold(confidence, is_correct, "coverage>=1") == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="not reached on validation; the most confident predictions reach 0.000"):
        choose_confidence_threshold(confidence, ~is_correct[::-1] & False, "accuracy>=0.5")
    with pytest.raises(ConfigError, match="expected a probability, accuracy>=A or coverage>=C, got 'most'"):
        choose_confidence_threshold(confidence, is_correct, "most")
