"""Shows running jobs: a live table on a terminal, lines of text anywhere else (logs, CI)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_INTERVAL_S = 30.0
_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "stopped": "yellow", "stopping": "yellow"}


@dataclass(frozen=True)
class Row:
    """What is displayed of one job; `elapsed_s` counts from its first start, `columns` are specific to the job."""

    name: str
    state: str
    attempt: int
    elapsed_s: float
    columns: Mapping[str, str]


class Display:
    """A context manager that displays rows.

    Args:
        console: usually one that writes to stderr.
        line_interval_s: seconds between lines about running jobs if there is no terminal. Changes of state are printed
            at once.
        label: heading of the column of job names, such as "member".
    """

    def __init__(self, console: Console, line_interval_s: float = LINE_INTERVAL_S, label: str = "job") -> None:
        self._console, self._line_interval_s, self._label = console, line_interval_s, label
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._printed: dict[str, tuple[str, int]] = {}  # state and attempt by job name
        self._next_lines = time.monotonic() + line_interval_s

    def __enter__(self) -> Display:
        """Start the live table, if there is a terminal."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()

    def update(self, rows: Sequence[Row]) -> None:
        """Refresh the table, or print the lines that are due."""
        if self._live:
            self._live.update(render_table(rows, self._label), refresh=True)
            return
        due = time.monotonic() >= self._next_lines
        if due:
            self._next_lines = time.monotonic() + self._line_interval_s
        for row in rows:
            before, now = self._printed.get(row.name, ("waiting", 0)), (row.state, row.attempt)
            if before != now or (due and row.state in ("running", "stopping")):
                self._printed[row.name] = now
                self.print_message(format_line(row))

    def print_message(self, message: str) -> None:
        """Print a message, above the table on a terminal; brackets in it are not markup."""
        self._console.print(Text(message), soft_wrap=True)


def render_table(rows: Sequence[Row], label: str = "job") -> Table:
    """Return the rows as a table; cells of columns that a job does not report are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    result = Table(box=box.SIMPLE_HEAD)
    for heading in (label, "state", "attempt", *names, "elapsed"):
        result.add_column(Text(heading))
    for row in rows:
        state = Text(row.state, style=_STYLES.get(row.state, ""))
        cells = [Text(row.columns.get(name, "")) for name in names]
        attempt, elapsed = (str(row.attempt), format_duration(row.elapsed_s)) if row.attempt else ("", "")
        result.add_row(Text(row.name), state, attempt, *cells, elapsed)
    return result


def format_line(row: Row) -> str:
    """Return a row as one line of text."""
    attempt = f" (attempt {row.attempt})" if row.attempt > 1 else ""
    elapsed = [format_duration(row.elapsed_s)] if row.attempt else []
    details = [f"{name} {value}" for name, value in row.columns.items() if value]
    return ", ".join([f"{row.name}: {row.state}{attempt}", *elapsed, *details])


def format_duration(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
