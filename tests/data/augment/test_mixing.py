"""Mixup and cutmix: equal to a ten-line PyTorch reference, and independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from choral.config import AugmentConfig, Config, DataConfig, TrainConfig
from choral.data.augment.mixing import Mixing, add_partners, mix_batch, partner_positions
from choral.data.loading.device_loader import Batch
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.normalize_cpu import CpuNormalizer
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.data.shards.index import Index

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROWS = np.arange(20_000)
SIZE = 24


def config_of(shards: Path, batch: int, micro_steps: int = 1, on_bad: str = "fail", **augment: object) -> Config:
    data = DataConfig(
        shards=str(shards),
        image_size=SIZE,
        cache_gib=0,
        workers=1,
        resize="fast",
        on_bad_sample=on_bad,
        max_bad_fraction=0.5,
    )
    train = TrainConfig(batch_size=batch, accumulate_steps=micro_steps)
    return Config(seed=3, data=data, augment=AugmentConfig(**augment), train=train)  # type: ignore[arg-type]


def batches_of(config: Config, rank: int, world: int, tmp_path: Path, steps: int = 4) -> list[Batch]:
    place = RankPlace(rank, world, torch.device("cpu"))
    split = open_split(config, open_dataset(config.data), "train", place)
    pipeline = InputPipeline(config, split, place, Normalization(MEAN, STD), tmp_path / "bad.jsonl")
    with pipeline.training_batches(range(steps)) as batches:
        return list(batches)


def reference(images: torch.Tensor, boxes: list[list[int]], weights: list[float]) -> torch.Tensor:
    """Mix neighbours."""
    mixed = []
    for i in range(len(images)):
        j = i ^ 1 if (i ^ 1) < len(images) else i - 1
        image = weights[i] * images[i] + (1 - weights[i]) * images[j]
        top, left, bottom, right = boxes[i]
        image[:, top:bottom, left:right] = images[j][:, top:bottom, left:right]
        mixed.append(image)
    return torch.stack(mixed)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [2, 7])
def test_mixing_equals_the_reference(count: int, channels_last: bool) -> None:
    images = torch.randn(count, 3, SIZE, SIZE)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = Mixing(0.8, 1.0, 0.9, seed=1).parameters(0, np.arange(count), SIZE)
    expected = reference(images, parameters["mix_box"].tolist(), parameters["mix_weight"].tolist())
    partners = partner_positions(count)
    tensors = {name: torch.from_numpy(values) for name, values in parameters.items()}
    torch.testing.assert_close(mix_batch(images, torch.from_numpy(partners), tensors), expected)
    on_host = CpuNormalizer(MEAN, STD, channels_last).mix(images, {**parameters, "partners": partners})
    torch.testing.assert_close(on_host, expected)
    assert on_host.stride() == images.stride()


def test_cutmix_share_is_the_remaining_area() -> None:
    parameters = Mixing(0, 1.0, 1.0, seed=1).parameters(0, ROWS, SIZE)
    assert (parameters["mix_weight"] == 1).all()
    own = torch.zeros(2, 1, SIZE, SIZE)
    own[0] = 1
    for i in range(200):
        box = {name: torch.from_numpy(values[i : i + 1]) for name, values in parameters.items()}
        assert mix_batch(own, torch.tensor([1]), box).mean().item() == pytest.approx(parameters["share"][i], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    parameters = Mixing(alpha, 0, 1.0, seed=1).parameters(5, ROWS, SIZE)
    assert stats.kstest(parameters["share"], stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert not parameters["mix_box"].any() and (parameters["share"] == parameters["mix_weight"]).all()
    assert parameters["share"].dtype == np.float32


def test_mixup_and_cutmix_are_equally_likely_with_the_configured_probability() -> None:
    parameters = Mixing(1.0, 1.0, 0.6, seed=1).parameters(0, ROWS, 224)
    mixup, cutmix = parameters["mix_weight"] < 1, parameters["mix_box"].any(1)
    assert not (mixup & cutmix).any()
    assert abs(mixup.mean() - 0.3) < 0.02 and abs(cutmix.mean() - 0.3) < 0.02
    assert (parameters["share"][~mixup & ~cutmix] == 1).all()
    some = Mixing(1.0, 1.0, 0.6, seed=1).parameters(0, ROWS[[7, 3]], 224)
    for name, values in some.items():
        np.testing.assert_array_equal(values, parameters[name][[7, 3]])


@pytest.mark.parametrize("count", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_also_reads_missing_partners(count: int, world: int) -> None:
    micro_batch = np.random.default_rng(0).permutation(100)[:count]
    pairs = {}
    for rank in range(world):
        mine = slice(count * rank // world, count * (rank + 1) // world)
        rows, partners = add_partners(micro_batch, mine)
        own = rows[: mine.stop - mine.start]
        np.testing.assert_array_equal(own, micro_batch[mine])
        assert len(rows) - len(own) <= 2
        if partners is not None:
            pairs |= dict(zip(own.tolist(), rows[partners].tolist(), strict=True))
    expected = {
        int(row): int(micro_batch[i ^ 1 if (i ^ 1) < count else i - 1])
        for i, row in enumerate(micro_batch)
        if count > 1
    }
    assert pairs == expected


@pytest.mark.parametrize(("batch", "micro_steps"), [(12, 2), (7, 1), (3, 1)])
def test_mixed_samples_are_the_same_on_any_number_of_ranks(
    packed: Path, tmp_path: Path, batch: int, micro_steps: int
) -> None:
    config = config_of(packed, batch, micro_steps, mixup=0.8, cutmix=1.0, mix_prob=0.8)
    expected = batches_of(config, 0, 1, tmp_path)
    labels = Index.open(open_dataset(config.data), "train").labels
    for world in (2, 3):
        ranks = [batches_of(config, rank, world, tmp_path) for rank in range(world)]
        for whole, *parts in zip(expected, *ranks, strict=True):
            for name in ("images", "labels", "valid", "partners", "shares"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
            assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
    for whole in expected:
        assert whole.partners is not None and whole.shares is not None
        partners = partner_positions(len(whole.rows))
        assert whole.partners.tolist() == labels[whole.rows[partners]].tolist()
        assert whole.images.shape == (batch // micro_steps, 3, SIZE, SIZE)


def test_a_micro_batch_of_one_is_not_mixed(packed: Path, tmp_path: Path) -> None:
    (batch,) = batches_of(config_of(packed, 1, mixup=1.0), 0, 1, tmp_path, steps=1)
    assert batch.partners is None and batch.shares is None and len(batch.rows) == 1


@pytest.mark.parametrize(("prob", "invalid"), [(1.0, 2), (0.0, 1)])
def test_a_sample_mixed_with_an_unreadable_one_is_not_valid(
    damaged: Callable[..., Index], tmp_path: Path, prob: float, invalid: int
) -> None:
    folder = damaged(6).dataset.folder
    config = config_of(folder, 12, on_bad="skip", mixup=1.0, cutmix=1.0, mix_prob=max(prob, 1e-9))
    (whole,) = batches_of(config, 0, 1, tmp_path, steps=1)
    if 6 not in whole.rows:
        pytest.fail("choose another row")
    position = whole.rows.tolist().index(6)
    bad = {position, position ^ 1} if invalid == 2 else {position}
    assert [i for i, valid in enumerate(whole.valid.tolist()) if not valid] == sorted(bad)
    log = (tmp_path / "bad.jsonl").read_text()
    parts = [batches_of(config, rank, 3, tmp_path, steps=1)[0] for rank in range(3)]
    assert torch.equal(torch.cat([part.valid for part in parts]), whole.valid)
    assert (tmp_path / "bad.jsonl").read_text() == 2 * log, "only the rank whose batch it belongs to records it"
