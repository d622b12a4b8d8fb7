"""Which members of a run have no say in its result, and why: what turns "4 of 5" into something that can be mended.

All of it is read from the members' folders, so that it is the same after a local run, after a cluster's, and tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choral.config import Config, held_out_groups
from choral.inference.trained_models import is_assembled, member_run_dirs
from choral.jobs import Outcome
from choral.jobs.process import tail
from choral.runs.run_dir import RunDir

_LONGEST = 240  # letters of a reason; the log has the rest


def absent_members(folder: RunDir, config: Config) -> dict[str, str]:
    """Return the members whose training is not finished, each with the reason in one line, in the order of the config.

    "not started", "stopped at step 40 of 120", "failed at step 40 of 120: exit status 1: ... (log: PATH)" and so on. Members
    that a boosting chain ended without are none of the run's (see `member_run_dirs`), so they are not absent.
    """
    if is_assembled(folder):  # of networks that are there, be their training finished or not
        return {}
    return {name: _reason(member) for name, member in member_run_dirs(folder, config).items() if member.result is None}


def absent_from(columns: Sequence[str], folder: RunDir, config: Config) -> dict[str, str]:
    """Return the members without a column in a ledger, each with the reason: as above, or that they were not asked.

    Args:
        columns: the ledger's members; of a member with several snapshots, "MEMBER.1" and so on; of held-out predictions,
            groups of members, in which all that were trained have been asked.
        folder, config: of the run.
    """
    reasons = absent_members(folder, config)
    if set(columns) <= set(held_out_groups(config)):
        return reasons
    for name in member_run_dirs(folder, config):
        if f"{name}.1" not in columns and name not in columns:
            reasons.setdefault(name, f"trained, but not asked yet: run `choral evaluate {folder.name}`")
        else:  # trained when it was asked, and being trained again now
            reasons.pop(name, None)
    return {name: reasons[name] for name in member_run_dirs(folder, config) if name in reasons}


def how_many(members: int, absent: Mapping[str, str]) -> str:
    """Return "4 of 5 members", and who is missing: "; without third: failed: ... (log: PATH)"; "" where nobody is."""
    if not absent:
        return ""
    missing = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
    return f"{members - len(absent)} of {members} members; without {missing}"


def note_failures(outcomes: Sequence[Outcome]) -> None:
    """Leave in the folder of each member that failed for good why it did, unless it has said so itself."""
    for outcome in outcomes:
        member = RunDir(outcome.job.folder)
        status = member.status
        if outcome.state == "failed" and status.get("state") != "failed":
            words = ": ".join(filter(None, (outcome.reason, _last_words(outcome.log_tail))))
            member.report(**{**status, "state": "failed", "reason": words})


def forget_failure(member: RunDir) -> None:
    """Take back what an earlier call left, before a member is tried again: what fails now may fail for another reason."""
    status = member.status
    if status.get("state") == "failed":
        member.report(**{key: value for key, value in status.items() if key != "reason"} | {"state": "waiting"})


def _reason(member: RunDir) -> str:
    status = member.status
    state, place = status.get("state"), _place(status)
    log = member.path / "log.txt"
    where = f" (log: {log})" if log.is_file() else ""
    if state == "failed":
        return f"failed{place}: {_one_line(str(status.get('reason', 'no reason given')))}{where}"
    if state == "stopped":
        return f"stopped{place}"
    if member.holder():
        return f"still in training{place}{where}"
    if place:
        return f"not finished; last heard of{place}{where}"
    words = _last_words(tail(log))
    return f"not finished; its log ends: {words}{where}" if words else "not started"


def _place(status: Mapping[str, Any]) -> str:
    return f" at step {status['step']} of {status['steps']}" if "step" in status else ""


def _last_words(log: str) -> str:
    """Return the line of a log's end that says most: the last error of the last start, else the last line."""
    lines: list[str] = []
    for line in log.splitlines():
        lines = (
            [] if line.startswith("===== ") else [*lines, line]
        )  # "===== attempt", "===== job": what follows is another
    errors = [line for line in lines if line.startswith("error")]
    return _one_line((errors or lines or [""])[-1])


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
