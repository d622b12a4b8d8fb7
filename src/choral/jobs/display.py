"""What a person sees of running jobs: a live table on a terminal, lines elsewhere (logs, CI)."""

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

LINES_EVERY_S = 30.0
_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "stopped": "yellow", "stopping": "yellow"}


@dataclass(frozen=True)
class Row:
    """One job as it is shown; `elapsed_s` counts from its first start, `columns` are the job's own."""

    name: str
    state: str
    attempt: int
    elapsed_s: float
    columns: Mapping[str, str]


class Display:
    """Shows rows while it is entered.

    Args:
        console: usually of stderr.
        lines_every_s: where there is no terminal, seconds between lines about running jobs; changes of state are
            shown at once.
        kind: what a job is called in the table.
    """

    def __init__(self, console: Console, lines_every_s: float = LINES_EVERY_S, kind: str = "job") -> None:
        self._console, self._lines_every_s, self._kind = console, lines_every_s, kind
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._shown: dict[str, tuple[str, int]] = {}
        self._next_lines = time.monotonic() + lines_every_s

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        """Bring what is shown up to date."""
        if self._live:
            self._live.update(table(rows, self._kind), refresh=True)
            return
        due = time.monotonic() >= self._next_lines
        if due:
            self._next_lines = time.monotonic() + self._lines_every_s
        for row in rows:
            seen, now = self._shown.get(row.name, ("waiting", 0)), (row.state, row.attempt)
            if seen != now or (due and row.state in ("running", "stopping")):
                self._shown[row.name] = now
                self.say(line(row))

    def say(self, message: str) -> None:
        """Print a message, on a terminal above the table; brackets in it are no markup."""
        self._console.print(Text(message), soft_wrap=True)


def table(rows: Sequence[Row], kind: str = "job") -> Table:
    """Return the rows as a table; columns of jobs that report less than others stay empty."""
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    result = Table(box=box.SIMPLE_HEAD)
    for heading in (kind, "state", "attempt", *names, "elapsed"):
        result.add_column(Text(heading))
    for row in rows:
        state = Text(row.state, style=_STYLES.get(row.state, ""))
        cells = [Text(row.columns.get(name, "")) for name in names]
        attempt, elapsed = (str(row.attempt), clock(row.elapsed_s)) if row.attempt else ("", "")
        result.add_row(Text(row.name), state, attempt, *cells, elapsed)
    return result


def line(row: Row) -> str:
    """Return a row as one line."""
    attempt = f" (attempt {row.attempt})" if row.attempt > 1 else ""
    details = [f"{name} {value}" for name, value in row.columns.items() if value]
    return ", ".join([f"{row.name}: {row.state}{attempt}", *([clock(row.elapsed_s)] if row.attempt else []), *details])


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
