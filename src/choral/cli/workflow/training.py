"""Packing and training: of one network, and of all members as parallel jobs; what would fail later is found before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from choral.cli.workflow.launch import gpus, launch
from choral.config import Config, members_of
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.data.loading.boosting_weights import rounds_of, why_not_trained
from choral.data.loading.targets import Targets
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import DATASET_FILE, Dataset, Index
from choral.ensembles.member_jobs import member_config, pending_jobs, run_chain, run_members, slots_of
from choral.ensembles.missing_members import absent_members, how_many
from choral.inference.trained_models import member_run_dirs
from choral.inference.views import expand
from choral.jobs.launcher import Machines
from choral.runs.run_dir import RunDir
from choral.training.__main__ import preflight


def pack_if_missing(config: Config, console: Console) -> None:
    """Pack `data.source` into `data.shards`, unless that is done; an interrupted packing is continued.

    Raises:
        ConfigError: there are neither shards nor a source.
    """
    shards = Path(config.data.shards)
    if not config.data.source:
        if not (shards / DATASET_FILE).is_file():
            raise ConfigError(
                f"data.shards: {shards}: nothing is packed there; run `choral pack SOURCE {shards}`, or set data.source"
            )
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"packing {config.data.source}", total=None)
        pack(
            config.data.source,
            shards,
            PackOptions(**asdict(config.data.pack)),
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def train_one(
    config: Config, folder: RunDir, arguments: Sequence[str], processes: int, machines: Machines | None = None
) -> int:
    """Train one network through the launcher, sharing this terminal.

    Args:
        config, folder: of the run.
        arguments: config file and overrides, as the user gave them.
        processes: ranks of this machine; 0: all GPUs, or one.
        machines: that train it together, each by a call of its own; None: this one alone.

    Returns:
        0 done, 1 failed (the reason has been printed), 75 stopped.

    Raises:
        ConfigError, DataError: found before anything is started.
    """
    folder.check_same(config)
    if folder.result is not None:
        print(f"{folder.path}: already trained", file=sys.stderr)
        return 0
    if reason := why_not_trained(config.data.resample, folder):
        print(f"{folder.path}: not trained: {reason}", file=sys.stderr)
        return 0
    preflight(config)
    return launch("choral.training", [*arguments, "--folder", str(folder.path)], processes, folder, machines)


def train_all(config: Config, folder: RunDir, console: Console) -> int:
    """Train all members that are not trained yet.

    Returns:
        0: all are trained; 1: some failed for good, which has been said; 75: stopped.

    Raises:
        ConfigError, DataError: found before the first member is started.
        ChoralError: no member could be trained.
    """
    _check_before_start(config)
    if not members_of(config):
        folder.claim(config)
        return train_one(config, folder, [str(folder.path / "config.yaml")], processes=0)
    with folder.lock():
        folder.check_same(config)
        jobs = pending_jobs(config, folder)
        folder.claim(config)
        slots, retries = slots_of(config, gpus()), config.ensemble.retries
        if config.ensemble.boosting:
            outcomes = run_chain(folder, jobs, slots, retries, console)
        else:
            outcomes = run_members(jobs, slots, retries, console) if jobs else []
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if any(outcome.state == "stopped" for outcome in outcomes):
        console.print("stopped; run the same command again to continue")
        return Stopped.exit_code
    members, rounds = member_run_dirs(folder, config), rounds_of(folder)
    ended = rounds.ended if rounds is not None else ""
    if all(member.result is None for member in members.values()):
        why = failed[0].message if failed else ended
        raise ChoralError(f"{folder.path}: none of {len(members_of(config))} members could be trained: {why}")
    if ended:
        console.print(f"boosting has ended: {ended}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        words = how_many(len(members), absent_members(folder, config))
        console.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def check_run(config: Config) -> None:
    """Find what would fail after the training of the first member, or of the last, as far as that needs no torch.

    Raises:
        ConfigError, DataError: naming the key, folder, shard or split.
    """
    expand(config.test_views)
    members = [member_config(config, member.name) for member in members_of(config)]
    for own in members or [config]:
        preflight(own)
    dataset = Dataset.open(config.data.shards)
    for split in config.evaluate.splits:
        Targets.open(config, Index.open(dataset, split))


def _check_before_start(config: Config) -> None:
    """Like `check_run`, with the names of networks and optimizers, which torch's libraries know.

    Raises:
        ConfigError, DataError: naming the key, folder, shard or split.
    """
    check_run(config)
    if all(member.result for member in member_run_dirs(RunDir.of(config), config).values()):
        return  # their names were right
    from choral.models.build import check_name
    from choral.training.optimizer import check_optimizer

    members = [member_config(config, member.name) for member in members_of(config)]
    for own in members or [config]:
        check_name(own.model.name)
        check_optimizer(own.train.optimizer)
