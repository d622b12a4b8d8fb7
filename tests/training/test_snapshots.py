"""Cycles of the schedule, and the checkpoints at their ends, which are models of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from choral.config import Config, TrainConfig
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.core.process_group import Runtime
from choral.deploy.bundle.open_predictor import open_predictor
from choral.ensembles.member_jobs import member_config
from choral.inference.prediction_types import ClassPrediction
from choral.inference.run_models import find_trained_models
from choral.inference.trained_model import TrainedModel
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, find_snapshots, step_from_path
from choral.runs.run_dir import RunDir
from choral.training import loop
from choral.training.optimizer import Schedule
from choral.training.trainer import Trainer
from toy_data import Choral


def test_each_cycle_has_a_full_schedule() -> None:
    schedule = Schedule.from_config(TrainConfig(steps=23, lr=0.5, warmup_epochs=0.2, min_lr_ratio=0.1, cycles=3), 10)
    rates = [schedule.lr_at(step) for step in range(23)]
    expected: list[float] = []
    for length in (7, 8, 8):
        alone = Schedule(0.5, 2, length, 0.1)
        expected += [alone.lr_at(step) for step in range(length)]
    assert rates == expected
    assert [(step, schedule.snapshot_at(step)) for step in range(24) if schedule.snapshot_at(step)] == [
        (7, 1),
        (15, 2),
        (23, 3),
    ]


@pytest.mark.parametrize(("steps", "cycles"), [(5, 5), (7, 4), (100, 9), (3, 2)])
def test_cycles_split_the_steps_evenly(steps: int, cycles: int) -> None:
    schedule = Schedule.from_config(TrainConfig(steps=steps, warmup_epochs=0, cycles=cycles), 10)
    ends = [step for step in range(steps + 1) if schedule.snapshot_at(step)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert len(ends) == cycles and sum(lengths) == steps and max(lengths) - min(lengths) <= 1
    peaks = [step for step in range(steps) if schedule.lr_at(step) == schedule.lr]
    assert peaks == [0, *ends[:-1]]


def test_one_cycle_has_no_snapshot() -> None:
    schedule = Schedule.from_config(TrainConfig(steps=4), 10)
    assert not any(schedule.snapshot_at(step) for step in range(5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.cycles=11"], "train.cycles: 11 cycles do not fit into 10 steps"),
        (["train.cycles=2", "train.soup=uniform"], "train.soup: expected none with several cycles"),
        (["train.cycles=2", "train.patience_epochs=1"], "train.patience_epochs: expected 0 with several cycles"),
        (["train.cycles=2", "train.schedule=constant"], "train.cycles: a constant schedule has no cycles"),
        (
            ["ensemble.snapshots=2", "finetune.strategy=linear"],
            "finetune.strategy: with train.cycles or ensemble.snapsh",
        ),
        (
            ["train.cycles=2", "finetune.strategy=auto"],
            "expected a strategy that trains in steps; auto does not, or may not",
        ),
        (
            ["train.cycles=2", "finetune.strategy=gradual", "finetune.unfreeze_every_epochs=1"],
            "finetune.unfreeze_every_epochs: the last stage is unfrozen at step [0-9]+, but the first of 2 cycles "
            "ends at step 5",
        ),
    ],
)
def test_settings_incompatible_with_cycles_are_refused(
    config_file: Path, tmp_path: Path, run: Runtime, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(load_config(config_file, overrides), RunDir(tmp_path / "run"), run)


@pytest.fixture
def config(config_file: Path) -> Config:
    """Cycles of 3, 3 and 4 steps, and checkpoints in between, of which only the newest is kept."""
    overrides = ["ensemble.snapshots=3", "train.keep_checkpoints=1", "train.save_every_steps=2", "train.ema_decay=0.9"]
    return load_config(config_file, [*overrides, "model.drop_rate=0.2", "evaluate.views=identity"])


def networks_at(config: Config, tmp_path: Path, run: Runtime, steps: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """Return the averaged weights after a number of steps, without checkpoints."""
    trainer = Trainer(member_config(config, "snapshots"), RunDir(tmp_path / "plain"), run)
    trainer.start_moving_average()
    found = []
    with trainer.batches_from(0) as loader:
        batches = iter(loader)
        for step in range(max(steps)):
            trainer.train_step(batches, step)
            if step + 1 in steps:
                assert trainer.average is not None
                found.append({name: value.clone() for name, value in trainer.average.weights.items()})
    return found


def train_member(config: Config, folder: RunDir, run: Runtime) -> list[TrainedModel]:
    own = member_config(config, "snapshots")
    folder.member("snapshots").store_config(own)
    loop.train(own, folder.member("snapshots"), run)
    return find_trained_models(folder, config)[0]


def killed_after(
    saves: int, save: Callable[..., None] = loop.save_checkpoint
) -> Callable[..., None]:  # as kill -9 would, behind the rename of a checkpoint
    """Return a `save_checkpoint` that ends the run after its last call."""
    count = 0

    def saving(*arguments: object) -> None:
        nonlocal count
        save(*arguments)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    return saving


def test_models_are_the_networks_at_the_ends_of_cycles(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the run was killed, or asked to stop, right after it saved one of its checkpoints."""
    expected = networks_at(config, tmp_path, run, (3, 6, 10))
    whole = RunDir(tmp_path / "whole")
    models = train_member(config, whole, run)
    assert [(model.name, model.member, model.weights_file) for model in models] == [
        ("snapshots.1", "snapshots", EMA_FILE),
        ("snapshots.2", "snapshots", EMA_FILE),
        ("snapshots.3", "snapshots", EMA_FILE),
    ]
    assert [step_from_path(path) for path, _ in find_snapshots(whole.member("snapshots").checkpoints)] == [3, 6, 10]
    kept = {step_from_path(path) for path in whole.member("snapshots").checkpoints.glob("step-*")}
    assert {3, 6, 10} <= kept <= {3, 6, 9, 10}  # 9: it was the best when the last one was written
    for model, tensors in zip(models, expected, strict=True):
        found = load_model_tensors(model.checkpoint, model.weights_file)
        assert all(torch.equal(found[name], value) for name, value in tensors.items())

    for saves in (1, 2, 3, 5):
        folder = RunDir(tmp_path / f"killed-{saves}")
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", killed_after(saves))
            with pytest.raises(KeyboardInterrupt):
                train_member(config, folder, run)
        again = train_member(config, folder, run)
        assert [model.weights_hash for model in again] == [model.weights_hash for model in models]

    for step in (3, 6):  # asked to stop at the end of a cycle
        folder = RunDir(tmp_path / f"stopped-{step}")
        answers = iter([False] * (step - 1) + [True] + [False] * 100)
        with monkeypatch.context() as patch:
            patch.setattr(run, "should_stop", lambda answers=answers: next(answers))
            with pytest.raises(Stopped):
                train_member(config, folder, run)
            again = train_member(config, folder, run)
        assert [model.weights_hash for model in again] == [model.weights_hash for model in models]


