"""Training batches of a fold or a bag."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from choral.config import AugmentConfig, Config, DataConfig, ResampleConfig, TrainConfig
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset, open_split, open_training_split
from choral.data.loading.training_plan import TrainingPlan

NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")
PLACE = RankPlace(0, 1, CPU)
FOLD = ResampleConfig(kind="fold", number=0, count=3)
BAG = ResampleConfig(kind="bag", number=2)
EXACT = ResampleConfig(kind="bag", number=1, bootstrap="exact")


def config_of(shards: Path, resample: ResampleConfig, batch: int = 1, **data: object) -> Config:
    own = DataConfig(shards=str(shards), image_size=32, cache_gib=0, workers=0, eval_crop="resized", resample=resample)
    augment = AugmentConfig(crop_scale=(0.5, 1.0))
    own = own.replace(**data)  # type: ignore[arg-type]
    return Config(seed=4, data=own, augment=augment, train=TrainConfig(batch_size=batch))


def split_of(config: Config) -> Split:
    return open_training_split(config, open_dataset(config.data), PLACE)


def pipeline_of(config: Config, split: Split, bad_log: Path, place: RankPlace = PLACE) -> InputPipeline:
    return InputPipeline(config, split, place, NORMALIZATION, bad_log)


def rows_of(config: Config, split: Split, steps: range, world: int, log: Path) -> list[list[int]]:
    """Return the rows of each step, over all ranks in order."""
    found: list[list[int]] = [[] for _ in steps]
    for rank in range(world):
        pipeline = pipeline_of(config, split, log, RankPlace(rank, world, CPU))
        with pipeline.training_batches(steps) as batches:
            for number, batch in enumerate(batches):
                found[number] += batch.rows.tolist()
    return found


def selected(split: Split) -> NDArray[np.int64]:
    rows = split.training_rows
    assert rows is not None
    return rows


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("resample", [FOLD, BAG, EXACT], ids=["fold", "poisson", "exact"])
def test_an_epoch_holds_exactly_the_selected_rows(
    packed: Path, tmp_path: Path, resample: ResampleConfig, lanes: int
) -> None:
    config = config_of(packed, resample, batch=lanes, lanes=lanes, shuffle_window=3)
    split = split_of(config)
    steps = TrainingPlan.from_config(config, split).steps_per_epoch
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
def test_batches_do_not_depend_on_the_number_of_ranks(
    packed: Path, tmp_path: Path, resample: ResampleConfig, sampling: str, world: int
) -> None:
    config = config_of(packed, resample, batch=4, sampling=sampling)
    split = split_of(config)
    alone = rows_of(config, split, range(5), 1, tmp_path / "bad")
    assert rows_of(config, split_of(config), range(5), world, tmp_path / "bad") == alone


@pytest.mark.parametrize("resample", [FOLD, BAG], ids=["fold", "bag"])
def test_balanced_sampling_draws_classes_equally_and_rows_by_their_counts(
    packed: Path, tmp_path: Path, resample: ResampleConfig
) -> None:
    """Over a common multiple of the class sizes, classes are equally frequent, and rows proportional to their counts."""
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
def test_repetitions_get_different_augmentations(packed: Path, tmp_path: Path, sampling: str) -> None:
    """This holds for bags and for balanced sampling. Recalibration of BatchNorm uses the same rows."""
    config = config_of(packed, BAG, sampling=sampling)
    split = split_of(config)
    steps = range(TrainingPlan.from_config(config, split).steps_per_epoch)
    pipeline = pipeline_of(config, split, tmp_path / "bad")
    images: dict[int, list[torch.Tensor]] = {}
    with pipeline.training_batches(steps) as batches:
        for batch in batches:
            images.setdefault(int(batch.rows[0]), []).append(batch.images)
    again = {row: found for row, found in images.items() if len(found) > 1}
    assert again
    for row, found in again.items():
        assert not any(torch.equal(a, b) for n, a in enumerate(found) for b in found[:n]), row
    with pipeline.unaugmented_training_batches(steps) as batches:
        plain = Counter(int(batch.rows[0]) for batch in batches)
    assert plain == {row: len(found) for row, found in images.items()}


def test_only_training_is_resampled(packed: Path, tmp_path: Path) -> None:
    config = config_of(packed, BAG)
    split = open_split(config, open_dataset(config.data), "train", PLACE)
    assert split.selection is None and len(split_of(config)) == len(split) == 13
    with pipeline_of(config, split_of(config), tmp_path / "bad").evaluation_batches() as batches:
        assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(13))
