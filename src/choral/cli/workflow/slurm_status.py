"""The status of a run's members, from SLURM's queue and the members' directories, as one table.

It works with and without SLURM accounting, and for runs on this machine.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from choral.cli.workflow.slurm_submit import SubmittedJobs
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.member_jobs import progress_columns
from choral.ensembles.missing_members import find_missing_members
from choral.inference.run_models import member_run_dirs
from choral.jobs.slurm import queue
from choral.jobs.slurm.queue import QueueEntry
from choral.runs.run_dir import RunDir

_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "pending": "blue"}
EVALUATION = "evaluation"
_COLUMNS = ("step", "validation", "eta")
_MAX_NOTE_LENGTH = 24


@dataclass(frozen=True)
class StatusRow:
    """A row of the table: a member or the evaluation.

    Attributes:
        state: done, running, pending (in the queue), waiting (for a slot on this machine), starting, stopped,
            interrupted (its process is gone), cancelled, failed, or "not started".
        note: where it runs, why it waits, or why it failed.
    """

    name: str
    job: str
    state: str
    columns: Mapping[str, str]
    note: str

    @property
    def exit_code(self) -> int:
        """The exit status for the state: 0 done, 1 failed, 75 unfinished."""
        return {"done": 0, "failed": 1}.get(self.state, Stopped.exit_code)


@dataclass(frozen=True)
class RunStatus:
    """All rows of a run; `queue_error` is why the queue could not be read, else empty."""

    rows: tuple[StatusRow, ...]
    queue_error: str = ""

    @property
    def exit_code(self) -> int:
        """0: everything is done; 1: something failed; 75: something is unfinished."""
        this_job = os.environ.get("SLURM_JOB_ID")  # a job that calls this does not count itself
        codes = {row.exit_code for row in self.rows if not this_job or row.job != this_job}
        return 1 if 1 in codes else Stopped.exit_code if codes - {0} else 0


def read_run_status(run_dir: RunDir) -> RunStatus:
    """Return the status of the members of a run and of its evaluation."""
    config, jobs = run_dir.config(), SubmittedJobs.read(run_dir)
    entries: dict[str, QueueEntry] = {}
    error = ""
    if jobs:
        try:
            entries = queue.read_queue()
        except ChoralError as failure:
            error = str(failure)
    reasons = find_missing_members(run_dir, config)
    rows = [
        _member_row(name, member, run_dir, jobs.members.get(name, ""), entries, reasons.get(name, ""))
        for name, member in member_run_dirs(run_dir, config).items()
    ]
    rows.append(_evaluation_row(run_dir, config, jobs.evaluation, entries))
    return RunStatus(tuple(rows), error if any(row.exit_code for row in rows) else "")


def _member_row(
    name: str, member: RunDir, run: RunDir, job: str, entries: Mapping[str, QueueEntry], reason: str
) -> StatusRow:
    entry, status = entries.get(job), member.status
    if (result := member.result) is not None:
        metrics = {f"val_{key}": value for key, value in result.items()}
        return StatusRow(name, job, "done", {**progress_columns({**status, **metrics}), "eta": ""}, "")
    columns = progress_columns(status)
    if entry is not None and entry.is_live:
        return StatusRow(name, job, *_queued_columns(entry, columns))
    state = str(status.get("state", ""))
    if state in ("running", "starting") and (holder := member.lock_holder()):
        return StatusRow(name, "", state, columns, f"host {holder[0]}, pid {holder[1]}")
    columns = {**columns, "eta": ""}
    if state == "failed":
        return StatusRow(name, job, "failed", columns, reason)
    if entry is not None and entry.state == "CANCELLED":
        return StatusRow(name, job, "cancelled", columns, entry.reason)
    if entry is not None and entry.state != "COMPLETED":
        return StatusRow(name, job, "failed", columns, f"{_describe_state(entry)}; {reason}")
    if state == "stopped":
        return StatusRow(name, job, "stopped", columns, reason)
    if state not in ("", "waiting"):
        return StatusRow(name, job, "interrupted", columns, reason)
    if member.path != run.path and (holder := run.lock_holder()):
        return StatusRow(name, "", "waiting", columns, f"host {holder[0]}, pid {holder[1]}")
    return StatusRow(name, job, "not started", columns, reason.removeprefix("not started"))


def _queued_columns(entry: QueueEntry, columns: Mapping[str, str]) -> tuple[str, Mapping[str, str], str]:
    if entry.state == "PENDING":
        return "pending", {**columns, "eta": ""}, entry.reason
    return entry.state.lower(), columns, entry.nodes


def _describe_state(entry: QueueEntry) -> str:
    state = entry.state.lower().replace("_", " ")
    return f"SLURM: {state}{f' ({entry.reason})' if entry.reason else ''}"


def _evaluation_row(run_dir: RunDir, config: Config, job: str, entries: Mapping[str, QueueEntry]) -> StatusRow:
    entry, empty = entries.get(job), progress_columns({})
    if entry is not None and entry.is_live:
        return StatusRow(EVALUATION, job, *_queued_columns(entry, empty))
    if all((run_dir.predictions / f"{split}.parquet").is_file() for split in config.evaluate.splits):
        return StatusRow(EVALUATION, job, "done", empty, f"choral score {run_dir.name}")
    if entry is not None and entry.state == "CANCELLED":
        return StatusRow(EVALUATION, job, "cancelled", empty, entry.reason)
    if entry is not None and entry.state != "COMPLETED":
        log = run_dir.path / "slurm" / f"evaluate-{job}.log"
        return StatusRow(EVALUATION, job, "failed", empty, f"{_describe_state(entry)} (log: {log})")
    return StatusRow(EVALUATION, job, "not started", empty, "")


def render_status_table(status: RunStatus, title: str) -> Table:
    """Return the rows as a table of at most 80 columns; `long_notes` returns the notes that do not fit."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("member", "job", "state", *_COLUMNS, ""):
        table.add_column(Text(heading), no_wrap=True)
    for row in status.rows:
        state = Text(row.state, style=_STYLES.get(row.state, "yellow"))
        cells = [Text(row.columns.get(name, "")) for name in _COLUMNS]
        note = row.note if len(row.note) <= _MAX_NOTE_LENGTH else "see below"
        table.add_row(Text(row.name), Text(row.job), state, *cells, Text(note))
    return table


