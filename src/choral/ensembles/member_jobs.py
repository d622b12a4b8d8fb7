"""The members of an ensemble as jobs of this machine: which command trains each, and on which devices and threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from choral.config import Config, EnsembleConfig, members_of
from choral.config.files import to_yaml, with_overrides
from choral.core.errors import ConfigError
from choral.data.loading.boosting_weights import rounds_of
from choral.ensembles.missing_members import forget_failure, note_failures
from choral.inference.trained_models import check_boosting_chain, member_run_dirs
from choral.jobs.local import Job, Outcome, run_jobs
from choral.runs.run_dir import RunDir, write_atomic

_GRACE_S = 110.0  # more than the member's own launcher gives its ranks


def member_config(config: Config, name: str) -> Config:
    """Return the config of one member: the run's, with what the member sets, and without the ensemble.

    Raises:
        ConfigError: a key or value of the member that does not fit, or no such member.
    """
    for member in members_of(config):
        if member.name == name:
            ensemble = config.ensemble
            alone = EnsembleConfig(
                max_parallel=ensemble.max_parallel,
                devices_per_member=ensemble.devices_per_member,
                retries=ensemble.retries,
            )
            own = with_overrides(replace(config, ensemble=alone), member.set, f"ensemble.members.{name}.set")
            return replace(own, run=name)
    raise ConfigError(f"ensemble.members: no member '{name}'")


def solo_config(config: Config, run: str) -> Config:
    """Return the config of one network in place of an ensemble: of the first member, trained on the whole training split.

    What resampling, boosting and snapshots would make of it is left out; a config without members is only renamed.

    Args:
        config: of a run.
        run: the name of the other one.
    """
    members = members_of(config)
    own = member_config(config, members[0].name) if members and not config.ensemble.boosting else config
    train = replace(own.train, cycles=config.train.cycles) if config.ensemble.snapshots else own.train
    data = replace(own.data, resample=config.data.resample)
    ensemble = EnsembleConfig(
        max_parallel=config.ensemble.max_parallel,
        devices_per_member=config.ensemble.devices_per_member,
        retries=config.ensemble.retries,
    )
    return replace(own, run=run, data=data, train=train, ensemble=ensemble)


def pending_jobs(config: Config, folder: RunDir) -> list[Job]:
    """Return a job for each member that is not trained yet; all members' configs are validated before there is one.

    Members that a chain of boosting leaves out have none.

    Args:
        config: of the run.
        folder: of the run, claimed.

    Raises:
        ConfigError: a member's setting does not fit, or its folder holds a member of another config.
        ChoralError: members of boosting have to be trained anew, see `check_boosting_chain`.
    """
    configs = {member.name: member_config(config, member.name) for member in members_of(config)}
    for name, own in configs.items():
        folder.member(name).check_same(own)
    check_boosting_chain(folder, config)
    jobs = []
    for name, member in member_run_dirs(folder, config).items() if configs else ():
        if member.result is None:
            write_atomic(member.path / "requested.yaml", to_yaml(configs[name]))
            jobs.append(_job(config, name, member))
    return jobs


def run_members(
    jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], retries: int, console: Console
) -> list[Outcome]:
    """Train members, as many at once as there are slots, with a live table, and return how each ended.

    Why a member failed for good is left in its folder: see `absent_members`.
    """
    for job in jobs:
        forget_failure(RunDir(job.folder))
    outcomes = run_jobs(
        jobs,
        slots=slots,
        retries=retries,
        progress=lambda job: progress_columns(RunDir(job.folder).status),
        progress_token=lambda job: RunDir(job.folder).status.get("step"),
        grace_s=_GRACE_S,
        console=console,
        kind="member",
    )
    note_failures(outcomes)
    return outcomes


def run_chain(
    folder: RunDir, jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], retries: int, console: Console
) -> list[Outcome]:
    """Train the members of a chain of boosting one after the other, up to its end or to the first that fails or is stopped.

    Returns:
        how each ended that was started.
    """
    outcomes: list[Outcome] = []
    for job in jobs:
        rounds = rounds_of(folder)
        if rounds is not None and rounds.leaves_out(job.name):
            break
        outcomes += run_members([job], slots[:1], retries, console)
        if outcomes[-1].state != "done":
            break
    return outcomes


def slots_of(config: Config, gpus: Sequence[str]) -> list[Mapping[str, str]]:
    """Return the places where members can run at once, each with the environment that confines a member to it.

    Args:
        config: says how many ranks a member has and how many members may run at once.
        gpus: ids of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them; none: the cores are shared out. The threads
            of a rank are OMP_NUM_THREADS, if that is set; else they depend on the number of members and cores, not on
            how many run at once: what a member computes, to the last bit, depends on them.

    Raises:
        ConfigError: a member wants more GPUs than there are.
    """
    chain = config.ensemble.boosting > 0
    members = 1 if chain else len(members_of(config))  # that run side by side, if there are devices for all
    return shared_out(config, gpus, members, at_once=1 if chain else config.ensemble.max_parallel)


def shared_out(config: Config, gpus: Sequence[str], jobs: int, at_once: int) -> list[Mapping[str, str]]:
    """Return places as `slots_of`, for any number of jobs of `ensemble.devices_per_member` ranks each.

    Args:
        config, gpus: as of `slots_of`.
        jobs: that run side by side, if there are devices for all.
        at_once: no more than so many; 0: as many as the devices hold.
    """
    each, wanted = config.ensemble.devices_per_member, at_once or jobs
    if gpus:
        if each > len(gpus):
            raise ConfigError(f"ensemble.devices_per_member: {each} GPUs a member, but this machine has {len(gpus)}")
        groups = [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)]
        groups = groups[:wanted]
        share = str(max(1, len(os.sched_getaffinity(0)) // len(groups)))
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group), "CHORAL_CORES": share} for group in groups]
    cores = len(os.sched_getaffinity(0))
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, cores // (jobs * each))
    fitting = at_once or max(1, cores // (threads * each))
    slot = {"OMP_NUM_THREADS": str(threads), "CHORAL_CORES": str(threads * each), "CUDA_VISIBLE_DEVICES": ""}
    return [slot] * min(wanted, fitting)


def _job(config: Config, name: str, member: RunDir) -> Job:
    command = [
        *(sys.executable, "-m", "choral", "train", str(member.path / "requested.yaml")),
        *("--folder", str(member.path)),
        *("--processes", str(config.ensemble.devices_per_member)),
    ]
    return Job(name=name, command=tuple(command), folder=member.path, env={})


def progress_columns(status: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of tables of members that a member's last report (status.json) fills."""
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
    """Return what the last validation found, in the one number that says most for the task."""
    for key, form in (("accuracy", "{:.1%} right"), ("mean_ap", "{:.1%} mAP"), ("rmse", "{:.4g} RMSE")):
        if (value := status.get(f"val_{key}")) is not None:
            return form.format(value)
    return ""
