"""Started by the launcher: checks, one after the other, what ranks must agree on; a failed assertion fails the launch.

accelerate launch two_ranks.py CONFIG OUT
"""

from __future__ import annotations

import json
import math
import sys
import weakref
from pathlib import Path

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import Stopped
from choral.core.process_group import Runtime
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, SOUP_FILE, find_checkpoint
from choral.runs.run_dir import RunDir
from choral.training import range_test
from choral.training.finite_checks import NotFinite
from choral.training.loop import train
from choral.training.trainer import Trainer

CHAIN = [
    *("finetune.strategy=full", "train.soup=none", "train.ema_decay=0", "train.steps=3"),
    *("data.resample.kind=boost", "evaluate.checkpoint=last"),
]


def main() -> None:
    out = Path(sys.argv[2])
    run = Runtime("no", 1, 120, out / "stop")
    assert run.world_size == 2
    check_stop_and_resume(run, out, load_config(sys.argv[1]))
    config = load_config(sys.argv[1], ["finetune.strategy=full", "train.soup=none", "train.ema_decay=0"])
    check_old_wrapper_is_released(run, out, load_config(sys.argv[1]))
    check_one_bad_loss_stops_all(run, out, config)
    check_ddp_options_change_no_loss(run, out, config)
    train_chain(sys.argv[1], RunDir(out / "chain"), run)
    check_ranks_find_the_same_rate(run, out, load_config(sys.argv[1], ["train.lr=auto", "finetune.strategy=full"]))
    run.end()


def train_chain(config_file: str, chain: RunDir, run: Runtime) -> None:
    """Train two boosting rounds; the second uses the sample weights that the first writes."""
    for number in (0, 1):
        overrides = [*CHAIN, f"data.resample.number={number}", f"seed={number}"]
        member = chain.member(f"round{number + 1}")
        train(load_config(config_file, overrides), member, run)
        assert member.result is not None


def check_stop_and_resume(run: Runtime, out: Path, config: Config) -> None:
    """Phases, average and soup end with equal bits after a stop in the second phase."""
    whole, stopped = RunDir(out / "whole"), RunDir(out / "stopped")
    for folder in (whole, stopped):
        folder.path.mkdir(exist_ok=True)
    train(config, whole, run)
    should_stop = run.should_stop
    answers = iter([False] * 4 + [True] + [False] * 100)
    run.should_stop = lambda: next(answers)
    try:
        train(config, stopped, run)
        raise AssertionError("it did not stop")
    except Stopped:
        train(config, stopped, run)
    run.should_stop = should_stop
    for name in (MODEL_FILE, EMA_FILE, SOUP_FILE):
        first, second = (
            load_model_tensors(find_checkpoint(folder.checkpoints, "last"), name) for folder in (whole, stopped)
        )
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name


def check_old_wrapper_is_released(run: Runtime, out: Path, config: Config) -> None:
    trainer = Trainer(config, RunDir(out / "phases"), run)
    with trainer.batches_from(0) as loader:
        batches = iter(loader)
        trainer.train_step(batches, 0)
        old = weakref.ref(trainer.model)
        assert trainer.enter_phase(3) and old() is None
        trainer.train_step(batches, 3)  # DDP would raise in the next step if a parameter got no gradient
        trainer.train_step(batches, 4)


def check_one_bad_loss_stops_all(run: Runtime, out: Path, config: Config) -> None:
    trainer = Trainer(config, RunDir(out / "bad"), run)
    losses = trainer.objective.losses
    trainer.objective.losses = lambda logits, batch: losses(logits, batch) * (math.inf if run.rank == 1 else 1.0)
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    with trainer.batches_from(0) as loader:
        try:
            trainer.train_step(iter(loader), 0)
            raise AssertionError("it went on")
        except NotFinite as error:
            assert "step 0: the loss on rank 1 is not finite" in str(error), error
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.named_parameters())


def check_ddp_options_change_no_loss(run: Runtime, out: Path, config: Config) -> None:
    default = run.accelerator.ddp_handler
    small = DistributedDataParallelKwargs(broadcast_buffers=False, bucket_cap_mb=0.01, static_graph=True)
    bf16 = DistributedDataParallelKwargs(broadcast_buffers=False, comm_hook=DDPCommunicationHookType.BF16)
    found = []
    for handler in (default, small, bf16):
        run.accelerator.ddp_handler = handler
        trainer = Trainer(config, RunDir(out / "options"), run)
        with trainer.batches_from(0) as loader:
            batches = iter(loader)
            found.append([run.sum(trainer.train_step(batches, step)).item() for step in range(4)])
    run.accelerator.ddp_handler = default
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found[0], found[1], strict=True)), found
    assert all(math.isclose(a, b, rel_tol=2e-2) for a, b in zip(found[0], found[2], strict=True)), found
    assert found[0][1:] != found[2][1:]  # the gradients did travel as bf16


def check_ranks_find_the_same_rate(run: Runtime, out: Path, config: Config) -> None:
    folder = RunDir(out / "rates")
    folder.path.mkdir(exist_ok=True)
    range_test.STEPS = 30
    trainer = Trainer(config, folder, run)
    range_test.find_learning_rate(trainer)
    (out / f"rate-{run.rank}.json").write_text(json.dumps(trainer.schedule.lr))


if __name__ == "__main__":
    main()
