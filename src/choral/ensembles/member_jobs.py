"""Ensemble members as jobs of this machine: the command that trains each, and its devices and threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from choral.config import Config, EnsembleConfig, resolve_members
from choral.config.files import to_yaml, with_overrides
from choral.core.errors import ConfigError
from choral.data.loading.boosting_weights import read_rounds
from choral.ensembles.missing_members import clear_failure, record_failures
from choral.inference.run_models import check_boosting_chain, member_run_dirs
from choral.jobs.local import Job, Outcome, run_jobs
from choral.runs.run_dir import RunDir, write_atomic

_GRACE_S = 110.0  # longer than the member's own launcher waits for its ranks


def member_config(config: Config, name: str) -> Config:
    """Return the config of one member: the run's config with the member's overrides and without the ensemble.

    Raises:
        ConfigError: an invalid key or value in the member's overrides, or no such member.
    """
    for member in resolve_members(config):
        if member.name == name:
            ensemble = config.ensemble
            without_members = EnsembleConfig(
                max_parallel=ensemble.max_parallel,
                devices_per_member=ensemble.devices_per_member,
                retries=ensemble.retries,
            )
            overridden = with_overrides(
                config.replace(ensemble=without_members), member.set, f"ensemble.members.{name}.set"
            )
            return overridden.replace(run=name)
    raise ConfigError(f"ensemble.members: no member '{name}'")


def single_model_config(config: Config, run: str) -> Config:
    """Return the config of a single model in place of an ensemble: the first member, trained on the whole training split.

    Resampling, boosting and snapshots are removed; a config without members is only renamed.

    Args:
        config: of the ensemble run.
        run: name of the new run.
    """
    members = resolve_members(config)
    single = member_config(config, members[0].name) if members and not config.ensemble.boosting else config
    train = single.train.replace(cycles=config.train.cycles) if config.ensemble.snapshots else single.train
    data = single.data.replace(resample=config.data.resample)
    ensemble = EnsembleConfig(
        max_parallel=config.ensemble.max_parallel,
        devices_per_member=config.ensemble.devices_per_member,
        retries=config.ensemble.retries,
    )
    return single.replace(run=run, data=data, train=train, ensemble=ensemble)


def build_pending_jobs(config: Config, run_dir: RunDir) -> list[Job]:
    """Return a job for each member that is not trained yet, after validating the configs of all members.

    Members that a boosting chain ended without have no job.

    Args:
        config: of the run.
        run_dir: of the run, locked.

    Raises:
        ConfigError: a member's overrides are invalid, or its run directory holds a member of another config.
        ChoralError: boosting members have to be trained again, see `check_boosting_chain`.
    """
    configs = {member.name: member_config(config, member.name) for member in resolve_members(config)}
    for name, of_member in configs.items():
        run_dir.member(name).check_same_config(of_member)
    check_boosting_chain(run_dir, config)
    jobs = []
    for name, member in member_run_dirs(run_dir, config).items() if configs else ():
        if member.result is None:
            write_atomic(member.path / "requested.yaml", to_yaml(configs[name]))
            jobs.append(_build_job(config, name, member))
    return jobs


def run_members(
    jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], retries: int, console: Console
) -> list[Outcome]:
    """Train members, one for each free slot at a time, with a live table, and return the outcome of each.

    The reason for a permanent failure is written to the member's run directory, see `find_missing_members`.
    """
    for job in jobs:
        clear_failure(RunDir(job.folder))
    outcomes = run_jobs(
        jobs,
        slots=slots,
        retries=retries,
        progress=lambda job: progress_columns(RunDir(job.folder).status),
        progress_token=lambda job: RunDir(job.folder).status.get("step"),
        grace_s=_GRACE_S,
        console=console,
        label="member",
    )
    record_failures(outcomes)
    return outcomes


def run_boosting_chain(
    run_dir: RunDir, jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], retries: int, console: Console
) -> list[Outcome]:
    """Train the members of a boosting chain in turn, until it ends or a member fails or is stopped.

    Returns:
        The outcomes of the members that were started.
    """
    outcomes: list[Outcome] = []
    for job in jobs:
        rounds = read_rounds(run_dir)
        if rounds is not None and rounds.excludes(job.name):
            break
        outcomes += run_members([job], slots[:1], retries, console)
        if outcomes[-1].state != "done":
            break
    return outcomes


def build_slots(config: Config, gpus: Sequence[str]) -> list[Mapping[str, str]]:
    """Return one slot for each member that can run at the same time: the environment that confines it to its devices.

    Args:
        config: sets the ranks of a member and the number of members that may run at once.
        gpus: ids of this machine's GPUs, as in CUDA_VISIBLE_DEVICES; empty: members share the CPU cores. A rank has
            OMP_NUM_THREADS threads if that is set. Otherwise the number of threads depends on the numbers of members and
            cores, not on how many members run at once: a member's result depends on it in the last bits.

    Raises:
        ConfigError: a member needs more GPUs than there are.
    """
    chain = config.ensemble.boosting > 0
    members = 1 if chain else len(resolve_members(config))
    return build_device_slots(config, gpus, members, at_once=1 if chain else config.ensemble.max_parallel)


def build_device_slots(config: Config, gpus: Sequence[str], jobs: int, at_once: int) -> list[Mapping[str, str]]:
    """Return slots as `build_slots` does, for any number of jobs of `ensemble.devices_per_member` ranks each.

    Args:
        config, gpus: as for `build_slots`.
        jobs: that would run at once if there were devices for all.
        at_once: upper limit of slots; 0: as many as the devices allow.
    """
    per_job, limit = config.ensemble.devices_per_member, at_once or jobs
    if gpus:
        if per_job > len(gpus):
            raise ConfigError(f"ensemble.devices_per_member: {per_job} GPUs a member, but this machine has {len(gpus)}")
        groups = [gpus[start : start + per_job] for start in range(0, len(gpus) - per_job + 1, per_job)][:limit]
        cores_per_job = str(max(1, len(os.sched_getaffinity(0)) // len(groups)))
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group), "CHORAL_CORES": cores_per_job} for group in groups]
    cores = len(os.sched_getaffinity(0))
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, cores // (jobs * per_job))
    slots = at_once or max(1, cores // (threads * per_job))
    slot = {"OMP_NUM_THREADS": str(threads), "CHORAL_CORES": str(threads * per_job), "CUDA_VISIBLE_DEVICES": ""}
    return [slot] * min(limit, slots)


def _build_job(config: Config, name: str, member: RunDir) -> Job:
    command = [
        *(sys.executable, "-m", "choral", "train", str(member.path / "requested.yaml")),
        *("--folder", str(member.path)),
        *("--processes", str(config.ensemble.devices_per_member)),
    ]
    return Job(name=name, command=tuple(command), folder=member.path, env={})


def progress_columns(status: Mapping[str, Any]) -> dict[str, str]:
    """Return table cells of a member's progress, from its status.json."""
    if "step" not in status or "loss" not in status:
        return {"step": "", "loss": "", "validation": "", "images/s": "", "eta": ""}
    minutes, seconds = divmod(int(status.get("eta_s", 0)), 60)
    return {
        "step": f"{status['step']}/{status['steps']}",
        "loss": f"{status['loss']:.3f}",
        "validation": _validation(status),
        "images/s": f"{status['images_per_s']:.0f}",
        "eta": f"{minutes}:{seconds:02d}",
    }


def _validation(status: Mapping[str, Any]) -> str:
    """Return the main metric of the last validation."""
    for key, template in (("accuracy", "{:.1%} accuracy"), ("mean_ap", "{:.1%} mAP"), ("rmse", "{:.4g} RMSE")):
        if (value := status.get(f"val_{key}")) is not None:
            return template.format(value)
    return ""
