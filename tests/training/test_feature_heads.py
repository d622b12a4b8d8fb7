"""Runs whose head is fitted to features: their files, and resuming after a stop."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.svm import LinearSVC

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import DataError, Stopped
from choral.core.process_group import Runtime
from choral.inference.run_models import find_trained_models
from choral.models.features.cache import Features
from choral.models.features.classifier import ClassifierLayer
from choral.models.features.extract import FeatureExtractor
from choral.models.features.linear_heads import HeadFitOptions, LabelledFeatures
from choral.runs.checkpoints import MODEL_FILE, find_checkpoint, read_checkpoint_state
from choral.runs.run_dir import RunDir
from choral.tracking.wandb_run import WandbRun
from choral.training.auto_strategy import resolve_strategy
from choral.training.feature_heads import _fit, fit_initial_head
from choral.training.loop import train
from choral.training.trainer import Trainer


@pytest.fixture
def config(config_file: Path, tmp_path: Path) -> Config:
    """The config of the toy run on a copy of the shards, because features are stored beside them."""
    packed = tmp_path / "packed"
    caches = shutil.ignore_patterns(".decoded", ".features")  # of tests before this one
    shutil.copytree(load_config(config_file).data.shards, packed, ignore=caches)
    return load_config(config_file, [f"data.shards={packed}", "finetune.strategy=linear"])


def changed(config: Config, *overrides: str) -> Config:
    from choral.config.files import parse_override, with_overrides

    return with_overrides(config, dict(parse_override(text) for text in overrides), where="test")


def folder_of(tmp_path: Path, name: str, config: Config) -> RunDir:
    folder = RunDir(tmp_path / name)
    folder.path.mkdir(exist_ok=True)
    folder.store_config(config)
    return folder


def features_of(trainer: Trainer, split: str, number: int = 0) -> Features:
    source = FeatureExtractor(
        trainer.config,
        trainer.runtime,
        trainer.place,
        trainer.network,
        trainer.normalization,
        trainer.run_dir.path / "bad.jsonl",
    )
    found = source.extract(trainer.train_split if split == "train" else trainer.val_split, number=number)
    assert found is not None
    return found


def weights_of(folder: RunDir) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder.checkpoints, "last") / MODEL_FILE)


@pytest.mark.parametrize("strategy", ["linear", "svm"])
def test_run_without_steps_writes_the_files_of_any_run(
    config: Config,
    tmp_path: Path,
    run: Runtime,
    strategy: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "choral")
    sent: list[object] = []
    monkeypatch.setattr(WandbRun, "log_checkpoint", lambda self, path, name: sent.append(path))
    monkeypatch.setattr(WandbRun, "close", lambda self, failed: sent.append("closed"))
    config = changed(
        config, f"finetune.strategy={strategy}", "train.lr=auto", "train.ema_decay=0.9", "tracking.artifact=true"
    )
    folder = folder_of(tmp_path, "run", config)
    train(config, folder, run)
    messages = [record.message for record in caplog.records if "ignores" in record.message]
    assert messages == [f"strategy {strategy} makes no optimizer steps and ignores train.ema_decay"]
    assert sent == [folder.checkpoints / "step-00000000", "closed"]
    table = [record.message for record in caplog.records if record.name == "choral.models.trainable_table"]
    assert (folder.path / "trained.txt").read_text().splitlines() == table
    assert table[0] == "fitted to features of the frozen layers" and table[1].startswith("stage  modules")
    (head,) = (line for line in table if line.startswith("head"))
    assert head.split() == ["head", "fc", "1", head.split()[3], "all", "fitted"]
    result = folder.result
    assert result is not None and result["steps"] == 0 and result["head"] == strategy and result["n"] == 13
    assert result["regularization"] in [trial["regularization"] for trial in result["trials"]]
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [(0, "val")]
    assert lines[0]["accuracy"] == result["accuracy"] > 0.5
    metric = "accuracy" if strategy == "svm" else "log_loss"
    # What validation finds, asking the network, is what the fit found, asking features.
    assert result[f"head_val_{metric}"] == pytest.approx(result[metric], abs=1e-4)
    (model,), unfinished = find_trained_models(folder, config)
    assert not unfinished and model.checkpoint.name == "step-00000000"
    assert read_checkpoint_state(model.checkpoint)["dataset"] == result["dataset"]
    network = model.load(torch.device("cpu"))
    pretrained = Trainer(changed(config, "train.lr=1e-3"), folder, run).network.state_dict()
    for name, tensor in network.state_dict().items():  # nothing but the head has changed
        assert torch.equal(tensor, pretrained[name]) == (not name.startswith("fc.")), name


def test_svm_head_predicts_as_scikit_learn(config: Config, tmp_path: Path, run: Runtime) -> None:
    config = changed(config, "finetune.strategy=svm")
    folder = folder_of(tmp_path, "run", config)
    trainer = Trainer(config, folder, run)
    train_features, val_features = features_of(trainer, "train"), features_of(trainer, "val")
    train(config, folder, run)
    assert folder.result is not None
    mean, std = train_features.values.mean(0, dtype=float), train_features.values.std(0, dtype=float)
    std = np.maximum(std, 0.3 * np.sqrt((std**2).mean()))
    machine = LinearSVC(C=1 / (2 * folder.result["regularization"] * 37), dual=False)
    machine.fit((train_features.values - mean) / std, trainer.train_split.index.labels)
    (model,), _ = find_trained_models(folder, config)
    network = model.load(torch.device("cpu")).eval()
    for pipeline, features in ((trainer.train_inputs, train_features), (trainer.val_inputs, val_features)):
        decided: dict[int, int] = {}
        with pipeline.evaluation_batches() as batches:
            for batch in batches:
                with torch.inference_mode():
                    decided |= dict(zip(batch.rows.tolist(), network(batch.images).argmax(1).tolist(), strict=True))
        expected = machine.predict((features.values - mean) / std)
        assert [decided[row] for row in features.rows.tolist()] == expected.tolist()


@pytest.mark.parametrize("strategy", ["linear", "svm", "lp_ft"])
def test_head_fit_options_come_from_the_config(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Balanced sampling has the effect of balanced weights; train.best_by selects by accuracy or log loss."""
    config = changed(config, f"finetune.strategy={strategy}")
    samples = LabelledFeatures(np.zeros((3, 2), np.float32), np.arange(3))
    found: list[HeadFitOptions] = []
    for name in ("fit_linear", "fit_svm"):
        monkeypatch.setattr(f"choral.training.feature_heads.{name}", lambda *arguments: found.append(arguments[-1]))
    trainer = Trainer(config, folder_of(tmp_path, "run", config), run)
    for override in ("seed=0", "data.sampling=balanced", "train.class_weights=balanced", "train.best_by=accuracy"):
        trainer.config = changed(config, override)
        _fit(trainer, samples, samples, lambda: None)
    expected = [(False, None), (True, None), (True, None), (False, "accuracy")]
    assert [(options.balanced, options.metric) for options in found] == expected


