from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choral.core.errors import DataError
from choral.data.shards.splits import TEST, TRAIN, VAL, apportion, carve, key_hashes, shares


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_totals_are_exact_and_strata_near_their_share(sizes: list[int], val: float, test: float, seed: int) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    keys = [f"k{i}" for i in range(len(strata))]
    wanted = shares(len(keys), val, test)
    if sum(wanted) >= len(keys):
        with pytest.raises(DataError, match="cannot give"):
            carve(keys, strata, *wanted, seed)
        return
    result = carve(keys, strata, *wanted, seed)
    assert ((result == VAL).sum(), (result == TEST).sum()) == wanted
    spare = sum(size - 1 for size in sizes)
    for stratum, size in enumerate(sizes):
        mine = result[strata == stratum]
        if spare >= sum(wanted):
            assert (mine == TRAIN).any(), "a stratum is missing in training without need"
        if size * len(sizes) > len(keys) * 0.5 and min(sizes) > 9:  # no stratum is at its capacity
            assert abs((mine == TEST).sum() - wanted[1] * size / len(keys)) <= 1
            assert abs((mine == VAL).sum() - wanted[0] * size / len(keys)) <= 1


def test_largest_remainder_against_a_worked_example() -> None:
    sizes = np.array([47000, 16000, 15900, 12000, 6000, 3100])  # the textbook election: 10 seats, quota 10,000
    assert apportion(10, sizes, sizes).tolist() == [5, 2, 1, 1, 1, 0]


def test_depends_on_keys_and_seed_not_on_order() -> None:
    keys = [f"cell{i:04d}" for i in range(200)]
    strata = np.arange(200) % 3
    shuffled = np.random.default_rng(0).permutation(200)
    first = carve(keys, strata, 20, 50, seed=3)
    again = carve([keys[i] for i in shuffled], strata[shuffled], 20, 50, seed=3)
    assert (first[shuffled] == again).all()
    assert (carve(keys, strata, 20, 50, seed=4) != first).sum() > 40


def test_hashes_differ_by_purpose_and_seed() -> None:
    keys = ["a", "b"]
    assert len({tuple(key_hashes(keys, seed, purpose).tolist()) for seed in (0, 1) for purpose in ("split", "x")}) == 4


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_groups_stay_together_and_shares_are_near(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=60, max_size=90))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n = len(groups)
    strata = groups % 2
    order = np.array(data.draw(st.permutations(range(n))))
    keys = np.array([f"k{i}" for i in range(n)])
    result = carve(list(keys[order]), strata[order], n // 5, n // 4, 7, groups[order])
    for group in range(len(sizes)):
        assert len(set(result[groups[order] == group])) == 1
    assert abs((result == VAL).sum() - n // 5) <= 6
    assert abs((result == TEST).sum() - n // 4) <= 6
    plain = carve(list(keys), strata, n // 5, n // 4, 7, groups)
    assert (plain[order] == result).all()


def test_groups_do_not_go_where_nothing_was_asked_for() -> None:
    groups = np.repeat(np.arange(40), 7)
    strata = np.arange(280) % 11 // 5
    keys = [f"k{i}" for i in range(280)]
    assert not (carve(keys, strata, 0, 30, 0, groups) == VAL).any()
    assert not (carve(keys, strata, 30, 0, 0, groups) == TEST).any()


def test_too_few_groups_are_an_error() -> None:
    groups = np.repeat(np.arange(3), 50)
    keys = [f"k{i}" for i in range(150)]
    with pytest.raises(DataError, match=r"3 groups cannot be divided: (validation|testing) would get none"):
        carve(keys, np.zeros(150, dtype=np.int64), 15, 15, 0, groups)


@pytest.mark.parametrize(("count", "val", "test", "expected"), [
    (2624, 0.1, 0.25, (262, 656)), (4, 0.1, 0.1, (1, 1)), (100, 0.0, 0.2, (0, 20)),
])  # fmt: skip
def test_shares(count: int, val: float, test: float, expected: tuple[int, int]) -> None:
    assert shares(count, val, test) == expected
