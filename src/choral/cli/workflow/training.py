"""The stages pack and train: one model, or all members as parallel jobs. Errors are found before the first job starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from choral.cli.workflow.launch import gpus, launch
from choral.config import Config, resolve_members
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.data.loading.boosting_weights import read_rounds, reason_not_trained
from choral.data.loading.targets import Targets
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import DATASET_FILE, Dataset, Index
from choral.ensembles.member_jobs import build_pending_jobs, build_slots, member_config, run_boosting_chain, run_members
from choral.ensembles.missing_members import describe_missing_members, find_missing_members
from choral.inference.run_models import member_run_dirs
from choral.inference.views import expand_views
from choral.jobs.launcher import Machines
from choral.runs.run_dir import RunDir
from choral.training.preflight import preflight


def pack_if_missing(config: Config, console: Console) -> None:
    """Pack `data.source` into `data.shards` unless that is done; an interrupted packing continues.

    Raises:
        ConfigError: there are neither shards nor a source.
    """
    shards = Path(config.data.shards)
    if not config.data.source:
        if not (shards / DATASET_FILE).is_file():
            raise ConfigError(
                f"data.shards: {shards}: contains no packed data; run `choral pack SOURCE {shards}`, or set data.source"
            )
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"packing {config.data.source}", total=None)
        pack(
            config.data.source,
            shards,
            PackOptions(**dict(config.data.pack)),
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def train_one(
    config: Config, folder: RunDir, arguments: Sequence[str], processes: int, machines: Machines | None = None
) -> int:
    """Train one model on this machine's ranks, in the foreground.

    Args:
        config, folder: the run.
        arguments: config file and overrides, as the user gave them.
        processes: ranks of this machine; 0: one per GPU, or one.
        machines: the machines that train it together, each by its own call; None: only this one.

    Returns:
        The exit status: 0 done, 1 failed (the reason has been printed), 75 stopped.

    Raises:
        ConfigError, DataError: raised before anything is started.
    """
    folder.check_same_config(config)
    if folder.result is not None:
        print(f"{folder.path}: already trained", file=sys.stderr)
        return 0
    if reason := reason_not_trained(config.data.resample, folder):
        print(f"{folder.path}: not trained: {reason}", file=sys.stderr)
        return 0
    preflight(config)
    return launch("choral.training", [*arguments, "--folder", str(folder.path)], processes, folder, machines)


def train_all(config: Config, folder: RunDir, console: Console) -> int:
    """Train all members that are not trained yet.

    Returns:
        The exit status: 0 all are trained, 1 some failed after all retries (reported on the console), 75 stopped.

    Raises:
        ConfigError, DataError: raised before the first member is started.
        ChoralError: no member could be trained.
    """
    _check_before_start(config)
    if not resolve_members(config):
        folder.store_config(config)
        return train_one(config, folder, [str(folder.path / "config.yaml")], processes=0)
    with folder.lock():
        folder.check_same_config(config)
        jobs = build_pending_jobs(config, folder)
        folder.store_config(config)
        slots, retries = build_slots(config, gpus()), config.ensemble.retries
        if config.ensemble.boosting:
            outcomes = run_boosting_chain(folder, jobs, slots, retries, console)
        else:
            outcomes = run_members(jobs, slots, retries, console) if jobs else []
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if any(outcome.state == "stopped" for outcome in outcomes):
        console.print("stopped; run the same command again to continue")
        return Stopped.exit_code
    members, rounds = member_run_dirs(folder, config), read_rounds(folder)
    end_reason = rounds.ended if rounds is not None else ""
    if all(member.result is None for member in members.values()):
        reason = failed[0].message if failed else end_reason
        raise ChoralError(f"{folder.path}: none of {len(resolve_members(config))} members could be trained: {reason}")
    if end_reason:
        console.print(f"boosting has ended: {end_reason}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        report = describe_missing_members(len(members), find_missing_members(folder, config))
        console.print(report, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def check_run(config: Config) -> None:
    """Check views, members, data and splits before training starts, as far as that needs no torch.

    Raises:
        ConfigError, DataError: naming the key, directory, shard or split.
    """
    expand_views(config.test_views)
    for config_to_train in _configs_to_train(config):
        preflight(config_to_train)
    dataset = Dataset.open(config.data.shards)
    for split in config.evaluate.splits:
        Targets.open(config, Index.open(dataset, split))


def _configs_to_train(config: Config) -> list[Config]:
    """Return the configs to train: one for each member, or the config itself if it has no members."""
    return [member_config(config, member.name) for member in resolve_members(config)] or [config]


def _check_before_start(config: Config) -> None:
    """Check what `check_run` checks, and the names of models and optimizers.

    This process only waits for members, so a child imports timm to look the names up.

    Raises:
        ConfigError, DataError: naming the key, directory, shard or split.
    """
    check_run(config)
    if all(member.result for member in member_run_dirs(RunDir.from_config(config), config).values()):
        return  # finished members have valid names
    configs = _configs_to_train(config)
    names = {"models": [own.model.name for own in configs], "optimizers": [own.train.optimizer for own in configs]}
    command = [sys.executable, "-m", "choral.training.check_names", json.dumps(names)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode == ConfigError.exit_code:
        raise ConfigError(child.stdout.strip())
    if child.returncode:
        raise ChoralError("the names of models and optimizers could not be checked: see above")
