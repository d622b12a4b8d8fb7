"""Majority votes of independent members, against exact fractions and SciPy's binomial distribution."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import binom

from choral.metrics.independent_members import equivalent_independent_members, majority_error, unequal_majority_error


def exact(rates: list[Fraction]) -> Fraction:
    """Sum the probabilities of all wrong outcomes; ties count half."""
    total = Fraction(0)
    for wrong in product((0, 1), repeat=len(rates)):
        probability = Fraction(1)
        for is_wrong, rate in zip(wrong, rates, strict=True):
            probability *= rate if is_wrong else 1 - rate
        twice = 2 * sum(wrong)
        total += probability * (1 if twice > len(rates) else Fraction(1, 2) if twice == len(rates) else 0)
    return total


def test_three_members_of_one_percent() -> None:
    assert majority_error(0.01, 3) == pytest.approx(0.000298, rel=1e-12)
    assert unequal_majority_error([0.01] * 3) == pytest.approx(0.000298, rel=1e-12)


@pytest.mark.parametrize(
    "rate", [Fraction(0), Fraction(1, 1000), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10), Fraction(1)]
)
def test_small_numbers_are_exact_and_ties_count_half(rate: Fraction) -> None:
    for members in range(1, 9):
        expected = pytest.approx(float(exact([rate] * members)), rel=1e-12, abs=1e-300)
        assert majority_error(float(rate), members) == expected
        assert unequal_majority_error([float(rate)] * members) == expected


def test_unequal_members() -> None:
    rates = [Fraction(1, 10), Fraction(1, 4), Fraction(2, 5), Fraction(1, 100)]
    for count in range(1, 5):
        found = unequal_majority_error([float(rate) for rate in rates[:count]])
        assert found == pytest.approx(float(exact(rates[:count])), rel=1e-12)


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.3, 0.49, 0.4999])
@pytest.mark.parametrize("members", [11, 101, 10_001])
def test_large_numbers_match_the_binomial_distribution(members: int, rate: float) -> None:
    assert majority_error(rate, members) == pytest.approx(binom.sf(members // 2, members, rate), rel=1e-9, abs=1e-300)
    assert 0 <= majority_error(rate, members) <= rate
    assert majority_error(rate, members + 1) == majority_error(rate, members)


def test_small_tails_keep_their_digits() -> None:
    """Values this small would be 0 if computed as 1 minus a distribution function."""
    terms = [
        comb(41, wrong) * Fraction(1, 10**6) ** wrong * (1 - Fraction(1, 10**6)) ** (41 - wrong)
        for wrong in range(21, 42)
    ]
    assert majority_error(1e-6, 41) == pytest.approx(float(sum(terms)), rel=1e-12)
    assert majority_error(1e-6, 41) < 1e-110


def test_equivalent_members_invert_the_majority_error() -> None:
    for rate in (1e-4, 0.13, 0.45):
        assert equivalent_independent_members(rate, rate) == pytest.approx(1.0, abs=1e-6)
        for members in (3, 5, 21):
            assert equivalent_independent_members(majority_error(rate, members), rate) == pytest.approx(
                members, rel=1e-7
            )
        between = equivalent_independent_members(
            float(np.mean([majority_error(rate, members) for members in (3, 5)])), rate
        )
        assert between is not None and 3 < between < 5


@pytest.mark.parametrize(("error", "rate"), [(0.2, 0.1), (0.0, 0.1), (0.5, 0.5), (0.4, 0.6), (0.0, 0.0)])
def test_no_number_of_members_reaches_the_error(error: float, rate: float) -> None:
    assert equivalent_independent_members(error, rate) is None
