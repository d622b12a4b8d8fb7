"""Folds and bags: training rows of a member as a function of the set of samples and a seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import stats

from choral.config import ResampleConfig
from choral.core.errors import DataError
from choral.data.loading.resampling import Selection, poisson_counts, select_rows
from choral.data.shards.index import Dataset, Index, Split

FOLD = ResampleConfig(kind="fold", count=5, seed=3)
BAGS = [ResampleConfig(kind="bag", seed=3), ResampleConfig(kind="bag", seed=3, bootstrap="exact")]


def index_of(task: str = "multiclass", classes: int = 3, **columns: Any) -> Index:
    """Return an in-memory index with the columns that folds and bags use."""
    names = tuple(f"c{number}" for number in range(classes))
    split = Split(len(columns["key"]), "", "", (), ())
    dataset = Dataset(Path("toy"), "toy", task, names, (), {"train": split}, "", "")
    return Index(dataset, "train", pa.table(columns))


def keys_of(count: int) -> list[str]:
    return [f"sample {number:05}" for number in range(count)]


def shuffled(index: Index, seed: int = 0) -> Index:
    order = np.random.default_rng(seed).permutation(len(index))
    return Index(index.dataset, "train", index.table.take(pa.array(order)))


def chosen(resample: ResampleConfig, index: Index) -> Selection:
    selection = select_rows(resample, index)
    assert selection is not None
    return selection


def counts_of(resample: ResampleConfig, index: Index) -> Counter[str]:
    """Return the number of occurrences of each key; 0 if it is held out."""
    selection = chosen(resample, index)
    n = len(index)
    counts = Counter(index.keys(selection.rows % n))
    assert not counts.keys() & set(index.keys(selection.held_out))
    assert len(counts) + len(selection.held_out) == n
    return counts


def folds_of(index: Index, resample: ResampleConfig = FOLD) -> list[set[str]]:
    """Return the keys of each fold, in order of fold number."""
    parts = []
    for number in range(resample.count):
        part = chosen(resample.replace(number=number), index)
        assert sorted([*part.rows, *part.held_out]) == list(range(len(index)))
        parts.append(set(index.keys(part.held_out)))
    return parts


LABELS = np.arange(203) % 7 // 3  # 87, 87 and 29: none is divisible by 5


@pytest.fixture
def classes() -> Index:
    return index_of(key=keys_of(203), label=LABELS)


@pytest.mark.parametrize("resample", [FOLD, *BAGS], ids=["fold", "poisson", "exact"])
def test_repetitions_are_counted_and_rows_ascend(classes: Index, resample: ResampleConfig) -> None:
    selection = chosen(resample, classes)
    rows, repetitions = selection.rows % 203, selection.rows // 203
    assert (np.diff(rows) >= 0).all() and (np.diff(selection.held_out) > 0).all()
    expected = [k for row in np.unique(rows) for k in range(int((rows == row).sum()))]
    assert repetitions.tolist() == expected


@pytest.mark.parametrize("resample", [FOLD, *BAGS], ids=["fold", "poisson", "exact"])
def test_selection_depends_on_keys_and_not_on_row_order(classes: Index, resample: ResampleConfig) -> None:
    assert counts_of(resample, classes) == counts_of(resample, shuffled(classes))
    others = [resample.replace(seed=4), resample.replace(number=1)]
    assert all(counts_of(other, classes) != counts_of(resample, classes) for other in others)


def test_all_samples_without_folds_and_bags(classes: Index) -> None:
    assert select_rows(ResampleConfig(), classes) is None
    assert select_rows(ResampleConfig(kind="boost"), classes) is None


def test_folds_are_a_stratified_partition(classes: Index) -> None:
    folds = folds_of(classes)
    assert sorted(key for fold in folds for key in fold) == keys_of(203)
    assert {len(fold) for fold in folds} == {40, 41}
    label = dict(zip(keys_of(203), LABELS.tolist(), strict=True))
    for number in range(3):
        sizes = [sum(label[key] == number for key in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1, (number, sizes)


def test_groups_are_assigned_and_drawn_as_a_whole() -> None:
    """Groups of 1 to 6 samples, some without a name, each of one class: folds differ by less than the largest group."""
    sizes = np.random.default_rng(1).integers(1, 7, 60)
    groups = [f"object {number}" if number % 5 else None for number in np.repeat(np.arange(60), sizes)]
    labels = np.repeat(np.arange(60) % 2, sizes)
    index = index_of(key=keys_of(len(groups)), label=labels, group=groups)
    folds = folds_of(index)
    assert sorted(map(len, folds)) == sorted(map(len, folds_of(shuffled(index))))
    assert {frozenset(fold) for fold in folds} == {frozenset(fold) for fold in folds_of(shuffled(index))}
    of_key = dict(zip(keys_of(len(groups)), zip(groups, labels.tolist(), strict=True), strict=True))
    for fold in folds:
        own = {of_key[key][0] for key in fold} - {None}
        assert all(of_key[key][0] not in own for other in folds if other is not fold for key in other)
    for label in range(2):
        shares = [sum(of_key[key][1] == label for key in fold) for fold in folds]
        assert max(shares) - min(shares) <= 3, shares
    for resample in BAGS:
        counts = counts_of(resample, index)
        assert counts == counts_of(resample, shuffled(index))
        for name in set(groups) - {None}:
            assert (
                len({counts[key] for key, group in zip(keys_of(len(groups)), groups, strict=True) if group == name})
                == 1
            )
        alone = {counts[key] for key, group in zip(keys_of(len(groups)), groups, strict=True) if group is None}
        assert len(alone) > 1  # rows without a group are drawn individually


def test_no_fold_is_empty_if_there_are_enough_groups() -> None:
    """One group with most of the samples; and groups of a class each, which no fold misses more than another."""
    large = index_of(key=keys_of(44), label=np.zeros(44, int), group=["one"] * 40 + [f"{n}" for n in range(4)])
    assert sorted(map(len, folds_of(large))) == [1, 1, 1, 1, 40]
    apart = index_of(classes=5, key=keys_of(15), label=np.arange(15) // 3, group=[f"g{n // 3}" for n in range(15)])
    assert list(map(len, folds_of(apart))) == [3] * 5


def test_folds_are_stratified_by_label_sets_and_by_regression_targets() -> None:
    sets = [[], [0], [0, 1], [2]] * 25 + [[0, 1, 2], [1, 3], [3]]
    index = index_of(
        "multilabel", 4, key=keys_of(103), label=np.zeros(103, int), label_ids=pa.array(sets, pa.list_(pa.int32()))
    )
    of_key = dict(zip(keys_of(103), map(tuple, sets), strict=True))
    for fold in folds_of(index):
        found = Counter(of_key[key] for key in fold)
        assert [found[labels] for labels in ((), (0,), (0, 1), (2,))] == [5, 5, 5, 5]
    values = np.random.default_rng(0).permutation(100) ** 2.0
    numbers = index_of("regression", 1, key=keys_of(100), label=np.zeros(100, int), c0=values)
    value = dict(zip(keys_of(100), values.tolist(), strict=True))
    tenth = {key: int(number**0.5) // 10 for key, number in value.items()}
    assert all(Counter(tenth[key] for key in fold) == dict.fromkeys(range(10), 2) for fold in folds_of(numbers))


def test_too_few_samples_or_groups_is_an_error() -> None:
    few = index_of(key=keys_of(4), label=[0, 0, 1, 1])
    with pytest.raises(DataError, match="toy: split 'train': 4 samples are too few for 5 folds; use fewer"):
        select_rows(FOLD, few)
    grouped = index_of(key=keys_of(40), label=np.zeros(40, int), group=[f"g{n // 10}" for n in range(40)])
    with pytest.raises(DataError, match="4 groups are too few for 5 folds"):
        select_rows(FOLD, grouped)
    one = index_of(key=["k"], label=[0])
    empty = [number for number in range(20) if not poisson_of(one, number)]
    assert empty
    with pytest.raises(DataError, match=rf"bag {empty[0] + 1} of 1 samples is empty"):
        select_rows(ResampleConfig(kind="bag", number=empty[0]), one)


def poisson_of(index: Index, number: int) -> int:
    try:
        return len(chosen(ResampleConfig(kind="bag", number=number), index).rows)
    except DataError:
        return 0


def frequencies(resample: ResampleConfig, index: Index) -> NDArray[np.int64]:
    """Return the number of occurrences of each row, (n,)."""
    return np.bincount(chosen(resample, index).rows % len(index), minlength=len(index))


def test_poisson_counts_follow_the_poisson_distribution(large: Index) -> None:
    """A chi-square test over 5 bags of 20,000 keys; a correct generator fails for one seed in 1,000."""
    counts = np.concatenate([frequencies(BAGS[0].replace(number=number), large) for number in range(5)])
    observed = np.bincount(counts.clip(max=6), minlength=7)
    expected = np.append(stats.poisson.pmf(np.arange(6), 1), stats.poisson.sf(5, 1)) * len(counts)
    assert stats.chisquare(observed, expected).pvalue > 1e-3, observed


def test_exact_bootstrap_draws_n_of_n(large: Index) -> None:
    """Totals are exact, counts binomial: P(never) = (1 - 1/n)^n; four standard deviations, whose variance is Weiss's
    n (1/e - 2/e^2); and a chi-square test of the counts, whose slight dependence makes it only milder."""
    n = len(large)
    all_counts = []
    for number in range(5):
        counts = frequencies(BAGS[1].replace(number=number), large)
        assert counts.sum() == n
        deviation = np.sqrt(n * (np.exp(-1) - 2 * np.exp(-2)))
        assert abs((counts == 0).sum() - n * (1 - 1 / n) ** n) <= 4 * deviation
        all_counts.append(counts)
    observed = np.bincount(np.concatenate(all_counts).clip(max=6), minlength=7)
    expected = np.append(stats.binom.pmf(np.arange(6), n, 1 / n), stats.binom.sf(5, n, 1 / n)) * 5 * n
    assert stats.chisquare(observed, expected).pvalue > 1e-3, observed


@pytest.mark.parametrize("resample", BAGS, ids=["poisson", "exact"])
def test_bags_are_independent(large: Index, resample: ResampleConfig) -> None:
    """Counts of two bags are uncorrelated (four standard errors), and 10 bags see (1 - 1/e)^10 of the samples all."""
    bags = np.stack([frequencies(resample.replace(number=number), large) for number in range(10)])
    off_diagonal = np.corrcoef(bags)[~np.eye(10, dtype=bool)]
    assert np.abs(off_diagonal).max() <= 4 / np.sqrt(len(large))
    share = (1 - np.exp(-1)) ** 10
    seen_by_all = (bags > 0).all(axis=0).mean()
    assert abs(seen_by_all - share) <= 4 * np.sqrt(share / len(large))


@pytest.fixture(scope="module")
def large() -> Index:
    return index_of(key=keys_of(20_000), label=np.zeros(20_000, int))


def test_poisson_bounds_are_exact_and_cover_all_hashes() -> None:
    """The bounds are those of the distribution function to a part in 2^53, and no hash is left without a count."""
    hashes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert poisson_counts(hashes).tolist() == [0, 20]
    for count in range(12):
        bound = int(stats.poisson.cdf(count, 1) * 2.0**53) << 11
        near = np.array([bound - 2**13, min(bound + 2**13, 2**64 - 1)], dtype=np.uint64)
        assert poisson_counts(near).tolist() == [count, count + 1]