def test_further_passes_are_augmented_differently(config: Config, tmp_path: Path, run: Runtime) -> None:
    folder = folder_of(tmp_path, "run", config)
    trainer = Trainer(config, folder, run)
    passes = [features_of(trainer, "train", number) for number in range(3)]
    assert all(features.rows.tolist() == list(range(37)) for features in passes)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (passes[first].values != passes[second].values).any(axis=1).all()
    shutil.rmtree(Path(config.data.shards) / ".features")
    np.testing.assert_array_equal(features_of(trainer, "train", 2).values, passes[2].values)
    plain = Trainer(changed(config, "augment.preset=none"), folder, run)
    np.testing.assert_array_equal(features_of(plain, "train", 1).values, passes[0].values)  # nothing to augment
    mixed = Trainer(changed(config, "augment.mixup=0.5"), folder, run)
    np.testing.assert_array_equal(features_of(mixed, "train", 1).values, passes[1].values)  # features are never mixed
    three = changed(config, "finetune.feature_passes=3")
    train(three, folder, run)
    assert folder.result is not None and folder.result["head_samples"] == 3 * 37


def test_validation_features_do_not_depend_on_augmentation(config: Config, tmp_path: Path, run: Runtime) -> None:
    folder = folder_of(tmp_path, "run", config)
    plain = features_of(Trainer(config, folder, run), "val")
    shutil.rmtree(Path(config.data.shards) / ".features")
    heavy = Trainer(changed(config, "augment.preset=heavy"), folder, run)
    np.testing.assert_array_equal(features_of(heavy, "val").values, plain.values)


def test_stop_while_computing_features_keeps_finished_parts(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = folder_of(tmp_path, "whole", config), folder_of(tmp_path, "run", config)
    train(config, whole, run)
    shutil.rmtree(Path(config.data.shards) / ".features")
    read: list[int] = []
    stops = [folder.stop_file]
    compute = ClassifierLayer.compute_features

    def watched(self: ClassifierLayer, images: torch.Tensor) -> torch.Tensor:
        read.append(len(images))
        if sum(read) == 20 and stops:  # of 37, in parts of 16 and batches of 4
            stops.pop().touch()
        return compute(self, images)

    monkeypatch.setattr(ClassifierLayer, "compute_features", watched)
    with pytest.raises(Stopped, match="stopped by request while computing features of train; computed parts are kept"):
        train(config, folder, run)
    assert sum(read) == 20 and folder.result is None and not folder.stop_file.exists()
    read.clear()
    train(config, folder, run)
    assert sum(read) == 37 - 16 + 13  # one part was complete; and the validation split
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(folder)[name])
    read.clear()
    train(config, folder_of(tmp_path, "third", config), run)
    assert not read  # another run with the same network: all from the cache