def test_missing_snapshot_is_retrained_from_the_one_before(config: Config, tmp_path: Path, run: Runtime) -> None:
    config = config.replace(train=config.train.replace(ema_decay=0.0))
    folder = RunDir(tmp_path / "run")
    models = train_member(config, folder, run)
    assert [model.weights_file for model in models] == [MODEL_FILE] * 3
    member = folder.member("snapshots")
    shutil.rmtree(models[1].checkpoint)
    with pytest.raises(ChoralError, match="has 2 of 3 snapshots; delete its result.json and the checkpoints after"):
        find_trained_models(folder, config)
    (member.path / "result.json").unlink()
    for path in member.checkpoints.glob("step-*"):
        if step_from_path(path) > 6:
            shutil.rmtree(path)
    assert [model.weights_hash for model in train_member(config, folder, run)] == [
        model.weights_hash for model in models
    ]


def test_snapshot_run_from_the_command_line(config_file: Path, photos: Path, tmp_path: Path, choral: Choral) -> None:
    overrides = ["ensemble.snapshots=2", "train.steps=4", "evaluate.splits=test", "evaluate.views=identity,hflip"]
    result = choral("run", config_file, *overrides, timeout=600)
    assert result.returncode == 0, result.stderr
    folder = RunDir(tmp_path / "runs" / "toy")
    rows = json.loads((folder.path / "scores-test.json").read_text())["rows"]
    assert [row["name"] for row in rows[:4]] == ["member/snapshots.1", "member/snapshots.2", "soft", "hard"]
    assert [path.name for path in (folder.path / "members").iterdir()] == ["snapshots"]
    answer = open_predictor(str(folder.path), "cpu", "torch", print).predict(next(photos.rglob("*.png")))
    assert isinstance(answer, ClassPrediction) and answer.votes
    assert list(answer.votes) == ["snapshots.1", "snapshots.2"]