def long_notes(status: RunStatus) -> list[str]:
    """Return a line for each note that is too long for the table, and for a queue that could not be read."""
    notes = [f"{row.name}: {row.note}" for row in status.rows if len(row.note) > _MAX_NOTE_LENGTH]
    return [*([f"queue: {status.queue_error}"] if status.queue_error else []), *notes]


def status_to_json(status: RunStatus, run: str) -> dict[str, Any]:
    """Return the rows as plain JSON."""
    return {
        "run": run,
        "rows": [asdict(row) for row in status.rows],
        "queue_error": status.queue_error,
        "exit_status": status.exit_code,
    }


def cancel_run(run_dir: RunDir) -> Sequence[str]:
    """Cancel the queued and running jobs of a run, and stop the process on this machine that works on it.

    Running jobs have a moment to save (KillWait of SLURM, 30 s by default); the run can be continued.

    Returns:
        one line per action; empty if there was nothing to cancel.

    Raises:
        ChoralError: the cluster does not respond; another machine works on the run, outside of SLURM.
    """
    jobs, done = SubmittedJobs.read(run_dir), []
    if jobs and queue.is_available():
        members, evaluation = jobs.live(queue.read_queue())
        live = [(name, jobs.members[name]) for name in members]
        live += [(EVALUATION, jobs.evaluation)] if evaluation else []
        if live:
            queue.cancel(job for _, job in live)
            return [f"{name}: job {job} cancelled" for name, job in live]
    for held_dir in (run_dir, *member_run_dirs(run_dir, run_dir.config()).values()):
        if holder := held_dir.lock_holder():
            host, pid = holder
            if host != socket.gethostname() or not pid:
                raise ChoralError(f"{held_dir.path}: in use on {host}, pid {pid}: cancel it there")
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError as error:
                raise ChoralError(
                    f"{held_dir.path}: pid {pid}, which uses it, cannot be stopped: {error.strerror}"
                ) from None
            done.append(f"{held_dir.path}: sent SIGTERM to pid {pid}, to save and stop")
            break  # the process that holds the run stops its members
    if jobs and not done and not queue.is_available() and find_missing_members(run_dir, run_dir.config()):
        raise ChoralError(
            f"{run_dir.path}: was submitted to a SLURM cluster that this machine cannot reach: cancel it there"
        )
    return done
