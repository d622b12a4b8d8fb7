"""Augmented training samples have the same bits on any ranks and workers; other batches are not augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from augment_configs import ALL_AUGMENTATIONS
from choral.config import AugmentConfig, Config, DataConfig, TrainConfig
from choral.config.augment import PRESETS, HostTransform
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset, open_split

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")
HOST = (
    HostTransform(name="CLAHE", arguments={"clip_limit": "4", "p": "0.5"}),
    HostTransform(name="GridDistortion", arguments={"p": "0.5"}),
)
FULL_AUGMENT = AugmentConfig(
    **{**PRESETS["heavy"], **ALL_AUGMENTATIONS, "host": HOST, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.9}
)


def config_of(shards: Path, augment: AugmentConfig = FULL_AUGMENT) -> Config:
    data = DataConfig(shards=str(shards), image_size=32, cache_gib=0, workers=0, eval_crop="resized")
    return Config(seed=4, data=data, augment=augment, train=TrainConfig(batch_size=12, accumulate_steps=2))


def split_of(config: Config) -> Split:
    return open_split(config, open_dataset(config.data), "train", RankPlace(0, 1, CPU))


def samples(config: Config, split: Split, world: int, tmp_path: Path) -> list[list[Batch]]:
    """Return the micro-batches of each rank for two steps, each the end of an epoch."""
    found = []
    for rank in range(world):
        pipeline = InputPipeline(config, split, RankPlace(rank, world, CPU), NORMALIZATION, tmp_path / "bad.jsonl")
        with pipeline.training_batches(range(2)) as batches:
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
AUGMENTATION_KINDS = [
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
def test_samples_do_not_depend_on_ranks_and_workers(
    packed: Path, tmp_path: Path, expected: list[Batch], world: int, workers: int, kind: str
) -> None:
    config = config_of(packed)
    data = config.data.replace(workers=workers, worker_kind=kind)  # type: ignore[arg-type]
    config = config.replace(data=data)
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


def test_each_kind_of_augmentation_changes_images(packed: Path, tmp_path: Path, expected: list[Batch]) -> None:
    """Otherwise the tests above would also pass without any augmentation."""
    for names in AUGMENTATION_KINDS:
        without = {name: PRESETS["none"].get(name, ()) for name in names}
        config = config_of(packed, FULL_AUGMENT.replace(**without))
        (found,) = samples(config, split_of(config), 1, tmp_path)
        assert not all(torch.equal(a.images, b.images) for a, b in zip(expected, found, strict=True)), names


@pytest.mark.parametrize(
    "load",
    [
        InputPipeline.evaluation_batches,
        lambda pipeline: pipeline.feature_batches([np.arange(6)], 0),
        lambda pipeline: pipeline.unaugmented_training_batches(range(2)),
    ],
    ids=["evaluation", "features", "recalibration"],
)
def test_only_training_batches_are_augmented(
    packed: Path, tmp_path: Path, load: Callable[[InputPipeline], DeviceLoader]
) -> None:
    """Validation metrics, ledgers, features and recalibrated BatchNorm statistics come from unaugmented images."""
    found = []
    for augment in (FULL_AUGMENT, AugmentConfig(**PRESETS["none"])):
        config = config_of(packed, augment)
        place, log = RankPlace(0, 1, CPU), tmp_path / "bad.jsonl"
        pipeline = InputPipeline(config, split_of(config), place, NORMALIZATION, log)
        with load(pipeline) as batches:
            found.append(list(batches))
    assert len(found[0]) == len(found[1]) > 0
    for batch, plain in zip(*found, strict=True):
        assert torch.equal(batch.images, plain.images)
        assert batch.partners is None and batch.shares is None


def test_later_feature_passes_are_augmented_but_not_mixed(packed: Path, tmp_path: Path) -> None:
    config = config_of(packed)
    passes = []
    for number in range(3):
        pipeline = InputPipeline(config, split_of(config), RankPlace(0, 1, CPU), NORMALIZATION, tmp_path / "bad")
        with pipeline.feature_batches([np.arange(6), np.arange(6, 13)[:6]], number) as batches:
            passes.append(list(batches))
    for plain, first, second in zip(*passes, strict=True):
        assert first.shares is None and second.partners is None
        assert not torch.equal(plain.images, first.images) and not torch.equal(first.images, second.images)
