"""Half precision, overflows, and losses that are not finite."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from choral.config.files import load_config
from choral.core.errors import ChoralError
from choral.core.process_group import Runtime
from choral.runs.run_dir import RunDir
from choral.training.finite_checks import MAX_ATTEMPTS
from choral.training.loop import train
from choral.training.trainer import Trainer


def overflow_above(trainer: Trainer, limit: float) -> None:
    """Make the gradient of the head overflow while the loss scale is larger than the limit."""
    scaler = trainer.runtime.accelerator.scaler
    weight = trainer.network.fc.weight
    weight.register_hook(lambda gradient: gradient * (float("inf") if scaler.get_scale() > limit else 1.0))


def test_overflowing_step_is_repeated_with_its_samples_and_rate(
    config_file: Path, tmp_path: Path, run: Runtime
) -> None:
    """The loss scale falls from 2^10 to 2^7 in three lost attempts, and the steps equal those of a run without overflows."""
    config = load_config(config_file, ["train.steps=4"])
    plain = Trainer(config, RunDir(tmp_path / "plain"), run)
    with plain.batches_from(0) as loader:
        batches = iter(loader)
        expected = [plain.train_step(batches, step).item() for step in range(4)]
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = Trainer(config, RunDir(tmp_path / "scaled"), run)
    overflow_above(scaled, 2.0**7)
    rates, skips = [], []
    with scaled.batches_from(0) as loader:
        batches = iter(loader)
        found = []
        for step in range(4):
            found.append(scaled.train_step(batches, step).item())
            rates.append(scaled.last_lr)
            skips.append(scaled.last_overflows)
    assert skips == [3, 0, 0, 0]
    assert run.accelerator.scaler.get_scale() == 2.0**7
    assert found == pytest.approx(expected, rel=1e-5)
    assert rates == [scaled.schedule.lr_at(step) for step in range(4)]
    for name, value in scaled.network.named_parameters():
        torch.testing.assert_close(value, dict(plain.network.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_too_many_overflows_end_the_run(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    run.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer = Trainer(load_config(config_file), RunDir(tmp_path / "run"), run)
    overflow_above(trainer, 0.0)
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    with (
        trainer.batches_from(0) as loader,
        pytest.raises(ChoralError, match=f"step 0: the gradient overflowed fp16 {MAX_ATTEMPTS} times in a row"),
    ):
        trainer.train_step(iter(loader), 0)
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.named_parameters())


def test_overflow_in_the_forward_pass_repeats_the_step(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is infinite at scales above 2^7 and the gradient finite: the step is repeated until both are finite."""
    config = load_config(config_file)
    plain = Trainer(config, RunDir(tmp_path / "plain"), run)
    with plain.batches_from(0) as loader:
        plain.train_step(iter(loader), 0)
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer = Trainer(config, RunDir(tmp_path / "scaled"), run)
    losses = trainer.objective.losses
    monkeypatch.setattr(
        trainer.objective,
        "losses",
        lambda logits, batch: losses(logits, batch) + (float("inf") if scaler.get_scale() > 2.0**7 else 0.0),
    )
    with trainer.batches_from(0) as loader:
        assert trainer.train_step(iter(loader), 0).isfinite()
    assert trainer.last_overflows == 3 and scaler.get_scale() == 2.0**7
    for name, value in trainer.network.named_parameters():
        torch.testing.assert_close(value, dict(plain.network.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_infinite_loss_ends_the_run(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer = Trainer(load_config(config_file), RunDir(tmp_path / "run"), run)
    losses, attempts = trainer.objective.losses, []
    monkeypatch.setattr(
        trainer.objective,
        "losses",
        lambda logits, batch: attempts.append(1) or losses(logits, batch) + float("inf"),
    )
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    with (
        trainer.batches_from(0) as loader,
        pytest.raises(ChoralError, match="step 0: the loss on rank 0 is not finite"),
    ):
        trainer.train_step(iter(loader), 0)
    assert len(attempts) == MAX_ATTEMPTS
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.named_parameters())


def test_compiled_network_keeps_names_and_values(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, but not lowered to C++, which takes minutes; another test does that on a GPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    losses = []
    for compiled in (False, True):
        trainer = Trainer(load_config(config_file, [f"train.compile={compiled}"]), RunDir(tmp_path / "run"), run)
        with trainer.batches_from(0) as loader:
            batches = iter(loader)
            losses.append([trainer.train_step(batches, step).item() for step in range(2)])
        assert not any("_orig_mod" in name for name in trainer.network.state_dict())
        assert trainer.evaluate()["n"] == 13
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_accumulation_equals_the_large_batch(config_file: Path, tmp_path: Path, run: Runtime, loss: str) -> None:
    """With class weights, whose classes differ in frequency between micro-batches; the network has no BatchNorm."""
    overrides = ["model.name=test_vit", "train.class_weights=balanced", f"train.loss={loss}", "train.lr=0.1"]
    found = []
    for micro_batches in (1, 3):
        run.accelerator.gradient_accumulation_steps = micro_batches
        config = load_config(config_file, [*overrides, f"train.accumulate_steps={micro_batches}"])
        trainer = Trainer(config, RunDir(tmp_path / "run"), run)
        with trainer.batches_from(0) as loader:
            batches = iter(loader)
            losses = [trainer.train_step(batches, step).item() for step in range(3)]
        found.append((losses, trainer.network.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-4, atol=1e-6)


def test_dropout_rates_reach_the_network(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    names = ["model.name=test_vit", "data.image_size=32", "model.drop_rate=0.3", "model.drop_path_rate=0.2"]
    trainer = Trainer(load_config(config_file, names), RunDir(tmp_path / "run"), run)
    assert trainer.network.head_drop.p == 0.3
    found = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trainer.network.blocks]
    assert found == pytest.approx(torch.linspace(0, 0.2, len(found)).tolist())


@pytest.mark.gpu
def test_network_compiled_for_the_gpu_trains_equally(config_file: Path, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    losses = []
    for compiled in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = Runtime("no", 1, 60, tmp_path / "stop")
        trainer = Trainer(load_config(config_file, [f"train.compile={compiled}"]), RunDir(tmp_path / "run"), run)
        with trainer.batches_from(0) as loader:
            batches = iter(loader)
            losses.append([trainer.train_step(batches, step).item() for step in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # TF32 and other orders of sums


@pytest.mark.gpu
def test_fp16_trains_and_resumes_with_its_loss_scale(config_file: Path, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(config_file, ["train.precision=fp16", "train.steps=6"])
    run = Runtime("fp16", 1, 60, tmp_path / "run" / "stop")
    run.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # overflows, at first
    state = train(config, RunDir(tmp_path / "run"), run)
    assert state.step == 6 and state.skipped > 0
    assert 0 < state.report["log_loss"] < 10
    assert run.accelerator.scaler.get_scale() < 2.0**40
