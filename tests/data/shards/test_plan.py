"""The order of samples: properties of a pure function, tested on sizes that do not divide evenly."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from choral.core.counter_rng import make_key, permute, uniform
from choral.core.errors import ConfigError
from choral.data.shards.epoch_plan import (
    BalancedPlan,
    EpochPlan,
    RowsByClass,
    WeightedPlan,
    evaluation_batches,
    rank_slice,
)


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0))
    lanes = draw(st.integers(1, min(4, sum(sizes))))
    batch = lanes * draw(st.integers(1, max(1, sum(sizes) // lanes)))
    window = draw(st.sampled_from([1, 2, 3, 7, 16, 65536]))
    seed, epoch = draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 1000))
    return EpochPlan(seed, epoch, np.array(sizes), batch, lanes, window)


@given(plans(), st.data())
@settings(max_examples=150, deadline=None)
def test_every_sample_once_but_for_the_last_partial_batch(plan: EpochPlan, data: st.DataObject) -> None:
    samples = int(plan._shard_ends[-1])
    rows = np.concatenate([plan.batch(step) for step in range(plan.steps)])
    assert len(rows) == plan.steps * plan.global_batch > samples - plan.global_batch
    assert len(set(rows.tolist())) == len(rows)
    assert rows.min() >= 0 and rows.max() < samples


@given(plans(), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_slices_of_ranks_are_disjoint_and_complete(plan: EpochPlan, world_size: int) -> None:
    for step in range(plan.steps):
        batch = plan.batch(step)
        slices = [batch[rank_slice(len(batch), rank, world_size)] for rank in range(world_size)]
        assert np.array_equal(np.concatenate(slices), batch)
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 8))
def test_evaluation_reads_every_row_once(count: int, world_size: int, batch: int) -> None:
    parts = [list(evaluation_batches(count, rank, world_size, batch)) for rank in range(world_size)]
    rows = [row for part in parts for rows in part for row in rows.tolist()]
    assert rows == list(range(count))
    assert all(1 <= len(rows) <= batch for part in parts for rows in part)


def test_a_batch_needs_no_other_batch() -> None:
    sizes = np.array([7, 5, 1, 30])
    forward = [EpochPlan(1, 2, sizes, 4).batch(step) for step in range(10)]
    plan = EpochPlan(1, 2, sizes, 4)
    for step in reversed(range(10)):
        assert np.array_equal(plan.batch(step), forward[step])


@pytest.mark.parametrize("window", [8, 65536])
def test_epochs_and_seeds_differ(window: int) -> None:
    sizes = np.array([50, 50, 50])
    orders = {
        tuple(np.concatenate([EpochPlan(seed, epoch, sizes, 10, 1, window).batch(step) for step in range(15)]).tolist())
        for seed in range(3)
        for epoch in range(4)
    }
    assert len(orders) == 12


def test_a_window_that_holds_the_data_shuffles_uniformly() -> None:
    """Chi-square test of how often sample i comes at position j in 6,000 epochs, against a uniform shuffle."""
    size, epochs = 13, 6000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[EpochPlan(7, epoch, np.array([5, 8]), size).batch(0), np.arange(size)] += 1
    statistic = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    # Rows and columns have fixed sums. One chance in a million to fail for a truly uniform shuffle.
    assert statistic < stats.chi2.ppf(1 - 1e-6, (size - 1) ** 2)


def test_neighbours_are_as_far_apart_as_after_a_uniform_shuffle() -> None:
    """Mean distance between neighbours of a shard: n / 3 after a uniform shuffle of n samples."""
    size = 20_000
    place = np.empty(size)
    place[EpochPlan(3, 0, np.full(20, 1000), size).batch(0)] = np.arange(size)
    assert np.abs(np.diff(place)).mean() == pytest.approx(size / 3, rel=0.02)


def test_a_small_window_still_mixes_over_more_than_itself() -> None:
    size, window = 8192, 256
    places = np.empty(size)
    places[EpochPlan(3, 0, np.array([size]), size, 1, window).batch(0)] = np.arange(size)
    moved = np.abs(places - np.arange(size))
    assert window / 3 < moved.mean() < 2 * window  # a uniform shuffle of the window alone moves by a third of it
    assert window < moved.max() < 3 * window  # samples leave their window but stay near it


def test_lanes_share_the_batch_and_bound_the_open_shards() -> None:
    sizes = np.full(64, 100)
    shard_of = np.repeat(np.arange(64), 100)
    one, eight = EpochPlan(0, 0, sizes, 32, 1, 200), EpochPlan(0, 0, sizes, 32, 8, 200)
    for step in (0, 50, 199):
        by_lane = shard_of[eight.batch(step)].reshape(8, 4)
        # A rank with one lane reads the shards of a window, not those of the whole batch.
        assert all(len(set(lane)) <= 4 for lane in by_lane.tolist())
        for first in range(8):
            for second in range(first):
                assert not set(by_lane[first]) & set(by_lane[second])
        assert len(set(shard_of[one.batch(step)])) <= 6


def test_the_first_batch_of_a_million_samples_is_fast() -> None:
    sizes = np.full(1000, 1000)
    EpochPlan(0, 0, sizes, 256).batch(0)  # warm-up
    best = min(_seconds(lambda: EpochPlan(0, 1, sizes, 256).batch(0)) for _ in range(5))
    assert best < 0.05


def test_memory_does_not_grow_with_the_data() -> None:
    peaks = []
    for samples in (10**6, 10**9):
        sizes = np.full(1000, samples // 1000)
        tracemalloc.start()
        EpochPlan(0, 0, sizes, 256).batch(3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 2**21


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 14}, r"batch of 14 samples is larger than the split \(13\)"),
        ({"global_batch": 4, "lanes": 3}, "not divisible by 3 lanes"),
        ({"global_batch": 0}, "must be at least 1"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpochPlan(0, 0, np.array([13]), **arguments)


@given(st.integers(1, 2000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(length: int, key: int) -> None:
    images = permute(np.arange(length), np.full(length, length), np.full(length, key, dtype=np.uint64))
    assert sorted(images.tolist()) == list(range(length))


def test_uniform_is_uniform_and_independent_of_its_neighbours() -> None:
    rows = np.arange(20_000)
    numbers = uniform(1, 2, rows, 3)
    assert np.array_equal(uniform(1, 2, rows[5:9], 3), numbers[5:9])
    assert np.array_equal(uniform(1, 2, rows, 2), numbers[:, :2])
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-6
    others = [uniform(1, 2, rows, 3, stream=1), uniform(1, 3, rows, 3), uniform(2, 2, rows, 3)]
    for other in [*others, np.roll(numbers, 1, axis=0), np.roll(numbers, 1, axis=1)]:
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.02
    assert numbers.min() >= 0 and numbers.max() < 1


def test_keys_depend_on_order_and_sign() -> None:
    assert len({int(make_key(*parts)) for parts in [(0,), (0, 0), (0, 1), (1, 0), (-1, 0), (2**40, 0)]}) == 6


def test_slices_cover_the_range() -> None:
    for count in range(9):
        for world_size in range(1, 6):
            parts = [rank_slice(count, rank, world_size) for rank in range(world_size)]
            assert [row for part in parts for row in range(count)[part]] == list(range(count))


LABELS = np.array([0] * 60 + [1] * 3 + [3] * 17)[np.random.default_rng(0).permutation(80)]


def balanced(epoch: int, batch: int = 10) -> NDArray[np.int64]:
    plan = BalancedPlan(7, epoch, RowsByClass(LABELS), batch)
    assert plan.steps == 80 // batch
    return np.concatenate([plan.batch(step) for step in range(plan.steps)])


def test_balanced_batches_have_all_classes_equally_often() -> None:
    """80 samples of three classes, batches of 10: every block of three samples has three classes."""
    drawn = np.concatenate([balanced(epoch) for epoch in range(3)])
    labels = LABELS[drawn % 80].reshape(-1, 3)
    assert (np.sort(labels, axis=1) == [0, 1, 3]).all()
    assert len({tuple(block) for block in labels.tolist()}) == 6  # in every order


def test_balanced_sampling_uses_all_samples_of_a_class_before_it_repeats_any() -> None:
    drawn = np.concatenate([balanced(epoch) for epoch in range(3)])
    for label in (0, 1, 3):
        rows = drawn[LABELS[drawn % 80] == label]
        size = int((label == LABELS).sum())
        assert len(rows) == 80
        for start in range(0, 80, size):
            part = rows[start : start + size]
            assert len(set(part % 80)) == len(part)
            assert set(part // 80) == {start // size}  # repetitions are distinct
    assert len(set(drawn)) == len(drawn)
    orders = {
        tuple(rows[start : start + 3] % 80) for rows in [drawn[LABELS[drawn % 80] == 1]] for start in range(0, 78, 3)
    }
    assert len(orders) > 3


def test_a_balanced_batch_does_not_depend_on_earlier_ones() -> None:
    plan = BalancedPlan(7, 1, RowsByClass(LABELS), 10)
    assert (plan.batch(5) == balanced(1)[50:60]).all()
    assert (balanced(1, batch=5)[:80] == balanced(1)).all()
    assert not (balanced(0) == balanced(1)).all()
    with pytest.raises(IndexError):
        plan.batch(8)


def weighted(epoch: int, batch: int = 10) -> NDArray[np.int64]:
    plan = WeightedPlan(7, epoch, WEIGHTS, batch)
    assert plan.steps == 80 // batch
    return np.concatenate([plan.batch(step) for step in range(plan.steps)])


WEIGHTS = np.random.default_rng(1).gamma(1, size=80) * (np.arange(80) % 7 > 0)


def test_weighted_draws_are_proportional_to_the_weights() -> None:
    """500 epochs of 80 draws: each count is within five binomial standard deviations; weight 0 is never drawn."""
    counts = sum(np.bincount(weighted(epoch) % 80, minlength=80) for epoch in range(500))
    probabilities = WEIGHTS / WEIGHTS.sum()
    assert (np.abs(counts - 40_000 * probabilities) <= 5 * np.sqrt(40_000 * probabilities * (1 - probabilities))).all()
    assert (counts[WEIGHTS == 0] == 0).all()


def test_repeated_draws_in_an_epoch_are_distinct_repetitions() -> None:
    drawn = weighted(3)
    assert len(set(drawn)) == 80 > len(set(drawn % 80))
    for row in set(drawn % 80):
        assert (drawn[drawn % 80 == row] // 80 == np.arange((drawn % 80 == row).sum())).all()


def test_a_weighted_draw_is_a_function_of_seed_epoch_and_position() -> None:
    assert (weighted(1, batch=5) == weighted(1)).all()
    assert not (weighted(0) == weighted(1)).all()
    assert (weighted(1) != np.concatenate([WeightedPlan(8, 1, WEIGHTS, 10).batch(step) for step in range(8)])).any()
    with pytest.raises(IndexError):
        WeightedPlan(7, 1, WEIGHTS, 10).batch(8)
    with pytest.raises(ConfigError, match=r"batch of 81 samples is larger than the split \(80\)"):
        WeightedPlan(7, 1, WEIGHTS, 81)