def test_stop_while_fitting_ends_between_two_regularizations(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, "run", config)

    def fitting(*arguments: Any) -> None:
        folder.stop_file.touch()
        while True:  # a grid without end
            arguments[-1].check_stop()
            time.sleep(0.01)

    with monkeypatch.context() as patched:
        patched.setattr("choral.training.feature_heads.fit_linear", fitting)
        with pytest.raises(Stopped, match="by request while fitting the head; features are kept; run the same"):
            train(config, folder, run)
    assert folder.result is None and not folder.stop_file.exists()
    train(config, folder, run)
    assert folder.result is not None


def test_exception_of_a_fit_is_raised_in_the_main_thread(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr("choral.training.feature_heads.fit_linear", broken)
    with pytest.raises(MemoryError, match="too much"):
        train(config, folder_of(tmp_path, "run", config), run)


def test_unreadable_samples_are_skipped_by_policy(config: Config, tmp_path: Path, run: Runtime) -> None:
    from choral.data.shards.index import Dataset, Index

    dataset = Dataset.open(config.data.shards)
    record = Index.open(dataset, "train").row(5)
    with dataset.shard_path(record.shard).open("r+b") as shard:
        shard.seek(record.offset)
        intact = shard.read(70)
        shard.seek(record.offset)
        shard.write(b"rubbish" * 10)
    folder = folder_of(tmp_path, "run", config)
    with pytest.raises(DataError, match=f"sample {record.key!r}"):
        train(config, folder, run)
    skipping = changed(config, "data.on_bad_sample=skip", "data.max_bad_fraction=0.1")
    folder = folder_of(tmp_path, "skipping", skipping)
    train(skipping, folder, run)
    assert folder.result is not None and folder.result["head_samples"] == 36
    assert record.key in (folder.path / "bad_samples.jsonl").read_text()
    for strict in (config, changed(skipping, "data.max_bad_fraction=0.01")):  # the cache does not launder them
        with pytest.raises(DataError, match=f"sample {record.key!r}"):
            train(strict, folder_of(tmp_path, f"strict-{strict.data.on_bad_sample}", strict), run)
    with dataset.shard_path(record.shard).open("r+b") as shard:
        shard.seek(record.offset)
        shard.write(intact)
    mended = folder_of(tmp_path, "mended", skipping)
    train(skipping, mended, run)  # a disk that failed for a moment costs no later run a sample
    assert mended.result is not None and mended.result["head_samples"] == 37


def test_lp_ft_starts_from_the_linear_head_and_resumes_bit_for_bit(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = folder_of(tmp_path, "linear", config)
    train(config, linear, run)
    config = changed(config, "finetune.strategy=lp_ft", "train.steps=4", "train.lr=1e-2")
    trainer = Trainer(config, folder_of(tmp_path, "begun", config), run)
    fit_initial_head(trainer)
    for name, tensor in weights_of(linear).items():
        assert torch.equal(tensor, trainer.network.state_dict()[name]), name
    whole, folder = folder_of(tmp_path, "whole", config), folder_of(tmp_path, "run", config)
    train(config, whole, run)
    assert weights_of(whole)["conv1.0.weight"].ne(weights_of(linear)["conv1.0.weight"]).any()  # then everything
    # Once the head is there: find_rate comes next.
    monkeypatch.setattr("choral.training.loop.find_learning_rate", lambda trainer: folder.stop_file.touch())
    with pytest.raises(Stopped, match="at step 1 of 4"):
        train(config, folder, run)
    monkeypatch.setattr("choral.training.loop.fit_initial_head", lambda trainer: pytest.fail("fitted again"))
    train(config, folder, run)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(folder)[name]), name


def test_auto_strategy_is_measured_once(
    config: Config, tmp_path: Path, run: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "choral")
    config = changed(config, "finetune.strategy=auto", "train.steps=2")
    folder = folder_of(tmp_path, "run", config)
    resolved = resolve_strategy(config, folder, run)
    said = [record.message for record in caplog.records if record.message.startswith("auto: ")]
    assert len(said) == 2 and "12 samples per class" in said[0] and "similarity" in said[0]
    stored = json.loads((folder.path / "strategy.json").read_text())
    assert said[1] == f"auto: strategy {stored['strategy']}: {stored['reason']}"
    assert stored["probed"] == 37 and 0 <= stored["similarity"] <= 1 and stored["chance"] == pytest.approx(1 / 3)
    assert resolved.finetune.strategy == stored["strategy"]
    monkeypatch.setattr("choral.training.auto_strategy.measure_probe", lambda *arguments: pytest.fail("measured again"))
    train(config, folder, run)
    assert folder.result is not None
    for other in ("seed=5", "model.name=test_vit", "finetune.probe_samples=100", "data.image_size=40"):
        with pytest.raises(pytest.fail.Exception, match="measured again"):  # nothing that decides it may have changed
            resolve_strategy(changed(config, other), folder, run)
    resolve_strategy(changed(config, "train.lr=0.5", "model.drop_rate=0.1"), folder, run)
    content = json.loads((folder.path / "strategy.json").read_text())
    content["dataset"] = "0" * 64
    (folder.path / "strategy.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="different data"):
        train(config, folder, run)
