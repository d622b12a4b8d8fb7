from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choral.core.errors import DataError
from choral.data.shards.splits import (
    TEST,
    TRAIN,
    VAL,
    allocate_largest_remainder,
    hash_keys,
    split_sizes,
    stratified_split,
)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_sizes_are_exact_and_strata_in_proportion(sizes: list[int], val: float, test: float, seed: int) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    keys = [f"k{i}" for i in range(len(strata))]
    target = split_sizes(len(keys), val, test)
    if sum(target) >= len(keys):
        with pytest.raises(DataError, match="are too few for"):
            stratified_split(keys, strata, *target, seed)
        return
    result = stratified_split(keys, strata, *target, seed)
    assert ((result == VAL).sum(), (result == TEST).sum()) == target
    spare = sum(size - 1 for size in sizes)
    for stratum, size in enumerate(sizes):
        split = result[strata == stratum]
        if spare >= sum(target):
            assert (split == TRAIN).any(), "a stratum is missing in training although there are enough samples"
        if size * len(sizes) > len(keys) * 0.5 and min(sizes) > 9:  # no stratum is at its capacity
            assert abs((split == TEST).sum() - target[1] * size / len(keys)) <= 1
            assert abs((split == VAL).sum() - target[0] * size / len(keys)) <= 1


def test_largest_remainder_against_a_worked_example() -> None:
    sizes = np.array([47000, 16000, 15900, 12000, 6000, 3100])  # a textbook election: 10 seats, quota 10,000
    assert allocate_largest_remainder(10, sizes, sizes).tolist() == [5, 2, 1, 1, 1, 0]


def test_splits_depend_on_keys_and_seed_not_on_order() -> None:
    keys = [f"cell{i:04d}" for i in range(200)]
    strata = np.arange(200) % 3
    shuffled = np.random.default_rng(0).permutation(200)
    first = stratified_split(keys, strata, 20, 50, seed=3)
    again = stratified_split([keys[i] for i in shuffled], strata[shuffled], 20, 50, seed=3)
    assert (first[shuffled] == again).all()
    assert (stratified_split(keys, strata, 20, 50, seed=4) != first).sum() > 40


def test_hashes_differ_by_purpose_and_seed() -> None:
    keys = ["a", "b"]
    assert len({tuple(hash_keys(keys, seed, purpose).tolist()) for seed in (0, 1) for purpose in ("split", "x")}) == 4


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_groups_stay_together_and_sizes_are_close(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=60, max_size=90))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n = len(groups)
    strata = groups % 2
    order = np.array(data.draw(st.permutations(range(n))))
    keys = np.array([f"k{i}" for i in range(n)])
    result = stratified_split(list(keys[order]), strata[order], n // 5, n // 4, 7, groups[order])
    for group in range(len(sizes)):
        assert len(set(result[groups[order] == group])) == 1
    assert abs((result == VAL).sum() - n // 5) <= 6
    assert abs((result == TEST).sum() - n // 4) <= 6
    unshuffled = stratified_split(list(keys), strata, n // 5, n // 4, 7, groups)
    assert (unshuffled[order] == result).all()


def test_no_group_goes_into_a_split_of_size_0() -> None:
    groups = np.repeat(np.arange(40), 7)
    strata = np.arange(280) % 11 // 5
    keys = [f"k{i}" for i in range(280)]
    assert not (stratified_split(keys, strata, 0, 30, 0, groups) == VAL).any()
    assert not (stratified_split(keys, strata, 30, 0, 0, groups) == TEST).any()


def test_too_few_groups_are_an_error() -> None:
    groups = np.repeat(np.arange(3), 50)
    keys = [f"k{i}" for i in range(150)]
    with pytest.raises(DataError, match=r"3 groups are too few: the (validation|test) split would be empty"):
        stratified_split(keys, np.zeros(150, dtype=np.int64), 15, 15, 0, groups)


@pytest.mark.parametrize(("count", "val", "test", "expected"), [
    (2624, 0.1, 0.25, (262, 656)), (4, 0.1, 0.1, (1, 1)), (100, 0.0, 0.2, (0, 20)),
])  # fmt: skip
def test_split_sizes(count: int, val: float, test: float, expected: tuple[int, int]) -> None:
    assert split_sizes(count, val, test) == expected
