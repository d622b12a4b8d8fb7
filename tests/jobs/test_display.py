"""The display of running jobs, and the tail of their logs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from choral.jobs.display import Display, Row, format_duration, format_line
from choral.jobs.process import read_log_tail

ROWS = [
    Row("lite0 [bold]", "running", 2, 3725.0, {"step": "3/10", "images/s": "66"}),
    Row("lite1", "failed", 1, 12.3, {"step": "1/10"}),
    Row("lite2", "waiting", 0, 0.0, {}),
]


def test_table_on_a_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with Display(console, label="member") as display:
        display.update(ROWS)
        display.print_message("lite1: failed [/oops]")
    text = output.getvalue()
    for cells in (
        ["member", "state", "attempt", "step", "images/s", "elapsed"],
        ["lite0 [bold]", "running", "2", "3/10", "66", "1:02:05"],
        ["lite1", "failed", "1", "1/10", "0:12"],
        ["lite2", "waiting"],
    ):
        assert any(all(cell in printed for cell in cells) for printed in text.splitlines()), cells
    assert "lite1: failed [/oops]" in text


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Display(Console(file=output, width=20)) as display:
        for now[0] in (0.0, 1.0, 29.0):
            display.update(ROWS)
        first = output.getvalue().splitlines()
        for now[0] in (31.0, 32.0):
            display.update(ROWS)
        second = output.getvalue().splitlines()[len(first) :]
        display.update([Row("lite2", "done", 1, 2.0, {})])
        third = output.getvalue().splitlines()[len(first) + len(second) :]
    running = "lite0 [bold]: running (attempt 2), 1:02:05, step 3/10, images/s 66"
    assert first == [running, "lite1: failed, 0:12, step 1/10"]  # each change once, and not wrapped
    assert second == [running]  # again after 30 s, those alone that run
    assert third == ["lite2: done, 0:02"]


def test_durations_and_lines() -> None:
    assert [format_duration(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 100000)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:00:00",
        "27:46:40",
    ]
    assert format_line(Row("a", "stopped", 0, 0.0, {})) == "a: stopped"


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert read_log_tail(log) == ""
    log.write_bytes(b"earlier attempt\n")
    start = log.stat().st_size
    log.write_bytes(
        log.read_bytes()
        + b"epoch 1\r\n 10%|#  |\r 50%|## |\r100%|###|\n\n\x1b[31mred\x1b[0m \x1b[?25lalert\x07\nbad \xff byte"
    )
    assert read_log_tail(log, start).splitlines() == ["epoch 1", "100%|###|", "red alert", "bad � byte"]
    assert read_log_tail(log).startswith("earlier attempt\n")
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert read_log_tail(log).splitlines() == [f"line {number}" for number in range(99_985, 100_000)]
