"""Folds and bags in training, besides batches: weights, means, heads, the choice of a strategy, checks."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.core.process_group import Runtime
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_training_split
from choral.data.loading.targets import Targets
from choral.models.features.extract import FeatureExtractor
from choral.runs.run_dir import RunDir, read_json
from choral.training import auto_strategy
from choral.training.auto_strategy import STRATEGY_FILE, resolve_strategy
from choral.training.feature_heads import _label_features, train_head
from choral.training.objective import Objective, _mean_and_std
from choral.training.preflight import preflight
from choral.training.trainer import Trainer

FOLD = "data.resample={kind: fold, number: 1, count: 3}"
BAG = "data.resample={kind: bag, number: 0}"
CPU = torch.device("cpu")


@pytest.fixture
def packed(config_file: Path, tmp_path: Path) -> str:
    """A copy of the toy shards, because features are stored beside them."""
    folder = tmp_path / "packed"
    caches = shutil.ignore_patterns(".decoded", ".features")
    shutil.copytree(load_config(config_file).data.shards, folder, ignore=caches)
    return f"data.shards={folder}"


def folder_of(path: Path, config: Config) -> RunDir:
    path.mkdir()
    folder = RunDir(path)
    folder.store_config(config)
    return folder


def test_class_weights_are_computed_from_the_bag(config_file: Path) -> None:
    config = load_config(config_file, [BAG, "train.class_weights=balanced"])
    split = open_training_split(config, open_dataset(config.data), RankPlace(0, 1, CPU))
    assert split.training_rows is not None
    labels = split.index.labels[split.training_rows]
    weights = Objective.from_config(config.train, split, CPU)._weights
    assert weights is not None
    assert weights.tolist() == pytest.approx((len(labels) / (3 * np.bincount(labels))).tolist())
    whole = Objective.from_config(config.train, replace(split, selection=None), CPU)._weights
    assert whole is not None and not torch.equal(weights, whole)


def test_targets_are_standardised_by_the_selected_samples(config_file: Path) -> None:
    config = load_config(config_file)
    index = open_training_split(config, open_dataset(config.data), RankPlace(0, 1, CPU)).index

    class Numbers(Targets):
        def take(self, rows):  # type: ignore[no-untyped-def]
            return (rows[:, None] ** 2).astype(np.float32)

    rows = np.array([0, 0, 3, 5])
    mean, std = _mean_and_std(Numbers("regression", ("square",), index), rows)
    assert (*mean, *std) == pytest.approx((8.5, np.std([0, 0, 9, 25])))


@pytest.mark.parametrize("resample", [FOLD, BAG], ids=["fold", "bag"])
def test_head_is_fitted_to_selected_features_with_repetitions(
    config_file: Path, tmp_path: Path, packed: str, run: Runtime, resample: str
) -> None:
    config = load_config(config_file, [packed, resample, "finetune.strategy=linear", "finetune.feature_passes=2"])
    trainer = Trainer(config, folder_of(tmp_path / "run", config), run)
    bad_log = tmp_path / "bad"
    source = FeatureExtractor(config, run, trainer.place, trainer.network, trainer.normalization, bad_log)
    passes = [source.extract(trainer.train_split, number=number) for number in range(2)]
    whole = [features for features in passes if features is not None]
    assert len(whole) == 2 and [len(features.rows) for features in whole] == [37, 37]  # shared by all members
    rows = trainer.train_split.training_rows
    assert rows is not None
    samples = _label_features(trainer, trainer.train_split, list(whole))
    assert np.array_equal(samples.values, np.concatenate([features.values[rows] for features in whole]))
    assert samples.targets.tolist() == [*trainer.train_split.index.labels[rows]] * 2
    # A sample that could not be read is left out as often as it would have been seen.
    bad = int(rows[3])
    good = whole[0].rows != bad
    part = replace(whole[0], rows=whole[0].rows[good], values=whole[0].values[good])
    samples = _label_features(trainer, trainer.train_split, [part])
    assert np.array_equal(samples.values, whole[0].values[rows[rows != bad]])


def test_members_share_the_features_of_all_samples(
    config_file: Path, tmp_path: Path, packed: str, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        fold = FOLD.replace("1", str(number), 1)
        config = load_config(config_file, [packed, fold, "finetune.strategy=linear", "finetune.regularization=0.01"])
        train_head(config, folder_of(tmp_path / f"fold{number}", config), run)
        monkeypatch.setattr(FeatureExtractor, "_compute", lambda *a: pytest.fail("features were computed again"))
    heads = [read_json(tmp_path / f"fold{number}" / "head.json") for number in range(3)]
    assert sorted(head["head_samples"] for head in heads if head) == [24, 25, 25]


def test_strategy_is_chosen_by_the_members_samples_each_once(
    config_file: Path, tmp_path: Path, packed: str, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, [packed, BAG, "finetune.strategy=auto"])
    split = open_training_split(config, open_dataset(config.data), RankPlace(0, 1, CPU))
    assert split.training_rows is not None
    seen: list[list[int]] = []
    measure = auto_strategy.measure_probe
    monkeypatch.setattr(auto_strategy, "measure_probe", lambda *a: (seen.append(a[2].tolist()), measure(*a))[1])
    folder = folder_of(tmp_path / "run", config)
    assert resolve_strategy(config, folder, run).finetune.strategy != "auto"
    assert seen == [sorted(set(split.training_rows.tolist()))]
    content = read_json(folder.path / STRATEGY_FILE)
    classes = Counter(split.index.labels[seen[0]].tolist())
    assert content is not None and content["samples_per_class"] == np.median(list(classes.values()))
    assert resolve_strategy(config, folder, run).finetune.strategy == content["strategy"] and len(seen) == 1


def test_preflight_finds_a_batch_larger_than_the_fold(config_file: Path) -> None:
    preflight(load_config(config_file, ["train.batch_size=37"]))
    with pytest.raises(ConfigError, match=r"train.batch_size: 37 is more than the 25 training samples of fold 2"):
        preflight(load_config(config_file, ["train.batch_size=37", FOLD]))
