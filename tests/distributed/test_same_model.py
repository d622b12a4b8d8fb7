"""A run is a function of its config: not of the number of ranks, nor of interruptions."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from two_ranks import train_chain

from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.data.loading.boosting_weights import read_round_weights, read_rounds
from choral.data.shards.index import Dataset, Index
from choral.inference.ledger import Ledger
from choral.jobs.launcher import build_launch_command
from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, SOUP_FILE, find_checkpoint
from choral.runs.run_dir import RunDir
from choral.training import range_test
from choral.training.loop import train
from choral.training.trainer import Trainer
from toy_data import Choral, make_run_dir

HERE = Path(__file__).parent
KINDS = ("alone", "whole")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def assert_equal_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], relative: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = value.double().abs().max().clamp_min(1e-6)
        difference = (value.double() - second[name].double()).abs().max() / scale
        assert difference <= relative, f"{name}: relative difference {difference:.2e}"


def ten_steps(config: Path, out: Path, processes: int) -> tuple[list[list[str]], dict[str, torch.Tensor]]:
    """Return the keys of each micro-batch over all ranks, in order, and the network after ten steps."""
    out.mkdir()
    command, env = build_launch_command("choral.training", [], processes, on_gpus=False)
    command = [*command[:-2], str(HERE / "ten_steps.py"), str(config), str(out)]
    subprocess.run(command, env={**ENV, **env}, check=True, timeout=200)
    ranks = [json.loads((out / f"batches-{rank}.json").read_text()) for rank in range(processes)]
    keys = [[key for rank in ranks for key in rank[number][1]] for number in range(len(ranks[0]))]
    return keys, load_file(out / "network.safetensors")


def test_one_two_and_three_ranks_train_the_same_model(config_file: Path, tmp_path: Path) -> None:
    """Batches of 11 are not divisible by 2 or 3; steps accumulate micro-batches; SyncBatchNorm is on; images are mixed."""
    text = config_file.read_text().replace("batch_size: 12", "batch_size: 22, accumulate_steps: 2")
    text = text.replace("brightness: 0.2", "brightness: 0.2, mixup: 0.4, cutmix: 1")
    config_file.write_text(text)
    keys, network = ten_steps(config_file, tmp_path / "1", 1)
    assert [len(batch) for batch in keys] == [11] * 20
    for processes in (2, 3):
        other_keys, other = ten_steps(config_file, tmp_path / str(processes), processes)
        assert other_keys == keys
        assert_equal_tensors(network, other, 1e-5)


def test_two_ranks_agree(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runtime) -> None:
    """Phases with a stop, averages, rates, non-finite losses, options of DDP: on two ranks, partly compared with one."""
    more = "finetune: {strategy: gradual, trained_stages: 1}\n"
    text = config_file.read_text().replace("steps: 10,", "steps: 8, ema_decay: 0.6, soup: uniform, soup_epochs: 2,")
    config_file.write_text(text + more)
    command, env = build_launch_command("choral.training", [], 2, on_gpus=False)
    command = [*command[:-2], str(HERE / "two_ranks.py"), str(config_file), str(tmp_path)]
    subprocess.run(command, env={**ENV, **env}, check=True, timeout=300)
    rates = [json.loads((tmp_path / f"rate-{rank}.json").read_text()) for rank in range(2)]
    assert rates[0] == rates[1] == json.loads((tmp_path / "rates" / "lr_range.json").read_text())["lr"]
    train(load_config(config_file), make_run_dir(tmp_path / "alone"), run)
    for name in (MODEL_FILE, EMA_FILE, SOUP_FILE):
        alone, together = (
            load_file(find_checkpoint(tmp_path / f"{kind}/checkpoints", "last") / name) for kind in KINDS
        )
        assert_equal_tensors(alone, together, 1e-4)
    chains = [RunDir(tmp_path / name) for name in ("chain", "chain-alone")]
    train_chain(str(config_file), chains[1], run)
    together, alone = (read_rounds(chain) for chain in chains)
    assert together == alone and alone is not None and len(alone.rounds) == 2 and 0 < alone.rounds[0].error < 0.6
    index = Index.open(Dataset.open(load_config(config_file).data.shards), "train")
    for number in (1, 2):
        tables = [read_round_weights(chain, number, index) for chain in chains]
        assert (tables[0] == tables[1]).all() and len(set(tables[0])) > 1
    # Only the first report (two steps): later, rounding of sums over ranks may switch a unit of this tiny network.
    reports = [(chain.member("round2").path / "metrics.jsonl").read_text().splitlines()[0] for chain in chains]
    losses = [json.loads(report)["loss"] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    monkeypatch.setattr(range_test, "STEPS", 30)
    overrides = ["train.lr=auto", "finetune.strategy=full"]
    curve = range_test.run_range_test(Trainer(load_config(config_file, overrides), RunDir(tmp_path / "one"), run))
    kept = json.loads((tmp_path / "rates" / "lr_range.json").read_text())
    assert kept["losses"][:15] == pytest.approx(curve.losses[:15], rel=1e-3)


class Trainings:
    """Runs trainings of one process each through the fork server, to the end or until they are killed."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, str(HERE / "fork_server.py")]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)

    def run(self, config: Path, folder: Path, kill_at: tuple[int, float] | None = None) -> None:
        """Train; with `kill_at` (step, seconds), kill -9 this long after the step was reported."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps([str(config), "--folder", str(folder)]) + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        if kill_at:
            wait_for_step(folder, kill_at[0])
            time.sleep(kill_at[1])
            os.kill(pid, signal.SIGKILL)
        assert int(self.server.stdout.readline()) == (-signal.SIGKILL if kill_at else 0)


@pytest.fixture
def trainings() -> Iterator[Trainings]:
    trainings = Trainings()
    yield trainings
    with trainings.server as server:  # closes the pipes, and waits
        pass
    assert server.returncode == 0


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if json.loads((folder / "status.json").read_text()).get("step", 0) >= step:
                return
        time.sleep(0.002)
    raise TimeoutError(f"{folder}: step {step} was not reached")


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder / "checkpoints", "last") / MODEL_FILE)


def test_killed_and_resumed_run_ends_with_the_same_bits(
    config_file: Path, tmp_path: Path, trainings: Trainings
) -> None:
    """CHORAL_KILL_POINTS=20 tests more points than CI has time for."""
    text = (
        config_file.read_text()
        .replace("sgd", "adamw")
        .replace("lr: 3e-2", "lr: 3e-3")
        .replace("steps: 10", "steps: 40")
    )
    config_file.write_text(text)
    trainings.run(config_file, tmp_path / "whole")
    expected = final_weights(tmp_path / "whole")
    points = random.Random(1)
    for number in range(int(os.environ.get("CHORAL_KILL_POINTS", "3"))):
        folder = tmp_path / f"killed-{number}"
        trainings.run(config_file, folder, kill_at=(2 * points.randrange(1, 18), points.random() * 0.1))
        assert not (folder / "result.json").exists()
        trainings.run(config_file, folder)
        assert_equal_tensors(expected, final_weights(folder), 0.0)
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
        assert (folder / "metrics.jsonl").read_text().count('"loss"') == 20  # no report is duplicated or lost


def test_run_resumes_on_another_number_of_ranks(config_file: Path, tmp_path: Path, trainings: Trainings) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    trainings.run(config_file, whole)
    trainings.run(config_file, folder, kill_at=(4, 0.0))
    command = [sys.executable, "-m", "choral", "train", str(config_file), "--folder", str(folder), "--processes", "2"]
    output = subprocess.run(command, env=ENV, timeout=200, check=True, capture_output=True, text=True).stderr
    assert "continuing at step" in output
    assert_equal_tensors(final_weights(whole), final_weights(folder), 1e-5)


def test_evaluation_is_the_same_on_any_number_of_ranks(config_file: Path, tmp_path: Path, choral: Choral) -> None:
    """11 samples in batches of 4, on one to three ranks."""
    assert choral("train", config_file, "--processes", 1).returncode == 0
    ledger = tmp_path / "runs" / "toy" / "predictions" / "test.parquet"
    found = {}
    for processes in (1, 2, 3):
        result = choral("evaluate", "toy", "--processes", processes, "--force")
        assert result.returncode == 0, result.stderr
        opened = Ledger.open(ledger)
        found[processes] = (opened.keys, opened.labels.tolist(), opened.predictions("model", "tta"))
    for processes in (2, 3):
        assert found[processes][:2] == found[1][:2]
        assert np.abs(found[processes][2] - found[1][2]).max() <= 1e-6
    assert len(found[1][0]) == 11


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(config_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    config_file.write_text(
        config_file.read_text()
        .replace("steps: 10", "steps: 4000")
        .replace("save_every_steps: 2", "save_every_steps: 4000")
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "choral", "train", str(config_file), "--folder", str(folder), "--processes", "2"]
    process = subprocess.Popen(command, env=ENV)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert find_checkpoint(folder / "checkpoints", "last")
    assert not (folder / "stop").exists()
