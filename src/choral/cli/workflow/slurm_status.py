"""What became of a run's members, from the queue and from their folders: one table, with accounting or without, on a
cluster or on this machine."""

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

from choral.cli.workflow.slurm_submit import Jobs
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.member_jobs import progress_columns
from choral.ensembles.missing_members import absent_members
from choral.inference.trained_models import member_run_dirs
from choral.jobs.slurm import queue
from choral.jobs.slurm.queue import Entry
from choral.runs.run_dir import RunDir

_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "pending": "blue"}
EVALUATION = "evaluation"
_SHOWN = ("step", "validation", "eta")
_SHORT_NOTE = 24


@dataclass(frozen=True)
class Row:
    """A member, or the evaluation.

    Attributes:
        state: done, running, pending (in the queue), waiting (for its turn on this machine), starting, stopped,
            interrupted (whoever worked on it is gone), cancelled, failed, or "not started".
        note: where it runs, why it waits, or why it failed.
    """

    name: str
    job: str
    state: str
    columns: Mapping[str, str]
    note: str

    @property
    def outcome(self) -> int:
        """The exit status that stands for the state: 0 done, 1 failed, 75 unfinished."""
        return {"done": 0, "failed": 1}.get(self.state, Stopped.exit_code)


@dataclass(frozen=True)
class Status:
    """All rows of a run; `queue_error` says why the queue could not be asked, where it could not."""

    rows: tuple[Row, ...]
    queue_error: str = ""

    @property
    def exit_code(self) -> int:
        """0: all is done; 1: something failed; 75: something is unfinished."""
        own = os.environ.get("SLURM_JOB_ID")  # a job that asks does not count itself
        outcomes = {row.outcome for row in self.rows if not own or row.job != own}
        return 1 if 1 in outcomes else Stopped.exit_code if outcomes - {0} else 0


def status_of(folder: RunDir) -> Status:
    """Return what the members of a run, and its evaluation, are doing."""
    config, jobs = folder.config(), Jobs.read(folder)
    entries: dict[str, Entry] = {}
    error = ""
    if jobs:
        try:
            entries = queue.read_queue()
        except ChoralError as failure:
            error = str(failure)
    reasons = absent_members(folder, config)
    rows = [
        _member_row(name, member, folder, jobs.members.get(name, ""), entries, reasons.get(name, ""))
        for name, member in member_run_dirs(folder, config).items()
    ]
    rows.append(_evaluation_row(folder, config, jobs.evaluation, entries))
    return Status(tuple(rows), error if any(row.outcome for row in rows) else "")


def _member_row(name: str, member: RunDir, run: RunDir, job: str, entries: Mapping[str, Entry], reason: str) -> Row:
    entry, status = entries.get(job), member.status
    if (result := member.result) is not None:
        found = {f"val_{key}": value for key, value in result.items()}
        return Row(name, job, "done", {**progress_columns({**status, **found}), "eta": ""}, "")
    columns = progress_columns(status)
    if entry is not None and entry.is_live:
        return Row(name, job, *_in_queue(entry, columns))
    known = str(status.get("state", ""))
    if known in ("running", "starting") and (holder := member.holder()):
        return Row(name, "", known, columns, f"host {holder[0]}, pid {holder[1]}")
    columns = {**columns, "eta": ""}
    if known == "failed":
        return Row(name, job, "failed", columns, reason)
    if entry is not None and entry.state == "CANCELLED":
        return Row(name, job, "cancelled", columns, entry.reason)
    if entry is not None and entry.state != "COMPLETED":
        return Row(name, job, "failed", columns, f"{_in_words(entry)}; {reason}")
    if known == "stopped":
        return Row(name, job, "stopped", columns, reason)
    if known not in ("", "waiting"):
        return Row(name, job, "interrupted", columns, reason)
    if member.path != run.path and (holder := run.holder()):
        return Row(name, "", "waiting", columns, f"host {holder[0]}, pid {holder[1]}")
    return Row(name, job, "not started", columns, reason.removeprefix("not started"))


