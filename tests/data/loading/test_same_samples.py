"""Training samples with every change switched on: the same bits on any ranks and workers; and nobody else is changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from choral.config import AugmentConfig, Config, DataConfig, TrainConfig
from choral.config.augment import PRESETS, HostTransform
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.device_loader import Batch
from choral.data.loading.input_pipeline import (
    RankPlace,
    Split,
    evaluation_batches,
    feature_batches,
    open_dataset,
    open_split,
    plain_training_batches,
    training_batches,
)
from random_changes import EVERYTHING

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
HOST = (
    HostTransform(name="CLAHE", arguments={"clip_limit": "4", "p": "0.5"}),
    HostTransform(name="GridDistortion", arguments={"p": "0.5"}),
)
EVERY_CHANGE = AugmentConfig(
    **{**PRESETS["heavy"], **EVERYTHING, "host": HOST, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.9}
)


def config_of(shards: Path, augment: AugmentConfig = EVERY_CHANGE) -> Config:
    data = DataConfig(shards=str(shards), image_size=32, cache_gib=0, workers=0, eval_crop="resized")
    return Config(seed=4, data=data, augment=augment, train=TrainConfig(batch_size=12, accumulate_steps=2))


def split_of(config: Config) -> Split:
    return open_split(config, open_dataset(config.data), "train", RankPlace(0, 1, CPU))


def samples(config: Config, split: Split, world: int, tmp_path: Path) -> list[list[Batch]]:
    """Return the micro-batches of each rank over the ends of two epochs."""
    found = []
    for rank in range(world):
        place = RankPlace(rank, world, CPU)
        with training_batches(config, split, place, MEAN, STD, range(2), tmp_path / "bad.jsonl") as batches:
            found.append(list(batches))
    return found


@pytest.fixture(scope="module")
def expected(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    config = config_of(packed)
    (batches,) = samples(config, split_of(config), 1, tmp_path_factory.mktemp("expected"))
    return batches


PLACES = [
    (1, 1, "thread"),
    (1, 2, "thread"),
    (1, 2, "process"),
    (2, 0, "thread"),
    (2, 1, "process"),
    (3, 0, "thread"),
    (3, 2, "thread"),
]
KINDS_OF_CHANGES = [
    ("host",),
    ("policy",),
    ("rotate", "translate", "zoom", "shear", "perspective"),
    ("blur",),
    ("noise",),
    ("erasing",),
    ("hue", "saturation", "grey"),
    ("mixup", "cutmix"),
    ("rot90",),
    ("brightness", "contrast"),
]


@pytest.mark.parametrize(("world", "workers", "kind"), PLACES)
def test_samples_are_the_same_on_any_ranks_and_workers(
    packed: Path, tmp_path: Path, expected: list[Batch], world: int, workers: int, kind: str
) -> None:
    config = config_of(packed)
    data = dataclasses.replace(config.data, workers=workers, worker_kind=kind)  # type: ignore[arg-type]
    config = dataclasses.replace(config, data=data)
    ranks = samples(config, split_of(config), world, tmp_path)
    assert len(expected) == 4
    for whole, *parts in zip(expected, *ranks, strict=True):
        for name in ("images", "labels", "valid", "partners", "shares"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()


def test_samples_are_the_same_from_a_decoded_cache(packed: Path, tmp_path: Path, expected: list[Batch]) -> None:
    config = config_of(packed)
    split = split_of(config)
    cache = DecodedCache.open_or_build(split.index, split.store, tmp_path, 1.0, 1)
    assert cache is not None
    (found,) = samples(config, dataclasses.replace(split, cache=cache), 1, tmp_path)
    for whole, batch in zip(expected, found, strict=True):
        assert torch.equal(batch.images, whole.images)


def test_every_change_is_a_change(packed: Path, tmp_path: Path, expected: list[Batch]) -> None:
    """Or the tests above would hold for images that nobody changes."""
    for names in KINDS_OF_CHANGES:
        without = {name: PRESETS["none"].get(name, ()) for name in names}
        config = config_of(packed, dataclasses.replace(EVERY_CHANGE, **without))
        (found,) = samples(config, split_of(config), 1, tmp_path)
        assert not all(torch.equal(a.images, b.images) for a, b in zip(expected, found, strict=True)), names


@pytest.mark.parametrize("what", ["evaluation", "features", "recalibration"])
def test_nothing_but_training_is_changed(packed: Path, tmp_path: Path, what: str) -> None:
    """What validation and test ledgers, features and the BatchNorm statistics of a soup are computed from."""
    found = []
    for augment in (EVERY_CHANGE, AugmentConfig(**PRESETS["none"])):
        config = config_of(packed, augment)
        split, log = split_of(config), tmp_path / "bad.jsonl"
        place = RankPlace(0, 1, CPU)
        loaders = {
            "evaluation": lambda: evaluation_batches(config, split, place, MEAN, STD, log),  # noqa: B023
            "features": lambda: feature_batches(config, split, place, MEAN, STD, [np.arange(6)], 0, log),  # noqa: B023
            "recalibration": lambda: plain_training_batches(config, split, place, MEAN, STD, range(2), log),  # noqa: B023
        }
        with loaders[what]() as batches:
            found.append(list(batches))
    assert len(found[0]) == len(found[1]) > 0
    for batch, plain in zip(*found, strict=True):
        assert torch.equal(batch.images, plain.images)
        assert batch.partners is None and batch.shares is None


def test_further_passes_of_features_are_changed_but_not_mixed(packed: Path, tmp_path: Path) -> None:
    config = config_of(packed)
    passes = []
    for number in range(3):
        place, rows = RankPlace(0, 1, CPU), [np.arange(6), np.arange(6, 13)[:6]]
        with feature_batches(config, split_of(config), place, MEAN, STD, rows, number, tmp_path / "bad") as batches:
            passes.append(list(batches))
    for plain, first, second in zip(*passes, strict=True):
        assert first.shares is None and second.partners is None
        assert not torch.equal(plain.images, first.images) and not torch.equal(first.images, second.images)
