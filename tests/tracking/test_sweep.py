"""W&B sweeps: the command of launch/sweep.yaml as W&B's agent builds it, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from choral.cli import main
from choral.cli.workflow import launch as launching
from choral.config.files import load_config
from choral.training import __main__ as train_main
from toy_data import REPOSITORY

SWEEP: dict[str, Any] = yaml.safe_load((REPOSITORY / "launch" / "sweep.yaml").read_text(encoding="utf-8"))


def sampled_values(last: bool) -> dict[str, dict[str, Any]]:
    """Values that W&B could choose: the lowest or first value of each parameter, or the highest or last."""
    values = {}
    for key, parameter in SWEEP["parameters"].items():
        choices = parameter.get("values") or [parameter["min"], parameter["max"]]
        values[key] = {"value": choices[-1 if last else 0]}
    return values


def build_command(last: bool) -> list[str]:
    arguments = create_sweep_command_args({"args": sampled_values(last)})["args_no_hyphens"]
    words = [word for word in create_sweep_command(SWEEP["command"]) if word != "${env}"]
    place = words.index("${args_no_hyphens}")
    assert place == len(words) - 1
    return [*words[:place], *arguments]


@pytest.mark.parametrize("last", [False, True])
def test_all_sampled_values_are_valid_in_a_config(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    program, verb, config, *overrides = build_command(last)
    assert (program, verb) == ("choral", "train")
    read = load_config(config, overrides)
    assert read.augment.crop_scale == ((0.35, 1.0) if last else (1.0, 1.0))
    assert read.train.lr == (1e-2 if last else 1e-4)
    assert SWEEP["metric"] == {"name": f"val/{read.best_metric}", "goal": "minimize"}


def test_the_command_trains_each_run_in_its_own_directory(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, run: object
) -> None:
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setattr(sys, "argv", ["choral"])  # which W&B looks at
    for name, value in {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r4nd0m", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    started = []

    def launch(module: str, arguments: list[str], *others: object) -> int:
        started.append(module)
        return train_main.main(arguments)

    monkeypatch.setattr(launching, "launch", launch)
    monkeypatch.setattr("choral.cli.workflow.training.launch", launch)
    words = [str(config_file) if word == "configs/elpv-demo.yaml" else word for word in build_command(last=False)]
    assert main([*words[1:], "train.steps=2"]) == 0
    assert started == ["choral.training"]
    folder = config_file.parent / "runs" / "toy-r4nd0m"
    assert (folder / "result.json").is_file()
    assert load_config(folder / "config.yaml").train.lr == 1e-4
    assert [path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*")] == ["r4nd0m"]
    assert "WANDB_SWEEP_ID" in os.environ
