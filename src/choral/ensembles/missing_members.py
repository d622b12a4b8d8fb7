"""Which members are missing from a result, and why: turns "4 of 5 members" into something a user can fix.

Everything is read from the members' run directories, so the answer is the same after a local run, after a cluster's, and
later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choral.config import Config, held_out_groups
from choral.inference.models_file import is_assembled
from choral.inference.run_models import member_run_dirs
from choral.jobs import Outcome
from choral.jobs.process import read_log_tail
from choral.runs.run_dir import RunDir

_MAX_REASON_CHARS = 240  # the log has the rest


def find_missing_members(run_dir: RunDir, config: Config) -> dict[str, str]:
    """Return the members whose training is not finished, each with a one-line reason, in the order of the config.

    "not started", "stopped at step 40 of 120", "failed at step 40 of 120: exit status 1: ... (log: PATH)" and so on.
    Members that a boosting chain ended without do not belong to the run (see `member_run_dirs`), so they are not
    missing.
    """
    if is_assembled(run_dir):  # assembled from existing networks, whether their training has finished or not
        return {}
    members = member_run_dirs(run_dir, config)
    return {name: _unfinished_reason(member) for name, member in members.items() if member.result is None}


def find_missing_columns(columns: Sequence[str], run_dir: RunDir, config: Config) -> dict[str, str]:
    """Return the members without a column in a ledger, each with the reason: training not finished, or not evaluated.

    Args:
        columns: the ledger's members; a member with several snapshots has "MEMBER.1" and so on; out-of-fold predictions
            have groups of members, which cover all that were trained.
        run_dir, config: of the run.
    """
    reasons = find_missing_members(run_dir, config)
    if set(columns) <= set(held_out_groups(config)):
        return reasons
    for name in member_run_dirs(run_dir, config):
        if f"{name}.1" not in columns and name not in columns:
            reasons.setdefault(name, f"trained, but not evaluated yet: run `choral evaluate {run_dir.name}`")
        else:  # was trained when the ledger was written, and is being trained again
            reasons.pop(name, None)
    return {name: reasons[name] for name in member_run_dirs(run_dir, config) if name in reasons}


def describe_missing_members(members: int, missing: Mapping[str, str]) -> str:
    """Return "4 of 5 members; without third: failed: ... (log: PATH)"; "" if none is missing.

    Args:
        members: of the run.
        missing: name to reason.
    """
    if not missing:
        return ""
    listed = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return f"{members - len(missing)} of {members} members; without {listed}"


def record_failures(outcomes: Sequence[Outcome]) -> None:
    """Write the reason into the status of each member that failed for good, unless the member did so itself."""
    for outcome in outcomes:
        member = RunDir(outcome.job.folder)
        status = member.status
        if outcome.state == "failed" and status.get("state") != "failed":
            reason = ": ".join(filter(None, (outcome.reason, _last_error_line(outcome.log_tail))))
            member.write_status(**{**status, "state": "failed", "reason": reason})


def clear_failure(member: RunDir) -> None:
    """Remove a recorded failure before a member is tried again: the next failure may have another reason."""
    status = member.status
    if status.get("state") == "failed":
        member.write_status(**{key: value for key, value in status.items() if key != "reason"} | {"state": "waiting"})


def _unfinished_reason(member: RunDir) -> str:
    status = member.status
    state, step = status.get("state"), _step(status)
    log = member.path / "log.txt"
    log_path = f" (log: {log})" if log.is_file() else ""
    if state == "failed":
        return f"failed{step}: {_one_line(str(status.get('reason', 'no reason recorded')))}{log_path}"
    if state == "stopped":
        return f"stopped{step}"
    if member.lock_holder():
        return f"still in training{step}{log_path}"
    if step:
        return f"not finished; last report{step}{log_path}"
    last_line = _last_error_line(read_log_tail(log))
    return f"not finished; its log ends: {last_line}{log_path}" if last_line else "not started"


def _step(status: Mapping[str, Any]) -> str:
    return f" at step {status['step']} of {status['steps']}" if "step" in status else ""


def _last_error_line(log: str) -> str:
    """Return the last error line of the last attempt in a log, or its last line if there is no error."""
    lines: list[str] = []
    for line in log.splitlines():
        # "===== attempt" and "===== job" begin a new attempt.
        lines = [] if line.startswith("===== ") else [*lines, line]
    errors = [line for line in lines if line.startswith("error")]
    return _one_line((errors or lines or [""])[-1])


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON_CHARS else f"{line[: _MAX_REASON_CHARS - 1]}…"
