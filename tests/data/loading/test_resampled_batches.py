"""The batches of a training split of which a member sees a part, or some samples several times."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from choral.config import AugmentConfig, Config, DataConfig, ResampleConfig, TrainConfig
from choral.data.loading.input_pipeline import (
    RankPlace,
    Split,
    evaluation_batches,
    open_dataset,
    open_split,
    open_training_split,
    plain_training_batches,
    steps_per_epoch,
    training_batches,
)

MEAN, STD = (0.5,) * 3, (0.25,) * 3
CPU = torch.device("cpu")
PLACE = RankPlace(0, 1, CPU)
FOLD = ResampleConfig(kind="fold", number=0, count=3)
BAG = ResampleConfig(kind="bag", number=2)
EXACT = ResampleConfig(kind="bag", number=1, bootstrap="exact")


def config_of(shards: Path, resample: ResampleConfig, batch: int = 1, **data: object) -> Config:
    own = DataConfig(shards=str(shards), image_size=32, cache_gib=0, workers=0, eval_crop="resized", resample=resample)
    augment = AugmentConfig(crop_scale=(0.5, 1.0))
    own = replace(own, **data)  # type: ignore[arg-type]
    return Config(seed=4, data=own, augment=augment, train=TrainConfig(batch_size=batch))


def split_of(config: Config) -> Split:
    return open_training_split(config, open_dataset(config.data), PLACE)


def rows_of(config: Config, split: Split, steps: range, world: int, log: Path) -> list[list[int]]:
    """Return the rows of each step, over all ranks in order."""
    found: list[list[int]] = [[] for _ in steps]
    for rank in range(world):
        with training_batches(config, split, RankPlace(rank, world, CPU), MEAN, STD, steps, log) as batches:
            for number, batch in enumerate(batches):
                found[number] += batch.rows.tolist()
    return found


def selected(split: Split) -> NDArray[np.int64]:
    rows = split.training_rows
    assert rows is not None
    return rows


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("resample", [FOLD, BAG, EXACT], ids=["fold", "poisson", "exact"])
def test_an_epoch_is_exactly_what_was_selected(
    packed: Path, tmp_path: Path, resample: ResampleConfig, lanes: int
) -> None:
    config = config_of(packed, resample, batch=lanes, lanes=lanes, shuffle_window=3)
    split = split_of(config)
    steps = steps_per_epoch(config, split)
    assert steps == split.training_samples // lanes
    for epoch in range(2):
        rows = rows_of(config, split, range(epoch * steps, (epoch + 1) * steps), 1, tmp_path / "bad")
        seen, wanted = Counter(row for batch in rows for row in batch), Counter(selected(split).tolist())
        assert sum((wanted - seen).values()) == split.training_samples % lanes and not seen - wanted
    held_out = split.selection and split.selection.held_out.tolist()
    assert held_out and not set(held_out) & set(selected(split).tolist())


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
@pytest.mark.parametrize("resample", [FOLD, BAG], ids=["fold", "bag"])
def test_any_number_of_ranks_makes_the_same_batches(
    packed: Path, tmp_path: Path, resample: ResampleConfig, sampling: str, world: int
) -> None:
    config = config_of(packed, resample, batch=4, sampling=sampling)
    split = split_of(config)
    alone = rows_of(config, split, range(5), 1, tmp_path / "bad")
    assert rows_of(config, split_of(config), range(5), world, tmp_path / "bad") == alone


@pytest.mark.parametrize("resample", [FOLD, BAG], ids=["fold", "bag"])
def test_balanced_sampling_draws_classes_alike_and_samples_as_often_as_selected(
    packed: Path, tmp_path: Path, resample: ResampleConfig
) -> None:
    """Over as many passes as make each class whole: a class comes as often as any other, its samples by their counts."""
    config = config_of(packed, resample, sampling="balanced")
    split = split_of(config)
    classes = split.index.labels[selected(split)]
    sizes = np.bincount(classes)
    assert (sizes > 0).all() and len(set(sizes.tolist())) > 1
    turns = int(np.lcm.reduce(sizes))
    rows = np.concatenate(rows_of(config, split, range(3 * turns), 1, tmp_path / "bad"))
    assert np.bincount(split.index.labels[rows]).tolist() == [turns] * 3
    counts = Counter(selected(split).tolist())
    expected = {row: count * turns // sizes[split.index.labels[row]] for row, count in counts.items()}
    assert Counter(rows.tolist()) == expected


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_what_comes_again_is_augmented_in_another_way(packed: Path, tmp_path: Path, sampling: str) -> None:
    """Within an epoch, repetitions by the bag and by the balance of classes are told apart; the BatchNorm statistics of a
    soup are computed from the same samples, as they are."""
    config = config_of(packed, BAG, sampling=sampling)
    split = split_of(config)
    steps = range(steps_per_epoch(config, split))
    images: dict[int, list[torch.Tensor]] = {}
    with training_batches(config, split, PLACE, MEAN, STD, steps, tmp_path / "bad") as batches:
        for batch in batches:
            images.setdefault(int(batch.rows[0]), []).append(batch.images)
    again = {row: found for row, found in images.items() if len(found) > 1}
    assert again
    for row, found in again.items():
        assert not any(torch.equal(a, b) for n, a in enumerate(found) for b in found[:n]), row
    with plain_training_batches(config, split, PLACE, MEAN, STD, steps, tmp_path / "bad") as batches:
        plain = Counter(int(batch.rows[0]) for batch in batches)
    assert plain == {row: len(found) for row, found in images.items()}


def test_nothing_but_training_is_resampled(packed: Path, tmp_path: Path) -> None:
    config = config_of(packed, BAG)
    split = open_split(config, open_dataset(config.data), "train", PLACE)
    assert split.selection is None and len(split_of(config)) == len(split) == 13
    with evaluation_batches(config, split_of(config), PLACE, MEAN, STD, tmp_path / "bad") as batches:
        assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(13))
