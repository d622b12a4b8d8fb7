"""The moving average and the soup, compared with plain PyTorch, and the use of their weights."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from choral.config import ModelConfig
from choral.config.files import load_config
from choral.core.errors import Stopped
from choral.core.process_group import Runtime
from choral.inference.run_models import find_trained_models
from choral.models.build import build_model
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, SOUP_FILE, find_checkpoint, find_weights
from choral.training.loop import train
from choral.training.model_soup import recalibrate_batchnorm, remove_stale_soup_checkpoints
from choral.training.state import TrainState
from choral.training.trainer import Trainer
from choral.training.weight_averages import MovingAverage, average_weights, temporary_weights
from toy_data import make_run_dir


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3)


def test_moving_average_equals_a_plain_loop() -> None:
    model = small_network()
    average = MovingAverage(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(12):
        model.train()(torch.randn(4, 3, 32, 32)).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = expected[name] * decay + value * (1 - decay) if floating else value.clone()
    assert average.weights.keys() == expected.keys()
    for name, value in average.weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        if "running" in name or "weight" in name:
            assert not torch.equal(value, model.state_dict()[name])


def test_soup_weights_and_recalibrated_statistics(run: Runtime) -> None:
    """The mean is compared with plain sums, its statistics with torch's update_bn on batches of equal size."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(timm.create_model("test_resnet", num_classes=3))
    soup = average_weights([network.state_dict() for network in networks])
    for name, value in soup.items():
        if value.is_floating_point():
            plain = sum(network.state_dict()[name] for network in networks) / 3
            torch.testing.assert_close(value, plain)
    model = networks[0]
    model.load_state_dict(soup)
    twin = copy.deepcopy(model)
    batches = [torch.randn(5, 3, 32, 32) + number for number in range(4)]
    recalibrate_batchnorm(model, batches, run)
    update_bn(batches, twin)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not model.training
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_temporary_weights_are_restored() -> None:
    model = small_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 1 for name, value in before.items()}
    with temporary_weights(model, other):
        assert all(torch.equal(value, other[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


AVERAGED = ["train.steps=10", "train.ema_decay=0.6", "train.soup=uniform", "train.soup_epochs=2"]


def stop_at(run: Runtime, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Request a stop after a number of steps."""
    answers = iter([False] * (step - 1) + [True] + [False] * 1000)
    monkeypatch.setattr(run, "should_stop", lambda: next(answers))


def test_averages_resume_bit_for_bit(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, AVERAGED)  # three steps an epoch: the soup is made of steps 9 and 10
    whole, stopped = make_run_dir(tmp_path / "whole"), make_run_dir(tmp_path / "stopped")
    state = train(config, whole, run)
    assert {"log_loss", "ema_log_loss", "ema_accuracy", "soup_log_loss", "soup_accuracy"} <= state.report.keys()
    stop_at(run, monkeypatch, 9)
    with pytest.raises(Stopped):
        train(config, stopped, run)
    train(config, stopped, run)
    for name in (MODEL_FILE, EMA_FILE, SOUP_FILE):
        first, second = (
            load_model_tensors(find_checkpoint(folder.checkpoints, "last"), name) for folder in (whole, stopped)
        )
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    first, second = (
        load_model_tensors(find_checkpoint(whole.checkpoints, "last"), name) for name in (MODEL_FILE, EMA_FILE)
    )
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    assert not (whole.path / "soup").exists()
    assert whole.result is not None and whole.result["best_weights"] in (MODEL_FILE, EMA_FILE, SOUP_FILE)


def test_greedy_soup_is_never_worse_than_its_best_checkpoint(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    config = load_config(config_file, ["train.steps=9", "train.soup=greedy", "train.eval_every_epochs=1"])
    state = train(config, make_run_dir(tmp_path / "run"), run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    single = [line["log_loss"] for line in lines if line["split"] == "val"]
    assert len(single) == 4  # three epochs and the soup, whose line repeats the last one's figures
    assert state.report["soup_log_loss"] <= min(single) + 1e-6


def test_soup_has_no_weights_of_another_run(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 7, checkpoints removed, started again with another config: the soup is that of a new run."""
    folder, fresh = make_run_dir(tmp_path / "run"), make_run_dir(tmp_path / "fresh")
    overrides = ["train.steps=8", "train.soup=uniform", "train.patience_epochs=50"]
    stop_at(run, monkeypatch, 7)
    with pytest.raises(Stopped):
        train(load_config(config_file, overrides), folder, run)
    assert sorted(path.name for path in (folder.path / "soup").iterdir()) == ["step-00000003", "step-00000006"]
    shutil.rmtree(folder.checkpoints)
    (folder.path / "soup" / "step-00000004").mkdir()
    config = load_config(config_file, [*overrides, "train.lr=1e-3", "train.steps=6"])
    soups = []
    for one in (folder, fresh):
        train(config, one, run)
        soups.append(load_model_tensors(find_checkpoint(one.checkpoints, "last"), SOUP_FILE))
    assert all(torch.equal(value, soups[1][key]) for key, value in soups[0].items())


def test_weights_of_later_steps_are_removed(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    trainer = Trainer(load_config(config_file, ["train.soup=uniform"]), make_run_dir(tmp_path / "run"), run)
    for step in (3, 6, 9):
        (trainer.run_dir.path / "soup" / f"step-{step:08d}").mkdir(parents=True)
    remove_stale_soup_checkpoints(trainer, TrainState(step=6))
    assert sorted(path.name[-1] for path in (trainer.run_dir.path / "soup").iterdir()) == ["3", "6"]


def test_greedy_soup_can_be_stopped_and_resumed(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["train.steps=6", "train.soup=greedy"])
    whole, folder = train(config, make_run_dir(tmp_path / "whole"), run), make_run_dir(tmp_path / "run")
    stop_at(run, monkeypatch, 8)  # six steps, two candidates, and both of them together
    with pytest.raises(Stopped, match="while soups were validated"):
        train(config, folder, run)
    assert folder.result is None
    assert train(config, folder, run).report == whole.report


def test_better_weights_are_used(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """best.json names the file, which trained models and model.weights: run:FOLDER use; with `last`, averages come first."""
    config = load_config(config_file, ["train.steps=4", "train.ema_decay=0.6"])
    folder = make_run_dir(tmp_path / "run")
    folder.store_config(config)
    train(config, folder, run)
    marker = json.loads((folder.checkpoints / "best.json").read_text())
    for name in (MODEL_FILE, EMA_FILE):
        (folder.checkpoints / "best.json").write_text(json.dumps({**marker, "weights": name}))
        path, file = find_weights(folder.checkpoints, "best")
        assert file == name
        (model,), _ = find_trained_models(folder, config)
        expected = load_model_tensors(path, name)
        for network in (
            model.load(torch.device("cpu")),
            build_model(ModelConfig(name="test_resnet", weights=f"run:{folder.path}"), 3, 32, seed=5),
        ):
            assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
        assert model.weights_hash == json.loads((path / "state.json").read_text())["sha256"][name]
    assert find_weights(folder.checkpoints, "last")[1] == EMA_FILE


def test_patience_ends_the_run_and_its_next_start(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["train.steps=60", "train.patience_epochs=2", "train.save_every_steps=50"])
    losses = iter([0.5, 0.4, 0.45, 0.41, 0.3])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"accuracy": 0.5, "log_loss": next(losses), "n": 13.0})
    folder = make_run_dir(tmp_path / "run")
    state = train(config, folder, run)
    assert (state.step, state.best_step) == (12, 6)  # three steps an epoch
    assert folder.result is not None and folder.result["stopped_early"] is True and folder.result["steps"] == 12
    assert find_checkpoint(folder.checkpoints, "last").name == "step-00000012"
    (folder.path / "result.json").unlink()  # as if killed just before
    assert train(config, folder, run).step == 12
    assert next(losses) == 0.3  # nothing was validated again


def test_nan_validation_is_never_the_best(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    losses = iter([nan, 0.5, nan, float("inf"), 0.6])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"accuracy": 0.5, "log_loss": next(losses), "n": 13.0})
    config = load_config(config_file, ["train.steps=60", "train.patience_epochs=3"])
    state = train(config, make_run_dir(tmp_path / "run"), run)
    assert (state.step, state.best_step, state.best_value) == (15, 6, -0.5)
    assert find_checkpoint(tmp_path / "run" / "checkpoints", "best").name == "step-00000006"
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"accuracy": 0.5, "log_loss": nan, "n": 13.0})
    state = train(config, make_run_dir(tmp_path / "never"), run)
    assert (state.step, state.best_value) == (9, None)  # patience counts from the start
