"""Phases of fine-tuning: trainable parameters change, optimizer state stays, and a stop changes nothing."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from choral.config.files import load_config
from choral.core.errors import Stopped
from choral.core.process_group import Runtime
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import MODEL_FILE, OPTIMIZER_FILE, find_checkpoint
from choral.training.loop import train
from choral.training.trainer import Trainer
from toy_data import make_run_dir

GRADUAL = ["finetune.strategy=gradual", "finetune.trained_stages=2", "train.optimizer=adamw", "train.lr=3e-3"]
GRADUAL += ["train.layer_decay=0.8", "train.head_lr_scale=3"]


def test_new_phase_keeps_optimizer_state(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    trainer = Trainer(load_config(config_file, GRADUAL), make_run_dir(tmp_path / "run"), run)
    assert [phase.start_step for phase in trainer.phases] == [0, 3, 6]
    with trainer.batches_from(0) as loader:
        batches = iter(loader)
        for step in range(3):
            assert not trainer.enter_phase(step)
            trainer.train_step(batches, step)
        head = trainer.network.fc.weight
        known = {key: value.clone() for key, value in trainer.optimizer.state[head].items()}
        old = weakref.ref(trainer.optimizer.optimizer)
        assert trainer.enter_phase(3)
        assert old() is None, "somebody holds the optimizer of the phase before"
        assert all(torch.equal(value, trainer.optimizer.state[head][key]) for key, value in known.items())
        moved = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
        assert moved == {parameter for parameter in trainer.network.parameters() if parameter.requires_grad}
        before = {name: value.clone() for name, value in trainer.network.named_parameters()}
        trainer.train_step(batches, 3)
        trained = {name for name, value in trainer.network.named_parameters() if not torch.equal(value, before[name])}
        assert trained <= trainer.phase.trained  # a norm behind one that starts at zero has no gradient yet
        assert {name.split(".")[0] for name in trained} == {"layer4", "fc"}
        assert len(run.accelerator._models) == len(run.accelerator._optimizers) == 1


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_stop_in_any_phase_changes_nothing(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Also if the checkpoint is at the border of two phases, step 3."""
    config = load_config(config_file, [*GRADUAL, "train.steps=8"])
    whole, stopped = make_run_dir(tmp_path / "whole"), make_run_dir(tmp_path / "stopped")
    train(config, whole, run)
    answers = iter([False] * (stop - 1) + [True] + [False] * 100)
    monkeypatch.setattr(run, "should_stop", lambda: next(answers))
    with pytest.raises(Stopped):
        train(config, stopped, run)
    train(config, stopped, run)
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        first, second = (
            load_model_tensors(find_checkpoint(folder.checkpoints, "last"), name) for folder in (whole, stopped)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