def _in_queue(entry: Entry, columns: Mapping[str, str]) -> tuple[str, Mapping[str, str], str]:
    if entry.state == "PENDING":
        return "pending", {**columns, "eta": ""}, entry.reason
    return entry.state.lower(), columns, entry.nodes


def _in_words(entry: Entry) -> str:
    state = entry.state.lower().replace("_", " ")
    return f"SLURM: {state}{f' ({entry.reason})' if entry.reason else ''}"


def _evaluation_row(folder: RunDir, config: Config, job: str, entries: Mapping[str, Entry]) -> Row:
    entry, empty = entries.get(job), progress_columns({})
    if entry is not None and entry.is_live:
        return Row(EVALUATION, job, *_in_queue(entry, empty))
    if all((folder.predictions / f"{split}.parquet").is_file() for split in config.evaluate.splits):
        return Row(EVALUATION, job, "done", empty, f"choral score {folder.name}")
    if entry is not None and entry.state == "CANCELLED":
        return Row(EVALUATION, job, "cancelled", empty, entry.reason)
    if entry is not None and entry.state != "COMPLETED":
        log = folder.path / "slurm" / f"evaluate-{job}.log"
        return Row(EVALUATION, job, "failed", empty, f"{_in_words(entry)} (log: {log})")
    return Row(EVALUATION, job, "not started", empty, "")


def render(status: Status, title: str) -> Table:
    """Return the rows as a table, in 80 columns; `long_notes` has what does not fit."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("member", "job", "state", *_SHOWN, ""):
        table.add_column(Text(heading), no_wrap=True)
    for row in status.rows:
        state = Text(row.state, style=_STYLES.get(row.state, "yellow"))
        cells = [Text(row.columns.get(name, "")) for name in _SHOWN]
        note = row.note if len(row.note) <= _SHORT_NOTE else "see below"
        table.add_row(Text(row.name), Text(row.job), state, *cells, Text(note))
    return table


def long_notes(status: Status) -> list[str]:
    """Return a line for each note that is too long for the table, and for a queue that could not be asked."""
    notes = [f"{row.name}: {row.note}" for row in status.rows if len(row.note) > _SHORT_NOTE]
    return [*([f"queue: {status.queue_error}"] if status.queue_error else []), *notes]


def as_json(status: Status, run: str) -> dict[str, Any]:
    """Return the rows for machines."""
    return {
        "run": run,
        "rows": [asdict(row) for row in status.rows],
        "queue_error": status.queue_error,
        "exit_status": status.exit_code,
    }


def cancel_run(folder: RunDir) -> Sequence[str]:
    """Cancel the jobs of a run that are in the queue, and stop the process of this machine that works on it.

    What was running has a moment to save (SLURM: KillWait, 30 s by default); the run can be continued.

    Returns:
        what was done, a line each; none: there was nothing to cancel.

    Raises:
        ChoralError: the cluster does not answer; the run is worked on by another machine, out of SLURM's hands.
    """
    jobs, done = Jobs.read(folder), []
    if jobs and queue.is_here():
        members, evaluation = jobs.live(queue.read_queue())
        live = [(name, jobs.members[name]) for name in members] + (
            [(EVALUATION, jobs.evaluation)] if evaluation else []
        )
        if live:
            queue.cancel(job for _, job in live)
            return [f"{name}: job {job} cancelled" for name, job in live]
    for place in {
        folder.path: folder,
        **{m.path: m for m in member_run_dirs(folder, folder.config()).values()},
    }.values():
        if holder := place.holder():
            host, pid = holder
            if host != socket.gethostname() or not pid:
                raise ChoralError(f"{place.path}: in use on {host}, pid {pid}: cancel it there")
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError as error:
                raise ChoralError(
                    f"{place.path}: pid {pid}, which works on it, cannot be stopped: {error.strerror}"
                ) from None
            done.append(f"{place.path}: asked pid {pid} to save and stop")
            break  # who holds the run passes it on to the members
    if jobs and not done and not queue.is_here() and absent_members(folder, folder.config()):
        raise ChoralError(
            f"{folder.path}: was submitted to a SLURM cluster, which this machine cannot reach: cancel it there"
        )
    return done
